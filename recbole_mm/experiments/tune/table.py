"""A search's tables: every trial as Markdown and CSV, and all of them in one picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from recbole_mm.experiments.compare.table import markdown_grid
from recbole_mm.experiments.tune.parallel import parallel_coordinates
from recbole_mm.experiments.tune.plan import Search, format_value
from recbole_mm.experiments.tune.records import Record, best_of
from recbole_mm.utils.escaping import csv_cell, markdown
from recbole_mm.utils.files import atomic_write, write_text
from recbole_mm.utils.progress import duration

MARKDOWN, CSV, PICTURE = "trials.md", "trials.csv", "trials.png"


def write_tables(search: Search, records: Sequence[Record]) -> None:
    """Write `trials.md`, `trials.csv` and, where a trial has a score, `trials.png` into the search's folder."""
    write_text(search.out / MARKDOWN, to_markdown(search, records))
    write_text(search.out / CSV, to_csv(search, records))
    scored = [(record, found[1]) for record in records if (found := record.best(search.bigger)) is not None]
    if scored:
        title = f"{search.config['model']} on {search.config['dataset']}: {len(scored)} trials"
        points = [(record.point, score) for record, score in scored]
        with atomic_write(search.out / PICTURE) as draft:
            parallel_coordinates(draft, title, search.space, points, search.metric, search.bigger)


def to_markdown(search: Search, records: Sequence[Record]) -> str:
    """Format trials from the best to the worst, those without a score last, and failures in the notes below."""
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
    writer.writerow(
        [
            "trial",
            "metric",
            "score",
            "best_epoch",
            "epochs",
            "seconds",
            "status",
            "attempts",
            "reason",
            *map(csv_cell, keys),
        ]
    )
    for record in records:
        best = record.best(search.bigger)
        at, score = (None, None) if best is None else best
        facts = [record.epochs, record.seconds, record.status, record.attempts, record.reason]
        values = [_cell(record.settings[key]) for key in keys]
        writer.writerow(map(csv_cell, [record.number, search.metric, score, at, *facts, *values]))
    return text.getvalue()


def _cell(value: object) -> object:
    return format_value(value) if isinstance(value, (list, dict, bool)) or value is None else value


def _ranked(search: Search, records: Sequence[Record]) -> list[Record]:
    scored = {record.number: found[1] for record in records if (found := record.best(search.bigger)) is not None}
    sign = -1 if search.bigger else 1
    return sorted(records, key=lambda r: (r.number not in scored, sign * scored.get(r.number, 0.0), r.number))
