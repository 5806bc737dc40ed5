"""Text LLMs of a few thousand parameters, for tests: each architecture's own classes around a trained tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from recbole_mm.llm.tiny_tokenizers import deepseek_tokenizer

CORPUS = [
    f"The {colour} {thing} of number {place}. Answer: Yes, or No?\n"
    for place, colour in enumerate(("red", "green", "golden"))
    for thing in ("shoe", "ship", "garden", "lamp", "drama film", "comedy film")
]
HEADS = {"head_dim": 8}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": HEADS,
    "mistral": {"sliding_window": None},
    "gemma3_text": {**HEADS, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "smollm3": {},
    "gpt2": {"n_inner": 64},
}
LOOKING_BACK: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 8},
    "phi3": {"sliding_window": 8},
    "starcoder2": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma2": {**HEADS, "sliding_window": 8},
    "gemma3_text": {**KINDS["gemma3_text"], "sliding_window": 8},
}
"""Types that look back over 8 tokens, in some layers or in all."""
SHAPED: dict[str, dict[str, Any]] = {
    "phi": {},
    "gemma2": HEADS,
    "granite": {"logits_scaling": 8.0},
    "cohere": {},
    "modernbert-decoder": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}
"""Types whose head does more than multiply (a bias, a bound, a scale, a layer), or whose base model is nested."""
"""`model_type` -> what its configuration says beside the sizes."""


def write_text_llm(
    kind: str, folder: Path, train: Callable[[Iterable[str]], Any] = deepseek_tokenizer, **changes: Any
) -> Path:
    """Write an untrained text LLM with its tokenizer, which opens texts with BOS, in the Hugging Face layout."""
    tokenizer = train(CORPUS)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CONFIG_MAPPING[kind](**{**sizes, **KINDS.get(kind, {}), **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        for weight in model.parameters():  # published starts are so small that every state would be nearly the same
            weight.data.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return folder
