"""Progress: every element passes through once, a terminal gets a bar, anything else a line every ten seconds."""

from __future__ import annotations

import io
import logging

import pytest

from recbole_mm.utils import progress as module
from recbole_mm.utils.progress import duration, progress


class Terminal(io.StringIO):
    """A text stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Clock:
    """Time that a test moves itself, and standard error that is no terminal (`capsys`), whatever pytest runs in."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.mark.parametrize("show", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_every_element_passes_through_in_order(monkeypatch, show, terminal):
    monkeypatch.setattr("sys.stderr", Terminal() if terminal else io.StringIO())
    assert list(progress(iter("abcde"), "Reading", show=show)) == list("abcde")


def test_a_terminal_gets_a_bar_with_the_total_and_the_note(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    steps = progress([1, 2, 3], "Encoding", unit="item")
    for step in steps:
        steps.note(f"loss {step}")
        steps._bar.refresh()  # a loop as short as this is over before tqdm draws again
    assert "Encoding" in stream.getvalue()
    assert "2/3" in stream.getvalue()
    assert "loss 3" in stream.getvalue()


def test_leaving_the_loop_early_closes_the_bar(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    steps = progress(range(10), "Encoding")
    for step in steps:
        if step == 4:
            break
    assert steps._bar is None
    assert stream.getvalue().split("\r")[-2].strip() == "", "the line is cleared"


def test_without_a_terminal_a_line_every_ten_seconds(clock, caplog):
    caplog.set_level(logging.INFO, logger="recbole_mm")
    for _ in progress(range(100), "Encoding", unit="item"):
        clock.now += 1.0
    lines = [record.getMessage() for record in caplog.records]
    # The first report comes with the tenth element, then every ten; the last line closes the account.
    assert len(lines) == 11
    assert lines[0] == "Encoding: 10/100 item (10%), 1.0 item/s, 1m30s left"
    assert lines[-1] == "Encoding: 100/100 item (100%), 1.0 item/s, ended after 1m40s"


def test_a_short_loop_logs_nothing(clock, caplog):
    caplog.set_level(logging.INFO, logger="recbole_mm")
    for _ in progress(range(9), "Encoding"):
        clock.now += 1.0
    assert caplog.records == []


def test_an_unknown_total_is_not_invented(clock, caplog):
    caplog.set_level(logging.INFO, logger="recbole_mm")
    steps = progress(iter(range(20)), "Reading")
    for _ in steps:
        clock.now += 1.0
        steps.note("2 failed")
    assert caplog.records[0].getMessage() == "Reading: 10 it, 1.0 it/s, 2 failed"


def test_hidden_progress_logs_nothing(clock, caplog):
    caplog.set_level(logging.INFO, logger="recbole_mm")
    for _ in progress(range(50), "Encoding", show=False):
        clock.now += 1.0
    assert caplog.records == []


def test_the_wrapped_iterable_is_iterated_only_once():
    def numbers():
        yield 1
        pytest.fail("asked for a second element")

    assert next(iter(progress(numbers(), "Reading"))) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (8.34, "8.3s"), (42.4, "42s"), (59.7, "1m00s"), (125, "2m05s"), (11405, "3h10m")],
)
def test_durations_read_as_people_write_them(seconds, text):
    assert duration(seconds) == text
