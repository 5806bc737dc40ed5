"""Item features as fields of RecBole's item table, for its feature models (SASRecF, GRU4RecF, FDSA).

RecBole can hold a numeric vector per item as a `float_seq` field of (value, index) pairs and embeds it as the sum over
dimensions of value times the index's embedding. With index 1..d that is a linear map of the vector, which is what a
feature should get. Two things in RecBole 1.2.1 stand in the way and are mended here:

- sasrecf.py:47 and gru4recf.py:52 size their layers as if a `float_seq` field gave `dataset.num(field)` vectors, while
  layers.py:1003 pools it into one; so `num` is 1 for a feature field, and `field2bucketnum` is the embedding
  table's size.
- layers.py:1015 gathers an embedding for every value of every item of every sequence, gigabytes for a 384-d feature;
  the same sum is a matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.layers import ContextSeqEmbAbstractLayer
from recbole.utils import FeatureSource, FeatureType
from torch import Tensor


class FeatureFieldsMixin(Dataset):
    """Gives a dataset `declare_feature_field`: item fields that hold feature vectors."""

    feature_fields: Mapping[str, Tensor] = MappingProxyType({})
    item_feat: Any

    def declare_feature_field(self, name: str, vectors: Tensor) -> None:
        """Make `name` an item field holding `vectors`, float32 (item_num, d). Call it before `build`."""
        self.feature_fields = {**self.feature_fields, name: vectors}
        self.set_field_property(name, FeatureType.FLOAT_SEQ, FeatureSource.ITEM, vectors.shape[1])
        self.field2bucketnum[name] = vectors.shape[1] + 1
        self.config["numerical_features"] = [*(self.config["numerical_features"] or []), name]

    def num(self, field: str) -> int:
        """RecBole's, but 1 for a feature field: it is pooled into one vector."""
        return 1 if field in self.feature_fields else super().num(field)

    def _change_feat_format(self) -> None:
        super()._change_feat_format()
        self.set_feature_fields(self.feature_fields)

    def set_feature_fields(self, vectors: Mapping[str, Tensor]) -> None:
        """Give the declared fields these vectors, in a table whose columns are tensors."""
        self.feature_fields = vectors
        for name, rows in vectors.items():
            if self.item_feat is None:
                self.item_feat = Interaction({self.iid_field: torch.arange(self.item_num)})
            index = torch.arange(1, rows.shape[1] + 1, dtype=rows.dtype).expand_as(rows)
            self.item_feat[name] = torch.stack([rows, index], dim=-1)


def _feature_fields(dataset: Dataset) -> Mapping[str, Tensor]:
    return dataset.feature_fields if isinstance(dataset, FeatureFieldsMixin) else {}


_upstream_dims = ContextSeqEmbAbstractLayer.get_fields_name_dim
_upstream_embed = ContextSeqEmbAbstractLayer.embed_float_seq_fields


def _get_fields_name_dim(layer: ContextSeqEmbAbstractLayer) -> None:
    _upstream_dims(layer)
    features = _feature_fields(layer.dataset)
    for kind, names in layer.float_seq_field_names.items():
        for place, name in enumerate(names):
            if name in features:
                layer.float_seq_field_dims[kind][place] = layer.dataset.field2bucketnum[name]


def _embed_float_seq_fields(layer: ContextSeqEmbAbstractLayer, fields: list[Tensor], type: str) -> Tensor | None:
    """(B, L, n_fields, d): feature fields as a matrix product, other fields as RecBole does."""
    features = _feature_fields(layer.dataset)
    names = layer.float_seq_field_names[type]
    if layer.pooling_mode == "max" or not any(name in features for name in names):
        return _upstream_embed(layer, fields, type)
    embedded = []
    for place, (name, field) in enumerate(zip(names, fields, strict=True)):
        if name not in features:
            tables = layer.float_seq_embedding_table[type]
            layer.float_seq_embedding_table[type] = [tables[place]]
            embedded.append(_upstream_embed(layer, [field], type))
            layer.float_seq_embedding_table[type] = tables
            continue
        vectors = field[..., 0] @ layer.float_seq_embedding_table[type][place].weight[1:]
        embedded.append((vectors / field.shape[-2] if layer.pooling_mode == "mean" else vectors).unsqueeze(-2))
    return torch.cat(embedded, dim=-2)


ContextSeqEmbAbstractLayer.get_fields_name_dim = _get_fields_name_dim
ContextSeqEmbAbstractLayer.embed_float_seq_fields = _embed_float_seq_fields
