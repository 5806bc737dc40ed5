"""The settings of one run: RecBole's Config, layered by recbole_mm.

    >>> config = Config("SASRec", "ml-100k", config_dict={"topk": [5, 10]})
    >>> config["topk"], config["eval_args"]["split"], config["train_neg_sample_args"]["distribution"]
    ([5, 10], {'LS': 'valid_and_test'}, 'none')

Layers, later wins: RecBole's overall and sample settings < our `properties/overall.yaml` < RecBole's settings of the
model, of the dataset, and its quick start by model type < our `properties/model/<Model>.yaml` < our
`properties/dataset/<dataset>.yaml` < the dataset folder's own `<dataset>.yaml` < config files < config_dict
< command line.

Unlike RecBole's, this Config reads nothing from `sys.argv`, evaluates no value as Python, leaves CUDA_VISIBLE_DEVICES
and process groups alone, and keeps nothing in module globals: two configs in one process never influence each other.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config as RecboleConfig
from recbole.model.abstract_recommender import AutoEncoderMixin
from recbole.utils import EvaluatorType, InputType, ModelType

import recbole_mm
from recbole_mm.config.dataset_files import atomic_files, check_atomic_files, check_dataset_yaml, feature_files
from recbole_mm.config.layers import (
    dataset_dir,
    default_layers,
    keys_read_by,
    merge,
    merge_defaults,
    model_settings,
    properties_dir,
    sample_settings,
)
from recbole_mm.config.schema import KINDS, check_kind, check_settings, normalized, parameter_kinds, shown
from recbole_mm.config.split import SplitArguments
from recbole_mm.config.yaml_settings import NOBODY, SEAL_LINE, parse_argument, plain, read_yaml, write_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.registry import find_model
from recbole_mm.utils.files import write_text
from recbole_mm.utils.paths import LONGEST_NAME, expanded

__all__ = ["Config", "properties_dir"]

logger = logging.getLogger(__name__)

_ENUMS: dict[str, type[Enum]] = {"MODEL_TYPE": ModelType, "MODEL_INPUT_TYPE": InputType, "eval_type": EvaluatorType}

DERIVED_KEYS = frozenset(
    {*_ENUMS, "device", "single_spec", "local_rank", "valid_metric_bigger"}
    | {"valid_neg_sample_args", "test_neg_sample_args", "data_files", "feature_files", "split_rule"}
)
"""Settings that follow from others, or from the data. They are written to config.yaml, and never taken from a layer."""

_PICKLED = "RecBole would pickle the data; here it is read from its files in every run"
_NEVER_READ = {
    "save_dataset": _PICKLED,
    "dataset_save_path": _PICKLED,
    "save_dataloaders": _PICKLED,
    "dataloaders_save_path": _PICKLED,
    "enable_scaler": "losses are scaled where enable_amp needs it",
    "POSITION_FIELD": "no model reads it",
    "world_size": "give train_workers to train in several processes",
}
_NOT_ON_FULL_SEQUENCES = {
    "train_neg_sample_args": "whole sequences are trained on, and negatives come with them",
    "transform": "whole sequences are trained on, and no sample of one is transformed",
    "worker": "whole sequences are trained on, and batches of them are cut in place",
}
"""Settings of RecBole's that nothing reads, or nothing where whole sequences are trained on, and why."""

LONGEST_DATASET = 150
"""Bytes of a dataset's name: with a model's and more it makes the names of files and folders."""

CONTENT_KEYS = frozenset(
    {"modalities", "text_fields", "text_template", "max_text_chars", "image_dir", "image_field", "image_zip"}
    | {"missing_modality", "item_features", "selected_features", "item_attribute", "source_url", "prepare_hint"}
    | {"item_domain", "encoding"}
)
"""What a dataset folder's own YAML may set beside RecBole's settings of a dataset."""


NOT_FROM_A_RUN = {"trust_remote_code": False, "ray_address": None, "text_url": NOBODY, "text_api_key_env": None}
"""Settings that a run's folder may not decide when it is opened, and what they are then: they run code that is not
ours, or send texts, pictures and keys to other machines. A run folder may have come from anybody."""


