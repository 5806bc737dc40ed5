"""Texts through the store: what is asked for once, what a key depends on, what settings are refused."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from PIL import Image

from recbole_mm.artifacts.executor import Failure
from recbole_mm.artifacts.store import Store
from recbole_mm.config.resolved import Config
from recbole_mm.errors import ConfigError
from recbole_mm.llm.texts.backends import open_generator
from recbole_mm.llm.texts.generator import NOTHING_TO_SAY, Request, TemplateGenerator, Writing
from recbole_mm.llm.texts.stage import EMPTY, text_key, texts_through_store

STAGE = "item_description"


def picture() -> Image.Image:
    return Image.new("RGB", (8, 8))


class Parrot:
    """Answers with the prompt in capitals; fails where it says so; counts what it was asked."""

    identity = "parrot"
    makes = "answers"
    reads_images, longest_prompt = True, None

    def __init__(self, **parameters: Any) -> None:
        self.parameters = parameters
        self.asked: list[str] = []

    def generate(self, requests: list[Request]) -> list[str | Failure]:
        self.asked += [request.prompt for request in requests]
        return [Failure("no") if "fail" in each.prompt else each.prompt.upper() for each in requests]

    def count_tokens(self, text: str) -> int:
        return len(text)

    def close(self) -> None:
        pass


class Stream(Parrot):
    """Hands over one text at a time, the last one first, and ends the process's day at a given one."""

    def __init__(self, dies_after: int | None = None) -> None:
        super().__init__()
        self.dies_after = dies_after

    def stream(self, requests: Mapping[str, Request]) -> Iterator[Mapping[str, str | Failure]]:
        for key in reversed(list(requests)):
            if len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            yield dict(zip([key], self.generate([requests[key]])))


def wanted(*prompts: str) -> dict[int, Request]:
    return {number: Request(prompt, None) for number, prompt in enumerate(prompts, 1)}


@pytest.fixture
def store(tmp_path) -> Iterator[Store]:
    with Store(tmp_path / "artifacts.sqlite") as opened:
        yield opened


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"image": picture}, {"image_hash": "abc"}])
def test_a_picture_and_its_hash_come_together(given: dict) -> None:
    with pytest.raises(ValueError, match="picture"):
        Request("prompt", "text", **given)


def test_a_key_depends_on_what_the_text_is_made_of_and_on_nothing_else() -> None:
    parrot, template = Parrot(heat=0.0), TemplateGenerator()
    plain = Request("prompt", "text")
    pictured = Request("prompt", "text", picture, "hash")
    base = text_key(STAGE, parrot, plain)
    assert text_key(STAGE, parrot, Request("prompt", "another")) == base
    others = [
        text_key("another", parrot, plain),
        text_key(STAGE, Parrot(heat=1.0), plain),
        text_key(STAGE, parrot, Request("Prompt", "text")),
        text_key(STAGE, parrot, pictured),
        text_key(STAGE, parrot, Request("prompt", "text", picture, "another hash")),
        text_key(STAGE, template, plain),
    ]
    assert len({base, *others}) == 7
    assert text_key(STAGE, template, pictured) == text_key(STAGE, template, Request("Prompt", "text"))
    assert text_key(STAGE, template, Request("prompt", "Text")) != text_key(STAGE, template, plain)
    assert text_key(STAGE, template, Request("prompt", "\ud800")) != text_key(STAGE, template, plain)


# --- the stage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Parrot, Stream])
def test_identical_requests_are_answered_once_and_kept(store: Store, kind: type, caplog) -> None:
    requests = wanted("a", "b", "a", "fail", "fail", "c")
    parrot = kind()
    with caplog.at_level(logging.INFO):
        report = texts_through_store(store, STAGE, parrot, requests, show_progress=False)
    assert "6 texts wanted, 4 distinct, 3 written" in caplog.text
    assert report.texts == {1: "A", 2: "B", 3: "A", 6: "C"}
    assert list(report.texts) == [1, 2, 3, 6]
    assert report.failed == {4: "no", 5: "no"}
    assert (report.computed, report.asked) == (3, [1, 2, 4, 6])
    assert sorted(parrot.asked) == ["a", "b", "c", "fail"]
    assert list(store.failures(STAGE).values()) == ["no"]
    again = kind()
    second = texts_through_store(store, STAGE, again, requests, show_progress=False)
    assert (second.texts, second.failed, second.computed) == (report.texts, report.failed, 0)
    assert second.asked == [4]
    assert again.asked == ["fail"], "what failed is tried again, nothing else"


