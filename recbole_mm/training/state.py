"""The state that must be saved with the parameters so that a reloaded model and a resumed run equal the originals.

A RecBole model keeps part of itself outside its parameters: `other_parameter` (Pop's counts, ItemKNN's matrix) and
plain attributes that training changes (KGAT's attentive graph, NCL's clusters, MultiVAE's annealing step). RecBole
saves the first and loses the second, so that neither its resumed runs nor its reloaded models need be the same.
"""

from __future__ import annotations

import signal
import threading
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from recbole.model.abstract_recommender import (
    AbstractRecommender,
    ContextRecommender,
    GeneralRecommender,
    KnowledgeRecommender,
    SequentialRecommender,
)
from scipy import sparse
from torch import nn

from recbole_mm.errors import CheckpointError
from recbole_mm.training.checkpoint import PathLike, load_tree

_OWN_ATTRIBUTES = frozenset(vars(nn.Module()))
"""Attributes that torch itself keeps on every module."""

_LARGEST_CONTAINER = 1000
"""A list or dict with more elements is taken for constant data, such as RippleNet's ripple sets."""

_IGNORED = object()


class _TensorMark:
    """Remembers which tensor an attribute held and how often it had been written to, without keeping it in memory."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = weakref.ref(value)
        self.version = 0 if value.is_inference() else value._version

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _TensorMark):
            return NotImplemented
        same = self.value() is not None and self.value() is other.value()
        return same and self.version == other.version

    __hash__ = None  # type: ignore[assignment]


def _mark(value: Any) -> Any:
    """Return what compares equal as long as `value` is unchanged; `_IGNORED` for what cannot be saved anyway."""
    if value is None or isinstance(value, (bool, int, float, str, np.bool_, np.number)):
        return (type(value), value)
    if isinstance(value, nn.Parameter):
        return _IGNORED  # an alias of a weight, such as `_flat_weights` of recurrent layers; a copy would cut it loose
    if isinstance(value, torch.Tensor):
        return _TensorMark(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return (value.shape, value.dtype.str, zlib.crc32(np.ascontiguousarray(value).view(np.uint8).data))
    if sparse.issparse(value):
        return (id(value), value.format, value.nnz)
    if isinstance(value, (list, tuple, Mapping)) and len(value) <= _LARGEST_CONTAINER:
        entries = value.items() if isinstance(value, Mapping) else enumerate(value)
        marks = [(key, _mark(item)) for key, item in entries]
        return _IGNORED if any(mark is _IGNORED for _, mark in marks) else (type(value), marks)
    return _IGNORED


def _attributes(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and value of every plain attribute and non-persistent buffer of the model and its parts."""
    other_parameters = set(model.other_parameter()) if isinstance(model, AbstractRecommender) else set()
    for prefix, module in model.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in _OWN_ATTRIBUTES}
        own |= {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        for name, value in own.items():
            if prefix or name not in other_parameters:
                yield f"{prefix}.{name}" if prefix else name, value


class AttributeWatch:
    """Finds the plain attributes of a model that have changed since the watch began.

    Numbers, text, tensors, numpy arrays and small containers of them are compared by value; a scipy matrix counts as
    changed only when another one replaces it.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> watch = AttributeWatch(model)
        >>> model.annealing_step = 3
        >>> watch.changed()
        {'annealing_step': 3}
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._before = {name: _mark(value) for name, value in _attributes(model)}

    def changed(self) -> dict[str, Any]:
        """Return dotted name -> value of every attribute that is new or different."""
        found = {}
        for name, value in _attributes(self.model):
            mark = _mark(value)
            if mark is not _IGNORED and not (name in self._before and self._before[name] == mark):
                found[name] = value
        return found


def model_tree(model: AbstractRecommender, watch: AttributeWatch | None = None) -> dict[str, Any]:
    """Return everything that the model's scores depend on, for `save_tree`.

    A model that should not store all of its weights (a frozen backbone) leaves them out of its `state_dict` and takes
    them as optional in its `load_state_dict`.
    """
    # Submodules that a model lists as `other_parameter` (DIN, SASRecF) are in `state_dict` already.
    other = {name: value for name, value in model.other_parameter().items() if not isinstance(value, nn.Module)}
    return {
        "state_dict": dict(model.state_dict()),
        "other_parameter": other,
        "attributes": watch.changed() if watch is not None else {},
    }


def load_model_tree(model: AbstractRecommender, tree: Mapping[str, Any], source: PathLike) -> None:
    """Load what `model_tree` returned: weights, other parameters and attributes, onto the model's device.

    Args:
        tree: from `model_tree`, or a bare state dict.
        source: file named in errors.

    Raises:
        CheckpointError: the weights are of another model, or of this one with other sizes.
    """
    device = _device_of(model)
    try:
        model.load_state_dict(tree.get("state_dict", tree))
        model.load_other_parameter(_to_device(tree.get("other_parameter", {}), device))
        for name, value in tree.get("attributes", {}).items():
            prefix, _, attribute = name.rpartition(".")
            module = model.get_submodule(prefix)
            current = vars(module).get(attribute, module._buffers.get(attribute))
            place = current.device if isinstance(current, torch.Tensor) else device
            setattr(module, attribute, _to_device(value, place))
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{source}: the weights do not fit this {type(model).__name__}: {reason}") from error


def load_weights(model: AbstractRecommender, path: PathLike) -> None:
    """Load a run's `model.safetensors` into `model`, which then scores as it did when the file was written.

    Args:
        model: built from the same configuration and dataset.
        path: a file of `model_tree`, or any safetensors file whose tensors carry the model's parameter names.

    Raises:
        CheckpointError: the file is missing, damaged or a pickle, or its weights do not fit.
    """
    load_model_tree(model, load_tree(path), path)


def _device_of(model: nn.Module) -> torch.device:
    if isinstance(model, (GeneralRecommender, SequentialRecommender, KnowledgeRecommender, ContextRecommender)):
        return torch.device(model.device)
    return next((tensor.device for tensor in model.parameters()), torch.device("cpu"))


def _to_device(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in it on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_device(item, device) for item in value)
    return value


def loader_state(loader: Any) -> dict[str, Any]:
    """Return the position of a loader: its own `state_dict`, or the state of its generators."""
    if hasattr(loader, "state_dict"):
        return {"own": loader.state_dict()}
    return {"generators": {name: generator.get_state() for name, generator in _generators(loader)}}


def load_loader_state(loader: Any, state: Mapping[str, Any]) -> None:
    """Set a loader to what `loader_state` returned.

    Raises:
        CheckpointError: the state is of another kind of loader.
    """
    generators = dict(_generators(loader))
    if "own" in state and hasattr(loader, "load_state_dict"):
        loader.load_state_dict(state["own"])
    elif generators.keys() == state.get("generators", {None: None}).keys():
        for name, generator in generators.items():
            generator.set_state(state["generators"][name])
    else:
        raise CheckpointError("the checkpoint was written with another kind of training loader; start a new run")


def _generators(loader: Any) -> Iterator[tuple[str, torch.Generator]]:
    parts = {"": loader, **{k: v for k, v in vars(loader).items() if isinstance(v, torch.utils.data.DataLoader)}}
    for name, part in parts.items():
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            yield name, generator


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C until the block has ended, so that it never falls between training and saving an epoch."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, Any]] = []
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, lambda number, frame: waiting.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if handler is None else handler)
    if waiting and callable(handler):
        handler(*waiting[0])
