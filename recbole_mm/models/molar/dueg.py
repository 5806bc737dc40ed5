"""Dynamic User Embedding Generator (Molar, section 3.4): item vectors in, the state of a `[User]` token out, Eq. (2).

A history of n items followed by `[User]` gives E_u. Training wants E_u after every prefix. Running each prefix costs n
passes; here all of them share one: `[User]` gets one slot per prefix, appended after the items. Items see items
causally and never a slot; the slot of prefix n sees items 1..n and itself, at position n, where the prefix's own
`[User]` would stand. So every slot computes exactly what a pass over its prefix would.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recbole_mm.models.molar.prefix_attention import can_take_apart, install, states_of_slots


def slot_layout(width: int, prefixes: Tensor) -> tuple[Tensor, Tensor]:
    """Return positions and mask of `[User]` slots that follow `width` items.

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

    Decoders of known make are run by `prefix_attention`, which computes the same with less work; all others, and
    histories longer than a window of theirs, under the mask of `slot_layout`.

    Args:
        text_stack: `MLLM.text_stack()`, which takes vectors, a 4-D boolean mask and positions.
        hidden_size: width of the decoder.
        tuning: which of its weights are trained with the rest: `full`, all, which makes them float32, since steps as
            small as training makes them would be lost in bfloat16; `lora`, those of the LoRA that it already has;
            `frozen`, none.
    """

    reads_users = False

    def __init__(self, text_stack: nn.Module, hidden_size: int, tuning: str = "full") -> None:
        super().__init__()
        self.text_stack = text_stack.float() if tuning == "full" else text_stack
        if tuning != "lora":
            self.text_stack.requires_grad_(tuning == "full")
        self.user_token = nn.Parameter(torch.randn(hidden_size) * 0.02)
        self.window: Any = text_stack.window
        self.takes_apart = can_take_apart(self.text_stack.decoder)
        if self.takes_apart:
            install(self.text_stack.decoder)

    @property
    def dtype(self) -> torch.dtype:
        """Of the decoder's own weights."""
        return next(self.text_stack.parameters()).dtype

    def _run(self, items: Tensor, prefixes: Tensor) -> Tensor:
        """States of `[User]` slots, (B, S, h), that follow item vectors (B, W, h); `prefixes` as for `slot_layout`."""
        given, dtype = items.dtype, self.dtype
        items = items.to(dtype)
        slots = self.user_token.to(dtype).expand(len(items), prefixes.shape[1], -1)
        if self.takes_apart and (self.window is None or items.shape[1] < self.window):
            return states_of_slots(self.text_stack.decoder, items, slots, prefixes).to(given)
        return self._run_masked(items, slots, prefixes).to(given)

    def _run_masked(self, items: Tensor, slots: Tensor, prefixes: Tensor) -> Tensor:
        batch, width, _ = items.shape
        mask, positions = slot_layout(width, prefixes)
        output = self.text_stack(
            torch.cat([items, slots], dim=1), mask.expand(batch, -1, -1, -1), positions.expand(batch, -1)
        )
        return output.last_hidden_state[:, width:]

    def all_prefixes(self, items: Tensor) -> Tensor:
        """E_u after every prefix in one pass: item vectors (B, W, h), padded on the right -> (B, W, h)."""
        return self._run(items, torch.arange(1, items.shape[1] + 1, device=items.device)[None])

    def whole(self, items: Tensor, lengths: Tensor) -> Tensor:
        """E_u of whole histories: item vectors (B, W, h), lengths (B,) -> (B, h)."""
        return self._run(items, lengths[:, None])[:, 0]
