"""The ID-based sequential model that Molar's content model is aligned with (section 3.4, Table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole.model.sequential_recommender import GRU4Rec, SASRec

from recbole_mm.errors import ConfigError
from recbole_mm.models.full_sequence import full_sequence_class

ID_MODELS = {"SASRec": SASRec, "GRU4Rec": GRU4Rec}


class Overlay:
    """A config with some keys replaced, as RecBole's model classes read it: `config[key]`, None where unknown."""

    def __init__(self, config, replaced: Mapping[str, Any]) -> None:
        self.config = config
        self.replaced = dict(replaced)

    def __getitem__(self, key: str) -> Any:
        return self.replaced[key] if key in self.replaced else self.config[key]


def build_id_model(config, dataset, hidden_size: int) -> Any:
    """RecBole's own model class, trained on full sequences, "with an embedding dimension same as the MIRM" (4.1.2).

    Args:
        config: of the run; `id_model` names the class or `none`, `id_model_config` holds its hyper-parameters.
        dataset: of the run.
        hidden_size: of the MLLM.

    Returns:
        The model, or None.

    Raises:
        ConfigError: unknown `id_model`.
    """
    name = config["id_model"]
    if name in (None, "none"):
        return None
    if name not in ID_MODELS:
        raise ConfigError(f"id_model must be one of {', '.join(ID_MODELS)} or none, not {name!r}")
    sizes = {"hidden_size": hidden_size, "embedding_size": hidden_size, "inner_size": 4 * hidden_size}
    settings = Overlay(config, {**sizes, "loss_type": "CE", **(config["id_model_config"] or {})})
    return full_sequence_class(ID_MODELS[name])(settings, dataset)
