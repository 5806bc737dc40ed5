"""Writes and reads of the artifact store, and the bytes that a value takes: what one writing process can keep up with.

    python benchmarks/store_rate.py --folder DIR      # on the disk that artifact_dir is to lie on

Values are written as a stage writes them, 64 in a transaction.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import markdown_table

from recbole_mm.artifacts.fill import DEFAULT_BATCH
from recbole_mm.artifacts.store import Store
from recbole_mm.artifacts.values import Value

RANDOM = np.random.default_rng(0)
KINDS: dict[str, Callable[[], Value]] = {
    "a text of 600 letters": lambda: "x" * 600,
    "a vector of 384": lambda: RANDOM.standard_normal(384).astype(np.float32),
    "a vector of 1,536 (Qwen2-VL-2B)": lambda: RANDOM.standard_normal(1536).astype(np.float32),
    "a vector of 3,584 (Qwen2-VL-7B)": lambda: RANDOM.standard_normal(3584).astype(np.float32),
}


def measured(make: Callable[[], Value], count: int, folder: Path) -> tuple[float, float, float]:
    """Writes per second, reads per second and bytes of a value, over `count` values in a new store."""
    keys = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    batches = [{key: make() for key in keys[at : at + DEFAULT_BATCH]} for at in range(0, count, DEFAULT_BATCH)]
    store = Store(folder / "artifacts.sqlite")
    started = time.perf_counter()
    for batch in batches:
        store.put_many("benchmark", batch)
    written = time.perf_counter()
    store.get_many(keys)
    read = time.perf_counter()
    store.close()  # which empties the write-ahead log into the file
    size = sum(path.stat().st_size for path in folder.iterdir())
    return count / (written - started), count / (read - written), size / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where a temporary store is made; by default the system's own")
    parser.add_argument("--count", type=int, default=20_000)
    arguments = parser.parse_args()
    rows = []
    for name, make in KINDS.items():
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            writes, reads, size = measured(make, arguments.count, Path(folder))
        rows.append([name, f"{writes:,.0f}", f"{reads:,.0f}", f"{size:,.0f}"])
    print(markdown_table(["value", "written/s", "read/s", "bytes"], rows))


if __name__ == "__main__":
    main()
