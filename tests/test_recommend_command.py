"""`recommend` and `similar` as they are called: what they read, print and write, and files that go on."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.recommending import output, requests
from recbole_mm.recommending.command import Request, _identity_of, opened, recommend, similar
from recbole_mm.recommending.export import export
from recbole_mm.recommending.recommender import Recommender
from tests.conftest import TOY_SETTINGS, write_toy

FORMULA, TURNED = "=HYPERLINK(1)", "The \u202efilm\x1b[2J \U0001f3ac"
"""Titles of two items: one that a spreadsheet would compute, and one that turns the direction of writing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A finished run of SASRec on a toy whose first titles are not what they seem."""
    root = tmp_path_factory.mktemp("recommend")
    data = write_toy(root / "data")
    items = data / "toy" / "toy.item"
    text = items.read_text(encoding="utf-8")
    text = text.replace("i0\tThe action film number 0", f"i0\t{FORMULA}")
    items.write_text(text.replace("i1\tThe comedy film number 1\t", f"i1\t{TURNED}\t"), encoding="utf-8")
    settings = {**TOY_SETTINGS, "epochs": 1, "data_path": str(data), "checkpoint_dir": str(root / "saved")}
    return recbole_mm.run("SASRec", "toy", config_dict=settings).run_dir


@pytest.fixture(scope="module")
def recommender(folder) -> Recommender:
    return opened(folder)


def test_a_table_names_users_ranks_items_scores_and_titles(recommender):
    table = recommend(recommender, 3, users=["u4", "u7"])
    assert list(table.columns) == ["user", "rank", "item", "score", "title"]
    assert table["user"].tolist() == ["u4"] * 3 + ["u7"] * 3
    assert table["rank"].tolist() == [1, 2, 3] * 2
    top = recommender.top_k(3, users=recommender.user_ids(["u4"]))
    assert table["item"][:3].tolist() == recommender.item_tokens[top.items[0]].tolist()
    assert table["title"][0] == recommender.title(int(top.items[0, 0]))


def test_histories_are_read_alike_from_everywhere(recommender, tmp_path):
    wanted = recommend(recommender, 4, histories={"new": ["i3", "i7"]})
    lines = tmp_path / "h.jsonl"
    lines.write_text('\n{"user": "new", "history": ["i3", "i7"]}\n', encoding="utf-8")
    rows = [("new", "i7", 9.0), ("new", "i3", 2.0)]
    (tmp_path / "q.inter").write_text('user_id:token\titem_id:token\tnote:token\nnew\ti3\t"a\nnew\ti7\tb"\n')
    pd.testing.assert_frame_equal(recommend(recommender, 4, histories=tmp_path / "q.inter"), wanted)
    for users in (np.array(["u4", "u7"]), pd.Series(["u4", "u7"])):
        assert recommend(recommender, 1, users=users)["user"].tolist() == ["u4", "u7"]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    table.to_csv(tmp_path / "h.csv", index=False)
    table.to_parquet(tmp_path / "h.parquet")
    atomic = table.rename(
        columns={"user_id": "user_id:token", "item_id": "item_id:token", "timestamp": "timestamp:float"}
    )
    atomic.to_csv(tmp_path / "h.inter", sep="\t", index=False)
    for name in ("h.jsonl", "h.csv", "h.parquet", "h.inter"):
        pd.testing.assert_frame_equal(recommend(recommender, 4, histories=tmp_path / name), wanted)
    assert recommend(recommender, 4, histories=[["i3", "i7"]])["item"].tolist() == wanted["item"].tolist()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1", "line 1: no JSON"),
        ('{"user": "a"}', 'line 1: no list "history" of item ids'),
        ('{"history": []}', "line 1: the history is empty"),
        ('{"history": ["i3", "i99"]}', "line 1: item 'i99' is not in the data"),
        ('{"history": "i3"}', 'no list "history"'),
        ('{"history": [true]}', 'no list "history"'),
        ('{"user": null, "history": ["i3"]}', 'line 1: "user" is no id'),
        ('{"user": ["ann"], "history": ["i3"]}', 'line 1: "user" is no id'),
        ("[" * 100_000, "line 1: no JSON"),
    ],
)
def test_a_bad_line_is_named(recommender, tmp_path, line, said):
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError) as error:
        recommend(recommender, 4, histories=path)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("user_id,item_id\nann,i3\nbob\n", "row 2: no item_id"),
        ("user_id,item_id\nann,i3\n,i4\n", "row 2: no user_id"),
        ("user_id,item_id,timestamp\nann,i3,\n", "row 1: timestamp is no number"),
    ],
)
def test_a_row_that_lacks_something_is_named(recommender, tmp_path, text, said):
    (tmp_path / "short.csv").write_text(text)
    with pytest.raises(DataError, match=said):
        recommend(recommender, 4, histories=tmp_path / "short.csv")
    if "bob" in text:
        pd.DataFrame({"user_id": [1, 2], "item_id": ["i3", None]}).to_parquet(tmp_path / "short.parquet")
        with pytest.raises(DataError, match=said):
            recommend(recommender, 4, histories=tmp_path / "short.parquet")


def test_unknown_items_of_histories_can_be_passed_over(recommender):
    passed = recommend(recommender, 4, histories=[["i3", "i99"]], skip_unknown=True)
    pd.testing.assert_frame_equal(passed, recommend(recommender, 4, histories=[["i3"]]))
    with pytest.raises(DataError, match="empty of known items"):
        recommend(recommender, 4, histories=[["i99"]], skip_unknown=True)


def test_lists_of_items_are_ids_or_files(recommender, tmp_path):
    path = tmp_path / "allowed.txt"
    path.write_text("i3\n\ni5 \ni9\n")
    table = recommend(recommender, 4, users="u1", allow=str(path), exclude="i5", mask_history=False)
    assert sorted(table["item"]) == ["i3", "i9"]
    with pytest.raises(DataError, match="a list of ids is empty"):
        recommend(recommender, 4, users="u1", allow="")
    with pytest.raises(DataError, match=r"item 'i5x' is not in the data of .*did you mean 'i5'"):
        recommend(recommender, 4, users="u1", exclude=["i5x"])


def test_files_hold_what_the_table_holds(recommender, tmp_path):
    users = [f"u{number}" for number in range(9)]
    table = recommend(recommender, 5, users=users)
    for suffix in (".csv", ".jsonl", ".parquet"):
        path = recommend(recommender, 5, users=users, out=tmp_path / f"top{suffix}")
        pd.testing.assert_frame_equal(_read(path), table, check_dtype=False)
        assert not list(tmp_path.glob("*.parts"))


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        table["title"] = table["title"].str.removeprefix("'")
        table["title"] = table["title"].str.replace("\\u202e", "\u202e").str.replace("\\x1b", "\x1b")
        table["title"] = [recommend_title(title) for title in table["title"]]
        return table
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return pd.DataFrame(
        [{"user": row["user"], "rank": rank, **item} for row in rows for rank, item in enumerate(row["items"], 1)]
    )


def recommend_title(title: str) -> str:
    """A title as the run has it, without control characters."""
    return title.replace("\x1b", "")


def test_formulas_and_marks_are_harmless(recommender, folder, tmp_path, capsys):
    path = recommend(recommender, 2, users="u1", allow="i0,i1", mask_history=False, out=tmp_path / "top.csv")
    with path.open(newline="", encoding="utf-8") as file:
        titles = {row["item"]: row["title"] for row in csv.DictReader(file)}
    assert titles["i0"] == f"'{FORMULA}"
    assert "\u202e" not in titles["i1"]
    assert main(["recommend", str(folder), "--users=u1", "--allow=i0,i1", "--mask_history=False"]) == 0
    shown = capsys.readouterr().out
    assert FORMULA in shown
    assert "\\u202e" in shown
    assert "\U0001f3ac" in shown
    assert not {"\u202e", "\x1b"} & set(shown)


def test_an_interrupted_file_goes_on(recommender, tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "ROWS_AT_ONCE", 10)
    wanted = recommend(recommender, 3, users="all")
    asked: list[int] = []
    top_k = Recommender.top_k

    def failing(self, k, **given):
        asked.append(len(given["users"]))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return top_k(self, k, **given)

    monkeypatch.setattr(Recommender, "top_k", failing)
    path = tmp_path / "top.parquet"
    with pytest.raises(KeyboardInterrupt):
        recommend(recommender, 3, users="all", out=path)
    assert not path.exists()
    assert len(list((tmp_path / "top.parquet.parts").glob("*.parquet"))) == 2
    recommend(recommender, 3, users="all", out=path)
    assert asked == [10] * 7
    pd.testing.assert_frame_equal(pd.read_parquet(path), wanted, check_dtype=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["top.parquet"]


def test_parts_of_other_arguments_are_begun_anew(recommender, tmp_path):
    path = tmp_path / "top.csv"
    parts = tmp_path / "top.csv.parts"
    output._begin(parts, {"k": 3})
    (parts / "0000000.csv").write_text("nonsense\n")
    assert "nonsense" not in recommend(recommender, 3, users="u1", out=path).read_text()
    one, other = (Request(histories=[np.arange(3000) == place]) for place in (1000, 2000))
    assert _identity_of(recommender, one)["histories"] != _identity_of(recommender, other)["histories"]
    before = _identity_of(recommender, one)
    masked = opened(recommender.run.run_dir, changed={"mask_history": not recommender.config["mask_history"]})
    assert _identity_of(masked, one) == {**before, "settings": _identity_of(masked, one)["settings"]} != before
    output._begin(parts, {"k": 3})
    (parts / "0000000.csv").write_text("another command's\n")
    for refused in ({"users": "u99"}, {"users": "u1", "known": "none"}, {"histories": [["i3", "i99"]]}):
        with pytest.raises((ConfigError, DataError)):
            recommend(recommender, 3, **refused, out=path)
    assert (parts / "0000000.csv").read_text() == "another command's\n"
    shutil.rmtree(parts)
    parts.mkdir()
    (parts / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="was not made here"):
        recommend(recommender, 3, users="u1", out=path)
    assert (parts / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give either users of the data or histories"),
        ({"users": "u1", "histories": [["i1"]]}, "give either users of the data or histories"),
        ({"users": "u1", "out": "top.xlsx"}, r"recommendations are written as .csv, .jsonl, .parquet"),
        ({"users": "u99"}, "user 'u99' is not in the data"),
        ({"users": "u1", "k": 99}, "k: 99 items cannot be recommended of 40"),
        ({"users": "u1", "reasons": True}, "SASRec has no texts of its users"),
        ({"histories": "nowhere.jsonl"}, "no such file of histories"),
        ({"histories": __file__}, "histories are read from .jsonl"),
        ({"histories": ["i7", "i9"]}, "history 1: 'i7' is no list of items; give histories=[['i7', 'i9']]"),
        ({"histories": {"ann": 17}}, "history ann: 17 is no list of items"),
        ({"users": "u" * 10_000}, "is not in the data"),
    ],
)
def test_bad_input_is_one_line(recommender, given, said):
    with pytest.raises((ConfigError, DataError)) as error:
        recommend(recommender, **given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_similar_items_are_those_of_the_vectors(recommender):
    vectors = recommender.item_vectors().numpy()
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit[int(recommender.item_ids(["i4"])[0])]
    cosines[[0, int(recommender.item_ids(["i4"])[0])]] = -np.inf
    table = similar(recommender, "i4", 5)
    assert list(table.columns) == ["of", "rank", "item", "score", "title"]
    np.testing.assert_allclose(table["score"], np.sort(cosines)[::-1][:5], rtol=1e-5)
    assert table["item"].tolist() == recommender.item_tokens[np.argsort(-cosines)[:5]].tolist()
    assert set(similar(recommender, ["i4"], 3, allow="i5,i6")["item"]) == {"i5", "i6"}


def test_what_cannot_be_written_is_said_before_the_run_is_opened(tmp_path):
    with pytest.raises(ConfigError, match=r"written as \.csv"):
        similar(tmp_path / "no-run", "i4", out="top.txt")
    for given, said in (({"kind": "csv"}, "--format=csv"), ({"index": "ivf"}, "--index=ivf is not accepted")):
        with pytest.raises(ConfigError, match=said):
            export(tmp_path / "no-run", tmp_path / "export", **given)
    assert not (tmp_path / "export").exists()


def test_progress_is_said_where_there_is_no_terminal(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("recbole_mm.utils.progress.LOG_PERIOD", 0.0)
    assert main(["recommend", str(folder), "--users=all", f"--out={tmp_path / 'all.csv'}"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if "Recommending: 1 batch" in line]
    assert all("Recommending: 1 batch" in line for line in said)
    assert main(["similar", str(folder), "--items=all", f"--out={tmp_path / 'similar.csv'}"]) == 0
    assert "Recommending: 1 batch" in capsys.readouterr().err


def test_the_commands(folder, tmp_path, capsys):
    assert main(["recommend", str(folder), "--history", "i3,i7", "--k=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["USER", "RANK", "ITEM", "SCORE", "TITLE"]
    assert len(lines) == 4
    out = tmp_path / "all.jsonl"
    assert main(["recommend", str(folder), "--users=all", f"--out={out}"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert len(out.read_text().splitlines()) == 60
    assert main(["similar", str(folder), "--items=i3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 11
    for arguments, said in (
        (["--users=all"], "--users all needs a file"),
        ([], "--users, --history or --histories is missing"),
        (["--users=u1", "--history=i1"], "give one of them"),
        (["--users=u1", "--data_path=nowhere"], "does not exist"),
        (["--users=u1", "--max_item_list_lenght=3"], "--max_item_list_lenght is no setting of"),
    ):
        status = main(["recommend", str(folder), *arguments])
        error = capsys.readouterr().err
        assert (status, said in error) == (2, True), (arguments, error)


def test_the_page_s_commands_run(folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    page = (Path(__file__).parents[1] / "docs" / "recommend.md").read_text(encoding="utf-8")
    commands = [line.split()[1:] for line in page.splitlines() if line.startswith("recbole-mm ")]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sold-out.txt").write_text("i1\ni2\n")
    done = set()
    for command in commands:
        if "--new_items" in command:
            continue  # for models of content, in test_new_items
        words = [re.sub(r"\bc(?=\d)", "u", re.sub(r"\bp(?=\d)", "i", word)) for word in command]  # ids of toy
        words = [str(folder) if word.startswith("saved/") else word for word in words]
        assert main(words) == 0, (words, capsys.readouterr().err)
        done.add(command[0])
    assert done == {"recommend", "similar", "export"}
    assert (tmp_path / "top.parquet").is_file()
    assert (tmp_path / "export" / "items.faiss").is_file()
