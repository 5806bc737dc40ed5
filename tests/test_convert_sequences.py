"""`recbole-mm prepare sequences`: a line per user becomes interactions; a bad line is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import yaml

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.datasets import CONVERTERS
from recbole_mm.datasets.sequences import read_sequences
from recbole_mm.errors import DataError

TEXT = "007 12 5 12\n\n3\t5  9\t\n u-x 9\n"
INTER = [
    "user_id:token\titem_id:token\ttimestamp:float",
    *("007\t12\t0", "007\t5\t1", "007\t12\t2", "3\t5\t0", "3\t9\t1", "u-x\t9\t0"),
]


def put(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def prepare(source: Path, out: Path, **options):
    return CONVERTERS["sequences"].convert(source, out, **options)


@pytest.mark.parametrize("name", ["Beauty.txt", "beauty.tsv.gz", "any.name"])
def test_a_file_becomes_interactions_in_its_order(tmp_path, name):
    out = tmp_path / "beauty"
    summary = prepare(put(tmp_path / "raw" / name, TEXT), out)
    assert (out / "beauty.inter").read_text().splitlines() == INTER
    assert (summary.users, summary.items, summary.interactions) == (3, 3, 6)
    assert f"{name} gives the order only" in str(summary)
    settings = yaml.safe_load((out / "beauty.yaml").read_text())
    assert settings["load_col"] == {"inter": ["user_id", "item_id", "timestamp"]}
    assert sorted(path.name for path in out.iterdir()) == ["beauty.inter", "beauty.yaml"]


@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_line_ends_and_byte_order_marks_are_no_part_of_an_id(tmp_path, ends):
    raw = "\ufeff" + TEXT.replace("\n", ends)
    prepare(put(tmp_path / "raw" / "a.txt", raw), tmp_path / "out")
    assert (tmp_path / "out" / "out.inter").read_text().splitlines() == INTER


def test_a_folder_with_one_file_or_a_choice(tmp_path):
    source = put(tmp_path / "raw" / "Beauty.txt", TEXT).parent
    put(source / "notes.md", "no sequences")
    assert prepare(source, tmp_path / "a").interactions == 6
    put(source / "Sports.txt", "1 2 3\n")
    with pytest.raises(DataError, match=r"Beauty.txt, Sports.txt all fit; choose one with --interactions"):
        prepare(source, tmp_path / "b")
    assert prepare(source, tmp_path / "b", interactions="Sports.txt").interactions == 2


def test_the_same_file_gives_the_same_bytes_and_another_is_refused(tmp_path):
    source = put(tmp_path / "raw.txt", TEXT)
    prepare(source, tmp_path / "out")
    before = (tmp_path / "out" / "out.inter").read_bytes()
    prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "out.inter").read_bytes() == before
    put(source, "1 2\n")
    with pytest.raises(DataError, match=r"holds a different out\.inter"):
        prepare(source, tmp_path / "out")


def test_what_is_written_is_what_a_model_trains_on(tmp_path):
    lines = "".join(f"{user} " + " ".join(str((user + step) % 9) for step in range(6)) + "\n" for user in range(20))
    prepare(put(tmp_path / "raw.txt", lines), tmp_path / "data" / "steps")
    settings = {
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "epochs": 1,
        "topk": [3],
        "valid_metric": "NDCG@3",
        "show_progress": False,
        "state": "WARNING",
    }
    outcome = recbole_mm.run("FPMC", "steps", config_dict=settings)
    users = outcome.splits.test.users
    tokens = outcome.dataset.item_tokens()
    names = outcome.dataset.field2id_token["user_id"]
    held = dict(zip(names[users.user_ids], (tokens[i] for i in users.positives.items)))
    assert held == {str(user): str((user + 5) % 9) for user in range(20)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"raw.txt: the file is empty"),
        (b"\n \t\n", r"raw.txt: the file is empty"),
        (b"1 2 3\n\n2\n", r"raw.txt, line 3: user '2' has no items"),
        (b"1 2 3\n2 4\n1 5\n", r"raw.txt, line 3: user '1' was already listed on line 1; a user's items stand on one"),
        (b"1 2\n2 3\x004\n", r"raw.txt, line 2: id '3\\x004' holds a control character"),
        (b'1 2\n2 "3\n', r"raw.txt, line 2: id '\"3' .* begins with a quote"),
        (b"1 2\n2 3\r4 5\n", r"raw.txt, line 2: id '3\\r4' holds a control character"),
        ("1 2\n2 3\u2028\n".encode(), r"raw.txt, line 2: id '3\\u2028' holds a control character"),
        ("1 2\n2 3\u00a0\n".encode(), r"raw.txt, line 2: id '3\\xa0' has a blank at its end"),
        (b"1 2\n2 nan\n", r"raw.txt, line 2: id 'nan' stands for a missing value"),
        (b"1 2 2.0\n", r"the item ids '2' and '2.0' are one id written in two ways \(1 such pairs\)"),
        (b"1 2\n2 \xff\xfe\n", r"raw.txt, line 2: not utf-8"),
    ],
)
def test_bad_lines_are_named_and_nothing_is_written(tmp_path, text, message):
    source = put(tmp_path / "raw.txt", text)
    with pytest.raises(DataError, match=message) as caught:
        prepare(source, tmp_path / "dataset" / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("head", ["user_id\titem_ids_oldest_first", "\nUser item item item item item", "uid"])
def test_a_line_that_names_the_columns_is_no_user(tmp_path, head):
    summary = prepare(put(tmp_path / "raw.txt", f"{head}\n{TEXT}"), tmp_path / "out")
    assert (tmp_path / "out" / "out.inter").read_text().splitlines() == INTER
    line = 2 if head.startswith("\n") else 1
    assert f"raw.txt, line {line} names the columns: {' '.join(head.split()[:5])}" in summary.notes


def test_sources_that_are_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no such folder"):
        prepare(tmp_path / "nowhere.txt", tmp_path / "out")
    with pytest.raises(DataError, match="no sequence file"):
        prepare(tmp_path / "empty", tmp_path / "out")
    source = put(tmp_path / "raw.txt", TEXT)
    with pytest.raises(DataError, match="is the file itself"):
        prepare(source, tmp_path / "out", interactions="raw.txt")
    (tmp_path / "broken.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="damaged gzip file"):
        prepare(tmp_path / "broken.gz", tmp_path / "out")


def test_ids_stay_as_they_are(tmp_path):
    table = read_sequences(put(tmp_path / "raw.txt", "Ü\u00a01 0007 7 a'b"), notes := [])
    assert table["user_id"].tolist() == ["Ü\u00a01"] * 3
    assert table["item_id"].tolist() == ["0007", "7", "a'b"]
    assert table["timestamp"].tolist() == [0, 1, 2]
    assert notes == ["raw.txt has no line end after its last line: see that nothing of it is missing"]


def test_from_the_command_line(tmp_path, capsys):
    source = put(tmp_path / "raw.txt", TEXT)
    assert main(["prepare", "sequences", f"--source={source}", f"--out={tmp_path / 'made'}"]) == 0
    assert "made: 3 users, 3 items, 6 interactions" in capsys.readouterr().out
    put(source, "1\n")
    assert main(["prepare", "sequences", f"--source={source}", f"--out={tmp_path / 'other'}"]) == 2
    assert "line 1: user '1' has no items" in capsys.readouterr().err
