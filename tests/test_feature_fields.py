"""Item features as fields of RecBole's feature models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recbole_mm
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.model_inputs import provide
from recbole_mm.models.base import ModelHooks

SMALL = {"hidden_size": 16, "inner_size": 16, "embedding_size": 16, "n_layers": 1, "n_heads": 1, "num_layers": 1}


@pytest.fixture
def features(tmp_path) -> dict:
    ids = [f"i{i}" for i in reversed(range(40))]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    values = np.stack([np.arange(40.0)[::-1], np.ones(40), np.zeros(40)], axis=1).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    return {"visual": {"file": str(tmp_path / "x.npy"), "ids": str(tmp_path / "ids.txt")}}


@pytest.mark.parametrize("model", ["SASRecF", "GRU4RecF", "FDSA"])
@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_feature_models_train_on_features(model, pooling, features, toy_settings):
    selected = ["class", "visual"]
    settings = {**toy_settings, **SMALL, "item_features": features, "selected_features": selected, "epochs": 1}
    outcome = recbole_mm.run(model, "toy", config_dict={**settings, "pooling_mode": pooling})
    assert 0 <= outcome.test_result["ndcg@10"] <= 1
    again = recbole_mm.load(outcome.run_dir)
    users = again.splits.test.users
    batch = users.interaction[np.arange(len(users))]
    with torch.no_grad():
        assert torch.equal(again.model.full_sort_predict(batch), outcome.model.full_sort_predict(batch))


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_the_matrix_product_is_recboles_sum(pooling, features, toy_config):
    """The same layer, asked to treat the field as any other `float_seq` field, gives the same vectors."""
    config = toy_config("SASRecF", item_features=features, selected_features=["visual"], pooling_mode=pooling, **SMALL)
    dataset = create_dataset(config)
    provide(config, dataset, ModelHooks)
    train = dataset.build()[0]
    layer = config.model_class(config, train).feature_embed_layer
    items = torch.tensor([[1, 2, 3], [4, 0, 0]])
    fast = layer(None, items)[1]["item"]
    train.feature_fields, kept = {}, train.feature_fields
    slow = layer(None, items)[1]["item"]
    train.feature_fields = kept
    torch.testing.assert_close(fast, slow)


def test_features_are_aligned_and_asked_by_name(features, toy_config):
    config = toy_config("SASRecContent", item_features=features, content_features=["visual"])
    dataset = create_dataset(config)
    provide(config, dataset, ModelHooks)
    matrix = dataset.item_feature("visual")
    assert matrix.dtype == np.float32
    assert matrix.shape == (dataset.item_num, 3)
    assert not matrix[0].any()
    tokens = dataset.item_tokens()
    assert [f"i{int(row[0])}" for row in matrix[1:]] == list(tokens[1:])
    with pytest.raises(ConfigError, match="visual"):
        dataset.item_feature("acoustic")
