"""A trainer that is one of several: it computes its part of every batch, and its weights are those of all."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.utils import ModelType
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recbole_mm.distributed.batch import Part, part_of_batch
from recbole_mm.distributed.support import adapt
from recbole_mm.distributed.workers import OwnStream, joined, slice_of
from recbole_mm.training.checkpoint import PathLike
from recbole_mm.training.loop import LossSum
from recbole_mm.training.tracking import TensorBoard
from recbole_mm.training.trainer import TrainerMixin


class BatchLoss(nn.Module):
    """A model's loss as a module, which is what `DistributedDataParallel` wraps."""

    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, interaction: Any) -> Any:
        return self.loss(interaction)


class WorkerTrainer(TrainerMixin):
    """`TrainerMixin` for one of several workers; all of them must call the same methods in the same order.

    Every worker goes through the same batches and takes its slice of each. Losses are weighted by the slice's share of
    the targets, and `DistributedDataParallel` adds up the gradients, so that each step is the step of one process with
    the whole batch. Every worker ranks a part of the users and gets the metrics of all, so all stop at the same epoch.
    The first one alone writes files.

    A model without gradients (RecBole's TRADITIONAL ones) is trained by every worker on whole batches, which is the
    same everywhere and cheap; such a model has its evaluation shared alone.
    """

    tensorboard: TensorBoard

    def __init__(self, config: Any, model: nn.Module, run_dir: PathLike) -> None:
        workers = joined()
        assert workers is not None
        self.workers = workers
        super().__init__(config, model, run_dir)
        adapt(model)
        if not workers.first:
            self.tensorboard.close()
            self.tensorboard = NoBoard(Path(run_dir))
        self._sliced = config["MODEL_TYPE"] != ModelType.TRADITIONAL
        self._random = OwnStream(config["seed"], workers.rank)
        self._module: DistributedDataParallel | None = None
        self._trained: tuple[int, ...] = ()
        self._unsent = False

    # ------------------------------------------------------------------ train

    def _before_epoch(self, epoch_idx: int) -> None:
        super()._before_epoch(epoch_idx)
        self._random.begin(epoch_idx)

    def _epoch_loss(self, total: LossSum) -> float | tuple[float, ...]:
        loss = super()._epoch_loss(total)
        if not self._sliced:
            return loss
        summed = self.workers.sum(np.atleast_1d(np.asarray(loss, dtype=np.float64))).tolist()
        return tuple(summed) if isinstance(loss, tuple) else summed[0]

    def _backward(self, loss_func: Any, interaction: Any, epoch_idx: int, window: int, steps: bool) -> Any:
        """As in one process, for this worker's slice; gives its share of the batch's loss.

        Within a window of accumulated batches gradients are sent once, behind the last of them.
        """
        if not self._sliced:
            return super()._backward(loss_func, interaction, epoch_idx, window, steps)
        workers = self.workers
        mine, share, idle = slice_of(interaction, workers.rank, workers.size)
        part = Part(workers.group, workers.size, workers.rank, share, idle, self._random)
        module = self._synchronised(loss_func)
        self._unsent = not steps
        with nullcontext() if steps else module.no_sync(), part_of_batch(part), self._random.own():
            with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.enable_amp):
                losses = self._chosen_losses(module(mine.to(self.device)), epoch_idx)
            loss: Any = sum(losses) if isinstance(losses, tuple) else losses
            # The wrapper divides the sum of all workers' gradients by their number.
            self.scaler.scale(loss * (share * workers.size / window)).backward()
        return tuple(one.detach() * share for one in losses) if isinstance(losses, tuple) else losses.detach() * share

    def _synchronised(self, loss_func: Any) -> DistributedDataParallel:
        """The model behind torch's wrapper, which adds up gradients while they are computed.

        A model that trains in phases changes which of its weights have gradients, and the wrapper must know them all.
        Which of those a batch reaches may change too, so it looks each time. Buffers are left alone: they are the same
        everywhere, or large and frozen.
        """
        trained = tuple(id(weight) for weight in self.model.parameters() if weight.requires_grad)
        if self._module is None or trained != self._trained:
            self._trained = trained
            with warnings.catch_warnings():  # torch 2.13 has a new name for this argument that older ones do not know
                warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
                self._module = DistributedDataParallel(
                    BatchLoss(self.model, loss_func), broadcast_buffers=False, find_unused_parameters=True
                )
        return self._module

    def _step(self) -> None:
        if self._unsent:
            raise RuntimeError("the training data had fewer batches than it said, so gradients were not exchanged")
        super()._step()

    # ------------------------------------------------------------------- save

    def _save(self, epoch_idx: int, train_data: Any, improved: bool, due: bool) -> None:
        if self.workers.first:
            super()._save(epoch_idx, train_data, improved, due)

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if self.workers.first:
            super()._save_checkpoint(epoch, verbose, **kwargs)

    def _settle_best_weights(self, folder: Path) -> None:
        if self.workers.first:
            super()._settle_best_weights(folder)

    def _start(self, train_data: Any, resume: bool, saved: bool) -> None:
        super()._start(train_data, resume, saved)
        self.workers.wait()  # nobody writes a checkpoint that another has still to read

    # --------------------------------------------------------------- evaluate

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: PathLike | None = None,
        show_progress: bool = False,
    ) -> dict[str, float] | None:
        self.workers.wait()  # the first may still be writing the weights that all are to load
        return super().evaluate(eval_data, load_best_model, model_file, show_progress and self.workers.first)


class NoBoard(TensorBoard):
    """The board of a worker that writes none."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        pass

    def add_hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        pass
