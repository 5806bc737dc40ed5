"""MLLMRec: user profiles and item texts written by an MLLM, a refined item graph, and two small towers."""

from recbole_mm.models.mllmrec.model import MLLMRec

__all__ = ["MLLMRec"]
