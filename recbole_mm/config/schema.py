"""What each setting accepts, and what a value that is written in another way stands for.

Two rules hold for every setting: where names or numbers are listed, a single one is the list of it
alone; and a path that starts with `~` starts at the home folder. `normalized` applies both, once, when a `Config` is
made; `check_settings` then refuses what is of no accepted kind.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from recbole.evaluator import metric_types
from recbole.utils import EvaluatorType

from recbole_mm.errors import ConfigError
from recbole_mm.utils.paths import expanded, is_path


@dataclass(frozen=True)
class Kind:
    """What a setting accepts.

    Attributes:
        accepts: the test of a value.
        words: the same in words.
        normal: what a value stands for, which is what is tested, kept and read; a value of another kind comes back as
            it is.
        is_text: whether the command line's text is the value as it stands, never YAML.
    """

    accepts: Callable[[Any], bool]
    words: str
    normal: Callable[[Any], Any] = lambda value: value
    is_text: bool = False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any, low: float = -math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_list_of(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(accepts(entry) for entry in value)


def _whole(low: int) -> Kind:
    return Kind(lambda value: _is_whole(value, low), f"a whole number of at least {low}")


def _from_to(low: int, high: int) -> Kind:
    return Kind(lambda value: _is_whole(value, low) and value <= high, f"a whole number from {low} to {high}")


def _up_to(high: int) -> Kind:
    return Kind(lambda value: _is_whole(value, -high) and value <= high, f"a whole number, up to {high}")


def _between(low: float, high: float) -> Kind:
    words = f"a number of at least {low:g}" if low == 0 else "a number"
    return Kind(lambda value: _is_number(value) and low <= value <= high, f"{words}, up to {high:g}")


def _choice(*options: str | None) -> Kind:
    return Kind(
        lambda value: value in options, "one of " + ", ".join("null" if name is None else name for name in options)
    )


def _or_null(kind: Kind) -> Kind:
    words = f"{kind.words}, or null" if "," in kind.words else f"{kind.words} or null"
    return replace(kind, accepts=lambda value: value is None or kind.accepts(value), words=words)


def _listed(value: Any) -> Any:
    """A single name or number as the list of it alone."""
    return [value] if isinstance(value, (str, int, float)) else value


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _list_of(accepts: Callable[[Any], bool], words: str) -> Kind:
    return Kind(lambda value: _is_list_of(value, accepts), words, _listed)


def _not_empty(kind: Kind) -> Kind:
    return replace(kind, accepts=lambda value: bool(value) and kind.accepts(value))


def _by_name(accepts: Callable[[Any], bool], words: str, normal: Callable[[Any], Any] = lambda entry: entry) -> Kind:
    """A mapping from names, of files or of columns, to what is meant of each."""

    def normal_of_each(value: Any) -> Any:
        return {name: normal(entry) for name, entry in value.items()} if isinstance(value, dict) else value

    def accepts_each(value: Any) -> bool:
        return isinstance(value, dict) and all(map(_is_name, value)) and all(map(accepts, value.values()))

    return Kind(accepts_each, words, normal_of_each)


_FLAG = Kind(lambda value: isinstance(value, bool), "True or False")
_TEXT = Kind(_is_name, "a text", is_text=True)
_PATH = Kind(
    lambda value: _is_name(value) and is_path(value),
    "a path, whose names have at most 255 bytes",
    expanded,
    is_text=True,
)
_MODEL = replace(_PATH, words="a model's name, or the path of its folder")
_ABOVE_ZERO = Kind(lambda value: _is_number(value) and value > 0, "a number above 0")
_NOT_NEGATIVE = Kind(lambda value: _is_number(value) and value >= 0, "a number of at least 0")
_RATE = Kind(lambda value: _is_number(value) and 0 < value <= 1e6, "a number above 0, at most 1e6")
_SHARE = Kind(lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1")
_MAPPING = Kind(lambda value: isinstance(value, dict), "a mapping")
_NAMES = _list_of(_is_name, "a name or a list of names")
_COUNTS = "a whole number of at least 1, or a list of them"
_LISTED_COLUMNS = _by_name(lambda entry: _NAMES.accepts(entry), "a mapping such as {inter: [rating]}", _listed)
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


def _are_features(value: Any) -> bool:
    """Whether it is a mapping whose files and folders, where they are texts, can be."""
    specs = value.values() if isinstance(value, dict) else ()
    given = [spec.get(key) for spec in specs if isinstance(spec, dict) for key in _FEATURE_PATHS]
    return isinstance(value, dict) and all(is_path(path) for path in given if isinstance(path, str))


_FEATURE_PATHS = ("file", "ids", "encoder")


def _feature_paths(value: Any) -> Any:
    """Entries of `item_features`, whose files and folders are paths."""
    if not isinstance(value, dict):
        return value
    return {
        name: {key: expanded(entry) if key in _FEATURE_PATHS else entry for key, entry in settings.items()}
        if isinstance(settings, dict)
        else settings
        for name, settings in value.items()
    }


LARGEST_SEED = 2**32 - 1
"""That numpy takes."""

LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")
"""Optimizers; RecBole takes Adam for any other name."""

_CLIPPING = {
    "max_norm": _ABOVE_ZERO,
    "norm_type": Kind(lambda value: type(value) in (int, float) and value > 0, "a number above 0"),
    "error_if_nonfinite": _FLAG,
    "foreach": _or_null(_FLAG),
}


def _is_clipping(value: Any) -> bool:
    """Arguments of torch's `clip_grad_norm_`."""
    named = isinstance(value, dict) and "max_norm" in value and value.keys() <= _CLIPPING.keys()
    return named and all(_CLIPPING[key].accepts(entry) for key, entry in value.items())


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

