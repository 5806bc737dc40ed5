"""How an item becomes the input of a Qwen2-VL model: tokens, image patches and 3-D positions, one item at a time.

This is all that differs between families of multimodal LLMs as far as encoding is concerned. transformers' own
processor is not used: it cannot be built without torchvision (it wants a video processor), and it does per batch what
is done here per item, in threads, while the model is busy.
"""

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
from transformers import PreTrainedModel, Qwen2VLConfig, Qwen2VLModel
from transformers.masking_utils import create_causal_mask
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import rotate_half

MAX_ASPECT_RATIO = 200  # more is refused by smart_resize


@dataclass(frozen=True)
class PreparedItem:
    """One item, ready for a batch.

    Attributes:
        ids: (L,) int64 token ids.
        positions: (3, L) int64 rope positions: time, height, width.
        pixels: (P, 3 * patch * patch) uint8 image patches in the order the vision tower reads them, or None.
        grid: (time, height, width) of the image in patches, or None.
    """

    ids: np.ndarray
    positions: np.ndarray
    pixels: np.ndarray | None
    grid: tuple[int, int, int] | None

    @property
    def patches(self) -> int:
        return 0 if self.pixels is None else len(self.pixels)


class PatchProjection(nn.Conv3d):
    """A convolution whose kernel covers its whole input, computed as what it is: a matrix product.

    The same parameters under the same names; general convolution code is several times slower at this on CPUs.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(P, channels, frames, patch, patch) -> (P, width, 1, 1, 1)."""
        return functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)[..., None, None, None]


