"""A table as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from tabulate import tabulate

from recbole_mm.config.settings import PROTOCOL
from recbole_mm.evaluation.significance import Comparison
from recbole_mm.experiments.compare.experiment import TRAINING
from recbole_mm.experiments.compare.grid import DONE, FAILED, NOT_APPLICABLE, NOT_RUN
from recbole_mm.experiments.compare.summary import SIGNIFICANT, Cell, Line, Table
from recbole_mm.utils.escaping import csv_cell, latex, markdown
from recbole_mm.utils.files import make_folder, write_text
from recbole_mm.utils.tables import SEES_HELD_OUT

SEES = "‡"
"""Behind the name of a row whose training saw held-out interactions."""

SHORT = {FAILED: "failed", NOT_APPLICABLE: "n/a", NOT_RUN: "not run"}
CSV_COLUMNS = (
    *("group", "row", "model", "status", "reason", "metric", "mean", "sd", "published", "place"),
    *("seeds", "users", "epochs", "trials", "chosen", "reference", "difference", "relative"),
    *("ci_low", "ci_high", "p", "p_holm", "test", "differs", "sees_held_out"),
)


def write_table(table: Table, folder: Path, name: str) -> None:
    """Write `table.md`, `table.csv` and `table.tex` into `folder`; `name` labels the LaTeX one."""
    make_folder(folder)
    for suffix, text in (("md", to_markdown(table)), ("csv", to_csv(table)), ("tex", to_latex(table, name))):
        write_text(folder / f"table.{suffix}", text)


# ---- Markdown ----


def to_markdown(table: Table) -> str:
    """The results, the tests, and what must be known to read them; columns are aligned for a terminal."""
    parts = [f"# {markdown(table.title)}"]
    if table.shows:
        parts.append(markdown(table.shows))
    parts.append(markdown_grid(_header(table), [_markdown_row(table, line) for line in table.shown]))
    tests = _tests(table)
    if tests:
        header = ["metric", f"{table.reference} against", "difference", "95% interval", "relative", "p", "p (Holm)"]
        parts.append(markdown_grid(header, tests))
    parts.append("\n".join(f"- {markdown(note)}" for note in notes(table)))
    return "\n\n".join(parts) + "\n"


def _header(table: Table) -> list[str]:
    columns = [[metric, "paper"] if table.has_published else [metric] for metric in table.metrics]
    return ["", *(column for pair in columns for column in pair)]


def _markdown_row(table: Table, line: Line) -> list[str]:
    group = f"{line.row.group}: " if line.row.group else ""
    cells = [f"{group}{line.row.name}{_mark(line)}"]
    for metric in table.metrics:
        cell = line.cells[metric]
        cells.append(_value(line, cell, lambda text: f"**{text}**", lambda text: f"_{text}_", " ± ", "*"))
        if table.has_published:
            cells.append(_number(cell.published))
    return cells


def _tests(table: Table) -> list[list[str]]:
    rows = []
    for metric in table.metrics:
        for line in table.shown:
            cell = line.cells[metric]
            if cell.test is None or cell.p_holm is None:
                continue
            rows.append([metric, line.row.name, *test_cells(cell.test, cell.p_holm)])
    return rows


def test_cells(test: Comparison, p_holm: float) -> list[str]:
    """A test as printed: the difference, its interval, its share of the other's mean, p, and p after correction."""
    interval = f"[{test.ci_low:+.4f}, {test.ci_high:+.4f}]"
    numbers = [f"{test.difference:+.4f}", interval, _percent(test.relative)]
    return [*numbers, _p_value(test.p_value), _p_value(p_holm)]


