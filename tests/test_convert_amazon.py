"""`recbole-mm prepare amazon`: three releases, one result; a bad line is named; pictures come and are resumed."""

from __future__ import annotations

import csv
import gzip
import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.config.layers import properties_dir
from recbole_mm.datasets import CONVERTERS, amazon_records
from recbole_mm.datasets.amazon import find_sources
from recbole_mm.datasets.amazon_items import category_paths, image_url, plain_text, price_of
from recbole_mm.datasets.amazon_reviews import iter_reviews, read_reviews
from recbole_mm.errors import DataError
from tests.picture_server import PictureServer

USERS = [f"A{'XYZ'[place % 3]}{place:011d}" for place in range(12)]
ITEMS = [f"B0{place:08d}" for place in range(10)]
CORE = [(USERS[u], ITEMS[(u + step) % 8]) for u in range(10) for step in range(6)]
"""10 users with 6 of 8 items each; every item has 7 or 8 users: a 5-core."""
RARE = [(USERS[10], ITEMS[0]), (USERS[10], ITEMS[8]), (USERS[11], ITEMS[9]), (USERS[0], ITEMS[9])]


def reviews(pairs=None) -> list[tuple[str, str, float, int]]:
    """User, item, rating, unix second; rare users and items stand between the others."""
    pairs = [*RARE[:2], *CORE, *RARE[2:]] if pairs is None else pairs
    return [(user, item, 1.0 + place % 5, 1_400_000_000 + 86_400 * place) for place, (user, item) in enumerate(pairs)]


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lines(records, literal: bool = False) -> str:
    return "".join(f"{record!r}\n" if literal else json.dumps(record) + "\n" for record in records)


def reviews_json(found) -> str:
    return lines(
        {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time, "reviewText": 'It\'s "fine".'}
        for user, item, rating, time in found
    )


def meta_2014(item: str, place: int) -> dict:
    record = {"asin": item, "imUrl": f"http://127.0.0.1:9/{item}.jpg", "related": {"also_bought": ["B099999999"]}}
    record |= {"title": f'Baby\'s Bib &amp; "Spoon" {place}', "price": 5.5 + place, "brand": "Acme Kids"}
    record |= {
        "categories": [["Baby", "Feeding"], ["Baby", "Feeding", "Bibs"]],
        "description": f"Soft\ncotton {place}.",
    }
    return record


def meta_2018(item: str, place: int) -> dict:
    title = 'var aPageStart = (new Date()).getTime();\n<span class="x">' if place == 3 else f"<b>Game</b> {place}"
    return {
        "category": ["Video Games", "PC &amp; Mac"],
        "description": ["<p>For <i>all</i> ages</p>", "3 &lt; 4"],
        "title": title,
        "brand": "\n  Acme\n",
        "feature": ["Fast", "<script>track()</script>Fun"],
        "price": "$1,019.99" if place else ".a-box-inner{background-color:#fff}",
        "imageURL": [f"http://127.0.0.1:9/small/{item}.jpg"],
        "imageURLHighRes": [f"http://127.0.0.1:9/{item}.jpg"],
        "asin": item,
    }


def meta_2023(item: str, place: int) -> dict:
    images = [{"thumb": "t", "large": "http://127.0.0.1:9/side.jpg", "variant": "PT01", "hi_res": None}]
    main_image = {"thumb": "t", "large": f"http://127.0.0.1:9/{item}.jpg", "variant": "MAIN", "hi_res": "h"}
    return {
        "main_category": "Video Games",
        "title": f"Game {place}",
        "average_rating": 4.5,
        "rating_number": 12,
        "features": ["Fast", "Fun"],
        "description": ["For all ages", "3 < 4"],
        "price": 10.0 if place else None,
        "images": [*images, main_image],
        "store": "Acme",
        "categories": ["Video Games", "PC & Mac"],
        "parent_asin": item,
    }


def raw_2014(root: Path, found=None) -> Path:
    put(root / "reviews_Baby_5.json.gz", reviews_json(reviews(CORE) if found is None else found))
    metadata = [meta_2014(item, place) for place, item in enumerate(reversed(ITEMS))]
    metadata.insert(2, {"asin": "B0UNWANTED", "title": "Nobody's"})
    put(root / "meta_Baby.json.gz", lines(metadata, literal=True))
    return root


