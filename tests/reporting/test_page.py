"""What stands on a page is what the folders hold, and nothing of it is markup."""

from __future__ import annotations

import base64
import io
import math
import re

import numpy as np
import pytest
from PIL import Image
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.evaluation.per_user import read_per_user
from recbole_mm.recommending.command import opened
from recbole_mm.recommending.reasons import item_texts_of, reasons_of
from recbole_mm.utils.escaping import one_line
from recbole_mm.utils.files import read_json, write_json
from tests.conftest import TOY_SETTINGS
from tests.encoders import write_sentence_encoder
from tests.reporting.pages import MARKUP, page_of


def test_metrics_are_those_of_the_runs_and_lie_in_their_intervals(page, runs):
    header, *rows = page.rows("Test metrics, with 95% intervals")
    assert header[:3] == ["metric", "SASRec", "Pop"]
    result = {model: read_json(folder / "result.json")["test_result"] for model, folder in runs.items()}
    assert [row[0] for row in rows] == list(result["SASRec"])
    for row in rows:
        for model, cell in zip(runs, row[1:3]):
            value, low, high = map(float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", cell).groups())
            assert value == pytest.approx(result[model][row[0]], abs=1e-4)
            assert low <= value <= high
            assert low < high or value in (0.0, 1.0)


def test_every_section_is_there_and_in_the_contents(page):
    titles = [page.text(at) for at in page.places("h2")]
    wanted = ["Results", "Differences", "Slices", "Users", "Popularity and coverage", "Cases", "Learning curves"]
    assert titles == [*wanted, "Cost", "Settings"]
    assert [page.text(at) for at in page.inside(page.places("nav")[0], "a")] == titles


def test_curves_have_the_epochs_of_training(page):
    rows = page.rows("Training loss of SASRec")
    assert [row[1] for row in rows[1:]] == ["0", "1"]
    assert all(float(row[2]) > 0 for row in rows[1:])


def test_users_are_counted_by_rank(page, runs):
    title = "Share of users whose held-out item is among the first k"
    shares = {(row[0], float(row[1])): float(row[2]) for row in page.rows(title)[1:]}
    for model, folder in runs.items():
        ranks = read_per_user(folder)["rank"].to_numpy()
        for cut in (1, 5, 10):
            assert shares[model, cut] == pytest.approx((ranks <= cut).mean(), abs=1e-4)


def test_wins_and_losses_are_those_of_users(page, runs):
    values = [
        dict(zip(*(read_per_user(folder)[name].to_pylist() for name in ("user_id", "ndcg@10"))))
        for folder in runs.values()
    ]
    ours, theirs = values
    wins, losses = (sum(sign * ours[user] > sign * theirs[user] for user in ours) for sign in (1, -1))
    _, row = page.rows("Users for whom SASRec is better, equal or worse by ndcg@10")
    assert row == ["against Pop", str(wins), str(len(ours) - wins - losses), str(losses)]
    title = "Users for whom SASRec is better, equal or worse by ndcg@10, by item.class"
    parts = page.rows(title)[1:]
    assert [sum(int(row[at]) for row in parts) for at in (1, 2, 3)] == [wins, len(ours) - wins - losses, losses]
    for row in parts:
        assert int(re.search(r"\(([\d,]+) users\)", row[0])[1].replace(",", "")) == sum(map(int, row[1:]))


def test_slices_have_intervals_and_a_kind_of_one_part_is_told(page, runs):
    result = read_json(runs["SASRec"] / "result.json")["slices"]
    rows = page.rows("ndcg@10 by item.class, with 95% intervals")[1:]
    parts = {row[0].rpartition(" (")[0]: row for row in rows if row[1] == "SASRec"}
    assert parts.keys() == result["item.class"].keys()
    for part, row in parts.items():
        value, low, high = (float(cell) for cell in row[2:])
        assert value == pytest.approx(result["item.class"][part]["ndcg@10"], abs=1e-4)
        assert low <= value <= high
    said = "By training interactions of the held-out item: all held-out items are in one part, 5-19."
    assert list(result["popularity"]) == ["5-19"]
    assert any(said in text for text, _ in page.texts)


def test_settings_that_differ_are_told(page):
    differing = {row[0]: row[1:] for row in page.rows("Settings that differ")[1:]}
    assert differing["model"] == ["SASRec", "Pop"]
    assert "topk" not in differing
    assert not {"epochs", "eval_step", "learning_rate", "train_batch_size"} & differing.keys(), "Pop reads none"


def test_cases_are_the_users_on_whom_the_models_disagree_most(page, runs):
    ranks = [
        dict(zip(*(read_per_user(folder)[name].to_pylist() for name in ("user_id", "rank"))))
        for folder in runs.values()
    ]
    pairs = {user: [rank[user] for rank in ranks] for user in ranks[0]}
    far = {user: math.log(max(pair) / min(pair)) for user, pair in pairs.items()}
    order = sorted(far, key=lambda user: (-far[user], user))
    ahead = [user for user in order if pairs[user][0] < pairs[user][1]][:2]
    behind = [user for user in order if pairs[user][0] > pairs[user][1]][:2]
    shown = [page.text(page.inside(at, "h3")[0]).removeprefix("User ") for at in page.places("article")]
    assert shown == [user for user in order if user in {*ahead, *behind}]
    said = page.text(page.inside(page.places("article")[0], "p")[0])
    assert f"SASRec {pairs[shown[0]][0]:,}, Pop {pairs[shown[0]][1]:,}" in said


def test_a_case_has_the_list_of_the_evaluation_with_the_hit_marked(page, runs):
    recommenders = {model: opened(folder) for model, folder in runs.items()}
    marked = 0
    for article in page.places("article"):
        user = page.text(page.inside(article, "h3")[0]).removeprefix("User ")
        lists = page.inside(article, "ol")
        assert len(lists) == 3, "the history and a list of each model"
        for place, (model, recommender) in zip(lists[1:], recommenders.items()):
            table = read_per_user(runs[model])
            row = table["user_id"].to_pylist().index(user)
            rank, held_out = table["rank"][row].as_py(), table["positives"][row].as_py()
            top = recommender.top_k(10, users=recommender.user_ids([user]), known="test").items[0]
            items = page.inside(place, "li")
            assert [page.text(at).split()[-1] for at in items] == recommender.item_tokens[top].tolist()
            hits = [number for number, at in enumerate(items, 1) if page.elements[at][1].get("class") == "hit"]
            assert all(hit <= rank for hit in hits), "an equal score counts as ahead of the held-out item"
            assert model == "Pop" or hits == ([rank] if rank <= 10 else [])
            assert all("held out" in page.text(items[number - 1]) for number in hits)
            assert not hits or page.text(items[hits[0] - 1]).split()[-1] in held_out
            marked += len(hits)
    assert marked


def test_what_is_recommended_is_counted(page, runs):
    rows = {row[0]: row[1:] for row in page.rows("What is recommended among the first 10")[1:]}
    for model, folder in runs.items():
        recommender = opened(folder)
        users = recommender.users_with_history("test")
        items = recommender.top_k(10, users=users, known="test").items
        assert int(rows[model][0]) == len(users)
        assert float(rows[model][1]) == pytest.approx(
            len(np.unique(items[items > 0])) / (recommender.n_items - 1), abs=1e-4
        )


def test_what_was_written_of_users_and_items_is_shown(runs, tmp_path):
    data = read_yaml(runs["SASRec"] / "config.yaml")["data_path"]
    settings = {**TOY_SETTINGS, "data_path": data, "checkpoint_dir": str(tmp_path / "saved"), "epochs": 1}
    settings["sentence_encoder"] = str(write_sentence_encoder(tmp_path / "encoder"))
    folder = recbole_mm.run("MLLMRec", "toy", config_dict=settings).run_dir
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html", users=["u4"]))
    recommender = opened(folder)
    user = recommender.user_ids(["u4"])
    (said,) = reasons_of(recommender)(user, recommender.histories_of(user, "test"))
    assert " ".join(one_line(said).split()) in page.text(page.places("p", **{"class": "words"})[0])
    items = [page.text(at) for at in page.inside(page.places("article")[0], "details")]
    written = {" ".join(one_line(text).split()) for text in item_texts_of(recommender) if text}
    assert items
    assert all(text.removeprefix("in words").strip() in written for text in items)


# ---- nothing is markup, nothing is fetched ----


def test_titles_are_text_and_never_markup(page):
    names = [page.text(at) for at in page.places("span", **{"class": "name"})]
    assert any(MARKUP in name for name in names)
    assert any("\\u202efilm[2J \U0001f3ac" in name for name in names)
    assert not any("\u202e" in text or "\x1b" in text for text, _ in page.texts)


def test_pictures_are_small_and_encoded_anew(page):
    sources = [page.elements[at][1]["src"] for at in page.places("img")]
    assert sources
    for source in set(sources):
        with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as picture:
            assert picture.format == "JPEG"
            assert max(picture.size) <= 96


def test_names_in_a_folder_from_anybody_are_text(copies, tmp_path):
    folder = copies["SASRec"]
    result = read_json(folder / "result.json")
    result |= {
        "dataset": MARKUP,
        "sees_held_out": [MARKUP],
        "beside": {MARKUP: {"ndcg@10": 0.1}},
        "slices": {MARKUP: {MARKUP: {"users": 3, "targets": 3, "weight": 3.0, "ndcg@10": 0.1}}},
        "stages": {MARKUP: {"seconds": 1.0, "peak_memory_mb": 1.0}},
        "versions": {MARKUP: MARKUP},
    }
    write_json(folder / "result.json", result)
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html", cases=0))
    assert sum(MARKUP in text for text, _ in page.texts) >= 8


@pytest.mark.parametrize("key", ["beside", "slices", "stages", "versions", "timings"])
@pytest.mark.parametrize("value", [[1], "x", {"a": 1}, {"a": {"b": "<b>"}}, {"ndcg@10": {"users": None}}])
def test_a_result_of_another_shape_is_left_out(copies, tmp_path, key, value):
    folder = copies["Pop"]
    result = read_json(folder / "result.json")
    write_json(folder / "result.json", {**result, key: value})
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html", cases=0))
    assert any(f"{result['test_result']['ndcg@10']:.4f}" in text for text, _ in page.texts), "the rest is shown"
