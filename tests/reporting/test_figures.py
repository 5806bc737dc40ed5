"""Figures show where values lie, and escape what they draw."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

from recbole_mm.reporting.blocks import Grid, Paragraph, Section
from recbole_mm.reporting.breadth import gini
from recbole_mm.reporting.differences import win_tie_loss
from recbole_mm.reporting.figures import Interval, Shares, bar_figure, interval_figure, line_figure, share_figure
from recbole_mm.reporting.page import to_html
from recbole_mm.reporting.runs import numbers
from recbole_mm.reporting.scales import ticks
from tests.reporting.pages import MARKUP, Page, check_page


def test_figures_escape_what_they_draw():
    points = {MARKUP: [(1.0, 0.5), (2.0, 0.25)]}
    figures = [
        line_figure(MARKUP, MARKUP, MARKUP, points),
        line_figure(
            MARKUP, MARKUP, MARKUP, points, log_x=True, from_zero=True, dotted={MARKUP}, rings={MARKUP: (1, 1)}
        ),
        interval_figure(MARKUP, MARKUP, [Interval(MARKUP, 0.5, 0.25, 0.75, group=MARKUP)], has_zero=True),
        bar_figure(MARKUP, MARKUP, [Interval(MARKUP, 2.0, group=MARKUP)]),
        share_figure(MARKUP, [MARKUP, MARKUP], [Shares(MARKUP, [1, 3], MARKUP)]),
    ]
    grid = Grid(MARKUP, [MARKUP], [[MARKUP]])
    page = Page(to_html(MARKUP, [Section(MARKUP, [Paragraph(MARKUP, is_warning=True), *figures, grid])]))
    check_page(page)
    assert len(page.places("svg")) == 5


# ---- figures ----


@pytest.mark.parametrize(
    ("low", "high"), [(0.013, 0.058), (0.0, 0.0), (5.0, 5.0), (-0.02, 0.001), (0.0, 1e6), (1e-9, 2e-9), (-3.0, -1.0)]
)
def test_ticks_hold_all_values(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))


def test_marks_lie_where_their_values_are():
    svg = interval_figure("x", "y", [Interval("a", 0.0), Interval("b", 0.5), Interval("c", 1.0)]).svg
    x = [float(found) for found in re.findall(r'cx="([\d.]+)"', svg)]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert x[0] < x[1]
    widths = re.findall(
        r'class="bar v\d" x="[\d.]+" y="[\d.]+" width="([\d.]+)"',
        share_figure("x", ["a", "b"], [Shares("r", [1, 3])]).svg,
    )
    assert float(widths[1]) == pytest.approx(3 * float(widths[0]), abs=0.2)


def test_values_that_are_no_numbers_are_left_out():
    assert numbers({"a": 1, "b": True, "c": float("nan"), "d": "1", 5: 2.0}) == {"a": 1.0, "5": 2.0}
    assert numbers([1]) == numbers(None) == {}
    figure = line_figure("x", "y", "z", {"a": [(1.0, float("nan")), (2.0, 3.0)]})
    assert figure.grid.rows == [["a", "2", 3.0]]


def test_rows_of_a_group_stand_below_its_name():
    rows = [Interval("a", 1.0, group="A"), Interval("b", 2.0, group="A"), Interval("c", 3.0, group="B")]
    figure = interval_figure("x", "y", rows)
    texts = re.findall(r'y="([\d.]+)" text-anchor="\w+">([ABabc])<', str(figure.svg))
    assert [name for _, name in sorted(texts, key=lambda found: float(found[0]))] == ["A", "a", "b", "B", "c"]
    assert [row[:2] for row in figure.grid.rows] == [["A", "a"], ["A", "b"], ["B", "c"]]


def test_small_sums():
    def of(**values: float):
        return np.array(list(values)), np.array(list(values.values()))

    assert win_tie_loss(of(a=1.0), of(b=1.0), "ndcg@10") is None
    assert win_tie_loss(of(a=1.0), None, "ndcg@10") is None
    assert win_tie_loss(of(a=1.0, b=2.0), of(a=3.0, b=2.0), "averagepopularity@10") == [1, 1, 0]
    assert win_tie_loss(of(a=1.0, b=math.nan), of(a=0.5, b=1.0), "gauc") == [1, 0, 0]
    assert gini(np.zeros(3)) == 0.0
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
