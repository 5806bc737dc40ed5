"""What `recbole-mm prepare` writes is what the raw file says: times exactly, lines as lines, ids as ids."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.datasets import CONVERTERS
from recbole_mm.datasets.folder import write_table
from recbole_mm.datasets.values import first_fault, id_fault, read_time, settle, units_of, written_twice
from recbole_mm.errors import DataError
from tests.test_convert import ARTICLES, PURCHASES, article, put


def write_movielens(root: Path, times: list[str]) -> None:
    put(root / "movies.csv", "movieId,title,genres\n" + "".join(f"{i},M{i} (1999),Drama\n" for i in range(len(times))))
    lines = "".join(f"1,{place},4.0,{time}\n" for place, time in enumerate(times))
    put(root / "ratings.csv", "userId,movieId,rating,timestamp\n" + lines)


def write_hm(root: Path, times: list[str]) -> None:
    put(root / "articles.csv", ARTICLES + "".join(article(f"0{place}") for place in range(len(times))))
    lines = "".join(f"{time},c1,0{place},0.5,2\n" for place, time in enumerate(times))
    put(root / "transactions_train.csv", PURCHASES + lines)


def write_microlens(root: Path, times: list[str]) -> None:
    put(root / "a_titles.csv", "item,title\n" + "".join(f"{place},T\n" for place in range(len(times))))
    put(root / "a_pairs.csv", "user,item,timestamp\n" + "".join(f"1,{p},{t}\n" for p, t in enumerate(times)))


def write_pixelrec(root: Path, times: list[str]) -> None:
    put(root / "info.csv", "item_id,title\n" + "".join(f"i{place},T\n" for place in range(len(times))))
    put(root / "act.csv", "item_id,user_id,timestamp\n" + "".join(f"i{p},u,{t}\n" for p, t in enumerate(times)))


def write_mmrec(root: Path, times: list[str]) -> None:
    lines = "".join(f"1,{place},{time},{place % 3}\n" for place, time in enumerate(times))
    put(root / "a.inter", "userID,itemID,timestamp,x_label\n" + lines)
    np.save(root / "image_feat.npy", np.ones((len(times), 2), dtype=np.float32))


def write_csv(root: Path, times: list[str]) -> None:
    put(root / "a.csv", "user,item,time\n" + "".join(f"u,i{place},{time}\n" for place, time in enumerate(times)))


SOURCES = {
    "movielens": write_movielens,
    "hm": write_hm,
    "microlens": write_microlens,
    "pixelrec": write_pixelrec,
    "mmrec": write_mmrec,
    "csv": write_csv,
}

TIMES = {
    "days": (["45292.75", "45292.50", "45292.25", "45292"], [45292.75, 45292.5, 45292.25, 45292.0]),
    "scaled to 0..1": (["0.3", "0.1", "1e-9", "1"], [0.3, 0.1, 1e-9, 1.0]),
    "negative": (["-5", "-7", "3"], [-5, -7, 3]),
    "scientific": (["1.7e9", "1.6E9", "15"], [1.7e9, 1.6e9, 15]),
    "seventeen digits": (
        ["0.1234567890123457", "0.1234567890123456", "0"],
        [0.1234567890123457, 0.1234567890123456, 0],
    ),
    "milliseconds": (
        ["2024-01-01T00:00:00.002", "2024-01-01T00:00:00.001", "2024-01-01T00:00:00"],
        [1704067200.002, 1704067200.001, 1704067200.0],
    ),
    "zones": (
        ["2024-01-01 00:00:00+02:00", "2023-12-31 23:00:00Z", "2024-01-01 00:00:01 UTC"],
        [1704060000, 1704063600, 1704067201],
    ),
    "slashes": (["2024/01/01", "2024/01/02", "1969/12/31"], [1704067200, 1704153600, -86400]),
    "large whole numbers": (["1700000000000000512", "1700000000000000000", "5"], [1700000000000000512, 17 * 10**17, 5]),
    "nanoseconds that are apart": (["1700000000000000001", "1600000000000000001", "5"], [2, 1, 0]),
    "nanoseconds": (["1700000000000000002", "1700000000000000001", "5"], [2, 1, 0]),
    "nanoseconds of a day": (
        ["2024-01-01T00:00:00.000000002", "2024-01-01T00:00:00.000000001", "2024-01-01T00:00:00.1"],
        [1, 0, 2],
    ),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("what", TIMES)
def test_every_source_keeps_times_exactly(tmp_path, source, what):
    times, expected = TIMES[what]
    SOURCES[source](tmp_path / "raw", times)
    summary = CONVERTERS[source].convert(tmp_path / "raw", tmp_path / "out")
    written = pd.read_csv(tmp_path / "out" / "out.inter", sep="\t", dtype=str)["timestamp:float"]
    assert [float(value) for value in written] == expected, "as numbers, to the last digit, in the order of the file"
    if all(isinstance(value, int) for value in expected) and not any("e" in text.lower() for text in times):
        assert written.tolist() == [str(value) for value in expected]
    ranked = what.startswith("nanoseconds")
    assert ("finer than a 64-bit float, so that the ranks of its times are written" in str(summary)) == ranked


FAULTS = {
    "none": (["1700000000", ""], "line 3: {name} is missing"),
    "not a number": (["1700000000", "nan"], "line 3: {name} 'nan' is not a number or a time such as"),
    "infinite": (["1700000000", "-inf"], "line 3: {name} '-inf' is not a number"),
    "a word": (["1700000000", "soon"], "line 3: {name} 'soon' is not a number"),
    "no such day": (["2023-02-28", "2023-02-29"], "line 3: {name} '2023-02-29' is not a number or a time"),
    "day first": (["31/12/2023", "01/01/2024"], "line 2: {name} '31/12/2023' is not a number or a time"),
    "too large": (["1700000000", "1e40"], "line 3: {name} '1e40' is too large"),
    "days and seconds": (["2023-02-28", "1700000000"], "line 3: .* is a number, but line 2 has '2023-02-28', a day"),
    "a day among times": (["2023-02-28 10:00", "2023-02-28"], "line 3: .* is a day, but line 2 has .*, a time; write"),
    "a zone and none": (["2023-02-28T10:00Z", "2023-02-28T10:00"], "line 3: .* is a time, but line 2 .* with a zone"),
    "two units": (
        ["1700000000", "1700000000000"],
        "line 3: {name} '1700000000000' is of the size of milliseconds, but line 2 has '1700000000', of the size of s",
    ),
    "two units in fractions": (
        ["45292.5", "1700000000.5"],
        "of the size of seconds, but line 2 has '45292.5', of .* days",
    ),
}


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("what", FAULTS)
def test_every_source_refuses_what_is_no_time(tmp_path, source, what):
    times, told = FAULTS[what]
    SOURCES[source](tmp_path / "raw", [*times, times[0]])
    name = {"hm": "t_dat", "csv": "time"}.get(source, "timestamp")
    with pytest.raises(DataError, match=told.format(name=name)) as caught:
        CONVERTERS[source].convert(tmp_path / "raw", tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_times_of_a_log_are_not_taken_for_dates_of_two_units():
    assert units_of(np.array([0, 5, 3_600, 86_400_000, 4_000_000_000])) == []
    assert units_of(np.array([0, 1.7e9, 1.7e12])) == ["seconds", "milliseconds"]
    assert units_of(np.array([874_724_710, 893_286_638])) == ["seconds"]
    assert first_fault([(2, "20240131"), (3, "20240228")]) is None


def test_times_are_read_as_iso_8601_writes_them():
    def second(text):
        found = read_time(text)
        return None if found is None else float(found.value)

    assert second("20240531T183000,5+0530") == second("2024-05-31 13:00:00.5Z") == 1717160400.5
    assert second("1969-12-31T23:59:59.75") == -0.25
    assert second("2024-05-31T18") == second("2024/05/31 18:00")
    for text in ("2024-05-31T18:30.5", "2024-05-31T25:00", "2024-05-31T18:30:00+99:00", "2024-05", "٣", "0x1f", "1_0"):
        assert second(text) is None, text
    assert settle([Decimal("1.5"), Decimal(2)])[0].tolist() == [1.5, 2.0]


def test_the_latest_row_of_a_user_is_held_out_whatever_the_unit(tmp_path):
    """From the raw file to the split: the rows of a user stand from the latest to the earliest."""
    for name, times in {
        "days": ["45292.75", "45292.5", "45292.25", "45292"],
        "scaled": ["1", "0.99999999", "0.99999998", "0.5"],
        "nano": [f"170000000000000000{digit}" for digit in "8765"],
        "iso": ["2024-01-01T00:00:00.003", "2024-01-01T00:00:00.002", "2024-01-01T00:00:00.001", "2024-01-01T00:00:00"],
    }.items():
        lines = "".join(f"u{user},i{place},{time}\n" for user in range(3) for place, time in enumerate(times))
        put(tmp_path / name / "raw.csv", f"user,item,time\n{lines}")
        CONVERTERS["csv"].convert(tmp_path / name, tmp_path / "data" / name)
        for model in ("SASRec", "Pop"):
            config = Config(model, name, config_dict={"data_path": str(tmp_path / "data"), "show_progress": False})
            dataset = create_dataset(config)
            _, valid, test = dataset.build()
            for part, item in ((valid, "i1"), (test, "i0")):
                held_out = dataset.field2id_token["item_id"][part.inter_feat["item_id"].numpy()]
                assert set(held_out) == {item}, (name, model)


# -------------------------------------------------------------------------------------------------------------- lines


def convert_csv(tmp_path: Path, orders: bytes, **options):
    (tmp_path / "raw").mkdir(exist_ok=True)
    (tmp_path / "raw" / "a.csv").write_bytes(orders)
    return CONVERTERS["csv"].convert(tmp_path / "raw", tmp_path / "out", **options)


HEAD = b"user,item,time,note\n"


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (b"u,i,1,x\nu\rv,j,2,y\n", "a.csv, line 3: a carriage return inside the line, which would be read as its end"),
        (b'u,"i",1,x\nu\rv,j,2,y\n', "a.csv, line 3: a carriage return inside the line"),
        (b'u,"i",1,x\nu,j\r k,2,y\n', "a.csv, line 3: a carriage return inside the line"),
        (b"u,i,1,x\nu,j\0k,2,y\n", "a.csv, line 3: a NUL character; is it a text file, and whole"),
        (b"u,i,1,x\nu,j,2\n", "a.csv, line 3: 3 fields instead of 4"),
        (b'u,i,1,"x, y"\nu,j,2\n', "a.csv, line 3: 3 fields instead of 4"),
        (b"u,i,1,x\nu,j,2,y,z\n", "a.csv, line 3: 5 fields instead of 4"),
        (b"u,i,1,x\nu,j,2,x\nu,k", "a.csv, line 4: 2 fields instead of 4"),
        (b'u,i,1,"x\nu,j,2,y\n', "a quotation mark opened near line 2 is never closed"),
        (b"u,i,1,x\nu,nan,2,y\n", "a.csv, line 3: item 'nan' stands for a missing value"),
        (b"u,i,1,x\nNA,j,2,y\n", "a.csv, line 3: user 'NA' stands for a missing value"),
        ("u,i,1,x\nu,j\u2028k,2,y\n".encode(), "a.csv, line 3: item .* holds a control character"),
        ("u,i,1,x\nu,j\x85k,2,y\n".encode(), "a.csv, line 3: item .* holds a control character"),
        (b"1,i,1,x\n1.0,j,2,y\n", "the user ids '1' and '1.0' are one id written in two ways"),
        ("u,\u00e9,1,x\nu,e\u0301,2,y\n".encode(), "the item ids .* are one id written in two ways"),
    ],
)
def test_what_is_no_line_or_no_id_is_refused(tmp_path, lines, told):
    with pytest.raises(DataError, match=told):
        convert_csv(tmp_path, HEAD + lines)
    assert not (tmp_path / "out").exists()


def test_a_name_of_a_column_is_one_line(tmp_path):
    with pytest.raises(DataError, match="line 1: a column's name holds a line break"):
        CONVERTERS["csv"].convert(put(tmp_path / "raw" / "a.csv", 'user,item,"time\nu,i,1\n').parent, tmp_path / "out",
                                  interactions="a.csv")  # fmt: skip


def test_lines_end_with_lf_crlf_or_cr_alone(tmp_path):
    text = HEAD + b"u,i,1,x\n\n  \n u,j,2,y\n"
    for place, ends in enumerate((b"\n", b"\r\n", b"\r")):
        folder = tmp_path / str(place)
        folder.mkdir()
        convert_csv(folder, text.replace(b"\n", ends))
        written = (folder / "out" / "out.inter").read_text()
        assert written == "user_id:token\titem_id:token\ttimestamp:float\nu\ti\t1\nu\tj\t2\n"


def test_quoted_fields_may_hold_line_ends_and_separators(tmp_path):
    convert_csv(tmp_path, HEAD + b'u,i,1,"a\rb, c\r\nd\n"\nu,"j ""k""",2,5" wide\n')
    assert (tmp_path / "out" / "out.inter").read_text().splitlines()[1:] == ["u\ti\t1", 'u\tj "k"\t2']


