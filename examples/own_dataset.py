"""Tables of your own become a dataset, and two models are ranked on it: python examples/own_dataset.py [FOLDER]

FOLDER holds a CSV of users, items and times, and perhaps one of items and a folder images/; without it, a small shop
is made up. The same on the command line: recbole-mm prepare csv --source FOLDER --out dataset/shop
"""

from __future__ import annotations

import sys

import shop

import recbole_mm
from recbole_mm.datasets import CONVERTERS


def main(folder: str | None = None) -> None:
    """Convert, train SASRec and Molar, and print their metrics beside Pop's."""
    print(CONVERTERS["csv"].convert(folder or shop.tables(), "dataset/shop"))
    sasrec = recbole_mm.run("SASRec", "shop", config_dict={"full_sequence": True, "epochs": 30})
    molar = recbole_mm.run("Molar", "shop", config_dict={"mllm": "tiny", "epochs": 5})
    for name, metrics in {"SASRec": sasrec.test_result, "Molar": molar.test_result, **sasrec.beside}.items():
        print(f"{name:8} NDCG@10 {metrics['ndcg@10']:.4f}  Recall@10 {metrics['recall@10']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
