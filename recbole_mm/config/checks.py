"""The settings of a run, checked: each by its kind, and those of the evaluation and the training together."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recbole.evaluator import metric_types
from recbole.model.abstract_recommender import AutoEncoderMixin
from recbole.utils import EvaluatorType, InputType, ModelType

from recbole_mm.config.kinds import FLAG, Kind, choice, is_list_of, is_number, kind_like, number, shown, whole
from recbole_mm.config.recbole_keys import OF_RECBOLE_MODELS, declared_for
from recbole_mm.config.schema import Setting
from recbole_mm.config.settings import SETTINGS
from recbole_mm.config.split import SplitArguments
from recbole_mm.errors import ConfigError


def settings_of(
    declared: Mapping[str, Setting], of_recbole: Mapping[str, Any], of_ours: Mapping[str, Any] = {}
) -> dict[str, Setting]:
    """The settings of a model by name: those of every model, those that its class declares, and those that only its
    property files name, whose kind their defaults tell.

    Args:
        declared: by the model's class.
        of_recbole, of_ours: what RecBole's and our property file of the model say.

    >>> settings_of({}, {"n_layers": 2, "dropout_prob": 0})["dropout_prob"].kind.words
    'a number of at least 0, up to 1e+30'
    """
    kinds = {key: kind_like(key, value) for key, value in of_recbole.items()}
    kinds |= {key: kind_like(key, value, bounded=False) for key, value in of_ours.items()}
    found = {key: Setting(key, kind) for key, kind in kinds.items()}
    for key, setting in OF_RECBOLE_MODELS.items():
        found[key] = setting if setting.kind is not None else replace(setting, kind=kinds.get(key))
    return {**found, **SETTINGS, **declared}


def normalized(values: Mapping[str, Any], settings: Mapping[str, Setting] = SETTINGS) -> dict[str, Any]:
    """Values as what they stand for: a single name as the list of it alone, `~` as the home folder.

    >>> normalized({"topk": 10, "checkpoint_dir": "saved"})
    {'topk': [10], 'checkpoint_dir': 'saved'}
    """
    return {key: settings[key].normal(value) if key in settings else value for key, value in values.items()}


def check_settings(values: Mapping[str, Any], settings: Mapping[str, Setting] = SETTINGS) -> None:
    """Check the kind of every value, and that those of the evaluation fit together.

    Args:
        values: of a run, normalized.
        settings: of its model.

    Raises:
        ConfigError: naming the first setting that does not, and what it accepts.
    """
    for key, setting in settings.items():
        if key in values:
            setting.check(values[key])
    for key, value in values.items():
        if not (_is_finite(value) or (key in settings and not settings[key].finite)):
            raise ConfigError(f"{key}: {shown(value)} holds a number that is not finite; give another")
    _check_fields(values)
    _check_negatives(values.get("train_neg_sample_args"))
    _check_eval_args(values["eval_args"])
    _check_cold_items(values)
    _check_metrics(values)
    _check_epochs(values)
    _check_missing(values)


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
    "distribution": choice("uniform", "popularity", "none", None),
    "sample_num": whole(1),
    "alpha": number(0),
    "dynamic": FLAG,
    "candidate_num": whole(0),
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


_SPLITS = {"RS", "LS", "TS", "cold_items"}
_LEAVE_ONE_OUT = ("valid_and_test", "valid_only", "test_only")


def _check_eval_args(eval_args: Mapping[str, Any]) -> None:
    unknown = sorted(set(map(str, eval_args)) - {"split", "order", "group_by", "mode"})
    if unknown:
        raise ConfigError(f"eval_args: {unknown[0]!r} is not accepted; give split, order, group_by, mode")
    split, order, group_by = eval_args.get("split"), eval_args.get("order"), eval_args.get("group_by")
    if not isinstance(split, dict) or len(split) != 1 or not set(split) <= _SPLITS:
        raise ConfigError(
            f"eval_args: split: {split!r} is not accepted; give LS, RS, TS or cold_items, as in {{LS: valid_and_test}}"
        )
    ((way, parts),) = split.items()
    if way == "LS" and parts not in _LEAVE_ONE_OUT:
        raise ConfigError(f"eval_args: split: LS: {parts!r} is not accepted; give one of {', '.join(_LEAVE_ONE_OUT)}")
    if way != "LS" and not (is_list_of(parts, lambda part: is_number(part) and part >= 0) and len(parts) == 3):
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


def _check_cold_items(settings: Mapping[str, Any]) -> None:
    """What goes with a split that holds out items."""
    cold, candidates = "cold_items" in settings["eval_args"]["split"], settings.get("candidates")
    if candidates == "cold" and not cold:
        raise ConfigError("candidates: cold ranks the items of eval_args.split: {cold_items: ...}; give that, too")
    mode = settings["eval_args"].get("mode")
    if candidates == "cold" and set(mode.values() if isinstance(mode, dict) else [mode]) != {"full"}:
        raise ConfigError("candidates: cold ranks all held-out items; give eval_args.mode: full")
    if cold and settings.get("positives") == "popular":
        raise ConfigError("positives: popular chooses the last of a user's items, not held-out ones; give last")


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


def _check_epochs(settings: Mapping[str, Any]) -> None:
    traditional = str(settings.get("MODEL_TYPE")).endswith("TRADITIONAL")
    if settings.get("epochs") == 0 and settings.get("load_best_model") and not traditional:
        raise ConfigError("epochs: 0 leaves no best weights; give --load_best_model=False to test an untrained model")


def _check_missing(settings: Mapping[str, Any]) -> None:
    """Items that go without contents on purpose stay in the data."""
    policy = settings.get("missing_modality") or "mask"
    if settings.get("missing_rate") and policy != "mask":
        raise ConfigError(
            f"missing_modality: {policy} does not go with missing_rate, whose items stay in the data; give mask"
        )


def split_rule(settings: Any) -> int | None:
    """Number of the rule by which interactions are split, as of `SplitArguments`; labels have the second one, for what
    they say of rows has changed with it.

    Args:
        settings: of a run.

    Raises:
        ConfigError: `eval_args` do not fit together, or do not fit a model of sequences.
    """
    split = SplitArguments.from_arguments(settings["eval_args"], settings["MODEL_TYPE"], settings["seed"])
    columns = (settings["load_col"] or {}).get("inter") or ()
    return 2 if settings["threshold"] or settings["LABEL_FIELD"] in columns else split.rule


def rerank_rule(settings: Any) -> int | None:
    """Number of the rule by which a reranker chooses the items that it asks about; None where there is one rule alone.

    Rerankers chose among all items once, also where `candidates: cold` ranks a part of them: such runs are others.

    Example:
        >>> rerank_rule({"candidates": "cold", "rerank_k": 20}), rerank_rule({"candidates": "cold"})
        (2, None)
    """
    return 2 if settings["candidates"] == "cold" and "rerank_k" in settings else None


def check_sampling(settings: Any, model_class: type, sequences: bool) -> None:
    """Check that items are sampled for a loss that needs them; RecBole's models end in a KeyError otherwise.

    Args:
        settings: of a run, resolved.
        model_class: of its model.
        sequences: whether whole sequences are trained on, which bring their negatives.

    Raises:
        ConfigError: `loss_type` is none of RecBole's, or nothing is drawn for a model that needs it.
    """
    if "MODEL_INPUT_TYPE" not in settings:
        raise ConfigError(f"loss_type: {shown(settings['loss_type'])} is not accepted; give CE or BPR")
    if settings["train_neg_sample_args"]["distribution"] != "none":
        return
    pairs = settings["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and not issubclass(model_class, AutoEncoderMixin)
    if settings["MODEL_TYPE"] == ModelType.KNOWLEDGE or (pairs and not sequences):
        loss = f" with loss_type: {settings['loss_type']}" if "loss_type" in settings else ""
        raise ConfigError(
            f"train_neg_sample_args: {settings['model']}{loss} learns from pairs of a chosen and a sampled item; give "
            "{distribution: uniform, sample_num: 1}, or leave it out"
        )


def check_sequence_loss(settings: Any, sequences: bool) -> None:
    """Check that a loss of full sequences has full sequences.

    Args:
        settings: of a run, resolved, as its `Config`.
        sequences: whether the run trains on them.

    Raises:
        ConfigError: it has none; prefixes are trained on by `loss_type`.
    """
    loss = settings["full_sequence_loss"]
    known = "full_sequence_loss" in declared_for(settings.model_class)
    if known and loss is not None and not sequences:
        raise ConfigError(
            f"full_sequence_loss: {loss} is a loss of whole sequences: give full_sequence: True as well, or loss_type "
            "(CE or BPR) alone"
        )


LONGEST_DATASET = 150
"""Bytes of a dataset's name: with a model's and more it makes the names of files and folders."""


def check_dataset_name(name: Any) -> None:
    """Check the name of a dataset, which is a folder's.

    Raises:
        ConfigError: it is none, or so long that files and run folders could not be named.
    """
    named = isinstance(name, str) and name not in ("", ".", "..") and name.isprintable()
    if not named or set("/\\") & set(name):
        raise ConfigError(f"dataset: {shown(name)} is not a folder's name; give the folder above it as data_path")
    if len(os.fsencode(name)) > LONGEST_DATASET:
        raise ConfigError(
            f"dataset: {shown(name, 50)} has {len(os.fsencode(name))} bytes, and its files and run folders could not "
            f"be named; give a name of at most {LONGEST_DATASET}"
        )
