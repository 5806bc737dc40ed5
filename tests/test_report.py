"""Reports: what stands on the page is what the folders hold, nothing of it is markup, and nothing is fetched."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.config.yaml_settings import SEAL_LINE, read_yaml, write_yaml
from recbole_mm.errors import CheckpointError, ConfigError, DataError
from recbole_mm.evaluation.per_user import read_per_user
from recbole_mm.experiments.tune.records import DONE, FAILED, Record, write_record
from recbole_mm.recommending.command import opened
from recbole_mm.recommending.reasons import item_texts_of, reasons_of
from recbole_mm.reporting.blocks import Grid, Paragraph, Section
from recbole_mm.reporting.cases import choose, gini
from recbole_mm.reporting.figures import Interval, bar_figure, interval_figure, line_figure, share_figure, ticks
from recbole_mm.reporting.page import to_html
from recbole_mm.reporting.runs import numbers, read_runs
from recbole_mm.reporting.sections import win_tie_loss
from recbole_mm.utils.escaping import one_line
from recbole_mm.utils.files import read_json, write_json, write_text
from tests.chromium import SCHEMES, needs_axe, needs_chromium, screenshot, violations
from tests.conftest import TOY_SETTINGS, write_toy
from tests.encoders import write_sentence_encoder

MARKUP = '<script>alert(1)</script><img src=x onerror="alert(2)"> & </title>'
TURNED = "The \u202efilm\x1b[2J \U0001f3ac"
VOID = {"meta", "img", "link", "br", "path", "rect", "circle"}


class Page(HTMLParser):
    """A page taken apart: its elements in their order, each with the elements that it stands in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], tuple[int, ...]]] = []
        self.texts: list[tuple[str, tuple[int, ...]]] = []
        self._open: list[int] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self._open)))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(self._open)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.elements[self._open.pop()][0] == tag

    def handle_data(self, data):
        self.texts.append((data, tuple(self._open)))

    def places(self, tag: str, **attributes: str) -> list[int]:
        """Numbers of the elements of a tag."""
        return [
            place
            for place, (name, given, _) in enumerate(self.elements)
            if name == tag and all(given.get(key) == value for key, value in attributes.items())
        ]

    def text(self, place: int) -> str:
        """All text in an element."""
        return " ".join("".join(text for text, inside in self.texts if place in inside).split())

    def inside(self, place: int, tag: str) -> list[int]:
        """Numbers of the elements of a tag within another."""
        return [at for at, (name, _, above) in enumerate(self.elements) if name == tag and place in above]

    def rows(self, caption: str) -> list[list[str]]:
        """The first table with a caption, as texts."""
        place = next(at for at in self.places("table") if self.text(self.inside(at, "caption")[0]) == caption)
        cells = [at for at, (tag, _, above) in enumerate(self.elements) if tag in ("td", "th") and place in above]
        rows = {row: [] for row in self.inside(place, "tr")}
        for cell in cells:
            rows[self.elements[cell][2][-1]].append(self.text(cell))
        return list(rows.values())


def check_page(page: Page) -> None:
    """Holds of every page: it fetches and runs nothing, and can be read without seeing it."""
    tags = Counter(tag for tag, _, _ in page.elements)
    assert not tags.keys() & {
        "script",
        "iframe",
        "link",
        "object",
        "embed",
        "form",
        "base",
        "image",
        "use",
        "foreignobject",
    }
    for tag, attributes, above in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert "style" not in attributes
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("#" if tag == "a" else "data:image/jpeg;base64,")
        if tag == "img":
            assert attributes["alt"] is not None
            assert "li" in [page.elements[at][0] for at in above], "named by the text of its item"
    assert not re.search(r"url\(|@import|https?:", "".join(page.text(at) for at in page.places("style")))
    for place in page.places("svg"):
        assert page.elements[place][1]["role"] == "img"
        assert page.text(page.inside(place, "title")[0])
    for place in page.places("figure"):
        assert page.inside(place, "svg")
        assert page.inside(place, "table"), "its numbers"
        assert page.text(page.inside(place, "figcaption")[0])
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [attributes["href"] for _, attributes, _ in page.elements if "href" in attributes]
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.elements[page.places("html")[0]][1]["lang"] == "en"


