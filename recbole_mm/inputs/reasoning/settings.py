"""The settings of the reasoning stage, as `properties/model/MLLMRec.yaml` and `MLLMMSR.yaml` explain them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from recbole_mm.config.kinds import MODEL, Kind, above_zero, choice, is_name, or_null, size
from recbole_mm.config.resolved import Config
from recbole_mm.config.schema import Setting
from recbole_mm.config.settings import SETTINGS
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.reasoning.decay import Decay
from recbole_mm.inputs.reasoning.wordings import Wording

DEFAULT_DOMAIN = "product"

WORDING = Kind(
    lambda value: is_name(value) or (isinstance(value, dict) and all(map(is_name, value))),
    "a name, or a mapping such as {'profile': '{history}\\n\\nWhat does this person like?'}",
    type="str or dict",
)
"""Of prompts; what a wording must hold is checked where it is read."""

# fmt: off
_DECLARED = (
    Setting("profiles_see", or_null(choice("train", "all")), "train", "train: a profile is made of the user's "
        "training items. all: of the whole file, validation and test included, as the released script does; every "
        "table then marks the row as not comparable."),
    Setting("profile_words", size(1), 100, "Longest profile. Paper: 100."),
    Setting("profile_history_tokens", size(1), 3000, "Most tokens of a user's item texts in the prompt; the newest "
        "are kept. Not stated."),
    Setting("profile_decay", or_null(choice("list", "days", "none")), "list", "Older choices count less in a profile. "
        "list: by their place; days: by their time; none: all count alike. Not stated."),
    Setting("profile_half_life", or_null(above_zero()), None, "A choice so many places (list) or days (days) before "
        "the latest counts half; null: 20 places, of which an LLM is told no number, or 30 days. Not stated.",
        read_where={"profile_decay": ("list", "days")}),
    Setting("text_wording", or_null(WORDING), None, "Prompts of descriptions and profiles: a name of "
        "properties/wordings, or a mapping of prompts in words of one's own; null: the package's own wording. Not "
        "stated."),
    Setting("sentence_encoder", or_null(MODEL), "sentence-transformers/all-MiniLM-L6-v2", "A model of "
        "sentence-transformers, or a folder with one; frozen. Paper: this one."),
    Setting("preference", or_null(choice("recurrent", "direct", "none")), "recurrent", "recurrent: block after "
        "block. direct: the whole history at once. none: nothing. Paper: recurrent."),
    Setting("preference_blocks", or_null(choice("size", "gap")), "size", "size: blocks of preference_block_size "
        "items. gap: sessions. Paper: gap; theirs: size.", read_where={"preference": ("recurrent",)}),
    Setting("preference_block_size", size(1), 3, "Items of a block. Theirs: 3.",
        read_where={"preference": ("recurrent",), "preference_blocks": ("size",)}),
    Setting("preference_gap_hours", above_zero(), 24, "gap: so many hours without a choice end a session. Not "
        "stated.", read_where={"preference": ("recurrent",), "preference_blocks": ("gap",)}),
    Setting("preference_words", size(1), 100, "Longest preference. Not stated.", read_where={"preference": ()}),
    Setting("preference_history_tokens", size(1), 3000, "direct: most tokens of a user's item texts in the prompt; "
        "the newest are kept. Not stated.", read_where={"preference": ("direct",)}),
)
# fmt: on
REASONING = {setting.name: setting for setting in _DECLARED}
"""Settings of the models that ask for profiles or preferences, which declare them as theirs."""


@dataclass(frozen=True)
class ReasoningSettings:
    """What is written, of what, and how it is encoded.

    Attributes:
        item_text: `fused`: metadata and image description; `image` or `text`: one of them alone.
        profiles_see: `train`: profiles are made of training items; `all`: of held-out ones too.
        item_domain: what an item is called in prompts.
        description_words, profile_words: longer texts are cut.
        profile_history_tokens: tokens of a user's item texts in a prompt.
        text_wording: of the prompts (`Wording`).
        profile_decay, profile_half_life: how older choices count (`Decay`).
        sentence_encoder: hub id or folder.
    """

    item_text: str = "fused"
    profiles_see: str = "train"
    item_domain: str = DEFAULT_DOMAIN
    description_words: int = 100
    profile_words: int = 100
    profile_history_tokens: int = 3000
    text_wording: str | Mapping[str, str] | None = None
    profile_decay: str = "list"
    profile_half_life: float | None = None
    sentence_encoder: str = "sentence-transformers/all-MiniLM-L6-v2"

    @classmethod
    def of(cls, config: Config) -> ReasoningSettings:
        """The settings of a run; a key that is null or absent keeps the default given here.

        Raises:
            ConfigError: a value is not accepted, or a text is to be longer than `text_max_words` allows.
        """
        given = {name: config[name] for name in cls.__dataclass_fields__}
        # Any model may read item texts (`item_features`, on: summary): these two are settings of all of them.
        given |= {"item_text": config["item_text"], "description_words": config["description_words"]}
        found = cls(**_read(config, given, cls(), ("description_words", "profile_words")))
        _ = found.wording  # refused before anything is written
        return found

    @cached_property
    def wording(self) -> Wording:
        """The prompts.

        Raises:
            ConfigError: `text_wording` is none.
        """
        return Wording.of(self.text_wording)

    @property
    def decay(self) -> Decay:
        """How older choices count in a profile."""
        return Decay(self.profile_decay, self.profile_half_life)


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
            ConfigError: a value is not accepted, or a text is to be longer than `text_max_words` allows.
        """
        given = {name: config[name] for name in cls.__dataclass_fields__}
        return cls(**_read(config, given, cls(), ("preference_words",)))


def _read(config: Config, given: Mapping[str, Any], defaults: Any, words: tuple[str, ...]) -> dict[str, Any]:
    """The values that are given; words that are not given are no more than a text may have at all."""
    values = {name: value for name, value in given.items() if value is not None}
    for name, value in values.items():  # of a class that does not declare them, too
        (REASONING.get(name) or SETTINGS[name]).check(value)
    most = config["text_max_words"]
    if config["text_backend"] != "template" and isinstance(most, int):
        for name in words:
            if values.setdefault(name, min(getattr(defaults, name), most)) > most:
                raise ConfigError(f"{name}: {values[name]} is more than text_max_words ({most}) allows")
    return values
