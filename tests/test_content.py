"""Item text and images by item id: raw columns, composed text, missing and broken items, fingerprints."""

from __future__ import annotations

import logging
import os
import pickle
import unicodedata
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recbole_mm.data.content import ContentSource, ItemContent
from recbole_mm.data.item_table import ItemTable
from recbole_mm.data.item_text import clean_text, label_of
from recbole_mm.errors import ConfigError, DataError

HEADER = "item_id:token\tmovie_title:token_seq\trelease_year:token\titem_brand:token\tpicture:token\tvector:float_seq"
ROWS = [
    "1\tToy Story\t1995\tPixar\timages/1.png\t0.1 0.2",
    "2\tGoldenEye\t\t\timages/2.png\t0.1 0.2",
    "3\t\t\t\t\t",
    "007\tNA\tnull\t nan \timages/none.png\t0.3 0.4",
]
PAD = "[PAD]"


class Settings(dict):
    """Answers None for a setting that is not there, as RecBole's config does."""

    def __missing__(self, key):
        return None


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "shop"
    (root / "images").mkdir(parents=True)
    write_items(root, ROWS)
    for name, color in (("1", "red"), ("2", "green"), ("007", "blue")):
        Image.new("RGB", (20, 30), color).save(root / "images" / f"{name}.png")
    return root


def write_items(root: Path, rows: list[str], header: str = HEADER) -> None:
    (root / f"{root.name}.item").write_bytes("\n".join([header, *rows, ""]).encode())


def settings(root: Path, **given) -> Settings:
    usual = {"data_path": str(root), "dataset": root.name, "ITEM_ID_FIELD": "item_id", "field_separator": "\t"}
    usual |= {
        "text_fields": ["movie_title", "release_year", "item_brand"],
        "image_dir": "images",
        "show_progress": False,
    }
    return Settings(usual | given)


def content_of(root: Path, tokens=("1", "2", "3", "007"), **given) -> ItemContent:
    return ItemContent(ContentSource.from_config(settings(root, **given)), [PAD, *tokens])


class TestTable:
    def test_values_stay_as_written(self, folder):
        table = ItemTable.read(folder / "shop.item")
        assert len(table) == 4
        assert table.fields("007") == {
            "movie_title": "NA", "release_year": "null", "item_brand": " nan ", "picture": "images/none.png",
            "vector": "0.3 0.4",
        }  # fmt: skip
        assert table.fields("7") == {}
        assert "7" not in table

    def test_quotes_line_separators_and_byte_order_mark(self, tmp_path):
        path = tmp_path / "x.item"
        path.write_bytes('\ufeffitem_id:token\tt:token_seq\r\n1\t"open\r\n\r\n3\ta\x1d\x85b\u2028c\r\n'.encode())
        table = ItemTable.read(path, encoding="utf-8")
        assert [table.value(item, "t") for item in "13"] == ['"open', "a\x1d\x85b\u2028c"]

    def test_other_separator_id_column_and_encoding(self, tmp_path):
        path = tmp_path / "x.item"
        path.write_bytes("name:token_seq,sku:token\ncafé,7\n".encode("latin-1"))
        assert ItemTable.read(path, "sku", ",", "latin-1").fields("7") == {"name": "café"}
        with pytest.raises(DataError, match="line 2: not utf-8 text; set `encoding`"):
            ItemTable.read(path, "sku", ",", "utf-8")

    @pytest.mark.parametrize(
        ("header", "message"),
        [
            ("item_id\tmovie_title:token_seq", "name:type"),
            ("item_id:token\tmovie_title:text", "name:type"),
            ("itemid:token\tmovie_title:token_seq", "no column 'item_id' .*did you mean 'itemid'"),
            ("item_id:token\ta:token\ta:token", "'a' is named twice"),
            ("item_id:token_seq\ta:token", "column item_id:token_seq holds ids; write item_id:token"),
        ],
    )
    def test_bad_headers(self, tmp_path, header, message):
        write_items(tmp_path, ["1\tx"], header)
        with pytest.raises(DataError, match=message):
            ItemTable.read(tmp_path / f"{tmp_path.name}.item")

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("5\ta\tb\tc\td\te\tf", "line 3: 7 fields, but line 1 names 6"),
            ("9\tNine", "line 3: 2 fields, but line 1 names 6"),
            ("\ta\tb\tc\td\te", "line 3: the id in column item_id is empty"),
            ("[PAD]\ta\tb\tc\td\te", r"line 3: the id in column item_id is \[PAD\]"),
            ("5\ta\0\tb\tc\td\te", "line 3: a NUL"),
            ("5\ta\rb\tb\tc\td\te", "line 3: a carriage return inside"),
        ],
    )
    def test_bad_rows_are_named_by_line(self, folder, row, message):
        write_items(folder, [ROWS[0], row])
        with pytest.raises(DataError, match=rf"shop\.item, {message}"):
            ItemTable.read(folder / "shop.item")

    def test_identical_duplicates_are_dropped_and_counted(self, folder, caplog):
        write_items(folder, [*ROWS, ROWS[0], ROWS[0]])
        assert len(ItemTable.read(folder / "shop.item")) == 4
        assert "2 rows repeat another one" in caplog.text

    def test_conflicting_duplicates_name_the_id_and_the_lines(self, folder):
        write_items(folder, [*ROWS, "2\tGoldeneye\t\t\t\t"])
        with pytest.raises(DataError, match=r"shop\.item: item_id '2' is described differently on lines 3 and 6"):
            ItemTable.read(folder / "shop.item")