def test_what_may_be_meant_otherwise_is_told(tmp_path):
    put(tmp_path / "raw" / "products.csv", "item,title,code,ean\n7,None,007,12345678901234567890\n07,Shirt,012,1\n")
    summary = convert_csv(tmp_path, HEAD + b"u,7,1,x\nu, 07 ,2,y")
    text = str(summary)
    assert "a.csv has no line end after its last line: see that nothing of it is missing" in text
    assert "1 item ids differ from another one in leading zeros alone, such as '7' and '07'" in text
    assert "1 texts of items are 'nan', 'NA', 'None' or the like, and are kept as words" in text
    assert "a.csv: users from user, items from item, times from time" in text
    assert "columns of a.csv that are not used: note" in text
    item = (tmp_path / "out" / "out.item").read_text().splitlines()
    assert item[0] == "item_id:token\ttitle:token_seq\tcode:token_seq\tean:token_seq", "codes are no quantities"
    assert item[1] == "7\tNone\t007\t12345678901234567890"


def test_ids():
    assert id_fault(" a") == id_fault("a\u3000") == "has a blank at its end"
    assert id_fault("\ufeffa") == "holds a control character or begins with a quote"
    assert written_twice(["1", "01", "1.00", "b", "B"]) == ([("1", "1.00")], [("1", "01")])


