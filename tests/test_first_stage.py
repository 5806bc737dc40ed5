"""The first stage: a run of its own, found again, resumed, and asked for scores of any user and history."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType

import recbole_mm
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import FlatDatasetMixin, create_dataset
from recbole_mm.data.sharing import Datasets
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.splits import split
from recbole_mm.models.reranking import RerankingRecommender
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from recbole_mm.runs.needed import Role, needed_runs
from recbole_mm.utils.files import read_json, write_json
from tests.conftest import write_toy

QUICK = {"epochs": 2, "learning_rate": 3e-3, "train_batch_size": 64}


class Echo(RerankingRecommender):
    """Ranks exactly as its first stage does."""

    input_type = InputType.POINTWISE
    is_trainable = False
    has_first_stage = True

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        self.first = dataset.inputs.first_stage

    def first_scores(self, cases):
        return self.first.scores(cases)

    def probabilities(self, cases, owners, items):
        raise AssertionError("nothing is asked")

    def asks_now(self):
        return False


@pytest.fixture
def settings(toy_settings) -> dict:
    return {
        **toy_settings,
        "epochs": 1,
        "rerank_k": 5,
        "first_stage": "SASRec",
        "first_stage_config": QUICK,
        "train_neg_sample_args": None,
    }


@pytest.fixture
def config(settings):
    """`config(**changed)` of a run that has a first stage."""
    return lambda **changed: recbole_mm.config.resolved.Config(Echo, "toy", config_dict={**settings, **changed})


@pytest.fixture
def outer(settings):
    """Folder of the run that asks."""
    folder = Path(settings["checkpoint_dir"]) / "outer"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def first_run(config, outer):
    """`first_run(model, settings, **changed)`: folder of the first stage, made now if it is not there."""

    def folder(model: str = "SASRec", settings: dict = QUICK, **changed) -> Path:
        wanted = config(first_stage=model, first_stage_config=settings, **changed)
        return pipeline.open_needed(wanted, outer, beside=False).inputs["first_stage"].folder

    return folder


def cases(config) -> Interaction:
    """The test cases of a sequential model."""
    phases = split(config, create_dataset(config), Echo)
    return phases.test.users.interaction[np.arange(len(phases.test.users))]


# ------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("model", ["SASRec", "BPR", "ItemKNN", "NeuMF", "DuoRec", "FPMC", "Pop"])
def test_scores_are_the_models_own(config, outer, model):
    """Sequential and general, by a product of vectors, by `full_sort_predict`, and by `predict` alone."""
    wanted = config(first_stage=model, first_stage_config={"epochs": 1})
    first = pipeline.open_needed(wanted, outer).inputs["first_stage"]
    rows = cases(wanted)
    found = first.scores(rows)
    assert found.dtype == torch.float64
    assert found.shape == (60, 41)
    own = pipeline.load(first.folder)
    users = own.splits.test.users
    theirs = users.interaction[np.arange(len(users))]
    assert theirs["user_id"].tolist() == rows["user_id"].tolist()
    with torch.no_grad():
        try:
            expected = own.model.full_sort_predict(theirs).view(60, 41)
        except NotImplementedError:  # NeuMF scores pairs
            pairs = Interaction(
                {"user_id": theirs["user_id"].repeat_interleave(41), "item_id": torch.arange(41).repeat(60)}
            )
            expected = own.model.predict(pairs).view(60, 41)
    torch.testing.assert_close(found[:, 1:], expected[:, 1:].double(), atol=1e-5, rtol=1e-4)
    if own.config["MODEL_TYPE"].name == "SEQUENTIAL":
        shorter = Interaction({**rows.interaction, "item_length": torch.ones_like(rows["item_length"])})
        shorter["item_id_list"] = shorter["item_id_list"].clone()
        shorter["item_id_list"][:, 1:] = 0
        assert not torch.allclose(first.scores(shorter), found, atol=1e-3), "the history must matter"


def test_a_reranker_that_never_asks_ranks_as_its_first_stage(settings):
    outcome = recbole_mm.run(Echo, "toy", config_dict=settings)
    assert outcome.beside["SASRec (first stage)"] == outcome.test_result
    assert set(outcome.beside) == {"SASRec (first stage)", "Pop"}


def test_held_out_items_that_a_reranker_cannot_put_first_are_counted(settings, tmp_path, caplog):
    write_toy(tmp_path)
    interactions = tmp_path / "toy" / "toy.inter"
    head, *lines = interactions.read_text().splitlines()
    repeats = {user: f"{user}\t{item}\t3\t1900000000" for user, item, *_ in (line.split("\t") for line in lines[-3:])}
    interactions.write_text("\n".join([head, *lines, *repeats.values()]) + "\n")
    for mask, told in ((True, 1), (False, 0)):
        caplog.clear()
        changed = {"data_path": str(tmp_path), "mask_history": mask, "rm_dup_inter": None}
        recbole_mm.run(Echo, "toy", config_dict={**settings, **changed})
        assert caplog.text.count("1 of 60 test items stand in the user's own history") == told


# ---------------------------------------------------------------------------------------------------- its own run


def test_it_is_the_run_that_a_command_would_have_made(settings, first_run):
    """Trained on full sequences, on the same data and seed; found again, whoever ran it first."""
    left_out = ("first_stage", "rerank", "train_neg", "text_fields", "image_dir")
    given = {key: settings[key] for key in settings if not key.startswith(left_out)}
    by_hand = recbole_mm.run("SASRec", "toy", config_dict={**given, **QUICK, "full_sequence": True})
    assert first_run("sasrec") == by_hand.run_dir
    assert first_run(settings={**QUICK, "full_sequence": False}) != by_hand.run_dir


def test_it_is_trained_once(first_run, monkeypatch):
    folder = first_run()

    def refuse(*args, **kwargs):
        raise AssertionError("it was run again")

    monkeypatch.setattr(pipeline, "_run", refuse)
    assert first_run() == folder
    # What an item looks like is nothing to SASRec, and what the run that asks does with it neither.
    assert first_run(text_fields=["class"], mllm="other", rerank_k=7) == folder
    with pytest.raises(AssertionError, match="run again"):
        first_run(seed=7)
    with pytest.raises(AssertionError, match="run again"):
        first_run(eval_args={"mode": "uni5"})


class Killed(BaseException):
    """Ends a run as abruptly as Python can end itself."""


def test_an_interrupted_first_stage_is_resumed(first_run, monkeypatch, settings, tmp_path):
    whole = first_run(checkpoint_dir=str(tmp_path / "whole"))
    original, steps = torch.optim.Adam.step, []

    def dies(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == 9:
            raise Killed
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", dies)
        with pytest.raises(Killed):
            first_run()
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *a, **k: steps.append(1) or original(self, *a, **k))
    steps.clear()
    resumed = first_run()
    per_epoch = run_folder.read_result(whole)["timings"]["steps"] // 2
    assert len(steps) == per_epoch, "the first epoch was not trained again"
    assert len(list(Path(settings["checkpoint_dir"]).glob("SASRec-*"))) == 1
    assert run_folder.read_result(resumed)["test_result"] == run_folder.read_result(whole)["test_result"]


def test_the_log_of_the_run_goes_on_in_its_own_folder(settings):
    outcome = recbole_mm.run(Echo, "toy", config_dict={**settings, "state": "INFO"})
    own = (outcome.run_dir / "run.log").read_text()
    (folder,) = Path(settings["checkpoint_dir"]).glob("SASRec-*")
    theirs = (folder / "run.log").read_text()
    assert "epoch 1 training" in theirs
    assert "epoch 1 training" not in own
    assert "SASRec on the same data and split comes first" in own
    assert "beside:" in own
    assert "Pop" in own[own.index("beside:") :]


# --------------------------------------------------------------------------------------------------------- beside


@pytest.mark.parametrize("mode", ["full", "uni5"])
def test_what_stands_beside_is_of_the_same_cases_and_candidates(settings, mode):
    changed = {**settings, "eval_args": {"mode": mode}, "first_stage": "BPR"}
    outcome = recbole_mm.run(Echo, "toy", config_dict=changed)
    (folder,) = Path(settings["checkpoint_dir"]).glob("BPR-*")
    theirs, users = pipeline.load(folder).splits.test.users, outcome.splits.test.users
    pairs = [(users.positives, theirs.positives), (users.history, theirs.history)]
    if mode != "full":
        pairs.append((users.candidates.items, theirs.candidates.items))
    for ours, other in pairs:
        assert same_rows(ours, other)
    result = json.loads((outcome.run_dir / "result.json").read_text())
    assert result["beside"] == outcome.beside
    assert result["beside"]["BPR (first stage)"] == run_folder.read_result(folder)["test_result"]


def same_rows(one: CSR, other: CSR) -> bool:
    return np.array_equal(one.offsets, other.offsets) and all(
        set(one.items[a:b]) == set(other.items[a:b]) for a, b in zip(one.offsets, one.offsets[1:])
    )


def test_without_a_first_stage_pop_stands_beside(config, outer):
    found = pipeline.open_needed(config(first_stage="none", rerank_k=None, first_stage_config={}), outer).beside
    assert list(found) == ["Pop"]
    assert found["Pop"]["recall@10"] > 0


def test_pop_as_first_stage_stands_there_once(config, outer):
    found = pipeline.open_needed(config(first_stage="Pop", first_stage_config={}), outer).beside
    assert list(found) == ["Pop (first stage)"]


# ----------------------------------------------------------------------------------------------------------- path


def test_a_finished_run_is_taken_by_its_folder(settings, config, outer):
    by_hand = recbole_mm.run("GRU4Rec", "toy", config_dict={**settings, "epochs": 1})
    wanted = config(first_stage_path=str(by_hand.run_dir), first_stage_config={})
    opened = pipeline.open_needed(wanted, outer)
    assert opened.inputs["first_stage"].name == "GRU4Rec"
    assert opened.beside["GRU4Rec (first stage)"] == by_hand.test_result


def test_a_run_of_other_candidates_gives_scores_and_no_row(toy_settings, config, outer, caplog):
    by_hand = recbole_mm.run("BPR", "toy", config_dict={**toy_settings, "epochs": 1})
    wanted = config(first_stage_path=str(by_hand.run_dir), first_stage_config={}, eval_args={"mode": "uni5"})
    with caplog.at_level("WARNING"):
        opened = pipeline.open_needed(wanted, outer)
    assert opened.inputs["first_stage"].name == "BPR"
    assert list(opened.beside) == ["Pop"]
    assert "was tested with another eval_args" in caplog.text


def test_a_run_on_data_that_has_changed_is_refused(toy_settings, config, outer, tmp_path):
    by_hand = recbole_mm.run("BPR", "toy", config_dict={**toy_settings, "epochs": 1})
    other = write_toy(tmp_path / "other", items=39)
    wanted = config(first_stage_path=str(by_hand.run_dir), first_stage_config={}, data_path=str(other))
    with pytest.raises(ConfigError, match=r"was run on other interactions: toy\.inter changed since"):
        needed_runs(wanted)


def test_a_run_that_left_other_items_out_is_refused(toy_settings, config, outer):
    """Whose texts and images are missing differs, so that the same number is another item."""
    given = {**toy_settings, "epochs": 1, "missing_modality": "drop"}
    by_hand = recbole_mm.run("BPR", "toy", config_dict={**given, "modalities": ["text"]})
    wanted = config(
        first_stage_path=str(by_hand.run_dir),
        first_stage_config={},
        missing_modality="drop",
        modalities=["image"],
        image_dir="few",
    )
    few = Path(toy_settings["data_path"]) / "toy" / "few"
    few.mkdir(exist_ok=True)
    for number in range(30):
        shutil.copy(few.parent / "images" / f"i{number}.png", few)
    opened = pipeline.open_needed(wanted, outer)
    with pytest.raises(ConfigError, match="knows other item_ids than this run"):
        opened.check_ids(create_dataset(wanted))


def test_a_reranker_is_loaded_after_its_data_has_changed(settings, tmp_path, caplog):
    write_toy(tmp_path)
    outcome = recbole_mm.run(Echo, "toy", config_dict={**settings, "data_path": str(tmp_path)})
    items = tmp_path / "toy" / "toy.item"
    items.write_text(items.read_text().replace("film number 3", "picture number 3"))
    runs = set(outcome.run_dir.parent.glob("SASRec*"))
    pipeline.load(outcome.run_dir, Echo)
    assert "toy.item has changed since" in caplog.text
    assert set(outcome.run_dir.parent.glob("SASRec*")) == runs, "the first stage of then is found"


def test_a_breach_of_the_train_only_rule_is_handed_on(settings, toy_settings):
    by_hand = recbole_mm.run("BPR", "toy", config_dict={**toy_settings, "epochs": 1})
    path = by_hand.run_dir / "result.json"
    write_json(path, {**read_json(path), "sees_held_out": ["it has seen them"]})
    given = {**settings, "first_stage_path": str(by_hand.run_dir), "first_stage_config": {}}
    outcome = recbole_mm.run(Echo, "toy", config_dict=given)
    assert outcome.sees_held_out == ["first stage BPR: it has seen them"]
    assert run_folder.read_result(outcome.run_dir)["sees_held_out"] == outcome.sees_held_out


# ----------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"first_stage": "none"}, "first_stage: none leaves nobody to choose the rerank_k: 5 items"),
        ({"first_stage": None}, "ask about every item with rerank_k: ~"),
        ({"first_stage": "SASRek"}, "unknown model 'SASRek': did you mean SASRec"),
        ({"first_stage_config": [3]}, r"first_stage_config: \[3\] is not accepted; give a mapping"),
        ({"first_stage_config": {"MAX_ITEM_LIST_LENGTH": 4}}, "first_stage_config: SASRec was run with MAX_ITEM"),
        ({"first_stage_config": {"eval_args": {"split": {"LS": "test_only"}}}}, "held out other interactions"),
        ({"first_stage_path": "/nowhere"}, "first_stage_config is for a first stage that is trained here"),
        ({"first_stage_path": "/nowhere", "first_stage_config": {}}, "first_stage_path: /nowhere has no config.yaml"),
    ],
)
def test_settings_that_cannot_be(settings, changed, message):
    with pytest.raises(ConfigError, match=message) as raised:
        recbole_mm.run(Echo, "toy", config_dict={**settings, **changed})
    assert "\n" not in str(raised.value)


def test_sampled_ranking_needs_no_first_stage(settings, config):
    wanted = config(first_stage="none", first_stage_config={}, eval_args={"mode": "uni5"})
    assert [need.role for need in needed_runs(wanted)] == [Role.POPULAR]


# ------------------------------------------------------------------------------------------------------- data


@pytest.fixture
def loaded(monkeypatch):
    """Models whose dataset was read from its files, in order."""
    read, original = [], FlatDatasetMixin._load_data

    def counted(self, *args):
        read.append(self.config["model"])
        return original(self, *args)

    monkeypatch.setattr(FlatDatasetMixin, "_load_data", counted)
    return read


def test_a_first_run_reads_the_data_once(settings, loaded):
    """Its first stage, Pop and itself share one dataset; a second one finds both and shares it with the first stage."""
    recbole_mm.run(Echo, "toy", config_dict=settings)
    assert loaded == ["SASRec"]
    loaded.clear()
    recbole_mm.run(Echo, "toy", config_dict={**settings, "rerank_k": 7})
    assert loaded == ["SASRec"]


@pytest.mark.parametrize(
    "changed", [{"candidates": "catalogue"}, {"missing_modality": "drop"}, {"positives": "popular"}]
)
def test_shared_data_are_what_each_run_would_have_read(settings, loaded, changed):
    """General and sequential models, before or after one another, split as from files of their own."""
    configs = [
        Config(model, "toy", config_dict={**settings, **changed}) for model in ("ItemKNN", "GRU4Rec", "Pop", Echo)
    ]
    own = [split(config, create_dataset(config), config.model_class) for config in configs]
    loaded.clear()
    datasets = Datasets(configs[-1])
    shared = [split(config, datasets.of(config), config.model_class) for config in configs]
    assert loaded == ["ItemKNN"]
    for one, other in zip(own, shared):
        assert type(one.train_dataset).__name__ == type(other.train_dataset).__name__
        assert one.train_dataset.field2type == other.train_dataset.field2type
        assert one.train_dataset.field2seqlen == other.train_dataset.field2seqlen
        for field in one.train_dataset.inter_feat.columns:
            assert torch.equal(one.train_dataset.inter_feat[field], other.train_dataset.inter_feat[field])
        assert same_rows(one.test.users.positives, other.test.users.positives)


def test_results_on_shared_data_are_those_of_runs_alone(settings, tmp_path):
    recbole_mm.run(Echo, "toy", config_dict=settings)
    for model in ("SASRec", "Pop"):
        (folder,) = Path(settings["checkpoint_dir"]).glob(f"{model}-*")
        alone = recbole_mm.run(config_files=[folder / "config.yaml"], config_dict={"checkpoint_dir": str(tmp_path)})
        shared = run_folder.read_result(folder)
        assert alone.test_result == shared["test_result"]
        assert alone.best_valid_result == shared["best_valid_result"]


@pytest.mark.parametrize("key", ["MAX_ITEM_LIST_LENGTH", "user_inter_num_interval"])
def test_data_of_other_settings_are_read_again(settings, loaded, key):
    datasets = Datasets(None)
    for value in {"MAX_ITEM_LIST_LENGTH": (5, 6), "user_inter_num_interval": ("[1,inf)", "[2,inf)")}[key]:
        datasets.of(Config("GRU4Rec", "toy", config_dict={**settings, key: value}))
    assert len(loaded) == 2
