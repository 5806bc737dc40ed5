"""Molar's parts against the paper's definitions, on the tiny MLLM."""

from __future__ import annotations

import pytest
import torch

import recbole_mm
from recbole_mm.errors import ConfigError
from recbole_mm.mllm.loading import load_mllm
from recbole_mm.mllm.tiny import build_tiny
from recbole_mm.models.molar.dueg import TextStackDUEG, slot_layout
from recbole_mm.models.molar.model import standardise
from recbole_mm.pipeline import assemble
from recbole_mm.stages import Stages


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


@pytest.fixture
def built(toy_config, tmp_path):
    def build(**settings):
        return assemble(toy_config("Molar", **settings), tmp_path, Stages())

    return build


def test_loss_has_the_terms_of_equation_5(built):
    assembled = built(alpha=0.5, id_loss_weight=2.0, embedding_dropout=0.0, rec_loss="ce")
    model = assembled.model.eval()
    batch = next(iter(assembled.phases.train))
    rec, align, identity = model.calculate_loss(batch)
    model.alpha, model.id_loss_weight = 0.25, 1.0
    halved = model.calculate_loss(batch)
    torch.testing.assert_close(halved[0], rec)
    torch.testing.assert_close(halved[1] * 2, align)
    torch.testing.assert_close(halved[2] * 2, identity)


def test_fused_score_is_the_sum_of_both(built):
    assembled = built(score="fused")
    model = assembled.model.eval()
    users = assembled.phases.test.users
    batch = users.interaction[torch.arange(5).numpy()]
    with torch.no_grad():
        parts = []
        for model.score in ("content", "id", "fused"):
            parts.append(model.full_sort_predict(batch))
    torch.testing.assert_close(parts[0] + parts[1], parts[2], atol=1e-5, rtol=1e-5)


def test_frozen_dueg_keeps_its_weights(toy_settings):
    outcome = recbole_mm.run("Molar", "toy", config_dict={**toy_settings, "dueg_tuning": "frozen", "epochs": 1})
    fresh = outcome.dataset.mllm.text_stack().state_dict()
    trained = outcome.model.dueg.text_stack.state_dict()
    assert all(torch.equal(trained[name], fresh[name]) for name in fresh)
    assert outcome.model.dueg.user_token.requires_grad


@pytest.mark.parametrize("modalities", [["image"], ["text"]])
def test_modalities_change_the_vectors(built, modalities):
    both = built().dataset.item_vectors
    one = built(modalities=modalities).dataset.item_vectors
    assert one.shape == both.shape
    assert abs(one[1:] - both[1:]).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rec_loss": "hinge"}, "rec_loss must be one of bce, ce, sampled_softmax"),
        ({"score": "best"}, "score must be one of"),
        ({"id_model": "Transformer"}, "id_model must be one of"),
        ({"id_model": "none"}, "alpha: 0 and score: content"),
    ],
)
def test_settings_that_do_not_fit(built, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(**settings)
