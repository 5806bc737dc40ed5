"""Config: which layer wins, what is refused and in which words, and that a saved config comes back equal."""

from __future__ import annotations

import copy
import logging
import os
import sys
from pathlib import Path

import pytest
import torch
import yaml
from recbole.model.sequential_recommender.sasrec import SASRec
from recbole.utils import InputType, ModelType
from recbole.utils.argument_list import dataset_arguments

from recbole_mm.config.kinds import number
from recbole_mm.config.layers import RECBOLE_PROPERTIES, model_yaml
from recbole_mm.config.resolved import Config, properties_dir
from recbole_mm.config.schema import Setting
from recbole_mm.config.settings import SETTINGS
from recbole_mm.config.yaml_settings import parse_argument, read_yaml, write_yaml
from recbole_mm.errors import ConfigError

OVERALL = properties_dir() / "overall.yaml"
LEAVE_ONE_OUT = {
    "split": {"LS": "valid_and_test"},
    "order": "TO",
    "group_by": "user",
    "mode": {"valid": "full", "test": "full"},
}


class Homemade(SASRec):
    """A model nobody registered, with a setting of its own."""

    settings = (Setting("homemade_momentum", number(0, 1), 0.9, "Of nothing."),)

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.momentum = config["homemade_momentum"]


@pytest.fixture(autouse=True)
def no_data_folder_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECBOLE_MM_DATA", raising=False)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(**settings) -> str:
    """The message with which SASRec on ml-100k refuses these settings."""
    with pytest.raises(ConfigError) as caught:
        Config("SASRec", "ml-100k", config_dict=settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- the protocol, by type of model


@pytest.mark.parametrize("model", ["LightGCN", "SASRec", "GRU4RecF", "KGAT", "Pop", "EASE"])
def test_ranking_models_share_one_protocol(model):
    config = Config(model, "ml-100k")
    assert config["eval_args"] == LEAVE_ONE_OUT
    assert config["metrics"] == ["NDCG", "Recall", "MRR", "Hit"]
    assert (config["topk"], config["valid_metric"], config["metric_decimal_place"]) == ([10, 20, 50], "NDCG@10", 6)
    assert config["mask_history"] is True
    assert config["valid_metric_bigger"] is True
    # Time order needs the time to be loaded.
    assert "timestamp" in config["load_col"]["inter"]


def test_sequential_models_alone_are_repeatable():
    assert Config("SASRec", "ml-100k")["repeatable"] is True
    assert Config("LightGCN", "ml-100k")["repeatable"] is False


@pytest.mark.parametrize("model", ["DeepFM", "FM", "WideDeep"])
def test_context_aware_models_keep_recboles_quick_start(model):
    config = Config(model, "ml-100k")
    assert config["metrics"] == ["AUC", "LogLoss"]
    assert config["valid_metric"] == "AUC"
    assert config["eval_args"] == {
        "split": {"RS": [0.8, 0.1, 0.1]},
        "order": "RO",
        "group_by": None,
        "mode": {"valid": "labeled", "test": "labeled"},
    }
    assert config["threshold"] == {"rating": 4}
    assert config["load_col"]["user"] == ["user_id", "age", "gender", "occupation"]
    assert config["train_neg_sample_args"]["distribution"] == "none"


def test_din_keeps_its_own_quick_start():
    config = Config("DIN", "ml-100k")
    assert config["metrics"] == ["AUC", "LogLoss"]
    assert config["eval_args"]["mode"] == {"valid": "uni100", "test": "uni100"}
    assert config["valid_neg_sample_args"] == {"distribution": "uniform", "sample_num": 100}


def test_a_quick_start_loads_what_its_models_need():
    assert set(Config("KGAT", "ml-100k")["load_col"]) >= {"inter", "kg", "link"}
    assert "class" in Config("GRU4RecF", "ml-100k")["load_col"]["item"]


@pytest.mark.parametrize(
    ("model", "negatives", "input_type"),
    [
        ("SASRec", "none", InputType.POINTWISE),  # cross-entropy: RecBole would refuse its own default of one negative
        ("BERT4Rec", "none", InputType.POINTWISE),
        ("FPMC", "uniform", InputType.PAIRWISE),
        ("LightGCN", "uniform", InputType.PAIRWISE),
    ],
)
def test_negative_samples_follow_the_loss(model, negatives, input_type):
    config = Config(model, "ml-100k")
    assert config["train_neg_sample_args"]["distribution"] == negatives
    assert config["MODEL_INPUT_TYPE"] == input_type


def test_bpr_instead_of_cross_entropy_gets_its_negatives_back():
    config = Config("SASRec", "ml-100k", config_dict={"loss_type": "BPR"})
    assert config["train_neg_sample_args"]["distribution"] == "uniform"
    assert config["MODEL_INPUT_TYPE"] == InputType.PAIRWISE


def test_cross_entropy_with_negatives_asked_for_is_refused():
    assert "train_neg_sample_args" in refused(train_neg_sample_args={"distribution": "uniform", "sample_num": 1})


def test_decision_trees_find_their_settings_although_the_file_is_lower_case():
    assert model_yaml(RECBOLE_PROPERTIES / "model", "LightGBM") == RECBOLE_PROPERTIES / "model" / "lightgbm.yaml"
    assert model_yaml(RECBOLE_PROPERTIES / "model", "NoSuchModel") is None


# ---------------------------------------------------------------- layers


def test_each_layer_wins_over_the_one_beneath(tmp_path):
    first = write(tmp_path / "a.yaml", "seed: 1\nepochs: 1\nlearning_rate: 1e-4\nlearner: sgd\n")
    second = write(tmp_path / "b.yaml", "epochs: 2\nlearning_rate: 2e-4\nlearner: adagrad\n")
    config = Config(
        "SASRec",
        "ml-100k",
        config_files=[first, second],
        config_dict={"learning_rate": 3e-4, "learner": "rmsprop"},
        command_line={"learner": "adam"},
    )
    assert (config["seed"], config["epochs"], config["learning_rate"], config["learner"]) == (1, 2, 3e-4, "adam")
    assert config["n_layers"] == 2  # RecBole's SASRec.yaml
    assert config["stopping_step"] == 10  # RecBole's overall.yaml
    assert config.external_config_dict == {"seed": 1, "epochs": 2, "learning_rate": 3e-4, "learner": "adam"}


def test_our_files_lie_over_recboles(tmp_path, monkeypatch):
    ours = tmp_path / "properties"
    write(
        ours / "overall.yaml",
        (properties_dir() / "overall.yaml").read_text(encoding="utf-8") + "\nn_heads: 8\nseed: 5\n",
    )
    write(ours / "model" / "SASRec.yaml", "n_layers: 7\nepochs: 3\n")
    write(ours / "dataset" / "ml-100k.yaml", "epochs: 4\nload_col: {item: [item_id, movie_title]}\n")
    monkeypatch.setattr("recbole_mm.config.layers.properties_dir", lambda: ours)
    config = Config("SASRec", "ml-100k")
    assert config["seed"] == 5
    assert config["n_heads"] == 2  # RecBole's model file lies over our overall.yaml
    assert config["n_layers"] == 7
    assert config["epochs"] == 4
    # What a dataset loads of .item comes on top of what RecBole loads of .inter; a knowledge model keeps its .kg.
    assert set(config["load_col"]) == {"inter", "item"}
    assert set(Config("KGAT", "ml-100k")["load_col"]) == {"inter", "item", "kg", "link"}
    assert Config("KGAT", "ml-100k", config_dict={"load_col": {"inter": ["user_id"]}})["load_col"] == {
        "inter": ["user_id"]
    }


def test_a_dataset_folder_describes_itself(tmp_path):
    write(tmp_path / "mine" / "mine.yaml", "text_fields: [title]\nMAX_ITEM_LIST_LENGTH: 7\nimage_dir: images\n")
    config = Config("SASRec", "mine", command_line={"data_path": str(tmp_path)})
    assert config["text_fields"] == ["title"]
    assert config["image_dir"] == "images"
    assert config["MAX_ITEM_LIST_LENGTH"] == 7
    over = Config("SASRec", "mine", command_line={"data_path": str(tmp_path), "MAX_ITEM_LIST_LENGTH": "9"})
    assert over["MAX_ITEM_LIST_LENGTH"] == 9


@pytest.mark.parametrize("key", ["trust_remote_code", "epochs", "mllm", "checkpoint_dir", "max_image_pixels"])
def test_a_dataset_folder_may_speak_of_nothing_but_its_data(tmp_path, key):
    path = write(tmp_path / "mine" / "mine.yaml", f"{key}: 1\n")
    with pytest.raises(ConfigError, match=key) as caught:
        Config("SASRec", "mine", command_line={"data_path": str(tmp_path)})
    assert str(path) in str(caught.value)


def test_an_undescribed_dataset_loads_what_the_protocol_needs(tmp_path):
    named = {"USER_ID_FIELD": "u", "ITEM_ID_FIELD": "i", "TIME_FIELD": "t", "data_path": str(tmp_path)}
    assert Config("SASRec", "mine", config_dict=named)["load_col"] == {"inter": ["u", "i", "t"]}
    shuffled = Config("BPR", "mine", config_dict={**named, "eval_args": {"split": {"RS": [8, 1, 1]}, "order": "RO"}})
    assert shuffled["load_col"] == {"inter": ["u", "i"]}
    assert Config("BPR", "mine", config_dict={**named, "load_col": None})["load_col"] is None


def test_changing_one_part_of_eval_args_keeps_the_others():
    config = Config("LightGCN", "ml-100k", command_line={"eval_args": "{mode: uni100}"})
    assert config["eval_args"] == LEAVE_ONE_OUT | {"mode": {"valid": "uni100", "test": "uni100"}}
    one_phase = Config("LightGCN", "ml-100k", config_dict={"eval_args": {"mode": {"valid": "uni100", "test": "full"}}})
    assert one_phase["eval_args"]["mode"] == {"valid": "uni100", "test": "full"}


def test_model_and_dataset_may_come_from_any_layer(tmp_path):
    path = write(tmp_path / "run.yaml", "model: SASRec\ndataset: ml-100k\n")
    config = Config(config_files=path)
    assert (config.model, config.dataset, config.model_class) == ("SASRec", "ml-100k", SASRec)
    typed = Config(config_files=[path], command_line={"model": "gru4rec"})
    assert typed["model"] == "GRU4Rec"
    assert Config("light-gcn", config_files=[path])["model"] == "LightGCN"


def test_a_model_class_works_like_a_name(caplog):
    config = Config(Homemade, "ml-100k", config_dict={"homemade_momentum": 0.5, "n_heads": 2})
    assert (config["model"], config.model_class, config["MODEL_TYPE"]) == ("Homemade", Homemade, ModelType.SEQUENTIAL)
    assert config["eval_args"] == LEAVE_ONE_OUT
    assert config["hidden_act"] == "gelu"  # a subclass without settings of its own starts from those of its base
    assert caplog.records == []  # both keys are read by the class or its base


@pytest.mark.parametrize("model", [dict, type("Untyped", (), {"type": "general"})])
def test_a_class_that_is_no_model_is_refused(model):
    with pytest.raises(ConfigError, match="`type`"):
        Config(model, "ml-100k")


# ---------------------------------------------------------------- the command line as text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5E3", 1500.0),
        (".5", 0.5),
        ("-3", -3),
        ("True", True),
        ("None", None),
        ("~", None),
        ("[10,20]", [10, 20]),
        ("['Recall','MRR']", ["Recall", "MRR"]),
        ("{'distribution':'uniform','sample_num':1}", {"distribution": "uniform", "sample_num": 1}),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("007", "007"),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("a=b", "a=b"),
    ],
)
def test_command_line_values_are_yaml(text, value):
    parsed = parse_argument("anything", text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("text_template", "Title: {title}. Genres: {class}", "Title: {title}. Genres: {class}"),
        ("text_template", "{title}", "{title}"),
        ("text_template", "'quoted: text'", "quoted: text"),
        ("text_template", "None", None),
        ("user_inter_num_interval", "[5,inf)", "[5,inf)"),
        ("dataset", "2020", "2020"),
        ("gpu_id", "0,1", "0,1"),
        ("field_separator", '"\\t"', "\t"),
    ],
)
def test_settings_that_are_text_need_no_second_quotes(key, text, value):
    assert parse_argument(key, text) == value