def markdown_grid(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Format a Markdown table whose first columns, those of texts, are aligned left, the others right."""
    cells = [[markdown(cell) for cell in row] for row in [header, *rows]]
    aligned = ["left" if place < texts or name.endswith("against") else "right" for place, name in enumerate(header)]
    return tabulate(cells[1:], cells[0], tablefmt="pipe", disable_numparse=True, colalign=aligned)


# ---- notes, shared by Markdown and LaTeX ----


def notes(table: Table, second: str = "italic") -> list[str]:
    """What must be known to read the table: users, seeds, training, tuning, protocol, tests, and what is missing.

    Args:
        table: computed.
        second: how the second best of a column looks.
    """
    done = [line for line in table.lines if line.row.status == DONE]
    found = []
    if done:
        users = sorted({line.users for line in done if line.users})
        counted = f"{' or '.join(f'{count:,}' for count in users)} test users" if users else "no values per user"
        seeds = ", ".join(map(str, table.seeds))
        spread = "mean ± standard deviation over" if len(table.seeds) > 1 else "one run each, no spread:"
        found.append(f"{table.facts['dataset']}, {counted}; {spread} seed{'s' * (len(table.seeds) > 1)} {seeds}.")
        found.append("Training: " + _settings(table, TRAINING) + ".")
        found.append("Protocol: " + _settings(table, [key for key in PROTOCOL[1:] if key != "data_files"]) + ".")
        found.extend(_tuning(table))
        found.append(f"Bold is the best of a column, {second} the second.")
    if table.id_note:
        found.append(table.id_note)
    if any(cell.p_holm is not None for line in done for cell in line.cells.values()):
        methods = sorted({cell.test.method for line in done for cell in line.cells.values() if cell.test is not None})
        found.append(
            f"*: differs from {table.reference}, p < {SIGNIFICANT} after Holm's correction over the rows of a metric. "
            f"Tests pair users, each with its mean over the seeds ({'; '.join(methods)})."
        )
    if table.no_tests:
        found.append(f"No paired tests: {table.no_tests}.")
    if table.has_published:
        found.append(f"paper: figures of {table.paper or 'the paper'}, from its own copy and split of the data.")
    for line in done:
        found += [f"{SEES} {line.row.name} {SEES_HELD_OUT}: {text}." for text in line.sees_held_out]
    if any(line.tokens for line in done):
        found.append(f"Tokens of an LLM per user: {'; '.join(map(_tokens, done))}.")
    untrained = ", ".join(line.row.name for line in done if line.untrained)
    if untrained:
        found.append(f"UNTRAINED multimodal LLM (mllm: tiny): {untrained}. Such rows say nothing about trained ones.")
    return found + [note for line in table.lines for note in _notes_of(line, table)]


def _tokens(line: Line) -> str:
    """What a row's LLM reads and writes for a user."""
    spent = ", ".join(f"{what} {tokens:,.0f}" for what, tokens in line.tokens.items())
    return f"{line.row.name}: {spent or 'none'}"


def _settings(table: Table, keys: Sequence[str]) -> str:
    return ", ".join(f"{key}: {_flow(table.facts[key])}" for key in keys if table.facts.get(key) is not None)


def _flow(value: object) -> str:
    """A setting as one would write it in YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return str(value)


def _tuning(table: Table) -> list[str]:
    counts = {line.row.trials for line in table.lines if line.row.trials is not None}
    if not counts:
        return []
    if counts == {1}:
        return ["Tuning: none; each row ran with its own settings."]
    many = (
        f"{counts.pop()} trials for each row"
        if len(counts) == 1
        else "UNEQUAL, " + ", ".join(f"{line.row.name} {line.row.trials}" for line in table.lines)
    )
    chosen = "; ".join(
        f"{line.row.name}: " + ", ".join(f"{key}={_flow(value)}" for key, value in line.row.chosen.items())
        for line in table.lines
        if line.row.status == DONE and line.row.chosen
    )
    by = f"chosen by validation {table.facts['valid_metric']} on seed {table.seeds[0]}"
    return [f"Tuning: {many}, {by}." + (f" {chosen}." if chosen else "")]


def _notes_of(line: Line, table: Table) -> list[str]:
    row = line.row
    if row.status != DONE:
        return [f"{row.name}: {row.status}: {row.reason}"] if row.reason else [f"{row.name}: {row.status}"]
    found = [f"{row.name}: {row.reason}"] if row.reason else []
    if sorted(row.runs) != sorted(table.seeds) and not row.reason:
        found.append(f"{row.name}: runs of seed {', '.join(map(str, sorted(row.runs)))} only")
    found += [f"{row.name}: {text}" for text in line.differs]
    if line.untested and line.untested != table.no_tests:
        found.append(f"{row.name}: no test: {line.untested}")
    if line.taken:
        taken = ", ".join(f"{text} (seed {seed})" for seed, text in sorted(line.taken.items()))
        found.append(f"{row.name}: each run chose on validation: {taken}")
    return found


def _mark(line: Line) -> str:
    if line.row.status != DONE:
        return ""
    noted = bool(line.differs or line.untested or line.row.reason)
    return f" {SEES}" * bool(line.sees_held_out) + " †" * noted


# ---- CSV ----


def to_csv(table: Table) -> str:
    """One line per row and metric, numbers in full, everything the other two say."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in table.shown:
        for metric in table.metrics:
            writer.writerow(_csv_row(table, line, metric))
    return text.getvalue()


def _csv_row(table: Table, line: Line, metric: str) -> dict[str, object]:
    row, cell = line.row, line.cells[metric]
    written: dict[str, object] = {
        "group": row.group,
        "row": row.name,
        "model": row.model,
        "status": row.status,
        "reason": row.reason,
        "metric": metric,
        "mean": cell.mean,
        "sd": cell.spread,
        "published": cell.published,
        "place": cell.place or None,
        "seeds": " ".join(map(str, sorted(row.runs))),
        "users": line.users or None,
        "epochs": line.epochs,
        "trials": row.trials,
        "chosen": " ".join(f"{key}={_flow(value)}" for key, value in row.chosen.items()),
        "reference": table.reference,
        "differs": "; ".join([*line.differs, *([line.untested] if line.untested else [])]),
        "sees_held_out": "; ".join(line.sees_held_out),
    }
    if cell.test is not None:
        test = cell.test
        written |= {"difference": test.difference, "relative": test.relative, "ci_low": test.ci_low}
        written |= {"ci_high": test.ci_high, "p": test.p_value, "p_holm": cell.p_holm, "test": test.method}
    return {column: csv_cell(value) for column, value in written.items()}


# ---- LaTeX ----


def to_latex(table: Table, name: str) -> str:
    """A `table` environment with booktabs rules, rows under their groups, and the notes below."""
    step = 2 if table.has_published else 1
    width = 1 + step * len(table.metrics)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}[t]",
        "\\centering",
        f"\\caption{{{latex(' '.join(filter(None, [table.title + '.', table.shows])))}}}",
        f"\\label{{tab:{''.join(character if character.isalnum() else '-' for character in name)}}}",
        f"\\begin{{tabular}}{{l{'c' * (width - 1)}}}",
        "\\toprule",
        " & ".join(map(latex, _header(table))) + r" \\",
    ]
    group = None
    for line in table.shown:
        if line.row.group != group or group is None:
            lines.append("\\midrule")
            group = line.row.group
            if group:
                lines.append(f"\\multicolumn{{{width}}}{{l}}{{\\textit{{{latex(group)}}}}} \\\\")
        lines.append(" & ".join(_latex_row(table, line)) + r" \\")
    said = " \\par\n".join(latex(note) for note in notes(table, second="underlined"))
    lines += [
        "\\bottomrule",
        "\\end{tabular}",
        "",
        "\\smallskip",
        f"\\begin{{minipage}}{{\\linewidth}}\\footnotesize {said}",
    ]
    return "\n".join([*lines, "\\end{minipage}", "\\end{table}", ""])


def _latex_row(table: Table, line: Line) -> list[str]:
    cells = [latex(line.row.name + _mark(line))]
    for metric in table.metrics:
        cell = line.cells[metric]
        cells.append(
            _value(
                line,
                cell,
                lambda text: f"\\textbf{{{text}}}",
                lambda text: f"\\underline{{{text}}}",
                r" $\pm$ ",
                "$^{*}$",
            )
        )
        if table.has_published:
            cells.append(_number(cell.published))
    return cells


# ---- numbers ----


def _value(
    line: Line, cell: Cell, best: Callable[[str], str], second: Callable[[str], str], plus_minus: str, star: str
) -> str:
    """`0.0197 ± 0.0003`, the mean marked by its place, or the row's status."""
    if cell.mean is None:
        return SHORT[line.row.status]
    mean = {1: best, 2: second}.get(cell.place, str)(_number(cell.mean))
    spread = f"{plus_minus}{cell.spread:.4f}" if cell.spread is not None else ""
    return mean + spread + (star if cell.significant else "")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _percent(share: float) -> str:
    return "" if math.isnan(share) else f"{100 * share:+.1f}%"


def _p_value(p_value: float) -> str:
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"
