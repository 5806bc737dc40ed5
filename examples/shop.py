"""The tables and pictures of a small shop, which the other examples use: python examples/shop.py

A customer buys mostly one kind of product, which titles and pictures tell.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from recbole_mm.datasets import CONVERTERS

KINDS = {"shirt": (200, 40, 40), "shoe": (40, 160, 60), "lamp": (50, 60, 200), "chair": (200, 180, 40)}


def tables(folder: str = "downloads/shop", customers: int = 200, products: int = 96) -> Path:
    """Write orders.csv, products.csv and images/ into a folder."""
    rng, root = np.random.default_rng(7), Path(folder)
    (root / "images").mkdir(parents=True, exist_ok=True)
    kinds = [list(KINDS)[number % len(KINDS)] for number in range(products)]
    with (root / "products.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(["item_id", "title", "kind", "price"])
        for number, kind in enumerate(kinds):
            csv.writer(file).writerow([f"p{number}", f"The {kind} number {number}", kind, 5 + number % 17])
            shade = tuple(int(part) for part in np.add(KINDS[kind], rng.integers(-30, 30, 3)))
            Image.new("RGB", (48, 48), shade).save(root / "images" / f"p{number}.png")
    with (root / "orders.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow(["user_id", "item_id", "timestamp"])
        for customer in range(customers):
            favourite = rng.choice(list(KINDS))
            bought = [n for n in rng.permutation(products) if kinds[n] == favourite or rng.random() < 0.1]
            start = 1_700_000_000 + customer * 1000
            for day, number in enumerate(bought[: rng.integers(5, 15)]):
                csv.writer(file).writerow([f"c{customer}", f"p{number}", start + 86_400 * day])
    return root


def dataset() -> str:
    """Make dataset/shop of the tables, unless it is there; returns its name."""
    if not Path("dataset/shop/shop.inter").is_file():
        CONVERTERS["csv"].convert(tables(), "dataset/shop")
    return "shop"


if __name__ == "__main__":
    print(tables())
