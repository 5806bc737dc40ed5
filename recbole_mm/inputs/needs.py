"""The names of what a run needs besides interactions, known without importing any code that computes it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol

from recbole.utils import ModelType

from recbole_mm.config.resolved import Config
from recbole_mm.config.schema import is_off
from recbole_mm.data.features import MLLM, reads_summaries

logger = logging.getLogger(__name__)

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


TEXT_INPUTS = frozenset({"item_texts", "item_text_features", "user_profiles", "user_preferences", "answer_writer"})
"""Inputs that an LLM writes, or that are made of such texts."""


def _writes_here(config: Config, hooks: type[Asks]) -> bool:
    """Whether an LLM on this machine writes texts of a run."""
    return config["text_backend"] == "hf" and not TEXT_INPUTS.isdisjoint(needed(config, hooks))


def reads_mllm(config: Config, hooks: type[Asks]) -> bool:
    """Returns whether a run reads its LLM, `mllm`, which writes its texts as well where no `text_model` does."""
    if MLLM_INPUTS & set(hooks.requirements(config)):
        return True
    if _writes_here(config, hooks) and config["text_model"] in (None, config["mllm"]):
        return True
    features = read_features(config).values()
    return any(isinstance(settings, Mapping) and settings.get("encoder") == MLLM for settings in features)


def unread_settings(config: Config, hooks: type[Asks]) -> dict[str, str]:
    """Returns the settings that play no part in a run, whatever their values -> why.

    They are those of an LLM that is not read, of texts that are not written, of what items look like where nothing
    looks at them, and of training where a model only counts or is not trained.
    """
    model, groups, alone = config["model"], {}, {}
    if not reads_mllm(config, hooks):
        if _writes_here(config, hooks):
            alone["mllm"] = f"text_model writes, and {model} reads no other LLM"
        else:
            groups["mllm"] = f"{model} reads no LLM here"
    if not hooks.is_trainable or config["MODEL_TYPE"] in (ModelType.TRADITIONAL, ModelType.TRADITIONAL.name):
        groups["training"] = f"{model} is not trained"
    if TEXT_INPUTS.isdisjoint(needed(config, hooks)):
        groups["texts"] = f"{model} reads no text that an LLM writes"
    drops = config["missing_modality"] == "drop" or config["missing_rate"]  # items, or columns of .item
    if not asks_for_inputs(config, hooks) and not drops:
        groups["content"] = f"{model} reads neither images nor texts here"
    unread = {
        name: groups[setting.group]
        for name, setting in config.settings.items()
        if setting.group in groups and not setting.ranks
    }
    if asks_for_inputs(config, hooks):
        unread.pop("trust_remote_code", None)  # it is for every encoder as well
    if not read_features(config):
        alone |= dict.fromkeys(("item_features", "feature_files"), f"{model} reads none of its entries")
    return unread | alone


def without_effect(config: Config, hooks: type[Asks], keys: Iterable[str]) -> dict[str, str]:
    """Returns those of `keys` that the run does not read, by what it is or by its other settings -> why."""
    whole, values = unread_settings(config, hooks), config.final_config_dict
    reasons = {key: whole.get(key) or config.settings[key].unread(values) for key in keys if key in config.settings}
    return {key: reason for key, reason in reasons.items() if reason}


def warn_without_effect(config: Config, hooks: type[Asks]) -> None:
    """One warning per setting that was asked for and that the run does not read.

    Of what items look like nothing is said, nor of values that switch something off: the same is asked of many models.
    """
    asked = [key for key in config.asked if key in config.settings and not is_off(config[key])]
    asked = [key for key in asked if not config.settings[key].describes_items]
    for key, reason in without_effect(config, hooks, asked).items():
        logger.warning("setting %r has no effect: %s", key, reason)


def asks_for_inputs(config: Config, hooks: type[Asks]) -> bool:
    """Returns whether a run needs more than interactions: inputs of its model, or features of items."""
    return bool(needed(config, hooks) or read_features(config))
