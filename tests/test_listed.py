"""Candidates in one list: what is asked and learnt, and that the letters' probabilities are those of whole prompts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

import recbole_mm
from recbole_mm.errors import ConfigError
from recbole_mm.experiments.compare.command import compare_finished
from recbole_mm.experiments.compare.table import to_markdown
from recbole_mm.inputs.answering.examples import Question
from recbole_mm.inputs.answering.lists import ListQuestion, PromptedLists, lists_digest, lists_of
from recbole_mm.inputs.answering.prompt import LABELS
from recbole_mm.llm.answer import resolve_answers
from recbole_mm.models.answering.listing import best_first, orders
from recbole_mm.models.mllmmsr import MLLMMSR
from recbole_mm.models.tallrec import TALLRec
from tests.asking import builder
from tests.conftest import TOY_SETTINGS
from tests.test_mllmmsr import QUICK, asked, cases

LISTED = {**QUICK, "answers": "listed", "max_text_tokens": 12}


built = builder("MLLM-MSR", LISTED)


def letters(outcome, row: int, items: list[int]) -> torch.Tensor:
    """p(letter) over the letters of one list, by the model with its head, told the prompt as a whole."""
    model, mllm = outcome.model, outcome.dataset.inputs.mllm
    batch = cases(outcome)
    prefix = model.prompt.prefix(int(batch["user_id"][row]), model.histories(batch)[row])
    prepared = mllm.family.prepare([*prefix, *model.prompt.list_suffix(items)], QUICK["mllm_image_pixels"])
    with torch.no_grad():
        logits = mllm.model(**mllm.family.collate([prepared], mllm.device)).logits[0, -1]
    return logits[resolve_answers(mllm, model.prompt.tail, LABELS[: len(items)])].double().softmax(0)


# --- ranking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"modalities": ["text"]}, {"list_orders": 3}], ids=str)
def test_scores_are_the_letters_probabilities_in_the_first_stages_order(built, settings):
    outcome = built(**settings)
    with torch.no_grad():
        table = outcome.model.full_sort_predict(cases(outcome))
        plain = outcome.model.first_stage.scores(cases(outcome))
    assert ((table > 0).sum(1) == 6).all()
    assert ((table >= 0) == (table > 0)).all()
    for row in range(3):
        items = (table[row] > 0).nonzero().flatten()
        ranked = items[plain[row, items].argsort(descending=True, stable=True)].tolist()
        total = torch.zeros(len(ranked), dtype=torch.float64)
        for order in orders(6, settings.get("list_orders", 1)):
            total[torch.from_numpy(order)] += letters(outcome, row, [ranked[place] for place in order])
        torch.testing.assert_close(table[row, ranked], total / total.max(), atol=2e-4, rtol=0)


def test_a_pair_has_the_score_that_it_has_in_the_whole_list(built):
    outcome = built()
    rows, items = np.repeat(np.arange(4), 3), [1, 20, 40] * 4
    with torch.no_grad():
        table = outcome.model.full_sort_predict(cases(outcome))
        best = table[:4, 1:].argmax(1) + 1
        single = outcome.model.predict(asked(outcome, rows, items))
        chosen = outcome.model.predict(asked(outcome, np.arange(4), best.tolist()))
    torch.testing.assert_close(single, table[rows, items], atol=1e-6, rtol=1e-5)
    assert chosen.tolist() == pytest.approx([1.0] * 4), "the best of a list has 1, however long the list"


def test_the_weight_of_two_scores_is_chosen_for_lists_too(built):
    outcome = built(fusion_weight="valid")
    with torch.no_grad():
        outcome.model.take_choice(0.0, last=False)
        ranked = outcome.model.full_sort_predict(cases(outcome))
        plain = outcome.model.first_stage.scores(cases(outcome))
        items = (ranked >= 0).nonzero(as_tuple=True)
        assert torch.equal(ranked[items].view(8, 6).argsort(1), plain[items].view(8, 6).argsort(1))
        outcome.model.take_choice(1.0, last=True)
        alone = outcome.model.full_sort_predict(cases(outcome))
    assert not torch.equal(alone[items].view(8, 6).argsort(1), plain[items].view(8, 6).argsort(1))


def test_lists_are_turned_by_equal_parts_and_no_order_comes_twice():
    assert [order.tolist() for order in orders(6, 3)] == [[0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 0, 1], [4, 5, 0, 1, 2, 3]]
    assert len(orders(2, 5)) == 2
    scores, marked = torch.tensor([[1.0, 3.0, 3.0, 9.0]]), torch.tensor([[True, True, True, False]])
    assert best_first(scores, marked)[0].tolist() == [1, 2, 0]


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_the_prompts_and_stand_in_result_and_table(toy_path, tmp_path):
    base = {**TOY_SETTINGS, **LISTED, "epochs": 1, "eval_step": 0, "modalities": ["text"]}
    base |= {"data_path": str(toy_path), "checkpoint_dir": str(tmp_path)}
    outcomes = [
        recbole_mm.run("MLLM-MSR", "toy", config_dict={**base, "answers": answers}) for answers in ("listed", "scored")
    ]
    for outcome in outcomes:
        model, users = outcome.model, outcome.splits.test.users
        every = users.interaction[np.arange(len(users))]
        with torch.no_grad():
            table = model.full_sort_predict(every)
        total = 0
        for row, history in enumerate(model.histories(every)):
            items = (table[row] >= 0).nonzero().flatten().tolist()
            total += model.prompt.prefix_length(int(every["user_id"][row]), history)
            listed = outcome.config["answers"] == "listed"
            total += model.prompt.list_length(items) if listed else sum(map(model.prompt.suffix_length, items))
        result = json.loads((outcome.run_dir / "result.json").read_text())
        assert result["tokens_per_user"] == {"answers, read": pytest.approx(total / len(users))}
    told = to_markdown(compare_finished([outcome.run_dir for outcome in outcomes]))
    assert "Tokens of an LLM per user: " in told
    assert told.count("answers, read") == 2


# --- what is learnt ---------------------------------------------------------------------------------------------------


def questions(user: int, history: tuple[int, ...], item: int, others: list[int]) -> list[Question]:
    return [Question(user, history, item, True), *(Question(user, history, other, False) for other in others)]


def test_a_list_holds_a_target_among_its_negatives_at_a_drawn_place():
    drawn = [*questions(7, (1, 2), 3, [4, 5, 6]), *questions(8, (9,), 5, [1, 2, 3]), *questions(8, (9, 5), 6, [1])]
    found = lists_of(drawn, seed=1)
    assert [sorted(one.items) for one in found] == [[3, 4, 5, 6], [1, 2, 3, 5], [1, 6]]
    assert [one.items[one.place] for one in found] == [3, 5, 6]
    assert found == lists_of(drawn, seed=1)
    places = [lists_of(questions(7, (1,), 3, [4, 5, 6]), seed)[0].place for seed in range(40)]
    assert set(places) == {0, 1, 2, 3}, "no letter is the answer of every list"


def test_examples_end_before_the_letter_of_the_chosen_item(built):
    outcome = built(sft_tuning="none")
    prompt, mllm = outcome.model.prompt, outcome.dataset.inputs.mllm
    labels = resolve_answers(mllm, prompt.tail, LABELS)
    assert len(set(labels)) == 26
    lists = [ListQuestion(1, (2, 3), (5, 6, 7), 1), ListQuestion(1, (2, 3), (5, 6, 7), 2)]
    examples = PromptedLists(lists, prompt, labels, whole=False)
    assert [examples[place].answer for place in (0, 1)] == [[labels[1]], [labels[2]]]
    prepared = mllm.family.prepare(examples[0].parts, prompt.image_pixels)
    assert len(prepared.ids) <= examples.lengths[0]
    text = "".join(mllm.tokenizer.decode(part) for part in examples[0].parts if isinstance(part, list))
    assert text.index("A. ") < text.index("B. ") < text.index("C. ") < text.index("Answer:")
    assert "Reply with its letter alone" in text
    assert "Yes or No" not in text
    digests = {lists_digest([one], prompt) for one in (*lists, ListQuestion(1, (2, 3), (6, 5, 7), 1))}
    assert len(digests) == 3, "order and answer are part of what is learnt"


def test_fine_tuning_on_lists_changes_answers_and_asks_for_as_many_as_ranking_shows(built):
    tuned = built(sft_tuning="lora", sft_examples=8, sft_learning_rate=1e-2, sft_epochs=2)
    plain = built()
    with torch.no_grad():
        one, two = (outcome.model.full_sort_predict(cases(outcome)) for outcome in (tuned, plain))
    assert ((one > 0) == (two > 0)).all()
    assert (one - two).abs().max() > 1e-3


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_stage": "none"}, "answers: listed shows the best items of a first stage"),
        ({"rerank_k": 27}, "answers: listed has a letter for each item: set rerank_k from 2 to 26, not 27"),
        ({"rerank_k": None}, "set rerank_k from 2 to 26, not None"),
        ({"rerank_k": 1}, "set rerank_k from 2 to 26, not 1"),
    ],
    ids=str,
)
def test_lists_that_cannot_be_shown_are_refused(toy_config, settings, message):
    with pytest.raises(ConfigError, match=message):
        MLLMMSR.requirements(toy_config("MLLMMSR", **{**LISTED, **settings}))


def test_titles_are_asked_about_one_by_one(toy_config):
    with pytest.raises(ConfigError, match="answers: listed is not for TALLRec; set answers: scored"):
        TALLRec.requirements(toy_config("TALLRec", answers="listed"))


def test_an_empty_case_of_a_batch_is_not_asked_about(built):
    outcome = built()
    rows = cases(outcome, 2)
    with torch.no_grad():
        none = torch.zeros(0, dtype=torch.int64)
        assert outcome.model._asked(rows, none, none).shape == (0,)
        assert outcome.model.full_sort_predict(Interaction({**rows.interaction})).shape == (2, outcome.model.n_items)
