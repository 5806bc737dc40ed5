"""Fixtures of the tests of `recbole-mm serve`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from recbole_mm.serving.served import Served, opened_at
from recbole_mm.serving.service import Service
from tests.serving.toy_runs import asking, write_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Folders of finished runs: `first` and `second` of SASRec, and `BPR`."""
    return write_runs(tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="session")
def served(runs) -> Served:
    return opened_at(runs["first"], {})


@pytest.fixture
def client(served, runs) -> Iterator[TestClient]:
    yield from asking(Service(runs["first"], lambda folder: served))
