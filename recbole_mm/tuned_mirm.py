"""The fine-tuned MIRM of a run (Molar, section 3.3): from settings and training interactions to a model's folder."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from recbole_mm.errors import ConfigError, DataError
from recbole_mm.mllm.encode import DEFAULT_TEXT_TOKENS
from recbole_mm.mllm.loading import supported_family
from recbole_mm.mllm.model import MLLM
from recbole_mm.mllm.prompts import ItemPrompt
from recbole_mm.mllm.source import locate
from recbole_mm.models.molar.mirm import (
    OBJECTIVES,
    Histories,
    ItemFacts,
    PromptedExamples,
    build_mixture,
    examples_digest,
)

if TYPE_CHECKING:
    from recbole_mm.mllm.finetune import Tuning

logger = logging.getLogger(__name__)

RECIPE = 1
"""Part of every folder's name: raise it whenever the same examples and settings would give another model."""

METHODS = ("none", "lora", "full")
NOTES = "mirm.yaml"
"""File beside a tuned model that says what it was tuned on."""


@dataclass(frozen=True)
class MirmSettings:
    """The `mirm_*` keys, as `properties/model/Molar.yaml` explains them."""

    tuning: str = "none"
    objectives: tuple[str, ...] = OBJECTIVES
    examples: int = 10_000
    weights: Mapping[str, float] = field(default_factory=dict)
    description_field: str | None = None
    history: int = 10
    answer_tokens: int = 128
    bottleneck: bool = False
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

    @classmethod
    def of(cls, config: Any) -> MirmSettings:
        """The settings of a run; a key that is null keeps the default given here, `mirm_seed` that of the run.

        Raises:
            ConfigError: naming the first key whose value is not accepted, and what it accepts.
        """
        given = {name: config[f"mirm_{name}"] for name in cls.__dataclass_fields__}
        if given["seed"] is None:
            given["seed"] = config["seed"]
        settings = cls(**{name: value for name, value in given.items() if value is not None})
        for name, (accepts, words) in ACCEPTED.items():
            value = getattr(settings, name)
            if not accepts(value):
                raise ConfigError(f"mirm_{name}: {value!r} is not accepted; give {words}")
        if settings.tuning != "none" and not settings.objectives:
            raise ConfigError(
                f"mirm_objectives is empty: name some of {', '.join(OBJECTIVES)}, or set mirm_tuning: none"
            )
        return settings


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: Any, low: float = 0, high: float = float("inf")) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


LORA_KEYS: dict[str, Callable[[Any], bool]] = {
    "r": _whole,
    "alpha": _number,
    "dropout": lambda value: _number(value, 0, 1) and value < 1,
    "targets": lambda value: (
        value is None or (isinstance(value, list) and all(isinstance(name, str) for name in value))
    ),
}
_WHOLE = (_whole, "a whole number of at least 1")
_FLAG = (lambda value: isinstance(value, bool), "True or False")
_NAMES = ", ".join(OBJECTIVES)
ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "tuning": (lambda value: value in METHODS, f"one of {', '.join(METHODS)}"),
    "objectives": (
        lambda value: (
            isinstance(value, (list, tuple))
            and all(name in OBJECTIVES for name in value)
            and len(set(value)) == len(value)
        ),
        f"a list out of {_NAMES}",
    ),
    "weights": (
        lambda value: (
            isinstance(value, dict)
            and all(name in OBJECTIVES and _number(weight) and weight > 0 for name, weight in value.items())
        ),
        f"a mapping from names out of {_NAMES} to numbers above 0",
    ),
    "lora": (
        lambda value: (
            isinstance(value, dict)
            and all(name in LORA_KEYS and LORA_KEYS[name](entry) for name, entry in value.items())
        ),
        "a mapping such as {r: 16, alpha: 32, dropout: 0.05, targets: null}",
    ),
    "description_field": (lambda value: value is None or (isinstance(value, str) and bool(value)), "a column's name"),
    "learning_rate": (lambda value: _number(value) and value > 0, "a number above 0"),
    "warmup_ratio": (lambda value: _number(value, 0, 1), "a number from 0 to 1"),
    "bottleneck": _FLAG,
    "gradient_checkpointing": _FLAG,
    "load_in_4bit": _FLAG,
    "seed": (lambda value: value == 0 or _whole(value), "a whole number of at least 0"),
    **dict.fromkeys(
        ("examples", "history", "answer_tokens", "epochs", "batch_tokens", "accumulation", "checkpoint_steps"), _WHOLE
    ),
}