KINDS: dict[str, Kind] = {
    **dict.fromkeys(_INTERVALS, _INTERVAL),
    "epochs": _whole(0),
    "train_batch_size": _whole(1),
    "eval_batch_size": _whole(1),
    "learning_rate": _RATE,
    "weight_decay": _between(0.0, 1e6),
    "learner": Kind(
        lambda value: isinstance(value, str) and value.lower() in LEARNERS,
        f"one of {', '.join(LEARNERS)}",
        is_text=True,
    ),
    "eval_step": _whole(0),
    "stopping_step": _whole(0),
    "clip_grad_norm": Kind(
        lambda value: value is None or _ABOVE_ZERO.accepts(value) or _is_clipping(value),
        "a number above 0, a mapping such as {max_norm: 5}, or null",
    ),
    "seed": _from_to(0, LARGEST_SEED),
    "worker": _whole(0),
    "MAX_ITEM_LIST_LENGTH": _from_to(1, 10**6),
    "topk": _not_empty(_list_of(lambda k: _is_whole(k, 1), _COUNTS)),
    "metrics": _not_empty(_list_of(lambda name: isinstance(name, str) and name.lower() in metric_types, _METRICS)),
    "metric_decimal_place": _from_to(0, 18),
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
    "resume": Kind(
        lambda value: isinstance(value, bool) or _PATH.accepts(value), "True, False or a run's folder", expanded
    ),
    "load_best_model": _FLAG,
    "show_progress": _FLAG,
    "state": Kind(
        lambda value: isinstance(value, str) and value.upper() in _LEVELS, f"a logging level: {', '.join(_LEVELS)}"
    ),
    "log_style": _choice("compact", "recbole"),
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
    "data_path": _PATH,
    "checkpoint_dir": _PATH,
    "artifact_dir": _or_null(_PATH),
    "ray_address": _or_null(_TEXT),
    "ray_workers": _whole(0),
    "ray_cpus_per_worker": _or_null(_ABOVE_ZERO),
    "ray_gpus_per_worker": _or_null(_NOT_NEGATIVE),
    "ray_object_store_mb": _or_null(_whole(1)),
    "modalities": _list_of(
        lambda name: name in ("image", "text"), "a list of image and text, of one of them, or an empty one"
    ),
    "text_fields": _NAMES,
    "text_template": _or_null(_TEXT),
    "max_text_chars": _whole(1),
    "item_domain": _or_null(_TEXT),
    "image_dir": _or_null(_PATH),
    "image_field": _or_null(_TEXT),
    "image_zip": _or_null(_PATH),
    "max_image_pixels": _whole(1),
    "missing_modality": _choice("mask", "drop", "error"),
    "item_features": Kind(_are_features, "a mapping such as {text: {encoder: MODEL, on: text}}", _feature_paths),
    "mllm": _MODEL,
    "mllm_dtype": _choice("float32", "bfloat16", "float16", None),
    "trust_remote_code": _FLAG,
    "text_backend": _choice("template", "hf", "openai"),
    "text_model": _or_null(_MODEL),
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
    "text_seed": _or_null(_from_to(0, LARGEST_SEED)),
    "text_batch_tokens": _whole(1),
    "text_concurrency": _whole(1),
    "text_timeout": _ABOVE_ZERO,
    "text_retries": _whole(0),
}
"""What the settings shared by all models accept. A model checks its own settings itself."""