def raw_2018(root: Path) -> Path:
    put(root / "Video_Games.json.gz", reviews_json(reviews()))
    metadata = [meta_2018(item, place) for place, item in enumerate(ITEMS)]
    put(root / "meta_Video_Games.json.gz", lines([*metadata, meta_2018(ITEMS[1], 99)]))
    return root


def raw_2023(root: Path) -> Path:
    found = [
        {"rating": rating, "asin": f"{item[:-1]}X", "parent_asin": item, "user_id": user, "timestamp": time * 1000 + 7}
        for user, item, rating, time in reviews()
    ]
    put(root / "Video_Games.jsonl.gz", lines(found))
    put(root / "meta_Video_Games.jsonl", lines(meta_2023(item, place) for place, item in enumerate(ITEMS)))
    return root


RAW = {"2014": raw_2014, "2018": raw_2018, "2023": raw_2023}


def prepare(source: Path, out: Path, **options):
    return CONVERTERS["amazon"].convert(source, out, **options)


def read(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
    return table.rename(columns=lambda column: column.split(":")[0])


# ----------------------------------------------------------------------------------------------------------- releases


@pytest.mark.parametrize("release", RAW)
def test_every_release_gives_the_same_core(tmp_path, release):
    out = tmp_path / "shop"
    summary = prepare(RAW[release](tmp_path / "raw"), out)
    assert (summary.users, summary.items, summary.interactions, summary.catalogue) == (10, 8, 60, 8)
    inter, item = read(out / "shop.inter"), read(out / "shop.item")
    assert list(zip(inter["user_id"], inter["item_id"])) == CORE, "the order of the file"
    assert inter["timestamp"].astype("int64").is_monotonic_increasing
    assert sorted(item["item_id"]) == ITEMS[:8]
    unit = 1000 if release == "2023" else 1
    assert inter["timestamp"].str.len().eq(len(str(1_400_000_000 * unit))).all()
    settings = yaml.safe_load((out / "shop.yaml").read_text())
    assert settings["user_inter_num_interval"] == settings["item_inter_num_interval"] == "[5,inf)"
    assert settings["selected_features"] == ["brand", "categories"]
    assert set(settings["text_fields"]) <= set(item.columns)
    urls = dict(csv.reader((out / "image_urls.csv").read_text().splitlines()[1:]))
    assert urls == {token: f"http://127.0.0.1:9/{token}.jpg" for token in item["item_id"]}
    assert "8 pictures; --images fetches them" in str(summary)


def test_2014_in_words(tmp_path):
    prepare(raw_2014(tmp_path / "raw"), tmp_path / "baby")
    text = (tmp_path / "baby" / "baby.item").read_text()
    assert text.splitlines()[0] == (
        "item_id:token\ttitle:token_seq\tbrand:token\tcategories:token_seq\tprice:float\tdescription:token_seq"
    )
    row = read(tmp_path / "baby" / "baby.item").set_index("item_id").loc[ITEMS[7]]
    assert row.tolist() == ['Baby\'s Bib & "Spoon" 2', "Acme Kids", "Baby > Feeding > Bibs", "7.5", "Soft cotton 2."]


def test_2018_without_html(tmp_path):
    summary = prepare(raw_2018(tmp_path / "raw"), tmp_path / "games")
    item = read(tmp_path / "games" / "games.item").set_index("item_id")
    assert item.loc[ITEMS[1]].tolist() == [
        "Game 99",
        "Acme",
        "Video Games > PC & Mac",
        "1019.99",
        "Fast Fun",
        "For all ages 3 < 4",
    ]
    assert item.loc[ITEMS[0], "price"] == ""
    assert item.loc[ITEMS[3], "title"] == ""
    assert "1 titles that hold page code were left empty" in str(summary)
    assert "1 repeated products" in str(summary)
    assert "1 of these say something else than the line that stays, which is the one with more text" in str(summary)
    assert summary.items_with_text == 8, "an item without a title has other words"


def test_of_two_descriptions_the_fuller_one_stays_whichever_is_first(tmp_path):
    made = []
    for order in (1, -1):
        metadata = [meta_2018(item, place) for place, item in enumerate(ITEMS)] + [meta_2018(ITEMS[1], 2)]
        source = raw_2018(tmp_path / f"raw{order}")
        put(source / "meta_Video_Games.json.gz", lines(metadata[::order]))
        prepare(source, tmp_path / str(order) / "games")
        made.append((tmp_path / str(order) / "games" / "games.item").read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        (
            "unixReviewTime",
            1400000000.5,
            "line 2: unixReviewTime 1400000000.5 is not a whole number of seconds or milli",
        ),
        ("unixReviewTime", True, "line 2: unixReviewTime True is not a number"),
        ("unixReviewTime", 1400000000000, "some times are of the size of seconds and some of milliseconds"),
        ("overall", "1_0", "line 2: overall '1_0' is not a number"),
        ("reviewerID", 1.0, "line 2: reviewerID 1.0 is neither a text nor a whole number"),
        ("reviewerID", "nan", "id 'nan' stands for a missing value"),
    ],
)
def test_values_are_never_rounded_or_guessed(tmp_path, key, value, told):
    record = {"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": 1400000000}
    path = put(tmp_path / "reviews_Baby.json", lines([record, {**record, "asin": "C", key: value}]))
    with pytest.raises(DataError, match=told):
        read_reviews(path, 0)


