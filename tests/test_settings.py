"""Settings are declared once: what follows from a declaration, and that files and RecBole's code agree with it."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest
import recbole
from recbole.utils.argument_list import dataset_arguments

from recbole_mm.config import properties_dir, reference
from recbole_mm.config.kinds import from_to, kind_like, number, size
from recbole_mm.config.layers import RECBOLE_PROPERTIES, optional_yaml
from recbole_mm.config.recbole_keys import declared_for, unlisted
from recbole_mm.config.resolved import Config
from recbole_mm.config.schema import GROUPS, UNSET, Setting, declared_by, section
from recbole_mm.config.settings import DERIVED, SETTINGS, named
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.experiments.compare.experiment import ALIKE
from recbole_mm.experiments.tune.plan import NOT_TUNED
from recbole_mm.inputs.needs import warn_without_effect
from recbole_mm.models.freedom import FREEDOM
from recbole_mm.models.hooks import check_hooks, hooks_of
from recbole_mm.registry import list_models
from recbole_mm.runs.folder import first_run_dir
from recbole_mm.utils.spelling import did_you_mean, nearest

OURS = [entry for entry in list_models() if entry.origin == "recbole_mm"]
READ = re.compile(r"""config(?:(?:\[|\.get\()\s*|, ?)["'](\w+)["']""")
NOT_SETTINGS = {
    *("train", "valid", "test", "CROP_ITEM_SEQ", "CROP_ITEM_SEQ_LEN", "INVERSE_ITEM_SEQ", "MASK_INDEX"),
    *("MASK_ITEM_SEQ", "NEG_ITEMS", "POS_ITEMS", "REORDER_ITEM_SEQ"),
}
"""What RecBole's code reads of a dict, or writes into a config itself."""


# ---------------------------------------------------------------- kinds


@pytest.mark.parametrize("value", [0, True, 1.0, "2", None, 10**12])
def test_whole_numbers(value):
    assert size(1).accepts(1)
    assert not size(1).accepts(value)
    assert not from_to(1, 3).accepts(value)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "1", True, None])
def test_numbers(value):
    assert number(0, 1).accepts(1)
    assert not number(0, 1, below=True).accepts(1)
    assert not number(0, 1).accepts(value)


@pytest.mark.parametrize("value", [1.0, ["a", 1], None, [-0.1, 1.1], [0.5, 0.6], [float("nan"), 1.0]])
def test_weights_of_modalities(value):
    kind = declared_by(FREEDOM)["modality_weights"].kind
    assert kind.accepts([0, 1])
    assert not kind.accepts(value)


# ---------------------------------------------------------------- declarations


def test_every_setting_says_what_it_means_and_accepts():
    for setting in SETTINGS.values():
        assert setting.kind is not None, setting.name
        assert setting.meaning.endswith((".", "...")), setting.name
        assert setting.group in GROUPS
        if setting.default is not UNSET:
            setting.check(setting.default)
    for argument in dataset_arguments:
        assert argument in SETTINGS


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
def test_every_setting_of_a_model_says_so_too(entry):
    declared = declared_by(entry.load())
    check_hooks(entry.load())
    for name, setting in declared.items():
        assert setting.kind is not None, name
        assert setting.default is not UNSET, name
        setting.check(setting.kind.normal(setting.default))
        if name in SETTINGS:
            assert setting.kind is SETTINGS[name].kind
            assert setting.changes_result == SETTINGS[name].changes_result
            assert setting.group == SETTINGS[name].group


def test_a_subclass_has_the_settings_of_its_base_and_its_own():
    class Mine(FREEDOM):
        settings = (Setting("knn_k", size(3), 5, "More."), Setting("mine", number(0), 0.5, "Mine."))

    declared = declared_by(Mine)
    assert (declared["knn_k"].default, declared["mine"].default) == (5, 0.5)
    assert set(declared) == {*declared_by(FREEDOM), "mine"}


def test_settings_that_are_none_are_refused():
    mine = type("Mine", (FREEDOM,), {"settings": ("knn_k",)})
    with pytest.raises(ConfigError, match=r"settings is a tuple of names, and must be a tuple of `Setting`"):
        check_hooks(mine)


def test_no_value_stays_none_in_a_copy():
    assert copy.deepcopy(UNSET) is pickle.loads(pickle.dumps(UNSET)) is UNSET
    assert not UNSET


def test_a_section_changes_nothing_else():
    (setting,) = section("Here", Setting("a", size(1), 1, "A.", secret=True))
    assert (setting.section, setting.secret, setting.group) == ("Here", True, "model")


def test_what_follows_from_a_declaration():
    assert "train_workers" in named(lambda setting: not setting.changes_result)
    assert {"epochs", "eval_args", "metrics"} <= ALIKE
    assert "dataset" not in ALIKE
    assert NOT_TUNED["seed"] == "a good seed is luck, not a setting"
    assert NOT_TUNED["topk"] == "it decides what a score is"
    assert NOT_TUNED["state"] == "it changes no result"
    assert "learning_rate" not in NOT_TUNED
    assert {"device", "data_files"} <= DERIVED


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
def test_what_decides_that_a_setting_is_read_is_a_setting_of_the_same_model_with_such_values(entry):
    settings = {**SETTINGS, **declared_for(entry.load())}
    for name, setting in settings.items():
        for other, values in setting.read_where.items():
            assert other in settings.keys() - {name}, name
            assert all(settings[other].kind.accepts(value) for value in values), name


@pytest.mark.parametrize(
    ("model", "given", "reasons"),
    [
        ("Molar", {"mirm_weights": {"SA": 2}}, {"mirm_weights": "mirm_tuning is none; it is for lora or full"}),
        ("Molar", {"mirm_weights": {"SA": 2}, "mirm_tuning": "lora"}, {}),
        ("Molar", {"id_model": "none", "tau": 0.2, "alpha": 0, "score": "content"}, {"tau": "id_model is none"}),
        ("Molar", {"dueg": "sasrec", "dueg_lora": {"r": 2}}, {"dueg_lora": "dueg is sasrec; it is for mllm"}),
        (
            "HLLM",
            {"item_llm_staleness": 3},
            {"item_llm_staleness": "item_llm_tuning is frozen; it is for lora or full"},
        ),
        (
            "HLLM",
            {"item_llm_staleness": 3, "item_llm_tuning": "lora"},
            {"item_llm_staleness": "item_llm_negatives is trained; it is for cached"},
        ),
        ("MLLMRec", {"gcn_ui_layers": 3}, {"gcn_ui_layers": "gcn_ui is False; it is for True"}),
        ("MLLMMSR", {"list_orders": 2}, {"list_orders": "answers is scored; it is for listed"}),
        ("FREEDOM", {"missing_content": "image"}, {"missing_content": "missing_rate is 0.0"}),
        ("FREEDOM", {"missing_content": "image", "missing_rate": 0.5}, {}),
        ("SASRec", {"mllm_dtype": "float16"}, {"mllm_dtype": "SASRec reads no LLM here"}),
        ("SASRec", {"text_temperature": 0.5}, {"text_temperature": "SASRec reads no text that an LLM writes"}),
        ("MLLMRec", {"mllm": "smollm2", "text_backend": "hf", "mllm_dtype": "float16"}, {}),
        (
            "MLLMRec",
            {"mllm": "smollm2", "text_backend": "hf", "text_model": "folder", "mllm_dtype": "float16"},
            {"mllm": "text_model writes, and MLLMRec reads no other LLM"},
        ),
        ("MLLMRec", {"trust_remote_code": True}, {}),  # of its sentence encoder
        ("Pop", {"trust_remote_code": True}, {"trust_remote_code": "Pop reads no LLM here"}),
        ("Pop", {"learning_rate": 0.5}, {"learning_rate": "Pop is not trained"}),
        ("SASRec", {"learning_rate": 0.5, "hidden_size": 32, "item_features": {}}, {}),
    ],
)
def test_what_a_run_does_not_read_is_said_of_what_was_asked_for(model, given, reasons, toy_config, caplog):
    config = toy_config(model, **given)
    warn_without_effect(config, hooks_of(config.model_class))
    said = [text for text in caplog.messages if "has no effect" in text and text.split("'")[1] in given]
    assert said == [f"setting {key!r} has no effect: {reason}" for key, reason in reasons.items()]


def test_what_a_file_says_may_serve_many_runs(toy_settings, tmp_path, caplog):
    path = tmp_path / "shared.yaml"
    path.write_text("{mirm_weights: {SA: 2}, learning_rate: 0.5}")
    config = Config("Molar", "toy", config_files=path, config_dict=toy_settings, command_line={"mirm_epochs": "3"})
    warn_without_effect(config, hooks_of(config.model_class))
    assert [text for text in caplog.messages if "mirm" in text] == [
        "setting 'mirm_epochs' has no effect: mirm_tuning is none; it is for lora or full"
    ]


@pytest.mark.parametrize("text", ["0", "0.0", "0e0", "-0.0"])
def test_equal_values_written_otherwise_are_one_run(text):
    typed = Config("BPR", "ml-100k", command_line={"weight_decay": text})
    assert first_run_dir(typed) == first_run_dir(Config("BPR", "ml-100k"))
    other = Config("BPR", "ml-100k", command_line={"weight_decay": "1e-9"})
    assert first_run_dir(other) != first_run_dir(typed)


# ---------------------------------------------------------------- RecBole's settings


def keys_read(paths) -> set[str]:
    return {key for path in paths for key in READ.findall(Path(path).read_text(encoding="utf-8", errors="replace"))}


def files_of(model_class: type) -> set[str]:
    return {inspect.getfile(base) for base in model_class.__mro__ if base.__module__.startswith("recbole.")}


def test_what_recboles_models_read_is_known_of_each():
    for entry in list_models():
        if entry.origin != "RecBole" or "exlib" in entry.target:
            continue
        model_class = entry.load()
        known = Config(entry.name, "ml-100k").known_settings()
        assert keys_read(files_of(model_class)) - known - NOT_SETTINGS == set(), entry.name


def test_what_the_code_around_them_reads_is_known_of_some_model():
    rooms = ("data", "evaluator", "sampler", "trainer", "utils")
    read = keys_read(path for room in rooms for path in (Path(recbole.__file__).parent / room).rglob("*.py"))
    known = {*SETTINGS, *unlisted(type("LightGBM", (), {})), *unlisted(type("XGBoost", (), {}))}
    for path in (RECBOLE_PROPERTIES / "model").glob("*.yaml"):
        known |= optional_yaml(path.parent, path.stem).keys()
    assert read - known - NOT_SETTINGS == set()


def test_no_table_entry_is_there_for_nothing():
    for entry in list_models():
        if entry.origin == "RecBole" and "exlib" not in entry.target:
            model_class = entry.load()
            own = unlisted(model_class) - unlisted(object)
            assert own <= keys_read(files_of(model_class)), entry.name


def test_kinds_follow_from_the_defaults_of_undeclared_settings():
    assert kind_like("x", None) is None
    assert kind_like("n_layers", 2).words == "a whole number from 0 to 1000"


# ---------------------------------------------------------------- guesses


def test_names_are_guessed_in_one_place():
    assert nearest("sasrce", ["sasrec", "bpr"], 1) == ["sasrec"]
    assert did_you_mean("titel", ["title", "genre"]) == "; did you mean 'title'?"
    assert did_you_mean("xyz", map(str, range(30))) == ""
    own = Path(inspect.getfile(Setting)).parent.parent
    using = {path.name for path in own.rglob("*.py") if "difflib" in path.read_text(encoding="utf-8")}
    assert using == {"spelling.py"}


# ---------------------------------------------------------------- files made of them


MADE = reference.files()


@pytest.mark.parametrize("path", MADE, ids=lambda path: path.name)
def test_files_say_what_is_declared(path):
    """If this fails, run `python -m recbole_mm.config.reference`."""
    assert path.read_text(encoding="utf-8") == MADE[path]


@pytest.mark.parametrize("entry", OURS, ids=lambda entry: entry.name)
def test_defaults_of_files_are_those_of_declarations(entry):
    declared = {name: setting.default for name, setting in declared_by(entry.load()).items()}
    assert optional_yaml(properties_dir() / "model", entry.name) == declared


def test_the_page_has_every_setting_of_every_model():
    text = reference.page()
    for entry in list_models():
        assert f"### {entry.name}\n" in text or f"- **{entry.name}**" in text or entry.name == "Pop", entry.name
    for name, setting in SETTINGS.items():
        assert (f"| `{name}` |" in text) != setting.derived


@pytest.mark.parametrize("value", ["~", "1e-3", "on", "yes", "a: b", "", "x y", "10", "é", "#a", "{a}", "[1]", "null"])
def test_values_are_written_as_they_are_read(value, tmp_path):
    path = tmp_path / "x.yaml"
    values = {"a": value, "b": [value, 1e-5, True], "c": {"d": value, "e": None}, "f": 0.0001234}
    path.write_text("".join(f"{key}: {reference.written(entry)}\n" for key, entry in values.items()), encoding="utf-8")
    assert read_yaml(path) == values
