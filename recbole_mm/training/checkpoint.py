"""Checkpoints without pickle: a tree of values in one safetensors file, written whole or not at all.

RecBole saves with `torch.save` and so reads with an unpickler, which can run any code a file holds. Here tensors and
arrays become entries of a safetensors file that any tool can read, and everything else (numbers, text, the nesting) a
JSON skeleton in that file's metadata.

    >>> path = tmp_path / "checkpoint.safetensors"
    >>> save_tree(path, {"epoch": 3, "loss": {0: 1.5}, "weights": {"w": torch.ones(2)}})
    >>> load_tree(path)["loss"]  # int keys survive
    {0: 1.5}
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recbole_mm.errors import CheckpointError
from recbole_mm.training.tree import Decoder, Encoder
from recbole_mm.utils.files import atomic_write
from recbole_mm.utils.seal import CHECKSUM, UNSEALED, ChecksumError, check_seal, seal

SKELETON = "recbole_mm.tree"
"""Metadata key of the JSON skeleton."""

PICKLE_SUFFIXES = frozenset({".pth", ".pt", ".pkl", ".pickle", ".ckpt"})
PICKLE_MAGIC = (b"\x80", b"PK\x03\x04")
"""First bytes of a pickle (protocol 2 and later) and of the zip archive that `torch.save` puts one into."""

PICKLE_ADVICE = (
    "RecBole .pth files are pickles, which can run code when opened; "
    "train again or convert the weights with a trusted tool"
)

PathLike = str | os.PathLike[str]


def save_tree(path: PathLike, tree: Any, metadata: Mapping[str, str] | None = None) -> None:
    """Write `tree` to `path` so that a crash at any moment leaves the old file or the new one, never a part of it.

    Args:
        path: file to write, usually `*.safetensors`; its folder must exist.
        tree: nested dict, list and tuple (any hashable plain key) of None, bool, int, float, str, torch tensors (any
            layout and device), numpy arrays and scalars, scipy sparse matrices. Tensors that are the same view of the
            same memory are stored once; other views are stored whole.
        metadata: more text for the file's metadata, for people and tools.

    Raises:
        CheckpointError: a value of another type.
        DiskError: the file cannot be written; the old one is untouched then.
    """
    path = Path(path)
    encoder = Encoder()
    skeleton = json.dumps(encoder.encode(tree, ""), separators=(",", ":"), allow_nan=False)
    header = {"format": "pt", **(metadata or {}), CHECKSUM: UNSEALED, SKELETON: skeleton}
    with atomic_write(path) as draft:
        save_file(encoder.tensors, str(draft), header)
        seal(draft)


def load_tree(path: PathLike) -> Any:
    """Read what `save_tree` wrote, on the CPU, byte for byte.

    Returns:
        The tree; of a safetensors file that another program wrote, a flat dict of its tensors.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or a pickle (which is never opened).
    """
    with _opened(path) as handle:
        check_seal(Path(path))
        skeleton = (handle.metadata() or {}).get(SKELETON)
        if skeleton is None:
            return {key: handle.get_tensor(key).clone() for key in handle.keys()}  # noqa: SIM118
        return Decoder(handle).decode(json.loads(skeleton))


def read_metadata(path: PathLike) -> dict[str, str]:
    """Return the `metadata` given to `save_tree`, without reading any tensor.

    Raises:
        CheckpointError: as `load_tree`.
    """
    with _opened(path) as handle:
        return {
            key: value for key, value in (handle.metadata() or {}).items() if key not in (SKELETON, CHECKSUM, "format")
        }


def read_value(path: PathLike, name: str) -> Any:
    """Return one entry of a tree that `save_tree` wrote, without reading the tensors of the others; None without it.

    The checksum of the whole file is not checked: what is read is only shown.

    Raises:
        CheckpointError: as `load_tree`.
    """
    with _opened(path) as handle:
        nodes = json.loads((handle.metadata() or {}).get(SKELETON, "{}"))
        return Decoder(handle).decode(nodes.get(name))


@contextmanager
def _opened(path: PathLike) -> Iterator[Any]:
    path = Path(path)
    _refuse_pickle(path)
    try:
        with safe_open(str(path), framework="pt") as handle:
            yield handle
    except ChecksumError as error:
        raise CheckpointError(f"{path}: damaged: {error}; restore it from a copy, or start a new run") from error
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: damaged or not a safetensors file ({type(error).__name__}: {reason})"
        ) from error


def _refuse_pickle(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    # A safetensors file is 8 bytes of length and then JSON; the length may begin like a pickle, the ninth byte not.
    looks_pickled = head.startswith(PICKLE_MAGIC) and head[8:9] != b"{"
    if looks_pickled or path.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointError(f"{path}: not loaded. {PICKLE_ADVICE}")


@contextmanager
def without_pickles() -> Iterator[None]:
    """Within the block `torch.load` reads safetensors files, and neither it nor `numpy.load` reads pickles.

    Some of RecBole's models (S3Rec, RaCT, NeuMF, ConvNCF, NAIS, KD_DAGFM) load a pretrained `.pth` named in their
    configuration while they are built: name a `model.safetensors` there instead. LDiffRec reads a file of the dataset's
    folder with numpy, pickled objects included.
    """

    load_array = np.load

    def load(path: PathLike, *_: Any, **__: Any) -> Any:
        """Read a safetensors file in place of `torch.load`."""
        return load_tree(path)

    def load_numbers(file: Any, *arguments: Any, **settings: Any) -> Any:
        """Read an array without pickled objects in place of `numpy.load`."""
        try:
            return load_array(file, *arguments, **{**settings, "allow_pickle": False})
        except ValueError as error:
            raise CheckpointError(f"{file}: not plain numbers ({error}); pickles are never loaded") from error

    with swapped(torch, "load", load), swapped(np, "load", load_numbers):
        yield


@contextmanager
def swapped(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set `owner.name` to `value` for the length of the block."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def rng_state() -> dict[str, Any]:
    """Return the state of every random generator that training may draw from: Python's, numpy's, torch's and GPUs'."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Set every random generator to what `rng_state()` returned. GPUs that this machine lacks are left out."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for index, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(generator, index)
