"""Results as text for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

SEES_HELD_OUT = "SEES HELD-OUT DATA, not comparable"


def result_table(
    model: str, dataset: str, result: Mapping[str, float], run_dir: Path, sees_held_out: Sequence[str] = ()
) -> str:
    """A run's test metrics, one row per metric and one column per k, and where the run's folder is.

    Args:
        result: metric -> value, named as RecBole names them (`ndcg@10`, `auc`).
        sees_held_out: how the run's training saw held-out interactions; each is a warning below the numbers.

    Example:
        >>> result = {"ndcg@5": 0.1, "ndcg@10": 0.2, "hit@5": 0.3, "hit@10": 0.4}
        >>> print(result_table("Pop", "toy", result, Path("saved/x")))
        Pop on toy, test        @5     @10
        ndcg                0.1000  0.2000
        hit                 0.3000  0.4000
        saved/x
    """
    rows: dict[str, dict[str, float]] = {}
    for name, value in result.items():
        metric, _, k = name.partition("@")
        rows.setdefault(metric, {})[k] = value
    ks = sorted({k for row in rows.values() for k in row}, key=lambda k: int(k) if k else 0)
    header = [f"{model} on {dataset}, test", *(f"@{k}" if k else "" for k in ks)]
    table = columns(header, [[metric, *map(row.get, ks)] for metric, row in rows.items()])
    warnings = [f"{SEES_HELD_OUT}: {text}" for text in sees_held_out]
    return "\n".join([table, *warnings, str(run_dir)])


def beside_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Metrics of several models on the same cases, one row per metric and one column per model.

    Args:
        results: model -> metric -> value; the first model's metrics are the rows.

    Example:
        >>> print(beside_table({"X": {"hit@5": 0.25}, "Pop": {"hit@5": 0.125}}))
                    X     Pop
        hit@5  0.2500  0.1250
    """
    metrics = next(iter(results.values()))
    return columns(["", *results], [[metric, *(of.get(metric) for of in results.values())] for metric in metrics])


def columns(header: Sequence[str], rows: Iterable[Sequence[str | float | None]]) -> str:
    """Rows in aligned columns: numbers to the right with four decimal places, texts to the left, None left empty.

    Example:
        >>> print(columns(["NAME", "NDCG"], [["Pop", 0.25], ["007", None]]))
        NAME      NDCG
        Pop     0.2500
        007
    """
    table = [list(row) for row in rows]
    numbers = [any(isinstance(row[place], float) for row in table) for place in range(len(header))]
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in table]
    aligned = ["right" if number else "left" for number in numbers]
    return tabulate(cells, header, tablefmt="plain", missingval="", disable_numparse=True, colalign=aligned)
