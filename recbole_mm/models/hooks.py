"""What a model class offers: the hooks of `base.py`, answered for every class, ours, RecBole's or yours.

>>> from recbole.model.sequential_recommender import SASRec
>>> hooks_of(SASRec).supports_ddp
True
"""

from __future__ import annotations

from typing import Any

from recbole.model.abstract_recommender import SequentialRecommender

from recbole_mm.errors import ConfigError
from recbole_mm.models import base
from recbole_mm.models.base import ModelHooks
from recbole_mm.models.recbole_models import RECBOLE

HOOKS = tuple(name for name in vars(ModelHooks) if not name.startswith("_"))

ABOUT = {
    "ignores_right_padding": ("forward", "full_sort_predict", "get_attention_mask"),
    "supports_ddp": ("calculate_loss",),
    "user_vectors": ("full_sort_predict",),
    "item_vectors": ("full_sort_predict",),
    "materializes_pairs": ("full_sort_predict",),
}
"""Methods that an answer is about: a class that defines one of them anew does not inherit the answer."""

NOT_INHERITED = ("full_sequence_mixin",)


def hooks_of(model_class: type) -> type[ModelHooks]:
    """The hooks of a class: what it states itself or inherits, RecBole's table, or the defaults of `ModelHooks`.

    Flags and class methods are read and called as they are, other methods with the model as their first argument:
    `hooks_of(type(model)).start_epoch(model, epoch)`.

    Args:
        model_class: of any model.
    """
    stated = {name: found for name in HOOKS if (found := _stated(model_class, name)) is not None}
    return type(model_class.__name__, (ModelHooks,), stated)


def has_dot_product(hooks: type[ModelHooks]) -> bool:
    """Whether a class offers both halves of a score, `user_vectors` and `item_vectors`."""
    return {"user_vectors", "item_vectors"} <= vars(hooks).keys()


def reads_content(hooks: type[ModelHooks]) -> bool:
    """Whether a class asks for anything beside interactions, under some settings or under all."""
    return "requirements" in vars(hooks) or bool(hooks.requires)


def full_sequence_class(model_class: type[SequentialRecommender]) -> type[SequentialRecommender]:
    """`model_class` trained on full sequences, under its own name; a class that is trained so already is left as it is.

    Raises:
        ConfigError: the class has no `full_sequence_mixin`.
    """
    name, hooks = model_class.__name__, hooks_of(model_class)
    if hooks.trains_on_full_sequences:
        return model_class
    if hooks.full_sequence_mixin is None:
        known = sorted((model for model, said in RECBOLE.items() if "full_sequence_mixin" in said), reverse=True)
        raise ConfigError(
            f"full_sequence: True is for {', '.join(known)}, DuoRec and models trained so already, not {name}"
        )
    return type(name, (hooks.full_sequence_mixin, model_class), {"__module__": model_class.__module__})


def _stated(model_class: type, name: str) -> Any:
    """What a class or the nearest of its bases says of a hook, bound where it is a class method; None for nothing."""
    for owner in model_class.__mro__:
        if owner.__module__ == base.__name__ or (name in NOT_INHERITED and owner is not model_class):
            continue
        said = vars(owner)
        if name in said:
            found = said[name]
            return staticmethod(found.__get__(None, model_class)) if isinstance(found, classmethod) else found
        if owner.__module__.startswith("recbole.model.") and name in RECBOLE.get(owner.__name__, {}):
            return RECBOLE[owner.__name__][name]
        if any(method in said for method in ABOUT.get(name, ())):
            return None
    return None
