"""CoLLM's trainable parts around a frozen LLM: LoRA in its decoder, and the map of collaborative vectors to words."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from recbole_mm.errors import ConfigError

LORA = ".lora_"
"""Part of the name of every LoRA weight."""


def with_lora(decoder: nn.Module, rank: int, alpha: int, dropout: float, targets: Sequence[str]) -> nn.Module:
    """A decoder with LoRA in it that shares the weights of the one it is made from.

    The original goes on computing what it did. LoRA's weights are float32 whatever the decoder's: steps as small as
    training makes them would be lost in bfloat16.

    Args:
        decoder: of the MLLM; its own weights are frozen.
        rank, alpha, dropout: LoRA's.
        targets: names of the linear maps that get it, such as q_proj.

    Raises:
        ConfigError: no linear map of the decoder has such a name, or the rank is below 1.
    """
    shared = {id(tensor): tensor for tensor in chain(decoder.parameters(), decoder.buffers())}
    adapted: nn.Module = copy.deepcopy(decoder, shared).requires_grad_(False)
    try:
        adapter = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
        inject_adapter_in_model(adapter, adapted)
    except ValueError as error:
        linear = (name for name, part in decoder.named_modules() if isinstance(part, nn.Linear))
        names = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise ConfigError(
            f"lora_rank {rank!r} in lora_targets {list(targets)} cannot be; the decoder's linear maps are "
            f"{', '.join(names)}"
        ) from error
    for name, weight in adapted.named_parameters():
        if LORA in name:
            weight.data = weight.data.float()
    return adapted


class VectorMapper(nn.Module):
    """Collaborative vectors to input vectors of the LLM, users' and items' alike: d -> times * d -> hidden.

    Args:
        dimension: d.
        hidden: width of the LLM.
        times: the inner layer is so many times as wide as the vectors.
    """

    def __init__(self, dimension: int, hidden: int, times: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dimension, times * dimension), nn.ReLU(), nn.Linear(times * dimension, hidden)
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., d) -> (..., hidden)."""
        return self.layers(vectors)


def softsign_below_zero(scores: Tensor) -> Tensor:
    """Any scores in their order, in (-1, 0): below every probability."""
    return (scores / (1 + scores.abs()) - 1) / 2


def first_of_each_row(scores: Tensor, allowed: Tensor, count: int | None) -> Tensor:
    """Which of the allowed columns have a row's highest scores; of equal scores the first columns.

    Args:
        scores: (B, N).
        allowed: bool (B, N).
        count: so many per row, or all that are allowed where those are fewer; None for all of them.

    Returns:
        bool (B, N).
    """
    if count is None or count >= scores.shape[1]:
        return allowed
    masked = scores.masked_fill(~allowed, -torch.inf)
    least = masked.topk(count, dim=1).values[:, -1:]
    above = masked > least
    level = (masked == least) & allowed
    return above | (level & (level.cumsum(1) <= count - above.sum(1, keepdim=True)))
