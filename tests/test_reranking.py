"""What rerankers share: which items are asked about, one scale of scores, and the same numbers from `predict`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch import nn

from recbole_mm.config.schema import declared_by
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.splits import split
from recbole_mm.models.reranking import RerankingRecommender, first_of_each_row, softsign_below_zero


class Fake(RerankingRecommender):
    """Cheap scores by user and item, answers by the history's last item and the item; counts its questions."""

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        self.settings_of_the_test = config
        self.llm = nn.Linear(2, 2)
        self.own = nn.Parameter(torch.zeros(3))
        self.asked_now = True
        self.questions: list[tuple[int, int]] = []

    def first_scores(self, cases):
        items = torch.arange(self.n_items, dtype=torch.float64)
        return torch.sin(cases["user_id"][:, None] * 1.7 + items * 2.3) * 9

    def probabilities(self, cases, owners, items):
        self.questions += zip(cases["user_id"][owners].tolist(), items.tolist())
        last = torch.tensor([history[-1] for history in self.histories(cases)])[owners]
        return (torch.cos(last * 0.7 + items) + 1).double() / 2

    def asks_now(self):
        return self.asked_now

    @staticmethod
    def never_changes(name):
        return name.startswith("llm.")


class AnswersAny(Fake):
    answers_any = True


@pytest.fixture
def built(toy_config):
    """`built(Fake, **settings)` -> model and phases."""

    def build(model_class: type = Fake, **settings):
        given = {"rerank_k": 4, "train_neg_sample_args": None, **settings}
        config = toy_config("SASRec", **given)
        dataset = create_dataset(config)
        phases = split(config, dataset, model_class)
        return model_class(config, phases.train_dataset), phases

    return build


def cases(phases, count: int = 12) -> Interaction:
    return phases.test.users.interaction[np.arange(count)]


def pairs(phases, rows, items) -> Interaction:
    return Interaction({**phases.test.users.interaction[rows].interaction, "item_id": items})


# ---------------------------------------------------------------------------------------------------- pieces


def test_scores_below_zero_keep_their_order():
    scores = torch.tensor([-1e4, -3.0, 0.0, 1e-6, 2.0, 50.0, 51.0, 1e5], dtype=torch.float64)
    squeezed = softsign_below_zero(scores)
    assert (squeezed.diff() > 0).all()
    assert -1 < squeezed[0] < squeezed[-1] < 0


def test_infinite_scores_are_the_lowest_and_the_highest():
    squeezed = softsign_below_zero(torch.tensor([-torch.inf, -1e4, 1e4, torch.inf], dtype=torch.float64))
    assert torch.isfinite(squeezed).all()
    assert (squeezed.diff() > 0).all()


def test_first_of_each_row_breaks_ties_by_column():
    scores = torch.tensor([[9.0, 5.0, 7.0, 5.0, 5.0], [1.0, 1.0, 1.0, 1.0, 1.0], [3.0, 2.0, 1.0, 0.0, 4.0]])
    allowed = torch.tensor([[False, True, True, True, True]] * 2 + [[False, False, False, True, False]])
    assert first_of_each_row(scores, allowed, 2).nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2], [2, 3]]
    assert torch.equal(first_of_each_row(scores, allowed, None), allowed)
    assert torch.equal(first_of_each_row(scores, allowed, 7), allowed)


# --------------------------------------------------------------------------------------------------- the table


def test_the_best_that_can_be_recommended_are_asked_about(built):
    model, phases = built()
    rows = cases(phases)
    table, plain = model.full_sort_predict(rows), model.first_scores(rows)
    history = phases.test.users.history
    for row in range(len(rows)):
        known = set(history.items[history.offsets[row] : history.offsets[row + 1]].tolist()) | {0}
        free = [item for item in range(model.n_items) if item not in known]
        best = sorted(free, key=lambda item: -float(plain[row, item]))[:4]
        assert sorted(best) == (table[row] >= 0).nonzero().flatten().tolist()
        rest = [item for item in range(model.n_items) if item not in best]
        assert table[row, rest].argsort().tolist() == plain[row, rest].argsort().tolist()
    assert len(model.questions) == 4 * len(rows)


