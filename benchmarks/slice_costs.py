"""Processor time of the slices of a test: five kinds and twelve metrics over many users.

python benchmarks/slice_costs.py --users 1000000
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pyarrow as pa
from common import markdown_table
from recbole.data.interaction import Interaction

from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.ranking import EvalUsers
from recbole_mm.evaluation.slices import PREFIX, Slices, slice_results

ITEMS, KINDS, PARTS = 80_000, 5, list("abcde")
METRICS = [f"{name}@{k}" for name in ("ndcg", "recall", "mrr", "hit") for k in (10, 20, 50)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--targets", type=int, default=1, help="of each user")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    offsets = np.arange(arguments.users + 1) * arguments.targets
    positives = CSR(offsets, rng.integers(1, ITEMS, offsets[-1]))
    cases = EvalUsers(Interaction({}), positives, None, np.arange(arguments.users))
    kinds = [Slices(f"kind {n}", PARTS, of_items=rng.integers(0, len(PARTS), ITEMS)) for n in range(KINDS)]
    ranks = pa.array(rng.integers(1, ITEMS, offsets[-1]).astype(np.int32))
    table = pa.table(
        {
            "user_id": np.arange(arguments.users).astype(str),
            "ranks": pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), ranks),
            **{metric: rng.random(arguments.users) for metric in METRICS},
        }
    )
    start = time.process_time()
    for kind in kinds:
        table = table.append_column(PREFIX + kind.name, kind.column(positives))
    columns = time.process_time()
    slice_results(table, kinds, cases, digits=6)
    end = time.process_time()
    header = ["users", "targets", "columns of per_user.parquet (s)", "metrics of all parts (s)"]
    row = [f"{arguments.users:,}", f"{offsets[-1]:,}", f"{columns - start:.2f}", f"{end - columns:.2f}"]
    print(markdown_table(header, [row]))


if __name__ == "__main__":
    main()
