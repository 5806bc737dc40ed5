"""`recbole-mm tune`: a search, its best setting and that one's test."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recbole_mm.cli.arguments import PROGRAM, split_arguments, split_paths
from recbole_mm.cli.run import result_text
from recbole_mm.utils.escaping import printable
from recbole_mm.utils.paths import given_path

if TYPE_CHECKING:
    from recbole_mm.experiments.tune.command import Found

_HELP = """Search for a model's best settings on Ray Tune, by validation alone, and test the best of them once.

A trial trains and validates; one that falls behind is stopped early. Other arguments, --key=value, are settings of each
trial, as for `run`; --seed is also the search's.
"""

_EXAMPLES = f"""examples:
  {PROGRAM} tune --model Molar --dataset pixelrec --trials 50 --gpus_per_trial 0.5
  {PROGRAM} tune --model SASRec --dataset ml-100k --space my-space.yaml --trials 20 --epochs=30
  {PROGRAM} tune --model LightGCN --dataset ml-100k --space hyper.test --search random --scheduler none --jobs 2
  {PROGRAM} tune --model Molar --dataset pixelrec --trials 80 --resume

docs/tune.md says what a space may hold and what is written where.
"""


def main(arguments: Sequence[str]) -> int:
    """Search, test the best setting once, and print both.

    Raises:
        ConfigError: an argument is malformed.
    """
    parsed, others = _parser().parse_known_args(arguments)
    settings = split_arguments(others)
    from recbole_mm.experiments.tune.command import tune_model  # imports torch
    from recbole_mm.utils.log import init_logging

    init_logging(None, settings.get("state"))
    options = vars(parsed)
    found = tune_model(
        options.pop("model"),
        options.pop("dataset"),
        config_files=split_paths(settings.pop("config_files", "")),
        command_line=settings,
        **options,
    )
    print(printable(to_text(found)), end="")
    return 0


def to_text(found: Found) -> str:
    """The best setting, its validation score and test metrics, and where they are written."""
    from recbole_mm.experiments.tune.command import BEST, BEST_YAML
    from recbole_mm.experiments.tune.space import format_value
    from recbole_mm.experiments.tune.table import CSV, MARKDOWN, PICTURE

    drawn = ", ".join(f"{key}={format_value(value)}" for key, value in found.settings.items())
    result = found.result
    results = {result["model"]: result["test_result"], **result.get("beside", {})}
    table = result_text(result["dataset"], results, result.get("sees_held_out", []))
    written = [BEST_YAML, MARKDOWN, CSV, PICTURE, *sorted(path.name for path in found.out.glob("*.svg"))]
    best = f"best of {len(found.records)} trials: {drawn}\nvalidation {found.metric}: {found.score:.4f}\n"
    return f"{best}\n{table}\n{found.out / BEST}\n\n{found.out}/{', '.join(written)}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} tune",
        usage=f"{PROGRAM} tune --model NAME --dataset NAME [--space FILE] [--trials N] [options] [--key=value ...]",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", metavar="NAME", help="name of the model")
    add("--dataset", metavar="NAME", help="name of the dataset")
    add(
        "--space",
        type=given_path,
        metavar="FILE",
        help="what to draw from: YAML, or RecBole's hyper.test (the model's own)",
    )
    add("--trials", type=int, default=20, metavar="N", help="settings to try (20)")
    add("--search", metavar="optuna|random", help="how they are drawn (optuna if it is installed)")
    add("--scheduler", default="asha", metavar="asha|none", help="what stops bad trials early (asha)")
    add("--grace_epochs", type=int, metavar="N", help="asha stops no trial before (a tenth of the epochs)")
    add("--cpus_per_trial", type=float, default=1, metavar="N", help="CPU cores of a trial (1)")
    add("--gpus_per_trial", type=float, metavar="N", help="GPUs of a trial, or a share of one (1 if there are any)")
    add("--jobs", type=int, default=0, metavar="N", help="trials at the same time (as many as there is room for)")
    add("--resume", action="store_true", help="go on with the search in --out")
    add("--out", type=given_path, metavar="DIR", help="folder of the search (<checkpoint_dir>/tune-<model>-<dataset>)")
    add(
        "--ray_address",
        metavar="ADDRESS",
        help="a Ray cluster: auto, host:port or ray://host:port (Ray is started here)",
    )
    add("--object_store_mb", type=int, metavar="N", help="object store of the Ray that is started here (100)")
    return parser
