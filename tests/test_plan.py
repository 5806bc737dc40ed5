"""`recbole-mm plan`: what is to do is told exactly where it can be, and nothing is spent by telling it."""

from __future__ import annotations

import sqlite3
from itertools import pairwise
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

import recbole_mm
from recbole_mm.artifacts.store import Store
from recbole_mm.cli import main
from recbole_mm.cli.plan import to_text
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.context import PlannedStage, artifact_dir
from recbole_mm.inputs.mllm import tiny_mllm
from recbole_mm.inputs.model_inputs import provide
from recbole_mm.inputs.reasoning.preferences import Cases
from recbole_mm.inputs.reasoning.settings import PreferenceSettings
from recbole_mm.inputs.reasoning.writing import UnknownWriter
from recbole_mm.llm import loading
from recbole_mm.llm.texts import writers
from recbole_mm.llm.texts.generator import TemplateGenerator
from recbole_mm.models.hooks import hooks_of, reads_content
from recbole_mm.registry import find_model, list_models
from recbole_mm.runs.plan import Plan, plan
from tests.conftest import TOY_FEATURES
from tests.encoders import write_sentence_encoder
from tests.reasoning import Reasoning, RuleWriter

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
    monkeypatch.setattr(writers, "text_writer", refuse)
    monkeypatch.setattr("recbole_mm.llm.encoders._open_sentence_model", refuse)


def stages(planned: Plan) -> dict[str, PlannedStage]:
    return {stage.name: stage for stage in planned.stages}


def fill(settings: dict, model: str | type = "MLLMRec", **changed):
    """Compute what a run computes before it trains; -> config and dataset."""
    config = Config(model, "toy", config_dict={**settings, **changed})
    dataset = create_dataset(config)
    provide(config, dataset, hooks_of(config.model_class))
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
    monkeypatch.setattr("recbole_mm.inputs.reasoning.writing.open_generator", lambda *_: writer)
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
    assert stages(plan("BPR", "toy", config_dict=given)) == {}, "which reads none of them"
    given["content_features"] = ["words", "image"]
    assert stages(plan("VBPR", "toy", config_dict=given))["feature words"].to_do == 40
    fill(given, "VBPR")
    after = stages(plan("VBPR", "toy", config_dict=given))
    assert (after["feature words"].done, after["feature words"].to_do) == (40, 0)
    assert set(after) == {"feature words"}, "features in files are there"


def test_a_model_that_is_not_here_is_all_to_do(settings, monkeypatch):
    def no_hub(name, allow_patterns, **_):
        assert not any("safetensors" in pattern for pattern in allow_patterns), "weights are not fetched"
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr("recbole_mm.llm.pretrained.snapshot_download", no_hub)
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


ASKING = sorted(
    entry.name for entry in list_models() if entry.origin == "recbole_mm" and reads_content(hooks_of(entry.load()))
)
"""Models of ours that ask for more than interactions."""


@pytest.mark.parametrize("features", [False, True], ids=["", "features"])
@pytest.mark.parametrize("model", ASKING)
def test_a_plan_counts_what_is_computed(settings, encoder, model, features):
    """N to do before, N values computed, nothing to do afterwards; what stages have in common counts once."""
    given = {**settings, "sft_tuning": "none"}
    if features:  # of which a class of somebody else may read all
        model = type(model, (find_model(model).load(),), {"__module__": __name__})
        told, words = ({"encoder": encoder, "on": kind} for kind in ("summary", "text"))
        given["item_features"] = {"both": {"encoder": "mllm"}, "told": told, "words": words, "again": words}
    planned = plan(model, "toy", config_dict=given)
    path = artifact_dir(planned.config) / "artifacts.sqlite"
    assert not path.exists(), "planning writes nothing"
    fill(given, model)
    computed = 0
    if path.exists():  # a store is made with its first value
        with sqlite3.connect(path) as store:
            (computed,) = store.execute("SELECT count(*) FROM artifacts").fetchone()
    assert computed == planned.to_do
    assert features <= (computed > 0)
    assert plan(model, "toy", config_dict=given).to_do == 0


# --- preferences ------------------------------------------------------------------------------------------------------


def written_preferences(given: dict, monkeypatch, writer: RuleWriter):
    """Let a writer write what a run of MLLM-MSR asks it for, and plan with it; -> the dataset."""
    monkeypatch.setattr("recbole_mm.inputs.reasoning.writing.open_generator", lambda *_: writer)
    config = Config("MLLMMSR", "toy", config_dict=given)
    dataset = create_dataset(config)
    path = artifact_dir(config)
    path.mkdir(parents=True, exist_ok=True)
    with Store(path / "artifacts.sqlite") as store:
        Reasoning(config, dataset, store, path, writer).provide(("item_texts", "user_preferences"))
    return config, dataset


