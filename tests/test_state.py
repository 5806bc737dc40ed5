"""What a model is beside its parameters: noticed when it changes, and put back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.model.abstract_recommender import AbstractRecommender
from scipy import sparse

from recbole_mm.errors import CheckpointError
from recbole_mm.training.checkpoint import load_tree, save_tree
from recbole_mm.training.state import AttributeWatch, load_model_tree, load_weights, model_tree


class Inner(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.temperature = 1.0


class Model(AbstractRecommender):
    """One attribute of every kind that RecBole's models keep."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.inner = Inner()
        self.device = torch.device("cpu")
        self.update = 0
        self.restored = None
        self.graph = torch.eye(3).to_sparse()
        self.counts = torch.zeros(4)
        self.order = np.arange(5)
        self.centres = [torch.zeros(2), torch.zeros(2)]
        self.matrix = sparse.eye(3, format="csr")
        self.register_buffer("cache", torch.zeros(3), persistent=False)
        self.table = torch.zeros(2)
        self.other_parameter_name = ["table"]


CHANGES = {
    "update": lambda model: setattr(model, "update", 7),
    "restored": lambda model: setattr(model, "restored", torch.ones(2)),
    "graph": lambda model: setattr(model, "graph", (2 * torch.eye(3)).to_sparse()),
    "counts": lambda model: model.counts.add_(1),
    "order": lambda model: model.order.__setitem__(0, 9),
    "centres": lambda model: model.centres[1].add_(2),
    "matrix": lambda model: setattr(model, "matrix", 2 * model.matrix),
    "cache": lambda model: model.cache.fill_(4),
    "inner.temperature": lambda model: setattr(model.inner, "temperature", 0.5),
    "new": lambda model: setattr(model, "new", {"a": (1, torch.ones(1))}),
}


def value_of(model, name):
    prefix, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(prefix), attribute)


def plain(value):
    if isinstance(value, torch.Tensor):
        return value.to_dense().tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.toarray().tolist() if sparse.issparse(value) else np.asarray(value).tolist()


def test_nothing_changed_is_nothing_to_save():
    model = Model()
    watch = AttributeWatch(model)
    model.eval(), model.train()
    with torch.no_grad():
        model.layer.weight.add_(1)
    model.table = torch.ones(2)  # saved as other_parameter
    assert watch.changed() == {}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed_saved_and_put_back(name, tmp_path):
    model = Model()
    watch = AttributeWatch(model)
    CHANGES[name](model)
    assert list(watch.changed()) == [name]
    assert list(watch.changed()) == [name]
    save_tree(tmp_path / "model.safetensors", model_tree(model, watch))
    fresh = Model()
    load_weights(fresh, tmp_path / "model.safetensors")
    assert plain(value_of(fresh, name)) == plain(value_of(model, name))
    assert type(value_of(fresh, name)) is type(value_of(model, name))


def test_a_tensor_that_was_thrown_away_is_never_mistaken_for_its_successor():
    model = Model()
    watch = AttributeWatch(model)
    for _ in range(50):  # the new tensor may well be given the old one's address
        model.counts = None
        model.counts = torch.ones(4)
        assert list(watch.changed()) == ["counts"]


def test_other_parameters_are_saved_and_modules_among_them_are_not_twice(tmp_path):
    model = Model()
    model.other_parameter_name = ["table", "layer"]
    model.table = torch.ones(2)
    save_tree(tmp_path / "model.safetensors", model_tree(model))
    tree = load_tree(tmp_path / "model.safetensors")
    assert list(tree["other_parameter"]) == ["table"]
    fresh = Model()
    load_weights(fresh, tmp_path / "model.safetensors")
    assert fresh.table.tolist() == [1, 1]
    assert torch.equal(fresh.layer.weight, model.layer.weight)
    assert isinstance(fresh.layer, torch.nn.Linear)


def test_a_bare_state_dict_loads(tmp_path):
    model, fresh = Model(), Model()
    save_tree(tmp_path / "model.safetensors", dict(model.state_dict()))
    load_weights(fresh, tmp_path / "model.safetensors")
    assert torch.equal(fresh.layer.weight, model.layer.weight)


def test_weights_of_another_model_are_refused_in_one_line():
    tree = model_tree(Model())
    tree["state_dict"]["extra"] = torch.ones(1)
    with pytest.raises(
        CheckpointError, match=r"^run/m\.safetensors: the weights do not fit this Model: .*extra"
    ) as caught:
        load_model_tree(Model(), tree, "run/m.safetensors")
    assert "\n" not in str(caught.value)
