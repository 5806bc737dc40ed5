"""`recbole-mm prepare csv`: tables of one's own become a dataset, and what is wrong with them is said."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest
import yaml
from PIL import Image

import recbole_mm
from recbole_mm.datasets import CONVERTERS
from recbole_mm.errors import DataError

ORDERS = "user,item,time\nann,01,2024-01-02 10:00:00\nbob,02,2024-01-03 00:00\nann,02,2024-01-02 10:00:01.25\n"
PRODUCTS = 'id,price,maker,Product Name\n01,9.5,Acme,"Red, shirt"\n02,,Zed,"blue\nshirt"\n03,4,,\n'


@pytest.fixture
def convert(tmp_path):
    """`convert({file: text}, **options)` -> summary and dataset folder."""

    def run(files: dict[str, str | bytes], **options):
        for name, text in files.items():
            data = text if isinstance(text, bytes) else text.encode()
            (tmp_path / "raw").mkdir(exist_ok=True)
            (tmp_path / "raw" / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        out = tmp_path / "shop"
        return CONVERTERS["csv"].convert(tmp_path / "raw", out, force=True, **options), out

    return run


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def test_tables_become_a_dataset(convert, tmp_path):
    (tmp_path / "raw" / "photos").mkdir(parents=True)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "raw" / "photos" / "01.png")
    summary, out = convert({"orders.csv": ORDERS, "products.csv": PRODUCTS})
    assert (summary.users, summary.items, summary.interactions, summary.items_with_image) == (2, 2, 3, 1)
    inter = table(out / "shop.inter")
    assert list(inter) == ["user_id:token", "item_id:token", "timestamp:float"]
    assert inter.to_numpy().tolist() == [
        ["ann", "01", "1704189600.0"],
        ["bob", "02", "1704240000.0"],
        ["ann", "02", "1704189601.25"],
    ]
    item = table(out / "shop.item")
    assert list(item) == ["item_id:token", "price:float", "maker:token_seq", "Product_Name:token_seq"]
    assert item.to_numpy().tolist() == [
        ["01", "9.5", "Acme", "Red, shirt"],
        ["02", "", "Zed", "blue shirt"],
        ["03", "4.0", "", ""],
    ]
    settings = yaml.safe_load((out / "shop.yaml").read_text())
    assert settings["text_fields"] == ["Product_Name", "maker"], "the title comes first"
    assert settings["image_dir"] == "images"
    assert "numbers of products.csv, no part of the text: price" in str(summary)


@pytest.mark.parametrize(
    ("files", "options", "times"),
    [
        ({"a.csv": "UserID;Item ID;Timestamp\nu;i;17\nu;j;18\n"}, {}, ["17", "18"]),
        ({"a.tsv.gz": 'uid\tiid\tdate\nu\t5" pipe\t2024-01-01\nu\tj\t2024-01-02\n'}, {}, ["1704067200", "1704153600"]),
        ({"a.txt": "session_id\tproduct\nu\ti\nv\tj\nu\tj\n"}, {"interactions": "a.txt"}, ["0", "0", "1"]),
        ({"a.csv": "who,what,when\nu,i,4\nu,j,3.7\n"}, {"user": "who", "item": "what", "time": "when"}, ["4.0", "3.7"]),
        ({"a.csv": "user,item,date,time\nu,i,2024-01-01,10:00\n"}, {"time": "date,time"}, ["1704103200"]),
        ({"a.csv": "user,item,order_date\nu,i,2024-01-01\n"}, {"time": "none"}, ["0"]),
        ({"a.csv": "user,item,sentiment\nu,i,0.4\n"}, {}, ["0"]),
    ],
)
def test_separators_names_and_times(convert, files, options, times):
    _, out = convert(files, **options)
    assert table(out / "shop.inter")["timestamp:float"].tolist() == times
    assert not (out / "shop.item").exists()


def test_columns_can_be_chosen(convert):
    files = {"o.csv": "user,sku,stars,x\nu,1,4.5,q\n", "p.csv": "sku,year,brand,words\n1,1999,A B,soft\n"}
    summary, out = convert(files, item="sku", texts="words, year", categories="brand")
    assert table(out / "shop.inter").to_numpy().tolist() == [["u", "1", "4.5", "0"]]
    assert list(table(out / "shop.item")) == ["item_id:token", "year:token_seq", "brand:token", "words:token_seq"]
    settings = yaml.safe_load((out / "shop.yaml").read_text())
    assert settings["text_fields"] == ["words", "year"]
    assert settings["selected_features"] == ["brand"]
    assert settings["load_col"] == {
        "inter": ["user_id", "item_id", "rating", "timestamp"],
        "item": ["item_id", "brand"],
    }
    assert "columns of o.csv that are not used: x" in str(summary)
    assert "the order of the lines of o.csv stands in for times" in str(summary)


@pytest.mark.parametrize(
    ("beside", "options"),
    [
        ({"users.csv": "id,name\nann,Ann\n01,Bob\n"}, {}),
        ({"clicks.csv": ORDERS}, {"interactions": "orders.csv"}),
        ({"clicks.csv": ORDERS}, {"interactions": "../raw/orders.csv"}),
        ({"notes.csv": "", "latin.csv": "\xe9".encode("latin-1")}, {}),
    ],
)
def test_other_tables_are_no_items(convert, beside, options):
    summary, out = convert({"orders.csv": ORDERS, **beside}, **options)
    assert not (out / "shop.item").exists()
    assert "no table of items, so no texts" in str(summary)
    assert str(summary).count("left out: ") == (2 if "notes.csv" in beside else 0)


@pytest.mark.parametrize(
    ("items", "options", "column"),
    [
        ({"Products.CSV": "id,product,year\n01,Shirt,1999\n"}, {}, "product:token_seq"),
        ({"things.csv": "id,title\n01,Shirt\n"}, {"items": "things.csv"}, "title:token_seq"),
        ({"p.tsv": 'product_id\ttitle\n01\t"A ""red"" shirt\nof two lines"\n'}, {"item": "sku"}, "title:token_seq"),
    ],
)
def test_items_are_found_by_their_ids(convert, items, options, column):
    orders = ORDERS.replace("item", "sku") if "item" in options else ORDERS
    _, out = convert({"orders.csv": orders, **items}, **options)
    described = table(out / "shop.item")
    assert described["item_id:token"].tolist() == ["01"]
    assert described[column][0] in ("Shirt", 'A "red" shirt of two lines')


def test_ratings_with_gaps_are_left_out(convert):
    summary, out = convert({"a.csv": "user,item,rating,time\nu,i,3,1.7e9\nu,j,,1.8e9\n"})
    assert table(out / "shop.inter").to_numpy().tolist() == [["u", "i", "1700000000"], ["u", "j", "1800000000"]]
    assert "1 lines of a.csv have no rating" in str(summary)


@pytest.mark.parametrize(
    ("files", "options", "told"),
    [
        ({"a.csv": "who,what\nu,i\n"}, {}, r"no file has a column of users and one of items \(a\.csv: who, what\)"),
        ({"readme.md": "hello"}, {}, r"no CSV file there"),
        ({"a.csv": "who,item\nu,i\n"}, {"user": "whom"}, "no file has a column of users"),
        (
            {"a.csv": "user,thing\nu,i\n"},
            {"interactions": "a.csv"},
            "no item_id among user, thing; name it with --item",
        ),
        ({"a.csv": ORDERS, "b.csv": ORDERS}, {}, r"a\.csv, b\.csv all fit; choose one with --interactions"),
        ({"a.csv": ORDERS}, {"interactions": "c.csv"}, r"--interactions c\.csv: no such file"),
        ({"a.csv": ORDERS}, {"time": "tme"}, "--time tme: no such column in a.csv; did you mean 'time'"),
        ({"a.csv": ORDERS + "bob,03,soon\n"}, {}, r"a\.csv, line 5: time 'soon' is not a number or a time such as"),
        ({"a.csv": "user,item,time\nu,i,3\nu,j,noon\n"}, {}, r"a\.csv, line 3: time 'noon' is not a number"),
        (
            {"a.csv": "user,item,timestamp,date\nu,i,3,4\n"},
            {},
            "line 1: timestamp, date may hold the times; say --time timestamp, --time timestamp,date for a day and",
        ),
        (
            {"a.csv": "user,item,orderDate\nu,i,3\n"},
            {},
            "orderDate may hold the times; say --time orderDate, or --time",
        ),
        ({"a.csv": "user,item,x,y,z\nu,i,3,4,5\n"}, {"time": "x,y,z"}, "--time x,y,z: one column, or two"),
        (
            {"a.csv": "user,item,date,time\nu,i,2024-01-01,10:00\nu,j,2024-01-01,noon\n"},
            {"time": "date,time"},
            "line 3: date and time '2024-01-01 noon' is not a number or a time",
        ),
        ({"a.csv": ORDERS, "products.csv": PRODUCTS}, {"texts": "id"}, "--texts id: no such column in products.csv"),
        ({"a.csv": "user,item\nu,\n"}, {}, r"a\.csv, line 2: item is missing"),
        (
            {"a.csv": ORDERS, "products.csv": PRODUCTS},
            {"texts": "makr"},
            "--texts makr: no such column in products.csv; did you mean",
        ),
        (
            {"a.csv": ORDERS, "products.csv": "id,a b,a-b\n01,x,y\n"},
            {},
            "'a-b' would be called a_b, as another one; rename it",
        ),
        ({"a.csv": ORDERS, "products.csv": "id,t\n01,x\n01,y\n"}, {}, "item_id '01' was already listed on line 2"),
        ({"a.csv": ORDERS, "products.csv": "id,t\n91,x\n"}, {}, "none of the 2 item ids in the interactions"),
    ],
)
def test_what_is_wrong_is_said(convert, files, options, told):
    with pytest.raises(DataError, match=told) as caught:
        convert(files, **options)
    assert "\n" not in str(caught.value)


def test_models_run_on_it(convert, tmp_path):
    lines = [f"u{user},i{(user * 3 + step * 5) % 11},{step}" for user in range(20) for step in range(6)]
    products = "item,title\n" + "".join(f"i{i},A thing of kind {i % 3}\n" for i in range(11))
    _, out = convert({"orders.csv": "\n".join(["user,item,time", *lines]) + "\n", "products.csv": products})
    settings = {"data_path": str(out.parent), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1}
    for model in ("Pop", "Molar"):
        assert recbole_mm.run(model, "shop", config_dict=settings).test_result["recall@10"] > 0
