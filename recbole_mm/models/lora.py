"""LoRA in the decoder of a recommendation model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain

from torch import nn

from recbole_mm.errors import ConfigError

LORA = ".lora_"
"""Part of the name of every LoRA weight."""


def with_lora(
    decoder: nn.Module, rank: int, alpha: int, dropout: float, targets: Sequence[str] | None = None
) -> nn.Module:
    """Return a copy of a decoder that has LoRA and shares the weights of the original.

    The original is not changed. LoRA's weights are float32 whatever the decoder's: steps as small as
    training makes them would be lost in bfloat16.

    Args:
        decoder: the MLLM's decoder; its own weights are frozen in the copy.
        rank, alpha, dropout: LoRA's hyper-parameters.
        targets: names of the linear maps that get LoRA, such as q_proj; None for all of them.

    Raises:
        ConfigError: no linear map of the decoder has such a name, or the rank is below 1.
    """
    # Both import transformers, which most variants do without.
    from peft import LoraConfig, inject_adapter_in_model
    from transformers.pytorch_utils import Conv1D

    shared = {id(tensor): tensor for tensor in chain(decoder.parameters(), decoder.buffers())}
    adapted: nn.Module = copy.deepcopy(decoder, shared).requires_grad_(False)
    linear = (name for name, part in decoder.named_modules() if isinstance(part, nn.Linear | Conv1D))
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    wanted = known if targets is None else list(targets)
    try:
        adapter = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=wanted)
        inject_adapter_in_model(adapter, adapted)
    except ValueError as error:
        raise ConfigError(
            f"LoRA of rank {rank!r} in {wanted} cannot be; the decoder's linear maps are {', '.join(known) or 'none'}"
        ) from error
    for name, weight in adapted.named_parameters():
        if LORA in name:
            weight.data = weight.data.float()
    return adapted
