"""CoLLM's parts: prompts and their placeholders, frozen parts in each stage, and the one scale of its scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.inputs import ModelInputs
from recbole_mm.errors import ConfigError
from recbole_mm.llm.answer import AnswerReader
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.models.collm import CoLLM, prompt
from recbole_mm.models.collm.filters import build_filter
from recbole_mm.models.collm.model import FILTER, TEXT, VECTORS, VectorMapper
from recbole_mm.models.collm.prompt import NO_TITLE, Prompt
from recbole_mm.models.lora import LORA, with_lora
from recbole_mm.models.titles import read_titles
from recbole_mm.training.checkpoint import load_tree
from recbole_mm.training.factory import make_trainer
from tests.conftest import TOY_SETTINGS

SMALL = {
    "cf_epochs": 1,
    "lora_epochs": 1,
    "epochs": 3,
    "eval_step": 1,
    "train_batch_size": 128,
    "prompts_per_epoch": 20,
    "collm_history": 2,
    "collm_title_tokens": 6,
    "rerank_k": 4,
}


@pytest.fixture(scope="module")
def mllm(tmp_path_factory):
    corpus = [f"The {word} film number {i}" for i in range(9) for word in ("action", "comedy", "drama")]
    return load_mllm(build_tiny(corpus, tmp_path_factory.mktemp("tiny") / "model"), with_head=True)


@pytest.fixture
def built(toy_path, tmp_path, mllm):
    """`built(stage, **settings)`: an untrained CoLLM on `toy` in one of its stages, its phases, and its config."""
    from recbole_mm.config.resolved import Config
    from recbole_mm.evaluation.splits import split

    def build(stage: int = VECTORS, **settings):
        base = {**TOY_SETTINGS, **SMALL, "data_path": str(toy_path), "checkpoint_dir": str(tmp_path)}
        config = Config(CoLLM, "toy", config_dict={**base, **settings})
        dataset = create_dataset(config)
        dataset.inputs = ModelInputs(mllm=mllm)
        phases = split(config, dataset, CoLLM)
        torch.manual_seed(5)
        model = CoLLM(config, phases.train_dataset)
        model.start_epoch([0, model.cf_epochs, model.cf_epochs + model.lora_epochs][stage])
        assert int(model.stage) == stage
        return model.eval(), phases, config

    return build


def cases(phases, count: int = 12) -> Interaction:
    return phases.test.users.interaction[np.arange(count)]


# -------------------------------------------------------------------------------------------------------------- prompts


class Shelf:
    """Items with these columns; index 0 is padding."""

    def __init__(self, *columns: dict[str, str]) -> None:
        self.columns = [{}, *columns]

    def __len__(self) -> int:
        return len(self.columns)

    def fields(self, index: int) -> dict[str, str]:
        return self.columns[index]

    def text(self, index: int) -> str | None:
        return " / ".join(self.columns[index].values()) or None


def test_titles_come_from_one_column_or_the_whole_text():
    shelf = Shelf({"title": "Heat\t", "year": "1995"}, {"title": " ", "year": "1996"}, {})
    assert read_titles(shelf, "title") == ["", "Heat", "", ""]
    assert read_titles(shelf, None) == ["", "Heat  / 1995", "/ 1996", ""]
    with pytest.raises(ConfigError, match="no column 'name', only title, year"):
        read_titles(shelf, "name")
    with pytest.raises(ConfigError, match="no item has one"):
        read_titles(Shelf({"title": ""}), "title")


def test_a_prompt_reads_as_it_should(mllm):
    told = Prompt(mllm, ["", "Heat", "", "Fargo", "[Cur_Item]"], max_title_tokens=30, max_history=2)
    prefix, suffix = (mllm.tokenizer.decode(part) for part in (told.prefix([4, 3, 2], True), told.suffix(1, True)))
    assert prefix == (f"{prompt.OPENING}- Fargo\n- {NO_TITLE}\n{prompt.USER_VECTOR}[Cur_Item]\n{prompt.INSTRUCTION}")
    assert suffix == f"Heat\n{prompt.ITEM_VECTOR}[Cur_Item]\n{prompt.CUE}"
    without = mllm.tokenizer.decode(np.concatenate([told.prefix([1], False), told.suffix(3, False)]))
    assert without == f"{prompt.OPENING}- Heat\n{prompt.INSTRUCTION}Fargo\n{prompt.CUE}"


def test_only_our_placeholders_are_placeholders(mllm):
    told = Prompt(mllm, ["", "[Cur_Item] of the [Cur_Item]"], max_title_tokens=30, max_history=3)
    assert (told.prefix([1, 1], True) == told.placeholder).sum() == 1
    assert (told.suffix(1, True) == told.placeholder).sum() == 1
    assert not (told.prefix([1, 1], False) == told.placeholder).any()


def test_titles_and_histories_are_cut(mllm):
    long = Prompt(mllm, ["", "a " * 50], max_title_tokens=4, max_history=2)
    assert len(long.titles[1]) == 4
    assert np.array_equal(long.prefix([1] * 9, False), long.prefix([1, 1], False))
    with pytest.raises(ConfigError, match="at least 1"):
        Prompt(mllm, [""], 0, 1)


def test_a_checkpoint_that_opens_with_bos_gets_it(tmp_path):
    llava = load_mllm(build_tiny(["Heat"], tmp_path / "model", family="llava_next"), with_head=True)
    told = Prompt(llava, ["", "Heat"], max_title_tokens=9, max_history=2)
    assert told.prefix([1], True)[0] == llava.tokenizer.bos_token_id
    assert llava.tokenizer.bos_token_id not in told.suffix(1, True)


# ---------------------------------------------------------------------------------------------------------------- parts


def test_the_mapper_has_the_papers_shape():
    mapper = VectorMapper(6, 32, times=10)
    assert [tuple(weight.shape) for weight in mapper.parameters()] == [(60, 6), (60,), (32, 60), (32,)]
    assert mapper(torch.zeros(3, 2, 6)).shape == (3, 2, 32)


def test_lora_shares_the_decoders_weights_and_leaves_it_as_it_was(mllm):
    decoder = mllm.family.decoder(mllm.model)
    inputs = torch.randn(2, 5, mllm.hidden_size, generator=torch.Generator().manual_seed(0))
    before = decoder(inputs_embeds=inputs).last_hidden_state
    adapted = with_lora(decoder, rank=3, alpha=6, dropout=0.0, targets=["q_proj", "v_proj"]).eval()
    torch.testing.assert_close(adapted(inputs_embeds=inputs).last_hidden_state, before)
    learned = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    layers = decoder.config.num_hidden_layers
    assert len(learned) == layers * 2 * 2
    assert all(LORA in name and 3 in weight.shape for name, weight in learned.items())
    kept = {id(weight) for name, weight in adapted.named_parameters() if LORA not in name}
    assert kept == {id(weight) for weight in decoder.parameters()}
    with torch.no_grad():
        for weight in learned.values():
            weight += 0.1
    assert (adapted(inputs_embeds=inputs).last_hidden_state - before).abs().max() > 1e-3
    assert torch.equal(decoder(inputs_embeds=inputs).last_hidden_state, before)


@pytest.mark.parametrize("wrong", [{"targets": ["query"]}, {"rank": 0}])
def test_lora_that_cannot_be(mllm, wrong):
    settings = {"rank": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj"], **wrong}
    with pytest.raises(ConfigError, match=r"linear maps are .*q_proj") as raised:
        with_lora(mllm.family.decoder(mllm.model), **settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["MF", "LightGCN", "SASRec", "GRU4Rec", "FPMC"])
def test_every_filter_gives_its_models_own_scores(built, name):
    """The two vectors multiply to RecBole's scores, and the last prefix of a sequence is the whole of it."""
    model, phases, config = built(cf_model=name, cf_embedding_size=8)
    filter_ = model.filter
    rows = cases(phases)
    with torch.no_grad():
        product = filter_.user_vectors(rows) @ filter_.item_vectors().T
        expected = filter_.model.full_sort_predict(rows).view(len(rows), -1)
        torch.testing.assert_close(product, expected, atol=1e-5, rtol=1e-5)
        batch = next(iter(phases.train))
        last = filter_.prefix_vectors(batch)[torch.arange(len(batch)), batch["item_length"] - 1]
        torch.testing.assert_close(last, filter_.user_vectors(batch), atol=1e-5, rtol=1e-5)
    torch.manual_seed(0)
    fresh = build_filter(config, phases.train_dataset)
    optimizer = torch.optim.Adam(fresh.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(fresh.loss(batch))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]


