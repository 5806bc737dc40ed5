"""TIGER: items as short codes of their content, and a model that writes the codes of the next item."""

from recbole_mm.models.tiger.model import TIGER

__all__ = ["TIGER"]
