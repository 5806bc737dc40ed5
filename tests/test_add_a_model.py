"""docs/add-a-model.md, run word for word: its four places are filled from the page, and the contract test is asked."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

from recbole_mm import registry
from recbole_mm.config import layers
from recbole_mm.registry import register_model
from tests import test_contract as contract
from tests.conftest import TOY_SETTINGS, write_toy

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NAME = "MeanVector"


def blocks() -> dict[str, list[str]]:
    """The indented blocks of the page by the heading that they stand under."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"^## ", (ROOT / "docs" / "add-a-model.md").read_text(encoding="utf-8"), flags=re.M)[1:]:
        heading, _, text = section.partition("\n")
        runs = re.findall(r"(?:^ {4}.*\n(?:\n+(?= {4}))?)+", text, flags=re.M)
        found[heading] = [textwrap.dedent(run) for run in runs]
    return found


PAGE = blocks()
(CODE,) = PAGE["1. Write the class"]
(YAML,) = PAGE["2. Give it a YAML"]
(LINE,) = PAGE["3. Register it"]
(VARIANT,) = PAGE["4. Let the contract test judge it"]
OUTSIDE, REGISTERED = PAGE["A model of your own package"]


def test_the_page_shows_the_files_of_the_examples():
    assert (EXAMPLES / "mean_vector.py").read_text(encoding="utf-8") == CODE
    assert (EXAMPLES / "MeanVector.yaml").read_text(encoding="utf-8") == YAML


@pytest.fixture
def four_places(tmp_path, monkeypatch):
    """The package with the model of the page in it, as its four steps say."""
    name, target, kind, paper = ast.literal_eval(LINE.strip().removesuffix(","))
    module, _, _ = target.partition(":")
    code = tmp_path / "mean_vector.py"
    code.write_text(CODE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(module, code)
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module, loaded)
    spec.loader.exec_module(loaded)
    properties = shutil.copytree(layers.properties_dir(), tmp_path / "properties")
    (properties / "model" / f"{NAME}.yaml").write_text(YAML, encoding="utf-8")
    monkeypatch.setattr(layers, "properties_dir", lambda: properties)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register_model(name, target, paper=paper, type=kind)
    monkeypatch.setitem(contract.MODELS, *next(iter(ast.literal_eval(f"{{{VARIANT}}}").items())))


@pytest.fixture
def variant(four_places) -> str:
    return NAME


@pytest.fixture
def settings(toy_settings, variant) -> dict:
    return {**toy_settings, **contract.QUICK, **contract.MODELS[variant]}


@pytest.fixture
def whole(variant, settings):
    return contract.run(variant, settings)


def test_its_loss_falls(variant, settings, tmp_path, toy_config):
    contract.test_loss_falls(variant, settings, tmp_path, toy_config)


def test_its_predictions_agree(variant, whole):
    contract.test_predict_agrees_with_full_sort_predict(variant, whole)


def test_it_is_saved_and_loaded(variant, whole):
    contract.test_saved_and_loaded_gives_the_same_scores(variant, whole)


def test_its_result_is_that_of_the_seed(variant, settings, whole):
    contract.test_same_seed_same_result(variant, settings, whole)


def test_it_is_resumed(variant, settings, whole, monkeypatch):
    contract.test_interrupted_and_resumed_equals_uninterrupted(variant, settings, whole, monkeypatch)


@pytest.mark.parametrize("kind", [kind for kind, split in contract.SPLITS.items() if split.in_time])
def test_it_sees_no_held_out_interaction(variant, kind, tmp_path):
    contract.test_no_held_out_interaction_reaches_training(variant, kind, tmp_path)


def test_the_contract_has_no_other_test():
    """One that is added is one that the page must pass, too."""
    found = {name for name in vars(contract) if name.startswith("test_")}
    asked = {name for name in found if f"contract.{name}(" in Path(__file__).read_text(encoding="utf-8")}
    assert found - asked == {"test_what_was_tuned_before_is_not_trained"}


def test_it_runs_from_a_package_of_ones_own(tmp_path, monkeypatch):
    """As the page's last section says, on the small data of the tests."""
    data = write_toy(tmp_path / "data")
    about = {key: TOY_SETTINGS[key] for key in ("load_col", "text_fields", "image_dir")}
    layers_of_data = "\n".join(f"{key}: {value!r}" for key, value in about.items())
    (data / "toy" / "toy.yaml").write_text(layers_of_data + "\n", encoding="utf-8")
    here = shutil.copytree(EXAMPLES, tmp_path / "here")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv(layers.DATA_ENV, str(data))
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    assert '"ml-100k"' in OUTSIDE
    exec(OUTSIDE.replace('"ml-100k"', '"toy"'), {})
    (result,) = here.glob("saved/MeanVector-toy-*/result.json")
    exec(REGISTERED, {})
    assert registry.find_model("mean-vector").load().__module__ == "mean_vector"
    assert result.is_file()