# --------------------------------------------------------------------------------------------------------------- stages


def test_vectors_stand_where_the_placeholders_are(built):
    model, phases, _ = built(VECTORS)
    rows = cases(phases, 3)
    histories = [row[:length] for row, length in zip(rows["item_id_list"].numpy(), rows["item_length"].tolist())]
    users = model.filter.user_vectors(rows)
    with torch.no_grad():
        inputs = model._prefixes(histories, users)
        mapped = model.mapper(users)
    for row, history in enumerate(histories):
        ids = torch.from_numpy(model.prompt.prefix(history, True))
        found = inputs.inputs["inputs_embeds"][row, : len(ids)]
        place = ids == model.prompt.placeholder
        assert int(inputs.lengths[row]) == len(ids)
        torch.testing.assert_close(found[place], mapped[row : row + 1])
        words = model.reader.model.get_input_embeddings()(ids)
        torch.testing.assert_close(found[~place], words[~place])
    items = torch.tensor([4, 7])
    with torch.no_grad():
        vectors = model.filter.item_vectors()
        suffixes = model._suffixes(items, vectors).inputs["inputs_embeds"]
    for row, item in enumerate(items.tolist()):
        place = list(model.prompt.suffix(item, True)).index(model.prompt.placeholder)
        torch.testing.assert_close(suffixes[row, place], model.mapper(vectors[item]))


