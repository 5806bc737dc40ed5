"""An item LLM that is trained along: its gradients against a plain forward pass, the age of its cache, its memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import recbole_mm
from recbole_mm.data.loaders import TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.models.trained_items import CachePolicy, TrainedItems, cut_into_passes
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from recbole_mm.training.checkpoint import load_tree
from recbole_mm.training.factory import make_trainer

JOINT = {"mirm_training": "joint", "embedding_dropout": 0.0, "mllm_image_pixels": 28 * 28, "max_text_tokens": 12}
FULL = {**JOINT, "joint_tuning": "full"}
PLAIN_LORA = {"r": 4, "alpha": 8, "dropout": 0.0}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> str:
    """Folder in which the tests of this file share the tiny MLLM and the item vectors."""
    return str(tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def toy_settings(toy_settings, artifacts) -> dict:
    return {**toy_settings, "artifact_dir": artifacts}


@pytest.fixture
def built(toy_config, tmp_path):
    def build(model: str = "Molar", **settings):
        return assemble(toy_config(model, **settings), tmp_path, Stages())

    return build


def first_batch(assembled):
    return next(iter(assembled.splits.train))


def items_of(batch) -> set[int]:
    return {*batch["item_id_list"].flatten().tolist(), *batch[TARGETS][batch[TARGET_MASK]].tolist()}


def gradients(module: nn.Module, loss) -> dict[str, torch.Tensor]:
    module.zero_grad()
    (sum(loss) if isinstance(loss, tuple) else loss).backward()
    return {name: weight.grad.clone() for name, weight in module.named_parameters() if weight.grad is not None}


def require_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Gradients differ by at most 1e-5, and where they are larger than 1, by at most that share."""
    for name in found:
        bound = 1e-5 * max(1.0, float(expected[name].abs().max()))
        assert float((found[name] - expected[name]).abs().max()) <= bound, name


def plain_vectors(llm) -> torch.Tensor:
    """The vectors of all items by a pass for each, with gradients: no batches, no cache, nothing computed again."""
    return torch.cat([llm.read(torch.tensor([item])) for item in range(llm.n_items)])


# ------------------------------------------------------------------------------------------------ gradients, of Molar


@pytest.mark.parametrize("tokens", [100_000, 60], ids=["one pass", "passes computed again"])
@pytest.mark.parametrize(
    "settings",
    [
        {"rec_loss": "bce", "item_llm_negatives": "trained"},
        {"rec_loss": "ce", "item_llm_negatives": "trained"},
        {"rec_loss": "sampled_softmax", "shared_negatives": 8, "item_llm_negatives": "trained"},
        {"rec_loss": "ce", "item_llm_negatives": "cached", "item_llm_staleness": 0},
    ],
    ids=lambda settings: f"{settings['rec_loss']} {settings['item_llm_negatives']}",
)
def test_gradients_are_those_of_a_plain_forward_over_all_items(built, monkeypatch, settings, tokens):
    """With all items in the batch `cached` has the gradients of everything, too: `trained` has them in any case."""
    whole = settings["item_llm_negatives"] == "cached"
    size = {"train_batch_size": 100_000 if whole else 32}
    assembled = built(**FULL, **settings, **size, max_tokens_per_batch=tokens, alpha=0.1)
    model, batch = assembled.model.eval(), first_batch(assembled)
    llm = model.items.llm
    if whole:
        assert items_of(batch) >= set(range(1, model.n_train_items)), "the batch must have every item"
    torch.manual_seed(3)
    found = gradients(model, model.calculate_loss(batch))
    vectors = plain_vectors(llm)
    monkeypatch.setattr(llm, "look_up", lambda ids=None: vectors if ids is None else vectors[ids])
    torch.manual_seed(3)
    expected = gradients(model, model._losses(batch, model._id_states(batch)))
    assert found.keys() == expected.keys()
    of_llm = [name for name in found if name.startswith("items.llm.")]
    assert any(".self_attn.q_proj" in name for name in of_llm)
    assert any("visual" in name for name in of_llm), "pictures are read with gradients, too"
    assert max(float(found[name].abs().max()) for name in of_llm) > 1e-4
    require_equal(found, expected)


