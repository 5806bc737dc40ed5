"""How generic texts about users are: the figures, the warning and both of its sides, and what a run keeps of them."""

from __future__ import annotations

import json
import logging
import re
import unicodedata

import numpy as np
import pytest

import recbole_mm
from recbole_mm.inputs.reasoning import genericness as module
from recbole_mm.inputs.reasoning.genericness import (
    LEAST,
    NEAREST_ABOVE,
    OWN_BELOW,
    SAMPLE,
    Genericness,
    content_stems,
    genericness,
    report,
    words_of,
)
from tests.encoders import write_sentence_encoder

COLOURS = [f"{first}{second}" for first in ("crimson", "azure", "olive", "amber", "violet") for second in "abcdefgh"]
THINGS = ["teapot", "mirror", "ladder", "violin", "carpet", "helmet", "basket", "candle"]
ITEMS: list[str | None] = [
    None,
    *(
        f"Title: {colour[::-1]} {thing[::-1]}\nColour: {colour}\nKind: {thing}"
        for colour in COLOURS
        for thing in THINGS
    ),
]
USERS = 60
BLAND = (
    "This person will look for a product that has a unique and captivating quality, with a strong focus on style.",
    "This person enjoys products that are unique and captivating, and will look for a strong sense of style.",
    "This person has a taste for captivating products, with a strong focus on quality and a unique style.",
)


def histories() -> dict[int, list[int]]:
    """Six items of each user."""
    rng = np.random.default_rng(7)
    return {user: (1 + rng.choice(len(ITEMS) - 1, 6, replace=False)).tolist() for user in range(USERS)}


def specific() -> dict[int, str]:
    """Profiles that name what the user's own items have."""
    said = {}
    for user, items in histories().items():
        colours, kinds = zip(*((ITEMS[item].split()[4], ITEMS[item].split()[-1]) for item in items[:4]), strict=True)
        said[user] = f"Prefers {' and '.join(kinds)} in {', '.join(colours)}."
    return said


def bland() -> dict[int, str]:
    """Profiles that fit everybody."""
    return {user: BLAND[user % len(BLAND)] for user in range(USERS)}


def shuffled() -> dict[int, str]:
    """Each user has the profile of another."""
    said = specific()
    return {user: said[(user + 1) % USERS] for user in said}


def measured(said: dict[int, str]) -> Genericness:
    found = genericness(said, histories().__getitem__, ITEMS.__getitem__)
    assert found is not None
    return found


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_of_texts_by_hand():
    said = {user: "red red lamp" for user in range(LEAST)}
    found = genericness(said, lambda user: [1] if user else [2], [None, "A lamp", "Garden lamps"].__getitem__)
    assert found is not None
    assert found.distinct_1 == round(2 / 30, 4)
    assert found.distinct_2 == round(2 / 20, 4)
    assert found.nearest == 1
    # "red" is too short to count; "lamp" and "lamps" differ within five letters: user 0 has the lamps
    assert found.foreign == 0.1
    assert found.foreign_to_others == 0.1


def test_texts_of_distinct_words_are_not_alike():
    found = genericness({user: f"only{user:03d}x" for user in range(20)}, lambda user: [], lambda item: None)
    assert found is not None
    assert (found.distinct_1, found.distinct_2, found.nearest, found.foreign) == (1, 1, 0, 1)


def test_figures_do_not_depend_on_the_order_of_items_or_on_case():
    said = specific()
    loud = {user: text.upper() for user, text in said.items()}
    turned = genericness(loud, lambda user: histories()[user][::-1], ITEMS.__getitem__)
    assert turned == measured(said)


@pytest.mark.parametrize(
    "texts", [{}, {1: "A lamp"}, {user: "" for user in range(50)}, {user: "!?" for user in range(50)}]
)
def test_nothing_is_said_of_few_texts_or_of_none(texts, caplog):
    assert genericness(texts, lambda user: [1], ITEMS.__getitem__) is None
    with caplog.at_level(logging.INFO):
        assert report("user profiles", texts, lambda user: [1], ITEMS.__getitem__) == {}
    assert not caplog.records


def test_empty_texts_are_left_out():
    said = specific()
    assert measured({**said, 0: "", 1: "..."}).texts == USERS - 2


def test_texts_about_items_without_words_are_foreign_to_all():
    found = genericness(specific(), lambda user: [0], lambda item: None)
    assert found is not None
    assert (found.foreign, found.foreign_to_others) == (1, 1)


