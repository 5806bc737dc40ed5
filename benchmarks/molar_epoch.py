"""A training epoch of Molar against one of SASRec of the same depth and width; ranking with cut and padded histories.

    python benchmarks/molar_epoch.py --data_path DIR --dataset microlens-50k

Both are trained on full sequences, on the same batches, and take turns in one process, so that whatever else the
machine does hits both; only the ratio counts. SASRec is RecBole's, trained by cross-entropy over all items; Molar reads
the texts with the tiny MLLM, whose decoder has two layers of 128. An epoch is the measured time of a step times the
number of steps.

Ranking is measured with histories cut to the longest of their batch, and padded to MAX_ITEM_LIST_LENGTH in batches of
eval_batch_size rows; the slow side ranks only some of the users, rates are per user.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from common import markdown_table, quiet_config
from full_sequence import Part

from recbole_mm.evaluation import padding
from recbole_mm.evaluation.ranking import EvalUsers, RankingData
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import Run, assemble
from recbole_mm.training.factory import make_trainer

SASREC = {
    "full_sequence": True,
    "hidden_size": 128,
    "inner_size": 512,
    "n_layers": 2,
    "n_heads": 2,
    "loss_type": "CE",
    "train_neg_sample_args": None,
}
MOLAR: dict[str, Any] = {"mllm": "tiny", "modalities": ["text"]}


class Side:
    """One model, assembled and ready to train."""

    def __init__(self, model: str, arguments: argparse.Namespace, folder: Path, settings: dict[str, Any]) -> None:
        common = {
            "data_path": arguments.data_path,
            "train_batch_size": arguments.batch_size,
            "checkpoint_dir": str(folder),
        }
        self.config = quiet_config(model, arguments.dataset, **common, **settings)
        self.run: Run = assemble(self.config, folder / model, Stages())
        self.loader: Any = self.run.splits.train
        self.trainer = make_trainer(self.config, self.run.model, folder / model)

    def seconds_per_step(self, steps: int, epoch: int) -> float:
        """Train on the first `steps` batches of an epoch, loading of batches included."""
        self.loader.epoch = epoch
        part = Part(self.loader, steps)
        return seconds(lambda: self.trainer._train_epoch(part, epoch)) / len(part)

    def users_per_second(self, data: RankingData) -> float:
        return len(data) / seconds(lambda: self.trainer.evaluate(data, load_best_model=False))


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def some_users(data: RankingData, count: int) -> RankingData:
    """Cases spread evenly over all of them."""
    users = data.users
    rows = np.linspace(0, len(users) - 1, min(count, len(users))).astype(np.int64)
    history = None if users.history is None else users.history.take(rows)
    few = EvalUsers(users.interaction.subset(rows), users.positives.take(rows), history, users.user_ids[rows])
    return RankingData(few, data.dataset, data.mode, data.train_counts)


def padded_rate(side: Side, data: RankingData) -> float:
    """`users_per_second` with padded histories and batches of `eval_batch_size`."""
    budget, model = padding.CPU_BATCH_TOKENS, side.run.model
    padding.CPU_BATCH_TOKENS = 2**62
    kind, model.__class__ = type(model), type(type(model).__name__, (type(model),), {"ignores_right_padding": False})
    try:
        return side.users_per_second(data)
    finally:
        padding.CPU_BATCH_TOKENS, model.__class__ = budget, kind


def print_epochs(sides: dict[str, Side], arguments: argparse.Namespace) -> None:
    times: dict[str, list[float]] = {name: [] for name in sides}
    # Importing RecBole turns anomaly detection on, which would slow both sides by different factors.
    with torch.autograd.set_detect_anomaly(False):
        for epoch in range(arguments.rounds + 1):
            for name, side in sides.items():
                times[name].append(side.seconds_per_step(arguments.steps if epoch else 3, epoch))
    base = next(iter(times.values()))[1:]  # the first round warms up
    rows = []
    for name, side in sides.items():
        own = times[name][1:]
        ratios = [one / other for one, other in zip(own, base)]
        epoch_seconds = median(own) * len(side.loader)
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        rows.append([name, f"{median(own) * 1e3:.1f}", f"{epoch_seconds:.1f}", f"{median(ratios):.2f} ({rounds})"])
    print(markdown_table([arguments.dataset, "ms per step", "s per epoch", "ratio (rounds)"], rows), flush=True)


def print_ranking(sides: dict[str, Side], arguments: argparse.Namespace) -> None:
    rows = []
    for name, side in sides.items():
        data = side.run.splits.valid
        few = some_users(data, arguments.padded_users)
        rates = [(padded_rate(side, few), side.users_per_second(data)) for _ in range(arguments.ranking_rounds)]
        slow, fast = (median(rate) for rate in zip(*rates))
        ratio = median(one / other for other, one in rates)
        rows.append([name, f"{slow:,.0f}", f"{fast:,.0f}", f"{len(data) / fast:.1f}", f"{ratio:.1f}"])
    users, items = len(data), data.dataset.item_num - 1
    print(f"\n{users:,} users x {items:,} items, {data.users.history.lengths.mean():.1f} items a history\n")
    head = ["ranking", "users/s padded", "users/s cut", "s for all users, cut", "ratio"]
    print(markdown_table(head, rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--batch_size", type=int, default=512, help="targets per step of both sides")
    parser.add_argument("--steps", type=int, default=60, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each side")
    parser.add_argument("--padded_users", type=int, default=4096, help="users that the padded side ranks")
    parser.add_argument("--ranking_rounds", type=int, default=2, help="0 leaves ranking out")
    parser.add_argument("--settings", default="{}", help="YAML map of Molar's settings, such as {rec_loss: ce}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "SASRec, full sequences": Side("SASRec", arguments, Path(folder), SASREC),
            "Molar": Side("Molar", arguments, Path(folder), MOLAR | yaml.safe_load(arguments.settings)),
        }
        print(f"{torch.get_num_threads()} threads, {arguments.batch_size} targets per step\n")
        print_epochs(sides, arguments)
        if arguments.ranking_rounds:
            print_ranking(sides, arguments)


if __name__ == "__main__":
    main()
