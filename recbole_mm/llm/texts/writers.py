"""Models that write: a multimodal LLM of a supported family, or a plain text LLM, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from recbole_mm.errors import ModelLoadError
from recbole_mm.llm.decoder import context_of, longest_of
from recbole_mm.llm.families import FAMILIES, is_multimodal
from recbole_mm.llm.family import Part, PreparedInput
from recbole_mm.llm.loading import DTYPES, _read_model, require_words
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pretrained import Pretrained, load_errors, open_pretrained
from recbole_mm.llm.texts.chat import Chat
from recbole_mm.llm.tokens import opening_token, pad_ids, plain_token_ids
from recbole_mm.utils.files import parse_json


@dataclass
class Writer:
    """A loaded model and how its prompts are laid out.

    Attributes:
        name: what it was asked for by.
        identity: the model and its revision, or a hash of its files.
        model: with its language-model head, in eval mode.
        tokenizer: the Hugging Face tokenizer.
        token_ids: plain text -> token ids, none of them special whatever the text spells.
        chat: how a prompt becomes a turn of a chat.
        prepare: parts of a prompt -> input of the model; called in threads.
        collate: prepared inputs -> keyword arguments of `generate`, every prompt ending in the last column.
        pad_token_id: fills rows that have ended.
        never: token ids that no answer may hold.
        reads_images: whether prompts may hold pictures.
    """

    name: str
    identity: str
    model: Any
    tokenizer: Any
    token_ids: Callable[[str], list[int]]
    chat: Chat
    prepare: Callable[[Sequence[Part]], PreparedInput]
    collate: Callable[[Sequence[PreparedInput]], dict[str, torch.Tensor]]
    pad_token_id: int
    never: tuple[int, ...]
    reads_images: bool

    @property
    def ends(self) -> tuple[int, ...]:
        """Token ids that end an answer."""
        configured = self.model.generation_config.eos_token_id
        several = configured if isinstance(configured, (list, tuple)) else [configured]
        return tuple(dict.fromkeys(int(end) for end in [*several, self.tokenizer.eos_token_id] if end is not None))

    @property
    def longest(self) -> int | None:
        """Tokens of the longest prompt and answer together that the model was made for, if it says so."""
        return context_of(self.model)


def multimodal_writer(mllm: MLLM, image_pixels: int) -> Writer:
    """A multimodal LLM as a writer.

    Args:
        mllm: loaded with its head.
        image_pixels: bound on a resized picture's area; the checkpoint's own bounds hold too.

    Raises:
        ModelLoadError: the model has no head.
    """
    head = mllm.model.get_output_embeddings()
    if head is None:
        raise ModelLoadError(f"{mllm.name}: loaded without its language-model head, which writing needs")
    family = mllm.family
    pixels = max(min(image_pixels, family.max_pixels), family.least_pixels)
    unwanted = {mllm.cur_item_id, *family.reserved_ids}
    return Writer(
        name=mllm.name,
        identity=mllm.identity,
        model=mllm.model,
        tokenizer=mllm.tokenizer,
        token_ids=mllm.token_ids,
        chat=Chat(mllm.tokenizer, mllm.token_ids, family.placeholder, mllm.name),
        prepare=partial(family.prepare, max_pixels=pixels),
        collate=partial(family.collate, device=mllm.device, side="left"),
        pad_token_id=family.pad_token_id,
        never=tuple(sorted(token for token in unwanted if token < len(head.weight))),
        reads_images=family.reads_images,
    )


def text_writer(source: Pretrained, device: torch.device, dtype: str, trust_remote_code: bool = False) -> Writer:
    """A text LLM that transformers' AutoModelForCausalLM loads.

    Args:
        source: its files.
        device: where it goes.
        dtype: of its weights: float32, bfloat16 or float16.
        trust_remote_code: allow a tokenizer that ships its own Python code.

    Raises:
        ModelLoadError: damaged or missing files.
    """
    tokenizer = read_tokenizer(source, trust_remote_code)
    model: Any = _read_model(source, AutoModelForCausalLM, {"dtype": DTYPES[dtype], "attn_implementation": "sdpa"})
    model = model.to(device).eval()
    token_ids = plain_token_ids(tokenizer)
    bos = opening_token(tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def prepare(parts: Sequence[Part]) -> PreparedInput:
        ids = [token for part in parts if not hasattr(part, "size") for token in part]  # type: ignore[union-attr]
        return PreparedInput(np.array([bos] * (bos is not None and ids[:1] != [bos]) + ids, dtype=np.int64))

    def collate(inputs: Sequence[PreparedInput]) -> dict[str, torch.Tensor]:
        return pad_ids([item.ids for item in inputs], int(pad), device, "left")

    return Writer(
        name=source.name,
        identity=source.identity,
        model=model,
        tokenizer=tokenizer,
        token_ids=token_ids,
        chat=Chat(tokenizer, token_ids, None, source.name),
        prepare=prepare,
        collate=collate,
        pad_token_id=int(pad),
        never=(),
        reads_images=False,
    )


def read_tokenizer(source: Pretrained, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model's files.

    Raises:
        ModelLoadError: it cannot be read, has no words, or no fast version.
    """
    with load_errors(source.name, "its tokenizer"):
        tokenizer = open_pretrained(AutoTokenizer.from_pretrained, source.name, source.folder, trust_remote_code)
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelLoadError(f"{source.name}: its tokenizer has no fast version (tokenizer.json), which is needed")
    require_words(source.name, tokenizer)
    return tokenizer


def read_context(source: Pretrained, trust_remote_code: bool = False) -> int | None:
    """Tokens of the longest prompt and answer together that a model was made for, if its files say so.

    Raises:
        ModelLoadError: its configuration cannot be read.
    """
    with load_errors(source.name):
        config = open_pretrained(
            AutoConfig.from_pretrained, source.name, source.folder, trust_remote_code=trust_remote_code
        )
    return longest_of(config)


def check_writes(name: str, folder: Path) -> bool:
    """Whether a model is a multimodal one of a supported family; else it is a text LLM.

    Raises:
        ModelLoadError: neither, or no config.json that can be read.
    """
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{name}: no model there: its config.json cannot be read") from error
    if not is_multimodal(kind) and kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        supported = ", ".join(sorted(FAMILIES))
        raise ModelLoadError(f"{name}: a model of type {kind!r} writes no texts; give a text LLM or one of {supported}")
    return is_multimodal(kind)
