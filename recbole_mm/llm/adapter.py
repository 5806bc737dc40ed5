"""PEFT adapters: a folder that holds a few trained weights and the name of the model they belong to."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from recbole_mm.errors import ModelLoadError
from recbole_mm.llm.pretrained import ADAPTER_CONFIG, Pretrained
from recbole_mm.utils.files import parse_json

WEIGHTS_FILE = "adapter_model.safetensors"
OUTER = "base_model.model."
"""What PEFT puts before the name of every weight."""
OF_HEADED = frozenset({"model", "transformer", "gpt_neox", "lm_head"})
"""Parts of a model with a head, apart from what its class calls its base model. Others are those of a base model."""


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk.

    Attributes:
        source: its files.
        base: id or folder of the model it belongs to, as its configuration says.
        base_revision: of a hub model, or None.
        embedding_rows: words in the embedding that it brings along or was trained for, or None if it has none.
        parts: of the model that it was trained in, which hold its weights.
    """

    source: Pretrained
    base: str
    base_revision: str | None
    embedding_rows: int | None
    parts: frozenset[str]

    def needs_head(self, base_model: str) -> bool:
        """Whether it was trained inside a model with a head, whose class calls its base model so."""
        return bool(self.parts & {*OF_HEADED, base_model})

    @property
    def name(self) -> str:
        """What it was asked for by."""
        return self.source.name

    @property
    def has_tokenizer(self) -> bool:
        """Whether it brings the tokenizer that it was trained with."""
        return (self.source.folder / "tokenizer.json").is_file()


def read_adapter(source: Pretrained) -> Adapter:
    """Read what an adapter says of itself; none of its weights.

    Raises:
        ModelLoadError: a file is missing or damaged, the weights are not safetensors, or no base model is named.
    """
    name, folder = source.name, source.folder
    try:
        config = parse_json((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base, revision = config["base_model_name_or_path"], config.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelLoadError(f"{name}: its {ADAPTER_CONFIG} cannot be read or names no base model") from error
    if not isinstance(base, str) or not base.strip():
        raise ModelLoadError(f"{name}: its {ADAPTER_CONFIG} names no base model (base_model_name_or_path)")
    if not (folder / WEIGHTS_FILE).is_file():
        raise ModelLoadError(f"{name}: an adapter without {WEIGHTS_FILE}; other forms of weights are not loaded")
    try:
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
            keys = list(weights.keys())
            rows = [_rows(key, weights.get_slice(key).get_shape()) for key in keys if "embed_tokens" in key]
    except (OSError, SafetensorError) as error:
        raise ModelLoadError(f"{name}: its {WEIGHTS_FILE} cannot be read") from error
    known = [count for count in rows if count is not None]
    parts = frozenset(key.removeprefix(OUTER).partition(".")[0] for key in keys)
    return Adapter(source, base, revision, max(known, default=None), parts)


def _rows(key: str, shape: list[int]) -> int | None:
    """Words of the embedding that a tensor of an adapter is for; None for one that does not tell."""
    if "lora_embedding_A" in key:
        return shape[1]
    return shape[0] if key.endswith("weight") and "lora_" not in key else None


def merge_adapter(adapter: Adapter, model: Any) -> PreTrainedModel:
    """Add an adapter's weights to a model's own.

    Args:
        adapter: to be merged.
        model: with a head or without, as the adapter was trained; it is changed.

    Returns:
        The model, in its own class again.

    Raises:
        ModelLoadError: the adapter cannot be merged, or does not fit the model.
    """
    try:
        # An adapter's blank weights are drawn before they are loaded.
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT reads names that transformers has renamed
            config = PeftConfig.from_pretrained(str(adapter.source.folder))
            if config.is_prompt_learning or config.is_adaption_prompt:
                raise ModelLoadError(f"{adapter.name}: a {config.peft_type.value} adapter, which cannot be merged")
            config.inference_mode = True
            wrapped = PeftModel(model, config)
            result = wrapped.load_adapter(str(adapter.source.folder), "default", torch_device=str(model.device))
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, AttributeError) as error:
        raise _misfit(adapter, str(error)) from error
    strangers = [*result.missing_keys, *result.unexpected_keys]
    if strangers:
        raise _misfit(adapter, f"{len(strangers)} tensors have no counterpart, e.g. {strangers[0]}")
    try:
        return wrapped.merge_and_unload(safe_merge=True)  # type: ignore[operator]
    except (ValueError, AttributeError, NotImplementedError) as error:
        raise ModelLoadError(f"{adapter.name}: the adapter cannot be merged into its base model") from error


def _misfit(adapter: Adapter, reason: str) -> ModelLoadError:
    lines = [line.strip() for line in reason.splitlines() if line.strip()] or ["no reason given"]
    shown = " ".join(lines[:2])[:300]
    return ModelLoadError(f"{adapter.name}: the adapter does not fit its base model {adapter.base}: {shown}")
