"""The weight of two scores: 0, 1 and the usual sum exactly, chosen on validation alone, kept with the weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch import nn

import recbole_mm
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.ranking import RankingData
from recbole_mm.evaluation.splits import split
from recbole_mm.experiments.tune.records import OUTCOME
from recbole_mm.experiments.tune.trial import Job, run_trial
from recbole_mm.models.fusion import WEIGHTS, Fusion
from recbole_mm.models.reranking import RerankingRecommender, share_of_range
from recbole_mm.registry import find_model
from recbole_mm.runs.run import load
from recbole_mm.training.checkpoint import load_tree
from recbole_mm.training.factory import make_trainer
from recbole_mm.training.trainer import TrainerMixin
from tests.conftest import TOY_FEATURES

QUICK = {
    "dueg": "sasrec",
    "hidden_size": 16,
    "item_sources": ["text"],
    "item_features": TOY_FEATURES,
    "epochs": 2,
    "learning_rate": 3e-3,
    "rec_loss": "ce",
}


# ------------------------------------------------------------------------------------------------------------- pieces


def test_a_weight_to_be_chosen_is_saved_and_a_given_one_is_not():
    chosen, given = Fusion("valid", default=0.5), Fusion(0.3, default=0.5)
    assert list(chosen.state_dict()) == ["weight"]
    assert not given.state_dict()
    assert (given.value, given.choices(), Fusion(None, default=1.0).value) == (0.3, {}, 1.0)
    tried = list(chosen.choices().values())
    assert tried[0] == 0.5
    assert sorted(tried) == sorted(WEIGHTS)
    assert {0.0, 1.0} <= set(tried)


def test_what_does_not_depend_on_the_weight_is_computed_once_while_weights_are_tried():
    fusion, calls = Fusion("valid", default=0.5), []

    def of(values):
        return fusion.kept([values], lambda: calls.append(1) or values * 2)

    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    of(one), of(one)
    assert len(calls) == 2
    fusion.take(0.1, last=False)
    found = [of(one), of(two)]
    fusion.take(0.2, last=False)
    assert [of(one), of(two)] == found
    assert len(calls) == 4
    fusion.take(0.1, last=True)
    of(one)
    assert len(calls) == 5


def test_shares_of_a_range_keep_the_order_whatever_the_scores():
    scores = torch.tensor([[3.0, 9.0, 5.0, 4.0], [torch.inf, 1.0, -torch.inf, 1.0], [2.0, 2.0, 2.0, 2.0]]).double()
    chosen = torch.tensor([[True, False, True, True], [True, True, True, False], [True, True, False, False]])
    shares = share_of_range(scores, chosen)
    assert torch.isfinite(shares).all()
    assert shares[0].tolist() == [0, 3, 1, 0.5]
    assert shares[1].argsort().tolist()[0] == 2
    assert shares[1, 0] == 1
    assert not shares[2].any()
    assert not share_of_range(scores, torch.zeros_like(chosen)).any()


# ---------------------------------------------------------------------------------------------------------- rerankers


class Fake(RerankingRecommender):
    """Cheap scores by user and item; answers that know what validates best, or the opposite; counts its questions."""

    is_trainable = False
    knows = 1.0

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        self.own = nn.Parameter(torch.zeros(3))
        self.questions = 0

    def first_scores(self, cases):
        items = torch.arange(self.n_items, dtype=torch.float64)
        return torch.sin(cases["user_id"][:, None] * 1.7 + items * 2.3) * 9

    def probabilities(self, cases, owners, items):
        self.questions += len(items)
        cheap = self.first_scores(cases)[owners, items] / 20 + 0.5
        return cheap if self.knows > 0 else 1 - cheap


class AnswersAny(Fake):
    answers_any = True


@pytest.fixture
def built(toy_config):
    def build(model_class: type = Fake, **settings):
        config = toy_config("SASRec", **{"rerank_k": 5, "train_neg_sample_args": None, "epochs": 1, **settings})
        dataset = create_dataset(config)
        phases = split(config, dataset, model_class)
        return model_class(config, phases.train_dataset), phases, config

    return build


def cases(phases, count: int = 10) -> Interaction:
    return phases.test.users.interaction[np.arange(count)]


def test_weight_0_is_the_first_stages_order_and_asks_nobody(built):
    model, phases, _ = built(fusion_weight=0)
    rows = cases(phases)
    table, plain = model.full_sort_predict(rows), model.first_scores(rows)
    allowed = model._candidates(rows)
    for row in range(len(rows)):
        free = allowed[row].nonzero().flatten()
        assert table[row, free].argsort().tolist() == plain[row, free].argsort().tolist()
    assert model.questions == 0


def test_weight_1_is_the_answers_alone_to_the_last_digit(built):
    model, phases, _ = built(fusion_weight=1)
    usual, *_ = built()
    model.knows = usual.knows = -1
    assert torch.equal(model.full_sort_predict(cases(phases)), usual.full_sort_predict(cases(phases)))


@pytest.mark.parametrize("model_class", [Fake, AnswersAny])
def test_a_weight_between_is_the_sum_and_predict_gives_the_same(built, model_class):
    model, phases, _ = built(model_class, fusion_weight=0.25)
    model.knows = -1
    rows = cases(phases)
    table = model.full_sort_predict(rows)
    owners, items = (table >= 0).nonzero(as_tuple=True)
    cheap, asked = model._filtered(rows)
    assert torch.equal(asked, table >= 0)
    expected = 0.25 * model.probabilities(rows, owners, items) + 0.75 * share_of_range(cheap, asked)[owners, items]
    torch.testing.assert_close(table[owners, items], expected)
    fields = phases.test.users.interaction[owners.numpy()].interaction
    assert torch.equal(model.predict(Interaction({**fields, "item_id": items})), expected)


@pytest.mark.parametrize("knows", [1.0, -1.0])
def test_the_choice_is_no_worse_than_either_side_and_asks_once(built, tmp_path, knows):
    model, phases, config = built(fusion_weight="valid")
    model.knows = knows
    trainer = make_trainer(config, model, tmp_path / "run")
    best, result = trainer.fit(phases.train, phases.valid)
    assert model.questions == 5 * len(phases.valid.users), "for all weights, and for the epoch's own validation"
    chosen = model.fusion.value
    scores = validated(trainer, model, phases.valid)
    assert best == scores[chosen] == max(scores.values()) == result["ndcg@10"]
    assert float(load_tree(trainer.saved_model_file)["state_dict"]["fusion.weight"]) == chosen


def validated(trainer, model, valid) -> dict[float, float]:
    """`valid_metric` by weight."""
    scores = {}
    for weight in WEIGHTS:
        model.fusion.take(weight, last=True)
        scores[weight] = trainer._valid_epoch(valid)[0]
    return scores


def test_nothing_to_choose_by_is_said(built, tmp_path):
    with pytest.raises(ConfigError, match="fusion_weight: valid is chosen on validation: set eval_step to 1"):
        built(fusion_weight="valid", eval_step=0)
    model, phases, config = built(fusion_weight="valid")
    with pytest.raises(ConfigError, match=r"fusion_weight: 1 or another is to be chosen on validation, and there is"):
        make_trainer(config, model, tmp_path / "run").fit(phases.train, None)


# --------------------------------------------------------------------------------------------------------------- Molar


def molar(toy_settings, **settings):
    return recbole_mm.run("Molar", "toy", config_dict={**toy_settings, **QUICK, **settings})


def scores_of(run, count: int = 8) -> torch.Tensor:
    with torch.no_grad():
        return run.model.eval().full_sort_predict(run.splits.test.users.interaction[np.arange(count)])


def test_given_weights_of_molar_and_its_parts(toy_settings):
    sums, half = molar(toy_settings), molar(toy_settings, fusion_weight=0.5)
    assert half.test_result == sums.test_result
    assert torch.equal(scores_of(half), scores_of(sums))
    parts = {name: molar(toy_settings, score=name) for name in ("content", "id")}
    mixed = molar(toy_settings, fusion_weight=0.2)
    mixed.model.load_state_dict(sums.model.state_dict())
    for part in parts.values():
        part.model.load_state_dict(sums.model.state_dict())
    expected = 0.4 * scores_of(parts["content"]) + 1.6 * scores_of(parts["id"])
    torch.testing.assert_close(scores_of(mixed), expected, atol=1e-5, rtol=1e-4)


def test_molars_weight_validates_best_and_comes_back_with_the_run(toy_settings, tmp_path):
    run, plain = molar(toy_settings, fusion_weight="valid"), molar(toy_settings)
    best, chosen = run.best_valid_result["ndcg@10"], run.model.fusion.value
    assert all(torch.equal(value, run.model.state_dict()[name]) for name, value in plain.model.state_dict().items())
    again = load(run.run_dir)
    assert again.model.fusion.value == chosen
    assert torch.equal(scores_of(again), scores_of(run))
    assert again.chosen == run.chosen == f"fusion_weight: {chosen:g}"
    assert again.best_valid_result == run.best_valid_result
    scores = validated(make_trainer(again.config, again.model, tmp_path / "again"), again.model, again.splits.valid)
    assert scores[0.5] == plain.best_valid_result["ndcg@10"]
    assert best == scores[chosen] == max(scores.values())


def test_the_test_cases_have_no_say_in_the_weight(toy_settings, monkeypatch):
    ranked = []
    rank = RankingData.rank
    monkeypatch.setattr(RankingData, "rank", lambda self, *given: ranked.append(self.phase) or rank(self, *given))
    molar(toy_settings, fusion_weight="valid")
    assert ranked[: 2 + len(WEIGHTS)] == ["valid"] * (2 + len(WEIGHTS))
    assert set(ranked[2 + len(WEIGHTS) :]) == {"test"}


def test_a_run_that_is_stopped_before_the_choice_makes_it_when_it_goes_on(toy_settings, monkeypatch):
    whole = molar(toy_settings, fusion_weight="valid")

    def stop(self, *given):
        raise KeyboardInterrupt

    settings = {**toy_settings, "checkpoint_dir": toy_settings["checkpoint_dir"] + "-2"}
    with monkeypatch.context() as patch:
        patch.setattr(TrainerMixin, "_choose", stop)
        with pytest.raises(KeyboardInterrupt):
            molar(settings, fusion_weight="valid")
    resumed = molar(settings, fusion_weight="valid", resume=True)
    assert resumed.model.fusion.value == whole.model.fusion.value
    assert resumed.best_valid_result == whole.best_valid_result
    assert resumed.test_result == whole.test_result


@pytest.mark.parametrize("place", ["_save_best_weights_again", "evaluate_pop"])
def test_a_run_that_is_killed_around_the_saving_of_the_choice_ends_in_the_same_one(toy_settings, monkeypatch, place):
    """Before the weights of the best epoch are written again with it, and when they are but the results are not."""
    whole = molar(toy_settings, fusion_weight="valid")

    def stop(self, *given):
        raise KeyboardInterrupt

    settings = {**toy_settings, "checkpoint_dir": toy_settings["checkpoint_dir"] + "-2"}
    with monkeypatch.context() as patch:
        patch.setattr(TrainerMixin, place, stop)
        with pytest.raises(KeyboardInterrupt):
            molar(settings, fusion_weight="valid")
    resumed = molar(settings, fusion_weight="valid", resume=True)
    assert resumed.run_dir.name == whole.run_dir.name, "it is the same run that goes on"
    assert resumed.chosen == whole.chosen
    assert resumed.best_valid_result == whole.best_valid_result
    assert resumed.test_result == whole.test_result
    saved, expected = (load_tree(run.run_dir / "model.safetensors")["state_dict"] for run in (resumed, whole))
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_a_trial_of_a_search_reports_what_the_weight_that_is_chosen_scores(toy_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # a trial sets it
    untrained = {"id_loss_weight": 0, "alpha": 0}  # the ID model, so that its share in the sum costs
    whole, told = molar(toy_settings, fusion_weight="valid", **untrained), []
    job = Job(find_model("Molar"), "toy", {**toy_settings, **QUICK, **untrained}, str(Path.cwd()), 1, 0)
    folder = tmp_path / "trial"
    run_trial(job, {"fusion_weight": "valid"}, folder, tmp_path, lambda *values: told.append(values[:3]))
    plain = [best for _, _, best in told[:-1]]
    chosen = whole.best_valid_result["ndcg@10"]
    assert len(plain) == QUICK["epochs"]
    assert max(plain) < chosen == told[-1][2], "Ray Tune and its search are told last what the trial is worth"
    assert max(score for _, score in json.loads((folder / OUTCOME).read_text())["scores"]) == chosen
    assert not (folder / "result.json").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"score": "content", "fusion_weight": "valid"}, "fusion_weight: valid weighs the two scores of score: fused"),
        ({"score": "id", "fusion_weight": 0.1}, "fusion_weight: 0.1 weighs the two scores of score: fused, not one"),
        ({"fusion_weight": 1.5}, "fusion_weight: 1.5 is not accepted; give a number from 0 to 1, or valid"),
        ({"fusion_weight": "best"}, "fusion_weight: 'best' is not accepted; give a number from 0 to 1, or valid"),
        ({"fusion_weight": "valid", "eval_step": 0}, "fusion_weight: valid is chosen on validation: set eval_step"),
        ({"fusion_weight": "valid", "load_best_model": False}, "set load_best_model: True"),
        ({"dueg_layers": 1}, "dueg_layers cuts the decoder of dueg: mllm, and this is dueg: sasrec"),
    ],
)
def test_what_cannot_be_is_one_line(toy_settings, settings, said):
    with pytest.raises(ConfigError, match=said) as error:
        molar(toy_settings, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["MLLM-MSR", "TALLRec"])
def test_answers_without_a_first_stage_have_nothing_to_be_weighed_against(toy_settings, model):
    settings = {
        "first_stage": "none",
        "rerank_k": None,
        "fusion_weight": 0.5,
        "sft_tuning": "none",
        "preference": "none",
    }
    with pytest.raises(
        ConfigError, match=r"fusion_weight: 0\.5 weighs answers against a first stage, and there is none"
    ):
        recbole_mm.run(model, "toy", config_dict={**toy_settings, **settings})
