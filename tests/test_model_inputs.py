"""What models receive beside interactions: one frozen object, which says what it was not asked for."""

from __future__ import annotations

import copy
import dataclasses
import re

import numpy as np
import pytest
from recbole.model.sequential_recommender import SASRec
from recbole.utils import InputType

from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.inputs import BRINGS, ModelInputs
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.splits import split
from recbole_mm.inputs.model_inputs import NEEDS, provide
from recbole_mm.inputs.needs import read_features, reads_mllm, unread_settings
from recbole_mm.models.base import SequentialModel
from recbole_mm.models.hooks import hooks_of
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from recbole_mm.runs.summary import model_line
from tests.conftest import TOY_FEATURES


def test_what_was_not_asked_for_cannot_be_read():
    inputs = ModelInputs(model="Mine", item_vectors=np.ones((2, 3)), first_stage=None)
    assert inputs.item_vectors.shape == (2, 3)
    assert inputs.first_stage is None
    assert inputs.item_features == {}
    assert inputs.given() == {"model", "item_vectors", "item_features", "first_stage"}
    said = "Mine reads dataset.inputs.item_token_ids without asking for it: add 'item_tokens' to its `requires`"
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        _ = inputs.item_token_ids
    with pytest.raises(ConfigError, match=r"first_stage without asking for it: state has_first_stage = True in its cl"):
        _ = ModelInputs().first_stage


def test_it_cannot_be_changed_and_travels_with_copies():
    inputs = ModelInputs(item_texts=[None, "a film"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        inputs.item_texts = []
    with pytest.raises(TypeError, match="item_vectos"):
        ModelInputs(item_vectos=None)
    assert copy.copy(inputs).item_texts == [None, "a film"]
    assert repr(inputs) == "ModelInputs of the model: item_features, item_texts"


def test_every_need_brings_an_input():
    assert BRINGS.keys() == set(NEEDS)
    inputs = {one.name for one in dataclasses.fields(ModelInputs)}
    assert {name for names in BRINGS.values() for name in names} == inputs - {"model", "item_features", "first_stage"}


class Greedy(SequentialModel):
    """Reads more than it asks for."""

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.vectors = dataset.inputs.item_vectors


def test_a_model_that_reads_what_it_did_not_ask_for_is_named(toy_config, tmp_path):
    with pytest.raises(ConfigError, match=r"^Greedy reads dataset\.inputs\.item_vectors without asking for it"):
        assemble(toy_config(Greedy), tmp_path, Stages())


@pytest.mark.parametrize(("model", "order"), [("SASRecContent", "TO"), ("VBPR", "TO"), ("VBPR", "RO")])
def test_every_part_of_the_split_has_them(model, order, toy_config):
    config = toy_config(model, item_features=TOY_FEATURES, eval_args={"order": order})
    dataset = create_dataset(config)
    provide(config, dataset, hooks_of(config.model_class))
    phases = split(config, dataset, config.model_class)
    assert phases.train_dataset.inputs is dataset.inputs
    assert dataset.inputs.model == model
    np.testing.assert_array_equal(phases.train_dataset.item_feature("text"), dataset.inputs.item_features["text"])


class Reader(SASRec):
    """A class of somebody else."""


@pytest.mark.parametrize(
    ("model", "changes", "read"),
    [
        ("SASRec", {}, []),
        ("SASRecF", {"selected_features": ["image"]}, ["image"]),
        ("SASRecContent", {"content_features": ["text"]}, ["text"]),
        ("VBPR", {}, ["image", "text"]),
        ("Molar", {"item_sources": ["text"], "dueg": "sasrec"}, ["text"]),
        ("Molar", {}, []),
        (Reader, {}, ["image", "text"]),
    ],
)
def test_the_features_of_a_run_are_those_that_its_model_reads(model, changes, read, toy_config):
    config = toy_config(model, item_features=dict(TOY_FEATURES), **changes)
    assert sorted(read_features(config)) == read
    hooks = hooks_of(config.model_class)
    assert reads_mllm(config, hooks) == (model == "Molar" and not changes)
    config["item_features"]["ours"] = {"encoder": "mllm"}
    assert reads_mllm(config, hooks) == (model == Reader or (model == "Molar" and not changes))
    assert ("mllm" in unread_settings(config, hooks)) != reads_mllm(config, hooks)
    assert ("text_fields" in unread_settings(config, hooks)) == (model == "SASRec")


def test_a_plain_models_features_are_not_computed(toy_config, tmp_path):
    config = toy_config("SASRec", item_features={"text": {"encoder": str(tmp_path / "no-such-encoder"), "on": "text"}})
    found = assemble(config, tmp_path, Stages())
    assert found.dataset.inputs.item_features == {}
    assert "inputs: interactions; device" in model_line(found.model, config)
