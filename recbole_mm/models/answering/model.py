"""Models that rank by an LLM's answer Yes or No to a prompt: MLLM-MSR (2408.09698), TALLRec (2305.00447)."""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import Tensor

from recbole_mm.errors import ConfigError
from recbole_mm.inputs.answering.lists import LISTED, MOST_LISTED
from recbole_mm.inputs.answering.prompt import CUE, LABELS, WordedPrompt
from recbole_mm.llm.answer import AnswerReader
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.questions import Questions, ask
from recbole_mm.llm.texts.generator import Request
from recbole_mm.llm.texts.yes_no import parse_yes_no
from recbole_mm.models.answering.asking import ListBlocks, PromptBlocks
from recbole_mm.models.answering.listing import best_first, list_questions, list_scores
from recbole_mm.models.fusion import check_fusion
from recbole_mm.models.reranking import ANSWERS_ALONE, RerankingRecommender

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)

SCORED, WRITTEN = "scored", "written"
PER_CASE = "answers, read"
"""What tokens are called that a case's answers take."""
ANSWER_STAGE = "answer"
"""Name of the stage of written answers in the artifact store."""

FROZEN = "reader."
"""Weights under this name are the LLM's. It was fine-tuned before, and its folder keeps them."""


class AnsweringRecommender(RerankingRecommender):
    """An LLM that answers Yes or No about a user and an item. A subclass builds the prompt.

    Epochs train nothing: the LLM is fine-tuned before (`sft_*`), or used as it is (`sft_tuning: none`). `predict`
    returns p(yes) / (p(yes) + p(no)) of any pair. `full_sort_predict` returns it for the `rerank_k` items that the
    first stage ranks first among the candidates; every other item's score is below 0, in the first stage's order.
    Without a first stage and with `rerank_k: ~` every item is asked about.

    With `answers: listed` the `rerank_k` items, at most 26, stand in one prompt, and the score is the probability of an
    item's letter; it depends on the whole list, so `predict` gives the numbers of `full_sort_predict`.

    With `answers: written` the score is what an LLM of `text_backend` writes: 1 for a yes, 0 for a no, 0.5 for what
    cannot be read as either.

    Needs from the dataset: `first_stage` unless there is none; `mllm`, or `write_texts` for written answers; and the
    inputs of the prompt.

    Raises:
        ConfigError: impossible settings.
    """

    input_type = InputType.POINTWISE
    is_trainable = False
    has_first_stage = True
    answers_any = True
    lists_candidates: ClassVar[bool] = False
    """Whether its prompt can show several candidates at once."""

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.batch_tokens: int = config["answer_batch_tokens"]
        self.first_stage = dataset.inputs.first_stage
        self.prompt = self.build_prompt(config, dataset, dataset.inputs.mllm)
        self.unread = self.asked_for = 0
        self.tokens_read = self.cases_read = 0
        self.list_orders: int = config["list_orders"]
        self.lists: ListBlocks | None = None
        self.reader: AnswerReader | None = None
        if config["answers"] == WRITTEN:
            self._tokenizer = dataset.inputs.mllm.tokenizer
            self._write = dataset.inputs.write_texts
        elif config["answers"] == LISTED:
            self.answers_any = False
            self.lists = ListBlocks(dataset.inputs.mllm, self.prompt)
            reader = AnswerReader.of_words(dataset.inputs.mllm, self.prompt.tail, LABELS[: self.rerank_k])
            self.reader = reader.requires_grad_(False)
        else:
            self.blocks = PromptBlocks(dataset.inputs.mllm, self.prompt)
            self.reader = AnswerReader.of(dataset.inputs.mllm, self.prompt.tail).requires_grad_(False)

    @classmethod
    def requirements(cls, config: Config) -> tuple[str, ...]:
        """Return the inputs of the prompt, and the LLM that answers.

        Raises:
            ConfigError: answers are to be written by the template backend, or negatives of fine-tuning are to come
                from a first stage, or answers are weighed against one, and there is none.
        """
        check_negatives(config)
        alone = config["first_stage_path"] is None and str(config["first_stage"]).lower() == "none"
        if config["answers"] == LISTED:
            cls._check_lists(config, alone)
        if config["answers"] == WRITTEN and config["text_backend"] == "template":
            raise ConfigError("answers: written needs an LLM that writes: set text_backend to hf or openai")
        check_fusion(config)
        if alone and config["fusion_weight"] not in (None, ANSWERS_ALONE):
            raise ConfigError(
                f"fusion_weight: {config['fusion_weight']} weighs answers against a first stage, and there is none"
            )
        return (*cls.prompt_inputs(config), "answer_writer" if config["answers"] == WRITTEN else "answering_mllm")

    @classmethod
    def _check_lists(cls, config: Config, alone: bool) -> None:
        """Refuse lists that a prompt cannot show, or that nobody chooses."""
        if not cls.lists_candidates:
            raise ConfigError(f"answers: listed is not for {cls.__name__}; set answers: scored")
        if alone:
            raise ConfigError("answers: listed shows the best items of a first stage: name a model as first_stage")
        if config["rerank_k"] is None or not 2 <= config["rerank_k"] <= MOST_LISTED:
            raise ConfigError(
                f"answers: listed has a letter for each item: set rerank_k from 2 to {MOST_LISTED}, not "
                f"{config['rerank_k']}"
            )

    @classmethod
    def prompt_inputs(cls, config: Config) -> tuple[str, ...]:
        """Return the names of the inputs that the prompt reads."""
        return ()

    @classmethod
    @abstractmethod
    def build_prompt(cls, config: Config, dataset: MultimodalDataset, mllm: MLLM) -> WordedPrompt:
        """Build the prompt; for fine-tuning as well, from the dataset before it is split.

        Args:
            config: the run's configuration.
            dataset: the dataset, with the inputs that `prompt_inputs` names.
            mllm: its tokenizer and family lay out prompts; it may have no weights.
        """

    # -------------------------------------------------------------- scoring

    def first_scores(self, cases: Interaction) -> Tensor:
        """Return the scores (B, n_items) float64 of the first stage; zeros without one.

        Raises:
            ConfigError: `rerank_k` needs a first stage, and there is none.
        """
        if self.first_stage is not None:
            return self.first_stage.scores(cases)
        if self.rerank_k is not None:
            raise ConfigError(f"rerank_k: {self.rerank_k} items cannot be chosen without a first_stage")
        return torch.zeros(len(cases), self.n_items, dtype=torch.float64, device=cases[self.USER_ID].device)

    def probabilities(self, cases: Interaction, owners: Tensor, items: Tensor) -> Tensor:
        """Return p(yes) / (p(yes) + p(no)) of items (n,) for the cases `owners` (n,): float64."""
        if self.lists is not None:
            return self._listed(cases)[owners.cpu(), items.cpu()].to(items.device)
        users, histories = cases[self.USER_ID].tolist(), self.histories(cases)
        asked_of, asked = owners.cpu().numpy(), items.cpu().numpy()
        if self.reader is None:
            found = self._written(users, histories, asked_of, asked)
            return torch.from_numpy(found).to(items.device)
        questions = self.blocks.questions(users, histories, asked_of, asked)
        self._count(questions)
        with torch.no_grad():
            return ask(self.reader, questions, self.batch_tokens).double().sigmoid().to(items.device)

    def _listed(self, cases: Interaction) -> Tensor:
        """Return the scores (B, n_items) of whole lists: an item's rests on those beside it."""
        assert self.lists is not None
        assert self.reader is not None
        first, asked = self._filtered(cases)
        users, histories = cases[self.USER_ID].tolist(), self.histories(cases)
        questions, shown = list_questions(self.lists, users, histories, best_first(first, asked), self.list_orders)
        self._count(questions)
        return list_scores(self.reader, questions, shown, tuple(first.shape), self.batch_tokens)

    def _count(self, questions: Questions) -> None:
        self.tokens_read += questions.tokens
        self.cases_read += len(np.unique(questions.owners))

    def tokens_per_case(self) -> dict[str, float]:
        """Return how many tokens were read to answer about a case, on average over all so far, without padding."""
        return {PER_CASE: self.tokens_read / self.cases_read} if self.cases_read else {}

    def _written(
        self, users: Sequence[int], histories: Sequence[np.ndarray], owners: np.ndarray, items: np.ndarray
    ) -> np.ndarray:
        """Return 1, 0 or 0.5 for each item (n,): float64."""
        requests = {
            row: self.question(users[owner], histories[owner], item)
            for row, (owner, item) in enumerate(zip(owners.tolist(), items.tolist()))
        }
        texts = self._write(ANSWER_STAGE, requests).texts
        said = [parse_yes_no(texts[row]) if row in texts else None for row in range(len(items))]
        scores = np.array([0.5 if answer is None else float(answer) for answer in said])
        self.asked_for += len(said)
        if unread := sum(answer is None for answer in said):
            self.unread += unread
            example = next((texts[row] for row, answer in enumerate(said) if answer is None and row in texts), None)
            logger.warning(
                "answers: %d of %d so far cannot be read as Yes or No and count 0.5%s",
                *(self.unread, self.asked_for, "" if example is None else f", such as {example[:80]!r}"),
            )
        return scores

    def question(self, user: int, history: Sequence[int], item: int) -> Request:
        """Return the same prompt in words, with the item's image, for an LLM that writes its answer."""
        words = self._tokenizer.decode(self.prompt.words_of(item))
        text = f"{self.prompt.user_text(user, history)}{words}{CUE}"
        if not self.prompt.has_image(item):
            return Request(text, None)
        return Request(text, None, partial(self.prompt.image, item), self.prompt.fingerprint(item))

    # ------------------------------------------------------------- training

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Refuse, since epochs train nothing.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{type(self).__name__} is fine-tuned before the epochs; they have nothing to learn")

    @staticmethod
    def never_changes(name: str) -> bool:
        """Return whether a weight of this name is the LLM's."""
        return name.startswith(FROZEN)


def check_negatives(config: Config) -> None:
    """Check that there is a first stage with a top where negatives of fine-tuning come from it.

    Raises:
        ConfigError: there is none.
    """
    tuned = config["answers"] != WRITTEN and config["sft_tuning"] != "none"
    if not tuned or config["sft_negatives_from"] != "first_stage":
        return
    if config["first_stage_path"] is None and str(config["first_stage"] or "none").lower() == "none":
        raise ConfigError("sft_negatives_from: first_stage needs a first_stage, and there is none: name a model as it")
    if config["rerank_k"] is None:
        raise ConfigError("sft_negatives_from: first_stage draws from the rerank_k best items: give a number, not null")
