"""Training by one of several workers: it takes its part of every batch, and all take the step of one process.

`DistributedDataParallel` sums the gradients. `make_trainer` chooses `WorkerTrainer` in a process of several workers.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.loss import EmbLoss, EmbMarginLoss
from recbole.trainer import Trainer
from recbole.trainer.trainer import TraditionalTrainer
from recbole.utils import ModelType, get_trainer
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recbole_mm.data.loaders import TARGET_MASK
from recbole_mm.errors import ConfigError
from recbole_mm.models.hooks import hooks_of
from recbole_mm.models.whole_batch import BatchPart, part_of_batch, whole_batch
from recbole_mm.training.checkpoint import PathLike, rng_state, set_rng_state
from recbole_mm.training.loop import LossSum
from recbole_mm.training.tracking import TensorBoard
from recbole_mm.training.trainer import TrainerMixin
from recbole_mm.utils.process_group import current_workers

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

ONE = "; train it with train_workers: 1"


class BatchLoss(nn.Module):
    """A model's loss as the `forward` of a module, which `DistributedDataParallel` wraps.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> BatchLoss(model, lambda batch: model(batch).square().mean())(torch.zeros(3, 2)).shape
        torch.Size([])
    """

    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.model = model
        self.loss = loss

    def forward(self, interaction: Any) -> Any:
        """Return the loss of a batch."""
        return self.loss(interaction)


class WorkerTrainer(TrainerMixin):
    """`TrainerMixin` for one of several workers; all of them must call the same methods in the same order.

    Every worker goes through the same batches and takes its slice of each. Losses are weighted by the slice's share of
    the targets, and gradients are summed over workers, so that each step is the step of one process with the whole
    batch. Every worker ranks a part of the users and gets the metrics of all, so all stop at the same epoch. Only the
    first worker writes files.

    A model without gradients (RecBole's TRADITIONAL ones) is trained by every worker on whole batches: this is cheap,
    and equal on all workers. Only its evaluation is shared.
    """

    tensorboard: TensorBoard

    def __init__(self, config: Config, model: nn.Module, run_dir: PathLike) -> None:
        workers = current_workers()
        assert workers is not None
        self.workers = workers
        super().__init__(config, model, run_dir)
        adapt_losses(model)
        if not workers.is_first:
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
        """Compute gradients for this worker's slice; returns its share of the batch's loss.

        Of a window of accumulated batches gradients are exchanged once, with the last batch.
        """
        if not self._sliced:
            return super()._backward(loss_func, interaction, epoch_idx, window, steps)
        workers = self.workers
        mine, share, idle = slice_of(interaction, workers.rank, workers.size)
        part = BatchPart(workers.group, workers.size, workers.rank, share, idle, self._random)
        module = self._wrapped(loss_func)
        self._unsent = not steps
        with nullcontext() if steps else module.no_sync(), part_of_batch(part), self._random.own():
            with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=self.enable_amp):
                losses = self._chosen_losses(module(mine.to(self.device)), epoch_idx)
            loss: Any = sum(losses) if isinstance(losses, tuple) else losses
            # The wrapper divides the sum of all workers' gradients by their number.
            self.scaler.scale(loss * (share * workers.size / window)).backward()
        return tuple(one.detach() * share for one in losses) if isinstance(losses, tuple) else losses.detach() * share

    def _wrapped(self, loss_func: Any) -> DistributedDataParallel:
        """Returns the model in torch's wrapper, which sums gradients over workers while they are computed.

        A model that trains in phases changes which of its weights have gradients, and the wrapper must know them all.
        Which of those a batch reaches may change too, so unused weights are searched for each time. Buffers are not
        exchanged: they are equal on all workers, or large and frozen.
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
        if self.workers.is_first:
            super()._save(epoch_idx, train_data, improved, due)

    def _save_best_weights_again(self) -> None:
        if self.workers.is_first:
            super()._save_best_weights_again()

    def _load_best_weights(self) -> None:
        self.workers.barrier()  # the first worker may still be writing them
        super()._load_best_weights()

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        if self.workers.is_first:
            super()._save_checkpoint(epoch, verbose, **kwargs)

    def _settle_best_weights(self, folder: Path) -> None:
        if self.workers.is_first:
            super()._settle_best_weights(folder)

    def _start(self, train_data: Any, resume: bool, saved: bool) -> None:
        super()._start(train_data, resume, saved)
        self.workers.barrier()  # no checkpoint is written while another worker still reads one

    # --------------------------------------------------------------- evaluate

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: PathLike | None = None,
        show_progress: bool = False,
    ) -> dict[str, float] | None:
        """Compute the metrics together with the other workers; see `TrainerMixin.evaluate`."""
        self.workers.barrier()  # the first worker may still be writing the weights that all load
        return super().evaluate(eval_data, load_best_model, model_file, show_progress and self.workers.is_first)


