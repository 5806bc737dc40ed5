"""Molar (arXiv 2412.18176): item vectors of a multimodal LLM, read by its own text stack, aligned with an ID model."""

from recbole_mm.models.molar.model import Molar

__all__ = ["Molar"]
