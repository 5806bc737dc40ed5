"""Sources of Molar's item vectors: the MIRM, item features, or several of them concatenated."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recbole_mm.errors import ConfigError
from recbole_mm.models.layers import ModalityDropout, standardise

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset
    from recbole_mm.data.inputs import ModelInputs

MIRM = "mllm"
"""The entry of `item_sources` that stands for the MIRM's vectors, Eq. (1)."""


def item_sources(config: Config) -> list[str]:
    """Return the names in `item_sources`, checked.

    Raises:
        ConfigError: it is no list of different names, or a feature is called as the MIRM's vectors are.
    """
    names = config["item_sources"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"item_sources: {names!r} is not a list of mllm and names of item_features, such as [mllm]")
    if len(set(names)) < len(names):
        raise ConfigError(f"item_sources: {', '.join(names)} names one source twice")
    if MIRM in (config["item_features"] or {}):
        raise ConfigError(
            f"item_features.{MIRM}: the name stands for the MIRM's vectors in item_sources; choose another"
        )
    return names


def sources_of(names: Sequence[str], inputs: ModelInputs) -> list[Tensor]:
    """Return the vectors (n_items, d_k) float32 of each of `item_sources`."""
    found = [inputs.item_vectors if name == MIRM else inputs.item_features[name] for name in names]
    return [torch.as_tensor(vectors, dtype=torch.float32) for vectors in found]


def checked_sources(config: Config, dataset: MultimodalDataset) -> list[Tensor]:
    """Return the vectors of each of `item_sources`.

    Raises:
        ConfigError: there is no such feature.
    """
    for name in item_sources(config):
        if name != MIRM:
            dataset.item_feature(name)  # refuses one that is not there
    return sources_of(item_sources(config), dataset.inputs)


class ContentItems(nn.Module):
    """Frozen vectors of each source, standardised, concatenated, and mapped to the space of the DUEG.

    Args:
        sources: (n_items, d_k) of K sources, row 0 for padding; not stored with the weights.
        width: h, width of the mapped vectors.
        projection: `linear`, `mlp` or `none`.
        normalization: `standard` or `none`.
        known: the same of the items that were trained on, by whose mean and spread `sources` are standardised; None: by
            their own.
        modality_dropout: see `ModalityDropout`; each source is a modality.

    Raises:
        ConfigError: `projection` is `none` and the sources are not h wide together.

    Example:
        >>> sources = [torch.ones(5, 3), torch.ones(5, 2)]
        >>> items = ContentItems(sources, width=4, projection="linear", normalization="none")
        >>> items(torch.tensor([[1, 2]])).shape
        torch.Size([1, 2, 4])
    """

    vectors: Tensor

    def __init__(
        self,
        sources: Sequence[Tensor],
        width: int,
        projection: str,
        normalization: str,
        known: Sequence[Tensor] | None = None,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.normalization = normalization
        self.widths = [source.shape[1] for source in sources]
        self.modality_dropout = ModalityDropout(modality_dropout)
        if normalization == "standard":
            sources = [standardise(source, own) for source, own in zip(sources, known or sources, strict=True)]
        self.register_buffer("vectors", torch.cat(list(sources), dim=1), persistent=False)
        self.projection = build_projection(projection, self.vectors.shape[1], width)

    @classmethod
    def from_dataset(cls, config: Config, dataset: MultimodalDataset, width: int) -> ContentItems:
        """Build from what `item_sources` names: `dataset.inputs.item_vectors` and `dataset.item_feature(name)`.

        Raises:
            ConfigError: there is no such feature.
        """
        sources, known = checked_sources(config, dataset), sources_of(item_sources(config), dataset.training_inputs)
        how = (config["item_projection"], config["item_normalization"])
        return cls(sources, width, *how, known, config["modality_dropout"])

    def map_new(self, sources: Sequence[Tensor], known: Sequence[Tensor]) -> Tensor:
        """Return the vectors (m, h) of other items than the module's own.

        Args:
            sources: (m, d_k) of K sources.
            known: the same of the module's own items, by whose mean and spread they are standardised.
        """
        if self.normalization == "standard":
            sources = [standardise(source, own) for source, own in zip(sources, known, strict=True)]
        return self.projection(torch.cat(list(sources), dim=1).to(self.vectors.device))

    def of_new(self, names: Sequence[str], new: ModelInputs, known: ModelInputs) -> Tensor:
        """Return the vectors (m, h) of new items.

        Args:
            names: of `item_sources`.
            new: inputs of the new items.
            known: those of the module's own items.
        """
        return self.map_new(sources_of(names, new), sources_of(names, known))

    def start_epoch(self, epoch: int) -> None:
        """Do nothing: the vectors of the sources are frozen. A subclass may prepare an epoch, counted from 0; -1 stands
        for one that does not train the items."""

    def of_batch(self, ids: Tensor) -> AbstractContextManager[None]:
        """Return a context in which the loss of a batch is computed; `ids` are its items. Here it does nothing."""
        return nullcontext()

    def forward(self, ids: Tensor | None = None) -> Tensor:
        """Return the vectors of the items `ids` (any shape) -> (..., h), or of all items (n_items, h)."""
        vectors = self.vectors if ids is None else self.vectors[ids]
        if self.training and self.modality_dropout.rate:
            vectors = torch.cat([self.modality_dropout(part) for part in vectors.split(self.widths, -1)], dim=-1)
        return self.projection(vectors)


def build_projection(kind: str, width: int, hidden: int) -> nn.Module:
    """Build the trainable map from frozen vectors of that width to the DUEG's space.

    Raises:
        ConfigError: `kind` is `none` and the widths differ.
    """
    if kind == "linear":
        return nn.Linear(width, hidden)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(width, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden))
    if width != hidden:
        raise ConfigError(f"item_projection: none keeps the item vectors {width} wide, but the user model is {hidden}")
    return nn.Identity()
