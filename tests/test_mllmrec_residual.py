"""Residuals of MLLMRec's towers: their equations written out, and that a model begins as it is without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.inputs import ModelInputs
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.splits import split
from recbole_mm.models.mllmrec import MLLMRec
from recbole_mm.models.mllmrec.inputs import centred
from tests.test_mllmrec import CLOSE, SMALL, batch, dense_user_item, towers_by_hand, training_pairs, vectors

KINDS = [("none", True), ("id", False), ("items", False), ("id", True), ("items", True)]


@pytest.fixture
def build(toy_config):
    """`build(**settings)` -> an MLLMRec on `toy` and its training dataset."""

    def made(**settings):
        config = toy_config("MLLMRec", **{**SMALL, **settings})
        dataset = create_dataset(config)
        dataset.inputs = ModelInputs(
            fused_vectors=vectors(dataset.item_num, 1), profile_vectors=vectors(dataset.user_num, 2)
        )
        train = split(config, dataset, MLLMRec).train_dataset
        torch.manual_seed(3)
        return MLLMRec(config, train), train

    return made


def filled(model: MLLMRec) -> MLLMRec:
    """The same model with other residuals than zeros."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.residuals.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def expected(model: MLLMRec, train, of_users: str, of_items: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """h_u and h_i by their definition, user by user."""
    users, items = (table.clone() for table in towers_by_hand(model))
    chosen_by, chosen = training_pairs(train)
    if of_users == "id":
        users += model.residuals.users.detach().double()
    if of_users == "items":
        for user in range(1, model.n_users):
            mine = np.unique(chosen[chosen_by == user])
            users[user] += model.residuals.chosen.detach().double()[mine].sum(0) / len(mine) ** 0.5
    if of_items:
        items += model.residuals.items.detach().double()
    return users, items


@pytest.mark.parametrize(("of_users", "of_items"), KINDS)
def test_scores_and_loss_are_those_of_towers_with_residuals(build, of_users, of_items):
    model, train = build(user_residual=of_users, item_residual=of_items)
    users, items = expected(filled(model), train, of_users, of_items)
    rows = batch(train)
    chosen, positive, negative = users[rows["user_id"]], items[rows["item_id"]], items[rows["neg_item_id"]]
    loss = -F.logsigmoid((chosen * (positive - negative)).sum(1)).mean()
    torch.testing.assert_close(model.calculate_loss(rows).double(), loss, **CLOSE)
    model.eval()
    torch.testing.assert_close(model.full_sort_predict(rows).view(50, -1).double(), chosen @ items.T, **CLOSE)
    torch.testing.assert_close(model.predict(rows).double(), (chosen * positive).sum(1), **CLOSE)


@pytest.mark.parametrize(("of_users", "of_items"), KINDS)
def test_a_model_begins_as_it_is_without_residuals_and_learns_them(build, of_users, of_items):
    model, train = build(user_residual=of_users, item_residual=of_items)
    plain, _ = build()
    rows = batch(train)
    assert torch.equal(model.calculate_loss(rows), plain.calculate_loss(rows))
    model.calculate_loss(rows).backward()
    assert len(list(model.residuals.parameters())) == (of_users != "none") + of_items
    for parameter in model.residuals.parameters():
        assert parameter.grad.abs().sum() > 0


def test_convolutions_go_over_vectors_with_their_residuals(build):
    model, train = build(user_residual="id", item_residual=True, gcn_ui=True)
    h = torch.cat(expected(filled(model), train, "id", True))
    unit = F.normalize(h, dim=1)
    graph = dense_user_item(*training_pairs(train), model.n_users, model.n_items)
    users, items = (h + unit + graph @ unit + graph @ graph @ unit).split([model.n_users, model.n_items])
    rows = batch(train)
    model.eval()
    found = model.full_sort_predict(rows).view(50, -1).double()
    torch.testing.assert_close(found, users[rows["user_id"]] @ items.T, **CLOSE)


@pytest.mark.parametrize("value", [True, "mean", None])
def test_an_unknown_residual_is_refused(toy_config, value):
    with pytest.raises(ConfigError, match=r"user_residual: .* give one of none, id, items"):
        MLLMRec.requirements(toy_config("MLLMRec", user_residual=value))


# ---- states in place of profiles ----


def test_states_are_centred_and_nothing_stands_in_for_one_that_is_missing(build):
    model, train = build(profile_form="states")
    profiles = vectors(train.user_num, 2).astype(np.float64)
    apart = profiles[1:] - profiles[1:].mean(0)
    np.testing.assert_allclose(
        model.user_inputs[1:].numpy(), apart / np.linalg.norm(apart, axis=1, keepdims=True), atol=1e-6
    )
    found = centred(np.array([[0.0, 0], [3, 1], [1, 1], [0, 0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0, 0], [1, 0], [-1, 0], [0, 0]], atol=1e-7)
    assert not centred(np.zeros((2, 3), dtype=np.float32)).any()


def test_a_form_asks_for_its_own_need(toy_config):
    needs = {form: MLLMRec.requirements(toy_config("MLLMRec", profile_form=form)) for form in ("words", "states")}
    assert needs == {
        "words": ("item_text_features", "user_profiles"),
        "states": ("item_text_features", "user_states"),
    }
    assert MLLMRec.requirements(toy_config("MLLMRec", profile_form="states", reasoning=False)) == (
        "item_text_features",
    )
