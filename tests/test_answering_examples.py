"""What an answering model is fine-tuned on: whose items, which others, and what never leaks in."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.inputs import ModelInputs
from recbole_mm.errors import DataError
from recbole_mm.inputs.answering import first_stage
from recbole_mm.inputs.answering.examples import (
    PromptedQuestions,
    Question,
    Target,
    draw_examples,
    questions_digest,
    training_targets,
)
from recbole_mm.inputs.answering.tuning import SftSettings, training_questions
from tests.conftest import TOY_SETTINGS, write_toy
from tests.test_mirm import rewrite

OFFSETS = np.array([0, 4, 5, 8])
USERS = np.array([7, 3, 9])
ITEMS = np.array([1, 2, 3, 4, 5, 6, 1, 7])
TOKENS = ["[PAD]", *"hgfedcba"]


class SpelledPrompt:
    """A prompt whose parts are its numbers."""

    tail, identity, shares_prefix = "", "spelled", True

    def prefix(self, user, history):
        return [[100 + user, *history]]

    def suffix(self, item):
        return [[200 + item]]

    def prefix_length(self, user, history):
        return 1 + len(history)

    def suffix_length(self, item):
        return 1

    def user_text(self, user, history):
        return f"{user}: {history}"

    def fingerprint(self, item):
        return f"item {item}"


# --- targets ----------------------------------------------------------------------------------------------------------


def test_targets_are_the_last_items_that_have_a_history():
    assert training_targets(OFFSETS, 1, None, 0) == [Target(0, 3), Target(2, 2)]
    assert training_targets(OFFSETS, 2, None, 0) == [Target(0, 2), Target(0, 3), Target(2, 1), Target(2, 2)]
    everything = training_targets(OFFSETS, None, None, 0)
    assert everything == training_targets(OFFSETS, 99, None, 0)
    assert [target.position for target in everything] == [1, 2, 3, 1, 2]


def test_a_limit_draws_by_the_seed():
    offsets = np.arange(0, 303, 3)
    drawn = training_targets(offsets, 1, 10, 5)
    assert len(drawn) == 10
    assert drawn == training_targets(offsets, 1, 10, 5)
    assert drawn != training_targets(offsets, 1, 10, 6)
    assert set(drawn) <= set(training_targets(offsets, 1, None, 5))
    assert drawn == sorted(drawn, key=lambda target: (target.place, target.position))
    assert len({target.place for target in drawn}) == 10
    assert training_targets(offsets, 1, 1000, 5) == training_targets(offsets, 1, None, 5)


# --- examples ---------------------------------------------------------------------------------------------------------


def draw(targets, negatives=1, seed=0, tokens=TOKENS, items=ITEMS):
    return draw_examples(USERS, items, OFFSETS, tokens, targets, negatives, seed)


def test_a_target_is_asked_about_behind_its_history_and_others_after_it():
    asked = draw(training_targets(OFFSETS, 1, None, 0), negatives=2)
    assert [one.answer for one in asked] == [True, False, False] * 2
    assert asked[0] == Question(7, (1, 2, 3), 4, True)
    assert asked[3] == Question(9, (6, 1), 7, True)
    for one in asked:
        own = {7: {1, 2, 3, 4}, 9: {6, 1, 7}}[one.user]
        assert (one.item in own) == one.answer
        assert one.item in ITEMS
    assert len({one.item for one in asked[1:3]}) == 2


def test_a_user_with_nearly_all_items_gets_the_others_that_there_are():
    asked = draw([Target(0, 3)], negatives=99)
    assert sorted(one.item for one in asked if not one.answer) == [5, 6, 7]


def test_negatives_are_uniform_over_the_items_that_a_user_lacks():
    users, items = np.arange(1, 401), np.concatenate([[1 + user % 20, 21 + user % 5] for user in range(400)])
    offsets = np.arange(0, 802, 2)
    tokens = [f"{item:02}" for item in range(26)]
    targets = training_targets(offsets, 1, None, 0)
    counts = Counter(one.item for one in draw_examples(users, items, offsets, tokens, targets, 3, 1) if not one.answer)
    assert set(counts) == set(range(1, 26))
    expected = 1200 / 25
    assert max(counts.values()) < 1.6 * expected
    assert min(counts.values()) > 0.5 * expected


def test_what_is_drawn_hangs_on_the_seed_and_on_tokens_alone():
    targets = training_targets(OFFSETS, None, None, 0)
    first = draw(targets, seed=3)
    assert first == draw(targets, seed=3)
    assert any(draw(targets, seed=seed) != first for seed in range(4, 8))
    numbers = np.array([0, 8, 3, 5, 1, 7, 2, 4, 6])  # RecBole might have numbered the items like this
    tokens = [""] * 9
    for item, number in enumerate(numbers):
        tokens[number] = TOKENS[item] if item < len(TOKENS) else "[PAD]"
    other = draw(targets, seed=3, tokens=tokens, items=numbers[ITEMS])
    assert [numbers[one.item] for one in first] == [one.item for one in other]


def test_one_targets_negatives_do_not_hang_on_the_others():
    targets = training_targets(OFFSETS, None, None, 0)
    assert draw(targets[3:], seed=3) == draw(targets, seed=3)[6:]


# --- as sft.Examples --------------------------------------------------------------------------------------------------


def test_prompted_questions():
    asked = draw([Target(0, 3)], negatives=1)
    questions = PromptedQuestions(asked, SpelledPrompt(), yes=11, no=12)
    assert len(questions) == 2
    assert questions[0].parts == [[107, 1, 2, 3], [204]]
    assert (questions[0].answer, questions[0].kind) == ([11], "yes")
    assert (questions[1].answer, questions[1].kind) == ([12], "no")
    assert not questions[0].learns_prompt
    assert questions.lengths.tolist() == [6, 6]
    assert PromptedQuestions(asked, SpelledPrompt(), 11, 12, whole=True)[1].learns_prompt
    with pytest.raises(DataError, match="at least two training interactions"):
        PromptedQuestions([], SpelledPrompt(), 11, 12)


def test_the_digest_covers_all_that_is_shown():
    asked = draw([Target(0, 3)])
    digest = questions_digest(asked, SpelledPrompt())
    assert digest == questions_digest(list(asked), SpelledPrompt())
    assert (
        len({digest, questions_digest(asked[:1], SpelledPrompt()), questions_digest(asked[::-1], SpelledPrompt())}) == 3
    )
    other = SpelledPrompt()
    other.fingerprint = lambda item: f"another {item}"
    assert questions_digest(asked, other) != digest
    other = SpelledPrompt()
    other.user_text = lambda user, history: "nothing"
    assert questions_digest(asked, other) != digest


# --- nothing held out -------------------------------------------------------------------------------------------------


def drawn_of(path: Path, tmp_path: Path) -> tuple[list, list[str]]:
    """Examples in terms that do not hang on RecBole's numbers, and the test items."""
    given = {**TOY_SETTINGS, "data_path": str(path), "checkpoint_dir": str(tmp_path)}
    dataset = create_dataset(Config("Molar", "toy", config_dict=given))
    users, items, offsets = dataset.user_histories()
    tokens, people = dataset.item_tokens(), dataset.field2id_token[dataset.uid_field]
    asked = draw_examples(users, items, offsets, tokens, training_targets(offsets, 2, 20, 3), 2, 3)
    spelled = [(people[one.user], [tokens[i] for i in one.history], tokens[one.item], one.answer) for one in asked]
    return spelled, sorted(tokens[item] for item in dataset.build()[2].inter_feat["item_id"].tolist())


