"""MGCN: Multi-View Graph Convolutional Network for Multimedia Recommendation (ACM MM 2023, arXiv 2308.03588)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recbole_mm.models.layers import linear
from recbole_mm.models.multi_view import MultiViewRecommender

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset


class MGCN(MultiViewRecommender):
    """Content purified by behaviour, smoothed over similar items, and fused as behaviour prefers.

    With x the items' ID embeddings, f^m the features of modality m and e_id the behaviour view:

    - Purifier: p^m = x * sigmoid(W_2^m (W_1^m f^m + b_1^m) + b_2^m).
    - Smoothing: e_m = S^m p^m of items, and of users what they receive; see `MultiViewRecommender`.
    - Shared part: a = softmax over m of q . tanh(W_4 e_m + b_4), e_s = sum over m of a_m e_m.
    - Fusion: e_mul = e_s + mean over m of (e_m - e_s) * sigmoid(W_3^m e_id + b_3^m).
    - Score: (e_id + e_mul) of the user . (e_id + e_mul) of the item.

    An item without a modality has no edge in its graph, so that e_m is zero there.

    Example:
        >>> recbole_mm.run("MGCN", "my-data", config_dict={"content_features": ["image", "text"]})  # doctest: +SKIP
    """

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        width = self.width
        self.projections = nn.ModuleList(linear(feature.shape[1], width) for feature in self.features())
        self.gates = nn.ModuleList(linear(width, width) for _ in self.projections)
        self.preferences = nn.ModuleList(linear(width, width) for _ in self.projections)
        self.attention = nn.Sequential(linear(width, width), nn.Tanh(), linear(width, 1, bias=False))

    def purified(self, place: int) -> Tensor:
        """p^m of all items, (n_items, d), m by its place in `content_features`."""
        return self.item_embedding.weight * self.gates[place](self.projections[place](self.feature(place))).sigmoid()

    def views(self) -> tuple[Tensor, Tensor]:
        """e_id and e_mul of all users, then all items, (n_users + n_items, d) each."""
        behaviour = self.behaviour()
        content = torch.stack(
            [self.smoothed(self.purified(place), graph) for place, graph in enumerate(self.item_graphs)]
        )
        shared = (self.attention(content).softmax(dim=0) * content).sum(dim=0)
        preferred = torch.stack([prefer(behaviour).sigmoid() for prefer in self.preferences])
        return behaviour, shared + (preferred * (content - shared)).mean(dim=0)
