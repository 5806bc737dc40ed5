"""The reasoning stage: what the LLM is told and shown, what becomes of its texts, and what never reaches them."""

from __future__ import annotations

import csv
import logging
import sqlite3

import numpy as np
import pytest

from recbole_mm.artifacts.store import Store
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.inputs.reasoning import profiles, prompts, vectors
from recbole_mm.inputs.reasoning.failures import failures_file
from recbole_mm.inputs.reasoning.items import ItemTexts
from recbole_mm.inputs.reasoning.profiles import Histories, profile_requests
from recbole_mm.inputs.reasoning.prompts import newest_within
from recbole_mm.inputs.reasoning.rates import FILE, note_rate, read_rates
from recbole_mm.inputs.reasoning.settings import ReasoningSettings
from recbole_mm.inputs.reasoning.writing import DESCRIPTIONS, PROFILES
from recbole_mm.llm.texts.generator import TemplateGenerator
from tests.conftest import TOY_SETTINGS, write_toy
from tests.reasoning import Forgetful, LiveRequests, Reasoning, RuleWriter, WordEncoder
from tests.test_contract import SPLITS, eval_args, leak_dataset

BOTH = ("item_text_features", "user_profiles")


@pytest.fixture
def stage(toy_config, tmp_path):
    """`stage(generator, **settings)` -> the stage on `toy`, its store beside it."""

    def build(generator, **settings) -> Reasoning:
        config = toy_config("MLLMRec", **settings)
        return Reasoning(config, create_dataset(config), Store(tmp_path / "store.sqlite"), tmp_path, generator)

    return build


def id_of(dataset, token: str) -> int:
    return list(dataset.item_tokens()).index(token)


# --- item texts -------------------------------------------------------------------------------------------------------


def test_an_item_is_described_by_its_picture_and_title(stage):
    writer = RuleWriter()
    made = stage(writer, item_domain="film", description_words=40)
    texts = made.item_texts()
    dataset = made.dataset
    assert len(writer.asked) == dataset.item_num - 1
    asked = next(request for request in writer.asked if "number 3." in request.prompt)
    assert "film" in asked.prompt
    assert "at most 40 words" in asked.prompt
    assert "Class" not in asked.prompt, "metadata stands beside the description, not in its prompt"
    item = id_of(dataset, "i3")
    assert texts[item] == f"{dataset.content.text(item)}\nAppearance: {writer._answer(asked)}"
    assert "of colour (220, 20, 20)" in texts[item]


@pytest.mark.parametrize(("kind", "has_metadata", "has_description"), [("image", False, True), ("text", True, False)])
def test_item_text_chooses_what_is_said_of_an_item(stage, kind, has_metadata, has_description):
    writer = RuleWriter()
    texts = stage(writer, item_text=kind).item_texts()
    assert texts[0] is None
    assert all(("Title: " in text) == has_metadata for text in texts[1:])
    assert all(("answer" in text) == has_description for text in texts[1:])
    assert bool(writer.asked) == has_description


def test_no_call_is_made_for_items_without_an_image(stage, caplog, toy_path, tmp_path):
    for image in (write_toy(tmp_path / "copy") / "toy" / "images").glob("i1*.png"):
        image.unlink()
    writer = RuleWriter()
    made = stage(writer, data_path=str(tmp_path / "copy"))
    with caplog.at_level(logging.INFO):
        texts = made.item_texts()
    content = made.dataset.content
    without = [item for item in range(1, len(content)) if content.tokens[item].startswith("i1")]
    assert len(without) == 11
    assert len(writer.asked) == len(content) - 1 - 11
    assert all(texts[item] == content.text(item) for item in without)
    assert "11 of 40 items have no image; no call is made" in caplog.text
    only_pictures = stage(RuleWriter(), data_path=str(tmp_path / "copy"), item_text="image").item_texts()
    assert [only_pictures[item] for item in without] == [None] * 11


def test_a_template_adds_no_description_to_the_metadata_it_is_made_of(stage):
    made = stage(TemplateGenerator())
    content = made.dataset.content
    assert made.item_texts()[1:] == [content.text(item) for item in range(1, len(content))]
    assert made.store.count(DESCRIPTIONS) == 0
    described = stage(TemplateGenerator(), item_text="image").item_texts()
    assert described[id_of(made.dataset, "i5")] == "This is The comedy film number 5, with class comedy."


