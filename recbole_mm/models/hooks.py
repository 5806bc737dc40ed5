"""What a model class offers: the hooks of `base.py`, answered for every class, ours, RecBole's or yours.

>>> from recbole.model.sequential_recommender import SASRec
>>> hooks_of(SASRec).supports_ddp
True
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from recbole.model.abstract_recommender import SequentialRecommender

from recbole_mm.config.schema import Setting
from recbole_mm.errors import ConfigError
from recbole_mm.models import base
from recbole_mm.models.base import ModelHooks, RerankingModel
from recbole_mm.models.recbole_models import RECBOLE
from recbole_mm.utils.spelling import likeness

HOOKS = {name: default for name, default in vars(ModelHooks).items() if not name.startswith("_")}
RERANKING_HOOKS = {name: said for name, said in vars(RerankingModel).items() if not name.startswith("_")}

ABOUT = {
    "ignores_right_padding": ("forward", "full_sort_predict", "get_attention_mask"),
    "supports_ddp": ("calculate_loss",),
    "user_vectors": ("full_sort_predict",),
    "item_vectors": ("full_sort_predict",),
    "new_item_vectors": ("full_sort_predict", "item_vectors"),
    "scores_of_histories": ("full_sort_predict",),
    "materializes_pairs": ("full_sort_predict",),
}
"""Methods that an answer is about: a class that defines one of them anew does not inherit the answer."""

NOT_INHERITED = ("full_sequence_mixin",)

ALIKE = 0.9
"""A public name is taken for a misspelt hook from this likeness on; no name in RecBole's classes comes above 0.77."""

EARLIER_NAMES = {"learns": "is_trainable", "splits_batches": "supports_ddp", "pretraining": "is_pretraining"}
"""What flags were called before."""

FLAG, NAMES, CLASS, CLASS_METHOD, METHOD = "True or False", "a tuple of names", "a class", "a class method", "a method"
SETTINGS = "a tuple of `Setting`"

UPSTREAM = ("recbole", "torch", "builtins")
"""Packages whose names mean what they mean there."""


def hooks_of(model_class: type) -> type[ModelHooks]:
    """The hooks of a class: what it states itself or inherits, RecBole's table, or the defaults of `ModelHooks`.

    Flags and class methods are read and called as they are, other methods with the model as their first argument:
    `hooks_of(type(model)).start_epoch(model, epoch)`.

    Args:
        model_class: of any model.

    Raises:
        ConfigError: see `check_hooks`.
    """
    check_hooks(model_class)
    stated = {name: found for name in HOOKS if (found := _stated(model_class, name)) is not None}
    return type(model_class.__name__, (ModelHooks,), stated)


@lru_cache(maxsize=256)  # a server asks with each batch of requests, and words that are spelt alike take milliseconds
def check_hooks(model_class: type) -> None:
    """Refuse what would be passed over in silence. A class is checked once.

    Raises:
        ConfigError: a hook has a value of another kind than its default, or a public name of the class is spelt almost
            as a hook that the class does not have, and is of its kind: a flag, or a method of the same parameters.
    """
    hooks = {**HOOKS, **(RERANKING_HOOKS if issubclass(model_class, RerankingModel) else {})}
    own = dict(_own_names(model_class))
    for name, found in own.items():
        where = f"model {model_class.__name__}: {name}"
        if name in hooks:
            wanted = SETTINGS if name == "settings" else _kind(hooks[name])
            kind = SETTINGS if name == "settings" and found == () else _kind(found)
            if kind != wanted:
                shown = f": {found!r}" if kind is None else f" is {kind}"
                raise ConfigError(f"{where}{shown}, and must be {wanted}; see models/base.py of recbole_mm")
        elif near := _meant(name, found, {hook: said for hook, said in hooks.items() if hook not in own}):
            raise ConfigError(
                f"{where} is no hook, and nothing would read it; did you mean {near}? A name of your own that is meant "
                "so can begin with an underscore"
            )


def _meant(name: str, found: Any, hooks: Mapping[str, Any]) -> str | None:
    """The hook that a name stands for wrongly, if any."""
    if name in EARLIER_NAMES and isinstance(found, (bool, property)):
        return EARLIER_NAMES[name]
    return next((hook for hook in hooks if likeness(name, hook) >= ALIKE and _used_alike(found, hooks[hook])), None)


def _own_names(model_class: type) -> Iterator[tuple[str, Any]]:
    """Public names of a class and its bases, without those of RecBole, torch and `base.py`, and their values."""
    upstream: set[str] = set()
    for owner in reversed(model_class.__mro__):
        if owner.__module__.split(".")[0] in UPSTREAM:
            upstream |= vars(owner).keys()
        elif owner.__module__ != base.__name__:
            for name, found in vars(owner).items():
                if not name.startswith("_") and name not in upstream:
                    yield name, found


def _used_alike(found: Any, default: Any) -> bool:
    return _kind(found) == _kind(default) and _parameters(found) == _parameters(default)


def _kind(value: Any) -> str | None:
    """What a value of a class's namespace is, in words; None for what no hook is."""
    if isinstance(value, bool):
        return FLAG
    if isinstance(value, (tuple, list)) and all(isinstance(name, str) for name in value):
        return NAMES
    if isinstance(value, tuple) and all(isinstance(setting, Setting) for setting in value):
        return SETTINGS
    if value is None or isinstance(value, type):
        return CLASS
    if isinstance(value, (classmethod, staticmethod)):
        return CLASS_METHOD
    return METHOD if inspect.isfunction(value) else None


def _parameters(value: Any) -> list[str]:
    """Names of a function's parameters, without `self` or `cls`."""
    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    if not inspect.isfunction(function):
        return []
    names = list(inspect.signature(function).parameters)
    return names if isinstance(value, staticmethod) else names[1:]


def has_dot_product(hooks: type[ModelHooks]) -> bool:
    """Whether a class offers both halves of a score, `user_vectors` and `item_vectors`."""
    return {"user_vectors", "item_vectors"} <= vars(hooks).keys()


def reads_content(hooks: type[ModelHooks]) -> bool:
    """Return whether a class needs anything besides interactions, under some settings or under all."""
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
