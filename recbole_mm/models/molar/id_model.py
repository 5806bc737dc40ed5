"""The ID-based sequential model that Molar's content model is aligned with (section 3.4, Table 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from recbole.model.sequential_recommender import FPMC, GRU4Rec, SASRec
from torch import Tensor

from recbole_mm.errors import ConfigError
from recbole_mm.models.duorec import DuoRec
from recbole_mm.models.full_sequence import Overlay
from recbole_mm.models.hooks import full_sequence_class
from recbole_mm.models.hyper import ENCODERS, check_encoder, read_map

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

ID_MODELS = {"SASRec": SASRec, "GRU4Rec": GRU4Rec, "FPMC": FPMC, "DuoRec": DuoRec}
TRAININGS = ("joint", "pretrained")

SIZES = ("hidden_size", "embedding_size", "inner_size")
DEFAULTS = {
    **ENCODERS,
    **dict.fromkeys(SIZES),
    "loss_type": "CE",
    "lmd": 0.0,
    "lmd_sem": 0.1,
    "tau": 1.0,
    "sim": "dot",
}
"""Of `id_model_config`; a size of None is that of the paper: states as wide as the MIRM's vectors."""


class FinishedRun(Protocol):
    """What `id_model_path` was read into: the trained ID model of another run.

    Attributes:
        model: its name.
        settings: what it was built with, by RecBole's names.
        weights: its parameters by name.
    """

    model: str
    settings: Mapping[str, Any]
    weights: Mapping[str, Tensor]


def build_id_model(config: Config, dataset: MultimodalDataset, hidden_size: int) -> Any:
    """RecBole's own model class, or DuoRec, in the form that gives its state after every prefix of a sequence.

    "With an embedding dimension same as the MIRM" (4.1.2): states have `hidden_size` numbers. FPMC's state is the
    user's factor and the last item's, concatenated, each half as wide.

    Args:
        config: of the run; `id_model` names the class or `none`, `id_model_config` holds its hyper-parameters.
        dataset: of the run, its training part.
        hidden_size: of the content model.

    Returns:
        The model, or None. Its `prefix_states` and `whole_states` are E_u^id, scored against its `output_items()`;
        `loss_of_states` is its own loss.

    Raises:
        ConfigError: a hyper-parameter is unknown or impossible.
    """
    name = config["id_model"]
    if name in (None, "none"):
        return None
    settings = read_map(config, "id_model_config", DEFAULTS)
    if settings["loss_type"] not in ("CE", "BPR"):
        raise ConfigError(f"id_model_config: loss_type must be CE or BPR, not {settings['loss_type']!r}")
    width = settings["hidden_size"] or hidden_size
    factor = max(1, width // 2) if name == "FPMC" else width
    settings |= {
        "hidden_size": width,
        "embedding_size": settings["embedding_size"] or factor,
        "inner_size": settings["inner_size"] or 4 * width,
    }
    return _built(config, dataset, name, settings)


def build_trained_id_model(config: Config, dataset: MultimodalDataset, run: FinishedRun) -> Any:
    """The ID model of a finished run as `build_id_model` gives it, with that run's sizes and weights.

    Raises:
        ConfigError: the run trained another model than `id_model`, or one whose weights do not fit this dataset.
    """
    if run.model != config["id_model"]:
        raise ConfigError(f"id_model_path: the run trained {run.model}, not id_model: {config['id_model']}")
    model = _built(config, dataset, run.model, {name: run.settings[name] for name in DEFAULTS if name in run.settings})
    try:
        model.load_state_dict(dict(run.weights))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"id_model_path: the weights do not fit {run.model} on this dataset: {reason}") from error
    return model


def _built(config: Config, dataset: MultimodalDataset, name: str, settings: Mapping[str, Any]) -> Any:
    if name in ("SASRec", "DuoRec"):
        check_encoder("id_model_config", settings["hidden_size"], settings)
    own = {**settings, "full_sequence_loss": None, "item_dropout_prob": None}  # its own loss is loss_type
    return full_sequence_class(ID_MODELS[name])(Overlay(config, own), dataset)


def wants_negatives(config: Config) -> bool:
    """Whether the ID model's own loss compares each target with a negative."""
    return read_map(config, "id_model_config", DEFAULTS)["loss_type"] == "BPR"
