"""The settings of one run: RecBole's Config, layered by recbole_mm.

    >>> config = Config("SASRec", "ml-100k", config_dict={"topk": [5, 10]})
    >>> config["topk"], config["eval_args"]["split"], config["train_neg_sample_args"]["distribution"]
    ([5, 10], {'LS': 'valid_and_test'}, 'none')

Layers, later wins: RecBole's overall and sample settings < our `properties/overall.yaml` < RecBole's settings of the
model, of the dataset, and its quick start by model type < the defaults that the model's class declares < our
`properties/model/<Model>.yaml` < our `properties/dataset/<dataset>.yaml` < the dataset folder's own `<dataset>.yaml`
< config files < config_dict < command line.

Unlike RecBole's, this Config reads nothing from `sys.argv`, evaluates no value as Python, leaves CUDA_VISIBLE_DEVICES
and process groups alone, and keeps nothing in module globals: two configs in one process never influence each other.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config as RecboleConfig
from recbole.utils import EvaluatorType, InputType, ModelType

import recbole_mm
from recbole_mm.config.checks import (
    check_dataset_name,
    check_sampling,
    check_sequence_loss,
    check_settings,
    normalized,
    rerank_rule,
    settings_of,
    split_rule,
)
from recbole_mm.config.dataset_files import atomic_files, check_atomic_files, feature_files
from recbole_mm.config.layers import (
    dataset_dir,
    dataset_folder_layer,
    default_layers,
    merge,
    merge_defaults,
    model_settings,
    properties_dir,
)
from recbole_mm.config.recbole_keys import OF_RECBOLE_MODELS, declared_for, unlisted
from recbole_mm.config.schema import UNSET, Setting
from recbole_mm.config.settings import DERIVED, NOT_FROM_A_RUN, SETTINGS
from recbole_mm.config.yaml_settings import SEAL_LINE, parse_argument, plain, read_yaml, write_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.registry import find_model
from recbole_mm.utils.files import write_text
from recbole_mm.utils.paths import LONGEST_NAME, expanded
from recbole_mm.utils.spelling import did_you_mean

__all__ = ["Config", "properties_dir"]

logger = logging.getLogger(__name__)

_DECLARING = ("recbole", "recbole_mm")
"""Packages whose models have all of their settings declared."""

_ENUMS: dict[str, type[Enum]] = {"MODEL_TYPE": ModelType, "MODEL_INPUT_TYPE": InputType, "eval_type": EvaluatorType}


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
        settings: what is known of each setting of the model, by name.

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
        self.settings: dict[str, Setting] = SETTINGS
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
        self.settings = settings_of(declared_for(self.model_class), *model_settings(self.model, self.model_class))
        self._load_internal_config_dict(self.model, self.model_class, self.dataset)
        defaults = self.internal_config_dict
        self.cmd_config_dict = _warn_derived(
            {key: parse_argument(key, typed[key], defaults.get(key), self.settings) for key in typed}
        )
        self._merge_external_config_dict()
        self._warn_unknown_keys()
        self.final_config_dict = normalized(self._get_final_config_dict(), self.settings)
        check_settings(self.final_config_dict, self.settings)
        try:
            self._set_default_parameters()
            self._set_train_neg_sample_args()
            self._set_eval_neg_sample_args("valid")
            self._set_eval_neg_sample_args("test")
        except (ValueError, TypeError, KeyError, RuntimeError) as error:  # how RecBole refuses a setting
            raise ConfigError(f"RecBole does not accept these settings: {' '.join(str(error).split())}") from error
        check_sampling(self, self.model_class, self._trains_on_full_sequences())
        check_sequence_loss(self, self._trains_on_full_sequences())
        self._warn_without_effect()
        if rule := split_rule(self):
            self.final_config_dict["split_rule"] = rule
        if rule := rerank_rule(self.final_config_dict):
            self.final_config_dict["rerank_rule"] = rule
        self.final_config_dict.update(self.current_files())
        self._init_device()

    # ---- layers ----

    def _init_parameters_category(self) -> None:
        """RecBole's groups of settings for printing, copied: RecBole itself appends to the lists of a module."""
        super()._init_parameters_category()
        groups: dict[str, list[str]] = {group: list(keys) for group, keys in vars(self)["parameters"].items()}
        grouped = {key for keys in groups.values() for key in keys}
        self.parameters = groups | {
            "Multimodal": [
                key for key, setting in SETTINGS.items() if setting.default is not UNSET and key not in grouped
            ]
        }

    def _merge_external_config_dict(self) -> None:
        given = merge(self.file_config_dict, self.variable_config_dict, self.cmd_config_dict)
        declared = {
            **SETTINGS,
            **OF_RECBOLE_MODELS,
            **declared_for(getattr(self, "model_class", object)),
        }
        self.external_config_dict = normalized(given, declared)

    def _get_model_and_dataset(self, model: str | type | None, dataset: str | None) -> tuple[str, type, str]:
        model = self.external_config_dict.get("model") if model is None else model
        dataset = self.external_config_dict.get("dataset") if dataset is None else dataset
        if model is None:
            raise ConfigError("no model is given; add --model=NAME (`recbole-mm models` lists them)")
        if dataset is None:
            raise ConfigError("no dataset is given; add --dataset=NAME, the name of a folder under data_path")
        check_dataset_name(dataset)
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
        SETTINGS["data_path"].check(self._data_root)
        self.internal_config_dict = normalized(
            merge_defaults(defaults, dataset_folder_layer(self._data_root, dataset, self.parameters["Dataset"]))
        )
        self.internal_config_dict["MODEL_TYPE"] = model_class.type  # type: ignore[attr-defined]

    def known_settings(self) -> set[str]:
        """Names of settings that mean something to this run's model: those of every model, those that its class
        declares, and those that its property files or RecBole name."""
        known = {*SETTINGS, *declared_for(self.model_class), *self.internal_config_dict, *unlisted(self.model_class)}
        return known.union(*self.parameters.values())

    @property
    def asked(self) -> list[str]:
        """Settings that the caller gave, as Python values or as text, and that are not at their defaults.

        What files say is not among them: a file may serve many runs.
        """
        given = (*self.variable_config_dict, *self.cmd_config_dict)
        return [key for key in dict.fromkeys(given) if self[key] != self.internal_config_dict.get(key)]

    def _warn_unknown_keys(self) -> None:
        """One warning per key that the user gave and nothing reads."""
        known = self.known_settings()
        for key in self.external_config_dict:
            if key not in known:
                logger.warning("setting %r is %s", key, self.unknown(key, " and has no effect"))

    def unknown(self, key: str, consequence: str = "") -> str:
        """What is said of a setting that is not in `known_settings`, with the nearest name that is.

        Args:
            key: the setting.
            consequence: what follows where the class is not the user's own.
        """
        said = f"unknown to {self.model}{consequence}"
        if self.model_class.__module__.split(".")[0] not in _DECLARING:
            said = f"unknown; if {self.model} reads it, add it to `settings` of the class"
        return f"{said}{did_you_mean(key, sorted(self.known_settings()), cutoff=0.6)}"

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

    def _trains_on_full_sequences(self) -> bool:
        return bool(self["full_sequence"] or _stated(self.model_class, "trains_on_full_sequences"))

    def _warn_without_effect(self) -> None:
        """One warning per setting that the user gave, that RecBole knows, and that nothing reads here."""
        defaults = self.internal_config_dict
        given = {key for key, value in self.external_config_dict.items() if value != defaults.get(key)}
        sequences = self._trains_on_full_sequences()
        reasons = {
            key: setting.no_effect or setting.no_effect_on_sequences
            for key, setting in SETTINGS.items()
            if key in given and (setting.no_effect or (sequences and setting.no_effect_on_sequences))
        }
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
        final = {**read_yaml(path), **(changed or {})}
        needed = {"model", "dataset", "data_path", "gpu_id", "use_gpu", "eval_args", "metrics", "topk", "valid_metric"}
        missing = sorted((needed | {"MODEL_TYPE", "eval_type"}) - set(final))
        if missing:
            raise ConfigError(f"{path} is not the config of a run: it lacks {missing[0]!r}")
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
        config.settings = settings_of(declared_for(config.model_class), {})
        config.final_config_dict = final = normalized(final, config.settings)
        check_settings(final, config.settings)
        config._data_root = str(final["data_path"])
        final["data_path"] = str(dataset_dir(config._data_root, config.dataset))
        check_atomic_files(Path(final["data_path"]), config.dataset)
        if config["split_rule"] != split_rule(config):
            raise ConfigError(
                f"{path}: the interactions of this run were split by the rule of an earlier version, so it may have "
                "been trained on what is held out now; run it again"
            )
        config._init_device()
        return config

    def __getstate__(self) -> dict[str, Any]:
        """Everything but `settings`, whose kinds are functions without a name."""
        return {name: value for name, value in vars(self).items() if name != "settings"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.settings = settings_of(declared_for(self.model_class), {})

    def __str__(self) -> str:
        """Every setting by group, without RecBole's colors, which would end up in files."""
        return re.sub(r"\x1b\[[0-9;]*m", "", super().__str__())


def _stated(model_class: type, name: str) -> Any:
    """An attribute that a class or one of its bases states; None for none."""
    return next((vars(owner)[name] for owner in model_class.__mro__ if name in vars(owner)), None)


def _without_derived(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what follows from other settings; a run's config.yaml, given as a config file, holds it."""
    return {key: value for key, value in settings.items() if key not in DERIVED}


def _warn_derived(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `_without_derived` does, and warn: a user who types `--device` must learn that it has no effect."""
    for key in sorted(DERIVED & set(settings)):
        hint = "; give use_gpu and gpu_id" if key == "device" else ""
        logger.warning("setting %r follows from others and has no effect%s", key, hint)
    return _without_derived(settings)
