"""A search for settings by Ray Tune; validation alone chooses, the best is tested once: python examples/search.py

The same on the command line: recbole-mm tune --model SASRec --dataset shop --space space.yaml --trials 4
"""

from __future__ import annotations

from pathlib import Path

import shop

from recbole_mm.experiments.tune.command import tune_model

SPACE = """
learning_rate: {loguniform: [1e-3, 1e-1]}
hidden_size: {choice: [16, 32, 64]}
"""


def main() -> None:
    """Try four settings, one at a time, and print the best one's test."""
    Path("space.yaml").write_text(SPACE, encoding="utf-8")
    found = tune_model(
        "SASRec",
        shop.dataset(),
        space=Path("space.yaml"),
        trials=4,
        jobs=1,
        scheduler="none",
        command_line={"epochs": "10", "full_sequence": "True", "show_progress": "False"},
    )
    print(f"{found.metric} on validation: {found.score:.4f} with {found.settings}")
    print(f"test NDCG@10: {found.result['test_result']['ndcg@10']:.4f}; all trials: {found.out}/trials.md")


if __name__ == "__main__":
    main()
