"""TIGER: codes of items, one pass for every prefix, the loss, and the beam search against all likelihoods."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import recbole_mm
from recbole_mm.data.loaders import TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.models.tiger.codes import CodeTree, residual_codes, semantic_ids
from recbole_mm.models.tiger.model import codes_of_items
from recbole_mm.models.tiger.search import FAR, item_scores
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from tests.conftest import TOY_FEATURES

SMALL = {
    "item_features": TOY_FEATURES,
    "codebook_size": 4,
    "code_levels": 2,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_size": 16,
    "inner_size": 32,
    "dropout_prob": 0.0,
    "beam_size": None,
}


@pytest.fixture
def assembled(toy_config, tmp_path):
    def build(**settings):
        return assemble(toy_config("TIGER", **{**SMALL, **settings}), tmp_path, Stages())

    return build


# ---- codes ----


def test_codes_are_the_nearest_centroids_of_what_is_left():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 5))
    codes = residual_codes(vectors, levels=2, size=4, seed=3)
    rest = vectors
    for level in range(2):
        centres = np.stack([rest[codes[:, level] == code].mean(0) for code in range(4)])
        distances = ((rest[:, None] - centres[None]) ** 2).sum(-1)
        assert (distances.argmin(1) == codes[:, level]).mean() > 0.95, "Lloyd's steps end where nothing moves"
        rest = rest - centres[codes[:, level]]
    assert (rest**2).sum() < 0.7 * (vectors**2).sum()


def test_items_that_share_codes_are_told_apart_by_the_last_one():
    vectors = np.repeat(np.random.default_rng(1).normal(size=(5, 3)), 4, axis=0)
    codes = semantic_ids(vectors, levels=2, size=8, seed=0)
    assert len(np.unique(codes[:, :2], axis=0)) == 5
    assert codes[:, 2].tolist() == [0, 1, 2, 3] * 5
    assert len(np.unique(codes, axis=0)) == 20


def test_codes_do_not_depend_on_the_numbers_of_items(assembled):
    run = assembled()
    tokens = list(run.dataset.item_tokens())
    codes = codes_of_items(run.config, run.dataset)
    shuffled = [0, *(np.random.default_rng(0).permutation(len(tokens) - 1) + 1)]

    class Renumbered:
        def item_tokens(self):
            return [tokens[item] for item in shuffled]

        def item_feature(self, name):
            return run.dataset.item_feature(name)[shuffled]

    np.testing.assert_array_equal(codes_of_items(run.config, Renumbered()), codes[shuffled])
    assert not codes[0].any()


def test_a_tree_has_a_node_for_each_prefix():
    codes = np.random.default_rng(2).permutation([[a, b, c] for a in range(3) for b in range(2) for c in range(2)])
    tree = CodeTree(codes)
    assert [len(nodes) for nodes in tree.paths] == [3, 6, 12]
    for level, (nodes, of_items) in enumerate(zip(tree.paths, tree.of_items), start=1):
        np.testing.assert_array_equal(nodes[of_items], codes[:, :level])
    np.testing.assert_array_equal(tree.paths[1][tree.parents[2]], tree.paths[2][:, :2])


# ---- the network ----


def test_a_prefix_is_read_as_a_history_of_its_own(assembled):
    model = assembled(n_layers=2).model.eval()
    history = torch.tensor([[3, 7, 5, 9]])
    whole = model.encoded(history).view(1, 4, model.length, -1)
    alone = model.encoded(history[:, :2]).view(1, 2, model.length, -1)
    torch.testing.assert_close(whole[:, :2], alone)
    padded = model.full_sort_predict({"item_id_list": torch.tensor([[3, 7, 0, 0]]), "item_length": torch.tensor([2])})
    short = model.full_sort_predict({"item_id_list": torch.tensor([[3, 7]]), "item_length": torch.tensor([2])})
    torch.testing.assert_close(padded, short)


def test_the_loss_is_what_the_ranking_gives_the_targets(assembled):
    run = assembled()
    model, batch = run.model.eval(), next(iter(run.splits.train))
    loss = model.calculate_loss(batch)
    likelihoods = []
    for row in range(len(batch)):
        for place in batch[TARGET_MASK][row].nonzero()[:, 0].tolist():
            case = {"item_id_list": batch["item_id_list"][row, None, : place + 1]}
            case["item_length"] = torch.tensor([place + 1])
            likelihoods.append(model.full_sort_predict(case)[0, batch[TARGETS][row, place]])
    torch.testing.assert_close(loss, -torch.stack(likelihoods).mean(), rtol=1e-4, atol=1e-4)


def test_the_likelihoods_of_all_paths_sum_to_one(assembled):
    """Those of items to less: the network gives something to codes that no item has."""
    model = assembled().model.eval()
    case = {"item_id_list": torch.tensor([[3, 7]]), "item_length": torch.tensor([2])}
    scores = model.full_sort_predict(case)[0, 1:]
    assert 0 < scores.exp().sum() < 1
    memory, none = model.encoded(case["item_id_list"]), torch.zeros(1, 2 * model.length, dtype=torch.bool)
    item = 11
    codes = model.codes[item]
    states = model.decoder(model.path_tokens(codes[None, None, :-1]), memory, padding=none)[0, 0]
    expected = sum(
        F.log_softmax(model.logits(states[level], level), dim=-1)[codes[level]] for level in range(model.length)
    )
    torch.testing.assert_close(scores[item - 1], expected)


def test_every_weight_learns(assembled):
    run = assembled()
    run.model.train().calculate_loss(next(iter(run.splits.train))).backward()
    still = [name for name, weight in run.model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still


# ---- ranking ----


def likelihoods_of(tree: CodeTree, seed: int, sizes=(4, 4, 4)):
    """Random p(next code | prefix) of two rows, as `item_scores` asks for it, and their table."""
    rng = np.random.default_rng(seed)
    table = {}

    def next_codes(given: torch.Tensor) -> torch.Tensor:
        rows, paths, level = given.shape
        found = torch.empty(rows, paths, sizes[level])
        for row in range(rows):
            for path in range(paths):
                key = (row, *given[row, path].tolist())
                if key not in table:
                    table[key] = torch.from_numpy(rng.dirichlet(np.ones(sizes[level]))).float().log()
                found[row, path] = table[key]
        return found

    return next_codes, table


def some_codes(count: int = 30) -> np.ndarray:
    every = np.array([[a, b, c] for a in range(4) for b in range(4) for c in range(4)])
    return np.random.default_rng(4).permutation(every)[:count]


def test_without_a_beam_every_score_is_the_exact_likelihood():
    codes = some_codes()
    next_codes, table = likelihoods_of(CodeTree(codes), seed=0)
    scores = item_scores(CodeTree(codes), next_codes, 2, None, torch.device("cpu"))
    for row in range(2):
        for item, path in enumerate(codes.tolist()):
            expected = sum(table[(row, *path[:level])][path[level]] for level in range(3))
            torch.testing.assert_close(scores[row, item], expected)


def test_a_beam_keeps_the_best_prefixes_and_ranks_the_others_after():
    codes, beam = some_codes(), 3
    next_codes, table = likelihoods_of(CodeTree(codes), seed=0)
    item_scores(CodeTree(codes), next_codes, 2, None, torch.device("cpu"))  # fills the table
    scores = item_scores(CodeTree(codes), next_codes, 2, beam, torch.device("cpu"))
    for row in range(2):
        alive = {()}
        for level in range(3):
            prefixes = {tuple(path[: level + 1]) for path in codes.tolist() if tuple(path[:level]) in alive}
            likely = {
                path: float(sum(table[(row, *path[:place])][path[place]] for place in range(level + 1)))
                for path in prefixes
            }
            kept = sorted(likely, key=lambda path: -likely[path])[:beam] if level < 2 else list(likely)
            for item, path in enumerate(codes.tolist()):
                own = tuple(path[: level + 1])
                if own in likely and own not in kept:
                    expected = likely[own] - FAR * (2 - level)
                    assert scores[row, item] == pytest.approx(expected, abs=1e-3)
                elif own in likely and level == 2:
                    assert scores[row, item] == pytest.approx(likely[own], abs=1e-5)
            alive = set(kept)


def test_a_wide_beam_is_exact(assembled):
    exact = assembled().model.eval()
    wide = assembled(beam_size=1000).model.eval()
    wide.load_state_dict(exact.state_dict())
    case = {"item_id_list": torch.tensor([[3, 7], [2, 5]]), "item_length": torch.tensor([2, 2])}
    torch.testing.assert_close(wide.full_sort_predict(case), exact.full_sort_predict(case))


def test_the_codes_of_the_saved_weights_are_ranked_by(assembled):
    model = assembled().model.eval()
    state = model.state_dict()
    first = model.tree().of_items[0]
    state["codes"] = torch.cat([state["codes"][:1], state["codes"][1:].flip(0)])
    model.load_state_dict(state)
    np.testing.assert_array_equal(model.tree().of_items[0], first[::-1])


def test_content_tells_what_is_chosen_next(toy_settings):
    settings = {**toy_settings, **SMALL, "epochs": 60, "learning_rate": 5e-3, "train_batch_size": 64, "eval_step": 10}
    ours = recbole_mm.run("TIGER", "toy", config_dict=settings)
    pop = recbole_mm.run("Pop", "toy", config_dict=toy_settings)
    assert ours.test_result["recall@10"] > 1.3 * pop.test_result["recall@10"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_heads": 3}, "n_heads 3 does not divide hidden_size 16"),
        ({"content_features": []}, "content_features names no feature"),
        ({"codebook_size": 1}, "codebook_size: 1 is not accepted; give a whole number of at least 2"),
        ({"beam_size": 0}, "beam_size: 0 is not accepted"),
    ],
)
def test_impossible_settings_are_refused(assembled, settings, message):
    with pytest.raises(ConfigError, match=message):
        assembled(**settings)
