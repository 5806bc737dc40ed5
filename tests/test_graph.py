"""Item graphs against dense references written from the formulas."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from recbole_mm.errors import ConfigError, DataError
from recbole_mm.graph import co_occurrence as co_occurrence_module
from recbole_mm.graph import co_occurrence_graph, normalized, refined_graph, similarity_graph, to_torch
from recbole_mm.graph import rows as rows_module
from recbole_mm.graph.nearest import NearestCosines


def dense_similarity(vectors: np.ndarray, k: int, threshold: float | None, binary: bool) -> np.ndarray:
    """S^s from its definition: every cosine, every row sorted."""
    table = np.asarray(vectors, dtype=np.float32).astype(np.float64)
    n = len(table)
    norms = np.sqrt((table * table).sum(1))
    graph = np.zeros((n, n), dtype=np.float32)
    for i in range(1, n):
        if norms[i] == 0:
            continue
        others = [j for j in range(1, n) if norms[j] > 0]
        cosine = {j: np.float32((table[i] * table[j]).sum() / (norms[i] * norms[j])) for j in others}
        for j in sorted(others, key=lambda j: (-cosine[j], j))[:k]:
            if threshold is None or cosine[j] >= np.float32(threshold):
                graph[i, j] = 1 if binary else cosine[j]
    return graph


def dense_co_occurrence(users: np.ndarray, items: np.ndarray, n: int, k: int, drop_identical: bool) -> np.ndarray:
    """S^c from its definition, with sets of users and exact fractions."""
    audience: list[set[int]] = [set() for _ in range(n)]
    for user, item in zip(users.tolist(), items.tolist()):
        audience[item].add(user)
    graph = np.zeros((n, n), dtype=np.float32)
    for i in range(n):
        jaccard = {}
        for j in range(n):
            if i != j and audience[i] & audience[j]:
                jaccard[j] = Fraction(len(audience[i] & audience[j]), len(audience[i] | audience[j]))
        if drop_identical:
            jaccard = {j: value for j, value in jaccard.items() if value != 1}
        for j in sorted(jaccard, key=lambda j: (-jaccard[j], j))[:k]:
            graph[i, j] = float(jaccard[j])
    return graph


def dense_normalized(graph: np.ndarray) -> np.ndarray:
    sums = graph.astype(np.float64).sum(1)
    scale = np.array([value**-0.5 if value > 0 else 0.0 for value in sums])
    return scale[:, None] * graph * scale[None, :]


def awkward_vectors(n: int = 60, dim: int = 12, seed: int = 0) -> np.ndarray:
    """Clusters, small integers (many equal cosines), zero rows, exact, scaled, opposite and nearly equal duplicates."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(4, dim))[rng.integers(0, 4, n)] + 0.4 * rng.normal(size=(n, dim))
    vectors[n // 2 :] = rng.integers(-1, 2, size=(n - n // 2, dim))
    vectors = vectors.astype(np.float32)
    vectors[[0, 7, 8]] = 0
    vectors[[20, 3, 41, 33]] = vectors[5]
    vectors[[50, 44]] = 4 * vectors[45]
    vectors[[51, 12]] = -vectors[45]
    vectors[21] = vectors[22] * np.float32(1 + 2**-22)
    vectors[23] = np.nextafter(vectors[22], np.float32(9))
    return vectors


def random_interactions(seed: int = 0, n_items: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Repeated pairs, users of one item, items nobody had, items with the same audience; ids far apart."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(1, 25, 160), rng.integers(1, n_items - 5, 160)
    single = np.arange(100, 106)
    same_users = np.array([1, 2, 9, 1, 2, 9])
    users = np.concatenate([users, users[:30], single, same_users, [5_000_000, 5_000_000]])
    same_items = np.array([n_items - 3] * 3 + [n_items - 2] * 3)
    return users, np.concatenate([items, items[:30], np.arange(1, 7), same_items, [1, 2]])


@pytest.mark.parametrize("k", [1, 3, 10, 200])
@pytest.mark.parametrize(
    ("threshold", "binary"), [(None, False), (None, True), (0.5, True), (0.5, False), (-0.2, True), (0.0, False)]
)
def test_similarity_equals_the_dense_reference(k, threshold, binary):
    vectors = awkward_vectors()
    graph = similarity_graph(vectors, k, threshold, binary=binary, block=16)
    assert graph.dtype == np.float32
    np.testing.assert_array_equal(graph.toarray(), dense_similarity(vectors, k, threshold, binary))


def test_similarity_of_distinct_vectors_equals_the_dense_reference():
    vectors = np.random.default_rng(1).normal(size=(50, 6))  # float64, row 0 not zero: padding has no edge all the same
    for k, threshold in ((4, None), (60, None), (4, 0.3)):
        found = similarity_graph(vectors, k, threshold, binary=False, block=7).toarray()
        np.testing.assert_array_equal(found, dense_similarity(vectors, k, threshold, False))
        assert (found < 0).any() == (k == 60)


@pytest.mark.parametrize("threshold", [None, 0.4, -0.5])
def test_similarity_does_not_depend_on_blocks_threads_or_precision(threshold):
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(6, 40))[rng.integers(0, 6, 500)] + 0.3 * rng.normal(size=(500, 40))
    # A crowd of near duplicates, closer than bfloat16 and partly than float32 products can tell apart.
    vectors[100:300] = vectors[100] + rng.normal(size=(200, 40)) * rng.choice([1e-7, 1e-4, 1e-2], size=(200, 1))
    vectors = vectors.astype(np.float32)
    places = np.arange(500)
    floor = -np.inf if threshold is None else threshold
    expected = NearestCosines(vectors, places, 5, floor, block=500, dtype=torch.float32).search()
    for dtype in (torch.float32, torch.bfloat16):
        for block in (13, 128, 1024):
            found = NearestCosines(vectors, places, 5, floor, block=block, dtype=dtype).search()
            np.testing.assert_array_equal(found[1], expected[1])
            np.testing.assert_array_equal(found[0][found[1] > -np.inf], expected[0][expected[1] > -np.inf])
    padded = np.concatenate([np.zeros((1, 40), np.float32), vectors])
    np.testing.assert_array_equal(
        similarity_graph(padded, 5, threshold, binary=False).toarray(),
        dense_similarity(padded, 5, threshold, False),
    )
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")  # oneDNN may then multiply in bfloat16
        found = NearestCosines(vectors, places, 5, floor, dtype=torch.float32).search()
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    np.testing.assert_array_equal(found[1], expected[1])


def test_merging_early_changes_nothing(monkeypatch):
    vectors = awkward_vectors(200, 8)
    expected = similarity_graph(vectors, 6, None, binary=False, block=32)
    monkeypatch.setattr("recbole_mm.graph.nearest.MERGED", 1)
    monkeypatch.setattr("recbole_mm.graph.similarity.EXPANDED", 50)
    found = similarity_graph(vectors, 6, None, binary=False, block=8)
    np.testing.assert_array_equal(found.toarray(), expected.toarray())


def test_bounds_hold_for_the_products_they_speak_of():
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(300, 64)).astype(np.float32) ** 3
    vectors[:100] = np.abs(vectors[:100])
    wide = vectors.astype(np.float64)
    unit = wide / np.sqrt((wide**2).sum(1, keepdims=True))
    for dtype in (torch.float32, torch.bfloat16):
        search = NearestCosines(vectors, np.arange(300), 3, dtype=dtype)
        error = np.abs((search.units @ search.units.T).double().numpy() - unit @ unit.T).max()
        assert 0 < error <= search.bound


