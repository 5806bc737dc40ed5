"""MLLMRec: its equations written out densely, what each ablation changes, and that nothing held out reaches it."""

from __future__ import annotations

import csv
import io
import json
import re
import sqlite3
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch.nn import functional as F

import recbole_mm
from recbole_mm.artifacts.executor import Failure
from recbole_mm.cli.run import result_text
from recbole_mm.config.layers import properties_dir
from recbole_mm.config.resolved import Config
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.inputs import ModelInputs
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.dot_product import dot_product_of
from recbole_mm.evaluation.splits import split
from recbole_mm.experiments.compare.command import compare_finished
from recbole_mm.experiments.compare.summary import TableRow, summarize
from recbole_mm.experiments.compare.table import to_csv, to_latex, to_markdown
from recbole_mm.graph import TokenOrder, refined_graph
from recbole_mm.inputs.reasoning import writing
from recbole_mm.llm.texts.generator import Request
from recbole_mm.models.mllmrec import MLLMRec
from recbole_mm.models.mllmrec import model as mllmrec_model
from recbole_mm.models.mllmrec.inputs import filled_in, mean_of_items, propagated
from recbole_mm.runs.leakage import held_out_seen
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from recbole_mm.training.checkpoint import load_tree
from recbole_mm.utils import escaping
from tests.conftest import TOY_SETTINGS, write_toy
from tests.encoders import WORDS, write_sentence_encoder
from tests.test_compare import write_run
from tests.test_contract import leak_dataset

WIDTH = 6
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
SMALL = {"similar_threshold": 0.3, "similar_k": 4, "co_k": 3, "embedding_size": 4}


def vectors(rows: int, seed: int) -> np.ndarray:
    made = np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)
    made[0] = 0
    return made


@pytest.fixture
def build(toy_config):
    """`build(**settings)` -> an MLLMRec on `toy` with known item and profile vectors, and its training dataset."""

    def made(without_profile=(), without_text=(), **settings):
        config = toy_config("MLLMRec", **{**SMALL, **settings})
        dataset = create_dataset(config)
        fused, profiles = vectors(dataset.item_num, 1), vectors(dataset.user_num, 2)
        fused[list(without_text)] = 0
        profiles[list(without_profile)] = 0
        dataset.inputs = ModelInputs(fused_vectors=fused, profile_vectors=profiles)
        train = split(config, dataset, MLLMRec).train_dataset
        torch.manual_seed(3)
        return MLLMRec(config, train), train

    return made


def training_pairs(train) -> tuple[np.ndarray, np.ndarray]:
    return train.inter_feat["user_id"].numpy(), train.inter_feat["item_id"].numpy()


def batch(train, rows=50) -> Interaction:
    users, items = (torch.from_numpy(ids[:rows]) for ids in training_pairs(train))
    negatives = torch.arange(rows) % (train.item_num - 1) + 1
    return Interaction({"user_id": users, "item_id": items, "neg_item_id": negatives})


# ---- the equations, densely ----


def dense_graph(
    fused: np.ndarray, users: np.ndarray, items: np.ndarray, denoise=True, co_occur=True, drop=False, rank=None
):
    """S* of the paper for K_s = 4, K_c = 3, alpha = .3, entry by entry; of equals the lower `rank` is nearer."""
    n = len(fused)
    rank = np.arange(n) if rank is None else rank
    unit = fused / np.maximum(np.linalg.norm(fused, axis=1, keepdims=True), 1e-12)
    cosine = unit @ unit.T
    graph = np.zeros((n, n))
    for i in range(1, n):
        nearest = sorted(range(1, n), key=lambda j: (-cosine[i, j], rank[j]))[:4]
        for j in nearest:
            if not denoise:
                graph[i, j] = cosine[i, j]
            elif cosine[i, j] >= 0.3:
                graph[i, j] = 1
    audience = {i: set(users[items == i]) for i in range(n)}
    for i in range(1, n) if co_occur else ():
        shared = {}
        for j in range(1, n):
            both, either = len(audience[i] & audience[j]), len(audience[i] | audience[j])
            if j != i and both and not (drop and both == either):
                shared[j] = both / either
        for j in sorted(shared, key=lambda j: (-shared[j], rank[j]))[:3]:
            graph[i, j] += shared[j]
    degree = graph.sum(1)
    scale = np.where(degree > 0, np.maximum(degree, 1e-12) ** -0.5, 0)
    return scale[:, None] * graph * scale[None, :]