class NoBoard(TensorBoard):
    """The TensorBoard of a worker that writes none.

    Example:
        >>> board = NoBoard(tmp_path)
        >>> board.add_scalar("Loss/Train", 0.5, step=1)
    """

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write nothing."""

    def add_hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        """Write nothing."""


# --------------------------------------------------------------------------------------------------------------- slices


def bounds(total: int, size: int) -> list[int]:
    """Returns where `size` parts of `total` rows begin and end: `size` + 1 numbers. Parts differ by one row at most.

    >>> bounds(7, 3)
    [0, 2, 4, 7]
    """
    return [total * rank // size for rank in range(size + 1)]


def slice_of(batch: Interaction, rank: int, size: int) -> tuple[Interaction, float, bool]:
    """Cut one worker's part out of a batch.

    A target is a position of `target_mask` in a batch of sequences, and a row of any other batch.

    Returns:
        The rows, their share of the batch's targets, and whether the worker is idle (see `BatchPart`).
    """
    edges = bounds(len(batch), size)
    start, stop = edges[rank], edges[rank + 1]
    idle = start == stop
    if idle:
        return _rows(batch, slice(0, 1)), 0.0, True
    mine = _rows(batch, slice(start, stop))
    if TARGET_MASK in batch:
        return mine, float(mine[TARGET_MASK].sum()) / float(batch[TARGET_MASK].sum()), False
    return mine, (stop - start) / len(batch), False


def _rows(batch: Interaction, rows: slice) -> Interaction:
    return Interaction({name: values[rows] for name, values in batch.interaction.items()})


# ------------------------------------------------------------------------------------------------------- random streams


class OwnStream:
    """A worker's own random stream for the loss, where dropout must differ between workers.

    Outside of the loss (the order of batches, negatives, what a model draws for an epoch) the generators of all workers
    are in the same state, which a checkpoint keeps. The own stream is seeded anew for every epoch by seed, epoch and
    rank, so it needs no place in a checkpoint.

    Args:
        seed: the run's seed.
        rank: the worker's number.

    Example:
        >>> stream = OwnStream(seed=2020, rank=1)
        >>> stream.begin(epoch=0)
        >>> with stream.own():
        ...     dropped = torch.rand(3)
    """

    def __init__(self, seed: int, rank: int) -> None:
        self.seed, self.rank = seed, rank
        self._own: dict[str, Any] = {}
        self._shared: dict[str, Any] | None = None

    def begin(self, epoch: int) -> None:
        """Seed the own stream for an epoch."""
        before = rng_state()
        number = int(np.random.SeedSequence([self.seed, epoch, self.rank]).generate_state(1)[0])
        random.seed(number)
        np.random.seed(number)
        torch.manual_seed(number)
        self._own = rng_state()
        set_rng_state(before)

    @contextmanager
    def own(self) -> Iterator[None]:
        """Draw from the own stream within the block."""
        self._shared = rng_state()
        set_rng_state(self._own)
        try:
            yield
        finally:
            self._own = rng_state()
            set_rng_state(self._shared)
            self._shared = None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Draw from the stream of all workers within the block, also within one of `own`."""
        if self._shared is None:  # outside of `own` all workers draw the same
            yield
            return
        own = rng_state()
        set_rng_state(self._shared)
        try:
            yield
        finally:
            self._shared = rng_state()
            set_rng_state(own)


# -------------------------------------------------------------------------------------------------- supported models


def check_supported(config: Config, model_class: type) -> None:
    """Make sure that several workers can train a model.

    A class declares it by `supports_ddp = True` (see `models/base.py`), `models/recbole_models.py` for RecBole's.

    Raises:
        ConfigError: they cannot, or nothing declares that they can.
    """
    name, hooks = config["model"], hooks_of(model_class)
    if config["max_train_seconds"] is not None:
        raise ConfigError(f"max_train_seconds: workers would not stop at the same batch{ONE}, or set max_train_steps")
    if not hooks.is_trainable or config["MODEL_TYPE"] == ModelType.TRADITIONAL:
        return
    if config["MODEL_TYPE"] == ModelType.DECISIONTREE:
        raise ConfigError(f"{name} is trained by a library of its own, which takes one process{ONE}")
    base = get_trainer(config["MODEL_TYPE"], name)
    if base not in (Trainer, TraditionalTrainer):
        raise ConfigError(f"{name} is trained in a way of its own ({base.__name__}), which takes one process{ONE}")
    if (config["train_neg_sample_args"] or {}).get("dynamic"):
        raise ConfigError(f"train_neg_sample_args: dynamic draws negatives by the scores of one process{ONE}")
    if not hooks.supports_ddp:
        raise ConfigError(
            f"{name}: nothing says that its loss is a mean over the rows of a batch, of which each worker would take a "
            f"part{ONE}, or set supports_ddp = True in its class if it is"
        )


def adapt_losses(model: nn.Module) -> None:
    """Make those of RecBole's losses that are no means over rows use the rows of the whole batch.

    Raises:
        ConfigError: the model normalises over its batch, of which each worker has another part.
    """
    for name, part in model.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(f"{type(model).__name__} normalises over a batch ({name}), which workers would cut{ONE}")
        for upstream, ours in WHOLE.items():
            if type(part) is upstream:
                part.__class__ = ours


class WholeEmbLoss(EmbLoss):
    """RecBole's `EmbLoss` of the whole batch: the norm of its embeddings, a root over all rows.

    Example:
        >>> WholeEmbLoss()(torch.ones(2, 4))
        tensor([1.4142])
    """

    def forward(self, *embeddings: Any, require_pow: bool = False) -> Any:
        """Return the loss of the embeddings of all workers."""
        return super().forward(*_gathered(embeddings), require_pow=require_pow)


class WholeEmbMarginLoss(EmbMarginLoss):
    """RecBole's `EmbMarginLoss` of the whole batch: a sum over all rows.

    Example:
        >>> WholeEmbMarginLoss()(torch.ones(2, 4))
        tensor(6.)
    """

    def forward(self, *embeddings: Any) -> Any:
        """Return the loss of the embeddings of all workers."""
        return super().forward(*_gathered(embeddings))


WHOLE: dict[type, type] = {EmbLoss: WholeEmbLoss, EmbMarginLoss: WholeEmbMarginLoss}


def _gathered(embeddings: Any) -> list[Any]:
    return [whole_batch(one) for one in embeddings]
