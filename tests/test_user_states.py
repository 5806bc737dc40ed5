"""Hidden states of an LLM after users' histories, in place of profiles: the right state, stored once, train-only."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import recbole_mm
from recbole_mm.artifacts.store import Store
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.inputs.context import Context
from recbole_mm.inputs.reasoning.states import ASKED, UserStates, reading_of
from recbole_mm.llm.loading import load_mllm
from recbole_mm.runs.plan import plan
from tests.conftest import TOY_SETTINGS
from tests.encoders import write_sentence_encoder
from tests.test_contract import leak_dataset
from tests.test_mllmrec import SMALL

STATES = {**SMALL, "profile_form": "states", "item_domain": "film", "item_text": "text", "epochs": 1}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return write_sentence_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def settings(toy_path, tmp_path_factory, encoder) -> dict:
    saved = str(tmp_path_factory.mktemp("saved"))
    return {**TOY_SETTINGS, **STATES, "data_path": str(toy_path), "checkpoint_dir": saved, "sentence_encoder": encoder}


def tiny(outcome):
    (folder,) = (outcome.run_dir.parent / "artifacts").glob("tiny-*")
    return load_mllm(folder)


def test_a_users_vector_is_the_state_after_its_training_items(settings):
    outcome = recbole_mm.run("MLLMRec", "toy", config_dict=settings)
    mllm = tiny(outcome)
    dataset = create_dataset(outcome.config)
    users, items, offsets = dataset.user_histories()
    texts = [None, *(dataset.content.text(item) for item in range(1, dataset.item_num))]
    states = np.zeros((dataset.user_num, mllm.hidden_size))
    for place, user in enumerate(users.tolist()):
        told = reading_of(items[offsets[place] : offsets[place + 1]].tolist(), texts, "film", mllm, 3000)
        assert told.startswith("Each line is one film")
        ids = [*mllm.token_ids(told.strip()), *mllm.token_ids("\n" + ASKED.format(domain="film")), mllm.cur_item_id]
        prepared = mllm.family.prepare([ids], 28 * 28)
        with torch.no_grad():
            states[user] = mllm.last_hidden_states([prepared])[0].double().numpy()
    apart = states[1:] - states[1:].mean(0)
    expected = apart / np.linalg.norm(apart, axis=1, keepdims=True)
    np.testing.assert_allclose(outcome.model.user_inputs[1:].numpy(), expected, atol=2e-4)
    assert outcome.model.user_tower[0].in_features == mllm.hidden_size
    assert outcome.test_result["recall@10"] > 0


def test_a_reading_shows_the_newest_items_that_fit(settings):
    outcome = recbole_mm.run("MLLMRec", "toy", config_dict=settings)
    mllm, texts = tiny(outcome), [None, *(f"Title: The drama film number {n}" for n in range(9))]
    whole = reading_of([1, 2, 3, 4], texts, "film", mllm, 3000)
    assert whole.rstrip().endswith("4. Title: The drama film number 3")
    length = len(mllm.token_ids(whole))
    cut = reading_of([1, 2, 3, 4], texts, "film", mllm, length - 1)
    assert "number 0" not in cut
    assert cut.rstrip().endswith("number 3")
    assert len(mllm.token_ids(cut)) < length
    assert reading_of([0], texts, "film", mllm, 3000) is None


def test_the_plan_comes_true_and_a_second_run_reads_nothing_again(settings, tmp_path):
    given = {**settings, "checkpoint_dir": str(tmp_path)}
    before = {stage.name: stage for stage in plan("MLLMRec", "toy", config_dict=given).stages}
    assert before["user states"].to_do == 60
    recbole_mm.run("MLLMRec", "toy", config_dict=given)
    after = {stage.name: stage for stage in plan("MLLMRec", "toy", config_dict=given).stages}
    assert (after["user states"].done, after["user states"].to_do) == (60, 0)


@pytest.mark.parametrize("see", ["train", "all"])
def test_nothing_held_out_is_read_unless_it_is_asked_for(tmp_path, encoder, see):
    found = []
    for name, other in (("a", False), ("b", True)):
        data = leak_dataset(tmp_path / name, other)
        given = {**TOY_SETTINGS, **STATES, "data_path": str(data), "checkpoint_dir": str(tmp_path / name / "saved")}
        given |= {"sentence_encoder": encoder, "eval_step": 0, "profiles_see": see}
        found.append(recbole_mm.run("MLLMRec", "toy", config_dict=given))
    assert torch.equal(found[0].model.user_inputs, found[1].model.user_inputs) == (see == "train")
    assert bool(found[0].sees_held_out) == (see == "all")


def test_a_history_longer_than_the_model_reads_is_cut_to_its_context(settings):
    config = Config("MLLMRec", "toy", config_dict={**settings, "profile_history_tokens": 10**6})
    outcome = recbole_mm.run("MLLMRec", "toy", config_dict=settings)
    mllm = tiny(outcome)
    context = Context(config, create_dataset(config), Store(outcome.run_dir.parent / "artifacts" / "artifacts.sqlite"))
    encoder = context.share(UserStates).encoder(mllm)
    assert encoder.max_text_tokens < mllm.context
