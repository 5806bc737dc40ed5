"""The command refuses in one line what cannot be served; the page is text of its own and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import socket
from functools import partial

import pytest

from recbole_mm.cli import main
from recbole_mm.cli.serve import KEY_ENV
from recbole_mm.errors import CheckpointError
from recbole_mm.serving.app import read_page
from recbole_mm.serving.served import opened_at
from recbole_mm.serving.server import listen
from recbole_mm.serving.service import Service


def test_a_port_in_use_is_one_line(runs, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", str(runs["first"]), "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --host=127.0.0.1 --port={port}: it is in use")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", "0.0.0.0", "--port", "0"], f"{KEY_ENV} holds no key"),
        (["--host", "no.such.host.invalid", "--port", "0"], KEY_ENV),
        (["--port", "0", "--no_such=1"], "no_such"),
    ],
)
def test_what_cannot_be_served_is_one_line(runs, capsys, monkeypatch, arguments, says):
    monkeypatch.delenv(KEY_ENV, raising=False)
    assert main(["serve", str(runs["first"]), *arguments]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_run_that_is_not_there_is_one_line(runs, tmp_path, capsys):
    assert main(["serve", str(tmp_path / "no-run"), "--port", "0"]) == 2
    assert "no such folder" in capsys.readouterr().err
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs["first"], unfinished)
    (unfinished / "result.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        Service(unfinished, partial(opened_at, changed={}))


@pytest.mark.parametrize(
    ("instead", "arguments", "says"),
    [
        ("model: Unheard", [], "its model 'Unheard' cannot be loaded here"),
        ("model: SASRec\nsplit_rule: 0", [], "by the rule of an earlier version"),
        ("model: SASRec", ["--data_path=no-such-folder"], "does not exist"),
    ],
)
def test_runs_of_elsewhere_are_one_line(runs, tmp_path, capsys, instead, arguments, says):
    """A model that is not installed, an earlier version, data that were moved."""
    run = shutil.copytree(runs["first"], tmp_path / "run")
    lines = (run / "config.yaml").read_text(encoding="utf-8").splitlines()
    lines = [instead if line == "model: SASRec" else line for line in lines if "crc32" not in line]
    (run / "config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert main(["serve", str(run), "--port", "0", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error


@pytest.mark.parametrize("option", ["--port=70000", "--port=x", "--batch=0", "--timeout=nan", "--waiting=-1"])
def test_numbers_of_options_have_bounds(runs, capsys, option):
    assert main(["serve", str(runs["first"]), option]) == 2
    assert "is not from" in capsys.readouterr().err


def test_the_body_of_an_answer_does_not_wait_for_the_head_to_be_acknowledged():
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        connection, _ = listening.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_page_runs_its_own_script_alone(client):
    answer = client.get("/")
    page, policy = read_page()
    assert answer.text == page
    assert answer.headers["content-security-policy"] == policy
    assert "default-src 'none'" in policy
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert script is not None
    assert base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() in policy
    assert page.count("<script") == page.count("<style") == 1


def test_the_page_puts_nothing_in_as_markup_and_needs_no_other_host():
    page, _ = read_page()
    for risky in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "localStorage",
    ):
        assert risky not in page
    assert not re.search(r"https?://|\ssrc=|\son\w+=\"|\sstyle=", page)


def test_every_field_of_the_page_has_a_label():
    page, _ = read_page()
    fields = re.findall(r"<input ([^>]*)>", page)
    labelled = set(re.findall(r'<label for="([\w-]+)"', page))
    for field in fields:
        name = re.search(r'id="([\w-]+)"', field)
        assert ('type="radio"' in field and "<label" in page) if name is None else name[1] in labelled
    assert '<html lang="en">' in page
    assert 'role="status"' in page
    used = set(re.findall(r'at\("([\w-]+)"\)', page))
    assert used <= set(re.findall(r'id="([\w-]+)"', page))
