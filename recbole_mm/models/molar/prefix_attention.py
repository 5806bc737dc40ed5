"""Attention of a decoder whose items are followed by `[User]` slots, without scores of pairs that are masked anyway.

Of the (W + S)^2 pairs of W items and S slots, items use the W (W + 1) / 2 among themselves and slots the S (W + 1) of
each with the items and itself. transformers lets an attention function of one's own stand where its decoders call
theirs, so the projections, rotary positions and everything else remain those of the decoder, whatever its family.

The last layer's outputs of the items are not used, so it runs on the slots alone and reads the items' keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NAME = "recbole_mm_prefixes"
"""Of the attention function, in transformers' registry and in the configuration of decoders that use it."""

POSITION_ROWS = {
    "LlamaModel": 1,
    "MistralModel": 1,
    "MllamaTextModel": 1,
    "Qwen2Model": 1,
    "Qwen2VLTextModel": 3,
    "Qwen2_5_VLTextModel": 3,
    "Qwen3Model": 1,
}
"""Decoders known to be made as `states_of_slots` takes them apart, and how many position ids each token has."""


@dataclass(frozen=True)
class Prefixes:
    """Arguments of the attention function besides queries, keys and values.

    Attributes:
        width: W, number of items.
        unseen: bool (B or 1, 1, 1, S, W), True where a slot does not see an item.
        items: keys and values of the items, (B, key heads, W, d) each, where only the slots go through the layer;
            None where they stand in front of the slots.
    """

    width: int
    unseen: Tensor
    items: tuple[Tensor, Tensor] | None = None


def can_take_apart(decoder: Any) -> bool:
    """Return whether `states_of_slots` knows this kind of decoder, and it attends by SDPA."""
    return type(decoder).__name__ in POSITION_ROWS and decoder.config._attn_implementation in ("sdpa", NAME)


def install(decoder: Any) -> None:
    """Make a decoder call `prefix_attention`, which without prefixes is transformers' SDPA."""
    # Not at the top: models without an MLLM should not wait for transformers.
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, prefix_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    decoder.set_attn_implementation(NAME)


def states_of_slots(decoder: Any, items: Tensor, slots: Tensor, prefixes: Tensor) -> Tensor:
    """Return the final states of slots after the items, equal to those of the whole decoder masked by `slot_layout`.

    Args:
        decoder: one that `can_take_apart` knows, after `install`.
        items: vectors (B, W, h), padded on the right.
        slots: vectors (B, S, h).
        prefixes: number of items that each slot sees, (B or 1, S) of 1..W; also the slot's position.

    Returns:
        (B, S, h), after the final norm.
    """
    width = items.shape[1]
    place = torch.arange(width, device=items.device)
    positions = torch.cat([place.expand(len(prefixes), width), prefixes], dim=1)
    rows = POSITION_ROWS[type(decoder).__name__]
    hidden = torch.cat([items, slots], dim=1)
    rope = decoder.rotary_emb(hidden, positions if rows == 1 else positions.expand(rows, -1, -1))
    shape = Prefixes(width, place >= prefixes[:, None, None, :, None])
    layers = [layer for layer in decoder.layers if not isinstance(layer, nn.Identity)]
    for layer in layers[:-1]:
        hidden = layer(hidden, attention_mask=None, position_embeddings=rope, use_cache=False, prefixes=shape)
    last, hidden, slots = layers[-1], hidden[:, :width], hidden[:, width:]
    shape = Prefixes(width, shape.unseen, keys_and_values(last, hidden, tuple(part[:, :width] for part in rope)))
    rope = tuple(part[:, width:] for part in rope)
    return decoder.norm(last(slots, attention_mask=None, position_embeddings=rope, use_cache=False, prefixes=shape))


def keys_and_values(layer: Any, hidden: Tensor, rope: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Return the keys and values, (B, key heads, W, d) each, of `hidden` (B, W, h) in a layer's attention."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    heads = (*hidden.shape[:2], -1, attention.head_dim)
    keys, values = (part(normed).view(heads) for part in (attention.k_proj, attention.v_proj))
    if hasattr(attention, "k_norm"):  # of Qwen3, over each head
        keys = attention.k_norm(keys)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    cosines, sines = (part.unsqueeze(1) for part in rope)
    first, second = keys.chunk(2, dim=-1)
    return keys * cosines + torch.cat([-second, first], dim=-1) * sines, values


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    prefixes: Prefixes | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, L, d), key and value (B, key heads, L, d) -> (B, L, H, d).

    With `prefixes` the L tokens are W items and S slots, or the S slots alone; see `Prefixes`.
    """
    if prefixes is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if prefixes.items is not None:
        output = attend_to_prefixes((query, key, value), prefixes.items, prefixes.unseen, scale, dropout)
        return output.transpose(1, 2), None
    cut = (prefixes.width, query.shape[2] - prefixes.width)
    (q_items, q_slots), (k_items, k_slots), (v_items, v_slots) = (part.split(cut, 2) for part in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    items = F.scaled_dot_product_attention(
        q_items, k_items, v_items, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=grouped
    )
    slots = attend_to_prefixes((q_slots, k_slots, v_slots), (k_items, v_items), prefixes.unseen, scale, dropout)
    return torch.cat([items, slots], dim=2).transpose(1, 2), None


def attend_to_prefixes(
    slots: tuple[Tensor, Tensor, Tensor], items: tuple[Tensor, Tensor], unseen: Tensor, scale: float, dropout: float
) -> Tensor:
    """Attention of slots to the items of their prefixes and to themselves.

    Args:
        slots: query (B, H, S, d), key and value (B, K, S, d); H / K heads share a key head.
        items: keys and values (B, K, W, d).
        unseen: bool, broadcast to (B, K, H / K, S, W).
        scale: factor of the scores.
        dropout: share of the weights that are dropped.

    Returns:
        (B, H, S, d).
    """
    query, key, value = slots
    keys, values = items
    batch, heads, count, size = query.shape
    shared = (batch, key.shape[1], heads // key.shape[1], count)
    query = query.reshape(*shared, size) * scale
    own = (query * key.unsqueeze(2)).sum(-1, keepdim=True)
    others = (query.flatten(2, 3) @ keys.mT).view(*shared, -1).masked_fill(unseen, float("-inf"))
    weights = torch.cat([others, own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(value.dtype)
    weights = F.dropout(weights, dropout) if dropout else weights
    of_items, of_itself = weights[..., :-1], weights[..., -1:]
    output = (of_items.flatten(2, 3) @ values).view(*shared, size) + of_itself * value.unsqueeze(2)
    return output.reshape(batch, heads, count, size)
