"""SASRec trained on full sequences against RecBole's prefixes: targets per second, and NDCG@10 over seeds.

    python benchmarks/full_sequence.py --seeds 1,2,3 --epochs 300

Both sides are RecBole's SASRec class with the same sizes, batch size in targets, learning rate, patience and
evaluation. The speed is measured on training batches after a warm-up, loading of batches included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
import yaml
from common import markdown_table, quiet_config

from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble, run
from recbole_mm.training.factory import make_trainer


class Part:
    """The first batches of a loader's epoch."""

    def __init__(self, loader, batches: int) -> None:
        self.loader = loader
        self.batches = min(batches, len(loader))

    def __len__(self) -> int:
        return self.batches

    def __iter__(self):
        return islice(iter(self.loader), self.batches)


def targets_per_second(arguments: argparse.Namespace, full_sequence: bool, batches: int) -> float:
    """Training targets per second over `batches` batches of `train_batch_size` targets, after a warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        config = quiet_config(
            "SASRec", arguments.dataset, data_path=arguments.data_path, full_sequence=full_sequence,
            checkpoint_dir=folder,
        )  # fmt: skip
        assembled = assemble(config, Path(folder), Stages())
        trainer = make_trainer(config, assembled.model, Path(folder))
        # Importing RecBole turns anomaly detection on, which would slow both sides by different factors.
        with torch.autograd.set_detect_anomaly(False):
            trainer._train_epoch(Part(assembled.splits.train, 3), 0)
            counted = trainer.timings["train_targets"]
            start = time.perf_counter()
            for epoch in range(1, -(-batches // len(assembled.splits.train)) + 1):
                trainer._train_epoch(Part(assembled.splits.train, batches), epoch)
            return (trainer.timings["train_targets"] - counted) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--speed_only", action="store_true")
    parser.add_argument("--quality_only", action="store_true")
    parser.add_argument(
        "--settings", default="{}", help="YAML map of settings for both sides of the quality comparison"
    )
    arguments = parser.parse_args()
    if not arguments.quality_only:
        print_speed(arguments)
    if not arguments.speed_only:
        with tempfile.TemporaryDirectory() as folder:
            compare_quality(arguments, folder)


def print_speed(arguments: argparse.Namespace) -> None:
    """Measure both sides and print targets per second."""
    theirs = targets_per_second(arguments, full_sequence=False, batches=20)
    ours = targets_per_second(arguments, full_sequence=True, batches=480)
    rows = [["RecBole prefixes", f"{theirs:,.0f}", "1x"], ["full sequences", f"{ours:,.0f}", f"{ours / theirs:.0f}x"]]
    print(markdown_table([f"SASRec, {arguments.dataset}", "targets/s", "ratio"], rows), flush=True)


def compare_quality(arguments: argparse.Namespace, folder: str) -> None:
    """Train both to early stopping for each seed and print NDCG@10 with the paired test."""
    from recbole_mm.evaluation.significance import compare_runs

    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        runs = [
            run(
                "SASRec", arguments.dataset,
                config_dict={
                    "seed": seed, "full_sequence": full, "checkpoint_dir": folder, "epochs": arguments.epochs,
                    "show_progress": False, "state": "WARNING", **yaml.safe_load(arguments.settings),
                    **({"data_path": arguments.data_path} if arguments.data_path else {}),
                },
            )
            for full in (False, True)
        ]  # fmt: skip
        test = compare_runs(runs[1].run_dir, runs[0].run_dir, "ndcg@10")
        rows.append([seed, *(f"{r.test_result['ndcg@10']:.4f}" for r in runs), f"{test.p_value:.3f}"])
        print(markdown_table(["seed", "prefixes NDCG@10", "full sequences NDCG@10", "p (paired)"], rows), flush=True)


if __name__ == "__main__":
    main()
