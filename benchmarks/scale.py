"""A million users: dataset, a slice of a Molar epoch and full ranking in bounded memory, and how far RecBole comes.

    python benchmarks/scale.py --folder DIR                 # 1,000,000 users x 300,000 items x 9,000,000 interactions
    python benchmarks/scale.py --folder DIR --users 20000 --items 6000 --interactions 180000

The data are synthetic: users of uneven length, items of uneven popularity, a title and a vector of 64 numbers an item.
Each stage is a process of its own, whose peak memory is watched from outside; one that passes `--limit_gib` is ended.

RecBole's side builds the same dataset for SASRec, training samples and evaluation loaders included, and takes a few
training steps. It is tried on an eighth, a quarter, half and all of the users, until it passes the limit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from common import markdown_table, quiet_config

GIB = 2**30
VECTOR = 64
SHORTEST = 4
"""Interactions of a user at least: two to train on, one to validate, one to test."""

POPULARITY = 0.8
"""Exponent of the items' popularity by rank."""

FIRST_SECOND = 1_600_000_000
RECBOLE_SHARES = (1 / 8, 1 / 4, 1 / 2, 1)
SLEEP = 0.05
NEGATIVE = {"distribution": "uniform", "sample_num": 1}

OURS: dict[str, dict[str, Any]] = {  # no softmax over all items, which are many
    "Molar": {
        "mllm": "tiny",
        "modalities": ["text"],
        "item_sources": ["vectors"],
        "item_features": {"vectors": {"file": "vectors.npy", "ids": "vectors.txt"}},
        "rec_loss": "sampled_softmax",
        "id_model_config": {"loss_type": "BPR"},
    },
    "SASRec": {"full_sequence": True, "loss_type": "BPR", "train_neg_sample_args": NEGATIVE},
}


# ------------------------------------------------------------------------------------------------------------- the data


def dataset_name(users: int) -> str:
    return f"synthetic-{users}"


def write_dataset(folder: Path, users: int, items: int, interactions: int) -> None:
    """Atomic files and vectors of a synthetic dataset, if they are not there; the same ones every time.

    Args:
        folder: of datasets.
        users, items, interactions: how many; every user has at least `SHORTEST` interactions.
    """
    name = dataset_name(users)
    target = folder / name
    if (target / f"{name}.yaml").exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    extra = rng.multinomial(interactions - SHORTEST * users, rng.dirichlet(np.ones(users)))
    owners = np.repeat(np.arange(users), SHORTEST + extra)
    popularity = np.arange(1, items + 1) ** -POPULARITY
    chosen = np.searchsorted(np.cumsum(popularity), rng.random(len(owners)) * popularity.sum())
    chosen = rng.permutation(items)[np.minimum(chosen, items - 1)]
    times = FIRST_SECOND + rng.integers(0, 10**8, len(owners))
    with (target / f"{name}.inter").open("w", encoding="utf-8") as file:
        file.write("user_id:token\titem_id:token\ttimestamp:float\n")
        np.savetxt(file, np.column_stack([owners, chosen, times]), fmt="u%d\ti%d\t%d")
    words = [f"word{number}" for number in range(2000)]
    picked = rng.integers(0, len(words), (items, 6))
    with (target / f"{name}.item").open("w", encoding="utf-8") as file:
        file.write("item_id:token\ttitle:token_seq\n")
        file.writelines(f"i{item}\t{' '.join(words[w] for w in row)}\n" for item, row in enumerate(picked.tolist()))
    np.save(target / "vectors.npy", rng.standard_normal((items, VECTOR), dtype=np.float32))
    (target / "vectors.txt").write_text("".join(f"i{item}\n" for item in range(items)), encoding="utf-8")
    (target / f"{name}.yaml").write_text("load_col: {inter: [user_id, item_id, timestamp]}\n", encoding="utf-8")


# ----------------------------------------------------------------------------------------------- stages, each a process


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """Dataset and split, the first steps of an epoch of Molar or SASRec, and full ranking of some users."""
    from full_sequence import Part
    from molar_epoch import some_users

    from recbole_mm.runs.profiling import Stages
    from recbole_mm.runs.run import assemble
    from recbole_mm.training.factory import make_trainer

    folder = Path(arguments.folder)
    config = quiet_config(
        arguments.side,
        dataset_name(arguments.users),
        data_path=str(folder),
        checkpoint_dir=str(folder / "saved"),
        train_batch_size=arguments.batch_size,
        **OURS[arguments.side],
    )
    run_dir = folder / "saved" / "run"
    stages = Stages()
    run = assemble(config, run_dir, stages)
    told: dict[str, Any] = {f"{stage}, s": spent["seconds"] for stage, spent in stages.as_dict().items()}
    trainer = make_trainer(config, run.model, run_dir)
    part = Part(run.splits.train, arguments.steps)
    told["s per step"] = seconds(lambda: trainer._train_epoch(part, 0)) / len(part)
    told["steps of an epoch"] = len(run.splits.train)
    few = some_users(run.splits.valid, arguments.ranked)
    told["ranked users/s"] = len(few) / seconds(lambda: trainer.evaluate(few, load_best_model=False))
    return told


