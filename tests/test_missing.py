"""`missing_rate`: exactly which items go without what and when, that nothing hidden reaches a model, and
`modality_dropout`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import recbole_mm
from recbole_mm.data.content import ItemContent
from recbole_mm.data.content_source import ContentSource
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.missing import MissingContents
from recbole_mm.data.splits import TEST, TRAIN
from recbole_mm.data.title_cards import TitleCards
from recbole_mm.errors import ConfigError
from recbole_mm.models.layers import ModalityDropout, standardise
from recbole_mm.models.molar.items import ContentItems
from recbole_mm.models.sasrec_content import ContentEmbedding
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from recbole_mm.training.checkpoint import load_tree
from tests.conftest import TOY_FEATURES, TOY_SETTINGS, write_toy
from tests.encoders import write_sentence_encoder
from tests.test_contract import MODELS, QUICK, run, scores, sentence_encoder  # noqa: F401
from tests.test_contract import SEEN_FEATURES as FEATURES

CONTENT = {"item_features": FEATURES, "content_features": ["text", "image"]}
IDS = [f"i{number}" for number in range(40)]


def first(ids, count: int, seed: int = 0) -> set[str]:
    """The items that lose something, written out."""
    return set(sorted(ids, key=lambda item: hashlib.sha256(f"{seed}\0{item}".encode()).hexdigest())[:count])


def missing(tokens) -> set[str]:
    return {str(token) for token in tokens}


# ---------------------------------------------------------------- which items, and when


@pytest.mark.parametrize(("rate", "count"), [(0.0, 0), (0.3, 12), (0.6, 24), (0.9, 36), (0.0125, 1), (0.0124, 0)])
def test_exactly_these_items(rate, count):
    chosen = MissingContents(rate, "both", "both", 0).items(IDS)
    assert chosen == first(IDS, count) == MissingContents(rate).items(reversed(IDS))
    assert chosen <= MissingContents(0.95).items(IDS), "those of a smaller rate are among those of a larger one"
    if count > 1:
        assert chosen != MissingContents(rate, seed=1).items(IDS)


def test_what_is_hidden_in_which_phase():
    both, images = MissingContents(0.3), MissingContents(0.3, "image", "test")
    lost = first(IDS, 12)
    assert both.hidden(IDS, TRAIN) == both.hidden(IDS, TEST) == {"image": lost, "text": lost}
    assert images.hidden(IDS, TRAIN) == {}
    assert images.hidden(IDS, TEST) == {"image": lost}
    assert MissingContents(0.3, "text", "train").hidden(IDS, TRAIN) == {"text": lost}
    assert MissingContents(0.3, "text", "train").hidden(IDS, TEST) == {}
    assert [each.changes for each in (both, images, MissingContents(0.0, at="test"))] == [False, True, False]


@pytest.mark.parametrize("model", ["VBPR", "SASRecContent", "Pop"])
def test_every_model_and_seed_has_the_same_items(toy_config, model):
    found = [
        create_dataset(toy_config(model, missing_rate=0.3, **changed)).hidden(TRAIN)
        for changed in ({}, {"seed": 5}, {"seed": 5, "missing_seed": 2020}, {"missing_seed": None})
    ]
    assert found[0] == found[1] == {"image": first(IDS, 12), "text": first(IDS, 12)}
    assert found[2] == found[3] == {"image": first(IDS, 12, 2020), "text": first(IDS, 12, 2020)}


# ---------------------------------------------------------------- raw content


def test_hidden_items_look_as_if_they_had_nothing(toy_config):
    whole = create_dataset(toy_config("Pop")).content
    seen = create_dataset(toy_config("Pop", missing_rate=0.6, missing_content="text")).content
    lost = first(IDS, 24)
    for place in range(1, len(whole)):
        record, expected, token = seen[place], whole[place], seen.tokens[place]
        assert record.image.tobytes() == expected.image.tobytes()
        assert record.text == (None if token in lost else expected.text)
        assert seen.fields(place) == ({} if token in lost else whole.fields(place))
        assert (seen.fingerprint(place) == whole.fingerprint(place)) == (token not in lost)
        assert seen.only("image").fingerprint(place) == whole.only("image").fingerprint(place)
    assert missing(seen.missing()["text"]) == lost
    assert seen.missing()["image"] == []
    assert seen.source.table.column("class").keys() == set(IDS) - lost, "nor is anything counted of them"
    assert seen.coverage(np.ones(41)).items_with_text == 16


def test_hidden_images(toy_config):
    dataset = create_dataset(toy_config("Pop", missing_rate=0.9, missing_content="image"))
    seen, lost = dataset.content, first(IDS, 36)
    assert {seen.tokens[place] for place in range(1, 41) if seen[place].image is None} == lost
    assert {seen.tokens[place] for place in range(1, 41) if seen.image_bytes(place) is None} == lost
    assert missing(seen.missing()["image"]) == lost
    assert all(seen.text(place) for place in range(1, 41))
    assert set(seen.source.images.names()) == set(IDS) - lost
    assert all(dataset.content_source.has_image(item) for item in IDS), "the source itself has all of them"


def test_a_drawn_card_goes_with_the_title():
    source = ContentSource(images=TitleCards({"7": "Alien", "8": "Seven"}), modalities=["image"])
    seen = ItemContent(source.hiding({"text": frozenset({"7"})}), ["[PAD]", "7", "8"])
    assert (seen[1].image, seen[2].image is None) == (None, False)


@pytest.mark.parametrize(("at", "train", "test"), [("train", True, False), ("test", False, True), ("both", True, True)])
def test_content_of_training_and_test(toy_config, at, train, test):
    dataset = create_dataset(toy_config("Pop", missing_rate=0.5, missing_at=at))
    gone = [
        sum(text is None for text in map(view.text, range(1, 41)))
        for view in (dataset.content, dataset.content_at_test)
    ]
    assert gone == [20 * train, 20 * test]


def test_columns_that_recboles_models_read_are_blank(toy_config, tmp_path):
    config = toy_config("SASRecF", missing_rate=0.5, missing_at="train", selected_features=["class"])
    assembled = assemble(config, tmp_path, Stages())
    lost, tokens = first(IDS, 20), assembled.dataset.item_tokens()
    trained = assembled.splits.train_dataset.get_item_feature()["class"]
    assert {tokens[place] for place in range(1, 41) if not trained[place].any()} == lost
    recbole_mm.runs.steps.show_as_tested(assembled)
    tested = assembled.splits.train_dataset.get_item_feature()["class"]
    assert all(tested[place].any() for place in range(1, 41))
    shown = torch.tensor([token not in lost for token in tokens])
    assert torch.equal(trained[shown], tested[shown])


# ---------------------------------------------------------------- vectors


def features_of(config, folder) -> tuple[dict[str, np.ndarray], list[str]]:
    assembled = assemble(config, folder, Stages())
    return dict(assembled.dataset.inputs.item_features), [str(token) for token in assembled.dataset.item_tokens()]


def test_vectors_of_files_and_of_encoders_are_zeros(toy_config, tmp_path):
    encoder = write_sentence_encoder(tmp_path / "encoder")
    given = {"item_features": {**FEATURES, "words": {"encoder": encoder, "on": "text"}}, "hidden_size": 66}
    given |= {"content_features": ["text", "words", "image"]}
    whole, tokens = features_of(toy_config("SASRecContent", **given), tmp_path)
    seen, _ = features_of(toy_config("SASRecContent", missing_rate=0.3, missing_content="text", **given), tmp_path)
    lost = np.array([token in first(IDS, 12) for token in tokens])
    for name in ("text", "words"):
        assert not seen[name][lost].any()
        np.testing.assert_array_equal(seen[name][~lost], whole[name][~lost])
        assert whole[name][1:].any(axis=1).all()
    np.testing.assert_array_equal(seen["image"], whole["image"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"item_features": TOY_FEATURES, "missing_rate": 0.3}, "without on: image or on: text; say what they are of"),
        ({"item_features": TOY_FEATURES, "missing_rate": 0.3, "missing_at": "test"}, "say what they are of"),
        ({"item_features": {"text": {**TOY_FEATURES["text"], "on": "word"}}}, "on: 'word' is not accepted for a file"),
        ({"missing_rate": 1}, "missing_rate: 1 is not accepted; give a number from 0 to below 1"),
        ({"missing_rate": 0.3, "missing_content": "audio"}, "give one of image, text, both"),
        ({"missing_rate": 0.3, "missing_at": "valid"}, "give one of train, test, both"),
        ({"missing_rate": 0.3, "missing_modality": "drop"}, "missing_modality: drop does not go with missing_rate"),
        ({"modality_dropout": 1}, "modality_dropout: 1 is not accepted"),
    ],
)
def test_refusals_are_one_line(toy_config, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message) as caught:
        assemble(toy_config("SASRecContent", **{"item_features": FEATURES, **settings}), tmp_path, Stages())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "settings"),
    [("HLLM", {"item_llm_tuning": "full"}), ("TIGER", {"item_features": {"text": FEATURES["text"]}})],
)
def test_models_that_keep_what_they_have_read_take_both(model, settings, toy_config, tmp_path):
    hidden = {"missing_rate": 0.3, "missing_at": "test"}
    with pytest.raises(
        ConfigError, match=f"{model} keeps what training has read of the items among its weights; give both"
    ):
        assemble(toy_config(model, **settings, **hidden), tmp_path, Stages())


# ---------------------------------------------------------------- training and test apart

EPOCHS = {"epochs": 2, "eval_step": 1, "train_batch_size": 64, "state": "ERROR"}
APART = {
    "SASRecContent": CONTENT,
    "VBPR": CONTENT,
    "FREEDOM": {**CONTENT, "knn_k": 4, "modality_weights": [0.5, 0.5]},
    "Molar": {"item_features": FEATURES, "item_sources": ["mllm", "text"], "dueg": "sasrec", "hidden_size": 32},
}
SLOW = ("VBPR", "Molar")


def models(names) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


def trained(outcome) -> dict[str, torch.Tensor]:
    return load_tree(outcome.run_dir / "model.safetensors")["state_dict"]


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name


@pytest.mark.parametrize("model", models(APART))
def test_training_sees_what_it_should_and_the_test_what_it_should(model, toy_settings):
    def made(**changed):
        return recbole_mm.run(model, "toy", config_dict={**toy_settings, **EPOCHS, **APART[model], **changed})

    hidden = {"missing_rate": 0.6, "missing_content": "text"}
    whole, both = made(), made(**hidden)
    train, test = made(**hidden, missing_at="train"), made(**hidden, missing_at="test")
    assert_same(trained(whole), trained(test))
    assert_same(trained(both), trained(train))
    assert not all(torch.equal(one, other) for one, other in zip(trained(whole).values(), trained(both).values()))
    assert whole.best_valid_result == test.best_valid_result
    assert both.best_valid_result == train.best_valid_result
    for one, other in ((whole, test), (both, train), (test, both)):
        assert not torch.equal(scores(one), scores(other))
    again = recbole_mm.load(test.run_dir)
    assert torch.equal(scores(again), scores(test))
    assert again.inputs_at_test is None
    moved = recbole_mm.load(whole.run_dir, changed={**hidden, "missing_at": "test"})
    assert torch.equal(scores(moved), scores(test)), "a trained run can be looked at with contents hidden"


def test_a_trained_model_keeps_its_mean_and_spread(toy_settings):
    settings = {**toy_settings, **EPOCHS, **CONTENT, "missing_rate": 0.6}
    raw = torch.from_numpy(np.load(Path(toy_settings["data_path"]) / "toy" / "text.npy"))
    for at in ("train", "test"):
        outcome = recbole_mm.run("SASRecContent", "toy", config_dict={**settings, "missing_at": at})
        tokens = [str(token) for token in outcome.dataset.item_tokens()]
        rows = torch.stack([torch.zeros(6), *(raw[IDS.index(token)] for token in tokens[1:])])
        shown = torch.tensor([token not in {"[PAD]", *first(IDS, 24)} for token in tokens])
        hidden = torch.where(shown[:, None], rows, 0.0)
        expected = standardise(rows, hidden) if at == "train" else standardise(hidden, rows)
        feature = outcome.model.item_embedding.get_buffer("feature_0")
        torch.testing.assert_close(feature, expected / 6**0.5)
        assert bool(feature[1:].any(1).all()) == (at == "train")


def test_zeros_are_the_mean_where_vectors_are_standardised_and_no_edge_where_they_are_not(toy_config, tmp_path):
    standard = assemble(toy_config("VBPR", missing_rate=0.5, **CONTENT), tmp_path, Stages()).model
    assert all(not feature[1:].any(1).all() for feature in standard.features())
    for feature in standard.features():
        torch.testing.assert_close(feature.sum(0), torch.zeros(feature.shape[1]), atol=1e-5, rtol=0)
    graph = assemble(toy_config("FREEDOM", missing_rate=0.5, **CONTENT), tmp_path, Stages()).model
    edges = graph.item_graph.to_dense() != 0
    assert torch.equal(edges.any(1), graph.has_feature(0))
    assert graph.has_feature(0).sum() == 20


def test_slices_tell_hidden_items_from_the_others(toy_settings):
    settings = {**toy_settings, **EPOCHS, **CONTENT, "missing_rate": 0.5, "missing_at": "test"}
    outcome = recbole_mm.run("SASRecContent", "toy", config_dict=settings)
    targets = outcome.splits.test.users.positives.items
    tokens = outcome.dataset.item_tokens()
    without = sum(str(tokens[item]) in first(IDS, 20) for item in targets)
    for kind in ("image", "text"):
        assert outcome.slices[kind]["missing"]["targets"] == without
        assert outcome.slices[kind]["present"]["targets"] == len(targets) - without


# ---------------------------------------------------------------- leaks


def with_other_contents(folder: Path, lost: set[str]) -> Path:
    """`toy` where the items of `lost` have other titles, classes, pictures and vectors."""
    root = write_toy(folder) / "toy"
    head, *lines = (root / "toy.item").read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    assert [row[0] for row in rows] == IDS
    for row in rows:
        if row[0] in lost:
            row[1:] = ["An opera never heard of", "opera"]
            Image.new("RGB", (20, 20), (1, 2, 3)).save(root / "images" / f"{row[0]}.png")
    (root / "toy.item").write_text("\n".join([head, *map("\t".join, rows)]) + "\n")
    for kind in ("text", "image"):
        vectors = np.load(root / f"{kind}.npy")
        vectors[[IDS.index(item) for item in lost]] = 9
        np.save(root / f"{kind}.npy", vectors)
    return folder


LEAKS = [
    *("Molar", "SASRecContent both", "FREEDOM"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in (
            "VBPR",
            "Molar sasrec",
            "Molar tuned",
            "MLLMRec",
            "LATTICE",
            "BM3",
            "MMGCN",
            "HLLM",
            "CoLLM",
            "MLLMMSR",
        )
    ),
]


@pytest.mark.parametrize("variant", LEAKS)
def test_nothing_hidden_reaches_a_model(variant, tmp_path):
    """Whatever the hidden contents are, weights and scores are the same."""
    outcomes = []
    for name, lost in (("a", set()), ("b", first(IDS, 20))):
        where = with_other_contents(tmp_path / name, lost)
        settings = {**TOY_SETTINGS, **QUICK, **MODELS[variant], "missing_rate": 0.5}
        if "item_features" in settings:
            settings["item_features"] = FEATURES
        outcomes.append(run(variant, settings, data_path=str(where), checkpoint_dir=str(where / "saved")))
    one, other = outcomes
    texts = [each.dataset.content_source.text(min(first(IDS, 20))) for each in outcomes]
    assert texts[0] != texts[1], "the contents must have changed"
    assert_same(trained(one), trained(other))
    assert torch.equal(scores(one), scores(other))
    assert one.test_result == other.test_result


def test_what_is_hidden_in_the_test_reaches_no_score(tmp_path):
    """Vectors that only training may see: with the weights of one training, scores do not depend on them."""
    settings = {**TOY_SETTINGS, **EPOCHS, **CONTENT, "feature_normalization": "none", "modality_weights": [0.5, 0.5]}
    settings |= {"knn_k": 4, "missing_rate": 0.5, "missing_at": "test", "checkpoint_dir": str(tmp_path / "saved")}
    one = recbole_mm.run("FREEDOM", "toy", config_dict={**settings, "data_path": str(write_toy(tmp_path / "a"))})
    other = with_other_contents(tmp_path / "b", first(IDS, 20))
    moved = recbole_mm.load(one.run_dir, changed={"data_path": str(other)})
    assert torch.equal(scores(one), scores(moved))


# ---------------------------------------------------------------- the remedy


def test_modality_dropout_zeroes_whole_vectors_in_training_alone():
    torch.manual_seed(0)
    vectors, drop = torch.randn(4000, 3), ModalityDropout(0.3)
    dropped = drop(vectors)
    gone = ~dropped.any(1)
    assert abs(gone.float().mean().item() - 0.3) < 0.03
    assert torch.equal(dropped[~gone], vectors[~gone]), "what is left is not scaled"
    assert not torch.equal(drop(vectors), dropped), "drawn anew each time"
    assert torch.equal(drop.eval()(vectors), vectors)
    assert torch.equal(ModalityDropout(0.0)(vectors), vectors)


def test_each_modality_is_dropped_for_itself():
    torch.manual_seed(0)
    sources = [torch.ones(500, 2), torch.ones(500, 3)]
    items = ContentItems(sources, 5, "none", "none", modality_dropout=0.5)
    first_gone, second_gone = (~part.any(1) for part in items().split([2, 3], dim=1))
    for gone in (first_gone, second_gone, first_gone & ~second_gone, second_gone & ~first_gone):
        assert gone.sum() > 50
    assert torch.equal(items.eval()(), torch.ones(500, 5))
    embedding = ContentEmbedding(sources, 4, modality_dropout=0.5)
    left = embedding(torch.arange(1, 400))[:, :2]
    bias = embedding.projections[0].bias
    dropped = torch.isclose(left, bias.expand_as(left)).all(1)
    assert 100 < dropped.sum() < 300
    assert torch.equal(embedding.eval()(torch.arange(1, 400))[1:], embedding(torch.arange(1, 400))[1:])


def test_edges_of_dropped_items_are_left_out_for_an_epoch(toy_config, tmp_path):
    settings = {**CONTENT, "knn_k": 4, "modality_weights": [0.5, 0.5], "modality_dropout": 0.5}
    model = assemble(toy_config("FREEDOM", **settings), tmp_path, Stages()).model.train()
    torch.manual_seed(1)
    kept = [torch.rand(model.n_items) >= 0.5 for _ in range(2)]
    torch.manual_seed(1)
    parts = [graph.toarray() for graph in model.modality_graphs]
    expected = sum(part * np.outer(keep, keep) for part, keep in zip(parts, kept))
    np.testing.assert_allclose(model.thinned().to_dense(), expected, rtol=1e-6)
    model.start_epoch(0)
    now = model._thinned.value
    assert 0 < len(now) < len(model.item_graph)
    model.propagate()
    assert model._thinned.value is now, "until the next epoch"
    model.eval()
    with torch.no_grad():
        first_time, second_time = model.propagate()[1], model.propagate()[1]
    similar = torch.from_numpy(np.asarray(sum(parts), dtype=np.float32)) @ model.item_embedding.weight.detach()
    vectors = torch.cat([model.user_embedding.weight, model.item_embedding.weight]).detach()
    plain = vectors
    for _ in range(model.n_ui_layers):
        plain = model.adjacency @ plain
        vectors = vectors + plain
    expected = vectors[model.n_users :] / (model.n_ui_layers + 1) + similar
    assert torch.equal(first_time, second_time)
    torch.testing.assert_close(first_time, expected)


@pytest.mark.parametrize("model", models(APART))
def test_dropout_changes_training_and_is_off_in_evaluation(model, toy_config, tmp_path):
    settings = {**EPOCHS, **APART[model]}
    plain, dropping = (
        assemble(toy_config(model, **settings, modality_dropout=rate), tmp_path, Stages()) for rate in (0.0, 0.6)
    )
    dropping.model.load_state_dict(plain.model.state_dict())
    plain.model.eval()
    dropping.model.eval()
    assert torch.equal(scores(plain), scores(dropping))
    batch = next(iter(plain.splits.train))
    losses = []
    for assembled in (plain, dropping):
        assembled.model.train()
        torch.manual_seed(3)
        loss = assembled.model.calculate_loss(batch)
        losses.append(sum(loss).item() if isinstance(loss, tuple) else loss.item())
    assert losses[0] != losses[1]