OF_RECBOLE: dict[str, Kind] = {
    **dict.fromkeys(
        ("shuffle", "require_pow", "enable_scaler", "log_wandb", "save_dataset", "save_dataloaders", "kg_reverse_r"),
        _FLAG,
    ),
    "normalize_all": _or_null(_FLAG),
    "wandb_project": _TEXT,
    "loss_decimal_place": _from_to(0, 18),
    "tail_ratio": _or_null(_ABOVE_ZERO),
    "transform": _or_null(_TEXT),
    **dict.fromkeys(("dataset_save_path", "dataloaders_save_path"), _or_null(_PATH)),
    **dict.fromkeys(
        (
            *(
                "USER_ID_FIELD",
                "ITEM_ID_FIELD",
                "RATING_FIELD",
                "TIME_FIELD",
                "LABEL_FIELD",
                "NEG_PREFIX",
                "LIST_SUFFIX",
            ),
            *("ITEM_LIST_LENGTH_FIELD", "POSITION_FIELD", "HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD"),
            *("RELATION_ID_FIELD", "ENTITY_ID_FIELD"),
        ),
        _TEXT,
    ),
    **dict.fromkeys(("field_separator", "seq_separator"), Kind(_is_name, "a text of at least one character")),
    "encoding": _or_null(replace(_TEXT, words="a text encoding, such as utf-16")),
    "seq_len": _or_null(_by_name(lambda entry: _is_whole(entry, 1), "a mapping such as {class: 5}")),
    "threshold": _or_null(
        Kind(
            lambda value: isinstance(value, dict) and len(value) == 1 and all(map(_is_number, value.values())),
            "a mapping of one column, such as {rating: 3}",
        )
    ),
    "numerical_features": replace(_NAMES, normal=lambda value: [] if value is None else _listed(value)),
    "load_col": _or_null(
        _by_name(
            lambda entry: entry == "*" or _is_list_of(entry, _is_name),
            'a mapping such as {inter: [user_id, item_id], item: "*"}',
            lambda entry: entry if entry == "*" else _listed(entry),
        )
    ),
    **dict.fromkeys(("unload_col", "unused_col"), _or_null(_LISTED_COLUMNS)),
    **dict.fromkeys(
        (
            *("additional_feat_suffix", "normalize_field", "alias_of_user_id", "alias_of_item_id"),
            *("alias_of_entity_id", "alias_of_relation_id"),
        ),
        _or_null(_NAMES),
    ),
    "benchmark_filename": _or_null(
        replace(
            _list_of(_is_name, "three names, of the files of training, validation and test: [train, valid, test]"),
            accepts=lambda value: _is_list_of(value, _is_name) and len(set(value)) == len(value) == 3,
        )
    ),
    "rm_dup_inter": _choice("first", "last", None),
    "val_interval": _or_null(
        _by_name(
            lambda entry: isinstance(entry, str) and _INTERVAL.accepts(entry), 'a mapping such as {rating: "[3,inf)"}'
        )
    ),
    "preload_weight": _or_null(_by_name(_is_name, "a mapping such as {ent_id: ent_emb}")),
    "discretization": _or_null(
        _by_name(lambda entry: isinstance(entry, dict), "a mapping such as {age: {method: EF, bucket: 5}}")
    ),
}
"""What RecBole's own settings accept that every model has."""

OF_SOME_MODELS: dict[str, Kind] = {
    "teacher": _choice("CrossNet", "CIN"),  # KD_DAGFM evaluates it as Python
    **dict.fromkeys(("content_features", "item_sources", "mirm_objectives", "lora_targets"), _NAMES),
    "selected_features": _or_null(_NAMES),
    **dict.fromkeys(("mllm_image_pixels", "max_text_tokens"), _or_null(_whole(1))),
    **dict.fromkeys(("mirm_seed", "sft_seed"), _or_null(_from_to(0, LARGEST_SEED))),
    **dict.fromkeys(
        (
            *("id_model_path", "first_stage_path", "sentence_encoder", "pretrain_path", "mf_pretrain_path"),
            *("mlp_pretrain_path",),
        ),
        _or_null(_PATH),
    ),
    "pre_model_path": Kind(lambda value: value is None or isinstance(value, str), "a path", expanded, is_text=True),
    **dict.fromkeys(("collm_title_field", "tallrec_title_field", "tallrec_rating_field"), _or_null(_TEXT)),
    "first_stage_config": _or_null(_MAPPING),
}
"""What settings accept that only some models have. They are unknown to the others."""

