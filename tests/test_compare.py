"""Experiments: their files, what is run and what is not, the numbers of a table and how it is written."""

from __future__ import annotations

import contextlib
import csv
import doctest
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from recbole_mm.cli import main
from recbole_mm.cli.compare import parse_seeds
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import CheckpointError, ConfigError, DataError
from recbole_mm.evaluation.per_user import write_per_user
from recbole_mm.evaluation.significance import compare
from recbole_mm.experiments.compare import experiment as experiment_module
from recbole_mm.experiments.compare import grid as grid_module
from recbole_mm.experiments.compare.best_id import reads_interactions_alone
from recbole_mm.experiments.compare.command import compare_experiment, compare_finished
from recbole_mm.experiments.compare.experiment import experiment_names, load_experiment
from recbole_mm.experiments.compare.inputs import has_untrained_mllm
from recbole_mm.experiments.compare.plan import plan_rows
from recbole_mm.experiments.compare.summary import TableRow, summarize
from recbole_mm.experiments.compare.table import to_csv, to_latex, to_markdown
from recbole_mm.experiments.processes import alone_in, failure
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from recbole_mm.utils.file_lock import holders
from recbole_mm.utils.files import scratch_folder
from tests.conftest import TOY_FEATURES, TOY_SETTINGS
from tests.processes import started

EXPERIMENT = {
    "title": "Small models",
    "metrics": ["NDCG@10", "Recall@5"],
    "settings": {**TOY_SETTINGS, "epochs": 1, "embedding_size": 8},
    "rows": [{"name": "Pop", "model": "Pop"}, {"name": "BPR", "model": "BPR"}],
}

WEIGHED = (("chosen", "valid"), ("plain", 0.5))
"""Two rows: `fusion_weight` by name."""


