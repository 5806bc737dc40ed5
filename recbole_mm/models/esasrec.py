"""eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion (RecSys 2025, arXiv 2508.06450)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.config.kinds import SHARE, above_zero, layers, number, or_null, size
from recbole_mm.config.recbole_keys import LOSSES
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.errors import ConfigError
from recbole_mm.models.full_sequence import FullSequenceLosses, Overlay

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

THEIRS: dict[str, dict[str, Any]] = {
    "full_sequence_loss": {"default": "sampled_softmax"},
    "n_negatives": {"default": 256},
    "item_dropout_prob": {"default": 0.2, "read_where": {}},
}
"""What is other here of the losses' settings."""

# fmt: off
SETTINGS = (
    *section("The encoder of sequences, of LiGR layers",
        Setting("n_layers", layers(0), 2, "Layers. Theirs: 1 to 4 by dataset."),
        Setting("n_heads", size(1), 1, "Attention heads. Theirs: 1, 2 or 8 by dataset."),
        Setting("hidden_size", size(1), 64, "Width of item and sequence vectors. Theirs: 64 or 256 by dataset."),
        Setting("inner_size", size(1), 256, "Width of the feed-forward layers. Theirs: 1 to 4 times hidden_size."),
        Setting("hidden_dropout_prob", SHARE, 0.2, "Dropout on hidden states. Theirs: 0.1 to 0.3 by dataset."),
        Setting("attn_dropout_prob", SHARE, 0.2, "Dropout on attention. Theirs: the same."),
        Setting("layer_norm_eps", number(0), 1e-5, "Added to the denominator of layer normalization."),
        Setting("embedding_init_std", or_null(above_zero()), None, "Standard deviation of the vectors of items and "
            "positions at the start. Null: Xavier normal as theirs, by which many items start smaller than positions "
            "and are learnt slowly.")),
    *section("The loss",
        *(replace(setting, **{"default": None, **THEIRS.get(setting.name, {})}) for setting in LOSSES)),
    *section("Training, on whole sequences",
        SHARED["MAX_ITEM_LIST_LENGTH"].but(50, "History length. Theirs: 50 to 200 by dataset."),
        SHARED["train_batch_size"].but(768, "Targets per optimizer step. Theirs: 128 sequences."),
        SHARED["learning_rate"].but(1e-3, "Of Adam. Theirs: 1e-3."),
        SHARED["train_neg_sample_args"].but(None, "Negatives are drawn by the loss, or come with the sequences.")),
)
# fmt: on


class LiGRLayer(nn.Module):
    """A pre-norm transformer layer whose two residual branches are gated by their input (LiGR, arXiv 2502.03417).

        h = x + sigmoid(W_a x + b_a) * Attention(LN(x))
        y = h + sigmoid(W_f h + b_f) * W_2 (silu(W_1 LN(h)) * W_3 LN(h))

    Args:
        width: d, of what is read and returned.
        heads: attention heads, which divide the width.
        inner: width of the feed-forward part.
        dropout, attention_dropout: of both branches' outputs and of the feed-forward part inside; of attention.
        eps: of layer normalization.
    """

    def __init__(
        self, width: int, heads: int, inner: int, dropout: float, attention_dropout: float, eps: float
    ) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.attention_norm, self.inner_norm = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attention_gate, self.inner_gate = nn.Linear(width, width), nn.Linear(width, width)
        self.read, self.write = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first = nn.Linear(width, 2 * inner, bias=False)
        self.second = nn.Linear(inner, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def attention(self, states: Tensor, mask: Tensor) -> Tensor:
        """Multi-head attention of normalised states (B, L, d) to each other; `mask` is added to the logits."""
        query, key, value = self.read(states).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attention_dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return self.write(found.transpose(1, 2).flatten(2))

    def feed_forward(self, states: Tensor) -> Tensor:
        """SwiGLU: W_2 (silu(W_1 x) * W_3 x) of normalised states (B, L, d)."""
        gate, value = self.first(states).chunk(2, dim=-1)
        return self.second(self.dropout(F.silu(gate) * value))

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """States (B, L, d) and a mask (B, 1, L, L) of 0 and large negative numbers -> states (B, L, d)."""
        found = self.attention(self.attention_norm(states), mask)
        states = states + torch.sigmoid(self.attention_gate(states)) * self.dropout(found)
        found = self.feed_forward(self.inner_norm(states))
        return states + torch.sigmoid(self.inner_gate(states)) * self.dropout(found)


class LiGREncoder(nn.ModuleList):
    """LiGR layers one after the other, called as RecBole's encoder is."""

    def forward(self, states: Tensor, mask: Tensor, output_all_encoded_layers: bool = True) -> list[Tensor]:
        """States (B, L, d), mask (B, 1, L, L) -> those after the last layer, as the only entry of a list."""
        for layer in self:
            states = layer(states, mask)
        return [states]


class eSASRec(FullSequenceLosses, SASRec):
    """SASRec of LiGR layers, trained by a sampled softmax on whole sequences.

    - What is read: item plus position, dropped out; nothing is normalised before the first layer or after the last.
      So what the two are at the start (`embedding_init_std`) decides how soon items are told apart.
    - Layers: `LiGRLayer`, causal.
    - Loss at every position: -log(exp(s+) / (exp(s+) + sum over `n_negatives` of exp(s-))), negatives uniform over
      the items; `full_sequence_loss` takes the other losses of SASRec as well.
    - Score: the product of the last state and the item's vector, which is also what is read.

    Raises:
        ConfigError: the heads do not divide the width, or there is no item to draw as a negative.

    Example:
        >>> recbole_mm.run("eSASRec", "my-data", config_dict={"n_layers": 1})  # doctest: +SKIP
    """

    supports_ddp = True  # the loss is the mean over the positions of a batch
    settings = SETTINGS
    input_type = InputType.POINTWISE

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        width, heads = config["hidden_size"], config["n_heads"]
        if width % heads:
            raise ConfigError(f"n_heads {heads} does not divide hidden_size {width}")
        without = {"n_layers": 0, "hidden_act": "gelu", "initializer_range": 0.0, "loss_type": "CE"}
        super().__init__(Overlay(config, without), dataset)
        self.LayerNorm = nn.Identity()
        self.trm_encoder = LiGREncoder(
            LiGRLayer(
                width,
                heads,
                config["inner_size"],
                config["hidden_dropout_prob"],
                config["attn_dropout_prob"],
                config["layer_norm_eps"],
            )
            for _ in range(config["n_layers"])
        )
        for weight in self.parameters():
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)
        if (spread := config["embedding_init_std"]) is not None:
            for embedding in (self.item_embedding, self.position_embedding):
                nn.init.normal_(embedding.weight, std=spread)
