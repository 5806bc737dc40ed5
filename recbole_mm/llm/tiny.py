"""Real multimodal LLMs of one to two million parameters, built here: what `--mllm=tiny` means.

Architecture, tokenizer and files are those of any checkpoint of the family on disk, so the very same code loads them.
They are untrained: their vectors are a random but faithful function of an item's words and image, good for trying a
pipeline offline and as the floor that a pretrained model has to beat.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedModel

from recbole_mm.errors import DiskError, ModelLoadError
from recbole_mm.llm.families import family_class
from recbole_mm.llm.tiny_models import RECIPES
from recbole_mm.llm.tiny_tokenizers import QWEN_TOKENS, VOCABULARY
from recbole_mm.utils.files import disk_errors, make_folder, scratch_folder, write_checksums

__all__ = ["SPECIAL_TOKENS", "VOCABULARY", "build_tiny"]

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = QWEN_TOKENS
"""Of the default family."""

OPEN_GATE = 1.0
"""Gates are published at zero, which shuts images out until training opens them; an untrained model needs them open."""


def build_tiny(
    corpus: Iterable[str], directory: str | os.PathLike[str], seed: int = 0, family: str = "qwen2_vl"
) -> Path:
    """Build the tiny model for a corpus.

    Args:
        corpus: the dataset's own item texts; its tokenizer is trained on them. May be empty.
        directory: the model's folder, in the Hugging Face layout. Where it holds a model already, that one is kept, so
            the name should tell corpus, seed and family apart.
        seed: of the weights.
        family: `model_type` of a supported family.

    Returns:
        `directory`. The same corpus, seed and family give the same bytes. The folder appears all at once, complete, so
        several runs may build it together.

    Raises:
        ModelLoadError: no such family.
        DiskError: `directory` exists and holds something else, or cannot be written.
    """
    if family not in RECIPES:
        raise ModelLoadError(f"there is no tiny model of type {family!r}; choose one of {', '.join(sorted(RECIPES))}")
    target = Path(directory)
    if _holds_model(target):
        return target
    logger.info("Building the tiny multimodal model (%s) in %s", family, target)
    make_folder(target.parent)
    try:
        with disk_errors(target), scratch_folder(target.parent, ".tiny-") as scratch:
            _write_model(list(corpus), scratch, seed, family)
            write_checksums(scratch)
            scratch.chmod(0o755)  # mkdtemp keeps others out; the finished model is for all who may read the folder
            scratch.rename(target)
    except DiskError:
        if not _holds_model(target):  # else another run finished the same files first
            raise
    return target


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _write_model(texts: Iterable[str], folder: Path, seed: int, family: str) -> None:
    recipe, classes = RECIPES[family], family_class(family)
    tokenizer = recipe.tokenizer(texts)
    tokenizer.save_pretrained(folder)
    if recipe.processor is None:
        classes.image_processor_class(**recipe.images).save_pretrained(folder)
    else:
        recipe.processor(tokenizer).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):  # its own random start must not advance the caller's generator
        model: Any = classes.generation_class(recipe.config(tokenizer))
    model.load_state_dict(dict(_seeded_weights(model, seed)))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)


def _seeded_weights(model: PreTrainedModel, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight as a function of its name and the seed alone.

    Uniform numbers from integer arithmetic, rather than torch's normal ones: those differ in the last bit between
    processors. The scale keeps the variance through a layer (1 / fan in), so that words and image still tell items
    apart at the top.
    """
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name, weight in model.state_dict().items():
        last = name.rpartition(".")[2]
        if (weight.ndim == 1 and last in ("weight", "bias")) or last.startswith("lambda_"):
            yield name, torch.zeros_like(weight) if last == "bias" else torch.ones_like(weight)
        elif "gate" in last and weight.numel() == 1:
            yield name, torch.full_like(weight, OPEN_GATE)
        elif weight.is_floating_point():
            # one tensor under two names
            source = name.replace("lm_head", "model.language_model.embed_tokens") if tied else name
            key = int.from_bytes(hashlib.sha256(f"{seed} {source}".encode()).digest()[:8], "little")
            unit = np.random.Generator(np.random.PCG64(key)).random(weight.shape, dtype=np.float32)
            width = np.float32(2 * math.sqrt(3 / (weight[0].numel() if weight.ndim > 1 else weight.numel())))
            yield name, torch.from_numpy((unit - np.float32(0.5)) * width)
        else:
            yield name, weight
