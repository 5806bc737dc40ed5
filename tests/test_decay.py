"""Preferences that decay: how much an older choice counts, by place and by time, in templates and in prompts."""

from __future__ import annotations

import numpy as np
import pytest

from recbole_mm.artifacts.store import Store
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.reasoning.decay import Decay, age_mark, ages_in_days
from recbole_mm.inputs.reasoning.profiles import Histories
from recbole_mm.inputs.reasoning.prompts import profile_prompt
from recbole_mm.inputs.reasoning.summary import HistorySummary
from recbole_mm.llm.texts.generator import TemplateGenerator
from tests.conftest import TOY_SETTINGS, write_toy
from tests.reasoning import Reasoning, RuleWriter
from tests.test_reasoning_summary import films

DAY = 86_400.0


# --- weights ----------------------------------------------------------------------------------------------------------


def test_a_choice_counts_half_after_its_half_life():
    assert Decay("list", 2).weights(5) == pytest.approx([0.25, 0.5**1.5, 0.5, 0.5**0.5, 1.0])
    assert Decay("days", 10).weights(3, [30.0, 10.0, 0.0]) == [0.125, 0.5, 1.0]
    assert Decay("none").weights(3, [30.0, 10.0, 0.0]) == [1.0, 1.0, 1.0]
    assert Decay().weights(41)[:1] == [0.25], "20 places, where nothing is given"
    assert Decay("days").weights(2, [60.0, 0.0]) == [0.25, 1.0], "30 days, where nothing is given"
    with pytest.raises(ValueError, match="ages"):
        Decay("days").weights(2)


def test_ages_are_days_before_a_users_latest_choice():
    times = np.array([0.0, 36.0, 48.0, 100.0]) * 3600 + 1.6e9
    offsets = np.array([0, 3, 4])
    assert ages_in_days(times, offsets).tolist() == [2.0, 0.5, 0.0, 0.0]
    np.testing.assert_allclose(ages_in_days(times * 1000, offsets), [2.0, 0.5, 0.0, 0.0])
    with pytest.raises(ConfigError, match=r"profile_decay: days needs times in Unix seconds .* end at 7, as positions"):
        ages_in_days(np.array([3.0, 7.0]), np.array([0, 2]))


# --- templates --------------------------------------------------------------------------------------------------------


def liked(folder, decay: Decay, ages=None) -> str:
    """The first genre that is told of somebody who chose three dramas, and a crime film after them."""
    return HistorySummary(films(folder), 100, decay)._liked([1, 8, 15, 2], ages)["genre"][0]


def test_the_template_counts_by_the_decay(tmp_path):
    assert liked(tmp_path, Decay("none")) == "Drama"
    assert liked(tmp_path, Decay("list", 0.5)) == "Crime"
    assert liked(tmp_path, Decay("list", 20)) == "Drama"
    assert liked(tmp_path, Decay("days", 7), [9.0, 8.0, 7.0, 0.0]) == "Drama"
    assert liked(tmp_path, Decay("days", 7), [30.0, 30.0, 30.0, 0.0]) == "Crime"


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_an_llm_is_told_how_older_choices_count():
    told = {
        name: profile_prompt("film", ["A", "B"], 0, 50, decay)
        for name, decay in {
            "list": Decay(),
            "places": Decay("list", 5),
            "days": Decay("days", 1),
            "none": Decay("none"),
        }.items()
    }
    assert told["list"] == profile_prompt("film", ["A", "B"], 0, 50), "the wording of before, whose texts are kept"
    assert "and recent choices above old ones. Write" in told["list"]
    assert "one that stands 5 places above another counts half as much. Write" in told["places"]
    assert "one made 1 day earlier than another counts half as much. Write" in told["days"]
    assert "and old choices as much as recent ones. Write" in told["none"]
    assert [age_mark(days) for days in (0.4, 1.2, 45)] == ["(latest) ", "(1 day earlier) ", "(45 days earlier) "]


# --- through a dataset ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """`toy` with 40 days between a user's choices."""
    folder = write_toy(tmp_path_factory.mktemp("spread"))
    path = folder / "toy" / "toy.inter"
    head, *rows = path.read_text().splitlines()
    rows = [row.split("\t") for row in rows]
    for row in rows:
        row[3] = str(1_600_000_000 + int(int(row[3]) % 10_000 * 40 * DAY))
    path.write_text("\n".join([head, *("\t".join(row) for row in rows)]) + "\n")
    return folder


@pytest.fixture
def stage(spread, tmp_path):
    def build(generator, **settings) -> Reasoning:
        given = {**TOY_SETTINGS, "data_path": str(spread), "checkpoint_dir": str(tmp_path), "item_text": "text"}
        config = Config("MLLMRec", "toy", config_dict={**given, **settings})
        return Reasoning(config, create_dataset(config), Store(tmp_path / "store.sqlite"), tmp_path, generator)

    return build


def test_ages_of_training_choices_alone_reach_the_prompts(stage):
    writer = RuleWriter()
    made = stage(writer, profile_decay="days", profile_half_life=90)
    made.profiles(made.item_texts())
    prompt = max((request.prompt for request in writer.asked), key=len)
    lines = [line for line in prompt.splitlines() if line[:1].isdigit()]
    assert lines[-1].split(" ", 1)[1].startswith("(latest) Title: ")
    assert lines[-2].split(" ", 1)[1].startswith("(40 days earlier) Title: ")
    assert lines[0].split(" ", 1)[1].startswith(f"({40 * (len(lines) - 1)} days earlier) ")
    assert "made 90 days earlier" in prompt
    histories = Histories.of(made.dataset, made.settings)
    assert histories.ages_of(0)[-1] == 0, "the latest training choice, whatever is held out after it"
    assert histories.ages_of(0)[0] == 40 * (len(histories[0]) - 1)


def test_profiles_of_the_template_follow_the_key_and_the_default_is_what_it_was(stage):
    def texts(**settings):
        made = stage(TemplateGenerator(), **settings)
        return made.profiles(made.item_texts())

    plain = texts()
    assert texts(profile_decay="list", profile_half_life=20) == plain
    assert texts(profile_decay="days", profile_half_life=40) == texts(profile_decay="list", profile_half_life=1)
    assert texts(profile_decay="none") == texts(profile_decay="days", profile_half_life=1e30)
    assert texts(profile_decay="list", profile_half_life=1) != texts(profile_decay="none")


def test_days_without_times_are_refused(stage):
    made = stage(
        TemplateGenerator(), profile_decay="days", load_col={"inter": ["user_id", "item_id"]}, eval_args={"order": "RO"}
    )
    with pytest.raises(ConfigError, match="profile_decay: days needs times: name their column in load_col"):
        Histories.of(made.dataset, made.settings)
