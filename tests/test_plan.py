"""`recbole-mm plan`: what is to do is told exactly where it can be, and nothing is spent by telling it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import recbole_mm
from recbole_mm import unloaded
from recbole_mm.artifacts.store import Store
from recbole_mm.cli import main
from recbole_mm.config import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError
from recbole_mm.mllm import loading
from recbole_mm.plan import Plan, plan, to_text
from recbole_mm.provisions import artifact_dir, provide, tiny_mllm
from recbole_mm.reasoning.estimate import PlannedStage
from recbole_mm.reasoning.stage import Reasoning
from recbole_mm.texts import hf
from recbole_mm.unloaded import UnknownWriter
from tests.conftest import TOY_FEATURES
from tests.encoders import write_sentence_encoder
from tests.reasoning import RuleWriter

HF = {"text_backend": "hf", "text_max_new_tokens": 4, "mllm_image_pixels": 84 * 84, "text_context_tokens": 1000}
NOWHERE = {"text_backend": "openai", "text_model": "m", "text_url": "http://127.0.0.1:9/v1"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return write_sentence_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def settings(toy_settings, encoder) -> dict:
    return {**toy_settings, "sentence_encoder": encoder}


@pytest.fixture
def no_weights(monkeypatch):
    """Whatever would load a model fails."""

    def refuse(*_, **__):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(loading, "_read_model", refuse)
    monkeypatch.setattr(hf, "text_writer", refuse)
    monkeypatch.setattr("recbole_mm.data.encoders._open_sentence_model", refuse)


def stages(planned: Plan) -> dict[str, PlannedStage]:
    return {stage.name: stage for stage in planned.stages}


def fill(settings: dict, model: str = "MLLMRec", **changed):
    """Compute what a run computes before it trains; -> config and dataset."""
    config = Config(model, "toy", config_dict={**settings, **changed})
    dataset = create_dataset(config)
    provide(config, dataset, config.model_class)
    return config, dataset


def test_a_model_without_stages_has_nothing_to_compute(settings):
    planned = plan("BPR", "toy", config_dict=settings)
    assert planned.stages == []
    assert to_text(planned) == "BPR on toy: nothing to compute before training\n"


def test_the_templates_plan_comes_true(settings, no_weights, monkeypatch):
    planned = stages(plan("MLLMRec", "toy", config_dict=settings))
    assert set(planned) == {"user profiles", "sentence vectors"}
    profiles = planned["user profiles"]
    assert (profiles.done, profiles.work, profiles.seconds) == (0, None, 0.0)
    assert not Path(settings["checkpoint_dir"]).exists(), "planning writes nothing"
    monkeypatch.undo()
    config, _ = fill(settings)
    with Store(artifact_dir(config) / "artifacts.sqlite") as store:
        counts = {name: store.count(name) for name in ("user_profile", "sentence_vector")}
    assert counts == {"user_profile": profiles.to_do, "sentence_vector": planned["sentence vectors"].to_do}
    after = stages(plan("MLLMRec", "toy", config_dict=settings))
    assert {name: (stage.done, stage.to_do) for name, stage in after.items()} == {
        "user profiles": (counts["user_profile"], 0),
        "sentence vectors": (counts["sentence_vector"], 0),
    }
    assert after["sentence vectors"].measured


def test_a_server_is_not_asked_and_its_tokens_are_estimated(settings, no_weights):
    planned = plan("MLLMRec", "toy", config_dict={**settings, **NOWHERE})
    found = stages(planned)
    described, profiles = found["item descriptions"], found["user profiles"]
    assert (described.done, described.to_do, described.work.images) == (0, 40, 40)
    assert not described.exact
    assert described.work.new_tokens == 40 * 256
    assert (profiles.done, profiles.to_do) == (0, 60)
    assert found["sentence vectors"].to_do == 100
    assert found["sentence vectors"].at_most
    text = to_text(planned)
    assert "openai: m" in text
    assert "about " in text
    assert "60 profiles show items that are not described yet" in text
    assert "assumed rate: 1,000 prompt tokens" in text


@pytest.mark.parametrize("own", [True, False])
def test_the_plan_of_an_llm_here_agrees_with_what_it_does(settings, tmp_path, monkeypatch, own):
    config = Config("MLLMRec", "toy", config_dict=settings)
    model = tiny_mllm(config, create_dataset(config))
    given = {**settings, **HF} if own else {**settings, **HF, "text_model": str(model)}
    before = stages(plan("MLLMRec", "toy", config_dict=given))
    assert before["item descriptions"].exact
    assert not before["user profiles"].exact, "the descriptions that they show are not there yet"
    fill(given)
    with monkeypatch.context() as patched:
        patched.setattr(loading, "_read_model", lambda *_, **__: pytest.fail("weights are loaded"))
        planned = plan("MLLMRec", "toy", config_dict=given)
    after = stages(planned)
    with Store(artifact_dir(config) / "artifacts.sqlite") as store:
        described, told = store.count("item_description"), store.count("user_profile")
        failed = len(store.failures("user_profile")), len(store.failures("item_description"))
    assert described > 0
    assert after["item descriptions"].done == described
    assert after["item descriptions"].to_do == failed[1]
    if not failed[1]:
        assert (after["user profiles"].done, after["user profiles"].to_do) == (told, failed[0])
        assert after["user profiles"].exact
    assert after["user profiles"].measured
    assert ("have failed before" in to_text(planned)) == bool(sum(failed))


def test_profiles_of_described_items_are_told_apart_from_the_others(toy_config, tmp_path, settings, monkeypatch):
    """With half of the descriptions there, a profile is to do if it shows another item, or is not written itself."""
    given = {**settings, **NOWHERE}
    writer = RuleWriter(lambda prompt: "not yet" if "number 7." in prompt and "picture" in prompt else None)
    monkeypatch.setattr("recbole_mm.plan.unloaded_generator", lambda *_: writer)
    config = Config("MLLMRec", "toy", config_dict=given)
    dataset = create_dataset(config)
    path = artifact_dir(config)
    path.mkdir(parents=True)
    with Store(path / "artifacts.sqlite") as store:
        made = Reasoning(config, dataset, store, path, writer)
        texts = made.item_texts()
        made.profiles(texts)
    asked = len(writer.asked)
    found = stages(plan("MLLMRec", "toy", config_dict=given))
    assert len(writer.asked) == asked
    seven = list(dataset.item_tokens()).index("i7")
    users, items, offsets = dataset.user_histories()
    with_seven = sum(seven in items[a:b] for a, b in pairwise(offsets))
    assert (found["item descriptions"].done, found["item descriptions"].to_do) == (39, 1)
    assert (found["user profiles"].done, found["user profiles"].to_do) == (len(users) - with_seven, with_seven)
    assert found["user profiles"].measured


def test_item_vectors_of_an_mllm_are_counted(settings, no_weights, monkeypatch):
    first = plan("Molar", "toy", config_dict=settings)
    vectors = stages(first)["item vectors"]
    assert (vectors.done, vectors.to_do, vectors.at_most) == (None, 40, True)
    assert "is not built yet" in to_text(first)
    assert "not estimated" in to_text(first)
    monkeypatch.undo()
    fill(settings, "Molar")
    vectors = stages(plan("Molar", "toy", config_dict=settings))["item vectors"]
    assert (vectors.done, vectors.to_do) == (40, 0)


def test_features_are_counted(settings, encoder):
    given = {**settings, "item_features": {**TOY_FEATURES, "words": {"encoder": encoder, "on": "text"}}}
    assert stages(plan("BPR", "toy", config_dict=given))["feature words"].to_do == 40
    fill(given, "BPR")
    after = stages(plan("BPR", "toy", config_dict=given))
    assert (after["feature words"].done, after["feature words"].to_do) == (40, 0)
    assert set(after) == {"feature words"}, "features in files are there"


def test_a_model_that_is_not_here_is_all_to_do(settings, monkeypatch):
    def no_hub(name, allow_patterns, **_):
        assert not any("safetensors" in pattern for pattern in allow_patterns), "weights are not fetched"
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(unloaded, "snapshot_download", no_hub)
    planned = plan("MLLMRec", "toy", config_dict={**settings, **HF, "mllm": "nobody/nothing-of-this-name"})
    assert stages(planned)["item descriptions"].to_do == 40
    assert "everything of it counts as to do" in to_text(planned)
    assert UnknownWriter().count_tokens("12345") == 2


def test_what_would_stop_the_run_stops_the_plan(settings):
    with pytest.raises(ConfigError, match="description_words: 0"):
        plan("MLLMRec", "toy", config_dict={**settings, "description_words": 0})
    with pytest.raises(ConfigError, match="text_url"):
        plan("MLLMRec", "toy", config_dict={**settings, "text_backend": "openai", "text_model": "m"})


def test_the_command_prints_the_plan(settings, capsys):
    keys = ("data_path", "checkpoint_dir", "sentence_encoder", "text_fields", "image_dir", "load_col")
    arguments = [f"--{key}={settings[key]}" for key in keys]
    assert main(["plan", "--model=MLLMRec", "--dataset=toy", *arguments]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("MLLMRec on toy, before training (nothing has been computed)\n")
    assert "user profiles     template" in printed
    assert main(["plan", "--model", "--dataset=toy"]) == 2
    assert "--model needs a value" in capsys.readouterr().err
    assert main(["plan", "--help"]) == 0
    assert "usage: recbole-mm plan" in capsys.readouterr().out


def test_a_planned_run_is_the_run(settings, no_weights, monkeypatch):
    """The plan reads the same settings as the run: nothing is left to do once the run is over."""
    monkeypatch.undo()
    recbole_mm.run("MLLMRec", "toy", config_dict={**settings, "epochs": 1})
    assert plan("MLLMRec", "toy", config_dict={**settings, "epochs": 1}).to_do == 0
