"""`recbole-mm prepare jsonl`: a catalogue of JSON lines with sequences becomes a dataset; a bad line is named."""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.config.layers import properties_dir
from recbole_mm.config.resolved import Config
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.data.dataset import create_dataset
from recbole_mm.datasets import CONVERTERS
from recbole_mm.datasets.json_items import read_items
from recbole_mm.errors import DataError

MOVIES = [
    {
        "item_id": 1,
        "title": "Toy Story (1995)",
        "year": 1995,
        "genres": ["Animation", "Children's"],
        "director": "John Lasseter",
        "actors": "Tom Hanks, Tim Allen",
        "omdb_plot": "A doll,\njealous.",
        "n_interactions": 2,
        "image": "posters/1.jpg",
    },
    {
        "item_id": 20,
        "title": "Kolya é",
        "year": 1996,
        "genres": ["Comedy"],
        "director": None,
        "actors": None,
        "omdb_plot": '"Quoted" at first',
        "n_interactions": 1,
        "image": None,
    },
    {
        "item_id": 3,
        "title": "Heat",
        "year": 1995,
        "genres": [],
        "director": "",
        "actors": "Al Pacino",
        "omdb_plot": None,
        "n_interactions": 0,
        "image": "posters/three.PNG",
    },
]
LINES = "user_id\titem_ids_oldest_first\n7\t20 1\n5\t1\n"
INTER = ["user_id:token\titem_id:token\ttimestamp:float", "7\t20\t0", "7\t1\t1", "5\t1\t0"]

PRODUCTS = [
    {"item_id": 1, "title": "Red lacquer", "brand": "OPI & Co", "categories": ["Beauty", "Nail Polish"]},
    {"item_id": 2, "title": None, "brand": None, "categories": ["Beauty", "Caps, Foils & Wraps"]},
]
SHOP = "1 1 2\n2 2 1\n"


