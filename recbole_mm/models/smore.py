"""SMORE: Spectrum-based Modality Representation Fusion Graph Convolutional Network for Multimodal Recommendation
(WSDM 2025, arXiv 2412.14978)."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from recbole_mm.models.layers import linear
from recbole_mm.models.multi_view import MultiViewRecommender

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset


class SMORE(MultiViewRecommender):
    """Modalities filtered and fused in the frequency domain, smoothed over similar items, weighed by behaviour.

    With x the items' ID embeddings, f^m the features of modality m, F the Fourier transform over a vector's entries and
    e_id the behaviour view:

    - Spectrum: h^m = F(W_1^m f^m + b_1^m); g^m = F^-1(w^m * h^m) of each modality alone, and of all of them
      g^f = F^-1(w^f * product over m of h^m), with learnt complex filters w.
    - Purifier: p^k = x * sigmoid(W_3^k g^k + b_3^k) for k a modality or f.
    - Smoothing: e_k = S^k p^k of items, S^f the larger weight of each edge in any S^m; of users what they receive.
    - Modalities as the fusion attends to them: e_m * softmax(W_5^m tanh(W_4^m e_f + b_4^m)), over the d entries.
    - Preference: e_mul = mean over k of e_k * sigmoid(W_6^k e_id + b_6^k).
    - Score: (e_id + e_mul) of the user . (e_id + e_mul) of the item.

    An item without a modality has the factor 1 in the product, and no edge in that modality's graph.

    Example:
        >>> recbole_mm.run("SMORE", "my-data", config_dict={"content_features": ["image", "text"]})  # doctest: +SKIP
    """

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        width, count = self.width, self.feature_count
        self.projections = nn.ModuleList(linear(feature.shape[1], width) for feature in self.features())
        self.filters = nn.Parameter(torch.zeros(count + 1, width // 2 + 1, 2))
        nn.init.normal_(self.filters, std=0.02)
        with torch.no_grad():
            self.filters[..., 0] += 1.0  # lets everything pass at the start
        self.gates = nn.ModuleList(linear(width, width) for _ in range(count + 1))
        self.preferences = nn.ModuleList(linear(width, width) for _ in range(count + 1))
        self.attention = nn.ModuleList(
            nn.Sequential(linear(width, width), nn.Tanh(), linear(width, width, bias=False)) for _ in range(count)
        )

    def all_graphs(self, graphs: list[csr_array]) -> list[csr_array]:
        """The graphs of each modality, and S^f at the end."""
        return [*graphs, reduce(lambda one, other: one.maximum(other), graphs)]

    def signals(self) -> list[Tensor]:
        """g of each modality, and g^f at the end: (n_items, d) each."""
        spectra = [
            torch.fft.rfft(layer(self.feature(place)), norm="ortho") for place, layer in enumerate(self.projections)
        ]
        fused = torch.ones_like(spectra[0])
        for place, spectrum in enumerate(spectra):
            fused = fused * torch.where(self.has_feature(place)[:, None], spectrum, 1.0)
        filters = torch.view_as_complex(self.filters)
        return [
            torch.fft.irfft(spectrum * own, n=self.width, norm="ortho")
            for spectrum, own in zip([*spectra, fused], filters)
        ]

    def views(self) -> tuple[Tensor, Tensor]:
        """e_id and e_mul of all users, then all items, (n_users + n_items, d) each."""
        behaviour, items = self.behaviour(), self.item_embedding.weight
        *alone, fused = (
            self.smoothed(items * gate(signal).sigmoid(), graph)
            for gate, signal, graph in zip(self.gates, self.signals(), self.item_graphs)
        )
        attended = [attend(fused).softmax(dim=-1) * one for attend, one in zip(self.attention, alone)]
        preferred = [prefer(behaviour).sigmoid() * one for prefer, one in zip(self.preferences, [*attended, fused])]
        return behaviour, torch.stack(preferred).mean(dim=0)
