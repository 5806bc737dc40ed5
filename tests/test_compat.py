"""Each shim: RecBole's own line fails without it and works with it."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from recbole.data.interaction import Interaction
from recbole.evaluator.metrics import MRR, NDCG
from scipy.sparse import dok_matrix

from recbole_mm import compat


@pytest.fixture
def config():
    return {"metric_decimal_place": 4, "topk": [2]}


def test_numpy_aliases(monkeypatch, config):
    hits = np.array([[False, True], [True, False]])
    with monkeypatch.context() as without:
        without.delattr(np, "float")
        with pytest.raises(AttributeError, match="float"):
            MRR(config).metric_info(hits)
        with pytest.raises(AttributeError, match="float"):
            Interaction({"a": [[1.0]]})
    compat.restore_numpy_aliases()
    assert MRR(config).metric_info(hits)[:, -1].tolist() == [0.5, 1.0]
    assert NDCG(config).metric_info(hits, np.array([1, 1]))[1, 1] == 1.0
    assert Interaction({"a": [1.0, 2.0]})["a"].tolist() == [1.0, 2.0]


def test_numpy_aliases_leave_existing_names_alone():
    before = {name: getattr(np, name) for name in ("bool", "long", "float")}
    compat.restore_numpy_aliases()
    assert {name: getattr(np, name) for name in before} == before


def test_dok_update(monkeypatch):
    matrix = dok_matrix((2, 2), dtype=np.float32)
    with monkeypatch.context() as without:
        without.delattr(dok_matrix, "_update")
        with pytest.raises(AttributeError, match="_update"):
            matrix._update({(0, 1): 1})
    compat.restore_dok_update()
    matrix._update({(0, 1): 1, (1, 0): 1})
    assert matrix.toarray().tolist() == [[0, 1], [1, 0]]


def test_messages_without_a_place_for_what_they_are_given(caplog):
    """As RaCT's and DGCF's, which end in a traceback without the shim."""
    logger = logging.getLogger()
    with caplog.at_level(logging.INFO):
        logger.info("Load pretrained model from", "a/100%/model.pth")
        logger.info("%d of %s", 1, "two")
        assert caplog.messages == ["Load pretrained model from a/100%/model.pth", "1 of two"]
        logger.removeFilter(compat.complete_message)
        with pytest.raises(TypeError):
            logger.info("Load pretrained model from", "a/model.pth")
    compat.apply()
