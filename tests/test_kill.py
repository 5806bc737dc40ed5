"""A run killed with SIGKILL while it builds data, encodes items or trains, resumed, ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TOY_SETTINGS, write_toy
from tests.processes import started

SETTINGS = {**TOY_SETTINGS, "epochs": 6, "train_batch_size": 32, "state": "INFO", "topk": [5, 10]}

PROGRAM = """
import json, sys
import recbole_mm
settings = json.loads(sys.argv[1])
slow = settings.pop("slow", None)
if slow:
    # A pause at the place of the kill, so that it surely falls there.
    import time, importlib
    module, _, name = slow.rpartition(".")
    owner = importlib.import_module(module.split(":")[0])
    if ":" in module:
        owner = getattr(owner, module.split(":")[1])
    original, calls = getattr(owner, name), [0]
    def paused(*args, **kwargs):
        calls[0] += 1
        result = original(*args, **kwargs)
        if calls[0] >= settings.get("pause_at_call", 1):
            print("PAUSED", flush=True)
            time.sleep(60)
        return result
    setattr(owner, name, paused)
settings.pop("pause_at_call", None)
recbole_mm.run("Molar", "toy", config_dict=settings)
print("ENDED", flush=True)
"""


def start(settings: dict) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[1],
    )


def finish(settings: dict) -> dict:
    process = start(settings)
    output, _ = process.communicate(timeout=300)
    assert "ENDED" in output
    return newest_result(settings)


def newest_result(settings: dict) -> dict:
    results = sorted(Path(settings["checkpoint_dir"]).glob("*/result.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(results[-1].read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_toy(tmp_path_factory.mktemp("kill"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> dict:
    saved = tmp_path_factory.mktemp("uninterrupted")
    return finish({**SETTINGS, "data_path": str(data), "checkpoint_dir": str(saved)})


@pytest.mark.parametrize(
    ("slow", "call"),
    [
        ("recbole_mm.data.sharing.create_dataset", 1),
        ("recbole_mm.llm.encode:ItemEncoder.compute", 1),
        ("recbole_mm.training.trainer:TrainerMixin._train_once", 1),
        ("recbole_mm.training.trainer:TrainerMixin._train_once", 4),
        ("recbole_mm.evaluation.ranking:RankingData.rank", 7),
    ],
    ids=["data", "encoding", "first epoch", "later epoch", "test"],
)
def test_killed_and_resumed_run_ends_with_the_same_metrics(data, uninterrupted, tmp_path, slow, call):
    settings = {**SETTINGS, "data_path": str(data), "checkpoint_dir": str(tmp_path)}
    process = start({**settings, "slow": slow, "pause_at_call": call})
    assert process.stdout.readline() == "PAUSED\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    process.stdout.close()
    result = finish({**settings, "resume": True})
    assert result["test_result"] == uninterrupted["test_result"]
    assert result["best_valid_result"] == uninterrupted["best_valid_result"]
    assert len(list(tmp_path.glob("Molar-*"))) == 1, "the killed run's own folder was taken up"


def test_ctrl_c_says_how_to_go_on_and_leaves_a_resumable_run(data, tmp_path):
    arguments = {
        **SETTINGS,
        "data_path": str(data),
        "checkpoint_dir": str(tmp_path),
        "epochs": 500,
        "stopping_step": 500,
    }
    given = [f"--{key}={json.dumps(value)}" for key, value in arguments.items()]
    command = [sys.executable, "run_recbole_mm.py", "--model=Molar", "--dataset=toy", *given]
    process = started(command, lambda: list(tmp_path.glob("*/checkpoint.safetensors")), cwd=Path(__file__).parents[1])
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in errors
    assert "Traceback" not in errors