@pytest.fixture
def experiment(tmp_path):
    """`experiment(**changes)` -> path of a YAML file that is `EXPERIMENT` with these keys replaced."""

    def write(**changes) -> str:
        path = tmp_path / "small.yaml"
        path.write_text(yaml.safe_dump({**EXPERIMENT, **changes}, sort_keys=False), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def where(toy_path, tmp_path) -> dict[str, str]:
    """Command-line settings that read `toy` and write into the test's own folder."""
    return {"data_path": str(toy_path), "checkpoint_dir": str(tmp_path / "saved")}


@pytest.fixture
def runs(monkeypatch) -> list[dict]:
    """Has runs happen in this process instead of a new one; gives what each of them was given and its environment."""
    seen: list[dict] = []

    class InProcess:
        def __init__(self, command, stderr, env, **_):
            assert command[1:4] == ["-m", "recbole_mm.cli", "run"]
            given = yaml.safe_load(Path(command[4].partition("=")[2]).read_text())
            seen.append({**given, "env": env})
            said = io.StringIO()
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                try:
                    self.returncode = main(command[3:])
                except Exception:
                    traceback.print_exc()
                    self.returncode = 1
            stderr.write(said.getvalue().encode())

        def poll(self):
            return self.returncode

        wait = poll

    monkeypatch.setattr(grid_module.subprocess, "Popen", InProcess)
    return seen


# ---- files ----


def test_the_shipped_experiments_are_those_of_the_paper():
    names = ["molar-figure3", *(f"molar-table{number}" for number in range(2, 7))]
    assert set(names) <= set(experiment_names())
    for name in names:
        found = load_experiment(name)
        assert found.title
        assert found.shows
        assert "2412.18176" in found.paper
        for rows in found.published.values():
            assert set(rows) == {row.name for row in found.rows} - {"SASRec alone"}, "which is ours"
            assert all(set(figures) == set(found.metrics) for figures in rows.values())
    assert set(load_experiment("molar-table2").published) == {"amazon-clothing", "pixelrec", "ml-1m"}
    assert load_experiment("molar-figure3").published == {}, "the figure has no numbers"


def test_the_example_of_the_docstring():
    assert doctest.testmod(experiment_module).failed == 0


def test_molar_has_the_same_published_figures_in_every_table():
    rows = {2: "Molar", 3: "Image + Text", 4: "SASRec", 5: "Molar", 6: "Qwen2-VL-2B"}
    found = [load_experiment(f"molar-table{number}").published["pixelrec"][row] for number, row in rows.items()]
    for metric in ("NDCG@10", "NDCG@20", "Recall@10", "Recall@20"):
        assert len({figures[metric] for figures in found}) == 1
    assert found[1] == found[3], "Tables 3 and 5 also give @50"


@pytest.mark.parametrize(
    "name",
    [
        *(f"molar-{name}" for name in ("figure3", "table3", "table4", "table5", "table6", "sources", "claim", "id")),
        *(f"mllmrec-{name}" for name in ("figure3", "table2", "table3", "leak")),
        *(f"mllmrec-{name}" for name in ("decay", "graph", "states", "wordings")),
        *(f"msr-{name}" for name in ("ablation", "blocks", "rerank", "table2")),
        *("levels-beauty", "levels-ml-1m", "semantic-ids", "graph-opponents", "cold-start"),
    ],
)
def test_shipped_experiments_have_a_model_of_interactions_alone(name):
    found = load_experiment(name)
    alone = [row for row in found.rows if reads_interactions_alone({"model": row.model, **row.settings})]
    assert [row for row in alone if len(row.trials) == len(found.rows[0].trials)]


@pytest.mark.parametrize("name", experiment_names())
def test_every_row_of_a_shipped_experiment_has_a_known_model_and_known_settings(name, where):
    found = load_experiment(name)
    planned = plan_rows(found, "toy", [1], command_line={**where, "image_dir": "images", "text_fields": "[title]"})
    assert [entry.row.name for entry in planned] == [row.name for row in found.rows]
    assert not [entry.not_applicable for entry in planned if entry.not_applicable]


def test_variables_are_filled_in_with_their_own_type(experiment):
    path = experiment(
        variables={"width": 8, "where": "models"},
        rows=[{"name": "A", "model": "BPR", "settings": {"embedding_size": "${width}", "x": "in ${where}/${width}"}}],
    )
    assert load_experiment(path).rows[0].settings == {"embedding_size": 8, "x": "in models/8"}
    given = load_experiment(path, {"width": "16", "where": "1e3"})
    assert given.rows[0].settings == {"embedding_size": 16, "x": "in 1e3/16"}
    with pytest.raises(ConfigError, match="--var widht: there is no such variable; did you mean 'width'"):
        load_experiment(path, {"widht": "16"})


def test_a_grid_of_trials_is_all_its_combinations(experiment):
    tuning = {"learning_rate": [0.1, 0.01], "embedding_size": [4, 8]}
    rows = [{"name": "A", "model": "BPR"}, {"name": "B", "model": "BPR", "tuning": [{"x": n} for n in range(4)]}]
    found = load_experiment(experiment(rows=rows, tuning=tuning))
    assert found.rows[0].trials[1] == {"learning_rate": 0.1, "embedding_size": 8}
    assert [len(row.trials) for row in found.rows] == [4, 4]
    assert [row.trials for row in found.tuned_by(0).rows] == [[{}], [{}]]
    assert [row.trials for row in found.tuned_by(1).rows] == [row.trials[:1] for row in found.rows]
    assert found.tuned_by(99).rows == found.rows, "there are no more than the file has"
    with pytest.raises(ConfigError, match="--trials=-1: give a number of at least 0"):
        found.tuned_by(-1)
    unequal = [rows[0], {"name": "B", "model": "BPR", "tuning": {"x": [1]}}]
    with pytest.raises(ConfigError, match="unequal tuning budget: 4 trials for 'A', 1 for 'B'"):
        load_experiment(experiment(rows=unequal, tuning=tuning))
    accepted = load_experiment(experiment(rows=unequal, tuning=tuning, budget="unequal"))
    assert [len(row.trials) for row in accepted.rows] == [4, 1]


ROW = {"name": "A", "model": "Pop"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": []}, "metrics names no column"),
        ({"metrics": "NDCG@10"}, "metrics is 'NDCG@10'; give a list"),
        ({"rows": []}, "rows is empty"),
        ({"rows": [ROW, ROW]}, "two rows are named 'A'"),
        ({"rows": [{"model": "Pop"}]}, "row 1: give it a name"),
        ({"rows": [{**ROW, "name": "A,B"}]}, "letters without commas"),
        ({"rows": [{"name": "A"}]}, "row 'A' names no model"),
        ({"rows": [{**ROW, "setings": {}}]}, "row 'A': unknown key 'setings'; did you mean 'settings'"),
        ({"rows": [{**ROW, "needs": ["picture"]}]}, "'picture' is not a modality"),
        ({"rows": [{**ROW, "settings": {"epochs": 9}}]}, "row 'A' sets epochs, which every row gets alike"),
        ({"rows": [{**ROW, "tuning": {"topk": [[5]]}}]}, "row 'A' sets topk, which every row gets alike"),
        ({"rows": [{**ROW, "settings": {"missing_modality": "drop"}}]}, "sets missing_modality, which every row"),
        ({"rows": [{**ROW, "settings": {"x": 1}, "tuning": {"x": [1]}}]}, "both sets x and tunes it"),
        ({"rows": [{**ROW, "settings": {"seed": 1}}]}, "holds seed; seeds are given as --seeds"),
        ({"rows": [{**ROW, "tuning": {"x": 1}}]}, "x needs a list of values"),
        ({"rows": [{**ROW, "tuning": [{"x": 1}, {"x": 1}]}]}, "tries the same settings twice"),
        ({"settings": {"dataset": "x"}}, "holds dataset; it is given as --dataset"),
        ({"settings": {"epochs": "${n}"}}, r"\$\{n\} is not among the variables"),
        ({"reference": "Popp"}, "there is no row 'Popp'; did you mean 'Pop'"),
        ({"budget": "fair"}, "budget: 'fair' is not accepted"),
        ({"titel": "x"}, "unknown key 'titel'; did you mean 'title'"),
        ({"title": 3}, "title is 3; give a text"),
        ({"published": {"toy": {"Popp": [1, 2]}}}, "published: toy: there is no row 'Popp'"),
        ({"published": {"toy": {"Pop": [1]}}}, "'Pop' needs 2 numbers"),
        ({"published": {"toy": {"Pop": [1, "x"]}}}, "'Pop' needs 2 numbers"),
    ],
)
def test_a_file_that_describes_no_experiment_is_refused(experiment, changes, message):
    path = experiment(**changes)
    with pytest.raises(ConfigError, match=message) as refused:
        load_experiment(path)
    assert str(refused.value).startswith(path)
    assert "\n" not in str(refused.value)


def test_unknown_names_are_told_with_the_nearest(experiment):
    with pytest.raises(ConfigError, match="unknown experiment 'molar-tabel5'; did you mean 'molar-table5'"):
        load_experiment("molar-tabel5")
    with pytest.raises(ConfigError, match=r"cannot read config file none\.yaml"):
        load_experiment("none.yaml")
    found = load_experiment(experiment(reference="BPR"))
    with pytest.raises(ConfigError, match="there is no row 'BPRR'; did you mean 'BPR'"):
        found.select(["BPRR"])
    with pytest.raises(ConfigError, match="'Pop' is given twice"):
        found.select(["Pop", "Pop"])
    with pytest.raises(ConfigError, match="--reference: there is no row 'Po'"):
        found.against("Po")
    assert found.select(["BPR"]).reference == "BPR"
    assert found.select(["Pop"]).reference == "Pop", "the reference is not among the rows any more"


