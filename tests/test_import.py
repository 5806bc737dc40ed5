"""Importing the package without RecBole says which command installs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "recbole" else real(name, package)
import recbole_mm
"""


def test_without_recbole_the_command_that_installs_it_is_named():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    assert done.returncode != 0
    assert "pip install --no-deps recbole==1.2.1" in done.stderr.splitlines()[-1]


def test_nothing_happens_to_the_working_directory(tmp_path):
    root = Path(__file__).parents[1]
    program = f"import sys; sys.path.insert(0, {str(root)!r}); import recbole_mm; recbole_mm.run"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def printed_by(program: str, *arguments: str, **environment: str | None) -> Any:
    """What a new Python prints, as JSON in its last line; a variable that is None is not set."""
    env = {key: value for key, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, "-c", program, *arguments]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=root, env=env, check=True)
    return json.loads(done.stdout.splitlines()[-1])


WAITING = """
import json, os, sys
import recbole_mm.cli
names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
print(json.dumps({**{name: os.environ.get(name) for name in names}, "torch": "torch" in sys.modules}))
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None), ("PASSIVE", "3000")),
        (("ACTIVE", None), ("ACTIVE", None)),
        ((None, "1000"), (None, "1000")),
        (("PASSIVE", "0"), ("PASSIVE", "0")),
    ],
)
def test_threads_sleep_after_a_short_wait_unless_the_user_says_otherwise(given, expected):
    policy, spins = given
    printed = printed_by(WAITING, OMP_WAIT_POLICY=policy, GOMP_SPINCOUNT=spins)
    assert printed == {"OMP_WAIT_POLICY": expected[0], "GOMP_SPINCOUNT": expected[1], "torch": False}


HELP = """
import json, sys
from recbole_mm.cli import main
for arguments in (["--help"], *([command, "--help"] for command in ("run", "plan", "compare", "tune", "prepare"))):
    assert main(arguments) == 0
heavy = {"torch", "numpy", "scipy", "pandas", "recbole", "yaml", "requests", "ray"}
print(json.dumps({"heavy": sorted(heavy & set(sys.modules))}))
"""


def test_help_needs_none_of_the_libraries():
    assert printed_by(HELP) == {"heavy": []}


RUNS = """
import json, sys
import recbole_mm
from recbole_mm.cli import main

def imported():
    packages = {"transformers", "tokenizers", "peft", "accelerate", "ray", "sentence_transformers", "huggingface_hub"}
    rooms = {name for name in sys.modules if name.startswith(("recbole_mm.llm", "recbole_mm.artifacts"))}
    return sorted(packages & set(sys.modules) | rooms)

settings = json.loads(sys.argv[1])
for model in ("Pop", "BPR", "SASRec"):
    recbole_mm.run(model=model, dataset="toy", config_dict={**settings, "epochs": 1})
runs = imported()
assert main(["run", "--model=Molar", "--dataset=nothere", "--data_path=" + settings["data_path"]]) == 2
print(json.dumps({"runs": runs, "missing dataset": imported()}))
"""


def test_models_of_interactions_and_missing_datasets_import_no_llm_code(toy_settings):
    printed = printed_by(RUNS, json.dumps(toy_settings))
    assert printed == {"runs": [], "missing dataset": []}


@pytest.mark.parametrize("order", ["recbole_mm, recbole", "recbole, recbole_mm"])
def test_recbole_finds_its_shims_whichever_is_imported_first(order):
    assert printed_by(f"import {order}, json, numpy; print(json.dumps(numpy.dtype(numpy.float).name))") == "float64"
