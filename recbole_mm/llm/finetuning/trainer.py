"""transformers' Trainer around batches of prompts with answers: threads that prepare, the loss by kind, checkpoints."""

from __future__ import annotations

import logging
import math
import os
import pickle
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from recbole_mm.errors import CheckpointError, ConfigError, DiskError
from recbole_mm.llm.finetuning.examples import AnswerLoss, Examples, LengthGroupedBatches, Ready, words_to_learn
from recbole_mm.llm.model import MLLM
from recbole_mm.utils.files import check_checksums, disk_errors, make_folder, write_checksums
from recbole_mm.utils.progress import progress
from recbole_mm.utils.seal import ChecksumError

logger = logging.getLogger(__name__)

TRAINED = "trained.safetensors"
"""File of a checkpoint that holds the trained parameters, under the names that `named_parameters` gives them."""


def warm_cosine(step: int, warmup: int, total: int, start: float = 0.01) -> float:
    """Factor of the learning rate: linear from `start` to 1 over the warm-up, then half a cosine to 0.

    Example:
        >>> [round(warm_cosine(step, 2, 6), 3) for step in (0, 1, 2, 4, 6)]
        [0.01, 0.505, 1.0, 0.5, 0.0]
    """
    if step < warmup:
        return start + (1 - start) * step / warmup
    return (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup)))) / 2