@pytest.mark.parametrize("layers", [0, 1, 2])
@pytest.mark.parametrize("changed", [{}, {"denoise": False}, {"co_occur": False}])
def test_item_inputs_are_the_sum_of_propagated_vectors(build, layers, changed):
    model, train = build(n_layers=layers, **changed)
    fused = vectors(train.item_num, 1).astype(np.float64)
    rank = TokenOrder(train.item_tokens()).rank
    graph = dense_graph(fused, *training_pairs(train), rank=rank, **changed)
    expected = fused + graph @ fused * (layers > 0) + graph @ graph @ fused * (layers > 1)
    np.testing.assert_allclose(model.item_inputs.numpy(), expected, atol=1e-5)
    np.testing.assert_array_equal(model.user_inputs.numpy(), vectors(train.user_num, 2))


def towers_by_hand(model: MLLMRec) -> tuple[torch.Tensor, torch.Tensor]:
    """h = W2 LeakyReLU(W1 x) of all users and items, in float64."""
    found = []
    for inputs, layers in ((model.user_inputs, model.user_tower), (model.item_inputs, model.item_tower)):
        w1, b1, w2, b2 = (parameter.detach().double() for parameter in layers.parameters())
        hidden = inputs.double() @ w1.T + b1
        found.append(torch.where(hidden > 0, hidden, 0.01 * hidden) @ w2.T + b2)
    return found[0], found[1]


def test_scores_and_loss_are_those_of_the_two_towers(build):
    model, train = build()
    users, items = towers_by_hand(model)
    assert [tuple(layer.weight.shape) for layer in (model.user_tower[0], model.user_tower[2])] == [(16, 6), (4, 16)]
    rows = batch(train)
    chosen, positive, negative = users[rows["user_id"]], items[rows["item_id"]], items[rows["neg_item_id"]]
    expected = -torch.log(torch.sigmoid((chosen * positive).sum(1) - (chosen * negative).sum(1))).mean()
    torch.testing.assert_close(model.calculate_loss(rows).double(), expected, **CLOSE)
    model.eval()
    torch.testing.assert_close(model.full_sort_predict(rows).view(50, -1).double(), chosen @ items.T, **CLOSE)
    torch.testing.assert_close(model.predict(rows).double(), (chosen * positive).sum(1), **CLOSE)


def test_only_distinct_rows_go_through_the_towers_and_the_gradient_is_the_same(build):
    model, train = build()
    rows, seen = batch(train), []
    model.item_tower.register_forward_hook(lambda _, inputs, output: seen.append(len(inputs[0])))
    model.calculate_loss(rows).backward()
    distinct = len(torch.cat([rows["item_id"], rows["neg_item_id"]]).unique())
    assert seen == [distinct]
    mine = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    users, items = model.user_tower(model.user_inputs), model.item_tower(model.item_inputs)
    scores = (users[rows["user_id"]] * (items[rows["item_id"]] - items[rows["neg_item_id"]])).sum(1)
    (-F.logsigmoid(scores)).mean().backward()
    for gradient, parameter in zip(mine, model.parameters()):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)


