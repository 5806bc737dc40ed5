"""Supervised fine-tuning of an LLM: prompts with answers in, a model folder out, resumable at any point.

transformers' Trainer runs the loop, so several GPUs (`torchrun`), mixed precision and checkpoints are its own; PEFT
makes the adapter. See `examples.py` for batches and loss, `trainer.py` for what is added to the Trainer.
"""

from __future__ import annotations

import logging
import random
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments
from transformers.pytorch_utils import Conv1D
from transformers.trainer_callback import TrainerState

from recbole_mm.errors import ConfigError
from recbole_mm.llm.decoder import layers_of
from recbole_mm.llm.finetuning.examples import AnswerLoss, Examples, LengthGroupedBatches
from recbole_mm.llm.finetuning.trainer import AnswerTrainer, check_checkpoint
from recbole_mm.llm.loading import has_bfloat16
from recbole_mm.llm.model import MLLM, checkpoint_layers
from recbole_mm.llm.pretrained import published
from recbole_mm.utils.file_lock import locked
from recbole_mm.utils.files import disk_errors, make_folder, write_checksums

logger = logging.getLogger(__name__)

STATE = "trainer_state.json"
"""The last file of a checkpoint: where it is, the checkpoint is whole."""

LOGS = 20
"""Log lines of a training."""

