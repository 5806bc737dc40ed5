"""Opens the folder of a finished run, and says in one line why it cannot be opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_mm.config.settings import SETTINGS
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import CheckpointError, ConfigError
from recbole_mm.registry import find_model
from recbole_mm.runs.folder import CONFIG, Run, is_finished
from recbole_mm.runs.run import load
from recbole_mm.utils.paths import expanded
from recbole_mm.utils.spelling import did_you_mean, nearest


def open_run(
    folder: str | os.PathLike[str], model: type | None = None, changed: Mapping[str, Any] | None = None
) -> Run:
    """Load a finished run, ready to score.

    As `recbole_mm.load`, a folder that came from anybody runs no code, asks no server and joins no cluster.

    Args:
        folder: of the run.
        model: its model's class, needed only where it was never registered.
        changed: settings with other values here, such as `{"data_path": "/data/recbole"}` of a folder that was moved.

    Raises:
        ConfigError: `changed` names no setting of the run.
        CheckpointError: there is no such folder, its run is not finished, or its model is not installed here.
        RecboleMMError: its data, weights or settings do not fit this machine or this version.
    """
    path = finished_folder(folder)
    if (path / CONFIG).is_file():
        settings = read_yaml(path / CONFIG)
        if model is None:
            _check_model(path, settings.get("model"))
        for name in changed or {}:
            if name not in {*settings, *SETTINGS}:
                raise ConfigError(f"--{name} is no setting of {path}{did_you_mean(name, sorted(settings), 0.6)}")
    return load(path, model, changed)


def finished_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder that holds no unfinished run; its files are not read yet.

    Raises:
        CheckpointError: there is no such folder, or its run is not finished.
    """
    path = Path(expanded(os.fspath(folder)))
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such folder{_near(path)}; give the folder of a finished run")
    if (path / CONFIG).is_file() and not is_finished(path):
        raise CheckpointError(f"{path}: its run is not finished; go on with it: recbole-mm run --resume={path}")
    return path


def _near(path: Path) -> str:
    there = [other.name for other in path.parent.glob("*") if (other / CONFIG).is_file()]
    found = nearest(path.name, there, count=1)
    return f"; did you mean {path.parent / found[0]}?" if found else ""


def _check_model(path: Path, name: Any) -> None:
    try:
        find_model(str(name)).load()
    except ConfigError as error:
        raise CheckpointError(
            f"{path}: its model {name!r} cannot be loaded here ({error}); register it first with "
            "recbole_mm.registry.register_model, or give its class: recbole_mm.recommend(..., model=MyModel)"
        ) from error