def test_another_setting_is_another_text(store: Store) -> None:
    texts_through_store(store, STAGE, Parrot(heat=0.0), wanted("a"), show_progress=False)
    assert texts_through_store(store, STAGE, Parrot(heat=0.0), wanted("a"), show_progress=False).asked == []
    assert texts_through_store(store, STAGE, Parrot(heat=0.5), wanted("a"), show_progress=False).asked == [1]


def test_killed_and_resumed_computes_nothing_twice(store: Store) -> None:
    requests = wanted("a", "b", "c", "d", "e")
    first, second = Stream(dies_after=3), Stream()
    with pytest.raises(KeyboardInterrupt):
        texts_through_store(store, STAGE, first, requests, show_progress=False)
    assert first.asked == ["e", "d", "c"]
    report = texts_through_store(store, STAGE, second, requests, show_progress=False)
    assert second.asked == ["b", "a"]
    assert report.texts == {1: "A", 2: "B", 3: "C", 4: "D", 5: "E"}
    assert report.computed == 2


@pytest.mark.parametrize("kind", [Parrot, Stream])
@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_text_is_a_failure_and_never_a_value(store: Store, kind: type, empty: str) -> None:
    report = texts_through_store(store, STAGE, kind(), wanted(empty, "a"), show_progress=False)
    assert report.texts == {2: "A"}
    assert report.failed == {1: EMPTY}
    assert store.count(STAGE) == 1


def test_texts_can_be_read_with_public_tools(store: Store) -> None:
    texts_through_store(store, STAGE, Parrot(), wanted("schuhe · 鞋"), show_progress=False)
    rows = sqlite3.connect(store.path).execute("SELECT stage, dtype, value FROM artifacts").fetchall()
    assert rows == [(STAGE, "text", "SCHUHE · 鞋")]


def test_nothing_wanted_is_nothing_done(store: Store) -> None:
    report = texts_through_store(store, STAGE, Parrot(), {}, show_progress=False)
    assert (report.texts, report.failed, report.computed) == ({}, {}, 0)


# --- the template ----------------------------------------------------------------------------------------------------


