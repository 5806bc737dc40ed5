"""Reading settings from YAML and the command line, and checking that each is of the kind it must be.

YAML is read with a safe loader that knows no Python objects. It differs from plain YAML 1.1 in five ways, all on the
side of least surprise: `1e-4` is a number, `None` is null, `12:30` and `2024-01-01` stay text, `on` as a key stays
text, and a key given twice is an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType

from recbole_mm.errors import ConfigError

_NULL = re.compile(r"^(?:~|null|Null|NULL|None|)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_TAG = "tag:yaml.org,2002:"


class SettingsLoader(yaml.SafeLoader):
    """SafeLoader with the scalars described in the module's docstring."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
                if key.tag == f"{_TAG}bool":
                    key.tag = f"{_TAG}str"  # `on:` is a key, not True
        return super().construct_mapping(node, deep)


class SettingsDumper(yaml.SafeDumper):
    """SafeDumper that puts quotes around every text that `SettingsLoader` would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _share_scalars() -> None:
    """Give both classes their own scalar rules; PyYAML keeps them in a table shared by all loaders otherwise."""
    dropped = {f"{_TAG}{kind}" for kind in ("int", "float", "null", "timestamp")}
    kept = yaml.SafeLoader.yaml_implicit_resolvers.items()
    SettingsLoader.yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0] not in dropped] for first, rules in kept
    }
    SettingsDumper.yaml_implicit_resolvers = {first: list(rules) for first, rules in kept}
    for owner in (SettingsLoader, SettingsDumper):
        owner.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
        owner.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))
        owner.add_implicit_resolver(f"{_TAG}null", _NULL, ["~", "n", "N", ""])


_share_scalars()


def read_text(path: Path, kind: str) -> str:
    """A file's text, without a byte-order mark.

    Raises:
        ConfigError: it cannot be read or is not UTF-8; the message says what `kind` of file it is.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {kind} {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{kind} {path} is not UTF-8 text (byte {error.start})") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, not YAML, holds a Python object, or is not a mapping
            from names to values. The message names the file and, where there is one, the line.
    """
    settings = _parse(read_text(path, "config file"), str(path))
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"config file {path}, line 1: expected `key: value` lines, found {_described(settings)}")
    for key in settings:
        if not isinstance(key, str):
            raise ConfigError(f"config file {path}: the key {key!r} is not a name")
    return settings


def _parse(text: str, where: str) -> Any:
    """YAML text to plain Python values; `where` opens the message of a failure."""
    try:
        return yaml.load(text, Loader=SettingsLoader)  # noqa: S506 - a SafeLoader with other scalar rules
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}{line}: {' '.join(problem.split())}") from error


def write_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML that `read_yaml` reads back to equal values."""
    return yaml.dump(
        dict(settings), Dumper=SettingsDumper, default_flow_style=None, sort_keys=False, allow_unicode=True, width=120
    )


def parse_argument(key: str, value: Any, default: Any = None) -> Any:
    """The value of `--key=value` as a Python value.

    Text is read as YAML, except where the setting is a text by nature or by its `default`: then it is taken as it
    stands, so that `--text_template="Title: {title}"` and `--user_inter_num_interval="[5,inf)"` need no second quotes.

    Raises:
        ConfigError: the text is not YAML.
    """
    if not isinstance(value, str):
        return plain(key, value)
    if _NULL.match(value):
        return None
    stripped = value.strip()
    quoted = len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "'\""
    if not quoted:
        if key in TEXT_KEYS:
            return value
        if isinstance(default, str) and stripped[:1] not in ("[", "{"):
            return value
    return _parse(value, f"--{key}={value}")


def plain(key: str, value: Any) -> Any:
    """A deep copy of `value` made of nothing but None, bool, int, float, str, list and dict.

    Raises:
        ConfigError: `value` holds something that could not be written to a run folder's config.yaml.
    """
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy scalar, as hyper-parameter searches draw
        value = value.item()
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: plain(key, entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(key, entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(key, entry) for entry in value), key=repr)
    raise ConfigError(f"{key}: {_described(value)} is not accepted; give text, numbers, lists or mappings")


@dataclass(frozen=True)
class Kind:
    """What a setting accepts: a test, and the same in words."""

    accepts: Callable[[Any], bool]
    words: str


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any, low: float = -math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_list_of(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(accepts(entry) for entry in value)


def _whole(low: int) -> Kind:
    return Kind(lambda value: _is_whole(value, low), f"a whole number of at least {low}")


def _choice(*options: str | None) -> Kind:
    return Kind(
        lambda value: value in options, "one of " + ", ".join("null" if name is None else name for name in options)
    )


def _or_null(kind: Kind) -> Kind:
    return Kind(lambda value: value is None or kind.accepts(value), f"{kind.words} or null")


_FLAG = Kind(lambda value: isinstance(value, bool), "True or False")
_TEXT = Kind(lambda value: isinstance(value, str) and value != "", "a text")
_ABOVE_ZERO = Kind(lambda value: _is_number(value) and value > 0, "a number above 0")
_NOT_NEGATIVE = Kind(lambda value: _is_number(value) and value >= 0, "a number of at least 0")
_SHARE = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
_MAPPING = Kind(lambda value: isinstance(value, dict), "a mapping")
_TEXTS = Kind(lambda value: _is_list_of(value, lambda entry: isinstance(entry, str)), "a list of names")
_METRICS = "names out of " + ", ".join(sorted(metric_types))
_INTERVALS = (
    "user_inter_num_interval",
    "item_inter_num_interval",
    "entity_kg_num_interval",
    "relation_kg_num_interval",
)


def _is_interval(text: str) -> bool:
    """One of RecBole's intervals: two numbers, perhaps inf, the smaller first, between brackets."""
    text = text.strip()
    if text[:1] not in ("[", "(") or text[-1:] not in ("]", ")"):
        return False
    try:
        low, high = map(float, text[1:-1].split(","))
    except ValueError:
        return False
    return low <= high


_INTERVAL = Kind(
    lambda value: value is None or (isinstance(value, str) and all(map(_is_interval, value.split(";")))),
    "an interval such as [5,inf), several with ; between them, or null",
)

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

KINDS: dict[str, Kind] = {
    **dict.fromkeys(_INTERVALS, _INTERVAL),
    "epochs": _whole(0),
    "train_batch_size": _whole(1),
    "eval_batch_size": _whole(1),
    "learning_rate": _ABOVE_ZERO,
    "weight_decay": _NOT_NEGATIVE,
    "learner": _TEXT,
    "eval_step": _whole(0),
    "stopping_step": _whole(0),
    "clip_grad_norm": Kind(
        lambda value: value is None or isinstance(value, dict) or _ABOVE_ZERO.accepts(value),
        "a number above 0, a mapping such as {max_norm: 5}, or null",
    ),
    "seed": _whole(0),
    "worker": _whole(0),
    "MAX_ITEM_LIST_LENGTH": _whole(1),
    "topk": Kind(
        lambda value: _is_whole(value, 1) or (bool(value) and _is_list_of(value, lambda k: _is_whole(k, 1))),
        "a whole number of at least 1, or a list of them",
    ),
    "metrics": Kind(
        lambda value: bool(value) and _is_list_of(value, lambda m: isinstance(m, str) and m.lower() in metric_types),
        _METRICS,
    ),
    "metric_decimal_place": _whole(0),
    "valid_metric": _TEXT,
    "eval_args": _MAPPING,
    "mask_history": _FLAG,
    "candidates": _choice("interacted", "catalogue"),
    "positives": _choice("last", "popular"),
    "eval_memory_mb": _ABOVE_ZERO,
    "save_per_user": _FLAG,
    "repeatable": _FLAG,
    "filter_inter_by_user_or_item": _FLAG,
    "full_sequence": _FLAG,
    "warmup_ratio": _SHARE,
    "warmup_steps": _or_null(_whole(0)),
    "warmup_start_factor": _SHARE,
    "max_train_steps": _or_null(_whole(1)),
    "train_workers": _whole(1),
    "checkpoint_every": _whole(1),
    "lr_scheduler": _choice("constant", "cosine", "linear"),
    "gradient_accumulation_steps": _whole(1),
    "enable_amp": _FLAG,
    "resume": Kind(lambda value: isinstance(value, bool) or _TEXT.accepts(value), "True, False or a run's folder"),
    "load_best_model": _FLAG,
    "show_progress": _FLAG,
    "state": Kind(
        lambda value: isinstance(value, str) and value.upper() in _LEVELS, f"a logging level: {', '.join(_LEVELS)}"
    ),
    "reproducibility": _FLAG,
    "use_gpu": _FLAG,
    "gpu_id": Kind(
        lambda value: (
            value is None
            or _is_whole(value, 0)
            or (isinstance(value, str) and re.fullmatch(r"(\d+(,\s*\d+)*)?", value) is not None)
            or _is_list_of(value, lambda entry: _is_whole(entry, 0))
        ),
        "a GPU's number, several as in 0,1, or nothing for the CPU",
    ),
    "data_path": _TEXT,
    "checkpoint_dir": _TEXT,
    "artifact_dir": _or_null(_TEXT),
    "ray_address": _or_null(_TEXT),
    "ray_workers": _whole(0),
    "ray_cpus_per_worker": _or_null(_ABOVE_ZERO),
    "ray_gpus_per_worker": _or_null(_NOT_NEGATIVE),
    "ray_object_store_mb": _or_null(_whole(1)),
    "modalities": Kind(
        lambda value: _is_list_of(value, lambda name: name in ("image", "text")),
        "a list of image and text, of one of them, or an empty one",
    ),
    "text_fields": _TEXTS,
    "text_template": _or_null(_TEXT),
    "max_text_chars": _whole(1),
    "item_domain": _or_null(_TEXT),
    "image_dir": _or_null(_TEXT),
    "image_field": _or_null(_TEXT),
    "image_zip": _or_null(_TEXT),
    "max_image_pixels": _whole(1),
    "missing_modality": _choice("mask", "drop", "error"),
    "item_features": _MAPPING,
    "mllm": _TEXT,
    "mllm_dtype": _choice("float32", "bfloat16", "float16", None),
    "trust_remote_code": _FLAG,
    "text_backend": _choice("template", "hf", "openai"),
    "text_model": _or_null(_TEXT),
    "text_url": _or_null(_TEXT),
    "text_api_key_env": Kind(
        lambda value: value is None or (isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value) is not None),
        "the NAME of an environment variable, never the key itself, or null",
    ),
    "text_max_words": _whole(1),
    "text_max_new_tokens": _whole(1),
    "text_context_tokens": _whole(1),
    "text_temperature": Kind(lambda value: _is_number(value) and 0 <= value <= 2, "a number from 0 to 2"),
    "text_top_p": Kind(lambda value: _is_number(value) and 0 < value <= 1, "a number above 0, at most 1"),
    "text_seed": _or_null(_whole(0)),
    "text_batch_tokens": _whole(1),
    "text_concurrency": _whole(1),
    "text_timeout": _ABOVE_ZERO,
    "text_retries": _whole(0),
}
"""What the settings shared by all models accept. A model checks its own settings itself."""

TEXT_KEYS = frozenset(
    {"model", "dataset", "gpu_id", "state", *_INTERVALS}
    | {key for key, kind in KINDS.items() if kind is _TEXT or kind.words == f"{_TEXT.words} or null"}
)
"""Settings whose value on the command line is taken as it stands, never as YAML."""


NOT_SHOWN = frozenset({"text_api_key_env", "text_url"})
"""Settings that may hold a secret by mistake: it is not repeated where it would be logged."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the kind of every shared setting, and that those of the evaluation fit together.

    Raises:
        ConfigError: naming the first setting that does not, and what it accepts.
    """
    for key, kind in KINDS.items():
        if key in settings and not kind.accepts(settings[key]):
            given = "what is given" if key in NOT_SHOWN else repr(settings[key])
            raise ConfigError(f"{key}: {given} is not accepted; give {kind.words}")
    _check_eval_args(settings["eval_args"])
    _check_metrics(settings)


_SPLITS = {"RS", "LS", "TS"}
_LEAVE_ONE_OUT = ("valid_and_test", "valid_only", "test_only")


def _check_eval_args(eval_args: Mapping[str, Any]) -> None:
    unknown = sorted(set(map(str, eval_args)) - {"split", "order", "group_by", "mode"})
    if unknown:
        raise ConfigError(f"eval_args: {unknown[0]!r} is not accepted; give split, order, group_by, mode")
    split, order, group_by = eval_args.get("split"), eval_args.get("order"), eval_args.get("group_by")
    if not isinstance(split, dict) or len(split) != 1 or not set(split) <= _SPLITS:
        raise ConfigError(f"eval_args: split: {split!r} is not accepted; give LS or RS, as in {{LS: valid_and_test}}")
    ((way, parts),) = split.items()
    if way == "LS" and parts not in _LEAVE_ONE_OUT:
        raise ConfigError(f"eval_args: split: LS: {parts!r} is not accepted; give one of {', '.join(_LEAVE_ONE_OUT)}")
    if way != "LS" and not (_is_list_of(parts, lambda part: _is_number(part) and part >= 0) and len(parts) == 3):
        raise ConfigError(f"eval_args: split: {way}: {parts!r} is not accepted; give [0.8,0.1,0.1]")
    if order not in ("TO", "RO"):
        raise ConfigError(f"eval_args: order: {order!r} is not accepted; give TO (by time) or RO (shuffled)")
    if group_by not in ("user", "none", None):
        raise ConfigError(f"eval_args: group_by: {group_by!r} is not accepted; give user or none")
    mode = eval_args.get("mode")
    phases = mode if isinstance(mode, dict) else {"valid": mode, "test": mode}
    for phase, name in phases.items():
        if phase not in ("valid", "test") or not re.fullmatch(r"full|labeled|(uni|pop)[1-9]\d*", str(name)):
            raise ConfigError(f"eval_args: mode: {mode!r} is not accepted; give full, labeled, uni<N> or pop<N>")


def _check_metrics(settings: Mapping[str, Any]) -> None:
    """Ranking and value metrics do not mix, and `valid_metric` is one that is computed."""
    metrics = [name.lower() for name in settings["metrics"]]
    kinds = {metric_types[name] for name in metrics}
    if len(kinds) > 1:
        raise ConfigError(
            f"metrics: {', '.join(settings['metrics'])} mix ranking metrics with value metrics; give one kind"
        )
    topk = settings["topk"] if isinstance(settings["topk"], list) else [settings["topk"]]
    cut = kinds == {EvaluatorType.RANKING}
    computed = [
        f"{name}@{k}" if cut and name != "gauc" else name for name in metrics for k in (topk if name != "gauc" else [0])
    ]
    if settings["valid_metric"].lower() not in computed:
        names = ", ".join(dict.fromkeys(computed))
        raise ConfigError(f"valid_metric: {settings['valid_metric']!r} is not computed; give one of {names}")


def _described(value: Any) -> str:
    return f"a {type(value).__name__}"