NO_EFFECT = ("checkpoint_steps", "gradient_checkpointing")
"""What changes neither the examples nor what is learnt from them."""


def tuned_mirm(
    config: Any, dataset: Any, settings: MirmSettings, base: str, load: Callable[..., MLLM], artifacts: Path
) -> Path:
    """Folder of the MIRM that these settings ask for; fine-tuned now if it was not before.

    Its name holds a digest of the base model, the settings and the very examples: other training interactions, images
    or texts make another MIRM, other held-out interactions do not.

    Args:
        config: of the run.
        dataset: loaded and not yet split; examples come from its `training_sequences`.
        settings: with a tuning other than none.
        base: folder or hub id of the model to tune.
        load: `load_mllm` for the run's device.
        artifacts: where the folder is kept.

    Raises:
        ConfigError, DataError, ModelLoadError: settings that do not fit together, the data, the model or the machine.
    """
    from recbole_mm.mllm.finetune import check_tuning, finetune, is_finetuned  # takes seconds to import

    tuning = _tuning(settings, config["mllm_image_pixels"])
    check_tuning(tuning)
    source = locate(base, None, supported_family)
    if source.is_adapter and settings.tuning == "lora":
        raise ConfigError(f"mirm_tuning: {base} is an adapter itself: set none to use it as it is, or full to go on")
    content = dataset.content
    facts = ItemFacts(content, _description_column(settings, content))
    histories = Histories(*dataset.training_sequences())
    mixture = build_mixture(facts, histories, settings.objectives, settings.examples, settings.history, settings.seed)
    content.fingerprints(sorted({shown.item for example in mixture for shown in example.items if shown.image}))
    text_tokens = config["max_text_tokens"] or DEFAULT_TEXT_TOKENS
    weights = {name: float(settings.weights.get(name, 1)) for name in settings.objectives}
    # A full tuning updates its weights in float32; an adapter's base model stays as it is, in the dtype of the run.
    dtype = "float32" if tuning.method == "full" else config["mllm_dtype"] or "auto"
    parts = {
        "recipe": RECIPE,
        "model": source.identity,
        "prompt": ItemPrompt().identity,
        "precision": [config["device"].type, dtype],
        "tokens": [text_tokens, settings.answer_tokens],
        "weights": weights,
        "tuning": {name: value for name, value in asdict(tuning).items() if name not in NO_EFFECT},
        "examples": examples_digest(mixture, content.fingerprint),
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    folder = artifacts / f"mirm-{digest}"
    if is_finetuned(folder):
        logger.info("MIRM: fine-tuned before, in %s", folder)
        return folder
    mllm = load(base, dtype=dtype, with_head=True, load_in_4bit=tuning.load_in_4bit)
    examples = PromptedExamples(
        mixture,
        content,
        mllm,
        image_pixels=tuning.image_pixels,
        max_text_tokens=text_tokens,
        max_answer_tokens=settings.answer_tokens,
        weights=weights,
    )
    counts = {name: sum(example.objective == name for example in mixture) for name in settings.objectives}
    logger.info("MIRM: fine-tuning on %s", ", ".join(f"{count} examples of {name}" for name, count in counts.items()))
    notes = yaml.safe_dump({"base": base, "examples_of": counts, **parts}, sort_keys=False)
    finetune(mllm, examples, tuning, folder, config["show_progress"], {NOTES: notes})
    logger.info("MIRM: fine-tuned, in %s", folder)
    return folder


def _tuning(settings: MirmSettings, image_pixels: int) -> Tuning:
    from recbole_mm.mllm.finetune import Lora, Tuning

    adapter = {name: value for name, value in settings.lora.items() if value is not None}
    shared = set(Tuning.__dataclass_fields__) & set(MirmSettings.__dataclass_fields__) - {"lora"}
    return Tuning(
        method=settings.tuning,
        image_pixels=image_pixels,
        lora=Lora(**adapter),
        **{name: getattr(settings, name) for name in shared},
    )


def _description_column(settings: MirmSettings, content: Any) -> str | None:
    column = settings.description_field
    if column is not None:
        if content.source.table is None:
            raise DataError(f"mirm_description_field names the column {column!r}, but there is no .item file")
        content.source.table.require(column, "mirm_description_field")
    return column