def test_cached_negatives_have_no_gradients(built, monkeypatch):
    """Cross-entropy over all items, of which the batch has some: the rest is constant."""
    settings = {"rec_loss": "ce", "alpha": 0, "id_loss_weight": 0, "train_batch_size": 8}
    assembled = built(**FULL, **settings, item_llm_negatives="cached", item_llm_staleness=0)
    model, batch = assembled.model.eval(), first_batch(assembled)
    llm = model.items.llm
    found = gradients(model, model.calculate_loss(batch))
    inside = torch.tensor([item in items_of(batch) for item in range(llm.n_items)])
    assert 2 < inside.sum() < llm.n_items - 2
    vectors = plain_vectors(llm)
    vectors = torch.where(inside[:, None], vectors, vectors.detach())
    monkeypatch.setattr(llm, "look_up", lambda ids=None: vectors if ids is None else vectors[ids])
    expected = gradients(model, model._losses(batch, model._id_states(batch)))
    require_equal(found, expected)


def test_layers_computed_twice_change_no_gradient(built):
    found = []
    for checkpointing in (False, True):
        assembled = built(
            **FULL, mirm_gradient_checkpointing=checkpointing, id_model_config={"hidden_dropout_prob": 0.0}
        )
        model, batch = assembled.model.eval(), first_batch(assembled)
        model.items.train()
        torch.manual_seed(1)
        found.append(gradients(model.items, model.calculate_loss(batch)[0]))
    assert found[0].keys() == found[1].keys()
    require_equal(found[0], found[1])


