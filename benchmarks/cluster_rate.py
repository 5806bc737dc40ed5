"""How many workers one process can keep busy: a stage on a Ray of this machine, whose workers sleep as GPUs would work.

    python benchmarks/cluster_rate.py                          # workers as fast as docs/scale.md assumes of a GPU
    python benchmarks/cluster_rate.py --seconds 3 --workers 8 64

Every batch is sent, handed out, answered with vectors and taken back as in a run with `--ray_address`; only the model
is a sleep. Efficiency is the time that so many workers need for their batches, if nothing else took any, over the time
that it took: `sent` alone, and `written` into an artifact store as well. All processes share the cores of this machine,
so with many workers the figure is a lower bound for a cluster, where only the caller's own part runs on its cores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown_table
from cost_model import BACKBONES, DATASETS, Assumed, Costs

from recbole_mm.artifacts.executor import RemoteWork
from recbole_mm.artifacts.fill import fill
from recbole_mm.artifacts.store import Store
from recbole_mm.distributed.cluster import Resources, cores
from recbole_mm.distributed.stages import NAMES, RayExecutor

ITEMS = 64
"""Of a batch."""

IMAGE_BYTES = 40_000
"""About a JPEG of 448 x 448."""

WARM_UP_PASSES = 50
"""Of two batches a worker, at most, before every worker must have answered."""


@dataclass(frozen=True)
class Sleeper:
    """A worker that takes `seconds` for a batch and answers with vectors of `width`."""

    seconds: float
    width: int

    def open(self, device: str) -> Sleeper:
        return self

    def compute(self, inputs: list[Any]) -> list[Any]:
        time.sleep(self.seconds)
        return [np.ones(self.width, dtype=np.float32)] * len(inputs)

    def report(self) -> dict[str, Any]:
        return {"process": os.getpid()}


def cut(missing: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    items = iter(missing.items())
    while batch := dict(islice(items, ITEMS)):
        yield batch


def of_a_gpu() -> float:
    """Seconds in which a GPU encodes a batch with Qwen2-VL-2B, by the assumptions of docs/scale.md."""
    assumed = Assumed()
    costs = Costs(BACKBONES[0], DATASETS[0], assumed)
    return costs.reading(ITEMS, assumed.text_tokens + assumed.instruction_tokens, images=1)


def measured(workers: int, batches: int, seconds: float) -> tuple[float, float]:
    """Efficiency without and with writing; `batches` of each worker."""
    seen: set[int] = set()
    work = RemoteWork(Sleeper(seconds, BACKBONES[0].hidden), cut, lambda told: seen.add(told["process"]))
    asked = Resources(cores() / workers, 0, workers, None, 2_048, NAMES)
    image = os.urandom(IMAGE_BYTES)

    def inputs(per_worker: int) -> dict[str, bytes]:
        return {f"{number:064x}": image for number in range(per_worker * workers * ITEMS)}

    ideal = batches * seconds
    with RayExecutor(asked) as executor, tempfile.TemporaryDirectory() as folder:
        for _ in range(WARM_UP_PASSES):
            for _ in executor.stream(work, inputs(2)):
                pass
            if len(seen) == workers:
                break
        else:
            raise RuntimeError(f"only {len(seen)} of {workers} workers came up")
        started = time.perf_counter()
        count = sum(len(values) for values in executor.stream(work, inputs(batches)))
        sent = time.perf_counter() - started
        with Store(Path(folder) / "artifacts.sqlite") as store:
            report = fill(
                store, "sleep", inputs(batches), list, show_progress=False, executor=executor, remote_work=work
            )
        if not count == report.computed == batches * workers * ITEMS or len(seen) != workers:
            raise RuntimeError(f"{count} and {report.computed} values by {len(seen)} workers")
    return ideal / sent, ideal / report.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--batches", type=int, default=30, help="of each worker")
    parser.add_argument("--seconds", type=float, default=of_a_gpu(), help="that a worker takes for a batch of 64 items")
    arguments = parser.parse_args()
    rows = []
    for workers in arguments.workers:
        sent, written = measured(workers, arguments.batches, arguments.seconds)
        rate = workers * ITEMS / arguments.seconds
        rows.append([workers, f"{rate:,.0f}", f"{sent:.2f}", f"{rate * sent:,.0f}", f"{written:.2f}"])
        print(f"{workers} workers: sent {sent:.3f}, written {written:.3f}", flush=True)
    head = ["workers", "items/s if nothing else took time", "efficiency, sent", "items/s", "efficiency, written"]
    print(f"\n{arguments.seconds:.3g} s a batch of {ITEMS}, on {cores()} cores\n")
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