def test_a_text_default_keeps_the_command_line_text():
    assert parse_argument("prompt", "Describe: briefly", default="Say what it is") == "Describe: briefly"
    assert parse_argument("fields", "[a, b]", default="a") == ["a", "b"]


def test_text_that_is_no_yaml_names_the_argument():
    with pytest.raises(ConfigError, match=r"--topk=\[10,20"):
        Config("SASRec", "ml-100k", command_line={"topk": "[10,20"})


def test_nothing_is_read_from_sys_argv_or_written_to_the_environment(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--epochs=77", "--model=BPR"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    config = Config("SASRec", "ml-100k", command_line={"gpu_id": "1"})
    assert (config["model"], config["epochs"]) == ("SASRec", 300)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert config["gpu_id"] == "1"


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("epochs: 1\ntopk: [10, 20\n", "line 3"),
        ("epochs: 1\nthing: !!python/object/apply:os.getcwd []\n", "line 2"),
        ("epochs: 1\nthing: !!python/name:os.system\n", "line 2"),
        ("epochs: 1\nseed: 2\nepochs: 3\n", "line 3"),
        ("- epochs\n- seed\n", "line 1"),
        ("just text\n", "line 1"),
        ("a: {[1]: 2}\n", "line 1"),
        ("epochs: 1\x07\n", "special characters"),
        ("3: 4\n", "3"),
        ("x: " + "[" * 3000, "nested too deeply"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, text, line):
    path = write(tmp_path / "broken.yaml", text)
    with pytest.raises(ConfigError, match=line) as caught:
        Config("SASRec", "ml-100k", config_files=[path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_folder_and_a_binary_file_are_named(tmp_path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"epochs: \xff\xfe")
    for path in (tmp_path / "none.yaml", tmp_path, binary):
        with pytest.raises(ConfigError) as caught:
            Config("SASRec", "ml-100k", config_files=[path])
        assert str(path) in str(caught.value)


def test_an_empty_file_and_a_byte_order_mark_are_fine(tmp_path):
    marked = tmp_path / "marked.yaml"
    marked.write_bytes(b"\xef\xbb\xbfepochs: 3\n")
    config = Config("SASRec", "ml-100k", config_files=[write(tmp_path / "empty.yaml", "# nothing\n"), marked])
    assert config["epochs"] == 3


# ---------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("epochs", "abc", "whole number"),
        ("epochs", 2.5, "whole number"),
        ("epochs", True, "whole number"),
        ("topk", -1, "whole number"),
        ("topk", [10, 0], "whole number"),
        ("topk", [], "whole number"),
        ("learning_rate", "fast", "number above 0"),
        ("learning_rate", 0, "number above 0"),
        ("learning_rate", float("nan"), "number above 0"),
        ("metrics", ["Foo"], "ndcg"),
        ("metrics", "Foo", "ndcg"),
        ("metrics", [], "ndcg"),
        ("valid_metric", "NDCG@11", "ndcg@10"),
        ("valid_metric", "Precision@10", "ndcg@10"),
        ("valid_metric", "NDCG", "ndcg@10"),
        ("mask_history", "yes", "True or False"),
        ("modalities", ["sound"], "image"),
        ("missing_modality", "ignore", "mask, drop, error"),
        ("lr_scheduler", "step", "cosine"),
        ("mllm_dtype", "int8", "bfloat16"),
        ("warmup_ratio", 1.5, "from 0 to 1"),
        ("max_image_pixels", 0, "at least 1"),
        ("item_features", ["x.npy"], "mapping"),
        ("gpu_id", "first", "GPU"),
        ("trust_remote_code", 1, "True or False"),
        ("state", "loud", "DEBUG"),
    ],
)
def test_a_value_of_the_wrong_kind_names_the_key_and_what_is_accepted(key, value, accepted):
    message = refused(**{key: value})
    assert message.startswith(f"{key}:")
    assert accepted in message


@pytest.mark.parametrize(
    "eval_args",
    [
        "full",
        {"splt": {"LS": "valid_and_test"}},
        {"split": None},
        {"split": {"LS": "all"}},
        {"split": {"RS": [0.8, 0.2]}},
        {"split": {"RS": [0.8, 0.1, 0.1], "LS": "valid_and_test"}},
        {"order": "XO"},
        {"group_by": "item"},
        {"mode": "unix"},
        {"mode": None},
        {"mode": {"train": "full"}},
    ],
)
def test_eval_args_are_checked_part_by_part(eval_args):
    assert refused(eval_args=eval_args).startswith("eval_args:")


def test_ranking_and_value_metrics_do_not_mix():
    assert "one kind" in refused(metrics=["NDCG", "AUC"])


def test_value_metrics_need_labels():
    assert "value-based" in refused(metrics=["AUC"], valid_metric="AUC")


def test_metrics_without_a_cut_are_named_as_they_are():
    config = Config("SASRec", "ml-100k", config_dict={"metrics": ["NDCG", "GAUC"], "valid_metric": "GAUC"})
    assert config["valid_metric"] == "GAUC"


def test_a_single_metric_and_a_single_k_become_lists():
    config = Config("SASRec", "ml-100k", command_line={"metrics": "recall", "topk": "5", "valid_metric": "Recall@5"})
    assert (config["metrics"], config["topk"]) == (["recall"], [5])


def test_sequential_models_cannot_be_unrepeatable():
    assert "repeatable" in refused(repeatable=False)


def test_objects_that_could_not_be_saved_are_refused():
    assert refused(text_fields=object()).startswith("text_fields: a object")


@pytest.mark.parametrize("dataset", ["../ml-100k", "", "..", "a/b", "a\\b", "a\nb", "\x1b[2J"])
def test_a_dataset_is_a_folder_name(dataset):
    with pytest.raises(ConfigError, match="dataset"):
        Config("SASRec", dataset)


def test_model_and_dataset_are_needed():
    with pytest.raises(ConfigError, match="--model"):
        Config(dataset="ml-100k")
    with pytest.raises(ConfigError, match="--dataset"):
        Config("SASRec")
    with pytest.raises(ConfigError, match=r"did you mean .*SASRec"):
        Config("SASRce", "ml-100k")


# ---------------------------------------------------------------- warnings


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_unknown_key_is_warned_about_once_with_the_nearest_name(caplog):
    Config("SASRec", "ml-100k", config_dict={"learning_rte": 0.1, "seed": 3}, command_line={"learning_rte": "0.2"})
    assert warnings_of(caplog) == [
        "setting 'learning_rte' is unknown to SASRec and has no effect; did you mean 'learning_rate'?"
    ]


def test_known_keys_are_not_warned_about(caplog):
    known = {"hidden_size": 32, "pre_model_path": "", "wandb_project": "x", "warmup_steps": 3, "numerical_features": []}
    Config("S3Rec", "ml-100k", config_dict=known)
    assert warnings_of(caplog) == []


def test_a_device_is_not_a_setting(caplog):
    config = Config("SASRec", "ml-100k", command_line={"device": "cuda:7"})
    assert config["device"] != torch.device("cuda:7")
    assert warnings_of(caplog) == ["setting 'device' follows from others and has no effect; give use_gpu and gpu_id"]


def test_a_class_declares_its_settings_and_has_those_of_its_bases(caplog):
    config = Config(Homemade, "ml-100k")
    assert {"homemade_momentum", "n_layers", "mask_ratio"} <= config.known_settings()
    assert config["homemade_momentum"] == 0.9
    with pytest.raises(ConfigError, match=r"^homemade_momentum: 2 is not accepted; give a number from 0 to 1$"):
        Config(Homemade, "ml-100k", config_dict={"homemade_momentum": 2})
    assert warnings_of(caplog) == []


def test_a_key_that_a_users_class_does_not_declare_is_not_said_to_have_no_effect(caplog):
    Config(Homemade, "ml-100k", config_dict={"homemade_momentun": 0.5})
    assert warnings_of(caplog) == [
        "setting 'homemade_momentun' is unknown; if Homemade reads it, add it to `settings` of the class; did you mean "
        "'homemade_momentum'?"
    ]


# ---------------------------------------------------------------- data_path and device


def test_data_path_is_typed_then_environment_then_recboles(tmp_path, monkeypatch):
    assert Config("BPR", "mine")["data_path"] == str(Path("dataset/mine"))
    monkeypatch.setenv("RECBOLE_MM_DATA", str(tmp_path / "env"))
    assert Config("BPR", "mine")["data_path"] == str(tmp_path / "env" / "mine")
    typed = Config("BPR", "mine", command_line={"data_path": str(tmp_path / "typed")})
    assert typed["data_path"] == str(tmp_path / "typed" / "mine")


def test_ml_100k_falls_back_to_the_copy_in_the_recbole_wheel(tmp_path):
    fallback = Config("BPR", "ml-100k", command_line={"data_path": str(tmp_path)})
    assert (Path(fallback["data_path"]) / "ml-100k.inter").is_file()
    write(tmp_path / "ml-100k" / "ml-100k.inter", "user_id:token\titem_id:token\n")
    found = Config("BPR", "ml-100k", command_line={"data_path": str(tmp_path)})
    assert found["data_path"] == str(tmp_path / "ml-100k")


def test_the_device_is_the_first_gpu_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert Config("BPR", "ml-100k")["device"] == torch.device("cuda:0")
    assert Config("BPR", "ml-100k", command_line={"gpu_id": "2,0"})["device"] == torch.device("cuda:2")
    assert Config("BPR", "ml-100k", config_dict={"gpu_id": (1, 2)})["device"] == torch.device("cuda:1")
    assert Config("BPR", "ml-100k", config_dict={"use_gpu": False})["device"] == torch.device("cpu")
    assert Config("BPR", "ml-100k", command_line={"gpu_id": ""})["device"] == torch.device("cpu")
    with pytest.raises(ConfigError, match="no GPU 3"):
        Config("BPR", "ml-100k", command_line={"gpu_id": "3"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = Config("BPR", "ml-100k", command_line={"gpu_id": "3"})
    assert (config["device"], config["single_spec"], config["local_rank"]) == (torch.device("cpu"), True, 0)


# ---------------------------------------------------------------- RecBole's manners


def test_reading_is_as_in_recbole():
    config = Config("SASRec", "ml-100k")
    assert config["no_such_setting"] is None
    assert config.epochs == config["epochs"] == 300
    assert not hasattr(config, "no_such_setting")
    assert "epochs" in config
    config["MASK_INDEX"] = "MASK_INDEX"  # RecBole's transforms write into the config
    assert config["MASK_INDEX"] == "MASK_INDEX"


def test_printing_holds_every_setting_and_no_color():
    text = str(Config("SASRec", "ml-100k"))
    assert "\x1b" not in text
    for key in ("learning_rate", "n_layers", "mask_history", "TIME_FIELD"):
        assert f"\n{key} = " in text


def test_two_configs_do_not_influence_each_other():
    mine = {"train_neg_sample_args": {"distribution": "uniform"}, "topk": [10]}
    before = list(dataset_arguments)
    first = Config("BPR", "ml-100k", config_dict=mine)
    assert mine == {"train_neg_sample_args": {"distribution": "uniform"}, "topk": [10]}
    plain = Config("BPR", "ml-100k")
    first["topk"].append(99)
    first["load_col"]["inter"].append("other")
    first["eval_args"]["mode"]["test"] = "uni5"
    first.parameters["Dataset"].append("junk")
    assert Config("BPR", "ml-100k").final_config_dict == plain.final_config_dict
    assert "junk" not in plain.parameters["Dataset"]
    assert dataset_arguments == before
    # Other users of PyYAML and of RecBole's FullLoader keep their own rules.
    assert yaml.safe_load("1e-4") == "1e-4"


def test_a_copy_is_deep():
    config = Config("SASRec", "ml-100k")
    twin = copy.deepcopy(config)
    assert twin.final_config_dict == config.final_config_dict
    twin["topk"].append(99)
    twin["seed"] = 1
    assert (config["topk"], config["seed"]) == ([10, 20, 50], 2020)
    assert twin.model_class is config.model_class


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("model", ["SASRec", "LightGCN", "DeepFM", "KGAT", "GRU4RecF", "DIN", "S3Rec"])
def test_a_saved_config_comes_back_equal(tmp_path, model):
    config = Config(
        model, "ml-100k", config_dict={"text_template": "1e-4", "image_zip": "None", "learning_rate": 1e-05}
    )
    config.save(tmp_path / "config.yaml")
    loaded = Config.load(tmp_path)
    assert loaded.final_config_dict == config.final_config_dict
    assert (loaded.model, loaded.model_class, loaded.dataset) == (config.model, config.model_class, config.dataset)
    assert loaded.as_dict() == config.as_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("model", ["SASRec", "LightGCN", "DeepFM"])
def test_a_saved_config_is_a_config_file_too(tmp_path, model, caplog):
    config = Config(model, "ml-100k", config_dict={"epochs": 3})
    config.save(tmp_path / "config.yaml")
    again = Config(config_files=[tmp_path / "config.yaml"])
    assert again.final_config_dict == config.final_config_dict
    assert warnings_of(caplog) == []


def test_a_saved_config_is_plain_yaml(tmp_path):
    config = Config("SASRec", "ml-100k")
    config.save(tmp_path / "config.yaml")
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert saved == config.as_dict()
    assert list(saved)[:2] == ["model", "dataset"]
    assert (saved["MODEL_TYPE"], saved["device"], saved["data_path"]) == (
        "SEQUENTIAL",
        str(config["device"]),
        "dataset/",
    )


def test_loading_consults_no_layer(tmp_path, monkeypatch):
    config = Config("SASRec", "ml-100k")
    config.save(tmp_path / "config.yaml")
    monkeypatch.setattr("recbole_mm.config.layers.properties_dir", lambda: tmp_path / "nowhere")
    monkeypatch.setenv("RECBOLE_MM_DATA", str(tmp_path))
    assert Config.load(tmp_path / "config.yaml").final_config_dict == config.final_config_dict


def test_loading_an_unregistered_class_needs_the_class(tmp_path):
    config = Config(Homemade, "ml-100k")
    config.save(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="Homemade"):
        Config.load(tmp_path)
    assert Config.load(tmp_path, model=Homemade).final_config_dict == config.final_config_dict


def test_what_is_no_saved_config_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        Config.load(tmp_path)
    with pytest.raises(ConfigError, match="lacks"):
        Config.load(write(tmp_path / "short.yaml", "model: SASRec\n"))
    Config("SASRec", "ml-100k").save(tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    damaged = write(tmp_path / "damaged.yaml", text.replace("seed:", "seed:  1"))
    with pytest.raises(ConfigError, match="damaged"):
        Config.load(damaged)
    text = text.partition("\n")[2]  # the first line, the checksum
    bent = write(tmp_path / "bent.yaml", text.replace("MODEL_TYPE: SEQUENTIAL", "MODEL_TYPE: ODD"))
    with pytest.raises(ConfigError, match="MODEL_TYPE"):
        Config.load(bent)


def test_every_text_survives_the_dumper(tmp_path):
    texts = [
        "1e-4",
        "None",
        "null",
        "~",
        "",
        "007",
        "12:30",
        "2024-01-01",
        "yes",
        " a ",
        "a: b",
        "#x",
        "🙂",
        "a\nb",
        "1_0",
    ]
    values = {"texts": texts, "numbers": [1, 1.0, 1e-5, 1e300, -0.5, True, None], "nested": {"a": {"b": []}}}
    path = write(tmp_path / "x.yaml", write_yaml(values))
    assert read_yaml(path) == values
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == values


# ---------------------------------------------------------------- the files that ship


def shipped() -> list[Path]:
    return sorted(properties_dir().rglob("*.yaml"))


@pytest.mark.parametrize("path", shipped(), ids=lambda path: path.stem)
def test_every_shipped_file_loads_and_opens_with_its_command(path):
    assert read_yaml(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("#")
    assert "run" in first or "recbole-mm " in first


def test_overall_explains_every_key_and_each_passes_its_own_check():
    settings = read_yaml(OVERALL)
    for line in OVERALL.read_text(encoding="utf-8").splitlines():
        if line and not line.strip().startswith("#"):
            assert "# (" in line, f"no meaning beside: {line}"
    for key, value in settings.items():
        assert key in SETTINGS, f"{key} is not checked"
        SETTINGS[key].check(value)
    assert "load_col" not in settings


@pytest.mark.parametrize("path", sorted((RECBOLE_PROPERTIES).rglob("*.yaml")), ids=lambda path: path.stem)
def test_recboles_own_files_read_as_recbole_reads_them(path):
    """Our loader differs from RecBole's in one value only: FEARec's `None`, which its code treats like no value."""

    def without_none_text(value):
        if isinstance(value, dict):
            return {key: without_none_text(entry) for key, entry in value.items()}
        return None if value == "None" else value

    from recbole.config import Config as RecboleConfig

    loader = type("Loader", (yaml.FullLoader,), {})
    original = yaml.FullLoader
    yaml.FullLoader = loader  # RecBole adds its rule to whatever class it finds under this name
    try:
        theirs = yaml.load(path.read_text(encoding="utf-8"), Loader=RecboleConfig._build_yaml_loader(None))  # noqa: S506
    finally:
        yaml.FullLoader = original
    assert read_yaml(path) == without_none_text(theirs or {})


def test_on_is_a_key_like_any_other(tmp_path):
    path = tmp_path / "features.yaml"
    path.write_text("item_features: {words: {encoder: some/model, on: text}}\n")
    given = Config("SASRec", "ml-100k", config_files=[path])["item_features"]
    typed = Config("SASRec", "ml-100k", command_line={"item_features": "{words: {encoder: some/model, on: text}}"})
    assert given == typed["item_features"] == {"words": {"encoder": "some/model", "on": "text"}}
