"""The page in headless Chromium: by mouse and by keyboard, light and dark, wide and narrow, and checked by axe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.cli.serve import KEY_ENV
from tests.chromium import SCHEMES, needs_playwright, used_page, violations_of
from tests.conftest import TOY_SETTINGS, write_toy
from tests.encoders import write_sentence_encoder
from tests.serving.server_process import Server, server
from tests.serving.toy_runs import HOSTILE, KEY, write_hostile

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.slow, needs_playwright]

CARDS = "#list > li"
NARROW = 360


@pytest.fixture(scope="module")
def running(runs) -> Iterator[Server]:
    """A server of SASRec, which reads histories."""
    with server(runs["first"]) as one:
        yield one


@pytest.fixture(scope="module")
def giving_reasons(tmp_path_factory) -> Iterator[Server]:
    """A server of MLLMRec, whose profiles of users are its reasons; other machines would need a key."""
    folder = tmp_path_factory.mktemp("reasons")
    write_hostile(write_toy(folder / "data") / "toy")
    settings = {**TOY_SETTINGS, "data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved"), "epochs": 1}
    settings |= {"similar_threshold": 0.3, "similar_k": 4, "co_k": 3, "embedding_size": 4}
    settings["sentence_encoder"] = write_sentence_encoder(folder / "encoder")
    run_dir = recbole_mm.run("MLLMRec", "toy", config_dict=settings).run_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_ENV, KEY)
        with server(run_dir) as one:
            yield one


def pictures_are_shown(page: Page, cards: str) -> None:
    """Wait until every picture of some cards is decoded."""
    page.wait_for_function(
        """cards => {
            const images = [...document.querySelectorAll(cards + " img")];
            return images.length > 0 && images.every(image => image.complete && image.naturalWidth > 0);
        }""",
        arg=cards,
    )


def compose_history(page: Page, *words: str) -> None:
    """Choose the first item that is found by each of some words."""
    page.get_by_label("Somebody new, by a history").check()
    for place, word in enumerate(words, 1):
        page.get_by_label("Find items by words").fill(word)
        page.locator("#found > li", has_text=word).first.get_by_role("button").click()
        page.locator(f"#history > li:nth-child({place})").wait_for()


def test_a_user_is_searched_and_recommended_to(running):
    with used_page() as page, running.client() as client:
        page.goto(running.address)
        page.get_by_label("Id of the user").fill("u1")
        page.wait_for_function("document.querySelector('#users option[value=\"u17\"]')")
        page.get_by_label("Items of the list").fill("5")
        page.keyboard.press("Enter")
        page.locator("#answer-head", has_text="u1").wait_for()
        asked = client.post("/recommend", json={"user": "u1", "k": 5}).json()["items"]
        shown = page.locator(CARDS)
        assert shown.count() == 5
        for place, item in enumerate(asked):
            lines = shown.nth(place).inner_text().splitlines()
            assert item["item"] in lines
            assert f"score {item['score']:.5g}" in lines
        assert page.evaluate("document.activeElement.id") == "answer-head"


def test_a_history_is_composed_of_pictures(running):
    with used_page() as page, running.client() as client:
        page.goto(running.address)
        compose_history(page, "number 7", "number 12")
        pictures_are_shown(page, "#found")
        pictures_are_shown(page, "#history")
        page.get_by_role("button", name="Recommend").click()
        page.locator("#answer-head", has_text="After this history").wait_for()
        pictures_are_shown(page, CARDS)
        asked = client.post("/recommend", json={"history": ["i7", "i12"], "k": 12}).json()["items"]
        ids = page.locator(f"{CARDS} .id").all_inner_texts()
        assert ids == [item["item"] for item in asked]
        page.locator("#history").get_by_role("button").first.click()
        assert page.locator("#history > li").count() == 1
        page.locator(CARDS).first.get_by_role("button").click()
        page.locator("#answer-head", has_text="Most like").wait_for()


def test_reasons_are_shown_once_the_key_is_given(giving_reasons):
    with used_page() as page:
        page.goto(giving_reasons.address)
        page.get_by_label("Key of this server").fill("a wrong key, all the same")
        page.get_by_role("button", name="Use it").click()
        page.locator("#status.bad", has_text="key").wait_for()
        page.get_by_label("Key of this server").fill(KEY)
        page.get_by_role("button", name="Use it").click()
        page.locator("#facts", has_text="MLLMRec on toy").wait_for()
        page.get_by_label("Id of the user").fill("u1")
        page.get_by_role("button", name="Recommend").click()
        reason = page.locator("#reason")
        reason.wait_for()
        assert len(reason.inner_text()) > 10
        pictures_are_shown(page, CARDS)
        assert page.get_by_label("Somebody new, by a history").is_hidden()


def test_an_error_is_told_and_nothing_of_the_data_is_markup(running):
    with used_page() as page, running.client() as client:
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        page.goto(running.address)
        page.get_by_label("Id of the user").fill("u1")
        page.keyboard.press("Enter")
        page.locator("#answer-head", has_text="u1").wait_for()
        page.get_by_label("Id of the user").fill("u61")
        page.keyboard.press("Enter")
        page.locator("#status.bad", has_text="did you mean").wait_for()
        assert page.locator("#answer").is_hidden()
        assert page.locator(CARDS).count() == 0, "the list of somebody else has gone"
        page.get_by_label("Somebody new, by a history").check()
        for item in HOSTILE:
            title = client.get(f"/items/{item}").json()["title"]
            page.get_by_label("Find items by words").fill(title.split()[0])
            card = page.locator("#found > li:only-child", has=page.get_by_text(item, exact=True))
            card.wait_for()
            assert card.locator(".title").text_content() == title
            assert card.locator(".id").inner_text() == item
            assert card.locator("script").count() == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_nothing(running, scheme):
    with used_page(scheme) as page:
        page.goto(running.address)
        page.locator("#facts", has_text="SASRec").wait_for()
        assert violations_of(page) == []
        compose_history(page, "number 7", "number 12")
        page.get_by_role("button", name="Recommend").click()
        page.locator("#answer-head", has_text="After").wait_for()
        pictures_are_shown(page, CARDS)
        assert violations_of(page) == []
        is_dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert is_dark == (scheme == "dark")


def test_axe_finds_nothing_where_a_key_and_a_reason_are_shown(giving_reasons):
    with used_page() as page:
        page.goto(giving_reasons.address)
        page.get_by_label("Key of this server").wait_for()
        assert violations_of(page) == []
        page.get_by_label("Key of this server").fill(KEY)
        page.keyboard.press("Enter")
        page.get_by_label("Id of the user").fill("u1")
        page.keyboard.press("Enter")
        page.locator("#reason").wait_for()
        assert violations_of(page) == []


def test_a_narrow_window_needs_no_sideways_scrolling(running):
    with used_page(width=NARROW) as page:
        page.goto(running.address)
        compose_history(page, "number 7")
        page.get_by_role("button", name="Recommend").click()
        page.locator("#answer-head", has_text="After").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW


def test_the_page_is_used_by_the_keyboard_alone(running):
    with used_page() as page:
        page.goto(running.address)
        page.locator("#facts", has_text="SASRec").wait_for()
        page.keyboard.press("Tab")
        page.keyboard.press("ArrowDown")
        page.locator("#found > li").first.wait_for()
        for _ in range(2):
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.locator("#history > li").wait_for()
        page.get_by_label("Items of the list").focus()
        page.keyboard.press("Enter")
        page.locator("#answer-head", has_text="After").wait_for()
        assert page.locator(CARDS).count() == 12
