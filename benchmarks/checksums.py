"""What checksums cost: checkpoints and stored vectors, written and read with them and without, in turns.

python benchmarks/checksums.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from common import markdown_table

from recbole_mm.artifacts.store import Store
from recbole_mm.training import checkpoint

PATCHES = {
    "recbole_mm.training.checkpoint.seal": lambda path: None,
    "recbole_mm.training.checkpoint.check_seal": lambda path: None,
    "recbole_mm.artifacts.values.checksum": lambda key, dtype, raw: 0,
}


def seconds(work: Callable[[], object], checked: bool) -> float:
    """Processor time of one call, with checksums or without; what waits for the disk is the same for both."""
    patches = [] if checked else [mock.patch(name, other) for name, other in PATCHES.items()]
    for patch in patches:
        patch.start()
    try:
        begin = time.process_time()
        work()
        return time.process_time() - begin
    finally:
        for patch in patches:
            patch.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400, help="of a checkpoint")
    parser.add_argument("--vectors", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; a temporary one by default")
    given = parser.parse_args()
    weights = {f"w{number}": torch.randn(2**18 * 10) for number in range(given.megabytes // 10)}
    table = np.random.default_rng(0).standard_normal((given.vectors, given.dimensions), dtype=np.float32)
    vectors = {f"{number:064x}": row for number, row in enumerate(table)}
    parts = [dict(list(vectors.items())[start : start + 256]) for start in range(0, len(vectors), 256)]
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        times: dict[tuple[str, bool], list[float]] = {}
        for number in range(given.rounds):
            for checked in (True, False):
                tree, store = folder / "tree.safetensors", Store(folder / f"{number}-{checked}.sqlite")

                def fill(store: Store = store) -> None:
                    for part in parts:
                        store.put_many("v", part)

                works: dict[str, Callable[[], object]] = {
                    "checkpoint, written": lambda tree=tree: checkpoint.save_tree(tree, weights),
                    "checkpoint, read": lambda tree=tree: checkpoint.load_tree(tree),
                    "vectors, written": fill,
                    "vectors, read as a matrix": lambda store=store: store.get_matrix(list(vectors)),
                    "vectors, looked for by a stage": partial(store.sound if checked else store.contains, vectors),
                }
                for what, work in works.items():
                    times.setdefault((what, checked), []).append(seconds(work, checked))
                store.close()
                store.path.unlink()
    rows = []
    for what in dict.fromkeys(what for what, _ in times):
        with_, without = times[what, True], times[what, False]
        ratios = [a / b for a, b in zip(with_, without)]
        rounds = ", ".join(f"{ratio:.2f}" for ratio in ratios)
        medians = [f"{statistics.median(values):.3f}" for values in (with_, without)]
        rows.append([what, *medians, f"{statistics.median(ratios):.2f} ({rounds})"])
    print(markdown_table(["processor time, s", "with checksums", "without", "ratio (rounds)"], rows))


if __name__ == "__main__":
    main()
