"""Tables of a sampled protocol: general and sequential models side by side, and the experiments of MLLM-MSR."""

from __future__ import annotations

import numpy as np
import pytest

import recbole_mm
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.evaluation.candidates import FILES
from recbole_mm.evaluation.per_user import read_per_user
from recbole_mm.evaluation.significance import both_have, compare
from recbole_mm.experiments.compare.command import compare_finished
from recbole_mm.experiments.compare.experiment import load_experiment
from recbole_mm.experiments.compare.plan import plan_rows
from recbole_mm.experiments.compare.summary import TableRow, summarize
from recbole_mm.experiments.compare.table import to_csv, to_latex, to_markdown
from recbole_mm.runs.folder import first_run_dir, read_result
from recbole_mm.runs.needed import needed_runs
from tests.conftest import write_toy

METRICS = ["GAUC", "Hit@5", "MRR@5"]
SAMPLED = {"eval_args": {"mode": "uni20"}, "metrics": ["GAUC", "Hit", "MRR"], "topk": [5], "valid_metric": "GAUC"}
SMALL = {"hidden_size": 16, "inner_size": 16, "embedding_size": 16, "n_layers": 1, "n_heads": 1}
MSR = ["msr-table2", "msr-ablation", "msr-blocks"]


@pytest.fixture
def run(toy_settings):
    """`run(model, seed, **settings)` -> folder of a finished run of the sampled protocol on `toy`."""

    def start(model, seed=1, **settings):
        settings = {**toy_settings, **SAMPLED, **SMALL, "epochs": 1, "seed": seed, **settings}
        return recbole_mm.run(model, "toy", config_dict=settings).run_dir

    return start


def row(name, folders, model="x"):
    return TableRow(name, "", model, "done", runs=folders)


def test_general_and_sequential_models_are_paired_user_by_user(run):
    models = ["Pop", "BPR", "SASRec"]
    folders = {model: {seed: run(model, seed) for seed in (1, 2)} for model in models}
    table = summarize([row(model, folders[model]) for model in models], METRICS, "SASRec", [1, 2])
    assert not table.no_tests
    assert len({line.users for line in table.lines}) == 1
    for line in table.lines:
        assert line.comparable
        assert not line.differs
        assert not line.untested
        for metric, cell in line.cells.items():
            results = [read_result(folder)["test_result"][metric.lower()] for folder in line.row.runs.values()]
            assert cell.mean == pytest.approx(np.mean(results))
            assert (cell.test is None) == (line.row.name == "SASRec")

    def averaged(model, metric):
        each = [read_per_user(folder).sort_by("user_id") for folder in folders[model].values()]
        assert each[0]["positives"].to_pylist() == each[1]["positives"].to_pylist()
        return sum(one[metric].to_numpy() for one in each) / 2

    for metric in METRICS:
        expected = compare(averaged("SASRec", metric.lower()), averaged("Pop", metric.lower()), seed=0)
        assert table.lines[0].cells[metric].test.difference == pytest.approx(expected.difference)
        assert table.lines[0].cells[metric].test.p_value == pytest.approx(expected.p_value)
    for written in (to_markdown(table), to_csv(table), to_latex(table, "x")):
        assert "GAUC" in written
    assert "eval_args: {" in to_markdown(table)
    assert "uni20" in to_markdown(table)


def test_finished_runs_are_compared_by_gauc_too(run):
    table = compare_finished([run("Pop"), run("BPR")])
    assert [metric.lower() for metric in table.metrics] == ["gauc", "hit@5", "mrr@5"]
    assert table.lines[1].cells["gauc"].test is not None


def test_runs_of_other_candidates_are_neither_tested_nor_placed(run):
    first, second = run("Pop", 1), run("BPR", 2)
    rows = [row("Pop", {1: first}), row("BPR", {2: second})]
    table = summarize(rows, METRICS, "Pop", [1, 2])
    other = table.lines[1]
    assert not other.comparable
    assert "no seed in common" in other.untested
    assert [cell.place for cell in other.cells.values()] == [0, 0, 0]
    assert [cell.place for cell in table.lines[0].cells.values()] == [1, 1, 1]
    with pytest.raises(DataError, match="no seed in common"):
        summarize(rows, METRICS, "Pop", [1, 2], strict=True)
    third = run("BPR", 1)
    (third / FILES["test"]).write_bytes((second / FILES["test"]).read_bytes())
    table = summarize([row("Pop", {1: first}), row("BPR", {1: third})], METRICS, "Pop", [1])
    assert "ranked against other sampled candidates" in table.lines[1].untested
    assert table.lines[1].cells["GAUC"].test is None


def test_a_missing_seed_leaves_the_shared_ones(run):
    rows = [row("Pop", {seed: run("Pop", seed) for seed in (1, 2)}), row("BPR", {2: run("BPR", 2)})]
    table = summarize(rows, METRICS, "Pop", [1, 2])
    assert table.lines[1].cells["GAUC"].test is not None
    assert "BPR: runs of seed 2 only" in to_markdown(table)


