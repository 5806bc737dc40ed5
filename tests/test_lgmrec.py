"""LGMRec against its equations over dense matrices; noise and dropout in training alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_mm.errors import ConfigError
from tests.multimodal import (
    assembled,
    beats_pop,
    first_batch,
    light_gcn,
    loss_by_hand,
    normalise,
    scores_of,
    training_matrix,
)
from tests.test_multi_view import numbers, softmax


@pytest.fixture
def built(tmp_path, toy_settings):
    def build(**settings):
        return assembled("LGMRec", tmp_path, toy_settings, **settings)

    return build


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def parts_of(run) -> tuple[np.ndarray, list[np.ndarray]]:
    """Final vectors of all users, then all items, and the modalities' global ones, in evaluation."""
    model, matrix = run.model, training_matrix(run)
    embeddings = model.user_embedding.weight, model.item_embedding.weight
    vectors = np.concatenate(light_gcn(matrix, *embeddings, model.n_ui_layers))
    items, apart = vectors[len(matrix) :], []
    square = np.zeros((sum(matrix.shape),) * 2)
    square[: len(matrix), len(matrix) :], square[len(matrix) :, : len(matrix)] = matrix, matrix.T
    square = normalise(square)
    for place, name in enumerate(run.config["content_features"]):
        feature = run.dataset.item_feature(name).astype(float)
        projected = feature @ numbers(model.projections[place].weight).T
        means = matrix @ projected / np.maximum(matrix.sum(1), 1)[:, None]
        local = np.linalg.matrix_power(square, model.n_mm_layers) @ np.concatenate([means, projected])
        vectors = vectors + unit(local)
        logits = feature @ numbers(model.attributes[place].weight).T
        of_items = softmax(logits / model.gumbel_temperature, 1)
        of_users = softmax(matrix @ logits / model.gumbel_temperature, 1)
        own = items
        for _ in range(model.n_hyper_layers):
            users, own = of_users @ (of_items.T @ own), of_items @ (of_items.T @ own)
        apart.append(np.concatenate([users, own]))
    return vectors + model.global_weight * unit(sum(apart)), apart


@pytest.mark.parametrize(
    "settings",
    [{}, {"n_ui_layers": 1, "n_mm_layers": 0, "n_hyper_layers": 3}, {"content_features": ["text"], "hyperedges": 1}],
)
def test_scores_are_those_of_the_equations(built, settings):
    run = built(global_weight=0.6, **settings)
    users, items = np.split(parts_of(run)[0], [run.dataset.user_num])
    np.testing.assert_allclose(scores_of(run), users[1:] @ items.T, atol=1e-5)


def test_loss_is_written_out(built):
    run = built(cl_weight=0.3, temperature=0.5, reg_weight=0.7, dropout=0.0)
    net, batch = run.model.eval(), first_batch(run)[:9]  # in evaluation there is no noise
    vectors, (image, text) = parts_of(run)
    vectors, image, text = (torch.from_numpy(part) for part in (vectors, image, text))
    expected = loss_by_hand(net, batch, vectors, image, text)
    torch.testing.assert_close(net.calculate_loss(batch).double(), expected, atol=1e-5, rtol=1e-5)


def test_dependencies_are_noisy_in_training_and_follow_the_generator(built):
    model = built(dropout=0.0).model.train()
    torch.manual_seed(3)
    of_users, of_items = model.dependencies(0)
    torch.manual_seed(3)
    assert torch.equal(model.dependencies(0)[1], of_items)
    assert not torch.equal(model.dependencies(0)[1], of_items)
    torch.testing.assert_close(of_items.sum(1), torch.ones(len(of_items)))
    assert of_users.shape == (model.n_users, 4)
    logits = model.attributes[0](model.feature(0))
    torch.manual_seed(3)
    torch.rand_like(model.chosen @ logits)  # users come first
    noise = torch.rand_like(logits)
    expected = ((noise.log() - (1 - noise).log() + logits) / 0.2).softmax(1)
    torch.testing.assert_close(of_items, expected, atol=1e-4, rtol=1e-4)
    model.eval()
    assert torch.equal(model.dependencies(0)[1], model.dependencies(0)[1])


def test_dropout_leaves_dependencies_out(built):
    model = built(dropout=0.5).model.train()
    share = (model.dependencies(0)[1] == 0).float().mean()
    assert 0.3 < share < 0.7


def test_every_weight_learns(built):
    run = built()
    run.model.train().calculate_loss(first_batch(run)).backward()
    still = [name for name, weight in run.model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still


def test_content_tells_what_is_chosen(toy_settings):
    assert beats_pop("LGMRec", toy_settings, learning_rate=5e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hyperedges": 0}, "hyperedges: 0 is not accepted"),
        ({"n_hyper_layers": 0}, "n_hyper_layers: 0 is not accepted"),
        ({"gumbel_temperature": 0}, "gumbel_temperature: 0 is not accepted; give a number above 0"),
        ({"dropout": 1}, "dropout: 1 is not accepted; give a number from 0 to below 1"),
        ({"content_features": []}, "content_features names no feature"),
    ],
)
def test_impossible_settings_are_refused(built, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(**settings)
