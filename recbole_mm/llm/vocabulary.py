"""New words for a loaded model, `[Cur_Item]` first of all: in memory only, the checkpoint on disk stays as it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import PreTrainedModel

from recbole_mm.errors import ModelLoadError
from recbole_mm.llm.families import family_class
from recbole_mm.llm.prompts import CUR_ITEM


def add_cur_item(model: PreTrainedModel, tokenizer: Any, name: str) -> int:
    """Make `[Cur_Item]` a special token of a loaded model.

    A checkpoint that knows the token already (one that was fine-tuned with it) is left alone. Otherwise the token's
    embedding is the mean of all words' embeddings: the same on every machine, and no direction preferred.

    Args:
        model: with a head or without.
        tokenizer: of the model.
        name: of the model, for errors.

    Returns:
        The token's id.

    Raises:
        ModelLoadError: the tokenizer has no fast version.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelLoadError(f"{name}: its tokenizer has no fast version (tokenizer.json), which recbole_mm needs")
    words = len(tokenizer)
    if tokenizer.add_special_tokens({"extra_special_tokens": [CUR_ITEM]}, replace_extra_special_tokens=False) == 0:
        return int(tokenizer.convert_tokens_to_ids(CUR_ITEM))
    token = int(tokenizer.convert_tokens_to_ids(CUR_ITEM))
    if token >= model.get_input_embeddings().num_embeddings:
        resize_vocabulary(model, token + 1)
    set_to_mean(model, [token], words)
    return token


def resize_vocabulary(model: PreTrainedModel, rows: int) -> None:
    """Give the word embeddings, and the head where there is one, this many rows."""
    with torch.random.fork_rng(devices=[]):  # what is drawn for new rows is overwritten
        family_class(model.config.model_type).resize(model, rows)


@torch.no_grad()
def set_to_mean(model: PreTrainedModel, tokens: Iterable[int], words: int) -> None:
    """Set the rows of new tokens to the mean over the first `words` rows, in the embeddings and in an untied head."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    for layer in {id(layer.weight): layer for layer in layers if layer is not None}.values():
        mean = layer.weight[:words].double().mean(dim=0).to(layer.weight.dtype)
        for token in tokens:
            if token < len(layer.weight):  # a head may know fewer words than the embeddings
                layer.weight[token] = mean