class AnswerTrainer(Trainer):
    """transformers' Trainer over token-budget batches that threads prepare while the model is busy.

    An example's loss is the mean over the tokens to be predicted, times its weight; a step's is their sum over the mean
    number of examples in a batch. So every example has the same say, whether its batch holds four histories or fifty
    titles.

    Args:
        mllm: tokenizer and family; its model is in `model`.
        model: what is trained.
        arguments: of the Trainer.
        examples: what is learnt from.
        batches: how they are grouped.
        image_pixels: bound on an image's area.
        warmup_ratio: share of all steps over which the learning rate climbs.
        show_progress: show a progress display.
    """

    def __init__(
        self,
        mllm: MLLM,
        model: AnswerLoss,
        arguments: TrainingArguments,
        examples: Examples,
        batches: LengthGroupedBatches,
        image_pixels: int,
        warmup_ratio: float,
        show_progress: bool = True,
    ) -> None:
        super().__init__(model=model, args=arguments, callbacks=[_Flow(self, show_progress)])
        self.remove_callback(PrinterCallback)
        self.mllm, self.examples, self.batches = mllm, examples, batches
        self.image_pixels, self.warmup_ratio = image_pixels, warmup_ratio
        self.per_batch = len(examples) / len(batches)
        self._not_words = (*mllm.family.reserved_ids, mllm.cur_item_id)
        self.losses: dict[str, list[torch.Tensor]] = {}
        self.unusable: set[int] = set()
        self._pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "prepare")

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def get_train_dataloader(self) -> DataLoader:
        # accelerate fetches one batch ahead of the model, and a fetched batch is one being prepared.
        places: Any = range(len(self.examples))
        return self.accelerator.prepare(DataLoader(places, batch_sampler=self.batches, collate_fn=self._submit))

    def _submit(self, indices: list[int]) -> dict[str, list[Future[Ready | None]]]:
        return {"examples": [self._pool.submit(self.prepare, index) for index in indices]}

    def prepare(self, index: int) -> Ready | None:
        """Decode, cut and tokenize one example."""
        example = self.examples[index]
        if example is None:
            self.unusable.add(index)
            return None
        whole = self.mllm.family.prepare([*example.parts, example.answer], self.image_pixels)
        learnt = words_to_learn(whole.ids, self._not_words) if example.learns_prompt else None
        return Ready(whole, len(example.answer), example.kind, example.weight, learnt)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> torch.Tensor:
        """The step's loss; `inputs` are examples under way."""
        ready = [example for future in inputs["examples"] if (example := future.result()) is not None]
        if not ready:
            return 0.0 * torch.stack([value.sum() for value in model.parameters() if value.requires_grad]).sum()
        return self.loss_of(model, ready)

    def loss_of(self, model: nn.Module, ready: Sequence[Ready]) -> torch.Tensor:
        """Loss of prepared examples, as in the class's docstring."""
        device = self.args.device
        learnt = [example.places for example in ready]
        rows = np.repeat(np.arange(len(ready)), [len(places) for places in learnt])
        columns = np.concatenate(learnt)
        batch = self.mllm.family.collate([example.input for example in ready], device)
        places = torch.from_numpy(np.stack([rows, columns])).to(device)
        targets = batch["input_ids"][places[0], places[1]]
        losses = model(batch, places[0], places[1] - 1, targets)
        lengths = torch.tensor([len(places) for places in learnt], dtype=losses.dtype, device=device)
        means = torch.zeros_like(lengths).index_add(0, places[0], losses) / lengths
        for example, mean in zip(ready, means.detach()):
            self.losses.setdefault(example.kind, []).append(mean)
        weights = torch.tensor([example.weight for example in ready], dtype=losses.dtype, device=device)
        return (means * weights).sum() / self.per_batch

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As the Trainer's; with the loss of each kind of example since the last time."""
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise ConfigError(
                    f"fine-tuning diverged: the loss is {logs['loss']} at step {self.state.global_step}; "
                    "lower the learning rate"
                )
            for kind, means in sorted(self.losses.items()):
                logs[f"loss {kind}"] = float(torch.stack(means).mean())
            self.losses.clear()
        super().log(logs, *args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Linear warm-up from a hundredth of the learning rate, then cosine (Molar, section 4.1.2)."""
        warmup = math.ceil(self.warmup_ratio * num_training_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: warm_cosine(step, warmup, num_training_steps)
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    # --- checkpoints: the trained parameters alone, in safetensors --------------------------------------------------

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def require_finite(self) -> None:
        """Make sure that no trained weight is lost: neither a checkpoint nor a model may be made of such ones.

        Raises:
            ConfigError: one holds NaN or infinity.
        """
        for name, weight in self._trained().items():
            if not torch.isfinite(weight.detach()).all():
                raise ConfigError(
                    f"fine-tuning diverged: the weight {name} holds NaN or infinity at step {self.state.global_step}; "
                    "lower the learning rate"
                )

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """As the Trainer's, of finite weights alone, with a list of checksums; a part of one is removed."""
        self.require_finite()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            with disk_errors(folder):
                super()._save_checkpoint(*args, **kwargs)
        except DiskError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self.accelerator.wait_for_everyone()  # each process has written its generators' state
        if self.is_world_process_zero():
            write_checksums(folder)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        make_folder(folder)
        save_file({name: value.detach().contiguous() for name, value in self._trained().items()}, folder / TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with _damage_named(resume_from_checkpoint):
            saved = load_file(Path(resume_from_checkpoint) / TRAINED)
        wanted = self._trained()
        if saved.keys() != wanted.keys():
            raise CheckpointError(f"{resume_from_checkpoint}: of another model; remove the folder and start anew")
        with torch.no_grad():
            for name, value in wanted.items():
                value.copy_(saved[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _damage_named(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _damage_named(checkpoint):
            super()._load_rng_state(checkpoint)


def check_checkpoint(folder: Path) -> None:
    """Make sure that a checkpoint is what was written.

    Raises:
        CheckpointError: a file of it is gone or damaged.
    """
    try:
        check_checksums(folder)
    except ChecksumError as error:
        raise CheckpointError(f"{error}; remove {folder} to start anew") from error


@contextmanager
def _damage_named(checkpoint: str | None) -> Iterator[None]:
    """The Trainer reads these files with the restricted unpickler of torch, which refuses all but plain data."""
    try:
        yield
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{checkpoint}: damaged ({reason}); remove the folder to start anew") from error


class _Flow(TrainerCallback):
    """Orders of the epochs, progress, log lines; and no checkpoint at the end, where the finished model is saved."""

    def __init__(self, trainer: AnswerTrainer, show: bool) -> None:
        self.trainer = trainer
        self.show = show
        self._steps: Iterator[int] = iter(())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        todo = range(state.global_step, state.max_steps)
        self._display = progress(todo, "Fine-tuning", unit="step", show=self.show and state.is_world_process_zero)
        self._steps = iter(self._display)
        next(self._steps, None)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.batches.set_epoch(int((state.epoch or 0) + 1e-6))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(self._steps, None)
        if state.global_step >= state.max_steps:
            control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        kinds = [
            f"{name.removeprefix('loss ')} {value:.3f}" for name, value in logs.items() if name.startswith("loss ")
        ]
        if kinds and state.is_world_process_zero:
            self._display.note(", ".join(kinds))
            logger.info("Fine-tuning: step %d of %d, loss %s", state.global_step, state.max_steps, ", ".join(kinds))
