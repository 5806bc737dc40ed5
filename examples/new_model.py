"""A model of your own, run as any other and tested against SASRec: python examples/new_model.py

The model is in mean_vector.py beside this file; docs/add-a-model.md explains it.
"""

from __future__ import annotations

import shop
from mean_vector import MeanVector

import recbole_mm
from recbole_mm.experiments.compare.command import compare_finished
from recbole_mm.experiments.compare.table import to_markdown


def main() -> None:
    """Train both, and print a table with a paired test over users."""
    name = shop.dataset()
    own = recbole_mm.run(MeanVector, name, config_dict={"epochs": 30})
    sasrec = recbole_mm.run("SASRec", name, config_dict={"full_sequence": True, "epochs": 30})
    print(to_markdown(compare_finished([own.run_dir, sasrec.run_dir], metrics=["NDCG@10", "Recall@10"])))
    again = recbole_mm.load(own.run_dir, MeanVector)
    assert again.test_result == own.test_result


if __name__ == "__main__":
    main()
