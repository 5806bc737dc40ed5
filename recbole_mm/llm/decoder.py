"""The text decoder of a model: its layers, the masks that it takes, and what its head makes of states."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from recbole_mm.errors import ModelLoadError


class _States(BaseModelOutputWithPast):
    """The output of a base model that has nothing but states."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _Ran:
    """Stands for a base model, or a part of it, that has already run; called, it gives these states."""

    def __init__(self, states: torch.Tensor) -> None:
        self._states = states

    def __getattr__(self, name: str) -> _Ran:
        return self

    def __call__(self, *_: Any, **__: Any) -> _States:
        return _States(last_hidden_state=self._states)


class _AfterBase:
    """Stands for a model with a head whose base model has already run.

    Args:
        model: with a head.
        base: its base model.
        states: (B, L, hidden) that the base model gave.
    """

    def __init__(self, model: nn.Module, base: nn.Module, states: torch.Tensor) -> None:
        self._model, self._base, self._ran = model, base, _Ran(states)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        return self._ran if found is self._base else found


def logits_after(model: nn.Module, base: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """What a model with a head makes of the states (T, hidden) that its base model gave: (T, words)."""
    headed: Any = model
    after = _AfterBase(headed, base, states[None])
    return type(headed).forward(after, inputs_embeds=states[None], use_cache=False, return_dict=True).logits[0]


LAYERS = ("layers", "h", "blocks")
"""What decoders call the list of their layers."""


def layers_of(decoder: nn.Module) -> tuple[str, nn.ModuleList]:
    """The layers of a decoder, and what it calls them.

    Raises:
        ModelLoadError: it does not keep them in a list of its own.
    """
    for name in LAYERS:
        found = getattr(decoder, name, None)
        if isinstance(found, nn.ModuleList):
            return name, found
    raise ModelLoadError(f"{type(decoder).__name__}: its layers cannot be told apart, so none of them can be left out")


def context_of(model: Any) -> int | None:
    """Tokens of the longest prompt that a model was made for, if its configuration says so."""
    return longest_of(model.config)


def longest_of(config: Any) -> int | None:
    """The same, of a Hugging Face configuration."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def sliding_window(config: Any) -> int | None:
    """Tokens that some layer looks back at, itself included; None where all layers see the whole prompt.

    Args:
        config: the decoder's. With `layer_types`, its attention takes a mask for each kind of layer, by those names.

    Example:
        >>> from types import SimpleNamespace
        >>> kinds = ["sliding_attention", "full_attention"]
        >>> sliding_window(SimpleNamespace(layer_types=kinds, sliding_window=512))
        512
    """
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    return None if window is None or (kinds and "sliding_attention" not in kinds) else int(window)


def layer_masks(
    config: Any, seen: torch.Tensor, apart: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What a decoder takes as its attention mask: one for all layers, or one for each kind of layer.

    Args:
        config: the decoder's.
        seen: bool (B, 1, rows, columns), True where a row sees a column in layers that see the whole prompt.
        apart: (B, rows, columns) by how many tokens a column lies before a row.
        dtype: of the attention scores.
    """
    window, implementation = sliding_window(config), config._attn_implementation
    full = as_attention_wants(seen, dtype, implementation)
    if window is None:
        return full
    near = as_attention_wants(seen & (apart < window)[:, None], dtype, implementation)
    return {"full_attention": full, "sliding_attention": near} if getattr(config, "layer_types", None) else near


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
