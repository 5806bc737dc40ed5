"""Training Molar on a quiet machine and beside a busy process, by how torch's threads wait for each other.

    python benchmarks/shared_machine.py --spins 1000,2000,3000,5000,10000

OpenMP reads how threads wait (`OMP_WAIT_POLICY`, `GOMP_SPINCOUNT`) when torch is loaded, so every way of waiting has
a process of its own. They train the same model on the same data in turns, each for so many batches or seconds; while
one trains, the others wait for input and use no core. The busy process is started and ended here.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

UNSET = "unset"
QUIET, BUSY = "quiet", "one core busy"


class SomeBatches:
    """Batches of a loader, over as many epochs as needed, until there are enough or time is up.

    Args:
        loader: of the run.
        most: batches.
        seconds: after which no further batch begins.

    Attributes:
        taken: batches that were handed out.
    """

    def __init__(self, loader: Any, most: int, seconds: float) -> None:
        self.loader, self.most, self.seconds, self.taken = loader, most, seconds, 0

    def __len__(self) -> int:
        return self.most

    def __iter__(self) -> Iterator[Any]:
        deadline = time.perf_counter() + self.seconds
        every_epoch = itertools.chain.from_iterable(itertools.repeat(self.loader))
        for batch in itertools.islice(every_epoch, self.most):
            if time.perf_counter() >= deadline:
                return
            self.taken += 1
            yield batch


def train_in_turns(arguments: argparse.Namespace) -> None:
    """What a process of one way of waiting does: for each line that comes in, train, and print batches per second."""
    import torch
    from common import quiet_config

    from recbole_mm.runs.profiling import Stages
    from recbole_mm.runs.run import assemble
    from recbole_mm.training.factory import make_trainer

    logging.disable(logging.WARNING)  # that `tiny` is untrained, four times
    folder = Path(arguments.folder)
    settings = {"mllm": "tiny", "modalities": ["text"], "checkpoint_dir": str(folder), "data_path": arguments.data_path}
    config = quiet_config("Molar", arguments.dataset, **settings)
    run = assemble(config, folder, Stages())
    trainer = make_trainer(config, run.model, folder)

    def rate(most: int) -> float:
        batches = SomeBatches(run.splits.train, most, arguments.seconds)
        started = time.perf_counter()
        trainer._train_epoch(batches, 0)
        return batches.taken / (time.perf_counter() - started)

    with torch.autograd.set_detect_anomaly(False):  # importing RecBole turns it on
        rate(3)  # the first batches warm up
        print("ready", flush=True)
        for _ in sys.stdin:
            print(rate(arguments.batches), flush=True)


class Turn:
    """The process of one way of waiting, ready to train.

    Args:
        environment: that asks for this way of waiting.
        arguments: for the process.
    """

    def __init__(self, environment: dict[str, str], arguments: list[str]) -> None:
        kept = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
        command = [sys.executable, __file__, "--train", *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**kept, **environment}, **pipes)
        self._line()

    def batches_per_second(self) -> float:
        print("train", file=self.process.stdin, flush=True)
        return float(self._line())

    def end(self) -> None:
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"a training process has ended with status {self.process.wait()}")
        return line


def ways_to_wait(spins: str) -> dict[str, dict[str, str]]:
    """Name of a way of waiting -> the environment that asks for it; torch's own, passive, and each of the counts."""
    counts = [count.strip() for count in spins.split(",") if count.strip()]
    bounded = {f"{count} spins": {"GOMP_SPINCOUNT": count} for count in counts}
    return {UNSET: {}, "PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"}, **bounded}


@contextmanager
def load(busy: bool) -> Iterator[None]:
    """With `busy`, a process that does nothing but count, for as long as the block runs."""
    if not busy:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(arguments: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """Batches per second, once a round, by way of waiting and load."""
    rates: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        given = ["--folder", folder, "--dataset", arguments.dataset, "--batches", str(arguments.batches)]
        given += ["--seconds", str(arguments.seconds)]
        given += ["--data_path", arguments.data_path] if arguments.data_path else []
        turns = {name: Turn(environment, given) for name, environment in ways_to_wait(arguments.spins).items()}
        for _ in range(arguments.rounds):
            for name, turn in turns.items():
                for where in (QUIET, BUSY):
                    with load(where == BUSY):
                        rates.setdefault((name, where), []).append(turn.batches_per_second())
        for turn in turns.values():
            turn.end()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data_path", help="folder that holds the dataset's")
    add("--dataset", default="ml-100k")
    add("--spins", default="1000,10000", metavar="1000,2000", help="values of GOMP_SPINCOUNT to try")
    add("--rounds", type=int, default=3, help="turns of every way of waiting")
    add("--batches", type=int, default=30, help="most batches of a turn")
    add("--seconds", type=float, default=8, help="after which a turn begins no further batch")
    add("--train", action="store_true", help=argparse.SUPPRESS)
    add("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        import torch  # noqa: F401  (before recbole_mm, which sets OMP_WAIT_POLICY where torch is not loaded yet)

        train_in_turns(arguments)
        return
    from common import markdown_table

    rates = measure(arguments)
    base = {where: median(rates[UNSET, where]) for where in (QUIET, BUSY)}
    rows = []
    for name in ways_to_wait(arguments.spins):
        own = {where: median(rates[name, where]) for where in (QUIET, BUSY)}
        cells = [f"{own[where]:.2f} ({own[where] / base[where]:.2f}x)" for where in (QUIET, BUSY)]
        spread = "; ".join(
            f"{where} " + ", ".join(f"{rate:.2f}" for rate in rates[name, where]) for where in (QUIET, BUSY)
        )
        rows.append([name, *cells, spread])
    threads = os.environ.get("OMP_NUM_THREADS", f"{os.cpu_count()}")
    print(f"Molar (mllm: tiny) on {arguments.dataset}, batches/s of training, {threads} threads\n")
    print(markdown_table(["threads wait", QUIET, BUSY, "every round"], rows))


if __name__ == "__main__":
    main()