ALL_KINDS = {**OF_RECBOLE, **KINDS, **OF_SOME_MODELS}

TEXT_KEYS = frozenset(
    {"model", "dataset", "state", *_INTERVALS} | {key for key, kind in ALL_KINDS.items() if kind.is_text}
)
"""Settings whose value on the command line is taken as it stands, never as YAML."""

NOT_SHOWN = frozenset({"text_api_key_env", "text_url"})
"""Settings that may hold a secret by mistake: it is not repeated where it would be logged."""

MAY_BE_ENDLESS = frozenset({"lgb_params", "xgb_params", "clip_grad_norm"})
"""Settings that may hold a number that is not finite, such as XGBoost's `missing` and the maximum as `norm_type`."""

_REAL = re.compile(
    r"(prob|probs|ratio|weight|weights|factor|reg|rate|max|min|resolution|hours|liked_from)$|dropout|alpha|beta|gamma|^q$"
)
"""Names of parameters that are numbers though their default is a whole one."""

_REPEATED = re.compile(r"layer|hop|depth|head|n_iter|block_num|order$")
"""Names of whole numbers for each of which something is built or computed anew."""

LARGEST_SIZE, MOST_LAYERS, LARGEST_NUMBER = 10**9, 1000, 1e30
"""Bounds of a model's parameters: beyond them nothing ends, or a float32 has no such number."""

_NULL_TOO = frozenset({"rerank_k", "prompts_per_epoch", "comparative_instances", "sft_targets", "collapse_patience"})
"""Whole numbers of ours that may be null though their default is not: all there are, or never."""


def normalized(settings: Mapping[str, Any], parameters: Mapping[str, Kind] = {}) -> dict[str, Any]:
    """Settings with each value as what it stands for (see the module's docstring); `parameters` are a model's own."""
    kinds = {**parameters, **ALL_KINDS}
    return {key: kinds[key].normal(value) if key in kinds else value for key, value in settings.items()}


def parameter_kinds(of_recbole: Mapping[str, Any], of_ours: Mapping[str, Any] = {}) -> dict[str, Kind]:
    """Kinds of a model's own parameters, which its defaults tell: that of the default, not below 0 where that is not.

    Models of ours say themselves what is too small.

    Args:
        of_recbole, of_ours: default of each, by RecBole's and by our property file.

    >>> parameter_kinds({"n_layers": 2, "dropout_prob": 0, "mlp_hidden_size": [64]})["dropout_prob"].words
    'a number of at least 0, up to 1e+30'
    """
    theirs = {key: _kind_like(key, value) for key, value in of_recbole.items()}
    ours = {key: _kind_like(key, value, bounded=False) for key, value in of_ours.items()}
    return {key: kind for key, kind in {**theirs, **ours}.items() if kind is not None and key not in ALL_KINDS}


def _kind_like(name: str, default: Any, bounded: bool = True) -> Kind | None:
    """Kind of a parameter; None where its default, null or an empty list, tells none."""
    if name in _NULL_TOO:
        return _or_null(_up_to(LARGEST_SIZE))
    if isinstance(default, bool):
        return _FLAG
    if isinstance(default, int) and not _REAL.search(name):
        high = MOST_LAYERS if _REPEATED.search(name) else LARGEST_SIZE
        return _from_to(0, high) if bounded and default >= 0 else _up_to(high)
    if isinstance(default, (int, float)):
        return _between(0.0 if bounded and default >= 0 else -LARGEST_NUMBER, LARGEST_NUMBER)
    if isinstance(default, str):
        return _or_null(Kind(lambda value: isinstance(value, str), "a text"))
    if isinstance(default, dict):
        parts = {key: _kind_like(key, value, bounded) for key, value in default.items()}
        return Kind(partial(_has_parts, parts), f"a mapping such as {shown(default)}")
    entry = _kind_like(name, default[0], bounded) if isinstance(default, list) and default else None
    return None if entry is None else _list_of(entry.accepts, f"a list, each entry {entry.words}")


