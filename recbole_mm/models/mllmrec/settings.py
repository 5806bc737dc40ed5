"""Checks of the settings that MLLMRec itself reads; those of its texts are checked by the reasoning stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole_mm.models.checks import read_flag, read_number, read_whole

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

FLAGS = ("reasoning", "denoise", "co_occur", "drop_identical", "gcn_ui")
WHOLE = {"similar_k": 1, "co_k": 1, "n_layers": 0, "gcn_ui_layers": 1, "embedding_size": 1}
"""Whole numbers and the least that each may be."""


def check_settings(config: Config) -> None:
    """Check every key that decides what the model computes.

    Raises:
        ConfigError: naming the first one that does not fit.
    """
    for key in FLAGS:
        read_flag(config, key)
    for key, least in WHOLE.items():
        read_whole(config, key, least)
    read_number(config, "similar_threshold", -1, 1)
