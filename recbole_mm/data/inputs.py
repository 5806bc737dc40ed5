"""The inputs of a model in addition to interactions: one frozen object, `dataset.inputs`.

class Mine(SequentialModel):
    requires = ("item_vectors",)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.vectors = torch.as_tensor(dataset.inputs.item_vectors)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recbole_mm.errors import ConfigError

NOT_ASKED: Any = type("NotAsked", (), {"__repr__": lambda self: "not asked for"})()


BRINGS: Mapping[str, tuple[str, ...]] = {
    "mllm": ("mllm",),
    "mllm_with_head": ("mllm",),
    "answering_mllm": ("mllm",),
    "answer_writer": ("mllm", "write_texts"),
    "item_vectors": ("item_vectors",),
    "item_text_vectors": ("item_text_vectors",),
    "prepared_items": ("prepared_items",),
    "item_tokens": ("item_token_ids", "item_token_lengths"),
    "id_model_run": ("id_model_run",),
    "item_text_features": ("fused_vectors",),
    "user_profiles": ("profile_vectors",),
    "user_states": ("profile_vectors",),
    "item_texts": ("item_texts",),
    "user_preferences": ("preferences",),
}
"""Entries of `requires` -> the inputs that a model then has."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelInputs:
    """The inputs that a model has asked for by the hooks `requires` or `requirements`; the others cannot be read.

    Rows are RecBole's ids throughout; row 0 is padding and holds zeros or None.

    Raises:
        ConfigError: on reading an input that was not asked for.

    Example:
        >>> ModelInputs(model="Mine", item_vectors=np.zeros((3, 2))).item_vectors.shape
        (3, 2)
    """

    model: str = "the model"
    """The model's name, for errors."""

    item_features: Mapping[str, np.ndarray] = field(default_factory=dict)
    """The features of the setting `item_features` that the model reads, by name, float32 (n_items, d);
    `dataset.item_feature(name)` gives one."""

    mllm: Any = NOT_ASKED
    """The multimodal LLM (`llm.model.MLLM`): `mllm` without its language-model head, `mllm_with_head` with it,
    `answering_mllm` with it and fine-tuned to answer the model's prompts by the settings `sft_*`; for `answer_writer`
    without weights, to word prompts."""

    write_texts: Callable[[str, Mapping[Any, Any]], Any] = NOT_ASKED
    """`write_texts(stage, requests)` returns the answers that `text_backend` writes."""

    item_vectors: np.ndarray = NOT_ASKED
    """(n_items, h) float32, the MLLM's vectors of the `modalities` image and text (Molar, Eq. 1)."""

    item_text_vectors: np.ndarray = NOT_ASKED
    """The same of the text alone."""

    prepared_items: Any = NOT_ASKED
    """The prompts of which `item_vectors` are computed (`llm.prepared_items.PreparedItems`), and their encoder."""

    item_token_ids: np.ndarray = NOT_ASKED
    """(n_items, T) int32, the MLLM's tokens of each text."""

    item_token_lengths: np.ndarray = NOT_ASKED
    """(n_items,) number of tokens of each text."""

    id_model_run: Any = NOT_ASKED
    """The trained model of the run folder in `id_model_path`: `model`, `settings` and `weights`."""

    fused_vectors: np.ndarray = NOT_ASKED
    """(n_items, d) float32, sentence vectors of the items' texts (MLLMRec)."""

    profile_vectors: np.ndarray = NOT_ASKED
    """(n_users, d) float32, sentence vectors of users' preference profiles, or for `user_states` an LLM's hidden states
    after their histories (MLLMRec)."""

    item_texts: Sequence[str | None] = NOT_ASKED
    """A text of each item; None where there is none (MLLM-MSR)."""

    preferences: Any = NOT_ASKED
    """A text of each user's preferences after a history, `preferences.of(user, history)` (MLLM-MSR)."""

    first_stage: Any = NOT_ASKED
    """The model of the setting `first_stage`, whose `scores(cases)` are (B, n_items); None for `first_stage: none`."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if value is NOT_ASKED:
            raise ConfigError(f"{self.model} reads dataset.inputs.{name} without asking for it: {_how_to_ask(name)}")
        return value

    def __repr__(self) -> str:
        return f"ModelInputs of {self.model}: {', '.join(sorted(self.given() - {'model'})) or 'none'}"

    def given(self) -> frozenset[str]:
        """Names of the inputs that are there."""
        return frozenset(name for name, value in vars(self).items() if value is not NOT_ASKED)


def _how_to_ask(name: str) -> str:
    needs = [need for need, inputs in BRINGS.items() if name in inputs]
    if not needs:
        return "state has_first_stage = True in its class"
    return f"add {' or '.join(map(repr, needs))} to its `requires`"
