"""Full ranking: users per second and memory of our collector against RecBole's own, on the same synthetic model.

    python benchmarks/full_ranking.py                       # 50,000 users x 83,000 items
    python benchmarks/full_ranking.py --users 5001 --items 20000

Both sides rank with the same vectors, positives and histories. They take turns in one process, so that whatever else
the machine does hits both; only the ratio counts. RecBole's side is its own code: `FullSortEvalDataLoader.collate_fn`,
`Trainer._full_sort_batch_eval`, `Collector.eval_batch_collect`, `Evaluator`. It is much slower, so it ranks only some
of the users; rates are per user. Memory is the growth of a process of its own that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector, Evaluator
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType

from recbole_mm.evaluation.collector import RankingCollector
from recbole_mm.evaluation.ranking import CSR, EvalUsers, rank_users

DIM = 64
HISTORY = 20
CONFIG = {
    "metrics": ["Recall", "MRR", "NDCG", "Hit", "Precision"],
    "topk": [10, 20, 50],
    "metric_decimal_place": 10,
    "eval_args": {"mode": "full"},
    "eval_type": EvaluatorType.RANKING,
    "device": torch.device("cpu"),
    "eval_batch_size": 4096,
    "USER_ID_FIELD": "user_id",
    "ITEM_ID_FIELD": "item_id",
}


class Vectors(torch.nn.Module):
    """A dot-product recommender: user and item vectors, as BPR or a sequential model's last state."""

    def __init__(self, users: int, items: int, positives: np.ndarray) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.items = torch.randn(items, DIM, generator=draw)
        # Each user leans towards the positive, so that metrics are neither 0 nor 1.
        self.users = torch.randn(users, DIM, generator=draw) + 0.3 * self.items[torch.from_numpy(positives)]

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        return torch.matmul(self.users[interaction["user_id"]], self.items.transpose(0, 1))

    def user_vectors(self, interaction: Interaction) -> torch.Tensor:
        return self.users[interaction["user_id"]]

    def item_vectors(self) -> torch.Tensor:
        return self.items


def make_case(users: int, items: int) -> SimpleNamespace:
    """Model, positives (users,) and histories (users x HISTORY), the same for both sides. User 0 is padding."""
    rng = np.random.default_rng(0)
    positives = rng.integers(1, items, users)
    history = CSR(np.arange(users + 1) * HISTORY, rng.integers(1, items, users * HISTORY))
    return SimpleNamespace(
        users=users, items=items, positives=positives, history=history, model=Vectors(users, items, positives)
    )


def run_ours(case: SimpleNamespace, ranked: np.ndarray, style: str, memory_mb: float) -> dict[str, float]:
    users = EvalUsers(
        interaction=Interaction({"user_id": torch.from_numpy(ranked)}),
        positives=CSR(np.arange(len(ranked) + 1), case.positives[ranked]),
        history=case.history.take(ranked) if style == "general" else None,
        user_ids=ranked,
    )
    struct = rank_users(
        case.model, users, case.items, collector=RankingCollector(CONFIG), memory_mb=memory_mb, batch_size=4096
    )
    return Evaluator(CONFIG).evaluate(struct)


def run_recbole(case: SimpleNamespace, ranked: np.ndarray, style: str) -> dict[str, float]:
    trainer = Trainer.__new__(Trainer)  # its methods, without an optimizer and a log folder
    trainer.model, trainer.device, trainer.tot_item_num = case.model, CONFIG["device"], case.items
    collector = Collector(CONFIG)
    loader = _recbole_loader(case, ranked, style)
    with torch.no_grad():
        for start in range(0, len(ranked), loader.step):
            batch = loader.collate_fn(list(range(start, min(start + loader.step, len(ranked)))))
            interaction, scores, positive_u, positive_i = trainer._full_sort_batch_eval(batch)
            collector.eval_batch_collect(scores, interaction, positive_u, positive_i)
    return Evaluator(CONFIG).evaluate(collector.get_data_struct())


