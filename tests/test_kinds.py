"""What settings accept, what stands for what, and that both rules hold for RecBole's settings and ours alike."""

from __future__ import annotations

import argparse
import os

import pytest

from recbole_mm.config.checks import normalized, settings_of
from recbole_mm.config.layers import RECBOLE_PROPERTIES, properties_dir
from recbole_mm.config.resolved import Config
from recbole_mm.config.schema import declared_by
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.registry import find_model
from recbole_mm.utils.paths import given_path, is_path

HOME = os.path.expanduser("~")
NAN, INF = float("nan"), float("inf")


HAS = {
    "content_features": "VBPR",
    "id_model_path": "Molar",
    "first_stage_path": "MLLMMSR",
    "sentence_encoder": "MLLMRec",
    "pre_model_path": "S3Rec",
    "mf_pretrain_path": "NeuMF",
}
"""A model that has a setting which not all have."""


def refused(model: str = "SASRec", **settings) -> str:
    """The one line with which a model on ml-100k refuses these settings."""
    with pytest.raises(ConfigError) as caught:
        Config(model, "ml-100k", config_dict=settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- a single one is the list of it alone


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("metrics", "NDCG", ["NDCG"]),
        ("topk", 10, [10]),
        ("modalities", "image", ["image"]),
        ("text_fields", "title", ["title"]),
        ("additional_feat_suffix", "ent", ["ent"]),
        ("numerical_features", "rating", ["rating"]),
        ("numerical_features", None, []),
        ("alias_of_user_id", "source", ["source"]),
        ("alias_of_item_id", "item_id_list", ["item_id_list"]),
        ("normalize_field", "rating", ["rating"]),
        ("load_col", {"inter": "user_id", "item": "*", "user": []}, {"inter": ["user_id"], "item": "*", "user": []}),
        ("unload_col", {"inter": "rating"}, {"inter": ["rating"]}),
        ("unused_col", {"inter": "rating"}, {"inter": ["rating"]}),
        ("selected_features", "class", ["class"]),
        ("content_features", "text", ["text"]),
        ("item_sources", "mllm", ["mllm"]),
        ("mirm_objectives", "IT", ["IT"]),
    ],
)
def test_a_single_name_or_number_is_the_list_of_it_alone(key, value, meant):
    settings = settings_of(declared_by(find_model(HAS.get(key, "Molar")).load()), {})
    assert normalized({key: value}, settings) == {key: meant}
    settings[key].check(meant)