def test_a_file_of_ratings_that_ends_in_its_last_line_is_told(tmp_path):
    path = put(tmp_path / "Baby.csv", "user_id,parent_asin,rating,timestamp\nu,i,5,1400000000\nu,j,5,140000000")
    assert read_reviews(path, 0).notes == (
        "Baby.csv has no line end after its last line: see that nothing of it is missing",
    )
    put(path, "user_id,parent_asin,rating,timestamp\nu,i,5,1400000000\nu,j,5\n")
    with pytest.raises(DataError, match=r"Baby\.csv, line 3: 3 fields instead of 4"):
        read_reviews(path, 0)
    put(path, "user_id,parent_asin,rating,timestamp\nu,i\rx,5,1400000000\n")
    with pytest.raises(DataError, match=r"Baby\.csv, line 2: a carriage return inside the line"):
        read_reviews(path, 0)


def test_2023_in_words(tmp_path):
    prepare(raw_2023(tmp_path / "raw"), tmp_path / "games")
    row = read(tmp_path / "games" / "games.item").set_index("item_id").loc[ITEMS[1]]
    assert row.tolist() == ["Game 1", "Acme", "Video Games > PC & Mac", "10.0", "Fast Fun", "For all ages 3 < 4"]


@pytest.mark.parametrize("style", ["2014", "2018", "2023"])
def test_ratings_alone_are_enough(tmp_path, style):
    source = raw_2014(tmp_path / "raw")
    (source / "reviews_Baby_5.json.gz").unlink()
    rows = {
        "2014": [f"{user},{item},{rating},{time}" for user, item, rating, time in reviews()],
        "2018": [f"{item},{user},{rating},{time}" for user, item, rating, time in reviews()],
        "2023": ["user_id,parent_asin,rating,timestamp"]
        + [f"{user},{item},{rating},{time}" for user, item, rating, time in reviews()],
    }[style]
    put(source / {"2014": "ratings_Baby.csv", "2018": "Baby.csv", "2023": "Baby.csv.gz"}[style], "\n".join(rows) + "\n")
    prepare(source, tmp_path / "shop")
    inter = read(tmp_path / "shop" / "shop.inter")
    assert list(zip(inter["user_id"], inter["item_id"])) == CORE
    assert inter["rating"].tolist() == [f"{rating:g}" for _, _, rating, _ in reviews()[2:-2]]


@pytest.mark.parametrize("name", ["amazon-baby", "amazon-sports", "amazon-clothing"])
def test_the_folders_yaml_agrees_with_the_packages(tmp_path, name):
    prepare(raw_2014(tmp_path / "raw"), tmp_path / name)
    theirs = yaml.safe_load((tmp_path / name / f"{name}.yaml").read_text())
    ours = yaml.safe_load((properties_dir() / "dataset" / f"{name}.yaml").read_text(encoding="utf-8"))
    for key in ("text_fields", "selected_features", "load_col", "user_inter_num_interval", "item_inter_num_interval"):
        assert theirs[key] == ours[key], key


