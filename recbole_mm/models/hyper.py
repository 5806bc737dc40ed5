"""Maps of hyper-parameters of exchangeable parts of a model: what a map leaves out has its default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

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
        if wanted := _not_accepted(str(name), given[name], defaults[name]):
            raise ConfigError(f"{key}.{name}: {given[name]!r} is not accepted; give {wanted}")
    return {**defaults, **given}


def _not_accepted(name: str, value: Any, default: Any) -> str:
    """What a hyper-parameter has to be, by its default, where a value is not that; else "".

    >>> _not_accepted("n_layers", "two", 2), _not_accepted("attn_dropout_prob", 0, 0.5), _not_accepted("tau", None, 1.0)
    ('a whole number of at least 1', '', 'a number of at least 0')
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(default, str):
        return "" if isinstance(value, str) else "a word"
    if isinstance(default, float) and "dropout" in name:
        return "" if number and 0 <= value < 1 else "a number from 0 to less than 1"
    if isinstance(default, float):
        return "" if number and value >= 0 else "a number of at least 0"
    if isinstance(default, int) or (name.endswith("_size") and value is not None):
        return "" if number and isinstance(value, int) and value >= 1 else "a whole number of at least 1"
    return ""


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
