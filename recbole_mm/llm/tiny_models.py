"""The sizes of the tiny models: each family's real architecture with two or three layers a tower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import (
    CLIPVisionConfig,
    DeepseekVLConfig,
    Gemma3Config,
    Idefics3Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    LlavaProcessor,
    MistralConfig,
    MllamaConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from recbole_mm.llm import tiny_tokenizers as tokenizers

HIDDEN = 128
PATCH = 14
TILE = 56
"""Side of a tile: four patches of 14 pixels."""
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": tokenizers.LONGEST,
}
QWEN_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}}
VISION = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": TILE,
    "patch_size": PATCH,
}
SQUARE = {"height": TILE, "width": TILE}
GRIDS = [[rows * TILE, columns * TILE] for rows, columns in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))]


@dataclass(frozen=True)
class Recipe:
    """How the tiny model of one family is made.

    Attributes:
        tokenizer: trains one on texts.
        config: gives the configuration around a tokenizer.
        images: settings of the family's image processor.
        processor: makes the whole processor around a tokenizer, for models that are read through it.
    """

    tokenizer: Callable[[Iterable[str]], Any]
    config: Callable[[Any], Any]
    images: Mapping[str, Any]
    processor: Callable[[Any], Any] | None = None


def _words(tokenizer: Any, missing: int = 0) -> dict[str, Any]:
    """What a decoder's configuration says of its vocabulary."""
    return {
        "vocab_size": len(tokenizer) - missing,
        "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _qwen_tokens(tokenizer: Any) -> dict[str, int]:
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    roles = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return {role: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for role, name in zip(roles, names)}


def _qwen2_vl(tokenizer: Any) -> Qwen2VLConfig:
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": HIDDEN, "num_heads": 2, "mlp_ratio": 2, "patch_size": PATCH}
    return Qwen2VLConfig(
        text_config={**TEXT, **QWEN_ROPE, **_words(tokenizer)},
        vision_config=vision,
        tie_word_embeddings=True,
        **_qwen_tokens(tokenizer),
    )


def _qwen2_5_vl(tokenizer: Any) -> Qwen2_5_VLConfig:
    """Windows of one token in the first layer, the whole image in the second. Untied, as the larger ones are."""
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "out_hidden_size": HIDDEN,
        "num_heads": 2,
        "patch_size": PATCH,
        "window_size": 2 * PATCH,
        "fullatt_block_indexes": [1],
    }
    return Qwen2_5_VLConfig(
        text_config={**TEXT, **QWEN_ROPE, **_words(tokenizer)},
        vision_config=vision,
        tie_word_embeddings=False,
        **_qwen_tokens(tokenizer),
    )


def _qwen3_vl(tokenizer: Any) -> Qwen3VLConfig:
    """Patches of 16 pixels; the first decoder layer also adds what the first vision layer saw."""
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "out_hidden_size": HIDDEN,
        "num_heads": 2,
        "patch_size": 16,
        "num_position_embeddings": 36,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 32, "rope_parameters": rope, **_words(tokenizer)},
        vision_config=vision,
        tie_word_embeddings=True,
        **_qwen_tokens(tokenizer),
    )


