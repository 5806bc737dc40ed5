"""The families of multimodal LLMs that can be loaded, one module each, imported when first asked for."""

from __future__ import annotations

from importlib import import_module

from recbole_mm.llm.family import Family

FAMILIES = {
    "qwen2_vl": "Qwen2VL",
    "qwen2_5_vl": "Qwen2_5VL",
    "internvl": "InternVL",
    "deepseek_vl": "DeepseekVL",
    "mllama": "Mllama",
    "llava_next": "LlavaNext",
}
"""`model_type` of a checkpoint's config.json, which is also the module's name -> its class."""


def family_class(model_type: str) -> type[Family]:
    """The class of a family.

    Raises:
        KeyError: no such family.
    """
    return getattr(import_module(f"{__name__}.{model_type}"), FAMILIES[model_type])
