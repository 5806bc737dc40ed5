"""The families of multimodal LLMs that can be loaded, imported when first asked for."""

from __future__ import annotations

from importlib import import_module

from recbole_mm.llm.family import Family

FAMILIES = {
    "qwen2_vl": "qwen2_vl.Qwen2VL",
    "qwen2_5_vl": "qwen2_vl.Qwen2_5VL",
    "internvl": "internvl.InternVL",
    "deepseek_vl": "deepseek_vl.DeepseekVL",
    "mllama": "mllama.Mllama",
    "llava_next": "llava_next.LlavaNext",
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
