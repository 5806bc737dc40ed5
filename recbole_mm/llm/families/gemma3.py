"""Gemma 3: an image is one square and a fixed number of tokens, which see each other in both directions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from transformers import Gemma3ForConditionalGeneration, Gemma3Model
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from recbole_mm.llm.decoder import as_attention_wants, sliding_window
from recbole_mm.llm.families.tiles import TiledFamily, one_side, split_tiles
from recbole_mm.llm.family import CutImage, PreparedInput


class Gemma3(TiledFamily):
    """Inputs of a Gemma 3 checkpoint. Every image costs the same; no bound on its area changes that.

    Close-ups of long images ("pan and scan"), which are off in published checkpoints, are not made.
    """

    model_class = Gemma3Model
    generation_class = Gemma3ForConditionalGeneration
    image_processor_class = Gemma3ImageProcessorPil
    placeholder = "<start_of_image>"
    images_look_ahead = True

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        self.patch = one_side(config.vision_config.patch_size)
        self.tile = int(image_processor.size["height"])
        self.max_pixels = self.tile**2
        blank = tokenizer("\n\n", add_special_tokens=False)["input_ids"]
        shown = [int(config.image_token_id)] * int(config.mm_tokens_per_image)
        around = (int(config.boi_token_id), int(config.eoi_token_id))
        self._ids = np.array([*blank, around[0], *shown, around[1], *blank], dtype=np.int64)
        self._around = around

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        """The image's token and the two around a run of them."""
        return (*super().reserved_ids, *self._around)

    def image_cost(self, max_pixels: int) -> int:
        """Tokens plus patches of any image."""
        return len(self._ids) + self.patches_per_tile

    def cut(self, image: Image.Image, max_pixels: int) -> CutImage:
        """Stretch the image over the square."""
        square = image.resize((self.tile, self.tile), self.resample)
        return CutImage(self._ids.copy(), split_tiles(square, self.tile), self.patches_per_tile)

    def _extras(
        self, inputs: Sequence[PreparedInput], starts: Sequence[int], length: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """With images, pixel_values (images, 3, tile, tile) and token_type_ids (B, L), 1 at the tokens of images."""
        extras = super()._extras(inputs, starts, length, device)
        if not extras:
            return extras
        kinds = np.zeros((len(inputs), length), dtype=np.int64)
        for row, (item, start) in enumerate(zip(inputs, starts)):
            kinds[row, start : start + len(item.ids)] = item.ids == self.config.image_token_id
        return {**extras, "token_type_ids": torch.from_numpy(kinds).to(device, non_blocking=True)}

    def _pixels(self, images: Sequence[CutImage], device: torch.device) -> dict[str, torch.Tensor]:
        """pixel_values (images, 3, tile, tile)."""
        return super()._extras([PreparedInput(image.ids, (image,)) for image in images], [], 0, device)

    def masked(
        self, batch: dict[str, torch.Tensor], seen: torch.Tensor, dtype: torch.dtype, implementation: str
    ) -> dict[str, Any]:
        """As the base class; an image's tokens see each other, and layers that look at what is near see no farther."""
        rest = {name: value for name, value in batch.items() if name != "token_type_ids"}
        shown = batch["input_ids"] == self.config.image_token_id
        begins = shown & ~functional.pad(shown, (1, 0))[:, :-1]
        image = torch.where(shown, begins.cumsum(1), 0)
        same = (image[:, :, None] == image[:, None, :]) & shown[:, :, None]
        full = seen | same[:, None]
        places = torch.arange(shown.shape[1], device=shown.device)
        window = sliding_window(self.config.get_text_config())
        near = full if window is None else full & (places[:, None] - places < window)
        masks = {"full_attention": full, "sliding_attention": near}
        made = {name: as_attention_wants(mask, dtype, implementation) for name, mask in masks.items()}
        return {**rest, "attention_mask": made}
