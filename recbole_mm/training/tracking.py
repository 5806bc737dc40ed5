"""TensorBoard and Weights & Biases as RecBole keeps them, but inside the run folder; and MLflow, by the same names."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
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


LONGEST_PARAMETER, PARAMETERS_AT_ONCE = 500, 100
"""What every MLflow server takes."""


class Mlflow:
    """A run of MLflow, with the names that RecBole gives to W&B's: `train/train_loss`, `valid/ndcg_at_10`, `eval/...`.

    MLflow takes no `@` in a name. The run is the active one, if the program has begun one; or else a new one of the
    experiment `mlflow_experiment`, named like the run's folder, which ends with the test.

    Args:
        config: the run's settings, which become the parameters. Nothing is done without `log_mlflow: True`.
        run_dir: the run's folder.

    Raises:
        ConfigError: the server cannot be reached, or refuses.
    """

    def __init__(self, config: Config, run_dir: Path) -> None:
        self.is_on = bool(config["log_mlflow"])
        if not self.is_on:
            return
        import mlflow

        self._errors = mlflow.exceptions.MlflowException
        active = mlflow.active_run()
        self._begun = active is None
        uri = config["mlflow_tracking_uri"]
        try:
            self._client = mlflow.MlflowClient(uri)
            self._run_id = active.info.run_id if active is not None else self._create(config, run_dir)
            self._log_parameters(config)
        except self._errors as error:
            raise ConfigError(
                f"log_mlflow: {uri or 'the default tracking server'}: {one_line(str(error))}; mend "
                "mlflow_tracking_uri, or set log_mlflow: False"
            ) from error

    def _create(self, config: Config, run_dir: Path) -> str:
        name = config["mlflow_experiment"]
        experiment = self._client.get_experiment_by_name(name)
        identity = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        tags = {"model": str(config["model"]), "dataset": str(config["dataset"]), "run_dir": str(run_dir)}
        return self._client.create_run(identity, run_name=run_dir.name, tags=tags).info.run_id

    def _log_parameters(self, config: Config) -> None:
        from mlflow.entities import Param

        given = {key: value for key, value in config.as_dict().items() if key != "mlflow_tracking_uri"}
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
            logger.warning("log_mlflow: %s; nothing more is written there", one_line(str(error)))
            self.is_on = False

    def log_test(self, metrics: Mapping[str, float], step: int) -> None:
        """Write the metrics of the test at the best epoch, and end the run if it was begun here."""
        self.log_metrics(metrics, "eval", max(step, 0))
        if self.is_on and self._begun:
            self._client.set_terminated(self._run_id)
