"""Searches on a real Ray on this machine: what is stopped, retried, tested, and resumed after a kill."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from recbole_mm import registry as registry_module
from recbole_mm.cli import main
from recbole_mm.distributed.trials import TrialResources, trial_session
from recbole_mm.errors import ConfigError
from recbole_mm.experiments.tune.command import Found, tune_model
from recbole_mm.experiments.tune.records import DONE, FAILED, STOPPED
from recbole_mm.registry import register_model
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from tests.conftest import TOY_SETTINGS
from tests.processes import started

ray = pytest.importorskip("ray")

EPOCHS = 6


@pytest.fixture(scope="module")
def one_ray():
    """A Ray that all searches of this module use, as they find it running."""
    here = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(here))  # Ray's processes import tests.tune_models, too
        with trial_session(TrialResources(cpus=1, gpus=0, jobs=0, address=None, store_mb=80)):
            yield
    assert not ray.is_initialized()


@pytest.fixture
def scripted(one_ray, toy_path, tmp_path, monkeypatch):
    """`scripted(space, **options) -> Found`: a search for `tune_models.Scripted`, one trial after another."""
    monkeypatch.setattr(registry_module, "_registered", dict(registry_module._registered))
    register_model("Scripted", "tests.tune_models:Scripted", type="general")

    def search(space: dict, **options) -> Found:
        (tmp_path / "space.yaml").write_text(yaml.safe_dump(space, sort_keys=False))
        settings = {
            **TOY_SETTINGS,
            **{"epochs": EPOCHS, "data_path": str(toy_path), "checkpoint_dir": str(tmp_path / "saved")},
            **{"tally": str(tmp_path / "tally"), "ranks": "best", "fails": "nothing", "stopping_step": 100},
        }
        path = tmp_path / "settings.yaml"
        path.write_text(yaml.safe_dump({key: settings[key] for key in settings if key not in space}))
        given = {"search": "random", "scheduler": "none", "jobs": 1, "out": tmp_path / "out", **options}
        return tune_model("Scripted", "toy", space=tmp_path / "space.yaml", config_files=[path], **given)

    return search


def tally(folder: Path) -> Counter:
    """(what, learning rate) -> how often."""
    lines = [line.split() for line in (folder / "tally").read_text().splitlines()]
    return Counter((what, float(rate)) for what, _, rate in lines)


def test_bad_trials_are_stopped_and_only_the_best_is_tested_and_only_once(scripted, tmp_path):
    space = {"learning_rate": {"choice": [0.001, 0.002, 0.003, 0.004, 0.005]}, "ranks": {"choice": ["best", "worst"]}}
    found = scripted(space, trials=10, scheduler="asha", grace_epochs=1)
    assert len(found.records) == 10
    by_rank = {ranks: [one for one in found.records if one.settings["ranks"] == ranks] for ranks in ("best", "worst")}
    assert len(by_rank["best"]) == 5
    assert found.settings["ranks"] == "best"
    first_best = next(one.number for one in found.records if one.settings["ranks"] == "best")
    late = [one for one in by_rank["worst"] if one.number > first_best]
    assert late
    for one in late:
        assert (one.status, one.epochs) == (STOPPED, 1), "stopped at the first look, its place free for the next"
    assert [one.epochs for one in by_rank["best"]] == [EPOCHS] * 5
    assert {one.status for one in by_rank["best"]} == {DONE}

    done = tally(tmp_path)
    validated = sum(len(one.scores) for one in found.records)
    assert sum(one.epochs for one in found.records) < 10 * EPOCHS
    evaluations = sum(count for (what, _), count in done.items() if what == "evaluated")
    assert evaluations == validated + 1, "every validation, and one test"
    trained = sum(count for (what, _), count in done.items() if what == "trained")
    batches = trained / sum(one.epochs for one in found.records)
    assert batches == int(batches), "a stopped trial trains nothing more, nor does the best one for its test"

    assert sorted(path.name for path in tmp_path.glob("out/trials/*/result.json")) == []
    assert run_folder.is_finished(found.out / "best")
    result = run_folder.read_result(found.out / "best")
    assert result["test_result"] == found.test_result
    assert result["best_valid_result"]["ndcg@10"] == pytest.approx(found.score)
    assert not (found.out / "ray").exists()
    assert len(list(found.out.glob("trials/*/*.safetensors"))) == 2, "weights and checkpoint of the best one"
    assert (found.out / "trials.png").is_file()

    again = scripted(space, trials=10, scheduler="asha", grace_epochs=1, resume=True)
    assert tally(tmp_path) == done, "nothing is left to do, and nothing is done"
    assert again.test_result == found.test_result

    run = pipeline.run(config_files=[found.out / "best.yaml"])
    assert run.test_result == found.test_result, "the file gives the run that was tested"
    assert run.best_valid_result == result["best_valid_result"]


def test_a_trial_that_fails_is_tried_once_more_and_then_told_and_the_search_goes_on(scripted, tmp_path, caplog):
    found = scripted({"fails": {"choice": ["once", "always", "killed"]}}, trials=3, search="optuna")
    by_kind = {one.settings["fails"]: one for one in found.records}
    assert {kind: one.attempts for kind, one in by_kind.items()} == {"once": 2, "always": 2, "killed": 2}
    assert by_kind["once"].status == DONE
    assert by_kind["always"].status == by_kind["killed"].status == FAILED
    assert by_kind["always"].reason == "RuntimeError: this setting cannot be trained 0.001"
    assert by_kind["killed"].reason == "its process died, perhaps out of memory"
    told = [epochs for epochs, _ in by_kind["once"].scores]
    assert told == list(range(1, EPOCHS + 1))
    trained = sum(count for (what, _), count in tally(tmp_path).items() if what == "trained")
    batches = trained / (EPOCHS + 1 + 1)
    assert batches == int(batches), "no epoch is trained twice: the second attempt goes on from the first one's"
    assert found.settings["fails"] == "once"
    markdown = (found.out / "trials.md").read_text()
    assert f"Trial {by_kind['always'].number} failed: RuntimeError" in markdown


def test_a_running_ray_without_room_is_refused(scripted, tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_mm.distributed.cluster.cores", lambda: 64)  # a machine with more than this Ray has
    with pytest.raises(ConfigError, match=r"--cpus_per_trial=32: .* has \d+ CPUs; give at most as many"):
        scripted({"learning_rate": {"choice": [0.1]}}, cpus_per_trial=32)
    assert not list(tmp_path.glob("out/trials/*"))


# ---- the command ----


def command(folder: Path, toy_path: Path, *options: str) -> list[str]:
    (folder / "space.yaml").write_text("learning_rate: {loguniform: [1.0e-3, 1.0e-1]}\n")
    settings = {**TOY_SETTINGS, "epochs": 40, "stopping_step": 100, "state": "INFO", "data_path": "data"}
    (folder / "settings.yaml").write_text(yaml.safe_dump({**settings, "embedding_size": 8}))
    if not (folder / "data").exists():
        (folder / "data").symlink_to(toy_path, target_is_directory=True)
    return [
        *("tune", "--model", "BPR", "--dataset", "toy", "--space", "space.yaml", "--trials", "4", "--jobs", "2"),
        *("--scheduler", "none", "--checkpoint_dir=saved", "--config_files=settings.yaml", *options),
    ]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_search_that_was_killed_goes_on_and_runs_nothing_twice(tmp_path, toy_path, number):
    arguments = [sys.executable, "-m", "recbole_mm.cli", *command(tmp_path, toy_path)]
    out = tmp_path / "saved" / "tune-BPR-toy"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}

    def ready() -> bool:
        records = [json.loads(path.read_text()) for path in out.glob("trials/*/trial.json")]
        return any(one["status"] == DONE for one in records) and any(one["status"] == "running" for one in records)

    process = started(arguments, ready, cwd=tmp_path, env=environment)
    process.send_signal(number)
    _, told = process.communicate(timeout=120)
    if number == signal.SIGINT:
        assert process.returncode == 130, told
        assert "--resume goes on from here" in told
    time.sleep(3)  # Ray's processes notice that theirs is gone
    before = {path.parent.name: path.read_text() for path in out.glob("trials/*/trial.json")}
    finished = {name for name, text in before.items() if json.loads(text)["status"] == DONE}
    started_at = {name: (out / "trials" / name / "run.log").read_text() for name in finished}
    assert finished
    assert not (out / "best").exists()

    again = started([*arguments, "--resume"], lambda: True, cwd=tmp_path, env=environment)
    _, told = again.communicate(timeout=400)
    assert again.returncode == 0, told
    done_before = re.search(r"\((\d+) were done before\)", told)
    assert done_before, told
    assert len(finished) <= int(done_before[1]) < 4, "a trial's own process may have ended its trial after the kill"
    records = {path.parent.name: json.loads(path.read_text()) for path in out.glob("trials/*/trial.json")}
    assert sorted(records) == ["0001", "0002", "0003", "0004"]
    assert {one["status"] for one in records.values()} == {DONE}
    assert all([pair[0] for pair in one["scores"]] == list(range(1, 41)) for one in records.values())
    for name in finished:
        assert (out / "trials" / name / "trial.json").read_text() == before[name]
        assert (out / "trials" / name / "run.log").read_text() == started_at[name]
    assert run_folder.is_finished(out / "best")
    assert re.search(r"Best of 4 trials", (out / "best.yaml").read_text())


def test_the_whole_command_without_a_ray_of_its_own_left(one_ray, tmp_path, toy_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(command(tmp_path, toy_path, "--epochs=2", "--out=found", "--trials=2")) == 0
    told = capsys.readouterr().out
    assert "best of 2 trials: learning_rate=" in told
    assert re.search(r"^toy, test .*\nBPR ", told, re.MULTILINE)
    assert (tmp_path / "found" / "best.yaml").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "found", "settings.yaml", "space.yaml"]
