"""MLflow: the names of metrics, the run that is used, servers that fail. The package itself is asked where it is
installed; elsewhere a stand-in keeps what it is told."""

from __future__ import annotations

import logging
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

import recbole_mm
from recbole_mm.errors import ConfigError
from recbole_mm.experiments.tune.trial import Job, run_trial
from recbole_mm.registry import find_model
from recbole_mm.training import tracking
from recbole_mm.training.trainer import TrainerMixin
from tests.conftest import TOY_FEATURES

METRIC = "ndcg_at_10"


class Refused(Exception):
    """Stands for MLflow's exception."""


class Server:
    """What a stand-in was told; `fails` are the names of calls that it refuses."""

    def __init__(self) -> None:
        self.metrics, self.params, self.tags, self.ended, self.experiments = [], {}, {}, [], {}
        self.fails: set[str] = set()
        self.active = None
        self.given, self.made = {}, 0

    def client(self, uri):
        self.uri = uri
        return self

    def _may(self, name):
        if name in self.fails:
            raise Refused(f"{name}:\nno connection")

    def get_experiment_by_name(self, name):
        self._may("get_experiment_by_name")
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def create_run(self, experiment, run_name, tags):
        self.tags = {**tags, "name": run_name, "experiment": experiment}
        self.made += 1
        return SimpleNamespace(info=SimpleNamespace(run_id="made here"))

    def get_run(self, run_id):
        return SimpleNamespace(data=SimpleNamespace(tags=dict(self.given.get(run_id, {}))))

    def set_tag(self, run_id, key, value):
        self.given.setdefault(run_id, {})[key] = value

    def log_batch(self, run_id, params):
        assert len(params) <= 100
        self.params |= {param.key: param.value for param in params}

    def log_metric(self, run_id, key, value, step):
        self._may("log_metric")
        assert set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789_/")
        self.metrics.append((run_id, key, value, step))

    def set_terminated(self, run_id, status):
        self.ended.append((run_id, status))


@pytest.fixture
def server(monkeypatch):
    found = Server()
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.exceptions = SimpleNamespace(MlflowException=Refused)
    module.active_run = lambda: found.active
    module.MlflowClient = found.client
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.setattr(tracking, "find_spec", lambda _: True)
    return found


def trained(toy_settings, **changes):
    return recbole_mm.run("BPR", "toy", config_dict={**toy_settings, "log_mlflow": True, **changes})


def test_a_run_is_written_with_recboles_names(server, toy_settings):
    found = trained(toy_settings, mlflow_tracking_uri="http://somewhere", mlflow_experiment="mine")
    assert server.uri == "http://somewhere"
    assert server.tags == {
        **{"model": "BPR", "dataset": "toy", "run_dir": str(found.run_dir), "name": found.run_dir.name},
        "experiment": server.experiments["mine"],
    }
    assert server.params["train_batch_size"] == "256"
    assert "mlflow_tracking_uri" not in server.params
    assert max(map(len, server.params.values())) <= 500
    by_key = {}
    for run_id, key, value, step in server.metrics:
        assert run_id == "made here"
        by_key.setdefault(key, []).append((step, value))
    assert [step for step, _ in by_key["train/train_loss"]] == [0, 1]
    assert [step for step, _ in by_key[f"valid/{METRIC}"]] == [0, 1]
    assert max(value for _, value in by_key[f"valid/{METRIC}"]) == found.best_valid_result["ndcg@10"]
    assert [value for _, value in by_key[f"eval/{METRIC}"]] == [found.test_result["ndcg@10"]]
    assert server.ended == [("made here", "FINISHED")]


def test_a_run_that_is_active_is_used_and_left_open(server, toy_settings):
    server.active = SimpleNamespace(info=SimpleNamespace(run_id="begun before", experiment_id="7"))
    first = trained(toy_settings)
    assert {run_id for run_id, *_ in server.metrics} == {"begun before"}
    assert (server.ended, server.experiments) == ([], {})
    assert server.given["begun before"]["run_dir"] == str(first.run_dir)
    server.metrics.clear()
    second = trained(toy_settings, embedding_size=8)
    assert {run_id for run_id, *_ in server.metrics} == {"made here"}, "whose parameters are others"
    assert server.tags["mlflow.parentRunId"] == "begun before"
    assert (server.tags["experiment"], server.tags["name"]) == ("7", second.run_dir.name)
    assert server.ended == [("made here", "FINISHED")]


@pytest.mark.parametrize(("raised", "status"), [(ConfigError("no"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_that_ends_early_does_not_stay_open(server, toy_settings, monkeypatch, raised, status):
    def stop(*_, **__):
        raise raised

    monkeypatch.setattr(TrainerMixin, "_validate", stop)
    with pytest.raises(type(raised)):
        trained(toy_settings)
    assert server.ended == [("made here", status)]


def test_trials_end_and_what_is_chosen_is_written(server, toy_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a trial sets it
    shared = {**toy_settings, "log_mlflow": True, "epochs": 1}
    choice = {"dueg": "sasrec", "hidden_size": 16, "item_sources": ["text"], "item_features": TOY_FEATURES}
    choice |= {"rec_loss": "ce", "fusion_weight": "valid"}
    job = Job(find_model("Molar"), "toy", {**shared, **choice}, str(Path.cwd()), 1, 0)
    run_trial(job, {}, tmp_path / "trial", tmp_path, lambda *_: None)
    assert server.ended == [("made here", "FINISHED")]
    assert server.given["made here"]["chosen_on_validation"].startswith("fusion_weight: ")
    assert not any(key.startswith("eval/") for _, key, *_ in server.metrics)
    with pytest.raises(ConfigError, match="gradient_accumulation_steps"):
        run_trial(job, {"gradient_accumulation_steps": 0}, tmp_path / "other", tmp_path, lambda *_: None)
    assert server.made == 1, "nothing was begun"


def test_a_server_that_fails_ends_the_run_at_its_start_and_is_warned_of_later(server, toy_settings, caplog):
    server.fails = {"get_experiment_by_name"}
    with pytest.raises(ConfigError, match=r"log_mlflow: http://x: get_experiment_by_name:.*no connection; mend") as no:
        trained(toy_settings, mlflow_tracking_uri="http://x")
    assert "\n" not in str(no.value)
    server.fails = {"log_metric"}
    caplog.set_level(logging.WARNING)
    assert trained(toy_settings).test_result
    assert server.metrics == []
    assert len([line for line in caplog.messages if line.startswith("log_mlflow:")]) == 1


def test_mlflow_that_is_not_installed_is_told_at_once(toy_settings, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="log_mlflow: True needs the package mlflow: pip install mlflow-skinny"):
        trained(toy_settings)


@pytest.mark.skipif(find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_itself_keeps_a_run(toy_settings, tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    found = trained(toy_settings, mlflow_tracking_uri=uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("recbole")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == found.run_dir.name
    assert run.info.status == "FINISHED"
    assert run.data.metrics[f"eval/{METRIC}"] == pytest.approx(found.test_result["ndcg@10"])
    assert run.data.params["model"] == "BPR"
    assert len(client.get_metric_history(run.info.run_id, "train/train_loss")) == 2
