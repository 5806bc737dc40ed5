"""SASRec-content: the rows SASRec_Bert, SASRec_ViT and SASRec_Bert+ViT of Molar's Table 2 (2412.18176)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from recbole.model.sequential_recommender.sasrec import SASRec
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.config.kinds import NAMES, SHARE, choice, layers, number, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.errors import ConfigError
from recbole_mm.models.full_sequence import FullSequenceMixin
from recbole_mm.models.layers import ModalityDropout, standardise
from recbole_mm.models.settings import MODALITY_DROPOUT, WORDS

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset
    from recbole_mm.data.inputs import ModelInputs

# fmt: off
SETTINGS = (
    *section("What an item is",
        Setting("content_features", NAMES, ["text"], "Entries of item_features, each projected to its share of "
            "hidden_size, side by side."),
        SHARED["item_features"].but({"text": {"encoder": "google-bert/bert-base-uncased", "on": "text"}}, "name: "
            "settings. A dataset's own YAML or the command line replaces the whole map."),
        Setting("item_normalization", choice("standard", "none"), "standard", "standard: zero mean, unit spread over "
            "items, divided by the root of the width; or none."),
        MODALITY_DROPOUT),
    *section("The encoder of sequences, RecBole's SASRec",
        Setting("n_layers", layers(0), 2, "Transformer layers."),
        Setting("n_heads", size(1), 2, "Attention heads."),
        Setting("hidden_size", size(1), 64, "Width of item and sequence vectors; the features share it equally."),
        Setting("inner_size", size(1), 256, "Width of the feed-forward layers."),
        Setting("hidden_dropout_prob", SHARE, 0.5, "Dropout on hidden states."),
        Setting("attn_dropout_prob", SHARE, 0.5, "Dropout on attention."),
        Setting("hidden_act", WORDS, "gelu", "Activation of the feed-forward layers."),
        Setting("layer_norm_eps", number(0), 1e-12, "Added to the denominator of layer normalization."),
        Setting("initializer_range", number(0), 0.02, "Standard deviation of all weights at the start, the "
            "projections' too."),
        Setting("loss_type", WORDS, "CE", "CE: over all items, at every position; BPR: against one negative per "
            "target.")),
    *section("Training, on whole sequences",
        SHARED["MAX_ITEM_LIST_LENGTH"].but(50, "History length."),
        SHARED["train_batch_size"].but(2048, "Targets per optimizer step."),
        SHARED["learning_rate"].but(1e-3, "Of Adam."),
        SHARED["train_neg_sample_args"].but(None, "Negatives, where BPR wants them, come with the sequences.")),
)
# fmt: on


class SASRecContent(FullSequenceMixin, SASRec):
    """SASRec whose item vectors, read and scored against alike, are projected content features; there is no ID
    embedding.

    Needs from the dataset: `item_feature(name)`, float32 (n_items, d), for each name in `content_features`.

    Raises:
        ConfigError: no feature is named, there is none of that name, or their number does not divide
            `hidden_size`.

    Example:
        >>> recbole_mm.run("SASRecContent", "my-data", config_dict={"content_features": ["text"]})  # doctest: +SKIP
    """

    settings = SETTINGS

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        names = config["content_features"]
        if not names:
            raise ConfigError("content_features names no feature; give entries of item_features, such as [text]")
        if self.hidden_size % len(names):
            raise ConfigError(
                f"hidden_size {self.hidden_size} cannot be shared equally by {len(names)} content_features"
            )
        self.content_features: tuple[str, ...] = tuple(names)
        self.item_normalization: str = config["item_normalization"]
        features = [self._feature(dataset.item_feature(name), dataset.training_feature(name)) for name in names]
        self.item_embedding = ContentEmbedding(features, self.hidden_size, config["modality_dropout"])
        self.item_embedding.apply(self._init_weights)

    def _feature(self, vectors: np.ndarray, like: np.ndarray) -> Tensor:
        """Return a feature (n, d) as the projection reads it, standardised like the items that were trained on."""
        feature = torch.as_tensor(vectors, dtype=torch.float32)
        if self.item_normalization != "standard":
            return feature
        # By the root of the width: one step of Adam then moves an item's vector about as far as an ID embedding, not as
        # many times further as the feature has dimensions.
        return standardise(feature, torch.as_tensor(like, dtype=torch.float32)) / feature.shape[1] ** 0.5

    def new_item_vectors(self, new: ModelInputs, known: ModelInputs) -> Tensor:
        """Return the projected features (m, width) of new items."""
        pairs = [(new.item_features[name], known.item_features[name]) for name in self.content_features]
        return self.item_embedding.projected([self._feature(*pair)[1:].to(self.device) for pair in pairs])


class ContentEmbedding(nn.Module):
    """Stands where SASRec has its table of ID embeddings: each feature projected, then all of them side by side.

    Args:
        features: frozen vectors (n_items, d_k) of K modalities, row 0 for padding; not stored with the weights.
        width: of an item's vector; each feature gets width / K of it.
        modality_dropout: see `ModalityDropout`.

    Example:
        >>> table = ContentEmbedding([torch.ones(5, 3), torch.ones(5, 2)], 4)
        >>> table.weight.shape, table(torch.tensor([[1, 2]])).shape
        (torch.Size([5, 4]), torch.Size([1, 2, 4]))
    """

    def __init__(self, features: Sequence[Tensor], width: int, modality_dropout: float = 0.0) -> None:
        super().__init__()
        self.n_items = len(features[0])
        self.projections = nn.ModuleList(nn.Linear(feature.shape[1], width // len(features)) for feature in features)
        self.modality_dropout = ModalityDropout(modality_dropout)
        for place, feature in enumerate(features):
            self.register_buffer(f"feature_{place}", feature, persistent=False)

    @property
    def weight(self) -> Tensor:
        """Vectors of all items (n_items, width); that of the padding item is zero."""
        vectors = self._project(lambda feature: feature[1:])
        return F.pad(vectors, (0, 0, 1, 0))

    def forward(self, ids: Tensor) -> Tensor:
        """Item ids (...) -> vectors (..., width)."""
        if ids.numel() > self.n_items:
            return F.embedding(ids, self.weight)
        return self._project(lambda feature: feature[ids]) * (ids != 0).unsqueeze(-1)

    def _project(self, pick: Callable[[Tensor], Tensor]) -> Tensor:
        features = (self.get_buffer(f"feature_{place}") for place in range(len(self.projections)))
        return self.projected([self.modality_dropout(pick(feature)) for feature in features])

    def projected(self, features: Sequence[Tensor]) -> Tensor:
        """Return the vectors (..., width) of K features (..., d_k)."""
        return torch.cat([layer(feature) for layer, feature in zip(self.projections, features)], dim=-1)
