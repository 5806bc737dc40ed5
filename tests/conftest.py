"""Shared fixtures: a small multimodal dataset on disk, and configs that use it."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import recbole_mm  # noqa: F401  (applies the compatibility shims before RecBole is imported)
from recbole_mm.utils.log import close_logging

GENRES = ("action", "comedy", "drama", "horror")


def write_toy(folder: Path, name: str = "toy", users: int = 60, items: int = 40, seed: int = 7) -> Path:
    """A dataset whose next item is mostly of the genre of the last one, told by its text and its image's colour.

    Returns:
        The folder that holds the dataset's folder: what `data_path` wants.
    """
    rng = np.random.default_rng(seed)
    root = folder / name
    (root / "images").mkdir(parents=True)
    genre = np.arange(items) % len(GENRES)
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(users):
        favourite = rng.integers(len(GENRES))
        length = int(rng.integers(4, 16))
        mine = [i for i in rng.permutation(items) if genre[i] == favourite or rng.random() < 0.2][:length]
        for step, item in enumerate(mine):
            lines.append(f"u{user}\ti{item}\t{rng.integers(1, 6)}\t{1_700_000_000 + user * 10_000 + step}")
    (root / f"{name}.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = ["item_id:token\ttitle:token_seq\tclass:token_seq"]
    rows += [f"i{i}\tThe {GENRES[genre[i]]} film number {i}\t{GENRES[genre[i]]}" for i in range(items)]
    (root / f"{name}.item").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for i in range(items):
        colour = tuple(int(c) for c in np.eye(3)[genre[i] % 3] * 200 + 20)
        Image.new("RGB", (32, 40), colour).save(root / "images" / f"i{i}.png")
    (root / "vector_ids.txt").write_text("".join(f"i{i}\n" for i in range(items)))
    links = ["item_id:token\tentity_id:token", *(f"i{i}\te{i}" for i in range(items))]
    (root / f"{name}.link").write_text("\n".join(links) + "\n")
    triples = ["head_id:token\trelation_id:token\ttail_id:token"]
    triples += [f"e{i}\tr{i % 3}\tg{i % 7}" for i in range(items)]
    (root / f"{name}.kg").write_text("\n".join(triples) + "\n")
    for kind, width in (("text", 6), ("image", 5)):
        vectors = np.eye(len(GENRES), width)[genre] + rng.normal(0, 0.1, (items, width))
        np.save(root / f"{kind}.npy", vectors.astype(np.float32))
    return folder


TOY_FEATURES = {kind: {"file": f"{kind}.npy", "ids": "vector_ids.txt"} for kind in ("text", "image")}
"""`item_features` of vectors that tell an item's genre, from files beside the dataset."""

KNOWLEDGE = {
    "load_col": {
        "inter": ["user_id", "item_id", "timestamp"],
        "kg": ["head_id", "relation_id", "tail_id"],
        "link": ["item_id", "entity_id"],
    }
}
"""What a knowledge model loads: each item is linked to one of seven things by one of three relations."""

TOY_SETTINGS = {
    "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"], "item": ["item_id", "class"]},
    "text_fields": ["title", "class"],
    "image_dir": "images",
    "MAX_ITEM_LIST_LENGTH": 10,
    "epochs": 2,
    "train_batch_size": 256,
    "topk": [5, 10],
    "valid_metric": "NDCG@10",
    "show_progress": False,
    "state": "WARNING",
}


LONG = ("test_contract", "test_tune_ray", "test_ray_train", "test_ray_stages", "test_texts_serve", "test_kill")
"""Files of few tests that each take long."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files so that a short one is the last: a worker of pytest-xdist takes a whole file (`--dist=loadfile`)."""
    count = Counter(item.path for item in items)
    places = {file: LONG.index(file.stem) if file.stem in LONG else len(LONG) for file in count}
    items.sort(key=lambda item: (places[item.path], -count[item.path], item.path))


@pytest.fixture(autouse=True)
def without_anomaly_detection() -> None:
    """Turn off what importing RecBole's sequential models turns on for the whole process (sine.py:25).

    It records a Python stack for every operation, which makes an epoch of a small model several times slower. A
    trainer's `fit` turns it off by itself; tests also call what is inside. They should import the models at the top.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].autograd.set_detect_anomaly(False)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """End what a run in this process set up: handlers, and the level (`state: ERROR` would hide later warnings)."""
    level = logging.getLogger().level
    yield
    close_logging()
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory) -> Path:
    """`data_path` of the small dataset `toy`."""
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture
def toy_settings(toy_path, tmp_path) -> dict:
    """A `config_dict` for `toy` that writes into the test's own folder."""
    return {**TOY_SETTINGS, "data_path": str(toy_path), "checkpoint_dir": str(tmp_path / "saved")}


@pytest.fixture
def toy_config(toy_settings):
    """`toy_config(model, **settings)` -> Config on `toy`."""
    from recbole_mm.config.resolved import Config

    def build(model: str = "SASRec", **settings):
        return Config(model, "toy", config_dict={**toy_settings, **settings})

    return build


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the raw real datasets, or skip."""
    folder = os.environ.get("RECBOLE_MM_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RECBOLE_MM_TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the runs of a test module share."""
    return tmp_path_factory.mktemp("saved")
