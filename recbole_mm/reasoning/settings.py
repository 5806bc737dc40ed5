"""The settings of the reasoning stage, as `properties/model/MLLMRec.yaml` explains them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recbole_mm.errors import ConfigError

ITEM_TEXTS = ("fused", "image", "text")
SEEN = ("train", "all")
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
    def of(cls, config: Any) -> ReasoningSettings:
        """The settings of a run; a key that is null or absent keeps the default given here.

        Raises:
            ConfigError: naming the first key whose value is not accepted, and what it accepts.
        """
        given = {name: config[name] for name in cls.__dataclass_fields__}
        settings = cls(**{name: value for name, value in given.items() if value is not None})
        for name, (accepts, words) in ACCEPTED.items():
            value = getattr(settings, name)
            if not accepts(value):
                raise ConfigError(f"{name}: {value!r} is not accepted; give {words}")
        if config["text_backend"] != "template":
            most = config["text_max_words"]
            for name in ("description_words", "profile_words"):
                if isinstance(most, int) and getattr(settings, name) > most:
                    raise ConfigError(f"{name}: {getattr(settings, name)} is more than text_max_words ({most}) allows")
        return settings


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "item_text": (lambda value: value in ITEM_TEXTS, f"one of {', '.join(ITEM_TEXTS)}"),
    "profiles_see": (lambda value: value in SEEN, f"one of {', '.join(SEEN)}"),
    "item_domain": (_text, "what an item is, such as movie"),
    "sentence_encoder": (_text, "a sentence-transformers model's id or folder"),
    **dict.fromkeys(
        ("description_words", "profile_words", "profile_history_tokens"), (_whole, "a whole number of at least 1")
    ),
}
