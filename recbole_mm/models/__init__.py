"""A folder per system, a file per baseline: tensors in, scores and losses out. Registered in `recbole_mm.registry`."""
