"""MGCN and SMORE against their equations over dense matrices, and the loss that they share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_mm.errors import ConfigError
from tests.multimodal import (
    MISSING,
    assembled,
    beats_pop,
    first_batch,
    light_gcn,
    loss_by_hand,
    nearest,
    normalise,
    refined_graphs,
    scores_of,
    training_matrix,
    without_some_texts,
)

MODELS = ("MGCN", "SMORE")


@pytest.fixture
def built(tmp_path, toy_settings):
    def build(model="MGCN", **settings):
        return assembled(model, tmp_path, toy_settings, **{"knn_k": 4, **settings})

    return build


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def mapped(layer: torch.nn.Linear, vectors: np.ndarray) -> np.ndarray:
    bias = 0 if layer.bias is None else numbers(layer.bias)
    return vectors @ numbers(layer.weight).T + bias


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def softmax(values: np.ndarray, axis: int) -> np.ndarray:
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def own_graphs(run, k: int = 4) -> list[np.ndarray]:
    names = run.config["content_features"]
    return [normalise(np.maximum(nearest(run.dataset.item_feature(name), k), 0)) for name in names]


def with_users(run, items: np.ndarray) -> np.ndarray:
    """Signals of items, behind what users receive of them."""
    matrix = training_matrix(run)
    of_users, of_items = matrix.sum(1), matrix.sum(0)
    users = np.zeros((len(matrix), items.shape[1]))
    for user, item in zip(*np.nonzero(matrix)):
        users[user] += items[item] / np.sqrt(of_users[user] * of_items[item])
    return np.concatenate([users, items])


def behaviour(run) -> np.ndarray:
    model = run.model
    parts = model.user_embedding.weight, model.item_embedding.weight
    return np.concatenate(light_gcn(training_matrix(run), *parts, model.n_ui_layers))


def content_of_mgcn(run, graphs: list[np.ndarray]) -> np.ndarray:
    model, known = run.model, behaviour(run)
    items, smooth = numbers(model.item_embedding.weight), []
    for place, name in enumerate(run.config["content_features"]):
        projected = mapped(model.projections[place], run.dataset.item_feature(name).astype(float))
        purified = items * sigmoid(mapped(model.gates[place], projected))
        smooth.append(with_users(run, np.linalg.matrix_power(graphs[place], model.n_mm_layers) @ purified))
    first, _, last = model.attention
    logits = np.stack([mapped(last, np.tanh(mapped(first, one))) for one in smooth])
    shared = (softmax(logits, 0) * np.stack(smooth)).sum(0)
    apart = [sigmoid(mapped(model.preferences[place], known)) * (one - shared) for place, one in enumerate(smooth)]
    return shared + np.mean(apart, axis=0)


def content_of_smore(run, graphs: list[np.ndarray]) -> np.ndarray:
    model, known = run.model, behaviour(run)
    items, width = numbers(model.item_embedding.weight), model.width
    filters = numbers(model.filters)[..., 0] + 1j * numbers(model.filters)[..., 1]
    spectra, fused = [], 1.0
    for place, name in enumerate(run.config["content_features"]):
        feature = run.dataset.item_feature(name).astype(float)
        spectra.append(np.fft.rfft(mapped(model.projections[place], feature), norm="ortho"))
        fused = fused * np.where(feature.any(1)[:, None], spectra[-1], 1.0)
    signals = [np.fft.irfft(one * own, n=width, norm="ortho") for one, own in zip([*spectra, fused], filters)]
    views = []
    for place, graph in enumerate([*graphs, np.max(graphs, axis=0)]):
        purified = items * sigmoid(mapped(model.gates[place], signals[place]))
        views.append(with_users(run, np.linalg.matrix_power(graph, model.n_mm_layers) @ purified))
    for place, attend in enumerate(model.attention):
        views[place] = views[place] * softmax(mapped(attend[2], np.tanh(mapped(attend[0], views[-1]))), 1)
    return np.mean([sigmoid(mapped(model.preferences[place], known)) * one for place, one in enumerate(views)], axis=0)


CONTENT = {"MGCN": content_of_mgcn, "SMORE": content_of_smore}


def expected_scores(run, graphs: list[np.ndarray]) -> np.ndarray:
    both = behaviour(run) + CONTENT[type(run.model).__name__](run, graphs)
    users, items = np.split(both, [run.dataset.user_num])
    return users[1:] @ items.T


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layers", [(2, 1), (0, 2)])
def test_scores_are_those_of_the_equations(built, model, layers):
    run = built(model, n_ui_layers=layers[0], n_mm_layers=layers[1])
    np.testing.assert_allclose(scores_of(run), expected_scores(run, own_graphs(run)), atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("feature", ["text", "image"])
def test_one_modality_is_enough(built, model, feature):
    run = built(model, content_features=[feature])
    np.testing.assert_allclose(scores_of(run), expected_scores(run, own_graphs(run)), atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_refined_graphs_stand_in_for_the_own_ones(built, model):
    run = built(model, item_graph="refined", refined_similar_k=5, refined_co_k=3, refined_threshold=0.8)
    graphs = [graph.toarray() for graph in refined_graphs(run, 5, 3, 0.8)]
    np.testing.assert_allclose(scores_of(run), expected_scores(run, graphs), atol=1e-5)
    assert not np.allclose(graphs[0], own_graphs(run)[0])


@pytest.mark.parametrize("model", MODELS)
def test_an_item_without_a_text_has_its_image_alone(tmp_path, model):
    settings = without_some_texts(tmp_path)
    run = assembled(model, tmp_path, settings, item_features=settings["item_features"], knn_k=4)
    item = run.dataset.token2id("item_id", MISSING[0])
    assert not run.model.has_feature(1)[item]
    assert not run.model.item_graphs[1].to_dense()[item].any()
    np.testing.assert_allclose(scores_of(run), expected_scores(run, own_graphs(run)), atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_loss_is_written_out(built, model):
    run = built(model, cl_weight=0.3, temperature=0.5, reg_weight=0.7)
    net, batch = run.model.train(), first_batch(run)[:9]
    known = torch.from_numpy(behaviour(run))
    content = torch.from_numpy(CONTENT[model](run, own_graphs(run)))
    expected = loss_by_hand(net, batch, known + content, content, known)
    torch.testing.assert_close(net.calculate_loss(batch).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_every_weight_learns(built, model):
    run = built(model)
    run.model.train().calculate_loss(first_batch(run)).backward()
    still = [name for name, weight in run.model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still


@pytest.mark.parametrize("model", MODELS)
def test_content_tells_what_is_chosen(toy_settings, model):
    assert beats_pop(model, toy_settings, knn_k=4, learning_rate=5e-3)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"knn_k": 0}, "knn_k: 0 is not accepted"),
        ({"temperature": 0}, "temperature: 0 is not accepted; give a number above 0"),
        ({"content_features": []}, "content_features names no feature"),
    ],
)
def test_impossible_settings_are_refused(built, model, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(model, **settings)