def test_without_masking_the_history_is_asked_about_too(built):
    model, phases = built(mask_history=False, rerank_k=None)
    assert ((model.full_sort_predict(cases(phases)) >= 0).sum(1) == model.n_items - 1).all()


def test_where_some_items_are_ranked_the_best_of_those_are_asked_about(built):
    model, phases = built(mask_history=False)
    users, barred = phases.test.users, np.arange(1, model.n_items, 3)
    users.history, users.barred = None, barred
    phases.test.rank(model, model.settings_of_the_test)
    ranked = np.setdiff1d(np.arange(1, model.n_items), barred)
    for user, case in zip(users.user_ids.tolist(), range(len(users)), strict=True):
        plain = model.first_scores(cases(phases, len(users)))[case]
        best = sorted(ranked.tolist(), key=lambda item: -float(plain[item]))[:4]
        assert sorted(item for asked, item in model.questions if asked == user) == sorted(best)
    assert model._choosable is None


def test_nothing_is_asked_before_the_time_has_come(built):
    model, phases = built()
    model.asked_now = False
    assert (model.full_sort_predict(cases(phases)) < 0).all()
    assert not model.questions


@pytest.mark.parametrize("model_class", [Fake, AnswersAny])
@pytest.mark.parametrize("at_once", [None, 3])
def test_predict_gives_the_same_numbers(built, monkeypatch, model_class, at_once):
    model, phases = built(model_class)
    if at_once:
        monkeypatch.setattr(model_class, "_rows_at_once", property(lambda self: at_once))
    rows = np.repeat(np.arange(10), 8)
    items = torch.from_numpy(np.random.default_rng(0).integers(1, model.n_items, len(rows)))
    table = model.full_sort_predict(cases(phases, 10))
    items[::8] = table.argmax(1)
    found, ranked = model.predict(pairs(phases, rows, items)), table[rows, items]
    reranked = ranked >= 0
    assert reranked.sum() >= 10
    assert torch.equal(found[reranked], ranked[reranked])
    if model_class is Fake:
        assert torch.equal(found, ranked)
    else:
        assert (found >= 0).all(), "any pair is asked about, also one that would not be reranked"


def test_padding_is_never_asked_about(built):
    model, phases = built(AnswersAny)
    items = torch.tensor([0, 3, 0, 5])
    found = model.predict(pairs(phases, np.array([0, 0, 1, 1]), items))
    assert found[[0, 2]].tolist() == [-1, -1]
    assert sorted(item for _, item in model.questions) == [3, 5]


def test_equal_cases_are_one(built):
    model, phases = built(AnswersAny)
    rows = cases(phases, 3)
    shuffled = Interaction({name: values[[2, 0, 1, 0, 2]] for name, values in rows.interaction.items()})
    first, case = model._distinct_cases(shuffled)
    assert len(first) == 3
    assert shuffled["user_id"][first][case].tolist() == shuffled["user_id"].tolist()


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_below_one_is_refused(count):
    with pytest.raises(ConfigError, match=f"rerank_k: {count} is not accepted; give a whole number of at least 1"):
        declared_by(RerankingRecommender)["rerank_k"].check(count)


# -------------------------------------------------------------------------------------------------------- saving


def test_what_never_changes_is_not_saved(built):
    model, _ = built()
    with torch.no_grad():
        model.own += 1
    saved = model.state_dict()
    assert list(saved) == ["own"]
    other, _ = built()
    other.load_state_dict(saved)
    assert other.own.tolist() == [1, 1, 1]
    with pytest.raises(RuntimeError, match="unknown weights: \\['theirs'\\]"):
        other.load_state_dict({**saved, "theirs": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="missing weights: \\['own'\\]"):
        other.load_state_dict({})


def test_histories_are_what_is_before_the_padding(built):
    model, _ = built()
    rows = {"item_id_list": torch.tensor([[4, 5, 0], [7, 8, 9]]), "item_length": torch.tensor([2, 3])}
    found = model.histories(Interaction(rows))
    assert [row.tolist() for row in found] == [[4, 5], [7, 8, 9]]
