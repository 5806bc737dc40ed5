"""Why something is recommended, in words that an LLM wrote for the run: MLLM-MSR's preferences, MLLMRec's profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.csr import CSR
from recbole_mm.inputs.context import Context, open_store
from recbole_mm.inputs.reasoning.items import ItemTexts
from recbole_mm.inputs.reasoning.preferences import Preferences
from recbole_mm.inputs.reasoning.profiles import UserProfiles
from recbole_mm.models.answering.prompts import PreferencePrompt
from recbole_mm.models.hooks import hooks_of
from recbole_mm.recommending.recommender import Recommender

Reasons = Callable[[np.ndarray | None, CSR], list[str | None]]
"""Of users (n,) and their histories: a text of each, None where there is none."""


def reasons_of(recommender: Recommender) -> Reasons:
    """Return what tells why, for the users of a run.

    Texts are read from the artifact store, where the run put them.

    Raises:
        ConfigError: the model has no texts of users.
    """
    prompt = getattr(recommender.model, "prompt", None)
    if isinstance(prompt, PreferencePrompt) and prompt.preferences is not None:
        return _preferences(prompt.preferences, recommender.config["MAX_ITEM_LIST_LENGTH"])
    if "user_profiles" in hooks_of(type(recommender.model)).requirements(recommender.config):
        return _profiles(_texts_of_profiles(recommender))
    raise ConfigError(
        f"{recommender.config['model']} has no texts of its users to give as reasons; MLLMMSR and MLLMRec have"
    )


def _preferences(preferences: Preferences, longest: int) -> Reasons:
    def of(users: np.ndarray | None, histories: CSR) -> list[str | None]:
        if users is None:
            return [None] * len(histories)
        seen = [histories.items[start:end][-longest:].tolist() for start, end in _bounds(histories)]
        return [preferences.of(int(user), history) for user, history in zip(users, seen, strict=True)]

    return of


def _bounds(histories: CSR) -> Sequence[tuple[int, int]]:
    return list(zip(histories.offsets[:-1].tolist(), histories.offsets[1:].tolist(), strict=True))


def _profiles(texts: Sequence[str | None]) -> Reasons:
    def of(users: np.ndarray | None, histories: CSR) -> list[str | None]:
        return [None] * len(histories) if users is None else [texts[user] for user in users]

    return of


def _texts_of_profiles(recommender: Recommender) -> Sequence[str | None]:
    """Return the profile of every user by RecBole's id, as the run's towers read its vector."""
    config = recommender.config
    dataset = create_dataset(config)  # texts are made of the data before it is split
    hooks = hooks_of(type(recommender.model))
    with open_store(config) as store:
        return Context(config, dataset, store, hooks, hooks.requirements(config)).share(UserProfiles).texts


def item_texts_of(recommender: Recommender) -> Sequence[str | None]:
    """Return what the run's model reads of items in words, by RecBole's ids, as far as it is written; [] without any.

    Texts are read from the artifact store, where the run put them; none is written.
    """
    inputs, config = recommender.dataset.inputs, recommender.config
    if "item_texts" in inputs.given():
        return inputs.item_texts
    hooks = hooks_of(type(recommender.model))
    needs = hooks.requirements(config)
    if "item_text_features" not in needs:
        return []
    dataset = create_dataset(config)
    with open_store(config) as store:
        return Context(config, dataset, store, hooks, needs, is_plan=True).share(ItemTexts).known.written
