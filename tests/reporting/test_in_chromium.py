"""Pages in a browser, light and dark, and before the accessibility checker axe."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from tests.chromium import SCHEMES, needs_axe, needs_chromium, screenshot, violations


@pytest.mark.slow
@needs_chromium
def test_chromium_draws_it_in_light_and_dark(runs, tmp_path):
    path = recbole_mm.report(list(runs.values()), tmp_path / "report.html")
    pictures = {}
    for scheme in SCHEMES:
        with Image.open(screenshot(path.as_uri(), tmp_path / f"{scheme}.png", scheme)) as picture:
            pictures[scheme] = np.asarray(picture.convert("L"), dtype=np.float64)
    assert pictures["light"].mean() > 200
    assert pictures["dark"].mean() < 80
    assert all(picture.std() > 5 for picture in pictures.values()), "there is something on them"


@pytest.mark.slow
@needs_axe
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing(runs, tmp_path, scheme):
    path = recbole_mm.report(list(runs.values()), tmp_path / "report.html")
    assert violations(path.read_text(encoding="utf-8"), tmp_path, scheme) == []
