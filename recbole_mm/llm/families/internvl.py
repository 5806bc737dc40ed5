"""InternVL 2.5 and 3 (`-hf` checkpoints): an image is a grid of square tiles and a thumbnail, each a run of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers import InternVLForConditionalGeneration, InternVLModel
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)

from recbole_mm.llm.families.tiles import TiledFamily, one_side, split_tiles
from recbole_mm.llm.family import CutImage


class InternVL(TiledFamily):
    """Inputs of an InternVL checkpoint.

    `max_pixels` bounds the area of all tiles together, thumbnail included. One tile is the least: below three, which is
    the least that a grid and its thumbnail need, an image is one tile.
    """

    model_class = InternVLModel
    generation_class = InternVLForConditionalGeneration
    image_processor_class = GotOcr2ImageProcessorPil
    placeholder = "<IMG_CONTEXT>"

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        vision = config.vision_config
        self.patch = one_side(vision.patch_size)
        self.tile = int(image_processor.size["height"])
        self.tokens_per_tile = round((self.tile // self.patch * config.downsample_ratio) ** 2)
        self.fewest, self.most = int(image_processor.min_patches), int(image_processor.max_patches)
        self.max_pixels = (self.most + 1) * self.tile**2
        self._around = [
            int(tokenizer.convert_tokens_to_ids(getattr(tokenizer, name, None) or usual))
            for name, usual in (("start_image_token", "<img>"), ("end_image_token", "</img>"))
        ]

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        """The image's token and the two around a run of them."""
        return (*super().reserved_ids, *self._around)

    def _grid_tiles(self, max_pixels: int) -> int:
        """How many tiles a grid may have under this bound, the thumbnail not counted."""
        affordable = max_pixels // self.tile**2
        return min(self.most, affordable - 1) if affordable >= 3 else 1

    def image_cost(self, max_pixels: int) -> int:
        """Tokens plus patches of a full grid and its thumbnail."""
        grid = self._grid_tiles(max_pixels)
        tiles = grid + 1 if grid > 1 else 1
        return tiles * (self.tokens_per_tile + self.patches_per_tile) + len(self._around)

    def cut(self, image: Image.Image, max_pixels: int) -> CutImage:
        """Stretch the image over the grid whose shape is nearest to its own; the thumbnail comes last."""
        width, height = image.size
        most = self._grid_tiles(max_pixels)
        columns, rows = get_optimal_tiled_canvas((height, width), (self.tile, self.tile), min(self.fewest, most), most)
        tiles = split_tiles(image.resize((columns * self.tile, rows * self.tile), self.resample), self.tile)
        if len(tiles) > 1:
            thumbnail = split_tiles(image.resize((self.tile, self.tile), self.resample), self.tile)
            tiles = np.concatenate([tiles, thumbnail])
        ids = np.full(len(tiles) * self.tokens_per_tile + 2, self.config.image_token_id, dtype=np.int64)
        ids[[0, -1]] = self._around
        return CutImage(ids, tiles, len(tiles) * self.patches_per_tile)