def dense_user_item(users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> torch.Tensor:
    graph = np.zeros((n_users + n_items, n_users + n_items))
    graph[users, items + n_users] = 1
    graph += graph.T
    degree = graph.sum(1)
    scale = np.where(degree > 0, np.maximum(degree, 1) ** -0.5, 0)
    return torch.from_numpy(scale[:, None] * graph * scale)


def test_gcn_ui_adds_two_convolutions_of_unit_vectors(build):
    model, train = build(gcn_ui=True)
    plain, _ = build()
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs), "the variant has no weight of its own"
    graph = dense_user_item(*training_pairs(train), model.n_users, model.n_items)
    h = torch.cat(towers_by_hand(model))
    unit = h / h.norm(dim=1, keepdim=True).clamp_min(1e-12)
    expected = h + unit + graph @ unit + graph @ graph @ unit
    rows = batch(train)
    users, items = expected.split([model.n_users, model.n_items])
    chosen = users[rows["user_id"]]
    loss = -F.logsigmoid((chosen * (items[rows["item_id"]] - items[rows["neg_item_id"]])).sum(1)).mean()
    torch.testing.assert_close(model.calculate_loss(rows).double(), loss, **CLOSE)
    model.eval()
    torch.testing.assert_close(model.full_sort_predict(rows).view(50, -1).double(), chosen @ items.T, **CLOSE)


# ---- users without a profile ----


def test_mean_of_items_counts_interactions_and_skips_items_without_text():
    items = np.array([[0, 0], [2, 0], [0, 0], [4, 8]], dtype=np.float32)
    users, chosen = np.array([1, 1, 1, 1, 2]), np.array([1, 1, 2, 3, 2])
    expected = [[0, 0], [(2 + 2 + 4) / 3, 8 / 3], [0, 0], [0, 0]]
    np.testing.assert_allclose(mean_of_items(items, users, chosen, 4), expected, rtol=1e-6)


def test_propagation_without_a_graph_is_the_vectors_themselves():
    assert np.array_equal(propagated(vectors(5, 0), None, 3), vectors(5, 0))


def test_a_user_without_profile_is_given_its_items_mean(build, caplog):
    model, train = build(without_profile=(3, 5))
    means = mean_of_items(vectors(train.item_num, 1), *training_pairs(train), train.user_num)
    expected = vectors(train.user_num, 2)
    expected[[3, 5]] = means[[3, 5]]
    np.testing.assert_allclose(model.user_inputs.numpy(), expected, atol=1e-6)
    assert f"2 of {train.user_num - 1} users have no profile" in caplog.text
    filled, without = filled_in(np.array([[0.0, 0], [1, 2]]), np.array([[3.0, 4], [5, 6]]))
    assert filled.tolist() == [[3, 4], [1, 2]]
    assert without.tolist() == [True, False]


def test_items_without_text_have_no_edge_of_likeness_and_finite_scores(build):
    model, train = build(without_text=(2, 7), co_occur=False)
    assert not model.item_inputs[[2, 7]].any()
    model.eval()
    assert torch.isfinite(model.full_sort_predict(batch(train))).all()


# ---- ablations: each key changes what it should and nothing else ----


def inputs_of(model: MLLMRec) -> dict[str, torch.Tensor]:
    return {"users": model.user_inputs, "items": model.item_inputs, **dict(model.state_dict())}


@pytest.mark.parametrize(
    ("changed", "differs"),
    [
        ({"reasoning": False}, {"users"}),
        ({"denoise": False}, {"items"}),
        ({"co_occur": False}, {"items"}),
        ({"similar_threshold": 0.6}, {"items"}),
        ({"similar_k": 2}, {"items"}),
        ({"co_k": 1}, {"items"}),
        ({"n_layers": 0}, {"items"}),
        ({"gcn_ui": True}, set()),
        ({"profiles_see": "all"}, set()),
        ({"item_text": "image"}, set()),
    ],
    ids=str,
)
def test_a_key_changes_its_own_part_and_no_other(build, changed, differs):
    plain, _ = build()
    other, train = build(**changed)
    one, two = inputs_of(plain), inputs_of(other)
    assert {name for name in one if not torch.equal(one[name], two[name])} == differs
    plain.eval(), other.eval()
    same = torch.equal(plain.full_sort_predict(batch(train)), other.full_sort_predict(batch(train)))
    assert same == (not differs and "gcn_ui" not in changed)