def test_popular_positives_are_another_protocol_and_marked(run):
    last, popular = run("Pop"), run("BPR", positives="popular", MAX_ITEM_LIST_LENGTH=2)
    table = summarize([row("Pop", {1: last}), row("BPR", {1: popular})], METRICS, "Pop", [1])
    assert table.facts["positives"] == "last"
    marked = table.lines[1]
    assert marked.differs == ["positives is popular, not last as for Pop"]
    assert marked.untested == "another protocol"
    assert [cell.place for cell in marked.cells.values()] == [0, 0, 0]
    for written in (to_markdown(table), to_latex(table, "x")):
        assert "positives: popular: each user's items, the held-out ones among them" in written
    assert "BPR ‡ †" in to_markdown(table)
    assert r"BPR $^\ddagger$ $^\dagger$" in to_latex(table, "x")
    assert "SEES HELD-OUT DATA" not in to_markdown(summarize([row("Pop", {1: last})], METRICS, "Pop", [1]))


def test_a_config_that_is_older_than_the_setting_held_out_the_last_item(run):
    old, new = run("Pop"), run("BPR")
    config = (old / "config.yaml").read_text(encoding="utf-8").partition("\n")[2]  # nor did it have a checksum
    (old / "config.yaml").write_text(config.replace("positives: last\n", ""), encoding="utf-8")
    for base in ("Pop", "BPR"):
        table = summarize([row("Pop", {1: old}), row("BPR", {1: new})], METRICS, base, [1])
        assert not [line.differs for line in table.lines if line.differs]
        assert not table.no_tests


def test_users_without_a_negative_are_left_out_of_the_test_of_auc():
    a, b = np.array([1.0, np.nan, 0.5, 0.25]), np.array([0.5, 0.5, np.nan, 0.0])
    assert [values.tolist() for values in both_have(a, b)] == [[1.0, 0.25], [0.5, 0.0]]


# ---- the experiments of MLLM-MSR ----


@pytest.mark.parametrize("name", MSR)
def test_the_protocol_is_the_papers_in_every_row(name, toy_path, tmp_path):
    found = load_experiment(name)
    assert found.metrics == METRICS
    assert "2408.09698" in found.paper
    where = {"data_path": str(toy_path), "checkpoint_dir": str(tmp_path), "image_dir": "images"}
    planned = plan_rows(found, "toy", [1], command_line={**where, "text_fields": "[title]"})
    for entry in planned:
        config = entry.config(0, 1)
        assert config["eval_args"]["mode"] == {"valid": "uni20", "test": "uni20"}
        assert (config["valid_metric"], config["topk"], config["positives"]) == ("GAUC", [5], "last")


def test_what_is_known_of_the_papers_figures_stands_beside():
    found = load_experiment("msr-table2")
    assert set(found.published) == {"microlens", "amazon-baby", "amazon-games"}
    for figures in found.published.values():
        assert figures["MLLM-MSR"]["GAUC"] > 0.8
    assert found.published["microlens"]["TALLRec"] == {"GAUC": 0.8125, "Hit@5": 0.7123, "MRR@5": 0.5822}
    assert found.rows[0].name == "Pop", "it is always printed beside"


def test_the_whole_model_is_one_run_in_every_table(toy_path, tmp_path):
    """Trial 0 of the first table is the model as the other two take it, so that it is run once."""
    where = {"data_path": str(toy_path), "checkpoint_dir": str(tmp_path), "image_dir": "images"}
    whole = {"msr-table2": "MLLM-MSR", "msr-ablation": "MLLM-MSR", "msr-blocks": "blocks of 3"}
    settings = []
    for name, wanted in whole.items():
        planned = plan_rows(load_experiment(name), "toy", [1], command_line={**where, "text_fields": "[title]"})
        (entry,) = (entry for entry in planned if entry.row.name == wanted)
        settings.append(entry.config(0, 1).as_dict())
    assert settings[0] == settings[1] == settings[2]


def test_the_first_stage_is_the_row_beside_it(tmp_path):
    data = write_toy(tmp_path / "data")
    (data / "toy" / "toy.yaml").write_text("text_fields: [title]\nimage_dir: images\n")
    line = {"data_path": data, "checkpoint_dir": tmp_path, "show_progress": False, **SMALL}
    planned = plan_rows(load_experiment("msr-rerank"), "toy", [1], command_line={k: str(v) for k, v in line.items()})
    alone, reranked = (
        next(entry for entry in planned if entry.row.name == name).config(0, 1) for name in ("SASRec", "MLLM-MSR")
    )
    reranked["first_stage_config"] = {**reranked["first_stage_config"], **SMALL}
    first, _ = needed_runs(reranked)
    assert first_run_dir(first.config) == first_run_dir(alone)


def test_positives_are_alike_for_all_rows(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("metrics: [NDCG@10]\nrows:\n  - {name: A, model: Pop, settings: {positives: popular}}\n")
    with pytest.raises(ConfigError, match="sets positives, which every row gets alike"):
        load_experiment(str(path))
