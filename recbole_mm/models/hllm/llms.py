"""HLLM's two tiers: an item LLM from text to item vectors, a user LLM from item vectors to the next one."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.models.lora import with_lora
from recbole_mm.models.trained_items import CachePolicy, TrainedItems


def decoder_of(
    mllm: Any, layers: int | None = None, checkpointing: bool = False, setting: str = "user_llm_layers"
) -> nn.Module:
    """A copy of the MLLM's decoder without word embeddings, its pretrained weights kept, in float32 for training.

    Args:
        mllm: a loaded `MLLM`.
        layers: keep only the first so many layers; None keeps all.
        checkpointing: compute each layer twice instead of keeping its activations for the backward pass.
        setting: that asks for the layers, for errors.

    Raises:
        ConfigError: the decoder has not so many layers.
    """
    from recbole_mm.llm.model import checkpoint_layers

    stack = mllm.text_stack(layers, setting).float()
    if checkpointing:
        checkpoint_layers(stack.decoder)
    return stack


def run_causally(stack: nn.Module, inputs: Tensor) -> Tensor:
    """Last-layer states of vectors (B, L, h) at positions 0..L - 1 that see themselves and what lies before: (B, L, h).

    Padding may stand on the right: nothing in front of it sees it.
    """
    batch, length, _ = inputs.shape
    seen = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
    positions = torch.arange(length, device=inputs.device)
    return stack(inputs, seen.expand(batch, 1, -1, -1), positions.expand(batch, -1)).last_hidden_state


class ItemLLM(TrainedItems):
    """Reads an item's words and one learnable token after them; that token's last-layer state is the item's vector.

    The token starts as `[Cur_Item]`, so that before training an item's vector is what the frozen MLLM gives. An item's
    vector does not depend on what it is computed with.

    Args:
        mllm: a loaded `MLLM`; its decoder and word embeddings are copied, in float32.
        token_ids: (n_items, T) integers, padded on the right.
        lengths: (n_items,) tokens of each item, 0..T.
        policy: see `TrainedItems`.
        checkpointing: see `decoder_of`.
        layers: keep the first so many layers of the decoder; None keeps all.
        lora: sizes of the adapter that is trained in place of the decoder and the words; None trains these.
    """

    token_ids: Tensor
    lengths: Tensor

    def __init__(
        self,
        mllm: Any,
        token_ids: Any,
        lengths: Any,
        policy: CachePolicy,
        checkpointing: bool = False,
        layers: int | None = None,
        lora: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(len(lengths), mllm.hidden_size, policy)
        self.words = copy.deepcopy(mllm.model.get_input_embeddings()).float().requires_grad_(lora is None)
        self.text_stack = decoder_of(mllm, layers, checkpointing, "mllm_layers").requires_grad_()
        if lora is not None:
            sizes = lora["r"], lora["alpha"], lora["dropout"], lora["targets"]
            stack: Any = self.text_stack
            stack.decoder = with_lora(stack.decoder, *sizes)
        token = torch.tensor(mllm.cur_item_id, device=self.words.weight.device)
        self.item_token = nn.Parameter(self.words(token).detach().clone())  # some decoders scale what they look up
        self.register_buffer("token_ids", torch.as_tensor(token_ids), persistent=False)
        self.register_buffer("lengths", torch.as_tensor(lengths), persistent=False)

    def sizes(self, ids: Tensor) -> list[int]:
        """Return the tokens of items (n,), each one's own token included."""
        return (self.lengths[ids] + 1).tolist()

    def read(self, ids: Tensor) -> Tensor:
        """Return the vectors (n, h) float32 of items (n,), in one pass."""
        lengths = self.lengths[ids]
        longest = int(lengths.max())
        words = F.pad(self.words(self.token_ids[ids, :longest]), (0, 0, 0, 1))  # room for the longest item's token
        ends = torch.arange(longest + 1, device=ids.device) == lengths[:, None]
        states = run_causally(self.text_stack, torch.where(ends.unsqueeze(-1), self.item_token, words))
        return states[ends].float()

    def texts(self) -> Tensor:
        """(n_items, T + 1) int64: length and token ids; equal rows are equal texts."""
        return torch.cat([self.lengths[:, None], self.token_ids], dim=1)


def content_groups(rows: Tensor) -> Tensor:
    """(n_items,) int64: the first item whose row is the same, byte for byte. The same number is the same content."""
    first: dict[bytes, int] = {}
    digests = (hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows.contiguous().numpy())
    return torch.tensor([first.setdefault(digest, index) for index, digest in enumerate(digests)])


class UserLLM(nn.Module):
    """A causal decoder over item vectors: after each item, a guess at the vector of the next one.

    Args:
        text_stack: from `decoder_of`.
        trainable: whether it is trained.
    """

    def __init__(self, text_stack: nn.Module, trainable: bool = True) -> None:
        super().__init__()
        self.text_stack = text_stack.requires_grad_(trainable)

    def forward(self, items: Tensor) -> Tensor:
        """Item vectors (B, W, h), padded on the right -> states (B, W, h), float32."""
        return run_causally(self.text_stack, items).float()