def test_without_reasoning_a_user_is_the_mean_of_its_training_items(build):
    model, train = build(reasoning=False)
    users, items = training_pairs(train)
    fused = vectors(train.item_num, 1)
    for user in range(1, train.user_num):
        np.testing.assert_allclose(model.user_inputs[user].numpy(), fused[items[users == user]].mean(0), atol=1e-6)


def test_identical_audiences_are_dropped_only_if_asked():
    users, items = np.array([1, 1, 2, 2, 3]), np.array([1, 2, 1, 2, 3])
    fused = np.eye(4, dtype=np.float32)
    fused[0] = 0
    kept, dropped = (refined_graph(fused, users, items, drop_identical=drop).toarray() for drop in (False, True))
    assert kept[1, 2] > 0
    assert dropped[1, 2] == 0
    expected = dense_graph(fused, users, items, drop=True)
    np.testing.assert_allclose(dropped, expected, atol=1e-6)


# ---- settings ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reasoning": "off"}, "reasoning: 'off' is not accepted; give True or False"),
        ({"denoise": 1}, "denoise: .* give True or False"),
        ({"co_occur": None}, "co_occur: .* give True or False"),
        ({"drop_identical": "yes"}, "drop_identical: .* give True or False"),
        ({"gcn_ui": 2}, "gcn_ui: .* give True or False"),
        ({"similar_k": 0}, "similar_k: 0 is not accepted; give a whole number of at least 1"),
        ({"co_k": 2.5}, "co_k: 2.5 is not accepted; give a whole number"),
        ({"co_k": True}, "co_k: True is not accepted; give a whole number"),
        ({"n_layers": -1}, "n_layers: -1 is not accepted; give a whole number of at least 0"),
        ({"gcn_ui_layers": 0}, "gcn_ui_layers: 0 is not accepted; give a whole number of at least 1"),
        ({"embedding_size": "64"}, "embedding_size: '64' is not accepted; give a whole number"),
        ({"similar_threshold": 7}, "similar_threshold: 7 is not accepted; give a number from -1 to 1"),
        ({"similar_threshold": None}, "similar_threshold: None is not accepted; give a number"),
    ],
    ids=str,
)
def test_what_would_train_silently_wrong_is_refused_before_anything_is_spent(toy_config, settings, message):
    with pytest.raises(ConfigError, match=message):
        MLLMRec.requirements(toy_config("MLLMRec", **settings))


def test_a_profile_is_required_only_where_it_is_read(toy_config):
    assert MLLMRec.requirements(toy_config("MLLMRec")) == ("item_text_features", "user_profiles")
    assert MLLMRec.requirements(toy_config("MLLMRec", reasoning=False)) == ("item_text_features",)


def test_its_yaml_holds_the_papers_values():
    settings = read_yaml(properties_dir() / "model" / "MLLMRec.yaml")
    paper = {
        "similar_k": 10,
        "co_k": 10,
        "similar_threshold": 0.7,
        "n_layers": 1,
        "embedding_size": 64,
        "gcn_ui_layers": 2,
    }
    paper |= {"train_batch_size": 2048, "learning_rate": 1e-3, "description_words": 100, "profile_words": 100}
    paper |= {"reasoning": True, "denoise": True, "co_occur": True, "gcn_ui": False, "profiles_see": "train"}
    assert {key: settings[key] for key in paper} == paper
    assert settings["sentence_encoder"] == "sentence-transformers/all-MiniLM-L6-v2"


# ---- ranking ----


