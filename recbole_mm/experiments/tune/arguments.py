"""Options of the command line; importing this imports nothing that is slow."""

from __future__ import annotations

import argparse

from recbole_mm.utils.paths import given_path

HELP = """Search for a model's best settings on Ray Tune, by validation alone, and test the best of them once.

A trial trains and validates; one that falls behind is stopped early. Other arguments, --key=value, are settings of each
trial, as for `run`; --seed is also the search's.
"""

EXAMPLES = """examples:
  {program} --model Molar --dataset pixelrec --trials 50 --gpus_per_trial 0.5
  {program} --model SASRec --dataset ml-100k --space my-space.yaml --trials 20 --epochs=30
  {program} --model LightGCN --dataset ml-100k --space hyper.test --search random --scheduler none --jobs 2
  {program} --model Molar --dataset pixelrec --trials 80 --resume

docs/tune.md says what a space may hold and what is written where.
"""


def tune_parser(program: str) -> argparse.ArgumentParser:
    """Options of `recbole-mm tune`; what it does not know are settings of the trials.

    Args:
        program: the command, as it is typed.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} --model NAME --dataset NAME [--space FILE] [--trials N] [options] [--key=value ...]",
        description=HELP,
        epilog=EXAMPLES.format(program=program),
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
