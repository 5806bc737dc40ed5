"""Which values of the artifact store a run was made of: a list in its folder, so that opening the run needs no model.

A key of the store is made with the model's identity and its tokenizer. Where the list names every value and the store
has them all, nobody is asked for the model.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recbole_mm.artifacts.store import Store
from recbole_mm.config.kinds import is_name, is_number
from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import NOT_FROM_A_RUN, SETTINGS
from recbole_mm.config.yaml_settings import canonical
from recbole_mm.errors import CheckpointError, DiskError
from recbole_mm.utils.files import read_json, write_json

logger = logging.getLogger(__name__)

FILE, FILE_AT_TEST = "artifacts_read.json", "artifacts_read_at_test.json"
PARTS: dict[str, Callable[[Any], bool]] = {
    "keys": lambda part: isinstance(part, dict) and all(key is None or is_name(key) for key in part.values()),
    "tokens": lambda part: isinstance(part, dict) and all(map(is_number, part.values())),
    "model": lambda part: isinstance(part, list) and [type(each) for each in part] == [str, dict],
}
"""Tests of what is listed of a stage."""


class Remembered:
    """The keys of the values that a run has read, by stage and by the name of an item, user or case.

    A list that was made with other settings or of other data is not used.

    Args:
        run_dir: the run's folder; None where there is no run, and nothing is kept.
        config: of the run.
        at_test: list what the test reads, where that is something else than what training reads.

    Raises:
        CheckpointError: the folder's list cannot be read.

    Example:
        >>> remembered = Remembered()
        >>> remembered.note("user_profile", keys={"u7": "a key"})
        >>> remembered.of("user_profile"), remembered.of("item_description")
        ({'keys': {'u7': 'a key'}}, {})
    """

    def __init__(self, run_dir: Path | None = None, config: Config | None = None, at_test: bool = False) -> None:
        self.path = None if run_dir is None else run_dir / (FILE_AT_TEST if at_test else FILE)
        self._made_with = "" if config is None else _digest(config)
        self._stages: dict[str, dict[str, Any]] = {}
        if self.path is not None and self.path.is_file():
            try:
                found = read_json(self.path)
                stages = found["stages"] if found["made_with"] == self._made_with else {}
                if not all(PARTS[name](part) for stage in stages.values() for name, part in stage.items()):
                    raise ValueError("it is not what a run writes")
            except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{self.path} cannot be read ({error}); remove it") from error
            self._stages = stages

    def of(self, stage: str) -> dict[str, Any]:
        """Returns what is listed of a stage."""
        return self._stages.get(stage, {})

    def note(self, stage: str, **parts: Any) -> None:
        """Keeps `keys` (name -> key), `tokens` (figure -> number) or `model` (what keys are made with) of a stage."""
        new = {**self.of(stage), **parts}
        if new == self.of(stage):
            return
        self._stages[stage] = new
        if self.path is not None:
            try:
                write_json(self.path, {"made_with": self._made_with, "stages": self._stages}, ensure_ascii=False)
            except DiskError as error:  # of a run's folder that is read only; the run can be opened nevertheless
                logger.warning("%s; opening the run will need its models", error)

    def texts(self, stage: str, store: Store) -> dict[str, str] | None:
        """Returns name -> text of a stage; None where it is not listed or the store lacks a text."""
        keys = self.of(stage).get("keys")
        if keys is None:
            return None
        found = store.get_many(keys.values())
        return None if len(found) < len(set(keys.values())) else {name: str(found[key]) for name, key in keys.items()}

    def vectors(self, stage: str, names: Sequence[str], store: Store) -> np.ndarray | None:
        """Returns the vectors of a stage, float32 (names, d), row 0 zeros; None where they are not all there.

        Args:
            stage: its name.
            names: of the rows; the first is that of padding.
            store: of artifacts.
        """
        keys: Mapping[str, str | None] = self.of(stage).get("keys") or {}
        if any(name not in keys for name in names[1:]):
            return None
        rows = [None, *(keys[name] for name in names[1:])]
        wanted = {key for key in rows if key is not None}
        return store.get_matrix(rows) if wanted and store.sound(wanted) == wanted else None


def _digest(config: Config) -> str:
    """Returns a hash of the settings that can change a result, and of what the dataset's files hold now.

    Those that are not taken from a run's folder are others whenever it is opened.
    """
    unread = {
        name
        for name, setting in SETTINGS.items()
        if not setting.changes_result or setting.derived or setting.may_change_on_resume
    }
    kept = {name: value for name, value in config.as_dict().items() if name not in unread | {*NOT_FROM_A_RUN}}
    return hashlib.sha256(canonical({**kept, **config.current_files()}).encode()).hexdigest()