def test_an_id_that_would_be_changed_is_never_written(tmp_path):
    table = pd.DataFrame({"user_id": ["a\tb"], "item_id": ["c"]})
    with pytest.raises(ValueError, match="cannot stand in an atomic file"):
        write_table(tmp_path / "x.inter", table, {"user_id": "token", "item_id": "token"})


def test_large_numbers_are_written_as_they_are(tmp_path):
    table = pd.DataFrame({"item_id": ["a", "b"], "n": [1e19, 3.0]})
    write_table(tmp_path / "x.item", table, {"item_id": "token", "n": "float"})
    assert (tmp_path / "x.item").read_text() == ("item_id:token\tn:float\na\t1e+19\nb\t3.0\n")


# ------------------------------------------------------------------------------------------------------- damaged tables

DAMAGE = [b"\0", b"\r", b"\n", b"\r\n", b'"', b'""', b",", b"\t", b"\xff", b"nan", b"1e40", b"-", b"", b" ", b"0", b"."]
DAMAGE += [
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b"\xc2\xa0",
    b"e5",
    b"9" * 20,
    b"T",
    b"Z",
    b"+01:00",
    b"NA",
    b"\x1a",
    b"\x85",
]


def plainly_read(data: bytes) -> list[tuple[str, str, float]]:
    """User, item and time of every row, with nothing but the standard library."""
    rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="\n")))
    header, *rows = [row for row in rows if len(row) > 1 or (row and row[0].strip())]
    places = [[name.strip() for name in header].index(name) for name in ("user", "item", "time")]
    assert all(len(row) == len(header) for row in rows)
    users, items, times = ([row[place].strip() for row in rows] for place in places)
    try:
        seconds = [float(Decimal(time)) for time in times]
    except InvalidOperation:
        moments = [datetime.fromisoformat(time) for time in times]
        seconds = [(moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() for moment in moments]
    return list(zip(users, items, seconds))


@pytest.mark.parametrize("cases", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_damaged_table_is_refused_or_read_as_it_stands(tmp_path, cases):
    rng = np.random.default_rng(cases)
    source, out, read = tmp_path / "raw" / "a.csv", tmp_path / "out", 0
    for case in range(cases):
        day = case % 2 == 0
        lines = [
            f'u{rng.integers(4)},"i{place}",{f"2024-05-0{place} 10:00:00.25" if day else place / 8},"x, ""y"""'
            for place in range(1, 7)
        ]
        data = bytearray("\n".join([*lines, ""]).encode())
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(len(data) + 1))
            data[start : start + int(rng.choice([0, 0, 1, 2, 9]))] = DAMAGE[rng.integers(len(DAMAGE))]
        data[:0] = HEAD
        put(source, "").write_bytes(data)
        try:
            CONVERTERS["csv"].convert(source.parent, out, interactions="a.csv", force=True)
        except DataError as error:
            assert "\n" not in str(error), bytes(data)  # noqa: PT017
            continue
        read += 1
        lines = (out / "out.inter").read_text(encoding="utf-8").splitlines()[1:]
        written = [(user, item, float(time)) for user, item, time in (line.split("\t") for line in lines)]
        assert written == plainly_read(bytes(data)), bytes(data)
    assert cases / 10 < read < cases