@pytest.mark.parametrize("release", RAW)
def test_it_runs(tmp_path, release):
    prepare(RAW[release](tmp_path / "raw"), tmp_path / "data" / "amazon-baby")
    settings = {"data_path": str(tmp_path / "data"), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1}
    settings |= {"topk": [3], "valid_metric": "NDCG@3", "show_progress": False, "state": "WARNING"}
    outcome = recbole_mm.run("BPR", "amazon-baby", config_dict=settings)
    assert (outcome.dataset.user_num, outcome.dataset.item_num) == (11, 9)
    token = outcome.dataset.item_tokens()[1]
    text = outcome.dataset.content_source.text(token)
    assert "Title: " in text
    assert "Brand: Acme" in text


# -------------------------------------------------------------------------------------------------------------- k-core


def peel(pairs: set[tuple[str, str]], k: int) -> set[tuple[str, str]]:
    """The k-core, by the book."""
    while True:
        users, items = (pd.Series([pair[side] for pair in pairs]).value_counts() for side in (0, 1))
        left = {(user, item) for user, item in pairs if users[user] >= k and items[item] >= k}
        if left == pairs:
            return left
        pairs = left


@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_core_is_exact_and_repeated_reviews_count_once(tmp_path, k, seed):
    rng = np.random.default_rng(seed)
    found = [(f"A{u:012d}", f"B{i:09d}", 5.0, int(t)) for u, i, t in rng.integers(0, 20, (200, 3))]
    path = put(tmp_path / "reviews.json", reviews_json(found))
    table = read_reviews(path, k).table
    kept = list(zip(table["user_id"], table["item_id"]))
    assert len(kept) == len(set(kept))
    assert set(kept) == peel({pair[:2] for pair in found}, k)
    first: dict = {}
    for user, item, _, time in found:
        first[user, item] = min(time, first.get((user, item), math.inf))
    assert table["timestamp"].tolist() == [first[pair] for pair in kept]
    assert set(table["user_id"].cat.categories) == {user for user, _ in kept}


