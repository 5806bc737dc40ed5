"""Preferences of a run: which histories are asked about, what is told of them, and what never reaches them."""

from __future__ import annotations

import csv
import logging
import sqlite3

import numpy as np
import pytest

from recbole_mm.artifacts.store import Store
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.answering.examples import draw_examples, training_targets
from recbole_mm.inputs.reasoning import recurrent
from recbole_mm.inputs.reasoning.failures import LeftOut, failures_file
from recbole_mm.inputs.reasoning.preferences import Cases, Preferences
from recbole_mm.inputs.reasoning.rates import read_rates
from recbole_mm.inputs.reasoning.settings import PreferenceSettings
from recbole_mm.inputs.reasoning.writing import PREFERENCES
from recbole_mm.llm.texts.generator import Request, TemplateGenerator
from tests.conftest import TOY_SETTINGS
from tests.reasoning import Forgetful, LiveRequests, Reasoning, RuleWriter
from tests.test_contract import SPLITS, eval_args, leak_dataset

NEEDS = ("item_texts", "user_preferences")
SFT = {"sft_tuning": "lora", "sft_targets": 1, "item_text": "text"}


@pytest.fixture
def stage(toy_config, tmp_path):
    """`stage(generator, **settings)` -> the stage on `toy`, its store beside it."""

    def build(generator, left_out=None, **settings) -> Reasoning:
        config = toy_config("SASRec", **{**SFT, **settings})
        store = Store(tmp_path / "store.sqlite")
        return Reasoning(config, create_dataset(config), store, tmp_path, generator, left_out)

    return build


def histories(dataset) -> dict[int, tuple[list[int], list[int]]]:
    """User -> training items and held-out items."""
    users, items, offsets = dataset.user_histories()
    everything = dataset.user_histories(held_out=True)
    assert everything[0].tolist() == users.tolist()
    found = {}
    for place, user in enumerate(users.tolist()):
        whole = everything[1][everything[2][place] : everything[2][place + 1]].tolist()
        count = offsets[place + 1] - offsets[place]
        assert whole[:count] == items[offsets[place] : offsets[place + 1]].tolist()
        found[user] = whole[:count], whole[count:]
    return found


# --- cases ------------------------------------------------------------------------------------------------------------


def test_timelines_hold_every_row_with_its_phase_and_time(toy_config):
    dataset = create_dataset(toy_config("SASRec"))
    timelines = dataset.user_timelines()
    for place, user in enumerate(timelines.users.tolist()):
        rows = slice(timelines.offsets[place], timelines.offsets[place + 1])
        train, held_out = histories(dataset)[user]
        assert timelines.items[rows].tolist() == train + held_out
        assert timelines.phases[rows].tolist() == [0] * len(train) + [1, 2]
        assert (np.diff(timelines.times[rows]) == 1).all()
    # Loaded without times: only a split that asks for none has phases then.
    dataset.inter_feat = dataset.inter_feat.drop(columns=["timestamp"])
    dataset._times = lambda: np.arange(len(dataset.inter_feat))
    assert dataset.user_timelines().times is None


def test_asked_about_are_the_histories_of_targets_and_of_held_out_items(stage):
    made = stage(RuleWriter())
    cases = Cases.of(made.config, made.dataset)
    for user, (train, held_out) in histories(made.dataset).items():
        count = len(train)
        wanted = {count, count + 1} | ({count - 1} if count > 1 else set())
        assert set(cases.lengths[user]) == wanted
        assert cases.sequences()[user].tolist() == train + held_out[:1], "what is only asked for is shown to nobody"
    for untrained in ({"sft_tuning": "none"}, {"answers": "written"}):
        zero_shot = Cases.of(stage(RuleWriter(), **untrained).config, made.dataset)
        assert all(min(lengths) == len(histories(made.dataset)[user][0]) for user, lengths in zero_shot.lengths.items())
    every = Cases.of(stage(RuleWriter(), sft_targets=None).config, made.dataset)
    assert all(lengths == list(range(1, len(lengths) + 1)) for lengths in every.lengths.values())


