"""Every raw layout that `recbole-mm prepare` reads, every way it can be wrong, and what is written."""

from __future__ import annotations

import argparse
import gzip
import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from recbole_mm.config.layers import properties_dir
from recbole_mm.datasets import CONVERTERS
from recbole_mm.datasets import folder as folder_module
from recbole_mm.datasets.assemble import Summary
from recbole_mm.datasets.base import COMMON_OPTIONS
from recbole_mm.datasets.folder import clean_text, write_table
from recbole_mm.datasets.images import index_images, is_safe_id, put_images, same_images
from recbole_mm.datasets.movielens import GENRES_100K
from recbole_mm.errors import DataError, DiskError

# ------------------------------------------------------------------------------------------------------ raw folders


def put(path: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write a raw file, gzipped if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def draw(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(names):
        Image.new("RGB", (6, 8), (40 * place % 256, 90, 200)).save(folder / name)
    return folder


def u_item(number: int, title: str, *genres: str) -> str:
    flags = "|".join(str(int(genre in genres)) for genre in GENRES_100K)
    return f"{number}|{title}|01-Jan-1995||http://us.imdb.com/M/title-exact?x|{flags}\n"


def raw_ml_100k(root: Path) -> Path:
    put(root / "u.data", "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t1\t5\t881250949\n")
    items = u_item(1, "Toy Story (1995)", "Animation", "Children's", "Comedy") + u_item(242, "Kolya (1996)", "Comedy")
    items += u_item(302, "Misérables, Les (1995)", "Drama", "Musical") + u_item(267, "unknown", "unknown")
    put(root / "u.item", items, "latin-1")
    put(root / "u.user", "196|49|M|writer|55105\n186|39|F|executive|00000\n")
    return root


def raw_ml_1m(root: Path) -> Path:
    put(root / "ratings.dat", "1::1193::5::978300760\n1::661::3::978302109\n2::1193::4::978298413\n")
    put(root / "movies.dat", "1193::One Flew Over (1975)::Drama\n661::Cité (1996)::Animation|Musical\n", "latin-1")
    put(root / "users.dat", "1::F::1::10::48067\n2::M::56::16::70072\n")
    return root


def raw_ml_latest(root: Path) -> Path:
    put(
        root / "ratings.csv",
        "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,3,3.5,964981247\n2,1,4.0,1445714835\n",
    )
    movies = 'movieId,title,genres\n1,Toy Story (1995),Adventure|Animation\n3,"American, The ""X"" (2010)",Comedy\n'
    put(root / "movies.csv", movies + "9,No Year,(no genres listed)\n")
    put(root / "links.csv", "movieId,imdbId,tmdbId\n1,0114709,862\n3,0113228,\n")
    return root


def raw_ml_mm(root: Path) -> Path:
    inter = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n196\t1\t3\t881250949\n186\t2\t3\t891717742\n"
    put(root / "ml-100k.inter", inter)
    items = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    items += "1\tToy Story\t1995\tAnimation Comedy\n2\tGoldenEye\t1995\tAction\n3\tFour Rooms\t1995\tThriller\n"
    put(root / "ml-100k.item", items)
    put(
        root / "ml-100k.user",
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n196\t49\tM\twriter\t55105\n",
    )
    texts = "item_id,title,omdb_plot,director,actors,tmdb_overview,poster_src\n"
    texts += '1,Toy Story (1995),"A doll, jealous.",John Lasseter,"Tom Hanks, Tim Allen",'
    texts += '"Led by ""Woody"".\nAndy plays.",x\n'
    texts += "2,GoldenEye (1995),,Martin Campbell,,,x\n"
    put(root / "items_mm.csv", texts)
    draw(root / "posters", "1.jpg", "3.jpg")
    return root


ARTICLES = (
    "article_id,product_code,prod_name,product_type_no,product_type_name,product_group_name,graphical_appearance_no,"
    "graphical_appearance_name,colour_group_code,colour_group_name,perceived_colour_value_id,perceived_colour_value_name,"
    "perceived_colour_master_id,perceived_colour_master_name,department_no,department_name,index_code,index_name,"
    "index_group_no,index_group_name,section_no,section_name,garment_group_no,garment_group_name,detail_desc,image_kept\n"
)


def article(number: str, name: str = "Strap top", description: str = "Jersey top.") -> str:
    words = "253,Vest top,Garment Upper body,1010016,Solid,9,Black,4,Dark,5,Black,1676,Jersey Basic,A,Ladieswear,1,"
    return f'{number},108775,{name},{words}Ladieswear,16,Womens Basics,1002,Jersey Basic,"{description}",True\n'


PURCHASES = "t_dat,customer_id,article_id,price,sales_channel_id\n"


def raw_hm(root: Path) -> Path:
    put(
        root / "articles.csv.gz",
        ARTICLES + article("0108775015") + article("0108775044", description="Blue, wide") + article("0999"),
    )
    core = "2019-02-27,c1,0108775044,0.0338,2\n2019-02-27,c1,0108775015,0.0169,2\n2019-02-26,c2,0108775015,0.1,1\n"
    put(root / "inter_2y_core.csv", PURCHASES + core)
    put(root / "inter_lastweek_5core.csv.gz", PURCHASES + "2020-09-21,c9,0108775015,0.01,2\n")
    draw(root / "images", "0108775015.jpg", "0999.jpg")
    return root


def raw_microlens_lists(root: Path) -> Path:
    put(root / "MicroLens-50k_pairs.tsv", "1\t19 6 15\r\n2\t6\r\n3\t15 19\r\n")
    put(root / "MicroLens-50k_titles.csv", 'item,title\n6,"Songs, gone # comic"\n15,Duck\n19,Chili\n')
    return root


def raw_microlens_pairs(root: Path) -> Path:
    put(root / "MicroLens-100k_pairs.csv", "user,item,timestamp\n1,19,1583378629552\n1,6,1584541351852\n2,6,1\n")
    put(root / "MicroLens-100k_title_en.csv", "6,Songs\n19,Chili\n")
    draw(root / "MicroLens-100k_covers", "6.jpg", "19.png")
    return root


COUNTERS = "view_number,comment_number,thumbup_number,share_number,coin_number,favorite_number,barrage_number"


def raw_pixelrec(root: Path) -> Path:
    put(
        root / "sample" / "Pixel50K.csv",
        "item_id,user_id,timestamp\ni72,u20,1605059546\ni15,u24,1628914341\ni72,u24,1\n",
    )
    info = f"item_id,{COUNTERS},title,tag,description\n"
    info += 'i72,799668.0,739.0,8050.0,220.0,84.0,1049.0,510.0,"My turtle…",Pet Reptiles,Should I?\n'
    put(root / "info.csv", info + "i15,,,,,,,,龜,,\n")
    draw(root / "cover", "i72.jpg")
    return root


RAW = {
    "ml-100k": ("movielens", raw_ml_100k),
    "ml-1m": ("movielens", raw_ml_1m),
    "ml-latest": ("movielens", raw_ml_latest),
    "ml-100k-mm": ("movielens", raw_ml_mm),
    "hm": ("hm", raw_hm),
    "microlens-50k": ("microlens", raw_microlens_lists),
    "microlens": ("microlens", raw_microlens_pairs),
    "pixelrec": ("pixelrec", raw_pixelrec),
}


def prepare(tmp_path: Path, name: str, **options) -> tuple[Summary, Path]:
    converter, write_raw = RAW[name]
    source = tmp_path / "raw" / name
    if not source.exists():
        write_raw(source)
    out = tmp_path / "dataset" / name
    return CONVERTERS[converter].convert(source, out, **options), out


def read(path: Path) -> pd.DataFrame:
    """An atomic file as text, read the way RecBole 1.2.1 does (recbole/data/dataset/dataset.py:484)."""
    table = pd.read_csv(path, delimiter="\t", dtype=str, encoding="utf-8", engine="python", keep_default_na=False)
    return table.rename(columns=lambda column: column.split(":")[0])


def types(path: Path) -> dict[str, str]:
    return dict(column.split(":") for column in path.read_text(encoding="utf-8").split("\n", 1)[0].split("\t"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# ------------------------------------------------------------------------------------------------------- every layout


@pytest.mark.parametrize("name", sorted(RAW))
class TestEveryLayout:
    def test_writes_what_recbole_reads(self, tmp_path, name):
        summary, out = prepare(tmp_path, name)
        inter, item = read(out / f"{name}.inter"), read(out / f"{name}.item")
        assert len(inter) == summary.interactions
        assert inter["user_id"].nunique() == summary.users
        assert inter["item_id"].nunique() == summary.items
        assert len(item) == item["item_id"].nunique() == summary.catalogue
        assert not inter.isin([""]).any().any()
        inter["timestamp"].astype("int64")
        assert set(types(out / f"{name}.inter").values()) <= {"token", "float"}

    def test_folder_yaml_names_columns_that_are_there(self, tmp_path, name):
        summary, out = prepare(tmp_path, name)
        settings = yaml.safe_load((out / f"{name}.yaml").read_text(encoding="utf-8"))
        columns = types(out / f"{name}.item")
        assert settings["text_fields"]
        assert set(settings["text_fields"]) <= set(columns)
        assert set(settings["load_col"].get("item", ())) <= set(columns)
        assert set(settings["load_col"]["inter"]) <= set(types(out / f"{name}.inter"))
        assert set(settings.get("selected_features", ())) <= set(settings["load_col"].get("item", ()))
        assert (settings.get("image_dir") == "images") == bool(summary.images) == (out / "images").is_dir()

    def test_folder_yaml_agrees_with_the_packages(self, tmp_path, name):
        shipped = "ml-1m" if name == "ml-latest" else name
        path = properties_dir() / "dataset" / f"{shipped}.yaml"
        ours = yaml.safe_load(path.read_text(encoding="utf-8"))
        _, out = prepare(tmp_path, name)
        theirs = yaml.safe_load((out / f"{name}.yaml").read_text(encoding="utf-8"))
        assert theirs["text_fields"] == ours["text_fields"]
        assert theirs.get("selected_features") == ours.get("selected_features")
        assert theirs["load_col"]["inter"] == ours["load_col"]["inter"]

    def test_runs_as_a_dataset(self, tmp_path, name):
        from recbole_mm.config.resolved import Config
        from recbole_mm.data.dataset import create_dataset

        summary, out = prepare(tmp_path, name)
        config = Config("SASRecF", name, config_dict={"data_path": str(out.parent), "show_progress": False})
        dataset = create_dataset(config)
        assert dataset.item_num - 1 == summary.items
        assert dataset.user_num - 1 == summary.users
        tokens = list(dataset.field2id_token["item_id"])[1:]
        with_image = [token for token in tokens if dataset.content.source.has_image(token)]
        if name != "ml-100k":  # its images are drawn
            assert len(with_image) == summary.items_with_image
        assert sum(dataset.content.source.has_text(token) for token in tokens) == summary.items_with_text

    def test_twice_gives_the_same_bytes(self, tmp_path, name):
        _, out = prepare(tmp_path, name)
        first = tree(out)
        prepare(tmp_path, name)
        assert tree(out) == first
        assert tree_of_fresh(tmp_path, name) == first

    def test_leaves_nothing_else_behind(self, tmp_path, name):
        _, out = prepare(tmp_path, name)
        prepare(tmp_path, name, force=True)
        expected = {f"{name}.inter", f"{name}.item", f"{name}.user", f"{name}.yaml", "images"}
        assert {path.name for path in out.iterdir()} <= expected
        assert [path.name for path in out.parent.iterdir()] == [name]


def tree_of_fresh(tmp_path: Path, name: str) -> dict[str, bytes]:
    converter, _ = RAW[name]
    out = tmp_path / "elsewhere" / name
    CONVERTERS[converter].convert(tmp_path / "raw" / name, out)
    return tree(out)


class TestMovieLens:
    def test_100k(self, tmp_path):
        summary, out = prepare(tmp_path, "ml-100k")
        assert (out / "ml-100k.inter").read_text().splitlines()[:2] == [
            "user_id:token\titem_id:token\trating:float\ttimestamp:float",
            "196\t242\t3\t881250949",
        ]
        item = read(out / "ml-100k.item").set_index("item_id")
        assert item.loc["1"].tolist() == ["Toy Story", "1995", "Animation Children's Comedy"]
        assert item.loc["302", "movie_title"] == "Misérables, Les"
        assert item.loc["267"].tolist() == ["unknown", "", "unknown"]
        assert read(out / "ml-100k.user").loc[1].tolist() == ["186", "39", "F", "executive", "00000"]
        assert types(out / "ml-100k.item")["class"] == "token_seq"
        assert summary.never_interacted == 1

    def test_without_posters_ml_100k_keeps_its_title_cards(self, tmp_path):
        _, out = prepare(tmp_path, "ml-100k")
        assert {"image_dir", "modalities"}.isdisjoint(yaml.safe_load((out / "ml-100k.yaml").read_text()))

    def test_1m(self, tmp_path):
        _, out = prepare(tmp_path, "ml-1m")
        assert read(out / "ml-1m.item").values.tolist() == [
            ["1193", "One Flew Over", "1975", "Drama"],
            ["661", "Cité", "1996", "Animation Musical"],
        ]
        assert read(out / "ml-1m.user").columns.tolist() == ["user_id", "age", "gender", "occupation", "zip_code"]
        assert read(out / "ml-1m.user").loc[0].tolist() == ["1", "1", "F", "10", "48067"]

    def test_10m_is_utf_8_has_half_stars_and_no_users(self, tmp_path):
        source = raw_ml_1m(tmp_path / "raw")
        put(source / "movies.dat", '1193::"Quoted" Ça (1975)::Drama\n661::Tab\there (1996)::Animation\n')
        put(source / "ratings.dat", "1::1193::4.5::978300760\n1::661::3::978302109\n")
        (source / "users.dat").unlink()
        CONVERTERS["movielens"].convert(source, tmp_path / "ml-10m")
        item, inter = read(tmp_path / "ml-10m" / "ml-10m.item"), read(tmp_path / "ml-10m" / "ml-10m.inter")
        assert item["movie_title"].str.strip().tolist() == ['"Quoted" Ça', "Tab here"]
        assert inter["rating"].tolist() == ["4.5", "3.0"]
        assert not (tmp_path / "ml-10m" / "ml-10m.user").exists()

    def test_later_releases(self, tmp_path):
        _, out = prepare(tmp_path, "ml-latest")
        item = read(out / "ml-latest.item").set_index("item_id")
        assert item.loc["3"].tolist() == ['American, The "X"', "2010", "Comedy", "0113228", ""]
        assert item.loc["9"].tolist() == ["No Year", "", "", "", ""]
        assert item.loc["1", "imdb_id"] == "0114709"

    def test_later_releases_without_links(self, tmp_path):
        source = raw_ml_latest(tmp_path / "raw")
        (source / "links.csv").unlink()
        CONVERTERS["movielens"].convert(source, tmp_path / "out")
        assert "imdb_id" not in types(tmp_path / "out" / "out.item")

    def test_with_texts(self, tmp_path):
        summary, out = prepare(tmp_path, "ml-100k-mm")
        raw = tmp_path / "raw" / "ml-100k-mm"
        assert (out / "ml-100k-mm.inter").read_bytes() == (raw / "ml-100k.inter").read_bytes()
        assert (out / "ml-100k-mm.user").read_bytes() == (raw / "ml-100k.user").read_bytes()
        item = read(out / "ml-100k-mm.item").set_index("item_id")
        assert item.loc["1", "overview"] == 'Led by "Woody". Andy plays.'
        assert item.loc["1", "actors"] == "Tom Hanks, Tim Allen"
        assert item.loc["3", ["director", "plot"]].tolist() == ["", ""]
        assert sorted(path.name for path in (out / "images").iterdir()) == ["1.jpg", "3.jpg"]
        assert (summary.items_with_image, summary.image_share) == (1, 0.5)

    def test_posters_for_any_layout(self, tmp_path):
        posters = draw(tmp_path / "covers", "661.png", "77.jpg")
        summary, out = prepare(tmp_path, "ml-1m", posters=str(posters))
        assert [path.name for path in (out / "images").iterdir()] == ["661.png"]
        assert summary.items_with_image == 1
        assert any("1 files" in note and "no item" in note for note in summary.notes)
        assert yaml.safe_load((out / "ml-1m.yaml").read_text())["image_dir"] == "images"


class TestHM:
    def test_ids_days_and_order(self, tmp_path):
        summary, out = prepare(tmp_path, "hm")
        inter = read(out / "hm.inter")
        assert inter["item_id"].tolist() == ["0108775044", "0108775015", "0108775015"]
        assert inter["timestamp"].tolist() == ["1551225600", "1551225600", "1551139200"]
        assert inter["price"].tolist() == ["0.0338", "0.0169", "0.1"]
        assert summary.never_interacted == 1
        assert types(out / "hm.item")["product_type_name"] == "token"
        assert "image_kept" not in types(out / "hm.item")
        assert len(types(out / "hm.item")) == 25

    def test_another_file_of_purchases(self, tmp_path):
        summary, _ = prepare(tmp_path, "hm", transactions="inter_lastweek_5core.csv.gz")
        assert (summary.users, summary.interactions) == (1, 1)

    def test_kaggles_layout(self, tmp_path):
        source = tmp_path / "raw"
        put(source / "articles.csv", ARTICLES + article("0108775015"))
        put(source / "transactions_train.csv", PURCHASES + "2020-09-22,c1,0108775015,0.05,1\n" * 2)
        draw(source / "images" / "010", "0108775015.jpg")
        summary = CONVERTERS["hm"].convert(source, tmp_path / "hm")
        assert (summary.images, summary.interactions, summary.image_share) == (1, 2, 1.0)
        assert (tmp_path / "hm" / "images" / "0108775015.jpg").is_file()

    def test_optional_columns_may_be_absent(self, tmp_path):
        put(tmp_path / "raw" / "articles.csv", "article_id,prod_name\n01,Top\n")
        put(tmp_path / "raw" / "transactions_train.csv", "t_dat,customer_id,article_id\n2020-09-22,c1,01\n")
        CONVERTERS["hm"].convert(tmp_path / "raw", tmp_path / "hm")
        assert list(types(tmp_path / "hm" / "hm.inter")) == ["user_id", "item_id", "timestamp"]
        assert yaml.safe_load((tmp_path / "hm" / "hm.yaml").read_text())["text_fields"] == ["prod_name"]


class TestMicroLens:
    def test_lists_give_positions(self, tmp_path):
        summary, out = prepare(tmp_path, "microlens-50k")
        assert read(out / "microlens-50k.inter").values.tolist() == [
            ["1", "19", "0"], ["1", "6", "1"], ["1", "15", "2"], ["2", "6", "0"], ["3", "15", "0"], ["3", "19", "1"],
        ]  # fmt: skip
        assert yaml.safe_load((out / "microlens-50k.yaml").read_text())["modalities"] == ["text"]
        assert any("order only" in note for note in summary.notes)

    def test_pairs_keep_timestamps(self, tmp_path):
        summary, out = prepare(tmp_path, "microlens")
        assert read(out / "microlens.inter")["timestamp"].tolist() == ["1583378629552", "1584541351852", "1"]
        assert summary.items_with_image == 2

    def test_pairs_are_preferred_to_lists(self, tmp_path):
        source = raw_microlens_lists(tmp_path / "raw")
        put(source / "MicroLens-50k_pairs.csv", "userID,videoID,timestamp\n1,19,77\n")
        assert CONVERTERS["microlens"].convert(source, tmp_path / "a").interactions == 1
        chosen = CONVERTERS["microlens"].convert(source, tmp_path / "b", interactions="MicroLens-50k_pairs.tsv")
        assert chosen.interactions == 6

    def test_two_files_that_fit_need_a_choice(self, tmp_path):
        source = raw_microlens_lists(tmp_path / "raw")
        put(source / "MicroLens-100k_pairs.tsv", "1\t6\n")
        with pytest.raises(DataError, match=r"100k_pairs.tsv, MicroLens-50k_pairs.tsv all fit.*--interactions"):
            CONVERTERS["microlens"].convert(source, tmp_path / "out")


class TestPixelRec:
    def test_files_are_told_by_their_columns(self, tmp_path):
        summary, out = prepare(tmp_path, "pixelrec")
        assert read(out / "pixelrec.inter")["item_id"].tolist() == ["i72", "i15", "i72"]
        assert summary.items_with_image == 1
        assert summary.image_share == pytest.approx(2 / 3)

    def test_counters_are_kept_but_neither_loaded_nor_text(self, tmp_path):
        _, out = prepare(tmp_path, "pixelrec")
        item = read(out / "pixelrec.item").set_index("item_id")
        assert item.loc["i72", "view_number"] == "799668.0"
        assert item.loc["i15", "view_number"] == ""
        assert types(out / "pixelrec.item")["view_number"] == "float"
        settings = yaml.safe_load((out / "pixelrec.yaml").read_text())
        used = {*settings["load_col"]["item"], *settings["text_fields"], *settings["selected_features"]}
        assert used.isdisjoint(COUNTERS.split(","))

    def test_english_title_is_preferred(self, tmp_path):
        source = raw_pixelrec(tmp_path / "raw")
        put(source / "info.csv", "item_id,title,title_en\ni72,龜,Turtle\ni15,貓,Cat\n")
        CONVERTERS["pixelrec"].convert(source, tmp_path / "out")
        assert read(tmp_path / "out" / "out.item")["title"].tolist() == ["Turtle", "Cat"]

    def test_times_with_a_fraction_are_kept(self, tmp_path):
        source = raw_pixelrec(tmp_path / "raw")
        put(source / "sample" / "Pixel50K.csv", "item_id,user_id,timestamp\ni72,u20,1605059546.9\ni15,u24,1e9\n")
        CONVERTERS["pixelrec"].convert(source, tmp_path / "out")
        assert read(tmp_path / "out" / "out.inter")["timestamp"].tolist() == ["1605059546.9", "1000000000.0"]


# ---------------------------------------------------------------------------------------------------------- bad input


def broken(name: str, file: str, old: str, new: str):
    """A raw folder of layout `name` in which one file has `old` replaced by `new`."""

    def build(root: Path) -> str:
        converter, write_raw = RAW[name]
        write_raw(root)
        path = root / file
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert old.encode("latin-1") in data, "the test changes nothing"
        data = data.replace(old.encode("latin-1"), new.encode("utf-8"), 1)
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        return converter

    return build


def without(name: str, file: str):
    def build(root: Path) -> str:
        converter, write_raw = RAW[name]
        write_raw(root)
        (root / file).unlink()
        return converter

    return build


def replaced(name: str, file: str, data: bytes):
    def build(root: Path) -> str:
        converter, write_raw = RAW[name]
        write_raw(root)
        (root / file).write_bytes(data)
        return converter

    return build


BAD_INPUT = [
    (lambda root: root.mkdir(parents=True) or "movielens", r"raw: no MovieLens files; looked for .*u.data and u.item"),
    (lambda root: "hm", r"raw: no such folder"),
    (without("ml-100k-mm", "ml-100k.inter"), r"needs exactly one .inter file beside it; found none"),
    (without("ml-100k-mm", "ml-100k.item"), r"ml-100k.item: no such file"),
    (without("hm", "articles.csv.gz"), r"no articles.csv\[.gz\]"),
    (without("hm", "inter_2y_core.csv"), r"no inter_2y_core.csv.*--transactions: inter_lastweek_5core.csv.gz"),
    (without("microlens-50k", "MicroLens-50k_titles.csv"), r"no \*title\*.csv"),
    (without("microlens-50k", "MicroLens-50k_pairs.tsv"), r"no \*pairs.csv.* and no \*pairs.tsv"),
    (without("pixelrec", "info.csv"), r"no CSV file has the columns item_id, title \(Pixel50K.csv there\).*--items"),
    (replaced("ml-1m", "ratings.dat", b""), r"ratings.dat: the file is empty"),
    (replaced("ml-latest", "ratings.csv", b""), r"ratings.csv: the file is empty"),
    (replaced("ml-latest", "ratings.csv", b"userId,movieId,rating,timestamp\n"), r"ratings.csv: no lines below"),
    (replaced("hm", "articles.csv.gz", b"not gzip"), r"articles.csv.gz: damaged gzip file"),
    (replaced("hm", "articles.csv.gz", gzip.compress(ARTICLES.encode() * 99)[:-20]), r"damaged gzip file"),
    (replaced("pixelrec", "info.csv", b"item_id,title\ni72,\xff\xfe\n"), r"info.csv, line 2: not utf-8 text"),
    (broken("ml-latest", "ratings.csv", "movieId", "film"), r"line 1: column movieId is missing; .*found userId, film"),
    (broken("ml-latest", "ratings.csv", "rating,", "userId,"), r"line 1: a column is named twice"),
    (broken("ml-latest", "ratings.csv", "964981247", "noon"), r"ratings.csv, line 3: timestamp 'noon' is not a number"),
    (broken("ml-latest", "ratings.csv", "964981247", ""), r"ratings.csv, line 3: timestamp is missing"),
    (broken("ml-latest", "ratings.csv", ",964981247", ""), r"ratings.csv, line 3: 3 fields instead of 4"),
    (broken("ml-latest", "ratings.csv", "964981247", "1e40"), r"line 3: timestamp '1e40' is too large"),
    (broken("ml-latest", "ratings.csv", "964981247", "1_000"), r"line 3: timestamp '1_000' is not a number"),
    (broken("ml-latest", "ratings.csv", "964981247", "964981247,9"), r"ratings.csv, line 3: 5 fields instead of 4"),
    (broken("ml-latest", "ratings.csv", "964982703", "964982703,9"), r"ratings.csv, line 2: 5 fields instead of 4"),
    (broken("ml-latest", "ratings.csv", "3.5", "nan"), r"ratings.csv, line 3: rating 'nan' is not a number"),
    (broken("ml-latest", "ratings.csv", "1,3,3.5", " ,3,3.5"), r"ratings.csv, line 3: userId is missing"),
    (
        broken("ml-latest", "movies.csv", "\n3,", "\n1,"),
        r"movies.csv, line 3: item_id '1' was .* on line 2",
    ),
    (broken("ml-latest", "movies.csv", '(2010)"', "(2010)"), r"movies.csv: a quotation mark opened near line 3"),
    (broken("ml-1m", "ratings.dat", "978302109", "x"), r"ratings.dat, line 2: timestamp 'x' is not a number"),
    (broken("ml-1m", "ratings.dat", "1::661::3", "1::661::3::3"), r"ratings.dat, line 2: 5 fields instead of 4"),
    (broken("ml-100k", "u.data", "891717742", "?"), r"u.data, line 2: timestamp '\?' is not a number"),
    (broken("ml-100k", "u.item", "Toy Story", "Toy|Story"), r"u.item, line 1: 25 fields instead of 24"),
    (broken("ml-100k-mm", "ml-100k.inter", "timestamp:float", "time:float"), r"line 1: column timestamp is missing"),
    (broken("ml-100k-mm", "items_mm.csv", "omdb_plot", "plot"), r"items_mm.csv, line 1: column omdb_plot is missing"),
    (
        broken("hm", "inter_2y_core.csv", "2019-02-26", "26/02/2019"),
        r"line 4: t_dat '26/02/2019' is not a number or a time",
    ),
    (
        broken("hm", "inter_2y_core.csv", "2019-02-26", "2019-02-30"),
        r"line 4: t_dat '2019-02-30' is not a number or a time",
    ),
    (broken("hm", "inter_2y_core.csv", "0.0169", "cheap"), r"line 3: price 'cheap' is not a number"),
    (
        broken("hm", "articles.csv.gz", "\n0108775044", "\n0108775015"),
        r"line 3: item_id '0108775015' was already",
    ),
    (broken("microlens-50k", "MicroLens-50k_pairs.tsv", "2\t6", "2\t"), r"pairs.tsv, line 2: user '2' has no items"),
    (
        broken("microlens-50k", "MicroLens-50k_pairs.tsv", "3\t15", "1\t15"),
        r"line 3: user '1' was already listed on line 1",
    ),
    (broken("microlens-50k", "MicroLens-50k_pairs.tsv", "3\t15", "3\t\x0715"), r"line 3: id .* holds a control char"),
    (broken("pixelrec", "info.csv", "739.0", "many"), r"info.csv, line 2: comment_number 'many' is not a number"),
    (broken("pixelrec", "sample/Pixel50K.csv", "u24", "u\x0724"), r"Pixel50K.csv, line 3: user_id .*control character"),
]


@pytest.mark.parametrize(("build", "message"), BAD_INPUT, ids=[message for _, message in BAD_INPUT])
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, build, message):
    converter = build(tmp_path / "raw")
    with pytest.raises(DataError, match=message) as caught:
        CONVERTERS[converter].convert(tmp_path / "raw", tmp_path / "dataset" / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dataset" / "out").exists()
    assert not list(tmp_path.glob("dataset/.*"))


def test_line_numbers_count_line_breaks_inside_quotes(tmp_path):
    source = raw_pixelrec(tmp_path / "raw")
    put(source / "info.csv", 'item_id,title,view_number\ni72,"two\nlines",1\ni15,b,x\n')
    with pytest.raises(DataError, match=r"info.csv, line 4: view_number 'x'"):
        CONVERTERS["pixelrec"].convert(source, tmp_path / "out")


def test_several_files_with_the_same_columns_need_a_choice(tmp_path):
    source = raw_pixelrec(tmp_path / "raw")
    put(source / "Pixel200K.csv", "item_id,user_id,timestamp\ni72,u1,5\n")
    with pytest.raises(DataError, match=r"Pixel200K.csv, sample.Pixel50K.csv all have.*--interactions"):
        CONVERTERS["pixelrec"].convert(source, tmp_path / "out")
    assert CONVERTERS["pixelrec"].convert(source, tmp_path / "out", interactions="Pixel200K.csv").interactions == 1


def test_files_that_do_not_belong_together(tmp_path):
    source = raw_hm(tmp_path / "raw")
    put(source / "inter_2y_core.csv", PURCHASES + "2019-02-27,c1,108775044,0.03,2\n")
    with pytest.raises(DataError, match=r"none of the 1 item ids .* '108775044', is in the catalogue.*'0108775015'"):
        CONVERTERS["hm"].convert(source, tmp_path / "hm")


@pytest.mark.parametrize("option", ["posters", "transactions", "images", "interactions", "items"])
def test_a_chosen_path_that_is_not_there(tmp_path, option):
    name = {"posters": "ml-1m", "transactions": "hm", "images": "hm"}.get(option, "microlens")
    with pytest.raises(DataError, match=rf"--{option} nowhere: no such (file|folder), neither in"):
        prepare(tmp_path, name, **{option: "nowhere"})


def test_a_chosen_folder_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: no image in it; files are named <item_id>.jpg"):
        prepare(tmp_path, "hm", images=str(tmp_path / "empty"))


def test_identical_repeated_lines_are_dropped_and_counted(tmp_path):
    source = raw_ml_latest(tmp_path / "raw")
    put(source / "movies.csv", "movieId,title,genres\n" + "1,Toy Story (1995),Comedy\n" * 3 + "3,X,Drama\n")
    summary = CONVERTERS["movielens"].convert(source, tmp_path / "out")
    assert summary.catalogue == 2
    assert any("2 repeated identical lines" in note for note in summary.notes)


def test_items_on_one_side_only_are_counted(tmp_path):
    source = raw_microlens_lists(tmp_path / "raw")
    put(source / "MicroLens-50k_titles.csv", "item,title\n6,Songs\n99,Unseen\n100,Unseen too\n")
    summary = CONVERTERS["microlens"].convert(source, tmp_path / "out")
    assert (summary.not_in_catalogue, summary.never_interacted) == (2, 2)
    assert (summary.items_with_text, summary.text_share) == (1, pytest.approx(2 / 6))
    text = str(summary)
    assert "2 items of the interactions are not in the catalogue" in text
    assert "2 of 3 items of the catalogue are in no interaction" in text


# ------------------------------------------------------------------------------------------------------------- images


def test_ids_that_are_no_file_names_get_no_image(tmp_path):
    source = raw_pixelrec(tmp_path / "raw")
    rows = "../i9,a\na..b,b\n/etc/passwd,c\ni72,d\ni15,e\n"
    put(source / "info.csv", "item_id,title\n" + rows)
    put(
        source / "sample" / "Pixel50K.csv",
        "item_id,user_id,timestamp\n../i9,u1,1\na..b,u1,2\n/etc/passwd,u1,3\ni72,u1,4\n",
    )
    draw(source, "i9.jpg")
    draw(source / "cover", "a..b.jpg")
    summary = CONVERTERS["pixelrec"].convert(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["i72.jpg"]
    assert summary.items == 4
    assert any("3 item ids cannot be file names" in note for note in summary.notes)


@pytest.mark.parametrize("item_id", ["0108775015", "i72", "a.b", "Ünïcode id", "-5"])
def test_safe_ids(item_id):
    assert is_safe_id(item_id)


@pytest.mark.parametrize("item_id", ["a/b", "..", "a..b", ".hidden", "..\\x", "C:\\x", "a\0b", "/abs"])
def test_unsafe_ids(item_id):
    assert not is_safe_id(item_id)


def test_index_prefers_jpg_ignores_others_and_counts_empty_files(tmp_path):
    draw(tmp_path, "1.png", "1.JPG", "2.webp")
    for name in ("3.jpg", "README.txt", "4.jpg.part"):
        (tmp_path / name).write_bytes(b"" if name == "3.jpg" else b"x")
    draw(tmp_path / "sub", "5.gif", "1.jpeg")
    draw(tmp_path / "sub" / "deeper", "6.jpg")
    found = index_images(tmp_path)
    assert {item: path.name for item, path in found.files.items()} == {"1": "1.JPG", "2": "2.webp", "5": "5.gif"}
    assert (found.empty, found.repeated, found.others) == (1, 2, {".txt": 1, ".part": 1})


def test_images_are_found_in_any_unicode_form_and_others_are_told(tmp_path):
    source = tmp_path / "raw"
    put(source / "orders.csv", "user,item,time\nu,caf\u00e9,1\nu,b,2\n")
    draw(source / "images", "cafe\u0301.JFIF", "b.png", "b.jpg")
    (source / "images" / "b.avif").write_bytes(b"x")
    summary = CONVERTERS["csv"].convert(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "images").iterdir()) == ["b.jpg", "caf\u00e9.jfif"]
    assert summary.items_with_image == 2
    assert "1 image files are further ones of an item that has one, and were left out" in str(summary)
    assert "that do not count as images by their names: .avif: 1" in str(summary)


def test_images_are_copied_byte_by_byte_without_being_opened(tmp_path):
    source = raw_hm(tmp_path / "raw")
    (source / "images" / "0108775044.jpg").write_bytes(b"not an image at all")
    summary = CONVERTERS["hm"].convert(source, tmp_path / "hm")
    assert (tmp_path / "hm" / "images" / "0108775044.jpg").read_bytes() == b"not an image at all"
    assert summary.images == 3


def test_link_shares_the_file_and_falls_back_to_a_copy(tmp_path, monkeypatch):
    source = draw(tmp_path / "source", "1.jpg")
    put_images({"1": source / "1.jpg"}, tmp_path / "linked", link=True)
    assert os.path.samefile(source / "1.jpg", tmp_path / "linked" / "1.jpg")

    def refuse(*_):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    put_images({"1": source / "1.jpg"}, tmp_path / "copied", link=True)
    copy = tmp_path / "copied" / "1.jpg"
    assert copy.read_bytes() == (source / "1.jpg").read_bytes()
    assert not copy.is_symlink()
    assert not os.path.samefile(source / "1.jpg", copy)


def test_same_images_sees_a_changed_a_missing_and_an_added_one(tmp_path):
    source = draw(tmp_path / "source", "1.jpg", "2.jpg")
    images = {"1": source / "1.jpg", "2": source / "2.jpg"}
    put_images(images, tmp_path / "target", link=False)
    assert same_images(images, tmp_path / "target")
    assert not same_images({"1": images["1"]}, tmp_path / "target")
    assert not same_images(images | {"3": images["1"]}, tmp_path / "target")
    (tmp_path / "target" / "2.jpg").write_bytes(b"changed")
    assert not same_images(images, tmp_path / "target")


def test_images_already_in_the_dataset_folder_are_used_where_they_are(tmp_path):
    own = draw(tmp_path / "dataset" / "ml-1m" / "images", "661.jpg")
    before = (own / "661.jpg").stat().st_ino
    summary, out = prepare(tmp_path, "ml-1m")
    assert summary.images == 1
    assert (own / "661.jpg").stat().st_ino == before
    assert yaml.safe_load((out / "ml-1m.yaml").read_text())["image_dir"] == "images"
    assert any("kept as they are" in note for note in summary.notes)
    again, _ = prepare(tmp_path, "ml-1m", force=True)
    assert again.images == 1
    assert (own / "661.jpg").exists()


def test_images_that_are_not_the_sources_are_never_deleted_unasked(tmp_path):
    own = draw(tmp_path / "dataset" / "hm" / "images", "precious.jpg")
    with pytest.raises(DataError, match=r"images: holds different images; .*--force"):
        prepare(tmp_path, "hm")
    assert [path.name for path in own.iterdir()] == ["precious.jpg"]
    prepare(tmp_path, "hm", force=True)
    assert sorted(path.name for path in own.iterdir()) == ["0108775015.jpg", "0999.jpg"]


# --------------------------------------------------------------------------------------------------- the dataset folder


def test_a_different_dataset_is_refused_unless_forced(tmp_path):
    _, out = prepare(tmp_path, "hm")
    before = tree(out)
    with pytest.raises(DataError, match=r"hm: holds a different hm.inter; .*--force"):
        prepare(tmp_path, "hm", transactions="inter_lastweek_5core.csv.gz")
    assert tree(out) == before
    summary, _ = prepare(tmp_path, "hm", transactions="inter_lastweek_5core.csv.gz", force=True)
    assert len(read(out / "hm.inter")) == summary.interactions == 1


def test_force_removes_what_the_new_version_lacks_and_keeps_what_is_not_ours(tmp_path):
    _, out = prepare(tmp_path, "ml-1m")
    (out / "notes.txt").write_text("mine")
    (tmp_path / "raw" / "ml-1m" / "users.dat").unlink()
    with pytest.raises(DataError, match=r"holds a different ml-1m.user"):
        prepare(tmp_path, "ml-1m")
    prepare(tmp_path, "ml-1m", force=True)
    assert sorted(path.name for path in out.iterdir()) == ["ml-1m.inter", "ml-1m.item", "ml-1m.yaml", "notes.txt"]


def test_an_edited_yaml_is_not_overwritten_silently(tmp_path):
    _, out = prepare(tmp_path, "hm")
    (out / "hm.yaml").write_text("text_fields: [prod_name]\n")
    with pytest.raises(DataError, match=r"holds a different hm.yaml"):
        prepare(tmp_path, "hm")
    assert (out / "hm.yaml").read_text() == "text_fields: [prod_name]\n"


def test_a_folder_of_another_dataset_is_refused_before_anything_is_read(tmp_path):
    put(tmp_path / "dataset" / "hm" / "ml-1m.inter", "user_id:token\n")
    (tmp_path / "raw").mkdir()
    with pytest.raises(DataError, match=r"holds another dataset \(ml-1m.inter\)"):
        prepare(tmp_path, "hm")
    assert [path.name for path in (tmp_path / "dataset" / "hm").iterdir()] == ["ml-1m.inter"]


def test_out_is_a_file_or_the_source(tmp_path):
    source = raw_hm(tmp_path / "raw")
    put(tmp_path / "file", "x")
    with pytest.raises(DataError, match=r"file: is a file; --out"):
        CONVERTERS["hm"].convert(source, tmp_path / "file")
    with pytest.raises(DataError, match=r"raw: --out is the folder of raw files itself"):
        CONVERTERS["hm"].convert(source, source)


def test_the_name_is_the_folders_or_given(tmp_path):
    source = raw_hm(tmp_path / "raw")
    assert CONVERTERS["hm"].convert(source, tmp_path / "shop").name == "shop"
    summary = CONVERTERS["hm"].convert(source, tmp_path / "other", name="hm")
    assert (tmp_path / "other" / "hm.inter").is_file()
    assert any("rename the folder other to hm" in note for note in summary.notes)
    for name in ("a/b", "..", "", ".hidden"):
        with pytest.raises(DataError, match="cannot name a dataset"):
            CONVERTERS["hm"].convert(source, tmp_path / "third", name=name)


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "put_images", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, "hm")
    assert list((tmp_path / "dataset").iterdir()) == []


def test_what_a_killed_conversion_left_is_removed_by_the_next(tmp_path):
    ours, others = (tmp_path / "dataset" / name for name in (".hm.0a1b2c3d.rmm", ".hm.partial"))
    for folder in (ours, others):
        put(folder / "new" / "hm.inter", "half of it")
    prepare(tmp_path, "hm")
    assert sorted(path.name for path in ours.parent.iterdir()) == [".hm.partial", "hm"]


def test_a_full_disk_is_one_line_and_keeps_the_old_dataset(tmp_path, monkeypatch):
    _, out = prepare(tmp_path, "hm")
    before = tree(out)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(DiskError, match=r"hm.inter: cannot be written: No space left on device$"):
        prepare(tmp_path, "hm", force=True)
    assert tree(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["hm"]


# ------------------------------------------------------------------------------------------------------- atomic files


def test_clean_text_leaves_no_character_that_breaks_a_line():
    nasty = pd.Series(["a\tb\r\nc\0d\x0be\x85f\u2028g\ufeff", "  x  ", '"quoted" text', "ok \u200d🙂 é", ""])
    assert clean_text(nasty).tolist() == ["a b c d e f g", "x", ' "quoted" text', "ok \u200d🙂 é", ""]


def test_categories_are_written_as_their_values(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "_LINES_AT_ONCE", 2)
    table = pd.DataFrame({"a": ["b\tc", "a", "b\tc", '"q"', "é"], "n": [1, 2, 3, 4, 5]}, index=[5, 6, 7, 9, 11])
    text, codes = tmp_path / "text.item", tmp_path / "codes.item"
    write_table(text, table, {"a": "token", "n": "float"})
    write_table(codes, table.astype({"a": "category"}), {"a": "token", "n": "float"})
    written = text.read_text(encoding="utf-8")
    assert codes.read_text(encoding="utf-8") == written
    assert written == 'a:token\tn:float\nb c\t1\na\t2\nb c\t3\n "q"\t4\né\t5\n'


def test_quotes_and_breaks_in_text_cost_recbole_no_line(tmp_path):
    texts = ['"opened, never closed', 'in the "middle"', 'ends with "', '""', "line\nbreak", "tab\there", "'", "\\"]
    table = pd.DataFrame({"item_id": [str(i) for i in range(len(texts))], "title": texts})
    path = tmp_path / "toy.item"
    write_table(path, table, {"item_id": "token", "title": "token_seq"})
    back = read(path)
    assert back["item_id"].tolist() == table["item_id"].tolist()
    cleaned = [text.replace("\n", " ").replace("\t", " ") for text in texts]
    assert back["title"].str.strip().tolist() == cleaned


def test_numbers_in_atomic_files(tmp_path):
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [0.5, np.nan], "c": [2**53 + 1, -1], "d": ["007", "1e3"]})
    path = tmp_path / "toy.inter"
    write_table(path, table, {"a": "float", "b": "float", "c": "float", "d": "token"})
    assert path.read_text() == "a:float\tb:float\tc:float\td:token\n1\t0.5\t9007199254740993\t007\n2\t\t-1\t1e3\n"


def test_unknown_atomic_type_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="'str' is not an atomic type"):
        write_table(tmp_path / "x.item", pd.DataFrame({"a": ["b"]}), {"a": "str"})


# ------------------------------------------------------------------------------------------------------ the converters


@pytest.mark.parametrize("name", sorted(CONVERTERS))
def test_options_are_the_keywords_of_read(name):
    parser = argparse.ArgumentParser()
    CONVERTERS[name].add_arguments(parser)
    options = vars(parser.parse_args([]))
    parameters = list(inspect.signature(CONVERTERS[name].read).parameters)[1:]
    assert CONVERTERS[name].name == name
    assert [option.flag.removeprefix("--") for option in CONVERTERS[name].options] == parameters
    assert set(options) == {*parameters, *(option.flag.removeprefix("--") for option in COMMON_OPTIONS)}
    switches = {"link", "force"} | ({"images", "allow_private"} if name == "amazon" else set())
    assert {key for key, value in options.items() if value is not None} == switches
    assert not any(value for value in options.values())


def test_nothing_heavy_is_imported_before_a_converter_runs():
    code = (
        "import sys; from recbole_mm.datasets import CONVERTERS; "
        "print([m for m in sys.modules if m.startswith('recbole_mm.datasets.')])"
    )
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, check=True, env=environment, timeout=300, capture_output=True, text=True)
    assert found.stdout == "[]\n"


