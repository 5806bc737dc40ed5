"""Tables for a terminal; `columns` lays out all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tabulate import tabulate

SEES_HELD_OUT = "SEES HELD-OUT DATA, not comparable"
"""The mark of a result whose training saw held-out interactions."""

WIDTH = 120
"""Columns of a terminal that a table of metrics fits into."""


def columns(header: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    """Rows in aligned columns: numbers to the right with four decimal places, texts to the left, None left empty.

    Example:
        >>> print(columns(["NAME", "NDCG"], [["Pop", 0.25], ["007", None]]))
        NAME    NDCG
        Pop   0.2500
        007
    """
    rows = list(rows)
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    aligned = ["right" if any(isinstance(cell, float) for cell in column) else "left" for column in zip(*rows)]
    return tabulate([header, *cells], tablefmt="plain", missingval="", disable_numparse=True, colalign=aligned)


def result_table(title: str, results: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of several models, one row per model; metrics that do not fit into `WIDTH` follow below.

    Args:
        title: what the metrics are of, above the models' names.
        results: model -> metric, as RecBole names it -> value; the first model's metrics are shown.

    Example:
        >>> result = {"ndcg@5": 0.1, "ndcg@10": 0.2, "auc": 0.6}
        >>> print(result_table("toy, test", {"SASRec": result, "Pop": {"ndcg@5": 0.05, "ndcg@10": 0.15}}))
        toy, test  ndcg@5     @10     auc
        SASRec     0.1000  0.2000  0.6000
        Pop        0.0500  0.1500
    """
    groups: dict[str, list[str]] = {}
    for metric in next(iter(results.values())):
        groups.setdefault(metric.partition("@")[0], []).append(metric)
    names = max(len(title), *map(len, results))
    blocks: list[dict[str, str]] = [{}]
    for base, metrics in groups.items():
        headings = {name: name if place == 0 else name.removeprefix(base) for place, name in enumerate(metrics)}
        width = names + sum(2 + max(len(text), len("0.0000")) for text in [*blocks[-1].values(), *headings.values()])
        if blocks[-1] and width > WIDTH:
            blocks.append({})
        blocks[-1] |= headings
    return "\n\n".join(
        columns([title, *block.values()], [[name, *_numbers(result, block)] for name, result in results.items()])
        for block in blocks
    )


def _numbers(result: Mapping[str, float], metrics: Iterable[str]) -> list[float | None]:
    """Return a result's metrics, None for those that it lacks."""
    return [None if (value := result.get(metric)) is None else float(value) for metric in metrics]
