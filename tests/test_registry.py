"""The registry: names to classes, lazily, loud on duplicates, helpful on typos."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import recbole

from recbole_mm import registry
from recbole_mm.errors import ConfigError
from recbole_mm.registry import MODEL_TYPES, find_model, list_models, register_model


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registrations of a test end with it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))


@pytest.mark.parametrize("name", ["SASRec", "sasrec", "SAS-Rec", "sas_rec", "SASREC"])
def test_case_hyphens_and_underscores_do_not_matter(name):
    entry = find_model(name)
    assert (entry.name, entry.type, entry.origin) == ("SASRec", "sequential", "RecBole")
    assert entry.target == "recbole.model.sequential_recommender.sasrec:SASRec"


def test_load_gives_the_class():
    from recbole.model.general_recommender.lightgcn import LightGCN

    assert find_model("LightGCN").load() is LightGCN


def test_molar_is_ours():
    entry = find_model("molar")
    assert (entry.name, entry.type, entry.origin) == ("Molar", "sequential", "recbole_mm")
    assert entry.target == "recbole_mm.models.molar:Molar"
    assert "2412.18176" in entry.paper


def test_every_model_file_of_recbole_is_found():
    files = (Path(recbole.__file__).parent / "model").glob("*_recommender/*.py")
    expected = {path.stem for path in files} - {"__init__", "pop"}  # Pop is mended here
    found = {entry.name.lower() for entry in list_models() if entry.origin == "RecBole"}
    assert found == expected
    assert len(found) > 80


def test_every_model_that_needs_no_other_package_loads():
    for entry in list_models():
        if entry.origin == "RecBole" and entry.type != "external library":
            assert entry.load().__name__ == entry.name


@pytest.mark.parametrize(
    ("name", "paper"),
    [
        (
            "LightGCN",
            'Xiangnan He et al. "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation." '
            "in SIGIR 2020.",
        ),
        # No blank line before "Reference code:" in this file, and a citation over two lines.
        (
            "KD_DAGFM",
            'Zhen Tian et al. "Directed Acyclic Graph Factorization Machines for CTR Prediction via Knowledge '
            'Distillation." in WSDM 2023.',
        ),
        ("Random", ""),
    ],
)
def test_papers_come_from_the_docstring(name, paper):
    assert find_model(name).paper == paper


def test_nearly_every_model_has_a_paper():
    entries = list_models()
    assert sum(bool(entry.paper) for entry in entries) > 0.9 * len(entries)
    for entry in entries:
        assert "\n" not in entry.paper
        assert "Reference" not in entry.paper


def test_the_list_is_sorted_with_others_than_recboles_first():
    register_model("Zebra", "zebra.models:Zebra", type="general")
    entries = list_models()
    ours = [entry.name for entry in entries if entry.origin != "RecBole"]
    assert [entry.name for entry in entries][: len(ours)] == ours
    assert {"Molar", "Zebra"} <= set(ours)
    theirs = [(MODEL_TYPES.index(entry.type), entry.name.lower()) for entry in entries[len(ours) :]]
    assert theirs == sorted(theirs)


@pytest.mark.parametrize(("typo", "meant"), [("SASRce", "SASRec"), ("LigthGCN", "LightGCN"), ("Molr", "Molar")])
def test_a_typo_is_answered_with_the_nearest_names(typo, meant):
    with pytest.raises(ConfigError, match=rf"unknown model '{typo}': did you mean .*{meant}"):
        find_model(typo)


def test_a_name_like_no_other_says_where_to_look():
    with pytest.raises(ConfigError, match="recbole-mm models"):
        find_model("zzzzzzzz")


@pytest.mark.parametrize("name", ["Molar", "molar", "SASRec", "sas-rec"])
def test_a_taken_name_is_refused(name):
    with pytest.raises(ConfigError, match="already registered"):
        register_model(name, "elsewhere:Model")


def test_a_registration_is_refused_twice_but_usable_once(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text("class MyModel:\n    pass\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entry = register_model("MyModel", "my_models:MyModel", paper="Me et al. 2026", type="general")
    assert (entry.origin, entry.paper) == ("my_models", "Me et al. 2026")
    assert find_model("my-model") is entry
    assert entry.load().__module__ == "my_models"
    with pytest.raises(ConfigError, match="my_models:MyModel"):
        register_model("MyModel", "my_models:MyModel")


@pytest.mark.parametrize("target", ["no_colon", ":Model", "module:", "mod ule:Model", "a:b:c"])
def test_a_malformed_target_is_refused(target):
    with pytest.raises(ConfigError, match="module:Class"):
        register_model("Fresh", target)


def test_an_unknown_type_is_refused():
    with pytest.raises(ConfigError, match="sequential"):
        register_model("Fresh", "module:Class", type="magic")


def test_a_missing_package_or_class_is_said_plainly(tmp_path, monkeypatch):
    (tmp_path / "half_a_model.py").write_text("import package_that_is_not_there\n", encoding="utf-8")
    (tmp_path / "empty_module.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'package_that_is_not_there'"):
        register_model("Half", "half_a_model:Half").load()
    with pytest.raises(ConfigError, match="no class 'Empty'"):
        register_model("Empty", "empty_module:Empty").load()


def test_listing_imports_no_model():
    code = (
        "import sys; from recbole_mm.registry import list_models; list_models(); "
        "sys.exit('torch' in sys.modules or any(name.startswith('recbole.model') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
