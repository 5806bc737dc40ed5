"""Molar's parts against the paper's definitions, on the tiny MLLM."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import recbole_mm
from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.mllm import RunMLLM
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.models.layers import standardise
from recbole_mm.models.molar import Molar, dueg_baselines
from recbole_mm.models.molar.dueg import TextStackDUEG, slot_layout
from recbole_mm.models.molar.dueg_baselines import DEFAULTS, MarkovDUEG, RecurrentDUEG, TransformerDUEG
from recbole_mm.runs.pretrained_run import config_of_finished_run
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble, open_needed
from recbole_mm.training.factory import make_trainer
from tests.conftest import TOY_FEATURES


@pytest.fixture(scope="module")
def dueg(tmp_path_factory):
    mllm = load_mllm(build_tiny(["a few words", "and some more"], tmp_path_factory.mktemp("tiny") / "m"))
    torch.manual_seed(0)
    return TextStackDUEG(mllm.text_stack(), mllm.hidden_size).eval()


def test_slots_see_their_prefix_and_nothing_else():
    mask, positions = slot_layout(3, torch.tensor([[1, 2, 3]]))
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 1],
    ]
    assert positions.tolist() == [[0, 1, 2, 1, 2, 3]]


def test_all_prefixes_in_one_pass_equal_one_pass_per_prefix(dueg):
    items = torch.randn(3, 7, dueg.user_token.numel(), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = dueg.all_prefixes(items)
        for n in range(1, 8):
            # The plain way, Eq. (2): the prefix, then [User], read causally.
            sequence = torch.cat([items[:, :n], dueg.user_token.expand(3, 1, -1)], dim=1)
            causal = torch.ones(n + 1, n + 1, dtype=torch.bool).tril().expand(3, 1, -1, -1)
            output = dueg.text_stack(sequence, causal, torch.arange(n + 1).expand(3, -1))
            alone = output.last_hidden_state[:, -1]
            torch.testing.assert_close(together[:, n - 1], alone, atol=1e-5, rtol=1e-5)


def test_whole_histories_ignore_padding(dueg):
    items = torch.randn(2, 5, dueg.user_token.numel(), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([5, 2])
    with torch.no_grad():
        whole = dueg.whole(items, lengths)
        items[1, 2:] = 99.0
        torch.testing.assert_close(dueg.whole(items, lengths), whole)
        torch.testing.assert_close(whole, dueg.all_prefixes(items)[torch.arange(2), lengths - 1], atol=1e-5, rtol=1e-5)


def test_standardise_leaves_missing_items_zero():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 10.0], [3.0, 30.0], [0.0, 0.0]])
    result = standardise(vectors)
    assert result[0].tolist() == result[3].tolist() == [0, 0]
    torch.testing.assert_close(result[1:3], torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
    assert torch.equal(standardise(torch.zeros(2, 2)), torch.zeros(2, 2))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> str:
    """Folder in which the tests of this file share the tiny MLLM and the item vectors."""
    return str(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def toy_settings(toy_settings, artifacts) -> dict:
    return {**toy_settings, "artifact_dir": artifacts}


@pytest.fixture
def built(toy_config, tmp_path):
    def build(**settings):
        config = toy_config("Molar", **settings)
        return assemble(config, tmp_path, Stages(), open_needed(config, tmp_path))

    return build


def test_a_large_decoder_on_a_cpu_is_warned_of(built, monkeypatch, caplog):
    monkeypatch.setattr(dueg_baselines, "LARGE", 1000)
    built(use_gpu=False)
    (line,) = [line for line in caplog.messages if line.startswith("dueg: mllm")]
    assert "M weights" in line
    assert "--dueg=sasrec" in line
    caplog.clear()
    built(use_gpu=False, dueg="sasrec")
    assert not [line for line in caplog.messages if line.startswith("dueg: mllm")]


def test_loss_has_the_terms_of_equation_5(built):
    assembled = built(alpha=0.5, id_loss_weight=2.0, embedding_dropout=0.0, rec_loss="ce")
    model = assembled.model.eval()
    batch = next(iter(assembled.splits.train))
    rec, align, identity = model.calculate_loss(batch)
    model.alpha, model.id_loss_weight = 0.25, 1.0
    halved = model.calculate_loss(batch)
    torch.testing.assert_close(halved[0], rec)
    torch.testing.assert_close(halved[1] * 2, align)
    torch.testing.assert_close(halved[2] * 2, identity)


def test_fused_score_is_the_sum_of_both(built):
    assembled = built(score="fused")
    model = assembled.model.eval()
    users = assembled.splits.test.users
    batch = users.interaction[torch.arange(5).numpy()]
    with torch.no_grad():
        parts = []
        for model.score in ("content", "id", "fused"):
            parts.append(model.full_sort_predict(batch))
    torch.testing.assert_close(parts[0] + parts[1], parts[2], atol=1e-5, rtol=1e-5)


def test_frozen_dueg_keeps_its_weights(toy_settings):
    outcome = recbole_mm.run("Molar", "toy", config_dict={**toy_settings, "dueg_tuning": "frozen", "epochs": 1})
    fresh = outcome.dataset.inputs.mllm.text_stack().state_dict()
    trained = outcome.model.dueg.text_stack.state_dict()
    assert all(torch.equal(trained[name], fresh[name]) for name in fresh)
    assert outcome.model.dueg.user_token.requires_grad


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_a_bfloat16_mllm_trains_and_ranks(toy_settings, tuning):
    settings = {**toy_settings, "mllm_dtype": "bfloat16", "dueg_tuning": tuning, "epochs": 1}
    outcome = recbole_mm.run("Molar", "toy", config_dict=settings)
    weights = dict(outcome.model.dueg.text_stack.named_parameters())
    trained = {name for name, weight in weights.items() if weight.requires_grad}
    assert all(weights[name].dtype == torch.float32 for name in trained)
    assert bool(trained) == (tuning != "frozen")
    assert any(weight.dtype == torch.bfloat16 for weight in weights.values()) == (tuning != "full")
    assert 0 <= outcome.test_result["ndcg@10"] <= 1


def test_two_windows_of_a_user_are_no_negatives_of_each_other(toy_config, tmp_path, monkeypatch):
    assembled = assemble(toy_config("Molar"), tmp_path, Stages())
    batch = next(iter(assembled.splits.train))
    batch.interaction["user_id"] = torch.full_like(batch["user_id"], 3)
    seen = []
    monkeypatch.setattr(
        "recbole_mm.models.molar.model.alignment_loss", lambda *given: seen.append(given) or given[0].sum()
    )
    assembled.model.calculate_loss(batch)
    assert set(seen[0][2].tolist()) == {3}


def test_lora_dueg_starts_as_the_decoder_and_trains_its_adapter_alone(toy_settings, tmp_path, toy_config):
    settings = {"dueg_tuning": "lora", "dueg_lora": {"r": 3, "targets": ["q_proj", "down_proj"]}}
    fresh = assemble(toy_config("Molar", **settings), tmp_path, Stages())
    items, plain = torch.randn(2, 4, 128), TextStackDUEG(fresh.dataset.inputs.mllm.text_stack(), 128)
    plain.user_token = fresh.model.dueg.user_token
    fresh.model.eval()
    torch.testing.assert_close(fresh.model.dueg.all_prefixes(items), plain.eval().all_prefixes(items))
    outcome = recbole_mm.run("Molar", "toy", config_dict={**toy_settings, **settings, "epochs": 1})
    before, after = fresh.model.dueg.state_dict(), outcome.model.dueg.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in after if ".lora_" in name or name == "user_token"}
    assert {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in changed if ".lora_" in name} == {
        "q_proj",
        "down_proj",
    }


@pytest.mark.parametrize("tuning", ["full", "lora", "frozen"])
def test_the_first_layers_of_the_decoder_alone_read_the_users(built, tuning):
    whole = built(dueg_tuning=tuning)
    cut = built(dueg_tuning=tuning, dueg_layers=1)
    layers = [len(each.model.dueg.text_stack.decoder.layers) for each in (whole, cut)]
    assert layers == [2, 1]
    theirs, mine = (each.model.dueg.text_stack.state_dict() for each in (whole, cut))
    kept = {name for name in mine if ".lora_" not in name}
    assert kept < theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in kept), "pretrained weights are kept"
    items = torch.randn(2, 4, 128, generator=torch.Generator().manual_seed(3))
    dueg = cut.model.dueg.eval()
    with torch.no_grad():
        together = dueg.all_prefixes(items)
        for n in range(1, 5):
            sequence = torch.cat([items[:, :n], dueg.user_token.expand(2, 1, -1)], dim=1)
            causal = torch.ones(n + 1, n + 1, dtype=torch.bool).tril().expand(2, 1, -1, -1)
            alone = dueg.text_stack(sequence, causal, torch.arange(n + 1).expand(2, -1)).last_hidden_state[:, -1]
            torch.testing.assert_close(together[:, n - 1], alone, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(whole.model.dueg.eval().all_prefixes(items), together)


@pytest.mark.parametrize("setting", ["dueg_layers", "mllm_layers"])
def test_more_layers_than_there_are_is_one_line(built, setting):
    with pytest.raises(ConfigError, match=f"{setting}: the LLM has 2 layers; give 1 to 2, or null for all"):
        built(**{setting: 3})


@pytest.mark.parametrize(
    "settings", [{"mllm_layers": 1}, {"mllm_pooling": "mean"}, {"mllm_pooling": "last", "mllm_instruction": "Item: "}]
)
def test_how_items_are_encoded_changes_their_vectors_and_not_the_dueg(built, settings):
    usual, other = built(), built(**settings)
    assert abs(usual.dataset.inputs.item_vectors - other.dataset.inputs.item_vectors)[1:].max() > 1e-3
    theirs, mine = (each.model.dueg.text_stack.state_dict() for each in (usual, other))
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("modalities", [["image"], ["text"]])
def test_modalities_change_the_vectors(built, modalities):
    both = built().dataset.inputs.item_vectors
    one = built(modalities=modalities).dataset.inputs.item_vectors
    assert one.shape == both.shape
    assert abs(one[1:] - both[1:]).max() > 1e-3


# ----------------------------------------------------------------------------------------------- other models as DUEG

READERS = {
    "sasrec": lambda: TransformerDUEG(8, 6, DEFAULTS),
    "gru4rec": lambda: RecurrentDUEG(8, {**DEFAULTS, "num_layers": 2}),
    "fpmc": lambda: MarkovDUEG(5, 8, DEFAULTS),
}


@pytest.mark.parametrize("kind", READERS)
def test_other_duegs_read_a_prefix_and_nothing_behind_it(kind):
    torch.manual_seed(0)
    dueg = READERS[kind]().eval()
    items, users = torch.randn(3, 6, 8), (torch.tensor([1, 4, 2]),) if kind == "fpmc" else ()
    with torch.no_grad():
        together = dueg.all_prefixes(items, *users)
        assert together.shape == items.shape
        for n in range(1, 7):
            lengths = torch.full((3,), n)
            torch.testing.assert_close(dueg.whole(items[:, :n], lengths, *users), together[:, n - 1])
            behind = items.clone()
            behind[:, n:] = 99.0
            torch.testing.assert_close(dueg.whole(behind, lengths, *users), together[:, n - 1])


def test_fpmc_as_dueg_is_the_users_factor_and_a_step_from_the_last_item():
    torch.manual_seed(0)
    dueg = MarkovDUEG(5, 8, DEFAULTS)
    items, users, candidate = torch.randn(2, 3, 8), torch.tensor([1, 4]), torch.randn(8)
    state = dueg.whole(items, torch.tensor([3, 2]), users)
    for row, last in enumerate((2, 1)):
        taste = dueg.users.weight[users[row]] @ candidate
        step = candidate @ dueg.step.weight @ items[row, last]
        torch.testing.assert_close(state[row] @ candidate, taste + step)


def test_transformer_sees_the_order_of_items():
    torch.manual_seed(0)
    dueg = TransformerDUEG(8, 6, {**DEFAULTS, "initializer_range": 0.5}).eval()
    items = torch.randn(1, 6, 8)
    swapped = items[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(dueg.all_prefixes(items)[:, -1], dueg.all_prefixes(swapped)[:, -1], atol=0.01)


@pytest.mark.parametrize("dueg", ["sasrec", "gru4rec", "fpmc"])
def test_every_part_of_the_content_model_is_trained(built, dueg):
    settings = {"id_model": "none", "alpha": 0, "score": "content", "hidden_size": 32}
    assembled = built(dueg=dueg, **settings)
    assembled.model.calculate_loss(next(iter(assembled.splits.train)))[0].backward()
    for name, parameter in assembled.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0 or name.endswith("key.bias"), name  # softmax cancels a constant


# --------------------------------------------------------------------------------------------------------- item sources


def test_item_vectors_of_several_sources_stand_side_by_side(built):
    assembled = built(item_sources=["mllm", "text", "image"], item_features=TOY_FEATURES)
    items, dataset = assembled.model.items, assembled.dataset
    sources = [dataset.inputs.item_vectors, dataset.item_feature("text"), dataset.item_feature("image")]
    expected = torch.cat([standardise(torch.as_tensor(source)) for source in sources], dim=1)
    assert torch.equal(items.vectors, expected)
    ids = torch.tensor([[3, 0], [5, 7]])
    torch.testing.assert_close(items(ids), items()[ids])
    torch.testing.assert_close(items(ids), F.linear(expected[ids], items.projection.weight, items.projection.bias))


def test_only_what_is_read_is_required(toy_config):
    features = {"item_sources": ["text"], "item_features": TOY_FEATURES}
    cases = [
        ({}, {"item_vectors", "mllm"}),
        ({"dueg": "sasrec"}, {"item_vectors"}),
        (features, {"mllm"}),
        ({**features, "dueg": "fpmc"}, set()),
        ({"id_model_path": "x", "id_model_training": "pretrained"}, {"item_vectors", "mllm", "id_model_run"}),
    ]
    for settings, needed in cases:
        assert set(Molar.requirements(toy_config("Molar", **settings))) == needed


def test_without_need_of_it_no_mllm_is_loaded(toy_config, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the MLLM is loaded")

    monkeypatch.setattr(RunMLLM, "open", refuse)
    settings = {"item_sources": ["text"], "item_features": TOY_FEATURES, "dueg": "gru4rec", "hidden_size": 16}
    assembled = assemble(toy_config("Molar", **settings), tmp_path, Stages())
    assert assembled.model.content_items().shape == (assembled.dataset.item_num, 16)
    with pytest.raises(AssertionError, match="the MLLM is loaded"):
        assemble(toy_config("Molar", **{**settings, "dueg": "mllm", "hidden_size": None}), tmp_path, Stages())


@pytest.mark.parametrize("model", ["Molar", "TALLRec"])  # the latter asks for it before and after the first stage
def test_that_the_mllm_is_untrained_is_said_once(toy_settings, model):
    settings = {**toy_settings, "epochs": 1, "eval_step": 0}
    if model == "TALLRec":
        settings |= {"first_stage": "none", "rerank_k": None, "sft_tuning": "none"}
    outcome = recbole_mm.run(model, "toy", config_dict=settings)
    assert (outcome.run_dir / "run.log").read_text().count("UNTRAINED") == 1


# ----------------------------------------------------------------------------------------------- similarity, fused loss


def test_cosine_scores_are_cosines_over_a_learned_temperature(built):
    assembled = built(similarity="cosine", score="content")
    model = assembled.model.eval()
    batch = assembled.splits.test.users.interaction[torch.arange(5).numpy()]
    scores = model.full_sort_predict(batch)
    states = model.dueg.whole(model.items(batch["item_id_list"]), batch["item_length"])
    expected = F.cosine_similarity(states[:, None], model.items()[None], dim=-1) / 0.07
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    torch.testing.assert_close(model.full_sort_predict(batch), expected * 0.07 * 100, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("rec_loss", ["bce", "ce"])
def test_fused_loss_is_the_loss_of_the_summed_scores(built, rec_loss):
    assembled = built(loss_on="fused", rec_loss=rec_loss, embedding_dropout=0.0)
    model = assembled.model.eval()
    batch = next(iter(assembled.splits.train))
    mask = batch[TARGET_MASK]
    states = model.dueg.all_prefixes(model.items(batch["item_id_list"]))[mask] * model.scale
    id_states, id_items = model.id_model.prefix_states(batch)[mask], model.id_model.item_embedding.weight
    scores = states @ model.items().T + id_states @ id_items.T
    targets = batch[TARGETS][mask]
    if rec_loss == "ce":
        expected = F.cross_entropy(scores[:, 1:], targets - 1)
    else:
        pairs = torch.stack([targets, batch[NEGATIVES][mask]], dim=1)
        labels = torch.tensor([1.0, 0.0]).expand(len(targets), 2)
        expected = F.binary_cross_entropy_with_logits(scores.gather(1, pairs), labels)
    torch.testing.assert_close(model.calculate_loss(batch)[0], expected, atol=1e-5, rtol=1e-5)
    model.loss_on = "residual"
    torch.testing.assert_close(model.calculate_loss(batch)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("loss_on", "reaches"), [("content", False), ("fused", True), ("residual", False)])
def test_whom_the_recommendation_loss_trains(built, loss_on, reaches):
    assembled = built(loss_on=loss_on, rec_loss="sampled_softmax", shared_negatives=8)
    assembled.model.calculate_loss(next(iter(assembled.splits.train)))[0].backward()
    gradients = [parameter.grad for parameter in assembled.model.id_model.parameters()]
    assert any(gradient is not None for gradient in gradients) == reaches


# ------------------------------------------------------------------------------------------------------------ ID models


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "FPMC", "DuoRec"])
def test_every_id_model_is_as_wide_as_the_mllm_and_scores_as_itself(built, name):
    assembled = built(id_model=name, score="id")
    model = assembled.model.eval()
    batch = assembled.splits.test.users.interaction[torch.arange(5).numpy()]
    expected = model.id_model.full_sort_predict(batch)
    torch.testing.assert_close(model.full_sort_predict(batch), expected.view(5, -1), atol=1e-5, rtol=1e-5)
    assert model.user_vectors(batch).shape[1] == assembled.dataset.inputs.mllm.hidden_size
    assert isinstance(model.id_to_content, torch.nn.Identity)
    assert len(model.calculate_loss(next(iter(assembled.splits.train)))) == 3


def test_duorecs_own_loss_has_its_contrast_and_its_own_temperature(built):
    assembled = built(id_model="DuoRec", id_model_config={"lmd_sem": 0.5})
    model = assembled.model.id_model
    assert (model.lmd_sem, model.tau, assembled.model.tau) == (0.5, 1.0, 0.1)
    batch = next(iter(assembled.splits.train))
    torch.manual_seed(1)
    parts = model.calculate_loss(batch)
    torch.manual_seed(1)
    states = model.prefix_states(batch)[batch[TARGET_MASK]]
    assert len(parts) == 2
    torch.testing.assert_close(assembled.model._id_loss(states, batch), sum(parts))


def test_an_id_model_of_another_width_is_mapped_for_the_alignment_alone(built):
    assembled = built(id_model_config={"hidden_size": 16}, score="fused")
    width = assembled.dataset.inputs.mllm.hidden_size
    assert assembled.model.id_to_content.weight.shape == (width, 16)
    assert assembled.model.item_vectors().shape[1] == width + 16
    assembled.model.calculate_loss(next(iter(assembled.splits.train)))[1].backward()
    assert assembled.model.id_to_content.weight.grad is not None


def snapshot(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def changed(module, before):
    return {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}


def test_pretraining_trains_the_id_model_alone_and_then_everything_else(toy_config, tmp_path):
    config = toy_config("Molar", id_model_training="pretrained", id_epochs=2, epochs=4, eval_step=1, alpha=0.5)
    assembled = assemble(config, tmp_path, Stages())
    model, trainer = assembled.model, make_trainer(config, assembled.model, tmp_path)
    for epoch in range(3):
        before = snapshot(model)
        losses = trainer._train_epoch(assembled.splits.train, epoch)
        moved = changed(model, before)
        if epoch < 2:
            assert len(losses) == 1
            assert moved
            assert all(name.startswith("id_model.") for name in moved)
        else:
            assert len(losses) == 2
            assert {"items.projection.weight", "dueg.user_token"} <= moved
            assert not any(name.startswith("id_model.") for name in moved)
            assert not model.id_model.training
            assert model.dueg.training


def test_epochs_of_pretraining_are_not_candidates_for_the_best(toy_config, tmp_path):
    config = toy_config(
        "Molar", id_model_training="pretrained", id_epochs=3, epochs=4, eval_step=2, stopping_step=1, score="id"
    )
    assembled = assemble(config, tmp_path, Stages())
    trainer = make_trainer(config, assembled.model, tmp_path)
    trainer.fit(assembled.splits.train, assembled.splits.valid, verbose=False)
    assert ["valid_score" in record for record in trainer.history] == [False, False, False, True]
    assert trainer.best_epoch == 3
    assert trainer.evaluate(assembled.splits.test)


def test_training_of_nothing_but_the_id_model_still_leaves_weights(toy_settings):
    settings = {**toy_settings, "id_model_training": "pretrained", "id_epochs": 2, "epochs": 2, "score": "id"}
    outcome = recbole_mm.run("Molar", "toy", config_dict=settings)
    assert outcome.best_valid_result["ndcg@10"] > 0


@pytest.fixture
def with_run(toy_settings):
    """A finished SASRec on `toy`, and Molar built on it: `build(**settings) -> (SASRec's outcome, Molar's outcome)`."""

    def build(sasrec=(), **settings):
        small = {"hidden_size": 16, "inner_size": 24, "full_sequence": True}
        base = recbole_mm.run("SASRec", "toy", config_dict={**toy_settings, **small, **dict(sasrec)})
        path = {"id_model_path": str(base.run_dir), "id_model_training": "pretrained"}
        return base, recbole_mm.run("Molar", "toy", config_dict={**toy_settings, **path, **settings})

    return build


def test_an_id_model_of_another_run_stays_as_it_is(with_run):
    base, outcome = with_run()
    trained, taken = base.model.state_dict(), outcome.model.id_model.state_dict()
    assert trained.keys() == taken.keys()
    assert all(torch.equal(trained[name], taken[name]) for name in trained)
    assert not any(parameter.requires_grad for parameter in outcome.model.id_model.parameters())
    outcome.model.score = "id"
    batch = outcome.splits.test.users.interaction[torch.arange(5).numpy()]
    torch.testing.assert_close(
        outcome.model.full_sort_predict(batch), base.model.eval().full_sort_predict(batch), atol=1e-6, rtol=1e-5
    )
    outcome.model.score = "fused"
    again = recbole_mm.load(outcome.run_dir)
    assert torch.equal(again.model.full_sort_predict(batch), outcome.model.eval().full_sort_predict(batch))


def test_a_run_on_other_data_or_another_model_is_refused(with_run, toy_settings, toy_config, tmp_path):
    for sasrec, settings, message in (
        ({}, {"id_model": "GRU4Rec"}, "the run trained SASRec, not id_model: GRU4Rec"),
        ({"MAX_ITEM_LIST_LENGTH": 9}, {}, "was run with MAX_ITEM_LIST_LENGTH: 9, this run has 10"),
        ({"eval_args": {"split": {"LS": "test_only"}}, "eval_step": 0}, {}, "held out other interactions"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_run(sasrec, **settings)
    with pytest.raises(ConfigError, match=r"has no config\.yaml; give the folder of a finished run"):
        config_of_finished_run(tmp_path, toy_config("Molar"), "id_model_path")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rec_loss": "hinge"}, "rec_loss: 'hinge' is not accepted; give one of bce, ce, sampled_softmax"),
        ({"score": "best"}, "score: 'best' is not accepted; give one of"),
        ({"id_model": "Transformer"}, "id_model: 'Transformer' is not accepted; give one of"),
        ({"id_model": "none"}, "alpha: 0 and score: content"),
        ({"dueg": "bert4rec"}, "dueg: 'bert4rec' is not accepted; give one of mllm, sasrec, gru4rec, fpmc"),
        ({"dueg": "sasrec", "dueg_tuning": "frozen"}, "set dueg_tuning: full"),
        ({"dueg_tuning": "lora", "dueg_lora": {"targets": ["wing"]}}, "the decoder's linear maps are"),
        ({"dueg_tuning": "lora", "dueg_lora": {"rank": 4}}, "dueg_lora: unknown key 'rank'"),
        ({"dueg": "sasrec", "dueg_config": {"n_heads": 3}}, "dueg_config: n_heads 3 does not divide the width"),
        ({"dueg": "sasrec", "dueg_config": {"hidden_act": "max"}}, "dueg_config: hidden_act must be one of gelu"),
        ({"dueg_config": {"n_layer": 3}}, "dueg_config: unknown key 'n_layer'; did you mean 'n_layers'"),
        ({"dueg_config": [3]}, "dueg_config: .* give a mapping such as"),
        ({"hidden_size": 7}, "decoder is 128 wide, not 7"),
        ({"dueg": "fpmc", "hidden_size": 0}, "hidden_size: 0 is not accepted; give a whole number of at least 1"),
        (
            {"dueg": "fpmc", "item_sources": ["text"], "item_features": TOY_FEATURES},
            "hidden_size: give a number; dueg: fpmc reads no MLLM",
        ),
        ({"item_sources": []}, r"item_sources: \[\] is not a list"),
        ({"item_sources": ["mllm", "mllm"]}, "names one source twice"),
        ({"item_sources": ["sound"]}, "no item feature 'sound'"),
        ({"item_features": {"mllm": TOY_FEATURES["text"]}}, "item_features.mllm: the name stands for"),
        (
            {"item_sources": ["text"], "item_features": TOY_FEATURES, "item_projection": "none"},
            "item_projection: none keeps the item vectors 6 wide, but the user model is 128",
        ),
        ({"similarity": "l2"}, "similarity: 'l2' is not accepted; give one of dot, cosine"),
        ({"alpha": -1}, "alpha: -1 is not accepted; give a number of at least 0"),
        ({"tau": 0}, "tau: 0 is not accepted; give a number above 0"),
        ({"id_loss_weight": "much"}, "id_loss_weight: 'much' is not accepted; give a number"),
        ({"embedding_dropout": 1}, "embedding_dropout: 1 is not accepted; give a number from 0 to below 1"),
        ({"shared_negatives": 0}, "shared_negatives: 0 is not accepted; give a whole number of at least 1"),
        ({"comparative_instances": 1}, "comparative_instances: 1 is not accepted; give a whole number of at least 2"),
        ({"loss_on": "both"}, "loss_on: 'both' is not accepted; give one of content, fused, residual"),
        ({"loss_on": "fused", "score": "content"}, "it needs an id_model, and score: fused"),
        ({"id_model_config": [3]}, "id_model_config: .* give a mapping such as"),
        ({"id_model_config": {"layers": 3}}, "id_model_config: unknown key 'layers'"),
        ({"id_model_config": {"n_layers": 0}}, "id_model_config.n_layers: 0 is not accepted; give a whole number of"),
        ({"id_model_config": {"tau": -1}}, "id_model_config.tau: -1 is not accepted; give a number of at least"),
        (
            {"id_model_config": {"attn_dropout_prob": 5}},
            "attn_dropout_prob: 5 is not accepted; give a number from 0 to",
        ),
        ({"id_model_config": {"hidden_size": 2.5}}, "id_model_config.hidden_size: 2.5 is not accepted; give a whole"),
        ({"id_model_config": {"n_heads": 5}}, "id_model_config: n_heads 5 does not divide the width 128"),
        ({"id_model_config": {"loss_type": "MSE"}}, "id_model_config: loss_type must be CE or BPR"),
        ({"id_model": "DuoRec", "id_model_config": {"loss_type": "BPR"}}, "loss_type must be CE"),
        ({"id_model_training": "first"}, "id_model_training: 'first' is not accepted; give one of joint, pretrained"),
        ({"id_model_training": "pretrained", "id_epochs": 3}, "id_epochs: 3 of 2 epochs is not accepted: give"),
        ({"id_model_path": "x"}, "set id_model_training: pretrained"),
        (
            {"id_model": "none", "alpha": 0, "score": "content", "id_model_training": "pretrained"},
            "id_model_training: pretrained needs an id_model",
        ),
    ],
)
def test_settings_that_do_not_fit(built, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(**settings)
