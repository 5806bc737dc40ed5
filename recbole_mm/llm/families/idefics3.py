"""Idefics3 and SmolVLM: an image is a grid of square tiles, each a run of tokens with its row and column before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    Idefics3ForConditionalGeneration,
    Idefics3Model,
    PreTrainedModel,
    SmolVLMForConditionalGeneration,
    SmolVLMModel,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from recbole_mm.llm.families.tiles import TiledFamily, one_side, split_tiles
from recbole_mm.llm.family import CutImage, PreparedInput

AROUND, SHOWN, OVERVIEW = "<fake_token_around_image>", "<image>", "<global-img>"
LARGEST_SIDE = 4096  # no image is enlarged beyond


class Idefics3(TiledFamily):
    """Inputs of an Idefics3 checkpoint.

    `max_pixels` bounds the area of all tiles together, the overview included: an image gets the largest grid that fits,
    which may be a single tile.
    """

    model_class: ClassVar[Any] = Idefics3Model
    generation_class: ClassVar[Any] = Idefics3ForConditionalGeneration
    image_processor_class: ClassVar[Any] = Idefics3ImageProcessorPil
    placeholder = SHOWN

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        vision = config.vision_config
        self.patch = one_side(vision.patch_size)
        self.tile = int(image_processor.max_image_size["longest_edge"])
        self.longest = min(int(image_processor.size["longest_edge"]), LARGEST_SIDE)
        self.splits = bool(image_processor.do_image_splitting)
        self.most = math.ceil(self.longest / self.tile) if self.splits else 1
        self.tokens_per_tile = int((self.tile // self.patch) ** 2 / config.scale_factor**2)
        self.max_pixels = (self.most**2 + 1 if self.most > 1 else 1) * self.tile**2
        names = [f"<row_{row + 1}_col_{column + 1}>" for row in range(self.most) for column in range(self.most)]
        self._marks = {
            text: list(tokenizer(text, add_special_tokens=False)["input_ids"])
            for text in (AROUND, OVERVIEW, "\n", "\n\n", *names)
        }

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        """The image's token and those that say where a tile lies."""
        marks = (ids[0] for text, ids in self._marks.items() if len(ids) == 1 and text.startswith("<"))
        return (*super().reserved_ids, *marks)

    def decoder(self, model: nn.Module) -> PreTrainedModel:
        """The text decoder inside a model of either class."""
        return cast(PreTrainedModel, self.base(model).text_model)

    def image_cost(self, max_pixels: int) -> int:
        """Tokens plus patches of a full grid and its overview."""
        tiles = min(max(1, max_pixels // self.tile**2), self.max_pixels // self.tile**2)
        longest = max(len(ids) for ids in self._marks.values())
        around = len(self._marks[AROUND]) + longest
        return tiles * (self.tokens_per_tile + self.patches_per_tile + around) + (self.most + 3) * longest

    # --- one prompt --------------------------------------------------------------------------------------------------

    def cut(self, image: Image.Image, max_pixels: int) -> CutImage:
        """Stretch the image over its grid, row by row; the overview of one tile comes last."""
        fitted, (rows, columns) = self._fit(image, max_pixels)
        overview = fitted.resize((self.tile, self.tile), self.resample)
        tiles = split_tiles(overview, self.tile)
        if rows * columns > 1:
            tiles = np.concatenate([split_tiles(fitted, self.tile), tiles])
        return CutImage(self._tokens(rows, columns), tiles, len(tiles) * self.patches_per_tile)

    def _fit(self, image: Image.Image, max_pixels: int) -> tuple[Image.Image, tuple[int, int]]:
        """The image, resized as transformers does in two steps, and (rows, columns) of its grid of tiles."""
        if not self.splits:
            return self._resized(image, _longest_side(image.size, self.longest)), (1, 1)
        for most in range(self.most, 0, -1):
            first = _longest_side(image.size, self.longest if most == self.most else most * self.tile)
            width, height = self._multiples(first)
            rows, columns = height // self.tile, width // self.tile
            if most == 1 or (rows * columns + 1) * self.tile**2 <= max_pixels:
                break
        return self._resized(self._resized(image, first), (width, height)), (rows, columns)

    def _resized(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        return image.resize(size, self.resample)

    def _multiples(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) with the longer side rounded up to whole tiles, then the other after it."""
        width, height = size
        shape = width / height
        if width >= height:
            width = self._whole(width)
            return width, self._whole(int(width / shape))
        height = self._whole(height)
        return self._whole(int(height * shape)), height

    def _whole(self, side: int) -> int:
        return math.ceil(side / self.tile) * self.tile

    def _tokens(self, rows: int, columns: int) -> np.ndarray:
        """(T,) int64 tokens of a grid and its overview, or of an image that is one tile."""
        shown = [int(self.config.image_token_id)] * self.tokens_per_tile
        around = self._marks[AROUND]
        ids: list[int] = []
        if rows * columns > 1:
            for row in range(1, rows + 1):
                for column in range(1, columns + 1):
                    ids += [*around, *self._marks[f"<row_{row}_col_{column}>"], *shown]
                ids += self._marks["\n" if row < rows else "\n\n"]
        ids += [*around, *self._marks[OVERVIEW], *shown, *around]
        return np.array(ids, dtype=np.int64)

    # --- a batch -----------------------------------------------------------------------------------------------------

    def _extras(
        self, inputs: Sequence[PreparedInput], starts: Sequence[int], length: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """With images, pixel_values (1, tiles, 3, tile, tile): the model only looks at their order."""
        return {name: value[None] for name, value in super()._extras(inputs, starts, length, device).items()}


class SmolVLM(Idefics3):
    """Inputs of a SmolVLM checkpoint, which is an Idefics3 with classes of its own."""

    model_class = SmolVLMModel
    generation_class = SmolVLMForConditionalGeneration
    image_processor_class = SmolVLMImageProcessorPil


def _longest_side(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(width, height) scaled until the longer one is `longest` and the other, if odd, one more.

    Example:
        >>> _longest_side((100, 50), 64), _longest_side((3, 100), 64)
        ((64, 32), (2, 64))
    """
    width, height = size
    shape = width / height
    if width >= height:
        other = int(longest / shape)
        return longest, max(other + other % 2, 1)
    other = int(longest * shape)
    return max(other + other % 2, 1), longest