def test_memory_does_not_grow_with_the_text_of_reviews(tmp_path):
    path = tmp_path / "reviews.json"
    with open(path, "w") as file:
        for user, item, rating, time in reviews() * 20:
            record = {"reviewerID": user, "asin": item, "overall": rating, "unixReviewTime": time}
            file.write(json.dumps(record | {"reviewText": "word " * 4000}) + "\n")
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    read_reviews(path, 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_no_core_is_said(tmp_path):
    source = raw_2014(tmp_path / "raw")
    with pytest.raises(DataError, match=r"no 9-core in its 60 lines; choose a smaller --k_core"):
        prepare(source, tmp_path / "out", k_core="9")
    assert prepare(raw_2018(tmp_path / "more"), tmp_path / "all", k_core=0).interactions == 64
    assert yaml.safe_load((tmp_path / "all" / "all.yaml").read_text())["user_inter_num_interval"] is None


# --------------------------------------------------------------------------------------------------- which files it is


def test_categories_are_chosen_by_name(tmp_path):
    source = raw_2018(raw_2014(tmp_path / "raw"))
    with pytest.raises(DataError, match=r"several categories; choose one with --category: Baby, Video_Games"):
        prepare(source, tmp_path / "a")
    assert prepare(source, tmp_path / "b", category="video games").interactions == 60
    put(source / "meta_Sports_and_Outdoors.json", "{}\n")
    assert find_sources(source, "Baby", None, 5).reviews.name == "reviews_Baby_5.json.gz"
    with pytest.raises(DataError, match=r"no reviews of Sports_and_Outdoors; looked for"):
        find_sources(source, "Sports & Outdoors", None, 5)
    with pytest.raises(DataError, match=r"no metadata of 'Music': Baby, "):
        find_sources(source, "Music", None, 5)


def test_of_several_files_the_smallest_that_will_do(tmp_path):
    source = raw_2014(tmp_path)
    for name in ("reviews_Baby.json.gz", "ratings_Baby.csv"):
        (source / name).touch()
    assert find_sources(source, None, None, 5).reviews.name == "reviews_Baby_5.json.gz"
    assert find_sources(source, None, None, 10).reviews.name == "reviews_Baby_5.json.gz"
    assert find_sources(source, None, None, 2).reviews.name == "ratings_Baby.csv"
    assert find_sources(source, None, "reviews_Baby.json.gz", 5).reviews.name == "reviews_Baby.json.gz"
    with pytest.raises(DataError, match=r"--reviews nowhere: no such file"):
        find_sources(source, None, "nowhere", 5)


# ----------------------------------------------------------------------------------------------------------- bad input

GOOD = reviews_json(reviews(CORE))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("reviews_Baby_5.json", "", r"reviews_Baby_5.json: the file is empty"),
        ("reviews_Baby_5.json", GOOD + '{"reviewerID": "A1", "asi\n', r"line 61: neither JSON nor a Python dict"),
        ("reviews_Baby_5.json", GOOD + "[1]\n", r"line 61: a list where a record in braces is expected"),
        ("reviews_Baby_5.json", '{"asin": "B1"}\n', r"line 1: no reviewerID \(2014, 2018\) and no user_id \(2023\)"),
        ("reviews_Baby_5.json", GOOD.replace('"overall": 2.0', '"overall": "x"', 1), r"line 2: overall 'x' is not a"),
        ("reviews_Baby_5.json", GOOD.replace('"overall": 2.0', '"overall": NaN', 1), r"line 2: overall nan is not a"),
        ("reviews_Baby_5.json", GOOD.replace('"overall": 2.0, ', "", 1), r"line 2: overall is missing"),
        ("reviews_Baby_5.json", GOOD.replace("1400086400", "1" * 30, 1), r"line 2: unixReviewTime 1+ is too large"),
        ("reviews_Baby_5.json", GOOD.replace(USERS[0], "\\u0007x"), r"id '\\x07x' holds"),
        ("reviews_Baby_5.json", "[" * 100_000 + "\n", r"line 1: neither JSON nor a Python dict"),
        ("ratings_Baby.csv", "", r"ratings_Baby.csv: the file is empty"),
        ("ratings_Baby.csv", "a,b,5\n", r"line 1: 3 fields; ratings have user, item, rating and time"),
        ("ratings_Baby.csv", "a,b,5,1\n", r"cannot tell users from items; add the header user_id,parent_asin"),
        ("ratings_Baby.csv", "user_id,asin,rating\n", r"line 1: column timestamp is missing; found user_id, asin"),
        ("ratings_Baby.csv", f"{USERS[0]},{ITEMS[0]},5,1\n{USERS[0]},{ITEMS[1]},5\n", r"line 2: 3 fields instead of 4"),
        ("ratings_Baby.csv", f"{USERS[0]},{ITEMS[0]},5,noon\n", r"line 1: timestamp 'noon' is not a number"),
        ("ratings_Baby.csv", f"{USERS[0]},{ITEMS[0]},,1\n", r"line 1: rating is missing"),
        ("meta_Baby.json", "", r"meta_Baby.json: the file is empty"),
        (
            "meta_Baby.json",
            "{'asin': 'B000000000', 'title': open('/etc/passwd')}\n",
            r"line 1: neither JSON nor a Python",
        ),
        ("meta_Baby.json", "{'title': 'no id'}\n", r"line 1: no asin \(2014, 2018\) and no parent_asin"),
        ("meta_Baby.json", "{'asin': 'B0OTHERONE'}\n", r"describes none of the 8 products .*but 'B0OTHERONE'; do the"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, name, text, message):
    source = raw_2014(tmp_path / "raw")
    kind = "meta_Baby" if name.startswith("meta") else "reviews_Baby_5"
    (source / f"{kind}.json.gz").unlink()
    put(source / name, text)
    with pytest.raises(DataError, match=message) as caught:
        prepare(source, tmp_path / "dataset" / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dataset").exists()


def test_nothing_of_a_literal_is_executed_and_its_size_is_bounded(tmp_path, monkeypatch):
    source = raw_2014(tmp_path / "raw")
    touched = tmp_path / "touched"
    evil = f"{{'asin': '{ITEMS[0]}', 'title': __import__('pathlib').Path({str(touched)!r}).touch()}}\n"
    put(source / "meta_Baby.json.gz", evil)
    with pytest.raises(DataError, match="neither JSON nor a Python dict of plain values"):
        prepare(source, tmp_path / "out")
    assert not touched.exists()
    long = repr({"asin": ITEMS[0], "title": "x" * 2000}) + "\n"
    put(source / "meta_Baby.json.gz", long)
    monkeypatch.setattr(amazon_records, "LONGEST_LITERAL", 1000)
    with pytest.raises(DataError, match=r"line 1: not JSON, and too long for a Python literal \(2,0"):
        prepare(source, tmp_path / "out")
    monkeypatch.setattr(amazon_records, "LONGEST_LINE", 2**20)
    put(source / "meta_Baby.json.gz", "{" + " " * 2**21)
    with pytest.raises(DataError, match=r"line 1: longer than 1 MB"):
        prepare(source, tmp_path / "out")


@pytest.mark.parametrize(("name", "message"), [("x", "no meta_<category>"), ("meta_Baby.json.gz", "damaged gzip file")])
def test_files_that_are_not_there_or_damaged(tmp_path, name, message):
    source = raw_2014(tmp_path / "raw")
    (source / "meta_Baby.json.gz").unlink()
    (source / name).write_bytes(b"not gzip")
    with pytest.raises(DataError, match=message):
        prepare(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("k_core", "five"),
        ("k_core", "-1"),
        ("k_core", "2.5"),
        ("rate", "0"),
        ("rate", "-3"),
        ("rate", "nan"),
        ("rate", "x"),
    ],
)
def test_bad_options(tmp_path, option, value):
    with pytest.raises(DataError, match=f"--{option} {value}: a .*number"):
        prepare(raw_2014(tmp_path / "raw"), tmp_path / "out", **{option: value})


# --------------------------------------------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("A &amp;amp; B", "A & B"),
        ("Sizes <3 years & <medium", "Sizes <3 years & <medium"),
        ("<!-- never closed <b>", ""),
        ("<style>.a{}</style>Words<br/>more", "Words more"),
        ("<SCRIPT src='x'>bad()", ""),
        (["One", None, "two"], "One two"),
        (None, ""),
        (5, ""),
        ("x" * 300_000, "x" * 200_000),
    ],
)
def test_plain_text(value, text):
    assert plain_text(value) == text


