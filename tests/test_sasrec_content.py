"""SASRec-content: item vectors written out by hand, and SASRec over them, trained on full sequences."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import recbole_mm
from recbole_mm.data.features import FeatureSpec
from recbole_mm.data.interactions import SequenceSamples
from recbole_mm.data.loaders import TARGET_MASK, TARGETS, FullSequenceLoader
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.dot_product import dot_product_of
from recbole_mm.models.layers import standardise
from recbole_mm.models.sasrec_content import ContentEmbedding
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from tests.conftest import TOY_FEATURES


@pytest.fixture
def assembled(toy_config, tmp_path):
    def build(**settings):
        return assemble(toy_config("SASRecContent", item_features=TOY_FEATURES, **settings), tmp_path, Stages())

    return build


def test_its_yaml_names_the_papers_text_encoder(toy_config):
    config = toy_config("SASRecContent")
    assert config["content_features"] == ["text"]
    (spec,) = [FeatureSpec.parse(name, settings) for name, settings in config["item_features"].items()]
    assert (spec.name, spec.encoder, spec.on) == ("text", "google-bert/bert-base-uncased", "text")


def features(*widths: int, items: int = 7) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    made = [torch.randn(items, width, generator=rng) for width in widths]
    for feature in made:
        feature[0] = 0
    return made


def test_an_item_is_its_projected_features_side_by_side():
    text, image = features(5, 3)
    torch.manual_seed(0)
    embedding = ContentEmbedding([text, image], width=8)
    left, right = embedding.projections
    expected = torch.zeros(7, 8)
    for i in range(1, 7):
        expected[i, :4] = left.weight @ text[i] + left.bias
        expected[i, 4:] = right.weight @ image[i] + right.bias
    torch.testing.assert_close(embedding.weight, expected)
    assert not embedding.weight[0].any()


def test_few_ids_and_many_give_the_same_vectors():
    embedding = ContentEmbedding(features(5), width=4)
    few = torch.tensor([[3, 0], [6, 3]])
    many = few.repeat(1, 5)
    assert few.numel() < 7 < many.numel()
    table = embedding.weight
    torch.testing.assert_close(embedding(few), table[few])
    torch.testing.assert_close(embedding(many), table[many])
    assert not embedding(few)[0, 1].any()


def test_features_are_standardised_and_an_item_without_content_is_an_average_one(assembled):
    model = assembled().model
    feature = model.item_embedding.get_buffer("feature_0")
    width = feature.shape[1]
    assert not feature[0].any()
    torch.testing.assert_close(feature[1:].mean(0), torch.zeros(width), atol=1e-6, rtol=0)
    torch.testing.assert_close(feature[1:].var(0, correction=0), torch.full((width,), 1 / width))
    raw = torch.eye(4)
    raw[2] = 0
    assert not standardise(raw)[2].any()
    embedding = ContentEmbedding([standardise(raw)], width=2)
    torch.testing.assert_close(embedding.weight[2], embedding.projections[0].bias)


def test_features_may_stay_as_they_are(assembled):
    run = assembled(item_normalization="none")
    expected = torch.from_numpy(run.dataset.item_feature("text"))
    assert torch.equal(run.model.item_embedding.get_buffer("feature_0"), expected)


def test_there_is_no_id_embedding_and_no_feature_among_the_weights(assembled):
    run = assembled(content_features=["text", "image"])
    shapes = {name: tuple(p.shape) for name, p in run.model.state_dict().items() if name.startswith("item_embedding")}
    assert shapes == {
        "item_embedding.projections.0.weight": (32, 6),
        "item_embedding.projections.0.bias": (32,),
        "item_embedding.projections.1.weight": (32, 5),
        "item_embedding.projections.1.bias": (32,),
    }
    assert all(parameter.shape[0] != run.dataset.item_num for parameter in run.model.parameters())


def test_loss_is_cross_entropy_of_every_prefix_on_its_own(assembled):
    run = assembled()
    assert isinstance(run.splits.train, FullSequenceLoader)
    run.model.eval()
    batch = next(iter(run.splits.train))
    table, losses = run.model.item_embedding.weight, []
    for history, targets, mask in zip(batch["item_id_list"], batch[TARGETS], batch[TARGET_MASK]):
        for place in range(int(mask.sum())):
            state = run.model(history[None, : place + 1], torch.tensor([place + 1]))
            losses.append(F.cross_entropy(state @ table.T, targets[place : place + 1]))
    torch.testing.assert_close(run.model.calculate_loss(batch), torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


def test_ranked_by_one_table_of_item_vectors(assembled):
    run = assembled(content_features=["text", "image"])
    run.model.eval()
    halves = dot_product_of(run.model)
    batch = run.splits.test.users.interaction
    assert isinstance(batch, SequenceSamples)
    batch = batch[torch.arange(5)]
    with torch.no_grad():
        scores = halves.users(batch) @ halves.items().T
        torch.testing.assert_close(scores, run.model.full_sort_predict(batch))


def test_content_alone_tells_the_next_genre(toy_settings):
    """The toy's next item is mostly of the genre that its vector tells."""
    outcome = recbole_mm.run(
        "SASRecContent",
        "toy",
        config_dict={
            **toy_settings,
            "item_features": TOY_FEATURES,
            "epochs": 30,
            "train_batch_size": 64,
            "hidden_dropout_prob": 0.1,
            "attn_dropout_prob": 0.1,
        },
    )
    pop = recbole_mm.run("Pop", "toy", config_dict=toy_settings)
    assert outcome.test_result["recall@10"] > 1.3 * pop.test_result["recall@10"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"content_features": []}, "content_features names no feature"),
        ({"content_features": ["sound"]}, r"no item feature 'sound'; item_features has \['image', 'text'\]"),
        ({"content_features": ["text", "image", "text"]}, "hidden_size 64 cannot be shared equally by 3"),
        ({"item_normalization": "max"}, "item_normalization: 'max' is not accepted; give one of standard, none"),
    ],
)
def test_impossible_settings_are_refused(assembled, settings, message):
    with pytest.raises(ConfigError, match=message):
        assembled(**settings)
