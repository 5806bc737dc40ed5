"""What a dataset's files may hold: one idea of a line for all, and nothing filled in, dropped or added in silence."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

import recbole_mm
from recbole_mm.config.resolved import Config
from recbole_mm.data import lines
from recbole_mm.data.atomic import read_atomic
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.item_table import ItemTable
from recbole_mm.errors import DataError, RecboleMMError

HEADER = "user_id:token\titem_id:token\ttimestamp:float"
ROWS = ["u1\ta\t1", "u1\tb\t2", "u2\tb\t3", "u2\ta\t4"]
LOAD = {"inter": ["user_id", "item_id", "timestamp"]}


def write(folder: Path, suffix: str, *rows: str | bytes) -> Path:
    """A file of the dataset `small`; the first row is the header, or it is the whole file as bytes."""
    path = folder / "small" / f"small.{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(rows[0] if isinstance(rows[0], bytes) else "".join(f"{row}\n" for row in rows).encode())
    return path


def load(folder: Path, model: str = "SASRec", **settings):
    """The dataset `small`, with the rows above where the test wrote none."""
    if not (folder / "small" / "small.inter").exists() and not settings.get("benchmark_filename"):
        write(folder, "inter", HEADER, *ROWS)
    given = {"data_path": str(folder), "load_col": LOAD, "state": "WARNING", **settings}
    return create_dataset(Config(model, "small", config_dict=given))


def refused(folder: Path, model: str = "SASRec", **settings) -> str:
    """The one line with which the dataset is refused, without the folder."""
    with pytest.raises(RecboleMMError) as caught:
        load(folder, model, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(f"{folder / 'small'}/", "")


# ------------------------------------------------------------------------------------------------------ lines


WRONG_ROWS = {
    "carriage return": (b"u1\ta\rb\t1", "a carriage return inside the line"),
    "two carriage returns": (b"u1\ta\t1\r\r", "a carriage return inside the line"),
    "NUL": (b"u1\ta\0b\t1", "a NUL character"),
    "too few": (b"u1\ta", "2 fields, but line 1 names 3 columns"),
    "too many": (b"u1\ta\t1\t", "4 fields, but line 1 names 3 columns"),
    "not UTF-8": (b"u1\t\xe9\t1", "not utf-8 text; set `encoding`"),
}


@pytest.mark.parametrize(("row", "message"), WRONG_ROWS.values(), ids=WRONG_ROWS)
@pytest.mark.parametrize("suffix", ["inter", "item", "user", "vec"])
def test_lines_that_are_no_rows_are_refused_in_every_file(tmp_path, suffix, row, message):
    header = {"item": b"item_id:token\tx:token\ty:float", "user": b"user_id:token\tx:token\ty:float"}
    header |= {"inter": HEADER.encode(), "vec": b"vid:token\tx:token\ty:float"}
    path = write(tmp_path, suffix, header[suffix] + b"\nu0\ta\t1\n" + row + b"\n")
    load_col = LOAD | {"inter": {}, "vec": {"vec": ["vid", "y"]}}.get(suffix, {suffix: "*"})
    more = {"additional_feat_suffix": ["vec"], "alias_of_item_id": ["vid"]} if suffix == "vec" else {}
    assert f"small.{suffix}, line 3: {message}" in refused(tmp_path, load_col=load_col, **more)
    if suffix == "item":
        with pytest.raises(DataError, match=rf"line 3: {message}"):
            ItemTable.read(path)


@pytest.mark.parametrize("suffix", ["kg", "link"])
@pytest.mark.parametrize(("row", "message"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_so_are_those_of_a_knowledge_graph(tmp_path, suffix, row, message):
    write(tmp_path, "kg", "head_id:token\trelation_id:token\ttail_id:token", "A\tr\tB", "B\tr\tC")
    write(tmp_path, "link", "item_id:token\tentity_id:token\tnote:token", "a\tA\tx", "b\tB\ty")
    path = tmp_path / "small" / f"small.{suffix}"
    path.write_bytes(path.read_bytes() + row + b"\n")
    load_col = LOAD | {"kg": "*", "link": "*"}
    assert f"small.{suffix}, line 4: {message}" in refused(tmp_path, "CKE", load_col=load_col)


def test_what_is_no_file(tmp_path):
    with pytest.raises(DataError, match=r"x\.inter: no such file; RecBole calls it"):
        read_atomic(tmp_path / "x.inter", "\t", lambda name: True)
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_atomic(tmp_path, "\t", lambda name: True)


def test_a_line_is_found_beyond_the_first_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 64)
    rows = [f"u{n}\ti{n}\t{n}" for n in range(100)]
    path = write(tmp_path, "inter", HEADER, *rows)
    table, _ = read_atomic(path, "\t", lambda name: True)
    assert table["item_id"].tolist() == [f"i{n}" for n in range(100)]
    assert table.index.tolist() == list(range(2, 102))
    for bad, message in ((b"u\t\xff\t1", "not utf-8"), (b"u\ta\tnoon", "'noon'"), (b"u\ta", "2 fields")):
        path.write_bytes("\n".join([HEADER, *rows]).encode() + b"\n" + bad + b"\nu\ta\t1\n")
        with pytest.raises(DataError, match=f"line 102: .*{message}"):
            read_atomic(path, "\t", lambda name: True)


def test_line_ends_empty_lines_and_characters_that_end_no_line(tmp_path):
    path = write(tmp_path, "inter", f"\ufeff{HEADER}\r\n\r\nu\x1d1\ta\x85\t1\r\n\n\ufeffu\t\u2028 b \t2\n".encode())
    table, _ = read_atomic(path, "\t", lambda name: True)
    assert table["user_id"].tolist() == ["u\x1d1", "\ufeffu"]
    assert table["item_id"].tolist() == ["a\x85", "\u2028 b "]
    assert table.index.tolist() == [3, 5], "the lines of the file"


@pytest.mark.parametrize("end", ["", "\r"])
def test_a_last_line_without_its_end_is_taken_and_said(tmp_path, caplog, end):
    write(tmp_path, "inter", f"{HEADER}\nu1\ta\t1\nu1\tb\t17{end}".encode())
    assert load(tmp_path).inter_feat["timestamp"].tolist() == [1, 17]
    assert caplog.text.count("small.inter, line 3: the last line does not end with a line feed") == 1


# ------------------------------------------------------------------------------------- separators, encodings


@pytest.mark.parametrize("separator", ["::", ",", " ", "¦", "\x1f", "|", "<SEP>"])
def test_separators_are_taken_as_they_are(tmp_path, separator):
    write(tmp_path, "inter", *(row.replace("\t", separator) for row in (HEADER, *ROWS)))
    dataset = load(tmp_path, field_separator=separator)
    assert dataset.inter_feat["timestamp"].tolist() == [1, 2, 3, 4]
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "a", "b"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"field_separator": ""}, "field_separator: '' is not accepted"),
        ({"field_separator": "\n"}, r"field_separator: '\n' cannot separate the fields"),
        ({"seq_separator": ""}, "seq_separator: '' is not accepted"),
        ({"encoding": "utf-9"}, "encoding: 'utf-9' is not a text encoding that Python knows, such as utf-8"),
        ({"encoding": "base64"}, "encoding: 'base64' is not a text encoding"),
        ({"encoding": 8}, "encoding: 8 is not accepted; give a text encoding, such as utf-16"),
        ({"encoding": "utf-16"}, "small.inter, line 1: not utf-16 text"),
        ({"encoding": "ascii"}, "small.inter, line 2: not ascii text; set `encoding`"),
    ],
)
def test_separators_and_encodings_that_are_none(tmp_path, settings, message):
    write(tmp_path, "inter", HEADER, "u1\té\t1")
    assert message in refused(tmp_path, **settings)


def test_values_of_a_sequence_cannot_be_separated_as_fields_are(tmp_path):
    write(tmp_path, "inter", "user_id:token,item_id:token,timestamp:float,tags:token_seq", "u,a,1,x")
    settings = {"field_separator": ",", "load_col": None}
    assert "seq_separator: ',' cannot stand inside a field of small.inter" in refused(
        tmp_path, seq_separator=",", **settings
    )
    assert load(tmp_path, **settings).field2id_token["tags"].tolist() == ["[PAD]", "x"]


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "utf_8_sig", "utf-16", "utf-16-le", "utf-32", None])
@pytest.mark.parametrize("marked", [True, False])
def test_encodings_with_and_without_a_byte_order_mark(tmp_path, encoding, marked):
    if encoding in ("utf-16", "utf-32") or (encoding == "utf_8_sig" and marked):
        marked = False  # these write one by themselves
    text = "".join(f"{row}\n" for row in (HEADER, "u1\té\t1", "u1\t字\t2"))
    write(tmp_path, "inter", ("\ufeff" * marked + text).encode(encoding or "utf-8"))
    write(tmp_path, "item", "item_id:token\tt:token_seq\né\tÄ\n字\t…\n".encode(encoding or "utf-8"))
    dataset = load(tmp_path, encoding=encoding)
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "é", "字"]
    assert dataset.content_source.fields("字") == {"t": "…"}


def test_the_error_about_an_encoding_names_one_that_can_be_given(tmp_path, caplog):
    write(tmp_path, "inter", "".join(f"{row}\n" for row in (HEADER, *ROWS)).encode("utf-16"))
    assert "line 1: not utf-8 text; set `encoding` to what the file is in, such as utf-16" in refused(tmp_path)
    given = {"data_path": str(tmp_path), "state": "WARNING"}
    assert (
        create_dataset(Config("SASRec", "small", config_dict=given, command_line={"encoding": "utf-16"})).item_num == 3
    )
    assert not caplog.records
    (tmp_path / "small" / "small.yaml").write_text("encoding: utf-16\n")
    assert load(tmp_path).item_num == 3


# ----------------------------------------------------------------------------------------------------- header


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "user_id:token_seq\titem_id:token\ttimestamp:float",
            "column user_id:token_seq holds ids; write user_id:token",
        ),
        ("user_id:token\titem_id:float\ttimestamp:float", "column item_id:float holds ids; write item_id:token"),
        ("user_id:token\titem_id:token\ttimestamp:token", "column timestamp:token holds times; write timestamp:float"),
        ("user_id:token\titem_id:token\ttimestamp:float_seq", "column timestamp:float_seq holds times"),
        ("user_id:token\titem_id:token\ttimestamp:time", "column 'timestamp:time' is not name:type"),
        ("user_id:token\titem_id:token\t:float", "column ':float' is not name:type"),
        ("user_id:token\titem_id:token\ttimestamp:float ", "column 'timestamp:float ' is not name:type"),
        ("user_id:token\titem_id:token\tuser_id:token", "column 'user_id' is named twice"),
        ("user_id:token\t item_id:token\ttimestamp:float", "no column 'item_id' among user_id,  item_id, timestamp"),
        ("user_id:token\titem_id:token\ttime:float", "if time is the time, say --TIME_FIELD=time"),
        ("", "column '' is not name:type"),
    ],
)
def test_damaged_headers(tmp_path, header, message):
    write(tmp_path, "inter", header, *ROWS)
    assert f"small.inter, line 1: {message}" in refused(tmp_path).replace(
        "to order by (eval_args.order: TO); ", ""
    ).replace("no column 'timestamp' ", "")


@pytest.mark.parametrize(
    ("suffix", "header", "message"),
    [
        ("item", "item_id:token_seq\tx:token", "small.item, line 1: column item_id:token_seq holds ids"),
        ("item", "id:token\tx:token", "small.item, line 1: no column 'item_id' among id, x"),
        ("user", "user_id:float\tx:token", "small.user, line 1: column user_id:float holds ids"),
        ("user", "id:token\tx:token", "small.user, line 1: no column 'user_id' among id, x"),
        ("item", "item_id:token\ttimestamp:float", "column 'timestamp' is one of .inter already; rename one"),
        ("user", "user_id:token\titem_id:token", "column 'item_id' is one of .inter already; rename it here, and add"),
    ],
)
def test_headers_of_items_and_users(tmp_path, suffix, header, message):
    write(tmp_path, suffix, header, "a\t1", "b\t2", "u1\t1", "u2\t2")
    assert message in refused(tmp_path, load_col=LOAD | {suffix: "*"})


def test_an_id_column_that_is_not_loaded(tmp_path):
    write(tmp_path, "item", "item_id:token\tx:token", "a\t1", "b\t2")
    message = refused(tmp_path, load_col=LOAD | {"item": ["x"]})
    assert "'item_id' of small.item is not loaded" in message
    assert "load_col: {item: [item_id]}" in message
    assert "both name columns of .inter" in refused(tmp_path, unload_col={"inter": ["timestamp"]})


# ----------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("time", ["", "nan", "inf", "-inf", "noon", "1e999", "1_000", "True", "0x10", " "])
def test_a_time_is_a_number(tmp_path, time):
    write(tmp_path, "inter", HEADER, "u1\ta\t1", f"u1\tb\t{time}", "u1\tc\t3")
    message = refused(tmp_path)
    what = "column timestamp is empty (1 such lines)" if time == "" else f"{time!r} in column timestamp is not a finite"
    assert f"small.inter, line 3: {what}" in message


def test_whole_times_keep_all_their_digits(tmp_path):
    exact = [f"u1\t{item}\t{1_700_000_000 * 10**9 + 512 * n}" for n, item in enumerate("abc")]
    write(tmp_path, "inter", HEADER, *exact)
    assert np.diff(load(tmp_path).inter_feat["timestamp"]).tolist() == [512, 512]
    write(tmp_path, "inter", HEADER, *exact, "u1\td\t1700000000123456789")
    assert "line 5: 1700000000123456789 in column timestamp has more digits" in refused(tmp_path)


@pytest.mark.parametrize(
    "settings", [{"threshold": {"rating": 3}}, {"LABEL_FIELD": "rating"}, {"val_interval": {"rating": "[1,5]"}}]
)
def test_what_labels_and_filters_follow_from_is_a_number(tmp_path, settings):
    settings |= {"load_col": None, "model": "BPR"}
    write(tmp_path, "inter", f"{HEADER}\trating:float", "u1\ta\t1\t5", "u1\tb\t2\t", "u1\tc\t2\t")
    assert "small.inter, line 3: column rating is empty (2 such lines)" in refused(tmp_path, **settings)
    if "val_interval" not in settings:  # which may name tokens
        write(tmp_path, "inter", f"{HEADER}\trating:token", "u1\ta\t1\t5", "u1\tb\t2\t1")
        assert "line 1: column rating:token holds" in refused(tmp_path, **settings)


def test_other_empty_numbers_are_counted_once(tmp_path, caplog):
    write(tmp_path, "item", "item_id:token\tprice:float\tvec:float_seq", "a\t\t1 2", "b\t7\t3", "c\t\t")
    dataset = load(tmp_path, load_col=LOAD | {"item": "*"})
    assert "small.item: column price is empty on 2 of 3 lines, first on line 2" in caplog.text
    assert caplog.text.count("is empty") == 1
    assert [row.tolist() for row in dataset.item_feat["vec"].iloc[1:3]] == [[1, 2], [3]]


@pytest.mark.parametrize("word", ["x", "nan", "inf", "1_0", "1,5", "٣"])
def test_a_word_among_the_numbers_of_a_sequence(tmp_path, word):
    write(tmp_path, "item", "item_id:token\tvec:float_seq", "a\t1 2", f"b\t3 {word}")
    message = refused(tmp_path, load_col=LOAD | {"item": "*"})
    assert f"small.item, line 3: {word!r} in column vec is not a finite number" in message


@pytest.mark.parametrize(("row", "column"), [("\ta\t1", "user_id"), ("u1\t\t1", "item_id")])
def test_an_empty_id(tmp_path, row, column):
    write(tmp_path, "inter", HEADER, *ROWS, row)
    assert f"small.inter, line 6: the id in column {column} is empty" in refused(tmp_path)
    write(tmp_path, "inter", HEADER, *ROWS, row.replace("\t\t", "\t[PAD]\t") if row[0] == "u" else f"[PAD]{row}")
    assert f"small.inter, line 6: the id in column {column} is [PAD]" in refused(tmp_path)


def test_two_descriptions_of_one(tmp_path, caplog):
    files = {
        "item": ("item_id:token\tx:token\ty:token", ["a\t1\t1", "b\t2\t2"]),
        "user": ("user_id:token\tx:token\ty:token", ["u1\t1\t1", "u2\t2\t2"]),
        "vec": ("vid:token\tx:float\ty:float", ["a\t1\t1", "b\t2\t2"]),
    }
    for suffix, (header, rows) in files.items():
        settings = {"load_col": LOAD | {suffix: "*"}}
        if suffix == "vec":
            settings |= {"additional_feat_suffix": ["vec"], "alias_of_item_id": ["vid"]}
        path = write(tmp_path, suffix, header, *rows, rows[0], rows[0])
        table = getattr(load(tmp_path, **settings), f"{suffix}_feat")
        assert f"{path}: 2 rows repeat another one exactly and are dropped" in caplog.text
        assert np.count_nonzero(table["x"]) == 2
        write(tmp_path, suffix, header, *rows, rows[0][:-1] + "9")
        name, first = header.split(":")[0], rows[0].split("\t")[0]
        message = f"small.{suffix}: {name} {first!r} is described differently on lines 2 and 4; keep one of them"
        assert message in refused(tmp_path, **settings)
        if suffix != "vec":  # a column that is not loaded tells two descriptions apart, too
            settings["load_col"] = LOAD | {suffix: [name, "x"]}
            assert message in refused(tmp_path, **settings)
        path.unlink()


def test_users_that_their_file_does_not_list(tmp_path):
    write(tmp_path, "user", "user_id:token\tage:float", "u1\t30")
    load_col = LOAD | {"user": "*"}
    assert "small.user: 1 user ids of the .inter file are not listed, such as 'u2'" in refused(
        tmp_path, load_col=load_col
    )
    assert load(tmp_path, load_col=load_col, filter_inter_by_user_or_item=True).user_num == 2


def test_columns_that_settings_name(tmp_path):
    assert "threshold: 'rating' is no loaded column" in refused(tmp_path, threshold={"rating": 3})
    assert "alias_of_item_id: 'vid' is no loaded column" in refused(tmp_path, alias_of_item_id=["vid"])
    assert "val_interval: 'timestmp' is no loaded column; did you mean 'timestamp'?" in refused(
        tmp_path, val_interval={"timestmp": "[1,2]"}
    )


def test_which_column_of_times_is_used(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path, "inter", f"{HEADER}\tevent_date:float\tcandidate:token", "u1\ta\t1\t9\tx", "u1\tb\t2\t8\tx")
    load(tmp_path)
    assert "rows are ordered by 'timestamp', not by 'event_date' (TIME_FIELD)" in caplog.text
    assert load(tmp_path, TIME_FIELD="event_date", load_col=None).time_field == "event_date"


def test_files_of_a_given_split_agree(tmp_path):
    write(tmp_path, "train.inter", HEADER, *ROWS)
    write(tmp_path, "valid.inter", HEADER, "u1\tb\t5")
    settings = {"benchmark_filename": ["train", "valid", "test"], "model": "BPR"}
    assert "small.test.inter does not exist" in refused(tmp_path, **settings)
    write(tmp_path, "test.inter", "user_id:token\titem_id:token", "u2\tb")
    assert "small.test.inter, line 1: column 'timestamp' is not as in small.train.inter" in refused(
        tmp_path, **settings
    )
    write(tmp_path, "test.inter", HEADER, "u2\tb\t6")
    assert load(tmp_path, **settings).inter_num == 6


# ------------------------------------------------------------------------------------------------ ghost items


def add_vectors(folder: Path, *ids: str, name: str = "vid") -> dict:
    """An additional file of vectors, and the settings that load it."""
    write(folder, "vec", f"{name}:token\tvec:float_seq", *(f"{item}\t1 2" for item in ids))
    return {"additional_feat_suffix": ["vec"], "load_col": LOAD | {"vec": "*"}}


def test_only_interacted_items_are_candidates(tmp_path):
    settings = add_vectors(tmp_path, "ghost", "b", "a", "wraith") | {"alias_of_item_id": ["vid"]}
    dataset = load(tmp_path, **settings)
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "a", "b"]
    assert dataset.vec_feat["vid"].tolist() == [2, 1]
    dataset.build()
    write(tmp_path, "item", "item_id:token\tlike:token_seq", "a\tghost b", "b\tspook", "shelf\ta")
    settings["load_col"] = settings["load_col"] | {"item": "*"}
    settings["alias_of_item_id"] = ["vid", "like"]
    dataset = load(tmp_path, **settings)
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "a", "b"]
    assert [row.tolist() for row in dataset.item_feat["like"][1:]] == [[2], []]
    dataset = load(tmp_path, candidates="catalogue", **settings)
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "a", "b", "shelf"], "those of .item, and no others"


def test_items_of_an_additional_file_change_no_metric(tmp_path):
    """Worked out by hand: the four held-out items stand 1st, 2nd, 3rd and 3rd of three; ghosts would tie with one."""
    rows = [f"u{user}\ti{(user + time) % 6}\t{time}" for user in range(4) for time in range(4)]
    write(tmp_path, "inter", HEADER, *rows)
    settings = {"data_path": str(tmp_path), "load_col": LOAD, "topk": [3], "metrics": ["MRR", "ItemCoverage"]}
    settings |= {"valid_metric": "MRR@3", "checkpoint_dir": str(tmp_path / "saved"), "state": "WARNING"}
    expected = {"mrr@3": pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 3) / 4, abs=1e-6), "itemcoverage@3": 1.0}
    assert recbole_mm.run("Pop", "small", config_dict=settings).test_result == expected
    ghosts = add_vectors(tmp_path, *(f"ghost{n}" for n in range(20)), "i0") | {"alias_of_item_id": ["vid"]}
    assert recbole_mm.run("Pop", "small", config_dict={**settings, **ghosts}).test_result == expected


def test_users_of_an_additional_file(tmp_path):
    settings = add_vectors(tmp_path, "u2", "nobody", name="friend") | {"alias_of_user_id": ["friend"]}
    dataset = load(tmp_path, **settings)
    assert dataset.field2id_token["user_id"].tolist() == ["[PAD]", "u1", "u2"]
    assert dataset.vec_feat["friend"].tolist() == [2]


def test_items_of_given_histories_are_interacted(tmp_path):
    header = "user_id:token\titem_id:token\ttimestamp:float\titem_id_list:token_seq"
    for part, row in {"train": "u1\ta\t1\tx y", "valid": "u1\tb\t2\tx a", "test": "u1\tc\t3\ta b"}.items():
        write(tmp_path, f"{part}.inter", header, row)
    settings = {"benchmark_filename": ["train", "valid", "test"], "alias_of_item_id": ["item_id_list"]}
    dataset = load(tmp_path, load_col=None, **settings)
    assert set(dataset.field2id_token["item_id"]) == {"[PAD]", "a", "b", "c", "x", "y"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_col": LOAD}, 'load_col: nothing is loaded of .vec; add {vec: "*"}'),
        ({"additional_feat_suffix": ["vex"]}, "small.vex: no such file, which additional_feat_suffix asks for"),
        ({"additional_feat_suffix": ["item"]}, "additional_feat_suffix: .item is read by itself"),
        ({}, "small.vec, line 1: RecBole does not number the tokens of column 'vid'; list it in alias_of_item_id"),
        ({"alias_of_item_id": ["vec"]}, "column vec:float_seq holds ids; write vec:token or vec:token_seq"),
    ],
)
def test_additional_files_that_cannot_be_had(tmp_path, settings, message):
    assert message in refused(tmp_path, **{**add_vectors(tmp_path, "a"), **settings})


def test_files_without_what_they_are_loaded_for(tmp_path, caplog):
    settings = add_vectors(tmp_path, "other", "ids") | {"alias_of_item_id": ["vid"]}
    assert ".vec: none of its 2 rows names what .inter does" in refused(tmp_path, **settings)
    write(tmp_path, "vec", "vid:token\tvec:float_seq")
    assert "small.vec: no rows below the header" in refused(tmp_path, **settings)
    write(tmp_path, "item", "item_id:token\tcategory:token", "a\tx", "b\ty")
    load(tmp_path, load_col=LOAD | {"item": ["item_id", "categroy"]})
    assert "small.item has no column categroy" in caplog.text
    assert "candidates: catalogue ranks what small.item lists" in refused(tmp_path, candidates="catalogue")


def test_an_additional_file_is_part_of_the_data(tmp_path):
    settings = {"data_path": str(tmp_path), "state": "WARNING", **add_vectors(tmp_path, "a")}
    write(tmp_path, "inter", HEADER, *ROWS)
    before = Config("SASRec", "small", config_dict=settings)["data_files"]
    assert set(before) == {"small.inter", "small.vec"}
    add_vectors(tmp_path, "b")
    assert Config("SASRec", "small", config_dict=settings)["data_files"]["small.vec"] != before["small.vec"]


def test_a_column_called_as_the_ids_in_an_additional_file(tmp_path):
    settings = add_vectors(tmp_path, "a", name="item_id")
    assert "rename it here, and add the new name to alias_of_item_id" in refused(tmp_path, **settings)


def knowledge(folder: Path, links: list[str], **settings):
    write(folder, "kg", "head_id:token\trelation_id:token\ttail_id:token", "A\tr\tX", "B\tr\tX", "Z\tr\tX")
    write(folder, "link", "item_id:token\tentity_id:token", *links)
    return {"model": "CKE", "load_col": LOAD | {"kg": "*", "link": "*"}, **settings}


def test_links_of_items_without_an_interaction(tmp_path, caplog):
    write(tmp_path, "item", "item_id:token", "a", "b", "z")
    settings = knowledge(tmp_path, ["z\tZ", "a\tA"])
    settings["load_col"] = settings["load_col"] | {"item": "*"}
    dataset = load(tmp_path, **settings)
    assert "2 of 4 interactions are left out: .link has no entity for their items" in caplog.text
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "a"]
    assert dataset.item2entity == {"a": "A"}
    assert dataset.field2id_token["entity_id"].tolist()[:2] == ["[PAD]", "A"]


def test_links_beside_a_given_split(tmp_path):
    """Which leaves all its interactions where they are, so that models without a graph hold out the same ones."""
    settings = knowledge(tmp_path, ["z\tZ", "a\tA", "b\tmissing"])
    for part, row in {"train": ROWS[0], "valid": ROWS[1], "test": ROWS[2]}.items():
        write(tmp_path, f"{part}.inter", HEADER, row)
    dataset = load(tmp_path, benchmark_filename=["train", "valid", "test"], **settings)
    assert dataset.field2id_token["item_id"].tolist() == ["[PAD]", "b", "a"]
    assert dataset.item2entity == {"a": "A"}
    assert len(dataset.inter_feat) == 3


def test_a_knowledge_model_and_metrics_of_lists(tmp_path):
    rows = [f"u{user}\ti{(user + time) % 6}\t{time}" for user in range(4) for time in range(4)]
    write(tmp_path, "inter", HEADER, *rows)
    settings = knowledge(tmp_path, [f"i{n}\t{'ABXZ'[n]}" for n in range(4)] + ["i4\tC", "i5\tD"])
    write(tmp_path, "kg", "head_id:token\trelation_id:token\ttail_id:token", *(f"{e}\tr\tX" for e in "ABCDZ"))
    settings |= {"data_path": str(tmp_path), "topk": [3], "metrics": ["ItemCoverage"], "valid_metric": "ItemCoverage@3"}
    settings |= {"checkpoint_dir": str(tmp_path / "saved"), "state": "WARNING", "epochs": 1}
    assert recbole_mm.run(settings.pop("model"), "small", config_dict=settings).test_result == {"itemcoverage@3": 1.0}


@pytest.mark.parametrize(
    ("links", "message"),
    [
        (["a\tA", "a\tB"], "small.link: item_id 'a' is described differently on lines 2 and 3"),
        (["a\tA", "b\tA"], "small.link: entity_id 'A' is described differently on lines 2 and 3"),
        (["a\tA", "b\t"], "small.link, line 3: the id in column entity_id is empty"),
    ],
)
def test_links_that_disagree(tmp_path, links, message):
    assert message in refused(tmp_path, **knowledge(tmp_path, links))


def test_a_knowledge_model_without_its_graph(tmp_path):
    settings = knowledge(tmp_path, ["a\tA", "b\tB"])
    assert "nothing is loaded of .kg" in refused(tmp_path, **{**settings, "load_col": LOAD})
    (tmp_path / "small" / "small.kg").unlink()
    assert "small.kg: no such file, which model CKE asks for" in refused(tmp_path, **settings)
