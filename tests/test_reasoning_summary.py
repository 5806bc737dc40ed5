"""Profiles by the template: which columns tell of taste, and what is said of a history."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_mm.data.content import ItemContent
from recbole_mm.data.content_source import ContentSource
from recbole_mm.data.item_table import ItemTable
from recbole_mm.data.item_text import TextLayout
from recbole_mm.inputs.reasoning.summary import HistorySummary

HEAD = "item_id:token\tname:token_seq\tgenre:token_seq\tactors:token_seq\tcode:token\tprice:float\tplot:token_seq"
GENRES = ("Drama", "Crime", "Comedy", "Drama Crime", "Comedy Drama", "Crime Comedy", "Drama Crime Comedy")
LONG = "A long story about somebody who goes somewhere and comes back as somebody else, number"


def content_of(folder: Path, rows: list[str], head: str = HEAD, fields=None, **options) -> ItemContent:
    path = folder / "d.item"
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    table = ItemTable.read(path)
    source = ContentSource(table, TextLayout(fields or list(table.kinds)), None, **options)
    return ItemContent(source, ["[PAD]", *(row.split("\t")[0] for row in rows)])


def films(folder: Path, count: int = 42, **options) -> ItemContent:
    rows = [f"m{i}\tFilm {i}\t{GENRES[i % 7]}\tAnn Lee, Star {i % 5}\tx{i}\t{i}.5\t{LONG} {i}." for i in range(count)]
    return content_of(folder, rows, **options)


def test_only_columns_of_returning_short_values_tell_of_taste(tmp_path):
    attributes = HistorySummary(films(tmp_path), 100).attributes
    assert attributes.columns == ["genre", "actors"]
    assert attributes.of(4) == {"genre": ["Drama", "Crime"], "actors": ["Ann Lee", "Star 3"]}


def test_a_name_is_not_taken_apart(tmp_path):
    rows = [f"m{i}\tFilm {i}\tPerson Nr{i % 9} Of{i % 3}" for i in range(30)]
    content = content_of(tmp_path, rows, "item_id:token\ttitle:token_seq\tdirector:token_seq")
    assert HistorySummary(content, 100).attributes.of(1) == {"director": ["Person Nr0 Of0"]}


def test_frequent_recent_and_rare_values_come_first(tmp_path):
    summary = HistorySummary(films(tmp_path), 100)
    liked = summary._liked([1, 8, 2])  # Drama, Drama, Crime; Star 0, Star 2, Star 1; Ann Lee everywhere
    assert liked["genre"] == ["Drama", "Crime"]
    assert liked["actors"][0] == "Ann Lee"
    assert summary._liked([1, 2])["genre"] == ["Crime", "Drama"], "of two alike, the later one"
    assert summary._liked([36, 2])["actors"][1:] == ["Star 1", "Star 0"]
    few = HistorySummary(films(tmp_path, 42), 100)
    few.attributes.rarity["actors"]["Ann Lee"] = 0.0
    assert few._liked([1, 8, 2])["actors"][-1] == "Ann Lee", "what every item has says nothing"


def test_a_history_is_told_in_prose(tmp_path):
    told = HistorySummary(films(tmp_path), 100).of([1, 8, 2])
    assert told == (
        "Likes genre Drama, Crime; actors Ann Lee, Star 1, Star 2. "
        "Chose lately: Film 1 (Crime, Ann Lee); Film 7 (Drama, Ann Lee); Film 0 (Drama, Ann Lee)."
    )


@pytest.mark.parametrize("words", [100, 30, 20, 12, 5, 2])
def test_a_summary_keeps_within_its_words(tmp_path, words):
    content = films(tmp_path)
    told = HistorySummary(content, words).of(list(range(1, 43)))
    assert told is not None
    assert told.startswith("Likes genre"[: len(told)])
    assert len(told.split()) <= words


def test_titles_alone_make_a_profile_and_are_told_once(tmp_path):
    content = content_of(tmp_path, ["a\tRed shoe", "b\tBlue hat", "c\tRed shoe"], "item_id:token\ttitle:token_seq")
    assert HistorySummary(content, 50).of([1, 2, 3]) == "Chose lately: Red shoe; Blue hat."


def test_values_that_say_nothing_are_left_out(tmp_path):
    rows = [f"i{i}\tThing {i}\t{('Unknown', 'red')[i % 2]}" for i in range(8)]
    content = content_of(tmp_path, rows, "item_id:token\ttitle:token_seq\tcolour:token")
    assert HistorySummary(content, 50).of([1]) == "Chose lately: Thing 0."
    assert HistorySummary(content, 50).of([2]) == "Likes colour red. Chose lately: Thing 1 (red)."


@pytest.mark.parametrize(
    ("rows", "options"), [(["a\t", "b\t"], {}), (["a\tRed shoe", "b\tBlue hat"], {"modalities": ["image"]})]
)
def test_of_items_without_words_nothing_is_said(tmp_path, rows, options):
    content = content_of(tmp_path, rows, "item_id:token\ttitle:token_seq", **options)
    assert HistorySummary(content, 50).of([1, 2]) is None