def _internvl(tokenizer: Any) -> InternVLConfig:
    """Four tokens a tile: sixteen patches, merged two by two."""
    return InternVLConfig(
        text_config=Qwen2Config(**TEXT, **_words(tokenizer)).to_dict(),
        vision_config={**VISION, "image_size": [TILE, TILE], "patch_size": [PATCH, PATCH]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def _deepseek_vl(tokenizer: Any) -> DeepseekVLConfig:
    text = {**TEXT, "num_key_value_heads": 4}
    return DeepseekVLConfig(
        text_config=LlamaConfig(**text, **_words(tokenizer)).to_dict(),
        vision_config=SiglipVisionConfig(**VISION).to_dict(),
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )


def _mllama(tokenizer: Any) -> MllamaConfig:
    """Three decoder layers, the middle one for images; up to four tiles an image."""
    vision = {
        **{key: value for key, value in VISION.items() if key != "num_attention_heads"},
        "attention_heads": 2,
        "num_global_layers": 1,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 128,  # the last layer's and layer 0's
    }
    text = {**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]}
    return MllamaConfig(
        text_config={**text, **_words(tokenizer, missing=1)},
        vision_config=vision,
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )


def _llava_next(tokenizer: Any) -> LlavaNextConfig:
    """A Mistral that reads the layer before the tower's last."""
    return LlavaNextConfig(
        text_config=MistralConfig(**TEXT, **_words(tokenizer), sliding_window=None).to_dict(),
        vision_config=CLIPVisionConfig(**{**VISION, "num_hidden_layers": 3}).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=GRIDS,
        image_seq_length=(TILE // PATCH) ** 2,
        tie_word_embeddings=False,
    )


def _llava(tokenizer: Any) -> LlavaConfig:
    """A Llama that reads the layer before the tower's last; none of our own families."""
    return LlavaConfig(
        text_config=LlamaConfig(**TEXT, **_words(tokenizer)).to_dict(),
        vision_config=CLIPVisionConfig(**{**VISION, "num_hidden_layers": 3}).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(TILE // PATCH) ** 2,
        tie_word_embeddings=False,
    )


def _llava_processor(tokenizer: Any) -> LlavaProcessor:
    images = CLIPImageProcessorPil(size={"shortest_edge": TILE}, crop_size=SQUARE)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def _llava_onevision(tokenizer: Any) -> LlavaOnevisionConfig:
    """A Qwen2 whose images of more than two tiles are thinned out."""
    return LlavaOnevisionConfig(
        text_config=Qwen2Config(**TEXT, **_words(tokenizer)).to_dict(),
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRIDS,
        vision_aspect_ratio="anyres_max_2",
        tie_word_embeddings=False,
    )


def _gemma3(tokenizer: Any) -> Gemma3Config:
    """Four tokens an image; a layer that looks 24 tokens back, and one that sees everything."""
    text = {
        **TEXT,
        "intermediate_size": 512,
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    return Gemma3Config(
        text_config={**text, **_words(tokenizer)},
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False).to_dict(),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=True,
    )


def _idefics3(tokenizer: Any, kind: type = Idefics3Config) -> Any:
    """Four tokens a tile: sixteen patches, merged two by two."""
    return kind(
        text_config=LlamaConfig(**TEXT, **_words(tokenizer)).to_dict(),
        vision_config=dict(VISION),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
    )


def _smolvlm(tokenizer: Any) -> SmolVLMConfig:
    return _idefics3(tokenizer, SmolVLMConfig)


QWEN_PIXELS = {"min_pixels": 56 * 56, "max_pixels": 112 * 112}
QWEN3_PIXELS = {
    "patch_size": 16,
    "min_pixels": 64 * 64,
    "max_pixels": 128 * 128,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
IDEFICS_PIXELS = {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}}

RECIPES = {
    "qwen2_vl": Recipe(tokenizers.qwen_tokenizer, _qwen2_vl, QWEN_PIXELS),
    "qwen2_5_vl": Recipe(tokenizers.qwen_tokenizer, _qwen2_5_vl, QWEN_PIXELS),
    "llava": Recipe(tokenizers.llava_tokenizer, _llava, {}, _llava_processor),
    "qwen3_vl": Recipe(tokenizers.qwen_tokenizer, _qwen3_vl, QWEN3_PIXELS),
    "internvl": Recipe(tokenizers.internvl_tokenizer, _internvl, {"size": SQUARE, "max_patches": 4}),
    "deepseek_vl": Recipe(tokenizers.deepseek_tokenizer, _deepseek_vl, {"size": SQUARE}),
    "mllama": Recipe(tokenizers.llama_tokenizer, _mllama, {"size": SQUARE, "max_image_tiles": 4}),
    "llava_next": Recipe(
        tokenizers.llava_tokenizer,
        _llava_next,
        {"size": {"shortest_edge": TILE}, "crop_size": SQUARE, "image_grid_pinpoints": GRIDS},
    ),
    "llava_onevision": Recipe(
        tokenizers.onevision_tokenizer, _llava_onevision, {"size": SQUARE, "image_grid_pinpoints": GRIDS}
    ),
    "gemma3": Recipe(tokenizers.gemma_tokenizer, _gemma3, {"size": SQUARE}),
    "idefics3": Recipe(tokenizers.smol_tokenizer, _idefics3, IDEFICS_PIXELS),
    "smolvlm": Recipe(tokenizers.smol_tokenizer, _smolvlm, IDEFICS_PIXELS),
}
"""`model_type` -> how its tiny model is made."""
