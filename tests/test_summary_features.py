"""`item_features`, on: summary: what the reasoning stage says of items, as features of models that read vectors."""

from __future__ import annotations

import gc
import importlib
import logging
import weakref

import numpy as np
import pytest

import recbole_mm
from recbole_mm.artifacts.store import Store
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.features import FeatureSpec, reads_summaries
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.inputs.context import artifact_dir
from recbole_mm.inputs.model_inputs import provide
from recbole_mm.inputs.needs import needed
from recbole_mm.llm.encoders import SentenceEncoder
from recbole_mm.llm.features import load_features
from recbole_mm.models.hooks import hooks_of
from recbole_mm.registry import find_model
from tests.encoders import write_sentence_encoder
from tests.reasoning import RuleWriter


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return write_sentence_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def settings(toy_settings, encoder) -> dict:
    return {**toy_settings, "item_features": {"told": {"encoder": encoder, "on": "summary"}}, "epochs": 1}


def provided(settings: dict, model: str = "SASRecContent"):
    config = Config(model, "toy", config_dict={**settings, "content_features": ["told"]})
    dataset = create_dataset(config)
    provide(config, dataset, hooks_of(config.model_class))
    return config, dataset


def test_one_encoder_is_in_memory_at_a_time(toy_settings, encoder, monkeypatch):
    """Those of MLLMRec's texts, of the MLLM and of a feature may be of several billion parameters each."""
    loaded: list[weakref.ref] = []

    def alone(load):
        def wrapped(*args, **options):
            if not options.get("without_weights"):
                gc.collect()
                assert not [model for model in loaded if model() is not None]
            model = load(*args, **options)
            loaded.append(weakref.ref(model))
            return model

        return wrapped

    for place in ("inputs.reasoning.vectors.SentenceEncoder", "inputs.mllm.load_mllm", "llm.features.open_encoder"):
        module, name = f"recbole_mm.{place}".rsplit(".", 1)
        monkeypatch.setattr(f"{module}.{name}", alone(getattr(importlib.import_module(module), name)))
    features = {"seen": {"encoder": "mllm"}, "told": {"encoder": encoder, "on": "summary"}}
    own = type("MLLMRec", (find_model("MLLMRec").load(),), {"__module__": __name__})  # may read any feature
    config = Config(own, "toy", config_dict={**toy_settings, "item_features": features, "sentence_encoder": encoder})
    dataset = create_dataset(config)
    provide(config, dataset, hooks_of(config.model_class))
    assert set(dataset.inputs.item_features) == {"seen", "told"}
    assert len(loaded) == 3


def test_they_are_vectors_of_the_item_texts(settings, encoder, monkeypatch):
    writer = RuleWriter()
    monkeypatch.setattr("recbole_mm.inputs.reasoning.writing.open_generator", lambda *_: writer)
    config, dataset = provided({**settings, "text_backend": "openai", "text_model": "m", "text_url": "http://x/v1"})
    assert len(writer.asked) == 40, "every picture is described"
    assert writer.closed
    texts = dataset.inputs.item_texts
    assert all("Title: " in text and "Appearance: answer" in text for text in texts[1:])
    vectors = dataset.item_feature("told")
    expected = SentenceEncoder(encoder, "cpu").encode(texts[1:])
    np.testing.assert_allclose(vectors[1:], expected, atol=1e-5)
    assert not vectors[0].any()
    with Store(artifact_dir(config) / "artifacts.sqlite") as store:
        assert store.count("summary_vector") == 40
    provided({**settings, "text_backend": "openai", "text_model": "m", "text_url": "http://x/v1"})
    assert len(writer.asked) == 40, "nothing is written twice"


def test_item_text_says_what_is_read(settings):
    of_template = provided({**settings, "item_text": "image"})[1]
    assert all(text.startswith("This is The ") for text in of_template.inputs.item_texts[1:])
    assert not np.allclose(of_template.item_feature("told"), provided(settings)[1].item_feature("told"))


@pytest.mark.parametrize("model", ["GRU4RecF", "SASRecF", "SASRecContent"])
def test_models_of_features_run_on_them(settings, model):
    selected = {"content_features": ["told"]} if model == "SASRecContent" else {"selected_features": ["told"]}
    outcome = recbole_mm.run(model, "toy", config_dict={**settings, **selected, "train_neg_sample_args": None})
    assert 0 < outcome.test_result["ndcg@10"] <= 1


def test_the_settings_of_item_texts_are_known_to_every_model(settings, caplog):
    with caplog.at_level(logging.WARNING):
        Config("GRU4RecF", "toy", config_dict={**settings, "item_text": "image", "description_words": 50})
    assert "has no effect" not in caplog.text


def test_only_such_features_need_item_texts(toy_config, settings):
    plain = toy_config("GRU4RecF")
    assert needed(plain, hooks_of(plain.model_class)) == ()
    unread = toy_config("GRU4RecF", item_features=settings["item_features"])
    assert needed(unread, hooks_of(unread.model_class)) == ()
    told = toy_config("GRU4RecF", item_features=settings["item_features"], selected_features=["told"])
    assert needed(told, hooks_of(told.model_class)) == ("item_texts",)
    assert not reads_summaries({"a": {"file": "x.npy"}, "b": None})


def test_items_without_a_text_are_zeros_and_counted(settings, encoder, caplog, toy_config):
    content = create_dataset(toy_config("SASRec")).content

    def compute(*, hashes, load, encode, **_):
        assert len(set(hashes)) == len(hashes)
        return np.asarray(encode([load(place) for place in range(len(hashes))]), dtype=np.float32), {}

    specs = settings["item_features"]
    with caplog.at_level(logging.WARNING):
        texts = [None, None, "a longer text of the film", *[None] * (len(content) - 3)]
        told = load_features(specs, content, compute, summaries=texts)["told"]
    assert told.any(axis=1).nonzero()[0].tolist() == [2]
    assert "39 of 40 items have no summary" in caplog.text
    with pytest.raises(DataError, match="no item has a usable summary"):
        load_features(specs, content, compute, summaries=[None] * len(content))
    with pytest.raises(ConfigError, match="on: summary needs item texts"):
        load_features(specs, content, compute)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"encoder": "mllm", "on": "summary"}, "on: summary needs an encoder of texts"),
        ({"file": "x.npy", "on": "summary"}, "on: summary needs an encoder of texts"),
        (
            {"encoder": "x", "on": "summary", "kind": "timm"},
            "kind 'timm' does not read summary; choose",
        ),
    ],
)
def test_what_cannot_be_read(spec, message):
    with pytest.raises(ConfigError, match=message):
        FeatureSpec.parse("f", spec)
