"""Curves as a PNG.

>>> line_plot(Path("x.png"), "Recall@20 on toy", "K", [5, 10], {"test": [(0.1, 0.1, 0.1), (0.2, 0.1, 0.3)]})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

Point = tuple[float, float, float]
"""Mean, least and largest value over the seeds."""

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # told apart by colour-blind readers, too


def line_plot(
    path: Path, title: str, x_label: str, x_values: Sequence[float], curves: Mapping[str, Sequence[Point]]
) -> None:
    """Draw one curve per name, with a bar from the least to the largest value of each point.

    Args:
        path: PNG file to write; its folder is created.
        title, x_label: text above and below.
        x_values: where the points stand, rising; at least two.
        curves: name -> a point for each of `x_values`.
    """
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot(xlabel=x_label)
    axes.set_title(title, loc="left")
    for color, (name, points) in zip(cycle(COLORS), curves.items()):
        mean, least, most = np.array(points).T
        axes.errorbar(x_values, mean, (mean - least, most - mean), color=color, marker="o", label=name)
    axes.set_xticks(x_values, [f"{value:g}" for value in x_values])
    axes.grid(axis="y", color="#dddddd")
    axes.spines[["left", "top", "right"]].set_visible(False)
    figure.legend(loc="outside upper right", ncols=len(curves), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