def moved(before: dict, model: CoLLM) -> set[str]:
    """Which of the three parts, or `LLM`, have other weights than before."""
    found = set()
    for name, weight in model.named_parameters():
        if not torch.equal(before[name], weight):
            part = name.split(".")[0]
            found.add(part if part != "reader" else "LoRA" if LORA in name else "LLM")
    return found


def test_each_stage_moves_its_own_part_alone(built, tmp_path):
    model, phases, config = built(FILTER, cf_epochs=2, weight_decay=0.1)
    trainer = make_trainer(config, model, tmp_path)
    stages = {}
    for epoch in range(4):  # the optimizer has momentum and decay from every stage before
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        trainer._train_epoch(phases.train, epoch)
        stages[epoch] = moved(before, model)
    assert stages == {0: {"filter"}, 1: {"filter"}, 2: {"LoRA"}, 3: {"mapper"}}


def test_only_the_learning_part_is_in_training_mode(built):
    model, _, _ = built(FILTER)
    found = []
    for epoch in range(3):
        model.start_epoch(epoch)
        model.train()
        found.append((model.filter.training, model.reader.training, model.mapper.training))
    assert found == [(True, False, False), (False, True, False), (False, False, True)]
    assert not any(part.training for part in model.eval().modules())


def test_stage_one_reads_text_alone(built):
    model, phases, _ = built(TEXT)
    batch = next(iter(phases.train))

    def loss():
        torch.manual_seed(1)
        with torch.no_grad():
            return float(model.calculate_loss(batch))

    text = loss()
    model.stage.fill_(VECTORS)
    both = loss()
    with torch.no_grad():
        for weight in model.filter.parameters():
            weight += 1.0
    assert loss() != both
    model.stage.fill_(TEXT)
    assert loss() == text


def test_the_loss_is_the_cross_entropy_of_yes_and_no(built):
    model, phases, _ = built(VECTORS, prompts_per_epoch=None)
    batch = next(iter(phases.train))
    mask = batch["target_mask"]
    total = []
    with torch.no_grad():
        loss = model.calculate_loss(batch)
        users, items = model.filter.prefix_vectors(batch), model.filter.item_vectors()
        for row, place in mask.nonzero()[:40].tolist():
            history = [batch["item_id_list"][row, : place + 1].numpy()]
            prefix = model.reader.read_prefix(model._prefixes(history, users[row, place][None]))
            pair = torch.stack([batch["target_id_list"][row, place], batch["neg_id_list"][row, place]])
            yes, no = model.reader.read_after(prefix, torch.zeros(2, dtype=torch.int64), model._suffixes(pair, items))
            total += [-yes.sigmoid().log(), -(1 - no.sigmoid()).log()]
    assert int(mask.sum()) > 40
    assert loss == pytest.approx(float(torch.stack(total).mean()), abs=0.2)
    small = Interaction({name: values[:1] for name, values in batch.interaction.items()})
    count = int(mask[0].sum())
    with torch.no_grad():
        torch.testing.assert_close(model.calculate_loss(small), torch.stack(total[: 2 * count]).mean())


