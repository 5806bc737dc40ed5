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
"""`model_type` of a checkpoint's config.json -> its module here and class."""


def family_class(model_type: str) -> type[Family]:
    """The class of a family.

    Raises:
        KeyError: no such family.

    Example:
        >>> family_class("qwen2_vl").__name__
        'Qwen2VL'
    """
    module, name = FAMILIES[model_type].split(".")
    return getattr(import_module(f"{__name__}.{module}"), name)
