"""What finished runs rank where contents of items are hidden in the test alone, or in the training alone.

    python benchmarks/missing_modalities.py saved/Molar-hm-week-1a2b3c4d saved/Molar-hm-week-5e6f7a8b

The runs are of one model and several seeds. Nothing is trained: each is loaded with `missing_at: test`, or with
`missing_at: train` where contents were hidden from it, and ranks its test users again. Differences are from the runs as
they are, paired over users, each user's values averaged over the seeds.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import markdown_table

import recbole_mm
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.evaluation.per_user import per_user_values
from recbole_mm.evaluation.significance import compare
from recbole_mm.training.factory import make_trainer

CONTENTS = ("image", "text", "both")


def per_user(folder: Path, metric: str, **changed: Any) -> tuple[list[str], np.ndarray]:
    """Users of a run's test and their values of a metric under other settings."""
    run = recbole_mm.load(folder, changed=changed)
    logging.getLogger().setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(run.config, run.model, Path(scratch))
        trainer.evaluate(run.splits.test, load_best_model=False, show_progress=False)
    return list(map(str, run.splits.test.users.names)), per_user_values(run.config, trainer.last_struct)[metric]


def mean_over_runs(folders: list[Path], metric: str, **changed: Any) -> np.ndarray:
    """Each user's value, averaged over runs that rank the same users."""
    users, values = zip(*(per_user(folder, metric, **changed) for folder in folders))
    assert all(each == users[0] for each in users), "the runs rank the same users"
    return np.mean(values, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--metric", default="ndcg@10")
    parser.add_argument("--rates", default="0.3,0.6,0.9")
    given = parser.parse_args()
    settings = read_yaml(given.runs[0] / "config.yaml")
    if settings.get("missing_rate"):
        name = f"{settings['missing_content']} {settings['missing_rate']:g}"
        tried: dict[str, dict[str, Any]] = {f"{name} in training alone": {"missing_at": "train"}}
    else:
        rates = [float(rate) for rate in given.rates.split(",")]
        tried = {
            f"{content} {rate:g} in the test alone": {
                "missing_rate": rate,
                "missing_content": content,
                "missing_at": "test",
            }
            for content in CONTENTS
            for rate in rates
        }
    whole = mean_over_runs(given.runs, given.metric)
    rows = [["as trained", f"{whole.mean():.4f}", "", "", "", ""]]
    for name, changed in tried.items():
        found = compare(mean_over_runs(given.runs, given.metric, **changed), whole, seed=0)
        interval = f"[{found.ci_low:+.4f}, {found.ci_high:+.4f}]"
        p_value = "<0.001" if found.p_value < 0.001 else f"{found.p_value:.3f}"
        change = [f"{found.difference:+.4f}", interval, f"{found.relative:+.1%}", p_value]
        rows.append([name, f"{found.mean_a:.4f}", *change])
    print(markdown_table(["hidden", given.metric, "difference", "95% interval", "relative", "p"], rows))


if __name__ == "__main__":
    main()
