"""DeepSeek-VL (the 1.3B kind, one SigLIP tower): an image is one square, padded on its shorter side."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers import DeepseekVLForConditionalGeneration, DeepseekVLModel
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil

from recbole_mm.llm.families.tiles import TiledFamily, one_side, split_tiles
from recbole_mm.llm.family import CutImage


class DeepseekVL(TiledFamily):
    """Inputs of a DeepSeek-VL checkpoint. Every image costs the same; no bound on its area changes that."""

    model_class = DeepseekVLModel
    generation_class = DeepseekVLForConditionalGeneration
    image_processor_class = DeepseekVLImageProcessorPil
    placeholder = "<image_placeholder>"

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        self.patch = one_side(config.vision_config.patch_size)
        self.tile = int(image_processor.size["height"])
        self.max_pixels = self.tile**2
        self.min_side = int(image_processor.min_size)
        self.background = tuple(image_processor.background_color)

    def image_cost(self, max_pixels: int) -> int:
        """Tokens plus patches of any image: one token a patch."""
        return 2 * self.patches_per_tile

    def cut(self, image: Image.Image, max_pixels: int) -> CutImage:
        """Fit the image into the square and centre it on the mean colour."""
        scale = self.tile / max(image.size)
        width, height = (max(round(side * scale), self.min_side) for side in image.size)
        square = Image.new("RGB", (self.tile, self.tile), self.background)
        square.paste(
            image.resize((width, height), self.resample), ((self.tile - width) // 2, (self.tile - height) // 2)
        )
        ids = np.full(self.patches_per_tile, self.config.image_token_id, dtype=np.int64)
        return CutImage(ids, split_tiles(square, self.tile), self.patches_per_tile)
