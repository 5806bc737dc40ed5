"""Items that nobody has chosen yet, ranked by content and by ids: python examples/cold_start.py

A tenth of the items is held out with all of their interactions, and ranked among themselves. A model of ids can do no
better than chance; what content brings is the difference.
"""

from __future__ import annotations

from pathlib import Path

import shop
from features_from_files import write_features

import recbole_mm

PROTOCOL = {
    "eval_args": {"split": {"cold_items": [0.8, 0.1, 0.1]}},
    "candidates": "cold",
    "topk": [3],
    "valid_metric": "NDCG@3",
    "epochs": 30,
}
CONTENT = {
    "item_features": {"colors": {"file": "colors.npy", "ids": "color_ids.txt"}},
    "content_features": ["colors"],
}


def main() -> None:
    """Train SASRec over ids and over content, and print both metrics of the held-out items."""
    name = shop.dataset()
    write_features(Path("dataset") / name)
    ids = recbole_mm.run("SASRec", name, config_dict={**PROTOCOL, "full_sequence": True})
    content = recbole_mm.run("SASRecContent", name, config_dict={**PROTOCOL, **CONTENT})
    for what, outcome in {"ids": ids, "content": content}.items():
        print(f"SASRec of {what:8} NDCG@3 {outcome.test_result['ndcg@3']:.4f}")


if __name__ == "__main__":
    main()
