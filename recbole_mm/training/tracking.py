"""TensorBoard and Weights & Biases as RecBole keeps them, but inside the run folder."""

from __future__ import annotations

import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

from recbole_mm.errors import ConfigError
from recbole_mm.utils.files import disk_errors, disk_reason

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config


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


def check_wandb(config: Config) -> None:
    """Check that the package that `log_wandb: True` needs is installed.

    Raises:
        ConfigError: wandb is asked for and missing.
    """
    if config["log_wandb"] and find_spec("wandb") is None:
        raise ConfigError("log_wandb: True needs the package wandb: pip install wandb, or set log_wandb: False")
