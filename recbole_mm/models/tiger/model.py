"""TIGER: "Recommender Systems with Generative Retrieval" (NeurIPS 2023, arXiv 2305.05065)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.config.kinds import NAMES, layers, number, or_null, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.data.loaders import TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.graph import TokenOrder
from recbole_mm.models.base import SequentialModel
from recbole_mm.models.propagating import Kept
from recbole_mm.models.settings import AN_ITEM, IMAGE_AND_TEXT, ITEM_FEATURES
from recbole_mm.models.tiger.codes import CodeTree, semantic_ids
from recbole_mm.models.tiger.network import Decoder, after_items, encoder
from recbole_mm.models.tiger.search import item_scores

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

TOKENS_AT_ONCE = 65536
"""That the decoder reads while items are ranked: 256 MB of a feed-forward layer 1024 wide."""

# fmt: off
SETTINGS = (
    *section(AN_ITEM,
        Setting("content_features", NAMES, ["text"], "Entries of item_features, whose vectors of length 1 are "
            "quantised side by side. Paper: text."),
        SHARED["item_features"].but({"text": IMAGE_AND_TEXT["text"]}, ITEM_FEATURES)),
    *section("Codes of items",
        Setting("code_levels", layers(1), 3, "Codes that an item's vector decides; one more tells apart items that "
            "share them. Paper: 3."),
        Setting("codebook_size", size(2), 256, "Codes of each level. Paper: 256.")),
    *section("The model that writes codes",
        Setting("n_layers", layers(1), 4, "Layers of the encoder, and of the decoder. Paper: 4."),
        Setting("n_heads", size(1), 4, "Attention heads, which share hidden_size. Paper: 6 of width 64."),
        Setting("hidden_size", size(1), 128, "Width. Paper: 128."),
        Setting("inner_size", size(1), 1024, "Width of the feed-forward layers. Paper: 1024."),
        Setting("dropout_prob", number(0, 1, below=True), 0.1, "Dropout on hidden states and attention, below 1. "
            "Paper: 0.1."),
        Setting("beam_size", or_null(size(1)), 50, "Prefixes of each level that are followed when items are ranked; "
            "the items of others come after all of theirs. Null: all, which ranks by exact likelihoods at many times "
            "the cost.")),
    *section("Training, on whole sequences",
        SHARED["MAX_ITEM_LIST_LENGTH"].but(20, "History length. Paper: 20."),
        SHARED["train_batch_size"].but(1024, "Targets per optimizer step. Paper: 256."),
        SHARED["learning_rate"].but(1e-3, "Of Adam. Paper: 0.01, falling with the root of the steps."),
        SHARED["train_neg_sample_args"].but(None, "No negatives: cross-entropy over the codes of each level.")),
)
# fmt: on


class TIGER(SequentialModel):
    """Writes the codes of the next item, one after the other, and ranks items by how likely their codes are.

    - Codes of an item (c_1 .. c_K): its content vector quantised level by level, `semantic_ids`, and a last one that
      tells apart items that share the others. They rest on no interaction.
    - Encoder over the codes of the history; decoder over the codes before, p(c_k | history, c_1 .. c_(k-1)).
    - Loss: -sum over k of log p(c_k | ...), averaged over targets.
    - Ranking: `item_scores`, a beam search that follows prefixes of items alone.

    An item's tokens read those of the items before it, so one pass trains on the next item at every position.

    Needs from the dataset: `item_feature(name)`, float32 (n_items, d), for each name in `content_features`.

    Raises:
        ConfigError: no feature is named, there is none of that name, or the heads do not divide the width.

    Example:
        >>> recbole_mm.run("TIGER", "my-data", config_dict={"content_features": ["text"]})  # doctest: +SKIP
    """

    settings = SETTINGS
    input_type = InputType.POINTWISE
    trains_on_full_sequences = True
    ignores_right_padding = True
    supports_ddp = True
    keeps_contents = True  # `codes`
    codes: Tensor
    offsets: Tensor

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        width, heads = config["hidden_size"], config["n_heads"]
        if width % heads:
            raise ConfigError(f"n_heads {heads} does not divide hidden_size {width}")
        codes = codes_of_items(config, dataset)
        self.length: int = codes.shape[1]
        sizes = [config["codebook_size"]] * config["code_levels"] + [max(config["codebook_size"], int(codes.max()) + 1)]
        self.sizes = sizes
        self.beam: int | None = config["beam_size"]
        self.register_buffer("codes", torch.from_numpy(codes))  # saved: other machines may round clusters otherwise
        self.register_buffer("offsets", torch.tensor([0, *np.cumsum(sizes)[:-1]]), persistent=False)
        sizes_of_layers = config["n_layers"], width, heads, config["inner_size"], config["dropout_prob"]
        self.code_embedding = nn.Embedding(sum(sizes), width)
        self.position_embedding = nn.Embedding(self.max_seq_length, width)
        self.start = nn.Parameter(torch.empty(width))
        self.dropout = nn.Dropout(config["dropout_prob"])
        self.encoder, self.decoder = encoder(*sizes_of_layers), Decoder(*sizes_of_layers)
        self.output = nn.Linear(width, sum(sizes))
        for weight in (self.code_embedding.weight, self.position_embedding.weight, self.start, self.output.weight):
            nn.init.normal_(weight, std=0.02)
        self._tree = Kept()

    # ---- the network ----

    def encoded(self, history: Tensor) -> Tensor:
        """Read histories: item ids (B, W) -> states of their codes (B, W * K, d)."""
        tokens = self.code_embedding(self.codes[history] + self.offsets)
        tokens = tokens + self.position_embedding.weight[: history.shape[1], None]
        later = after_items(history.shape[1], self.length, history.device)
        return self.encoder(self.dropout(tokens.flatten(1, 2)), mask=later)

    def path_tokens(self, codes: Tensor) -> Tensor:
        """The start and the codes after it: (B, P, k) -> (B, P, k + 1, d)."""
        start = self.start.expand(*codes.shape[:2], 1, -1)
        tokens = self.code_embedding(codes + self.offsets[: codes.shape[2]])
        return self.dropout(torch.cat([start, tokens], dim=2))

    def logits(self, states: Tensor, level: int) -> Tensor:
        """Logits of the codes of a level, counted from 0: (..., d) -> (..., C)."""
        own = slice(int(self.offsets[level]), int(self.offsets[level]) + self.sizes[level])
        return F.linear(states, self.output.weight[own], self.output.bias[own])

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """-sum over k of log p(c_k | history, c_1 .. c_(k-1)), averaged over the targets of the batch."""
        history, mask = interaction[self.ITEM_SEQ], interaction[TARGET_MASK]
        targets = self.codes[interaction[TARGETS]]
        later = after_items(history.shape[1], self.length, history.device)
        states = self.decoder(self.path_tokens(targets[..., :-1]), self.encoded(history), later)[mask]
        each = [
            F.cross_entropy(self.logits(states[:, level], level), targets[mask][:, level])
            for level in range(self.length)
        ]
        return torch.stack(each).sum()

    # ---- ranking ----

    def tree(self) -> CodeTree:
        """The tree of all items' codes, made anew when other codes are loaded."""
        key = self.codes._version, self.codes.data_ptr()
        if self._tree.key != key:
            self._tree.key, self._tree.value = key, CodeTree(self.codes[1:].cpu().numpy())
        return self._tree.value

    def _next_codes(self, memory: Tensor, padding: Tensor, given: Tensor) -> Tensor:
        """Log-probabilities (B, P, C) of the code after each of the prefixes (B, P, k)."""
        step = max(1, TOKENS_AT_ONCE // (len(given) * (given.shape[2] + 1)))
        found = [
            self.logits(self.decoder(self.path_tokens(part), memory, padding=padding)[:, :, -1], given.shape[2])
            for part in given.split(step, dim=1)
        ]
        return torch.cat(found, dim=1).log_softmax(dim=-1)

    def _scores(self, history: Tensor, lengths: Tensor) -> Tensor:
        memory = self.encoded(history)
        there = torch.arange(history.shape[1], device=history.device) < lengths[:, None]
        padding = ~there.repeat_interleave(self.length, dim=1)
        follow = partial(self._next_codes, memory, padding)
        scores = item_scores(self.tree(), follow, len(history), self.beam, history.device)
        return F.pad(scores, (1, 0), value=float(scores.detach().min()))

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items (B, n_items); see `item_scores`. That of the padding item is the lowest of all."""
        history, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        rows = max(1, TOKENS_AT_ONCE // ((self.beam or self.codes.shape[0]) * self.length))
        return torch.cat([self._scores(*part) for part in zip(history.split(rows), lengths.split(rows))])

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores (B,) of the rows' own items, those of `full_sort_predict`."""
        return self.full_sort_predict(interaction).gather(1, interaction[self.ITEM_ID][:, None])[:, 0]


def codes_of_items(config: Config, dataset: MultimodalDataset) -> np.ndarray:
    """Return the codes of all items, (n_items, K) int64; those of the padding item are zeros.

    Clusters start from items in the order of their tokens, so that codes do not depend on RecBole's numbers.

    Raises:
        ConfigError: `content_features` names no feature, or one that is not there.
    """
    names = config["content_features"]
    if not names:
        raise ConfigError("content_features names no feature; give entries of item_features, such as [text]")
    features = [torch.as_tensor(np.asarray(dataset.item_feature(name)), dtype=torch.float32) for name in names]
    vectors = torch.cat([F.normalize(feature, dim=1) for feature in features], dim=1).numpy()
    order = TokenOrder(dataset.item_tokens()).items[1:]
    codes = np.zeros((len(vectors), config["code_levels"] + 1), dtype=np.int64)
    codes[order] = semantic_ids(vectors[order], config["code_levels"], config["codebook_size"], config["seed"])
    return codes