def opener_settings(config: RecboleConfig) -> dict[str, Any]:
    """What a run that opens the folder of another one, or its own, has for the settings of `NOT_FROM_A_RUN`."""
    return {key: config[key] or default for key, default in NOT_FROM_A_RUN.items()}


class Config(RecboleConfig):
    """Every setting of a run, readable as `config["key"]` (None where unknown) or `config.key`.

    Args:
        model: name of a registered model, or a RecBole model class; None takes `model` from the layers a user gives.
        dataset: name of the dataset, which is also its folder's name; None as for `model`.
        config_files: YAML file, or several of which a later one wins.
        config_dict: settings as Python values.
        command_line: settings as text, `{"topk": "[5,10]"}`, read as YAML.

    Attributes:
        final_config_dict: every setting, resolved.
        external_config_dict: what the user gave (config files, config_dict and command line merged).
        model_class: the model's class.

    Raises:
        ConfigError: an unknown model, a file that is not a YAML mapping, or a value of the wrong kind.
    """

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_files: str | Path | Sequence[str | Path] = (),
        config_dict: Mapping[str, Any] | None = None,
        command_line: Mapping[str, Any] | None = None,
    ) -> None:
        typed = dict(command_line or {})
        self._init_parameters_category()
        paths = [config_files] if isinstance(config_files, (str, Path)) else config_files
        self.file_config_dict = _without_derived(merge(*(read_yaml(Path(path)) for path in paths)))
        self.variable_config_dict = _warn_derived(merge(config_dict or {}))
        # How the command line reads depends on the defaults beneath it, and those depend on these three.
        self.cmd_config_dict: dict[str, Any] = {
            key: parse_argument(key, typed[key]) for key in typed if key in ("model", "dataset", "data_path")
        }
        self._merge_external_config_dict()
        self.model, self.model_class, self.dataset = self._get_model_and_dataset(model, dataset)
        self._load_internal_config_dict(self.model, self.model_class, self.dataset)
        defaults = self.internal_config_dict
        self.cmd_config_dict = _warn_derived({key: parse_argument(key, typed[key], defaults.get(key)) for key in typed})
        self._merge_external_config_dict()
        self._warn_unknown_keys()
        parameters = parameter_kinds(*model_settings(self.model, self.model_class))
        self.final_config_dict = normalized(self._get_final_config_dict(), parameters)
        check_settings(self.final_config_dict, parameters)
        try:
            self._set_default_parameters()
            self._set_train_neg_sample_args()
            self._set_eval_neg_sample_args("valid")
            self._set_eval_neg_sample_args("test")
        except (ValueError, TypeError, KeyError, RuntimeError) as error:  # how RecBole refuses a setting
            raise ConfigError(f"RecBole does not accept these settings: {' '.join(str(error).split())}") from error
        self._check_negatives()
        self._warn_without_effect()
        if rule := self._split_rule():
            self.final_config_dict["split_rule"] = rule
        self.final_config_dict.update(self.current_files())
        self._init_device()

    # ---- layers ----

    def _init_parameters_category(self) -> None:
        """RecBole's groups of settings for printing, copied: RecBole itself appends to the lists of a module."""
        super()._init_parameters_category()
        groups: dict[str, list[str]] = {group: list(keys) for group, keys in vars(self)["parameters"].items()}
        grouped = {key for keys in groups.values() for key in keys}
        self.parameters = groups | {"Multimodal": [key for key in KINDS if key not in grouped]}

    def _merge_external_config_dict(self) -> None:
        given = merge(self.file_config_dict, self.variable_config_dict, self.cmd_config_dict)
        self.external_config_dict = normalized(given)

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        model = self.external_config_dict.get("model") if model is None else model
        dataset = self.external_config_dict.get("dataset") if dataset is None else dataset
        if model is None:
            raise ConfigError("no model is given; add --model=NAME (`recbole-mm models` lists them)")
        if dataset is None:
            raise ConfigError("no dataset is given; add --dataset=NAME, the name of a folder under data_path")
        named = isinstance(dataset, str) and dataset not in ("", ".", "..") and dataset.isprintable()
        if not named or set("/\\") & set(dataset):
            raise ConfigError(
                f"dataset: {shown(dataset)} is not a folder's name; give the folder above it as data_path"
            )
        if len(os.fsencode(dataset)) > LONGEST_DATASET:
            raise ConfigError(
                f"dataset: {shown(dataset, 50)} has {len(os.fsencode(dataset))} bytes, and its files and run "
                f"folders could not be named; give a name of at most {LONGEST_DATASET}"
            )
        if isinstance(model, type):
            if not isinstance(_stated(model, "type"), ModelType):
                raise ConfigError(f"model class {model.__name__} has no attribute `type` (a recbole.utils.ModelType)")
            return model.__name__, model, dataset
        entry = find_model(str(model)[:LONGEST_NAME])
        return entry.name, entry.load(), dataset

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        """Everything beneath what the user gives, in the order of the module's docstring."""
        defaults = default_layers(model, model_class, dataset)
        self._data_root = expanded(str(self.external_config_dict.get("data_path") or defaults["data_path"]))
        check_kind("data_path", self._data_root, KINDS["data_path"])
        self.internal_config_dict = normalized(merge_defaults(defaults, self._dataset_folder_layer(dataset)))
        self.internal_config_dict["MODEL_TYPE"] = model_class.type  # type: ignore[attr-defined]

    def _dataset_folder_layer(self, dataset: str) -> dict[str, Any]:
        """`<dataset>.yaml` in the dataset's own folder; it comes with the data and may speak of nothing else.

        It names no file outside of the folder, no model, no server and no environment variable.
        """
        path = dataset_dir(self._data_root, dataset) / f"{dataset}.yaml"
        check_atomic_files(path.parent, dataset)
        if not path.is_file():
            return {}
        layer = read_yaml(path)
        about_data = {*self.parameters["Dataset"], *sample_settings(), *CONTENT_KEYS}
        foreign = sorted(set(layer) - about_data)
        if foreign:
            raise ConfigError(f"{path}: {foreign[0]!r} does not describe the data; move it to a file of --config_files")
        check_dataset_yaml(path, layer)
        return layer

    def _warn_unknown_keys(self) -> None:
        """One warning per key that the user gave and nothing reads, with the nearest name that something does."""
        known = {"model", "dataset", "load_col", *self.internal_config_dict, *KINDS, *DERIVED_KEYS}
        known.update(key for keys in self.parameters.values() for key in keys)
        if set(self.external_config_dict) <= known:
            return
        known |= keys_read_by(self.model_class)
        for key in self.external_config_dict:
            if key not in known:
                near = difflib.get_close_matches(key, sorted(known), n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                logger.warning("setting %r is unknown to %s and has no effect%s", key, self.model, hint)

    # ---- resolving ----

    def _get_final_config_dict(self) -> dict[str, Any]:
        final = merge(self.internal_config_dict, self.external_config_dict)
        columns = [final["USER_ID_FIELD"], final["ITEM_ID_FIELD"]]
        if isinstance(final["eval_args"], dict) and final["eval_args"].get("order") == "TO":
            columns.append(final["TIME_FIELD"])
        final.setdefault("load_col", {"inter": columns})
        return final

    def _set_default_parameters(self) -> None:
        """RecBole's checks and derived values, after the two cases in which it would refuse its own defaults."""
        final = self.final_config_dict
        negatives = final.get("train_neg_sample_args")
        if isinstance(negatives, dict) and negatives.get("distribution", "uniform") in (None, "none"):
            final["train_neg_sample_args"] = None
        if (
            final["MODEL_TYPE"] == ModelType.SEQUENTIAL
            and final.get("loss_type") == "CE"
            and _stated(self.model_class, "input_type") is None
            and "train_neg_sample_args" not in self.external_config_dict
        ):
            final["train_neg_sample_args"] = None
        super()._set_default_parameters()
        final["dataset"], final["model"] = self.dataset, self.model
        final["data_path"] = str(dataset_dir(self._data_root, self.dataset))

    def _check_negatives(self) -> None:
        """A loss against sampled items needs them drawn; where nobody does, RecBole's models end in a KeyError.

        Raises:
            ConfigError: `loss_type` is none of RecBole's, or nothing is drawn for a model that needs it.
        """
        final = self.final_config_dict
        if "MODEL_INPUT_TYPE" not in final:
            raise ConfigError(f"loss_type: {shown(final['loss_type'])} is not accepted; give CE or BPR")
        if final["train_neg_sample_args"]["distribution"] != "none":
            return
        pairs = final["MODEL_INPUT_TYPE"] == InputType.PAIRWISE and not issubclass(self.model_class, AutoEncoderMixin)
        if final["MODEL_TYPE"] == ModelType.KNOWLEDGE or (pairs and not self._trains_on_full_sequences()):
            loss = f" with loss_type: {final['loss_type']}" if "loss_type" in final else ""
            raise ConfigError(
                f"train_neg_sample_args: {self.model}{loss} learns from pairs of a chosen and a sampled item; give "
                "{distribution: uniform, sample_num: 1}, or leave it out"
            )

    def _split_rule(self) -> int | None:
        """`SplitArguments.rule`, which is the second one for labels, too: what they say of rows has changed with it."""
        split = SplitArguments.from_arguments(self["eval_args"], self["MODEL_TYPE"], self["seed"])
        rule, columns = split.rule, (self["load_col"] or {}).get("inter") or ()
        return 2 if self["threshold"] or self["LABEL_FIELD"] in columns else rule

    def _trains_on_full_sequences(self) -> bool:
        return bool(self["full_sequence"] or _stated(self.model_class, "trains_on_full_sequences"))

    def _warn_without_effect(self) -> None:
        """One warning per setting that the user gave, that RecBole knows, and that nothing reads here."""
        defaults = self.internal_config_dict
        given = {key for key, value in self.external_config_dict.items() if value != defaults.get(key)}
        reasons = {key: reason for key, reason in _NEVER_READ.items() if key in given}
        if self._trains_on_full_sequences():
            reasons |= {key: reason for key, reason in _NOT_ON_FULL_SEQUENCES.items() if key in given}
        if self.final_config_dict["train_neg_sample_args"]["distribution"] == "none":
            reasons.pop("train_neg_sample_args", None)
        for key, reason in reasons.items():
            logger.warning("setting %r has no effect: %s", key, reason)

    def current_files(self) -> dict[str, dict[str, str]]:
        """What the files of the dataset and of `item_features` hold now: `data_files` and `feature_files`, each name ->
        digest. Of a run's config, the settings of these names are what they held then."""
        folder, final = Path(self.final_config_dict["data_path"]), self.final_config_dict
        return {
            "data_files": atomic_files(folder, self.dataset, final.get("additional_feat_suffix")),
            "feature_files": feature_files(folder, final.get("item_features")),
        }

    def _init_device(self) -> None:
        """Set `device` from `use_gpu` and the first of `gpu_id`; no environment variable, no process group."""
        final = self.final_config_dict
        numbers = final["gpu_id"] if isinstance(final["gpu_id"], list) else [final["gpu_id"]]
        final["gpu_id"] = ",".join(str(number) for number in numbers if number is not None)
        final["single_spec"], final["local_rank"] = True, 0
        final["device"] = torch.device("cpu")
        if final["use_gpu"] and final["gpu_id"] and torch.cuda.is_available():
            first, count = int(final["gpu_id"].split(",")[0]), torch.cuda.device_count()
            if first >= count:
                raise ConfigError(f"gpu_id: there is no GPU {first}; this machine has {count}, counted from 0")
            final["device"] = torch.device(f"cuda:{first}")

    # ---- saving ----

    def as_dict(self) -> dict[str, Any]:
        """Every setting as plain values; `data_path` is as a user gives it, without the dataset's own folder."""
        names = ["model", "dataset", *sorted(set(self.final_config_dict) - {"model", "dataset"})]
        settings = {}
        for name in names:
            value = self.final_config_dict[name]
            if isinstance(value, Enum):
                value = value.name
            settings[name] = str(value) if isinstance(value, torch.device) else plain(name, value)
        settings["data_path"] = self._data_root
        return settings

    def save(self, path: str | Path) -> None:
        """Write every setting to a YAML file that `Config.load` and `--config_files` read.

        Raises:
            DiskError: it cannot be written.
        """
        path = Path(path)
        header = (
            f"# Run it again:  recbole-mm run --config_files={path.name}    (recbole_mm {recbole_mm.__version__})\n"
        )
        write_text(path, f"{SEAL_LINE}{header}{write_yaml(self.as_dict())}")

    @classmethod
    def load(cls, path: str | Path, model: type | None = None, changed: Mapping[str, Any] | None = None) -> Config:
        """Read back what `save` wrote; no layer is consulted, so newer defaults change nothing.

        Only two values are found anew, for this machine: the device, and the folder of the ml-100k that RecBole ships.
        The file is followed wherever it leads, as one of `config_files` is: to data, models, servers, code. Whoever
        opens a folder that came from somebody else changes the settings of `NOT_FROM_A_RUN`, as `recbole_mm.load` does.

        Args:
            path: the YAML file, or the run folder that holds it as config.yaml.
            model: the model's class, needed only where it was never registered.
            changed: settings that are others here.

        Raises:
            ConfigError: the file is missing, malformed, or names a model that is not registered.
        """
        path = Path(expanded(str(path)))
        path = path / "config.yaml" if path.is_dir() else path
        final = normalized({**read_yaml(path), **(changed or {})})
        needed = {"model", "dataset", "data_path", "gpu_id", "use_gpu", "eval_args", "metrics", "topk", "valid_metric"}
        missing = sorted((needed | {"MODEL_TYPE", "eval_type"}) - set(final))
        if missing:
            raise ConfigError(f"{path} is not the config of a run: it lacks {missing[0]!r}")
        check_settings(final)
        for key in set(_ENUMS) & set(final):
            members = _ENUMS[key].__members__
            if final[key] not in members:
                raise ConfigError(f"{path}: {key}: {final[key]!r} is not accepted; give one of {', '.join(members)}")
            final[key] = members[final[key]]
        config = cls.__new__(cls)
        config._init_parameters_category()
        config.file_config_dict, config.variable_config_dict, config.cmd_config_dict = {}, {}, {}
        config.internal_config_dict, config.external_config_dict = {}, {}
        config.final_config_dict = final
        config.model, config.model_class, config.dataset = config._get_model_and_dataset(
            model or final["model"], final["dataset"]
        )
        config._data_root = str(final["data_path"])
        final["data_path"] = str(dataset_dir(config._data_root, config.dataset))
        check_atomic_files(Path(final["data_path"]), config.dataset)
        if config["split_rule"] != config._split_rule():
            raise ConfigError(
                f"{path}: the interactions of this run were split by the rule of an earlier version, so it may have "
                "been trained on what is held out now; run it again"
            )
        config._init_device()
        return config

    def __str__(self) -> str:
        """Every setting by group, without RecBole's colors, which would end up in files."""
        return re.sub(r"\x1b\[[0-9;]*m", "", super().__str__())


def _stated(model_class: type, name: str) -> Any:
    """An attribute that a class or one of its bases states; None for none."""
    return next((vars(owner)[name] for owner in model_class.__mro__ if name in vars(owner)), None)


def _without_derived(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what follows from other settings; a run's config.yaml, given as a config file, holds it."""
    return {key: value for key, value in settings.items() if key not in DERIVED_KEYS}


def _warn_derived(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `_without_derived` does, and warn: a user who types `--device` must learn that it has no effect."""
    for key in sorted(DERIVED_KEYS & set(settings)):
        hint = "; give use_gpu and gpu_id" if key == "device" else ""
        logger.warning("setting %r follows from others and has no effect%s", key, hint)
    return _without_derived(settings)
