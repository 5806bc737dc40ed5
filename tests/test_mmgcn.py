"""MMGCN: its layers against sums over neighbours written out, items without a modality, bad settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_mm.errors import ConfigError
from recbole_mm.models.mmgcn import MMGCN, neighbour_means
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from tests.conftest import TOY_FEATURES
from tests.multimodal import beats_pop


@pytest.fixture
def assembled(toy_config, tmp_path):
    def build(**settings):
        return assemble(toy_config("MMGCN", **{"item_features": TOY_FEATURES, **settings}), tmp_path, Stages())

    return build


def neighbours_of(run) -> list[list[int]]:
    """Neighbours of each node; items are numbered behind the users."""
    model, pairs = run.model, run.splits.train_dataset.inter_feat
    found = [set() for _ in range(model.n_users + model.n_items)]
    for user, item in zip(pairs["user_id"].tolist(), pairs["item_id"].tolist()):
        found[user].add(model.n_users + item)
        found[model.n_users + item].add(user)
    return [sorted(nodes) for nodes in found]


def by_hand(run) -> tuple[torch.Tensor, torch.Tensor]:
    """u* and i*, node by node (Sec. 3.2 to 3.4)."""
    model, neighbours = run.model, neighbours_of(run)
    ids = torch.cat([model.user_embedding.weight, model.item_embedding.weight])
    total = torch.zeros_like(ids)
    for graph, feature in zip(model.modalities, model.features(), strict=True):
        items = feature if graph.reduction is None else feature @ graph.reduction.weight.T
        nodes = torch.cat([graph.preference.weight, items])
        for layer in graph.layers:
            rows = []
            for node, around in enumerate(neighbours):
                h = torch.zeros(ids.shape[1])
                for other in around:
                    h = h + layer.message.weight @ nodes[other] / len(around)
                h = F.leaky_relu(h)
                own = F.leaky_relu(layer.own.weight @ nodes[node]) + ids[node]
                if layer.concat:
                    rows.append(F.leaky_relu(layer.combine.weight @ torch.cat([h, own])))
                else:
                    rows.append(F.leaky_relu(layer.combine.weight @ h + own))
            nodes = torch.stack(rows)
        total = total + nodes
    return total[: model.n_users], total[model.n_users :]


@pytest.mark.parametrize(
    "settings",
    [
        {"combination": "elementwise"},
        {"combination": "concat", "n_layers": 1, "modality_size": 3},
        {"combination": "concat", "n_layers": 3, "content_features": ["text"]},
    ],
)
def test_vectors_are_those_of_sums_over_neighbours(assembled, settings):
    run = assembled(embedding_size=8, **settings)
    with torch.no_grad():
        for found, expected in zip(run.model.propagate(), by_hand(run), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_a_row_of_the_graph_is_the_mean_over_neighbours():
    users, items = torch.tensor([1, 1, 2]), torch.tensor([1, 3, 3])
    means = neighbour_means(users, items, n_users=3, n_items=4).to_dense()
    expected = torch.zeros(7, 7)
    expected[1, [4, 6]] = 0.5
    expected[2, 6] = expected[4, 1] = 1
    expected[6, [1, 2]] = 0.5
    assert torch.equal(means, expected)


def test_gradients_pass_the_graph_as_they_pass_a_dense_one(assembled):
    run = assembled(embedding_size=8)
    weights = [p for p in run.model.parameters() if p.requires_grad]
    rng = torch.Generator().manual_seed(3)
    targets = [torch.randn(v.shape, generator=rng) for v in run.model.propagate()]
    found, expected = (
        torch.autograd.grad(sum((v * t).sum() for v, t in zip(vectors, targets)), weights)
        for vectors in (run.model.propagate(), by_hand(run))
    )
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-3)


def test_the_loss_is_bpr_and_the_length_of_the_batchs_embeddings(assembled):
    run = assembled(embedding_size=8, reg_weight=0.3)
    model, batch = run.model.train(), next(iter(run.splits.train))
    users, items = by_hand(run)
    expected = torch.zeros(())
    rows = list(zip(batch["user_id"].tolist(), batch["item_id"].tolist(), batch["neg_item_id"].tolist()))
    for user, chosen, other in rows:
        expected = expected - F.logsigmoid(users[user] @ items[chosen] - users[user] @ items[other])
        parts = [model.user_embedding.weight[user], model.item_embedding.weight[chosen]]
        parts += [model.item_embedding.weight[other], *(graph.preference.weight[user] for graph in model.modalities)]
        expected = expected + 0.3 / 2 * sum((part**2).sum() for part in parts)
    torch.testing.assert_close(model.calculate_loss(batch), expected / len(rows), atol=1e-5, rtol=1e-5)


def test_the_graph_is_convolved_once_per_step_and_once_per_ranking(assembled, monkeypatch):
    run = assembled()
    calls = []
    propagate = MMGCN.propagate
    monkeypatch.setattr(MMGCN, "propagate", lambda self: calls.append(1) or propagate(self))
    run.model.train().calculate_loss(next(iter(run.splits.train)))
    assert len(calls) == 1
    run.model.eval()
    with torch.no_grad():
        for rows in (np.arange(3), np.arange(3, 6)):
            run.model.full_sort_predict(run.splits.test.users.interaction[rows])
    assert len(calls) == 2


def test_an_item_without_any_modality_starts_from_zeros_and_is_known_by_its_id_and_users(assembled):
    run = assembled(embedding_size=8, n_layers=1, content_features=["text"])
    model = run.model
    item = int(run.splits.train_dataset.inter_feat["item_id"][0])
    model.get_buffer("feature_0")[item] = 0
    (layer,), (graph,) = model.modalities[0].layers, model.modalities
    with torch.no_grad():
        around = torch.tensor(neighbours_of(run)[model.n_users + item])
        h = F.leaky_relu((graph.preference.weight[around] @ layer.message.weight.T).mean(0))
        expected = F.leaky_relu(layer.combine.weight @ h + model.item_embedding.weight[item])
        torch.testing.assert_close(model.propagate()[1][item], expected, atol=1e-6, rtol=1e-5)


def test_users_have_a_preference_in_each_modalitys_space(assembled):
    model = assembled(content_features=["text", "image"]).model
    assert [tuple(graph.preference.weight.shape) for graph in model.modalities] == [
        (model.n_users, 6),
        (model.n_users, 5),
    ]
    model = assembled(content_features=["text", "image"], modality_size=4).model
    assert {tuple(graph.preference.weight.shape) for graph in model.modalities} == {(model.n_users, 4)}
    assert not any(name.startswith("feature_") for name in model.state_dict())


def test_it_learns_what_users_choose(toy_settings):
    assert beats_pop("MMGCN", toy_settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"content_features": []}, "content_features names no feature"),
        ({"content_features": ["sound"]}, "no item feature 'sound'"),
        ({"combination": "sum"}, "combination: 'sum' is not accepted; give one of concat, elementwise"),
        ({"n_layers": 0}, "n_layers: 0 is not accepted; give a whole number of at least 1"),
        ({"modality_size": -1}, "modality_size: -1 is not accepted; give a whole number of at least 0"),
        ({"embedding_size": 8.5}, "embedding_size: 8.5 is not accepted; give a whole number"),
        ({"reg_weight": float("inf")}, "reg_weight: inf is not accepted; give a number"),
    ],
)
def test_impossible_settings_are_refused(assembled, settings, message):
    with pytest.raises(ConfigError, match=message):
        assembled(**settings)
