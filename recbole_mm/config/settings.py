"""The settings that every model has: RecBole's and ours.

`SETTINGS` has all of them by name, in the order of `properties/overall.yaml`, which is made of those with a default.
Defaults of the others are RecBole's. `named` picks those of which something holds:

    >>> named(lambda setting: setting.stops)[:3]
    ('epochs', 'stopping_step', 'eval_step')
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recbole_mm.config.data_settings import CONTENT, DATA, IMAGES, LLM, MISSING, OF_FEATURES, TEXTS
from recbole_mm.config.run_settings import CLUSTER, DERIVING, EVALUATION, LOGGING, NAMES_OF_A_RUN, RUN, TRAINING
from recbole_mm.config.schema import UNSET, Setting

SETTINGS: dict[str, Setting] = {
    setting.name: setting
    for settings in (
        *(
            NAMES_OF_A_RUN,
            TRAINING,
            EVALUATION,
            DATA,
            CONTENT,
            MISSING,
            IMAGES,
            LLM,
            TEXTS,
            OF_FEATURES,
            CLUSTER,
            RUN,
            LOGGING,
        ),
        DERIVING,
    )
    for setting in settings
}


def named(where: Callable[[Setting], Any]) -> tuple[str, ...]:
    """Names of the settings of which something holds, in their order.

    Args:
        where: whether it does.
    """
    return tuple(name for name, setting in SETTINGS.items() if where(setting))


DERIVED = frozenset(named(lambda setting: setting.derived))
"""Settings that follow from others, or from the data."""

OF_AN_ITEM = frozenset(named(lambda setting: setting.describes_items))
"""What a dataset folder's own YAML may set, with RecBole's settings of a dataset."""

NOT_FROM_A_RUN = {name: setting.when_opened for name, setting in SETTINGS.items() if setting.when_opened is not UNSET}
"""Settings that a run's folder may not decide when it is opened, and what they are then."""

PROTOCOL = named(lambda setting: setting.ranks)
"""Settings that decide who is ranked against what, the data among them."""

BEFORE = {name: setting.before for name, setting in SETTINGS.items() if setting.before is not UNSET}
"""What runs did that are older than a setting."""

RANKED = named(lambda setting: setting.ranks and setting.group == "evaluation")
"""Settings that decide which items are ranked for whom, where the data is the same."""