def test_prompts_are_a_share_of_the_targets(built):
    model, phases, _ = built(prompts_per_epoch=20)
    batch = next(iter(phases.train))
    mask = batch["target_mask"]
    targets = len(phases.train_dataset.inter_feat)
    rows, places, count = model._drawn(mask)
    assert count == len(rows) == round(20 / targets * int(mask.sum())) > 0
    assert mask[rows, places].all()
    again, _, _ = model._drawn(mask)
    assert not torch.equal(rows, again)
    few = torch.zeros_like(mask)
    few[0, 0] = True
    assert len(model._drawn(few)[0]) == 1


# --------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("stage", [FILTER, TEXT, VECTORS])
def test_reranked_items_stand_above_the_others(built, stage):
    model, phases, _ = built(stage)
    rows = cases(phases)
    with torch.no_grad():
        scores = model.full_sort_predict(rows)
        plain = model.filter.user_vectors(rows).double() @ model.filter.item_vectors().double().T
    history = phases.test.users.history
    for row in range(len(rows)):
        reranked = scores[row] >= 0
        known = set(history.items[history.offsets[row] : history.offsets[row + 1]].tolist()) | {0}
        free = [item for item in range(model.n_items) if item not in known]
        best = sorted(free, key=lambda item: -float(plain[row, item]))[:4]
        assert sorted(best if stage else []) == reranked.nonzero().flatten().tolist()
        assert (scores[row][reranked] < 1).all()
        rest = [item for item in range(1, model.n_items) if not reranked[item]]
        assert scores[row, rest].argsort().tolist() == plain[row, rest].argsort().tolist()
        assert (scores[row, rest] > -1).all()


def test_a_reranked_score_is_the_probability_of_yes(built):
    """Against the model with its head, told the whole prompt by hand."""
    model, phases, _ = built(VECTORS)
    rows = cases(phases, 4)
    with torch.no_grad():
        scores = model.full_sort_predict(rows)
        users, items = model.filter.user_vectors(rows), model.filter.item_vectors()
        for row, item in (scores >= 0).nonzero().tolist():
            history = rows["item_id_list"][row, : int(rows["item_length"][row])].numpy()
            ids = np.concatenate([model.prompt.prefix(history, True), model.prompt.suffix(item, True)])
            vectors = torch.cat([users[row : row + 1], items[item : item + 1]])
            words = model.reader.model.get_input_embeddings()(torch.from_numpy(ids))
            words[ids == model.prompt.placeholder] = model.mapper(vectors)
            hidden = model.reader.model(inputs_embeds=words[None]).last_hidden_state[0, -1]
            assert scores[row, item] == pytest.approx(float((hidden @ model.reader.contrast).sigmoid()), abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"rerank_k": None}, {"mask_history": False, "cf_model": "SASRec"}])