def test_an_llm_that_sees_no_images_describes_the_metadata(stage, caplog):
    writer = RuleWriter(reads_images=False)
    made = stage(writer, item_domain="film", description_words=40)
    with caplog.at_level(logging.INFO):
        texts = made.item_texts()
    content = made.dataset.content
    assert len(writer.asked) == made.dataset.item_num - 1
    assert not any(request.image for request in writer.asked)
    item = id_of(made.dataset, "i3")
    (asked,) = [request for request in writer.asked if content.text(item) in request.prompt]
    assert asked.prompt.startswith("This is known of one film:")
    assert "at most 40 words" in asked.prompt
    assert texts[item] == f"{content.text(item)}\nAppearance: {writer._answer(asked)}"
    assert [record.message for record in caplog.records if "sees no images" in record.message] == [
        "item descriptions: tiny sees no images and describes items by their metadata; item_text: text would not"
    ]


def test_an_llm_that_sees_no_images_is_not_asked_about_images_alone(stage, caplog):
    writer = RuleWriter(reads_images=False)
    made = stage(writer, item_text="image")
    texts = made.item_texts()
    assert all(text.startswith("answer ") for text in texts[1:])
    assert "item_text: image with a text LLM (tiny): descriptions say the metadata, no image is read" in caplog.text


def test_an_llm_that_sees_no_images_has_nothing_to_say_without_text(stage):
    writer = RuleWriter(reads_images=False)
    assert not any(stage(writer, modalities=["image"]).item_texts())
    assert not writer.asked


def test_descriptions_are_cut_to_their_words(stage):
    class Chatty(RuleWriter):
        def _answer(self, request):
            return " ".join(f"word{n}" for n in range(90))

    texts = stage(Chatty(), item_text="image", description_words=7).item_texts()
    assert texts[1] == "word0 word1 word2 word3 word4 word5 word6"


# --- histories and prompts --------------------------------------------------------------------------------------------


def test_profiles_show_the_training_items_in_order(stage):
    writer = RuleWriter()
    made = stage(writer, item_text="text")
    texts = made.item_texts()
    made.profiles(texts)
    dataset, config = made.dataset, made.config
    rows = sorted(
        zip(dataset.inter_feat["timestamp"], dataset.inter_feat["user_id"], dataset.inter_feat["item_id"], strict=True)
    )
    tokens = dataset.field2id_token["user_id"]
    for place, request in enumerate(writer.asked):
        user = list(tokens).index(sorted(tokens[1:])[place])
        mine = [int(item) for _, who, item in rows if who == user]
        lines = [line for line in request.prompt.splitlines() if line[:1].isdigit()]
        assert lines == [
            f"{n}. " + (texts[item] or "").replace("\n", "; ") for n, item in enumerate(mine[:-2], start=1)
        ]
    assert config["item_text"] == "text"


def test_all_profiles_see_what_is_held_out_and_say_so(stage, caplog):
    writer = RuleWriter()
    made = stage(writer, item_text="text", profiles_see="all")
    texts = made.item_texts()
    with caplog.at_level(logging.WARNING):
        made.profiles(texts)
    assert "held out for validation and test included" in caplog.text
    shown = sum(line[:1].isdigit() for request in writer.asked for line in request.prompt.splitlines())
    assert shown == len(made.dataset.inter_feat)


@pytest.mark.parametrize(
    ("costs", "budget", "first"), [([5, 1, 2, 2], 5, 1), ([1, 1, 9], 3, 2), ([4], 1, 0), ([1, 1, 1], 3, 0)]
)
def test_the_newest_items_within_the_budget_are_kept(costs, budget, first):
    assert newest_within(costs, budget) == first


def test_long_histories_are_cut_by_tokens_and_the_prompt_says_so(stage):
    writer = RuleWriter()
    made = stage(writer, item_text="text", profile_history_tokens=25)
    texts = made.item_texts()
    histories = Histories.of(made.dataset, made.settings)
    requests = profile_requests(made.dataset.content, histories, texts, made.settings, writer)
    assert requests.cut
    for place in range(len(histories)):
        user, mine = int(histories.users[place]), histories[place]
        shown = requests.shown[user]
        assert shown == mine[len(mine) - len(shown) :]
        assert shown
        cost = sum(writer.count_tokens(texts[item] or "") + 1 for item in shown)
        assert cost <= 25
        if len(shown) < len(mine):
            assert cost + writer.count_tokens(texts[mine[-len(shown) - 1]] or "") + 1 > 25
            assert f"({len(mine) - len(shown)} older ones are left out)" in requests.requests[user].prompt


