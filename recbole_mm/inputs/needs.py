"""The names of what a run needs besides interactions, known without importing any code that computes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from recbole.utils import ModelType

from recbole_mm.config.resolved import Config
from recbole_mm.data.features import MLLM, reads_summaries

NAMING_FEATURES = ("selected_features", "content_features", "item_sources")
"""Settings of models that name entries of `item_features`."""


class Asks(Protocol):
    """The hooks of a model's class that inputs read; `models/base.py` declares them."""

    is_trainable: ClassVar[bool]

    @classmethod
    def requirements(cls, config: Config) -> tuple[str, ...]:
        """Names of what the model needs."""

    @classmethod
    def build_prompt(cls, config: Config, dataset: Any, mllm: Any) -> Any:
        """The prompt that an LLM is fine-tuned to answer."""


def needed(config: Config, hooks: type[Asks]) -> tuple[str, ...]:
    """Returns what a model requires, and the item texts where a feature of `item_features` is made of them."""
    needs = tuple(hooks.requirements(config))
    if reads_summaries(read_features(config)) and "item_texts" not in needs:
        return (*needs, "item_texts")
    return needs


def read_features(config: Config) -> dict[str, Any]:
    """Returns the entries of `item_features` that the run's model may read.

    RecBole's models and ours read what a setting of theirs names. Which ones a class of somebody else reads is not
    known, so it may be any.
    """
    given = config["item_features"] or {}
    if config.model_class.__module__.partition(".")[0] not in ("recbole", "recbole_mm"):
        return dict(given)
    names = {name for setting in NAMING_FEATURES for name in config[setting] or ()}
    return {name: settings for name, settings in given.items() if name in names}


MLLM_INPUTS = frozenset(
    {
        *("item_vectors", "item_text_vectors", "item_tokens", "user_states"),
        *("mllm", "mllm_with_head", "answering_mllm", "answer_writer"),
    }
)
"""Inputs that the run's LLM makes, or is."""


def reads_mllm(config: Config, hooks: type[Asks]) -> bool:
    """Returns whether a run reads its LLM, `mllm`."""
    return bool(MLLM_INPUTS & set(hooks.requirements(config))) or any(
        isinstance(settings, Mapping) and settings.get("encoder") == MLLM for settings in read_features(config).values()
    )


TEXT_INPUTS = frozenset({"item_texts", "item_text_features", "user_profiles", "user_preferences", "answer_writer"})
"""Inputs that an LLM writes, or that are made of such texts."""


def unread_settings(config: Config, hooks: type[Asks]) -> frozenset[str]:
    """Returns the settings that play no part in a run, whatever their values.

    They are those of an LLM that is not read, of texts that are not written, of what items look like where nothing
    looks at them, and of training where a model only counts or is not trained.
    """
    groups = set() if reads_mllm(config, hooks) else {"mllm"}
    if not hooks.is_trainable or config["MODEL_TYPE"] in (ModelType.TRADITIONAL, ModelType.TRADITIONAL.name):
        groups.add("training")
    if not TEXT_INPUTS & set(needed(config, hooks)):
        groups.add("texts")
    drops = config["missing_modality"] == "drop" or config["missing_rate"]  # items, or columns of .item
    if not asks_for_inputs(config, hooks) and not drops:
        groups.add("content")
    unread = {name for name, setting in config.settings.items() if setting.group in groups and not setting.ranks}
    return frozenset(unread if read_features(config) else {*unread, "item_features", "feature_files"})


def asks_for_inputs(config: Config, hooks: type[Asks]) -> bool:
    """Returns whether a run needs more than interactions: inputs of its model, or features of items."""
    return bool(needed(config, hooks) or read_features(config))