@pytest.mark.parametrize("text", ["", "1,,2", "1,x", "-1", "1.5", "1,2,1", "1 2"])
def test_seeds_that_are_no_distinct_whole_numbers_are_refused(text):
    with pytest.raises(ConfigError, match="--seeds="):
        parse_seeds(text)
    assert parse_seeds("3, 1") == [3, 1]


# ---- plan ----


def planned(path: str, where: dict, **command_line):
    return plan_rows(load_experiment(path), "toy", [1], command_line={**where, **command_line})


def test_settings_win_in_the_stated_order(experiment, where, tmp_path, caplog):
    (tmp_path / "mine.yaml").write_text("learning_rate: 0.3\nembedding_size: 3\nepochs: 3\n")
    path = experiment(
        settings={**EXPERIMENT["settings"], "learning_rate": 0.2, "embedding_size": 2, "train_batch_size": 2},
        rows=[
            {"name": "plain", "model": "BPR"},
            {"name": "own", "model": "BPR", "settings": {"embedding_size": 5}},
            {"name": "tuned", "model": "BPR", "tuning": {"embedding_size": [6, 7]}},
        ],
        budget="unequal",
    )
    rows = plan_rows(
        load_experiment(path), "toy", [1], [tmp_path / "mine.yaml"], {**where, "embedding_size": "4", "epochs": "4"}
    )
    configs = [rows[0].config(0, 1), rows[1].config(0, 1), rows[2].config(1, 9)]
    assert [config["embedding_size"] for config in configs] == [4, 5, 7]
    assert {config["epochs"] for config in configs} == {4}
    assert {config["learning_rate"] for config in configs} == {0.3}
    assert {config["train_batch_size"] for config in configs} == {2}
    assert [config["seed"] for config in configs] == [1, 1, 9]
    assert "--embedding_size does not reach row 'own', which keeps its own, 5" in caplog.text
    assert "--embedding_size does not reach row 'tuned', which tunes it" in caplog.text


def test_a_shared_setting_is_left_out_where_it_means_nothing(experiment, where):
    rows = [{"name": "Pop", "model": "Pop"}, {"name": "GRU4Rec", "model": "GRU4Rec"}]
    settings = {**EXPERIMENT["settings"], "hidden_size": 8}
    pop, gru = planned(experiment(rows=rows, settings=settings), where, num_layers="2")
    assert not {"hidden_size", "num_layers"} & set(pop.settings)
    alone = load_experiment(experiment(rows=rows, settings=settings)).select(["Pop"])
    (pop,) = plan_rows(alone, "toy", [1], command_line=where)
    assert "hidden_size" not in pop.settings, "it is for a row that was left out"
    (pop,) = plan_rows(alone, "toy", [1], command_line={**where, "num_layers": "3"})
    assert "num_layers" not in pop.settings, "so does the command line: the same serves for a part of the rows"
    assert (gru.settings["hidden_size"], gru.settings["num_layers"]) == (8, 2)


