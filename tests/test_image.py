"""The Dockerfile: its steps, followed as an ordinary user in a folder that holds what they copy and nothing else.

No image is built. A stand-in for Python says what it was called with; what it is to install is looked at afterwards.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[1]
NOBODY = 65534
HOME = "/home/user/recbole_mm"
PYTHON = """#!/bin/sh
echo "$*" >> "{calls}"
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;
*--editable*) cp -r . "{installed}";;
*--model=SASRec*) mkdir -p saved/SASRec && echo saved/SASRec;;
esac
"""


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's steps, those that go on in further lines as one: (COPY, its arguments), ..."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def ignored(path: Path) -> bool:
    """Whether .dockerignore, or git, leaves a path of the source tree out."""
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    names = [path.relative_to(ROOT).as_posix(), *(f"**/{part}" for part in path.relative_to(ROOT).parts)]
    return any(fnmatch.fnmatch(name, pattern) for name in names for pattern in patterns)


def copy(source: str, folder: Path) -> None:
    """What COPY does with a file, a folder or `.`."""

    def leave_out(inside: str, names: list[str]) -> set[str]:
        return {name for name in names if ignored(Path(inside) / name)}

    if (ROOT / source).is_file():
        shutil.copy2(ROOT / source, folder)
    else:
        shutil.copytree(ROOT / source, folder / source, ignore=leave_out, dirs_exist_ok=True)


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder that an ordinary user can reach."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_the_steps_lead_to_make_run_as_an_ordinary_user(place):
    folder, calls = place / "recbole_mm", place / "calls"
    folder.mkdir()
    python = place / "python3"
    python.write_text(PYTHON.format(calls=calls, installed=place / "installed"))
    python.chmod(0o755)
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    environment = {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}", "HOME": str(place)}
    at_root, begun = True, False
    for kind, arguments in steps():
        if kind == "USER":
            assert arguments == "user"
            at_root = False
        elif kind == "WORKDIR":
            assert arguments == HOME
            begun = True
        elif kind == "COPY":
            assert arguments.startswith("--chown=user ")
            assert begun
            for source in arguments.split()[1:-1]:
                copy(source, folder)
            hand_over(place, bool(user))
        elif kind == "RUN" and not at_root:
            subprocess.run(arguments, shell=True, cwd=folder, env=environment, check=True, **user)
        elif kind == "CMD":
            assert arguments == '["make", "run"]'
            done = subprocess.run(["make", "run"], cwd=folder, env=environment, text=True, capture_output=True, **user)
            assert (done.returncode, done.stderr) == (0, "")
    said = calls.read_text()
    assert said.count("--editable") == 1, "the code is copied over what is installed, and nothing is installed again"
    assert "--model=SASRec" in said
    assert said.splitlines()[-1].startswith("run_recbole_mm.py --model=Molar")
    subprocess.run([sys.executable, "setup.py", "--quiet", "egg_info"], cwd=place / "installed", check=True)
    listed = (place / "installed" / "recbole_mm.egg-info" / "SOURCES.txt").read_text()
    assert "recbole_mm/cli/run.py" in listed
    assert "properties/model/Molar.yaml" in listed
    assert (folder / "saved" / "SASRec").is_dir()
    assert not [name for name in (".git", "dist") if (folder / name).exists()]


def hand_over(place: Path, owned: bool) -> None:
    """What `--chown` does."""
    for path in (place, *place.rglob("*")) if owned else ():
        os.chown(path, NOBODY, NOBODY)


def test_root_installs_what_root_must_and_no_more():
    kinds = [kind for kind, _ in steps()]
    (first, *others) = [arguments for kind, arguments in steps() if kind == "RUN"]
    assert f"install --directory --owner=user --group=user {HOME}" in first
    assert not [arguments for arguments in others if "apt-get" in arguments]
    assert kinds.count("USER") == 1
    assert kinds.index("RUN") < kinds.index("USER") < kinds.index("COPY")


def test_what_is_made_stays_out_of_the_image():
    patterns = set((ROOT / ".dockerignore").read_text(encoding="utf-8").split())
    made = {line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()}
    missing = [
        name for name in made if not any(fnmatch.fnmatch(name, pattern.removeprefix("**/")) for pattern in patterns)
    ]
    assert missing == []
    assert {".git", "downloads"} <= patterns