def put(path: Path, content: str | bytes | list) -> Path:
    """Write a file; a list is written as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = "".join(json.dumps(entry) + "\n" for entry in content)
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def raw(
    folder: Path, items: str | bytes | list = MOVIES, sequences: str | bytes = LINES, pictures: bool = True
) -> Path:
    put(folder / "items.jsonl", items)
    put(folder / "sequences.tsv", sequences)
    (folder / "posters").mkdir()
    for name in ("1.jpg", "three.PNG", "20.jpg") if pictures else ():
        Image.new("RGB", (6, 8), "red").save(folder / "posters" / name)
    return folder


def prepare(source: Path, out: Path, **options):
    return CONVERTERS["jsonl"].convert(source, out, **options)


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3)


def test_catalogue_and_sequences_become_a_dataset(tmp_path):
    out = tmp_path / "movies"
    summary = prepare(raw(tmp_path / "raw"), out)
    assert (out / "movies.inter").read_text().splitlines() == INTER
    assert (summary.users, summary.items, summary.interactions, summary.catalogue) == (2, 2, 3, 3)
    item = table(out / "movies.item")
    assert list(item) == [
        "item_id:token",
        "title:token_seq",
        "year:float",
        "genres:token_seq",
        "director:token_seq",
        "actors:token_seq",
        "omdb_plot:token_seq",
        "n_interactions:float",
    ]
    people = ["John Lasseter", "Tom Hanks, Tim Allen"]
    assert item.to_numpy().tolist() == [
        ["1", "Toy Story (1995)", "1995", "Animation Children's", *people, "A doll, jealous.", "2"],
        ["20", "Kolya é", "1996", "Comedy", "", "", ' "Quoted" at first', "1"],
        ["3", "Heat", "1995", "", "", "Al Pacino", "", "0"],
    ]
    settings = yaml.safe_load((out / "movies.yaml").read_text(encoding="utf-8"))
    assert settings == {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "text_fields": ["title", "genres", "director", "actors", "omdb_plot"],
        "image_dir": "images",
        "modalities": ["image", "text"],
    }
    notes = "\n".join(summary.notes)
    assert "sequences.tsv, line 1 names the columns: user_id item_ids_oldest_first" in notes
    assert "sequences.tsv gives the order only" in notes
    assert "numbers of items.jsonl, no part of the text: year, n_interactions" in notes
    assert "1 of 3 items of the catalogue are in no interaction" in notes


def test_pictures_are_those_that_items_name(tmp_path):
    out = tmp_path / "movies"
    summary = prepare(raw(tmp_path / "raw"), out)
    assert sorted(path.name for path in (out / "images").iterdir()) == ["1.jpg", "3.png"], "20 names none"
    assert (summary.images, summary.items_with_image, summary.image_share) == (2, 1, 2 / 3)


def test_a_folder_of_pictures_wins_over_the_names(tmp_path):
    out = tmp_path / "movies"
    broken = [MOVIES[0] | {"image": "gone/1.jpg"}, MOVIES[1]]
    prepare(raw(tmp_path / "raw", broken), out, images="posters")
    assert sorted(path.name for path in (out / "images").iterdir()) == ["1.jpg", "20.jpg"]


def test_without_names_a_folder_of_pictures_is_found(tmp_path):
    bare = [{key: value for key, value in movie.items() if key != "image"} for movie in MOVIES]
    summary = prepare(raw(tmp_path / "raw", bare), tmp_path / "movies")
    assert sorted(path.name for path in (tmp_path / "movies" / "images").iterdir()) == ["1.jpg", "20.jpg"]
    assert any("1 files" in note and "no item" in note for note in summary.notes)


def test_empty_pictures_are_counted(tmp_path):
    source = raw(tmp_path / "raw")
    (source / "posters" / "1.jpg").write_bytes(b"")
    summary = prepare(source, tmp_path / "movies")
    assert summary.images == 1
    assert "1 image files are empty and were left out" in summary.notes


def test_keys_can_be_chosen(tmp_path):
    out = tmp_path / "movies"
    prepare(raw(tmp_path / "raw"), out, texts="year, title", categories="genres,director")
    item = (out / "movies.item").read_text().splitlines()
    assert "year:token_seq" in item[0]
    assert "director:token\t" in item[0]
    settings = yaml.safe_load((out / "movies.yaml").read_text())
    assert settings["text_fields"] == ["year", "title"]
    assert settings["selected_features"] == ["genres", "director"]
    assert settings["load_col"]["item"] == ["item_id", "genres", "director"]


def test_lists_of_names_of_several_words_stay_apart(tmp_path):
    out = tmp_path / "data" / "beauty"
    options = {"texts": "title,brand,categories", "categories": "brand,categories"}
    summary = prepare(raw(tmp_path / "raw", PRODUCTS, SHOP), out, **options)
    assert "'; ' stands between the entries of lists of items.jsonl: categories" in summary.notes
    assert table(out / "beauty.item")["categories:token_seq"].tolist() == [
        "Beauty; Nail Polish",
        "Beauty; Caps, Foils & Wraps",
    ]
    config = Config("SASRecF", "beauty", config_dict={"data_path": str(out.parent), "show_progress": False})
    dataset = create_dataset(config)
    tokens = dataset.field2id_token
    assert set(tokens["categories"]) - {"[PAD]"} == {"Beauty", "Nail Polish", "Caps, Foils & Wraps"}
    assert set(tokens["brand"]) - {"[PAD]"} >= {"OPI & Co"}


@pytest.mark.parametrize(
    ("entries", "written"),
    [
        (["a", "b"], "a b"),
        (["a c", "b"], "a c, b"),
        (["a c", "b,d"], "a c; b,d"),
        (["a c", "b,d", "e;f"], "a c | b,d | e;f"),
        ([1, 2.5], "1 2.5"),
    ],
)
def test_the_sign_between_entries_is_in_none_of_them(tmp_path, entries, written):
    prepare(raw(tmp_path / "raw", [{"item_id": "x", "tags": entries}], "1 x\n"), tmp_path / "out")
    assert table(tmp_path / "out" / "out.item")["tags:token_seq"].tolist() == [written]


def test_values_stay_as_they_are_written(tmp_path):
    big = '{"item_id": "007", "code": "0114", "year": "1995", "huge": 12345678901234567891, "price": 2.50, "no": true}'
    prepare(raw(tmp_path / "raw", big, "1 007\n"), tmp_path / "out")
    item = table(tmp_path / "out" / "out.item")
    assert dict(zip(item, item.to_numpy()[0])) == {
        "item_id:token": "007",
        "code:token_seq": "0114",
        "year:token_seq": "1995",
        "huge:token_seq": "12345678901234567891",
        "price:float": "2.5",
        "no:token_seq": "true",
    }


def test_keys_that_some_items_lack_are_counted(tmp_path):
    items = [{"item_id": 1, "title": "A"}, {"item_id": 2, "titel": "B"}]
    summary = prepare(raw(tmp_path / "raw", items, "1 1 2\n"), tmp_path / "out")
    assert "keys that not all of the 2 items of items.jsonl have: title (1), titel (1)" in summary.notes


def test_identical_lines_count_once(tmp_path):
    summary = prepare(raw(tmp_path / "raw", [MOVIES[0], MOVIES[1], MOVIES[0]]), tmp_path / "out")
    assert summary.catalogue == 2
    assert "1 repeated identical lines of items.jsonl were dropped" in summary.notes


def test_users_are_read_where_there_is_a_table_of_them(tmp_path):
    source = raw(tmp_path / "raw")
    put(source / "users.tsv", "user_id\tgender\tage\tzip\n5\tF\t1\t00481\n9\tM\t56\t70072\n")
    summary = prepare(source, tmp_path / "out")
    assert (tmp_path / "out" / "out.user").read_text().splitlines() == [
        "user_id:token\tgender:token\tage:token\tzip:token",
        "5\tF\t1\t00481",
        "9\tM\t56\t70072",
    ]
    assert "1 users of sequences.tsv are not in users.tsv" in summary.notes
    assert "1 users of users.tsv are not in sequences.tsv" in summary.notes
    put(source / "users.tsv", "name\tage\n5\t1\n")
    with pytest.raises(DataError, match=r"users\.tsv, line 1: no user_id among name, age"):
        prepare(source, tmp_path / "other")


def test_packed_files_and_other_names(tmp_path):
    source = tmp_path / "raw"
    put(source / "things.jsonl.gz", MOVIES)
    put(source / "lines.txt", LINES)
    for movie in MOVIES:
        if movie["image"]:
            put(source / movie["image"], b"picture")
    with pytest.raises(DataError, match=r"no sequences\.tsv .*; --interactions names one of another name"):
        prepare(source, tmp_path / "out")
    assert prepare(source, tmp_path / "out", interactions="lines.txt").interactions == 3


def test_the_same_files_give_the_same_bytes_and_others_are_refused(tmp_path):
    source, out = raw(tmp_path / "raw"), tmp_path / "out"
    prepare(source, out)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    prepare(source, out)
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before
    put(source / "sequences.tsv", "7\t1\n")
    with pytest.raises(DataError, match=r"holds a different out\.inter"):
        prepare(source, out)


# ----------------------------------------------------------------------------------------------------------- bad input

GOOD = '{"item_id": 1, "title": "a"}\n'
BAD_ITEMS = [
    (b"", r"items\.jsonl: the file is empty"),
    (b" \n\n", r"items\.jsonl: the file is empty"),
    (
        GOOD + '{"item_id": 2, "title": "b"\n',
        r"items\.jsonl, line 2: not JSON \(Expecting ',' delimiter at character 28\)",
    ),
    (GOOD + "\n{'item_id': 2}\n", r"items\.jsonl, line 3: not JSON \(Expecting property name"),
    (GOOD + '{"item_id": 2} {"item_id": 3}\n', r"line 2: not JSON \(Extra data at character 16\)"),
    (GOOD + '{"item_id": 2,\x00 "title": "b"}\n', r"line 2: not JSON"),
    (GOOD + '{"item_id": 2, "title": "b\x07"}\n', r"line 2: not JSON \(Invalid control character"),
    (GOOD + "[2]\n", r"line 2: a list where an object in braces is expected"),
    (GOOD + "2\n", r"line 2: a number where an object in braces is expected"),
    (GOOD + "null\n", r"line 2: null where an object in braces is expected"),
    (GOOD + '{"item_id": 2, "price": NaN}\n', r"line 2: NaN is no number of JSON; write null"),
    (GOOD + '{"item_id": 2, "price": -Infinity}\n', r"line 2: -Infinity is no number of JSON"),
    (GOOD + '{"item_id": 2, "a": 1, "a": 2}\n', r"line 2: the key 'a' is there twice"),
    (GOOD + '{"item_id": 2, "a": ' + "[" * 200_000 + "\n", r"line 2: nested too deeply"),
    (GOOD + '{"id": 2, "title": "b"}\n', r"line 2: no item_id among id, title; name the key of ids with --item"),
    (GOOD + '{"item_id": null}\n', r"line 2: item_id is null; an id is a text or a whole number"),
    (GOOD + '{"item_id": true}\n', r"line 2: item_id is true or false; an id is"),
    (GOOD + '{"item_id": [2]}\n', r"line 2: item_id is a list; an id is"),
    (GOOD + '{"item_id": 2.0}\n', r"line 2: item_id 2\.0 is not a whole number"),
    (GOOD + '{"item_id": " "}\n', r"line 2: item_id is missing"),
    (GOOD + '{"item_id": "nan"}\n', r"line 2: item_id 'nan' stands for a missing value"),
    (GOOD + '{"item_id": "a\\tb"}\n', r"line 2: item_id 'a\\tb' holds a control character"),
    (GOOD + '{"item_id": 1, "title": "b"}\n', r"line 2: item_id '1' was already listed on line 1 with other content"),
    (GOOD + '{"item_id": 2, "maker": {"name": "b"}}\n', r"line 2: maker is an object; a value is a text, a number"),
    (GOOD + '{"item_id": 2, "tags": [["b"]]}\n', r"line 2: tags is a list with a list in it; a list holds texts"),
    (GOOD + '{"item_id": 2, "tags": [{"b": 1}]}\n', r"line 2: tags is a list with an object in it"),
    (GOOD + '{"item_id": 2, "tags": ["b", null]}\n', r"line 2: tags is a list with null in it"),
    (GOOD + '{"item_id": 2, "tags": [""]}\n', r"line 2: tags is a list with an empty text in it"),
    (GOOD + '{"item_id": 2, "tags": [false]}\n', r"line 2: tags is a list with true or false in it"),
    (GOOD + '{"item_id": 2, "title": ["b"]}\n', r"line 2: title is a list, and one value on line 1; write it alike"),
    (GOOD + '{"item_id": 2, "title": "b\\ud83d"}\n', r"line 2: half of a surrogate pair"),
    (GOOD.encode() + b'{"item_id": 2, "title": "\xe9"}\n', r"line 2: not utf-8 text; convert the file to UTF-8"),
    (GOOD.encode("utf-16"), r"items\.jsonl, line 1: not utf-8"),
    ('{"item_id": 1, "a b": 1, "a_b": 2}\n', r"items\.jsonl: column 'a_b' would be called a_b, as another one"),
    ('{"item_id": 1, "tags": ["a b", "c,d", "e;f", "g|h"]}\n', r"items\.jsonl: entries of lists hold blanks"),
    ('{"item_id": 1, "image": "posters/9.jpg"}\n', r"line 1: image 'posters/9\.jpg' is not there in"),
    ('{"item_id": 1, "image": "https://a/1.jpg"}\n', r"line 1: image 'https://a/1\.jpg' is not there in"),
    ('{"item_id": 1, "image": "../secret.jpg"}\n', r"line 1: image '\.\./secret\.jpg' leads out of"),
    ('{"item_id": 1, "image": "/etc/hosts.jpg"}\n', r"line 1: image '/etc/hosts\.jpg' leads out of"),
    ('{"item_id": 1, "image": "a\\u0000.jpg"}\n', r"line 1: image .* leads out of"),
    ('{"item_id": 1, "image": "items.jsonl"}\n', r"line 1: image 'items\.jsonl' is not called as images are"),
    ('{"item_id": 1, "image": 5}\n', r"line 1: image '5' is no path"),
    ('{"item_id": 1, "image": ["posters/1.jpg"]}\n', r"line 1: image \['posters/1\.jpg'\] is no path"),
]


def refused(source: Path, out: Path, message: str, **options) -> None:
    with pytest.raises(DataError, match=message) as caught:
        prepare(source, out, **options)
    assert "\n" not in str(caught.value)
    assert not out.parent.exists()


@pytest.mark.parametrize(("items", "message"), BAD_ITEMS, ids=[message for _, message in BAD_ITEMS])
def test_bad_lines_of_the_catalogue_are_named_and_nothing_is_written(tmp_path, items, message):
    put(tmp_path / "secret.jpg", b"picture")
    refused(raw(tmp_path / "raw", items, "1 1\n"), tmp_path / "dataset" / "out", message)


def test_a_link_out_of_the_source_is_no_picture(tmp_path):
    source = raw(tmp_path / "raw")
    (source / "posters" / "1.jpg").unlink()
    (source / "posters" / "1.jpg").symlink_to(put(tmp_path / "secret.jpg", b"picture"))
    refused(source, tmp_path / "dataset" / "out", r"line 1: image 'posters/1\.jpg' leads out of")


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (b"", r"sequences\.tsv: the file is empty"),
        ("user_id\titem_ids\n", r"sequences\.tsv: the file is empty"),
        ("user_id\titem_ids\n7\t1\n5\t1 77 78\n", r"sequences\.tsv, line 3: item '77' is not in items\.jsonl \(2 such"),
        ("ann b\t1 20\n", r"sequences\.tsv, line 1: item 'b' is not in items\.jsonl"),
        ("8 9\n", r"sequences\.tsv, line 1: item '9' is not in items\.jsonl"),
        ("7\n", r"sequences\.tsv, line 1: user '7' has no items"),
        ("7 1\nuser_id 1\nuser_id 3\n", r"line 3: user 'user_id' was already listed on line 2"),
        (b"7 1\n5 \xff\n", r"sequences\.tsv, line 2: not utf-8"),
    ],
)
def test_bad_sequences_are_named_and_nothing_is_written(tmp_path, sequences, message):
    refused(raw(tmp_path / "raw", MOVIES, sequences), tmp_path / "dataset" / "out", message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": "titel"}, r"--texts titel: no such column in items\.jsonl; did you mean 'title'"),
        ({"categories": "image"}, r"--categories image: no such column in items\.jsonl"),
        ({"item": "asin"}, r"items\.jsonl, line 1: no asin among item_id, title"),
        ({"items": "gone.jsonl"}, r"--items gone\.jsonl: no such file"),
        ({"images": "gone"}, r"--images gone: no such folder"),
        ({"users": "gone.tsv"}, r"--users gone\.tsv: no such file"),
    ],
)
def test_bad_choices(tmp_path, options, message):
    refused(raw(tmp_path / "raw"), tmp_path / "dataset" / "out", message, **options)


def test_files_that_are_not_there(tmp_path):
    (tmp_path / "raw").mkdir()
    refused(
        tmp_path / "raw", tmp_path / "dataset" / "out", r"no items\.jsonl \(an item a line, as JSON\); --items names"
    )
    put(tmp_path / "raw" / "a.jsonl", MOVIES)
    put(tmp_path / "raw" / "b.jsonl", MOVIES)
    refused(tmp_path / "raw", tmp_path / "dataset" / "out", r"a\.jsonl, b\.jsonl all fit; choose one with --items")


def test_a_line_that_never_ends(tmp_path):
    """16 MB at most are held of it."""
    for name in ("items.jsonl", "sequences.tsv"):
        source = raw(tmp_path / name)
        with open(source / name, "ab") as file:
            file.write(b'{"item_id": 9, "title": "' + b"a" * (17 << 20))
        refused(
            source, tmp_path / "dataset" / "out", rf"{name}, line \d: longer than 16 MB; a (record|user) per line is"
        )


def test_damaged_gzip(tmp_path):
    (tmp_path / "items.jsonl.gz").write_bytes(gzip.compress(GOOD.encode())[:-9])
    with pytest.raises(DataError, match="damaged gzip file"):
        read_items(tmp_path / "items.jsonl.gz", "item_id", [])


# -------------------------------------------------------------------------------------------------- the whole way down


@pytest.mark.parametrize(
    ("name", "items", "sequences"), [("ml-1m-mm", MOVIES, LINES), ("amazon-beauty", PRODUCTS, SHOP)]
)
def test_the_yaml_written_agrees_with_the_packages(tmp_path, name, items, sequences):
    path = properties_dir() / "dataset" / f"{name}.yaml"
    (line,) = re.findall(r"^#\s+recbole-mm prepare jsonl (.*)$", path.read_text(encoding="utf-8"), re.M)
    parser = argparse.ArgumentParser()
    parser.add_argument("--source")
    parser.add_argument("--out")
    CONVERTERS["jsonl"].add_arguments(parser)
    options = vars(parser.parse_args(shlex.split(line)))
    source = raw(tmp_path / "raw", items, sequences, pictures=items is MOVIES)
    prepare(source, tmp_path / name, texts=options["texts"], categories=options["categories"])
    written, ours = yaml.safe_load((tmp_path / name / f"{name}.yaml").read_text(encoding="utf-8")), read_yaml(path)
    assert written
    assert {key: ours[key] for key in written} == written


def test_settings_that_are_unlike_the_packages_are_named(tmp_path):
    source = raw(tmp_path / "raw")
    alike = ["title,genres,director,actors,omdb_plot", "genres"]
    for place, (texts, categories) in enumerate((alike, [None, None])):
        summary = prepare(source, tmp_path / str(place) / "ml-1m-mm", texts=texts, categories=categories)
        named = [note for note in summary.notes if "says otherwise" in note]
        assert len(named) == place
    assert named[0].startswith(
        "ml-1m-mm.yaml says otherwise than the package's properties/dataset/ml-1m-mm.yaml about load_col, and wins;"
    )
    assert not any("says otherwise" in note for note in prepare(source, tmp_path / "mine").notes)


def test_what_is_written_is_what_a_model_trains_on(tmp_path):
    items = [{"item_id": item, "title": f"Thing {item}", "genres": [f"g{item % 3}"]} for item in range(9)]
    lines = "user_id\titem_ids\n"
    lines += "".join(f"u{user}\t" + " ".join(str((user + step) % 9) for step in range(6)) + "\n" for user in range(20))
    prepare(raw(tmp_path / "raw", items, lines), tmp_path / "data" / "steps", categories="genres")
    settings = {
        "data_path": str(tmp_path / "data"),
        "checkpoint_dir": str(tmp_path / "saved"),
        "epochs": 1,
        "topk": [3],
        "valid_metric": "NDCG@3",
        "show_progress": False,
        "state": "WARNING",
    }
    outcome = recbole_mm.run("SASRecF", "steps", config_dict=settings)
    users = outcome.splits.test.users
    tokens = outcome.dataset.item_tokens()
    names = outcome.dataset.field2id_token["user_id"]
    held = dict(zip(names[users.user_ids], (tokens[i] for i in users.positives.items)))
    assert held == {f"u{user}": str((user + 5) % 9) for user in range(20)}


def test_from_the_command_line(tmp_path, capsys):
    source = raw(tmp_path / "raw")
    assert main(["prepare", "jsonl", f"--source={source}", f"--out={tmp_path / 'made'}", "--texts=title"]) == 0
    assert "made: 2 users, 2 items, 3 interactions" in capsys.readouterr().out
    put(source / "items.jsonl", "{\n")
    assert main(["prepare", "jsonl", f"--source={source}", f"--out={tmp_path / 'other'}"]) == 2
    assert "items.jsonl, line 1: not JSON" in capsys.readouterr().err
