"""TensorBoard and Weights & Biases as RecBole keeps them, but inside the run folder; and MLflow, by the same names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

from recbole_mm.errors import ConfigError
from recbole_mm.utils.escaping import one_line
from recbole_mm.utils.files import disk_errors, disk_reason

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

logger = logging.getLogger(__name__)


class TensorBoard:
    """A `SummaryWriter` for `<run_dir>/tensorboard` that creates nothing before its first value.

    RecBole opens its writer in `./log_tensorboard` as soon as a trainer is built. Names of values are RecBole's
    (`Loss/Train`, `Vaild_score`), so boards of both can be laid side by side.

    Args:
        folder: folder of the event files.

    Example:
        >>> board = TensorBoard(tmp_path / "tensorboard")
        >>> board.close(), board.folder.exists()
        (None, False)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: SummaryWriter | None = None
        self._threads: _QuietThreads | None = None
        self._first_step: int | None = None

    def resume_at(self, step: int) -> None:
        """Hide what an interrupted run wrote at `step` and later, since the resumed run writes it again."""
        self.close()
        self._first_step = step

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Write one value of a curve.

        Raises:
            DiskError: it cannot be written.
        """
        with disk_errors(self.folder):
            self._open().add_scalar(tag, value, step)

    def add_hparams(self, hparams: dict[str, Any], metrics: dict[str, float]) -> None:
        """Write the run's settings and final metrics.

        Raises:
            DiskError: they cannot be written.
        """
        with disk_errors(self.folder):
            self._open().add_hparams(hparams, metrics, run_name=".")

    def close(self) -> None:
        """Write everything out. A later value opens the board again.

        Raises:
            DiskError: it cannot be written.
        """
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                with disk_errors(self.folder):
                    writer.close()
            finally:
                if self._threads is not None:
                    self._threads.end()

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            threads = _QuietThreads()
            try:
                self._writer = SummaryWriter(str(self.folder), purge_step=self._first_step)
            except BaseException:
                threads.end()
                raise
            self._threads, self._first_step = threads, None
        return self._writer


class _QuietThreads:
    """Keeps the traceback of a board's own thread out of the terminal, since the caller gets the same error."""

    def __init__(self) -> None:
        self._before = threading.excepthook
        threading.excepthook = self

    def __call__(self, arguments: threading.ExceptHookArgs) -> None:
        of_a_board = type(arguments.thread).__module__.startswith("tensorboard.")
        if not (of_a_board and arguments.exc_value is not None and disk_reason(arguments.exc_value)):
            self._before(arguments)

    def end(self) -> None:
        """Put the former `threading.excepthook` back."""
        if threading.excepthook is self:
            threading.excepthook = self._before


def check_trackers(config: Config) -> None:
    """Check that the packages that `log_wandb: True` and `log_mlflow: True` need are installed.

    Raises:
        ConfigError: one is asked for and missing.
    """
    if config["log_wandb"] and find_spec("wandb") is None:
        raise ConfigError("log_wandb: True needs the package wandb: pip install wandb, or set log_wandb: False")
    if config["log_mlflow"] and find_spec("mlflow") is None:
        raise ConfigError(
            "log_mlflow: True needs the package mlflow: pip install mlflow-skinny, or set log_mlflow: False"
        )


PARENT = "mlflow.parentRunId"
"""Tag by which MLflow shows a run below another one."""
LONGEST_PARAMETER, PARAMETERS_AT_ONCE = 500, 100
"""What every MLflow server takes."""


