"""The settings of the reasoning stage, as `properties/model/MLLMRec.yaml` and `MLLMMSR.yaml` explain them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from recbole_mm.config.resolved import Config
from recbole_mm.errors import ConfigError

ITEM_TEXTS = ("fused", "image", "text")
SEEN = ("train", "all")
PREFERENCES = ("recurrent", "direct", "none")
BLOCKS = ("size", "gap")
DEFAULT_DOMAIN = "product"


@dataclass(frozen=True)
class ReasoningSettings:
    """What is written, of what, and how it is encoded.

    Attributes:
        item_text: `fused`: metadata and image description; `image` or `text`: one of them alone.
        profiles_see: `train`: profiles are made of training items; `all`: of held-out ones too.
        item_domain: what an item is called in prompts.
        description_words, profile_words: longer texts are cut.
        profile_history_tokens: tokens of a user's item texts in a prompt.
        sentence_encoder: hub id or folder.
    """

    item_text: str = "fused"
    profiles_see: str = "train"
    item_domain: str = DEFAULT_DOMAIN
    description_words: int = 100
    profile_words: int = 100
    profile_history_tokens: int = 3000
    sentence_encoder: str = "sentence-transformers/all-MiniLM-L6-v2"

    @classmethod
    def of(cls, config: Config) -> ReasoningSettings:
        """The settings of a run; a key that is null or absent keeps the default given here.

        Raises:
            ConfigError: naming the first key whose value is not accepted, and what it accepts.
        """
        given = {name: config[name] for name in cls.__dataclass_fields__}
        # Any model may read item texts (`item_features`, on: summary): these two are settings of all of them.
        given |= {"item_text": config["item_text"], "description_words": config["description_words"]}
        return cls(**_accepted(config, given, cls(), ACCEPTED, ("description_words", "profile_words")))


@dataclass(frozen=True)
class PreferenceSettings:
    """How users' preferences are put into words (MLLM-MSR, 2408.09698).

    Attributes:
        preference: `recurrent`: block after block; `direct`: the whole history at once; `none`: not at all.
        preference_blocks: `size`: blocks of so many items; `gap`: sessions, which end where nothing is chosen for long.
        preference_block_size: items of a block.
        preference_gap_hours: hours without a choice that end a session.
        preference_words: longer texts are cut.
        preference_history_tokens: tokens of a user's item texts in a prompt of `direct`.
    """

    preference: str = "recurrent"
    preference_blocks: str = "size"
    preference_block_size: int = 3
    preference_gap_hours: float = 24
    preference_words: int = 100
    preference_history_tokens: int = 3000

    @classmethod
    def of(cls, config: Config) -> PreferenceSettings:
        """The settings of a run; a key that is null or absent keeps the default given here.

        Raises:
            ConfigError: naming the first key whose value is not accepted, and what it accepts.
        """
        given = {name: config[name] for name in cls.__dataclass_fields__}
        return cls(**_accepted(config, given, cls(), ACCEPTED_OF_PREFERENCES, ("preference_words",)))


def _accepted(
    config: Config, given: Mapping[str, Any], defaults: Any, accepted: Mapping[str, Any], words: tuple[str, ...]
) -> dict[str, Any]:
    """The values that are given, checked; words that are not given are no more than a text may have at all."""
    values = {name: value for name, value in given.items() if value is not None}
    for name, (accepts, says) in accepted.items():
        if name in values and not accepts(values[name]):
            raise ConfigError(f"{name}: {values[name]!r} is not accepted; give {says}")
    most = config["text_max_words"]
    if config["text_backend"] != "template" and isinstance(most, int):
        for name in words:
            if values.setdefault(name, min(getattr(defaults, name), most)) > most:
                raise ConfigError(f"{name}: {values[name]} is more than text_max_words ({most}) allows")
    return values


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _above_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_WHOLE = (_whole, "a whole number of at least 1")

ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "item_text": (lambda value: value in ITEM_TEXTS, f"one of {', '.join(ITEM_TEXTS)}"),
    "profiles_see": (lambda value: value in SEEN, f"one of {', '.join(SEEN)}"),
    "item_domain": (_text, "what an item is, such as movie"),
    "sentence_encoder": (_text, "a sentence-transformers model's id or folder"),
    **dict.fromkeys(("description_words", "profile_words", "profile_history_tokens"), _WHOLE),
}

ACCEPTED_OF_PREFERENCES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "preference": (lambda value: value in PREFERENCES, f"one of {', '.join(PREFERENCES)}"),
    "preference_blocks": (lambda value: value in BLOCKS, f"one of {', '.join(BLOCKS)}"),
    "preference_gap_hours": (_above_zero, "a number above 0"),
    **dict.fromkeys(("preference_block_size", "preference_words", "preference_history_tokens"), _WHOLE),
}