def test_the_template_gives_the_fallback_and_says_so_once(store: Store, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        template = TemplateGenerator()
        requests = {
            "shoe": Request("Describe", "Red shoes.\nSize 4.", picture, "hash"),
            "blank": Request("Describe", " "),
            "none": Request("Describe", None),
        }
        report = texts_through_store(store, STAGE, template, requests, show_progress=False)
    assert report.texts == {"shoe": "Red shoes.\nSize 4."}
    assert report.failed == {"blank": NOTHING_TO_SAY, "none": NOTHING_TO_SAY}
    said = [record.getMessage() for record in caplog.records if "TEMPLATE" in record.getMessage()]
    assert len(said) == 1
    assert "no LLM" in said[0]
    assert template.count_tokens("three plain words") == 3
    template.close()


# --- settings --------------------------------------------------------------------------------------------------------


def no_mllm() -> Any:
    raise AssertionError("no model is to be loaded here")


def opened(toy_config, **settings: Any) -> Any:
    return open_generator(toy_config(**settings), no_mllm)


def test_the_default_is_the_template(toy_config) -> None:
    assert opened(toy_config).identity == "template-1"


def test_every_setting_reaches_its_backend(toy_config, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    openai = opened(
        toy_config,
        text_backend="openai",
        text_model="m",
        text_url="http://localhost:1/v1",
        text_api_key_env="MY_KEY",
        text_concurrency=3,
        text_timeout=1.5,
        text_retries=0,
        text_max_words=7,
        text_max_new_tokens=8,
        text_context_tokens=9,
        text_temperature=1,
        text_top_p=0.5,
        text_seed=11,
    )
    server = openai.server
    assert (server.model, server.url, server.key) == ("m", "http://localhost:1/v1", "sk-secret")
    assert (server.concurrency, server.timeout, server.retries) == (3, 1.5, 0)
    assert openai.writing == Writing(7, 8, 9, 1.0, 0.5, 11)
    hf = opened(toy_config, text_backend="hf", text_batch_tokens=77, seed=5, text_temperature=0.5)
    assert (hf.batch_tokens, hf.writing.seed) == (77, 5)


def test_a_seed_is_part_of_the_key_only_where_words_are_drawn() -> None:
    assert Writing(seed=1).parameters == Writing(seed=2).parameters
    assert Writing(seed=1, temperature=0.5).parameters != Writing(seed=2, temperature=0.5).parameters
    assert Writing(context_tokens=1).parameters == Writing(context_tokens=2).parameters


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"text_backend": "vllm"}, "text_backend: 'vllm' is not accepted; give one of template, hf, openai"),
        ({"text_backend": None}, "template, hf, openai"),
        ({"text_max_words": 0}, "text_max_words: 0 is not accepted; give a whole number of at least 1"),
        ({"text_max_words": True}, "text_max_words"),
        ({"text_max_new_tokens": 2.5}, "text_max_new_tokens"),
        ({"text_context_tokens": "many"}, "text_context_tokens"),
        ({"text_batch_tokens": None}, "text_batch_tokens"),
        ({"text_concurrency": 0}, "text_concurrency"),
        ({"text_retries": -1}, "text_retries"),
        ({"text_timeout": 0}, "text_timeout"),
        ({"text_timeout": float("inf")}, "text_timeout"),
        ({"text_temperature": -0.1}, "text_temperature: -0.1 is not accepted; give a number from 0 to 2"),
        ({"text_temperature": "hot"}, "text_temperature"),
        ({"text_top_p": 0}, "text_top_p: 0 is not accepted; give a number above 0, at most 1"),
        ({"text_seed": -1}, "text_seed"),
        ({"text_model": 7}, "text_model: 7 is not accepted; give a model's name, or the path of its folder, or null"),
        ({"text_url": ""}, "text_url"),
        ({"text_api_key_env": ["A"]}, "text_api_key_env"),
        ({"text_api_key_env": "sk-proj-hush"}, "text_api_key_env: what is given is not accepted; give the NAME"),
        ({"text_backend": "openai", "text_model": "m", "text_url": "me:hush@host/v1"}, "give one like http://"),
        ({"text_backend": "openai", "text_model": "m", "text_url": "htp://me:hush@host/v1"}, "give one like http://"),
        ({"text_backend": "openai", "text_url": "http://localhost:1/v1"}, "openai needs text_model"),
        ({"text_backend": "openai", "text_model": "m"}, "openai needs text_url"),
        ({"text_backend": "openai", "text_model": "m", "text_url": "localhost:8000/v1"}, "give one like http://"),
        ({"text_backend": "openai", "text_model": "m", "text_url": "ftp://host/v1"}, "give one like http://"),
        ({"text_backend": "openai", "text_model": "m", "text_url": "http://[::1/v1"}, "not an address"),
        ({"text_backend": "openai", "text_model": "m", "text_url": "http://host/v1?api_key=hush"}, "would be logged"),
        ({"text_backend": "openai", "text_model": "m", "text_url": "http://me:hush@host/v1"}, "would be logged"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_accepted(toy_config, settings: dict, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        opened(toy_config, **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_key_is_never_written(toy_config, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hush")
    settings = {"text_backend": "openai", "text_model": "m", "text_url": "http://localhost:1/v1"}
    config: Config = toy_config(**settings)
    generator = open_generator(config, no_mllm)
    assert generator.server.key == "sk-hush"
    config.save(tmp_path / "config.yaml")
    written = (tmp_path / "config.yaml").read_text()
    assert "text_api_key_env: OPENAI_API_KEY" in written
    seen = [written, repr(generator.server), str(generator.parameters), generator.identity, str(config)]
    assert not any("hush" in text for text in seen)
    assert opened(toy_config, **settings, text_api_key_env=None).server.key is None
    assert opened(toy_config, **settings, text_api_key_env="NOT_SET_ANYWHERE").server.key is None
    for broken in ("hush hush", "hush\nX: y", "hüsh"):
        monkeypatch.setenv("OPENAI_API_KEY", broken)
        with pytest.raises(ConfigError, match="set it anew") as caught:
            opened(toy_config, **settings)
        assert broken not in str(caught.value)
