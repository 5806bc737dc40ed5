"""One epoch of training: batches in, optimizer steps and a loss out.

`TrainingLoop` stands where RecBole's `Trainer` stands and does its work differently; RecBole's special trainers (KGAT,
MKR, RecVAE, ...) are put in front of it by `factory.make_trainer` and reach it through their `super()._train_epoch`.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.dataloader import KnowledgeBasedDataLoader
from recbole.evaluator import Collector
from recbole.evaluator.collector import DataStruct
from recbole.trainer import Trainer
from recbole.trainer import trainer as upstream
from recbole.utils import ModelType
from torch import Tensor, nn

from recbole_mm.config.run_settings import LEARNERS
from recbole_mm.data.loaders import TARGET_MASK
from recbole_mm.errors import ConfigError, RecboleMMError
from recbole_mm.evaluation.collector import catalogue_facts
from recbole_mm.models.hooks import hooks_of
from recbole_mm.training.checkpoint import swapped
from recbole_mm.training.schedule import LearningRateSchedule
from recbole_mm.training.tracking import Mlflow, TensorBoard, check_trackers
from recbole_mm.utils.progress import progress

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

logger = logging.getLogger(__name__)


CHECK_PERIOD = 50
"""Optimizer steps between two looks at the losses of a GPU, each of which waits for the GPU."""


class DivergedError(RecboleMMError, ValueError):
    """A loss, a weight or a score is not a number. Also a `ValueError`, which is what RecBole raises then."""


class NanLossError(DivergedError):
    """The training loss is NaN or infinite."""


ADVICE = "lower learning_rate, set clip_grad_norm, or turn enable_amp off"


class LossSum:
    """Adds up losses on their device, and finds the first that is not finite without waiting for the GPU.

    Args:
        device: device of the losses.
        epoch: number of the epoch, for error messages.
        scaled: whether a gradient scaler skips the steps of infinite losses; only NaN is an error then.

    Example:
        >>> losses = LossSum(torch.device("cpu"), epoch=0)
        >>> losses.add(torch.tensor(1.5)), losses.add(torch.tensor(0.5)), losses.total()
        (None, None, 2.0)
    """

    def __init__(self, device: torch.device, epoch: int, scaled: bool = False) -> None:
        self.epoch = epoch
        self._is_bad = torch.isnan if scaled else lambda losses: ~torch.isfinite(losses)
        self._parts: tuple[Tensor, ...] | None = None
        self._is_tuple = False
        self._batch = 0
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self._period = 1 if device.type == "cpu" else CHECK_PERIOD

    def add(self, losses: Tensor | tuple[Tensor, ...]) -> None:
        """Add one batch's loss, a scalar, or the tuple of its parts.

        Raises:
            NanLossError: this loss, or an earlier one on a GPU, is not finite.
        """
        self._is_tuple = isinstance(losses, tuple)
        parts = losses if isinstance(losses, tuple) else (losses,)
        found = tuple(part.detach().to(self._first_bad.device, torch.float64).sum() for part in parts)
        self._parts = found if self._parts is None else tuple(a + b for a, b in zip(self._parts, found, strict=True))
        bad = self._is_bad(torch.stack(found)).any() & (self._first_bad < 0)
        self._first_bad = torch.where(bad, self._batch, self._first_bad)
        self._batch += 1
        if self._batch % self._period == 0:
            self.check()

    def check(self) -> None:
        """Wait for the device and check every loss so far.

        Raises:
            NanLossError: one of them was not finite.
        """
        first = int(self._first_bad)
        if first >= 0:
            raise NanLossError(
                f"the training loss became NaN or infinite in epoch {self.epoch} at batch {first}; {ADVICE}"
            )

    def total(self) -> float | tuple[float, ...]:
        """Return the sum over all batches; a tuple of sums where the model returns its loss in parts."""
        self.check()
        if self._parts is None:
            return 0.0
        sums = tuple(float(part) for part in self._parts)
        return sums if self._is_tuple else sums[0]


class KeepingCollector(Collector):
    """RecBole's collector, able to hold plain numbers and keeping what the last evaluation collected.

    recbole/evaluator/collector.py:227 calls `.cpu()` on everything, numbers and counters included, and copies it all.
    """

    last_struct: DataStruct | None = None

    def data_collect(self, train_data: Any) -> None:
        """RecBole's, without the padding id among items and users (see `catalogue_facts`)."""
        inside = train_data.general_dataloader if isinstance(train_data, KnowledgeBasedDataLoader) else train_data
        for name, key in (("items", "ITEM_ID_FIELD"), ("users", "USER_ID_FIELD")):
            wanted = [fact for fact in (f"data.num_{name}", f"data.count_{name}") if self.register.need(fact)]
            if wanted:
                dataset, field = inside.dataset, self.config[key]
                counts = np.bincount(np.asarray(dataset.inter_feat[field]), minlength=dataset.num(field))
                facts = catalogue_facts(name, dataset.num(field), counts)
                for fact in wanted:
                    self.data_struct.set(fact, facts[fact])

    def get_data_struct(self) -> DataStruct:
        """Return what was collected, on the CPU, and keep it as `last_struct`."""
        struct = DataStruct()
        for key, value in self.data_struct._data_dict.items():
            struct.set(key, value.cpu() if isinstance(value, Tensor) else value)
        for key in ("rec.topk", "rec.meanrank", "rec.score", "rec.items", "data.label"):
            if key in self.data_struct:
                del self.data_struct[key]
        self.last_struct = struct
        return struct


