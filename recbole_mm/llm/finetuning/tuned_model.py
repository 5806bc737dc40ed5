"""Fine-tuned models of runs: settings checked, a folder named by all that the model depends on, found again or made."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from recbole_mm.config.resolved import Config
from recbole_mm.errors import ConfigError
from recbole_mm.llm.finetuning.examples import Examples
from recbole_mm.llm.loading import supported_family
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pretrained import find_llm

if TYPE_CHECKING:
    from recbole_mm.llm.finetuning.finetune import Tuning

logger = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound="TuningSettings")
NO_EFFECT = ("checkpoint_steps", "gradient_checkpointing")
"""What changes neither the examples nor what is learnt from them."""


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TuningSettings:
    """The keys that every fine-tuning has, under its own prefix; a subclass adds its own and changes defaults."""

    tuning: str = "none"
    epochs: int = 1
    learning_rate: float = 1e-4
    warmup_ratio: float = 0.05
    batch_tokens: int = 8192
    accumulation: int = 1
    lora: Mapping[str, Any] = field(default_factory=dict)
    gradient_checkpointing: bool = False
    load_in_4bit: bool = False
    checkpoint_steps: int = 200
    seed: int = 0


def read_settings(settings: type[Settings], config: Config, key_of: Callable[[str], str]) -> Settings:
    """Reads the settings of a run; a null key keeps the default, and `seed` is that of the whole run then.

    Args:
        settings: their class.
        config: the run's configuration.
        key_of: name of a setting -> its key.
    """
    given = {name: config[key_of(name)] for name in settings.__dataclass_fields__}
    if given["seed"] is None:
        given["seed"] = config["seed"]
    return settings(**{name: value for name, value in given.items() if value is not None})


def tuning_of(settings: TuningSettings, image_pixels: int) -> Tuning:
    """How `finetune` is to go about it.

    Args:
        settings: may have more fields of `Tuning`.
        image_pixels: bound on an image's area.
    """
    from recbole_mm.llm.finetuning.finetune import Lora, Tuning  # takes seconds to import

    adapter = {name: value for name, value in settings.lora.items() if value is not None}
    shared = set(Tuning.__dataclass_fields__) & set(settings.__dataclass_fields__) - {"lora"}
    return Tuning(
        method=settings.tuning,
        image_pixels=image_pixels,
        lora=Lora(**adapter),
        **{name: getattr(settings, name) for name in shared},
    )


# --- the folder ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TunedModel:
    """A model to be fine-tuned, and where it is kept.

    Attributes:
        kind: begins the folder's name.
        label: of the model in the log.
        key: that chose the tuning, for errors.
        base: folder or hub id of the model to tune.
        tuning: how.
        artifacts: where the folder is kept.
        notes: name of the file next to the model that says what it was tuned on.
    """

    kind: str
    label: str
    key: str
    base: str
    tuning: Tuning
    artifacts: Path
    notes: str

    def check(self) -> None:
        """Stop before anything is computed.

        Raises:
            ConfigError, ModelLoadError: settings that do not fit together, or the base model.
        """
        from recbole_mm.llm.finetuning.finetune import check_tuning

        check_tuning(self.tuning)
        if find_llm(self.base, None, supported_family).is_adapter and self.tuning.method == "lora":
            raise ConfigError(
                f"{self.key}: {self.base} is an adapter itself: set none to use it as it is, or full to go on"
            )

    def dtype(self, config: Config) -> str:
        """Of the weights: a full tuning updates them in float32; an adapter's base keeps its dtype."""
        return "float32" if self.tuning.method == "full" else config["mllm_dtype"] or "auto"

    def found(self, config: Config, parts: Mapping[str, Any]) -> Path | None:
        """Returns the model's folder; None if it is not fine-tuned yet. The arguments are those of `find_or_make`."""
        from recbole_mm.llm.finetuning.finetune import is_finetuned

        folder = self._folder(self._all_parts(config, parts))
        return folder if is_finetuned(folder) else None

    def _all_parts(self, config: Config, parts: Mapping[str, Any]) -> dict[str, Any]:
        """What the model depends on."""
        return {
            **parts,
            "model": find_llm(self.base, None, supported_family).identity,
            "precision": [config["device"].type, self.dtype(config)],
            "tuning": {
                name: value
                for name, value in asdict(self.tuning).items()
                if name not in NO_EFFECT and (name, value) != ("layers", None)
            },
        }

    def _folder(self, parts: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return self.artifacts / f"{self.kind}-{digest}"

    def find_or_make(
        self,
        config: Config,
        parts: Mapping[str, Any],
        about: Mapping[str, Any],
        load: Callable[..., MLLM],
        examples: Callable[[MLLM], Examples],
    ) -> Path:
        """The model's folder, fine-tuned now if it was not before.

        Args:
            config: the run's configuration.
            parts: what the model depends on apart from base, precision and tuning, as JSON takes it; the folder's name
                holds a digest of all.
            about: what else the notes say.
            load: `load_mllm` for the run's device.
            examples: what is learnt, by the loaded model.

        Raises:
            ConfigError, CheckpointError, ModelLoadError: the machine, an old checkpoint, the model; or it diverged.
        """
        from recbole_mm.llm.finetuning.finetune import finetune, is_finetuned

        parts, dtype = self._all_parts(config, parts), self.dtype(config)
        folder = self._folder(parts)
        if is_finetuned(folder):
            logger.info("%s: fine-tuned before, in %s", self.label, folder)
            return folder
        mllm = load(self.base, dtype=dtype, with_head=True, load_in_4bit=self.tuning.load_in_4bit)
        counted = ", ".join(f"{count} examples of {name}" for name, count in about["examples_of"].items())
        logger.info("%s: fine-tuning on %s", self.label, counted)
        notes = yaml.safe_dump({"base": self.base, **about, **parts}, sort_keys=False)
        finetune(mllm, examples(mllm), self.tuning, folder, config["show_progress"], {self.notes: notes})
        logger.info("%s: fine-tuned, in %s", self.label, folder)
        return folder