def recbole(arguments: argparse.Namespace) -> dict[str, Any]:
    """RecBole's own dataset, samples, loaders and first training steps, of SASRec."""
    from recbole.data import data_preparation
    from recbole.data.dataset import SequentialDataset
    from recbole.model.sequential_recommender import SASRec

    config = quiet_config(
        "SASRec",
        dataset_name(arguments.users),
        data_path=arguments.folder,
        train_batch_size=arguments.batch_size,
        loss_type="BPR",
        train_neg_sample_args=NEGATIVE,
        checkpoint_dir=str(Path(arguments.folder) / "saved"),
    )
    told: dict[str, Any] = {}
    holder: list[Any] = []
    told["dataset, s"] = seconds(lambda: holder.append(SequentialDataset(config)))
    told["split, s"] = seconds(lambda: holder.append(data_preparation(config, holder[0])))
    dataset, (train, _, _) = holder
    model = SASRec(config, dataset)
    optimizer = torch.optim.Adam(model.parameters())

    def steps() -> None:
        for batch in islice(train, arguments.recbole_steps):
            optimizer.zero_grad()
            model.calculate_loss(batch).backward()
            optimizer.step()

    told["s per step"] = seconds(steps) / arguments.recbole_steps
    told["steps of an epoch"] = len(train)
    return told


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# -------------------------------------------------------------------------------------------------------- watching them


def watched(command: list[str], limit_gib: float) -> dict[str, Any]:
    """Run a process; what it printed last (JSON), its seconds and peak memory, and whether the limit ended it.

    Raises:
        RuntimeError: it failed by itself.
    """
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch, peak, ended = psutil.Process(process.pid), 0, False
    while process.poll() is None:
        try:
            peak = max(peak, watch.memory_info().rss)
        except psutil.NoSuchProcess:
            break
        if peak > limit_gib * GIB:
            process.kill()
            ended = True
            break
        time.sleep(SLEEP)
    output, _ = process.communicate()
    if process.returncode and not ended:
        raise RuntimeError(f"{' '.join(command)} failed with status {process.returncode}")
    told = {} if ended else json.loads(output.strip().splitlines()[-1])
    return {**told, "seconds": time.perf_counter() - started, "peak_gib": peak / GIB, "ended": ended}


def part_of(arguments: argparse.Namespace, share: float) -> list[str]:
    """Arguments of a share of the users, with as many interactions each; the items stay."""
    users, interactions = int(arguments.users * share), int(arguments.interactions * share)
    write_dataset(Path(arguments.folder), users, arguments.items, interactions)
    passed = {"folder": arguments.folder, "users": users, "items": arguments.items, "interactions": interactions}
    passed |= {name: getattr(arguments, name) for name in ("steps", "recbole_steps", "batch_size", "ranked")}
    return [word for name, value in passed.items() for word in (f"--{name}", str(value))]


def row(label: str, users: int, told: dict[str, Any], limit: float) -> list[str]:
    names = ("dataset, s", "split, s", "artifacts, s", "s per step", "ranked users/s")
    shown = [f"{told[name]:,.2f}" if name in told else "" for name in names]
    peak = f"ended above {limit:g}" if told["ended"] else f"{told['peak_gib']:.1f}"
    return [label, f"{users:,}", *shown, f"{told['seconds']:,.0f}", peak]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where the synthetic datasets go; about 0.5 GB")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--interactions", type=int, default=9_000_000)
    parser.add_argument("--steps", type=int, default=50, help="training steps that are timed")
    parser.add_argument("--recbole_steps", type=int, default=2, help="the same of RecBole, whose steps are long")
    parser.add_argument("--batch_size", type=int, default=2048, help="targets of a step")
    parser.add_argument("--ranked", type=int, default=10_000, help="users that are ranked over all items")
    parser.add_argument("--limit_gib", type=float, default=12)
    parser.add_argument("--side", choices=[*OURS, "RecBole"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(ours(arguments) if arguments.side in OURS else recbole(arguments)))
        return
    rows = []
    command = [sys.executable, __file__]
    for model in OURS:
        told = watched([*command, "--side", model, *part_of(arguments, 1)], arguments.limit_gib)
        rows.append(row(f"ours, {model}", arguments.users, told, arguments.limit_gib))
        print(" | ".join(rows[-1]), flush=True)
    for share in RECBOLE_SHARES:
        told = watched([*command, "--side", "RecBole", *part_of(arguments, share)], arguments.limit_gib)
        rows.append(row("RecBole, SASRec", int(arguments.users * share), told, arguments.limit_gib))
        print(" | ".join(rows[-1]), flush=True)
        if told["ended"]:
            break
    head = [
        "",
        "users",
        "dataset, s",
        "split, s",
        "artifacts, s",
        "s per step",
        "ranked users/s",
        "all, s",
        "peak, GiB",
    ]
    print("\n" + markdown_table(head, rows))


if __name__ == "__main__":
    main()
