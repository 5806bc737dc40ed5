"""VBPR: its score and its loss written out for single pairs."""

from __future__ import annotations

import pytest
import torch

import recbole_mm
from recbole_mm.errors import ConfigError
from tests.conftest import TOY_FEATURES
from tests.multimodal import MISSING, assembled, first_batch, scores_of, without_some_texts


@pytest.fixture
def built(tmp_path, toy_settings):
    def build(**settings):
        run = assembled("VBPR", tmp_path, toy_settings, **{"content_embedding_size": 7, **settings})
        with torch.no_grad():  # biases begin at zero
            run.model.item_bias.normal_()
            run.model.content_bias.normal_()
        return run

    return build


def score(model, user: int, item: int) -> torch.Tensor:
    """Equation 4 without alpha and beta_u."""
    content = torch.cat([feature[item] for feature in model.features()])
    latent = torch.dot(model.user_embedding.weight[user], model.item_embedding.weight[item])
    visual = torch.dot(model.user_content.weight[user], model.projection.weight @ content)
    return latent + visual + model.item_bias[item] + torch.dot(model.content_bias, content)


def test_scores_are_equation_4(built):
    run = built()
    table = scores_of(run)
    for user, item in ((1, 1), (5, 40), (60, 3)):
        torch.testing.assert_close(table[user - 1, item], score(run.model, user, item))


def test_loss_is_bpr_with_regularised_vectors(built):
    run = built(reg_weight=0.1, content_reg_weight=0.01)
    model, batch = run.model, first_batch(run)[:6]
    losses, lengths = [], []
    for user, good, bad in zip(*(batch[field].tolist() for field in ("user_id", "item_id", "neg_item_id"))):
        losses.append(-torch.log(torch.sigmoid(score(model, user, good) - score(model, user, bad))))
        vectors = [model.user_embedding.weight[user], model.user_content.weight[user]]
        for item in (good, bad):
            vectors += [model.item_embedding.weight[item], model.item_bias[item]]
        lengths.append(sum(vector.square().sum() for vector in vectors) / 2)
    expected = torch.stack(losses).mean() + 0.1 * torch.stack(lengths).mean()
    expected = expected + 0.01 * (model.projection.weight.square().sum() + model.content_bias.square().sum()) / 2
    torch.testing.assert_close(model.calculate_loss(batch), expected)


def test_nothing_but_these_is_learnt(built):
    """alpha and beta_u, which cancel, are no parameters, and features stay as they are."""
    shapes = {name: tuple(weight.shape) for name, weight in built().model.state_dict().items()}
    assert shapes == {
        "user_embedding.weight": (61, 64),
        "item_embedding.weight": (41, 64),
        "user_content.weight": (61, 7),
        "projection.weight": (7, 11),
        "item_bias": (41,),
        "content_bias": (11,),
    }


def test_an_item_without_a_text_is_scored_by_its_image(tmp_path):
    settings = without_some_texts(tmp_path)
    run = assembled("VBPR", tmp_path, settings, item_features=settings["item_features"])
    item = run.dataset.token2id("item_id", MISSING[0])
    assert run.model.feature(0)[item].any()
    assert not run.model.feature(1)[item].any()
    torch.testing.assert_close(scores_of(run)[4, item], score(run.model, 5, item))


def test_content_tells_the_favourite_genre(toy_settings):
    settings = {**toy_settings, "item_features": TOY_FEATURES, "epochs": 40, "learning_rate": 5e-3}
    ours = recbole_mm.run("VBPR", "toy", config_dict=settings)
    pop = recbole_mm.run("Pop", "toy", config_dict=toy_settings)
    assert ours.test_result["recall@10"] > 1.3 * pop.test_result["recall@10"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"content_embedding_size": 1.5}, "content_embedding_size: 1.5 is not accepted; give a whole number"),
        ({"content_reg_weight": "much"}, "content_reg_weight: 'much' is not accepted; give a number"),
    ],
)
def test_impossible_settings_are_refused(built, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(**settings)
