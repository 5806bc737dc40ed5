"""`fit` and `evaluate` of any RecBole or recbole_mm model; training can be killed and resumed at any moment."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.dataloader import AbstractDataLoader
from recbole.evaluator.collector import DataStruct
from recbole.utils import dict2str, early_stopping
from torch import nn

from recbole_mm.errors import ConfigError
from recbole_mm.models.pop import Pop
from recbole_mm.training.checkpoint import PathLike
from recbole_mm.training.choosing import ChoosingLoop
from recbole_mm.training.loop import ADVICE, DivergedError, TrainingLoop
from recbole_mm.training.schedule import LearningRateSchedule, lr_schedule
from recbole_mm.training.state import interrupts_held, load_weights
from recbole_mm.utils.log import COMPACT, LONG
from recbole_mm.utils.progress import duration

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

logger = logging.getLogger(__name__)

Callback = Callable[[int, float], None]


class TrainerMixin(ChoosingLoop):
    """`fit` and `evaluate` over any RecBole trainer class; build one with `make_trainer`.

    Attributes:
        timings: `train_seconds`, `train_cpu_seconds`, `eval_seconds` (of validation), `train_targets`, `steps`,
            `epochs`; a resumed run continues the sums, without the part of an epoch that was lost.
        last_struct: what RecBole's metrics were computed from in the last evaluation.

    The attributes of `ChoosingLoop`, of `SavingLoop` and of RecBole's `Trainer` are inherited.
    """

    def __init__(self, config: Config, model: nn.Module, run_dir: PathLike) -> None:
        self.run_dir = Path(run_dir)
        super().__init__(config, model)
        self.checkpoint_every = config["checkpoint_every"] or 1
        self.last_struct: DataStruct | None = None
        self._verbose = self._show_progress = True

    # -------------------------------------------------------------------- fit

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callback | None = None,
        resume: bool | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Train until `epochs`, `max_train_steps`, `max_train_seconds`, or `stopping_step` validations in a row without
        a better score.

        Args:
            train_data: RecBole's training loader or one of ours. One with `state_dict` and `load_state_dict` keeps its
                own place; otherwise the `generator` of the loader, and of loaders inside it, is kept.
            valid_data: see `evaluate`. Without it the weights of the last epoch are kept.
            verbose: write a line per epoch to the log.
            saved: write weights and checkpoints.
            show_progress: report within each epoch.
            callback_fn: called with (epoch, validation score) once that epoch is on disk.
            resume: continue from the run folder's checkpoint, if there is one; None takes `config["resume"]`. On a CPU
                the outcome is, bit for bit, that of a run that was never interrupted.

        Returns:
            Best validation score and result; (-inf or inf, None) without `valid_data`.

        Raises:
            CheckpointError: the folder holds a checkpoint and `resume` is False, or that checkpoint does not fit.
            NanLossError: the loss became NaN or infinite.
            DivergedError: a weight or the validation score did. The last finite weights and checkpoint are kept.
        """
        self._verbose, self._show_progress = verbose, show_progress
        if self.hooks.only_pretrains(self.config):
            self.epochs, valid_data = self.config["pretrain_epochs"], None  # as RecBole's PretrainTrainer
        if not self.hooks.is_trainable:
            self.epochs = min(self.epochs, 1)  # one is enough to validate and to write the folder
        self.eval_step = min(self.eval_step, self.epochs)
        self.eval_collector.data_collect(train_data)
        if (self.config["train_neg_sample_args"] or {}).get("dynamic", False):
            train_data.get_model(self.model)
        choices = self._choices(valid_data)
        self.schedule = self._build_schedule(train_data)
        self._start(train_data, bool(self.config["resume"]) if resume is None else resume, saved)
        first = self.start_epoch
        try:
            # Importing RecBole's sequential models turns anomaly detection on for the whole process (sine.py:25), which
            # records a Python stack for every operation and doubles the time of a small model.
            with torch.autograd.set_detect_anomaly(False):
                for epoch_idx in range(first, self.epochs):
                    if self._stopped(valid_data):
                        break
                    self._run_epoch(epoch_idx, train_data, valid_data, saved, callback_fn)
                if choices:
                    self._choose(choices, valid_data, saved)
        except DivergedError as error:
            raise type(error)(f"{error}; {self._kept()}") from error
        else:
            if self.history and self.history[-1]["epoch"] >= first:
                self._add_hparam_to_tensorboard(self.best_valid_score)
            if self._verbose and self.best_valid_result is not None:
                best = f"{self.config['valid_metric'].lower()} {self.best_valid_score:.6f} in epoch {self.best_epoch}"
                logger.info("trained until epoch %d; best %s", self.history[-1]["epoch"], best, extra=COMPACT)
        finally:
            self.tensorboard.close()
        return self.best_valid_score, self.best_valid_result

    def _build_schedule(self, train_data: Any) -> LearningRateSchedule | None:
        """Build the schedule that `lr_scheduler`, `warmup_ratio`, `warmup_steps` and `warmup_start_factor` ask for."""
        name, ratio, steps = (self.config[key] for key in ("lr_scheduler", "warmup_ratio", "warmup_steps"))
        if not (ratio or steps) and name in (None, "constant"):
            return None
        if type(self)._train_epoch is not TrainingLoop._train_epoch:
            raise ConfigError(
                "lr_scheduler and warm-up need one pass over the training data per epoch, which "
                f"{self.config['model']} does not make; leave them unset"
            )
        total = self.epochs * -(-len(train_data) // self.accumulation)
        start = self.config["warmup_start_factor"]
        start = 0.01 if start is None else start
        return lr_schedule(self.optimizer, name, min(total, self.max_train_steps or total), ratio, steps, start)

    def _stopped(self, valid_data: Any) -> bool:
        """Return whether early stopping, `max_train_steps` or `max_train_seconds` has ended the training."""
        return self.out_of_steps or (bool(valid_data) and self.cur_step > self.stopping_step)

    def _run_epoch(
        self, epoch_idx: int, train_data: Any, valid_data: Any, saved: bool, callback_fn: Callback | None
    ) -> None:
        """Train one epoch, validate if it is due, write the epoch to disk, call `callback_fn`."""
        before = dict(self.timings)
        record = self._train_once(epoch_idx, train_data)
        self._require_finite_weights(epoch_idx)
        validates = self.eval_step > 0 and bool(valid_data)
        improved = not validates
        if validates and self._validates_after(epoch_idx):
            improved = self._validate(record, valid_data)
        self.history.append(record)
        if improved:
            self.best_epoch = epoch_idx
        if self._verbose:
            logger.info("%s", self._epoch_line(record, before), extra=COMPACT)
        stopped = self._stopped(valid_data)
        due = stopped or epoch_idx + 1 == self.epochs or (epoch_idx + 1) % self.checkpoint_every == 0
        if saved and (improved or due):
            with interrupts_held():
                self._save(epoch_idx, train_data, improved, due)
        if callback_fn and "valid_score" in record:
            callback_fn(epoch_idx, record["valid_score"])
        if self._verbose and validates and stopped:
            logger.info("Finished training, best eval result in epoch %d", self.best_epoch, extra=LONG)

    def _epoch_line(self, record: Mapping[str, Any], before: Mapping[str, float]) -> str:
        """An epoch in at most 110 columns: loss, validation score, seconds of both, training targets per second.

        Args:
            record: of the epoch, as in `history`.
            before: `timings` before it.
        """
        targets, validation = (self.timings[key] - before[key] for key in ("train_targets", "eval_seconds"))
        parts = [f"epoch {record['epoch']:>3}"]
        if self.hooks.is_trainable:
            parts.append(f"train loss {record['train_loss']:>10.4f}")
        if "valid_score" in record:
            best = "best" if self.best_epoch == record["epoch"] else "    "
            parts.append(f"{self.config['valid_metric'].lower()} {record['valid_score']:.6f} {best}")
        parts.append(f"train {duration(record['seconds']):>6}")
        if "valid_score" in record:
            parts.append(f"valid {duration(validation):>6}")
        if targets:
            parts.append(f"{targets / record['seconds']:,.0f} targets/s")
        return "  ".join(parts)

    def _require_finite_weights(self, epoch_idx: int) -> None:
        """Check the weights after the last step of an epoch, which no loss has seen yet.

        Raises:
            DivergedError: a weight is NaN or infinite, so that the epoch must not be saved.
        """
        for name, weight in self.model.named_parameters():
            if weight.requires_grad and not torch.isfinite(weight.detach()).all():
                raise DivergedError(f"the weight {name} holds NaN or infinity after epoch {epoch_idx}; {ADVICE}")

    def _kept(self) -> str:
        """Return what a training that has diverged leaves in its folder, in words."""
        if not self.saved_model_file.exists():
            return "no epoch was saved before"
        return f"{self.saved_model_file} has the weights of epoch {self.best_epoch}, the best until then"

    def _validates_after(self, epoch_idx: int) -> bool:
        """Return whether a validation is due after this epoch.

        A model that pretrains a part of itself is not validated, so that neither the best epoch nor early stopping
        depends on it. But no training ends without a validation, whose weights are the ones that are kept.
        """
        if self.out_of_steps or (epoch_idx + 1 == self.epochs and self.best_epoch < 0):
            return True
        return not self.hooks.is_pretraining(self.model) and (epoch_idx + 1) % self.eval_step == 0

    def _train_once(self, epoch_idx: int, train_data: Any) -> dict[str, Any]:
        """Train one epoch, log it, and return its record for `history`."""
        start, self._cpu_start = time.perf_counter(), time.process_time()
        self._before_epoch(epoch_idx)
        loss = self._train_epoch(train_data, epoch_idx, show_progress=self._show_progress)
        seconds = time.perf_counter() - start
        self.timings["train_seconds"] += seconds
        self.timings["train_cpu_seconds"], self._cpu_start = self.train_cpu_seconds, None
        self.timings["epochs"] += 1
        self.train_loss_dict[epoch_idx] = sum(loss) if isinstance(loss, tuple) else loss
        if self._verbose and self.hooks.is_trainable:
            text = self._loss_text(loss)
            logger.info("epoch %d training [time: %.2fs, %s]", epoch_idx, seconds, text, extra=LONG)
        self._add_train_loss_to_tensorboard(epoch_idx, loss)
        self.wandblogger.log_metrics({"epoch": epoch_idx, "train_loss": loss, "train_step": epoch_idx}, head="train")
        self.mlflow.log_metrics({"train_loss": loss}, "train", epoch_idx)
        return {"epoch": epoch_idx, "train_loss": self.train_loss_dict[epoch_idx], "seconds": seconds}

    def _loss_text(self, loss: float | tuple[float, ...]) -> str:
        places = 4 if self.config["loss_decimal_place"] is None else self.config["loss_decimal_place"]
        if isinstance(loss, tuple):
            return ", ".join(f"train_loss{number}: {part:.{places}f}" for number, part in enumerate(loss, start=1))
        return f"train loss: {loss:.{places}f}"

    def _validate(self, record: dict[str, Any], valid_data: Any) -> bool:
        """Evaluate, complete the epoch's record, and return whether these weights are the best so far."""
        start = time.perf_counter()
        epoch_idx = record["epoch"]
        score, result = self._valid_epoch(valid_data, show_progress=self._show_progress)
        if not math.isfinite(score):
            raise DivergedError(
                f"valid_metric {self.config['valid_metric']} is {score} after epoch {epoch_idx}, of finite weights: "
                "it has no value for these validation cases; choose another valid_metric"
            )
        self.best_valid_score, self.cur_step, _, improved = early_stopping(
            score, self.best_valid_score, self.cur_step, max_step=self.stopping_step, bigger=self.valid_metric_bigger
        )
        seconds = time.perf_counter() - start
        self.timings["eval_seconds"] += seconds
        if self._verbose:
            logger.info("epoch %d evaluating [time: %.2fs, valid_score: %f]", epoch_idx, seconds, score, extra=LONG)
            logger.info("valid result: %s", dict2str(result), extra=LONG)
        self.tensorboard.add_scalar("Vaild_score", score, epoch_idx)  # RecBole's spelling
        validations = sum("valid_score" in earlier for earlier in self.history)
        self.wandblogger.log_metrics({**result, "valid_step": validations}, head="valid")
        self.mlflow.log_metrics(result, "valid", epoch_idx)
        record |= {"valid_score": score, "valid_result": dict(result)}
        if improved:
            self.best_valid_result = result
        return improved

    # --------------------------------------------------------------- evaluate

    @torch.no_grad()
    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = True,
        model_file: PathLike | None = None,
        show_progress: bool = False,
    ) -> dict[str, float] | None:
        """Compute RecBole's metrics of the model on `eval_data`.

        Args:
            eval_data: anything with `rank(model, config, device, show_progress) -> DataStruct`, or one of RecBole's
                evaluation loaders; None or empty gives None.
            load_best_model: load `model_file` first, by default the run's best weights.
            model_file: see `state.load_weights`.
            show_progress: report how far it has come.

        Raises:
            CheckpointError: the weights cannot be loaded.
        """
        if not eval_data:
            return None
        if load_best_model:
            path = Path(model_file or self.saved_model_file)
            load_weights(self.model, path)
            logger.info("Loading model structure and parameters from %s", path, extra=LONG)
        self.model.eval()
        if isinstance(eval_data, AbstractDataLoader):
            bar = show_progress and sys.stderr.isatty()
            result = super().evaluate(eval_data, load_best_model=False, show_progress=bar)
            self.last_struct = self.eval_collector.last_struct
            return result
        self.last_struct, result = self._rank(self.model, eval_data, show_progress)
        if undefined := [name for name, value in result.items() if not math.isfinite(value)]:
            logger.warning("%s: no value for these cases", ", ".join(undefined))
        self.wandblogger.log_eval_metrics(result, head="eval")
        return result

    def evaluate_pop(self, eval_data: Any) -> dict[str, float]:
        """RecBole's metrics of Pop on `eval_data`, a `RankingData`: the same cases, candidates and masked items.

        It draws no random number and changes neither the model nor `last_struct`.
        """
        counts = torch.from_numpy(eval_data.train_counts.items).to(self.device)
        return self._rank(Pop.of_counts(self.config, eval_data.dataset, counts), eval_data, False)[1]

    def _rank(self, model: nn.Module, eval_data: Any, show_progress: bool) -> tuple[DataStruct, dict[str, float]]:
        """What RecBole's metrics are computed of, and the metrics."""
        struct = eval_data.rank(model, self.config, self.device, show_progress)
        for key, value in self.eval_collector.data_struct._data_dict.items():
            if key not in struct:
                struct.set(key, value)
        metrics = self.evaluator.evaluate(struct)  # GAUC is one of numpy's numbers, which JSON does not have
        return struct, {name: float(value) for name, value in metrics.items()}
