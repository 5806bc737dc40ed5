"""A loaded LLM: the model, its tokenizer, how its inputs are built, and its text stack on its own."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.llm.decoder import context_of, layer_masks, layers_of, sliding_window
from recbole_mm.llm.family import Family, PreparedInput
from recbole_mm.llm.tokens import plain_token_ids


@dataclass
class MLLM:
    """A multimodal LLM, or a text LLM, with `[Cur_Item]` in its vocabulary. Made by `recbole_mm.llm.loading.load_mllm`.

    Attributes:
        name: the id or path it was asked for by.
        identity: the model and its revision, or a hash of its files: the same weights, the same identity.
        model: in eval mode; the base model (vision tower and decoder), or the one with a head if that was asked for.
        tokenizer: the Hugging Face tokenizer.
        image_processor: the Hugging Face image processor; None of a text LLM.
        family: how prompts become inputs of this family of models.
        cur_item_id: token id of `[Cur_Item]`.
        target: device of a model that was loaded without weights.
        folder: its files, an adapter's those of its base; None where they are not known.
    """

    name: str
    identity: str
    model: PreTrainedModel
    tokenizer: Any
    image_processor: Any
    family: Family
    cur_item_id: int
    target: torch.device | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        reserved = {self.cur_item_id, *self.family.reserved_ids, *self.tokenizer.all_special_ids}
        self._token_ids = plain_token_ids(self.tokenizer, reserved)

    @property
    def hidden_size(self) -> int:
        """Width of the decoder, and of every item vector."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are, or would be."""
        found = next(self.model.parameters()).device
        return self.target if found.type == "meta" and self.target is not None else found

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.model.parameters()).dtype

    @property
    def context(self) -> int | None:
        """Tokens of the longest prompt that the model was made for, if its configuration says so."""
        return context_of(self.model)

    def token_ids(self, text: str) -> list[int]:
        """Token ids of a plain text. Whatever it spells, it yields no special token. Safe to call from threads."""
        return self._token_ids(text)

    def last_hidden_states(self, inputs: Sequence[PreparedInput]) -> torch.Tensor:
        """Run the model on a batch.

        Args:
            inputs: B prepared prompts.

        Returns:
            (B, hidden) last-layer hidden state, after the final norm, of each prompt's last token.
        """
        return self.family.last_hidden_states(self.model, inputs, self.device)

    def mean_hidden_states(self, inputs: Sequence[PreparedInput], skipped: int = 0) -> torch.Tensor:
        """As `last_hidden_states`, the mean over each prompt's tokens, float32, without the first `skipped` ones."""
        return self.family.mean_hidden_states(self.model, inputs, self.device, skipped)

    def first_layers(self, count: int, setting: str) -> MLLM:
        """Return the same model with the first layers of its decoder alone, and the final norm after them.

        Weights are shared with this one, which is left as it is. The configuration says what is left, so that it can be
        saved.

        Args:
            count: number of layers.
            setting: that asks for them, for errors.

        Raises:
            ConfigError: the decoder has not so many.
            ModelLoadError: see `layers_of`.
        """
        shared = {id(tensor): tensor for tensor in chain(self.model.parameters(), self.model.buffers())}
        name, layers = layers_of(self.family.decoder(self.model))
        check_layers(setting, count, len(layers))
        model = copy.deepcopy(self.model, shared)
        decoder = self.family.decoder(model)
        setattr(decoder, name, getattr(decoder, name)[:count])
        _shorten(decoder.config, count, len(layers))
        return replace(self, model=model)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model as it is in memory, with its tokenizer and image settings; `load_mllm(folder)` reads it."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.image_processor is not None:
            self.image_processor.save_pretrained(folder)

    def require_attention(self) -> PreTrainedModel:
        """Return the decoder, whose tokens see what a mask lets them see.

        Raises:
            ModelLoadError: it keeps a state instead (Mamba, RWKV, hybrids), which no mask holds back, or tokens have no
                places but those in which they stand.
        """
        decoder = self.family.decoder(self.model)
        if _counts_places(decoder.config):
            raise ModelLoadError(
                f"{self.name}: models of type {decoder.config.model_type} count their tokens themselves (ALiBi, local "
                "attention), which is wrong where something is left out; take another, such as llama or qwen3"
            )
        if _keeps_state(decoder):
            raise ModelLoadError(
                f"{self.name}: models of type {decoder.config.model_type} are recurrent and obey no attention mask, "
                "which is needed here; take one that only attends, such as llama or qwen3"
            )
        return decoder

    def text_stack(self, layers: int | None = None, setting: str = "layers") -> TextStack:
        """Return an independent copy of the decoder without its word embeddings (Molar's DUEG).

        Training the copy leaves the encoder, and so the item vectors, as they are.

        Args:
            layers: copy the first so many layers alone, and the final norm after them; None: all.
            setting: that asks for them, for errors.

        Raises:
            ConfigError: the decoder has not so many.
            ModelLoadError: see `require_attention`.
        """
        decoder = self.require_attention()
        if layers is not None:
            check_layers(setting, layers, len(layers_of(decoder)[1]))
        return TextStack(decoder, self.family.layers_for_images(decoder), layers)