@pytest.mark.parametrize("gcn_ui", [False, True])
def test_vectors_are_kept_while_evaluating_and_never_longer(build, gcn_ui):
    model, train = build(gcn_ui=gcn_ui)
    assert dot_product_of(model) is not None
    rows, weights = batch(train), {name: value.clone() for name, value in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        first = model.full_sort_predict(rows)
        assert model.item_vectors() is model.item_vectors()
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model.calculate_loss(rows).backward()
    optimizer.step()
    model.eval()
    with torch.no_grad():
        assert not torch.equal(model.full_sort_predict(rows), first)
        model.load_state_dict(weights)
        assert torch.equal(model.full_sort_predict(rows), first)
    assert set(weights) == {name for name, _ in model.named_parameters()}, "frozen inputs are not stored with weights"


# ---- runs that see held-out data are marked wherever their numbers stand ----


def test_only_a_run_that_reads_profiles_of_the_whole_file_sees_held_out_data(toy_config):
    def seen(model, **settings):
        config = toy_config(model, **settings)
        return held_out_seen(config, config.model_class)

    (text,) = seen("MLLMRec", profiles_see="all")
    assert text == "profiles_see: all: user profiles were written from validation and test items, too"
    assert seen("MLLMRec") == []
    assert seen("MLLMRec", profiles_see="all", reasoning=False) == [], "there is no profile to see anything"
    assert seen("SASRec", profiles_see="all") == [], "a key that the model does not read"


@pytest.fixture
def marked(tmp_path):
    """A table of an honest row and a better one whose second run saw held-out data."""
    seen = "profiles_see: all: they were written from 50% of {everything}"
    rows = []
    for name, value in (("honest", 0.2), ("leaky", 0.9), ("weak", 0.1)):
        runs = {seed: write_run(tmp_path / f"{name}{seed}", seed=seed, values=np.full(40, value)) for seed in (1, 2)}
        rows.append(TableRow(name, "", "MLLMRec", "done", runs=runs))
    path = rows[1].runs[2] / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sees_held_out": [seen]}))
    return summarize(rows, ["NDCG@10"], "honest", [1, 2]), seen


def test_every_table_marks_the_row_and_says_why_below_it(marked):
    table, seen = marked
    told = f"‡ leaky SEES HELD-OUT DATA, not comparable: {seen}."
    text = to_markdown(table)
    assert "| leaky ‡ " in text
    assert f"- {told}" in text.split("|\n\n", 1)[1]
    assert text.count("‡") == 2, "no other row is marked"
    lines = {line["row"]: line["sees_held_out"] for line in csv.DictReader(io.StringIO(to_csv(table)))}
    assert lines == {"honest": "", "leaky": seen, "weak": ""}
    latex = to_latex(table, "x")
    body, below = latex.split("\\bottomrule")
    assert r"leaky $^\ddagger$ &" in body
    assert escaping.latex(told) in below
    assert r"50\% of \{everything\}" in below


def test_a_row_that_saw_held_out_data_is_never_the_best(marked):
    table, _ = marked
    assert {line.row.name: line.cells["NDCG@10"].place for line in table.lines} == {"honest": 1, "leaky": 0, "weak": 2}
    assert table.lines[1].cells["NDCG@10"].test is not None, "what the leak is worth is tested all the same"


def test_a_run_prints_it_with_its_numbers():
    results = {"MLLMRec": {"ndcg@10": 0.5}}
    assert "HELD-OUT" not in result_text("toy", results, [])
    told = result_text("toy", results, ["profiles_see: all: why"])
    assert told.splitlines()[-1] == "SEES HELD-OUT DATA, not comparable: profiles_see: all: why"


# ---- whole runs, texts included ----


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    return write_sentence_encoder(tmp_path_factory.mktemp("encoder"))


class Writer:
    """Stands for an LLM: its answer repeats the genres and numbers of the prompt, and it keeps what it is asked."""

    identity, makes = "writer-1", "answers"
    reads_images, longest_prompt = True, None

    def __init__(self) -> None:
        self.parameters: dict = {}
        self.asked: list[tuple[str, str]] = []

    def generate(self, requests: list[Request]) -> list[str]:
        self.asked += [(request.prompt, request.image_hash) for request in requests]
        return [" ".join(word for word in re.findall(r"\w+", request.prompt) if word in WORDS) for request in requests]

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def close(self) -> None:
        """Nothing is open."""


class Seen:
    """All that a run trains on.

    Attributes:
        asked: prompt and picture of every request, where an LLM writes.
        graph: S*.
        store: every row of the artifact store, but for when it was written.
        inputs: what the towers read; weights: what training made of them.
        held_out: test items.
        outcome: the finished run.
    """

    def __init__(self, monkeypatch, folder: Path, encoder: str, other_held_out: bool, llm=True, **settings) -> None:
        graphs: list = []
        writer, refine = Writer(), mllmrec_model.refined_graph
        with monkeypatch.context() as patched:
            if llm:
                patched.setattr(writing, "open_generator", lambda *_: writer)
            patched.setattr(
                mllmrec_model, "refined_graph", lambda *args, **kw: graphs.append(refine(*args, **kw)) or graphs[-1]
            )
            given = {**TOY_SETTINGS, **SMALL, "epochs": 2, "eval_step": 0, "sentence_encoder": encoder}
            given |= {
                "text_backend": "openai" if llm else "template",
                "text_url": "http://localhost:1",
                "text_model": "x",
            }
            given |= {"data_path": str(leak_dataset(folder, other_held_out)), "checkpoint_dir": str(folder / "saved")}
            self.outcome = recbole_mm.run("MLLMRec", "toy", config_dict={**given, **settings})
        self.asked = sorted(writer.asked)
        (self.graph,) = graphs
        with sqlite3.connect(folder / "saved" / "artifacts" / "artifacts.sqlite") as store:
            self.store = store.execute("SELECT key, stage, dtype, value FROM artifacts ORDER BY key").fetchall()
            self.store += store.execute("SELECT key, stage, reason FROM failures ORDER BY key").fetchall()
        model = self.outcome.model
        self.inputs = {"users": model.user_inputs, "items": model.item_inputs}
        self.weights = load_tree(self.outcome.run_dir / "checkpoint.safetensors")["weights"]["state_dict"]
        self.held_out = self.outcome.splits.test.users.positives.items.tolist()


def same_tensors(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"llm": False},
        {"llm": False, "gcn_ui": True},
        {"profile_decay": "days", "text_wording": "seller"},
        {"llm": False, "user_residual": "items", "item_residual": True},
        {"reasoning": False, "item_text": "image"},
        {"llm": False, "item_text": "text", "denoise": False, "drop_identical": True},
    ],
    ids=str,
)
def test_nothing_held_out_reaches_prompts_store_graph_inputs_or_weights(tmp_path, encoder, monkeypatch, settings):
    one, two = (Seen(monkeypatch, tmp_path / name, encoder, name == "b", **settings) for name in "ab")
    assert one.held_out != two.held_out, "the replacement must have changed what is held out"
    assert one.asked == two.asked
    assert bool(one.asked) == settings.get("llm", True)
    assert one.store == two.store
    assert one.store
    for part in ("indptr", "indices", "data"):
        assert np.array_equal(getattr(one.graph, part), getattr(two.graph, part)), part
    assert one.graph.nnz
    assert same_tensors(one.inputs, two.inputs)
    assert same_tensors(one.weights, two.weights)
    assert one.outcome.sees_held_out == []