def test_many_texts_are_sampled_alike_every_time(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE", 20)
    asked: list[int] = []

    def items_of(user: int) -> list[int]:
        asked.append(user)
        return histories()[user]

    first = genericness(specific(), items_of, ITEMS.__getitem__)
    assert first is not None
    assert first.texts == len(asked) == 20
    assert asked == sorted(set(asked)), "each once, in their order"
    assert genericness(specific(), items_of, ITEMS.__getitem__) == first
    assert genericness(specific(), items_of, ITEMS.__getitem__, seed=1) != first


def test_a_million_texts_cost_what_a_sample_costs():
    class Many(dict):
        """A text for every key, made when it is asked for."""

        def __getitem__(self, user):
            self.asked = getattr(self, "asked", 0) + 1
            return f"Likes number {user} and {user * 7}"

    texts = Many.fromkeys(range(1_000_000))
    found = genericness(texts, lambda user: [1 + user % 5], ITEMS.__getitem__)
    assert found is not None
    assert found.texts == SAMPLE
    assert texts.asked <= 2 * SAMPLE


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("—  «…» 🙂", []),
        ("Rock'n'roll, 1990s!", ["rock", "n", "roll", "1990s"]),
        ("Été naïf", ["été", "naïf"]),
        ("赤い靴", ["赤", "い", "靴"]),
        ("Nike 红色 鞋", ["nike", "红", "色", "鞋"]),
        ("हिन्दी फ़िल्म", ["हिन्दी", "फ़िल्म"]),
        ("빨간 구두", ["빨간", "구두"]),
    ],
)
def test_words(text, words):
    assert words_of(text) == [unicodedata.normalize("NFC", word) for word in words]


def test_thai_is_taken_apart_and_no_mark_is_lost():
    words = words_of("รองเท้าสีแดง")
    assert "".join(words) == "รองเท้าสีแดง"
    assert len(words) == len("รองเท้าสีแดง")


def test_languages_without_spaces_are_measured_by_characters():
    items = [None, *(chr(0x4E00 + 41 * item) + "い" + chr(0x4E10 + 41 * item) for item in range(64))]
    rng = np.random.default_rng(3)
    own = {user: (1 + rng.choice(64, 3, replace=False)).tolist() for user in range(40)}
    about = {user: "と".join(items[item] for item in chosen) for user, chosen in own.items()}
    found = genericness(about, own.__getitem__, items.__getitem__)
    assert found is not None
    assert not found.reasons
    assert found.foreign_to_others - found.foreign > 0.2
    same = genericness({user: "この人は物が好きです" for user in own}, own.__getitem__, items.__getitem__)
    assert same is not None
    assert len(same.reasons) == 2


def test_words_that_say_nothing_of_items_do_not_count():
    assert content_stems(words_of("They will have been with the dramatic one")) == {"drama"}


# --- the warning ------------------------------------------------------------------------------------------------------


def test_specific_texts_are_not_warned_of(caplog):
    with caplog.at_level(logging.INFO):
        figures = report("user profiles", specific(), histories().__getitem__, ITEMS.__getitem__)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert "60 of them: distinct-1 " in caplog.text
    assert figures["foreign"] < 0.2 < figures["foreign_to_others"]
    assert figures["nearest"] < NEAREST_ABOVE


@pytest.mark.parametrize(("said", "reasons"), [(bland, 2), (shuffled, 1)])
def test_generic_texts_are_warned_of_in_one_line(said, reasons, caplog):
    with caplog.at_level(logging.INFO):
        report("user profiles", said(), histories().__getitem__, ITEMS.__getitem__)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("user profiles are GENERIC, they hardly tell users apart: ")
    assert "\n" not in warning
    assert len(measured(said()).reasons) == reasons


def test_both_sides_of_the_thresholds():
    fine = {"texts": 500, "distinct_1": 0.1, "distinct_2": 0.2, "foreign": 0.5}
    sides = [(NEAREST_ABOVE, 0.5 + OWN_BELOW + 0.001), (NEAREST_ABOVE + 0.01, 0.9), (0.1, 0.5 + OWN_BELOW - 0.001)]
    found = [Genericness(**fine, nearest=nearest, foreign_to_others=others).reasons for nearest, others in sides]
    assert [len(reasons) for reasons in found] == [0, 1, 1]
    assert "similar" in found[1][0]
    assert "50% of their words are in no item of their user, 60% in none of another user" in found[2][0]


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "what", "settings"),
    [
        ("MLLMRec", "user profiles", {}),
        (
            *("MLLMMSR", "user preferences"),
            {"sft_tuning": "none", "preference": "direct", "rerank_k": None, "first_stage": "none"},
        ),
    ],
)
def test_a_run_keeps_and_logs_the_figures(model, what, settings, toy_settings, tmp_path):
    encoder = str(write_sentence_encoder(tmp_path / "encoder"))
    settings = {"sentence_encoder": encoder, "epochs": 1, "state": "INFO", **settings}
    done = recbole_mm.run(model, "toy", config_dict={**toy_settings, **settings})
    result = json.loads((done.run_dir / "result.json").read_text())
    figures = result["genericness"][what]
    assert figures == done.genericness[what]
    assert set(figures) == {"texts", "distinct_1", "distinct_2", "nearest", "foreign", "foreign_to_others"}
    assert all(0 <= value <= 1 for name, value in figures.items() if name != "texts")
    log = (done.run_dir / "run.log").read_text()
    assert re.search(rf"{what}, {figures['texts']} of them: distinct-1 {figures['distinct_1']:.3f}", log)


def test_a_run_without_texts_about_users_says_nothing(toy_settings, tmp_path):
    settings = {"sentence_encoder": str(write_sentence_encoder(tmp_path / "encoder")), "epochs": 1, "reasoning": False}
    done = recbole_mm.run("MLLMRec", "toy", config_dict={**toy_settings, **settings})
    assert done.genericness == {}
    assert "genericness" not in json.loads((done.run_dir / "result.json").read_text())
