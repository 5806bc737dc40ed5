"""The fine-tuned MIRM (Molar, section 3.3): from settings and training interactions to a model's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_mm.config.resolved import Config
from recbole_mm.data.item_facts import ItemFacts
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.inputs.mirm.objectives import OBJECTIVES, Histories, build_mixture, examples_digest
from recbole_mm.inputs.mirm.prompting import PromptedExamples
from recbole_mm.llm.encode import DEFAULT_TEXT_TOKENS
from recbole_mm.llm.finetuning.tuned_model import (
    TunedModel,
    TuningSettings,
    read_settings,
    tuning_of,
)
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.prompts import ItemPrompt

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset

RECIPE = 1
"""Part of every folder's name: raise it whenever the same examples and settings would give another model."""

NOTES = "mirm.yaml"
"""Name of the file in a tuned model's folder that says what it was tuned on."""


@dataclass(frozen=True)
class MirmSettings(TuningSettings):
    """The `mirm_*` keys, as `properties/model/Molar.yaml` explains them."""

    objectives: tuple[str, ...] = OBJECTIVES
    examples: int = 10_000
    weights: Mapping[str, float] = field(default_factory=dict)
    description_field: str | None = None
    history: int = 10
    layers: int | None = None
    answer_tokens: int = 128
    bottleneck: bool = False

    @classmethod
    def of(cls, config: Config) -> MirmSettings:
        """Read the settings of a run; a null key keeps the default given here, and `mirm_seed` is `seed` then.

        Raises:
            ConfigError: there is no objective to tune for.
        """
        settings = read_settings(cls, config, lambda name: "mllm_layers" if name == "layers" else f"mirm_{name}")
        settings = replace(settings, layers=_layers(config))
        named = settings.objectives
        settings = replace(settings, objectives=tuple(name for name in named if settings.weights.get(name, 1)))
        if settings.tuning != "none" and named and not settings.objectives:
            raise ConfigError(f"mirm_weights: 0 for {', '.join(named)} leaves no objective; give one of them a weight")
        if settings.tuning != "none" and not settings.objectives:
            raise ConfigError(
                f"mirm_objectives is empty: name some of {', '.join(OBJECTIVES)}, or set mirm_tuning: none"
            )
        return settings


def _layers(config: Config) -> int | None:
    """How many of its layers the MIRM is tuned with: those that encode items, or more where the DUEG has more of them;
    None: all."""
    if config["dueg"] != "mllm" or config["mllm_layers"] is None:
        return config["mllm_layers"]
    return None if config["dueg_layers"] is None else max(config["mllm_layers"], config["dueg_layers"])


def tuned_mirm(
    config: Config,
    dataset: MultimodalDataset,
    settings: MirmSettings,
    base: str,
    load: Callable[..., MLLM],
    artifacts: Path,
    make: bool = True,
) -> Path | None:
    """Returns the folder of the MIRM that these settings ask for; fine-tuned now if it was not before.

    Its name holds a digest of the base model, the settings and the very examples: other training interactions, images
    or texts make another MIRM, other held-out interactions do not.

    Args:
        config: the run's configuration.
        dataset: loaded and not yet split; examples come from its `training_sequences`.
        settings: with a tuning other than none.
        base: folder or hub id of the model to tune.
        load: `load_mllm` for the run's device.
        artifacts: where the folder is kept.
        make: fine-tune it; False returns None where it was not fine-tuned before.

    Raises:
        ConfigError, DataError, ModelLoadError: settings that do not fit together, the data, the model or the machine.
    """
    tuning = tuning_of(settings, config["mllm_image_pixels"])
    tuned = TunedModel("mirm", "MIRM", "mirm_tuning", base, tuning, artifacts, NOTES)
    tuned.check()
    content = dataset.content
    facts = ItemFacts(content, _description_column(settings, content))
    histories = Histories(*dataset.training_sequences())
    mixture = build_mixture(facts, histories, settings.objectives, settings.examples, settings.history, settings.seed)
    content.fingerprints(sorted({shown.item for example in mixture for shown in example.items if shown.image}))
    text_tokens = config["max_text_tokens"] or DEFAULT_TEXT_TOKENS
    weights = {name: float(settings.weights.get(name, 1)) for name in settings.objectives}
    parts = {
        "recipe": RECIPE,
        "prompt": ItemPrompt().identity,
        "tokens": [text_tokens, settings.answer_tokens],
        "weights": weights,
        "examples": examples_digest(mixture, content.fingerprint),
    }
    if not make:
        return tuned.found(config, parts)
    counts = {name: sum(example.objective == name for example in mixture) for name in settings.objectives}

    def examples(mllm: MLLM) -> PromptedExamples:
        return PromptedExamples(
            mixture,
            content,
            mllm,
            image_pixels=tuning.image_pixels,
            max_text_tokens=text_tokens,
            max_answer_tokens=settings.answer_tokens,
            weights=weights,
        )

    return tuned.find_or_make(config, parts, {"examples_of": counts}, load, examples)


def _description_column(settings: MirmSettings, content: Any) -> str | None:
    column = settings.description_field
    if column is not None:
        if content.source.table is None:
            raise DataError(f"mirm_description_field names the column {column!r}, but there is no .item file")
        content.source.table.require(column, "mirm_description_field")
    return column
