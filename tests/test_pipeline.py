"""A run's folder, a second run, reloading, and evaluation settings that reach every kind of model."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import recbole_mm
from recbole_mm.config.resolved import Config
from recbole_mm.data import sharing
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import CheckpointError, ConfigError, DataError, DiskError, RecboleMMError
from recbole_mm.evaluation.per_user import read_per_user
from recbole_mm.evaluation.splits import split
from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from recbole_mm.runs.pretrained_run import check_same_data
from recbole_mm.training.loop import DivergedError
from recbole_mm.training.trainer import TrainerMixin
from recbole_mm.utils import files
from tests.conftest import write_toy


def test_the_run_folder_holds_what_is_needed_to_reproduce(toy_settings):
    outcome = recbole_mm.run("Molar", "toy", config_dict=toy_settings)
    names = {path.name for path in outcome.run_dir.iterdir()}
    assert names >= {"config.yaml", "result.json", "model.safetensors", "checkpoint.safetensors", "per_user.parquet"}
    assert not [name for name in names if name.endswith((".pth", ".pt", ".pkl"))]
    result = json.loads((outcome.run_dir / "result.json").read_text())
    assert result["model"] == "Molar"
    assert result["test_result"] == outcome.test_result
    assert set(result["stages"]) == {"dataset", "artifacts", "split", "training", "test"}
    assert all(stage["seconds"] >= 0 and stage["peak_memory_mb"] > 10 for stage in result["stages"].values())
    assert result["versions"]["recbole"] == "1.2.1"
    assert result["seed"] == 2020
    assert yaml.safe_load((outcome.run_dir / "config.yaml").read_text())["model"] == "Molar"


def test_per_user_values_average_to_the_reported_metric(toy_settings):
    outcome = recbole_mm.run("SASRec", "toy", config_dict=toy_settings)
    table = pd.read_parquet(outcome.run_dir / "per_user.parquet")
    assert len(table) == 60
    assert set(table["user_id"]) == {f"u{i}" for i in range(60)}
    for metric in ("ndcg@10", "recall@5", "mrr@10"):
        assert table[metric].mean() == pytest.approx(outcome.test_result[metric], abs=1e-6)


def test_a_second_run_encodes_nothing(toy_settings, monkeypatch):
    first = recbole_mm.run("Molar", "toy", config_dict=toy_settings)

    def refuse(self, items):
        raise AssertionError("an item was encoded again")

    monkeypatch.setattr(ItemEncoder, "compute", refuse)
    second = recbole_mm.run("Molar", "toy", config_dict={**toy_settings, "alpha": 0.2})
    assert np.array_equal(first.dataset.inputs.item_vectors, second.dataset.inputs.item_vectors)
    with pytest.raises(AssertionError, match="encoded again"):
        recbole_mm.run("Molar", "toy", config_dict={**toy_settings, "max_text_tokens": 3})


def test_runs_of_other_settings_have_other_folders_and_equal_ones_are_numbered(toy_settings):
    folders = [
        recbole_mm.run("BPR", "toy", config_dict={**toy_settings, "epochs": 1, **changed}).run_dir.name
        for changed in ({}, {}, {"embedding_size": 8}, {"show_progress": True})
    ]
    assert folders[1] == f"{folders[0]}-2"
    assert folders[2] != folders[0]
    assert folders[3] == f"{folders[0]}-3", "what cannot change the result does not name the folder"


def test_a_number_is_the_same_however_it_is_written(toy_config):
    same = [run_folder.first_run_dir(toy_config("BPR", warmup_ratio=ratio)) for ratio in (0, 0.0, 1, 0.5)]
    assert same[0] == same[1]
    assert len(set(same)) == 3


def test_runs_on_other_data_are_other_runs(toy_settings, caplog, tmp_path):
    write_toy(tmp_path)
    settings = {**toy_settings, "epochs": 1, "data_path": str(tmp_path)}
    first = recbole_mm.run("BPR", "toy", config_dict=settings)
    interactions = tmp_path / "toy" / "toy.inter"
    interactions.write_text("\n".join(interactions.read_text().splitlines()[:-1]) + "\n")
    second = recbole_mm.run("BPR", "toy", config_dict=settings)
    assert second.run_dir.name.split("-")[2] != first.run_dir.name.split("-")[2], "not the same settings again"
    caplog.clear()
    recbole_mm.load(second.run_dir)
    assert "has changed" not in caplog.text
    recbole_mm.load(first.run_dir)
    assert "toy.inter has changed since" in caplog.text
    with pytest.raises(CheckpointError, match="was run with data_files"):
        recbole_mm.run("BPR", "toy", config_dict={**settings, "resume": str(first.run_dir)})
    with pytest.raises(ConfigError, match=r"was run on other interactions: toy\.inter changed since"):
        check_same_data(first.config, second.config, "first_stage_path: x")


def test_a_run_goes_on_with_its_own_settings_alone(toy_settings, monkeypatch):
    """Another split would have trained on what is tested now."""
    settings = {**toy_settings, "epochs": 1}
    split = {"split": {"LS": "valid_only"}}
    finished = recbole_mm.run("BPR", "toy", config_dict={**settings, "eval_args": split})
    before = (finished.run_dir / "config.yaml").read_text()
    for changed, told in (({}, "eval_args"), ({"eval_args": split, "seed": 7}, "seed: 2020, not 7")):
        with pytest.raises(CheckpointError, match=told):
            recbole_mm.run("BPR", "toy", config_dict={**settings, **changed, "resume": str(finished.run_dir)})
    assert (finished.run_dir / "config.yaml").read_text() == before
    monkeypatch.setattr(pipeline, "train_and_test", None)  # nothing is left to do
    again = {**settings, "eval_args": split, "resume": str(finished.run_dir), "show_progress": True, "use_gpu": False}
    assert recbole_mm.run("BPR", "toy", config_dict=again).test_result == finished.test_result


def test_a_kill_after_the_result_costs_nothing(toy_settings, monkeypatch):
    """`result.json` is there, and nobody has heard of it."""
    settings = {**toy_settings, "epochs": 1}
    finished = recbole_mm.run("BPR", "toy", config_dict=settings)
    monkeypatch.setattr(pipeline, "train_and_test", None)  # nothing is left to do
    again = recbole_mm.run("BPR", "toy", config_dict={**settings, "resume": True})
    assert (again.run_dir, again.test_result) == (finished.run_dir, finished.test_result)


def flip(path, word):
    """Turn over the lowest bit of the last byte of a word in a file."""
    content = path.read_bytes()
    place = content.index(word) + len(word) - 1
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


@pytest.mark.parametrize(
    ("name", "word"),
    [("model.safetensors", None), ("config.yaml", b"seed: 2020"), ("result.json", b"0."), ("per_user.parquet", None)],
)
def test_a_run_with_a_damaged_file_is_refused_by_its_name(toy_settings, name, word):
    run_dir = recbole_mm.run("BPR", "toy", config_dict={**toy_settings, "epochs": 1}).run_dir
    recbole_mm.load(run_dir)
    content = (run_dir / name).read_bytes()
    flip(run_dir / name, word or content[len(content) // 2 :][:40])
    with pytest.raises(RecboleMMError, match=rf"{name}.*its checksum does not match") as caught:
        recbole_mm.load(run_dir) if name != "per_user.parquet" else read_per_user(run_dir)
    assert "\n" not in str(caught.value)


def test_a_damaged_checkpoint_is_not_gone_on_with(toy_settings):
    settings = {**toy_settings, "epochs": 1}
    run_dir = recbole_mm.run("BPR", "toy", config_dict=settings).run_dir
    (run_dir / "result.json").unlink()
    content = (run_dir / "checkpoint.safetensors").read_bytes()
    flip(run_dir / "checkpoint.safetensors", content[len(content) // 2 :][:40])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: damaged: .*start a new run"):
        recbole_mm.run("BPR", "toy", config_dict={**settings, "resume": True})
    assert (run_dir / "model.safetensors").is_file()


def test_a_file_in_place_of_checkpoint_dir_is_one_line(toy_settings, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in ("file", "file/deep"):
        with pytest.raises(DiskError, match=rf"{folder}.*: cannot be written: (File exists|Not a directory)") as caught:
            recbole_mm.run("BPR", "toy", config_dict={**toy_settings, "checkpoint_dir": str(tmp_path / folder)})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.yaml", "model.next.safetensors", "per_user.parquet", "result.json"])
def test_a_disk_that_gives_up_is_one_line_and_loses_nothing(toy_settings, monkeypatch, name):
    settings, original = {**toy_settings, "epochs": 1}, files._sync

    def gives_up(path):
        if path.name == name:
            raise OSError(28, "No space left on device")
        original(path)

    monkeypatch.setattr(files, "_sync", gives_up)
    with pytest.raises(DiskError, match=rf"{name}: cannot be written: No space left on device$"):
        recbole_mm.run("BPR", "toy", config_dict=settings)
    monkeypatch.undo()
    done = recbole_mm.run("BPR", "toy", config_dict={**settings, "resume": True})
    straight = recbole_mm.run("BPR", "toy", config_dict=settings)
    assert done.test_result == straight.test_result
    assert not [path for path in done.run_dir.iterdir() if path.name.startswith(".")]
    assert straight.run_dir.name == f"{done.run_dir.name}-2", "one folder, taken up again"


def test_an_error_takes_away_nothing_that_was_there(toy_settings, monkeypatch):
    settings = {**toy_settings, "epochs": 1}
    interrupted = recbole_mm.run("BPR", "toy", config_dict=settings).run_dir
    for name in ("result.json", "checkpoint.safetensors"):
        (interrupted / name).unlink()

    def fails(*args, **kwargs):
        raise DataError("something is amiss")

    monkeypatch.setattr(sharing, "create_dataset", fails)
    with pytest.raises(DataError, match="amiss"):
        recbole_mm.run("BPR", "toy", config_dict={**settings, "resume": True})
    assert (interrupted / "model.safetensors").exists()
    with pytest.raises(DataError, match="amiss"):
        recbole_mm.run("BPR", "toy", config_dict=settings)
    assert [path for path in interrupted.parent.iterdir() if path.name.startswith("BPR")] == [interrupted]


def test_a_run_that_another_process_trains_is_waited_for(toy_settings, monkeypatch):
    """As two rows of a table do whose first stage is the third one."""
    settings, started, may_end = {**toy_settings, "epochs": 1}, threading.Event(), threading.Event()
    original = pipeline.train_and_test

    def slow(*args):
        started.set()
        assert may_end.wait(60)
        return original(*args)

    monkeypatch.setattr(pipeline, "train_and_test", slow)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(recbole_mm.run, "BPR", "toy", config_dict=settings)
        assert started.wait(60)
        second = pool.submit(recbole_mm.run, "BPR", "toy", config_dict={**settings, "resume": True})
        time.sleep(0.5)
        assert not second.done()
        started.clear()
        may_end.set()
        assert second.result().run_dir == first.result().run_dir
        assert second.result().test_result == first.result().test_result
    assert not started.is_set(), "it was trained once"


def test_who_waits_for_a_run_that_fails_runs_it_again(toy_settings, monkeypatch):
    settings, may_end, original = {**toy_settings, "epochs": 1}, threading.Event(), sharing.create_dataset
    calls = []

    def fails_first(config):
        calls.append(config)
        if len(calls) > 1:
            return original(config)
        assert may_end.wait(60)
        raise DataError("something is amiss")

    monkeypatch.setattr(sharing, "create_dataset", fails_first)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(recbole_mm.run, "BPR", "toy", config_dict=settings)
        while not calls:
            time.sleep(0.01)
        second = pool.submit(recbole_mm.run, "BPR", "toy", config_dict={**settings, "resume": True})
        time.sleep(0.5)
        may_end.set()
        assert isinstance(first.exception(), DataError)
        assert second.result().test_result


def test_the_best_weights_of_a_training_that_diverged_are_kept(toy_settings, monkeypatch):
    """Also where no checkpoint was due yet."""
    scores = iter([0.5, float("nan")])
    monkeypatch.setattr(TrainerMixin, "_valid_epoch", lambda *_, **__: (score := next(scores), {"ndcg@10": score}))
    with pytest.raises(DivergedError, match="weights of epoch 0") as raised:
        recbole_mm.run("BPR", "toy", config_dict={**toy_settings, "epochs": 3, "checkpoint_every": 10})
    assert Path(re.search(r"\S+model\.safetensors", str(raised.value))[0]).is_file()


def test_who_loads_a_run_by_running_it_again_keeps_what_was_typed(toy_settings, monkeypatch):
    """`NOT_FROM_A_RUN` is about folders of others."""
    settings = {**toy_settings, "epochs": 1, "text_url": "http://localhost:8000/v1", "trust_remote_code": True}
    recbole_mm.run("BPR", "toy", config_dict=settings)
    again = recbole_mm.run("BPR", "toy", config_dict={**settings, "resume": True})
    assert (again.config["text_url"], again.config["trust_remote_code"]) == ("http://localhost:8000/v1", True)


def test_a_run_without_epochs_is_run_again(toy_settings):
    settings = {**toy_settings, "epochs": 0, "load_best_model": False}
    first = recbole_mm.run("BPR", "toy", config_dict=settings)
    again = recbole_mm.run("BPR", "toy", config_dict={**settings, "resume": True})
    assert again.run_dir != first.run_dir
    assert again.test_result == first.test_result


def test_popular_negatives_are_popular_in_training(toy_settings, tmp_path):
    """No count of a held-out item reaches training."""
    write_toy(tmp_path)
    negatives = {"distribution": "popularity", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0}
    for model in ("BPR", "GRU4Rec"):
        settings = {**toy_settings, "train_neg_sample_args": negatives, "loss_type": "BPR", "data_path": str(tmp_path)}
        config = Config(model, "toy", config_dict=settings)
        phases = split(config, create_dataset(config), config.model_class)
        counted = Counter(phases.train._sampler._get_candidates_list())
        assert counted == Counter(phases.train_dataset.inter_feat["item_id"].tolist())
        assert sum(counted.values()) < len(create_dataset(config).inter_feat) - 60


def test_loading_needs_a_finished_run(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.yaml; give the folder of a finished run"):
        recbole_mm.load(tmp_path)
    with pytest.raises(CheckpointError, match="not a run folder"):
        recbole_mm.run("BPR", "ml-100k", config_dict={"resume": str(tmp_path), "checkpoint_dir": str(tmp_path)})


@pytest.mark.parametrize("model", ["BPR", "SASRec"])
def test_one_switch_masks_histories_of_general_and_sequential_models(model, toy_settings):
    masked = recbole_mm.run(model, "toy", config_dict={**toy_settings, "epochs": 1})
    free = recbole_mm.run(model, "toy", config_dict={**toy_settings, "epochs": 1, "mask_history": False})
    assert free.splits.test.users.history is None
    users = masked.splits.test.users
    for row in range(len(users)):
        history = set(users.history.items[users.history.offsets[row] : users.history.offsets[row + 1]])
        assert len(history) >= 2
        assert not history & set(users.positives.items[users.positives.offsets[row] : users.positives.offsets[row + 1]])


def test_general_and_sequential_models_rank_the_same_cases(toy_settings):
    users = [
        recbole_mm.run(m, "toy", config_dict={**toy_settings, "epochs": 1}).splits.test.users for m in ("BPR", "SASRec")
    ]
    cases = [
        {
            user: (set(u.positives.take(np.array([row])).items), set(u.history.take(np.array([row])).items))
            for row, user in enumerate(u.user_ids)
        }
        for u in users
    ]
    assert cases[0] == cases[1]


def test_sampled_and_popularity_protocols_and_beyond_accuracy_metrics(toy_settings):
    metrics = ["NDCG", "ItemCoverage", "AveragePopularity", "GiniIndex", "ShannonEntropy", "TailPercentage"]
    outcome = recbole_mm.run("Pop", "toy", config_dict={**toy_settings, "metrics": metrics})
    assert set(name.split("@")[0] for name in outcome.test_result) == {name.lower() for name in metrics}
    for mode in ("uni10", "pop10"):
        sampled = recbole_mm.run(
            "SASRec", "toy", config_dict={**toy_settings, "epochs": 1, "eval_args": {"mode": mode}}
        )
        assert sampled.test_result["hit@10"] > 0.5


def test_value_metrics_keep_recboles_protocol(toy_settings):
    load = {"inter": ["user_id", "item_id", "rating", "timestamp"], "item": ["item_id", "class"]}
    settings = {**toy_settings, "threshold": {"rating": 3}, "load_col": load, "epochs": 1, "topk": [10]}
    settings.pop("valid_metric")
    outcome = recbole_mm.run("FM", "toy", config_dict=settings)
    assert set(outcome.test_result) == {"auc", "logloss"}


def test_unknown_names_are_told_with_the_nearest(toy_settings):
    with pytest.raises(ConfigError, match="did you mean SASRec"):
        recbole_mm.run("SASRek", "toy", config_dict=toy_settings)
    for wrong, near in (("ml-10k", "ml-100k"), ("toyy", "toy")):
        with pytest.raises(DataError, match=f"did you mean '{near}'"):
            recbole_mm.run("SASRec", wrong, config_dict=toy_settings)
    left = Path(toy_settings["checkpoint_dir"]).glob("[!.]*")
    assert not list(left)
