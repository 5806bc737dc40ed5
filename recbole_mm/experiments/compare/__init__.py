"""Experiments: a table of models or variants, run over seeds, tested against each other, written for a paper."""

from recbole_mm.config import properties_dir


def experiment_names() -> list[str]:
    """Names of the shipped experiments."""
    return sorted(path.stem for path in (properties_dir() / "experiments").glob("*.yaml"))
