"""The row of the best ID model under a table: which models count, what decides, what is said where there is none."""

from __future__ import annotations

import json

import pytest
import yaml

from recbole_mm.experiments.compare.best_id import reads_interactions_alone, with_best_id_model
from recbole_mm.experiments.compare.summary import TableRow, summarize
from recbole_mm.experiments.compare.table import to_csv, to_latex, to_markdown
from recbole_mm.runs.run import run
from recbole_mm.utils.seal import CHECKSUM
from tests.conftest import TOY_FEATURES, TOY_SETTINGS


@pytest.mark.parametrize(
    ("settings", "alone"),
    [
        ({"model": "SASRec"}, True),
        ({"model": "eSASRec"}, True),
        ({"model": "LightGCN"}, True),
        ({"model": "DuoRec"}, True),
        ({"model": "Molar"}, False),
        ({"model": "MLLMMSR"}, False),
        ({"model": "FREEDOM", "content_features": ["text"]}, False),
        ({"model": "TIGER", "content_features": ["text"]}, False),
        ({"model": "SASRecF", "selected_features": ["class"]}, False),
        ({"model": "CKE"}, False),
        ({"model": "FM"}, False),
        ({"model": "of another package"}, False),
    ],
)
def test_which_models_know_items_by_their_ids_alone(settings, alone):
    assert reads_interactions_alone(settings) is alone


@pytest.fixture(scope="module")
def runs(toy_path, tmp_path_factory):
    """Model -> the folder of its finished run."""
    saved = str(tmp_path_factory.mktemp("saved"))
    given = {**TOY_SETTINGS, "data_path": str(toy_path), "checkpoint_dir": saved, "epochs": 2, "seed": 1}
    own = {"Pop": {}, "BPR": {"embedding_size": 8}, "VBPR": {"item_features": TOY_FEATURES}}
    return {model: run(model, "toy", config_dict={**given, **own[model]}).run_dir for model in own}


@pytest.fixture
def table(runs):
    """`table(names, **changes of a row)`: the rows of these models, the last one the reference."""

    def build(*names, **trials):
        rows = [TableRow(name, "", name, "done", "", {1: runs[name]}, trials.get(name, 1)) for name in names]
        return with_best_id_model(summarize(rows, ["NDCG@10", "Recall@5"], names[-1], [1]))

    return build


def validation(folder, value):
    """Give a finished run another validation result than it had."""
    path = folder / "result.json"
    result = json.loads(path.read_text())
    result.pop(CHECKSUM, None)
    result["best_valid_result"]["ndcg@10"] = value
    path.write_text(json.dumps(result))


@pytest.mark.parametrize(("pop", "bpr", "best"), [(0.3, 0.2, "Pop"), (0.2, 0.3, "BPR")])
def test_the_best_by_validation_stands_below(table, runs, pop, bpr, best):
    validation(runs["Pop"], pop)
    validation(runs["BPR"], bpr)
    validation(runs["VBPR"], 0.9)
    found = table("Pop", "BPR", "VBPR")
    assert found.id_line.row.name == f"best ID model: {best}"
    (own,) = [line for line in found.lines if line.row.name == best]
    assert {metric: cell.mean for metric, cell in found.id_line.cells.items()} == {
        metric: cell.mean for metric, cell in own.cells.items()
    }
    assert found.id_line.cells["NDCG@10"].test == own.cells["NDCG@10"].test
    assert len(found.lines) == 3, "it is no row of its own: ranks and corrections are those of three rows"
    said = f"best ID model: {best}, the best of Pop, BPR by validation NDCG@10, each with the budget of VBPR."
    for written in (to_markdown(found), to_latex(found, "x")):
        assert said in written
        assert written.count(f"best ID model: {best}") >= 2
    assert to_csv(found).count(f"best ID model: {best}") == 2, "a line for each metric"


def test_other_budgets_do_not_count(table, runs):
    validation(runs["Pop"], 0.3)
    validation(runs["BPR"], 0.2)
    found = table("Pop", "BPR", "VBPR", Pop=4)
    assert found.id_line.row.name == "best ID model: BPR"
    assert "the best by validation" in found.id_note


def test_rows_that_were_trained_otherwise_do_not_count(table, runs):
    path = runs["BPR"] / "config.yaml"
    before = path.read_text()
    path.write_text(yaml.safe_dump({**yaml.safe_load(before), "epochs": 9}))
    try:
        found = table("BPR", "VBPR")
    finally:
        path.write_text(before)
    assert found.id_line is None


def test_where_there_is_none_the_table_says_so(table):
    found = table("VBPR")
    assert found.id_line is None
    assert "none of the rows with the budget of VBPR is a model of interactions alone" in to_markdown(found)


def test_the_reference_can_be_the_one(table):
    found = table("VBPR", "BPR")
    assert found.id_line.row.name == "best ID model: BPR"
    assert found.id_line.cells["NDCG@10"].test is None
