"""Encodes values as tensors and JSON, the two things that a safetensors file can hold, and decodes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy import sparse

from recbole_mm.errors import CheckpointError

TAG = "$"
"""Marks a JSON object that stands for something JSON has no word for, as in {"$": "tuple", "items": [1, 2]}."""

TAGS = frozenset({"scalar", "float", "tuple", "dict", "tensor", "complex", "sparse", "compressed", "array", "scipy"})

SCIPY_FORMATS = frozenset({"bsr", "coo", "csc", "csr", "dia", "dok", "lil"})


class Encoder:
    """Turns values into JSON nodes and collects their tensors under readable, unique keys.

    Attributes:
        tensors: dotted path of a tensor in the tree -> the tensor, on the CPU.

    Example:
        >>> encoder = Encoder()
        >>> encoder.encode({"loss": (1, torch.ones(2))}, "")
        {'loss': {'$': 'tuple', 'items': [1, {'$': 'tensor', 'key': 'loss.1'}]}}
        >>> encoder.tensors["loss.1"]
        tensor([1., 1.])
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._keys: dict[tuple, str] = {}
        self._storages: set[int] = set()
        # Tensors are identified by their memory, so none may be freed (and its memory reused) before the file is there.
        self._alive: list[torch.Tensor] = []

    def encode(self, value: Any, where: str) -> Any:
        """Return the JSON node of `value`.

        Args:
            value: see `checkpoint.save_tree`.
            where: its dotted path in the tree.

        Raises:
            CheckpointError: a value of another type, or an array of Python objects.
        """
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, (np.bool_, np.number)):
            return {TAG: "scalar", "dtype": value.dtype.str, "value": self.encode(value.item(), where)}
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {TAG: "float", "value": str(value)}
        if sparse.issparse(value):  # before Mapping: a dok_matrix is one
            return self._scipy(value, where)
        if isinstance(value, Mapping):
            return self._mapping(value, where)
        if isinstance(value, list):
            return [self.encode(item, f"{where}.{i}") for i, item in enumerate(value)]
        if isinstance(value, tuple):
            return {TAG: "tuple", "items": [self.encode(item, f"{where}.{i}") for i, item in enumerate(value)]}
        if isinstance(value, torch.Tensor):
            return self._tensor(value.detach(), where)
        if isinstance(value, np.ndarray):
            return self._array(value, where)
        raise CheckpointError(f"{where.lstrip('.')}: a {type(value).__name__} cannot be saved without pickle")

    def _mapping(self, value: Mapping, where: str) -> Any:
        nodes = [(key, self.encode(item, f"{where}.{key}")) for key, item in value.items()]
        if all(isinstance(key, str) for key in value) and TAG not in value:
            return dict(nodes)
        return {TAG: "dict", "items": [[self.encode(key, where), node] for key, node in nodes]}

    def _tensor(self, value: torch.Tensor, where: str) -> dict[str, Any]:
        if value.layout == torch.sparse_coo:
            parts = {"indices": value._indices(), "values": value._values()}
            extra = {"size": list(value.shape), "coalesced": value.is_coalesced()}
            return {TAG: "sparse", **self._parts(parts, where), **extra}
        if value.layout in (torch.sparse_csr, torch.sparse_csc):
            by_rows = value.layout == torch.sparse_csr
            compressed = value.crow_indices() if by_rows else value.ccol_indices()
            plain = value.col_indices() if by_rows else value.row_indices()
            parts = {"compressed": compressed, "plain": plain, "values": value.values()}
            extra = {"size": list(value.shape), "layout": "csr" if by_rows else "csc"}
            return {TAG: "compressed", **self._parts(parts, where), **extra}
        if value.is_complex():
            return {TAG: "complex", "parts": self._dense(torch.view_as_real(value.resolve_conj()), where)}
        return {TAG: "tensor", "key": self._dense(value.resolve_neg(), where)}

    def _parts(self, parts: Mapping[str, torch.Tensor], where: str) -> dict[str, Any]:
        return {name: self._tensor(part, f"{where}.{name}") for name, part in parts.items()}

    def _dense(self, value: torch.Tensor, where: str) -> str:
        """Store a strided tensor and return its key; equal views of the same memory share one entry."""
        identity = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and identity in self._keys:
            return self._keys[identity]
        stored = value.cpu().contiguous()
        if stored.numel() and stored.untyped_storage().data_ptr() in self._storages:
            stored = stored.clone()
        key, copies = where.lstrip(".") or "value", 1
        while key in self.tensors:
            copies += 1
            key = f"{where.lstrip('.')}#{copies}"
        self.tensors[key] = stored
        self._alive += [value, stored]
        self._storages.add(stored.untyped_storage().data_ptr())
        self._keys[identity] = key
        return key

    def _array(self, value: np.ndarray, where: str) -> dict[str, Any]:
        if value.dtype.hasobject:
            raise CheckpointError(f"{where.lstrip('.')}: an array of Python objects cannot be saved without pickle")
        plain = np.ascontiguousarray(np.asarray(value)).reshape(value.shape)
        node = {
            TAG: "array",
            "dtype": value.dtype.str,
            "shape": list(value.shape),
            "matrix": isinstance(value, np.matrix),
        }
        if value.dtype.fields is not None:
            raise CheckpointError(f"{where.lstrip('.')}: a structured array cannot be saved; save its columns")
        if value.dtype.kind not in "biuf" or not value.dtype.isnative or value.dtype.itemsize > 8:
            plain = np.frombuffer(plain.tobytes(), dtype=np.uint8)
        if not plain.flags.writeable:
            plain = plain.copy()
        return {**node, "data": self._dense(torch.from_numpy(plain), where)}

    def _scipy(self, value: Any, where: str) -> dict[str, Any]:
        node = {
            TAG: "scipy",
            "format": value.format,
            "matrix": isinstance(value, sparse.spmatrix),
            "shape": list(value.shape),
        }
        if value.format in ("csr", "csc"):
            parts = {"data": value.data, "indices": value.indices, "indptr": value.indptr}
        else:
            coordinates = value.tocoo()
            parts = {"data": coordinates.data, "row": coordinates.row, "col": coordinates.col}
        return {**node, **{name: self._array(part, f"{where}.{name}") for name, part in parts.items()}}


