"""The fine-tuned answerer of a run (MLLM-MSR, section 3.3): from settings and training interactions to a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recbole_mm.config.resolved import Config
from recbole_mm.errors import DataError
from recbole_mm.inputs.answering.examples import (
    NO_KIND,
    YES_KIND,
    PromptedQuestions,
    Question,
    draw_examples,
    questions_digest,
    training_targets,
)
from recbole_mm.inputs.answering.first_stage import best_others
from recbole_mm.inputs.answering.lists import LIST_KIND, LISTED, PromptedLists, lists_digest, lists_of
from recbole_mm.inputs.answering.prompt import LABELS, WordedPrompt
from recbole_mm.llm.answer import resolve_answers, resolve_yes_no
from recbole_mm.llm.finetuning.examples import Examples
from recbole_mm.llm.finetuning.tuned_model import (
    TunedModel,
    TuningSettings,
    read_settings,
    tuning_of,
)
from recbole_mm.llm.model import MLLM

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)

RECIPE = 1
"""Part of every folder's name: raise it whenever the same examples and settings would give another model."""

NOTES = "answering.yaml"
"""Name of the file in a tuned model's folder that says what it was tuned on."""

ANSWER, FULL = "answer", "full"
UNIFORM, FIRST_STAGE = "uniform", "first_stage"
LOSSES = (ANSWER, FULL)

OWN_KEYS = {"batch_tokens": "max_tokens_per_batch"}
"""Settings whose key is not `sft_` and their name."""


@dataclass(frozen=True)
class SftSettings(TuningSettings):
    """The `sft_*` keys and `max_tokens_per_batch`, as `properties/model/MLLMMSR.yaml` explains them."""

    tuning: str = "lora"
    loss: str = ANSWER
    targets: int | None = None
    examples: int | None = None
    negatives: int = 1
    negatives_from: str = UNIFORM
    epochs: int = 4
    learning_rate: float = 2e-5

    @classmethod
    def of(cls, config: Config) -> SftSettings:
        """Read the settings of a run; a null key keeps the default given here, and `sft_seed` is `seed` then."""
        return read_settings(cls, config, sft_key)


def sft_key(name: str) -> str:
    """The key of a setting."""
    return OWN_KEYS.get(name, f"sft_{name}")


def training_questions(dataset: MultimodalDataset, settings: SftSettings) -> list[Question]:
    """The questions that the model is fine-tuned on, drawn from training interactions alone.

    Args:
        dataset: loaded and not yet split; with the first stage among its inputs, if negatives are drawn from its top.
        settings: how many, where negatives come from, and the seed of the draw.

    Raises:
        DataError: no user has two training interactions, or there is no item that a user has not chosen.
    """
    users, items, offsets = dataset.user_histories()
    tokens = dataset.item_tokens()
    targets = training_targets(offsets, settings.targets, settings.examples, settings.seed)
    pools = None
    if settings.negatives_from == FIRST_STAGE:
        first, config = dataset.inputs.first_stage, dataset.config
        pools = best_others(first, config, users, items, offsets, tokens, targets, config["rerank_k"])
    asked = draw_examples(users, items, offsets, tokens, targets, _negatives(dataset, settings), settings.seed, pools)
    if not targets or all(one.answer for one in asked):
        lacking = "an item that some user has not chosen" if targets else "a user with two training interactions"
        raise DataError(f"fine-tuning to answer needs {lacking}, and there is none: set sft_tuning: none")
    return asked


def _negatives(dataset: MultimodalDataset, settings: SftSettings) -> int:
    """Items for each target: of a list, as many as ranking will show."""
    config = dataset.config
    return int(config["rerank_k"]) - 1 if config["answers"] == LISTED else settings.negatives


@dataclass(frozen=True)
class Lesson:
    """What is learnt.

    Attributes:
        digest: of everything that examples show and ask for.
        answers: ids of the tokens that may be answered.
        counts: kind of examples -> how many.
        examples: makes them.
    """

    digest: str
    answers: list[int]
    counts: dict[str, int]
    examples: Callable[[], Examples]


def lesson_of(asked: list[Question], listed: bool, prompt: WordedPrompt, mllm: MLLM, settings: SftSettings) -> Lesson:
    """The lesson that questions make: Yes or No to each, or with `listed` the letter of the chosen one among them.

    Raises:
        ConfigError: two answers begin with the same token.
    """
    whole = settings.loss == FULL
    if listed:
        labels = resolve_answers(mllm, prompt.tail, LABELS)
        lists = lists_of(asked, settings.seed)
        counts = {LIST_KIND: len(lists)}
        digest = lists_digest(lists, prompt)
        return Lesson(digest, labels, counts, lambda: PromptedLists(lists, prompt, labels, whole))
    yes, no = resolve_yes_no(mllm, prompt.tail)
    positives = sum(one.answer for one in asked)
    counts = {YES_KIND: positives, NO_KIND: len(asked) - positives}
    digest = questions_digest(asked, prompt)
    return Lesson(digest, [yes, no], counts, lambda: PromptedQuestions(asked, prompt, yes, no, whole))


def tuned_answerer(
    config: Config,
    dataset: MultimodalDataset,
    settings: SftSettings,
    base: str,
    load: Callable[..., MLLM],
    artifacts: Path,
    prompt_of: Callable[[MLLM], WordedPrompt],
) -> Path:
    """Folder of the model that answers as these settings ask for; fine-tuned now if it was not before.

    Its name holds a digest of the base model, the settings, the wording and the very examples: other training
    interactions, images or texts make another model, other held-out interactions do not.

    Args:
        config: the run's configuration.
        dataset: loaded and not yet split, with all that the prompt tells.
        settings: with a tuning other than none.
        base: folder or hub id of the model to tune.
        load: `load_mllm` for the run's device.
        artifacts: where the folder is kept.
        prompt_of: makes the prompt by an MLLM's tokenizer and family; the MLLM it is given cannot run.

    Returns:
        A folder for `load_mllm`, which merges an adapter into its base model.

    Raises:
        ConfigError, DataError, ModelLoadError: settings that do not fit together, answers with the same first token,
            the data, the model or the machine.
    """
    tuning = tuning_of(settings, config["mllm_image_pixels"])
    tuned = TunedModel("answering", "Answering model", sft_key("tuning"), base, tuning, artifacts, NOTES)
    tuned.check()
    outline = load(base, with_head=True, without_weights=True)  # a model that was tuned before needs no base
    prompt = prompt_of(outline)
    asked = training_questions(dataset, settings)
    lesson = lesson_of(asked, config["answers"] == LISTED, prompt, outline, settings)
    parts = {
        "recipe": RECIPE,
        "prompt": prompt.identity,
        "answers": lesson.answers,
        "loss": settings.loss,
        "examples": lesson.digest,
    }

    def examples(_: MLLM) -> Examples:
        found = lesson.examples()
        tokens = int(found.lengths.sum())
        logger.info("answering: %d prompts of %d tokens in all are learnt from", len(found), tokens)
        return found

    return tuned.find_or_make(config, parts, {"examples_of": lesson.counts}, load, examples)