@pytest.mark.parametrize(
    ("changes", "command_line", "message"),
    [
        ({"rows": [{"name": "A", "model": "SASRek"}]}, {}, "row 'A': unknown model 'SASRek': did you mean SASRec"),
        (
            {"rows": [{"name": "A", "model": "BPR", "settings": {"embeding_size": 4}}]},
            {},
            "row 'A': setting 'embeding_size' is unknown to BPR; did you mean 'embedding_size'",
        ),
        ({"tuning": {"n_layers": [1]}}, {}, "row 'Pop': setting 'n_layers' is unknown to Pop"),
        ({}, {"epohcs": "3"}, "command line: setting 'epohcs' is unknown to every row; did you mean 'epochs'"),
        ({}, {"seed": "3"}, "the command line holds seed; seeds are given as --seeds"),
        ({}, {"resume": True}, "the command line holds resume; what was interrupted is always resumed"),
        ({"metrics": ["NDCG@7"]}, {}, "the runs will not report NDCG@7, only ndcg@5, ndcg@10"),
        ({}, {"save_per_user": "False"}, "save_per_user: False leaves no values per user"),
        ({}, {"data_path": "nowhere"}, r"dataset 'toy': nowhere/toy/toy\.inter does not exist"),
        ({"settings": {"topk": [5, 10]}, "rows": [{"name": "A", "model": "BPR"}, {"name": "B", "model": "Molar"}]},
         {}, "epochs is 300 for 'A' but 20 for 'B', and all rows must get the same"),
        ({"rows": [{"name": "A", "model": "BPR", "settings": {"embedding_size": 4}}]}, {"embedding_size": "8"},
         "--embedding_size: every row sets or tunes it itself"),
        ({"rows": [{"name": "A", "model": "BPR", "tuning": {"learning_rate": [-1]}}]}, {}, "learning_rate: -1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_told_before_anything_runs(experiment, where, changes, command_line, message):
    with pytest.raises((ConfigError, DataError), match=message):
        planned(experiment(**changes), where, **command_line)


def test_a_row_that_the_dataset_has_nothing_for_is_not_applicable(experiment, where):
    needs = {"name": "pictures", "model": "Pop", "needs": ["image"]}
    path = experiment(settings={"topk": [5, 10]}, rows=[{"name": "words", "model": "Pop", "needs": ["text"]}, needs])
    words, pictures = planned(path, where, text_fields="[title]")
    assert words.not_applicable == ""
    assert pictures.not_applicable == "toy has no image (set image_dir, image_field or image_zip)"
    assert planned(path, where, image_dir="images")[1].not_applicable == ""
    assert "leaves out" in planned(path, where, image_dir="images", modalities="[text]")[1].not_applicable
    assert "image folder" in planned(path, where, image_dir="pictures")[1].not_applicable


# ---- grid ----


def test_trials_are_chosen_on_validation_and_only_the_best_gets_the_other_seeds(experiment, where, runs, tmp_path):
    path = experiment(
        rows=[{"name": "GRU4Rec", "model": "GRU4Rec"}],
        tuning={"learning_rate": [0.0001, 0.05]},
        settings={**EXPERIMENT["settings"], "epochs": 3},
    )
    table, out = compare_experiment(path, "toy", [1, 2, 3], command_line=where)
    assert [(given["seed"], given["learning_rate"]) for given in runs[:2]] == [(1, 0.0001), (1, 0.05)]
    valid = {}
    for folder in (tmp_path / "saved").glob("GRU4Rec-*"):
        config = yaml.safe_load((folder / "config.yaml").read_text())
        if config["seed"] == 1:
            valid[config["learning_rate"]] = json.loads((folder / "result.json").read_text())["best_valid_result"]
    best = max(valid, key=lambda rate: valid[rate]["ndcg@10"])
    assert valid[0.0001]["ndcg@10"] != valid[0.05]["ndcg@10"]
    assert [(given["seed"], given["learning_rate"]) for given in runs[2:]] == [(2, best), (3, best)]
    row = table.lines[0].row
    assert (row.status, sorted(row.runs), row.trials) == ("done", [1, 2, 3], 2)
    assert row.chosen == {"learning_rate": best}
    assert out == tmp_path / "saved" / "compare-small-toy"
    text = (out / "table.md").read_text()
    assert f"2 trials for each row, chosen by validation NDCG@10 on seed 1. GRU4Rec: learning_rate={best}." in text


def test_a_weight_that_each_run_chose_on_validation_is_told_below_the_table(experiment, where, tmp_path):
    sizes = {
        "dueg": "sasrec",
        "hidden_size": 8,
        "rec_loss": "ce",
        "item_sources": ["text"],
        "item_features": TOY_FEATURES,
    }
    rows = [
        {"name": name, "model": "Molar", "settings": {**sizes, "fusion_weight": weight}} for name, weight in WEIGHED
    ]
    settings = {key: value for key, value in EXPERIMENT["settings"].items() if key != "embedding_size"}
    table, out = compare_experiment(experiment(rows=rows, settings=settings), "toy", [1, 2], command_line=where)
    chosen, plain = table.lines
    results = {seed: json.loads((folder / "result.json").read_text()) for seed, folder in chosen.row.runs.items()}
    assert chosen.taken == {seed: result["chosen_on_validation"] for seed, result in results.items()}
    assert plain.taken == {}
    told = ", ".join(f"{text} (seed {seed})" for seed, text in chosen.taken.items())
    assert f"chosen: each run chose on validation: {told}" in (out / "table.md").read_text()
    assert "†" not in (out / "table.md").read_text(), "it is no blemish"


def test_what_is_done_is_not_run_again_and_one_run_serves_two_rows(experiment, where, runs):
    rows = [*EXPERIMENT["rows"], {"name": "BPR again", "model": "BPR"}]
    first, out = compare_experiment(experiment(rows=rows), "toy", [1, 2], command_line=where)
    assert sorted((given["model"], given["seed"]) for given in runs) == [("BPR", 1), ("BPR", 2), ("Pop", 1), ("Pop", 2)]
    assert first.lines[1].row.runs == first.lines[2].row.runs
    written = (out / "table.csv").read_text()
    runs.clear()
    compare_experiment(experiment(rows=rows), "toy", [1, 2], command_line=where)
    assert runs == []
    assert (out / "table.csv").read_text() == written
    compare_experiment(experiment(rows=rows), "toy", [1, 2, 3], rows=["BPR"], command_line=where)
    assert [(given["model"], given["seed"]) for given in runs] == [("BPR", 3)]


def test_a_finished_run_is_found_behind_one_that_was_deleted(experiment, where):
    config = planned(experiment(), where)[1].config(0, 1)
    first = run_folder.first_run_dir(config)
    for number in ("-2", "-10", "-x", "0"):
        first.with_name(first.name + number).mkdir(parents=True)
    assert [path.name for path in run_folder.earlier_run_dirs(config)] == [f"{first.name}-2", f"{first.name}-10"]
    assert grid_module.finished_run(config) is None
    (first.with_name(f"{first.name}-10") / "result.json").write_text("{}")
    assert grid_module.finished_run(config).name == f"{first.name}-10"


def test_a_run_by_hand_counts_as_done(experiment, where, runs, tmp_path):
    settings = {**EXPERIMENT["settings"], **where, "seed": 1}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    assert main(["run", "--model=BPR", "--dataset=toy", f"--config_files={tmp_path / 'mine.yaml'}"]) == 0
    table, _ = compare_experiment(experiment(), "toy", [1], rows=["BPR"], command_line=where)
    assert runs == []
    assert table.lines[0].row.status == "done"


def test_a_row_that_fails_ends_nothing_and_is_tried_again(experiment, where, runs, capsys, monkeypatch):
    def crash(*_):
        raise TypeError("a fault of the model's own")

    monkeypatch.setattr("recbole.model.sequential_recommender.GRU4Rec.calculate_loss", crash)
    broken = {"name": "broken", "model": "GRU4Rec"}
    features = {"item_features": {"text": TOY_FEATURES["text"]}, "content_features": ["sound"]}
    refused = {"name": "refused", "model": "SASRecContent", "settings": features}
    path = experiment(rows=[broken, refused, *EXPERIMENT["rows"]], reference="BPR")
    status = main(["compare", f"--experiment={path}", "--dataset", "toy", "--seeds=1,2", *as_arguments(where)])
    assert status == 1
    text = capsys.readouterr().out
    assert re.search(r"\| broken +\| +failed \| +failed \|", text)
    assert re.search(r"- broken: failed: seed 1: TypeError: a fault of the model's own", text)
    assert re.search(r"- refused: failed: seed 1: .*sound", text)
    assert re.search(r"\| Pop +\| +_?\*?\*?0\.\d{4}", text)
    kept = list((Path(where["checkpoint_dir"]) / "compare-small-toy" / "failed").glob("broken-seed-1-*.log"))
    assert "Traceback" in kept[0].read_text()
    assert [(given["seed"]) for given in runs if given["model"] == "GRU4Rec"] == [1], "its other seed is not tried"
    runs.clear()
    compare_experiment(path, "toy", [1, 2], command_line=where)
    assert [(given["model"], given["resume"]) for given in runs] == [("GRU4Rec", True), ("SASRecContent", False)]


def test_an_interrupted_grid_goes_on_where_it_stopped(experiment, where, runs, monkeypatch, capsys):
    train = pipeline._train_and_test

    def interrupted(config, *others):
        if config["model"] == "BPR":
            raise KeyboardInterrupt
        return train(config, *others)

    monkeypatch.setattr(pipeline, "_train_and_test", interrupted)
    monkeypatch.setattr(grid_module, "failure", lambda status, log: pytest.fail("unreachable") if status != 130 else "")
    stop = grid_module.Grid._collect

    def stopped(self):
        stop(self)
        if any(not isinstance(ended, Path) for ended in self._ended.values()):
            raise KeyboardInterrupt

    monkeypatch.setattr(grid_module.Grid, "_collect", stopped)
    arguments = ["compare", f"--experiment={experiment()}", "--dataset=toy", "--seeds=1", *as_arguments(where)]
    assert main(arguments) == 130
    assert "the same command goes on from here" in capsys.readouterr().err
    monkeypatch.undo()
    table, _ = compare_experiment(experiment(), "toy", [1], jobs=0, command_line=where)
    assert [line.row.status for line in table.lines] == ["done", "not run"]
    assert table.lines[1].row.reason == "seed 1: not run"
    assert "BPR: not run" in to_markdown(table)


def test_cores_and_gpus_are_shared_out(experiment, where, monkeypatch):
    seen = []

    class Late:
        """A process that ends without a result, one poll after the other one has started."""

        returncode = 0

        def __init__(self, command, env, **_):
            self.polls = 0
            seen.append((env["OMP_NUM_THREADS"], env["CUDA_VISIBLE_DEVICES"]))

        def poll(self):
            self.polls += 1
            return 0 if self.polls > 1 else None

    monkeypatch.setattr(grid_module.subprocess, "Popen", Late)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(7)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    table, _ = compare_experiment(experiment(), "toy", [1], jobs=2, gpus=["3", "5"], command_line=where)
    assert seen == [("3", "3"), ("3", "5")]
    assert [line.row.reason for line in table.lines] == [
        "seed 1: it ended well but left no result of these settings"
    ] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    compare_experiment(experiment(), "toy", [1], rows=["Pop"], gpus=["3"], command_line=where)
    assert seen[2:] == [("1", "3")], "never more than the environment says"


def test_one_folder_takes_one_grid_at_a_time(tmp_path):
    with alone_in(tmp_path), pytest.raises(CheckpointError, match="another comparison"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path) as lock:
        left_behind = subprocess.Popen(["sleep", "600"], pass_fds=(lock,))
    with (
        pytest.raises(CheckpointError, match=rf"a run it started, .* \(process {left_behind.pid}\)"),
        alone_in(tmp_path),
    ):
        pass
    left_behind.kill()
    left_behind.wait()
    with alone_in(tmp_path):
        pass


def test_the_example_of_the_documentation_is_an_experiment(tmp_path, where):
    text = (Path(__file__).parents[1] / "docs" / "compare.md").read_text()
    example = text[text.index("    # recbole-mm compare --experiment width.yaml") : text.index("`paper: ...`")]
    (tmp_path / "width.yaml").write_text(textwrap.dedent(example))
    rows = plan_rows(load_experiment(str(tmp_path / "width.yaml")), "toy", [1], command_line=where)
    assert [entry.row.name for entry in rows] == ["64 wide", "256 wide", "with pictures"]
    assert [len(entry.row.trials) for entry in rows] == [2, 2, 2]
    assert [bool(entry.not_applicable) for entry in rows] == [False, False, True]


def is_held(folder):
    try:
        with alone_in(folder):
            return False
    except CheckpointError:
        return True


def test_a_killed_grid_takes_its_runs_with_it(experiment, where, tmp_path):
    settings = {**EXPERIMENT["settings"], "epochs": 5000, "stopping_step": 5000}
    command = [sys.executable, "-m", "recbole_mm.cli", "compare", "--seeds=1", "--dataset=toy", *as_arguments(where)]
    command.append(f"--experiment={experiment(rows=[{'name': 'BPR', 'model': 'BPR'}], settings=settings)}")
    process = started(
        command,
        lambda: list(tmp_path.glob("saved/BPR-*/checkpoint.safetensors")),
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with pytest.raises(CheckpointError, match=rf"\(process(es)? .*{process.pid}"), alone_in(tmp_path / "saved"):
        pass
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while is_held(tmp_path / "saved"):  # as long as a run is left behind
        assert time.monotonic() < deadline, holders(tmp_path / "saved")
        time.sleep(0.1)
    (left,) = tmp_path.glob("recbole-mm-compare-*")
    with scratch_folder(tmp_path, "recbole-mm-compare-"):
        assert not left.exists(), "its settings and logs are nobody's"


@pytest.mark.parametrize(
    ("status", "said", "reason"),
    [
        (2, "12:00:00 epoch 0\nerror: no such file\n", "no such file"),
        (1, "Traceback ...\n  File x\nValueError: bad\n\n", "ValueError: bad"),
        (-9, "12:00:00 epoch 0\n", "killed by SIGKILL, perhaps out of memory"),
        (-15, "", "killed by SIGTERM"),
        (3, "", "ended with status 3 and no message"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(tmp_path, status, said, reason):
    (tmp_path / "log").write_text(said)
    assert failure(status, tmp_path / "log") == reason


def test_ctrl_c_stops_the_real_runs_and_leaves_them_resumable(experiment, where, tmp_path):
    settings = {**EXPERIMENT["settings"], "epochs": 5000, "stopping_step": 5000}
    command = [sys.executable, "-m", "recbole_mm.cli", "compare", "--seeds=1", "--dataset=toy", *as_arguments(where)]
    command.append(f"--experiment={experiment(rows=[{'name': 'BPR', 'model': 'BPR'}], settings=settings)}")
    process = started(
        command, lambda: list(tmp_path.glob("saved/BPR-*/checkpoint.safetensors")), start_new_session=True
    )
    with pytest.raises(CheckpointError, match="another comparison"), alone_in(tmp_path / "saved"):
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert errors.endswith("interrupted; the same command goes on from here\n")
    with alone_in(tmp_path / "saved"):
        pass  # no run is left behind: one would hold the lock
    (folder,) = tmp_path.glob("saved/BPR-*")
    assert not (folder / "result.json").exists()
    assert "interrupted" in (folder / "run.log").read_text(), errors


def as_arguments(settings: dict[str, str]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


# ---- numbers ----

USERS = [f"u{n}" for n in range(40)]


def write_run(folder: Path, model="SASRec", seed=1, values=None, users=USERS, per_user=True, **config) -> Path:
    """A finished run's folder whose users have these values of ndcg@10."""
    folder.mkdir(parents=True)
    values = np.zeros(len(users)) if values is None else np.asarray(values, dtype=float)
    settings = {"model": model, "dataset": "toy", "seed": seed, "epochs": 5, "valid_metric": "NDCG@10", **config}
    settings = {"mask_history": True, "candidates": "interacted", "eval_args": {"mode": "full"}, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    result = {"test_result": {"ndcg@10": float(values.mean()), "gauc": 0.5}, "timings": {"epochs": 4}}
    (folder / "result.json").write_text(json.dumps(result))
    if per_user:
        write_per_user(folder / "per_user.parquet", pa.table({"user_id": users, "ndcg@10": values}))
    return folder


@pytest.fixture
def values():
    """Three models' values, each for two seeds: the second one is better than the first, the third as good."""
    rng = np.random.default_rng(0)
    base = rng.random(len(USERS))
    return {
        "weak": [base + rng.normal(0, 0.05, len(USERS)) for _ in range(2)],
        "strong": [base + 0.2 + rng.normal(0, 0.05, len(USERS)) for _ in range(2)],
        "same": [base + rng.normal(0, 0.05, len(USERS)) for _ in range(2)],
    }


def written_rows(folder: Path, values) -> list[TableRow]:
    rows = []
    for name, each in values.items():
        runs = {seed: write_run(folder / f"{name}-{seed}", name, seed, of_seed) for seed, of_seed in enumerate(each)}
        rows.append(TableRow(name, "", name, "done", runs=runs))
    return rows


def test_rows_are_averaged_over_seeds_and_tested_by_user(tmp_path, values):
    table = summarize(written_rows(tmp_path, values), ["NDCG@10"], "strong", [0, 1], {"weak": {"NDCG@10": 0.25}})
    cells = {line.row.name: line.cells["NDCG@10"] for line in table.lines}
    for name, cell in cells.items():
        means = [of_seed.mean() for of_seed in values[name]]
        assert cell.mean == pytest.approx(np.mean(means))
        assert cell.spread == pytest.approx(np.std(means, ddof=1))
    averaged = {name: (first + second) / 2 for name, (first, second) in values.items()}
    for name in ("weak", "same"):
        found, expected = cells[name].test, compare(averaged["strong"], averaged[name], seed=0)
        assert (found.n, found.method) == (40, expected.method)
        for number in ("difference", "relative", "p_value", "ci_low", "ci_high"):
            assert getattr(found, number) == pytest.approx(getattr(expected, number), rel=1e-3), number
        assert cells[name].p_holm == pytest.approx(2 * cells[name].test.p_value), "the smallest possible, twice"
        assert cells[name].significant
    assert cells["strong"].test is None
    assert sorted(cell.place for cell in cells.values()) == [0, 1, 2]
    assert cells["strong"].place == 1
    assert cells["weak"].published == 0.25
    assert {line.users for line in table.lines} == {40}
    assert table.facts["epochs"] == 5


def test_a_metric_without_values_per_user_has_no_test(tmp_path, values):
    table = summarize(written_rows(tmp_path, values), ["GAUC", "NDCG@10"], "strong", [0, 1])
    assert all(line.cells["GAUC"].test is None for line in table.lines)
    assert [line.cells["GAUC"].mean for line in table.lines] == [0.5] * 3
    assert table.lines[0].cells["NDCG@10"].test is not None


def test_a_row_of_another_protocol_is_marked_and_neither_tested_nor_placed(tmp_path, values):
    rows = written_rows(tmp_path, values)
    better = np.ones(len(USERS))
    rows.append(
        TableRow("other", "", "x", "done", runs={0: write_run(tmp_path / "o", values=better, mask_history=False)})
    )
    rows.append(TableRow("longer", "", "x", "done", runs={0: write_run(tmp_path / "l", values=better / 2, epochs=9)}))
    table = summarize(rows, ["NDCG@10"], "strong", [0, 1])
    other, longer = table.lines[3:]
    assert other.differs == ["mask_history is False, not True as for strong"]
    assert (other.cells["NDCG@10"].test, other.cells["NDCG@10"].place) == (None, 0)
    assert longer.differs == ["epochs is 9, not 5 as for strong"]
    assert longer.cells["NDCG@10"].test is not None
    text = to_markdown(table)
    assert "other †" in text
    assert "- other: mask_history is False, not True as for strong" in text
    assert "- other: no test: another protocol" in text
    assert "- other: runs of seed 0 only" in text


def test_an_untrained_mllm_is_told(tmp_path):
    rows = [
        TableRow(name, "", model, "done", runs={1: write_run(tmp_path / name, model, mllm=mllm)})
        for name, model, mllm in (("A", "SASRec", "tiny"), ("B", "Molar", "tiny"), ("C", "Molar", "Qwen/Qwen2-VL"))
    ]
    assert "UNTRAINED multimodal LLM (mllm: tiny): B. " in to_markdown(summarize(rows, ["NDCG@10"], "A", [1]))


@pytest.mark.parametrize(
    ("model", "settings", "untrained"),
    [
        ("Molar", {}, True),
        ("Molar", {"dueg": "sasrec", "item_sources": ["text"], "item_features": TOY_FEATURES}, False),
        ("SASRec", {"item_features": {"both": {"encoder": "mllm"}}}, False),
        ("SASRecContent", {"item_features": {"both": {"encoder": "mllm"}}, "content_features": ["both"]}, True),
        ("SASRecContent", {"item_features": TOY_FEATURES}, False),
    ],
)
def test_an_mllm_that_a_run_does_not_read_is_not_told(tmp_path, toy_config, model, settings, untrained):
    toy_config(model, mllm="tiny", **settings).save(tmp_path / "config.yaml")
    assert has_untrained_mllm(tmp_path, read_yaml(tmp_path / "config.yaml")) == untrained


def test_rows_that_ranked_other_users_are_not_tested(tmp_path, values):
    rows = written_rows(tmp_path, values)
    rows.append(TableRow("few", "", "x", "done", runs={0: write_run(tmp_path / "few", users=USERS[:9])}))
    rows.append(TableRow("lost", "", "x", "done", runs={0: write_run(tmp_path / "lost", per_user=False)}))
    table = summarize(rows, ["NDCG@10"], "strong", [0, 1])
    few, lost = table.lines[3:]
    assert "31 only in" in few.untested
    assert few.cells["NDCG@10"].place == 0
    assert "per_user.parquet does not exist; run the model again" in lost.untested
    assert table.lines[0].cells["NDCG@10"].test is not None
    missing = summarize(rows[:3], ["NDCG@10"], "absent", [0, 1])
    assert "absent, which the others are tested against, is not done" in to_markdown(missing)
    assert missing.lines[1].cells["NDCG@10"].place == 1


# ---- finished runs ----


def test_finished_runs_are_grouped_by_everything_but_the_seed(tmp_path, values):
    strong = [write_run(tmp_path / f"a{n}", "SASRec", n, each) for n, each in enumerate(values["strong"])]
    weak = [write_run(tmp_path / f"b{n}", "SASRec", n, each, n_layers=3) for n, each in enumerate(values["weak"])]
    other = write_run(tmp_path / "c", "BPR", 0, values["same"][0])
    table = compare_finished([*strong, *weak, other])
    assert [line.row.name for line in table.lines] == ["SASRec", "SASRec (n_layers=3)", "BPR"]
    assert [sorted(line.row.runs) for line in table.lines] == [[0, 1], [0, 1], [0]]
    assert table.reference == "SASRec"
    assert table.metrics == ["ndcg@10", "gauc"]
    assert compare_finished([*strong, other], reference="BPR", metrics=["NDCG@10"]).reference == "BPR"


def test_rows_of_one_model_are_named_by_the_few_settings_that_tell_them_apart(tmp_path):
    many = {f"setting_{letter}": 1 for letter in "abcdefgh"}
    runs = [
        write_run(tmp_path / "a", **many, n_layers=1, mllm="/models/a/very/long/path/to/some/model-7B"),
        write_run(tmp_path / "b", **dict.fromkeys(many, 2), n_layers=2, mllm="tiny"),
        write_run(tmp_path / "c", **dict.fromkeys(many, 2), n_layers=3, mllm="tiny"),
    ]
    names = [line.row.name for line in compare_finished(runs).lines]
    assert names == ["SASRec (n_layers=1)", "SASRec (n_layers=2)", "SASRec (n_layers=3)"]
    long = [write_run(tmp_path / name, text=f"{name}{'x' * 200}") for name in "de"]
    names = [line.row.name for line in compare_finished(long).lines]
    assert names == [f"SASRec (text={name}{'x' * 23}...)" for name in "de"]
    alike = [write_run(tmp_path / name, text=f"{'x' * 200}{name}") for name in "fg"]
    names = [line.row.name for line in compare_finished(alike).lines]
    assert names == [f"SASRec (text={'x' * 24}...)", f"SASRec (text={'x' * 24}...) #2"]


def test_a_model_that_only_counts_does_not_differ_in_settings_of_training(tmp_path, toy_config):
    runs = [write_run(tmp_path / model, model) for model in ("SASRec", "Pop")]
    toy_config("SASRec", epochs=5).save(runs[0] / "config.yaml")
    toy_config("Pop", epochs=7, eval_step=3, stopping_step=2, learning_rate=0.5).save(runs[1] / "config.yaml")
    assert [line.differs for line in compare_finished(runs).lines] == [[], []]
    toy_config("BPR", epochs=7).save(runs[1] / "config.yaml")
    assert compare_finished(runs).lines[1].differs == ["epochs is 7, not 5 as for SASRec"]


def test_finished_runs_that_cannot_be_compared_are_refused(tmp_path, values):
    one = write_run(tmp_path / "one", values=values["weak"][0])
    with pytest.raises(ConfigError, match="one is given twice"):
        compare_finished([one, one])
    with pytest.raises(ConfigError, match="are of the same settings and seed"):
        compare_finished([one, write_run(tmp_path / "two")])
    with pytest.raises(ConfigError, match="several datasets, other, toy"):
        compare_finished([one, write_run(tmp_path / "three", dataset="other")])
    with pytest.raises(DataError, match="did not rank the same users: 31 only in"):
        compare_finished([one, write_run(tmp_path / "four", "BPR", users=USERS[:9])])
    with pytest.raises(DataError, match=r"per_user\.parquet does not exist"):
        compare_finished([one, write_run(tmp_path / "five", "BPR", per_user=False)])
    with pytest.raises(CheckpointError, match=r"no result\.json; give the folder of a finished run"):
        compare_finished([one, tmp_path])
    with pytest.raises(ConfigError, match=r"one does not report NDCG@5; did you mean 'ndcg@10'"):
        compare_finished([one, write_run(tmp_path / "six", "BPR")], metrics=["NDCG@5"])
    with pytest.raises(ConfigError, match="--reference: there is no row 'SASRek'; did you mean 'SASRec'"):
        compare_finished([one, tmp_path / "six"], reference="SASRek")
    (one / "result.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        compare_finished([one])


# ---- writing ----


@pytest.fixture
def table(tmp_path, values):
    rows = written_rows(tmp_path, values)
    rows[0].name, rows[0].group = "50% & w/o_IT|x", "Group #1"
    rows.append(TableRow("lost", "Group #1", "x", "failed", "seed 1: out of {memory}", trials=1))
    rows.append(TableRow("gone", "Group #2", "x", "not applicable", "no image"))
    published = {"50% & w/o_IT|x": {"NDCG@10": 0.25}, "lost": {"NDCG@10": 0.5}}
    return summarize(rows, ["NDCG@10"], "strong", [0, 1], published, "A title", "What it shows.", "A paper")


def test_markdown_has_every_row_and_every_reason(table):
    text = to_markdown(table)
    grid = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in grid[:7]}) == 1, "the columns are aligned"
    assert re.search(r"\| strong +\| \*\*0\.\d{4}\*\* ± 0\.\d{4} \| +\|", text)
    assert re.search(r"\| Group #1: 50% & w/o_IT\\\|x +\| +_?0\.\d{4}_? ± 0\.\d{4}\* \| +0\.2500 \|", text)
    assert re.search(r"\| Group #1: lost +\| +failed \| +0\.5000 \|", text)
    assert re.search(r"\| Group #2: gone +\| +n/a \| +\|", text)
    assert "- lost: failed: seed 1: out of {memory}" in text
    assert "- gone: not applicable: no image" in text
    assert "toy, 40 test users; mean ± standard deviation over seeds 0, 1." in text
    assert "eval_args: {mode: full}, mask_history: True, candidates: interacted" in text
    assert "epochs: 5" in text
    assert "paper: figures of A paper" in text
    assert re.search(
        r"\| NDCG@10 +\| same +\| +\+0\.\d{4} \| \[\+0\.\d{4}, \+0\.\d{4}\] \| +\+\d+\.\d% \| +<0\.001 \|", text
    )


def test_csv_has_the_numbers_in_full(table):
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [line["row"] for line in lines] == ["50% & w/o_IT|x", "strong", "same", "lost", "gone"]
    cell = table.lines[0].cells["NDCG@10"]
    assert float(lines[0]["mean"]) == cell.mean
    assert float(lines[0]["sd"]) == cell.spread
    assert float(lines[0]["p_holm"]) == cell.p_holm
    assert float(lines[0]["difference"]) == cell.test.difference
    assert (lines[0]["seeds"], lines[0]["users"], lines[0]["published"]) == ("0 1", "40", "0.25")
    assert (lines[3]["status"], lines[3]["reason"], lines[3]["mean"]) == ("failed", "seed 1: out of {memory}", "")


def test_latex_is_escaped_and_well_formed(table):
    text = to_latex(table, "x_y toy")
    body = text[text.index("\\toprule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r" \\") and "multicolumn" not in line]
    assert len(rows) == 6
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {2}
    assert r"\textbf{" in rows[2]
    assert sum(r"\underline{" in row for row in rows) == 1
    assert r"50\% \& w/o\_IT\textbar{}x" in rows[1]
    assert r"\multicolumn{3}{l}{\textit{Group \#1}} \\" in body
    assert r"\label{tab:x-y-toy}" in text
    assert r"out of \{memory\}" in text
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))
    for environment in ("table", "tabular", "minipage"):
        assert text.count(f"\\begin{{{environment}}}") == text.count(f"\\end{{{environment}}}") == 1


HOSTILE = "=HYPERLINK(1)\n| x |\r\n\n</td><img src=x> [a](http://b) \\| \\input{y}\x1b[2J\u202e\u2028z"


def test_names_of_others_stay_names(tmp_path, values):
    """A row's name, its group, its reason, the table's title: no cell, tag, link, formula or command comes of them."""
    rows = written_rows(tmp_path, values)
    rows[0].name, rows[0].group = HOSTILE, HOSTILE
    rows.append(TableRow("-2+3", "@SUM(1)", "x", "failed", HOSTILE, trials=1))
    table = summarize(rows, ["NDCG@10"], "strong", [0, 1], {}, HOSTILE, HOSTILE, HOSTILE)
    plain = summarize(written_rows(tmp_path / "plain", values), ["NDCG@10"], "strong", [0, 1], {}, "t", "s", "p")
    text, wanted = to_markdown(table), to_markdown(plain)
    assert text.count("\n") == wanted.count("\n") + 2 + 1, (
        "two more rows of text than without: a failed row, its reason"
    )
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("|")}) == 2
    assert "<img" not in text
    assert "](" not in text
    assert "\x1b" not in text + to_csv(table) + to_latex(table, "x")
    lines = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(to_csv(table).splitlines()) == len(lines) + 1
    assert lines[0]["row"].startswith("'=HYPERLINK(1) | x | ")
    assert (lines[3]["row"], lines[3]["group"]) == ("'-2+3", "'@SUM(1)")
    latex = to_latex(table, HOSTILE)
    assert "\\input" not in latex
    assert latex.count("\n\n") == to_latex(plain, "x").count("\n\n")


def test_one_seed_has_no_spread(tmp_path, values):
    rows = written_rows(tmp_path, {name: each[:1] for name, each in values.items()})
    text = to_markdown(summarize(rows, ["NDCG@10"], "strong", [0]))
    assert " ± 0" not in text
    assert "one run each, no spread: seed 0" in text