def _shorten(config: Any, count: int, before: int) -> None:
    """Have the configuration of a decoder say that it has fewer layers, in its lists of layers, too."""
    if getattr(config, "num_hidden_layers", None) == before:
        config.num_hidden_layers = count
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list) and len(value) == before:
            setattr(config, name, value[:count])


def _counts_places(config: Any) -> bool:
    """Whether attention depends on where a token stands in its row, whatever its position id is."""
    return config.model_type in ("bloom", "mpt", "gpt_neo") or bool(getattr(config, "alibi", False))


def _keeps_state(decoder: PreTrainedModel) -> bool:
    """Whether some layers of a decoder do something else than attend."""
    kinds = set(getattr(decoder.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    recurrent = any(name.startswith(("mamba", "ssm_")) for name in vars(decoder.config))
    return bool(kinds) or recurrent or decoder._is_stateful


class TextStack(nn.Module):
    """A decoder without its word-embedding layer, its pretrained weights kept: vectors in, vectors out.

    Args:
        decoder: the language model to copy; it is left as it is.
        without: its layers that text alone never enters, and that the copy does without.
        layers: copy the first so many of its layers; None: all.

    Example:
        >>> stack = mllm.text_stack()                                                  # doctest: +SKIP
        >>> allowed = torch.ones(L, L, dtype=torch.bool).tril().expand(B, 1, L, L)     # doctest: +SKIP
        >>> positions = torch.arange(L).expand(B, L)                                   # doctest: +SKIP
        >>> stack(inputs_embeds, allowed, positions).last_hidden_state.shape           # doctest: +SKIP
        torch.Size([2, 5, 128])
    """

    def __init__(self, decoder: PreTrainedModel, without: Sequence[nn.Module] = (), layers: int | None = None) -> None:
        super().__init__()
        # The memo stands in for what is left out, so that hundreds of megabytes are never copied.
        name, present = layers_of(decoder) if layers is not None else ("", nn.ModuleList())
        later = list(present)[layers:]
        left_out = [decoder.get_input_embeddings(), *without, *later]
        self.decoder: PreTrainedModel = copy.deepcopy(decoder, {id(module): nn.Identity() for module in left_out})
        if later:
            setattr(self.decoder, name, getattr(self.decoder, name)[:layers])
        self.hidden_size = int(decoder.config.hidden_size)
        self.window = sliding_window(decoder.config)
        """Tokens that some layer looks back at, itself included; None where all see the whole history."""

    def forward(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor, **kwargs: Any
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            inputs_embeds: (B, L, hidden) input vectors.
            attention_mask: (B, 1, L, L), row = the token that looks, column = the one looked at. bool: True where it
                may look; floating point: added to the attention scores. It is used as it is: nothing causal is added to
                it. Every row of a bool mask has to allow something, if only itself. Layers that look back over a
                window (Gemma 3, Mistral) see of a bool mask what is within it.
            position_ids: (B, L) rope positions, the same in all three dimensions, as for text.
            kwargs: handed on to transformers' decoder.

        Returns:
            transformers' output; its `last_hidden_state` (B, L, hidden) is the last layer's after the final norm.
        """
        if attention_mask.ndim != 4:
            raise ValueError(f"the attention mask has shape (B, 1, L, L), not {tuple(attention_mask.shape)}")
        if attention_mask.dtype == torch.bool:
            apart = position_ids[:, :, None] - position_ids[:, None, :]
            mask: Any = layer_masks(self.decoder.config, attention_mask, apart, inputs_embeds.dtype)
        else:
            mask = attention_mask.to(inputs_embeds.dtype)
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": mask, "position_ids": position_ids}
        return self.decoder(**{"use_cache": False, **kwargs, **inputs})


def check_layers(setting: str, asked: int, present: int) -> None:
    """Make sure that a decoder has the layers that are to be kept.

    Args:
        setting: that asks for them.
        asked: number of layers to keep.
        present: number of layers.

    Raises:
        ConfigError: it has not.
    """
    if not 1 <= asked <= present:
        raise ConfigError(f"{setting}: the LLM has {present} layers; give 1 to {present}, or null for all")


def checkpoint_layers(model: Any) -> None:
    """Have each layer of a transformers model compute its activations again in the backward pass of training."""
    # transformers 5 renamed it on the way
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    next(getattr(model, name) for name in names if hasattr(model, name))({"use_reentrant": False})
