"""CoLLM: "Integrating Collaborative Embeddings into Large Language Models for Recommendation" (2310.19488)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.llm.answer import AnswerReader
from recbole_mm.llm.blocks import Block, fill_placeholders, padded
from recbole_mm.llm.questions import Questions, ask, check_length
from recbole_mm.models.collm.filters import build_filter
from recbole_mm.models.collm.prompt import CUE, Prompt
from recbole_mm.models.collm.settings import SETTINGS
from recbole_mm.models.lora import LORA, with_lora
from recbole_mm.models.reranking import RerankingRecommender
from recbole_mm.models.titles import read_titles
from recbole_mm.models.whole_batch import Rows, shared_random, whole_batch

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)

FILTER, TEXT, VECTORS = 0, 1, 2
STAGES = (
    "the collaborative filtering model",
    "stage 1, LoRA on prompts of text alone",
    "stage 2, the map from collaborative vectors to words",
)

FROZEN = "reader.model."
"""Weights under this name are the LLM's own, unless they are LoRA's."""


class VectorMapper(nn.Module):
    """Maps collaborative vectors to input vectors of the LLM, for users and items alike: d -> times * d -> hidden.

    Args:
        dimension: d.
        hidden: width of the LLM.
        times: the inner layer is so many times as wide as the vectors.

    Example:
        >>> VectorMapper(dimension=4, hidden=8, times=2)(torch.zeros(3, 4)).shape
        torch.Size([3, 8])
    """

    def __init__(self, dimension: int, hidden: int, times: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dimension, times * dimension), nn.ReLU(), nn.Linear(times * dimension, hidden)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., d) -> (..., hidden)."""
        return self.layers(vectors)