def test_html_that_never_ends_takes_no_time():
    assert plain_text("<!--" * 50_000 + "<a " * 50_000) == ""
    assert len(plain_text("<a " * 60_000)) > 0


@pytest.mark.parametrize(("value", "price"), [(5, 5.0), ("$1,234.50", 1234.5), ("12", 12.0), (0.0, 0.0)])
def test_prices(value, price):
    assert price_of(value) == price


@pytest.mark.parametrize("value", [None, "", "$5 - $9", "from 3.00", "—", -1, math.inf, True, [5], "5" * 3 + "x"])
def test_what_is_no_price(value):
    assert math.isnan(price_of(value))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([["A", "B"], ["A", "B", "C"], ["D"]], "A > B > C | D"),
        (["A", "B & C"], "A > B & C"),
        ([["A"], ["A"]], "A"),
        ("A", "A"),
        ([], ""),
        (None, ""),
        ([["<b>A</b>", ""], []], "A"),
    ],
)
def test_category_paths(value, text):
    assert category_paths(value) == text


def test_the_main_picture_is_chosen_and_placeholders_are_none():
    assert image_url({"imUrl": "http://g-ecx.images-amazon.com/images/G/01/x-site/icons/no-img-sm._CB1_.gif"}) is None
    assert image_url({"imageURL": ["a"], "imageURLHighRes": []}) == "a"
    assert image_url({"images": [{"variant": "MAIN", "large": None, "hi_res": "big"}]}) == "big"
    assert image_url({"images": "x", "image": None}) is None
    assert image_url({}) is None


# ------------------------------------------------------------------------------------------------------------ pictures


def raw_with_pictures(root: Path, server: PictureServer, faults: dict[str, str]) -> Path:
    put(root / "reviews_Baby_5.json.gz", reviews_json(reviews(CORE)))
    records = [meta_2014(item, place) for place, item in enumerate(ITEMS)]
    for record in records:
        record["imUrl"] = server.url(faults.get(record["asin"], f"good/{record['asin']}.jpg"))
    put(root / "meta_Baby.json.gz", lines(records, literal=True))
    return root