def test_a_prompt_fits_the_context_even_where_the_history_budget_does_not(stage):
    writer = RuleWriter()
    made = stage(writer, item_text="text")
    histories, texts = Histories.of(made.dataset, made.settings), made.item_texts()
    found = profile_requests(made.dataset.content, histories, texts, made.settings, writer, context_tokens=200)
    assert found.cut
    assert max(writer.count_tokens(request.prompt) for request in found.requests.values()) <= 200


@pytest.mark.parametrize("modalities", [["image", "text"], ["image"]])
def test_what_is_known_of_an_item_is_not_what_an_llm_says_where_there_is_more(stage, modalities):
    made = stage(RuleWriter(), modalities=modalities)
    items = made.context().share(ItemTexts)
    metadata = made.dataset.content.text(1)
    assert items.known_of(1) == (metadata if "text" in modalities else items.texts[1])
    assert items.known_of(1)


def test_a_prompt_fits_the_context_of_the_model_itself(stage):
    frame = len(prompts.profile_prompt("product", [], 1_000_000, 100).split()) + prompts.MARKUP_TOKENS
    writer = RuleWriter(longest_prompt=frame + 30)
    made = stage(writer, item_text="text", text_context_tokens=4096)
    made.profiles(made.item_texts())
    lengths = [writer.count_tokens(request.prompt) + prompts.MARKUP_TOKENS for request in writer.asked]
    assert lengths
    assert max(lengths) <= writer.longest_prompt
    assert any("are left out" in request.prompt for request in writer.asked)


def test_items_without_a_text_are_not_shown_and_users_of_only_such_items_have_no_profile(stage):
    writer = RuleWriter()
    made = stage(writer, item_text="text")
    texts = made.item_texts()
    histories = Histories.of(made.dataset, made.settings)
    lost = int(histories.users[0])
    for item in histories[0]:
        texts[item] = None
    found = profile_requests(made.dataset.content, histories, texts, made.settings, writer)
    assert lost in found.without
    assert lost not in found.requests
    assert all(texts[item] is not None for shown in found.shown.values() for item in shown)


# --- texts to vectors -------------------------------------------------------------------------------------------------


def test_the_needs_become_vectors(stage):
    writer, encoder = RuleWriter(), WordEncoder()
    made = stage(writer)
    provided = made.provide(BOTH, lambda: encoder)
    dataset = made.dataset
    assert provided["fused_vectors"].shape == (dataset.item_num, 12)
    assert provided["profile_vectors"].shape == (dataset.user_num, 12)
    for matrix in provided.values():
        assert matrix.dtype == np.float32
        assert not matrix[0].any()
        assert matrix[1:].any(axis=1).all()
    assert writer.closed
    texts = made.item_texts()
    np.testing.assert_array_equal(provided["fused_vectors"][1:], WordEncoder().encode(texts[1:]))
    asked, encoded = len(writer.asked), len(encoder.encoded)
    again = made.provide(BOTH, lambda: encoder)
    assert (len(writer.asked), len(encoder.encoded)) == (asked, encoded), "everything is in the store"
    np.testing.assert_array_equal(again["profile_vectors"], provided["profile_vectors"])


def test_without_profiles_no_user_is_written_about(stage):
    writer = RuleWriter()
    made = stage(writer, reasoning=False)
    provided = made.provide(made.config.model_class.requirements(made.config), WordEncoder)
    assert set(provided) == {"fused_vectors"}
    assert made.store.count(PROFILES) == 0


def test_the_template_needs_no_llm(stage):
    made = stage(TemplateGenerator())
    encoder = WordEncoder()
    provided = made.provide(BOTH, lambda: encoder)
    assert provided["profile_vectors"][1:].any(axis=1).all()
    assert any(text.startswith("Likes class ") and "Chose lately: The " in text for text in encoder.encoded)