class CoLLM(RerankingRecommender):
    """An LLM that answers Yes or No about an item, from titles and the vectors of a collaborative filtering model.

    Training goes through three stages by epoch, and only one part learns in each: the collaborative filtering model
    (`cf_epochs`), LoRA on prompts without vectors (`lora_epochs`), the map from vectors to words (the epochs left). The
    two of the LLM minimise the cross-entropy of Yes for a target and No for a sampled negative.

    Scores are those of the stage it is in. From stage 1 on, the LLM reranks the `rerank_k` items that the collaborative
    filtering model puts first: theirs is p(yes) / (p(yes) + p(no)). Every other item's is below 0, in the collaborative
    filtering model's order.

    Needs from the dataset: `mllm` with its language-model head; `content`, which gives titles.

    Raises:
        ConfigError: settings that cannot be, no titles, or a validation that would never come.

    Example:
        >>> recbole_mm.run("CoLLM", "my-data")  # doctest: +SKIP
    """

    settings = SETTINGS
    input_type = InputType.POINTWISE
    trains_on_full_sequences = True
    supports_ddp = True
    requires = ("mllm_with_head",)
    stage: Tensor

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.cf_epochs: int = config["cf_epochs"]
        self.lora_epochs: int = config["lora_epochs"]
        self.batch_tokens: int = config["answer_batch_tokens"]
        self._check(config)
        self.last_stage = self._stage_of(config["epochs"] - 1)
        self.prompts_per_target = min(1.0, (config["prompts_per_epoch"] or np.inf) / max(1, len(dataset.inter_feat)))

        mllm = dataset.inputs.mllm
        fields = config["text_fields"]
        titles = read_titles(dataset.content, config["collm_title_field"] or (fields[0] if fields else None))
        self.prompt = Prompt(mllm, titles, config["collm_title_tokens"], config["collm_history"])
        decoder = with_lora(
            mllm.family.decoder(mllm.model),
            rank=config["lora_rank"],
            alpha=config["lora_alpha"],
            dropout=config["lora_dropout"],
            targets=config["lora_targets"],
        )
        self.reader = AnswerReader.of(mllm, CUE, decoder)
        self.filter = build_filter(config, dataset)
        self.mapper = VectorMapper(self.filter.dimension, mllm.hidden_size, config["mapper_times"])
        self.register_buffer("stage", torch.tensor(FILTER))

    def _check(self, config: Config) -> None:
        if "text" not in config["modalities"]:
            raise ConfigError("CoLLM reads titles: keep text among the modalities")
        if self.cf_epochs > config["epochs"]:
            raise ConfigError(
                f"cf_epochs must be at most epochs, {config['epochs']}, not {self.cf_epochs}; the LLM has what is left"
            )
        if self._stage_of(config["epochs"] - 1) != VECTORS:
            logger.warning(
                "epochs: %d end with %s; the map of vectors to words would need more than cf_epochs + lora_epochs, %d",
                config["epochs"],
                STAGES[self._stage_of(config["epochs"] - 1)],
                self.cf_epochs + self.lora_epochs,
            )
        step, epochs = config["eval_step"], config["epochs"]
        last = [epoch for epoch in range(epochs) if self._stage_of(epoch) == self._stage_of(epochs - 1)]
        if step and step < epochs and not any((epoch + 1) % step == 0 for epoch in last):
            raise ConfigError(
                f"eval_step: {step} never validates the last stage, epochs {last[0] + 1} to {epochs}; take {len(last)}"
            )

    @classmethod
    def wants_negatives(cls, config: Config) -> bool:
        """Training batches must hold a negative for each target: the one that is answered with No."""
        return True

    # --------------------------------------------------------------- stages

    def _stage_of(self, epoch: int) -> int:
        if epoch < self.cf_epochs:
            return FILTER
        return TEXT if epoch < self.cf_epochs + self.lora_epochs else VECTORS

    def start_epoch(self, epoch: int) -> None:
        """Enter the epoch's stage: its part learns, the others keep their weights."""
        stage = self._stage_of(epoch)
        if epoch == 0 or stage != self._stage_of(epoch - 1):
            logger.info("epoch %d begins %s", epoch, STAGES[stage])
        self.stage.fill_(stage)
        for part, weights in enumerate(self._parts()):
            for weight in weights:
                weight.requires_grad_(part == stage)

    def is_pretraining(self) -> bool:
        """Whether the last stage is still to come: scores are not yet what epochs are chosen by."""
        return int(self.stage) != self.last_stage

    def train(self, mode: bool = True) -> CoLLM:
        """Training mode is for the part that learns; the others compute as they do in evaluation."""
        super().train(mode)
        for stage, part in enumerate((self.filter, self.reader, self.mapper)):
            part.train(mode and int(self.stage) == stage)
        return self

    def _parts(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """The weights that learn, by stage."""
        lora = [weight for name, weight in self.reader.named_parameters() if LORA in name]
        return list(self.filter.parameters()), lora, list(self.mapper.parameters())

    def parameter_groups(self, config: Config) -> list[dict[str, Any]]:
        """A learning rate for each stage. An optimizer gets the parts of all stages, in whichever it is made."""
        rates = (config["learning_rate"], config["lora_learning_rate"], config["mapper_learning_rate"])
        groups = [{"params": weights, "lr": rate} for weights, rate in zip(self._parts(), rates)]
        for weight in (weight for group in groups for weight in group["params"]):
            weight.requires_grad_(True)
        return groups

    # ------------------------------------------------------------- training

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """The stage's loss: the collaborative filtering model's own, or the mean cross-entropy of the answers."""
        if int(self.stage) == FILTER:
            return self.filter.loss(interaction)
        rows, places, count = self._drawn(interaction[TARGET_MASK])
        history = interaction[self.ITEM_SEQ].cpu().numpy()
        histories = [history[row, : place + 1] for row, place in zip(rows.tolist(), places.tolist())]
        items = torch.cat([interaction[TARGETS][rows, places], interaction[NEGATIVES][rows, places]])
        users = vectors = None
        if int(self.stage) == VECTORS:
            with torch.no_grad():
                users = self.filter.prefix_vectors(interaction)[rows, places]
                vectors = self.filter.item_vectors()
        before, after = self._prefixes(histories, users), self._suffixes(items, vectors)
        check_length(self.reader.model, int(before.lengths.max() + after.lengths.max()))
        owners = torch.arange(len(rows), device=items.device).repeat(2)
        answers = self.reader.read_after(self.reader.read_prefix(before), owners, after)
        chosen = torch.cat([torch.ones(len(rows)), torch.zeros(len(rows))]).to(answers.device)
        losses = F.binary_cross_entropy_with_logits(answers, chosen, reduction="none")
        return whole_batch(losses[: 2 * count]).mean()

    def _drawn(self, mask: Tensor) -> tuple[Tensor, Tensor, int]:
        """Row and place of the targets that are asked about, drawn anew for each batch, and how many they are.

        Where the batch is a part of one and the draw hits none of its targets, one is given all the same, as 0.
        """
        rows, places = mask.nonzero(as_tuple=True)
        batch = Rows(len(rows))
        count = max(1, round(self.prompts_per_target * batch.total))
        if count == batch.total:
            return rows, places, len(rows)
        with shared_random():
            drawn = torch.randperm(batch.total)[:count] - batch.start
        mine = drawn[(drawn >= 0) & (drawn < len(rows))].to(rows.device)
        asked = mine if len(mine) else torch.zeros_like(rows[:1])
        return rows[asked], places[asked], len(mine)

    # -------------------------------------------------------------- prompts

    def _prefixes(self, histories: list[np.ndarray], users: Tensor | None) -> Block:
        """The users' part of prompts, with their vectors (B, d) unless those are None."""
        return self._block([self.prompt.prefix(history, users is not None) for history in histories], users)

    def _suffixes(self, items: Tensor, vectors: Tensor | None) -> Block:
        """The part of the items (R,), with theirs of all items' vectors (n_items, d) unless those are None."""
        words = [self.prompt.suffix(item, vectors is not None) for item in items.tolist()]
        return self._block(words, None if vectors is None else vectors[items])

    def _block(self, rows: list[np.ndarray], vectors: Tensor | None) -> Block:
        """Token ids, and one collaborative vector per row, as input vectors of the LLM."""
        words = self.reader.model.get_input_embeddings()
        ids, lengths = padded(rows, 0, words.weight.device)
        inputs = words(ids)
        if vectors is not None:
            inputs = fill_placeholders(inputs, ids == self.prompt.placeholder, self.mapper(vectors))
        return Block.of_vectors(inputs, lengths)

    # -------------------------------------------------------------- scoring

    def first_scores(self, cases: Interaction) -> Tensor:
        """(B, n_items) float64 of the collaborative filtering model."""
        return self.filter.user_vectors(cases).double() @ self.filter.item_vectors().double().T

    def asks_now(self) -> bool:
        """Not while the collaborative filtering model is being trained."""
        return int(self.stage) != FILTER

    def probabilities(self, cases: Interaction, owners: Tensor, items: Tensor) -> Tensor:
        """p(yes) / (p(yes) + p(no)) of items (n,) for the cases `owners` (n,): float64."""
        histories = self.histories(cases)
        users = vectors = None
        if int(self.stage) == VECTORS:
            users, vectors = self.filter.user_vectors(cases), self.filter.item_vectors()
        with_vector = vectors is not None

        def prefixes(rows: np.ndarray) -> Block:
            mine = None if users is None else users[torch.from_numpy(rows).to(users.device)]
            return self._prefixes([histories[row] for row in rows], mine)

        questions = Questions(
            prefix_lengths=np.array([len(self.prompt.prefix(history, with_vector)) for history in histories]),
            suffix_lengths=np.array([len(self.prompt.suffix(item, with_vector)) for item in items.tolist()]),
            owners=owners.cpu().numpy(),
            prefixes=prefixes,
            suffixes=lambda rows: self._suffixes(items[torch.from_numpy(rows).to(items.device)], vectors),
        )
        return ask(self.reader, questions, self.batch_tokens).double().sigmoid()

    @staticmethod
    def never_changes(name: str) -> bool:
        """Whether a weight of this name is the LLM's own."""
        return name.startswith(FROZEN) and LORA not in name
