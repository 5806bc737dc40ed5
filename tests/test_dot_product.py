"""The adapters of RecBole's dot-product models give the scores of their `full_sort_predict`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data import create_dataset
from recbole.utils import ModelType, init_seed

from recbole_mm.config.resolved import Config
from recbole_mm.evaluation.collector import RANKS, RankingCollector
from recbole_mm.evaluation.dot_product import ScoreBlocks, can_pack, dot_product_of
from recbole_mm.evaluation.padding import RowBatches
from recbole_mm.evaluation.ranking import CSR, EvalUsers, rank_users
from recbole_mm.models.hooks import hooks_of
from recbole_mm.models.recbole_models import RECBOLE
from recbole_mm.registry import find_model

SETTINGS = {
    "FDSA": {"selected_features": ["class"]},
    "GRU4RecF": {"selected_features": ["class"]},
    "SASRecF": {"selected_features": ["class"]},
    "S3Rec": {"train_stage": "pretrain", "item_attribute": "class"},
    "NCL": {"num_clusters": 3},
}


@pytest.fixture(scope="module")
def graph_path(tmp_path_factory):
    """A dataset with item features and a knowledge graph."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("graph")
    folder = root / "graph"
    folder.mkdir()
    inter = [f"u{u}\ti{i}\t{5 - n % 3}\t{n}" for u in range(20) for n, i in enumerate(rng.permutation(30)[:8])]
    item = [f"i{i}\tc{i % 4}" for i in range(30)]
    triples = [f"e{i}\tr{i % 3}\te{rng.integers(30, 40)}" for i in range(30)]
    for suffix, header, lines in (
        ("inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", inter),
        ("item", "item_id:token\tclass:token_seq", item),
        ("kg", "head_id:token\trelation_id:token\ttail_id:token", triples),
        ("link", "item_id:token\tentity_id:token", [f"i{i}\te{i}" for i in range(30)]),
    ):
        (folder / f"graph.{suffix}").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def build(graph_path):
    """`build(name, class_of=..., part=...) -> (model in evaluation mode, interaction)`: of six test rows, or of all
    training rows, whose histories have one to five items."""

    def make(name, class_of=lambda upstream: upstream, part="test"):
        upstream = find_model(name).load()
        columns = {"inter": ["user_id", "item_id", "rating", "timestamp"], "item": ["item_id", "class"]}
        if upstream.type == ModelType.KNOWLEDGE:
            columns |= {"kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
        settings = {"data_path": str(graph_path), "load_col": columns, "MAX_ITEM_LIST_LENGTH": 6, "state": "ERROR"}
        config = Config(name, "graph", config_dict=settings | SETTINGS.get(name, {}))
        init_seed(0, True)
        built = create_dataset(config).build()
        model = class_of(upstream)(config, built[0]).to(config["device"]).eval()
        for parameter in model.parameters():  # what starts at zero, such as a bias, must not stay unseen
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        return model, built[2].inter_feat[torch.arange(6)] if part == "test" else built[0].inter_feat

    return make


@pytest.mark.parametrize("name", sorted(name for name, said in RECBOLE.items() if "user_vectors" in said))
def test_adapter_gives_the_scores_of_full_sort_predict(build, name):
    model, interaction = build(name)
    with torch.no_grad():
        expected = model.full_sort_predict(interaction).view(len(interaction), -1)
        halves = dot_product_of(model)
        scores = halves.users(interaction) @ halves.items().T
    assert expected.std() > 0
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(name for name, said in RECBOLE.items() if "ignores_right_padding" in said))
def test_models_named_there_score_alike_without_padding(build, name):
    model, interaction = build(name, part="train")
    lengths = interaction[model.ITEM_SEQ_LEN].numpy()
    assert hooks_of(type(model)).ignores_right_padding
    assert set(lengths) == {1, 2, 3, 4, 5}
    rows = RowBatches(model, interaction, torch.device("cpu"))
    with torch.no_grad():
        expected = model.full_sort_predict(interaction).view(len(interaction), -1)
        for longest in range(1, 6):
            chosen = np.flatnonzero(lengths <= longest)
            batch = rows[chosen]
            assert batch[model.ITEM_SEQ].shape == (len(chosen), longest)
            scores = model.full_sort_predict(batch).view(len(chosen), -1)
            torch.testing.assert_close(scores, expected[chosen], rtol=1e-5, atol=1e-5)


def test_a_subclass_counts_as_its_model_unless_it_scores_anew(build):
    def with_own_score(upstream):
        return type("SASRec", (upstream,), {"full_sort_predict": lambda self, interaction: None})

    assert dot_product_of(build("SASRec", lambda upstream: type("Longer", (upstream,), {}))[0]) is not None
    assert dot_product_of(build("SASRec", with_own_score)[0]) is None


def test_both_ways_of_scoring_rank_alike(build):
    model, rows = build("SASRec")
    users = EvalUsers(rows, CSR(np.arange(7), rows["item_id"].numpy()), None, np.arange(6))
    collector = RankingCollector({"metrics": ["NDCG"], "topk": [5]})
    by_halves = rank_users(model, users, model.n_items, collector=collector).get(RANKS)
    model.__class__ = type("Own", (type(model),), {"full_sort_predict": type(model).full_sort_predict})
    assert dot_product_of(model) is None
    assert torch.equal(rank_users(model, users, model.n_items, collector=collector).get(RANKS), by_halves)


@pytest.fixture(params=["packed", "torch.mm"])
def kind(request, monkeypatch):
    if request.param == "torch.mm":
        monkeypatch.setattr("recbole_mm.evaluation.dot_product.can_pack", lambda item_vectors: False)
    elif not can_pack(torch.zeros(1, 1)):
        pytest.skip("this build of torch has no oneDNN product")
    return request.param


@pytest.mark.parametrize("n_items", [5, 1000, 30_011])
def test_score_blocks_are_dot_products(kind, n_items):
    draw = torch.Generator().manual_seed(0)
    items, users = torch.randn(n_items, 24, generator=draw), torch.randn(40, 24, generator=draw)
    blocks = ScoreBlocks(items, memory_mb=256)
    expected = (users.double() @ items.double().T).float()
    for start in range(0, 40, min(blocks.rows, 17)):
        part = users[start : start + min(blocks.rows, 17)]
        torch.testing.assert_close(blocks(part), expected[start : start + len(part)], rtol=1e-4, atol=1e-4)


def test_items_with_equal_vectors_get_equal_scores(kind):
    items = torch.randn(37, 48, generator=torch.Generator().manual_seed(0)).repeat(31, 1)
    users = torch.randn(19, 48, generator=torch.Generator().manual_seed(1))
    scores = ScoreBlocks(items, memory_mb=256)(users).view(19, 31, 37)
    assert torch.equal(scores, scores[:, :1].expand_as(scores))


def test_score_blocks_keep_to_the_memory_and_never_round(kind):
    assert ScoreBlocks(torch.zeros(1000, 2), memory_mb=5 * 4000 / 2**20).rows == 5
    assert ScoreBlocks(torch.zeros(1000, 2), memory_mb=0).rows == 1
    for dtype, raised in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        items = torch.tensor([[1.0, 1.0], [1.0, 2**-7]], dtype=dtype)
        scores = ScoreBlocks(items, memory_mb=1)(torch.tensor([[1.0, 2**-7]], dtype=dtype))
        assert scores.dtype == raised
        assert scores.tolist() == [[1 + 2**-7, 1 + 2**-14]]
