"""Maps of hyper-parameters of exchangeable parts of a model: what a map leaves out has its default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recbole_mm.config.kinds import TEXT, Kind, kind_like, number, or_null, size
from recbole_mm.config.schema import Setting
from recbole_mm.errors import ConfigError
from recbole_mm.utils.spelling import did_you_mean

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

ENCODERS: dict[str, Any] = {
    "n_layers": 2,
    "n_heads": 2,
    "inner_size": None,
    "hidden_dropout_prob": 0.5,
    "attn_dropout_prob": 0.5,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "num_layers": 1,
    "dropout_prob": 0.3,
}
"""Of SASRec and GRU4Rec, under RecBole's names; `inner_size: None` is four times the width."""

LORA_DEFAULTS = {"r": 16, "alpha": 32, "dropout": 0.05, "targets": None}
"""Of a LoRA; `targets: None` is PEFT's choice for the architecture."""

ACTIVATIONS = ("gelu", "relu", "swish", "tanh", "sigmoid")


def read_map(config: Config, key: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The map `config[key]` over its defaults.

    Raises:
        ConfigError: it is no map, names a hyper-parameter that is not in `defaults`, or gives one of another kind.
    """
    given = {} if config[key] is None else config[key]
    if not isinstance(given, Mapping):
        raise ConfigError(f"{key}: {given!r} is not a mapping such as {{n_layers: 2}}")
    for name in given:
        if name not in defaults:
            raise ConfigError(f"{key}: unknown key {name!r}{did_you_mean(str(name), defaults)}")
        Setting(f"{key}.{name}", _kind(str(name), defaults[name])).check(given[name])
    return {**defaults, **given}


def _kind(name: str, default: Any) -> Kind | None:
    """What a hyper-parameter has to be; None where nothing tells.

    >>> _kind("n_layers", 2).accepts(0), _kind("attn_dropout_prob", 0.5).accepts(0), _kind("tau", 1.0).accepts(None)
    (False, True, False)
    """
    if name.endswith("_size"):
        return or_null(size(1)) if default is None else size(1)
    if "dropout" in name:
        return number(0, 1, below=True)
    if isinstance(default, str):
        return TEXT
    if isinstance(default, int) and not isinstance(default, bool):
        return size(1)
    return kind_like(name, default)


def check_encoder(key: str, width: int, settings: Mapping[str, Any]) -> None:
    """Check what RecBole's transformer asks of its sizes.

    Raises:
        ConfigError: the heads do not share the width equally, or the activation is unknown; `key` is named.
    """
    heads, activation = settings["n_heads"], settings["hidden_act"]
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise ConfigError(f"{key}: n_heads {heads} does not divide the width {width}")
    if activation not in ACTIVATIONS:
        raise ConfigError(f"{key}: hidden_act must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