class TestText:
    def test_lines_from_the_named_columns(self, folder):
        content = content_of(folder)
        assert content.text(1) == "Title: Toy Story\nRelease year: 1995\nBrand: Pixar"
        assert content.text(2) == "Title: GoldenEye"
        assert content.text(3) is None
        assert content.text(4) == "Title: NA\nRelease year: null\nBrand: nan"
        assert content.text(0) is None

    @pytest.mark.parametrize(
        ("column", "label"),
        [("movie_title", "Title"), ("item_brand_name", "Brand name"), ("class", "Class"), ("item_", "Item_")],
    )  # fmt: skip
    def test_labels(self, column, label):
        assert label_of(column) == label

    def test_without_text_fields_all_columns_of_words_are_used(self, folder, caplog):
        with caplog.at_level(logging.INFO):
            content = content_of(folder, text_fields=[], image_field="picture", image_dir=None)
        assert content.text(1) == "Title: Toy Story\nRelease year: 1995\nBrand: Pixar"
        assert "text_fields is not set: the text of an item is movie_title, release_year, item_brand" in caplog.text

    @pytest.mark.parametrize("given", [{"text_fields": ["title"]}, {"text_template": "{title}"}])
    def test_missing_column_suggests_the_nearest(self, folder, given):
        with pytest.raises(
            DataError, match=r"shop\.item: text_(fields|template) names the column 'title'; did you mean"
        ):
            content_of(folder, **given)

    def test_template(self, folder):
        content = content_of(folder, text_template="{movie_title} ({release_year}) {{by}} {item_brand}\nend")
        assert content.text(1) == "Toy Story (1995) {by} Pixar\nend"
        assert content.text(2) == "GoldenEye () {by} \nend"
        assert content.text(3) is None

    @pytest.mark.parametrize(
        "template",
        [
            "{movie_title.__class__}", "{movie_title[0]}", "{movie_title!r}", "{movie_title:>10}", "{}", "{movie_title",
            "no column", "{movie_title:{release_year}}",
        ],
    )  # fmt: skip
    def test_template_allows_plain_columns_only(self, folder, template):
        with pytest.raises(ConfigError, match="text_template"):
            content_of(folder, text_template=template)

    def test_control_characters_go_and_unicode_stays(self):
        assert clean_text("a\0b\x07c\x1bd\x7f\x9be") == "abcde"
        assert clean_text(" a\rb\x0b\x0cc\x85d\u2028e ") == "a b c d e"
        for kept in ("שלום עולם", "مرحبا\u200f!", "👩\u200d👩\u200d👧 ❤\ufe0f", "日本語", "Ünïcödé", "\u200eLRM"):
            assert clean_text(kept) == kept
        assert clean_text(unicodedata.normalize("NFD", "Amélie")) == "Amélie"

    @pytest.mark.parametrize("title", ["a\x01b\x07", "שלום", "👩\u200d👧 film", "Ame\u0301lie"])
    def test_difficult_titles_from_a_file(self, folder, title):
        write_items(folder, [f"1\t{title}\t1999\t\t\t"])
        content = content_of(folder, ("1",))
        assert content.text(1) == f"Title: {clean_text(title)}\nRelease year: 1999"
        assert content.fields(1)["movie_title"] == title

    def test_a_value_of_control_characters_is_no_text(self, folder):
        write_items(folder, ["1\t\x02\x01 \t\t\t\t"])
        content = content_of(folder, ("1",))
        assert content.text(1) is None
        assert content.missing()["text"] == ["1"]

    def test_a_megabyte_of_text_is_cut_and_counted(self, folder, caplog):
        write_items(folder, [*ROWS, f"8\t{'word ' * 200_000}\t\t\t\t"])
        content = content_of(folder, ("1", "8"), max_text_chars=100)
        assert content.text(1).startswith("Title: Toy")
        assert len(content.text(2)) <= 100
        assert content.text(2).startswith("Title: word word")
        content.report_problems()
        assert "1 texts are cut to max_text_chars (8)" in caplog.text

    def test_no_item_file(self, folder, caplog):
        (folder / "shop.item").unlink()
        content = content_of(folder)
        assert content.text(1) is None
        assert content.fields(1) == {}
        assert content[1].image is not None
        assert content.missing()["text"] == ["1", "2", "3", "007"]
        assert "no .item file: no item has a text" in caplog.text


