"""Any other model that transformers reads as image-text-to-text, through transformers' own processor.

Slower than the families with a module of their own: each picture goes through the whole processor, its pixels stay
floating-point numbers, and vectors are computed prompt by prompt.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
import transformers
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import AutoProcessor, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_MAPPING_NAMES

from recbole_mm.llm.family import CutImage, Family, PreparedInput
from recbole_mm.llm.prompts import CUR_ITEM

logger = logging.getLogger(__name__)

LARGEST_PIXELS = 4096 * 4096
"""Bound on an image's area where `mllm_image_pixels` gives none: what else bounds it is up to the processor."""
PATCH = 14
"""Side of the patches that an image's cost is counted in; the vision tower's own may be others."""
SHAPES = ((1, 1), (2, 1), (1, 2), (4, 1), (1, 4))
"""Widths to heights of the images whose cost is measured."""
BEFORE, AFTER = "<before>", "<after>"


@dataclass(frozen=True, kw_only=True)
class ProcessedImage(CutImage):
    """An image as transformers' processor makes it.

    Attributes:
        tensors: what the model reads of it, by argument.
        kinds: (T,) int64 for each argument that says something of every token.
    """

    tensors: dict[str, torch.Tensor]
    kinds: dict[str, np.ndarray]


class Generic(Family):
    """Inputs of a checkpoint by its own processor. See `generic_family`.

    `max_pixels` bounds an image's area before the processor sees it, where that saves tokens or patches; a processor
    that makes the same of every image gets it whole.

    Raises:
        ValueError: the processor is none of text and images, or does not say how an image is written in a text.
    """

    image_processor_class = AutoProcessor
    images_look_ahead = True  # it may be; so prompts with images are read whole
    images_are_vectors = False
    places_images = True
    least_pixels = 1
    max_pixels = LARGEST_PIXELS
    patch = PATCH

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        self.processor = image_processor
        if getattr(self.processor, "image_processor", None) is None or not hasattr(self.processor, "tokenizer"):
            raise ValueError(f"a model of type {config.model_type!r} has no processor of images and texts")
        self.processor.tokenizer = tokenizer  # which knows [Cur_Item]
        self._cur_item = int(tokenizer.convert_tokens_to_ids(CUR_ITEM))
        self.placeholder = self._written(tokenizer)
        self._costs: dict[int, int] = {}
        self._processing = threading.Lock()  # its tokenizer serves one thread at a time
        seen = self._processed(Image.new("RGB", (64, 64), (90, 120, 60)))
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        self._marks = tuple(sorted(special & {int(token) for token in seen.ids}))
        logger.info(
            "Models of type %s are read through transformers' own processor, prompt by prompt: slower than the "
            "families of docs/backbones.md",
            config.model_type,
        )

    def _read_colours(self, image_processor: Any) -> None:
        """Nothing: the processor resizes and normalizes."""

    def _written(self, tokenizer: Any) -> str:
        """How the chat template writes an image; without one, the processor's word for it."""
        word = getattr(self.processor, "image_token", None)
        if not isinstance(word, str) or not word:
            raise ValueError(
                f"a model of type {self.config.model_type!r}: its processor does not say how an image is written"
            )
        template = tokenizer.chat_template or getattr(self.processor, "chat_template", None)
        if not template:
            return word
        content = [{"type": "text", "text": BEFORE}, {"type": "image"}, {"type": "text", "text": AFTER}]
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], chat_template=template, tokenize=False
            )
        except Exception as error:  # whatever a template of somebody else raises
            logger.debug("The chat template takes no parts: %s", error)
            return word
        between = str(text).partition(BEFORE)[2].partition(AFTER)[0].strip()
        return between if between.count(word) == 1 else word

    # --- one prompt --------------------------------------------------------------------------------------------------

    def cut(self, image: Image.Image, max_pixels: int) -> ProcessedImage:
        """What the processor makes of an RGB image, or of a smaller copy where that costs less."""
        made = self._processed(image)
        width, height = image.size
        if width * height <= max_pixels:
            return made
        scale = math.sqrt(max_pixels / (width * height))
        size = (max(1, math.floor(width * scale)), max(1, math.floor(height * scale)))
        smaller = self._processed(image.resize(size, Image.Resampling.BICUBIC))
        return smaller if len(smaller.ids) + smaller.patches < len(made.ids) + made.patches else made

    def _processed(self, image: Image.Image) -> ProcessedImage:
        text = f"{CUR_ITEM}{self.placeholder}{CUR_ITEM}"
        with self._processing:
            made = dict(self.processor(images=[image], text=[text], return_tensors="pt"))
        ids = made.pop("input_ids")
        made.pop("attention_mask", None)
        row = ids[0].tolist()
        first = row.index(self._cur_item) + 1
        last = row.index(self._cur_item, first)
        kinds = {name: value for name, value in made.items() if value.shape == ids.shape and _says_kinds(name)}
        tensors = {name: value for name, value in made.items() if name not in kinds}
        numbers = sum(value.numel() for value in tensors.values() if value.is_floating_point())
        return ProcessedImage(
            ids[0, first:last].numpy().astype(np.int64),
            np.empty(0, dtype=np.uint8),
            max(1, numbers // (3 * PATCH**2)),
            tensors=tensors,
            kinds={name: value[0, first:last].numpy().astype(np.int64) for name, value in kinds.items()},
        )

    def image_cost(self, max_pixels: int) -> int:
        """Tokens plus patches of the most costly of a few blank images with this area: measured, no proven bound."""
        if max_pixels not in self._costs:
            sides = [
                (math.sqrt(max_pixels * wide / high), math.sqrt(max_pixels * high / wide)) for wide, high in SHAPES
            ]
            blanks = [Image.new("RGB", (max(1, int(width)), max(1, int(height)))) for width, height in sides]
            made = [self.cut(blank, max_pixels) for blank in blanks]
            self._costs[max_pixels] = max(len(image.ids) + image.patches for image in made)
        return self._costs[max_pixels]

    # --- a batch -----------------------------------------------------------------------------------------------------

    def _extras(
        self, inputs: Sequence[PreparedInput], starts: Sequence[int], length: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """With images, what the processor gives beside token ids: of all images one after the other, padded with 0."""
        images = [cast(ProcessedImage, image) for item in inputs for image in item.images]
        if not images:
            return {}
        extras = {name: _stacked([image.tensors[name] for image in images]) for name in images[0].tensors}
        for name in images[0].kinds:
            rows = np.zeros((len(inputs), length), dtype=np.int64)
            for row, (item, start) in enumerate(zip(inputs, starts)):
                for place, image in zip(_places(item), item.images):
                    kinds = cast(ProcessedImage, image).kinds[name]
                    rows[row, start + place : start + place + len(kinds)] = kinds
            extras[name] = torch.from_numpy(rows)
        return {name: value.to(device) for name, value in extras.items()}

    def last_hidden_states(
        self, model: nn.Module, inputs: Sequence[PreparedInput], device: torch.device
    ) -> torch.Tensor:
        """As the base class, prompt by prompt: how a model treats padding is its own."""
        return torch.cat([super(Generic, self).last_hidden_states(model, [item], device) for item in inputs])

    def mean_hidden_states(
        self, model: nn.Module, inputs: Sequence[PreparedInput], device: torch.device, skipped: int = 0
    ) -> torch.Tensor:
        """As `last_hidden_states`."""
        return torch.cat([super(Generic, self).mean_hidden_states(model, [item], device, skipped) for item in inputs])

    # --- the model ---------------------------------------------------------------------------------------------------

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        """Every special token with which the processor writes an image."""
        return (*super().reserved_ids, *self._marks)

    def decoder(self, model: nn.Module) -> PreTrainedModel:
        """The text decoder inside a model of either class."""
        return cast(PreTrainedModel, self.base(model).get_decoder())


def generic_family(model_type: str) -> type[Generic]:
    """The class for models of a type that transformers reads as image-text-to-text.

    Raises:
        KeyError: it reads no such type.

    Example:
        >>> generic_family("llava").generation_class.__name__
        'LlavaForConditionalGeneration'
    """
    classes = {
        "model_class": getattr(transformers, _only(MODEL_MAPPING_NAMES[model_type])),
        "generation_class": getattr(transformers, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]),
    }
    return type(f"Generic_{model_type}", (Generic,), classes)


def _only(names: str | tuple[str, ...]) -> str:
    """The first class of a type for which transformers knows one or several."""
    return names if isinstance(names, str) else names[0]


def _says_kinds(name: str) -> bool:
    """Whether an argument says of every token what it is."""
    return name.endswith("token_type_ids")


def _places(item: PreparedInput) -> list[int]:
    """Where each image of a prompt begins."""
    places: list[int] = []
    after = 0
    for image in item.images:
        width = len(image.ids)
        while not np.array_equal(item.ids[after : after + width], image.ids):
            after += 1
        places.append(after)
        after += width
    return places


def _stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors one after the other; their other dimensions are filled up with zeros to the largest.

    Example:
        >>> _stacked([torch.ones(1, 2), torch.ones(1, 1)]).tolist()
        [[1.0, 1.0], [1.0, 0.0]]
    """
    shape = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts))]
    filled = []
    for part in parts:
        missing = [most - size for most, size in zip(shape, part.shape[1:])]
        filled.append(functional.pad(part, [number for more in reversed(missing) for number in (0, more)]))
    return torch.cat(filled)
