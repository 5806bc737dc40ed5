"""Settings, and kinds of them, that several models declare."""

from __future__ import annotations

from typing import Any

from recbole_mm.config.kinds import (
    NAMES,
    Kind,
    above_zero,
    choice,
    is_list_of,
    is_name,
    is_number,
    is_whole,
    number,
    or_null,
    size,
)
from recbole_mm.config.schema import Setting, read_with, section
from recbole_mm.config.settings import SETTINGS as SHARED

WORDS = or_null(Kind(lambda value: isinstance(value, str), "a text", type="str"))
"""What is checked by who reads it."""

TUNING = choice("none", "lora", "full")
"""How an LLM is fine-tuned."""

_LORA = {
    "r": lambda value: is_whole(value, 1),
    "alpha": lambda value: is_number(value, 0),
    "dropout": lambda value: is_number(value, 0, 1) and value < 1,
    "targets": lambda value: value is None or is_list_of(value, is_name),
}


def _is_lora(value: Any) -> bool:
    """Sizes of an adapter; a part that is left out has peft's default."""
    return isinstance(value, dict) and all(name in _LORA and _LORA[name](entry) for name, entry in value.items())


LORA = Kind(_is_lora, "a mapping such as {r: 16, alpha: 32, dropout: 0.05, targets: null}")

VALID = "valid"
"""A weight that is chosen on validation."""

FUSION_WEIGHT = Kind(
    lambda value: value == VALID or is_number(value, 0, 1), "a number from 0 to 1, or valid", type="float or str"
)
"""The weight of one of two scores, see `fusion.py`."""

MODALITY_DROPOUT = Setting(
    "modality_dropout",
    number(0, 1, below=True),
    0.0,
    "Probability that training reads an item without a modality, each one for itself (docs/missing-modalities.md). "
    "Ours; 0: as in the paper.",
)

IMAGE_AND_TEXT = {
    "image": {"encoder": "google/vit-base-patch16-224", "on": "image"},
    "text": {"encoder": "sentence-transformers/all-MiniLM-L6-v2", "on": "text"},
}
ITEM_FEATURES = "name: settings. A dataset's own YAML or the command line replaces the whole map."
"""Features of the multimodal baselines, and what is said of them."""

AN_ITEM = (
    "What an item is. Vectors are computed once and kept; an entry may also be a file of vectors (docs/data-format.md)."
)
"""Heading of the settings of items' features."""

ITEM_CONTENT = (
    Setting("content_features", NAMES, ["image", "text"], "Entries of item_features, each a modality."),
    SHARED["item_features"].but(IMAGE_AND_TEXT, ITEM_FEATURES),
)
"""Which features the multimodal baselines read."""

ITEMS_AS_THEY_ARE = section(
    AN_ITEM,
    *ITEM_CONTENT,
    Setting(
        "feature_normalization",
        choice("none", "l2", "standard"),
        "none",
        "none: as they are, as in the paper; l2: length 1; standard: zero mean, unit spread over items, divided by the "
        "root of the width.",
    ),
)
"""The same under their heading, with vectors that are read as they are unless told otherwise."""

REFINED = read_with(
    {"item_graph": ("refined",)},
    Setting("refined_similar_k", size(1), 10, "refined: similar items per item. MLLMRec: 10."),
    Setting("refined_co_k", size(1), 10, "refined: items of like audience per item. MLLMRec: 10 to 15 by dataset."),
    Setting(
        "refined_threshold", number(-1, 1), 0.7, "refined: least cosine of an edge. MLLMRec: 0.4 to 0.7 by dataset."
    ),
)
"""Of MLLMRec's item graph in the place of a model's own."""

JOINT_ITEMS = (
    Setting("item_llm_learning_rate", above_zero(), 1e-4, "Learning rate of an item LLM that is trained along."),
    Setting(
        "item_llm_negatives",
        choice("cached", "trained"),
        "cached",
        "Items that the loss looks at and that are not in the batch's histories and targets. cached: without "
        "gradients. trained: with gradients, which costs their passes.",
    ),
    Setting(
        "item_llm_staleness",
        or_null(size(0)),
        100,
        "cached: a vector that was computed more batches ago is computed anew before it is read; 0: each time. Null: "
        "once per epoch.",
        read_where={"item_llm_negatives": ("cached",)},
    ),
    Setting(
        "max_tokens_per_batch",
        size(1),
        8192,
        "Most tokens of a pass of a trained item LLM, padding and image patches included. A batch of several passes "
        "computes their activations twice, so this bounds memory. Only speed and memory depend on it.",
    ),
)
"""Of an item LLM that is trained with the recommender (`trained_items.py`)."""
