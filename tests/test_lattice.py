"""LATTICE against its equations over dense matrices with autograd's own gradients; when the graph is made anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

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
        run = assembled("LATTICE", tmp_path, toy_settings, **{"knn_k": 4, **settings})
        with torch.no_grad():  # else both modalities weigh the same
            run.model.modality_logits.copy_(torch.linspace(0.5, -0.5, run.model.feature_count))
        return run

    return build


def initial_graphs(run, k: int = 4) -> list[torch.Tensor]:
    names = run.config["content_features"]
    graphs = [normalise(np.maximum(nearest(run.dataset.item_feature(name), k), 0)) for name in names]
    return [torch.from_numpy(graph) for graph in graphs]


def dense_graph(run, initial: list[torch.Tensor], k: int = 4) -> torch.Tensor:
    """A, dense, in double precision, differentiable by the projections and the modalities' weights."""
    model, total = run.model, 0
    shares = model.modality_logits.double().softmax(0)
    for place, name in enumerate(run.config["content_features"]):
        feature = torch.from_numpy(run.dataset.item_feature(name))
        known = feature.abs().sum(1) > 0
        vectors = (feature @ model.projections[place].weight.T + model.projections[place].bias).double()
        vectors = F.normalize(vectors, dim=1) * known[:, None]
        edges = torch.from_numpy(nearest(vectors.detach().numpy(), k) > 0)
        weights = (vectors @ vectors.T).clamp_min(0) * edges
        sums = weights.sum(1)
        scale = torch.where(sums > 0, sums.clamp_min(1e-12) ** -0.5, 0.0)
        learned = scale[:, None] * weights * scale
        total = total + shares[place] * (0.7 * initial[place] + 0.3 * learned)
    return total


def backbone_vectors(run) -> tuple[torch.Tensor, torch.Tensor]:
    users, items = run.model.user_embedding.weight, run.model.item_embedding.weight
    if run.config["backbone"] == "mf":
        return users.detach().double(), items.detach().double()
    return tuple(torch.from_numpy(part) for part in light_gcn(training_matrix(run), users, items, 2))


def expected_scores(run, graph: torch.Tensor) -> torch.Tensor:
    users, items = backbone_vectors(run)
    similar = torch.linalg.matrix_power(graph, run.config["n_mm_layers"]) @ run.model.item_embedding.weight.double()
    return users[1:] @ (items + F.normalize(similar, dim=1)).T


@pytest.mark.parametrize(("backbone", "layers"), [("lightgcn", 1), ("lightgcn", 2), ("mf", 1)])
def test_scores_are_the_papers_equations(built, backbone, layers):
    run = built(backbone=backbone, n_mm_layers=layers)
    expected = expected_scores(run, dense_graph(run, initial_graphs(run)))
    torch.testing.assert_close(scores_of(run).double(), expected, atol=1e-5, rtol=1e-4)


def test_loss_and_gradients_are_those_of_the_dense_graph(built):
    run = built(backbone="mf", reg_weight=0.2)
    model, batch = run.model.train(), first_batch(run)[:9]
    model.start_epoch(0)
    model.calculate_loss(batch).backward()
    learnt = {name: weight for name, weight in model.named_parameters() if "embedding" not in name}
    ours = {name: weight.grad.clone() for name, weight in learnt.items()}
    assert all(gradient.any() for gradient in ours.values())
    model.zero_grad()

    scores = expected_scores(run, dense_graph(run, initial_graphs(run)))
    user, good, bad = (batch[field] for field in ("user_id", "item_id", "neg_item_id"))
    loss = -torch.log(torch.sigmoid(scores[user - 1, good] - scores[user - 1, bad])).mean()
    ids = (model.user_embedding.weight[user], model.item_embedding.weight[good], model.item_embedding.weight[bad])
    loss = loss + 0.2 * sum(vectors.square().sum(1) / 2 for vectors in ids).mean()
    torch.testing.assert_close(model.calculate_loss(batch).double(), loss)
    loss.backward()
    for name, weight in learnt.items():
        torch.testing.assert_close(ours[name], weight.grad, atol=1e-6, rtol=1e-3, msg=name)


def test_neighbours_stay_for_an_epoch_while_their_weights_follow_the_projection(built):
    model = built().model.train()
    model.start_epoch(0)
    edges, weights = model.learned_graph(1)
    with torch.no_grad():
        model.projections[1].weight.normal_()
        later_edges, later_weights = model.learned_graph(1)
        assert later_edges is edges
        assert not torch.allclose(later_weights, weights)
        model.start_epoch(1)
        after = model.learned_graph(1)[0]
    assert not torch.equal(after.columns, edges.columns)