@pytest.mark.parametrize("reason", ["the server is gone", ""])
def test_what_failed_is_masked_listed_and_tried_again(stage, tmp_path, caplog, reason):
    broken = RuleWriter(lambda prompt: reason if "Each numbered line" in prompt and "number 7" in prompt else None)
    made = stage(broken, item_text="text")
    encoder = WordEncoder()
    with caplog.at_level(logging.WARNING):
        first = made.provide(BOTH, lambda: encoder)
    dataset = made.dataset
    histories = Histories.of(dataset, made.settings)
    item = id_of(dataset, "i7")
    failed = {int(histories.users[place]) for place in range(len(histories)) if item in histories[place]}
    assert 0 < len(failed) < len(histories)
    have = first["profile_vectors"].any(axis=1)
    assert {user for user in range(1, dataset.user_num) if not have[user]} == failed
    assert "" not in encoder.encoded
    path = failures_file(tmp_path, made.config, PROFILES)
    rows = list(csv.reader(path.open()))
    tokens = dataset.field2id_token["user_id"]
    assert {row[0] for row in rows[1:]} == {tokens[user] for user in failed}
    assert {row[1] for row in rows[1:]} == {reason or "the text is empty"}
    assert f"{len(failed)} of 60 could not be written" in caplog.text
    assert str(path) in caplog.text
    mended = RuleWriter()
    second = stage(mended, item_text="text").provide(BOTH, lambda: encoder)
    assert len(mended.asked) == len(failed), "only what is missing is asked again"
    assert second["profile_vectors"][1:].any(axis=1).all()
    np.testing.assert_array_equal(second["profile_vectors"][have], first["profile_vectors"][have])
    assert not path.exists()


@pytest.mark.parametrize("kind", ["fused", "image"])
def test_an_item_whose_description_failed_has_what_is_left_of_it(stage, kind):
    made = stage(RuleWriter(lambda prompt: "refused" if "number 4." in prompt else None), item_text=kind)
    texts = made.item_texts()
    item = id_of(made.dataset, "i4")
    assert texts[item] == (made.dataset.content.text(item) if kind == "fused" else None)
    vectors_of = made.provide(("item_text_features",), WordEncoder)["fused_vectors"]
    assert vectors_of[item].any() == (kind == "fused")
    assert vectors_of.any(axis=1).sum() == made.dataset.item_num - 1 - (kind == "image")


def test_nothing_written_at_all_is_an_error_that_says_where_to_look(stage, tmp_path):
    made = stage(RuleWriter(lambda prompt: "down" if "Each numbered" in prompt else None))
    with pytest.raises(DataError, match=r"user profiles: not one could be written; .*toy-user_profile-\w{8}.csv"):
        made.provide(BOTH, WordEncoder)


def test_texts_are_encoded_in_an_order_of_their_own():
    texts = [None, "bb", "a", " ", "dddd", "cc"]
    assert [texts[place] for place in vectors.encoding_order(texts)] == ["dddd", "bb", "cc", "a"]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"item_text": "both"}, "item_text: 'both'"),
        ({"profiles_see": "test"}, "profiles_see: 'test'"),
        ({"description_words": 0}, "description_words: 0"),
        ({"profile_words": True}, "profile_words: True"),
        ({"profile_history_tokens": 1.5}, "profile_history_tokens: 1.5"),
        ({"item_domain": " "}, "item_domain: ' '"),
        ({"sentence_encoder": 3}, "sentence_encoder: 3"),
        ({"profile_words": 150, "text_backend": "hf"}, r"profile_words: 150 is more than text_max_words \(100\)"),
    ],
)
def test_settings_are_checked(toy_config, settings, message):
    with pytest.raises(ConfigError, match=message):
        ReasoningSettings.of(toy_config("MLLMRec", **settings))


def test_null_settings_keep_their_defaults(toy_config):
    settings = ReasoningSettings.of(toy_config("MLLMRec", item_domain=None))
    assert settings.item_domain == "product"
    assert settings.profiles_see == "train"


# --- rates ------------------------------------------------------------------------------------------------------------


def test_rates_add_up_and_a_damaged_file_is_done_without(tmp_path, caplog):
    note_rate(tmp_path, "a", 100, 2)
    note_rate(tmp_path, "a", 50, 1)
    note_rate(tmp_path, "b", 0, 1)
    assert {name: rate.per_second for name, rate in read_rates(tmp_path).items()} == {"a": 50}
    (tmp_path / FILE).write_text("[1")
    assert read_rates(tmp_path) == {}
    assert "rates.json cannot be read" in caplog.text


