"""Trees of values in one safetensors file: what comes back, what is refused, and what a crash leaves."""

from __future__ import annotations

import os
import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy import sparse

from recbole_mm.errors import CheckpointError, DiskError
from recbole_mm.training import checkpoint
from recbole_mm.training.checkpoint import (
    load_tree,
    read_metadata,
    rng_state,
    save_tree,
    set_rng_state,
    without_pickles,
)
from recbole_mm.utils import files


@pytest.fixture
def round_trip(tmp_path):
    def go(tree):
        save_tree(tmp_path / "tree.safetensors", tree)
        return load_tree(tmp_path / "tree.safetensors")

    return go


def test_plain_values_keep_their_types(round_trip):
    tree = {
        "none": None,
        "flags": [True, False],
        "numbers": (1, -2.5, 10**20, 0.1 + 0.2),
        "text": 'ünï\n"quoted" $',
        "nested": {"empty": {}, "list": [], "tuple": ((), (1, (2,)))},
    }
    loaded = round_trip(tree)
    assert loaded == tree
    assert [type(value) for value in loaded["numbers"]] == [int, float, int, float]
    assert loaded["flags"][0] is True


def test_keys_that_are_no_text_survive(round_trip):
    tree = {0: "zero", "0": "text", (1, "a"): [1], None: 2, True and 5: 3.0}
    assert round_trip(tree) == tree


def test_a_key_that_looks_like_our_own_mark_is_data(round_trip):
    tree = {"$": "tuple", "items": [1]}
    assert round_trip({"x": tree}) == {"x": tree}


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinite_numbers_survive(round_trip, value):
    assert round_trip({"best": value})["best"] == value


def test_nan_survives(round_trip):
    assert np.isnan(round_trip([float("nan")])[0])


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ],
)
def test_dense_tensors_keep_type_shape_and_bits(round_trip, dtype):
    tensor = torch.arange(-6, 6).reshape(3, 4).to(dtype)
    for value in (tensor, tensor[:0], tensor[1, 2]):
        loaded = round_trip({"t": value})["t"]
        assert loaded.dtype == dtype
        assert torch.equal(loaded, value)


def test_views_and_shared_memory_are_stored_whole_and_once(round_trip, tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tied = torch.nn.Parameter(torch.randn(1000))
    tree = {
        "base": base,
        "turned": base.T,
        "row": base[1],
        "tied": tied,
        "again": tied,
        "expanded": torch.ones(1).expand(5),
    }
    loaded = round_trip(tree)
    for name, value in tree.items():
        assert torch.equal(loaded[name], value), name
        assert not loaded[name].requires_grad
    stored = load_file(tmp_path / "tree.safetensors")
    assert sum(tensor.numel() == 1000 for tensor in stored.values()) == 1


def test_what_is_loaded_is_not_tied_to_the_file(tmp_path):
    path = tmp_path / "tree.safetensors"
    save_tree(path, {"w": torch.ones(4)})
    first = load_tree(path)["w"]
    save_tree(path, {"w": torch.zeros(4)})
    first += 1
    assert first.tolist() == [2, 2, 2, 2]
    assert load_tree(path)["w"].tolist() == [0, 0, 0, 0]


def test_freed_temporaries_are_not_taken_for_one_another(round_trip):
    """Coalesced sparse parts are temporary tensors; their memory may be used again while the file is put together."""
    parts = {i: torch.sparse_coo_tensor([[i, 3], [1, i]], [1.0 * i, 2.0], (5, 5)) for i in range(5)}
    loaded = round_trip(parts)
    for i, part in parts.items():
        assert torch.equal(loaded[i].to_dense(), part.to_dense())


@pytest.mark.parametrize("layout", ["coo", "coalesced", "csr", "csc"])
def test_sparse_tensors_keep_layout(round_trip, layout):
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    value = {
        "coo": torch.sparse_coo_tensor([[0, 0], [1, 1]], [1.0, 1.0]),
        "coalesced": dense.to_sparse().coalesce(),
        "csr": dense.to_sparse_csr(),
        "csc": dense.to_sparse_csc(),
    }[layout]
    loaded = round_trip([value])[0]
    assert loaded.layout == value.layout
    assert torch.equal(loaded.to_dense(), value.to_dense())
    if layout in ("coo", "coalesced"):
        assert loaded.is_coalesced() == value.is_coalesced()
        assert loaded._nnz() == value._nnz()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint32).reshape(2, 3)[:, ::-1],
        np.array(3.5),
        np.array([], dtype=np.int16),
        np.array(["a", "longer"]),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        np.arange(3, dtype=">f4"),
        np.array([1 + 2j]),
        np.asmatrix(np.eye(2)),
        np.array([True, False]),
    ],
    ids=lambda array: f"{type(array).__name__}-{array.dtype}",
)
def test_arrays_keep_type_shape_and_bits(round_trip, array):
    loaded = round_trip({"a": array})["a"]
    assert type(loaded) is type(array)
    assert loaded.dtype == array.dtype
    assert loaded.shape == array.shape
    assert np.array_equal(loaded, array)