def test_it_is_so_from_every_layer(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.yaml").write_text("text_fields: title\nload_col: {inter: user_id}\n")
    config = Config("SASRec", "mine", config_dict={"data_path": str(tmp_path)}, command_line={"normalize_field": "age"})
    assert config["text_fields"] == ["title"]
    assert config["load_col"] == {"inter": ["user_id"]}
    assert config.external_config_dict["normalize_field"] == config["normalize_field"] == ["age"]


@pytest.mark.parametrize("text", ["[train,test]", "train", "[]", "[a,a,b]", "[a,b,c,d]"])
def test_a_given_split_is_three_files(text):
    with pytest.raises(ConfigError, match=r"benchmark_filename: .* three names"):
        Config("BPR", "ml-100k", command_line={"benchmark_filename": text})
    three = Config("BPR", "ml-100k", command_line={"benchmark_filename": "[a, b, c]"})
    assert three["benchmark_filename"] == ["a", "b", "c"]


# ---------------------------------------------------------------- `~` is the home folder


@pytest.mark.parametrize(
    "key",
    [
        *("checkpoint_dir", "artifact_dir", "image_dir", "image_zip", "mllm", "text_model", "resume"),
        *("id_model_path", "first_stage_path", "sentence_encoder", "pre_model_path", "mf_pretrain_path"),
    ],
)
def test_every_setting_that_is_a_path_may_start_at_the_home_folder(key):
    model = HAS.get(key, "SASRec")
    typed = Config(model, "ml-100k", command_line={key: "~/a b/c"})
    assert typed[key] == typed.external_config_dict[key] == f"{HOME}/a b/c"
    assert Config(model, "ml-100k", config_dict={key: "a/~/c"})[key] == "a/~/c"


def test_so_may_data_path_feature_files_and_encoders(monkeypatch):
    config = Config("BPR", "mine", command_line={"data_path": "~/data"})
    assert config["data_path"] == f"{HOME}/data/mine"
    assert config.as_dict()["data_path"] == f"{HOME}/data"
    given = {"a": {"file": "~/a.npy", "ids": "~/a.txt"}, "b": {"encoder": "~/b", "on": "text"}}
    assert Config("BPR", "mine", config_dict={"item_features": given})["item_features"] == {
        "a": {"file": f"{HOME}/a.npy", "ids": f"{HOME}/a.txt"},
        "b": {"encoder": f"{HOME}/b", "on": "text"},
    }
    monkeypatch.setenv("RECBOLE_MM_DATA", "~/other")
    assert Config("BPR", "mine")["data_path"] == f"{HOME}/other/mine"


def test_so_may_arguments_and_config_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my.yaml").write_text("epochs: 3\n")
    assert Config("BPR", "ml-100k", config_files="~/my.yaml")["epochs"] == 3
    assert given_path("~/out") == tmp_path / "out"


def test_a_name_that_no_file_can_have_is_refused_as_such():
    assert [is_path(path) for path in ("a" * 255, "a/" + "é" * 128, "a\0b")] == [True, False, False]
    for key in ("checkpoint_dir", "data_path", "artifact_dir", "image_dir"):
        assert "255 bytes" in refused(**{key: "x/" + "y" * 256})
    for key in ("resume", "mllm", "text_model", "id_model_path", "first_stage_path", "sentence_encoder"):
        assert refused(HAS.get(key, "SASRec"), **{key: "y" * 256}).startswith(f"{key}: 'yyy")
    assert "item_features: " in refused(item_features={"a": {"file": "y" * 256}})
    with pytest.raises(argparse.ArgumentTypeError, match="255 bytes"):
        given_path("y" * 256)
    with pytest.raises(ConfigError, match=r"^cannot read config file y+\.\.\.: File name too long$"):
        Config("BPR", "ml-100k", config_files="y" * 300)
    with pytest.raises(ConfigError, match=r"dataset: .* has 300 bytes"):
        Config("BPR", "z" * 300)


# ---------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"hidden_dropout_prob": NAN}, "hidden_dropout_prob: nan"),
        ({"hidden_dropout_prob": "a"}, "hidden_dropout_prob: 'a'"),
        ({"n_layers": 2.5}, "n_layers: 2.5"),
        ({"n_layers": -1}, "n_layers: -1"),
        ({"hidden_act": 3}, "hidden_act: 3"),
        ({"item_features": {"x": {"encoder": "y", "size": INF}}}, "item_features"),
        ({"unknown_to_all": [1, {"a": NAN}]}, "unknown_to_all: [1, {'a': nan}] holds a number that is not finite"),
        ({"metric_decimal_place": 10**12}, "a whole number from 0 to 18"),
        ({"loss_decimal_place": -1}, "a whole number from 0 to 18"),
        ({"seed": 2**32}, "seed: 4294967296"),
        ({"mllm_image_pixels": 0}, "mllm_image_pixels: 0"),
        ({"max_text_tokens": True}, "max_text_tokens: True"),
        ({"max_text_tokens": ""}, "max_text_tokens: ''"),
        ({"max_text_tokens": 1.5}, "max_text_tokens: 1.5"),
        ({"rm_dup_inter": False}, "rm_dup_inter: False"),
        ({"shuffle": "no"}, "shuffle: 'no'"),
        ({"LIST_SUFFIX": ""}, "LIST_SUFFIX: ''"),
        ({"USER_ID_FIELD": "item_id"}, "ITEM_ID_FIELD and USER_ID_FIELD are both 'item_id'"),
        ({"threshold": {"a": 1, "b": 2}}, "a mapping of one column"),
        ({"threshold": {"rating": "3"}}, "a mapping of one column"),
        ({"val_interval": {"rating": 3}}, "val_interval"),
        ({"seq_len": {"class": 0}}, "seq_len"),
        ({"load_col": {"inter": None}}, "load_col"),
        ({"unused_col": ["rating"]}, "unused_col"),
        ({"text_fields": {"title": 1}}, "text_fields"),
        ({"learning_rate": 1e300}, "learning_rate: 1e+300"),
        ({"n_layers": 10**7}, "a whole number from 0 to 1000"),
        ({"hidden_size": 10**12}, "a whole number from 0 to 1000000000"),
        ({"learner": "nadam"}, "give one of adam, adamw, sgd"),
        ({"clip_grad_norm": {"max": 5}}, "clip_grad_norm"),
        ({"clip_grad_norm": {"max_norm": "5"}}, "clip_grad_norm"),
        ({"tail_ratio": 0}, "tail_ratio: 0"),
    ],
)
def test_a_value_of_another_kind_is_named_with_what_is_accepted(settings, told):
    assert told in refused(**settings)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"sample_num": 0}, "sample_num: 0"),
        ({"sample_num": "1"}, "sample_num: '1'"),
        ({"distribution": "normal"}, "distribution: 'normal'"),
        ({"alpha": -1}, "alpha: -1"),
        ({"dynamic": 1}, "dynamic: 1"),
        ({"dynamic": True}, "candidate_num"),
        ({"sample": 1}, "'sample' is not accepted; give distribution, sample_num"),
        ([1], "[1] is not accepted"),
    ],
)
def test_the_parts_of_train_neg_sample_args_are_checked(given, told):
    assert told in refused("BPR", train_neg_sample_args=given)


