"""`train_workers`: runs on Ray Train on this machine, one whose worker is killed, and what is refused before any."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch

import recbole_mm
from recbole_mm.config.resolved import Config
from recbole_mm.distributed.cluster import ray_session
from recbole_mm.distributed.training import LostWorkerError
from recbole_mm.errors import ConfigError, RecboleMMError
from recbole_mm.evaluation.per_user import read_per_user
from recbole_mm.experiments.tune.plan import plan_search
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs.on_workers import worker_resources
from recbole_mm.training.checkpoint import load_tree
from tests.conftest import TOY_SETTINGS
from tests.two_workers import Mortal

ray = pytest.importorskip("ray")

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
TWO_CORES = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two cores")


@pytest.fixture(scope="module")
def one_ray():
    """A Ray that all runs of this module use, as they find it running."""
    here = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(here))  # Ray's processes import tests.two_workers, too
        config = Config("BPR", "toy", config_dict={"train_workers": 2, "use_gpu": False})
        with ray_session(worker_resources(config)):
            yield
    assert not ray.is_initialized()


@pytest.fixture
def settings(toy_path, tmp_path) -> dict:
    kept = {"data_path": str(toy_path), "checkpoint_dir": str(tmp_path / "saved"), "grave": str(tmp_path / "grave")}
    return {**TOY_SETTINGS, **kept, "epochs": 3, "train_batch_size": 64, "use_gpu": False}


def curve(run_dir: Path) -> list[float]:
    return [epoch["train_loss"] for epoch in load_tree(run_dir / run_folder.CHECKPOINT)["history"]]


@TWO_CORES
def test_a_run_whose_worker_is_killed_ends_as_one_process_does(one_ray, settings, tmp_path, capsys):
    here = recbole_mm.run(Mortal, "toy", config_dict={**settings, "checkpoint_dir": str(tmp_path / "one")})
    assert not (tmp_path / "grave").exists(), "nobody dies in one process"
    run = recbole_mm.run(Mortal, "toy", config_dict={**settings, "train_workers": 2, "state": "INFO"})
    assert (tmp_path / "grave").exists()
    told = capsys.readouterr().err
    assert told.count("epoch   0  train loss") == 1, "the epoch before the kill was kept"
    assert "epoch 0 training" not in told, "the long form is in the file alone"
    assert told.count("Resume training from epoch 1") == 1
    assert curve(run.run_dir) == pytest.approx(curve(here.run_dir), rel=2e-5)
    assert run.test_result == pytest.approx(here.test_result, abs=1e-6)
    assert read_per_user(run.run_dir).column("user_id") == read_per_user(here.run_dir).column("user_id")
    expected = {path.name for path in here.run_dir.iterdir()}
    assert {path.name for path in run.run_dir.iterdir()} == expected, "nothing of Ray's is left"
    result = run_folder.read_result(run.run_dir)
    assert result["train_workers"] == 2
    assert list(result["stages"]) == ["dataset", "artifacts", "split", "training", "test"]
    assert run.run_dir.name == here.run_dir.name


@TWO_CORES
def test_an_error_in_a_worker_is_told_in_one_line_and_not_tried_again(one_ray, settings, tmp_path):
    broken = {**settings, "train_workers": 2, "learning_rate": 1e6, "full_sequence": True, "loss_type": "CE"}
    broken |= {"learner": "sgd", "train_batch_size": 16}
    with pytest.raises(RecboleMMError, match=r"NaN|diverged") as raised:
        recbole_mm.run("GRU4Rec", "toy", config_dict=broken)
    assert not isinstance(raised.value, LostWorkerError)
    assert "\n" not in str(raised.value)


# ---- what is refused, before a folder is made or Ray is started ----


def refused(settings: dict, **changed) -> str:
    with pytest.raises(ConfigError) as raised:
        recbole_mm.run(changed.pop("model", "BPR"), "toy", config_dict={**settings, **changed})
    assert not Path(settings["checkpoint_dir"]).exists()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("count", [0, -2, 1.5, "many"])
def test_a_number_of_workers_that_is_none_is_refused(settings, count):
    assert f"train_workers: {count!r} is not accepted; give a whole number of at least 1" in refused(
        settings, train_workers=count
    )


def test_more_workers_than_cores_are_refused(settings):
    assert "--train_workers=4096: this machine has room for" in refused(settings, train_workers=4096)


def test_more_workers_than_gpus_are_refused(settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("recbole_mm.distributed.cluster.cores", lambda: 8)
    told = refused(settings, train_workers=3, use_gpu=True, gpu_id="0")
    assert "--train_workers=3: this machine has room for 1 at the same time, of 1 CPU and 1 GPU each" in told


def test_a_cluster_that_cannot_be_reached_is_refused(settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = refused(settings, train_workers=2, ray_address=f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port}: no Ray cluster can be reached there" in told


def test_a_model_that_takes_one_process_is_refused(settings):
    assert "RecVAE is trained in a way of its own" in refused(settings, model="RecVAE", train_workers=2)


def test_a_search_keeps_a_trial_to_one_process(settings):
    with pytest.raises(ConfigError, match="train_workers: a trial is one process"):
        plan_search("BPR", "toy", command_line={"train_workers": "2", "data_path": settings["data_path"]})


# ---- real interactions: those of ml-100k, which come with RecBole ----


@TWO_CORES
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changed"),
    [
        ("SASRec", {"full_sequence": True, **NO_DROPOUT}),
        ("BPR", {}),
        ("DuoRec", {"full_sequence": True, **NO_DROPOUT, "train_batch_size": 512}),
        (
            "Molar",
            {"embedding_dropout": 0.0, "id_model_config": NO_DROPOUT, "train_batch_size": 256, "max_train_steps": 12},
        ),
    ],
)
def test_on_ml_100k_the_loss_curve_is_that_of_one_process(one_ray, tmp_path, model, changed):
    settings = {"epochs": 2, "train_batch_size": 2048, "use_gpu": False, "state": "WARNING", "text_fields": ["class"]}
    settings |= {"artifact_dir": str(tmp_path / "artifacts"), "modalities": ["text"], "MAX_ITEM_LIST_LENGTH": 20}
    settings |= {"load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]}, **changed}
    runs = [
        recbole_mm.run(
            model, "ml-100k", config_dict={**settings, "train_workers": n, "checkpoint_dir": str(tmp_path / f"{n}")}
        )
        for n in (1, 2)
    ]
    one, two = (curve(run.run_dir) for run in runs)
    assert two == pytest.approx(one, rel=1e-4)
    assert runs[1].test_result == pytest.approx(runs[0].test_result, abs=5e-3)