def test_summary_is_one_line_of_counts(tmp_path):
    summary, out = prepare(tmp_path, "hm")
    first, *notes = str(summary).splitlines()
    assert first == (
        "hm: 2 users, 2 items, 3 interactions; images of 1 items (66.67% of interactions), text of 2 (100.00%); "
        f"written to {out}"
    )
    assert all(note.startswith("  ") for note in notes)


# ---------------------------------------------------------------------------------------------------------- real data

REAL = [
    ("movielens", "ml-100k-mm", "ml-100k-mm", {}, (943, 1_682, 100_000), 0.9991),
    ("hm", "hm-mm", "hm", {}, (900, 5_255, 15_175), 1.0),
    ("hm", "hm-mm", "hm-week", {"transactions": "inter_lastweek_5core.csv.gz"}, (8_925, 3_186, 64_804), 1.0),
    ("hm", "hm-mm", "hm-all", {"transactions": "transactions_2y_all.csv.gz"}, (1_364, 17_033, 31_662), None),
    ("microlens", "microlens-50k-text", "microlens-50k", {}, (50_000, 19_220, 359_708), 0.0),
    ("jsonl", "ml-1m-mm", "ml-1m-mm", {}, (6_040, 3_706, 1_000_209), 0.9986),
    ("jsonl", "amazon-beauty-2014-text", "amazon-beauty", {}, (22_363, 12_101, 198_502), 0.0),
]


@pytest.mark.realdata
@pytest.mark.parametrize(("converter", "folder", "name", "options", "counts", "share"), REAL, ids=[r[2] for r in REAL])
def test_real_data(real_data, tmp_path, converter, folder, name, options, counts, share):
    summary = CONVERTERS[converter].convert(real_data / folder, tmp_path / name, link=True, **options)
    assert (summary.users, summary.items, summary.interactions) == counts
    assert summary.not_in_catalogue == 0
    assert summary.text_share == 1.0
    if share is not None:
        assert round(summary.image_share, 4) == share
    inter = read(tmp_path / name / f"{name}.inter")
    item = read(tmp_path / name / f"{name}.item")
    assert len(inter) == counts[2]
    assert len(item) == summary.catalogue
    assert inter["item_id"].isin(item["item_id"]).all()
