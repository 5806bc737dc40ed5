"""BM3: its equations against dense sums, positives alone in its batches, items without a modality, bad settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_mm.errors import ConfigError
from recbole_mm.models.bm3 import BM3, distance
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from tests.conftest import TOY_FEATURES
from tests.multimodal import beats_pop


@pytest.fixture
def assembled(toy_config, tmp_path):
    def build(**settings):
        return assemble(toy_config("BM3", **{"item_features": TOY_FEATURES, **settings}), tmp_path, Stages())

    return build


def dense_latent(run) -> tuple[torch.Tensor, torch.Tensor]:
    """h_u and h_i of one layer, from the dense adjacency."""
    model, pairs = run.model, run.splits.train_dataset.inter_feat
    size = model.n_users + model.n_items
    adjacency = torch.zeros(size, size)
    for user, item in zip(pairs["user_id"].tolist(), pairs["item_id"].tolist()):
        adjacency[user, model.n_users + item] = adjacency[model.n_users + item, user] = 1
    scale = adjacency.sum(1).clamp_min(1).rsqrt()
    step = scale[:, None] * adjacency * scale
    start = torch.cat([model.user_embedding.weight, model.item_embedding.weight])
    mean = (start + step @ start) / 2
    return mean[: model.n_users], mean[model.n_users :] + model.item_embedding.weight


def cosine_loss(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return 1 - (left @ right) / (left.norm() * right.norm())


def test_users_and_items_are_the_mean_over_layers_and_items_keep_a_residual(assembled):
    run = assembled(n_layers=1)
    with torch.no_grad():
        for found, expected in zip(run.model.latent(), dense_latent(run), strict=True):
            torch.testing.assert_close(found, expected)


def test_a_score_is_the_product_of_both_sides_behind_the_predictor(assembled):
    run = assembled()
    run.model.eval()
    batch = run.splits.test.users.interaction[np.arange(4)]
    with torch.no_grad():
        users, items = dense_latent(run)
        weight, bias = run.model.predictor.weight, run.model.predictor.bias
        expected = (users[batch["user_id"]] @ weight.T + bias) @ (items @ weight.T + bias).T
        torch.testing.assert_close(run.model.full_sort_predict(batch).view(4, -1), expected)


def test_the_loss_is_the_sum_of_its_parts_pair_by_pair(assembled):
    run = assembled(dropout=0.0, cl_weight=1.5, reg_weight=0.2, content_features=["text", "image"])
    model, batch = run.model.train(), next(iter(run.splits.train))
    expected = torch.zeros(())
    users, items = dense_latent(run)
    rows = list(zip(batch["user_id"].tolist(), batch["item_id"].tolist()))
    for user, item in rows:
        h_u, h_i = users[user], items[item]
        expected = expected + cosine_loss(model.predictor(h_u), h_i) + cosine_loss(model.predictor(h_i), h_u)
        expected = expected + 0.2 * ((h_u**2).sum() + (h_i**2).sum())
        for feature, projection in zip(model.features(), model.projections, strict=True):
            h_m = projection.weight @ feature[item] + projection.bias
            predicted = model.predictor(h_m)
            expected = expected + 1.5 * (cosine_loss(predicted, h_i) + cosine_loss(predicted, h_m))
    torch.testing.assert_close(model.calculate_loss(batch), expected / len(rows), atol=1e-5, rtol=1e-5)


def test_no_gradient_flows_into_a_target(assembled):
    """A user's gradient is that of the one cosine in which the user is predicted."""
    run = assembled(cl_weight=0.0, reg_weight=0.0, n_layers=0, dropout=0.0)
    model, batch = run.model.train(), next(iter(run.splits.train))
    model.calculate_loss(batch).backward()
    users, items = model.user_embedding.weight, 2 * model.item_embedding.weight
    user, item = batch["user_id"], batch["item_id"]
    free = users.detach().clone().requires_grad_()
    distance(model.predictor(free[user]), items.detach()[item]).mean().backward()
    torch.testing.assert_close(users.grad, free.grad)


def test_a_view_lacks_a_share_of_the_vector_and_only_in_training(assembled):
    model = assembled(dropout=0.3).model
    vectors = torch.ones(200, 64, requires_grad=True)
    view = model.train().view(vectors)
    assert not view.requires_grad
    assert 0.27 < (view == 0).float().mean() < 0.33
    assert torch.equal(model.eval().view(vectors), vectors)


def test_batches_hold_every_positive_once_and_nothing_is_sampled(assembled):
    run = assembled(train_batch_size=32)
    seen = []
    for batch in run.splits.train:
        assert set(batch.columns) & {"label", "neg_item_id"} == set()
        assert len(batch) <= 32
        seen += zip(batch["user_id"].tolist(), batch["item_id"].tolist())
    train = run.splits.train_dataset.inter_feat
    assert sorted(seen) == sorted(zip(train["user_id"].tolist(), train["item_id"].tolist()))
    assert run.splits.train._sampler is None


def test_the_graph_is_propagated_once_per_step(assembled, monkeypatch):
    run = assembled()
    calls = []
    latent = BM3.latent
    monkeypatch.setattr(BM3, "latent", lambda self: calls.append(1) or latent(self))
    run.model.train().calculate_loss(next(iter(run.splits.train)))
    assert len(calls) == 1


def test_an_item_without_a_modality_is_left_out_of_that_modalitys_loss(assembled):
    run = assembled(content_features=["text"], dropout=0.0, reg_weight=0.0)
    model, batch = run.model.train(), next(iter(run.splits.train))
    missing = int(batch["item_id"][0])
    model.feature(0)[missing], model.has_feature(0)[missing] = 0, False
    kept = batch[batch["item_id"] != missing]
    of_all, without = model.calculate_loss(batch), model.calculate_loss(kept)
    model.cl_weight = 0.0
    modality_of_all = of_all - model.calculate_loss(batch)
    modality_without = without - model.calculate_loss(kept)
    torch.testing.assert_close(modality_of_all, modality_without)


def test_without_any_vector_the_modalities_add_nothing(assembled):
    run = assembled(reg_weight=0.0, dropout=0.0)
    model, batch = run.model.train(), next(iter(run.splits.train))
    for place in range(model.feature_count):
        model.feature(place).zero_()
        model.has_feature(place).zero_()
    loss = model.calculate_loss(batch)
    loss.backward()
    assert all(not layer.weight.grad.any() for layer in model.projections)
    model.cl_weight = 0.0
    torch.testing.assert_close(loss, model.calculate_loss(batch))


def test_it_learns_what_users_choose(toy_settings):
    assert beats_pop("BM3", toy_settings, learning_rate=5e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"content_features": []}, "content_features names no feature"),
        ({"content_features": ["sound"]}, "no item feature 'sound'"),
        ({"dropout": 1.0}, "dropout: 1.0 is not accepted; give a number from 0 to below 1"),
        ({"dropout": -0.1}, "dropout: -0.1 is not accepted; give a number from 0 to below 1"),
        ({"n_layers": -1}, "n_layers: -1 is not accepted; give a whole number of at least 0"),
        ({"embedding_size": 0}, "embedding_size: 0 is not accepted; give a whole number of at least 1"),
        ({"cl_weight": "much"}, "cl_weight: 'much' is not accepted; give a number"),
        ({"reg_weight": -1}, "reg_weight: -1 is not accepted; give a number of at least 0"),
        (
            {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False}},
            "set train_neg_sample_args to null",
        ),
    ],
)
def test_impossible_settings_are_refused(assembled, settings, message):
    with pytest.raises(ConfigError, match=message):
        assembled(**settings)
