"""Dynamic User Embedding Generator (Molar, section 3.4): item vectors in, the state of a `[User]` token out, Eq. (2).

A history of n items followed by `[User]` gives E_u. Training wants E_u after every prefix. Running each prefix costs n
passes; here all of them share one: `[User]` gets one slot per prefix, appended behind the items. Items see items
causally and never a slot; the slot of prefix n sees items 1..n and itself, at position n, where the prefix's own
`[User]` would stand. So every slot computes exactly what a pass over its prefix would.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def slot_layout(width: int, prefixes: Tensor) -> tuple[Tensor, Tensor]:
    """Who sees whom when `[User]` slots stand behind `width` items.

    Args:
        width: number of item positions, padding included.
        prefixes: length of the prefix each slot reads, (B, S) with values 1..width; B may be 1 for all rows alike.

    Returns:
        mask: bool (B, 1, width + S, width + S), True where a row sees a column.
        positions: int64 (B, width + S), items 0..width - 1, the slot of prefix n at n.
    """
    device = prefixes.device
    batch, slots = prefixes.shape
    item = torch.arange(width, device=device)
    mask = torch.zeros(batch, 1, width + slots, width + slots, dtype=torch.bool, device=device)
    mask[:, :, :width, :width] = item[None, :] <= item[:, None]
    mask[:, 0, width:, :width] = item < prefixes[:, :, None]
    mask[:, :, width:, width:] = torch.eye(slots, dtype=torch.bool, device=device)
    positions = torch.cat([item.expand(batch, width), prefixes], dim=1)
    return mask, positions


class TextStackDUEG(nn.Module):
    """The MLLM's decoder as user model: "removing the word embedding layer", its pretrained weights kept.

    Args:
        text_stack: `MLLM.text_stack()`, which takes vectors, a 4-D boolean mask and positions.
        hidden_size: width of the decoder.
        trainable: whether its weights are trained with the rest.
    """

    def __init__(self, text_stack: nn.Module, hidden_size: int, trainable: bool = True) -> None:
        super().__init__()
        self.text_stack = text_stack.requires_grad_(trainable)
        self.user_token = nn.Parameter(torch.randn(hidden_size) * 0.02)

    def _run(self, items: Tensor, prefixes: Tensor) -> Tensor:
        batch, width, _ = items.shape
        slots = prefixes.shape[1]
        mask, positions = slot_layout(width, prefixes)
        embeddings = torch.cat([items, self.user_token.to(items.dtype).expand(batch, slots, -1)], dim=1)
        output = self.text_stack(embeddings, mask.expand(batch, -1, -1, -1), positions.expand(batch, -1))
        return output.last_hidden_state[:, width:]

    def all_prefixes(self, items: Tensor) -> Tensor:
        """E_u after every prefix in one pass: item vectors (B, W, h), padded on the right -> (B, W, h)."""
        return self._run(items, torch.arange(1, items.shape[1] + 1, device=items.device)[None])

    def whole(self, items: Tensor, lengths: Tensor) -> Tensor:
        """E_u of whole histories: item vectors (B, W, h), lengths (B,) -> (B, h)."""
        return self._run(items, lengths[:, None])[:, 0]
