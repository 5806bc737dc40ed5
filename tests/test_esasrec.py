"""eSASRec: a layer written out by loops, what a state may read, the loss it starts with, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import recbole_mm
from recbole_mm.data.loaders import TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.models import full_sequence
from recbole_mm.models.esasrec import LiGRLayer
from recbole_mm.models.negatives import negatives_of_targets
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble

STILL = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "item_dropout_prob": None}


@pytest.fixture
def assembled(toy_config, tmp_path):
    def build(**settings):
        return assemble(toy_config("eSASRec", **{**STILL, **settings}), tmp_path, Stages())

    return build


def layer_by_loops(layer: LiGRLayer, states: torch.Tensor) -> torch.Tensor:
    """The output of a causal layer for one sequence (L, d), number by number."""
    length, width = states.shape
    part = width // layer.heads
    normal = F.layer_norm(states, (width,), layer.attention_norm.weight, layer.attention_norm.bias)
    weights, biases = layer.read.weight.split(width), layer.read.bias.split(width)
    query, key, value = (normal @ weight.T + bias for weight, bias in zip(weights, biases))
    found = torch.zeros_like(states)
    for head in range(layer.heads):
        own = slice(head * part, (head + 1) * part)
        for place in range(length):
            logits = torch.stack([query[place, own] @ key[other, own] / part**0.5 for other in range(place + 1)])
            shares = logits.exp() / logits.exp().sum()
            found[place, own] = sum(shares[other] * value[other, own] for other in range(place + 1))
    gate = 1 / (1 + (-(states @ layer.attention_gate.weight.T + layer.attention_gate.bias)).exp())
    states = states + gate * (found @ layer.write.weight.T + layer.write.bias)
    normal = F.layer_norm(states, (width,), layer.inner_norm.weight, layer.inner_norm.bias)
    first, third = (normal @ weight.T for weight in layer.first.weight.chunk(2))
    inner = (first / (1 + (-first).exp()) * third) @ layer.second.weight.T
    gate = 1 / (1 + (-(states @ layer.inner_gate.weight.T + layer.inner_gate.bias)).exp())
    return states + gate * inner


@pytest.mark.parametrize("std", [None, 0.02])
def test_the_spread_of_weights_at_the_start(assembled, std):
    model = assembled(embedding_init_std=std, hidden_size=64).model

    def of(weight: torch.Tensor) -> object:
        return pytest.approx(weight.std().item(), rel=0.15)

    def xavier(weight: torch.Tensor) -> float:
        return (2 / sum(weight.shape)) ** 0.5

    for embedding in (model.item_embedding, model.position_embedding):
        assert (std or xavier(embedding.weight)) == of(embedding.weight)
    assert xavier(model.trm_encoder[0].read.weight) == of(model.trm_encoder[0].read.weight)


@pytest.mark.parametrize("heads", [1, 2])
def test_a_layer_is_the_one_of_loops(heads):
    torch.manual_seed(0)
    layer = LiGRLayer(8, heads, 12, 0.0, 0.0, 1e-5).double()
    states = torch.randn(2, 5, 8, dtype=torch.float64)
    mask = torch.full((2, 1, 5, 5), -10000.0, dtype=torch.float64).triu(1)
    expected = torch.stack([layer_by_loops(layer, one) for one in states])
    torch.testing.assert_close(layer(states, mask), expected)


def test_a_state_reads_nothing_that_comes_later(assembled):
    model = assembled(n_layers=2).model.eval()
    history, length = torch.tensor([[3, 7, 5, 9, 0, 0]]), torch.tensor([4])
    states = model.hidden_states(history, length)
    changed = history.clone()
    changed[0, 3:5] = torch.tensor([8, 2])
    torch.testing.assert_close(model.hidden_states(changed, length + 1)[:, :3], states[:, :3])
    assert not torch.allclose(model.hidden_states(changed, length + 1)[:, 3], states[:, 3])
    torch.testing.assert_close(model.forward(history[:, :4], length), states[:, 3])


def test_without_layers_a_state_is_item_plus_position(assembled):
    model = assembled(n_layers=0).model.eval()
    state = model.forward(torch.tensor([[3, 7]]), torch.tensor([2]))
    expected = model.item_embedding.weight[7] + model.position_embedding.weight[1]
    torch.testing.assert_close(state[0], expected)


def test_it_is_trained_by_the_sampled_softmax(assembled, monkeypatch):
    run = assembled(n_negatives=9)
    model, batch = run.model.train(), next(iter(run.splits.train))
    drawn = []

    def kept(*arguments):
        drawn.append(negatives_of_targets(*arguments))
        return drawn[-1]

    monkeypatch.setattr(full_sequence, "negatives_of_targets", kept)
    loss = model.calculate_loss(batch)
    states = model.prefix_states(batch)[batch[TARGET_MASK]]
    targets, items = batch[TARGETS][batch[TARGET_MASK]], model.item_embedding.weight
    (negatives,) = drawn
    assert negatives.shape == (len(targets), 9)
    both = torch.cat([targets[:, None], negatives], dim=1)
    scores = torch.einsum("nd,nkd->nk", states, items[both])
    torch.testing.assert_close(loss, -torch.log_softmax(scores, dim=1)[:, 0].mean())


def test_every_weight_learns(assembled):
    run = assembled(n_layers=2)
    run.model.train().calculate_loss(next(iter(run.splits.train))).backward()
    still = [name for name, weight in run.model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still


def test_heads_that_do_not_divide_the_width_are_refused(assembled):
    with pytest.raises(ConfigError, match="n_heads 3 does not divide hidden_size 64"):
        assembled(n_heads=3)


@pytest.mark.parametrize("loss", ["gbce", "CE", "BPR"])
def test_it_takes_the_other_losses(toy_settings, loss):
    settings = {**toy_settings, "full_sequence_loss": loss, "epochs": 1, "n_layers": 1}
    outcome = recbole_mm.run("eSASRec", "toy", config_dict=settings)
    assert outcome.model.loss_type == loss
    assert 0 <= outcome.test_result["ndcg@10"] <= 1
