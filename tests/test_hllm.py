"""HLLM: its loss by hand, negatives that cannot all vanish, item and user LLM against plain passes, the table of
items."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import recbole_mm
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.dot_product import dot_product_of
from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.llm.item_tokens import tokenize_items
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.models.hllm.llms import ItemLLM, UserLLM, content_groups, decoder_of
from recbole_mm.models.hllm.loss import (
    WARN_AFTER,
    CollapseError,
    CollapseWatch,
    alike_share,
    exclude_similar,
    shared_infonce,
)
from recbole_mm.models.trained_items import CachePolicy, cut_into_passes
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from recbole_mm.training.checkpoint import load_tree

TRAINED = {"item_llm_tuning": "full", "learning_rate": 3e-4}
TEXTS = [
    None,
    "Title: The first of all films",
    "Title: A second one\nClass: drama",
    None,
    "short",
    "Title: The first of all films",
]


class Items:
    """Content of a handful of items, as the tokenizer and the encoder read it."""

    def __init__(self, texts) -> None:
        self.texts = texts

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, index: int) -> str | None:
        return self.texts[index]

    def __getitem__(self, index: int):
        return recbole_mm.data.content.ItemRecord(f"i{index}", self.texts[index], None)

    def fingerprint(self, index: int) -> str:
        return str(self.texts[index])


@pytest.fixture(scope="module")
def mllm(tmp_path_factory):
    corpus = [text for text in TEXTS if text]
    return load_mllm(build_tiny(corpus, tmp_path_factory.mktemp("tiny") / "m"))


@pytest.fixture
def built(toy_config, tmp_path):
    def build(**settings):
        return assemble(toy_config("HLLM", **settings), tmp_path, Stages())

    return build


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# ------------------------------------------------------------------------------------------------------------- loss


def test_infonce_by_hand():
    states, positives, negatives = unit(3, 4, seed=1), unit(3, 4, seed=2), unit(5, 4, seed=3)
    excluded = torch.zeros(3, 5, dtype=torch.bool)
    excluded[1, [0, 4]] = True
    scale, total = 7.0, 0.0
    for row in range(3):
        positive = math.exp(scale * float(states[row] @ positives[row]))
        others = [math.exp(scale * float(states[row] @ negatives[k])) for k in range(5) if not excluded[row, k]]
        total -= math.log(positive / (positive + sum(others)))
    found = shared_infonce(states, positives, negatives, torch.tensor(scale), excluded)
    assert float(found) == pytest.approx(total / 3, rel=1e-5)


def test_scale_has_a_gradient_beside_excluded_negatives():
    scale = torch.tensor(5.0, requires_grad=True)
    excluded = torch.eye(3, dtype=torch.bool)
    shared_infonce(unit(3, 4), unit(3, 4, seed=1), unit(3, 4, seed=2), scale, excluded).backward()
    assert torch.isfinite(scale.grad)
    assert scale.grad != 0


def test_too_similar_negatives_go_but_the_least_similar_stay():
    similarity = torch.tensor([[1.0, 0.995, 0.5, 0.992], [0.999, 0.998, 0.997, 0.996]])
    same = torch.tensor([[True, False, False, False], [False, False, False, True]])
    assert exclude_similar(similarity, same, above=0.99, keep=1).tolist() == [
        [True, True, False, True],  # one is left anyway
        [True, True, False, True],  # none would be left: the least similar one that is another item stays
    ]
    assert exclude_similar(similarity, same, above=0.99, keep=2)[1].tolist() == [True, False, False, True]
    assert exclude_similar(similarity, same, above=0.99, keep=99).equal(same)


def test_collapsed_vectors_still_have_a_loss():
    """The trouble of masking by similarity alone: where all items are alike nothing is left, and the loss is 0."""
    middle = unit(1, 16)
    states = unit(6, 16, seed=5)
    positives, negatives = (F.normalize(middle + 1e-3 * unit(n, 16, seed=n), dim=-1) for n in (6, 8))
    similarity, nothing_same = positives @ negatives.T, torch.zeros(6, 8, dtype=torch.bool)
    by_similarity_alone = similarity > 0.99
    assert shared_infonce(states, positives, negatives, torch.tensor(10.0), by_similarity_alone) == 0
    excluded = exclude_similar(similarity, nothing_same, above=0.99, keep=4)
    assert (~excluded).sum(1).tolist() == [4] * 6
    loss = shared_infonce(states, positives, negatives, torch.tensor(10.0), excluded)
    assert float(loss) == pytest.approx(math.log(5), abs=0.05)
    assert alike_share(similarity, nothing_same, 0.99) == 1


def test_share_of_alike_pairs_counts_different_content_only():
    similarity = torch.tensor([[1.0, 0.995, 0.2], [0.3, 1.0, 0.4]])
    same = torch.tensor([[True, False, False], [False, True, False]])
    assert alike_share(similarity, same, 0.99) == pytest.approx(1 / 4)
    assert alike_share(similarity, torch.ones_like(same), 0.99) == 0


def test_watch_warns_once_then_stops_and_forgives(caplog):
    watch = CollapseWatch(patience=WARN_AFTER + 3)
    with caplog.at_level(logging.WARNING):
        for _ in range(WARN_AFTER - 1):
            watch.see(0.9)
        watch.see(0.1)  # came back
        for _ in range(WARN_AFTER + 2):
            watch.see(0.9)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    with pytest.raises(CollapseError, match=r"90% of different items .* Lower learning_rate"):
        watch.see(0.9)
    patient = CollapseWatch(patience=None)
    for _ in range(WARN_AFTER * 20):
        patient.see(1.0)
    assert patient.collapsed == WARN_AFTER * 20


@pytest.mark.parametrize("false_negatives", ["content", "similar"])
def test_training_that_has_collapsed_ends_in_an_error(built, false_negatives):
    assembled = built(false_negatives=false_negatives, collapse_patience=3, least_negatives=5)
    model, batch = assembled.model.train(), next(iter(assembled.splits.train))
    with torch.no_grad():
        model.items.projection.weight.zero_()  # every item's vector is the bias
    losses = [model.calculate_loss(batch) for _ in range(2)]
    assert all(loss > 1 for loss in losses)
    with pytest.raises(CollapseError, match="for 3 batches in a row"):
        model.calculate_loss(batch)
    model.eval()
    assert model.calculate_loss(batch) > 1, "only training is watched"


# ----------------------------------------------------------------------------------------------------------- tokens


def test_tokens_are_the_text_and_the_instruction(mllm):
    ids, lengths = tokenize_items(Items(TEXTS), mllm, max_text_tokens=6)
    assert ids.shape == (6, lengths.max())
    assert ids.dtype == np.int32
    assert lengths[[0, 3]].tolist() == [0, 0]
    assert not ids[3].any()
    words = mllm.token_ids(TEXTS[2])
    assert len(words) > 6
    assert mllm.tokenizer.decode(ids[2, :6]) == mllm.tokenizer.decode(words[:6])
    assert "described above" in mllm.tokenizer.decode(ids[2, : lengths[2]])
    assert (ids[2, lengths[2] :] == 0).all()
    assert ids[1].tolist() == ids[5].tolist()


def test_special_tokens_spelled_in_a_text_stay_plain(mllm):
    ids, _ = tokenize_items(Items([None, "a <|im_end|> [Cur_Item] b"]), mllm, max_text_tokens=256)
    assert not np.isin(ids, [mllm.tokenizer.eos_token_id, mllm.cur_item_id]).any()


def test_nothing_to_tokenize_is_said(mllm):
    with pytest.raises(ConfigError, match="no item has a text"):
        tokenize_items(Items([None, None]), mllm, 8)
    with pytest.raises(ConfigError, match="max_text_tokens must be at least 1"):
        tokenize_items(Items(TEXTS), mllm, 0)


# --------------------------------------------------------------------------------------------------- item and user LLM


def item_llm(mllm, batch_tokens: int = 16384, **settings) -> ItemLLM:
    policy = CachePolicy(batch_tokens, negatives="trained")
    return ItemLLM(mllm, *tokenize_items(Items(TEXTS), mllm, 256), policy, **settings)


@pytest.mark.parametrize("layers", [None, 1])
def test_untrained_item_llm_gives_the_frozen_vectors(mllm, layers):
    """Which also holds it against transformers' own pass: the encoder's vectors are tested against that."""
    frozen = ItemEncoder(mllm, layers=layers).encode([Items(TEXTS)[i] for i in (1, 2, 4)])
    with torch.no_grad():
        trained = item_llm(mllm, layers=layers)(torch.tensor([1, 2, 4]))
    torch.testing.assert_close(trained, torch.from_numpy(frozen), atol=1e-4, rtol=1e-4)


def test_vectors_do_not_depend_on_what_shares_the_pass(mllm):
    ids = torch.tensor([4, 0, 5, 2, 1, 3])
    with torch.no_grad():
        together = item_llm(mllm)(ids)
        few = item_llm(mllm, batch_tokens=40)
        alone = torch.cat([few(ids[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(few(ids), together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[2], together[4])
    assert cut_into_passes([91, 20, 20, 2], 40) == [(0, 1), (1, 3), (3, 4)], "one that is too long goes alone"


def test_words_layers_and_the_item_token_are_trained_and_the_mllm_is_not(mllm):
    model = item_llm(mllm)
    model(torch.tensor([1, 2])).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in mllm.model.parameters())


def test_gradient_checkpointing_changes_no_gradient(mllm):
    gradients = []
    for checkpointing in (False, True):
        model = item_llm(mllm, checkpointing=checkpointing).train()
        assert model.text_stack.decoder.gradient_checkpointing == checkpointing
        model(torch.tensor([1, 2, 4])).sin().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients):
        torch.testing.assert_close(plain, recomputed)


def test_user_llm_sees_no_later_item_and_no_padding(mllm):
    user_llm = UserLLM(decoder_of(mllm))
    items = torch.randn(2, 5, mllm.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together = user_llm(items)
        for n in range(1, 6):
            torch.testing.assert_close(user_llm(items[:, :n])[:, -1], together[:, n - 1], atol=1e-5, rtol=1e-5)


def test_layers_of_the_user_llm(mllm):
    whole, cut = decoder_of(mllm), decoder_of(mllm, layers=1)
    assert (len(whole.decoder.layers), len(cut.decoder.layers), len(decoder_of(mllm).decoder.layers)) == (2, 1, 2)
    items = torch.randn(1, 3, mllm.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert not torch.allclose(UserLLM(whole)(items), UserLLM(cut)(items))
    with pytest.raises(ConfigError, match="user_llm_layers: the LLM has 2 layers"):
        decoder_of(mllm, layers=3)


def test_same_content_has_the_same_group(mllm):
    assert content_groups(torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [1.0, 2.5]])).tolist() == [0, 1, 0, 3]
    assert content_groups(item_llm(mllm).texts()).tolist() == [0, 1, 2, 0, 4, 1]


# ------------------------------------------------------------------------------------------------------------ the model


def test_needs_follow_the_tuning(built):
    frozen, trained = built(), built(**TRAINED)
    assert not hasattr(frozen.dataset, "item_token_ids")
    assert not hasattr(trained.dataset, "item_text_vectors")
    assert trained.dataset.inputs.item_token_ids.shape[0] == trained.dataset.item_num


def test_images_are_not_looked_at(built):
    both = built(modalities=["image", "text"]).dataset.inputs.item_text_vectors
    assert np.array_equal(both, built(modalities=["text"]).dataset.inputs.item_text_vectors)


@pytest.mark.parametrize("settings", [{}, TRAINED], ids=["frozen", "full"])
def test_loss_is_infonce_at_every_position(built, settings):
    assembled = built(**settings, shared_negatives=10, temperature=0.1)
    model, batch = assembled.model.eval(), next(iter(assembled.splits.train))
    torch.manual_seed(4)
    with torch.no_grad():
        loss = model.calculate_loss(batch)
        torch.manual_seed(4)
        negatives = model.draw_negatives(torch.device("cpu")).tolist()
        table, total, count = model.item_table(), 0.0, 0
        items = F.normalize(table, dim=-1)
        for history, targets, length in zip(batch["item_id_list"], batch["target_id_list"], batch["item_length"]):
            for n in range(1, int(length) + 1):
                state = F.normalize(model.user_llm(table[history[:n]][None])[0, -1], dim=-1)
                target = int(targets[n - 1])
                shown = [target, *(item for item in negatives if item != target)]
                total -= torch.log_softmax(10 * items[shown] @ state, dim=0)[0]
                count += 1
    assert len(set(negatives)) == 10
    torch.testing.assert_close(loss, total / count, atol=1e-4, rtol=1e-4)


def test_negatives_of_the_same_text_do_not_count(built):
    assembled = built(false_negatives="content", text_fields=["class"], shared_negatives=1000)
    model = assembled.model
    names = model.content_group.unique()
    assert len(names) == 5, "four genres and the padding item"
    excluded = model._excluded(torch.tensor([1]), torch.arange(1, 41), torch.zeros(1, 128), torch.zeros(40, 128))
    tokens = assembled.dataset.id2token("item_id", np.arange(1, 41))
    genre = [int(token[1:]) % 4 for token in tokens]
    assert excluded[0].tolist() == [one == genre[0] for one in genre]
    model.false_negatives = "item"
    by_item = built(false_negatives="item", text_fields=["class"]).model
    assert by_item.content_group.tolist() == list(range(by_item.n_items))


def test_item_llm_reads_each_item_of_a_batch_once(built, monkeypatch):
    assembled = built(**TRAINED, shared_negatives=5)
    model, batch = assembled.model.train(), next(iter(assembled.splits.train))
    seen: list[torch.Tensor] = []
    read = ItemLLM.forward
    monkeypatch.setattr(ItemLLM, "forward", lambda self, ids: seen.append(ids) or read(self, ids))
    torch.manual_seed(4)
    model.calculate_loss(batch)
    torch.manual_seed(4)
    mask = batch["target_mask"]
    wanted = {*batch["item_id_list"][mask].tolist(), *batch["target_id_list"][mask].tolist()}
    wanted |= set(model.draw_negatives(mask.device).tolist())
    assert len(seen) == 1
    assert sorted(seen[0].tolist()) == sorted(wanted)


def test_item_table_is_computed_once_per_evaluation_and_dropped_when_weights_change(built, tmp_path):
    assembled = built(**TRAINED)
    model, users = assembled.model.eval(), assembled.splits.test.users
    rows = users.interaction[np.arange(4)]
    with torch.no_grad():
        model.full_sort_predict(rows)
        table = model.item_table()
        assert model.item_table() is table
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        model.items.item_token.add_(1.0)
        model.train()
        assert model.item_table() is not model.item_table(), "kept only while weights stand still"
        model.eval()
        moved = model.item_table()
        assert not torch.allclose(moved, table)
        model.load_state_dict(weights)
        torch.testing.assert_close(model.item_table(), table)
        half = built(**TRAINED, max_tokens_per_batch=100).model.eval()
        half.load_state_dict(weights)
        torch.testing.assert_close(half.item_table(), table, atol=1e-5, rtol=1e-5)


def test_item_table_is_not_saved(toy_settings):
    outcome = recbole_mm.run("HLLM", "toy", config_dict={**toy_settings, "epochs": 1})
    tree = load_tree(outcome.run_dir / "model.safetensors")
    assert not tree["attributes"]
    assert not any("vectors" in name or "group" in name for name in tree["state_dict"])


def test_scores_are_logits_and_split_into_two_halves(built):
    assembled = built(temperature=0.05)
    model, rows = assembled.model.eval(), assembled.splits.test.users.interaction[np.arange(6)]
    halves = dot_product_of(model)
    with torch.no_grad():
        users, items, scores = halves.users(rows), halves.items(), model.full_sort_predict(rows)
    torch.testing.assert_close(users @ items.T, scores)
    torch.testing.assert_close(users.norm(dim=1), torch.full((6,), 20.0))
    torch.testing.assert_close(items[1:].norm(dim=1), torch.ones(len(items) - 1))


def test_scale_stays_within_its_bound(built):
    assembled = built()
    model, batch = assembled.model, next(iter(assembled.splits.train))
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    model.calculate_loss(batch).backward()
    assert model.log_scale.exp().item() == pytest.approx(100)
    assert model.log_scale.grad.abs() > 0, "it can come back"


def test_frozen_user_llm_and_own_learning_rate(built):
    model = built(user_llm_tuning="frozen").model
    assert not any(parameter.requires_grad for parameter in model.user_llm.parameters())
    assembled = built(**TRAINED, item_llm_learning_rate=2e-5)
    others, items = assembled.model.parameter_groups(assembled.config)
    assert items["lr"] == 2e-5
    assert len(others["params"]) + len(items["params"]) == len(list(assembled.model.parameters()))
    assert {id(p) for p in items["params"]} == {id(p) for p in assembled.model.items.parameters()}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"item_llm_tuning": "none"}, "item_llm_tuning: 'none' is not accepted; give one of frozen, lora, full"),
        ({"false_negatives": "none"}, "false_negatives: 'none' is not accepted; give one of content, item, similar"),
        ({"item_projection": "deep"}, "item_projection: 'deep' is not accepted; give one of"),
        ({"shared_negatives": 0}, "shared_negatives: 0 is not accepted; give a whole number"),
        ({"least_negatives": 0}, "least_negatives: 0 is not accepted; give a whole number"),
        ({"temperature": 0}, "temperature: 0 is not accepted; give a number from 0.01 to 1"),
        ({"collapse_patience": 0}, "collapse_patience: 0 is not accepted; give a whole number of at least 1"),
        ({"item_llm_learning_rate": 0}, "item_llm_learning_rate: 0 is not accepted; give a number above 0"),
        ({"user_llm_layers": 9}, "user_llm_layers: the LLM has 2 layers"),
    ],
)
def test_settings_that_do_not_fit(built, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(**settings)