class Mlflow:
    """A run of MLflow, with the names that RecBole gives to W&B's: `train/train_loss`, `valid/ndcg_at_10`, `eval/...`.

    MLflow takes no `@` in a name. The first run of this package in an active run that the program has begun is that
    run, and later ones are its children. Without an active run it is a new one of the experiment `mlflow_experiment`. A
    run that is made here is named like the run's folder.

    As a context manager it begins the run, and ends one that was made here: as `FAILED` on an exception, as `KILLED`
    where that is no error, such as Ctrl-C. Outside of it nothing is written.

        with trainer.mlflow:
            trainer.fit(...)

    Args:
        config: the run's settings, which become the parameters. Nothing is done without `log_mlflow: True`.
        run_dir: the run's folder.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        self.config, self.run_dir, self.is_on = config, run_dir, False

    def __enter__(self) -> Mlflow:
        """Begin the run.

        Raises:
            ConfigError: the server cannot be reached, or refuses.
        """
        if not self.config["log_mlflow"]:
            return self
        import mlflow

        self._errors = mlflow.exceptions.MlflowException
        uri = self.config["mlflow_tracking_uri"]
        try:
            self._client = mlflow.MlflowClient(uri)
            self._run_id, self._is_ours = self._begin(mlflow.active_run())
            self.is_on = True
            self._log_parameters()
        except self._errors as error:
            self._end("FAILED")
            raise ConfigError(
                f"log_mlflow: {uri or 'the default tracking server'}: {one_line(str(error))}; mend "
                "mlflow_tracking_uri, or set log_mlflow: False"
            ) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._end("FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED")

    def _begin(self, active: Any) -> tuple[str, bool]:
        """Return the id of the run, and whether it was made here."""
        config, name = self.config, self.config["mlflow_experiment"]
        tags = {"model": str(config["model"]), "dataset": str(config["dataset"]), "run_dir": str(self.run_dir)}
        if active is None:
            experiment = self._client.get_experiment_by_name(name)
            identity = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        elif "run_dir" in self._client.get_run(active.info.run_id).data.tags:  # an earlier run's, with other parameters
            identity, tags = active.info.experiment_id, {**tags, PARENT: active.info.run_id}
        else:
            for key, value in tags.items():
                self._client.set_tag(active.info.run_id, key, value)
            return active.info.run_id, False
        return self._client.create_run(identity, run_name=self.run_dir.name, tags=tags).info.run_id, True

    def _end(self, status: str) -> None:
        """End a run that was made here; what the server then says is a warning."""
        was_on, self.is_on = self.is_on, False
        if not was_on or not self._is_ours:
            return
        try:
            self._client.set_terminated(self._run_id, status)
        except self._errors as error:
            logger.warning("log_mlflow: %s; the run stays open there", one_line(str(error)))

    def _log_parameters(self) -> None:
        from mlflow.entities import Param

        given = {key: value for key, value in self.config.as_dict().items() if key != "mlflow_tracking_uri"}
        values = [Param(key, str(value)[:LONGEST_PARAMETER]) for key, value in given.items()]
        for start in range(0, len(values), PARAMETERS_AT_ONCE):
            self._client.log_batch(self._run_id, params=values[start : start + PARAMETERS_AT_ONCE])

    def log_metrics(self, metrics: Mapping[str, Any], head: str, step: int) -> None:
        """Write numbers of one epoch, or of the test; a server that fails is warned of once, and training goes on.

        Args:
            metrics: name -> number, or several of them, which are numbered from 1.
            head: `train`, `valid` or `eval`.
            step: epoch, from 0.
        """
        if not self.is_on:
            return
        numbers: dict[str, float] = {}
        for name, value in metrics.items():
            parts = value if isinstance(value, tuple) else (value,)
            named = [name] if len(parts) == 1 else [f"{name}{number}" for number in range(1, len(parts) + 1)]
            numbers |= {f"{head}/{one.replace('@', '_at_')}": float(part) for one, part in zip(named, parts)}
        try:
            for key, number in numbers.items():
                self._client.log_metric(self._run_id, key, number, step=step)
        except self._errors as error:
            self._give_up(error)

    def log_choice(self, chosen: str) -> None:
        """Write what the model took on validation, in words, as the tag `chosen_on_validation`; "" for nothing."""
        if not self.is_on or not chosen:
            return
        try:
            self._client.set_tag(self._run_id, "chosen_on_validation", chosen)
        except self._errors as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        logger.warning("log_mlflow: %s; nothing more is written there", one_line(str(error)))
        self._end("FAILED")
