"""Boolean attention masks, in the form that an attention implementation takes."""

from __future__ import annotations

import torch


def as_attention_wants(mask: torch.Tensor, dtype: torch.dtype, implementation: str | None) -> torch.Tensor:
    """SDPA takes bool masks as they are; eager attention adds the mask, so it has to be numbers.

    Args:
        mask: bool, True where a row sees a column.
        dtype: of the attention scores.
        implementation: transformers' name of it, such as sdpa or eager.
    """
    if implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
