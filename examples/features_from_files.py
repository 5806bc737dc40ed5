"""Vectors that you have already, as what items are: python examples/features_from_files.py

Here they are the mean colors of the pictures; any (n, d) array with a file of n item ids will do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shop
from PIL import Image

import recbole_mm


def write_features(folder: Path) -> None:
    """Write colors.npy, float32 (n, 3), and color_ids.txt, an item id a line."""
    paths = sorted((folder / "images").iterdir())
    colors = [np.asarray(Image.open(path).convert("RGB"), dtype=np.float32).mean((0, 1)) / 255 for path in paths]
    np.save(folder / "colors.npy", np.stack(colors))
    (folder / "color_ids.txt").write_text("".join(f"{path.stem}\n" for path in paths), encoding="utf-8")


def main() -> None:
    """Train a sequential and a general model over the same file."""
    name = shop.dataset()
    write_features(Path("dataset") / name)
    settings = {
        "item_features": {"colors": {"file": "colors.npy", "ids": "color_ids.txt"}},
        "content_features": ["colors"],
        "epochs": 30,
    }
    for model in ("SASRecContent", "VBPR"):
        outcome = recbole_mm.run(model, name, config_dict=settings)
        print(f"{model:14} NDCG@10 {outcome.test_result['ndcg@10']:.4f}")


if __name__ == "__main__":
    main()
