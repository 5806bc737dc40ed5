"""LLaVA-OneVision: as LLaVA-NeXT, with larger grids, whose tokens are thinned out above a bound."""

from __future__ import annotations

import math
from typing import Any

from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionModel
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from recbole_mm.llm.families.llava_next import LlavaNext

TOLERANCE = 1.1
"""A grid that is larger than its bound by less than this factor, in each dimension, stays as it is."""


class LlavaOnevision(LlavaNext):
    """Inputs of a LLaVA-OneVision checkpoint: `max_pixels` as for LLaVA-NeXT.

    Every image of a prompt gets a grid, as transformers does with a flat list of images.
    """

    model_class = LlavaOnevisionModel
    generation_class = LlavaOnevisionForConditionalGeneration
    image_processor_class = LlavaOnevisionImageProcessorPil

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        self.most_tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))

    def image_cost(self, max_pixels: int) -> int:
        """Tokens plus patches of the largest grid with its overview; one token a patch, and one after each row."""
        most = math.ceil(TOLERANCE**2 * self.most_tiles * self.patches_per_tile)
        grids = [(height // self.tile, width // self.tile) for height, width in self.grids]
        side = self.tile // self.patch
        return max(
            (2 + rows * columns) * self.patches_per_tile
            + min(rows * columns * self.patches_per_tile, most)
            + rows * side
            for rows, columns in grids
        )

    def _grid_tokens(self, size: tuple[int, int], grid: tuple[int, int]) -> int:
        """As in LLaVA-NeXT, after thinning out."""
        high, wide = self._without_padding(size, grid)
        ratio = math.sqrt(high * wide / (self.most_tiles * self.patches_per_tile))
        if ratio > TOLERANCE:
            high, wide = int(high // ratio), int(wide // ratio)
        return high * (wide + 1)
