"""Mistakes that people make with data and settings of their own end in one line that says what to do."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from recbole.model.abstract_recommender import ContextRecommender, GeneralRecommender
from recbole.model.sequential_recommender import SASRec

import recbole_mm
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.evaluation.splits import split
from recbole_mm.models.hooks import hooks_of
from recbole_mm.registry import list_models
from recbole_mm.runs.recbole_errors import one_line_errors
from tests.conftest import write_toy


@pytest.fixture
def own(tmp_path, toy_settings):
    """`own(model, inter=lines, **settings)`: run a model on a copy of toy with other interactions."""

    def run(model: str, inter: list[str] | None = None, **settings):
        write_toy(tmp_path)
        (tmp_path / "toy" / "toy.kg").unlink()
        if inter is not None:
            (tmp_path / "toy" / "toy.inter").write_text("\n".join(inter) + "\n")
        plain = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "epochs": 1}
        given = {**toy_settings, "data_path": str(tmp_path), **plain, **settings}
        return recbole_mm.run(model, "toy", config_dict=given)

    return run


HEAD = "user_id:token\titem_id:token\ttimestamp:float"


@pytest.mark.parametrize(
    ("inter", "settings", "told"),
    [
        (["user_id:token,item_id:token,timestamp:float", "u1,i1,1"], {}, "columns are separated by"),
        ([HEAD.replace("user_id", "user"), "u1\ti1\t1"], {}, "no column 'user_id' among user, item_id, timestamp"),
        ([HEAD.replace("item_id", "item"), "u1\ti1\t1"], {}, "say --ITEM_ID_FIELD=COLUMN"),
        (None, {"load_col": {"inter": ["user", "item"]}}, "'user_id' of toy.inter is not loaded"),
        (None, {"load_col": ["user_id"]}, r"load_col: \['user_id'\] is not accepted; give a mapping"),
        (None, {"load_col": {"inter": "user_id"}}, "'item_id' of toy.inter is not loaded"),
        (None, {"load_col": None, "unload_col": {"inter": ["item_id"]}}, "'item_id' of toy.inter is not loaded"),
    ],
)
def test_columns_that_are_not_there(own, inter, settings, told):
    with pytest.raises((DataError, ConfigError), match=told):
        own("BPR", inter, **settings)


@pytest.mark.parametrize("interval", ["5", "[50,inf", "[5;inf)", 5, "(a,b)", "", "[9,3]"])
def test_filters_that_are_no_interval(own, interval):
    with pytest.raises(ConfigError, match=r"user_inter_num_interval: .* give an interval such as"):
        own("BPR", user_inter_num_interval=interval)


@pytest.mark.parametrize("interval", ["[3,inf)", "(2,9];[11,40]", " [2.5, INF) ", "[.2e1,infinity)", None])
def test_filters_that_are(own, interval):
    assert own("Pop", user_inter_num_interval=interval).test_result["ndcg@10"] > 0


@pytest.mark.parametrize(("model", "settings"), [("SASRec", {}), ("Molar", {}), ("GRU4Rec", {"full_sequence": True})])
def test_users_too_short_to_train_on(own, model, settings):
    rows = [f"u{user}\ti{(user + step) % 9}\t{step}" for user in range(20) for step in range(2)]
    with pytest.raises(DataError, match=r"nothing is left to train on: eval_args\.split"):
        own(model, [HEAD, *rows], train_neg_sample_args=None, **settings)


def test_a_user_who_has_everything(own):
    rows = [f"u{user}\ti{step}\t{step}" for user in range(20) for step in range(6 if user else 12)]
    rows += [f"u0\ti{step}\t{20 + step}" for step in range(2)]
    with pytest.raises(DataError, match="a user has every item in training"):
        own("BPR", [HEAD, *rows], train_neg_sample_args={"distribution": "uniform", "sample_num": 1}, rm_dup_inter=None)


@pytest.mark.parametrize(
    ("model", "settings", "told"),
    [
        ("SASRec", {"hidden_size": 65}, "not a multiple of the number of attention heads"),
        ("SASRec", {"n_layers": "abc"}, "n_layers: 'abc' is not accepted; give a whole number"),
        ("SASRec", {"hidden_act": "foo"}, "KeyError: 'foo'"),
        ("BPR", {"embedding_size": "abc"}, "embedding_size: 'abc' is not accepted"),
        ("GRU4RecF", {"selected_features": ["nope"], "pooling_mode": "sum"}, "KeyError: 'nope'"),
        ("KGAT", {}, "toy.kg"),
    ],
)
def test_settings_that_recbole_does_not_check(own, model, settings, told):
    with pytest.raises((ConfigError, DataError), match=told) as caught:
        own(model, **settings)
    assert "\n" not in str(caught.value)


def test_click_models_need_labels(own):
    with pytest.raises(DataError, match="AUC need a 'label' for each interaction: a column label:float"):
        own("FM", metrics=["AUC"], valid_metric="AUC", eval_args={"mode": "labeled"})


def test_errors_of_other_code_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), one_line_errors("X"):
        raise ZeroDivisionError
    with pytest.raises(DataError, match="as it was"), one_line_errors("X"):
        raise DataError("as it was")


def test_a_bug_of_a_users_own_model_keeps_its_traceback(own):
    class Mine(SASRec):
        def _init_weights(self, module):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        own(Mine, train_neg_sample_args=None)


def test_sampled_negatives_need_no_labels(own):
    metrics = {"metrics": ["AUC", "LogLoss"], "valid_metric": "AUC", "eval_args": {"mode": "uni5"}}
    assert 0 <= own("DMF", **metrics).test_result["auc"] <= 1


# ---------------------------------------------------------------- what is learnt from


@pytest.mark.parametrize("given", [None, {"distribution": "none"}, {"distribution": None}])
@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("BPR", {}),
        ("LightGCN", {"threshold": {"rating": 3}}),
        ("FPMC", {}),
        ("SASRec", {"loss_type": "BPR"}),
        ("ConvNCF", {}),
        ("VBPR", {}),
        ("KGAT", {}),
        ("RippleNet", {}),
    ],
)
def test_a_model_of_pairs_without_negatives_is_refused_at_once(toy_config, model, settings, given):
    with pytest.raises(ConfigError, match=r"^train_neg_sample_args: \w+.* learns from pairs") as caught:
        toy_config(model, train_neg_sample_args=given, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("SASRec", {"loss_type": "BPR", "full_sequence": True}),  # negatives come with the sequences
        ("SASRecContent", {"loss_type": "BPR"}),
        ("FPMC", {"full_sequence": True}),
        ("MultiVAE", {}),  # whole histories
        ("EASE", {}),
        ("Pop", {}),
        ("BM3", {}),
    ],
)
def test_a_model_that_draws_no_pairs_may_go_without_negatives(toy_config, model, settings):
    assert toy_config(model, train_neg_sample_args=None, **settings)["train_neg_sample_args"]["distribution"] == "none"


def test_a_loss_that_is_none_of_recboles_is_refused(toy_config):
    for given in ("BCE", None):
        with pytest.raises(ConfigError, match=r"^loss_type: .* give CE or BPR$"):
            toy_config("SASRec", loss_type=given)


FULL = {"metrics": ["NDCG"], "valid_metric": "NDCG@10", "eval_args": {"mode": "full"}, "train_neg_sample_args": None}


@pytest.mark.parametrize("model", ["FM", "NeuMF", "NAIS"])
def test_a_model_of_labels_without_any_is_refused(toy_settings, model):
    with pytest.raises(DataError, match=f"{model} learns from labels, and there are none") as caught:
        recbole_mm.run(model, "toy", config_dict={**toy_settings, **FULL})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "negatives", "learnt"),
    [
        ("LightGCN", {"sample_num": 1}, {1}),
        ("NeuMF", {"sample_num": 1}, {1}),
        ("EASE", None, {1}),
        ("NeuMF", None, {0, 1}),
        ("Pop", None, {1}),
    ],
)
def test_only_who_learns_from_labels_learns_from_what_is_labelled_0(toy_config, model, negatives, learnt):
    config = toy_config(model, threshold={"rating": 3}, train_neg_sample_args=negatives)
    train = split(config, create_dataset(config), config.model_class).train_dataset
    assert set(train.inter_feat["label"].tolist()) == learnt


# ---------------------------------------------------------------- unused_col


@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_unused_columns_are_used_by_nobody(toy_config, model):
    config = toy_config(model, unused_col={"inter": "rating"})
    train = create_dataset(config).build()[0].inter_feat
    assert not {"rating", "rating_list"} & set(train.columns)
    assert "rating" not in train
    assert "rating" not in train[[0, 1]]
    assert "timestamp" in train[[0, 1]]


def test_a_list_alone_may_be_unused(toy_config):
    config = toy_config("SASRec", unused_col={"inter": ["rating_list"]})
    train = create_dataset(config).build()[0].inter_feat
    assert "rating" in train[[0]]
    assert "rating_list" not in train[[0]]
    with pytest.raises(KeyError):
        train["rating_list"]
    with pytest.raises(ValueError, match="item_length"):
        train.drop("item_length")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"nofile": "rating"}, "no file toy.nofile is loaded"),
        ({"inter": ["item_id"]}, "no model can do without 'item_id'"),
    ],
)
@pytest.mark.parametrize("model", ["SASRec", "BPR"])
def test_unused_columns_that_are_needed_or_nowhere_are_refused(toy_config, model, given, told):
    with pytest.raises(ConfigError, match=told):
        create_dataset(toy_config(model, unused_col=given)).build()


# ---------------------------------------------------------------- training


def test_no_epoch_leaves_no_best_weights(toy_settings):
    with pytest.raises(ConfigError, match="epochs: 0 leaves no best weights"):
        recbole_mm.run("BPR", "toy", config_dict={**toy_settings, "epochs": 0})
    untrained = {**toy_settings, "epochs": 0, "load_best_model": False}
    assert recbole_mm.run("BPR", "toy", config_dict=untrained).test_result["ndcg@10"] > 0
    assert recbole_mm.run("EASE", "toy", config_dict={**toy_settings, "epochs": 0}).test_result["ndcg@10"] > 0


def test_an_optimizer_for_other_gradients_is_told_in_one_line(toy_settings):
    with pytest.raises(ConfigError, match=r"learner: sparse_adam: SparseAdam does not .*; give adam"):
        recbole_mm.run("BPR", "toy", config_dict={**toy_settings, "learner": "sparse_adam"})


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_one_line_errors_whoever_runs_out_of_it(error):
    told = r"^BPR: not enough memory: .*; lower its sizes or train_batch_size$"
    with pytest.raises(ConfigError, match=told), one_line_errors("BPR"):
        raise error


def test_what_recbole_raises_in_training_is_one_line_errors(toy_settings):
    with pytest.raises(ConfigError, match="SASRec does not accept these settings or this data: IndexError"):
        recbole_mm.run("SASRec", "toy", config_dict={**toy_settings, "n_layers": 0})


def test_models_that_read_labels_are_those_whose_code_does():
    shared = inspect.getsourcefile(GeneralRecommender)
    checked = set()
    for entry in list_models():
        if entry.origin != "RecBole" or entry.type == "external library" or entry.name == "Pop":
            continue  # Pop speaks of labels, and counts positives in any case
        model_class = entry.load()
        files = {inspect.getsourcefile(base) for base in model_class.__mro__ if base.__module__.startswith("recbole.")}
        speaks = any("LABEL" in Path(path).read_text(encoding="utf-8") for path in files - {shared})
        expected = speaks or issubclass(model_class, ContextRecommender)
        assert hooks_of(model_class).reads_labels == expected, entry.name
        checked.add(expected)
    assert checked == {True, False}
