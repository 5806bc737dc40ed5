"""Mllama (Llama 3.2 Vision): one token a picture in the text, the picture itself read by cross attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import MllamaForConditionalGeneration, MllamaModel, PreTrainedModel
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    get_all_supported_aspect_ratios,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

from recbole_mm.llm.families.tiles import one_side, split_tiles
from recbole_mm.llm.family import CutImage, Family, PreparedInput

SPARE_ROWS = 8
"""Word embeddings beyond the vocabulary of the head: the image token's, and room for `[Cur_Item]`."""


@dataclass(frozen=True, kw_only=True)
class TiledImage(CutImage):
    """An image as tiles.

    Attributes:
        shape: which of the supported grids it fills, counted from 1.
    """

    shape: int


class CrossAttentionLayer(MllamaCrossAttentionDecoderLayer):
    """The layer with the same parameters, in which a row sees no other images than its own.

    transformers pads a batch with empty images up to the row that has the most. Words before a row's first image look
    at everything there is, padding included, and a row without images would too; so their states would depend on their
    batch mates.
    """

    tokens_per_image: int

    def forward(
        self,
        hidden_states: torch.Tensor,
        cross_attention_states: torch.Tensor,
        cross_attention_mask: torch.Tensor,
        attention_mask: torch.Tensor,
        full_text_row_masked_out_mask: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """As transformers' own; (B, L, hidden). The masks are (B, 1, L, vision tokens) and (B, 1, L, 1)."""
        reading: Any = full_text_row_masked_out_mask
        if reading is None:
            return super().forward(
                hidden_states, cross_attention_states, cross_attention_mask, attention_mask, reading, **kwargs
            )
        seen = ((cross_attention_mask == 0) & (reading != 0)).any(dim=2)
        own = seen.unflatten(-1, (-1, self.tokens_per_image)).any(dim=-1)  # (B, 1, images)
        others = ~own.repeat_interleave(self.tokens_per_image, dim=-1).unsqueeze(2)
        hidden = others & (reading == 0)
        mask = cross_attention_mask.masked_fill(hidden, torch.finfo(cross_attention_mask.dtype).min)
        output = super().forward(hidden_states, cross_attention_states, mask, attention_mask, reading, **kwargs)
        return torch.where(own.any(dim=-1, keepdim=True), output, hidden_states)


class Mllama(Family):
    """Inputs of a Llama 3.2 Vision checkpoint. `max_pixels` bounds the area of an image's tiles, of which one is least.

    The vision tower reads as many tiles as the checkpoint allows for every image, empty ones included, so a smaller
    bound saves nothing; it is there for images of which more would be a waste.
    """

    model_class = MllamaModel
    generation_class = MllamaForConditionalGeneration
    image_processor_class = MllamaImageProcessorPil
    placeholder = "<|image|>"
    images_are_vectors = False
    images_reach_back = True  # transformers' gate for words before an image is after the MLP, not the attention
    least_pixels = 1

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        self.bos_token_id = tokenizer.bos_token_id  # wanted whether or not the tokenizer itself puts one
        self.patch = one_side(config.vision_config.patch_size)
        self.tile = int(image_processor.size["height"])
        self.most = int(image_processor.max_image_tiles)
        self.max_pixels = self.most * self.tile**2
        self.patches_per_image = self.most * ((self.tile // self.patch) ** 2 + 1)

    def image_cost(self, max_pixels: int) -> int:
        """A token, and the patches of all tiles, filled or not."""
        return 1 + self.patches_per_image

    # --- one prompt --------------------------------------------------------------------------------------------------

    def _opened(self, laid: list[CutImage | np.ndarray]) -> list[CutImage | np.ndarray]:
        """BOS stands after the images that open a prompt, as transformers' processor puts it."""
        leading = next((place for place, part in enumerate(laid) if not isinstance(part, CutImage)), len(laid))
        return [*laid[:leading], *super()._opened(laid[leading:])]

    def cut(self, image: Image.Image, max_pixels: int) -> TiledImage:
        """Fit the image into the top left of the best grid of tiles."""
        width, height = image.size
        affordable = min(max(1, max_pixels // self.tile**2), self.most)
        canvas = get_optimal_tiled_canvas(height, width, affordable, self.tile)
        high, wide = (int(side) for side in canvas)
        fitted = get_image_size_fit_to_canvas(height, width, high, wide, self.tile)
        sheet = Image.new("RGB", (wide, high))
        sheet.paste(image.resize((int(fitted[1]), int(fitted[0])), self.resample))
        shape = get_all_supported_aspect_ratios(self.most).index((high // self.tile, wide // self.tile)) + 1
        ids = np.array([self.config.image_token_id], dtype=np.int64)
        return TiledImage(ids, split_tiles(sheet, self.tile), self.patches_per_image, shape=shape)

    # --- a batch -----------------------------------------------------------------------------------------------------

    def _extras(
        self, inputs: Sequence[PreparedInput], starts: Sequence[int], length: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """With images, I the most of any prompt, T tiles each.

        pixel_values (B, I, T, 3, tile, tile), aspect_ratio_ids (B, I), aspect_ratio_mask (B, I, T) and
        cross_attention_mask (B, L, I, T): which token looks at which tile.
        """
        images = max(len(item.images) for item in inputs)
        if images == 0:
            return {}
        shape = (len(inputs), images, self.most)
        pixels = torch.zeros(*shape, 3, self.tile, self.tile, device=device)
        shapes = torch.zeros(shape[:2], dtype=torch.int64)
        filled = torch.zeros(shape, dtype=torch.int64)
        filled[:, :, 0] = 1  # an empty image too has to have a tile that can be looked at
        looks = torch.zeros(len(inputs), length, images, self.most, dtype=torch.int64)
        for row, (item, start) in enumerate(zip(inputs, starts)):
            for place, (image, (first, after)) in enumerate(zip(item.images, self._reach(item))):
                assert isinstance(image, TiledImage)
                tiles = len(image.pixels)
                pixels[row, place, :tiles] = self._normalize(torch.from_numpy(image.pixels).to(device))
                shapes[row, place] = image.shape
                filled[row, place, :tiles] = 1
                looks[row, start + first : start + after, place, :tiles] = 1
        others = {"aspect_ratio_ids": shapes, "aspect_ratio_mask": filled, "cross_attention_mask": looks}
        return {"pixel_values": pixels, **{name: tensor.to(device) for name, tensor in others.items()}}

    def _reach(self, item: PreparedInput) -> list[tuple[int, int]]:
        """From where to before where each image is looked at: up to the next one; images side by side, together."""
        places = [int(place) for place in np.flatnonzero(item.ids == self.config.image_token_id)]
        reach = list(zip(places, [*places[1:], len(item.ids)]))
        after = len(item.ids)
        for index in reversed(range(len(reach))):
            first, last = reach[index]
            after = after if last == first + 1 else last
            reach[index] = (first, after)
        return reach

    def last_hidden_states(
        self, model: nn.Module, inputs: Sequence[PreparedInput], device: torch.device
    ) -> torch.Tensor:
        """As the base class, prompts with equally many images together: an empty image costs as much as a real one."""
        return self._by_images(inputs, lambda some: super(Mllama, self).last_hidden_states(model, some, device))

    def mean_hidden_states(
        self, model: nn.Module, inputs: Sequence[PreparedInput], device: torch.device, skipped: int = 0
    ) -> torch.Tensor:
        """As `last_hidden_states`."""
        return self._by_images(
            inputs, lambda some: super(Mllama, self).mean_hidden_states(model, some, device, skipped)
        )

    def _by_images(
        self, inputs: Sequence[PreparedInput], run: Callable[[list[PreparedInput]], torch.Tensor]
    ) -> torch.Tensor:
        counts = [len(item.images) for item in inputs]
        states: dict[int, torch.Tensor] = {}
        for count in sorted(set(counts)):
            rows = [row for row, images in enumerate(counts) if images == count]
            states |= zip(rows, run([inputs[row] for row in rows]))
        return torch.stack([states[row] for row in range(len(inputs))])

    # --- the model ---------------------------------------------------------------------------------------------------

    def layers_for_images(self, decoder: PreTrainedModel) -> list[nn.Module]:
        """The cross attention layers: transformers passes them by where there is nothing to look at."""
        return [layer for layer in decoder.layers if isinstance(layer, MllamaCrossAttentionDecoderLayer)]

    def speed_up(self, model: nn.Module) -> None:
        """Keep rows of a batch apart (see `CrossAttentionLayer`)."""
        for layer in self.layers_for_images(self.decoder(model)):
            layer.__class__ = CrossAttentionLayer
            cast(CrossAttentionLayer, layer).tokens_per_image = self.patches_per_image

    @classmethod
    def resize(cls, model: PreTrainedModel, rows: int) -> None:
        """As the base class; the head and the configured vocabulary stay smaller by the spare rows."""
        super().resize(model, rows)
        vocabulary = rows - SPARE_ROWS
        for holder in (model.config.get_text_config(), model, cast(Any, model).base_model):
            holder.vocab_size = vocabulary
        head = model.get_output_embeddings()
        if head is not None:
            head.weight = nn.Parameter(head.weight.detach()[:vocabulary].clone())
            head.out_features = vocabulary
