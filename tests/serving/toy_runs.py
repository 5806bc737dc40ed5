"""Finished runs whose items hold hostile titles and pictures, and clients that ask a server about them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from PIL import Image
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.serving.app import create_app
from recbole_mm.serving.service import Service
from tests.conftest import TOY_SETTINGS, write_toy

HOSTILE = {
    "i1": "<img src=x onerror=alert(1)></script><script>alert(2)</script>",
    "i2": '=HYPERLINK("http://x")',
    "i3": "\u202edlrow olleh\u202c \U0001f469\u200d\U0001f680",
}
"""Titles that would be more than text somewhere."""

KEY = "0123456789abcdef-of-a-test"


def write_runs(folder: Path) -> dict[str, Path]:
    """Return the folders of finished runs: two of SASRec, whose seeds differ, and one of BPR."""
    data = write_toy(folder / "data")
    write_hostile(data / "toy")
    settings = {**TOY_SETTINGS, "epochs": 1, "data_path": str(data), "checkpoint_dir": str(folder / "saved")}

    def run(model: str, **more: Any) -> Path:
        return recbole_mm.run(model, "toy", config_dict={**settings, **more}).run_dir

    return {"first": run("SASRec"), "second": run("SASRec", seed=5), "BPR": run("BPR")}


def write_hostile(toy: Path) -> None:
    """Give items of the toy hostile titles; i4 a picture that is none, i5 no picture, i6 a large one."""
    items = toy / "toy.item"
    rows = [line.split("\t") for line in items.read_text(encoding="utf-8").splitlines()]
    lines = ["\t".join([row[0], HOSTILE.get(row[0], row[1]), *row[2:]]) for row in rows]
    items.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (toy / "images" / "i4.png").write_text("<html><script>alert(3)</script></html>")
    (toy / "images" / "i5.png").unlink()
    Image.new("RGB", (3000, 1000), "red").save(toy / "images" / "i6.png")


def asking(service: Service, **options: Any) -> Iterator[TestClient]:
    """Yield a client of an application while it is alive."""
    with TestClient(create_app(service, **options), base_url="http://127.0.0.1:8000") as client:
        yield client


def listed(answer: dict[str, Any]) -> list[tuple[str, float]]:
    """Return ids and scores of an answer."""
    return [(item["item"], item["score"]) for item in answer["items"]]
