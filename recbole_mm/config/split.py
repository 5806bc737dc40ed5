"""RecBole's `eval_args` as settings; `data.splits` applies them to interactions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from recbole.utils import ModelType

from recbole_mm.errors import ConfigError


@dataclass(frozen=True)
class SplitArguments:
    """`eval_args` without the mode.

    Attributes:
        way: `LS` (leave one out), `RS` (by ratio), `TS` (test after a point in time, by ratio before it) or
            `cold_items` (all interactions with some of the items).
        value: value of `eval_args.split`.
        in_time: whether rows are in the order of time (`order: TO`), or shuffled.
        by_user: whether `RS` cuts each user's rows, or all together.
        seed: seed of the shuffling.
    """

    way: str
    value: Any
    in_time: bool
    by_user: bool
    seed: int

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, Any], model_type: ModelType, seed: int) -> Self:
        """Returns the split that `eval_args` describe.

        Raises:
            ConfigError: the arguments do not fit together, or do not fit a sequential model.
        """
        ((way, value),) = arguments["split"].items()
        in_time = arguments["order"] == "TO"
        if model_type == ModelType.SEQUENTIAL and not in_time:
            raise ConfigError("a sequential model needs eval_args.order: TO (time order)")
        if way == "TS" and not in_time:
            raise ConfigError("eval_args: split: TS cuts at a point in time, which needs order: TO")
        if way != "LS" and not value[0] > 0:
            raise ConfigError(f"eval_args: split: {way}: {value} leaves nothing to train on; give [0.8,0.1,0.1]")
        return cls(way, value, in_time, str(arguments["group_by"]).lower() == "user", seed)

    @property
    def rule(self) -> int | None:
        """Number of the rule by which rows are cut.

        None is the first rule, which still holds for splits of each user's rows in the order of time.
        """
        return None if self.in_time and (self.way == "LS" or (self.way == "RS" and self.by_user)) else 2
