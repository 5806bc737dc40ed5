"""A finished run is opened without the models that its texts and vectors were made by."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
import torch

import recbole_mm
from recbole_mm.errors import CheckpointError, ModelLoadError
from recbole_mm.inputs.remembered import FILE
from recbole_mm.utils.files import read_json, write_json
from tests.encoders import write_sentence_encoder
from tests.test_mllmrec import SMALL
from tests.text_llms import write_text_llm

REASONING = {
    **SMALL,
    **{
        "text_backend": "hf",
        "item_text": "fused",
        "text_max_new_tokens": 16,
        "description_words": 4,
        "text_temperature": 1.0,
    },
    **{"profile_words": 4, "profile_history_tokens": 32, "text_context_tokens": 1500},
}


@pytest.fixture
def made(toy_settings, tmp_path):
    """`made(model, **settings)` -> a finished run; its LLM and its encoder lie in `models`."""

    def run(model: str, **settings):
        llm = write_text_llm("llama", tmp_path / "models" / "llm")
        encoder = write_sentence_encoder(tmp_path / "models" / "encoder")
        given = {**toy_settings, "epochs": 1, "modalities": ["text"], "mllm": str(llm), **settings}
        if model == "MLLMRec":
            given |= {"sentence_encoder": encoder}
        return recbole_mm.run(model, "toy", config_dict=given)

    return run


def without_models(folder: Path) -> None:
    shutil.rmtree(folder / "models")


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("MLLMRec", REASONING),
        ("MLLMRec", {**REASONING, "text_model": "own"}),
        ("MLLMRec", {**SMALL, "profile_form": "states", "item_text": "text"}),
        ("SASRecContent", {"item_features": {"seen": {"encoder": "mllm"}}, "content_features": ["seen"]}),
    ],
    ids=["texts of mllm", "texts of text_model", "states of users", "vectors of items"],
)
def test_a_run_is_opened_without_the_models_whose_work_is_stored(made, tmp_path, model, settings):
    if "text_model" in settings:
        settings = {**settings, "text_model": str(write_text_llm("llama", tmp_path / "models" / "writer"))}
    outcome = made(model, **settings)
    without_models(tmp_path)
    again = recbole_mm.load(outcome.run_dir)
    weights = outcome.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.model.state_dict().items())
    assert again.tokens_per_user == outcome.tokens_per_user
    assert again.genericness == outcome.genericness
    for name in outcome.dataset.inputs.given():
        ours, theirs = (getattr(run.dataset.inputs, name) for run in (outcome, again))
        for one, other in zip(*(run.values() if isinstance(run, dict) else [run] for run in (ours, theirs))):
            assert (one == other).all() if hasattr(one, "shape") else one == other, name


def test_the_model_is_asked_for_where_a_value_is_gone_or_the_settings_are_others(made, tmp_path):
    outcome = made("MLLMRec", **REASONING)
    without_models(tmp_path)
    with pytest.raises(ModelLoadError, match="there is no such model folder"):
        recbole_mm.load(outcome.run_dir, changed={"profile_words": 3})
    with sqlite3.connect(tmp_path / "saved" / "artifacts" / "artifacts.sqlite") as store:
        store.execute("DELETE FROM artifacts WHERE stage = 'user_profile'")
    with pytest.raises(ModelLoadError, match="models/llm: there is no such model folder"):
        recbole_mm.load(outcome.run_dir)


def test_a_list_that_is_none_is_refused_in_one_line(made, tmp_path):
    outcome = made("MLLMRec", **{**REASONING, "reasoning": False})
    path = outcome.run_dir / FILE
    written = read_json(path)
    for part in ({"keys": "all"}, {"keys": {"i1": 7}}, {"tokens": {"read": "many"}}, {"model": ["bert"]}):
        write_json(path, {**written, "stages": {"item_description": part}})
        with pytest.raises(
            CheckpointError, match=r"artifacts_read.json cannot be read \(it is not what a run writes\); rem"
        ):
            recbole_mm.load(outcome.run_dir)
