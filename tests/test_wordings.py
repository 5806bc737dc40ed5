"""Wordings of prompts: the shipped ones say all that is needed, and others are refused where they could not."""

from __future__ import annotations

import pytest

from recbole_mm.artifacts.store import Store
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.reasoning.decay import Decay
from recbole_mm.inputs.reasoning.prompts import PROFILE, description_prompt, facts_prompt, profile_prompt
from recbole_mm.inputs.reasoning.settings import ReasoningSettings
from recbole_mm.inputs.reasoning.wordings import PLACES, Wording, wording_names
from tests.reasoning import Reasoning, RuleWriter


def prompts_of(wording: Wording) -> list[str]:
    return [
        description_prompt("film", "Contact", 33, wording.description),
        facts_prompt("film", "Title: Contact", 33, wording.facts),
        profile_prompt("film", ["Contact", "Heat"], 4, 33, Decay("none"), wording.profile),
    ]


def test_there_are_four_beside_the_packages_own_and_no_two_are_alike():
    names = wording_names()
    assert names == ["brief", "fields", "seller", "steps"]
    found = [prompts_of(Wording.of(name)) for name in (None, *names)]
    for kind in range(len(PLACES)):
        assert len({prompts[kind] for prompts in found}) == 5


@pytest.mark.parametrize("name", [None, *wording_names()])
def test_each_says_what_is_wanted_of_what(name):
    described, of_facts, of_history = prompts_of(Wording.of(name))
    for prompt in (described, of_facts, of_history):
        assert "33 words" in prompt
        assert "film" in prompt
        assert "{" not in prompt
    assert "It is called: Contact." in described
    assert "Title: Contact" in of_facts
    for part in ("1. Contact\n2. Heat", "(4 older ones are left out)", "old choices as much as recent ones"):
        assert part in of_history


def test_a_mapping_replaces_the_prompts_that_it_names():
    wording = Wording.of({"profile": "\n{history}\nSo?\n"})
    assert wording.profile == "{history}\nSo?"
    assert wording.facts == Wording().facts
    assert Wording().profile == PROFILE


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("breif", "text_wording: 'breif' is none of brief, fields, seller, steps"),
        ("../overall", "text_wording: '../overall' is none of"),
        ({"profiles": "{history}"}, "text_wording: there is no prompt 'profiles'"),
        ({"profile": "What does the person like?"}, "text_wording: profile: {history} is missing"),
        ({"profile": "{history} {user}"}, "text_wording: profile: {user} is not filled in; there are cut, domain"),
        ({"profile": "{history.__class__}"}, "text_wording: profile: {history.__class__} is not filled in"),
        ({"profile": "{history[0]}"}, r"text_wording: profile: {history\[0\]} is not filled in"),
        ({"profile": "{history!r}"}, "text_wording: profile: a format is not filled in"),
        ({"profile": "{history:>99}"}, "text_wording: profile: a format is not filled in"),
        ({"profile": "{history"}, "text_wording: profile: .*write {{ and }} for braces"),
        ({"facts": 3}, "text_wording: facts: 3 is no text"),
        (3, "text_wording: 3 is not accepted"),
    ],
    ids=str,
)
def test_a_wording_that_could_not_be_filled_in_is_refused(toy_config, given, message):
    with pytest.raises(ConfigError, match=message):
        ReasoningSettings.of(toy_config("MLLMRec", text_wording=given))


def test_prompts_of_a_run_are_in_the_wording_that_is_set(toy_config, tmp_path):
    asked = {}
    for name in (None, "seller"):
        writer = RuleWriter(reads_images=False)
        config = toy_config("MLLMRec", text_wording=name, item_domain="film")
        made = Reasoning(config, create_dataset(config), Store(tmp_path / f"{name}.sqlite"), tmp_path, writer)
        made.profiles(made.item_texts())
        asked[name] = [request.prompt for request in writer.asked]
    assert len(asked[None]) == len(asked["seller"])
    assert not set(asked[None]) & set(asked["seller"])
    assert sum("regular customer" in prompt for prompt in asked["seller"]) == 60
    assert sum("of which your list says" in prompt for prompt in asked["seller"]) == 40
