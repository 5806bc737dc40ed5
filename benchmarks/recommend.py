"""Lists for a million users of a catalogue of 300,000 items: users per second, and memory that does not grow with them.

    python benchmarks/recommend.py --folder DIR                       # 1,000,000 users x 300,000 items, 100,000 listed
    python benchmarks/recommend.py --folder DIR --users 20000 --items 6000 --interactions 180000 --listed 5000,20000

The data are those of `scale.py`. The run is a SASRec as it is before training, whose lists cost what those of a trained
one do. Each row is a process of its own, whose peak memory is watched from outside.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from common import markdown_table, quiet_config
from scale import OURS, dataset_name, seconds, watched, write_dataset

K = 10


def make_run(arguments: argparse.Namespace, run_dir: Path, model: str = "SASRec") -> None:
    """Write the folder of a run that is finished without training."""
    from recbole_mm.runs.folder import CONFIG, WEIGHTS, write_result
    from recbole_mm.runs.profiling import Stages
    from recbole_mm.runs.run import assemble
    from recbole_mm.training.checkpoint import save_tree
    from recbole_mm.training.state import model_tree

    folder = Path(arguments.folder)
    config = quiet_config(
        model, dataset_name(arguments.users), data_path=str(folder), checkpoint_dir=str(folder), **OURS[model]
    )
    run = assemble(config, run_dir, Stages())
    run_dir.mkdir(parents=True, exist_ok=True)
    config.save(run_dir / CONFIG)
    save_tree(run_dir / WEIGHTS, model_tree(run.model))
    write_result(run, {}, {})


def listed(arguments: argparse.Namespace, run_dir: Path) -> dict[str, Any]:
    """Open the run and write the lists of its first users to a file."""
    from recbole_mm.recommending.command import opened, recommend

    holder: list[Any] = []
    told = {"open, s": seconds(lambda: holder.append(opened(run_dir)))}
    count = int(arguments.listed)
    users = [str(token) for token in holder[0].user_tokens[1 : count + 1]]
    out = run_dir / f"top{arguments.suffix}"
    begun = time.process_time()
    spent = seconds(lambda: recommend(holder[0], K, users=users, out=out))
    rates = {"users/s": count / spent, "per processor second": count / (time.process_time() - begun)}
    return {**told, **rates, "megabytes": out.stat().st_size / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where the synthetic dataset goes; about 0.5 GB")
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--interactions", type=int, default=9_000_000)
    parser.add_argument("--listed", default="10000,100000", help="users that lists are written for, a row each")
    parser.add_argument("--suffix", default=".parquet", help="kind of the file")
    parser.add_argument("--limit_gib", type=float, default=12)
    parser.add_argument("--side", choices=["make", "list"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run_dir = Path(arguments.folder) / f"SASRec-{dataset_name(arguments.users)}-untrained"
    if arguments.side == "make":
        make_run(arguments, run_dir)
        print("{}")
        return
    if arguments.side == "list":
        print(json.dumps(listed(arguments, run_dir)))
        return
    write_dataset(Path(arguments.folder), arguments.users, arguments.items, arguments.interactions)
    names = ("folder", "users", "items", "interactions", "suffix")
    shared = [word for name in names for word in (f"--{name}", str(getattr(arguments, name)))]
    command = [sys.executable, __file__, *shared]
    shutil.rmtree(run_dir, ignore_errors=True)
    watched([*command, "--side", "make"], arguments.limit_gib)
    rows = []
    for count in arguments.listed.split(","):
        told = watched([*command, "--side", "list", "--listed", count], arguments.limit_gib)
        names = ("open, s", "users/s", "per processor second", "megabytes", "seconds", "peak_gib")
        shown = [f"{told[name]:,.1f}" for name in names]
        rows.append([f"{int(count):,}", *shown])
        print(" | ".join(rows[-1]), flush=True)
    head = ["users", "open, s", "users/s", "users per processor second", "file, MB", "all, s", "peak, GiB"]
    print("\n" + markdown_table(head, rows))


if __name__ == "__main__":
    main()