def test_the_item_graph_does_not_hang_on_recboles_numbers(tmp_path, encoder):
    """They follow the order of all rows, held-out ones too. Ties among equally similar items must not."""
    found, numbered = [], []
    for name, reverse in (("a", False), ("b", True)):
        path = write_toy(tmp_path / name) / "toy" / "toy.inter"
        head, *rows = path.read_text().splitlines()
        path.write_text("\n".join([head, *(reversed(rows) if reverse else rows)]) + "\n")
        given = {**TOY_SETTINGS, **SMALL, "data_path": str(tmp_path / name), "checkpoint_dir": str(tmp_path / "saved")}
        config = Config("MLLMRec", "toy", config_dict={**given, "sentence_encoder": encoder})
        assembled = assemble(config, tmp_path, Stages())
        tokens = assembled.dataset.item_tokens()
        numbered.append(list(tokens))
        found.append({tokens[item]: assembled.model.item_inputs[item] for item in range(1, len(tokens))})
    assert numbered[0] != numbered[1]
    assert found[0].keys() == found[1].keys()
    for token in found[0]:
        torch.testing.assert_close(found[0][token], found[1][token], atol=1e-5, rtol=1e-5)


def test_a_run_that_did_without_some_texts_is_loaded_without_asking_for_them(
    tmp_path, toy_settings, encoder, monkeypatch
):
    class Broken(Writer):
        def generate(self, requests):
            return [Failure("no answer") if len(text) % 5 == 0 else text for text in super().generate(requests)]

    broken, mended = Broken(), Writer()
    settings = {**toy_settings, **SMALL, "sentence_encoder": encoder, "text_backend": "openai", "text_model": "x"}
    monkeypatch.setattr(writing, "open_generator", lambda *_: broken)
    outcome = recbole_mm.run("MLLMRec", "toy", config_dict={**settings, "text_url": "http://localhost:1"})
    left_out = json.loads((outcome.run_dir / "texts_left_out.json").read_text())
    assert left_out["user_profile"]
    monkeypatch.setattr(writing, "open_generator", lambda *_: mended)
    again = recbole_mm.load(outcome.run_dir)
    assert mended.asked == []
    assert torch.equal(again.model.user_inputs, outcome.model.user_inputs)
    assert torch.equal(again.model.item_inputs, outcome.model.item_inputs)


