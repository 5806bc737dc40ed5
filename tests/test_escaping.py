"""Words of others stay words: in terminals, logs, Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import logging

import pytest

from recbole_mm import cli
from recbole_mm.errors import DataError
from recbole_mm.inputs.reasoning.failures import list_failures
from recbole_mm.utils.escaping import csv_cell, latex, markdown, one_line, printable
from recbole_mm.utils.log import close_logging, init_logging


@pytest.mark.parametrize("text", ["item 7", "Amélie (2001)", "東京物語", "a\tb\nc", "👍🏽", "نجيب", "x = -1"])
def test_ordinary_words_are_left_alone(text):
    assert printable(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x1b[2J\x9b2J", r"\x1b[2J\x9b2J"),
        ("gpj\u202exe.exe\u2066", r"gpj\u202exe.exe\u2066"),
        ("a\u061cb", r"a\u061cb"),
        ("a\x00b\x7f\rc", r"a\x00b\x7f\rc"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_moves_a_terminal_is_written_out(text, shown):
    assert printable(text) == shown


def test_one_line_is_one_line():
    assert one_line("a\r\nb\tc\u2028d\x85e\x0bf") == "a b c d e f"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", r"a\|b"),
        ("a\\|b", r"a\\\|b"),
        ("<script>", "&lt;script>"),
        ("&lt;script>", "&amp;lt;script>"),
        ("![x](http://y)", r"![x]\(http://y)"),
        ("a\n\n# b", "a # b"),
        ("p < 0.05, A&B, **0.1**, [1, 2]", "p < 0.05, A&B, **0.1**, [1, 2]"),
        (r"C:\runs", r"C:\runs"),
    ],
)
def test_markdown(text, shown):
    assert markdown(text) == shown


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "  =1", "\uff1d1", "-x", "+49 30 1"]
)
def test_a_cell_that_a_spreadsheet_would_compute_is_text(text):
    assert csv_cell(text).startswith("'")
    assert "\n" not in csv_cell(text)


@pytest.mark.parametrize("value", [-1, -0.5, "-0.5", "+3", "-1e-05", "-inf", None, "", "a=b", "x-1", "1-2"])
def test_numbers_and_other_cells_are_as_they_were(value):
    assert csv_cell(value) == value


def test_latex_covers_every_special_character():
    assert latex("&%$#_{}") == r"\&\%\$\#\_\{\}"
    assert latex("~^\\") == r"\textasciitilde{}\textasciicircum{}\textbackslash{}"
    assert latex("[0,inf) ± 1 < 2 †") == r"{[}0,inf) $\pm$ 1 $<$ 2 $^\dagger$"
    assert latex('a\n\nb|"') == r"a b\textbar{}\textquotedbl{}"


def test_texts_that_failed_are_listed_as_text(tmp_path):
    list_failures(tmp_path / "x.csv", "texts", {"=cmd|x": "no\nanswer", "7": "-"}, 2)
    rows = list(csv.reader(io.StringIO((tmp_path / "x.csv").read_text())))
    assert rows == [["id", "reason"], ["'=cmd|x", "no answer"], ["7", "'-"]]


def test_logs_and_errors_show_what_data_holds(tmp_path, capsys, monkeypatch):
    init_logging(tmp_path)
    logging.getLogger("recbole_mm.x").warning("item %s: no image", "\x1b[2J\x1b]0;owned\x07\x1b[8mhidden")
    close_logging()
    shown = r"item \x1b[2J\x1b]0;owned\x07\x1b[8mhidden: no image"
    assert shown in capsys.readouterr().err
    assert shown in (tmp_path / "run.log").read_text()

    def fails(arguments):
        raise DataError("toy.inter, line 3: user \x1b[2J7\r\nerror: none")

    monkeypatch.setattr("recbole_mm.cli.run.main", fails)
    assert cli.main(["run"]) == 2
    assert capsys.readouterr().err == "error: toy.inter, line 3: user \\x1b[2J7 error: none\n"