def _recbole_loader(case: SimpleNamespace, ranked: np.ndarray, style: str) -> Any:
    """RecBole's loader for these users, with the fields its constructor would fill from a dataset."""
    loader = FullSortEvalDataLoader.__new__(FullSortEvalDataLoader)
    loader.uid_field, loader.iid_field, loader.is_sequential = "user_id", "item_id", style == "sequential"
    loader.transform = lambda dataset, batch: batch
    fields = {"user_id": torch.from_numpy(ranked), "item_id": torch.from_numpy(case.positives[ranked])}
    if style == "sequential":
        loader._dataset = Interaction(fields)
        loader.step = CONFIG["eval_batch_size"]
        return loader
    loader.user_df = Interaction({"user_id": fields["user_id"]})
    loader.uid2positive_item = np.array([None] * case.users)
    loader.uid2history_item = np.array([None] * case.users)
    for user in ranked:
        mine = case.history.items[case.history.offsets[user] : case.history.offsets[user + 1]]
        loader.uid2positive_item[user] = torch.from_numpy(case.positives[user : user + 1])
        loader.uid2history_item[user] = torch.from_numpy(np.setdiff1d(mine, case.positives[user : user + 1]))
    loader.step = max(CONFIG["eval_batch_size"] // case.items, 1)  # FullSortEvalDataLoader._init_batch_size_and_step
    return loader


def timed(run: Any, *args: Any) -> tuple[float, dict[str, float]]:
    start = time.perf_counter()
    result = run(*args)
    return time.perf_counter() - start, result


def measure_speed(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides in turns: each round RecBole ranks its share of users, then we rank ours."""
    case = make_case(args.users, args.items)
    few = args.recbole_general if args.style == "general" else args.recbole_sequential
    rounds = np.array_split(np.arange(1, args.users), args.rounds)
    seconds = np.zeros((args.rounds, 2))
    ranked = np.array([[min(few // args.rounds, len(mine)), len(mine)] for mine in rounds])
    same = True
    for number, mine in enumerate(rounds):
        theirs = mine[: ranked[number, 0]]
        seconds[number, 0], expected = timed(run_recbole, case, theirs, args.style)
        seconds[number, 1], _ = timed(run_ours, case, mine, args.style, args.memory_mb)
        same &= run_ours(case, theirs, args.style, args.memory_mb) == expected
    rates = ranked / seconds
    return {
        "users": ranked.sum(0).tolist(),
        "rates": np.median(rates, axis=0).tolist(),
        "ratio": float(np.median(rates[:, 1] / rates[:, 0])),
        "ratios": (rates[:, 1] / rates[:, 0]).tolist(),
        "same": bool(same),
    }


def measure_memory(args: argparse.Namespace) -> dict[str, float]:
    """Growth of this process over what model and data take: ours over all users, RecBole's over two batches."""
    case = make_case(args.users, args.items)
    before = psutil.Process().memory_info().rss
    if args.memory_of == "ours":
        run_ours(case, np.arange(1, args.users), args.style, args.memory_mb)
    else:
        run_recbole(case, np.arange(1, min(args.users, 2 * CONFIG["eval_batch_size"])), args.style)
    return {"added": peak_rss() - before}


def peak_rss() -> int:
    """Peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_subprocess(*extra: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], *extra]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=50_001, help="number of user ids, padding included")
    parser.add_argument("--items", type=int, default=83_000, help="number of item ids, padding included")
    parser.add_argument("--recbole-sequential", type=int, default=4 * 4096, help="users that RecBole ranks")
    parser.add_argument("--recbole-general", type=int, default=2_000, help="users that RecBole ranks")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each side")
    parser.add_argument("--memory-mb", type=float, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--style", choices=["sequential", "general"], help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=["ours", "recbole"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.style:
        print(json.dumps(measure_memory(args) if args.memory_of else measure_speed(args)))
        return
    print(
        f"{args.users - 1:,} users x {args.items - 1:,} items, d = {DIM}, {args.threads} threads, one positive each\n"
    )
    print("| style | side | users ranked | users/s | ratio (of each round) | added memory | same metrics |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for style in ("sequential", "general"):
        speed = in_subprocess(f"--style={style}")
        for place, side in enumerate(("recbole", "ours")):
            added = in_subprocess(f"--style={style}", f"--memory-of={side}")["added"]
            each = ", ".join(f"{ratio:.1f}" for ratio in speed["ratios"])
            ratio = f"**{speed['ratio']:.1f}** ({each})" if side == "ours" else "1"
            print(
                f"| {style} | {side} | {speed['users'][place]:,} | {speed['rates'][place]:,.0f} | {ratio} "
                f"| {added / 2**30:.2f} GiB | {'yes' if speed['same'] else 'NO'} |",
                flush=True,
            )
    rows = CONFIG["eval_batch_size"]
    print(
        f"\nRecBole's batches are its defaults: sequential {rows} rows (scores and matrix of positives take "
        f"{2 * 4 * rows * args.items / 2**30:.1f} GiB), general {max(rows // args.items, 1)} user(s). Metrics are "
        "compared on the users that both sides ranked."
    )


if __name__ == "__main__":
    main()
