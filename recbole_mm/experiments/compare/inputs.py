"""What a finished run read of its settings: which play no part in it, and whether an LLM that was never trained did."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_mm.config.layers import optional_yaml, properties_dir
from recbole_mm.config.resolved import Config
from recbole_mm.config.settings import NOT_FROM_A_RUN
from recbole_mm.errors import RecboleMMError
from recbole_mm.inputs.needs import reads_mllm, without_effect
from recbole_mm.models.hooks import hooks_of
from recbole_mm.runs.folder import CONFIG

logger = logging.getLogger(__name__)


def unread(folder: Path) -> frozenset[str]:
    """Settings that play no part in a run, see `without_effect`; none where its model is not known here."""
    config = _config(folder)
    return (
        frozenset()
        if config is None
        else frozenset(without_effect(config, hooks_of(config.model_class), config.settings))
    )


def has_untrained_mllm(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Whether a run's model read a tiny multimodal LLM, of which nothing can be concluded about real ones.

    Every run has an `mllm`; whether it is read is asked of the model's class or, where that is not here, told by its
    property file.

    Args:
        folder: of the run.
        settings: of it.
    """
    if not str(settings.get("mllm")).startswith("tiny"):
        return False
    if (config := _config(folder)) is not None:
        return reads_mllm(config, hooks_of(config.model_class))
    encoders = [spec.get("encoder") for spec in (settings.get("item_features") or {}).values()]
    return "mllm" in optional_yaml(properties_dir() / "model", str(settings["model"])) or "mllm" in encoders


def _config(folder: Path) -> Config | None:
    """The whole configuration of a run; None where it cannot be had here."""
    try:
        return Config.load(folder / CONFIG, None, NOT_FROM_A_RUN)
    except RecboleMMError:
        logger.debug("%s: its settings cannot be read here", folder, exc_info=True)
        return None
