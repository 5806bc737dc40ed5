"""Load on `recbole-mm serve` by Locust: milliseconds of an answer at a rate, and requests lost while runs change.

    pip install locust                                                       # or --locust PATH of one elsewhere
    taskset -c 0,1 python benchmarks/serve.py --folder DIR                   # 200 requests/s, SASRec, 80,000 items
    python benchmarks/serve.py --folder DIR --model Molar --rates 100,200,400 --changes 3
    python benchmarks/serve.py --folder DIR --users 5000 --items 4000 --interactions 60000 --rates 50 --seconds 5

The data are those of `scale.py`. The runs are as they are before training; their lists cost what those of trained ones
do. `serve_load.py` says what is asked. Each rate is measured without and, if `--changes`, with changes of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import markdown_table
from recommend import make_run
from scale import dataset_name, write_dataset

HERE = Path(__file__).parent
TIMES = ["p50, ms", "p95, ms", "p99, ms", "slowest, ms"]
HEAD = ["requests/s", "changes", "requests", "failed", "asked/s", *TIMES, "processor, ms per request"]
WARM_UP_SECONDS = 3


def runs_of(arguments: argparse.Namespace) -> list[Path]:
    """Return the folders of two runs, of which one takes over from the other."""
    name = f"{arguments.model}-{dataset_name(arguments.users)}-served"
    return [Path(arguments.folder) / f"{name}-{number}" for number in (1, 2)]


def turn(link: Path, runs: list[Path]) -> None:
    """Have a link lead to the other run."""
    other = runs[1] if link.exists() and link.resolve() == runs[0].resolve() else runs[0]
    draft = link.with_name(f"{link.name}.next")
    draft.unlink(missing_ok=True)
    draft.symlink_to(other.resolve())
    draft.replace(link)


def load(arguments: argparse.Namespace, address: str, rate: int, seconds: float) -> subprocess.Popen:
    """Start Locust."""
    command = [arguments.locust, "-f", str(HERE / "serve_load.py"), "--headless", "--only-summary", "--json"]
    command += ["-u", str(rate), "-r", str(rate), "-t", f"{seconds:g}s", "--host", address, "--loglevel", "ERROR"]
    env = {**os.environ, "SERVE_USERS": str(arguments.users), "SERVE_ITEMS": str(arguments.items)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def row_of(told: str, rate: int, changes: int, seconds: float) -> list[Any]:
    """Return the row of a table from what Locust wrote."""
    entries = json.loads(told)
    times = [(float(ms), count) for entry in entries for ms, count in entry["response_times"].items()]
    found = np.sort(np.repeat(*map(np.array, zip(*times, strict=True))))
    asked, failed = (sum(entry[name] for entry in entries) for name in ("num_requests", "num_failures"))
    shown = [f"{value:g}" for value in np.percentile(found, [50, 95, 99, 100], method="higher")]
    return [rate, changes, asked, failed, f"{asked / seconds:.0f}", *shown]


def measured(arguments: argparse.Namespace, server: subprocess.Popen, address: str, rate: int, changes: int) -> list:
    """Load a server, and have it change runs meanwhile, `changes` times or until the load ends; return a row."""
    load(arguments, address, min(rate, 50), WARM_UP_SECONDS).communicate()
    before = processor_seconds(server)
    loading = load(arguments, address, rate, arguments.seconds)
    done = 0
    while done < changes and loading.poll() is None:
        turn(Path(arguments.folder) / "served", runs_of(arguments))
        server.send_signal(signal.SIGHUP)
        assert server.stdout is not None
        server.stdout.readline()  # once the other run is served
        done += loading.poll() is None
    out, err = loading.communicate()
    try:
        row = row_of(out, rate, done, arguments.seconds)
    except ValueError:
        sys.exit(f"Locust wrote no results:\n{out}\n{err}")
    return [*row, f"{1000 * (processor_seconds(server) - before) / row[2]:.1f}"]


def processor_seconds(server: subprocess.Popen) -> float:
    """Return what a server has spent of processors, which a machine that does something else, too, hardly changes."""
    spent = psutil.Process(server.pid).cpu_times()
    return spent.user + spent.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", required=True, help="where the synthetic dataset and the runs go")
    parser.add_argument("--model", choices=["SASRec", "Molar"], default="SASRec")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=80_000)
    parser.add_argument("--interactions", type=int, default=2_000_000)
    parser.add_argument("--rates", default="200", help="requests per second, a row each")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument(
        "--changes", type=int, default=3, help="changes of the run at most, in a second row of each rate"
    )
    parser.add_argument("--locust", default="locust", help="Locust's command")
    arguments = parser.parse_args()
    folder, link = Path(arguments.folder), Path(arguments.folder) / "served"
    write_dataset(folder, arguments.users, arguments.items, arguments.interactions)
    for run_dir in runs_of(arguments):
        if not (run_dir / "result.json").is_file():
            make_run(arguments, run_dir, arguments.model)
    turn(link, runs_of(arguments))
    command = [sys.executable, "-m", "recbole_mm.cli", "serve", str(link), "--port=0", "--look_every=0"]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE.parent) as server:
        try:
            assert server.stdout is not None
            ready = re.search(r"(http://\S+:\d+)/", server.stdout.readline())
            assert ready is not None
            for rate in map(int, arguments.rates.split(",")):
                for changes in dict.fromkeys((0, arguments.changes)):
                    rows.append(measured(arguments, server, ready[1], rate, changes))
                    print(" | ".join(map(str, rows[-1])), flush=True)
        finally:
            server.send_signal(signal.SIGTERM)
    print("\n" + markdown_table(HEAD, rows))


if __name__ == "__main__":
    main()