def test_a_cap_on_examples_caps_the_texts(stage):
    made = stage(RuleWriter(), sft_examples=7)
    users, _, offsets = made.dataset.user_histories()
    drawn = training_targets(offsets, 1, 7, made.config["seed"])
    held_out = len(Cases.of(stage(RuleWriter(), sft_tuning="none").config, made.dataset))
    cases = Cases.of(made.config, made.dataset)
    assert len(cases) == held_out + 7
    assert all(target.position in cases.lengths[int(users[target.place])] for target in drawn)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_every_case_of_a_run_has_its_text(stage):
    writer = RuleWriter()
    made = stage(writer, preference_words=12, item_domain="film")
    provided = made.provide(NEEDS)
    assert set(provided) == {"item_texts", "preferences"}
    assert writer.closed
    dataset, preferences = made.dataset, provided["preferences"]
    assert provided["item_texts"][1:] == [dataset.content.text(item) for item in range(1, dataset.item_num)]
    prompts = {request.prompt: writer._answer(request) for request in writer.asked}
    for user, (train, held_out) in histories(dataset).items():
        for history in (train[:-1], train, train + held_out[:1]):
            if not history:
                continue
            told = None
            for start in range(0, len(history), 3):
                block = [provided["item_texts"][item] for item in history[start : start + 3]]
                lines = "\n".join(f"{n}. {text}".replace("\n", "; ") for n, text in enumerate(block, start=1))
                told = next(
                    text for prompt, text in prompts.items()
                    if f"\n\n{lines}\n\n" in prompt and (told is None) == ("known so far" not in prompt)
                    and (told is None or f"\n\n{told}\n\n" in prompt)
                )  # fmt: skip
            assert preferences.of(user, history) == told
            assert preferences.of(user, history[-10:]) == told, "as RecBole hands it on, cut to its last items"
    assert all("film" in prompt and "at most 12 words" in prompt for prompt in prompts)
    assert "user_preference | rule-1 | cpu" in read_rates(made.artifacts)
    asked = len(writer.asked)
    made.provide(NEEDS)
    assert len(writer.asked) == asked, "everything is in the store"


