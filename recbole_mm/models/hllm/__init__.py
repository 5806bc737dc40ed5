"""HLLM: an item LLM and a user LLM, one above the other."""

from recbole_mm.models.hllm.model import HLLM

__all__ = ["HLLM"]