def page_of(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    page = Page(text)
    check_page(page)
    return page


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Model -> folder of a finished run, on a toy whose first titles are not what they seem."""
    root = tmp_path_factory.mktemp("report")
    data = write_toy(root / "data")
    items = data / "toy" / "toy.item"
    text = items.read_text(encoding="utf-8")
    for number in range(0, 40, 2):
        kind = MARKUP if number % 4 else TURNED
        text = re.sub(
            rf"^i{number}\tThe \w+ film",
            lambda found, kind=kind: f"{found[0].split(chr(9))[0]}\t{kind}",
            text,
            flags=re.M,
        )
    items.write_text(text, encoding="utf-8")
    (data / "toy" / "images" / "i3.png").write_bytes(b"no image at all")
    settings = {**TOY_SETTINGS, "slices": ["popularity", "item.class"], "data_path": str(data)}
    settings["checkpoint_dir"] = str(root / "saved")
    return {model: recbole_mm.run(model, "toy", config_dict=settings).run_dir for model in ("SASRec", "Pop")}


@pytest.fixture
def copies(runs, tmp_path) -> dict[str, Path]:
    """The same folders, to be changed."""
    return {model: Path(shutil.copytree(folder, tmp_path / folder.name)) for model, folder in runs.items()}


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Page:
    return page_of(recbole_mm.report(list(runs.values()), tmp_path_factory.mktemp("page") / "report.html", cases=4))


# ---- what stands on the page ----


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
    wanted = [
        "Results",
        "Differences",
        "Learning curves",
        "Users",
        "Slices",
        "Popularity and coverage",
        "Cases",
        "Cost",
    ]
    assert titles == [*wanted, "Settings"]
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
    parts = page.rows("Users for whom SASRec is better, equal or worse by ndcg@10, by popularity")[1:]
    assert [sum(int(row[at]) for row in parts) for at in (1, 2, 3)] == [wins, len(ours) - wins - losses, losses]


def test_settings_that_differ_are_told(page):
    differing = {row[0]: row[1:] for row in page.rows("Settings that differ")[1:]}
    assert differing["model"] == ["SASRec", "Pop"]
    assert "topk" not in differing


def test_cases_are_the_users_on_whom_the_models_disagree_most(page, runs):
    ranks = [
        dict(zip(*(read_per_user(folder)[name].to_pylist() for name in ("user_id", "rank"))))
        for folder in runs.values()
    ]
    pairs = {user: [rank[user] for rank in ranks] for user in ranks[0]}
    far = {user: math.log(max(pair) / min(pair)) for user, pair in pairs.items()}
    shown = [page.text(page.inside(at, "h3")[0]).removeprefix("User ") for at in page.places("article")]
    assert shown == sorted(far, key=lambda user: (-far[user], user))[:4]


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
    write_json(folder / "result.json", {**read_json(folder / "result.json"), key: value})
    page_of(recbole_mm.report([folder], tmp_path / "report.html", cases=0))


def test_figures_escape_what_they_draw():
    points = {MARKUP: [(1.0, 0.5), (2.0, 0.25)]}
    figures = [
        line_figure(MARKUP, MARKUP, MARKUP, points),
        line_figure(MARKUP, MARKUP, MARKUP, points, log_x=True, from_zero=True, is_joined=False),
        interval_figure(MARKUP, MARKUP, [Interval(MARKUP, 0.5, 0.25, 0.75)], has_zero=True),
        bar_figure(MARKUP, MARKUP, [(MARKUP, 2.0)]),
        share_figure(MARKUP, [MARKUP, MARKUP], [(MARKUP, [1, 3])]),
    ]
    grid = Grid(MARKUP, [MARKUP], [[MARKUP]])
    page = Page(to_html(MARKUP, [Section(MARKUP, [Paragraph(MARKUP, is_warning=True), *figures, grid])]))
    check_page(page)
    assert len(page.places("svg")) == 5


# ---- figures ----


@pytest.mark.parametrize(
    ("low", "high"), [(0.013, 0.058), (0.0, 0.0), (5.0, 5.0), (-0.02, 0.001), (0.0, 1e6), (1e-9, 2e-9), (-3.0, -1.0)]
)
def test_ticks_hold_all_values(low, high):
    found = ticks(low, high)
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))


def test_marks_lie_where_their_values_are():
    svg = interval_figure("x", "y", [Interval("a", 0.0), Interval("b", 0.5), Interval("c", 1.0)]).svg
    x = [float(found) for found in re.findall(r'cx="([\d.]+)"', svg)]
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2)
    assert x[0] < x[1]
    widths = re.findall(
        r'class="bar b\d" x="[\d.]+" y="[\d.]+" width="([\d.]+)"', share_figure("x", ["a", "b"], [("r", [1, 3])]).svg
    )
    assert float(widths[1]) == pytest.approx(3 * float(widths[0]), abs=0.2)


def test_values_that_are_no_numbers_are_left_out():
    assert numbers({"a": 1, "b": True, "c": float("nan"), "d": "1", 5: 2.0}) == {"a": 1.0, "5": 2.0}
    assert numbers([1]) == numbers(None) == {}
    figure = line_figure("x", "y", "z", {"a": [(1.0, float("nan")), (2.0, 3.0)]})
    assert figure.grid.rows == [["a", "2", 3.0]]


def test_small_sums():
    assert win_tie_loss({"a": 1.0}, {"b": 1.0}, "ndcg@10") is None
    assert win_tie_loss({"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.0}, "averagepopularity@10") == [1, 1, 0]
    assert gini(np.zeros(3)) == 0.0
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)


# ---- other folders ----


def test_a_single_run_shows_users_from_the_best_to_the_worst(runs, tmp_path):
    (run,) = read_runs([runs["SASRec"]])
    chosen = choose([run], 3)
    ranks = [run.ranks[one.user] for one in chosen]
    assert ranks == sorted(ranks)
    assert (ranks[0], ranks[-1]) == (min(run.ranks.values()), max(run.ranks.values()))
    assert [one.user for one in choose([run], 3, ["u4"])] == ["u4"]
    page = page_of(recbole_mm.report([runs["SASRec"]], tmp_path / "report.html", users=["u4"]))
    assert [page.text(page.inside(at, "h3")[0]) for at in page.places("article")] == ["User u4"]
    assert "Differences" not in [page.text(at) for at in page.places("h2")]


def test_a_table_of_compare_has_its_differences(runs, tmp_path, capsys):
    folder = tmp_path / "table"
    given = ["compare", "--runs", *map(str, runs.values()), "--slices", "all", "--out", str(folder)]
    assert main(given) == 0
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html"))
    (row,) = [row for row in page.rows("SASRec minus each other row, ndcg@10, with 95% intervals")[1:]]
    assert row[0] == "Pop"
    assert float(row[2]) <= float(row[1]) <= float(row[3])
    told = next(text for text in map(page.text, page.places("figcaption")) if text.startswith("Parts by popularity"))
    (row,) = page.rows(told)[1:]
    assert sum(map(int, row[1:])) >= 1
    (folder / "table.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"table.csv has no column 'row'"):
        recbole_mm.report([folder], tmp_path / "report.html")


def test_a_search_has_its_trials_the_best_first(tmp_path):
    folder = tmp_path / "search"
    folder.mkdir()
    search = {"model": MARKUP, "dataset": "toy", "settings": {"valid_metric": "NDCG@10"}}
    write_text(folder / "search.yaml", f"{SEAL_LINE}{write_yaml(search)}")
    for number, (rate, score) in enumerate([(0.001, 0.1), (0.1, 0.3), (0.01, 0.2)], 1):
        settings = {"learning_rate": rate, "loss_type": MARKUP}
        scores = [[1, score / 2], [2, score]]
        write_record(folder, Record(number, {"learning_rate": rate}, settings, DONE, scores, 3.0, 1))
    write_record(folder, Record(4, {"learning_rate": 1.0}, {"learning_rate": 1.0}, FAILED, reason=MARKUP))
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html"))
    rows = page.rows("Trials, the best first")
    assert [row[0] for row in rows[1:]] == ["2 (best)", "3", "1", "4"]
    assert [row[1] for row in rows[1:]] == ["0.3000", "0.2000", "0.1000", ""]
    so_far = [row[2] for row in page.rows("Trials, NDCG@10")[1:] if row[0] == "best so far"]
    assert so_far == ["0.1000", "0.3000", "0.3000"]
    assert any("Trial 4 failed" in page.text(at) for at in page.places("p"))


# ---- bad input ----


def test_images_and_data_that_have_gone_are_notes(copies, runs, tmp_path):
    folder = copies["SASRec"]
    data = Path(shutil.copytree(read_yaml(folder / "config.yaml")["data_path"], tmp_path / "moved"))
    shutil.rmtree(data / "toy" / "images")
    root = {"data_path": str(data)}
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html", changed=root))
    assert page.places("img") == []
    assert page.places("article")
    assert any("no pictures: image folder" in text for text, _ in page.texts)
    page = page_of(
        recbole_mm.report([folder], tmp_path / "gone.html", changed={"data_path": str(tmp_path / "nowhere")})
    )
    assert page.places("article") == []
    assert any("SASRec cannot be opened, so its lists are not shown" in text for text, _ in page.texts)
    assert page.rows("Test metrics, with 95% intervals")


def test_a_broken_image_is_left_out_and_told(runs, tmp_path):
    folder = runs["SASRec"]
    lines = Path(read_yaml(folder / "config.yaml")["data_path"], "toy", "toy.inter").read_text().splitlines()
    users = [line.split("\t")[0] for line in lines if line.split("\t")[1] == "i3"]
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html", users=users))
    assert any("no picture of item i3" in text for text, _ in page.texts)


def test_missing_tables_and_checkpoints_are_notes(copies, tmp_path):
    folder = copies["SASRec"]
    (folder / "per_user.parquet").unlink()
    (folder / "checkpoint.safetensors").write_bytes(b"damaged")
    page = page_of(recbole_mm.report([folder], tmp_path / "report.html"))
    said = " ".join(text for text, _ in page.texts)
    assert "no per_user.parquet, so no intervals and no users" in said
    assert "no learning curve" in said
    assert "no user is shown" in said


def test_runs_that_cannot_be_compared_are_told(copies, tmp_path):
    config = read_yaml(copies["Pop"] / "config.yaml")
    write_text(copies["Pop"] / "config.yaml", f"{SEAL_LINE}{write_yaml({**config, 'mask_history': False})}")
    page = page_of(recbole_mm.report(list(copies.values()), tmp_path / "report.html", cases=0))
    assert any("cannot be tested against each other" in text and "mask_history" in text for text, _ in page.texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "result.json").unlink(), "its run is not finished"),
        (lambda folder: (folder / "config.yaml").unlink(), "no config.yaml"),
        (lambda folder: (folder / "result.json").write_text("{"), "result.json cannot be read"),
        (lambda folder: (folder / "result.json").write_text('{"test_result": {"a": "b"}}'), "no test metrics"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_a_folder_that_is_no_finished_run_is_refused(copies, tmp_path, change, message):
    change(copies["SASRec"])
    with pytest.raises(CheckpointError, match=message):
        recbole_mm.report([copies["SASRec"]], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_malformed_arguments_are_refused(runs, tmp_path, capsys):
    folder, out = str(runs["Pop"]), tmp_path / "report.html"
    for given, message in [
        ({"runs": [folder, folder]}, "is given twice"),
        ({"runs": []}, "no folder is given"),
        ({"out": tmp_path / "report.pdf"}, "ends in .html"),
        ({"cases": -1}, "--cases=-1"),
        ({"users": ["u"] * 51}, "a report shows 50 at most"),
        ({"changed": {"data_pth": "x"}}, "--data_pth is no setting of these runs; did you mean 'data_path'?"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(message)):
            recbole_mm.report(**{"runs": [folder], "out": out, **given})
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    assert main(["report", folder, "--users", "u999", "--out", str(out)]) == 2
    assert "user 'u999' is not in the data" in capsys.readouterr().err
    assert not out.exists()


def test_the_command_writes_the_file_and_prints_its_name(runs, tmp_path, capsys):
    out = tmp_path / "new" / "r.html"
    assert main(["report", *map(str, runs.values()), "--out", str(out), "--users", "u4,u7", "--device=cpu"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = page_of(out)
    assert [page.text(page.inside(at, "h3")[0]) for at in page.places("article")] == ["User u4", "User u7"]
    assert page.text(page.places("title")[0]) == "SASRec, Pop on toy"


@pytest.mark.slow
@needs_chromium
def test_chromium_draws_it_in_light_and_dark(runs, tmp_path):
    path = recbole_mm.report(list(runs.values()), tmp_path / "report.html")
    pictures = {}
    for scheme in SCHEMES:
        with Image.open(screenshot(path.as_uri(), tmp_path / f"{scheme}.png", scheme)) as picture:
            pictures[scheme] = np.asarray(picture.convert("L"), dtype=np.float64)
    assert pictures["light"].mean() > 200
    assert pictures["dark"].mean() < 80
    assert all(picture.std() > 5 for picture in pictures.values()), "there is something on them"


@pytest.mark.slow
@needs_axe
@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing(runs, tmp_path, scheme):
    path = recbole_mm.report(list(runs.values()), tmp_path / "report.html")
    assert violations(path.read_text(encoding="utf-8"), tmp_path, scheme) == []