def test_numpy_numbers_keep_their_type(round_trip):
    loaded = round_trip([np.float32(0.1), np.int16(3), np.bool_(True), np.float64("nan")])
    assert [type(value) for value in loaded] == [np.float32, np.int16, np.bool_, np.float64]
    assert loaded[0] == np.float32(0.1)
    assert np.isnan(loaded[3])


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "lil", "dok"])
@pytest.mark.parametrize("family", ["matrix", "array"])
def test_scipy_matrices_keep_format(round_trip, kind, family):
    value = getattr(sparse, f"{kind}_{family}")(np.array([[0, 2, 0], [1, 0, 3]], dtype=np.float32))
    loaded = round_trip({"m": value})["m"]
    assert type(loaded) is type(value)
    assert loaded.dtype == value.dtype
    assert (loaded.toarray() == value.toarray()).all()


def test_names_of_tensors_are_readable_by_any_tool(tmp_path):
    tree = {"state_dict": {"layer.weight": torch.ones(2)}, "state_dict.layer": {"weight": torch.zeros(3)}}
    save_tree(tmp_path / "m.safetensors", tree, {"model": "BPR"})
    assert set(load_file(tmp_path / "m.safetensors")) == {"state_dict.layer.weight", "state_dict.layer.weight#2"}
    assert read_metadata(tmp_path / "m.safetensors") == {"model": "BPR"}
    assert torch.equal(load_tree(tmp_path / "m.safetensors")["state_dict.layer"]["weight"], torch.zeros(3))