def _has_parts(parts: Mapping[str, Kind | None], value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(kind is None or key not in value or kind.accepts(value[key]) for key, kind in parts.items())


def check_settings(settings: Mapping[str, Any], parameters: Mapping[str, Kind] = {}) -> None:
    """Check the kind of every setting, and that those of the evaluation fit together.

    Args:
        settings: normalized.
        parameters: kinds of the model's own.

    Raises:
        ConfigError: naming the first setting that does not, and what it accepts.
    """
    for key, kind in {**parameters, **ALL_KINDS}.items():
        if key in settings:
            check_kind(key, settings[key], kind)
    for key in settings.keys() - MAY_BE_ENDLESS:
        if not _is_finite(settings[key]):
            raise ConfigError(f"{key}: {shown(settings[key])} holds a number that is not finite; give another")
    _check_fields(settings)
    _check_negatives(settings.get("train_neg_sample_args"))
    _check_eval_args(settings["eval_args"])
    _check_metrics(settings)


def check_kind(key: str, value: Any, kind: Kind) -> None:
    """Check a value.

    Raises:
        ConfigError: it is not of this kind.
    """
    if not kind.accepts(value):
        given = "what is given" if key in NOT_SHOWN else shown(value)
        raise ConfigError(f"{key}: {given} is not accepted; give {kind.words}")


def shown(value: Any, most: int = 200) -> str:
    """A value in a message, cut where it is long."""
    try:
        return abridged(repr(value), most)
    except ValueError:  # a whole number of thousands of digits
        return "a number of thousands of digits"


def abridged(text: str, most: int = 200) -> str:
    """A text in a message, cut where it is long."""
    return text if len(text) <= most else f"{text[:most]}..."


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _check_fields(settings: Mapping[str, Any]) -> None:
    """One column cannot be two things."""
    keys = [key for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "LABEL_FIELD") if key in settings]
    for place, key in enumerate(keys):
        for other in keys[:place]:
            if settings[key] == settings[other]:
                raise ConfigError(f"{key} and {other} are both {settings[key]!r}; give each a column of its own")


_NEGATIVES: dict[str, Kind] = {
    "distribution": _choice("uniform", "popularity", "none", None),
    "sample_num": _whole(1),
    "alpha": _NOT_NEGATIVE,
    "dynamic": _FLAG,
    "candidate_num": _whole(0),
}
"""Parts of `train_neg_sample_args`."""


def _check_negatives(arguments: Any) -> None:
    key = "train_neg_sample_args"
    if arguments is None or arguments == "None":
        return
    if not isinstance(arguments, dict):
        raise ConfigError(
            f"{key}: {shown(arguments)} is not accepted; give a mapping such as {{sample_num: 1}}, or null"
        )
    for part in arguments:
        if part not in _NEGATIVES:
            raise ConfigError(f"{key}: {part!r} is not accepted; give {', '.join(_NEGATIVES)}")
    if arguments.get("distribution", "uniform") in (None, "none"):
        return  # nothing is drawn, and a run's config.yaml says none of the other parts, too
    for part, value in arguments.items():
        if not _NEGATIVES[part].accepts(value):
            raise ConfigError(f"{key}: {part}: {shown(value)} is not accepted; give {_NEGATIVES[part].words}")
    if arguments.get("dynamic") and not arguments.get("candidate_num"):
        raise ConfigError(f"{key}: dynamic: True draws the hardest of candidate_num items; give at least 1")


_SPLITS = {"RS", "LS", "TS"}
_LEAVE_ONE_OUT = ("valid_and_test", "valid_only", "test_only")


def _check_eval_args(eval_args: Mapping[str, Any]) -> None:
    unknown = sorted(set(map(str, eval_args)) - {"split", "order", "group_by", "mode"})
    if unknown:
        raise ConfigError(f"eval_args: {unknown[0]!r} is not accepted; give split, order, group_by, mode")
    split, order, group_by = eval_args.get("split"), eval_args.get("order"), eval_args.get("group_by")
    if not isinstance(split, dict) or len(split) != 1 or not set(split) <= _SPLITS:
        raise ConfigError(
            f"eval_args: split: {split!r} is not accepted; give LS, RS or TS, as in {{LS: valid_and_test}}"
        )
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
