"""Importing the package without RecBole says which command installs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