def test_a_safetensors_file_from_elsewhere_gives_its_tensors(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    assert load_tree(tmp_path / "other.safetensors")["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, np.array([object()], dtype=object), np.zeros(1, dtype=[("a", "f4")])],
    ids=["object", "set", "array of objects", "structured array"],
)
def test_what_would_need_pickle_is_refused_by_its_place(tmp_path, value):
    with pytest.raises(CheckpointError, match=r"^outer\.1: "):
        save_tree(tmp_path / "tree.safetensors", {"outer": [0, value]})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ refusals


class Bomb:
    """Leaves a file behind when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["BPR.pth", "weights.pt", "model.safetensors", "checkpoint"])
@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_never_opened(tmp_path, name, how):
    path, evidence = tmp_path / name, tmp_path / "evidence"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(str(evidence))))
    else:
        torch.save({"state_dict": Bomb(str(evidence))}, path)
    for load in (load_tree, read_metadata):
        with pytest.raises(CheckpointError, match=r"pickles, which can run code when opened; train again or convert"):
            load(path)
    with without_pickles(), pytest.raises(CheckpointError, match="pickles"):
        torch.load(path, weights_only=False)
    assert not evidence.exists()


def test_a_safetensors_file_whose_length_looks_like_a_pickle_loads(tmp_path):
    """The file begins with the header's length, whose lowest byte may be 0x80 as a pickle's first."""
    path = tmp_path / "tree.safetensors"
    for padding in range(400):
        save_tree(path, {"pad": "x" * padding})
        if path.read_bytes()[:1] == b"\x80":
            break
    assert path.read_bytes()[:1] == b"\x80"
    assert load_tree(path) == {"pad": "x" * padding}


@pytest.mark.parametrize("keep", [0, 5, 8, 40, 200, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "checkpoint.safetensors"
    save_tree(path, {"w": torch.ones(100), "epoch": 3})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors: damaged"):
        load_tree(path)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        load_tree(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="directory"):
        load_tree(tmp_path)
    with pytest.raises(DiskError, match="cannot be written"):
        save_tree(tmp_path / "missing" / "tree.safetensors", {"w": torch.ones(1)})


@pytest.mark.parametrize("node", ['{"$":"dtype"}', '{"$":"tensor","key":"none"}', '{"$":"tuple"}', "{", '{"$":[]}'])
def test_a_foreign_skeleton_is_damage_not_a_crash(tmp_path, node):
    save_file({"w": torch.ones(1)}, tmp_path / "x.safetensors", {checkpoint.SKELETON: node})
    with pytest.raises(CheckpointError, match="damaged"):
        load_tree(tmp_path / "x.safetensors")


# ---------------------------------------------------------------- atomicity


@pytest.mark.parametrize("point", ["save_file", "seal", "_sync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, point):
    path = tmp_path / "tree.safetensors"
    save_tree(path, {"epoch": 1})

    def fail(*_):
        raise OSError(28, "No space left on device")

    owner = {"replace": os, "_sync": files, "save_file": checkpoint, "seal": checkpoint}[point]
    monkeypatch.setattr(owner, point, fail)
    with pytest.raises(DiskError, match="No space left on device"):
        save_tree(path, {"epoch": 2})
    monkeypatch.undo()
    assert load_tree(path) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["tree.safetensors"]


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    path = tmp_path / "tree.safetensors"
    (tmp_path / ".recbole-mm-x1y2z3ab.rmm").mkdir()
    (tmp_path / ".recbole-mm-x1y2z3ab.rmm" / ".tmpX1y2").write_bytes(b"half")
    save_tree(path, {"epoch": 1})
    assert load_tree(path) == {"epoch": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["tree.safetensors"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_are_those_of_any_new_file(tmp_path):
    save_tree(tmp_path / "tree.safetensors", {})
    (tmp_path / "other").touch()
    assert (tmp_path / "tree.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_copy_elsewhere_is_complete(tmp_path):
    save_tree(tmp_path / "a.safetensors", {"w": torch.randn(3, 3)})
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert torch.equal(load_tree(tmp_path / "a.safetensors")["w"], load_tree(tmp_path / "b.safetensors")["w"])


def test_every_flipped_byte_of_a_file_is_found(tmp_path):
    path = tmp_path / "tree.safetensors"
    save_tree(path, {"epoch": 7, "w": torch.arange(12.0).reshape(3, 4), "loss": {0: 0.5}}, {"valid_score": "0.25"})
    assert read_metadata(path) == {"valid_score": "0.25"}
    whole = path.read_bytes()
    mark = whole.index(b"recbole_mm crc32=")
    for place in set(range(len(whole))) - set(range(mark, mark + 25)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged") as caught:
            load_tree(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"tree\.safetensors: damaged: its checksum does not match, .*restore it"):
        load_tree(path)


def test_a_file_without_a_checksum_is_read_as_it_is(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", {checkpoint.SKELETON: '{"w":{"$":"tensor","key":"w"}}'})
    assert load_tree(tmp_path / "x.safetensors")["w"].tolist() == [1, 1]


# -------------------------------------------------------------- generators


def draw():
    return random.random(), np.random.rand(3).tolist(), np.random.normal(), torch.rand(3).tolist(), random.gauss(0, 1)


def test_generators_continue_where_they_were(round_trip):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    draw()
    state = round_trip(rng_state())
    expected = [draw(), draw()]
    draw()
    set_rng_state(state)
    assert [draw(), draw()] == expected
