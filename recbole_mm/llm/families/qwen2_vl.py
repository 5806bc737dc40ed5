"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: patches at the picture's own resolution, 3-D positions (multimodal rope)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2VLForConditionalGeneration,
    Qwen2VLModel,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
)
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import rotate_half

from recbole_mm.llm.family import CutImage, Family, Part, PreparedInput

MAX_ASPECT_RATIO = 200  # more is refused by smart_resize


@dataclass(frozen=True, kw_only=True)
class PatchedImage(CutImage):
    """An image as patches.

    Attributes:
        pixels: (P, 3 * patch * patch) uint8, in the order the vision tower reads them.
        grid: (time, height, width) of the image in patches, their product P.
    """

    grid: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class PositionedInput(PreparedInput):
    """A prompt with the place of each token.

    Attributes:
        positions: (3, L) int64 rope positions: time, height, width.
    """

    positions: np.ndarray


class PatchProjection(nn.Conv3d):
    """A convolution whose kernel covers its whole input, computed as what it is: a matrix product.

    The same parameters under the same names; general convolution code is several times slower at this on CPUs.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(P, channels, frames, patch, patch) -> (P, width, 1, 1, 1)."""
        return functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


class Qwen2VL(Family):
    """Inputs of a Qwen2-VL checkpoint. `max_pixels` bounds the area of the resized image, which keeps its shape."""

    model_class = Qwen2VLModel
    generation_class = Qwen2VLForConditionalGeneration
    image_processor_class = Qwen2VLImageProcessorPil
    placeholder = "<|vision_start|><|image_pad|><|vision_end|>"

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(config, image_processor, tokenizer)
        self.patch = int(config.vision_config.patch_size)
        self.frames = int(config.vision_config.temporal_patch_size)
        self.merge = int(config.vision_config.spatial_merge_size)
        self.least_pixels = (self.patch * self.merge) ** 2  # one token
        self.min_pixels = int(image_processor.size["shortest_edge"])
        self.max_pixels = int(image_processor.size["longest_edge"])

    def speed_up(self, model: nn.Module) -> None:
        """Compute the patch embedding as a matrix product."""
        self.base(model).visual.patch_embed.proj.__class__ = PatchProjection

    def image_cost(self, max_pixels: int) -> int:
        """Tokens plus patches of an image of `max_pixels`, or of a small one that is enlarged to the least area."""
        largest = max_pixels // self.patch**2 + max_pixels // self.least_pixels + 2
        return max(largest, (1 + self.merge**2) * self._most_enlarged(max_pixels) + 2)

    def _most_enlarged(self, max_pixels: int) -> int:
        """Most tokens of an image that is enlarged to `min_pixels`: both of its sides are rounded up, beyond the bound.

        In tokens, the sides are x and y with x * y = area, and there are ceil(x) * ceil(y) of them. An exact side may
        come out a little above itself in floating point.
        """
        area = min(self.min_pixels, max_pixels) / self.least_pixels
        longest = math.sqrt(area * min(max_pixels / self.least_pixels, MAX_ASPECT_RATIO))
        rows = range(1, math.ceil(math.sqrt(area)) + 2)  # of the shorter side
        return max(count * math.ceil(min(longest, area / max(count - 1, 1e-9)) + 1e-6) for count in rows)

    # --- one prompt --------------------------------------------------------------------------------------------------

    def prepare(self, parts: Sequence[Part], max_pixels: int, continued: bool = False) -> PositionedInput:
        """As the base class; the tokens also get their 3-D positions.

        Text counts on in all three dimensions alike. An image token's position is its place in the image, counted from
        the image's first position; what follows goes on after the image's longer side.
        """
        ids: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        images: list[CutImage] = []
        following = 0
        for part in self._lay_out(parts, max_pixels, continued):
            if isinstance(part, PatchedImage):
                ids.append(part.ids)
                images.append(part)
                shown = self._places(part.grid)
                after = following + 2 + int(shown.max())
                positions += [_in_line(following, 1), following + 1 + shown, _in_line(after, 1)]
                following = after + 1
            elif isinstance(part, np.ndarray):
                ids.append(part)
                positions.append(_in_line(following, len(part)))
                following += len(part)
        return PositionedInput(np.concatenate(ids), tuple(images), positions=np.concatenate(positions, axis=1))

    def cut(self, image: Image.Image, max_pixels: int) -> PatchedImage:
        """Resize an RGB image and cut it into patches, block by block of merge x merge patches."""
        pixels, grid = self.patchify(image, max_pixels)
        shown = len(pixels) // self.merge**2
        ids = np.full(shown + 2, self.config.image_token_id, dtype=np.int64)
        ids[[0, -1]] = self.config.vision_start_token_id, self.config.vision_end_token_id
        return PatchedImage(ids, pixels, len(pixels), grid=grid)

    def patchify(self, image: Image.Image, max_pixels: int) -> tuple[np.ndarray, tuple[int, int, int]]:
        """Resize an RGB image and cut it into patches, block by block of merge x merge patches.

        Returns:
            (P, 3 * patch * patch) uint8 and the grid (1, rows, columns) with P = rows * columns. Kept as bytes: eight
            times smaller than what the vision tower reads; `collate` does the arithmetic for a whole batch.
        """
        width, height = image.size
        # A strip one token wide, as long as the bound allows; anything longer would break the bound.
        longest = min(max_pixels / self.least_pixels, MAX_ASPECT_RATIO)
        rows, columns = smart_resize(
            max(height, math.ceil(width / longest)),
            max(width, math.ceil(height / longest)),
            factor=self.patch * self.merge,
            min_pixels=min(self.min_pixels, max_pixels),
            max_pixels=max_pixels,
        )
        if (columns, rows) != image.size:
            image = image.resize((columns, rows), self.resample)
        high, wide = rows // self.patch, columns // self.patch
        blocks = np.asarray(image).reshape(
            high // self.merge, self.merge, self.patch, wide // self.merge, self.merge, self.patch, 3
        )
        patches = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(high * wide, 3 * self.patch * self.patch)
        return patches, (1, high, wide)

    # --- a batch -----------------------------------------------------------------------------------------------------

    def _extras(
        self, inputs: Sequence[PreparedInput], starts: Sequence[int], length: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """position_ids (3, B, L); with images, pixel_values (patches, numbers of each), image_grid_thw (images, 3)."""
        positions = np.zeros((3, len(inputs), length), dtype=np.int64)
        for row, (item, start) in enumerate(zip(inputs, starts)):
            assert isinstance(item, PositionedInput)
            positions[:, row, start : start + len(item.ids)] = item.positions
        extras = {"position_ids": torch.from_numpy(positions).to(device, non_blocking=True)}
        images = [image for item in inputs for image in item.images]
        return {**extras, **self._pixels(images, device)} if images else extras

    def _pixels(self, images: Sequence[CutImage], device: torch.device) -> dict[str, torch.Tensor]:
        """pixel_values (patches, numbers of each) and image_grid_thw (images, 3)."""
        raw = torch.from_numpy(np.concatenate([image.pixels for image in images])).to(device, non_blocking=True)
        grids = [image.grid for image in images if isinstance(image, PatchedImage)]
        return {"pixel_values": self._frames_of(raw), "image_grid_thw": torch.tensor(grids, device=device)}

    def last_hidden_states(
        self, model: nn.Module, inputs: Sequence[PreparedInput], device: torch.device
    ) -> torch.Tensor:
        """Run a batch; return (B, hidden), each prompt's last-layer hidden state at its last token, after the norm.

        The same numbers as the model's own forward, without what nobody reads: of the last layer, only the last token's
        query, output and MLP are computed.
        """
        base = self.base(model)
        decoder = base.language_model
        if getattr(decoder, "has_sliding_layers", False):
            return super().last_hidden_states(model, inputs, device)
        batch = self.collate(inputs, device)
        last = torch.tensor([len(item.ids) - 1 for item in inputs], device=device)
        hidden, shown, deeper = self._embed(base, batch)
        rope = decoder.rotary_emb(hidden, batch["position_ids"])
        mask = create_causal_mask(decoder.config, hidden, attention_mask=None, past_key_values=None)
        for index, layer in enumerate(decoder.layers[:-1]):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rope, use_cache=False)
            if index < len(deeper):
                added = hidden[shown.squeeze(-1)] + deeper[index].to(hidden.dtype)
                hidden = hidden.masked_scatter(shown, added)
        return decoder.norm(_last_token_of_layer(decoder.layers[-1], hidden, rope, last))

    def _embed(
        self, base: Any, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """What the decoder reads.

        Returns:
            (B, L, hidden) word embeddings with the vision tower's output in place of the image tokens; bool (B, L, 1),
            True at these; and (image tokens, hidden) for each of the first layers that adds something to them.
        """
        words = base.get_input_embeddings()(batch["input_ids"])
        shown = (batch["input_ids"] == self.config.image_token_id).unsqueeze(-1)
        if "pixel_values" not in batch:
            return words, shown, []
        images = base.get_image_features(batch["pixel_values"], batch["image_grid_thw"], return_dict=True)
        filled = words.masked_scatter(shown, torch.cat(images.pooler_output).to(words.dtype))
        return filled, shown, self._deeper(images)

    def _deeper(self, images: Any) -> list[torch.Tensor]:
        """Of the vision tower's output, what layers of the decoder add to image tokens: (image tokens, hidden) each."""
        return []

    def _frames_of(self, raw: torch.Tensor) -> torch.Tensor:
        """(P, 3 * area) bytes -> (P, 3 * frames * area) float32: rescaled, normalized, the still repeated as frames."""
        area = self.patch * self.patch
        colours = self._normalize(raw.view(-1, 3, self.patch, self.patch))
        return colours.view(-1, 3, 1, area).expand(-1, 3, self.frames, area).reshape(len(raw), -1)

    def _places(self, grid: tuple[int, int, int]) -> np.ndarray:
        """(3, tokens) of time, row and column of each image token, relative to the image's own corner."""
        time, high, wide = grid
        return np.indices((time, high // self.merge, wide // self.merge), dtype=np.int64).reshape(3, -1)


class Qwen2_5VL(Qwen2VL):
    """Inputs of a Qwen2.5-VL checkpoint: its vision tower looks through windows, its decoder is Qwen2-VL's."""

    model_class = Qwen2_5_VLModel
    generation_class = Qwen2_5_VLForConditionalGeneration


class Qwen3VL(Qwen2VL):
    """Inputs of a Qwen3-VL checkpoint: the first decoder layers, too, add what the vision tower saw to image tokens."""

    model_class = Qwen3VLModel
    generation_class = Qwen3VLForConditionalGeneration
    images_are_vectors = False

    def _deeper(self, images: Any) -> list[torch.Tensor]:
        return [torch.cat(list(layer)) for layer in images.deepstack_features]


def _in_line(start: int, count: int) -> np.ndarray:
    """(3, count) positions from `start` on, all three dimensions alike."""
    return np.broadcast_to(np.arange(start, start + count, dtype=np.int64), (3, count))


def _last_token_of_layer(
    layer: Any, hidden: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], last: torch.Tensor
) -> torch.Tensor:
    """A decoder layer's output at one position of each row: keys and values of all positions, the rest of one.

    Args:
        layer: a Qwen2-VL or Qwen3-VL decoder layer.
        hidden: (B, L, hidden) its input.
        rope: cosines and sines (B, L, head size).
        last: (B,) the position; it sees itself and what lies before it.

    Returns:
        (B, hidden).
    """
    attention = layer.self_attn
    batch, length, _ = hidden.shape
    rows = torch.arange(batch, device=hidden.device)
    heads = (batch, 1, -1, attention.head_dim)
    key_heads = (batch, length, -1, attention.head_dim)
    as_is = nn.Identity()  # Qwen3 normalizes queries and keys
    query_norm, key_norm = getattr(attention, "q_norm", as_is), getattr(attention, "k_norm", as_is)
    cosines, sines = (part.unsqueeze(1) for part in rope)
    normed = layer.input_layernorm(hidden)

    query = query_norm(attention.q_proj(normed[rows, last]).view(heads)).transpose(1, 2)
    query = query * cosines[rows, :, last].unsqueeze(2) + rotate_half(query) * sines[rows, :, last].unsqueeze(2)
    key = key_norm(attention.k_proj(normed).view(key_heads)).transpose(1, 2)
    key = key * cosines + rotate_half(key) * sines
    value = attention.v_proj(normed).view(key_heads).transpose(1, 2)
    seen = torch.arange(length, device=hidden.device) <= last[:, None]
    looked = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen[:, None, None, :], scale=attention.scaling, enable_gqa=True
    )
    output = hidden[rows, last] + attention.o_proj(looked.reshape(batch, -1))
    return output + layer.mlp(layer.post_attention_layernorm(output))
