"""Item graphs, sparse from end to end: similar items, items bought together, and both as one normalised matrix."""

from __future__ import annotations

from recbole_mm.graph.co_occurrence import co_occurrence_graph
from recbole_mm.graph.order import TokenOrder
from recbole_mm.graph.refined import normalized, refined_graph, to_torch
from recbole_mm.graph.similarity import similarity_graph

__all__ = ["TokenOrder", "co_occurrence_graph", "normalized", "refined_graph", "similarity_graph", "to_torch"]
