"""The families of multimodal LLMs that can be loaded, imported when first asked for."""

from __future__ import annotations

from importlib import import_module

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
"""`model_type` of a checkpoint's config.json -> its module here and class. Others: `generic.py`."""

NOT_CAUSAL = (
    "blip",
    "blip-2",
    "diffusion_gemma",
    "evolla",
    "florence2",
    "git",
    "idefics",
    "instructblip",
    "instructblipvideo",
    "kosmos-2",
    "kosmos-2.5",
    "pi0",
    "pix2struct",
    "pp_formulanet",
    "t5gemma2",
    "udop",
    "vision-encoder-decoder",
)
"""Types that transformers reads as image-text-to-text, but not as one causal sequence of words and images."""


def is_multimodal(model_type: str) -> bool:
    """Whether models of this type can be loaded: by a family of their own, or by transformers' own processor.

    Example:
        >>> is_multimodal("qwen2_vl"), is_multimodal("llava"), is_multimodal("gpt2")
        (True, True, False)
    """
    if model_type in FAMILIES:
        return True
    auto = import_module("transformers.models.auto.modeling_auto")
    return model_type in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and model_type not in NOT_CAUSAL


def family_class(model_type: str) -> type[Family]:
    """The class of a family.

    Raises:
        KeyError: no such family.

    Example:
        >>> family_class("qwen2_vl").__name__
        'Qwen2VL'
    """
    if model_type not in FAMILIES:
        return import_module(f"{__name__}.generic").generic_family(model_type)
    module, name = FAMILIES[model_type].split(".")
    return getattr(import_module(f"{__name__}.{module}"), name)