class Qwen2VLInputs:
    """Builds model inputs for one Qwen2-VL checkpoint. Its methods are safe to call from several threads.

    Args:
        config: the model's configuration: special token ids, sizes.
        image_processor: the checkpoint's own image settings: size limits, mean, standard deviation.
        pad_token_id: what fills a short row of a batch; never seen by the model's real tokens.
    """

    model_class = Qwen2VLModel
    image_processor_class = Qwen2VLImageProcessorPil

    def __init__(self, config: Qwen2VLConfig, image_processor: Qwen2VLImageProcessorPil, pad_token_id: int) -> None:
        self.config = config
        self.patch = int(config.vision_config.patch_size)
        self.frames = int(config.vision_config.temporal_patch_size)
        self.merge = int(config.vision_config.spatial_merge_size)
        self.pad_token_id = pad_token_id
        self.min_pixels = int(image_processor.size["shortest_edge"])
        self.max_pixels = int(image_processor.size["longest_edge"])
        self.resample = Image.Resampling(int(image_processor.resample))
        mean = torch.tensor(image_processor.image_mean, dtype=torch.float64)
        std = torch.tensor(image_processor.image_std, dtype=torch.float64)
        self._scale = (image_processor.rescale_factor / std).to(torch.float32)
        self._shift = (-mean / std).to(torch.float32)

    @staticmethod
    def speed_up(model: PreTrainedModel) -> None:
        """Make a loaded model faster without changing what it computes or what it is saved as."""
        model.visual.patch_embed.proj.__class__ = PatchProjection

    @property
    def least_pixels(self) -> int:
        """The smallest image the vision tower can read: one token."""
        return (self.patch * self.merge) ** 2

    def prepare(self, image: Image.Image | None, words: Sequence[int], max_pixels: int) -> PreparedItem:
        """Lay out one item: the image, then the words.

        Args:
            image: RGB picture, or None.
            words: token ids of everything behind the image; the last one is where the item's vector is read.
            max_pixels: bound on the resized image's area.
        """
        if image is None:
            ids = np.array(words, dtype=np.int64)
            positions = np.broadcast_to(np.arange(len(ids), dtype=np.int64), (3, len(ids)))
            return PreparedItem(ids, positions, None, None)
        pixels, grid = self.patchify(image, max_pixels)
        shown = self._image_tokens(grid)
        ids = np.concatenate(
            [
                np.array([self.config.vision_start_token_id], dtype=np.int64),
                np.full(shown.shape[1], self.config.image_token_id, dtype=np.int64),
                np.array([self.config.vision_end_token_id, *words], dtype=np.int64),
            ]
        )
        return PreparedItem(ids, self._positions(shown, len(ids)), pixels, grid)

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

    def collate(self, items: Sequence[PreparedItem], device: torch.device) -> dict[str, torch.Tensor]:
        """Make the keyword arguments of the model for a batch of B items, L = the longest one.

        Rows are padded on the right and there is no attention mask: attention is causal, so no real token can see the
        padding behind it, and the vectors are those of each item alone.

        Returns:
            input_ids (B, L); position_ids (3, B, L); and, where any item has an image, pixel_values (all patches,
            numbers per patch) float32 and image_grid_thw (images, 3).
        """
        length = max(len(item.ids) for item in items)
        ids = np.full((len(items), length), self.pad_token_id, dtype=np.int64)
        positions = np.zeros((3, len(items), length), dtype=np.int64)
        for row, item in enumerate(items):
            ids[row, : len(item.ids)] = item.ids
            positions[:, row, : len(item.ids)] = item.positions
        inputs = {
            "input_ids": torch.from_numpy(ids).to(device, non_blocking=True),
            "position_ids": torch.from_numpy(positions).to(device, non_blocking=True),
        }
        pixels = [item.pixels for item in items if item.pixels is not None]
        if pixels:
            raw = torch.from_numpy(np.concatenate(pixels)).to(device, non_blocking=True)
            inputs["pixel_values"] = self._normalize(raw)
            grids = [item.grid for item in items if item.grid is not None]
            inputs["image_grid_thw"] = torch.tensor(grids, dtype=torch.int64, device=device)
        return inputs

    def last_hidden_states(
        self, model: PreTrainedModel, items: Sequence[PreparedItem], device: torch.device
    ) -> torch.Tensor:
        """Run a batch; return (B, hidden), each item's last-layer hidden state at its last token, after the final norm.

        The same numbers as the model's own forward, without what nobody reads: of the last layer, only the last token's
        query, output and MLP are computed.
        """
        inputs = self.collate(items, device)
        last = torch.tensor([len(item.ids) - 1 for item in items], device=device)
        decoder = model.language_model
        if decoder.has_sliding_layers:
            states = model(**inputs, use_cache=False).last_hidden_state
            return states[torch.arange(len(items), device=device), last]
        hidden = self._embed(model, inputs)
        rope = decoder.rotary_emb(hidden, inputs["position_ids"])
        mask = create_causal_mask(decoder.config, hidden, attention_mask=None, past_key_values=None)
        for layer in decoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rope, use_cache=False)
        return decoder.norm(_last_token_of_layer(decoder.layers[-1], hidden, rope, last))

    def _embed(self, model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """(B, L, hidden) word embeddings with the vision tower's output in place of the image tokens."""
        words = model.get_input_embeddings()(inputs["input_ids"])
        if "pixel_values" not in inputs:
            return words
        images = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True)
        shown = (inputs["input_ids"] == self.config.image_token_id).unsqueeze(-1)
        return words.masked_scatter(shown, torch.cat(images.pooler_output).to(words.dtype))

    def _normalize(self, raw: torch.Tensor) -> torch.Tensor:
        """(P, 3 * area) bytes -> (P, 3 * frames * area) float32: rescaled, normalized, the still repeated as frames."""
        area = self.patch * self.patch
        colors = raw.view(-1, 3, 1, area).to(torch.float32)
        scale, shift = (values.to(raw.device).view(1, 3, 1, 1) for values in (self._scale, self._shift))
        return colors.mul_(scale).add_(shift).expand(-1, 3, self.frames, area).reshape(len(raw), -1)

    def _image_tokens(self, grid: tuple[int, int, int]) -> np.ndarray:
        """(3, tokens) of time, row and column of each image token, relative to the image's own corner."""
        time, high, wide = grid
        return np.indices((time, high // self.merge, wide // self.merge), dtype=np.int64).reshape(3, -1)

    def _positions(self, shown: np.ndarray, length: int) -> np.ndarray:
        """(3, length) rope positions of: one token, an image, plain tokens up to `length`.

        An image token's position is its place in the image, counted from the image's first position; the text goes on
        behind the image's longer side (Qwen2-VL's multimodal rope).
        """
        first, after = 1, 1 + shown.shape[1]
        positions = np.zeros((3, length), dtype=np.int64)
        positions[:, first:after] = first + shown
        resume = first + int(shown.max()) + 1
        positions[:, after:] = np.arange(resume, resume + length - after)
        return positions


def _last_token_of_layer(
    layer: Any, hidden: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], last: torch.Tensor
) -> torch.Tensor:
    """A decoder layer's output at one position of each row: keys and values of all positions, the rest of one.

    Args:
        layer: a Qwen2-VL decoder layer.
        hidden: (B, L, hidden) its input.
        rope: cosines and sines (B, L, head size).
        last: (B,) the position; it sees itself and what lies before it.

    Returns:
        (B, hidden).
    """
    attention = layer.self_attn
    batch, length, _ = hidden.shape
    rows = torch.arange(batch, device=hidden.device)
    heads = (batch, -1, attention.num_heads, attention.head_dim)
    key_heads = (batch, -1, attention.num_key_value_heads, attention.head_dim)
    cosines, sines = (part.unsqueeze(1) for part in rope)
    normed = layer.input_layernorm(hidden)

    query = attention.q_proj(normed[rows, last]).view(heads).transpose(1, 2)
    query = query * cosines[rows, :, last].unsqueeze(2) + rotate_half(query) * sines[rows, :, last].unsqueeze(2)
    key = attention.k_proj(normed).view(key_heads).transpose(1, 2)
    key = key * cosines + rotate_half(key) * sines
    value = attention.v_proj(normed).view(key_heads).transpose(1, 2)
    seen = torch.arange(length, device=hidden.device) <= last[:, None]
    looked = functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen[:, None, None, :], scale=attention.scaling, enable_gqa=True
    )
    output = hidden[rows, last] + attention.o_proj(looked.reshape(batch, -1))
    return output + layer.mlp(layer.post_attention_layernorm(output))
