"""Sections of a page about the results of runs: metrics with intervals, and the same by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recbole_mm.reporting.blocks import Cell, Figure, Grid, Paragraph, Section
from recbole_mm.reporting.figures import Interval, interval_figure
from recbole_mm.reporting.runs import RunFacts, interval, main_metric, numbers
from recbole_mm.utils.tables import SEES_HELD_OUT

SPLITS = {
    "valid_and_test": "The last interaction of each user is held out for the test, the one before it for validation.",
    "valid_only": "The last interaction of each user is held out for validation.",
    "test_only": "The last interaction of each user is held out for the test.",
}
SAME = 1e-4
"""Share by which a mean over users may differ from a metric that is called the same."""

FEW = 30
"""Users of a part below which its value says little."""


def results(runs: Sequence[RunFacts]) -> Section:
    """The runs, their test metrics with intervals, and those of the models beside them."""
    section = Section("Results")
    for run in runs:
        seen = run.result.get("sees_held_out")
        texts = seen if isinstance(seen, list) else [seen] if seen else []
        section.blocks += [Paragraph(f"{run.name} {SEES_HELD_OUT}: {text}", is_warning=True) for text in texts]
    section.blocks += [Paragraph(note, is_warning=True) for run in runs for note in run.notes]
    told = dict.fromkeys(_protocol(run) for run in runs)
    section.blocks += [Paragraph(text) for text in told]
    section.blocks += [_main_figure(runs), _metrics(runs)]
    section.blocks.append(Paragraph(_of_intervals(runs)))
    rows: list[list[Cell]] = []
    for run in runs:
        users = len(run.users) if run.per_user is not None else None
        facts = [str(run.result.get("dataset", "")), run.folder.name, str(run.result.get("seed", ""))]
        rows.append([run.name, *facts, users, _text(run.result.get("chosen_on_validation"))])
    header = ["run", "data", "folder", "seed", "test users", "chosen on validation"]
    section.blocks.append(Grid("Runs", header, rows))
    return section


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _protocol(run: RunFacts) -> str:
    """What is held out and what it is ranked among, in a sentence each."""
    arguments = run.config.get("eval_args")
    split = arguments.get("split") if isinstance(arguments, dict) else None
    kind, given = next(iter(split.items())) if isinstance(split, dict) and split else ("", "")
    known = SPLITS.get(str(given)) if kind == "LS" else None
    parts = [known or f"Split: {kind} {given}."] if kind else []
    if run.sampled:
        parts.append(
            f"Held-out items are ranked among a few sampled items ({run.sampled}), not among all: such metrics are far "
            "above those of a ranking of all items, and are read beside those of Pop."
        )
    elif run.config.get("candidates") == "cold":
        parts.append("Held-out items are ranked among the items that no training has seen.")
    else:
        parts.append("Held-out items are ranked among all items.")
    if run.config.get("mask_history") is False:
        parts.append("Items of a user's history are ranked, too.")
    return " ".join(parts)


def _of_intervals(runs: Sequence[RunFacts]) -> str:
    """What the intervals mean, and where they are of something other than the metric."""
    text = (
        "An interval holds the mean over users with 95% confidence, for this trained model: it tells of other users, "
        "and not of other seeds. Intervals that overlap do not mean that two models are alike: the models have the "
        "same users, so that the paired tests tell more."
    )
    others = [
        metric
        for run in runs
        for metric in run.intervals
        if (values := run.values(metric)) is not None
        and abs(float(values[values == values].mean()) - run.metrics[metric])
        > SAME * max(abs(run.metrics[metric]), SAME)
    ]
    if others:
        text += f" Users have several cases, and count once in an interval: {', '.join(dict.fromkeys(others))}."
    return text


def _beside(runs: Sequence[RunFacts]) -> dict[str, dict[str, float]]:
    """Metrics of other models that runs were printed with, by name; equal ones once."""
    found: dict[str, dict[str, float]] = {}
    own = [run.metrics for run in runs]
    for run in runs:
        beside = run.result.get("beside")
        for name, values in (beside if isinstance(beside, dict) else {}).items():
            said = numbers(values)
            if said and said not in own and said not in found.values():
                found[f"{name}, beside {run.name}"] = said
    return found


def _main_figure(runs: Sequence[RunFacts]) -> Figure:
    metric = main_metric(runs)
    rows = []
    for place, run in enumerate(runs):
        if metric in run.metrics:
            low, high = run.intervals.get(metric, (None, None))
            rows.append(Interval(run.name, run.metrics[metric], low, high, place))
    for name, values in _beside(runs).items():
        if metric in values:
            rows.append(Interval(name, values[metric], series=len(rows)))
    return interval_figure(f"{metric} on the test data, with 95% intervals", metric, rows, has_values=True)


def _metrics(runs: Sequence[RunFacts]) -> Grid:
    beside = _beside(runs)
    names = dict.fromkeys(metric for run in runs for metric in run.metrics)
    rows: list[list[Cell]] = []
    for metric in names:
        cells: list[Cell] = [metric]
        for run in runs:
            cells.append(_with_interval(run.metrics.get(metric), run.intervals.get(metric)))
        rows.append([*cells, *(values.get(metric) for values in beside.values())])
    return Grid("Test metrics, with 95% intervals", ["metric", *(run.name for run in runs), *beside], rows)


def _with_interval(value: float | None, found: tuple[float, float] | None) -> str | None:
    if value is None:
        return None
    return f"{value:.4f}" + ("" if found is None else f" [{found[0]:.4f}, {found[1]:.4f}]")


# ---- slices ----


def slices(runs: Sequence[RunFacts]) -> Section:
    """Metrics of parts of the test targets."""
    section = Section("Slices")
    metric = main_metric(runs)
    found = {run.name: _slices_of(run) for run in runs}
    kinds = dict.fromkeys(kind for kinds in found.values() for kind in kinds)
    if kinds:
        section.blocks.append(
            Paragraph(
                f"The same metric for parts of the held-out items. Parts of fewer than {FEW} users say little: their "
                "intervals are wide."
            )
        )
    for kind in kinds:
        parts = dict.fromkeys(part for kinds in found.values() for part in kinds.get(kind, {}))
        rows, cells, names = [], [], list(dict.fromkeys(name for run in runs for name in run.metrics))
        for part in parts:
            for place, run in enumerate(runs):
                values = found[run.name].get(kind, {}).get(part)
                if values is None:
                    continue
                counts = [int(values.get(name, 0)) for name in ("users", "targets")]
                if metric in values:
                    low, high = _interval_of(run, metric, kind, part)
                    label, group = run.name, f"{part} ({counts[0]:,} users)"
                    label, group = (label, group) if len(runs) > 1 else (group, "")
                    rows.append(Interval(label, values[metric], low, high, place, group=group))
                cells.append([part, run.name, *counts, *(values.get(name) for name in names)])
        if len(parts) == 1:
            words = WORDS.get(kind, kind)
            section.blocks.append(Paragraph(f"By {words}: all held-out items are in one part, {next(iter(parts))}."))
        elif rows:
            title = f"{metric} by {WORDS.get(kind, kind)}, with 95% intervals"
            section.blocks.append(interval_figure(title, metric, rows, has_values=True))
        header = [kind, "run", "users", "held-out items", *names]
        section.blocks.append(Grid(f"Test metrics by {kind}", header, cells, is_folded=True))
    return section


WORDS = {
    "popularity": "training interactions of the held-out item",
    "history": "length of the user's history",
    "image": "whether the held-out item has an image",
    "text": "whether the held-out item has a text",
}
"""Kinds of slices in words; a column's name is its own."""


def _interval_of(run: RunFacts, metric: str, kind: str, part: str) -> tuple[float | None, float | None]:
    values = run.by_part(metric).get(kind, {}).get(part)
    return (values is not None and interval(values[1])) or (None, None)


def _slices_of(run: RunFacts) -> dict[str, dict[str, dict[str, float]]]:
    given = run.result.get("slices")
    kinds: Mapping[Any, Any] = given if isinstance(given, dict) else {}
    return {
        str(kind): {str(part): numbers(values) for part, values in parts.items()}
        for kind, parts in kinds.items()
        if isinstance(parts, dict)
    }
