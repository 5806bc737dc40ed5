"""Log lines: once, to the console and to the run's file, colors on terminals only."""

from __future__ import annotations

import io
import logging

import pytest

from recbole_mm.errors import ConfigError, DiskError
from recbole_mm.utils.log import close_logging, init_logging
from recbole_mm.utils.progress import progress


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_line_reaches_console_and_file_once(tmp_path, capsys):
    init_logging(tmp_path, "INFO")
    init_logging(tmp_path, "INFO")
    logging.getLogger("recbole_mm.data").info("%d items", 3)
    assert capsys.readouterr().err.count("3 items") == 1
    assert (tmp_path / "run.log").read_text(encoding="utf-8").count("3 items") == 1


def test_the_log_moves_to_the_next_run_and_a_resumed_one_is_continued(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    logger = logging.getLogger("recbole_mm")
    for folder, text in (("a", "first"), ("b", "second"), ("a", "third")):
        init_logging(tmp_path / folder)
        logger.info(text)
    close_logging()
    logger.info("after the end")
    words = {name: (tmp_path / name / "run.log").read_text(encoding="utf-8") for name in "ab"}
    assert [line.split()[-1] for line in words["a"].splitlines()] == ["first", "third"]
    assert [line.split()[-1] for line in words["b"].splitlines()] == ["second"]


@pytest.mark.parametrize(
    ("level", "seen"), [("warning", False), ("INFO", True), (logging.DEBUG, True), (None, True), ("error", False)]
)
def test_the_level_decides(tmp_path, capsys, level, seen):
    init_logging(tmp_path, level)
    logging.getLogger("recbole_mm").info("a detail")
    assert ("a detail" in capsys.readouterr().err) is seen
    assert ("a detail" in (tmp_path / "run.log").read_text(encoding="utf-8")) is seen


def test_recbole_is_heard_and_other_packages_only_when_they_warn(capsys):
    init_logging(None, "INFO")
    logging.getLogger().info("RecBole speaks through the root logger")
    logging.getLogger("httpx").info("GET https://example.org")
    logging.getLogger("urllib3").warning("a real warning")
    text = capsys.readouterr().err
    assert "root logger" in text
    assert "GET" not in text
    assert "a real warning" in text


def test_colors_only_on_a_terminal_and_never_in_the_file(tmp_path, monkeypatch):
    text = "\x1b[1;35mepoch 0 training\x1b[0m done"
    for stream, environment, colored in ((Terminal(), "", True), (Terminal(), "1", False), (io.StringIO(), "", False)):
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setenv("NO_COLOR", environment)
        init_logging(tmp_path)
        logging.getLogger().info(text)
        assert ("\x1b" in stream.getvalue()) is colored
    assert "\x1b" not in (tmp_path / "run.log").read_text(encoding="utf-8")


def test_a_warning_has_its_color_and_arguments_survive(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.delenv("NO_COLOR", raising=False)
    init_logging(None)
    logging.getLogger("recbole_mm").warning("%d images are missing", 4)
    assert "\x1b[33m" in stream.getvalue()
    assert "4 images are missing" in stream.getvalue()


def test_a_line_does_not_land_inside_a_progress_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    init_logging(None)
    for step in progress(range(3), "Encoding"):
        logging.getLogger("recbole_mm").info("step %d", step)
    lines = [line.split("\r")[-1] for line in stream.getvalue().split("\n")]
    assert any(line.endswith("step 1") and "Encoding" not in line for line in lines)


def test_an_unknown_level_and_a_missing_folder_are_named(tmp_path):
    with pytest.raises(ConfigError, match="loud"):
        init_logging(tmp_path, "loud")
    with pytest.raises(DiskError, match=r"run\.log"):
        init_logging(tmp_path / "none")
