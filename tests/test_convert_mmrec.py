"""`recbole-mm prepare mmrec`: features and a split as given, trained and ranked as given; each fault in one line."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.datasets import CONVERTERS
from recbole_mm.errors import ConfigError, DataError

USERS, ITEMS = 12, 9
ASINS = [f"B00{(item * 7) % ITEMS:07d}" for item in range(ITEMS)]
PEOPLE = [f"A{user:012d}" for user in range(USERS)]


def split() -> pd.DataFrame:
    """Every user has 6 items: 4 for training, 1 for validation, 1 for test; in random order."""
    rows = [
        (user, (user + step) % ITEMS, 1.0 + (user + step) % 5, 1_400_000_000 + 100 * step + user, max(0, step - 3))
        for user in range(USERS)
        for step in range(6)
    ]
    table = pd.DataFrame(rows, columns=["userID", "itemID", "rating", "timestamp", "x_label"])
    return table.sample(frac=1, random_state=3).reset_index(drop=True)


def features(kind: str) -> np.ndarray:
    """Row = itemID; the first number is the itemID itself."""
    width, dtype = (4, np.float64) if kind == "image" else (3, np.float32)
    matrix = np.random.default_rng(1).normal(size=(ITEMS, width)).astype(dtype)
    matrix[:, 0] = np.arange(ITEMS)
    return matrix


def raw(root: Path, mappings: bool = True, texts: bool = True) -> Path:
    root.mkdir(parents=True)
    split().to_csv(root / "baby.inter", sep="\t", index=False)
    for kind in ("image", "text"):
        np.save(root / f"{kind}_feat.npy", features(kind))
    if mappings:
        numbers = np.random.default_rng(2).permutation(ITEMS)
        table = pd.DataFrame({"asin": [ASINS[number] for number in numbers], "itemID": numbers})
        table.to_csv(root / "i_id_mapping.csv", sep="\t", index=False)
        pd.DataFrame({"user_id": PEOPLE, "userID": range(USERS)}).to_csv(root / "u_id_mapping.csv", index=False)
    if texts:
        meta = pd.DataFrame({"itemID": range(ITEMS), "title": [f'The "{item}"\n&amp; more' for item in range(ITEMS)]})
        meta["categories"] = "[['Baby', 'Toys'], ['Baby']]"
        meta["brand"] = ["Acme", "[x"] + [""] * (ITEMS - 2)
        meta["price"] = ["3.5", *[""] * (ITEMS - 1)]
        meta["salesRank"] = "{'Baby': 1}"
        meta.iloc[::-1].to_csv(root / "meta-baby.csv", index=False)
    return root


def prepare(source: Path, out: Path, **options):
    return CONVERTERS["mmrec"].convert(source, out, **options)


def read(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
    return table.rename(columns=lambda column: column.split(":")[0])


def settings(tmp_path: Path, **more) -> dict:
    quick = {"data_path": str(tmp_path / "data"), "checkpoint_dir": str(tmp_path / "saved"), "epochs": 2}
    return quick | {"topk": [3], "valid_metric": "NDCG@3", "show_progress": False, "state": "WARNING"} | more


# ------------------------------------------------------------------------------------------------------ what is written


def test_the_split_is_written_as_it_was_given(tmp_path):
    out = tmp_path / "baby"
    summary = prepare(raw(tmp_path / "raw"), out)
    table = split()
    for label, name in enumerate(("train", "valid", "test")):
        part = table[table["x_label"] == label]
        written = read(out / f"baby.{name}.inter")
        assert written["user_id"].tolist() == [PEOPLE[user] for user in part["userID"]]
        assert written["item_id"].tolist() == [ASINS[item] for item in part["itemID"]]
        assert written["timestamp"].astype(int).tolist() == part["timestamp"].tolist()
    assert len(read(out / "baby.inter")) == summary.interactions == len(table)
    assert yaml.safe_load((out / "baby.yaml").read_text()) == {
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
        "text_fields": ["title", "brand", "categories"],
        "image_dir": None,
        "modalities": ["text"],
        "benchmark_filename": ["train", "valid", "test"],
        "item_features": {
            "image": {"file": "image_feat.npy", "ids": "item_ids.txt"},
            "text": {"file": "text_feat.npy", "ids": "item_ids.txt"},
        },
    }
    assert "the split is the source's: 48 train, 12 valid, 12 test" in str(summary)


def test_features_are_plain_float32_beside_their_ids(tmp_path):
    prepare(raw(tmp_path / "raw"), tmp_path / "baby")
    assert (tmp_path / "baby" / "item_ids.txt").read_text().split() == ASINS
    for kind in ("image", "text"):
        matrix = np.load(tmp_path / "baby" / f"{kind}_feat.npy", allow_pickle=False)
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix, features(kind).astype(np.float32))


def test_texts_in_words(tmp_path):
    summary = prepare(raw(tmp_path / "raw"), tmp_path / "baby")
    item = read(tmp_path / "baby" / "baby.item")
    assert item["item_id"].tolist() == ASINS
    assert item.iloc[0].to_dict() == {
        "item_id": ASINS[0],
        "title": 'The "0" & more',
        "brand": "Acme",
        "categories": "Baby > Toys",
        "price": "3.5",
    }
    assert item.loc[1, "brand"] == "[x"
    assert summary.items_with_text == ITEMS


def test_without_mappings_and_texts_ids_are_the_numbers(tmp_path):
    summary = prepare(raw(tmp_path / "raw", mappings=False, texts=False), tmp_path / "baby")
    assert set(read(tmp_path / "baby" / "baby.inter")["item_id"]) == {str(item) for item in range(ITEMS)}
    assert (tmp_path / "baby" / "item_ids.txt").read_text().split() == [str(item) for item in range(ITEMS)]
    assert not (tmp_path / "baby" / "baby.item").exists()
    assert (summary.users, summary.items) == (USERS, ITEMS)


def test_one_feature_file_commas_no_times_and_pictures(tmp_path):
    source = raw(tmp_path / "raw", texts=False)
    (source / "text_feat.npy").unlink()
    split().drop(columns=["timestamp", "rating"]).to_csv(source / "baby.inter", index=False)
    (source / "images").mkdir()
    Image.new("RGB", (4, 4)).save(source / "images" / f"{ASINS[2]}.png")
    meta = pd.DataFrame({"asin": [ASINS[4], "B0NOBODY00"], "description": ["Soft.", "x"]})
    meta.to_csv(source / "texts.csv", index=False)
    summary = prepare(source, tmp_path / "baby", items="texts.csv")
    own = yaml.safe_load((tmp_path / "baby" / "baby.yaml").read_text())
    assert list(own["item_features"]) == ["image"]
    assert own["load_col"]["inter"] == ["user_id", "item_id"]
    assert own["modalities"] == ["image", "text"]
    assert (summary.images, summary.items_with_text) == (1, 1)
    assert "has no times" in str(summary)
    assert "1 lines of texts.csv are about no item" in str(summary)


# -------------------------------------------------------------------------------------------------------------- it runs


@pytest.mark.parametrize("mappings", [True, False])
def test_features_meet_their_items(tmp_path, mappings):
    prepare(raw(tmp_path / "raw", mappings), tmp_path / "data" / "baby")
    config = Config("SASRecContent", "baby", config_dict=settings(tmp_path, benchmark_filename=None))
    from recbole_mm.llm.features import load_features

    dataset = create_dataset(config)
    found = load_features(config["item_features"], dataset.content, compute=None)
    tokens = ASINS if mappings else [str(item) for item in range(ITEMS)]
    for item, token in enumerate(dataset.item_tokens()):
        for kind in ("image", "text"):
            expected = features(kind)[tokens.index(token)] if item else 0
            np.testing.assert_allclose(found[kind][item], np.float32(expected))


@pytest.mark.parametrize("texts", [True, False])
def test_bpr_trains_and_ranks_with_the_given_split(tmp_path, texts):
    prepare(raw(tmp_path / "raw", texts=texts), tmp_path / "data" / "baby")
    outcome = recbole_mm.run("BPR", "baby", config_dict=settings(tmp_path))
    table = split()
    tokens = outcome.dataset.item_tokens()
    names = outcome.dataset.field2id_token["user_id"]

    def pairs(users, items) -> set[tuple[str, str]]:
        return {(names[user], tokens[item]) for user, item in zip(users, items)}

    expected = [
        {(PEOPLE[user], ASINS[item]) for user, item, *_, found in table.itertuples(index=False) if found == label}
        for label in range(3)
    ]
    for phase, label in ((outcome.splits.valid, 1), (outcome.splits.test, 2)):
        ranked = phase.users
        users = np.repeat(ranked.user_ids, np.diff(ranked.positives.offsets))
        assert pairs(users, ranked.positives.items) == expected[label]
        users = np.repeat(ranked.user_ids, np.diff(ranked.history.offsets))
        assert pairs(users, ranked.history.items) == set().union(*expected[:label]), "what is masked"
    assert 0 <= outcome.test_result["ndcg@3"] <= 1


def test_a_model_of_sequences_says_that_the_split_is_not_for_it(tmp_path):
    prepare(raw(tmp_path / "raw"), tmp_path / "data" / "baby")
    with pytest.raises(ConfigError, match=r"wants files of samples, with a column item_id_list.*benchmark_filename=~"):
        recbole_mm.run("SASRec", "baby", config_dict=settings(tmp_path))


def test_items_cannot_be_dropped_from_a_given_split(tmp_path):
    prepare(raw(tmp_path / "raw"), tmp_path / "data" / "baby")
    with pytest.raises(ConfigError, match="missing_modality: drop cannot be had with benchmark_filename"):
        recbole_mm.run("BPR", "baby", config_dict=settings(tmp_path, missing_modality="drop"))


def test_the_same_rows_can_be_split_anew(tmp_path):
    prepare(raw(tmp_path / "raw"), tmp_path / "data" / "baby")
    outcome = recbole_mm.run("FPMC", "baby", config_dict=settings(tmp_path, benchmark_filename=None))
    users = outcome.splits.test.users
    tokens, names = outcome.dataset.item_tokens(), outcome.dataset.field2id_token["user_id"]
    held = dict(zip(names[users.user_ids], (tokens[item] for item in users.positives.items)))
    assert held == {PEOPLE[user]: ASINS[(user + 5) % ITEMS] for user in range(USERS)}


# ------------------------------------------------------------------------------------------------------------ bad input


def table(**changes):
    """Writes the .inter file with some values of some rows replaced: column=(row, value) or None to drop it."""

    def write(source: Path) -> None:
        found = split().astype(object)
        for column, change in changes.items():
            if change is None:
                found = found.drop(columns=column)
            else:
                found.loc[change[0], column] = change[1]
        found.to_csv(source / "baby.inter", sep="\t", index=False)

    return write


def repeated(source: Path) -> None:
    found = split()
    again = found.iloc[[0]].assign(x_label=2 - found["x_label"].iloc[0])
    pd.concat([found, again]).to_csv(source / "baby.inter", sep="\t", index=False)


def only(label: int):
    def write(source: Path) -> None:
        found = split()
        found[found["x_label"] != label].to_csv(source / "baby.inter", sep="\t", index=False)

    return write


def array(matrix, name: str = "image_feat.npy"):
    return lambda source: np.save(source / name, matrix, allow_pickle=True)


def mapping(name: str, **columns):
    return lambda source: pd.DataFrame(columns).to_csv(source / name, sep="\t", index=False)


def text(name: str, content: str | bytes):
    data = content.encode() if isinstance(content, str) else content
    return lambda source: (source / name).write_bytes(data)


def without(*names: str):
    def remove(source: Path) -> None:
        for name in names:
            (source / name).unlink()

    return remove


def nan_at_5() -> np.ndarray:
    matrix = features("image")
    matrix[5, 2] = np.nan
    return matrix


BAD_INPUT = [
    (without("baby.inter"), r"raw: no .inter file with userID, itemID and x_label"),
    (text("other.inter", "x"), r"baby.inter, other.inter all fit; choose one with --interactions"),
    (text("baby.inter", ""), r"baby.inter: the file is empty"),
    (table(x_label=None), r"baby.inter, line 1: column x_label is missing; expected userID, itemID, x_label"),
    (table(userID=None), r"line 1: column userID is missing"),
    (table(x_label=(4, "")), r"baby.inter, line 6: x_label is missing"),
    (
        table(x_label=(4, 3)),
        r"baby.inter, line 6: x_label 3 is none of 0 \(training\), 1 \(valid",
    ),
    (table(x_label=(4, "train")), r"baby.inter, line 6: x_label 'train' is not a number"),
    (table(userID=(4, -1)), r"baby.inter, line 6: userID -1 is negative"),
    (table(itemID=(4, -1)), r"baby.inter, line 6: itemID -1 is negative"),
    (table(itemID=(4, "B00")), r"baby.inter, line 6: itemID 'B00' is not a number"),
    (table(timestamp=(4, "noon")), r"baby.inter, line 6: timestamp 'noon' is not a number"),
    (repeated, r"baby.inter, line 74: user \d+ has item \d already; keep one of the lines"),
    (only(0), r"baby.inter: no line has x_label 0 \(train\)"),
    (only(1), r"baby.inter: no line has x_label 1 \(valid\)"),
    (only(2), r"baby.inter: no line has x_label 2 \(test\)"),
    (without("image_feat.npy", "text_feat.npy"), r"raw: neither image_feat.npy nor text_feat.npy"),
    (array(np.array([{"a": 1}], dtype=object)), r"image_feat.npy: not a plain .npy array .*pickles are never loaded"),
    (text("text_feat.npy", b"\x80\x04}."), r"text_feat.npy: not a plain .npy array .*pickles are never loaded"),
    (text("text_feat.npy", b""), r"text_feat.npy: not a plain .npy array"),
    (array(np.zeros(ITEMS)), r"image_feat.npy: float64 of shape \(9,\), not numbers of shape \(items, d\)"),
    (array(np.full((ITEMS, 2), "x")), r"image_feat.npy: <U1 of shape \(9, 2\), not numbers"),
    (array(np.zeros((ITEMS, 0))), r"image_feat.npy: float64 of shape \(9, 0\)"),
    (array(nan_at_5()), r"image_feat.npy: row 5 holds NaN or infinity"),
    (array(np.zeros((ITEMS + 1, 4))), r"the feature files differ in rows \(image_feat.npy 10, text_feat.npy 9\)"),
    (table(itemID=(4, ITEMS)), r"baby.inter: itemID 9 is not in i_id_mapping.csv; do the files belong together\?"),
    (table(userID=(4, "1.5")), r"baby.inter, line 6: userID '1.5' is not a whole number"),
    (table(x_label=(4, "0.5")), r"baby.inter, line 6: x_label '0.5' is not a whole number"),
    (table(userID=(4, 99)), r"baby.inter: userID 99 is not in u_id_mapping.csv"),
    (
        mapping("i_id_mapping.csv", asin=[*ASINS, "B0MORE0000"], itemID=range(ITEMS + 1)),
        r"image_feat.npy: 9 rows, but i_id_mapping.csv lists 10 items",
    ),
    (mapping("i_id_mapping.csv", asin=ASINS, itemID=range(1, ITEMS + 1)), r"i_id_mapping.csv: itemID is not 0 to 8"),
    (mapping("i_id_mapping.csv", asin=ASINS, itemID=[0, 0, *range(2, ITEMS)]), r"mapping.csv, line 3: '0' was already"),
    (
        mapping("i_id_mapping.csv", asin=[ASINS[0], *ASINS[:-1]], itemID=range(ITEMS)),
        r"mapping.csv, line 3: 'B000000000' was already listed; one line per item",
    ),
    (
        mapping("u_id_mapping.csv", user=PEOPLE, userID=range(USERS)),
        r"mapping.csv, line 1: column user_id is missing",
    ),
    (
        mapping("i_id_mapping.csv", asin=["a\x07", *ASINS[1:]], itemID=range(ITEMS)),
        r"line 2: asin .*control char",
    ),
    (text("meta-baby.csv", "itemID,size\n0,3\n"), r"meta-baby.csv, line 1: none of the columns title, brand, "),
    (text("meta-baby.csv", "itemID,title\n77,x\n"), r"meta-baby.csv: describes none of the 9 items"),
    (text("meta-baby.csv", "itemID,title\n1,x\n1,y\n"), r"line 3: item_id '1' was already listed on line 2"),
    (text("meta-baby.csv", "title\nx\n"), r"meta-baby.csv, line 1: column asin is missing"),
    (text("meta-more.csv", "x"), r"meta-baby.csv, meta-more.csv all fit; choose one with --items"),
]


@pytest.mark.parametrize(("change", "message"), BAD_INPUT, ids=[message for _, message in BAD_INPUT])
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, change, message):
    source = raw(tmp_path / "raw")
    change(source)
    with pytest.raises(DataError, match=message) as caught:
        prepare(source, tmp_path / "dataset" / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dataset").exists()


def test_item_ids_beyond_the_features_without_a_mapping(tmp_path):
    source = raw(tmp_path / "raw", mappings=False, texts=False)
    table(itemID=(4, 12))(source)
    with pytest.raises(DataError, match=r"image_feat.npy: 9 rows, but baby.inter has itemID 12; row = itemID"):
        prepare(source, tmp_path / "out")


# ----------------------------------------------------------------------------------------------------- the whole folder


def test_twice_gives_the_same_bytes_and_another_split_is_refused(tmp_path):
    source, out = raw(tmp_path / "raw"), tmp_path / "baby"
    prepare(source, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    prepare(source, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    found = split()
    found["x_label"] = found["x_label"].map({0: 0, 1: 2, 2: 1})
    found.to_csv(source / "baby.inter", sep="\t", index=False)
    with pytest.raises(DataError, match=r"holds a different baby.valid.inter"):
        prepare(source, out)
    np.save(source / "text_feat.npy", features("text") + 1)
    prepare(source, out, force=True)
    assert (out / "baby.test.inter").read_bytes() == before["baby.valid.inter"]
    assert np.load(out / "text_feat.npy")[0, 0] == 1


def test_another_source_takes_the_split_away(tmp_path):
    out = tmp_path / "baby"
    prepare(raw(tmp_path / "raw"), out)
    (tmp_path / "lines.txt").write_text("u a b c\n")
    CONVERTERS["sequences"].convert(tmp_path / "lines.txt", out, force=True)
    assert not list(out.glob("baby.*.inter"))


def test_from_the_command_line(tmp_path, capsys):
    source = raw(tmp_path / "raw")
    assert main(["prepare", "mmrec", f"--source={source}", f"--out={tmp_path / 'baby'}"]) == 0
    assert "baby: 12 users, 9 items, 72 interactions" in capsys.readouterr().out
    np.save(source / "image_feat.npy", np.array([None]), allow_pickle=True)
    assert main(["prepare", "mmrec", f"--source={source}", f"--out={tmp_path / 'other'}"]) == 2
    assert "pickles are never loaded" in capsys.readouterr().err
