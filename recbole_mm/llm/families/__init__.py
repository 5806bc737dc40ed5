"""The families of LLMs that can be loaded, imported when first asked for."""

from __future__ import annotations

from importlib import import_module

from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from recbole_mm.llm.family import Family

FAMILIES = {
    "qwen2_vl": "qwen2_vl.Qwen2VL",
    "qwen2_5_vl": "qwen2_vl.Qwen2_5VL",
    "qwen3_vl": "qwen2_vl.Qwen3VL",
    "internvl": "internvl.InternVL",
    "deepseek_vl": "deepseek_vl.DeepseekVL",
    "mllama": "mllama.Mllama",
    "llava_next": "llava_next.LlavaNext",
    "llava_onevision": "llava_onevision.LlavaOnevision",
    "gemma3": "gemma3.Gemma3",
    "idefics3": "idefics3.Idefics3",
    "smolvlm": "idefics3.SmolVLM",
}
"""`model_type` of a multimodal checkpoint's config.json -> its module here and class. Others: `generic.py`."""

NOT_CAUSAL = frozenset(
    {
        *("blip", "blip-2", "diffusion_gemma", "evolla", "florence2", "git", "idefics", "instructblip"),
        *("instructblipvideo", "kosmos-2", "kosmos-2.5", "pi0", "pix2struct", "pp_formulanet", "t5gemma2", "udop"),
        "vision-encoder-decoder",
    }
)
"""Types that transformers reads as image-text-to-text, but not as one causal sequence of words and images."""

_NO_TEXT_LLMS = frozenset(
    {
        *MODEL_FOR_MASKED_LM_MAPPING_NAMES,  # encoders, which look ahead
        *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        *("cpmant", "hy_v4", "xlstm"),  # whose states depend on their batch, or that take no word of ours
        *("moshi", "musicgen", "musicgen_melody", "phi4_multimodal", "trocr", "whisper"),
    }
)
"""Types that transformers lists among its causal LMs, and that are none, or not of texts."""


def is_multimodal(model_type: str) -> bool:
    """Whether models of this type read images: by a family of their own, or by transformers' own processor.

    Example:
        >>> [is_multimodal(kind) for kind in ("qwen2_vl", "llava", "gpt2", "blip-2")]
        [True, True, False, False]
    """
    return model_type in FAMILIES or (
        model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and model_type not in NOT_CAUSAL
    )


def is_text_llm(model_type: str) -> bool:
    """Whether checkpoints of this type are text LLMs: transformers reads them as causal LMs of words.

    Example:
        >>> [is_text_llm(kind) for kind in ("llama", "gemma3_text", "gpt2", "bert", "bart", "vit")]
        [True, True, True, False, False, False]
    """
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type, "")
    return name.endswith(("ForCausalLM", "GPT2LMHeadModel")) and model_type not in _NO_TEXT_LLMS


def family_class(model_type: str) -> type[Family]:
    """The class of a family.

    Raises:
        KeyError: no such family.

    Example:
        >>> family_class("qwen2_vl").__name__, family_class("qwen3").__name__
        ('Qwen2VL', 'TextLLM')
    """
    if is_text_llm(model_type):
        return import_module(f"{__name__}.text").text_family(model_type)
    if model_type not in FAMILIES:
        return import_module(f"{__name__}.generic").generic_family(model_type)
    module, name = FAMILIES[model_type].split(".")
    return getattr(import_module(f"{__name__}.{module}"), name)
