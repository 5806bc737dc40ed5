"""Text LLMs: whatever transformers' AutoModelForCausalLM reads, for prompts of words alone.

One family for all of them. What differs between architectures stays inside transformers: here a prompt is token ids,
padded on the right, and a vector is the last layer's state at the last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from PIL import Image
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, PreTrainedModel

from recbole_mm.errors import ConfigError
from recbole_mm.llm.family import CutImage, Family, PreparedInput


class TextLLM(Family):
    """Inputs of a text LLM. No bound on an image's area has a meaning, so it is 0."""

    image_processor_class = None
    placeholder = None
    reads_images = False
    patch = least_pixels = max_pixels = 0

    def bound(self, image_pixels: int | None) -> int:
        """Returns 0: vectors and texts of a text LLM do not depend on `mllm_image_pixels`."""
        return 0

    def cut(self, image: Image.Image, max_pixels: int) -> CutImage:
        """Refuses the picture.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"a text LLM ({self.config.model_type}) reads no images: set modalities: [text]")

    def image_cost(self, max_pixels: int) -> int:
        """Returns 0."""
        return 0

    def _extras(
        self, inputs: Sequence[PreparedInput], starts: Sequence[int], length: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """Nothing: positions are those that the model counts itself."""
        return {}

    def decoder(self, model: nn.Module) -> PreTrainedModel:
        """The whole base model is the decoder."""
        return cast(PreTrainedModel, self.base(model))


@cache
def text_family(kind: str) -> type[TextLLM]:
    """The family of text LLMs of a type, which transformers has classes for.

    Args:
        kind: `model_type` of the checkpoint.

    Example:
        >>> text_family("llama").generation_class.__name__
        'LlamaForCausalLM'
    """
    config_class = CONFIG_MAPPING[kind]
    classes = {
        "model_class": _first(MODEL_MAPPING[config_class]),
        "generation_class": _first(MODEL_FOR_CAUSAL_LM_MAPPING[config_class]),
    }
    return type(TextLLM.__name__, (TextLLM,), {**classes, "__module__": __name__, "__doc__": TextLLM.__doc__})


def _first(classes: Any) -> type[PreTrainedModel]:
    """The class of a mapping's entry, some of which are several."""
    return classes[0] if isinstance(classes, (tuple, list)) else classes