NO_BOTTLENECK = ("mllama",)
"""Families whose answers reach images past the prompt's tokens, so that no mask over tokens is a bottleneck."""


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters.

    Attributes:
        r: rank.
        alpha: the adapter's output is scaled by alpha / r.
        dropout: on the adapter's input.
        targets: names of the linear layers, as PEFT's `target_modules`; empty for all of the text decoder.
    """

    r: int = 16
    alpha: float = 32
    dropout: float = 0.05
    targets: Sequence[str] = ()


@dataclass(frozen=True)
class Tuning:
    """How a model is fine-tuned.

    Attributes:
        method: `full`, every parameter, or `lora`.
        epochs: passes over the examples.
        learning_rate: its peak.
        warmup_ratio: share of the steps before the peak.
        batch_tokens: bound of a batch: tokens, padding included, plus image patches.
        accumulation: batches of one optimizer step.
        image_pixels: bound on an image's area.
        lora: of the method `lora`.
        bottleneck: the answer sees of the prompt's items only their `[Cur_Item]`.
        gradient_checkpointing: compute activations anew in the backward pass: less memory, a third more time.
        load_in_4bit: the frozen linear layers are held in 4 bits, as `load_mllm` does on demand (lora only).
        checkpoint_steps: optimizer steps between checkpoints.
        seed: of batches, adapter and dropout.
        layers: keep and train the first so many of the decoder's layers alone; None: all.
    """

    method: str = "lora"
    epochs: int = 1
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.05
    batch_tokens: int = 8192
    accumulation: int = 1
    image_pixels: int = 112 * 112
    lora: Lora = field(default_factory=Lora)
    bottleneck: bool = False
    gradient_checkpointing: bool = False
    load_in_4bit: bool = False
    checkpoint_steps: int = 200
    seed: int = 0
    layers: int | None = None


def is_finetuned(folder: Path) -> bool:
    """Whether a folder holds a finished model or adapter; such folders appear whole."""
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def check_tuning(tuning: Tuning, mllm: MLLM | None = None) -> None:
    """Check what can be checked before anything is computed.

    Args:
        tuning: the settings.
        mllm: the model, once it is loaded.

    Raises:
        ConfigError: settings that do not fit together, the model or this machine.
    """
    if tuning.method not in ("lora", "full"):
        raise ConfigError(f"the method of fine-tuning is lora or full, not {tuning.method!r}")
    if tuning.load_in_4bit and tuning.method != "lora":
        raise ConfigError("4-bit weights cannot be trained themselves: use lora with them, or full without")
    if mllm is not None and tuning.bottleneck and mllm.model.config.model_type in NO_BOTTLENECK:
        raise ConfigError(
            f"{mllm.name}: in models of type {mllm.model.config.model_type} words see images past [Cur_Item]; "
            "fine-tune without the bottleneck (mirm_bottleneck: False)"
        )
    if mllm is not None and tuning.bottleneck and mllm.family.places_images:
        raise ConfigError(
            f"{mllm.name}: which tokens see which is known to transformers alone in models of type "
            f"{mllm.model.config.model_type}; fine-tune without the bottleneck (mirm_bottleneck: False)"
        )


def finetune(
    mllm: MLLM,
    examples: Examples,
    tuning: Tuning,
    folder: Path,
    show_progress: bool = True,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """Fine-tune a model and save it in the Hugging Face layout: all weights, or a PEFT adapter.

    Killed and called again with the same arguments, it goes on from its last checkpoint. Two processes that want the
    same folder take turns, and the second one finds it done.

    Args:
        mllm: loaded with its head; it is changed.
        examples: what is learnt.
        tuning: how.
        folder: of the finished model, which `load_mllm` loads; it appears all at once. While training lasts, a hidden
            folder next to it holds checkpoints.
        show_progress: show a progress display.
        notes: file name -> text of more files in the folder.

    Returns:
        `folder`.

    Raises:
        ConfigError: settings that do not fit the model or the machine, or a training that diverged.
        CheckpointError: the checkpoint is another model's, or damaged.
        DiskError: a checkpoint or the model cannot be written.

    Example:
        >>> mllm = load_mllm("tiny", with_head=True)                      # doctest: +SKIP
        >>> finetune(mllm, examples, Tuning("full"), Path("tuned"))       # doctest: +SKIP
        >>> load_mllm("tuned")                                            # doctest: +SKIP
    """
    check_tuning(tuning, mllm)
    if tuning.layers is not None:
        mllm = mllm.first_layers(tuning.layers, "mllm_layers")
    scratch = folder.with_name(f".{folder.name}")
    make_folder(scratch)
    arguments = _arguments(tuning, mllm, scratch)
    main = arguments.process_index == 0
    with _private_randomness(tuning.seed), locked(folder, "fine-tuning") if main else nullcontext():
        state = arguments.distributed_state
        state.wait_for_everyone()
        if not is_finetuned(folder):
            _train(mllm, examples, tuning, arguments, show_progress)
            if main:
                with disk_errors(folder):
                    _save(mllm, scratch / "finished", notes or {})
                    (scratch / "finished").rename(folder)
            state.wait_for_everyone()
        if main:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _train(mllm: MLLM, examples: Examples, tuning: Tuning, arguments: TrainingArguments, show: bool) -> None:
    """Train `mllm.model`, which becomes a PEFT model where the method is lora; from the last checkpoint if any."""
    longest, context = int(max(examples.lengths, default=0)), mllm.context
    if context is not None and not mllm.family.reads_images and longest > context:
        raise ConfigError(
            f"{mllm.name}: an example to learn has {longest} tokens, more than the {context} that the LLM can read"
        )
    if tuning.method == "lora":
        mllm.model = add_lora(mllm, tuning.lora, tuning.layers)
    else:
        mllm.model.requires_grad_(True)
    if tuning.gradient_checkpointing:
        checkpoint_layers(mllm.model)
    model = AnswerLoss(mllm.model, mllm.family, mllm.cur_item_id if tuning.bottleneck else None)
    batches = LengthGroupedBatches(examples.lengths, tuning.batch_tokens, tuning.seed)
    trainer = AnswerTrainer(mllm, model, arguments, examples, batches, tuning.image_pixels, tuning.warmup_ratio, show)
    checkpoint = last_checkpoint(Path(arguments.output_dir))
    if checkpoint is not None:
        check_checkpoint(checkpoint)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    logger.info(
        "Fine-tuning %s (%s): %.1f M of %.1f M parameters, %d examples in %d batches, %d epochs%s",
        *(mllm.name, tuning.method, trained / 1e6, sum(value.numel() for value in model.parameters()) / 1e6),
        *(len(examples), len(batches), tuning.epochs),
        f", from {checkpoint.name}" if checkpoint else "",
    )
    try:
        # One of RecBole's models turns this on for everybody; it costs a third of the time.
        with torch.autograd.set_detect_anomaly(False):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        trainer.require_finite()
    finally:
        trainer.close()
    if trainer.unusable:
        logger.warning("Fine-tuning: %d examples could not be read and were left out", len(trainer.unusable))
    mllm.model.eval()


def _arguments(tuning: Tuning, mllm: MLLM, scratch: Path) -> TrainingArguments:
    cuda = mllm.device.type == "cuda"
    if cuda and (mllm.device.index or 0) > 0:
        raise ConfigError("fine-tuning runs on the first visible GPU: choose it with CUDA_VISIBLE_DEVICES, not gpu_id")
    arguments = TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=tuning.epochs,
        learning_rate=tuning.learning_rate,
        gradient_accumulation_steps=tuning.accumulation,
        per_device_train_batch_size=1,
        seed=tuning.seed,
        bf16=cuda and has_bfloat16(mllm.device),
        fp16=cuda and not has_bfloat16(mllm.device),
        use_cpu=not cuda,
        logging_steps=1 / LOGS,
        logging_nan_inf_filter=False,
        save_steps=tuning.checkpoint_steps,
        save_total_limit=1,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=True,  # a batch without images leaves the vision tower out
        disable_tqdm=True,
        report_to=[],
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs in one process would split what is no tensor yet
    return arguments


def last_checkpoint(scratch: Path) -> Path | None:
    """The newest whole checkpoint; a kill while one was written leaves it without its last file."""
    found = [path for path in scratch.glob("checkpoint-*") if (path / STATE).is_file()]
    return max(found, key=lambda path: TrainerState.load_from_json(str(path / STATE)).global_step, default=None)


def _save(mllm: MLLM, folder: Path, notes: Mapping[str, str]) -> None:
    """Write model or adapter, tokenizer, image processor and notes."""
    shutil.rmtree(folder, ignore_errors=True)
    if hasattr(mllm.model, "peft_config"):
        mllm.model.save_pretrained(folder, save_embedding_layers=False)  # [Cur_Item]'s row is part of the adapter
    else:
        mllm.model.save_pretrained(folder)
    mllm.tokenizer.save_pretrained(folder)
    if mllm.image_processor is not None:
        mllm.image_processor.save_pretrained(folder)
    for name, text in notes.items():
        (folder / name).write_text(text, encoding="utf-8")
    write_checksums(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors leaves 0600, which locks the rest of a team out


# --- what is trained -------------------------------------------------------------------------------------------------


def add_lora(mllm: MLLM, lora: Lora, layers: int | None = None) -> Any:
    """Put adapters around a model's linear layers; the embedding of `[Cur_Item]` is trained along.

    Args:
        mllm: the model; it is changed.
        lora: the adapters.
        layers: of a longer base model that it has; None: all.

    Raises:
        ConfigError: a target names no layer.
    """
    decoder = mllm.family.decoder(mllm.model)
    targets: str | list[str] = list(lora.targets)
    if not targets:
        prefix = re.escape(next(name for name, module in mllm.model.named_modules() if module is decoder))
        if layers is not None:  # those that the base model has besides are not in the adapter
            prefix += rf"\.{layers_of(decoder)[0]}\.({'|'.join(map(str, range(layers)))})"
        matrices = (name for name, module in decoder.named_modules() if isinstance(module, nn.Linear | Conv1D))
        linear = {name.rsplit(".")[-1] for name in matrices}
        targets = rf"{prefix}\..*\.({'|'.join(sorted(linear))})"
    name, revision = published(mllm.name, mllm.identity)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=targets,
        layers_to_transform=list(range(layers)) if layers is not None and isinstance(targets, list) else None,
        trainable_token_indices=[mllm.cur_item_id],
        task_type="CAUSAL_LM",
        revision=revision,
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT reads names that transformers has renamed
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # GPT-2's matrices, which PEFT turns by itself
            model = get_peft_model(mllm.model, config)
    except ValueError as error:
        raise ConfigError(f"lora targets {list(lora.targets)}: {str(error).splitlines()[0]}") from error
    config.base_model_name_or_path = name  # PEFT put the folder of this machine's cache there
    return model


# --- side effects kept in --------------------------------------------------------------------------------------------


@contextmanager
def _private_randomness(seed: int) -> Iterator[None]:
    """Seed all generators, as the Trainer does, and give the caller's states back afterwards."""
    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)