def test_the_threshold_is_met_by_equality():
    vectors = np.array([[0, 0], [1, 0], [3, 4], [4, 3], [-1, 0]], dtype=np.float32)
    graph = similarity_graph(vectors, 4, threshold=0.6)  # cos(1, 2) = 0.6
    np.testing.assert_array_equal(graph.toarray()[1], [0, 1, 1, 1, 0])
    graph = similarity_graph(vectors, 4, threshold=float(np.nextafter(np.float32(0.6), np.float32(1))))
    np.testing.assert_array_equal(graph.toarray()[1], [0, 1, 0, 1, 0])
    assert similarity_graph(vectors, 4, threshold=1.0).nnz == 4  # itself
    assert similarity_graph(vectors, 4, threshold=1.1).nnz == 0
    assert similarity_graph(vectors, 4, threshold=-1.0).nnz == 16


def test_of_equal_cosines_the_smaller_id_comes_first():
    vectors = np.ones((6, 3), dtype=np.float32)
    graph = similarity_graph(vectors, 2, threshold=0.9).toarray()
    np.testing.assert_array_equal(graph[1:, 1:3], 1)
    assert graph.sum() == 10


def test_items_without_vectors_have_no_edges():
    graph = similarity_graph(np.zeros((5, 3)), 2)
    assert graph.shape == (5, 5)
    assert graph.nnz == 0
    vectors = np.zeros((5, 3))
    vectors[3] = 1e-30  # tiny, yet a direction
    assert similarity_graph(vectors, 2).toarray().nonzero() == (3, 3)


@pytest.mark.parametrize(
    ("vectors", "settings", "word"),
    [
        (np.full((3, 2), np.nan), {"k": 2}, "item 0"),
        (np.array([[0, 0], [1, 1e300]]), {"k": 2}, "item 1"),
        (np.zeros(3), {"k": 2}, "shape"),
        (np.zeros((3, 2)), {"k": 0}, "k=0"),
        (np.zeros((3, 2)), {"k": 2, "block": 0}, "block=0"),
        (np.zeros((3, 2)), {"k": 2, "threshold": float("nan")}, "finite"),
    ],
)
def test_bad_similarity_input(vectors, settings, word):
    with pytest.raises(DataError, match=word):
        similarity_graph(vectors, **settings)


