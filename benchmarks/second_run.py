"""Time from imports to the first optimizer step of Molar, when everything is cached.

    python benchmarks/second_run.py --dataset ml-100k

The first run fills the artifact store and ends after one step; the second is a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time

from common import markdown_table


def seconds_to_first_step(arguments: argparse.Namespace) -> float:
    """Run Molar for one optimizer step and time it; imports are done before the clock starts."""
    from recbole_mm.runs import run as pipeline
    from recbole_mm.training.loop import TrainingLoop

    first: list[float] = []
    original = TrainingLoop._step

    def step(self) -> None:
        original(self)
        first.append(time.perf_counter())

    TrainingLoop._step = step
    settings = {"checkpoint_dir": arguments.folder, "max_train_steps": 1, "show_progress": False, "state": "ERROR"}
    if arguments.data_path:
        settings["data_path"] = arguments.data_path
    start = time.perf_counter()
    pipeline.run("Molar", arguments.dataset, config_dict=settings)
    return first[0] - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", default="")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--folder", help="measure here, in this process")
    arguments = parser.parse_args()
    if arguments.folder:
        print(seconds_to_first_step(arguments))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--dataset", arguments.dataset, "--folder", folder]
        if arguments.data_path:
            command += ["--data_path", arguments.data_path]
        seconds = [
            float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
            for _ in range(2)
        ]
    rows = [["first run", f"{seconds[0]:.1f}"], ["second run", f"{seconds[1]:.1f}"]]
    print(markdown_table([f"Molar, {arguments.dataset}", "seconds to the first step"], rows))


if __name__ == "__main__":
    main()