def test_sessions_end_where_nothing_is_chosen_for_long(stage, tmp_path):
    folder = tmp_path / "sessions" / "toy"
    folder.mkdir(parents=True)
    hours = [0, 1, 2, 30, 31, 90, 91, 92]
    rows = [f"u\ti{n}\t{1_700_000_000 + 3600 * hour}" for n, hour in enumerate(hours)]
    (folder / "toy.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(rows) + "\n")
    (folder / "toy.item").write_text(
        "item_id:token\ttitle:token_seq\n" + "".join(f"i{n}\tThing {n}\n" for n in range(8))
    )
    writer = RuleWriter()
    given = {"data_path": str(folder.parent), "load_col": None, "text_fields": ["title"], "image_dir": None}
    made = stage(writer, **given, preference_blocks="gap", preference_gap_hours=24)
    made.preferences(made.item_texts())
    shown = [[line[-1] for line in request.prompt.splitlines() if line[1:3] == ". "] for request in writer.asked]
    assert sorted(shown) == [["0", "1", "2"], ["3", "4"], ["5"], ["5", "6"]], "after 5, 6 and 7 items"
    cases = Cases.of(made.config, made.dataset)
    rows = [row + "000" for row in rows]
    (folder / "toy.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(rows) + "\n")
    in_milliseconds = stage(RuleWriter(), **given, preference_blocks="gap")
    later = Cases.of(in_milliseconds.config, in_milliseconds.dataset)
    assert (later.timelines.times == 1000 * cases.timelines.times).all()
    assert later.chains(in_milliseconds.preference) == cases.chains(made.preference)


def test_sessions_of_data_without_times_are_refused(stage, tmp_path):
    folder = tmp_path / "positions" / "toy"
    folder.mkdir(parents=True)
    rows = [f"u\ti{n}\t{n}" for n in range(8)]
    (folder / "toy.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + "\n".join(rows) + "\n")
    given = {"data_path": str(folder.parent), "load_col": None, "text_fields": [], "image_dir": None}
    made = stage(RuleWriter(), **given, preference_blocks="gap")
    with pytest.raises(ConfigError, match="these end at 5, as positions do: set preference_blocks: size"):
        Cases.of(made.config, made.dataset).chains(made.preference)
    timelines = made.dataset.user_timelines()
    without = Cases(type(timelines)(timelines.users, timelines.items, timelines.offsets, timelines.phases, None), {})
    with pytest.raises(ConfigError, match="gap needs times: name their column in load_col"):
        without.chains(made.preference)


def test_direct_shows_each_history_at_once(stage):
    writer = RuleWriter()
    made = stage(writer, preference="direct")
    texts = made.item_texts()
    preferences = made.preferences(texts)
    cases = Cases.of(made.config, made.dataset)
    sequences = cases.sequences()
    distinct = {tuple(sequences[user][:length].tolist()) for user, length in cases.nodes()}
    assert len(writer.asked) == len(distinct), "no text is made of another"
    assert not any("known so far" in request.prompt for request in writer.asked)
    for user, (train, held_out) in histories(made.dataset).items():
        lines = "\n".join(f"{n}. {texts[item]}".replace("\n", "; ") for n, item in enumerate(train + held_out[:1], 1))
        prompt = next(request for request in writer.asked if f"\n\n{lines}\n\n" in request.prompt)
        assert preferences.of(user, train + held_out[:1]) == writer._answer(prompt)


def test_direct_keeps_the_newest_within_its_tokens(stage):
    writer = RuleWriter()
    made = stage(writer, preference="direct", preference_history_tokens=30)
    made.preferences(made.item_texts())
    lines = [[line for line in each.prompt.splitlines() if line[1:3] == ". "] for each in writer.asked]
    assert all(sum(writer.count_tokens(line) for line in shown) <= 30 for shown in lines)
    assert any("older ones are left out" in request.prompt for request in writer.asked)


def test_none_writes_nothing_and_describes_nothing(stage):
    writer = RuleWriter()
    made = stage(writer, preference="none", item_text="fused")
    provided = made.provide(("user_preferences",))
    assert provided["preferences"].of(1, [1, 2, 3]) is None
    assert writer.asked == []


def test_a_template_tells_of_each_history_as_a_whole(stage):
    made = stage(TemplateGenerator(), preference_words=20)
    preferences = made.preferences(made.item_texts())
    for user, (train, held_out) in histories(made.dataset).items():
        told = preferences.of(user, train + held_out[:1])
        assert told.startswith("Likes class ")
        assert len(told.split()) <= 20
        title = made.dataset.content.fields(held_out[0])["title"]
        assert (title in told) or "Chose lately" not in told
        assert title not in preferences.of(user, train)
    assert made.store.count(PREFERENCES) <= len(Cases.of(made.config, made.dataset))


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["recurrent", "direct"])
def test_what_fails_is_listed_and_a_run_does_without_it(stage, tmp_path, caplog, way):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    broken = RuleWriter(lambda prompt: "the server is gone" if "number 7;" in prompt else None)
    made = stage(broken, LeftOut(run_dir), preference=way)
    texts = made.item_texts()
    with caplog.at_level(logging.WARNING):
        first = made.preferences(texts)
    path = failures_file(tmp_path, made.config, PREFERENCES)
    rows = list(csv.reader(path.open()))[1:]
    assert rows
    assert {row[1] for row in rows} == {"the server is gone"}
    tokens = list(made.dataset.field2id_token["user_id"])
    seven = list(made.dataset.item_tokens()).index("i7")
    for name in (row[0] for row in rows):
        token, _, length = name.partition(" (")
        train, held_out = histories(made.dataset)[tokens.index(token)]
        assert seven in (train + held_out)[: int(length.split()[0])]
    assert f"{len(rows)} of" in caplog.text
    resumed = RuleWriter()
    again = stage(resumed, LeftOut(run_dir), preference=way).preferences(texts)
    assert resumed.asked == [], "the run did without them when it began"
    cases = Cases.of(made.config, made.dataset)
    sequences = cases.sequences()
    for user, length in cases.nodes():
        assert again.of(user, sequences[user][:length]) == first.of(user, sequences[user][:length])
    mended = RuleWriter()
    stage(mended, LeftOut(), preference=way).preferences(texts)
    failing = {request.prompt for request in broken.asked if "number 7;" in request.prompt}
    asked = {request.prompt for request in mended.asked}
    assert failing <= asked
    assert failing == asked or way == "recurrent", "and, block by block, what is made of them"
    assert not path.exists()


# --- looking up -------------------------------------------------------------------------------------------------------


def test_a_history_finds_the_longest_text_that_it_continues():
    told = Preferences({1: np.arange(10, 20)}, {(1, 3): "three", (1, 6): "six", (1, 9): "nine"}, max_length=4)
    assert told.of(1, [10, 11]) is None
    assert told.of(1, []) is None
    assert told.of(2, [10, 11, 12]) is None
    assert told.of(1, [10, 11, 12]) == "three"
    assert told.of(1, list(range(10, 15))) == "three"
    assert told.of(1, list(range(10, 16))) == "six"
    assert told.of(1, list(range(10, 19))) == "nine"
    assert told.of(1, [12, 13, 14, 15]) == "six", "the last four of six"
    assert told.of(1, [12, 13, 14]) is None, "three are never the end of more"
    assert told.of(1, [10, 11, 12, 99]) == "three", "something new after what is known"
    assert told.of(1, [17, 18, 19, 99]) == "nine", "the same, seen through the last four"
    assert told.of(1, [50, 51, 52, 53]) is None
    assert len(told) == 3


def test_of_two_places_where_a_history_may_end_it_is_the_first():
    told = Preferences({1: np.array([1, 2, 3, 2, 3, 4])}, {(1, 3): "three", (1, 5): "five"}, max_length=2)
    assert told.of(1, [2, 3]) == "three", "a text must not know more than its history"
    assert told.of(1, [3, 2]) == "three"
    assert told.of(1, [3, 4]) == "five"


# --- nothing held out -------------------------------------------------------------------------------------------------


def told_in_training(folder, other: bool, generator, kind: str = "leave-one-out", **settings):
    """What training asks and reads, with half of the held-out items replaced if `other`; and what is held out."""
    data = leak_dataset(folder, other, SPLITS[kind])
    given = {**TOY_SETTINGS, **SFT, "sft_targets": 2, "eval_args": eval_args(SPLITS[kind]), **settings}
    config = Config("SASRec", "toy", config_dict={**given, "data_path": str(data), "checkpoint_dir": str(folder)})
    dataset = create_dataset(config)
    held_out = dataset.inter_feat["item_id"].tolist()
    with Store(folder / "store.sqlite") as store:
        made = Reasoning(config, dataset, store, folder, generator)
        preferences = made.provide(NEEDS)["preferences"]
    users, items, offsets = dataset.user_histories()
    targets = training_targets(offsets, 2, None, config["seed"])
    examples = draw_examples(users, items, offsets, dataset.item_tokens(), targets, 1, 0)
    names = dataset.field2id_token["user_id"]
    told = [(str(names[one.user]), one.item, preferences.of(one.user, one.history)) for one in examples]
    lookups = [
        (str(names[user]), length, preferences.of(int(user), items[start : start + length]))
        for user, start, end in zip(users, offsets, offsets[1:])
        for length in range(1, end - start + 1)
    ]
    evaluated = [preferences.of(user, sequence) for user, sequence in Cases.of(config, dataset).sequences().items()]
    asked = [request.prompt for request in getattr(generator, "asked", [])]
    return held_out, told, lookups, evaluated, asked


@pytest.mark.parametrize("kind", [kind for kind, split in SPLITS.items() if split.in_time])
@pytest.mark.parametrize("way", ["recurrent", "direct"])
@pytest.mark.parametrize("make", [RuleWriter, TemplateGenerator])
def test_no_held_out_interaction_reaches_a_text_of_training(tmp_path, make, way, kind):
    a = told_in_training(tmp_path / "a", False, make(), kind, preference=way)
    b = told_in_training(tmp_path / "b", True, make(), kind, preference=way)
    assert a[0] != b[0], "the replacement must have changed what is held out"
    assert a[1] == b[1]
    assert all(told for _, _, told in a[1])
    assert a[2] == b[2], "nor does any other beginning of the training items find another text"
    assert a[3] != b[3], "while those of the test have changed"


def test_prompts_of_training_are_those_of_a_run_without_evaluation(tmp_path):
    """Held-out items stand only in prompts that training never asks for."""
    a = told_in_training(tmp_path / "a", False, RuleWriter())
    b = told_in_training(tmp_path / "b", True, RuleWriter())
    only_a, only_b = set(a[4]) - set(b[4]), set(b[4]) - set(a[4])
    assert only_a
    assert only_b
    read = {text for _, _, text in a[2]}
    assert read.isdisjoint(RuleWriter()._answer(Request(prompt, None)) for prompt in only_a | only_b)


def test_the_keys_of_training_texts_do_not_depend_on_held_out_rows(tmp_path):
    kept = []
    for name, other in (("a", False), ("b", True)):
        told_in_training(tmp_path / name, other, RuleWriter())
        with sqlite3.connect(tmp_path / name / "store.sqlite") as store:
            kept.append(dict(store.execute("SELECT value, key FROM artifacts").fetchall()))
    shared = set(kept[0]) & set(kept[1])
    assert shared
    assert all(kept[0][text] == kept[1][text] for text in shared)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preference": "often"}, "preference: 'often' is not accepted; give one of recurrent, direct, none"),
        ({"preference_blocks": "week"}, "preference_blocks: 'week' is not accepted; give one of size, gap"),
        ({"preference_block_size": 0}, "preference_block_size: 0 is not accepted; give a whole number"),
        ({"preference_block_size": True}, "preference_block_size: True"),
        ({"preference_gap_hours": 0}, "preference_gap_hours: 0 is not accepted; give a number above 0"),
        ({"preference_gap_hours": "day"}, "preference_gap_hours: 'day'"),
        ({"preference_words": 2.5}, "preference_words: 2.5"),
        ({"preference_history_tokens": -1}, "preference_history_tokens: -1"),
        ({"preference_words": 150, "text_backend": "hf"}, r"preference_words: 150 is more than text_max_words \(100\)"),
    ],
)
def test_settings_are_checked(toy_config, settings, message):
    with pytest.raises(ConfigError, match=message):
        PreferenceSettings.of(toy_config("SASRec", **settings))


def test_settings_that_are_not_given(toy_config):
    assert PreferenceSettings.of(toy_config("SASRec")) == PreferenceSettings()
    assert PreferenceSettings.of(toy_config("SASRec", preference_words=None)).preference_words == 100
    short = toy_config("SASRec", text_backend="hf", text_max_words=40)
    assert PreferenceSettings.of(short).preference_words == 40, "no more than any text may have"


@pytest.mark.parametrize("way", ["recurrent", "direct"])
def test_prompts_are_not_kept(stage, monkeypatch, way):
    live = LiveRequests()
    monkeypatch.setattr("recbole_mm.inputs.reasoning.prompts.Request", live)
    monkeypatch.setattr("recbole_mm.llm.texts.stage.TEXTS_PER_BATCH", 8)
    monkeypatch.setattr(recurrent.ChainWriter.__init__, "__defaults__", ((), 8, 8))  # skipped, least, most
    monkeypatch.setattr(recurrent, "LOOKED_UP", 8)
    made = stage(Forgetful(), preference=way)
    assert len(made.preferences(made.item_texts())) > 60
    assert 8 <= live.most <= 3 * 8
