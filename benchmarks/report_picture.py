"""The picture of a report in docs/report.md and README.md: two models on a small shop whose items are drawn here.

python benchmarks/report_picture.py --out docs/images/report.png      (needs Chromium)
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import recbole_mm

SHAPES = ("ball", "box", "kite", "ring", "stick")
COLORS = {"red": "#c0392b", "blue": "#2e6fb7", "green": "#3a9d5d", "amber": "#e0a030", "plum": "#83559b"}
TOYS = [(color, shape, size) for color in COLORS for shape in SHAPES for size in ("small", "large")]
USERS, LONGEST, SIDE = 800, 14, 160

SHOWN = """<style>details, p, .scroll:has(table), section:not(:has(.case)):nth-of-type(n+3) { display: none; }
section:nth-of-type(2) figure:nth-of-type(n+2) { display: none; } .case p { display: block; }</style>"""
"""What the picture leaves out of the page."""

SIZE = ("--window-size=1000,1560", "--force-device-scale-factor=0.7")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/report.png"))
    parser.add_argument("--html", type=Path, help="where to keep the report")
    arguments = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium is installed")
    with tempfile.TemporaryDirectory() as folder:
        page = report(Path(folder), arguments.html or Path(folder, "report.html"))
        cut = Path(folder, "cut.html")
        cut.write_text(page.read_text(encoding="utf-8") + SHOWN, encoding="utf-8")
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *SIZE)
        shot = f"--screenshot={arguments.out.resolve()}"
        subprocess.run([chromium, *options, shot, cut.as_uri()], check=True, capture_output=True)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1024:.0f} KiB")


def report(folder: Path, out: Path) -> Path:
    """Train two models on the shop, and write their report."""
    write_shop(folder / "toys")
    settings = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "text_fields": ["title"],
        "image_dir": "images",
        "show_progress": False,
        "state": "WARNING",
        "topk": [5, 10],
        "valid_metric": "NDCG@10",
        "epochs": 12,
    }
    runs = [recbole_mm.run(model, "toys", config_dict=settings) for model in ("SASRec", "BPR")]
    return recbole_mm.report(runs, out, cases=1).resolve()


def write_shop(root: Path) -> None:
    """Write toys of five shapes and colors; who took one takes next one that shares its color, or else its shape."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(5)
    rows = ["user_id:token\titem_id:token\ttimestamp:float"]
    kinds = np.array([[list(COLORS).index(color), SHAPES.index(shape)] for color, shape, _ in TOYS])
    liked = rng.gamma(0.8, size=len(TOYS))
    for user in range(USERS):
        item, taken = int(rng.integers(len(TOYS))), list[int]()
        for step in range(int(rng.integers(4, LONGEST))):
            taken.append(item)
            rows.append(f"user{user:03}\ttoy{item:02}\t{step}")
            weights = liked * (0.02 + (kinds[:, 0] == kinds[item, 0]) + 0.4 * (kinds[:, 1] == kinds[item, 1]))
            weights[taken] = 0
            item = int(rng.choice(len(TOYS), p=weights / weights.sum()))
    (root / "toys.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    titles = [f"toy{place:02}\t{size.title()} {color} {shape}" for place, (color, shape, size) in enumerate(TOYS)]
    (root / "toys.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *titles]) + "\n", encoding="utf-8")
    for place, toy in enumerate(TOYS):
        drawn(*toy).save(root / "images" / f"toy{place:02}.png")


def drawn(color: str, shape: str, size: str) -> Image.Image:
    """Draw a toy."""
    picture = Image.new("RGB", (SIDE, SIDE), "#ffffff")
    pen, middle, half, fill = ImageDraw.Draw(picture), SIDE // 2, 36 if size == "small" else 64, COLORS[color]
    box = (middle - half, middle - half, middle + half, middle + half)
    if shape == "ball":
        pen.ellipse(box, fill=fill)
    elif shape == "box":
        pen.rectangle(box, fill=fill)
    elif shape == "kite":
        pen.regular_polygon((middle, middle, half), 4, rotation=45, fill=fill)
    elif shape == "ring":
        pen.ellipse(box, outline=fill, width=half // 2)
    else:
        pen.line((box[0], box[3], box[2], box[1]), fill=fill, width=half // 3)
    return picture


if __name__ == "__main__":
    main()
