"""Products with a sparse matrix that are differentiable, by its values too."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional as F


class SparseMatrix:
    """A sparse matrix with fixed places, whose products are differentiable by the dense side and by the values.

    torch multiplies compressed rows about twice as fast as coordinates on a CPU; the transposed matrix, which the
    gradient needs, is prepared once. It is neither a module nor a tensor, so that checkpoints leave it out: its owner
    can build it again.

    Args:
        rows, columns: int64 (E,) distinct places of the entries, in any order.
        values: float32 (E,) in the same order.
        shape: (n, m).
        device: device of the products.

    Example:
        >>> matrix = SparseMatrix(torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([2.0, 3.0]), (2, 2))
        >>> matrix @ torch.eye(2)
        tensor([[0., 2.],
                [3., 0.]])
    """

    def __init__(
        self, rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int], device: torch.device | str = "cpu"
    ) -> None:
        self.shape = shape
        by_row = torch.argsort(rows * shape[1] + columns, stable=True)
        self.rows, self.columns = rows[by_row].to(device), columns[by_row].to(device)
        self.values = values.detach()[by_row].to(device=device, dtype=torch.float32)
        self._starts = _starts(self.rows, shape[0])
        self._turned = torch.argsort(self.columns, stable=True)
        self._turned_starts = _starts(self.columns[self._turned], shape[1])
        self._turned_columns = self.rows[self._turned]

    @classmethod
    def of(cls, graph: csr_array, device: torch.device | str = "cpu") -> SparseMatrix:
        """Build from a scipy matrix."""
        entries = graph.tocoo()
        rows, columns = (torch.from_numpy(np.asarray(place).astype(np.int64)) for place in (entries.row, entries.col))
        return cls(rows, columns, torch.from_numpy(entries.data.astype(np.float32)), graph.shape, device)

    def __len__(self) -> int:
        """Number of entries."""
        return len(self.rows)

    def __matmul__(self, dense: Tensor) -> Tensor:
        """(m, d) -> (n, d)."""
        return self.matmul(dense)

    def matmul(self, dense: Tensor, values: Tensor | None = None) -> Tensor:
        """Return the product (n, d) with `dense` (m, d), float32.

        Args:
            dense: the right side.
            values: (E,) entries in the order of `rows` and `columns`, in place of `self.values`; differentiable.
        """
        return _Product.apply(self, self.values if values is None else values.float(), dense.float())

    def dots(self, left: Tensor, right: Tensor) -> Tensor:
        """Return `left[row] . right[column]` of each entry's place, (E,), differentiable; needs no tensor of (E, d)."""
        return _Dots.apply(self, left.float(), right.float())

    def forward_product(self, values: Tensor, dense: Tensor) -> Tensor:
        """Return the product (n, d) of the matrix of these `values` (E,) with `dense` (m, d), not differentiable."""
        with _full_precision(dense):
            return _csr(self._starts, self.columns, values, self.shape) @ dense

    def transposed_product(self, values: Tensor, dense: Tensor) -> Tensor:
        """Return the product (m, d) of the transposed matrix with `dense` (n, d), not differentiable."""
        turned = _csr(self._turned_starts, self._turned_columns, values[self._turned], self.shape[::-1])
        with _full_precision(dense):
            return turned @ dense

    def sampled_product(self, left: Tensor, right: Tensor) -> Tensor:
        """Return `left[row] . right[column]` of each entry's place, (E,), not differentiable."""
        return product_at(self._starts, self.columns, left, right)

    def row_sums(self, values: Tensor) -> Tensor:
        """(E,) -> (n,), differentiable."""
        return torch.zeros(self.shape[0], device=values.device).index_add(0, self.rows, values)

    def to_dense(self) -> Tensor:
        """(n, m); for small matrices."""
        return torch.zeros(self.shape, device=self.values.device).index_put(
            (self.rows, self.columns), self.values, accumulate=True
        )


def product_at(starts: Tensor, columns: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Return `left[row] . right[column]` at each place of compressed rows, not differentiable.

    Args:
        starts: int64 (n + 1,) where each row's places begin and end.
        columns: int64 (E,) of the places; a place may stand there again.
        left: (n, d) float32 or float64.
        right: (m, d), same dtype.

    Returns:
        (E,).

    Example:
        >>> product_at(torch.tensor([0, 2, 3]), torch.tensor([1, 1, 0]), torch.eye(2), torch.tensor([[1.0, 2], [3, 4]]))
        tensor([3., 3., 2.])
    """
    places = _csr(starts, columns, left.new_zeros(len(columns)), (len(left), len(right)))
    with _full_precision(left):
        return torch.sparse.sampled_addmm(places, left.contiguous(), right.T, beta=0.0).values()


def _full_precision(like: Tensor) -> torch.autocast:
    """Keeps mixed precision out: there are no sparse products of half precision everywhere."""
    return torch.autocast(like.device.type, enabled=False)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, values: Tensor, dense: Tensor) -> Tensor:
        ctx.matrix = matrix
        ctx.save_for_backward(values, dense)
        return matrix.forward_product(values, dense)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        matrix, gradient = ctx.matrix, gradients[0].contiguous()
        values, dense = ctx.saved_tensors
        of_values = matrix.sampled_product(gradient, dense) if ctx.needs_input_grad[1] else None
        of_dense = matrix.transposed_product(values, gradient) if ctx.needs_input_grad[2] else None
        return None, of_values, of_dense


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, left: Tensor, right: Tensor) -> Tensor:
        ctx.matrix = matrix
        ctx.save_for_backward(left, right)
        return matrix.sampled_product(left, right)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None]:
        matrix, gradient = ctx.matrix, gradients[0].contiguous()
        left, right = ctx.saved_tensors
        of_left = matrix.forward_product(gradient, right) if ctx.needs_input_grad[1] else None
        of_right = matrix.transposed_product(gradient, left) if ctx.needs_input_grad[2] else None
        return None, of_left, of_right


def _starts(sorted_rows: Tensor, count: int) -> Tensor:
    return F.pad(torch.bincount(sorted_rows, minlength=count).cumsum(0), (1, 0))


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)