def test_first_batch_mode_learns_the_graph_in_one_step_per_epoch(built):
    run = built(graph_gradients="first_batch")
    model, batch = run.model.train(), first_batch(run)
    for epoch in range(2):
        model.start_epoch(epoch)
        seen = []
        for _ in range(3):
            model.zero_grad()
            model.calculate_loss(batch).backward()
            gradient = model.projections[0].weight.grad
            seen.append(gradient is not None and bool(gradient.any()))
            with torch.no_grad():
                model.projections[0].weight += 0.01
        assert seen == [True, False, False]


def test_every_batch_mode_learns_it_in_all(built):
    run = built()
    model, batch = run.model.train(), first_batch(run)
    model.start_epoch(0)
    for _ in range(3):
        model.zero_grad()
        model.calculate_loss(batch).backward()
        assert model.projections[0].weight.grad.any()
        assert model.modality_logits.grad.any()


@pytest.mark.parametrize("gradients", ["every_batch", "first_batch"])
def test_evaluation_follows_the_weights_that_are_evaluated(built, gradients):
    """A trained model and the same weights in a new model give the same scores, whatever the epoch's graph was."""
    run = built(graph_gradients=gradients)
    run.model.train().start_epoch(0)
    optimizer = torch.optim.Adam(run.model.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        run.model.calculate_loss(first_batch(run)).backward()
        optimizer.step()
    other = built(graph_gradients=gradients)
    other.model.load_state_dict(run.model.state_dict())
    assert torch.equal(scores_of(run), scores_of(other))


def test_what_evaluation_has_chosen_is_not_chosen_again(built, monkeypatch):
    run, calls = built(), []
    monkeypatch.setattr("recbole_mm.models.lattice.nearest", lambda *given: calls.append(1) or nearest_of(*given))
    from recbole_mm.models.multimodal_graph import nearest as nearest_of

    scores_of(run)
    run.model.train().start_epoch(1)
    run.model.calculate_loss(first_batch(run))
    assert len(calls) == run.model.feature_count
    with torch.no_grad():
        run.model.modality_logits += 1
    run.model.start_epoch(2)
    assert len(calls) == 2 * run.model.feature_count


def test_an_item_without_a_text_has_no_edge_by_text(tmp_path):
    settings = without_some_texts(tmp_path)
    run = assembled("LATTICE", tmp_path, settings, item_features=settings["item_features"], knn_k=4)
    item = run.dataset.token2id("item_id", MISSING[0])
    run.model.start_epoch(0)
    with torch.no_grad():
        (_, by_image, _), _, (_, by_text, _), (_, learnt_by_text, _) = run.model.item_graphs()
    assert (by_image.rows == item).any()
    for graph in (by_text, learnt_by_text):
        assert not ((graph.rows == item) | (graph.columns == item)).any()
    expected = expected_scores(run, dense_graph(run, initial_graphs(run)))
    torch.testing.assert_close(scores_of(run).double(), expected, atol=1e-5, rtol=1e-4)


def test_refined_graph_stands_in_for_the_initial_one(built):
    run = built(item_graph="refined", refined_similar_k=5, refined_co_k=3, refined_threshold=0.8)
    refined = refined_graphs(run, 5, 3, 0.8)
    dense = [torch.from_numpy(graph.toarray()).double() for graph in refined]
    expected = expected_scores(run, dense_graph(run, dense))
    torch.testing.assert_close(scores_of(run).double(), expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(expected, expected_scores(run, dense_graph(run, initial_graphs(run))))


def test_the_graph_shows_what_content_tells(toy_settings):
    settings = {**toy_settings, "item_features": TOY_FEATURES, "epochs": 40, "learning_rate": 5e-3}
    ours = recbole_mm.run("LATTICE", "toy", config_dict=settings)
    pop = recbole_mm.run("Pop", "toy", config_dict=toy_settings)
    assert ours.test_result["recall@10"] > 1.3 * pop.test_result["recall@10"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "ngcf"}, "backbone: 'ngcf' is not accepted; give one of lightgcn, mf"),
        (
            {"graph_gradients": "always"},
            "graph_gradients: 'always' is not accepted; give one of every_batch, first_batch",
        ),
        ({"knn_k": 0}, "knn_k: 0 is not accepted; give a whole number of at least 1"),
        ({"n_mm_layers": 0}, "n_mm_layers: 0 is not accepted; give a whole number of at least 1"),
        ({"n_ui_layers": -1}, "n_ui_layers: -1 is not accepted; give a whole number of at least 0"),
        ({"lambda_coeff": 1.7}, "lambda_coeff: 1.7 is not accepted; give a number from 0 to 1"),
        ({"feature_embedding_size": 0}, "feature_embedding_size: 0 is not accepted; give a whole number of at least 1"),
        ({"item_graph": "frozen"}, "item_graph: 'frozen' is not accepted; give one of own, refined"),
        ({"item_graph": "refined", "refined_co_k": 2.5}, "refined_co_k: 2.5 is not accepted; give a whole number"),
    ],
)
def test_impossible_settings_are_refused(built, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(**settings)
