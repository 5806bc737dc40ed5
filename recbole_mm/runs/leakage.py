"""The train-only rule, and the settings that break it on purpose, to reproduce what somebody else has done.

A run of such settings says so in its log, its `result.json` and its table, and is marked in every comparison: it was
trained on answers that it is then asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recbole_mm.models.hooks import hooks_of


@dataclass(frozen=True)
class Breach:
    """A setting under which held-out interactions reach training.

    Attributes:
        key, value: the setting.
        need: the provision that reads it; models that do not need it ignore the setting. Empty: any model reads it.
        says: what then sees what.
    """

    key: str
    value: Any
    need: str
    says: str


BREACHES = (
    Breach("profiles_see", "all", "user_profiles", "user profiles were written from validation and test items, too"),
    Breach(
        *("positives", "popular", ""),
        "each user's items, the held-out ones among them, were chosen by their popularity in the whole file",
    ),
)


def held_out_seen(config, model_class: type) -> list[str]:
    """How the training of a run sees held-out interactions, one text each; empty where the train-only rule holds.

    Args:
        config: of the run.
        model_class: its model's.
    """
    needs = hooks_of(model_class).requirements(config)
    return [
        f"{breach.key}: {breach.value}: {breach.says}"
        for breach in BREACHES
        if config[breach.key] == breach.value and (not breach.need or breach.need in needs)
    ]