def test_pictures_come_with_the_dataset_and_later_too(tmp_path, capsys):
    with PictureServer() as server:
        source = raw_with_pictures(tmp_path / "raw", server, {ITEMS[0]: "404/x", ITEMS[1]: "html/x"})
        out = tmp_path / "data" / "amazon-baby"
        assert prepare(source, out).images == 0
        assert yaml.safe_load((out / "amazon-baby.yaml").read_text())["modalities"] == ["text"]
        assert not server.asked
        summary = prepare(source, out, images=True, allow_private=True, rate="500")
        told = capsys.readouterr().out
        assert "pictures: 8 URLs; 0 are in" in told
        assert "8 to fetch from 127.0.0.1:" in told
        assert "at most 500 a second" in told
        assert (summary.images, summary.items_with_image) == (6, 6)
        assert "2 failed (" in str(summary)
        settings = yaml.safe_load((out / "amazon-baby.yaml").read_text())
        assert (settings["image_dir"], settings["modalities"]) == ("images", ["image", "text"])
        asked = sum(server.asked.values())
        assert prepare(source, out, images=True, allow_private=True, rate=500).images == 6
        assert prepare(source, out).images == 6
        assert sum(server.asked.values()) == asked, "nothing is asked for twice"
    failures = list(csv.reader((out / "image_failures.csv").read_text().splitlines()))
    assert [(row[0], row[2], row[3]) for row in failures[1:]] == [
        (ITEMS[0], "HTTP 404", "yes"),
        (ITEMS[1], "not a picture", "yes"),
    ]
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import create_dataset

    config = Config("BPR", "amazon-baby", config_dict={"data_path": str(out.parent), "show_progress": False})
    content = create_dataset(config).content_source
    assert content.image(ITEMS[2]).size == (24, 32)
    assert content.image(ITEMS[0]) is None


def test_a_different_dataset_is_refused_before_a_picture_is_fetched(tmp_path):
    with PictureServer() as server:
        source = raw_with_pictures(tmp_path / "raw", server, {})
        out = tmp_path / "baby"
        prepare(source, out)
        put(source / "reviews_Baby_5.json.gz", reviews_json(reviews(CORE[:-1])))
        with pytest.raises(DataError, match=r"holds a different baby.inter"):
            prepare(source, out, images=True)
        (out / "baby.yaml").write_text("text_fields: [title]\n")
        put(source / "reviews_Baby_5.json.gz", reviews_json(reviews(CORE)))
        with pytest.raises(DataError, match=r"holds a different baby.yaml"):
            prepare(source, out, images=True)
        assert not server.asked


def test_an_interrupted_download_leaves_a_whole_dataset(tmp_path, monkeypatch):
    from recbole_mm.datasets import amazon

    with PictureServer() as server:
        source = raw_with_pictures(tmp_path / "raw", server, {})
        out = tmp_path / "baby"

        def stop(urls, folder, failures, limits):
            download({item: urls[item] for item in list(urls)[:3]}, folder, failures, limits)
            raise KeyboardInterrupt

        download = amazon.download_images
        monkeypatch.setattr(amazon, "download_images", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, out, images=True, allow_private=True, rate=500)
        assert len(read(out / "baby.inter")) == 60
        monkeypatch.undo()
        summary = prepare(source, out, images=True, allow_private=True, rate=500)
        assert summary.images == 8
        assert "5 fetched, 3 were there" in str(summary)
        assert sum(server.asked.values()) == 8


def test_from_the_command_line(tmp_path, capsys):
    source = raw_2018(tmp_path / "raw")
    arguments = ["prepare", "amazon", f"--source={source}", f"--out={tmp_path / 'games'}"]
    assert main([*arguments, "--category=Video Games", "--k_core=5"]) == 0
    out = capsys.readouterr().out
    assert "games: 10 users, 8 items, 60 interactions" in out
    assert "60 of 64 reviews stay in the 5-core" in out
    assert main([*arguments, "--k_core=many"]) == 2
    assert "--k_core many: a whole number from 0 on is expected" in capsys.readouterr().err


def test_the_same_source_gives_the_same_bytes(tmp_path):
    source = raw_2023(tmp_path / "raw")
    for name in ("a", "b"):
        prepare(source, tmp_path / name / "games")
    files = {path.name: path.read_bytes() for path in (tmp_path / "a" / "games").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b" / "games").iterdir()}
    assert sorted(files) == ["games.inter", "games.item", "games.yaml", "image_urls.csv"]


def test_reviews_are_read_one_at_a_time(tmp_path):
    found = iter_reviews(put(tmp_path / "x.json", GOOD + "broken\n"))
    assert next(found) == (USERS[0], ITEMS[0], 1.0, 1_400_000_000)