@pytest.mark.parametrize("llm", [True, False], ids=["an LLM writes", "a template writes"])
def test_profiles_of_the_whole_file_do_see_it_and_the_run_says_so(tmp_path, encoder, monkeypatch, caplog, llm):
    one, two = (Seen(monkeypatch, tmp_path / name, encoder, name == "b", llm=llm, profiles_see="all") for name in "ab")
    assert (one.asked != two.asked) == llm
    assert one.store != two.store
    assert not torch.equal(one.inputs["users"], two.inputs["users"])
    assert torch.equal(one.inputs["items"], two.inputs["items"]), "the items' side stays train-only"
    (said,) = one.outcome.sees_held_out
    assert said.startswith("profiles_see: all")
    assert f"SEES HELD-OUT DATA: {said}" in caplog.text
    assert json.loads((one.outcome.run_dir / "result.json").read_text())["sees_held_out"] == [said]
    if not llm:
        assert recbole_mm.load(one.outcome.run_dir).sees_held_out == [said]
    honest = Seen(monkeypatch, tmp_path / "c", encoder, False, llm=llm)
    assert not torch.equal(honest.inputs["users"], one.inputs["users"])
    table = compare_finished([honest.outcome.run_dir, one.outcome.run_dir])
    assert [bool(line.sees_held_out) for line in table.lines] == [False, True]


def test_each_kind_of_item_text_gives_other_vectors_and_asks_only_for_what_it_needs(
    toy_config, tmp_path, encoder, monkeypatch
):
    found, asked = {}, {}
    for kind in ("fused", "text", "image"):
        writer = Writer()
        monkeypatch.setattr(writing, "open_generator", lambda *_, writer=writer: writer)
        settings = {"sentence_encoder": encoder, "item_text": kind, "reasoning": False, "text_backend": "openai"}
        config = toy_config("MLLMRec", **settings, text_url="http://x", text_model="x")
        found[kind] = assemble(config, tmp_path, Stages()).dataset.inputs.fused_vectors
        asked[kind] = len(writer.asked)
    assert not any(np.array_equal(found[a], found[b]) for a, b in combinations(found, 2))
    assert asked == {"fused": 40, "text": 0, "image": 0}, "the descriptions are there already"
