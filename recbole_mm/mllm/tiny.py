"""A real Qwen2-VL of about one million parameters, built here: what `--mllm=tiny` means.

Architecture, tokenizer and files are those of any Qwen2-VL checkpoint on disk, so the very same code loads it. It is
untrained: its vectors are a random but faithful function of an item's words and image, good for trying a pipeline
offline and as the floor that a pretrained model has to beat.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    GenerationConfig,
    Qwen2Tokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

from recbole_mm.errors import ModelLoadError

logger = logging.getLogger(__name__)

VOCABULARY = 4096
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

HIDDEN = 128
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
}
VISION = {"depth": 2, "embed_dim": 64, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2, "patch_size": 14}


def build_tiny(corpus: Iterable[str], directory: str | os.PathLike[str], seed: int = 0) -> Path:
    """Build the tiny model for a corpus.

    Args:
        corpus: the dataset's own item texts; its tokenizer is trained on them. May be empty.
        directory: the model's folder, in the Hugging Face layout. Where it holds a model already, that one is kept, so
            the name should tell corpus and seed apart.
        seed: of the weights.

    Returns:
        `directory`. The same corpus and seed give the same bytes. The folder appears all at once, complete, so several
        runs may build it together.

    Raises:
        ModelLoadError: `directory` exists and holds something else, or cannot be written.
    """
    target = Path(directory)
    if _holds_model(target):
        return target
    logger.info("Building the tiny multimodal model in %s", target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".tiny-", dir=target.parent))
        try:
            _write_model(list(corpus), scratch, seed)
            scratch.chmod(0o755)  # mkdtemp keeps others out; the finished model is for whoever may read the folder
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        if not _holds_model(target):  # else another run finished the same files first
            raise ModelLoadError(f"{target}: the tiny model cannot be written there: {error.strerror}") from error
    return target


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()


def _write_model(texts: Iterable[str], folder: Path, seed: int) -> None:
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=112 * 112).save_pretrained(folder)
    model = _blank_model(tokenizer)
    model.load_state_dict(dict(_seeded_weights(model, seed)))
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)


def train_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Train a byte-level BPE with the pipeline and the special tokens of Qwen2-VL's tokenizer.

    Any text can be encoded, whatever the corpus. The vocabulary has at most 4,096 entries with the special tokens.
    """
    pipeline = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(BPE())
    bpe.normalizer = pipeline.normalizer
    bpe.pre_tokenizer = pipeline.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((_encodable(text) for text in texts), trainer)
    learned = json.loads(bpe.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,
        extra_special_tokens=list(SPECIAL_TOKENS[2:]),
        model_max_length=TEXT["max_position_embeddings"],
        chat_template=CHAT_TEMPLATE,
    )


def _encodable(text: str) -> str:
    """Lone surrogates (a broken file's bytes read as text) have no UTF-8 form, which the tokenizer needs."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _blank_model(tokenizer: Qwen2Tokenizer) -> Qwen2VLForConditionalGeneration:
    """The architecture around the tokenizer; its weights are to come from `_seeded_weights`."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=VISION,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):  # its own random start must not advance the caller's generator
        return Qwen2VLForConditionalGeneration(config)


def _seeded_weights(model: torch.nn.Module, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight as a function of its name and the seed alone.

    Uniform numbers from integer arithmetic, rather than torch's normal ones: those differ in the last bit between
    processors. The scale keeps the variance through a layer (1 / fan in), so that words and image still tell items
    apart at the top.
    """
    for name, weight in model.state_dict().items():
        if weight.ndim == 1:
            yield name, torch.ones_like(weight) if name.endswith("weight") else torch.zeros_like(weight)
            continue
        source = name.replace("lm_head", "model.language_model.embed_tokens")  # tied: one tensor under two names
        key = int.from_bytes(hashlib.sha256(f"{seed} {source}".encode()).digest()[:8], "little")
        unit = np.random.Generator(np.random.PCG64(key)).random(weight.shape, dtype=np.float32)
        width = np.float32(2 * math.sqrt(3 / weight[0].numel()))
        yield name, torch.from_numpy((unit - np.float32(0.5)) * width)
