"""The train-only rule, and the settings that break it on purpose, to reproduce published results.

A run of such settings says so in its log, its `result.json` and its table, and is marked in every comparison: it was
trained on answers that it is then asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recbole_mm.config.resolved import Config
from recbole_mm.models.hooks import hooks_of


@dataclass(frozen=True)
class Breach:
    """A setting under which held-out interactions reach training.

    Attributes:
        key, value: the setting.
        need: the requirement of a model that reads it; other models ignore the setting. Empty: any model reads it.
        text: which held-out data reach what.
    """

    key: str
    value: Any
    need: str
    text: str


BREACHES = (
    Breach("profiles_see", "all", "user_profiles", "user profiles were written from validation and test items, too"),
    Breach("profiles_see", "all", "user_states", "user states were read from validation and test items, too"),
    Breach(
        *("positives", "popular", ""),
        "each user's items, the held-out ones among them, were chosen by their popularity in the whole file",
    ),
)


def held_out_seen(config: Config, model_class: type) -> list[str]:
    """Returns how the training of a run sees held-out interactions, one text each; empty for a train-only run.

    Args:
        config: the run's settings.
        model_class: class of its model.
    """
    needs = hooks_of(model_class).requirements(config)
    return [
        f"{breach.key}: {breach.value}: {breach.text}"
        for breach in BREACHES
        if config[breach.key] == breach.value and (not breach.need or breach.need in needs)
    ]
