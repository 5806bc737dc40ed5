"""The results of a search: every trial as Markdown and CSV, and all of them as lines over parallel axes in a PNG.

Of the picture, an axis is a setting or the score, and a line is a trial, from dark blue (worst) to yellow (best); the
better ones are drawn last. Logarithmic ranges have logarithmic axes, choices stand apart equally.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_mm.experiments.compare.table import markdown_grid
from recbole_mm.experiments.tune.plan import Search
from recbole_mm.experiments.tune.records import Record, best_of
from recbole_mm.experiments.tune.space import Range, Space, format_value
from recbole_mm.experiments.tune.triangle import write_triangle
from recbole_mm.utils.escaping import csv_cell, markdown
from recbole_mm.utils.files import atomic_write, write_text
from recbole_mm.utils.progress import duration

AXIS = "#888888"
MOST_TICKS = 6
LONGEST = 18
TRIANGLE = 3
"""Parts of a mixture that is drawn as a triangle."""

MARKDOWN, CSV, PICTURE = "trials.md", "trials.csv", "trials.png"
CSV_COLUMNS = ("trial", "metric", "score", "best_epoch", "epochs", "seconds", "status", "attempts", "reason")


def write_tables(search: Search, records: Sequence[Record]) -> None:
    """Write `trials.md`, `trials.csv` and, where a trial has a score, `trials.png`, and for each mixture of three parts
    a triangle, `<setting>.svg`, into the search's folder."""
    write_text(search.out / MARKDOWN, to_markdown(search, records))
    write_text(search.out / CSV, to_csv(search, records))
    scored = [(record, found[1]) for record in records if (found := record.best(search.bigger)) is not None]
    if scored:
        title = f"{search.config['model']} on {search.config['dataset']}: {len(scored)} trials"
        points = [(record.point, score) for record, score in scored]
        with atomic_write(search.out / PICTURE) as draft:
            parallel_coordinates(draft, title, search.space, points, search.metric, search.bigger)
        for key, range_ in search.space.ranges.items():
            if len(range_.names) == TRIANGLE:
                mixtures = [(record.settings[key], score) for record, score in scored]
                path = search.out / f"{key}.svg"
                write_triangle(path, f"{title}, by {key}", mixtures, search.metric, search.bigger)


def to_markdown(search: Search, records: Sequence[Record]) -> str:
    """Trials from the best to the worst, those without a score last; the notes name what failed."""
    best = best_of(records, search.bigger)
    keys = list(search.space.ranges)
    header = ["trial", search.metric, "at epoch", "epochs", "time", "status", *keys]
    rows = []
    for record in _ranked(search, records):
        found = record.best(search.bigger)
        score = "" if found is None else f"{found[1]:.4f}"
        numbers = ["" if found is None else str(found[0]), str(record.epochs), duration(record.seconds), record.status]
        values = [format_value(record.settings[key]) for key in keys]
        rows.append([str(record.number), f"**{score}**" if record is best else score, *numbers, *values])
    config = search.config
    parts = [
        f"# {markdown(config['model'])} on {markdown(config['dataset'])}: {len(records)} trials",
        markdown_grid(header, rows),
        "\n".join(f"- {markdown(note)}" for note in _notes(search, records)),
    ]
    return "\n\n".join(parts) + "\n"


def _notes(search: Search, records: Sequence[Record]) -> list[str]:
    config = search.config
    found = [
        f"Score: validation {search.metric}, the best of a trial's epochs; seed {search.seed}. No trial was tested.",
        f"Draws: {search.search}, from {search.space.where}. Epochs: at most {config['epochs']}."
        if "epochs" not in search.space.ranges
        else f"Draws: {search.search}, from {search.space.where}.",
    ]
    if search.scheduler == "asha":
        found.append(f"Stopped early: by ASHA, which compares trials of at least {search.grace_epochs} epochs.")
    return found + [f"Trial {record.number} failed: {record.reason}" for record in records if record.reason]


