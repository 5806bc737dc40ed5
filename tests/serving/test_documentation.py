"""The page about serving is followed: its commands are one shell script, with a free port in place of 8000."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs_commands import Place, blocks, commands, place  # noqa: F401  (a fixture)

ROOT = Path(__file__).parents[2]
SCRIPT = """set -eu
pid=
stop() {{ [ -z "$pid" ] || {{ kill "$pid"; wait "$pid"; pid=; }}; }}
trap stop EXIT
serve() {{
    stop
    {python} -m recbole_mm.cli serve "$@" --port={port} >> served.txt & pid=$!
    until curl -fs http://127.0.0.1:{port}/health > health.txt; do kill -0 "$pid"; sleep 0.2; done
}}
{commands}
"""


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, ("bash", "curl", "openssl"))), reason="bash, curl or openssl is missing")
@pytest.mark.parametrize("page", ["serve"])
def test_the_page_can_be_followed(page: str, place: Place) -> None:  # noqa: F811
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lines = [command for language, block in blocks(page) if language == "bash" for command in commands(block)]
    assert lines.pop(0).startswith("pip install")
    text = place.with_runs("\n".join(lines))
    for there, here in {
        "127.0.0.1:8000": f"127.0.0.1:{port}",
        "shop.example:8000": f"127.0.0.1:{port}",
        "--host 0.0.0.0": "--host 127.0.0.1",
        "recbole-mm serve": "serve",
        "curl ": "curl -fsS ",
    }.items():
        assert there in text
        text = text.replace(there, here)
    script = SCRIPT.format(python=shlex.quote(sys.executable), port=port, commands=text)
    environment = {name: value for name, value in os.environ.items() if name != "RECBOLE_MM_DATA"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (done.stdout, done.stderr)
    listed, served = done.stdout, Path("served.txt").read_text(encoding="utf-8")
    assert listed.count('"score"') == 10
    assert served.count("serving Molar-shop-") == 1
    assert served.count("ended\n") == 3
