"""CoLLM: collaborative vectors as words of an LLM's prompt (2310.19488)."""

from recbole_mm.models.collm.model import CoLLM

__all__ = ["CoLLM"]
