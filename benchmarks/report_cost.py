"""Processor time and memory of a report of two runs over many users, with tests and three kinds of slices.

python benchmarks/report_cost.py --users 1000000
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from common import PeakMemory, markdown_table
from recbole.data.interaction import Interaction

import recbole_mm
from recbole_mm.config.yaml_settings import SEAL_LINE, write_yaml
from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.per_user import write_per_user
from recbole_mm.evaluation.ranking import EvalUsers
from recbole_mm.evaluation.slices import PREFIX, Slices, slice_results
from recbole_mm.utils.files import write_json, write_text

ITEMS, TOPK = 80_000, (10, 20, 50)
KINDS = {"popularity": 5, "history": 6, "image": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        targets = rng.integers(1, ITEMS, arguments.users)
        parts = {name: rng.integers(0, count, ITEMS) for name, count in KINDS.items()}
        runs = [made_run(Path(folder), model, targets, parts, rng) for model in ("Molar", "SASRec")]
        start = time.process_time()
        with PeakMemory() as memory:
            page = recbole_mm.report(runs, Path(folder, "report.html"), cases=0)
        seconds, size = time.process_time() - start, page.stat().st_size
    header = ["users", "report (s)", "memory added (MiB)", "page (KiB)"]
    row = [f"{arguments.users:,}", f"{seconds:.1f}", f"{memory.added_mib:,.0f}", f"{size / 1024:,.0f}"]
    print(markdown_table(header, [row]))


def made_run(root: Path, model: str, targets: np.ndarray, parts: dict[str, np.ndarray], rng) -> Path:
    """A folder like that of a finished run: leave-one-out, ranks that grow with the number of the part."""
    folder, users = root / model, len(targets)
    folder.mkdir()
    drawn = rng.pareto(0.35, users).clip(max=ITEMS).astype(np.int64)
    ranks = (1 + drawn + parts["popularity"][targets]).clip(max=ITEMS - 1)
    positives = CSR(np.arange(users + 1), targets)
    hits = {k: ranks <= k for k in TOPK}
    metrics = {f"ndcg@{k}": hit / np.log2(ranks + 1.0) for k, hit in hits.items()}
    metrics |= {f"mrr@{k}": hit / ranks for k, hit in hits.items()}
    metrics |= {f"{name}@{k}": hit.astype(float) for name in ("recall", "hit") for k, hit in hits.items()}
    offsets = pa.array(positives.offsets, pa.int32())
    kinds = [Slices(name, [str(part) for part in range(KINDS[name])], of_items=of) for name, of in parts.items()]
    table = pa.table(
        {
            "user_id": np.char.add("user", np.arange(users).astype(str)),
            "n_positives": pa.array(np.ones(users), pa.int32()),
            "rank": pa.array(ranks, pa.int32()),
            **metrics,
            "positives": pa.ListArray.from_arrays(offsets, pa.array(targets.astype(str))),
            "ranks": pa.ListArray.from_arrays(offsets, pa.array(ranks, pa.int32())),
            **{PREFIX + kind.name: kind.column(positives) for kind in kinds},
        }
    )
    cases = EvalUsers(Interaction({}), positives, None, np.arange(users))
    result = {
        "model": model,
        "dataset": "synthetic",
        "test_result": {name: float(values.mean()) for name, values in metrics.items()},
        "seed": 1,
        "slices": slice_results(table, kinds, cases, digits=6),
        "timings": {"epochs": 1},
    }
    write_per_user(folder / "per_user.parquet", table)
    settings = {"model": model, "dataset": "synthetic", "seed": 1, "valid_metric": "NDCG@10"}
    write_text(folder / "config.yaml", f"{SEAL_LINE}{write_yaml(settings)}")
    write_json(folder / "result.json", result)
    return folder


if __name__ == "__main__":
    main()
