"""Texts that a run had to do without: part of the run, so that loading or resuming it asks for none of them again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from recbole_mm.errors import CheckpointError
from recbole_mm.utils.files import read_json, write_json

FILE = "texts_left_out.json"


class LeftOut:
    """Ids whose text could not be written when the run began, by stage.

    Args:
        run_dir: the run's folder; None where there is no run, and nothing is kept.

    Raises:
        CheckpointError: the folder's list cannot be read.
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        self.path = None if run_dir is None else run_dir / FILE
        self._ids: dict[str, list[str]] = {}
        if self.path is not None and self.path.is_file():
            try:
                self._ids = read_json(self.path)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{self.path} cannot be read ({error}); run the model again") from error

    def of(self, stage: str) -> frozenset[str] | None:
        """Ids, as in the dataset's files, that the run did without; None before the stage was run for it."""
        return frozenset(self._ids[stage]) if stage in self._ids else None

    def note(self, stage: str, ids: Iterable[str]) -> None:
        """Keep the ids that the run does without, in place of an earlier list."""
        self._ids[stage] = sorted(ids)
        if self.path is not None:
            write_json(self.path, self._ids, ensure_ascii=False)
