"""FREEDOM against its equations over dense matrices, and what the pruning keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import recbole_mm
from recbole_mm.errors import ConfigError
from tests.conftest import TOY_FEATURES
from tests.multimodal import (
    MISSING,
    assembled,
    first_batch,
    light_gcn,
    nearest,
    normalise,
    refined_graphs,
    scores_of,
    training_matrix,
    without_some_texts,
)


@pytest.fixture
def built(tmp_path, toy_settings):
    def build(**settings):
        return assembled("FREEDOM", tmp_path, toy_settings, **{"knn_k": 4, **settings})

    return build


def own_graph(run, k: int = 4, weights=(0.1, 0.9)) -> np.ndarray:
    """S, dense."""
    names = run.config["content_features"]
    graphs = [normalise((nearest(run.dataset.item_feature(name), k) != 0).astype(float)) for name in names]
    return sum(weight * graph for weight, graph in zip(weights, graphs))


def expected_vectors(run, matrix: np.ndarray, graph: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    model = run.model
    users, items = light_gcn(matrix, model.user_embedding.weight, model.item_embedding.weight, model.n_ui_layers)
    power = np.linalg.matrix_power(graph, model.n_mm_layers)
    return users, items + power @ model.item_embedding.weight.detach().numpy()


def test_one_feature_has_the_whole_graph(built):
    run = built(content_features=["text"])
    run.model.start_epoch(0)
    users, items = expected_vectors(run, training_matrix(run), own_graph(run, weights=(1.0,)))
    np.testing.assert_allclose(scores_of(run), users[1:] @ items.T, atol=1e-5)


@pytest.mark.parametrize("layers", [(2, 1), (0, 2), (3, 1)])
def test_evaluation_uses_both_whole_graphs(built, layers):
    run = built(n_ui_layers=layers[0], n_mm_layers=layers[1])
    run.model.start_epoch(0)
    users, items = expected_vectors(run, training_matrix(run), own_graph(run))
    np.testing.assert_allclose(scores_of(run), users[1:] @ items.T, atol=1e-5)


def test_loss_is_written_out_on_the_pruned_graph(built):
    run = built(reg_weight=0.3)
    model, batch = run.model.train(), first_batch(run)[:7]
    torch.manual_seed(5)
    model.start_epoch(0)
    torch.manual_seed(5)
    kept = model.draw_edges()
    matrix = np.zeros_like(training_matrix(run))
    matrix[model.users[kept], model.items[kept]] = 1
    users, items = (torch.from_numpy(part) for part in expected_vectors(run, matrix, own_graph(run)))
    user, good, bad = (batch[field] for field in ("user_id", "item_id", "neg_item_id"))

    def bpr(vectors: torch.Tensor) -> torch.Tensor:
        difference = (users[user] * (vectors[good] - vectors[bad])).sum(1)
        return -torch.log(torch.sigmoid(difference)).mean()

    expected = bpr(items)
    for name, layer in zip(("image", "text"), model.projections):
        expected = expected + 0.3 * bpr(layer(torch.from_numpy(run.dataset.item_feature(name))).double())
    torch.testing.assert_close(model.calculate_loss(batch).double(), expected, atol=1e-5, rtol=1e-5)


def test_pairs_without_a_modality_do_not_count_in_its_loss(tmp_path):
    settings = without_some_texts(tmp_path)
    run = assembled("FREEDOM", tmp_path, settings, item_features=settings["item_features"], reg_weight=1.0, dropout=0)
    model, item = run.model.train(), run.dataset.token2id("item_id", MISSING[0])
    assert not model.feature(1)[item].any()
    batch = first_batch(run)[:5]
    batch["item_id"][:] = item
    model.calculate_loss(batch).backward()
    image, text = model.projections
    assert image.weight.grad.any()
    assert not text.weight.grad.any()
    assert not text.bias.grad.any()


def test_an_item_without_a_text_still_has_its_neighbours_by_image(tmp_path):
    settings = without_some_texts(tmp_path)
    run = assembled("FREEDOM", tmp_path, settings, item_features=settings["item_features"], knn_k=4)
    item = run.dataset.token2id("item_id", MISSING[0])
    graph = run.model.item_graph.to_dense()
    np.testing.assert_allclose(graph, own_graph(run), atol=1e-6)
    assert (graph[item] > 0).sum() == 4
    assert graph[item].max() <= 0.1


# ------------------------------------------------------------------------------------------------------------- pruning


def test_as_many_edges_as_asked_none_twice_and_drawn_anew_each_epoch(built):
    run = built(dropout=0.7)
    edges = len(run.model.users)
    first, second = run.model.draw_edges(), run.model.draw_edges()
    assert len(first) == len(set(first.tolist())) == math.ceil(0.3 * edges)
    assert set(first.tolist()) != set(second.tolist())
    run.model.start_epoch(0)
    assert len(run.model._pruned.value) == 2 * len(first)


def test_a_draw_follows_the_generator_alone(built):
    run = built()
    torch.manual_seed(11)
    first = run.model.draw_edges()
    state = torch.get_rng_state()
    second = run.model.draw_edges()
    torch.set_rng_state(state)
    assert torch.equal(run.model.draw_edges(), second)
    torch.manual_seed(11)
    assert torch.equal(run.model.draw_edges(), first)


def test_a_single_edge_is_drawn_in_proportion_to_its_weight(built):
    run = built()
    model = run.model
    model.dropout = 1 - 1 / len(model.users)
    by_user, by_item = np.bincount(model.users), np.bincount(model.items)
    weight = 1 / np.sqrt(by_user[model.users] * by_item[model.items])
    rounds = 20_000
    torch.manual_seed(0)
    drawn = torch.cat([model.draw_edges() for _ in range(rounds)])
    assert len(drawn) == rounds
    expected = rounds * weight / weight.sum()
    found = np.bincount(drawn, minlength=len(weight))
    chi_square = ((found - expected) ** 2 / expected).sum()
    free = len(weight) - 1
    assert abs(chi_square - free) < 5 * math.sqrt(2 * free)
    even = ((found - rounds / len(weight)) ** 2 / (rounds / len(weight))).sum()
    assert abs(even - free) > 5 * math.sqrt(2 * free), "the test would not tell these weights from equal ones"


def test_edges_between_popular_nodes_go_first(built):
    run = built(dropout=0.8)
    torch.manual_seed(1)
    often = torch.bincount(torch.cat([run.model.draw_edges() for _ in range(400)]), minlength=len(run.model.users))
    by_user, by_item = np.bincount(run.model.users), np.bincount(run.model.items)
    product = torch.from_numpy(by_user[run.model.users] * by_item[run.model.items])
    popular, rare = often[product > product.float().quantile(0.75)], often[product < product.float().quantile(0.25)]
    assert popular.float().mean() < 0.8 * rare.float().mean()


def test_nothing_is_pruned_at_dropout_0(built):
    run = built(dropout=0)
    run.model.start_epoch(0)
    assert run.model._pruned.value is run.model.adjacency


def test_training_without_start_epoch_prunes_too(built):
    run = built(dropout=0.5)
    run.model.train().calculate_loss(first_batch(run))
    assert len(run.model._pruned.value) < len(run.model.adjacency)


# ---------------------------------------------------------------------------------------------------------- item graph


def test_refined_graph_stands_in_for_the_own_one(built):
    settings = {"refined_similar_k": 5, "refined_co_k": 3, "refined_threshold": 0.8}
    run = built(item_graph="refined", **settings)
    graphs = refined_graphs(run, 5, 3, 0.8)
    expected = 0.1 * graphs[0].toarray() + 0.9 * graphs[1].toarray()
    np.testing.assert_allclose(run.model.item_graph.to_dense(), expected, atol=1e-6)
    assert not np.allclose(expected, own_graph(run))
    vectors = expected_vectors(run, training_matrix(run), expected)
    np.testing.assert_allclose(scores_of(run), vectors[0][1:] @ vectors[1].T, atol=1e-5)


def test_the_graph_shows_what_content_tells(toy_settings):
    settings = {**toy_settings, "item_features": TOY_FEATURES, "epochs": 40, "learning_rate": 5e-3}
    ours = recbole_mm.run("FREEDOM", "toy", config_dict=settings)
    pop = recbole_mm.run("Pop", "toy", config_dict=toy_settings)
    assert ours.test_result["recall@10"] > 1.3 * pop.test_result["recall@10"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"knn_k": 0}, "knn_k: 0 is not accepted; give a whole number of at least 1"),
        ({"n_mm_layers": 0}, "n_mm_layers: 0 is not accepted; give a whole number of at least 1"),
        ({"n_ui_layers": -1}, "n_ui_layers: -1 is not accepted; give a whole number of at least 0"),
        ({"dropout": 1}, "dropout: 1 is not accepted; give a number from 0 to below 1"),
        ({"dropout": 80}, "dropout: 80 is not accepted; give a number from 0 to below 1"),
        ({"modality_weights": [1.0]}, r"modality_weights must list 2 numbers, one for each of content_features"),
        ({"modality_weights": [0.5, 0.9]}, "modality_weights: .* whose sum is 1"),
        ({"item_graph": "learnt"}, "item_graph: 'learnt' is not accepted; give one of own, refined"),
        (
            {"item_graph": "refined", "refined_similar_k": 0},
            "refined_similar_k: 0 is not accepted; give a whole number of at least 1",
        ),
        (
            {"item_graph": "refined", "refined_co_k": 0},
            "refined_co_k: 0 is not accepted; give a whole number of at least 1",
        ),
        (
            {"item_graph": "refined", "refined_threshold": 7},
            "refined_threshold: 7 is not accepted; give a number from -1 to 1",
        ),
    ],
)
def test_impossible_settings_are_refused(built, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(**settings)
