"""From parsed interactions to the first sequential batch: RecBole's augmentation against flat samples.

    python benchmarks/sequence_building.py --data_path DIR --dataset microlens-50k

Both sides start from the same loaded and filtered table and end with the first training batch of 2048 samples. Each
runs in its own process, so that peak memory is its own; what is reported is the memory added to the loaded table's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from common import PeakMemory, markdown_table, quiet_config


def measure(side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds and added MiB of one side; runs in a process of its own."""
    from recbole.data.dataset import SequentialDataset

    from recbole_mm.data.dataset import create_dataset

    config = quiet_config("SASRec", arguments.dataset, data_path=arguments.data_path)
    dataset = create_dataset(config) if side == "ours" else SequentialDataset(config)
    with PeakMemory() as memory:
        start = time.perf_counter()
        batch = dataset.build()[0][list(range(2048))]
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "added_mb": memory.added_mib, "rows": len(batch)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", required=True)
    parser.add_argument("--dataset", default="microlens-50k")
    parser.add_argument("--side", choices=["ours", "RecBole"])
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments)))
        return
    measured = {}
    for side in ("RecBole", "ours"):
        command = [sys.executable, __file__, "--data_path", arguments.data_path, "--dataset", arguments.dataset]
        output = subprocess.run([*command, "--side", side], check=True, capture_output=True, text=True).stdout
        measured[side] = json.loads(output.strip().splitlines()[-1])
    theirs, ours = measured["RecBole"], measured["ours"]
    rows = [[side, f"{values['seconds']:.3f}", f"{values['added_mb']:.0f}"] for side, values in measured.items()]
    ratio = [
        f"{theirs['seconds'] / ours['seconds']:.0f}x faster",
        f"1/{theirs['added_mb'] / max(ours['added_mb'], 1):.0f}",
    ]
    print(markdown_table([f"first batch, {arguments.dataset}", "seconds", "added MiB"], [*rows, ["ratio", *ratio]]))


if __name__ == "__main__":
    main()