def test_held_out_interactions_change_nothing(tmp_path):
    found = []
    for name, held_out in (("a", None), ("b", True), ("c", False)):
        path = write_toy(tmp_path / name, users=20, items=20)
        if held_out is not None:
            rewrite(path, held_out)
        found.append(drawn_of(path, tmp_path))
    assert found[0][1] != found[1][1], "the replacement must have changed what is held out"
    assert found[0][0] == found[1][0]
    assert found[0][0] != found[2][0]


# --- from the first stage's top ---------------------------------------------------------------------------------------


class ByToken:
    """A first stage that scores by the item's token and by how long the history is, whatever RecBole numbers them."""

    def __init__(self, tokens):
        digests = [hashlib.sha256(str(token).encode()).digest()[0] for token in tokens]
        self.values = torch.tensor(digests, dtype=torch.float64)

    def scores(self, cases):
        return (self.values * cases["item_length"][:, None]).cos()


FIELDS = {
    **{"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "LIST_SUFFIX": "_list"},
    **{"ITEM_LIST_LENGTH_FIELD": "item_length", "MAX_ITEM_LIST_LENGTH": 2},
}


class Fixed:
    """A first stage that scores every case alike."""

    def __init__(self, scores):
        self.table, self.cases = torch.tensor(scores, dtype=torch.float64), []

    def scores(self, cases):
        self.cases.append(cases)
        return self.table.expand(len(cases), -1)


def test_the_best_others_are_those_that_the_first_stage_ranks_first_and_the_user_lacks(monkeypatch):
    monkeypatch.setattr(first_stage, "SCORES_AT_ONCE", 9)  # a case at a time
    first = Fixed([9, 8, 1, 2, 3, 5, 5, 7, 9])  # 8 is in no training interaction
    targets = [Target(0, 3), Target(2, 1)]
    found = first_stage.best_others(first, FIELDS, USERS, ITEMS, OFFSETS, TOKENS, targets, 2)
    assert [best.tolist() for best in found] == [[7, 6], [5, 4]], "6 before 5: its token is lower"
    assert len(first.cases) == 2
    assert first.cases[0]["user_id"].tolist() == [7]
    assert first.cases[0]["item_id_list"].tolist() == [[2, 3]], "what is before the target, the latest of it"
    assert first.cases[1]["item_id_list"].tolist() == [[6, 0]]
    assert first.cases[1]["item_length"].tolist() == [1]


def test_negatives_come_from_the_pool_without_repetition():
    targets = [Target(0, 3), Target(2, 2)]
    pools = [np.array([7, 6, 5]), np.array([5])]
    asked = draw_examples(USERS, ITEMS, OFFSETS, TOKENS, targets, 2, 0, pools)
    first, second = [one.item for one in asked[1:3]], [one.item for one in asked[4:]]
    assert len(set(first)) == 2
    assert set(first) < {5, 6, 7}
    assert second == [5], "there are no more"
    drawn = {draw_examples(USERS, ITEMS, OFFSETS, TOKENS, targets[:1], 1, seed, pools)[1].item for seed in range(20)}
    assert drawn == {5, 6, 7}
    empty = draw_examples(USERS, ITEMS, OFFSETS, TOKENS, targets[:1], 1, 0, [np.array([], dtype=np.int64)])
    assert [one.answer for one in empty] == [True]


def test_held_out_interactions_change_no_negative_of_the_first_stage(tmp_path):
    found = []
    for name, held_out in (("a", None), ("b", True), ("c", False)):
        path = write_toy(tmp_path / name, users=20, items=20)
        if held_out is not None:
            rewrite(path, held_out)
        given = {**TOY_SETTINGS, "data_path": str(path), "checkpoint_dir": str(tmp_path), "rerank_k": 4}
        dataset = create_dataset(Config("MLLMMSR", "toy", config_dict=given))
        tokens, people = dataset.item_tokens(), dataset.field2id_token[dataset.uid_field]
        dataset.inputs = ModelInputs(first_stage=ByToken(tokens))
        settings = SftSettings(targets=2, negatives=2, negatives_from="first_stage", seed=3)
        asked = training_questions(dataset, settings)
        found.append([(people[one.user], tokens[one.item], one.answer) for one in asked])
        uniform = training_questions(dataset, replace(settings, negatives_from="uniform"))
        assert [one.answer for one in uniform] == [one.answer for one in asked]
        assert [one.item for one in uniform if not one.answer] != [one.item for one in asked if not one.answer]
    assert found[0] == found[1] != found[2]
