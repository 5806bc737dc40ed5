"""LLaVA-NeXT (1.6): an image is an overview tile and a grid of tiles, whose padding leaves no tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import LlavaNextForConditionalGeneration, LlavaNextModel
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from recbole_mm.llm.families.tiles import TiledFamily, one_side, split_tiles
from recbole_mm.llm.family import CutImage, PreparedInput


@dataclass(frozen=True, kw_only=True)
class SizedImage(CutImage):
    """An image as tiles.

    Attributes:
        size: (height, width) before it was fitted to the grid, from which the model works out the same grid.
    """

    size: tuple[int, int]


class LlavaNext(TiledFamily):
    """Inputs of a LLaVA-NeXT checkpoint.

    An image whose grid would be larger than `max_pixels` is shrunk to that area first, though never below one tile's,
    and gets the grid of an image of that size. The overview tile is not counted.
    """

    model_class: ClassVar[Any] = LlavaNextModel
    generation_class: ClassVar[Any] = LlavaNextForConditionalGeneration
    image_processor_class: ClassVar[Any] = LlavaNextImageProcessorPil
    placeholder = "<image>"

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        self.patch = one_side(config.vision_config.patch_size)
        self.tile = one_side(config.vision_config.image_size)
        self.grids = [[int(side) for side in pair] for pair in config.image_grid_pinpoints]
        self.max_pixels = max(height * width for height, width in self.grids)

    def image_cost(self, max_pixels: int) -> int:
        """Tokens plus patches of the largest grid with its overview; one token a patch, and one after each row."""
        return max(
            2 * (self.patches_per_tile + height * width // self.patch**2) + height // self.patch
            for height, width in self.grids
        )

    def cut(self, image: Image.Image, max_pixels: int) -> SizedImage:
        """The overview, stretched to one tile, then the image fitted into the middle of its grid."""
        image, (height, width) = self._choose_grid(image, max_pixels)
        columns, rows = image.size
        if width / columns < height / rows:
            fitted = (width, min(math.ceil(rows * (width / columns)), height))
        else:
            fitted = (min(math.ceil(columns * (height / rows)), width), height)
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image.resize(fitted, self.resample), ((width - fitted[0]) // 2, (height - fitted[1]) // 2))
        overview = image.resize((self.tile, self.tile), self.resample)
        tiles = np.concatenate([split_tiles(overview, self.tile), split_tiles(canvas, self.tile)])
        tokens = self.patches_per_tile + self._grid_tokens((rows, columns), (height, width))
        ids = np.full(tokens, self.config.image_token_id, dtype=np.int64)
        return SizedImage(ids, tiles, len(tiles) * self.patches_per_tile, size=(rows, columns))

    def _choose_grid(self, image: Image.Image, max_pixels: int) -> tuple[Image.Image, tuple[int, int]]:
        """The image, shrunk if the bound asks for it, and (height, width) of its grid in pixels."""
        columns, rows = image.size
        height, width = select_best_resolution((rows, columns), self.grids)
        bound = max(max_pixels, self.tile**2)
        if height * width > bound and rows * columns > bound:
            scale = math.sqrt(bound / (rows * columns))
            columns, rows = (max(1, math.floor(side * scale)) for side in (columns, rows))
            image = image.resize((columns, rows), self.resample)
            height, width = select_best_resolution((rows, columns), self.grids)
        return image, (height, width)

    def _grid_tokens(self, size: tuple[int, int], grid: tuple[int, int]) -> int:
        """Tokens of the grid: a token for each patch that is not padding, and one after each row.

        Args:
            size: (height, width) of the image.
            grid: (height, width) of its grid in pixels.
        """
        high, wide = self._without_padding(size, grid)
        return high * (wide + 1)

    def _without_padding(self, size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of the grid that hold the image; arguments as of `_grid_tokens`."""
        side = self.tile // self.patch
        (height, width), (high, wide) = size, (length // self.tile * side for length in grid)
        if width / height > wide / high:
            filled = int(round(height * (wide / width), 7))
            high -= (high - filled) // 2 * 2
        else:
            filled = int(round(width * (high / height), 7))
            wide -= (wide - filled) // 2 * 2
        return high, wide

    def _extras(
        self, inputs: Sequence[PreparedInput], starts: Sequence[int], length: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """With images, pixel_values (tiles, 3, tile, tile) of all images in order and image_sizes (images, 2)."""
        extras = super()._extras(inputs, starts, length, device)
        sizes = [image.size for item in inputs for image in item.images if isinstance(image, SizedImage)]
        return {**extras, "image_sizes": torch.tensor(sizes, device=device)} if sizes else extras