@pytest.mark.parametrize(
    ("model", "settings", "told"),
    [
        ("CoLLM", {"collm_title_tokens": None}, "collm_title_tokens: None"),
        ("CoLLM", {"cf_config": {"n_layers": "abc"}}, "cf_config: {'n_layers': 'abc'}"),
        ("Molar", {"dueg_lora": {"r": None}}, "dueg_lora: {'r': None}"),
        ("Molar", {"mirm_seed": -1}, "mirm_seed: -1"),
        ("HLLM", {"temperature": "warm"}, "temperature: 'warm'"),
        ("FREEDOM", {"knn_k": 2.5}, "knn_k: 2.5"),
        ("MLLMRec", {"reasoning": 1}, "reasoning: 1"),
        ("TALLRec", {"first_stage_config": []}, "first_stage_config: []"),
        ("TALLRec", {"sft_epochs": None}, "sft_epochs: None"),
        ("Molar", {"mirm_bottleneck": "yes"}, "mirm_bottleneck: 'yes' is not accepted; give True or False"),
    ],
)
def test_our_models_defaults_tell_the_kinds_of_their_parameters(model, settings, told):
    assert told in refused(model, **settings)


def test_what_a_models_yaml_says_of_null_and_of_cosines_holds():
    accepted = {
        "comparative_instances": None,
        "id_model_config": {"inner_size": None},
        "clip_grad_norm": {"max_norm": 5},
    }
    assert Config("Molar", "ml-100k", config_dict=accepted)["comparative_instances"] is None
    endless = {"clip_grad_norm": {"max_norm": 5, "norm_type": INF}}
    assert Config("SASRec", "ml-100k", config_dict=endless)["clip_grad_norm"]["norm_type"] == INF
    assert Config("MLLMRec", "ml-100k", config_dict={"similar_threshold": -0.5})["similar_threshold"] == -0.5
    assert Config("TALLRec", "ml-100k", config_dict={"tallrec_liked_from": 3.5})["tallrec_liked_from"] == 3.5


# ---------------------------------------------------------------- settings without effect


@pytest.mark.parametrize(
    ("model", "settings", "told"),
    [
        ("BPR", {"save_dataset": True}, "'save_dataset' has no effect: RecBole would pickle the data"),
        ("BPR", {"dataset_save_path": "x.pth"}, "'dataset_save_path' has no effect"),
        ("SASRec", {"save_dataloaders": True}, "'save_dataloaders' has no effect"),
        ("SASRec", {"dataloaders_save_path": "x.pth"}, "'dataloaders_save_path' has no effect"),
        ("BPR", {"enable_scaler": True}, "'enable_scaler' has no effect"),
        ("BPR", {"world_size": 2}, "'world_size' has no effect: give train_workers"),
        ("SASRec", {"full_sequence": True, "transform": "crop_itemseq"}, "'transform' has no effect"),
        ("Molar", {"train_neg_sample_args": {"sample_num": 2}}, "'train_neg_sample_args' has no effect"),
        ("BPR", {"save_dataset": False, "dataset_save_path": None, "POSITION_FIELD": "position_id"}, ""),
        ("SASRec", {"transform": "crop_itemseq"}, ""),
    ],
)
def test_a_setting_that_nothing_reads_is_warned_about(caplog, model, settings, told):
    Config(model, "ml-100k", config_dict=settings)
    said = [record.getMessage() for record in caplog.records if "has no effect" in record.getMessage()]
    assert len(said) == bool(told)
    assert told in "".join(said)


def test_a_long_value_is_not_repeated_whole():
    assert len(refused(n_layers=list(range(10_000)))) < 400


def test_recboles_defaults_tell_the_kinds_of_its_models_parameters():
    defaults = {"n_layers": 2, "n_facet_window": -2, "dropout_prob": 0, "mlp_hidden_size": [8], "x": None}
    kinds = {key: setting.kind for key, setting in settings_of({}, defaults).items()}
    assert kinds["x"] is None
    assert [kinds["n_layers"].accepts(value) for value in (0, 3, -1, 1.5, True, "3")] == [True, True] + [False] * 4
    assert kinds["n_facet_window"].accepts(-1)
    assert [kinds["dropout_prob"].accepts(value) for value in (0.5, INF)] == [True, False]
    assert kinds["mlp_hidden_size"].normal(64) == [64]
    assert not kinds["mlp_hidden_size"].accepts([64, 0.5])


@pytest.mark.parametrize("folder", [RECBOLE_PROPERTIES, properties_dir()], ids=["recbole", "ours"])
def test_every_default_that_ships_is_accepted(folder):
    for path in sorted(folder.rglob("*.yaml")):
        if path.parent.name in ("experiments", "search") or path.stem in ("url", "kg_url"):
            continue
        given = read_yaml(path)
        settings = settings_of({}, given)
        for key, value in normalized(given, settings).items():
            settings[key].check(value)


def test_a_single_layer_is_the_list_of_it_alone():
    assert Config("NeuMF", "ml-100k", command_line={"mlp_hidden_size": "64"})["mlp_hidden_size"] == [64]


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        ("DuoRec", "tau", 1e31),
        ("Molar", "mirm_learning_rate", 1e31),
        ("MLLMMSR", "preference_gap_hours", 1e31),
        ("MLLMRec", "description_words", 10**10),
    ],
)
def test_numbers_of_a_model_have_an_upper_bound(model, key, value):
    assert refused(model, **{key: value}).startswith(f"{key}: {value!r} is not accepted; give a")
