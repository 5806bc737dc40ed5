"""The refined item graph: ours against a dense N x N build, seconds and added memory; and ours alone at full size.

    python benchmarks/graph_refinement.py                                        # 20,000 items, both sides
    python benchmarks/graph_refinement.py --items 300000 --interactions 8800000  # ours alone

Synthetic data: vectors in clusters of about 30 items, popularity of items and activity of users by power laws; by
default 3.3 users and 29.3 interactions an item, as in Amazon's clothing. Each side runs in a process of its own on the
same data; what is reported is the memory added to data and libraries, and (with them) the peak. Above 50,000 items the
dense side is left out: one matrix of 300,000 x 300,000 takes 335 GiB.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import PeakMemory, markdown_table
from scipy.sparse import csr_array, load_npz, save_npz

from recbole_mm.graph import co_occurrence_graph, normalized, refined_graph, similarity_graph

K = 10
# Above this many items the dense side is left out: 50,000 need some 40 GB.
DENSE_ITEMS = 50_000


def make_data(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors (items, dim), and users and items of interactions; item 0 is padding."""
    rng = np.random.default_rng(0)
    n_items, dim = arguments.items, arguments.dim
    themes = rng.normal(size=(300, dim)).astype(np.float32)
    kinds = rng.normal(size=(max(n_items // 30, 1), dim)).astype(np.float32)
    kinds = 0.8 * themes[rng.integers(0, len(themes), len(kinds))] + 0.9 * kinds
    vectors = np.zeros((n_items, dim), dtype=np.float32)
    for start in range(1, n_items, 4096):
        rows = vectors[start : start + 4096]
        rows += kinds[rng.integers(0, len(kinds), len(rows))]
        rows += 0.7 * rng.standard_normal(rows.shape, dtype=np.float32)
    n_users = arguments.users or int(3.3 * n_items)
    interactions = arguments.interactions or int(29.3 * n_items)
    more = rng.choice(n_users, size=max(interactions - n_users, 0), p=power_law(n_users, 0.7, 500))
    users = np.concatenate([np.arange(n_users), more])[:interactions] + 1
    items = rng.choice(n_items - 1, size=len(users), p=power_law(n_items - 1, 0.75, 50)) + 1
    return vectors, users, items


def power_law(count: int, exponent: float, shift: int) -> np.ndarray:
    weights = (np.arange(1, count + 1) + shift) ** -exponent
    return weights / weights.sum()


def dense_graph(vectors: np.ndarray, users: np.ndarray, items: np.ndarray, threshold: float) -> torch.Tensor:
    """The same equations with N x N matrices, as one would write them down; (N, N)."""
    graph = dense_similarity(torch.from_numpy(vectors), threshold) + dense_co_occurrence(users, items, len(vectors))
    scale = graph.sum(1) ** -0.5
    scale[torch.isinf(scale)] = 0
    return scale[:, None] * graph * scale[None, :]


def dense_similarity(vectors: torch.Tensor, threshold: float) -> torch.Tensor:
    unit = torch.nn.functional.normalize(vectors, dim=1)
    cosines = unit @ unit.T
    best, ids = torch.topk(cosines, K, dim=1)
    return torch.zeros_like(cosines).scatter_(1, ids, (best >= threshold).float())


def dense_co_occurrence(users: np.ndarray, items: np.ndarray, n_items: int) -> torch.Tensor:
    pairs = np.unique(users.astype(np.int64) * n_items + items)
    had = csr_array((np.ones(len(pairs), np.float32), (pairs // n_items, pairs % n_items)))
    had.resize(had.shape[0], n_items)
    shared = torch.from_numpy((had.T @ had).toarray())
    audience = shared.diagonal().clone()
    jaccard = shared / (audience[:, None] + audience[None, :] - shared).clamp(min=1)
    jaccard.fill_diagonal_(0)
    best, ids = torch.topk(jaccard, K, dim=1)
    return torch.zeros_like(jaccard).scatter_(1, ids, best)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds, added and peak MiB of one side; runs in a process of its own."""
    vectors, users, items = make_data(arguments)
    parts: dict[str, float] = {}
    with PeakMemory() as memory:
        start, start_cpu = time.perf_counter(), time.process_time()
        if arguments.side == "dense":
            graph = dense_graph(vectors, users, items, arguments.threshold)
        elif arguments.parts:
            similar = similarity_graph(vectors, K, arguments.threshold)
            parts["similarity"] = time.perf_counter() - start
            together = co_occurrence_graph(users, items, len(vectors), K)
            parts["co-occurrence"] = time.perf_counter() - start - parts["similarity"]
            graph = normalized(similar + together)
        else:
            graph = refined_graph(vectors, users, items, similar_k=K, co_k=K, threshold=arguments.threshold)
        seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    graph = graph if isinstance(graph, csr_array) else csr_array(graph.numpy())
    save_npz(arguments.save, graph)
    added = {"added": memory.added_mib, "peak": memory.peak_mib}
    return {"seconds": seconds, "cpu": cpu, **added, "edges": graph.nnz, "interactions": len(users), **parts}


def in_subprocess(side: str, save: Path) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--save", str(save)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


def difference(ours: Path, dense: Path) -> str:
    """How far the graphs agree: float32 sums decide ties and the threshold's edge on the dense side."""
    one, other = load_npz(ours), load_npz(dense)
    both = (one != 0).multiply(other != 0)
    gap = abs(one - other).multiply(both)
    return (
        f"{both.nnz:,} edges in both, {one.nnz - both.nnz:,} in ours only, {other.nnz - both.nnz:,} in the dense one "
        f"only; largest difference of a weight in both {gap.max():.1e}. The dense side keeps any of those that tie for "
        "the last place, and a row's sum changes with it."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20_000, help="number of item ids, padding included")
    parser.add_argument("--users", type=int, help="default: 3.3 an item")
    parser.add_argument("--interactions", type=int, help="default: 29.3 an item")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--threshold", type=float, default=0.7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", action="store_true", help="time the two parts of ours one by one")
    parser.add_argument("--side", choices=["dense", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.side:
        print(json.dumps(measure(arguments)))
        return
    sides = ["dense", "ours"] if arguments.items <= DENSE_ITEMS else ["ours"]
    with tempfile.TemporaryDirectory() as folder:
        files = {side: Path(folder) / f"{side}.npz" for side in sides}
        measured = {side: in_subprocess(side, files[side]) for side in sides}
        agreement = difference(files["ours"], files["dense"]) if len(sides) == 2 else ""
    head = ["refined graph", "seconds", "CPU seconds", "added MiB", "peak MiB", "edges"]
    rows: list[list[str]] = [
        [side, f"{m['seconds']:.1f}", f"{m['cpu']:.1f}", f"{m['added']:,.0f}", f"{m['peak']:,.0f}", f"{m['edges']:,}"]
        for side, m in measured.items()
    ]
    ours = measured["ours"]
    if len(sides) == 2:
        dense = measured["dense"]
        ratios = [f"{dense[key] / ours[key]:.1f}x" for key in ("seconds", "cpu", "added")]
        rows.append(["ratio", *ratios, "", ""])
    print(
        f"{arguments.items:,} items x {arguments.dim}, {ours['interactions']:,} interactions, k = {K}, "
        f"threshold {arguments.threshold}, {arguments.threads} thread(s)\n"
    )
    print(markdown_table(head, rows))
    for part in ("similarity", "co-occurrence"):
        if part in ours:
            print(f"\n{part}: {ours[part]:.1f} s")
    if agreement:
        print(f"\n{agreement}")


if __name__ == "__main__":
    main()