def test_predict_gives_the_scores_of_full_sort_predict(built, settings):
    model, phases, _ = built(VECTORS, **settings)
    rows = np.repeat(np.arange(10), 8)
    items = torch.from_numpy(np.random.default_rng(0).integers(1, model.n_items, len(rows)))
    pairs = Interaction({**phases.test.users.interaction[rows].interaction, "item_id": items})
    with torch.no_grad():
        table = model.full_sort_predict(cases(phases, 10))
        items[::8] = table.argmax(1)
        torch.testing.assert_close(model.predict(pairs), table[rows, items], atol=1e-6, rtol=1e-6)
        assert (model.predict(pairs) >= 0).sum() >= 10
        model_rows = type(model)._rows_at_once
        try:  # the same in blocks of three cases
            type(model)._rows_at_once = property(lambda self: 3)
            torch.testing.assert_close(model.predict(pairs), table[rows, items], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(model.full_sort_predict(cases(phases, 10)), table, atol=1e-6, rtol=1e-6)
        finally:
            type(model)._rows_at_once = model_rows


def test_a_users_prefix_is_read_once(built, monkeypatch):
    model, phases, _ = built(VECTORS, rerank_k=9)
    read = []
    original = AnswerReader.read_prefix
    monkeypatch.setattr(AnswerReader, "read_prefix", lambda self, b: read.append(len(b.lengths)) or original(self, b))
    rows = np.repeat(np.arange(6), 5)
    pairs = Interaction({**phases.test.users.interaction[rows].interaction})
    with torch.no_grad():
        model.full_sort_predict(cases(phases, 6))
        assert sum(read) == 6
        pairs["item_id"] = (model.full_sort_predict(cases(phases, 6)).topk(5, dim=1).indices).flatten()
        read.clear()
        model.predict(pairs)
    assert sum(read) == 6


def test_candidates_know_training_items_alone(built):
    """Held-out items are ranked; what is left out comes from the training rows and the history that is given."""
    model, phases, _ = built(VECTORS)
    train = phases.train_dataset
    targets = train.inter_feat.targets.numpy()
    rows = np.union1d(train.rows.starts[targets], targets)
    users, items = train.inter_feat.flat["user_id"].numpy()[rows], train.inter_feat.flat["item_id"].numpy()[rows]
    for user in range(1, train.user_num):
        mine = model.known_items[model.known_offsets[user] : model.known_offsets[user + 1]].tolist()
        assert sorted(mine) == sorted(items[users == user])
    assert len(model.known_items) == len(rows)
    allowed = model._candidates(cases(phases))
    held_out = phases.test.users.positives.items[: len(allowed)]
    assert allowed[np.arange(len(allowed)), held_out].all()


# --------------------------------------------------------------------------------------------------------------- saving


def test_the_llm_itself_is_not_saved(built):
    model, _, _ = built(VECTORS)
    saved = model.state_dict()
    assert not [name for name in saved if name.startswith("reader") and LORA not in name]
    assert len([name for name in saved if LORA in name]) == 8
    other, _, _ = built(FILTER)
    with torch.no_grad():
        for weight in other.mapper.parameters():
            weight += 1
    other.load_state_dict(saved)
    assert int(other.stage) == VECTORS
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in saved.items())
    saved.pop("mapper.layers.0.bias")
    with pytest.raises(RuntimeError, match=r"mapper\.layers\.0\.bias"):
        other.load_state_dict(saved)


def test_the_best_epoch_is_one_of_the_last_stage(built, tmp_path):
    model, phases, config = built(FILTER)
    trainer = make_trainer(config, model, tmp_path / "run")
    trainer.fit(phases.train, phases.valid)
    assert ["valid_score" in record for record in trainer.history] == [False, False, True]
    assert int(load_tree(tmp_path / "run" / "model.safetensors")["state_dict"]["stage"]) == VECTORS


def test_the_filter_alone_is_a_run_of_its_own(built):
    model, _, _ = built(FILTER, epochs=3, cf_epochs=3)
    assert not model.is_pretraining()
    assert built(FILTER)[0].is_pretraining()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cf_model": "Pop"}, "cf_model: 'Pop' is not accepted; give one of MF, LightGCN"),
        ({"cf_config": {"n_layer": 3}}, "cf_config: unknown key 'n_layer'; did you mean 'n_layers'"),
        ({"cf_model": "SASRec", "cf_config": {"n_heads": 5}}, "cf_config: n_heads 5 does not divide the width"),
        (
            {"rerank_k": 0},
            "rerank_k: 0 is not accepted; give a whole number of at least 1, at most 1000000000, or null",
        ),
        ({"lora_epochs": -1}, "lora_epochs: -1 is not accepted; give a whole number of at least 0"),
        ({"modalities": ["image"]}, "keep text among the modalities"),
        ({"collm_title_field": "name"}, "no column 'name'"),
        ({"epochs": 3, "cf_epochs": 4}, "cf_epochs must be at most epochs, 3, not 4"),
        ({"epochs": 7, "cf_epochs": 5, "eval_step": 5}, "never validates the last stage, epochs 7 to 7"),
    ],
)
def test_settings_that_cannot_be(built, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(FILTER, **settings)
