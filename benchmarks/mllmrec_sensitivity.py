"""MLLMRec over its threshold, K_s, K_c and number of layers: one plot each, validation beside test.

    python benchmarks/mllmrec_sensitivity.py --dataset ml-100k-mm --data_path DIR --seeds 1,2,3 --sentence_encoder=DIR
    python benchmarks/mllmrec_sensitivity.py --dataset hm-week --keys similar_threshold,n_layers --epochs=50

Everything else of a run stays at its default, or at what is given as --key=value. Test figures are shown, never chosen
by. A run that `checkpoint_dir` holds already is not run again. Writes docs/images/mllmrec-<key>-<dataset>.png and
prints the numbers as a table.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from common import markdown_table
from line_plot import Point, line_plot

from recbole_mm.cli.arguments import split_arguments
from recbole_mm.cli.compare import parse_seeds
from recbole_mm.config.resolved import Config
from recbole_mm.errors import ConfigError
from recbole_mm.experiments.compare.grid import finished_run
from recbole_mm.runs.folder import read_result
from recbole_mm.runs.run import run

VALUES: dict[str, tuple[float, ...]] = {
    "similar_threshold": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "similar_k": (2, 5, 10, 15, 20, 30),
    "co_k": (2, 5, 10, 15, 20, 30),
    "n_layers": (0, 1, 2, 3),
}
LABELS = {
    "similar_threshold": "similar_threshold (alpha)",
    "similar_k": "similar_k (K_s)",
    "co_k": "co_k (K_c)",
    "n_layers": "n_layers (L)",
}
METRIC = "Recall@20"
SETTINGS = {"valid_metric": METRIC, "stopping_step": 20, "epochs": 300, "state": "WARNING", "show_progress": False}


def figures(dataset: str, settings: dict[str, Any], typed: dict[str, Any]) -> tuple[float, float]:
    """Validation and test figure of one run, which is made unless there is a finished one of the same settings."""
    config = Config("MLLMRec", dataset, config_dict=settings, command_line=typed)
    folder = finished_run(config)
    if folder is None:
        folder = run("MLLMRec", dataset, config_dict=settings, command_line=typed).run_dir
    result = read_result(folder)
    return result["best_valid_result"][METRIC.lower()], result["test_result"][METRIC.lower()]


def over_seeds(values: list[float]) -> Point:
    return fmean(values), min(values), max(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="Other --key=value are settings.")
    parser.add_argument("--dataset", default="ml-100k-mm")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--keys", default=",".join(VALUES), help="settings to vary, out of these")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "images")
    arguments, others = parser.parse_known_args()
    typed = split_arguments(others)
    seeds, rows = parse_seeds(arguments.seeds), []
    for key in arguments.keys.split(","):
        if key not in VALUES:
            raise SystemExit(f"--keys: {key!r} is not one of {', '.join(VALUES)}")
        curves: dict[str, list[Point]] = {"validation": [], "test": []}
        for value in VALUES[key]:
            found = [figures(arguments.dataset, {**SETTINGS, key: value, "seed": seed}, typed) for seed in seeds]
            for name, values in zip(curves, zip(*found)):
                curves[name].append(over_seeds(list(values)))
            rows.append([key, value, *(f"{curves[name][-1][0]:.4f}" for name in curves)])
            print(f"{key} = {value}: validation {rows[-1][2]}, test {rows[-1][3]}", flush=True)
        path = arguments.out / f"mllmrec-{key.replace('_', '-')}-{arguments.dataset}.png"
        line_plot(path, f"{METRIC} on {arguments.dataset}", LABELS[key], VALUES[key], curves)
        print(path, flush=True)
    head = ["setting", "value", f"{METRIC}, validation", f"{METRIC}, test"]
    print(f"\n{arguments.dataset}, seeds {arguments.seeds}\n\n{markdown_table(head, rows)}")


if __name__ == "__main__":
    try:
        main()
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from error
