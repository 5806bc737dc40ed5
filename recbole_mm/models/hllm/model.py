"""HLLM: "Enhancing Sequential Recommendations via Hierarchical Large Language Models for Item and User Modeling"
(2409.12740)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.data.loaders import TARGET_MASK, TARGETS
from recbole_mm.models.base import SequentialModel
from recbole_mm.models.hllm.llms import ItemLLM, UserLLM, content_groups, decoder_of
from recbole_mm.models.hllm.loss import PROBED_TARGETS, CollapseWatch, alike_share, exclude_similar, shared_infonce
from recbole_mm.models.hllm.settings import LARGEST_SCALE, SETTINGS
from recbole_mm.models.hyper import LORA_DEFAULTS, read_map
from recbole_mm.models.molar.items import ContentItems
from recbole_mm.models.trained_items import CACHED, CachePolicy, require_one_process, with_rate_of
from recbole_mm.models.whole_batch import Rows, shared_random

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset
    from recbole_mm.data.inputs import ModelInputs

ITEMS_AT_ONCE = 65536
"""Items whose vectors are computed in one call for ranking; the item LLM cuts them further, by tokens."""


class HLLM(SequentialModel):
    """An item LLM turns each item's text into a vector; a user LLM reads the history's vectors and predicts the next.

    Trained at every position by InfoNCE over cosines times a learnable scale, with negatives that the batch shares.
    The score of an item is the same logit: scale * cos(state, item vector).

    Needs from the dataset: `mllm`, whose decoder starts both LLMs; and where the item LLM is frozen
    `item_text_vectors`, float32 (n_items, h), else `item_token_ids` (n_items, T) and `item_token_lengths` (n_items,).

    Example:
        >>> recbole_mm.run("HLLM", "my-data")  # doctest: +SKIP
    """

    settings = SETTINGS
    input_type = InputType.POINTWISE
    trains_on_full_sequences = True
    supports_ddp = True
    ignores_right_padding = True
    content_group: Tensor

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.n_train_items: int = dataset.train_item_num
        self.shared_negatives: int = config["shared_negatives"]
        self.false_negatives: str = config["false_negatives"]
        self.similar_above: float = config["similar_above"]
        self.least_negatives: int = config["least_negatives"]
        checkpointing = bool(config["gradient_checkpointing"])
        self.items: ContentItems | ItemLLM
        if config["item_llm_tuning"] == "frozen":
            vectors = torch.as_tensor(dataset.inputs.item_text_vectors, dtype=torch.float32)
            kinds = config["item_projection"], config["item_normalization"]
            trained = torch.as_tensor(dataset.training_inputs.item_text_vectors, dtype=torch.float32)
            self.items = ContentItems([vectors], vectors.shape[1], *kinds, [trained])
            contents = self.items.vectors
        else:
            tokens, lengths = dataset.inputs.item_token_ids, dataset.inputs.item_token_lengths
            lora = read_map(config, "item_llm_lora", LORA_DEFAULTS) if config["item_llm_tuning"] == "lora" else None
            given = CachePolicy.of(config), checkpointing, config["mllm_layers"], lora
            self.items = ItemLLM(dataset.inputs.mllm, tokens, lengths, *given)
            contents = self.items.texts()
        self.dropout = nn.Dropout(config["embedding_dropout"])
        user_llm = decoder_of(dataset.inputs.mllm, config["user_llm_layers"], checkpointing)
        self.user_llm = UserLLM(user_llm, trainable=config["user_llm_tuning"] == "full")
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / config["temperature"])))
        self.collapse = CollapseWatch(config["collapse_patience"])
        groups = torch.arange(self.n_items) if self.false_negatives == "item" else content_groups(contents)
        self.register_buffer("content_group", groups, persistent=False)
        self._table = ItemTable()

    @classmethod
    def requirements(cls, config: Config) -> tuple[str, ...]:
        """What the dataset must bring: vectors of a frozen item LLM, or the words that a trained one reads.

        Raises:
            ConfigError: several workers would each have a cache of vectors.
        """
        if config["item_llm_tuning"] != "frozen" and config["item_llm_negatives"] == CACHED:
            require_one_process(config, "item_llm_negatives: cached")
        return ("mllm", "item_text_vectors" if config["item_llm_tuning"] == "frozen" else "item_tokens")

    @classmethod
    def wants_negatives(cls, config: Config) -> bool:
        """No: the negatives are the batch's, not the targets'."""
        return False

    def parameter_groups(self, config: Config) -> list[dict]:
        """A trained item LLM at `item_llm_learning_rate`, everything else at `learning_rate`."""
        if config["item_llm_tuning"] == "frozen":
            return [{"params": list(self.parameters())}]
        return with_rate_of(self.items, config["item_llm_learning_rate"], self)

    # ------------------------------------------------------------- training

    def start_epoch(self, epoch: int) -> None:
        """Compute a trained item LLM's cached vectors anew."""
        if isinstance(self.items, ItemLLM):
            self.items.start_epoch()

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """InfoNCE averaged over the targets of the batch.

        Raises:
            CollapseError: see `CollapseWatch`.
        """
        with torch.no_grad():  # in place: a parameter beyond its bound would have no gradient to return by
            self.log_scale.clamp_(0, math.log(LARGEST_SCALE))
        mask = interaction[TARGET_MASK]
        targets = interaction[TARGETS][mask]
        negatives = self.draw_negatives(mask.device)
        history, target_vectors, negative_vectors = self._encode(interaction[self.ITEM_SEQ][mask], targets, negatives)
        sequences = history.new_zeros(*mask.shape, history.shape[-1])
        sequences[mask] = history
        states = self.user_llm(self.dropout(sequences))[mask]
        with torch.autocast(states.device.type, enabled=False):  # cosines near 1 need more than bfloat16's 3 digits
            states, positives, others = (F.normalize(x, dim=-1) for x in (states, target_vectors, negative_vectors))
            excluded = self._excluded(targets, negatives, positives.detach(), others.detach())
            return shared_infonce(states, positives, others, self._scale(), excluded)

    def draw_negatives(self, device: torch.device) -> Tensor:
        """`shared_negatives` distinct item ids, uniform over all items; all items where there are not so many."""
        with shared_random():
            return 1 + torch.randperm(self.n_train_items - 1, device=device)[: self.shared_negatives]

    def _encode(self, *ids: Tensor) -> tuple[Tensor, ...]:
        """Vectors of histories, targets and negatives, (n,) -> (n, h) each; every distinct item is computed once."""
        if isinstance(self.items, ItemLLM) and self.items.policy.negatives == CACHED:
            with self.items.batch(torch.cat(ids[:2])):
                return tuple(self.items.look_up(part) for part in ids)
        distinct, place = torch.unique(torch.cat(ids), return_inverse=True)
        vectors = self.items(distinct).float()
        return tuple(vectors[part] for part in place.split([len(part) for part in ids]))

    def _excluded(self, targets: Tensor, negatives: Tensor, positives: Tensor, others: Tensor) -> Tensor:
        """Bool (n, k): which negatives do not count for which target, by `false_negatives`; feeds the watch."""
        same = self.content_group[targets][:, None] == self.content_group[negatives][None, :]
        probed = len(targets)
        if self.false_negatives != "similar":
            probed = max(0, min(probed, PROBED_TARGETS - Rows(probed).start))
        similarity = positives[:probed] @ others.T
        if self.training:
            self.collapse.see(alike_share(similarity, same[:probed], self.similar_above))
        if self.false_negatives == "similar":
            return exclude_similar(similarity, same, self.similar_above, self.least_negatives)
        return same

    def _scale(self) -> Tensor:
        return self.log_scale.clamp(0, math.log(LARGEST_SCALE)).exp()

    # -------------------------------------------------------------- scoring

    def item_table(self) -> Tensor:
        """Vectors of all items (n_items, h), without gradient; kept until training goes on or weights are loaded."""
        if isinstance(self.items, ItemLLM) and self.items.policy.negatives == CACHED:
            return self.items.table()
        if self.training or self._table.vectors is None:
            with torch.no_grad():
                parts = torch.arange(self.n_items, device=self.log_scale.device).split(ITEMS_AT_ONCE)
                vectors = torch.cat([self.items(part).float() for part in parts])
            if self.training:
                return vectors
            self._table.vectors = vectors
        return self._table.vectors

    def train(self, mode: bool = True) -> HLLM:
        """Set the mode; training drops the item vectors kept in evaluation."""
        if mode:
            self._table.vectors = None
        return super().train(mode)

    def load_state_dict(self, *args, **kwargs):
        """Load weights, and drop the item vectors of the former ones."""
        self._table.vectors = None
        return super().load_state_dict(*args, **kwargs)

    def item_vectors(self) -> Tensor:
        """Return the item vectors (n_items, h), of length 1."""
        return F.normalize(self.item_table(), dim=-1)

    def new_item_vectors(self, new: ModelInputs, known: ModelInputs) -> Tensor:
        """Return the vectors (m, h) of new items, of length 1; only of a frozen item LLM."""
        if not isinstance(self.items, ContentItems):
            raise NotImplementedError
        sources = [torch.as_tensor(each.item_text_vectors, dtype=torch.float32) for each in (new, known)]
        return F.normalize(self.items.map_new(sources[:1], sources[1:])[1:].float(), dim=-1)

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return the state after each history's last item (B, h), of length `scale`."""
        history, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        states = self.user_llm(self.dropout(self.item_table()[history]))
        last = states[torch.arange(len(states), device=states.device), lengths - 1]
        return F.normalize(last, dim=-1) * self._scale()

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of each row's own item (B,)."""
        return (self.user_vectors(interaction) * self.item_vectors()[interaction[self.ITEM_ID]]).sum(-1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items (B, n_items)."""
        return self.user_vectors(interaction) @ self.item_vectors().T


class ItemTable:
    """Holds the vectors of all items while a model is evaluated; no tensor of the model, so never saved with it."""

    vectors: Tensor | None = None
