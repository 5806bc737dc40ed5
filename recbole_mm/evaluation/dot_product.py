"""Models whose score is the dot product of a user vector and an item vector: item vectors once, a product per block.

A model says so itself by offering both of

- `user_vectors(interaction) -> (B, d)`, one vector per row of the interaction;
- `item_vectors() -> (N, d)`, one per item id, padding item 0 included.

RecBole's own models do not; `ADAPTERS` spells out the two halves of their `full_sort_predict`, by class name. Models
that score otherwise (a distance, a sigmoid, an attention per item) are not listed and keep their `full_sort_predict`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.nn.functional import normalize, relu

from recbole_mm.models.products import onednn_takes

Forward = Callable[[Any, Any], torch.Tensor]

# A score block that stays in the cache is counted at no cost beside the product that makes it.
CPU_BLOCK_BYTES = 8 << 20
CPU_MIN_ROWS = 16


class Adapter(NamedTuple):
    """`users(model, interaction) -> (B, d)` and `items(model) -> (N, d)` of one RecBole class."""

    users: Forward
    items: Callable[[Any], torch.Tensor]


def _embedding(model: Any) -> torch.Tensor:
    return model.item_embedding.weight


def _of_sequence(model: Any, x: Any) -> torch.Tensor:
    return model.forward(x[model.ITEM_SEQ])


def _of_sequence_and_length(model: Any, x: Any) -> torch.Tensor:
    return model.forward(x[model.ITEM_SEQ], x[model.ITEM_SEQ_LEN])


def _of_sequence_and_user(model: Any, x: Any) -> torch.Tensor:
    return model.forward(x[model.ITEM_SEQ], x[model.USER_ID])


def _bert4rec_users(model: Any, x: Any) -> torch.Tensor:
    lengths = x[model.ITEM_SEQ_LEN]
    masked = model.reconstruct_test_data(x[model.ITEM_SEQ], lengths)
    vectors = model.gather_indexes(model.forward(masked), lengths - 1)
    return torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=1)


def _bert4rec_items(model: Any) -> torch.Tensor:
    # The item's bias becomes one more dimension, against the 1 of every user.
    return torch.cat([model.item_embedding.weight[: model.n_items], model.output_bias.unsqueeze(1)], dim=1)


def _fpmc_users(model: Any, x: Any) -> torch.Tensor:
    last = x[model.ITEM_SEQ].gather(1, (x[model.ITEM_SEQ_LEN] - 1).unsqueeze(1)).squeeze(1)
    return torch.cat([model.UI_emb(x[model.USER_ID]), model.LI_emb(last)], dim=1)


def _s3rec_users(model: Any, x: Any) -> torch.Tensor:
    output = model.forward(x[model.ITEM_SEQ], bidirectional=False)
    return model.gather_indexes(output, x[model.ITEM_SEQ_LEN] - 1)


def _simplex_users(model: Any, x: Any) -> torch.Tensor:
    user = x[model.USER_ID]
    history = model.item_emb(model.history_item_id[user])
    return normalize(model.get_UI_aggregation(model.user_emb(user), history, model.history_item_len[user]), dim=1)


def _propagate(model: Any) -> None:
    """What graph models do once after training: keep the propagated vectors until the weights change again."""
    if model.restore_user_e is None or model.restore_item_e is None:
        model.restore_user_e, model.restore_item_e = model.forward()[:2]


def _graph_users(model: Any, x: Any) -> torch.Tensor:
    _propagate(model)
    return model.restore_user_e[x[model.USER_ID]]


def _graph_items(model: Any) -> torch.Tensor:
    _propagate(model)
    return model.restore_item_e


def _propagate_sgl(model: Any) -> None:
    if model.restore_user_e is None or model.restore_item_e is None:
        model.restore_user_e, model.restore_item_e = model.forward(model.train_graph)


def _sgl_users(model: Any, x: Any) -> torch.Tensor:
    _propagate_sgl(model)
    return model.restore_user_e[x[model.USER_ID]]


def _sgl_items(model: Any) -> torch.Tensor:
    _propagate_sgl(model)
    return model.restore_item_e


_PLAIN = Adapter(_of_sequence_and_length, _embedding)
_GRAPH = Adapter(_graph_users, _graph_items)

ADAPTERS: dict[str, Adapter] = {
    # sequential: the state of the sequence against the item embeddings
    "FDSA": _PLAIN,
    "FEARec": _PLAIN,
    "GCSAN": _PLAIN,
    "GRU4Rec": _PLAIN,
    "GRU4RecF": _PLAIN,
    "LightSANs": _PLAIN,
    "NARM": _PLAIN,
    "SASRec": _PLAIN,
    "SASRecF": _PLAIN,
    "SINE": _PLAIN,
    "SRGNN": _PLAIN,
    "STAMP": _PLAIN,
    "NextItNet": Adapter(_of_sequence, _embedding),
    "SHAN": Adapter(_of_sequence_and_user, _embedding),
    "HGN": Adapter(_of_sequence_and_user, lambda model: model.item_embedding_for_prediction.weight),
    "NPE": Adapter(_of_sequence_and_user, lambda model: relu(model.item_embedding.weight)),
    "Caser": Adapter(lambda model, x: model.forward(x[model.USER_ID], x[model.ITEM_SEQ]), _embedding),
    "HRM": Adapter(
        lambda model, x: model.forward(x[model.ITEM_SEQ], x[model.USER_ID], x[model.ITEM_SEQ_LEN]), _embedding
    ),
    "FOSSIL": Adapter(
        lambda model, x: model.forward(x[model.ITEM_SEQ], x[model.ITEM_SEQ_LEN], x[model.USER_ID]), _embedding
    ),
    "CORE": Adapter(_of_sequence, lambda model: normalize(model.item_embedding.weight, dim=-1) / model.temperature),
    "BERT4Rec": Adapter(_bert4rec_users, _bert4rec_items),
    "S3Rec": Adapter(_s3rec_users, lambda model: model.item_embedding.weight[: model.n_items - 1]),
    "FPMC": Adapter(_fpmc_users, lambda model: torch.cat([model.IU_emb.weight, model.IL_emb.weight], dim=1)),
    # general
    "BPR": Adapter(lambda model, x: model.get_user_embedding(x[model.USER_ID]), _embedding),
    "LINE": Adapter(lambda model, x: model.user_embedding(x[model.USER_ID]), _embedding),
    "ENMF": Adapter(lambda model, x: model.user_embedding(x[model.USER_ID]) * model.H_i.weight, _embedding),
    "NCEPLRec": Adapter(
        lambda model, x: model.user_embeddings[x[model.USER_ID]], lambda model: model.item_embeddings.T
    ),
    "SimpleX": Adapter(_simplex_users, lambda model: normalize(model.item_emb.weight, dim=1)),
    "DGCF": _GRAPH,
    "LightGCN": _GRAPH,
    "NCL": _GRAPH,
    "NGCF": _GRAPH,
    "SpectralCF": _GRAPH,
    "SGL": Adapter(_sgl_users, _sgl_items),
    # with a knowledge graph
    "CKE": Adapter(
        lambda model, x: model.user_embedding(x[model.USER_ID]),
        lambda model: model.item_embedding.weight + model.entity_embedding.weight[: model.n_items],
    ),
}


@dataclass(frozen=True)
class DotProduct:
    """The two halves of one model: `users(interaction) -> (B, d)`, `items() -> (N, d)`."""

    users: Callable[[Any], torch.Tensor]
    items: Callable[[], torch.Tensor]


def dot_product_of(model: Any) -> DotProduct | None:
    """The two halves of a model's score, or None where it scores in another way.

    A subclass of a RecBole model counts as that model unless it defines `full_sort_predict` anew.
    """
    if callable(getattr(model, "user_vectors", None)) and callable(getattr(model, "item_vectors", None)):
        return DotProduct(model.user_vectors, model.item_vectors)
    owner = next((base for base in type(model).__mro__ if "full_sort_predict" in vars(base)), None)
    if owner is None or not owner.__module__.startswith("recbole.model.") or owner.__name__ not in ADAPTERS:
        return None
    adapter = ADAPTERS[owner.__name__]
    return DotProduct(lambda interaction: adapter.users(model, interaction), lambda: adapter.items(model))


class ScoreBlocks:
    """Scores of blocks of users against all items, written into one buffer over and over.

    On a CPU in float32 the item vectors are packed once for oneDNN, which can be twice as fast as `torch.mm` because it
    uses the widest vector instructions of every make of processor; elsewhere it is `torch.mm` into the buffer.

    Args:
        item_vectors: (N, d). Half precision is raised to float32, so that scores are not rounded into ties.
        memory_mb: at most so much for the scores; fewer rows are used on a CPU, where a block should fit its cache.
    """

    def __init__(self, item_vectors: torch.Tensor, memory_mb: float) -> None:
        self.dtype = torch.float64 if item_vectors.dtype == torch.float64 else torch.float32
        self._items = item_vectors.detach().to(self.dtype)
        row_bytes = self._items.shape[0] * self._items.element_size()
        self.rows = max(1, int(memory_mb * 2**20) // row_bytes)
        if item_vectors.device.type == "cpu":
            self.rows = min(self.rows, max(CPU_MIN_ROWS, CPU_BLOCK_BYTES // row_bytes))
        self._packed: torch.Tensor | None = None
        self._buffer: torch.Tensor | None = None
        if can_pack(self._items):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._items.contiguous(), self.rows)

    def __call__(self, user_vectors: torch.Tensor) -> torch.Tensor:
        """(B, N) scores of (B, d) users, B <= `rows`; valid until the next call."""
        users = user_vectors.to(self.dtype)
        if self._packed is not None:
            return torch.ops.mkldnn._linear_pointwise(users.contiguous(), self._packed, None, "none", [], "")
        if self._buffer is None:
            self._buffer = users.new_empty((self.rows, len(self._items)))
        return torch.mm(users, self._items.T, out=self._buffer[: len(users)])


def can_pack(item_vectors: torch.Tensor) -> bool:
    """Whether this build of torch has oneDNN's product with packed weights for such vectors."""
    return onednn_takes(item_vectors) and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