def test_the_templates_preferences_come_true(settings, no_weights):
    planned = stages(plan("MLLM-MSR", "toy", config_dict=settings))
    assert set(planned) == {"user preferences"}
    assert planned["user preferences"].done == 0
    assert not Path(settings["checkpoint_dir"]).exists(), "planning writes nothing"
    config = Config("MLLMMSR", "toy", config_dict=settings)
    path = artifact_dir(config)
    path.mkdir(parents=True)
    with Store(path / "artifacts.sqlite") as store:
        Reasoning(config, create_dataset(config), store, path, TemplateGenerator()).provide(("user_preferences",))
        assert store.count("user_preference") == planned["user preferences"].to_do
    after = plan("MLLM-MSR", "toy", config_dict=settings)
    assert after.to_do == 0
    assert "fine-tuned after that" in to_text(after)


@pytest.mark.parametrize("way", ["recurrent", "direct"])
def test_nothing_of_the_preferences_is_left_to_do_once_they_are_written(settings, monkeypatch, way):
    given = {**settings, **NOWHERE, "preference": way}
    before = plan("MLLM-MSR", "toy", config_dict=given)
    preferences = stages(before)["user preferences"]
    assert preferences.at_most
    assert not preferences.exact
    assert preferences.work.new_tokens == preferences.to_do * 256
    assert "preference texts are made of texts that are not written yet" in to_text(before)
    writer = RuleWriter()
    written_preferences(given, monkeypatch, writer)
    described = sum(request.image is not None for request in writer.asked)
    asked = len(writer.asked) - described
    assert 0 < asked <= preferences.to_do
    after = stages(plan("MLLM-MSR", "toy", config_dict=given))
    assert len(writer.asked) == asked + described
    assert (after["user preferences"].done, after["user preferences"].to_do) == (asked, 0)
    assert after["user preferences"].measured or after["user preferences"].work.calls == 0
    assert after["item descriptions"].to_do == 0


def test_a_chain_is_known_as_far_as_it_is_written(settings, monkeypatch):
    """What failed, and all that would be made of it, is to do; the rest of the chains is not."""
    given = {**settings, **NOWHERE, "item_text": "text"}
    writer = RuleWriter(lambda prompt: "down" if "number 7;" in prompt else None)
    config, dataset = written_preferences(given, monkeypatch, writer)
    found = plan("MLLM-MSR", "toy", config_dict=given)
    stage = stages(found)["user preferences"]
    chains = Cases.of(config, dataset).chains(PreferenceSettings.of(config))
    sequences = Cases.of(config, dataset).sequences()
    seven = list(dataset.item_tokens()).index("i7")
    open_, failed = set(), set()
    for node in chains.starts:
        if seven in sequences[node[0]][chains.starts[node] : node[1]]:
            failed.add(node)
        if node in failed or chains.before(node) in open_:
            open_.add(node)
    assert 0 < len(failed) < len(open_) < len(chains)
    assert stage.to_do <= len(open_)
    assert stage.to_do >= len({tuple(sequences[user][:end].tolist()) for user, end in open_})
    assert "have failed before" in to_text(found)
    assert f"{len(chains)} blocks" in to_text(found)


def test_preferences_of_an_llm_here_are_counted_by_its_tokenizer(settings, no_weights, monkeypatch):
    monkeypatch.undo()
    config = Config("MLLMMSR", "toy", config_dict=settings)
    model = tiny_mllm(config, create_dataset(config))
    given = {**settings, **HF, "text_model": str(model), "item_text": "text", "preference_block_size": 100}
    stage = stages(plan("MLLM-MSR", "toy", config_dict=given))["user preferences"]
    assert stage.exact, "one block each: no prompt holds a text that is not written"
    assert not stage.at_most
    assert stage.work.calls == stage.to_do


def test_without_preferences_only_items_are_described(settings):
    given = {**settings, **NOWHERE, "preference": "none"}
    assert set(stages(plan("MLLM-MSR", "toy", config_dict=given))) == {"item descriptions"}


# --- features of summaries --------------------------------------------------------------------------------------------


def test_features_of_summaries_are_counted(settings, encoder):
    given = {**settings, "item_features": {"told": {"encoder": encoder, "on": "summary"}}, "item_text": "image"}
    given["selected_features"] = ["told"]
    before = stages(plan("GRU4RecF", "toy", config_dict=given))
    assert set(before) == {"item descriptions", "feature told"}
    assert before["feature told"].to_do == 40
    fill(given, "GRU4RecF")
    after = stages(plan("GRU4RecF", "toy", config_dict=given))
    assert (after["feature told"].done, after["feature told"].to_do) == (40, 0)
    server = stages(plan("GRU4RecF", "toy", config_dict={**given, **NOWHERE}))
    assert (server["feature told"].to_do, server["feature told"].at_most) == (40, True)
