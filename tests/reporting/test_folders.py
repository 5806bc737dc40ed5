"""Folders of every kind: single runs, tables and searches, and those that are damaged, moved or of another version."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.config.yaml_settings import SEAL_LINE, read_yaml, write_yaml
from recbole_mm.errors import CheckpointError, ConfigError, DataError
from recbole_mm.evaluation.per_user import read_per_user, write_per_user
from recbole_mm.experiments.tune.records import DONE, FAILED, Record, write_record
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.reporting.cases import choose
from recbole_mm.reporting.runs import read_runs
from recbole_mm.utils.files import write_text
from tests.reporting.pages import MARKUP, page_of


def test_a_single_run_shows_users_from_the_best_to_the_worst(runs, tmp_path):
    (run,) = read_runs([runs["SASRec"]])
    chosen = choose([run], 3)
    ranks = [run.rank_of(one.user) for one in chosen]
    assert ranks == sorted(ranks)
    assert (ranks[0], ranks[-1]) == (run.ranks.min(), run.ranks.max())
    assert [one.user for one in choose([run], 3, ["u4"])] == ["u4"]
    page = page_of(recbole_mm.report([runs["SASRec"]], tmp_path / "report.html", users=["u4"]))
    assert [page.text(page.inside(at, "h3")[0]) for at in page.places("article")] == ["User u4"]
    assert "Differences" not in [page.text(at) for at in page.places("h2")]


def test_a_table_of_compare_has_its_differences(runs, tmp_path, capsys):
    folder = tmp_path / "table"
    given = ["compare", "--runs", *map(str, runs.values()), "--slices", "all", "--out", str(folder)]
    assert main(given) == 0
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html"))
    (row,) = [row for row in page.rows("SASRec minus each other row, ndcg@10, with 95% intervals")[1:]]
    assert row[0] == "Pop"
    assert float(row[2]) <= float(row[1]) <= float(row[3])
    assert page.text(page.places("h1")[0]) == "Report of table"
    assert page.text(page.places("h2")[0]) == "2 runs"
    header, *parts, counted = page.rows("Whether SASRec is better by ndcg@5, by item.class, p < 0.05 (Holm)")
    assert header == ["item.class", "against Pop"]
    verdicts = [row[1] for row in parts]
    assert set(verdicts) <= {"better", "not told apart", "worse", ""}
    assert counted[1] == ", ".join(str(verdicts.count(name)) for name in ("better", "not told apart", "worse"))
    (folder / "table.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"table.csv has no column 'row'"):
        recbole_mm.report([folder], tmp_path / "report.html")


def test_a_search_has_its_trials_the_best_first(tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    search = {"model": MARKUP, "dataset": "toy", "settings": {"valid_metric": "NDCG@10"}}
    write_text(folder / "search.yaml", f"{SEAL_LINE}{write_yaml(search)}")
    for number, (rate, score) in enumerate([(0.001, 0.1), (0.1, 0.3), (0.01, 0.2)], 1):
        settings = {"learning_rate": rate, "loss_type": MARKUP}
        scores = [[1, score / 2], [2, score]]
        write_record(folder, Record(number, {"learning_rate": rate}, settings, DONE, scores, 3.0, 1))
    write_record(folder, Record(4, {"learning_rate": 1.0}, {"learning_rate": 1.0}, FAILED, reason=MARKUP))
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html"))
    rows = page.rows("Trials, the best first")
    assert [row[0] for row in rows[1:]] == ["2 (best)", "3", "1", "4"]
    assert [row[1] for row in rows[1:]] == ["0.3000", "0.2000", "0.1000", ""]
    so_far = [row[2] for row in page.rows("Trials, NDCG@10")[1:] if row[0] == "best so far"]
    assert so_far == ["0.1000", "0.3000", "0.3000"]
    assert any("Trial 4 failed" in page.text(at) for at in page.places("p"))


def test_a_search_over_weights_of_three_parts_has_their_triangle(tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    write_text(folder / "search.yaml", f"{SEAL_LINE}{write_yaml({'model': 'Molar', 'dataset': 'toy'})}")
    names = ("IT", "SA", MARKUP)
    for at, name in enumerate(names, 1):
        weights = {other: float(other == name) for other in names}
        settings = {"mirm_weights": weights, "two": {"a": 1.0, "b": 0.0}, "none": dict.fromkeys(names, 0.0)}
        write_record(folder, Record(at, {}, settings, DONE, [[1, at / 10]], 3.0, 1))
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html"))
    assert page.rows("score by mirm_weights")[1:] == [
        ["0.1000", "1.0000", "0.0000", "0.0000"],
        ["0.2000", "0.0000", "1.0000", "0.0000"],
        ["0.3000", "0.0000", "0.0000", "1.0000"],
    ]
    drawn = next(at for at in page.places("svg") if "best: " in page.text(at))
    assert len(page.inside(drawn, "circle")) == 3
    assert "IT alone" in page.text(drawn)


# ---- bad input ----


def test_images_and_data_that_have_gone_are_notes(copies, runs, tmp_path):
    folder = copies["SASRec"]
    data = Path(shutil.copytree(read_yaml(folder / "config.yaml")["data_path"], tmp_path / "moved"))
    shutil.rmtree(data / "toy" / "images")
    root = {"data_path": str(data)}
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html", changed=root))
    assert page.places("img") == []
    assert page.places("article")
    assert any("no pictures: image folder" in text for text, _ in page.texts)
    page = page_of(
        recbole_mm.report([folder], tmp_path / "gone.html", changed={"data_path": str(tmp_path / "nowhere")})
    )
    assert page.places("article") == []
    assert any("SASRec cannot be opened, so its lists are not shown" in text for text, _ in page.texts)
    assert page.rows("Test metrics, with 95% intervals")


def test_a_broken_image_is_left_out_and_told(runs, tmp_path):
    folder = runs["SASRec"]
    lines = Path(read_yaml(folder / "config.yaml")["data_path"], "toy", "toy.inter").read_text().splitlines()
    users = [line.split("\t")[0] for line in lines if line.split("\t")[1] == "i3"]
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html", users=users))
    assert any("no picture of item i3" in text for text, _ in page.texts)


def test_missing_tables_and_checkpoints_are_notes(copies, tmp_path):
    folder = copies["SASRec"]
    (folder / "per_user.parquet").unlink()
    (folder / "checkpoint.safetensors").write_bytes(b"damaged")
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html"))
    said = " ".join(text for text, _ in page.texts)
    assert "no per_user.parquet, so no intervals and no users" in said
    assert "no learning curve" in said
    assert "no user is shown" in said


def test_runs_that_cannot_be_compared_are_told(copies, tmp_path):
    config = read_yaml(copies["Pop"] / "config.yaml")
    write_text(copies["Pop"] / "config.yaml", f"{SEAL_LINE}{write_yaml({**config, 'mask_history': False})}")
    page = page_of(recbole_mm.report(list(copies.values()), tmp_path / "report.html", cases=0))
    assert any("cannot be tested against each other" in text and "mask_history" in text for text, _ in page.texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "result.json").unlink(), "its run is not finished"),
        (lambda folder: (folder / "config.yaml").unlink(), "no config.yaml"),
        (lambda folder: (folder / "result.json").write_text("{"), "result.json cannot be read"),
        (lambda folder: (folder / "result.json").write_text('{"test_result": {"a": "b"}}'), "no test metrics"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_refused(copies, tmp_path, change, message):
    change(copies["SASRec"])
    with pytest.raises(CheckpointError, match=message):
        recbole_mm.report([copies["SASRec"]], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_runs_of_another_version_or_of_a_missing_model_are_told(copies, tmp_path):
    config = read_yaml(copies["Pop"] / "config.yaml")
    write_text(copies["Pop"] / "config.yaml", f"{SEAL_LINE}{write_yaml({**config, 'model': 'Nowhere'})}")
    page = page_of(recbole_mm.report(list(copies.values()), tmp_path / "report.html"))
    said = [text for text, _ in page.texts if "Nowhere cannot be opened, so its lists are not shown" in text]
    assert len(said) == 1
    assert "its model 'Nowhere' cannot be loaded here" in said[0]
    assert page.rows("Test metrics, with 95% intervals")[0][2] == "Nowhere"


COLUMNS = {
    "user_id": lambda table: pa.array([None] * len(table), pa.int64()),
    "rank": lambda table: pa.array(["<b>"] * len(table)),
    "ndcg@10": lambda table: pa.array(["<b>"] * len(table)),
    "ranks": lambda table: pa.array([[1, 2, 3]] * len(table), pa.list_(pa.int32())),
    "positives": lambda table: pa.array([[7]] * len(table), pa.list_(pa.int32())),
    "slice:popularity": lambda table: pa.array(["x"] * len(table)),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_a_table_of_users_of_another_kind_is_told(copies, tmp_path, name):
    folder = copies["Pop"]
    table = read_per_user(folder)
    column = COLUMNS[name](table)
    write_per_user(folder / "per_user.parquet", table.set_column(table.column_names.index(name), name, column))
    page = page_of(recbole_mm.report(list(copies.values()), tmp_path / "report.html", cases=0))
    said = " ".join(text for text, _ in page.texts)
    assert "Pop: no values per user" in said
    assert "cannot be tested against each other: Pop has no values per user" in said


def test_seeds_alone_are_no_difference(copies, tmp_path):
    other = Path(shutil.copytree(copies["Pop"], tmp_path / "Pop-toy-other"))
    config = read_yaml(other / "config.yaml")
    write_text(other / "config.yaml", f"{SEAL_LINE}{write_yaml({**config, 'seed': 5})}")
    page = page_of(recbole_mm.report([copies["Pop"], other], tmp_path / "report.html", cases=0))
    assert any("differ in nothing but their seeds" in text for text, _ in page.texts)
    assert page.rows("Settings that differ")[1:] == [["seed", str(config["seed"]), "5"]]


def test_a_sampled_ranking_is_called_one(copies, tmp_path):
    config = read_yaml(copies["SASRec"] / "config.yaml")
    arguments = {**config["eval_args"], "mode": {"valid": "uni20", "test": "uni20"}}
    write_text(copies["SASRec"] / "config.yaml", f"{SEAL_LINE}{write_yaml({**config, 'eval_args': arguments})}")
    page = page_of(recbole_mm.report([copies["SASRec"]], tmp_path / "report.html", users=["u4"]))
    said = " ".join(text for text, _ in page.texts)
    assert "ranked among a few sampled items (uni20), not among all" in said
    assert "among its sampled candidates (uni20); a list is of all items" in said


def test_a_model_that_makes_no_list_shows_its_users_and_says_why(copies, tmp_path, monkeypatch):
    whole = Recommender.top_k

    def top_k(self, *arguments, **given):
        if type(self.model).__name__ == "SASRec":
            raise ConfigError("rerank_k: 50 items cannot be chosen without a first_stage")
        return whole(self, *arguments, **given)

    monkeypatch.setattr(Recommender, "top_k", top_k)
    page = page_of(recbole_mm.report(list(copies.values()), tmp_path / "report.html", users=["u4"]))
    said = " ".join(text for text, _ in page.texts)
    assert "SASRec: no lists: rerank_k: 50 items cannot be chosen" in said
    assert len(page.inside(page.places("article")[0], "ol")) == 2, "the history and the list of Pop"
    assert "items in common" not in said


def test_malformed_arguments_are_refused(runs, tmp_path, capsys):
    folder, out = str(runs["Pop"]), tmp_path / "report.html"
    for given, message in [
        ({"runs": [folder, folder]}, "is given twice"),
        ({"runs": []}, "no folder is given"),
        ({"out": tmp_path / "report.pdf"}, "ends in .html"),
        ({"cases": -1}, "--cases=-1"),
        ({"cases": True}, "--cases=True"),
        ({"users": ["u"] * 51}, "a report shows 50 at most"),
        ({"changed": {"data_pth": "x"}}, "--data_pth is no setting of these runs; did you mean 'data_path'?"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            recbole_mm.report(**{"runs": [folder], "out": out, **given})
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["report", folder, "--users", "u999", "--out", str(out)]) == 2
    assert "user 'u999' is not in the data" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_writes_the_file_and_prints_its_name(runs, tmp_path, capsys):
    out = tmp_path / "new" / "r.html"
    assert main(["report", *map(str, runs.values()), "--out", str(out), "--users", "u4,u7", "--device=cpu"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = page_of(out)
    assert [page.text(page.inside(at, "h3")[0]) for at in page.places("article")] == ["User u4", "User u7"]
    assert page.text(page.places("title")[0]) == "SASRec, Pop on toy"
