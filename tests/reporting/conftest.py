"""Runs that are reported on."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from tests.conftest import TOY_SETTINGS, write_toy
from tests.reporting.pages import MARKUP, TURNED, Page, page_of


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Model -> folder of a finished run, on a toy whose first titles are not what they seem."""
    root = tmp_path_factory.mktemp("report")
    data = write_toy(root / "data")
    items = data / "toy" / "toy.item"
    text = items.read_text(encoding="utf-8")
    for number in range(0, 40, 2):
        kind = MARKUP if number % 4 else TURNED
        text = re.sub(
            rf"^i{number}\tThe \w+ film",
            lambda found, kind=kind: f"{found[0].split(chr(9))[0]}\t{kind}",
            text,
            flags=re.M,
        )
    items.write_text(text, encoding="utf-8")
    (data / "toy" / "images" / "i3.png").write_bytes(b"no image at all")
    settings = {**TOY_SETTINGS, "slices": ["popularity", "item.class"], "data_path": str(data)}
    settings["checkpoint_dir"] = str(root / "saved")
    return {model: recbole_mm.run(model, "toy", config_dict=settings).run_dir for model in ("SASRec", "Pop")}


@pytest.fixture
def copies(runs, tmp_path) -> dict[str, Path]:
    """The same folders, to be changed."""
    return {model: Path(shutil.copytree(folder, tmp_path / folder.name)) for model, folder in runs.items()}


@pytest.fixture(scope="session")
def page(runs, tmp_path_factory) -> Page:
    return page_of(recbole_mm.report(list(runs.values()), tmp_path_factory.mktemp("page") / "report.html", cases=4))
