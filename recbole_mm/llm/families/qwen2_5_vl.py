"""Qwen2.5-VL: read like Qwen2-VL; its vision tower looks through windows, its decoder is the same."""

from __future__ import annotations

from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLModel

from recbole_mm.llm.families.qwen2_vl import Qwen2VL


class Qwen2_5VL(Qwen2VL):
    """Inputs of a Qwen2.5-VL checkpoint."""

    model_class = Qwen2_5_VLModel
    generation_class = Qwen2_5_VLForConditionalGeneration
