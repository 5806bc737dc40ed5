"""What the multimodal general models share: sparse products and their gradients, kept vectors, checked settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.dot_product import dot_product_of
from recbole_mm.models.multimodal_graph import bpr_loss, light_propagation, nearest, squared_length, user_item_adjacency
from recbole_mm.models.sparse import SparseMatrix
from recbole_mm.training.state import AttributeWatch, load_model_tree, model_tree
from tests import multimodal
from tests.multimodal import assembled, first_batch, scores_of, without_some_texts

MODELS = ("VBPR", "LATTICE", "FREEDOM")


def random_matrix(rows: int, columns: int, entries: int, seed: int = 0) -> SparseMatrix:
    rng = torch.Generator().manual_seed(seed)
    places = torch.randperm(rows * columns, generator=rng)[:entries]
    return SparseMatrix(places // columns, places % columns, torch.randn(entries, generator=rng), (rows, columns))


@pytest.mark.parametrize("entries", [0, 1, 20, 63])
def test_products_and_their_gradients_are_those_of_the_dense_matrix(entries):
    """Empty rows and columns among them, and a matrix without any gap."""
    matrix = random_matrix(9, 7, entries)
    values = matrix.values.clone().requires_grad_()
    dense = torch.randn(7, 4, requires_grad=True)
    other = torch.randn(9, 4)
    (matrix.matmul(dense, values) * other).sum().backward()
    wanted_values, wanted_dense = values.detach().clone().requires_grad_(), dense.detach().clone().requires_grad_()
    whole = torch.zeros(9, 7).index_put((matrix.rows, matrix.columns), wanted_values, accumulate=True)
    torch.testing.assert_close(matrix @ dense, whole @ wanted_dense, atol=1e-3, rtol=1e-4)
    ((whole @ wanted_dense) * other).sum().backward()
    torch.testing.assert_close(values.grad, wanted_values.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(dense.grad, wanted_dense.grad, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("entries", [0, 20])
def test_dots_of_places_and_their_gradients(entries):
    matrix = random_matrix(9, 7, entries)
    left, right = torch.randn(9, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    weights = torch.randn(entries)
    (matrix.dots(left, right) * weights).sum().backward()
    ours = left.grad, right.grad
    left.grad = right.grad = None
    wanted = (left[matrix.rows] * right[matrix.columns]).sum(1)
    torch.testing.assert_close(matrix.dots(left, right), wanted)
    (wanted * weights).sum().backward()
    torch.testing.assert_close(ours, (left.grad, right.grad))


def test_a_vector_met_on_both_sides_gets_both_gradients():
    matrix = random_matrix(6, 6, 20)
    vectors = torch.randn(6, 3, dtype=torch.float32, requires_grad=True)
    matrix.dots(vectors, vectors).square().sum().backward()
    copy = vectors.detach().clone().requires_grad_()
    (copy[matrix.rows] * copy[matrix.columns]).sum(1).square().sum().backward()
    torch.testing.assert_close(vectors.grad, copy.grad)


def test_scipy_matrices_are_taken_as_they_are():
    graph = csr_array(np.array([[0, 2, 0], [1, 0, 3]], dtype=np.float32))
    assert SparseMatrix.of(graph).to_dense().tolist() == graph.toarray().tolist()


def test_light_propagation_against_the_dense_mean_of_powers():
    matrix = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    users, items = (torch.from_numpy(places) for places in np.nonzero(matrix))
    vectors = torch.randn(7, 5)
    adjacency = user_item_adjacency(users, items, 3, 4)
    wanted = multimodal.light_gcn(matrix, vectors[:3], vectors[3:], 3)
    ours = light_propagation(adjacency, vectors, 3)
    np.testing.assert_allclose(ours, np.concatenate(wanted), atol=1e-6)
    assert torch.equal(light_propagation(adjacency, vectors, 0), vectors)


def test_losses_by_hand():
    positive, negative = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.0, 2.0, 100.0])
    by_hand = -torch.log(torch.sigmoid(positive - negative)[:2])
    counted = torch.tensor([True, True, False])
    torch.testing.assert_close(bpr_loss(positive, negative, counted), by_hand.mean())
    assert bpr_loss(positive, negative, torch.zeros(3, dtype=torch.bool)) == 0
    assert bpr_loss(positive, negative).isfinite()
    assert squared_length(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[2.0], [0.0]])) == (26 / 4 + 4 / 4)


def test_nearest_by_hand():
    vectors = np.array([[0, 0], [1, 0], [1, 1], [-1, 0.1], [0, 0]], dtype=np.float32)
    half = np.float32(2**-0.5)
    graph = nearest(vectors, k=2).toarray()
    np.testing.assert_allclose(graph[1], [0, 1, half, 0, 0], atol=1e-6)
    np.testing.assert_allclose(graph[3], [0, 0, 0, 1, 0], atol=1e-6)  # the next best is a negative cosine
    assert not graph[[0, 4]].any()
    assert nearest(vectors, k=2, binary=True).toarray()[3].tolist() == [0, 0, 1, 1, 0]


# ---------------------------------------------------------------------------------------------------- kept vectors


@pytest.mark.parametrize("model", MODELS)
def test_vectors_are_kept_in_evaluation_until_a_weight_changes(model, tmp_path, toy_settings, monkeypatch):
    run = assembled(model, tmp_path, toy_settings)
    net, calls = run.model.eval(), []
    original = type(net).propagate
    monkeypatch.setattr(type(net), "propagate", lambda self: calls.append(1) or original(self))
    with torch.no_grad():
        first = net.item_vectors()
        assert net.item_vectors() is first
        assert len(calls) == 1
        net.item_embedding.weight[1] += 1.0
        assert not torch.equal(net.item_vectors(), first)
        weights = {name: weight.clone() for name, weight in net.state_dict().items()}
        weights["item_embedding.weight"][1] -= 1.0
        net.load_state_dict(weights)
        torch.testing.assert_close(net.item_vectors(), first)
    assert len(calls) == 3
    net.train()
    assert net._kept.value is None
    with torch.no_grad():
        net.item_vectors()
    assert net._kept.value is None


@pytest.mark.parametrize("model", MODELS)
def test_checkpoints_hold_the_weights_and_nothing_that_follows_from_them(model, tmp_path, toy_settings):
    run = assembled(model, tmp_path, toy_settings)
    watch = AttributeWatch(run.model)
    run.model.start_epoch(0)
    run.model.train()
    run.model.calculate_loss(first_batch(run)).backward()
    scores = scores_of(run)
    tree = model_tree(run.model, watch)
    assert tree["attributes"] == {}
    assert set(tree["state_dict"]) == {name for name, _ in run.model.named_parameters()}
    other = assembled(model, tmp_path, toy_settings, seed=3)
    assert not torch.equal(scores_of(other), scores)
    load_model_tree(other.model, tree, "memory")
    assert torch.equal(scores_of(other), scores)


@pytest.mark.parametrize("model", MODELS)
def test_ranked_by_a_dot_product(model, tmp_path, toy_settings):
    run = assembled(model, tmp_path, toy_settings)
    halves = dot_product_of(run.model.eval())
    batch = run.splits.test.users.interaction[np.arange(5)]
    with torch.no_grad():
        ours = halves.users(batch) @ halves.items().T
        torch.testing.assert_close(ours.view(-1), run.model.full_sort_predict(batch))


@pytest.mark.parametrize("model", MODELS)
def test_padding_and_missing_modalities_leave_every_score_and_gradient_finite(model, tmp_path):
    settings = without_some_texts(tmp_path)
    run = assembled(model, tmp_path, settings, item_features=settings["item_features"])
    missing = [run.dataset.token2id("item_id", item) for item in multimodal.MISSING]
    place = run.config["content_features"].index("text")
    assert (~run.model.has_feature(place)).nonzero().flatten().tolist() == [0, *sorted(missing)]
    assert torch.isfinite(scores_of(run)).all()
    run.model.train()
    run.model.calculate_loss(first_batch(run)).backward()
    assert all(torch.isfinite(weight.grad).all() for weight in run.model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("names", [["text"], ["image", "text"], ["text", "image"]])
def test_any_choice_of_features(model, names, tmp_path, toy_settings):
    weights = [1.0] if len(names) == 1 else [0.3, 0.7]
    run = assembled(model, tmp_path, toy_settings, content_features=names, modality_weights=weights)
    assert [feature.shape[1] for feature in run.model.features()] == [{"text": 6, "image": 5}[name] for name in names]
    assert torch.isfinite(scores_of(run)).all()


# -------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("how", ["none", "l2", "standard"])
def test_features_are_normalised_as_asked(how, tmp_path, toy_settings):
    run = assembled("VBPR", tmp_path, toy_settings, feature_normalization=how)
    raw = torch.from_numpy(run.dataset.item_feature("image"))
    ours = run.model.feature(0)
    assert not ours[0].any()
    if how == "none":
        assert torch.equal(ours, raw)
    elif how == "l2":
        torch.testing.assert_close(ours[1:], raw[1:] / raw[1:].norm(dim=1, keepdim=True))
    else:
        torch.testing.assert_close(ours[1:].mean(0), torch.zeros(5), atol=1e-6, rtol=0)
        torch.testing.assert_close(ours[1:].var(0, correction=0), torch.full((5,), 1 / 5))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"content_features": []}, "content_features names no feature"),
        ({"content_features": ["sound"]}, r"no item feature 'sound'; item_features has \['image', 'text'\]"),
        ({"content_features": ["text", "text"]}, "names a feature twice"),
        (
            {"feature_normalization": "max"},
            "feature_normalization: 'max' is not accepted; give one of none, l2, standard",
        ),
        ({"embedding_size": 0}, "embedding_size: 0 is not accepted; give a whole number of at least 1"),
        ({"reg_weight": -1}, "reg_weight: -1 is not accepted; give a number of at least 0"),
    ],
)
def test_impossible_settings_are_refused_by_all(model, settings, message, tmp_path, toy_settings):
    with pytest.raises(ConfigError, match=message):
        assembled(model, tmp_path, toy_settings, **settings)


def test_products_stay_in_full_precision_under_mixed_precision():
    matrix, dense = random_matrix(5, 4, 9), torch.randn(4, 3, requires_grad=True)
    expected = matrix @ dense
    with torch.autocast("cpu", torch.bfloat16):
        found = matrix @ dense
        dots = matrix.dots(torch.randn(5, 3), dense)
    assert found.dtype == dots.dtype == torch.float32
    assert torch.equal(found, expected)
    (found.sum() + dots.sum()).backward()
    assert dense.grad.dtype == torch.float32