class Decoder:
    """Turns JSON nodes back into values. Every tensor is a copy, so that nothing stays tied to the file.

    Args:
        handle: an open safetensors file: anything with `get_tensor(key)`.

    Example:
        >>> Decoder(None).decode({"epochs": {"$": "tuple", "items": [1, 2]}})
        {'epochs': (1, 2)}
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle
        self._loaded: dict[str, torch.Tensor] = {}

    def tensor(self, key: str) -> torch.Tensor:
        """Return the tensor of that key, read once."""
        if key not in self._loaded:
            self._loaded[key] = self._handle.get_tensor(key).clone()
        return self._loaded[key]

    def decode(self, node: Any) -> Any:
        """Return the value of a JSON node.

        Raises:
            ValueError: the node is of an unknown kind.
        """
        if isinstance(node, list):
            return [self.decode(item) for item in node]
        if not isinstance(node, dict):
            return node
        if TAG not in node:
            return {key: self.decode(item) for key, item in node.items()}
        if node[TAG] not in TAGS:
            raise ValueError(f"unknown kind of value {node[TAG]!r}")
        return getattr(self, f"_{node[TAG]}")(node)

    def _scalar(self, node: dict) -> Any:
        return np.dtype(node["dtype"]).type(self.decode(node["value"]))

    def _float(self, node: dict) -> float:
        return float(node["value"])

    def _tuple(self, node: dict) -> tuple:
        return tuple(self.decode(item) for item in node["items"])

    def _dict(self, node: dict) -> dict:
        return {self.decode(key): self.decode(item) for key, item in node["items"]}

    def _tensor(self, node: dict) -> torch.Tensor:
        return self.tensor(node["key"])

    def _complex(self, node: dict) -> torch.Tensor:
        return torch.view_as_complex(self.tensor(node["parts"]))

    def _sparse(self, node: dict) -> torch.Tensor:
        indices, values = self.decode(node["indices"]), self.decode(node["values"])
        coalesced = node["coalesced"]
        return torch.sparse_coo_tensor(indices, values, node["size"], is_coalesced=coalesced, check_invariants=True)

    def _compressed(self, node: dict) -> torch.Tensor:
        build = {"csr": torch.sparse_csr_tensor, "csc": torch.sparse_csc_tensor}[node["layout"]]
        compressed, plain, values = (self.decode(node[name]) for name in ("compressed", "plain", "values"))
        return build(compressed, plain, values, size=node["size"], check_invariants=True)

    def _array(self, node: dict) -> np.ndarray:
        dtype, data = np.dtype(node["dtype"]), self.tensor(node["data"]).numpy()
        data = data if data.dtype == dtype else np.frombuffer(data.tobytes(), dtype=dtype).copy()
        data = data.reshape(node["shape"])
        return np.asmatrix(data) if node["matrix"] else data

    def _scipy(self, node: dict) -> Any:
        names = ("data", "indices", "indptr") if "indptr" in node else ("data", "row", "col")
        data, first, second = (self.decode(node[name]) for name in names)
        if node["format"] not in SCIPY_FORMATS:
            raise ValueError(f"unknown sparse format {node['format']!r}")
        kind = node["format"] if "indptr" in node else "coo"
        build = getattr(sparse, f"{kind}_{'matrix' if node['matrix'] else 'array'}")
        content = (data, first, second) if "indptr" in node else (data, (first, second))
        return build(content, shape=tuple(node["shape"])).asformat(node["format"])
