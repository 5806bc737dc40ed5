"""What differs between families of LLMs: how a prompt of images and words, or of words alone, becomes a model's input.

One subclass per family, in `recbole_mm/llm/families/`. transformers' own processors are not used: some cannot be built
without torchvision, they work on whole batches of strings, and they find images by looking for words in a text that
anybody may have written. Here a prompt is a list of parts, token ids and pictures, prepared one at a time in threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from recbole_mm.errors import ConfigError
from recbole_mm.llm.decoder import as_attention_wants, logits_after
from recbole_mm.llm.tokens import Side, opening_token, pad_ids


@dataclass(frozen=True)
class CutImage:
    """One image, ready for the vision tower.

    Attributes:
        ids: (T,) int64 token ids that stand for it in the prompt, with what the family puts around them.
        pixels: uint8, kept as bytes (four times smaller than what the vision tower reads); the shape is the family's.
        patches: how many patches the vision tower reads, for batching.
    """

    ids: np.ndarray
    pixels: np.ndarray
    patches: int


Part = Image.Image | CutImage | Sequence[int]
"""A piece of a prompt: an RGB picture, what `Family.cut` made of one, or token ids."""


@dataclass(frozen=True)
class PreparedInput:
    """One prompt, ready for a batch.

    Attributes:
        ids: (L,) int64 token ids, those that stand for images included.
        images: its images in reading order.
    """

    ids: np.ndarray
    images: tuple[CutImage, ...] = ()

    @property
    def patches(self) -> int:
        """Image patches of the whole prompt: what its images cost."""
        return sum(image.patches for image in self.images)


class Family(ABC):
    """Builds and runs the inputs of one checkpoint. `prepare` may be called from several threads.

    Args:
        config: the model's configuration.
        image_processor: the checkpoint's own image settings; None for a text LLM.
        tokenizer: the checkpoint's tokenizer: whether a prompt opens with a BOS token, and what pads a short row.

    Attributes:
        patch: side of a square patch of the vision tower, in pixels.
        least_pixels: bound on an image's area below which the vision tower cannot go.
        max_pixels: the checkpoint's own bound on an image's area.
        pad_token_id: what fills a short row of a batch; never seen by the model's real tokens.
        bos_token_id: what opens a prompt, or None.
        placeholder: how an image is written in the text of the checkpoint's chat template; None without images.
        reads_images: whether prompts may hold images.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    generation_class: ClassVar[type[PreTrainedModel]]
    image_processor_class: ClassVar[Any]
    placeholder: str | None
    reads_images: ClassVar[bool] = True
    images_reach_back: ClassVar[bool] = False
    """Whether words look at an image that comes after them: then no beginning of a prompt is the same before two."""
    images_look_ahead: ClassVar[bool] = False
    """Whether an image's tokens look at those after them in the same image, which a causal mask would hide."""
    images_are_vectors: ClassVar[bool] = True
    """Whether all that a decoder takes of an image is what `image_vectors` gives, in place of its tokens."""
    places_images: ClassVar[bool] = False
    """Whether the model alone knows the rope positions of images and of what follows them."""

    patch: int
    least_pixels: int
    max_pixels: int

    def __init__(self, config: Any, image_processor: Any, tokenizer: Any) -> None:
        self.config = config
        self.image_processor = image_processor
        self.pad_token_id = 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)
        self.bos_token_id = opening_token(tokenizer)
        if image_processor is not None:
            self._read_colours(image_processor)

    def _read_colours(self, image_processor: Any) -> None:
        """Take over how images are resized and normalized."""
        self.resample = Image.Resampling(int(image_processor.resample))
        scale, shift = _colour_scale(image_processor)
        self._scale, self._shift = scale.view(1, 3, 1), shift.view(1, 3, 1)

    def bound(self, image_pixels: int | None) -> int:
        """The bound on an image's area that `mllm_image_pixels` asks for; None: the checkpoint's own.

        Raises:
            ConfigError: the vision tower cannot go so low.
        """
        if image_pixels is None:
            return self.max_pixels
        if image_pixels < self.least_pixels:
            raise ConfigError(
                f"mllm_image_pixels: {image_pixels} is less than the least image of this model; give at least "
                f"{self.least_pixels}"
            )
        return int(image_pixels)

    # --- one prompt --------------------------------------------------------------------------------------------------

    def prepare(self, parts: Sequence[Part], max_pixels: int, continued: bool = False) -> PreparedInput:
        """Lay out one prompt, or the rest of one.

        Args:
            parts: RGB pictures and token ids, in reading order; any number of each. The last token is where a vector
                or the next word is read.
            max_pixels: bound on a resized image's area. What exactly it bounds is the family's (see `image_cost`).
                Pictures that are cut already stay as they are.
            continued: the parts go on from others that are read before them.

        Returns:
            The prompt, opened with the BOS token if the checkpoint's tokenizer opens texts with one; the rest of a
            prompt is not opened again.
        """
        laid = self._lay_out(parts, max_pixels, continued)
        pieces = [part.ids if isinstance(part, CutImage) else part for part in laid]
        return PreparedInput(np.concatenate(pieces), tuple(part for part in laid if isinstance(part, CutImage)))

    def _lay_out(self, parts: Sequence[Part], max_pixels: int, continued: bool = False) -> list[CutImage | np.ndarray]:
        """Every part as a cut image or as (L,) int64 ids, with BOS at the front of what is not continued."""
        laid: list[CutImage | np.ndarray] = [
            self._laid(part, max_pixels) for part in parts if isinstance(part, Image.Image | CutImage) or len(part)
        ]
        return laid if continued else self._opened(laid)

    def _laid(self, part: Part, max_pixels: int) -> CutImage | np.ndarray:
        if isinstance(part, CutImage):
            return part
        return self.cut(part, max_pixels) if isinstance(part, Image.Image) else np.array(part, dtype=np.int64)

    def _opened(self, laid: list[CutImage | np.ndarray]) -> list[CutImage | np.ndarray]:
        """The parts after a BOS token, where the checkpoint wants one and the prompt does not bring it along."""
        first = laid[0] if laid else None
        opened = isinstance(first, np.ndarray) and len(first) > 0 and first[0] == self.bos_token_id
        if self.bos_token_id is None or opened:
            return laid
        return [np.array([self.bos_token_id], dtype=np.int64), *laid]

    @abstractmethod
    def cut(self, image: Image.Image, max_pixels: int) -> CutImage:
        """Resize an RGB picture of any shape and cut it into what the vision tower reads."""

    @abstractmethod
    def image_cost(self, max_pixels: int) -> int:
        """Decoder tokens, those around it included, plus vision patches of the most costly image under this bound."""

    # --- a batch -----------------------------------------------------------------------------------------------------

    def collate(
        self, inputs: Sequence[PreparedInput], device: torch.device, side: Side = "right"
    ) -> dict[str, torch.Tensor]:
        """Make keyword arguments for both classes' `forward`, for a batch of B prompts, L = the longest one.

        Padding stands on the right and there is no attention mask: attention is causal, so no real token can see the
        padding after it. `generate` needs every prompt to end in the last column: ask for the left side, which
        comes with an attention mask.

        Args:
            inputs: the prompts.
            device: where the tensors go.
            side: of the padding.

        Returns:
            input_ids (B, L); for the left side attention_mask (B, L); and what else the family needs.
        """
        batch = pad_ids([item.ids for item in inputs], self.pad_token_id, device, side)
        length = batch["input_ids"].shape[1]
        starts = [length - len(item.ids) if side == "left" else 0 for item in inputs]
        if side == "right":
            del batch["attention_mask"]
        return batch | self._extras(inputs, starts, length, device)

    @abstractmethod
    def _extras(
        self, inputs: Sequence[PreparedInput], starts: Sequence[int], length: int, device: torch.device
    ) -> dict[str, torch.Tensor]:
        """What a batch holds in addition to token ids: pixels, positions.

        Args:
            inputs: B prompts.
            starts: the column in which each prompt begins.
            length: columns of the batch.
            device: where the tensors go.
        """

    def last_hidden_states(
        self, model: nn.Module, inputs: Sequence[PreparedInput], device: torch.device
    ) -> torch.Tensor:
        """Run a batch; return (B, hidden), each prompt's last-layer hidden state at its last token, after the norm.

        Each is what the model computes of that prompt alone, whatever shares its batch.
        """
        states = self.base(model)(**self.collate(inputs, device), use_cache=False).last_hidden_state
        rows = torch.arange(len(inputs), device=device)
        return states[rows, torch.tensor([len(item.ids) - 1 for item in inputs], device=device)]

    def mean_hidden_states(
        self, model: nn.Module, inputs: Sequence[PreparedInput], device: torch.device, skipped: int = 0
    ) -> torch.Tensor:
        """Run a batch; return (B, hidden) float32, the mean of each prompt's last-layer hidden states, after the norm.

        Args:
            model: of either class.
            inputs: B prompts.
            device: where the model is.
            skipped: so many tokens at the front of each prompt do not count.
        """
        states = self.base(model)(**self.collate(inputs, device), use_cache=False).last_hidden_state.float()
        lengths = torch.tensor([[len(item.ids)] for item in inputs], device=device)
        place = torch.arange(states.shape[1], device=device)
        read = ((place >= skipped) & (place < lengths)).unsqueeze(-1)
        return states.masked_fill(~read, 0).sum(1) / (lengths - skipped).clamp(min=1)

    def image_vectors(self, model: nn.Module, images: Sequence[CutImage], device: torch.device) -> list[torch.Tensor]:
        """What the vision tower makes of images: (T, hidden) each, for the T image tokens of its ids.

        For families whose decoder takes nothing else of an image (`images_are_vectors`).
        """
        made = self.base(model).get_image_features(**self._pixels(images, device), return_dict=True).pooler_output
        flat = made.flatten(0, -2) if isinstance(made, torch.Tensor) else torch.cat(list(made))
        token = self.config.image_token_id
        return list(flat.split([int((image.ids == token).sum()) for image in images]))

    def _pixels(self, images: Sequence[CutImage], device: torch.device) -> dict[str, torch.Tensor]:
        """What the vision tower reads."""
        return self._extras([PreparedInput(image.ids, (image,)) for image in images], [0] * len(images), 0, device)

    def _normalize(self, raw: torch.Tensor) -> torch.Tensor:
        """(N, 3, height, width) bytes -> float32 of the same shape, rescaled and normalized as the checkpoint asks."""
        colours = raw.to(torch.float32).flatten(2)
        colours.mul_(self._scale.to(raw.device)).add_(self._shift.to(raw.device))
        return colours.view(raw.shape)

    def masked(
        self, batch: dict[str, torch.Tensor], seen: torch.Tensor, dtype: torch.dtype, implementation: str
    ) -> dict[str, Any]:
        """Keyword arguments for a batch whose tokens see less than all that is before them.

        Args:
            batch: of `collate`, padded on the right; B prompts, L tokens.
            seen: bool (B, 1, L, L), True where a row sees a column.
            dtype: of the attention scores.
            implementation: of attention, as in `as_attention_wants`.
        """
        return {**batch, "attention_mask": as_attention_wants(seen, dtype, implementation)}

    # --- the model ---------------------------------------------------------------------------------------------------

    @property
    def reserved_ids(self) -> tuple[int, ...]:
        """Tokens that stand for something else than words, and that no text may spell."""
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        found = (getattr(self.config, name, None) for name in names)
        return tuple(int(token) for token in found if token is not None)

    @classmethod
    def base(cls, model: nn.Module) -> Any:
        """The base model (vision tower and decoder) inside a model: with or without a head, an adapter, a wrapper."""
        return next(module for module in model.modules() if isinstance(module, cls.model_class))

    def decoder(self, model: nn.Module) -> PreTrainedModel:
        """The text decoder inside a model of either class."""
        return cast(PreTrainedModel, self.base(model).language_model)

    def logits(self, model: nn.Module, states: torch.Tensor) -> torch.Tensor:
        """What a model with a head makes of last-layer states, by its own forward: some scale or bound their logits.

        Args:
            model: with a head; an adapter may be around it.
            states: (T, hidden), after the norm.

        Returns:
            (T, words).
        """
        headed = next(module for module in model.modules() if isinstance(module, self.generation_class))
        return logits_after(headed, self.base(headed), states)

    def layers_for_images(self, decoder: PreTrainedModel) -> list[nn.Module]:
        """Decoder layers that a prompt without images never enters; a stack for vectors can do without them."""
        return []

    def speed_up(self, model: nn.Module) -> None:  # noqa: B027  (most families have nothing to add)
        """Make a loaded model faster, without changing what it computes or what it is saved as."""

    @classmethod
    def resize(cls, model: PreTrainedModel, rows: int) -> None:
        """Give the word embeddings (and the head, if there is one) this many rows. New rows are unset."""
        model.resize_token_embeddings(rows, mean_resizing=False)


def _colour_scale(image_processor: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(3,) factors and (3,) offsets that do rescaling and normalizing at once, float32."""
    factor = image_processor.rescale_factor if image_processor.do_rescale else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if image_processor.do_normalize:
        mean, std = image_processor.image_mean, image_processor.image_std
    means, stds = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    return (factor / stds).to(torch.float32), (-means / stds).to(torch.float32)