class TestImages:
    def test_record_of_padding_and_of_an_item(self, folder):
        content = content_of(folder)
        assert (content[0].item_id, content[0].text, content[0].image) == (PAD, None, None)
        assert content.image_bytes(0) is None
        assert content[1].image.size == (20, 30)
        assert content[1].image.getpixel((5, 5)) == (255, 0, 0)
        assert content.image_bytes(1) == (folder / "images" / "1.png").read_bytes()
        assert content[3].image is None

    def test_zip_and_column(self, folder):
        with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
            archive.write(folder / "images" / "1.png", "x/2.png")
        zipped = content_of(folder, image_dir=None, image_zip="pictures.zip")
        assert zipped[2].image.getpixel((5, 5)) == (255, 0, 0)
        assert zipped.missing()["image"] == ["1", "3", "007"]
        column = content_of(folder, image_dir=None, image_field="picture")
        assert column.missing()["image"] == ["3", "007"]
        assert column[2].image.getpixel((5, 5)) == (0, 128, 0)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"image_zip": "x.zip"}, ConfigError, "image_zip and image_dir are both set"),
            ({"image_dir": "posters"}, DataError, "posters does not exist"),
            ({"image_dir": "../other"}, DataError, "leaves the dataset folder"),
            ({"image_dir": None, "image_zip": "../x.zip"}, DataError, "leaves the dataset folder"),
            ({"image_dir": None, "image_field": "pictur"}, DataError, "image_field names .*did you mean 'picture'"),
            ({"image_dir": "..", "image_field": "picture"}, DataError, "leaves the dataset folder"),
            ({"modalities": ["image", "sound"]}, ConfigError, "'sound' is not a modality"),
            ({"missing_modality": "mak"}, ConfigError, "did you mean 'mask'"),
        ],
    )
    def test_bad_settings(self, folder, given, error, message):
        (folder.parent / "other").mkdir()
        with pytest.raises(error, match=message) as caught:
            content_of(folder, **given)
        assert "\n" not in str(caught.value)

    def test_a_column_path_outside_the_dataset_is_refused_by_name(self, folder):
        write_items(folder, ["1\tx\t\t\t../../etc/passwd\t"])
        with pytest.raises(DataError, match=r"item 1: the image path '\.\./\.\./etc/passwd' leaves"):
            content_of(folder, image_dir=None, image_field="picture")

    def test_an_absolute_image_dir_is_allowed(self, folder, tmp_path):
        (tmp_path / "posters").mkdir()
        Image.new("RGB", (7, 7)).save(tmp_path / "posters" / "2.jpg")
        assert content_of(folder, image_dir=str(tmp_path / "posters"))[2].image.size == (7, 7)

    def test_no_image_source_is_one_warning(self, folder, caplog):
        content = content_of(folder, image_dir=None)
        assert content.missing()["image"] == ["1", "2", "3", "007"]
        assert caplog.text.count("every image is missing") == 1

    def test_ml_100k_gets_drawn_cards_and_says_so(self, tmp_path, caplog):
        root = tmp_path / "ml-100k"
        root.mkdir()
        write_items(root, ROWS)
        content = content_of(root, image_dir=None)
        assert content[1].image.size == (182, 268)
        assert content.missing()["image"] == ["3"]
        assert "DRAWN TITLE CARD, not a poster" in caplog.text