def test_training_starts_from_the_vectors_of_two_stages(built):
    assembled = built(**JOINT, mirm_lora=PLAIN_LORA)
    items, before = assembled.model.items.eval(), torch.from_numpy(assembled.dataset.inputs.item_vectors)
    assert torch.equal(items.llm.table(), before), "they are taken from the store"
    with torch.no_grad():
        items.llm.table()[1] += 1.0
    assert not torch.equal(items.llm.table(), before), "and do not share their memory"
    items.llm.table()[1] -= 1.0
    torch.testing.assert_close(items(), items.projection(items.vectors), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(items.llm(torch.arange(len(before))), before, atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------ the cache


class Words(TrainedItems):
    """An item LLM of an embedding, which counts what it reads."""

    def __init__(self, sizes, **policy) -> None:
        super().__init__(len(sizes), 3, CachePolicy(**{"max_tokens": 100, **policy}))
        self.words = nn.Embedding(len(sizes), 3)
        self.lengths, self.passes = sizes, []

    def sizes(self, ids):
        return [self.lengths[item] for item in ids.tolist()]

    def read(self, ids):
        self.passes.append(ids.tolist())
        return self.words(ids)


@pytest.mark.parametrize("staleness", [0, 2, None])
def test_a_cached_vector_is_at_most_as_old_as_the_key_says(staleness):
    torch.manual_seed(0)
    items, generator = Words([1] * 20, staleness=staleness), torch.Generator().manual_seed(0)
    optimizer, weights, ages = torch.optim.SGD(items.parameters(), lr=1.0), {}, set()
    for epoch in range(2):
        items.start_epoch()
        first = items.number + 1
        for number in range(first, first + 12):
            weights[number] = items.words.weight.detach().clone()
            mine = torch.randint(20, (3,), generator=generator)
            read = torch.randint(20, (6,), generator=generator)
            with items.batch(mine):
                vectors = items.look_up(read)
            for place, item in enumerate(read.tolist()):
                computed = int(items.computed[item])
                assert torch.equal(vectors[place], weights[computed][item]), "the weights of the batch that it names"
                assert computed >= first if staleness is None else number - computed <= staleness
                if item in mine:
                    assert computed == number
                ages.add(number - computed)
            optimizer.zero_grad()
            vectors.square().sum().backward()
            optimizer.step()
            with torch.no_grad():
                items.words.weight.add_(0.01)  # the weights of all items change
        assert epoch or torch.equal(items.table(), items.words.weight), "after an epoch everything is of now"
    if staleness is None:
        assert max(ages) > 2, "without a bound they grow old until the epoch is over"
    else:
        assert max(ages) == staleness


def test_the_age_that_is_allowed_is_reached_and_not_passed():
    items = Words([1] * 4, staleness=2)
    read = []
    for _ in range(8):
        with items.batch(torch.tensor([1])):
            items.passes.clear()
            items.look_up(torch.tensor([2]))
        read.append(bool(items.passes))
    assert read == [False, False, False, True, False, False, True, False]


def test_items_are_read_once_per_batch_and_in_passes_of_bounded_size():
    sizes = [0, 5, 30, 7, 7, 90, 200, 1]
    items = Words(sizes, max_tokens=100, negatives="trained")
    with items.batch(torch.tensor([[5, 1, 2, 3], [1, 1, 6, 4]])):
        vectors = items.look_up(torch.tensor([1, 2, 3, 4, 5, 6]))
        assert sorted(item for ids in items.passes for item in ids) == [1, 2, 3, 4, 5, 6]
        assert torch.equal(vectors, items.words.weight[1:7])
    for ids in items.passes:
        assert len(ids) == 1 or len(ids) * max(sizes[item] for item in ids) <= 100
    forward = len(items.passes)
    assert forward > 1
    vectors.sum().backward()
    assert len(items.passes) == 2 * forward, "of several passes, none keeps its activations"
    assert torch.equal(items.words.weight.grad, torch.tensor([[float(1 <= item <= 6)] * 3 for item in range(8)]))
    few = Words(sizes, max_tokens=1000, negatives="trained")
    with few.batch(torch.tensor([1, 2])):
        few.look_up(torch.tensor([1])).sum().backward()
    assert len(few.passes) == 1, "a single pass keeps them"
    assert cut_into_passes([], 10) == []


def test_evaluation_has_the_weights_of_now():
    items = Words([1] * 5)
    assert torch.equal(items.look_up(torch.tensor([[3]])), items.words.weight[torch.tensor([[3]])])
    items.passes.clear()
    items.table()
    assert not items.passes, "kept until the next batch"
    with items.batch(torch.tensor([1])):
        items.look_up()
    with torch.no_grad():
        items.words.weight.add_(1.0)
    assert torch.equal(items.table(), items.words.weight)
    with torch.no_grad():
        other = {name: value + 1 for name, value in items.state_dict().items()}
    items.load_state_dict(other)
    assert torch.equal(items.table(), other["words.weight"])


# ------------------------------------------------------------------------------------------------------ runs, of both


def test_a_run_trains_the_adapter_and_saves_nothing_else_of_the_mllm(toy_settings):
    steady = {"lr_scheduler": "constant", "warmup_ratio": 0, "train_batch_size": 64}
    settings = {**toy_settings, **JOINT, **steady, "item_llm_learning_rate": 1e-2, "epochs": 1}
    outcome = recbole_mm.run("Molar", "toy", config_dict=settings)
    tree = load_tree(outcome.run_dir / "model.safetensors")
    saved = {name for name in tree["state_dict"] if name.startswith("items.llm.")}
    assert saved
    assert all(".lora_" in name for name in saved)
    trained = {name for name, weight in outcome.model.items.llm.named_parameters() if weight.requires_grad}
    assert saved == {f"items.llm.{name}" for name in trained}
    before = torch.from_numpy(outcome.dataset.inputs.item_vectors)
    assert not torch.allclose(outcome.model.items.llm.table(), before, atol=1e-3), "the vectors have moved"
    again = recbole_mm.load(outcome.run_dir).model.items.llm
    assert torch.equal(again.table(), outcome.model.items.llm.table()), "they are kept with the weights"
    again.current_at = -1
    torch.testing.assert_close(again.table(), outcome.model.items.llm.table(), atol=1e-5, rtol=1e-5)


def test_epochs_before_the_joint_ones_leave_the_mllm_as_it_is(toy_config, tmp_path):
    config = toy_config("Molar", **JOINT, joint_from_epoch=2, epochs=3, item_llm_learning_rate=1e-2)
    assembled = assemble(config, tmp_path, Stages())
    trainer, llm = make_trainer(config, assembled.model, tmp_path), assembled.model.items.llm
    read, before = [], torch.from_numpy(assembled.dataset.inputs.item_vectors)
    original = llm.read
    llm.read = lambda ids: read.append(ids) or original(ids)
    for epoch in range(3):
        weights = {name: weight.clone() for name, weight in llm.named_parameters()}
        projection = assembled.model.items.projection.weight.clone()
        trainer._train_epoch(assembled.splits.train, epoch)
        moved = any(not torch.equal(weight, weights[name]) for name, weight in llm.named_parameters())
        assert moved == bool(read) == (epoch == 2)
        assert not torch.equal(projection, assembled.model.items.projection.weight)
        assert torch.equal(llm.table(), before) == (epoch < 2)


def test_the_llm_has_a_learning_rate_of_its_own(built):
    assembled = built(**JOINT, item_llm_learning_rate=2e-5)
    others, llm = assembled.model.parameter_groups(assembled.config)
    assert llm["lr"] == 2e-5
    assert {id(weight) for weight in llm["params"]} == {id(weight) for weight in assembled.model.items.llm.parameters()}
    assert len(others["params"]) + len(llm["params"]) == len(list(assembled.model.parameters()))


def test_the_mllm_of_the_user_model_stays_apart(built):
    assembled = built(**FULL)
    model, mllm = assembled.model, assembled.dataset.inputs.mllm.model
    mine = {id(weight) for weight in model.items.llm.parameters()}
    assert not mine & {id(weight) for weight in [*model.dueg.parameters(), *mllm.parameters()]}


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_hllm_with_cached_negatives(built, tuning):
    settings = {"item_llm_tuning": tuning, "item_llm_negatives": "cached", "item_llm_lora": PLAIN_LORA}
    assembled = built("HLLM", **settings, shared_negatives=30, max_tokens_per_batch=100, train_batch_size=8)
    model, batch = assembled.model.eval(), first_batch(assembled)
    torch.manual_seed(4)
    cached = model.calculate_loss(batch)
    assert model.items.number == 1
    plain = built("HLLM", **{**settings, "item_llm_negatives": "trained"}, shared_negatives=30, train_batch_size=8)
    plain.model.load_state_dict(model.state_dict())
    torch.manual_seed(4)
    torch.testing.assert_close(cached, plain.model.eval().calculate_loss(batch), atol=1e-5, rtol=1e-5)
    trained = {name for name, weight in model.items.named_parameters() if weight.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {"item_token"} or tuning == "full"
    cached.backward()
    assert all(weight.grad is not None for name, weight in model.items.named_parameters() if name in trained)
    rows = assembled.splits.test.users.interaction[np.arange(4)]
    with torch.no_grad():
        torch.testing.assert_close(
            model.full_sort_predict(rows), plain.model.full_sort_predict(rows), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            "Molar",
            {"mirm_training": "end_to_end"},
            "mirm_training: 'end_to_end' is not accepted; give one of two_stage",
        ),
        ("Molar", {"mirm_training": "joint", "joint_tuning": "none"}, "joint_tuning: 'none' is not accepted; give one"),
        (
            "Molar",
            {"mirm_training": "joint", "score": "id"},
            "mirm_training: joint trains the content score, and score",
        ),
        ("Molar", {"mirm_training": "joint", "train_workers": 2}, "mirm_training: joint keeps a cache of item vectors"),
        ("Molar", {"mirm_training": "joint", "item_llm_staleness": -1}, "item_llm_staleness: -1 is not accepted"),
        (
            "Molar",
            {"mirm_training": "joint", "joint_from_epoch": 2},
            "joint_from_epoch: 2 leaves no epoch out of 2 that",
        ),
        ("Molar", {"mirm_training": "joint", "max_tokens_per_batch": 0}, "max_tokens_per_batch: 0 is not accepted"),
        (
            "Molar",
            {"mirm_training": "joint", "item_sources": ["text"], "dueg": "sasrec", "hidden_size": 32},
            "mirm_training: joint trains the MLLM that reads items; name mllm in item_sources",
        ),
        (
            "Molar",
            {"mirm_training": "joint", "mirm_lora": {"r": 2, "targets": ["nowhere"]}},
            r"LoRA of rank 2 in \['nowhere'\] cannot be; the decoder's linear maps are down_proj",
        ),
        (
            "HLLM",
            {"item_llm_tuning": "full", "item_llm_negatives": "cached", "train_workers": 2},
            "item_llm_negatives: cached keeps a cache of item vectors in one process; set train_workers: 1",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_line(built, model, settings, message):
    with pytest.raises(ConfigError, match=message) as raised:
        built(model, **settings)
    assert "\n" not in str(raised.value)
