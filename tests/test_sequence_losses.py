"""`full_sequence_loss` of SASRec and GRU4Rec: sampled losses against naive loops, which negatives, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from recbole_mm.config.resolved import Config
from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.needs import without_effect
from recbole_mm.models import full_sequence, sampled_scores
from recbole_mm.models.hooks import hooks_of
from recbole_mm.models.losses import gbce_loss, gbce_power, softmax_loss, softmax_of_sample
from recbole_mm.models.negatives import negatives_of_batch, negatives_of_targets
from recbole_mm.runs.folder import first_run_dir
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble

STILL = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}
"""Without dropout a loss can be computed again."""


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def assembled(toy_config, tmp_path):
    def build(model="SASRec", **settings):
        return assemble(toy_config(model, **{"full_sequence": True, **settings}), tmp_path, Stages())

    return build


# --- losses against loops ---------------------------------------------------------------------------------------------


def test_softmax_of_sample_is_the_one_of_a_loop(rng):
    positive, negative = torch.randn(3, generator=rng), torch.randn(3, 4, generator=rng)
    negative[1, 2] = float("-inf")
    total = 0.0
    for i in range(3):
        kept = [negative[i, j] for j in range(4) if (i, j) != (1, 2)]
        total -= torch.log(positive[i].exp() / (positive[i].exp() + sum(score.exp() for score in kept)))
    torch.testing.assert_close(softmax_of_sample(positive, negative), total / 3)


def test_the_softmax_of_all_other_items_is_the_one_over_all_items(rng):
    states, items = torch.randn(5, 3, generator=rng), torch.randn(8, 3, generator=rng)
    targets = torch.tensor([1, 7, 3, 3, 2])
    others = torch.tensor([[item for item in range(1, 8) if item != target] for target in targets.tolist()])
    scores = sampled_scores.sampled_scores(states, items, others)
    sampled = softmax_of_sample((states * items[targets]).sum(-1), scores)
    torch.testing.assert_close(sampled, softmax_loss(states, targets, items))


def test_gbce_is_the_one_of_a_loop(rng):
    positive, negative, beta = torch.randn(3, generator=rng), torch.randn(3, 4, generator=rng), 0.3
    total = 0.0
    for i in range(3):
        of_target = torch.log(torch.sigmoid(positive[i]) ** beta)
        total -= (of_target + sum(torch.log(1 - torch.sigmoid(score)) for score in negative[i])) / 5
    torch.testing.assert_close(gbce_loss(positive, negative, beta), total / 3)


def test_gbce_leaves_out_what_is_left_out_and_is_finite_for_sure_scores(rng):
    positive, negative = torch.randn(1, generator=rng), torch.randn(1, 2, generator=rng)
    padded = torch.cat([negative, torch.full((1, 1), float("-inf"))], dim=1).requires_grad_()
    loss = gbce_loss(positive, padded, 0.5)
    torch.testing.assert_close(loss, gbce_loss(positive, negative, 0.5))
    loss.backward()
    assert padded.grad[0, 2] == 0
    assert torch.isfinite(padded.grad).all()
    assert torch.isfinite(gbce_loss(torch.tensor([-1e4]), torch.tensor([[1e4]]), 0.1))


def test_gbce_without_calibration_is_binary_cross_entropy(rng):
    positive, negative = torch.randn(4, generator=rng), torch.randn(4, 3, generator=rng)
    logits = torch.cat([positive[:, None], negative], dim=1)
    truth = torch.zeros_like(logits).index_fill(1, torch.tensor([0]), 1.0)
    expected = F.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(gbce_loss(positive, negative, gbce_power(3, 50, 0.0)), expected)


def test_the_power_of_the_positive_probability():
    share = 256 / 12100  # of Amazon Beauty's other items
    assert gbce_power(256, 12101, 1.0) == pytest.approx(share)
    assert gbce_power(256, 12101, 0.75) == pytest.approx(share * (0.75 * (1 - 1 / share) + 1 / share))
    assert gbce_power(500, 11, 0.75) == 1, "more draws than items"


# --- scores of sampled items ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_items", [6, 9, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scores_and_gradients_are_those_of_gathered_vectors(rng, n_items, dtype):
    ids = torch.randint(0, n_items, (7, 9), generator=rng)
    ids[:, 1] = ids[:, 0]
    weight = torch.randn(7, 9, generator=rng, dtype=dtype)
    found = []
    for scores_of in (sampled_scores.sampled_scores, lambda s, v, chosen: torch.einsum("nd,nkd->nk", s, v[chosen])):
        torch.manual_seed(3)
        states, items = (torch.randn(n, 4, dtype=dtype, requires_grad=True) for n in (7, n_items))
        scores = scores_of(states, items, ids)
        (scores * weight).sum().backward()
        found.append((scores.detach(), states.grad, items.grad))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("block_bytes", [1, 100, 1 << 20])
def test_scores_of_half_precision_are_gathered_in_blocks(rng, monkeypatch, block_bytes):
    monkeypatch.setattr(sampled_scores, "BLOCK_BYTES", block_bytes)
    states, items = torch.randn(7, 4, generator=rng), torch.randn(6, 4, generator=rng).bfloat16().requires_grad_()
    ids = torch.randint(0, 6, (7, 9), generator=rng)
    scores = sampled_scores.sampled_scores(states, items, ids)
    expected = torch.einsum("nd,nkd->nk", states.bfloat16().float(), items.detach().float()[ids])
    assert scores.dtype == torch.bfloat16
    torch.testing.assert_close(scores.float(), expected, atol=0.02, rtol=0.01)
    scores.sum().backward()
    of_items = torch.zeros(6, 4).index_add(0, ids.reshape(-1), states.repeat_interleave(9, 0))
    torch.testing.assert_close(items.grad.float(), of_items, atol=0.2, rtol=0.05)


def test_states_may_be_frozen_and_items_too(rng):
    ids = torch.tensor([[0, 1]])
    states, items = torch.ones(1, 2), torch.ones(3, 2, requires_grad=True)
    sampled_scores.sampled_scores(states, items, ids).sum().backward()
    assert items.grad.tolist() == [[1, 1], [1, 1], [0, 0]]
    states = torch.ones(1, 2, requires_grad=True)
    sampled_scores.sampled_scores(states, items.detach(), ids).sum().backward()
    assert states.grad.tolist() == [[2, 2]]


# --- which negatives --------------------------------------------------------------------------------------------------


def test_negatives_are_uniform_over_what_is_not_excluded():
    excluded = torch.tensor([[3, 0, 0, 0], [5, 1, 5, 2], [0, 0, 0, 0]])
    owners = torch.tensor([1, 0, 2])
    torch.manual_seed(0)
    drawn = negatives_of_targets(excluded, owners, 8, 14_000)
    for row, free in enumerate(([3, 4, 6, 7], [1, 2, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7])):
        ids, counts = drawn[row].unique(return_counts=True)
        assert ids.tolist() == free
        assert (counts - 14_000 / len(free)).abs().max() < 5 * (14_000 / len(free)) ** 0.5


def test_draws_follow_torchs_seed():
    excluded, owners = torch.tensor([[1]]), torch.zeros(4, dtype=torch.long)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append((negatives_of_targets(excluded, owners, 99, 8), negatives_of_batch(99, 8, torch.device("cpu"))))
    for first, again, other in zip(*drawn):
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_a_sequence_of_all_items_leaves_no_negative():
    with pytest.raises(ConfigError, match=r"^a training sequence has all 2 items, .* set negatives_exclude: target$"):
        negatives_of_targets(torch.tensor([[1, 2]]), torch.tensor([0]), 3, 1)


# --- in a model -------------------------------------------------------------------------------------------------------


def drawn_by(monkeypatch, name: str) -> list:
    """Records what one of the two ways to draw gives."""
    kept, draw = [], getattr(full_sequence, name)
    monkeypatch.setattr(full_sequence, name, lambda *args: kept.append(draw(*args)) or kept[-1])
    return kept


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
@pytest.mark.parametrize("loss", ["sampled_softmax", "gbce"])
@pytest.mark.parametrize("of", ["target", "batch"])
@pytest.mark.parametrize("exclude", ["target", "sequence"])
def test_the_loss_of_a_model_is_the_one_of_a_loop(assembled, monkeypatch, model, loss, of, exclude):
    run = assembled(model, **STILL, full_sequence_loss=loss, n_negatives=7, negatives_of=of, negatives_exclude=exclude)
    batch, kept = (
        next(iter(run.splits.train)),
        drawn_by(monkeypatch, f"negatives_of_{'batch' if of == 'batch' else 'targets'}"),
    )
    assert NEGATIVES not in batch
    run.model.train()
    found = run.model.calculate_loss(batch)
    (drawn,) = kept
    states, items = run.model.prefix_states(batch), run.model.item_embedding.weight
    beta = gbce_power(7, run.model.n_items - 1, 0.75)
    losses = []
    for place, (row, column) in enumerate(batch[TARGET_MASK].nonzero().tolist()):
        state, target = states[row, column], int(batch[TARGETS][row, column])
        known = {target}
        if exclude == "sequence":
            known |= {*batch["item_id_list"][row].tolist(), *batch[TARGETS][row].tolist()}
        mine = drawn.tolist() if of == "batch" else drawn[place].tolist()
        if of == "target":
            assert not known & set(mine), "a negative is never what is excluded"
        negatives = torch.stack(
            [state @ items[item] for item in mine if item not in known] or [state.new_tensor(-1e30)]
        )
        positive = state @ items[target]
        if loss == "gbce":
            kept_count = sum(item not in known for item in mine)
            total = -beta * F.logsigmoid(positive) - F.logsigmoid(-negatives).sum()
            losses.append(total / (1 + kept_count))
        else:
            losses.append(torch.cat([positive[None], negatives]).logsumexp(0) - positive)
    torch.testing.assert_close(found, torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss", ["CE", "BPR", "sampled_softmax", "gbce"])
@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_every_weight_gets_a_gradient(assembled, model, loss):
    run = assembled(model, full_sequence_loss=loss)
    batch = next(iter(run.splits.train))
    run.model.train()
    run.model.calculate_loss(batch).backward()
    for name, weight in run.model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        if not name.endswith("key.bias"):  # which moves all scores of an attention alike
            assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("loss", ["CE", "BPR"])
def test_ce_and_bpr_are_those_of_loss_type(assembled, loss):
    losses = []
    for settings in ({"loss_type": loss}, {"full_sequence_loss": loss}):
        run = assembled(**STILL, **settings)
        batch = next(iter(run.splits.train))
        assert (NEGATIVES in batch) == (loss == "BPR")
        losses.append(run.model.calculate_loss(batch))
    assert torch.equal(*losses)


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
@pytest.mark.parametrize("loss", ["CE", "sampled_softmax"])
def test_items_are_dropped_alike_where_they_are_read_and_scored(assembled, model, loss):
    given = {**STILL, "full_sequence_loss": loss, "n_negatives": 7}
    run = assembled(model, **given, item_dropout_prob=0.4)
    plain, dropped = assembled(model, **given).model.train(), run.model.train()
    batch = next(iter(run.splits.train))
    torch.manual_seed(3)
    found = dropped.calculate_loss(batch)
    found.backward()
    torch.manual_seed(3)
    kept = F.dropout(torch.ones_like(dropped.item_embedding.weight), 0.4)
    plain.load_state_dict(dropped.state_dict())
    plain.item_embedding.weight.data *= kept
    expected = plain.calculate_loss(batch)
    expected.backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(dropped.item_embedding.weight.grad, plain.item_embedding.weight.grad * kept)


def test_items_are_not_dropped_in_ranking(assembled):
    run = assembled(**STILL, item_dropout_prob=0.4)
    batch = next(iter(run.splits.train))
    run.model.calculate_loss(batch)
    run.model.eval()
    states = run.model.whole_states(batch)
    assert torch.equal(states, run.model.whole_states(batch))
    assert torch.equal(run.model.output_items(), run.model.item_embedding.weight)
    assert torch.equal(run.model.calculate_loss(batch), run.model.calculate_loss(batch)), "nor in the loss of eval()"


def test_without_the_setting_all_is_as_before(toy_config):
    plain = toy_config("SASRec", full_sequence=True)
    assert {"full_sequence_loss", "n_negatives", "gbce_t"}.isdisjoint(plain.final_config_dict)
    changed = toy_config("SASRec", full_sequence=True, full_sequence_loss="gbce")
    assert first_run_dir(plain) != first_run_dir(changed)


def test_the_id_models_of_others_have_a_loss_of_their_own(assembled):
    """Keys that Molar does not know reach its SASRec in no way."""
    run = assembled("Molar", full_sequence=False, full_sequence_loss="gbce", item_dropout_prob=0.1, mllm="tiny")
    assert run.model.id_model.loss_type == "CE"
    assert run.model.id_model.item_dropout_prob == 0


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"full_sequence_loss": "ce"},
            r"full_sequence_loss: 'ce' is not accepted; give one of CE, BPR, sampled_softmax, gbce, or null",
        ),
        ({"n_negatives": 0}, "n_negatives: 0 is not accepted; give a whole number of at least 1"),
        ({"n_negatives": 1.5}, "n_negatives: 1.5 is not accepted"),
        ({"negatives_of": "user"}, "negatives_of: 'user' is not accepted; give one of target, batch, or null"),
        ({"negatives_exclude": "none"}, "negatives_exclude: 'none' is not accepted; give one of target, sequence"),
        ({"item_dropout_prob": -0.1}, "item_dropout_prob: -0.1 is not accepted; give a number from 0 to 1"),
        ({"gbce_t": 1.1}, "gbce_t: 1.1 is not accepted; give a number from 0 to 1"),
        (
            {"full_sequence_loss": "gbce", "full_sequence": False},
            r"full_sequence_loss: gbce is a loss of whole sequences: give full_sequence: True as well",
        ),
    ],
)
@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec"])
def test_what_is_refused(toy_config, model, settings, message):
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        toy_config(model, **{"full_sequence": True, **settings})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("loss", "unread"), [(None, ["n_negatives", "gbce_t"]), ("sampled_softmax", ["gbce_t"]), ("gbce", [])]
)
def test_what_a_loss_does_not_read_is_told(toy_config, loss, unread):
    config = toy_config("SASRec", full_sequence=True, full_sequence_loss=loss, n_negatives=9, gbce_t=0.5)
    assert list(without_effect(config, hooks_of(config.model_class), ["n_negatives", "gbce_t"])) == unread


@pytest.mark.parametrize(("model", "read"), [("SASRec", False), ("eSASRec", True)])
def test_item_dropout_is_for_whole_sequences(toy_config, model, read):
    config = toy_config(model, full_sequence=False, item_dropout_prob=0.1)
    found = without_effect(config, hooks_of(config.model_class), ["item_dropout_prob"])
    assert found == ({} if read else {"item_dropout_prob": "full_sequence is False; it is for True"})


@pytest.mark.parametrize("model", ["BERT4Rec", "SASRecContent", "DuoRec", "FPMC"])
def test_other_models_do_not_know_it(toy_settings, model):
    config = Config(model, "toy", config_dict=toy_settings)
    assert "full_sequence_loss" not in config.known_settings()
