"""The names of what a run asks for beside interactions, known without importing any code that computes it."""

from __future__ import annotations

from recbole_mm.data.features import reads_summaries


def required(config, model_class: type) -> tuple[str, ...]:
    """What a class needs: its `requirements(config)`, where settings decide, else its `requires`."""
    if hasattr(model_class, "requirements"):
        return tuple(model_class.requirements(config))
    return tuple(getattr(model_class, "requires", ()))


def needed(config, model_class: type) -> tuple[str, ...]:
    """What a class needs, and the item texts where a feature of `item_features` is made of them."""
    needs = required(config, model_class)
    if reads_summaries(config["item_features"] or {}) and "item_texts" not in needs:
        return (*needs, "item_texts")
    return needs


def asks_for_inputs(config, model_class: type) -> bool:
    """Whether a run asks for more than interactions: its class for inputs, or its settings for features of items."""
    return bool(needed(config, model_class) or config["item_features"])
