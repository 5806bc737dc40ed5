"""Products with large matrices on a CPU, by the widest vector instructions it has.

torch multiplies float32 matrices with MKL, which on processors of other makes than Intel's may leave half of them idle;
oneDNN, which comes with torch as well, uses them on every make.
"""

from __future__ import annotations

import torch
from torch import Tensor


def onednn_takes(*matrices: Tensor) -> bool:
    """Return whether this build of torch has oneDNN's product for such matrices: float32, on a CPU."""
    return (
        all(matrix.device.type == "cpu" and matrix.dtype == torch.float32 for matrix in matrices)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ right.T` of matrices (n, d) and (m, d): (n, m), not differentiable."""
    # Of a cut-out, whose rows do not follow one another, oneDNN has only its plain loops.
    if onednn_takes(left, right) and all(one.is_contiguous() or one.T.is_contiguous() for one in (left, right)):
        return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return left @ right.T