class TestMissingModality:
    @pytest.fixture
    def broken(self, folder):
        data = (folder / "images" / "1.png").read_bytes()
        (folder / "images" / "1.png").write_bytes(data[: len(data) // 2])
        (folder / "images" / "2.png").write_bytes(b"")
        return folder

    def test_mask_counts_and_reports_once(self, broken, caplog):
        content = content_of(broken)
        assert content.problems == {}
        assert [record.image is None for record in content] == [True, True, True, True, False]
        assert sorted(content.problems) == ["1", "2"]
        assert content.problems["2"] == "the image file is empty"
        content.report_problems()
        content.report_problems()
        (line,) = [record.getMessage() for record in caplog.records if "item content:" in record.getMessage()]
        assert line.startswith(
            "item content: 1 of 4 items have no image (3); 1 of 4 items have no text (3); 2 images are "
        )
        assert "2: the image file is empty" in line

    def test_nothing_to_report(self, folder, caplog):
        content = content_of(folder, ("1", "2"))
        assert len(content[:]) == 3
        content.report_problems()
        assert "item content" not in caplog.text

    def test_error_names_the_missing_item(self, folder):
        with pytest.raises(DataError, match="1 of 4 items have no image, such as item 3"):
            content_of(folder, missing_modality="error")
        with pytest.raises(DataError, match="no text, such as item 3"):
            content_of(folder, missing_modality="error", modalities=["text"])

    def test_error_names_the_broken_item(self, broken):
        content = content_of(broken, ("1", "2", "007"), missing_modality="error")
        assert content[3].image is not None
        for index in (1, 2):
            with pytest.raises(DataError, match=f"item {index}: .*missing_modality: error") as caught:
                content[index]
            assert "\n" not in str(caught.value)

    def test_drop_finds_missing_and_broken(self, broken):
        source = ContentSource.from_config(settings(broken, missing_modality="drop"))
        assert source.unusable(np.array(["007", "3", "2", "1", "99"])) == ["3", "2", "1", "99"]
        text_only = ContentSource.from_config(settings(broken, missing_modality="drop", modalities=["text"]))
        assert text_only.unusable(["007", "3", "2", "1"]) == ["3"]
        image_only = ContentSource.from_config(settings(broken, missing_modality="drop", modalities=["image"]))
        assert image_only.unusable(["1", "007", "3"]) == ["1", "3"]

    def test_too_large_image_counts_as_broken(self, folder):
        content = content_of(folder, max_image_pixels=100)
        assert content[1].image is None
        assert "over the limit of 100" in content.problems["1"]


class TestItemContent:
    def test_is_a_sequence(self, folder):
        content = content_of(folder)
        assert len(content) == 5
        assert content[-1].item_id == "007"
        assert [record.item_id for record in content[1:3]] == ["1", "2"]
        assert content[np.int64(2)].text == "Title: GoldenEye"
        with pytest.raises(IndexError, match="item 5 of 5"):
            content[5]
        with pytest.raises(TypeError):
            content["1"]

    def test_fingerprint_follows_text_image_and_modalities(self, folder):
        prints = [content_of(folder).fingerprint(i) for i in range(5)]
        assert len(set(prints[1:])) == 4
        assert prints == [content_of(folder).fingerprint(i) for i in range(5)]
        write_items(folder, [ROWS[0].replace("Toy", "TOY"), *ROWS[1:]])
        Image.new("RGB", (20, 30), "white").save(folder / "images" / "2.png")
        changed = content_of(folder)
        assert [changed.fingerprint(i) == prints[i] for i in range(5)] == [True, False, False, True, True]

    def test_fingerprint_ignores_what_is_not_used(self, folder):
        text_only = [content_of(folder).only("text").fingerprint(i) for i in range(5)]
        both = [content_of(folder).fingerprint(i) for i in range(5)]
        assert all(a != b for a, b in zip(text_only, both))
        Image.new("RGB", (20, 30), "white").save(folder / "images" / "1.png")
        write_items(folder, [row.replace("0.1 0.2", "9 9") for row in ROWS])
        assert [content_of(folder).only("text").fingerprint(i) for i in range(5)] == text_only
        assert [content_of(folder, modalities=["text"]).fingerprint(i) for i in range(5)] == text_only
        assert content_of(folder).fingerprint(1) != both[1]

    def test_fingerprint_does_not_decode(self, folder):
        (folder / "images" / "1.png").write_bytes(b"not an image")
        content = content_of(folder)
        assert content.fingerprint(1)
        assert content.problems == {}

    def test_same_content_same_fingerprint_whatever_the_id(self, folder):
        write_items(folder, ["1\tSame\t\t\t\t", "2\tSame\t\t\t\t"])
        content = content_of(folder, ("1", "2")).only("text")
        assert content.fingerprint(1) == content.fingerprint(2)

    def test_fewer_modalities(self, folder):
        content = content_of(folder)
        assert content.only("text")[1].image is None
        assert content.only("text").image_bytes(1) is None
        assert content.only("text")[1].text is not None
        assert content.only("image")[1].text is None
        assert list(content.only("image").missing()) == ["image"]
        assert content_of(folder, modalities=["text"], image_dir="none")[1].image is None
        with pytest.raises(ConfigError, match="'image' is not among the dataset's"):
            content_of(folder, modalities=["text"]).only("image")

    def test_coverage(self, folder):
        (folder / "images" / "007.png").write_bytes(b"broken")
        content = content_of(folder)
        counts = np.array([99, 5, 3, 2, 0])
        before = content.coverage(counts)
        assert (before.items, before.items_with_image, before.items_with_text) == (4, 3, 3)
        assert before.interactions_with_image == pytest.approx(0.8)
        assert str(before) == ("4 items: image 3 (75.0%; 80.0% of interactions), text 3 (75.0%; 80.0% of interactions)")
        assert content[4].image is None
        assert content.coverage(counts).items_with_image == 2
        assert content.only("text").coverage(counts).items_with_image == 0
        with pytest.raises(ValueError, match="interaction counts for 5 items"):
            content.coverage(counts[1:])

    def test_threads_and_pickling(self, folder):
        content = pickle.loads(pickle.dumps(content_of(folder)))
        indices = [1, 2, 4] * 60
        with ThreadPoolExecutor(8) as pool:
            records = list(pool.map(content.__getitem__, indices))
        colors = {1: (255, 0, 0), 2: (0, 128, 0), 4: (0, 0, 255)}
        assert all(record.image.getpixel((3, 3)) == colors[i] for i, record in zip(indices, records))
        assert [record.item_id for record in records[:3]] == ["1", "2", "007"]


@pytest.mark.realdata
@pytest.mark.skipif(not os.environ.get("RECBOLE_MM_TEST_DATA"), reason="RECBOLE_MM_TEST_DATA is not set")
def test_real_posters(tmp_path):
    raw = Path(os.environ["RECBOLE_MM_TEST_DATA"]) / "ml-100k-mm"
    root = tmp_path / "movies"
    root.mkdir()
    (root / "movies.item").write_bytes((raw / "ml-100k.item").read_bytes())
    given = settings(root, text_fields=["movie_title", "release_year"], image_dir=str((raw / "posters").resolve()))
    source = ContentSource.from_config(given)
    content = ItemContent(source, [PAD, *source.table.column("movie_title")])
    with ThreadPoolExecutor(4) as pool:
        records = list(pool.map(content.__getitem__, range(1, len(content))))
    assert sum(record.image is not None for record in records) == 1636
    assert len(content.missing()["image"]) == 46
    assert content.problems == {}
    assert records[0].text == "Title: Toy Story\nRelease year: 1995"