def test_what_an_llm_did_is_measured_and_a_template_is_not(stage, tmp_path):
    stage(TemplateGenerator()).provide(BOTH, WordEncoder)
    assert [name.split(" | ")[0] for name in read_rates(tmp_path)] == ["sentence_vector"]
    stage(RuleWriter()).provide(BOTH, WordEncoder)
    assert {"item_description | rule-1 | cpu", "user_profile | rule-1 | cpu"} <= set(read_rates(tmp_path))


# --- nothing held out -------------------------------------------------------------------------------------------------


def written(folder, other: bool, generator, kind: str, **settings):
    """Everything that the stage asks and keeps, with half of the held-out items replaced if `other`."""
    data = leak_dataset(folder, other, SPLITS[kind])
    settings["eval_args"] = eval_args(SPLITS[kind])
    config = Config(
        "MLLMRec",
        "toy",
        config_dict={**TOY_SETTINGS, "data_path": str(data), "checkpoint_dir": str(folder), **settings},
    )
    dataset = create_dataset(config)
    held_out = dataset.inter_feat["item_id"].tolist()
    provided = Reasoning(config, dataset, Store(folder / "store.sqlite"), folder, generator).provide(BOTH, WordEncoder)
    asked = [(request.prompt, request.image_hash) for request in getattr(generator, "asked", [])]
    users = list(dataset.field2id_token["user_id"])
    by_user = {users[row]: vector.tobytes() for row, vector in enumerate(provided["profile_vectors"])}
    with sqlite3.connect(folder / "store.sqlite") as store:
        kept = sorted(store.execute("SELECT key, stage, value FROM artifacts").fetchall())
    return held_out, asked, by_user, provided["fused_vectors"].tobytes(), kept


@pytest.mark.parametrize("kind", SPLITS)
@pytest.mark.parametrize("make", [RuleWriter, TemplateGenerator])
def test_no_held_out_interaction_reaches_a_text_a_key_or_a_vector(tmp_path, make, kind):
    a = written(tmp_path / "a", False, make(), kind)
    b = written(tmp_path / "b", True, make(), kind)
    assert a[0] != b[0], "the replacement must have changed what is held out"
    assert a[1:] == b[1:], "prompts and their order, profile vectors, item vectors, and the whole store"
    leaking = written(tmp_path / "c", True, make(), kind, profiles_see="all")
    assert leaking[2] != b[2], "the same comparison finds a leak where there is one"


def test_runs_with_other_settings_list_their_failures_apart(stage, tmp_path):
    broken = RuleWriter(lambda prompt: "down" if "Each numbered" in prompt and "number 7" in prompt else None)
    lists = {}
    for words in (20, 30):
        made = stage(broken, item_text="text", profile_words=words)
        made.provide(BOTH, WordEncoder)
        lists[words] = failures_file(tmp_path, made.config, PROFILES)
    assert lists[20] != lists[30]
    kept = lists[30].read_text()
    assert len(kept.splitlines()) > 1
    stage(RuleWriter(), item_text="text", profile_words=20).provide(BOTH, WordEncoder)
    assert not lists[20].exists(), "nothing failed any more"
    assert lists[30].read_text() == kept


def test_prompts_of_items_are_not_kept_while_profiles_are_written(stage, monkeypatch):
    live = LiveRequests()
    monkeypatch.setattr("recbole_mm.inputs.reasoning.items.Request", live)
    context = stage(Forgetful(), item_text="image").context()
    assert sum(text is not None for text in context.share(ItemTexts).texts) == 40
    assert (live.alive, live.most) == (0, 40)


def test_prompts_are_made_when_they_are_needed_and_not_kept(stage, monkeypatch):
    """A million users' prompts are gigabytes: no more of them are alive than two batches and the one in hand."""
    live = LiveRequests()
    monkeypatch.setattr(profiles, "Request", live)
    monkeypatch.setattr("recbole_mm.llm.texts.stage.TEXTS_PER_BATCH", 8)
    made = stage(Forgetful(), item_text="text")
    assert sum(text is not None for text in made.profiles(made.item_texts())) == 60
    assert live.alive == 0
    assert 8 <= live.most <= 2 * 8 + 2