class TrainingLoop(Trainer):
    """RecBole's `Trainer` with accumulated, clipped, scheduled and mixed-precision optimizer steps.

    An epoch of a model whose class has `is_trainable = False` reads no batch.

    Reads `gradient_accumulation_steps`, `clip_grad_norm` (a number or RecBole's dict), `enable_amp`, `max_train_steps`,
    `max_train_seconds`, and what RecBole reads. `parameter_groups` of the model (see `models/base.py`) may have
    learning rates of their own; frozen parameters are left out of the optimizer.

    Args:
        config: the run's configuration.
        model: the model to train, on its device.

    Raises:
        ConfigError: unknown learner, no trainable parameter, impossible numbers.
    """

    eval_step: int
    cur_step: int
    best_valid_score: float
    best_valid_result: dict[str, float] | None
    run_dir: Path
    """Set by the subclass, since RecBole's trainer classes in between pass on (config, model) only."""

    def __init__(self, config: Config, model: nn.Module) -> None:
        check_trackers(config)
        self.hooks = hooks_of(type(model))
        self.timings: dict[str, float] = {
            "train_seconds": 0.0, "train_cpu_seconds": 0.0, "eval_seconds": 0.0, "train_targets": 0, "steps": 0,
            "epochs": 0,
        }  # fmt: skip
        board = TensorBoard(self.run_dir / "tensorboard")
        # RecBole's constructor would open a board and create a folder in the working directory.
        with swapped(upstream, "get_tensorboard", lambda _: board), swapped(upstream, "ensure_dir", lambda _: None):
            super().__init__(config, model)
        self.mlflow = Mlflow(config, self.run_dir)
        self.logger = logger
        self.eval_collector = KeepingCollector(config)
        self.schedule: LearningRateSchedule | None = None
        self.accumulation = config["gradient_accumulation_steps"] or 1
        self.max_train_steps, self.max_train_seconds = config["max_train_steps"], config["max_train_seconds"]
        self._cpu_start: float | None = None
        if self.accumulation < 1 or (self.max_train_steps is not None and self.max_train_steps < 1):
            raise ConfigError("gradient_accumulation_steps and max_train_steps must be at least 1")
        self._set_up_precision()

    def _set_up_precision(self) -> None:
        """bfloat16 wherever it exists, which needs no loss scaling; float16 with scaling on older GPUs."""
        memory_based = self.config["MODEL_TYPE"] == ModelType.TRADITIONAL
        self.enable_amp = bool(self.config["enable_amp"]) and not memory_based
        on_gpu = self.device.type == "cuda"
        self.amp_dtype = torch.float16 if on_gpu and not torch.cuda.is_bf16_supported() else torch.bfloat16
        self.enable_scaler = self.enable_amp and self.amp_dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)

    # -------------------------------------------------------------- optimizer

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        learner = kwargs.get("learner", self.learner)
        if str(learner).lower() not in LEARNERS:
            raise ConfigError(f"learner: {learner!r} is not one of {', '.join(LEARNERS)}")
        if not self.hooks.is_trainable:  # a parameter that is nobody's: there is no optimizer of nothing
            groups = [{"params": [nn.Parameter(torch.zeros(()))]}]
        elif "params" in kwargs:
            groups = _trainable([{"params": kwargs.pop("params")}])
        else:
            groups = self._parameter_groups()
        if not groups:
            raise ConfigError(f"{type(self.model).__name__} has no trainable parameter; there is nothing to train")
        return super()._build_optimizer(params=groups, **kwargs)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups = _trainable(self.hooks.parameter_groups(self.model, self.config))
        grouped = {id(parameter) for group in groups for parameter in group["params"]}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and id(parameter) not in grouped:
                raise ConfigError(
                    f"{type(self.model).__name__}.parameter_groups leaves out the trainable parameter {name}"
                )
        return groups

    # ------------------------------------------------------------------ epoch

    @property
    def out_of_steps(self) -> bool:
        """Whether `max_train_steps` optimizer steps have been made, or `max_train_seconds` have been used up."""
        if self.max_train_steps is not None and self.timings["steps"] >= self.max_train_steps:
            return True
        return self.max_train_seconds is not None and self.train_cpu_seconds >= self.max_train_seconds

    @property
    def train_cpu_seconds(self) -> float:
        """Processor seconds of training so far, of all threads of this process, the epoch at hand included."""
        running = 0.0 if self._cpu_start is None else time.process_time() - self._cpu_start
        return self.timings["train_cpu_seconds"] + running

    def _train_epoch(
        self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False
    ) -> float | tuple[float, ...]:
        """Train on each batch of `train_data` once, after the model's `start_epoch` hook.

        Returns:
            Sum of the batches' losses; a tuple of sums where the model returns its loss in parts.
        """
        if not self.hooks.is_trainable:
            return 0.0
        self.hooks.start_epoch(self.model, epoch_idx)
        self.model.train()
        loss_func = loss_func or self.model.calculate_loss
        total = LossSum(self.device, epoch_idx, scaled=self.enable_scaler)
        batches = len(train_data)
        pending = window = 0
        for index, interaction in enumerate(
            progress(train_data, f"Training epoch {epoch_idx}", total=batches, unit="batch", show=show_progress)
        ):
            if pending == 0:
                if self.out_of_steps and index:  # an epoch that has begun makes a step: it has a loss then
                    break
                window = min(self.accumulation, max(1, batches - index))
                self.optimizer.zero_grad()
            self.timings["train_targets"] += _count_targets(interaction)
            total.add(self._backward(loss_func, interaction, epoch_idx, window, pending + 1 == window))
            pending += 1
            if pending == window:
                self._step()
                pending = 0
        if pending:
            self._step()
        return self._epoch_loss(total)

    def _backward(self, loss_func: Any, interaction: Any, epoch_idx: int, window: int, steps: bool) -> Any:
        """Add a batch's gradients to the accumulated ones and return its loss.

        Args:
            loss_func: the model's loss of an interaction.
            interaction: the batch.
            epoch_idx: number of the epoch.
            window: number of batches in the optimizer step.
            steps: whether this batch is the last of them.
        """
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.enable_amp):
            losses = self._chosen_losses(loss_func(interaction.to(self.device)), epoch_idx)
        loss: Any = sum(losses) if isinstance(losses, tuple) else losses
        self.scaler.scale(loss if window == 1 else loss / window).backward()
        return losses

    def _chosen_losses(self, losses: Any, epoch_idx: int) -> Any:
        """Return the parts of the loss that count in this epoch."""
        return losses

    def _step(self) -> None:
        if self.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            limit = self.clip_grad_norm
            arguments = limit if isinstance(limit, dict) else {"max_norm": float(limit)}
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], **arguments)
        try:
            self.scaler.step(self.optimizer)
        except RuntimeError as error:
            if not isinstance(self.optimizer, torch.optim.SparseAdam):
                raise
            raise ConfigError(f"learner: sparse_adam: {' '.join(str(error).split())}; give adam") from error
        self.scaler.update()
        if self.schedule is not None:
            self.schedule.step()
        self.timings["steps"] += 1

    def _epoch_loss(self, total: LossSum) -> float | tuple[float, ...]:
        """Return the loss of an epoch whose batches have been added up."""
        return total.total()

    def _before_epoch(self, epoch_idx: int) -> None:
        """Do what a model needs before each epoch."""


class NCLTrainingLoop(TrainingLoop):
    """NCL clusters its embeddings every `m_step` epochs and leaves its last loss out for `warm_up_step` epochs.

    RecBole writes this as a copy of the whole trainer (recbole/trainer/trainer.py:1173).
    """

    def _before_epoch(self, epoch_idx: int) -> None:
        if epoch_idx % self.config["m_step"] == 0:
            self.model.e_step()

    def _chosen_losses(self, losses: Any, epoch_idx: int) -> Any:
        return losses[:-1] if isinstance(losses, tuple) and epoch_idx < self.config["warm_up_step"] else losses


def _trainable(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups without frozen parameters, and without those that are empty then."""
    kept = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    return [group for group in kept if group["params"]]


def _count_targets(interaction: Any) -> int:
    """Return the number of training targets of a batch: positions with a target, or rows."""
    if TARGET_MASK in interaction:
        return int(interaction[TARGET_MASK].sum())
    return len(interaction)
