"""Every example in a docstring of the package gives what it says.

One test for each module with an example: it is imported when it is asked, not when tests are collected. The examples
find an empty folder under the name `tmp_path`.
"""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import recbole_mm

ROOT = Path(recbole_mm.__file__).parent
MODULES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_are_true(module, tmp_path, monkeypatch):
    (here := tmp_path / "here").mkdir()
    monkeypatch.chdir(here)
    folder = {"tmp_path": tmp_path / "files"}
    folder["tmp_path"].mkdir()
    found = doctest.testmod(importlib.import_module(module), extraglobs=folder)
    assert found.failed == 0, f"{found.failed} of {found.attempted} examples of {module}; see the captured output"
    assert not list(here.iterdir()), "an example leaves files in the working directory"