@pytest.mark.parametrize("drop_identical", [False, True])
@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize("entries", [1, 200, 1 << 19])
def test_co_occurrence_equals_the_dense_reference(monkeypatch, k, drop_identical, entries):
    monkeypatch.setattr(co_occurrence_module, "BLOCK_ENTRIES", entries)
    monkeypatch.setattr(rows_module, "BUCKET_ENTRIES", max(entries, 1))
    users, items = random_interactions()
    graph = co_occurrence_graph(users, items, 40, k, drop_identical)
    assert graph.dtype == np.float32
    np.testing.assert_array_equal(graph.toarray(), dense_co_occurrence(users, items, 40, k, drop_identical))


def test_identical_audiences():
    users, items = np.array([1, 1, 2, 2, 2]), np.array([1, 2, 1, 2, 3])
    np.testing.assert_array_equal(co_occurrence_graph(users, items, 4, 1).toarray()[1], [0, 0, 1, 0])
    np.testing.assert_array_equal(
        co_occurrence_graph(users, items, 4, 1, drop_identical=True).toarray()[1], [0, 0, 0, 0.5]
    )


def test_fractions_that_float32_cannot_tell_apart():
    n = 4141
    sizes = {1: n, 2: n - 1, 3: n + 1}  # each audience is users 0, 1, ...
    assert np.float32((n - 1) / n) == np.float32(n / (n + 1))
    users = np.concatenate([np.arange(size) for size in sizes.values()])
    items = np.repeat(list(sizes), list(sizes.values()))
    best = co_occurrence_graph(users, items, 4, 1)
    assert best.indices.tolist() == [3, 1, 1]


def test_co_occurrence_of_nobody():
    nothing = np.array([], dtype=np.int64)
    assert co_occurrence_graph(nothing, nothing, 5, 3).nnz == 0
    assert co_occurrence_graph(np.array([1, 2, 3]), np.array([1, 2, 2]), 5, 3).nnz == 0


@pytest.mark.parametrize(
    ("users", "items", "k", "word"),
    [
        ([1, 1], [1, 5], 2, "1..4"),
        ([1, 1], [0, 2], 2, "1..4"),
        ([1, 1], [1], 2, "shapes"),
        ([1, 1], [1, 2], 0, "k must"),
    ],
)
def test_bad_interactions(users, items, k, word):
    with pytest.raises(DataError, match=word):
        co_occurrence_graph(np.array(users), np.array(items), 5, k)


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize("co_occur", [True, False])
@pytest.mark.parametrize("drop_identical", [True, False])
def test_refined_graph_equals_the_dense_reference(denoise, co_occur, drop_identical):
    vectors = awkward_vectors()
    users, items = random_interactions(n_items=60)
    graph = refined_graph(vectors, users, items, 6, 4, 0.4, denoise, co_occur, drop_identical)
    expected = dense_similarity(vectors, 6, 0.4 if denoise else None, denoise)
    if co_occur:
        expected = expected + dense_co_occurrence(users, items, 60, 4, drop_identical)
    np.testing.assert_allclose(graph.toarray(), dense_normalized(expected), rtol=3e-7, atol=0)
    assert graph.dtype == np.float32
    assert graph.has_canonical_format
    assert graph[[0]].nnz == graph[:, [0]].nnz == 0


def test_rows_of_no_positive_sum_are_left_out():
    graph = csr_array(np.array([[1, -2, 0], [0, 2, 2], [0, 0, 0]], dtype=np.float32))
    np.testing.assert_allclose(normalized(graph).toarray(), [[0, 0, 0], [0, 0.5, 0], [0, 0, 0]])
    np.testing.assert_allclose(normalized(graph, "row").toarray(), [[0, 0, 0], [0, 0.5, 0.5], [0, 0, 0]])
    assert graph.toarray()[0, 1] == -2  # the argument is not changed
    with pytest.raises(ConfigError, match="symmetric"):
        normalized(graph, "column")


def test_to_torch_multiplies_with_gradients():
    graph = normalized(similarity_graph(awkward_vectors(), 5, binary=False))
    tensor = to_torch(graph)
    assert tensor.is_coalesced()
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor.to_dense().numpy(), graph.toarray())
    table = torch.randn(60, 3, requires_grad=True)
    torch.sparse.mm(tensor, table).pow(2).sum().backward()
    dense = table.detach().clone().requires_grad_()
    (torch.from_numpy(graph.toarray()) @ dense).pow(2).sum().backward()
    torch.testing.assert_close(table.grad, dense.grad)
    with pytest.raises(DataError, match="sum_duplicates"):
        to_torch(csr_array((np.ones(2, np.float32), np.array([1, 1]), np.array([0, 2, 2])), shape=(2, 2)))
