"""The k highest cosines of each row of a table: products of blocks find candidates, float64 decides among them.

The product of unit vectors in low precision is off by a bounded amount, so that a pair whose product lies below
`floor - bound` is certainly not among the k best of its row. The few pairs left are computed exactly. Only the speed
depends on the precision of the products; see docs/item-graph.md for the bounds.
"""

from __future__ import annotations

import time

import numpy as np
import torch

# Rows of a block: a float32 block of 1,024 x 1,024 takes 4 MB and stays in the cache.
BLOCK = 1024
# Pairs whose exact cosine is computed at once: what is gathered stays in the cache.
PAIRS = 256
# k times this many candidates, or k for each row if that is more, wait to be merged with the k best: few large sorts.
MERGED = 4096
# More candidates of one row in one block than this many times k: its k-th best product raises the row's floor first.
CROWDED = 2
# More candidates of a bfloat16 block than one pair in this many: a float32 product is cheaper than deciding them all.
DENSE = 256


class NearestCosines:
    """Exact search for the nearest rows by cosine; `search()` runs it.

    Args:
        vectors: (n, d) float32, finite.
        places: (m,) rows of `vectors` that take part; none of them zero, no two of them equal.
        k: number of neighbours of each.
        floor: lowest cosine of a neighbour; -inf for all.
        block: rows of a block of products.
        dtype: dtype of the products; None for the fastest on this machine.

    Example:
        >>> vectors = np.array([[1, 0], [4, 3], [0, 2]], dtype=np.float32)
        >>> ids, cosines = NearestCosines(vectors, np.arange(3), k=2).search()
        >>> ids.tolist(), cosines.round(1).tolist()[0]
        ([[0, 1], [1, 0], [2, 1]], [1.0, 0.800000011920929])
    """

    def __init__(
        self,
        vectors: np.ndarray,
        places: np.ndarray,
        k: int,
        floor: float = -np.inf,
        block: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.vectors, self.places, self.k, self.block = vectors, places, k, block or BLOCK
        count, width = len(places), vectors.shape[1]
        self.norms = np.empty(count)
        self.dtype = dtype or _fastest_dtype(count, width)
        self.units = torch.empty(count, width, dtype=self.dtype)
        off = self._fill_units()
        # Cauchy-Schwarz: off(x) + off(y) + off(x) off(y) for what the rounding of the units did, and d * 2^-24 for
        # float32 sums in any order (a few more for the roundings of unit vectors, floors and results).
        self.float32_bound = 1.05 * (width + 8) * 2.0**-24
        if torch.get_float32_matmul_precision() != "highest":
            self.float32_bound += 2.0**-6  # torch may then use bfloat16 inside
        self.bound = self.float32_bound
        if self.dtype == torch.bfloat16:
            self.bound += 2 * off + off**2 + 2.0**-8  # the last for the rounding of the product itself
        self.best = np.full((count, k), -np.inf, dtype=np.float32)
        self.ids = np.zeros((count, k), dtype=np.int32)
        self.floor = np.full(count, floor, dtype=np.float32)
        self.lowest = np.float32(floor)
        self.waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.waiting_count = 0

    def _fill_units(self) -> float:
        """Compute norms and unit vectors; return the largest distance between a unit vector and its stored rounding."""
        off = 0.0
        for start in range(0, len(self.places), PAIRS):
            rows = self.vectors[self.places[start : start + PAIRS]].astype(np.float64)
            norms = np.sqrt((rows * rows).sum(1))
            rows /= norms[:, None]
            self.norms[start : start + PAIRS] = norms
            units = torch.from_numpy(rows)
            stored = self.units[start : start + PAIRS].copy_(units)
            off = max(off, float((units - stored.double()).norm(dim=1).max()))
        return off

    def search(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (m, k) positions in `places` and (m, k) float32 cosines, best first, -inf where there are fewer."""
        count = len(self.places)
        scratch = torch.empty(self.block * self.block, dtype=self.dtype)
        blocks = [slice(start, min(start + self.block, count)) for start in range(0, count, self.block)]
        for number, rows in enumerate(blocks):
            for columns in blocks[number:]:
                self._visit(rows, columns, scratch)
        if self.waiting:
            self._merge()
        return self.ids, self.best

    def _visit(self, rows: slice, columns: slice, scratch: torch.Tensor) -> None:
        """Cosines are symmetric: one product serves the rows of both sides."""
        mine, theirs = self.units[rows], self.units[columns]
        products = scratch[: len(mine) * len(theirs)].view(len(mine), len(theirs))
        torch.mm(mine, theirs.T, out=products)
        exact: torch.Tensor | None = None
        for axis, here, there in ((0, rows, columns), (1, columns, rows))[: 1 if rows == columns else 2]:
            found = self._candidates(products, axis, here, self.bound)
            if self.dtype != torch.float32 and len(found[0]) > products.numel() // DENSE:
                # Many near duplicates, or a low floor: better floors and a smaller bound leave fewer.
                if exact is None:
                    exact = torch.mm(self._float32_units(rows), self._float32_units(columns).T)
                found = self._candidates(exact, axis, here, self.float32_bound)
            if len(found[0]):
                self._keep(found[0] + here.start, found[1] + there.start)

    def _float32_units(self, rows: slice) -> torch.Tensor:
        units = self.vectors[self.places[rows]].astype(np.float64)
        units /= self.norms[rows, None]
        return torch.from_numpy(units).float()

    def _candidates(
        self, products: torch.Tensor, axis: int, here: slice, bound: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of the block that may be among the k best of an item of `here`, whose items lie along `axis`.

        Returns the place along `axis` and the place along the other axis of each pair.
        """
        found = self._above(products, axis, self.floor[here] - np.float32(bound))
        counts = np.bincount(found[0], minlength=products.shape[axis])
        crowded = np.flatnonzero(counts > CROWDED * self.k)
        if len(crowded):
            near = products.index_select(axis, torch.from_numpy(crowded)).float()
            near = near if axis == 0 else near.T.contiguous()
            kth = torch.topk(near, self.k, dim=1, sorted=False).values.amin(1).numpy() - np.float32(bound)
            floor = np.maximum(self.floor[here][crowded], kth)
            self.floor[here.start + crowded] = floor
            again = self._above(near, 0, floor - np.float32(bound))
            others = counts[found[0]] <= CROWDED * self.k
            found = (
                np.concatenate([found[0][others], crowded[again[0]]]),
                np.concatenate([found[1][others], again[1]]),
            )
        return found

    @staticmethod
    def _above(products: torch.Tensor, axis: int, lowest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places (along `axis`, along the other) of the products that reach the limit of their place on `axis`."""
        if products.dtype == torch.bfloat16 and lowest.min() > 0:
            # The bits of a bfloat16 are ordered like integers above zero. Cut off, a limit can only become lower.
            table, limits = products.view(torch.int16).numpy(), (lowest.view(np.int32) >> 16).astype(np.int16)
        else:
            table, limits = products.float().numpy(), lowest
        flat = np.flatnonzero(table >= (limits[:, None] if axis == 0 else limits))
        places = np.divmod(flat, table.shape[1])
        return (places[0], places[1]) if axis == 0 else (places[1], places[0])

    def _keep(self, rows: np.ndarray, columns: np.ndarray) -> None:
        """Note those candidates that belong among the k best so far, by exact cosines."""
        cosines = self._cosines(rows, columns)
        # Each row meets the blocks in order, so whatever equals the k-th of before has a larger id than that.
        wanted = (cosines >= self.lowest) & (cosines > self.best[rows, -1])
        self.waiting.append((rows[wanted].astype(np.int32), columns[wanted].astype(np.int32), cosines[wanted]))
        self.waiting_count += len(self.waiting[-1][0])
        if self.waiting_count >= self.k * max(len(self.places), MERGED):
            self._merge()

    def _merge(self) -> None:
        """Merge what was noted with the k best so far."""
        rows, columns, cosines = (np.concatenate(each) for each in zip(*self.waiting))
        self.waiting, self.waiting_count = [], 0
        some, within = np.unique(rows, return_inverse=True)
        all_rows = np.concatenate([np.repeat(np.arange(len(some), dtype=np.int32), self.k), within.astype(np.int32)])
        all_ids = np.concatenate([self.ids[some].ravel(), columns])
        all_best = np.concatenate([self.best[some].ravel(), cosines])
        order = np.lexsort((all_ids, -all_best, all_rows))
        counts = np.bincount(within) + self.k
        kept = order[(np.cumsum(counts) - counts)[:, None] + np.arange(self.k)]
        self.ids[some], self.best[some] = all_ids[kept], all_best[kept]
        self.floor[some] = np.maximum(self.floor[some], self.best[some, -1])

    def _cosines(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """float32 of the float64 quotient, with one order of summation whatever else is computed with it."""
        dots = np.empty(len(rows))
        left = np.empty((min(PAIRS, len(rows)), self.vectors.shape[1]), dtype=np.float32)
        right, wide = np.empty_like(left), np.empty(left.shape)
        row_places, column_places = self.places[rows], self.places[columns]
        for start in range(0, len(rows), PAIRS):
            some = slice(start, start + PAIRS)
            size = len(dots[some])
            np.take(self.vectors, row_places[some], axis=0, out=left[:size], mode="clip")
            np.take(self.vectors, column_places[some], axis=0, out=right[:size], mode="clip")
            np.multiply(left[:size], right[:size], out=wide[:size], dtype=np.float64)
            dots[some] = wide[:size].sum(axis=1)
        return (dots / (self.norms[rows] * self.norms[columns])).astype(np.float32)


def _fastest_dtype(count: int, width: int) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively (AMX, AVX-512 BF16, ARM BF16); tried out, not looked up."""
    rows = min(count, 512)
    if count < 4096:
        return torch.float32  # the trial would cost more than it saves
    seconds: dict[torch.dtype, float] = {}
    for dtype in (torch.bfloat16, torch.float32):
        table = torch.ones(rows, width, dtype=dtype)
        out = torch.empty(rows, rows, dtype=dtype)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            torch.mm(table, table.T, out=out)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return torch.bfloat16 if 2 * seconds[torch.bfloat16] < seconds[torch.float32] else torch.float32
