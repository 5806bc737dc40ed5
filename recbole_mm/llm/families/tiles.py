"""What families have in common whose vision tower reads square tiles of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from recbole_mm.llm.family import Family, PreparedInput


class TiledFamily(Family):
    """Images are stacks of tiles, which a batch simply concatenates.

    Attributes:
        tile: side of a tile in pixels. The least an image can cost is one tile, whatever the bound on its area.
    """

    tile: int
    least_pixels = 1

    @property
    def patches_per_tile(self) -> int:
        """Patches that the vision tower reads of one tile."""
        return (self.tile // self.patch) ** 2

    def _extras(
        self, inputs: Sequence[PreparedInput], starts: Sequence[int], length: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """With images, pixel_values (tiles, 3, tile, tile) of all images in order."""
        tiles = [image.pixels for item in inputs for image in item.images]
        if not tiles:
            return {}
        raw = torch.from_numpy(np.concatenate(tiles)).to(device, non_blocking=True)
        return {"pixel_values": self._normalize(raw)}


def split_tiles(image: Image.Image, tile: int) -> np.ndarray:
    """Cut an RGB image, whose sides are multiples of `tile`, into (tiles, 3, tile, tile) uint8, row by row.

    Example:
        >>> split_tiles(Image.new("RGB", (4, 2)), 2).shape
        (2, 3, 2, 2)
    """
    width, height = image.size
    blocks = np.asarray(image).reshape(height // tile, tile, width // tile, tile, 3)
    return np.ascontiguousarray(blocks.transpose(0, 2, 4, 1, 3)).reshape(-1, 3, tile, tile)


def one_side(size: Any) -> int:
    """A side length that some configurations give as a pair."""
    return int(size[0] if isinstance(size, Sequence) else size)