def to_csv(search: Search, records: Sequence[Record]) -> str:
    """One line per trial, in the order of their numbers, numbers in full."""
    text = io.StringIO()
    keys = list(search.space.ranges)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*CSV_COLUMNS, *map(csv_cell, keys)])
    for record in records:
        best = record.best(search.bigger)
        at, score = (None, None) if best is None else best
        numbers = [record.epochs, record.seconds, record.status, record.attempts, record.reason]
        values = [_cell(record.settings[key]) for key in keys]
        writer.writerow(map(csv_cell, [record.number, search.metric, score, at, *numbers, *values]))
    return text.getvalue()


def _cell(value: object) -> object:
    return format_value(value) if isinstance(value, (list, dict, bool)) or value is None else value


def _ranked(search: Search, records: Sequence[Record]) -> list[Record]:
    scored = {record.number: found[1] for record in records if (found := record.best(search.bigger)) is not None}
    sign = -1 if search.bigger else 1
    return sorted(records, key=lambda r: (r.number not in scored, sign * scored.get(r.number, 0.0), r.number))


# ---- the picture ----


def parallel_coordinates(
    path: Path,
    title: str,
    space: Space,
    trials: Sequence[tuple[Mapping[str, float | int], float]],
    metric: str,
    bigger: bool,
) -> None:
    """Draw trials and write the picture.

    Args:
        path: PNG file to write.
        title: text above.
        space: an axis for each of its settings.
        trials: point and score of each; at least one.
        metric: name of the scores.
        bigger: whether a larger score is better.
    """
    from matplotlib import colormaps  # half a second, which a search without a picture to draw does without
    from matplotlib.figure import Figure

    names = [*space.ranges, metric]
    figure = Figure(figsize=(max(6, 1.8 * len(names)), 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlim=(-0.6, len(names) - 0.8), ylim=(-0.03, 1.03), frame_on=False)
    axes.set_title(title, loc="left", pad=14)
    scores = [score for _, score in trials]
    low, high = min(scores), max(scores)
    for point, score in sorted(trials, key=lambda trial: trial[1] if bigger else -trial[1]):
        rank = _share(score, low, high)
        shares = [*(_place(range_, point[key]) for key, range_ in space.ranges.items()), rank]
        axes.plot(shares, color=colormaps["viridis"](rank if bigger else 1 - rank), linewidth=1.8)
    background = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for column, name in enumerate(names):
        axes.plot([column, column], [0, 1], color=AXIS, linewidth=1)
        for share, words in _ticks(space.ranges[name]) if name in space.ranges else _score_ticks(low, high):
            axes.plot(column, share, marker="_", color=AXIS)
            left: dict[str, Any] = {"xytext": (-6, 0), "textcoords": "offset points", "ha": "right", "va": "center"}
            axes.annotate(_short(words), (column, share), fontsize="small", bbox=background, zorder=3, **left)
    axes.set_xticks(range(len(names)), [_short(name) for name in names])
    axes.tick_params(top=False, bottom=False, labeltop=True, labelbottom=False)
    axes.set_yticks([])
    figure.savefig(path)


def _place(range_: Range, drawn: float | int) -> float:
    """Where on its axis a drawn value stands, from 0 to 1."""
    if range_.kind == "choice":
        return _share(drawn, 0, len(range_.values) - 1)
    low, high = range_.values
    if range_.kind == "loguniform":
        return _share(math.log(drawn), math.log(low), math.log(high))
    return _share(drawn, low, high)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _ticks(range_: Range) -> list[tuple[float, str]]:
    """Places of an axis that have a text: each choice, or values from end to end."""
    if range_.kind == "choice":
        every = -(-len(range_.values) // MOST_TICKS)
        return [(_place(range_, k), format_value(value)) for k, value in enumerate(range_.values) if k % every == 0]
    low, high = range_.values
    if range_.kind == "randint" and high - low < MOST_TICKS:
        return [(_place(range_, value), str(value)) for value in range(low, high + 1)]
    shares = [0.0, 0.25, 0.5, 0.75, 1.0]
    if range_.kind == "loguniform":
        return [(share, f"{math.exp(math.log(low) + share * math.log(high / low)):.2g}") for share in shares]
    return [(share, f"{low + share * (high - low):.3g}") for share in shares]


def _score_ticks(low: float, high: float) -> list[tuple[float, str]]:
    if low == high:
        return [(0.5, f"{low:.4f}")]
    return [(share, f"{low + share * (high - low):.4f}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
