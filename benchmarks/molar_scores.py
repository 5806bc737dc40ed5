"""What each part of a trained Molar ranks alone: its content score, its ID model's, and their sum.

    python benchmarks/molar_scores.py saved/Molar-shop-1a2b3c4d [more run folders]

Nothing is trained: the runs are loaded and rank their validation and test users again, once by each score.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from common import markdown_table

import recbole_mm
from recbole_mm.training.factory import make_trainer

SCORES = ("content", "id", "fused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--metrics", default="ndcg@10,recall@10")
    given = parser.parse_args()
    metrics = given.metrics.split(",")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for folder in given.runs:
            run = recbole_mm.load(folder)
            logging.getLogger().setLevel(logging.WARNING)
            trainer = make_trainer(run.config, run.model, Path(scratch))
            for score in SCORES:
                run.model.score = score
                for phase, data in (("validation", run.splits.valid), ("test", run.splits.test)):
                    found = trainer.evaluate(data, load_best_model=False, show_progress=False)
                    rows.append([folder.name, score, phase, *(f"{found[metric]:.4f}" for metric in metrics)])
    print(markdown_table(["run", "score", "of", *metrics], rows))


if __name__ == "__main__":
    main()
