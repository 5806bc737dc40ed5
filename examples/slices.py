"""For whom and for what a model is good: metrics of parts of the test: python examples/slices.py"""

from __future__ import annotations

import pandas as pd
import shop

import recbole_mm


def main() -> None:
    """Print a run's metrics by popularity, by length of history and by a column of the items; and another cut."""
    settings = {"full_sequence": True, "epochs": 30, "slices": ["popularity", "history", "kind"]}
    outcome = recbole_mm.run("SASRec", shop.dataset(), config_dict=settings)
    for kind, parts in outcome.slices.items():
        for part, metrics in parts.items():
            print(f"{kind:12} {part:12} {metrics['users']:4} users  NDCG@10 {metrics['ndcg@10']:.4f}")
    table = pd.read_parquet(outcome.run_dir / "per_user.parquet")  # other cuts need no new run
    even = table["user_id"].str[1:].astype(int) % 2 == 0
    print(f"users of even number: NDCG@10 {table.loc[even, 'ndcg@10'].mean():.4f}")


if __name__ == "__main__":
    main()
