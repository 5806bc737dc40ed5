"""The settings of a run: declarations, layers, YAML files, and the resolved configuration."""

from importlib.resources import files
from pathlib import Path

import recbole_mm


def properties_dir() -> Path:
    """The folder of our YAML files: package data of a wheel, or `properties/` of a source tree."""
    packaged = Path(str(files(recbole_mm) / "properties"))
    return packaged if packaged.is_dir() else Path(recbole_mm.__file__).parent.parent / "properties"
