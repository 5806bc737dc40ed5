"""Searches without Ray: spaces, what is refused, records, draws, what a trial does, tables and the picture."""

from __future__ import annotations

import csv
import doctest
import json
import math
import re
import socket
import xml.etree.ElementTree as ElementTree
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from recbole_mm import registry as registry_module
from recbole_mm.cli import main
from recbole_mm.config.layers import properties_dir
from recbole_mm.config.resolved import Config
from recbole_mm.distributed import cluster as cluster_module
from recbole_mm.distributed.cluster import check_resources
from recbole_mm.distributed.trials import TrialResources
from recbole_mm.errors import CheckpointError, ConfigError, RecboleMMError
from recbole_mm.experiments.compare.plan import known_keys
from recbole_mm.experiments.tune import space as space_module
from recbole_mm.experiments.tune.command import tune_model, write_best
from recbole_mm.experiments.tune.draws import Draws, scheduler
from recbole_mm.experiments.tune.plan import Search, plan_search
from recbole_mm.experiments.tune.records import (
    DONE,
    FAILED,
    OUTCOME,
    RUNNING,
    STOPPED,
    Record,
    best_of,
    drop_weights,
    read_records,
    trial_dir,
    write_json,
    write_record,
)
from recbole_mm.experiments.tune.space import default_space, parse_space, read_space
from recbole_mm.experiments.tune.table import write_tables
from recbole_mm.experiments.tune.trial import Job, run_trial
from recbole_mm.experiments.tune.triangle import triangle
from recbole_mm.registry import OWN_MODELS, find_model, register_model
from recbole_mm.runs import folder as run_folder

SPACE = {"learning_rate": {"loguniform": [1e-4, 1e-1]}, "embedding_size": {"choice": [8, 16, 32]}}
CLASSIC = ("BPR", "LightGCN", "FPMC", "GRU4Rec", "SASRec", "BERT4Rec", "SASRecF", "GRU4RecF", "NARM", "Caser")


def write_space(folder: Path, content: dict, name: str = "space.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture
def plan(tmp_path, toy_settings):
    """`plan(space, **options)` -> a search for BPR on `toy`, checked; other settings are of every trial."""

    def build(space: dict | Path = SPACE, model: str = "BPR", **options) -> Search:
        known = {key: options.pop(key) for key in list(options) if key in ("trials", "search", "scheduler", "out")}
        path = space if isinstance(space, Path) else write_space(tmp_path, space)
        grace = options.pop("grace_epochs", None)
        settings = write_space(tmp_path, toy_settings, "settings.yaml")
        return plan_search(
            model, "toy", space=path, config_files=[settings], command_line=options, grace_epochs=grace, **known
        )

    return build


# ---- spaces ----


def test_the_example_of_the_docstring():
    assert doctest.testmod(space_module).failed == 0


def test_what_is_drawn_lies_in_the_space_and_reaches_its_ends():
    space = parse_space(
        {
            "a": {"uniform": [2, 3]},
            "b": {"loguniform": [1e-4, 1]},
            "c": {"randint": [1, 4]},
            "d": {"choice": ["x", [64, 32], None, {"k": 1}]},
        },
        "here",
    )
    drawn = [space.settings(point) for point in space.points(seed=3, count=2000)]
    assert len(drawn) == 2000
    assert all(2 <= one["a"] <= 3 and 1e-4 <= one["b"] <= 1 for one in drawn)
    assert {one["c"] for one in drawn} == {1, 2, 3, 4}, "both ends of randint are included"
    assert {json.dumps(one["d"]) for one in drawn} == {'"x"', "[64, 32]", "null", '{"k": 1}'}
    logs = np.log10([one["b"] for one in drawn])
    assert abs(logs.mean() - -2) < 0.1, "the middle of a logarithmic range is its geometric one"


def test_draws_of_a_seed_are_the_same_and_more_of_them_begin_with_those():
    space = parse_space(SPACE, "here")
    assert space.points(7, 5) == space.points(7, 20)[:5]
    assert space.points(7, 5) != space.points(8, 5)


def test_no_setting_is_drawn_twice_and_a_small_space_is_used_up():
    space = parse_space({"a": {"choice": [1, 2]}, "b": {"randint": [1, 3]}}, "here")
    assert space.size == 6
    points = space.points(1, 50)
    assert len(points) == 6 == len({json.dumps(point) for point in points})


def test_a_mixture_is_a_choice_of_all_weights_that_add_up():
    given = {"mirm_weights": {"mixture": {"names": ["IT", "SA", "UB"], "total": 3}}}
    space = parse_space(given, "here")
    assert space.as_dict() == given
    assert space.size == 10
    found = [space.settings(point)["mirm_weights"] for point in space.points(seed=1, count=50)]
    assert len(found) == 10
    assert all(list(one) == ["IT", "SA", "UB"] and sum(one.values()) == 3 for one in found)
    assert {"IT": 1, "SA": 1, "UB": 1} in found
    assert {"IT": 0, "SA": 3, "UB": 0} in found


def test_the_text_format_of_recbole(tmp_path):
    path = tmp_path / "hyper.test"
    path.write_text(
        "learning_rate loguniform -8,0\n"
        "# a comment\n\n"
        "embedding_size choice [64, 96 , 128]\n"
        "train_batch_size randint 256,512\n"
        "dropout_prob uniform 0.0,1.0\n"
        "mlp_hidden_size choice ['[64,64]','[128,64]']\n"
        "loss_type choice ['CE','BPR']\n"
    )
    found = read_space(path).ranges
    assert found["learning_rate"].kind == "loguniform"
    assert found["learning_rate"].values == pytest.approx((math.exp(-8), 1.0)), "bounds are natural logarithms"
    assert found["embedding_size"].values == (64, 96, 128)
    assert found["train_batch_size"].values == (256, 512)
    assert found["dropout_prob"].values == (0.0, 1.0)
    assert found["mlp_hidden_size"].values == ([64, 64], [128, 64])
    assert found["loss_type"].values == ("CE", "BPR")


def test_the_text_format_evaluates_nothing(tmp_path):
    path = tmp_path / "hyper.test"
    path.write_text(f"k choice [__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()]\n")
    with pytest.raises(ConfigError, match=r"line 1: k: .* cannot be read"):
        read_space(path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("k choice", "not of the form"),
        ("k quniform 1,2,1", "'quniform' is not known"),
        ("k uniform 1", "give two numbers"),
        ("k uniform a,b", "cannot be read"),
        ("k loguniform 0,800", "natural logarithms; these are too large"),
        ("k choice []", "at least one value"),
        ("k uniform 0,1\nk uniform 0,2", "line 2: k is given twice"),
    ],
)
def test_malformed_lines_of_the_text_format(tmp_path, line, message):
    path = tmp_path / "hyper.test"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        read_space(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0.1, "is no range"),
        ([1, 2], "is no range"),
        ({"normal": [0, 1]}, "is no range"),
        ({"choice": [1], "uniform": [0, 1]}, "is no range"),
        ({"choice": []}, "at least one value"),
        ({"choice": 3}, "at least one value"),
        ({"choice": [8, 8]}, "holds a value twice"),
        ({"uniform": [0.5]}, "give two numbers"),
        ({"uniform": [0, 1, 2]}, "give two numbers"),
        ({"uniform": ["a", "b"]}, "give two numbers"),
        ({"uniform": [1, 1]}, "lower bound first"),
        ({"uniform": [1, 0]}, "lower bound first"),
        ({"uniform": [0, math.inf]}, "give two numbers"),
        ({"loguniform": [0, 1]}, "must lie above 0"),
        ({"randint": [0.5, 2]}, "not whole numbers"),
        ({"randint": [True, 4]}, "give two numbers"),
        ({"mixture": ["a", "b"]}, "give different names, at least two"),
        ({"mixture": {"names": ["a"], "total": 3}}, "give different names, at least two"),
        ({"mixture": {"names": ["a", "a"], "total": 3}}, "give different names, at least two"),
        ({"mixture": {"names": ["a", "b"], "total": 0.5}}, "a whole number that their weights add up to"),
        ({"mixture": {"names": ["a", "b"], "total": 3, "sum": 3}}, "as in {names: "),
        ({"mixture": {"names": list("abcdefgh"), "total": 20}}, "of 888030 mixtures; give a smaller total"),
    ],
)
def test_a_malformed_range_is_named_with_its_file_and_setting(given, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_space({"weight": given}, "my.yaml")
    assert str(caught.value).startswith("my.yaml: weight: ")
    assert "\n" not in str(caught.value)


def test_an_empty_space_is_refused(tmp_path):
    for name in ("space.yaml", "hyper.test"):
        (tmp_path / name).write_text("# nothing\n")
        with pytest.raises(ConfigError, match="the search space is empty"):
            read_space(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    for name in ("no.yaml", "no.test"):
        with pytest.raises(ConfigError, match="cannot read"):
            read_space(tmp_path / name)


# ---- spaces that ship ----


def shipped() -> list[str]:
    return sorted(path.stem for path in (properties_dir() / "search").glob("*.yaml"))


def test_every_model_of_ours_and_the_classic_ones_have_a_space():
    ours = {name for name, *_ in OWN_MODELS} - {"Pop"}  # which has no settings
    assert ours | set(CLASSIC) <= set(shipped())


@pytest.mark.parametrize("model", shipped())
def test_a_shipped_space_fits_its_model(model, toy_settings):
    space, config = default_space(model), Config(model, "toy", config_dict=toy_settings)
    assert find_model(model).name == model
    assert set(space.ranges) <= known_keys(config)
    for value in range(max(len(found.extremes()) for found in space.ranges.values())):
        drawn = {key: found.extremes()[value % len(found.extremes())] for key, found in space.ranges.items()}
        Config(model, "toy", config_dict={**toy_settings, **drawn})


def test_a_model_without_a_space_says_what_to_do(plan, toy_settings, tmp_path):
    settings = write_space(tmp_path, toy_settings, "settings.yaml")
    with pytest.raises(ConfigError, match=r"no search space ships for Pop; .* --space=FILE"):
        plan_search("Pop", "toy", config_files=[settings])


# ---- what is refused before anything is spent ----


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"learning_rat": {"uniform": [0.1, 0.2]}}, "unknown to BPR; did you mean 'learning_rate'"),
        ({"n_heads": {"choice": [1, 2]}}, "unknown to BPR"),
        ({"learning_rate": {"uniform": [-1, 1]}}, "learning_rate: -1.0 is not accepted"),
        ({"train_batch_size": {"choice": [64, "many"]}}, "train_batch_size: 'many' is not accepted"),
        ({"topk": {"choice": [[5], [10]]}}, "decides what a score is"),
        ({"eval_args": {"choice": [{"order": "RO"}]}}, "ranked differently"),
        ({"seed": {"randint": [1, 9]}}, "a good seed is luck"),
        ({"checkpoint_dir": {"choice": ["a", "b"]}}, "changes no result"),
        ({"epochs": {"choice": [0, 5]}}, "epochs: 0 leaves out validation"),
        ({}, "the search space is empty"),
    ],
)
def test_a_space_that_does_not_fit(plan, space, message):
    with pytest.raises(ConfigError, match=message) as caught:
        plan(space)
    assert "\n" not in str(caught.value)


WEIGHTS = {"mirm_weights": {"mixture": {"names": ["IT", "SA", "UB"], "total": 3}}}


def test_a_setting_that_no_trial_reads(plan):
    with pytest.raises(ConfigError, match="mirm_weights: searching it has no effect: mirm_tuning is none; it is for"):
        plan(WEIGHTS, "Molar")
    plan(WEIGHTS, "Molar", mirm_tuning="lora")
    plan({**WEIGHTS, "mirm_tuning": {"choice": ["none", "full"]}}, "Molar")  # some trials do


def test_a_setting_of_the_models_own_space_that_no_trial_reads_is_said(toy_settings, tmp_path, caplog):
    settings = write_space(tmp_path, toy_settings, "settings.yaml")
    plan_search("eSASRec", "toy", config_files=[settings], command_line={"full_sequence_loss": "CE"})
    reason = "full_sequence_loss is CE; it is for sampled_softmax or gbce"
    assert f"{default_space('eSASRec').where}: searching n_negatives has no effect: {reason}" in caplog.messages


def test_a_setting_is_either_drawn_or_given(plan):
    with pytest.raises(ConfigError, match="learning_rate: --learning_rate is also given"):
        plan(learning_rate="0.1")


def test_a_metric_that_the_run_does_not_report(plan):
    with pytest.raises(ConfigError, match="valid_metric: 'NDCG@7' is not computed; give one of ndcg@5, ndcg@10"):
        plan(valid_metric="NDCG@7")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_step": "0"}, "eval_step: 0 leaves out validation"),
        ({"eval_args": "{split: {LS: test_only}}"}, "holds out nothing for validation"),
        ({"eval_args": "{split: {RS: [0.8, 0, 0.2]}}"}, "holds out nothing for validation"),
        ({"search": "grid"}, "--search=grid: give one of optuna, random"),
        ({"scheduler": "fifo"}, "--scheduler=fifo: give one of asha, none"),
        ({"trials": 0}, "--trials=0"),
        ({"grace_epochs": 0}, "--grace_epochs=0"),
    ],
)
def test_searches_that_cannot_work(plan, settings, message):
    with pytest.raises(ConfigError, match=message):
        plan(**settings)


def test_optuna_that_is_not_installed(plan, monkeypatch):
    monkeypatch.setattr("recbole_mm.experiments.tune.plan.has_optuna", lambda: False)
    with pytest.raises(ConfigError, match="needs the package optuna: pip install"):
        plan(search="optuna")
    assert plan().search == "random"


def test_a_dataset_that_is_not_there(plan):
    with pytest.raises(RecboleMMError, match="does not exist"):
        plan(data_path="elsewhere")


def asked(**changes) -> TrialResources:
    return TrialResources(**{"cpus": 1, "gpus": 0, "jobs": 0, "address": None, "store_mb": None, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cpus": 64}, "--cpus_per_trial=64: this machine has 4 CPUs; give at most as many"),
        ({"cpus": 0}, "--cpus_per_trial=0: give a number above 0"),
        ({"gpus": 1}, "--gpus_per_trial=1: this machine has 0 GPUs; give at most as many"),
        ({"gpus": -0.5}, "--gpus_per_trial=-0.5: give a number of at least 0"),
        ({"gpus": 1.5}, "--gpus_per_trial=1.5: give a whole number, or a share"),
        ({"jobs": 3, "cpus": 2}, "--jobs=3: this machine has room for 2 at the same time, of 2 CPUs each;"),
        ({"jobs": -1}, "--jobs=-1"),
        ({"store_mb": 10}, "--object_store_mb=10 is too small: Ray needs at least 75"),
        ({"store_mb": 100, "address": "auto"}, "--object_store_mb is for a Ray that is started here"),
        ({"address": "nowhere"}, "--ray_address=nowhere: give auto, host:port"),
    ],
)
def test_resources_that_are_not_there(monkeypatch, changes, message):
    monkeypatch.setattr(cluster_module, "cores", lambda: 4)
    monkeypatch.setattr(cluster_module.torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_resources(asked(**changes))


def test_shares_of_a_gpu_are_counted(monkeypatch):
    monkeypatch.setattr(cluster_module, "cores", lambda: 16)
    monkeypatch.setattr(cluster_module.torch.cuda, "device_count", lambda: 2)
    check_resources(asked(gpus=0.5, jobs=4))
    with pytest.raises(ConfigError, match="room for 4 at the same time"):
        check_resources(asked(gpus=0.5, jobs=5))
    with pytest.raises(ConfigError, match="room for 2 at the same time"):
        check_resources(asked(gpus=0.7, jobs=3))


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_cluster_that_cannot_be_reached_is_told_at_once(form):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers there
        address = form.format(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=r"no Ray cluster can be reached there .*refused") as caught:
            check_resources(asked(address=address))
    assert "\n" not in str(caught.value)


def test_the_command_line_refuses_before_it_writes_or_starts_anything(toy_path, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("recbole_mm.experiments.tune.command.trial_session", lambda _: pytest.fail("Ray was started"))
    space = write_space(tmp_path, {"embeding_size": {"choice": [8]}})
    where = [f"--data_path={toy_path}", f"--checkpoint_dir={tmp_path / 'saved'}", "--topk=[5,10]"]
    command = ["tune", "--model", "BPR", "--dataset", "toy", "--space", str(space), *where]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "did you mean 'embedding_size'" in told
    assert len(told.strip().splitlines()) == 1
    write_space(tmp_path, SPACE)
    assert main([*command, "--gpus_per_trial", "99"]) == 2
    assert "--gpus_per_trial=99" in capsys.readouterr().err
    assert main(["tune", "--model", "BPR"]) == 2
    assert "no dataset is given" in capsys.readouterr().err
    assert not (tmp_path / "saved").exists()


# ---- paths ----


def test_relative_paths_are_made_absolute_and_a_folder_is_found_by_name(plan, monkeypatch, tmp_path, toy_path):
    monkeypatch.chdir(toy_path.parent)
    search = plan(data_path=toy_path.name, checkpoint_dir="kept", artifact_dir="vectors")
    assert search.out == toy_path.parent / "kept" / "tune-BPR-toy"
    shared = search.shared()
    assert shared["data_path"] == str(toy_path)
    assert shared["checkpoint_dir"] == str(toy_path.parent / "kept")
    assert shared["artifact_dir"] == str(toy_path.parent / "vectors")


def test_trials_share_the_artifacts_of_ordinary_runs(plan, tmp_path):
    assert plan().shared()["artifact_dir"] == str(tmp_path / "saved" / "artifacts")


# ---- records ----


def record(number: int, scores=(), status=DONE, **changes) -> Record:
    point = {"learning_rate": 0.01 * number, "embedding_size": number % 3}
    settings = {"learning_rate": 0.01 * number, "embedding_size": (8, 16, 32)[number % 3]}
    pairs = [[epoch, score] for epoch, score in enumerate(scores, start=1)]
    return Record(number, point, settings, status, pairs, **changes)


def test_records_are_read_back_as_they_were_written(tmp_path):
    written = [record(1, [0.1, 0.3, 0.2], seconds=1.5, attempts=1), record(2, status=FAILED, reason="why")]
    for one in written:
        write_record(tmp_path, one)
    assert read_records(tmp_path) == written
    assert written[0].best(True) == (2, 0.3)
    assert written[0].best(False) == (1, 0.1)
    assert written[0].epochs == 3


def test_a_trial_whose_end_was_not_noticed_is_done(tmp_path):
    write_record(tmp_path, record(1, [0.1], status=RUNNING))
    write_record(tmp_path, record(2, [0.1], status=RUNNING))
    write_json(trial_dir(tmp_path, 2) / OUTCOME, {"scores": [[1, 0.1], [2, 0.4]], "seconds": 3.0})
    first, second = read_records(tmp_path)
    assert first.status == RUNNING
    assert (second.status, second.scores, second.seconds) == (DONE, [[1, 0.1], [2, 0.4]], 3.0)


def test_a_damaged_record_says_what_to_do(tmp_path):
    write_record(tmp_path, record(1))
    (trial_dir(tmp_path, 1) / "trial.json").write_text("{")
    with pytest.raises(CheckpointError, match="remove its folder to run it again"):
        read_records(tmp_path)


def test_the_best_trial_is_of_validation_and_a_failed_one_is_never_it():
    records = [
        record(1, [0.1, 0.4, 0.2]),
        record(2, [0.3], STOPPED),
        record(3, [0.9], FAILED),
        record(4, [0.8], RUNNING),
    ]
    assert best_of(records, bigger=True).number == 1
    assert best_of(records, bigger=False).number == 1
    assert best_of([record(3, [0.9], FAILED)], bigger=True) is None
    assert best_of([record(2, [0.4]), record(1, [0.4])], bigger=True).number == 2, "the first of equal ones"


def test_only_the_best_trial_that_has_ended_keeps_its_weights(tmp_path):
    records = [record(1, [0.1]), record(2, [0.5]), record(3, [0.9], RUNNING)]
    for one in records:
        trial_dir(tmp_path, one.number).mkdir(parents=True)
        (trial_dir(tmp_path, one.number) / "model.safetensors").touch()
        (trial_dir(tmp_path, one.number) / "run.log").touch()
    drop_weights(tmp_path, records, bigger=True)
    assert [path.parent.name for path in sorted(tmp_path.rglob("*.safetensors"))] == ["0002", "0003"]
    assert len(list(tmp_path.rglob("run.log"))) == 3


def test_epochs_that_are_reported_again_are_counted_once():
    found = record(1, [0.1, 0.2, 0.3], RUNNING)
    found.add_validation(2, 0.25, 9.0)
    assert found.scores == [[1, 0.1], [2, 0.25]]


# ---- draws ----


def test_random_draws_go_on_where_they_stopped(plan):
    whole = plan(search="random", trials=6)
    fresh: list[Record] = []
    draws = Draws(whole, fresh)
    given = [draws.suggest(f"t{place}") for place in range(6)]
    assert draws.suggest("t7") == "FINISHED"
    assert [one["number"] for one in given] == [1, 2, 3, 4, 5, 6]
    assert [one.settings for one in fresh] == [one["settings"] for one in given]
    for one in fresh[:4]:
        one.status = DONE
    known = [*fresh[:2], fresh[3], fresh[4]]  # 1, 2 and 4 are done, 5 was interrupted, 3 was removed
    again = Draws(whole, known)
    assert again.waiting == 3
    assert [again.suggest(f"u{place}") for place in range(3)] == [given[4], given[2], given[5]]


def test_optuna_draws_in_the_space_and_learns_from_what_it_is_told(plan):
    pytest.importorskip("optuna")
    space = {
        "learning_rate": {"loguniform": [1e-4, 1e-1]},
        "weight_decay": {"uniform": [0, 1]},
        "train_batch_size": {"randint": [1, 512]},
    }
    search = plan(space, search="optuna", trials=60)
    draws, drawn = Draws(search, []), []
    for place in range(60):
        one = draws.suggest(f"t{place}")["settings"]
        drawn.append(one["weight_decay"])
        assert 1e-4 <= one["learning_rate"] <= 1e-1
        assert 1 <= one["train_batch_size"] <= 512
        told = {"score": -abs(one["weight_decay"] - 0.8), "epoch": 1, "training_iteration": 1}
        draws.on_trial_result(f"t{place}", told)
        draws.on_trial_complete(f"t{place}", told)
    late = np.abs(np.array(drawn[-20:]) - 0.8).mean()
    assert late < np.abs(np.array(drawn[:10]) - 0.8).mean() / 2, "later trials are nearer to the best"


def test_a_resumed_optuna_search_knows_what_was_tried_and_first_finishes_what_was_not(plan):
    pytest.importorskip("optuna")
    search = plan(search="optuna", trials=12)
    first: list[Record] = []
    draws = Draws(search, first)
    for place in range(6):
        draws.suggest(f"t{place}")
    for one in first[:4]:
        one.status, one.scores = DONE, [[1, 0.1 * one.number]]
    first[4].status = FAILED
    again = Draws(search, list(first))
    study = again._optuna._ot_study
    assert [trial.state.name for trial in study.trials] == ["WAITING", *["COMPLETE"] * 4, "FAIL"]
    assert [trial.value for trial in study.trials[1:5]] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    interrupted = again.suggest("u0")
    assert interrupted == {"number": 6, "settings": first[5].settings}
    new = [again.suggest(f"u{place}")["settings"] for place in range(1, 7)]
    assert len(again.records) == 12
    assert not [one for one in new if one in [record.settings for record in first]], "draws are not those of before"


def test_a_space_that_the_trials_use_up_is_tried_out_whole(plan):
    search = plan({"embedding_size": {"choice": [8, 16]}, "train_batch_size": {"randint": [64, 65]}}, trials=20)
    assert search.trials == 4
    draws = Draws(search, [])
    found = {json.dumps(draws.suggest(f"t{place}")["settings"]) for place in range(4)}
    assert len(found) == 4


def test_asha_compares_with_trials_of_before_the_interruption(plan):
    search = plan(scheduler="asha", trials=5, epochs="9", grace_epochs=1)
    earlier = [record(1, [0.5] * 9), record(2, [0.6] * 9), record(3, [0.7] * 9)]

    def verdict(records: list[Record]) -> str:
        asha, trial = scheduler(search, records), type("Trial", (), {"trial_id": "new"})()
        asha.on_trial_add(None, trial)
        return asha.on_trial_result(None, trial, {"epoch": 1, "score": 0.1})

    assert verdict(earlier) == "STOP"
    assert verdict([]) == "CONTINUE"


# ---- a trial ----


@pytest.fixture
def job(toy_settings, tmp_path) -> Job:
    shared = {**toy_settings, "artifact_dir": str(tmp_path / "artifacts"), "epochs": 4, "state": "INFO"}
    return Job(find_model("BPR"), "toy", shared, str(tmp_path), 1, 0)


def test_a_trial_trains_and_validates_and_tests_nothing(job, tmp_path):
    told = []
    folder = tmp_path / "trial"
    run_trial(job, {"learning_rate": 0.02}, folder, tmp_path, lambda *values: told.append(values))
    assert [epochs for epochs, *_ in told] == [1, 2, 3, 4]
    best = [best for _, _, best, _ in told]
    assert best == list(np.maximum.accumulate([score for _, score, _, _ in told]))
    assert not (folder / "result.json").exists()
    assert not list(folder.glob("per_user*"))
    log = (folder / "run.log").read_text()
    assert log.count("valid result:") == 4
    assert "test:" not in log
    assert Config.load(folder)["learning_rate"] == 0.02
    outcome = json.loads((folder / OUTCOME).read_text())
    assert outcome["scores"] == [[epochs, score] for epochs, score, _, _ in told]


def test_an_interrupted_trial_goes_on_from_its_last_epoch_and_ends_as_if_it_had_not_been(job, tmp_path):
    straight, told = [], []
    run_trial(job, {}, tmp_path / "straight", tmp_path, lambda *values: straight.append(values[:3]))

    def interrupt(*values):
        told.append(values[:3])
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(job, {}, tmp_path / "broken", tmp_path, interrupt)
    assert not (tmp_path / "broken" / OUTCOME).exists()
    run_trial(job, {}, tmp_path / "broken", tmp_path, lambda *values: told.append(values[:3]))
    assert told == straight
    outcomes = [json.loads((tmp_path / name / OUTCOME).read_text())["scores"] for name in ("straight", "broken")]
    assert outcomes[0] == outcomes[1]
    (tmp_path / "broken" / OUTCOME).unlink()  # as if it had been killed between its last epoch and its end
    last = []
    run_trial(job, {}, tmp_path / "broken", tmp_path, lambda *values: last.append(values[:3]))
    assert last == straight[-1:], "Ray Tune needs a result of every process"
    assert json.loads((tmp_path / "broken" / OUTCOME).read_text())["scores"] == outcomes[0]


def test_a_trial_that_fails_writes_down_why(job, tmp_path):
    with pytest.raises(ConfigError):
        run_trial(job, {"learner": "none"}, tmp_path / "trial", tmp_path, lambda *_: None)
    reason, _, rest = (tmp_path / "trial" / "failure.txt").read_text().partition("\n")
    assert reason.startswith("learner: 'none' is not accepted; give one of adam")
    assert "Traceback" in rest
    run_trial(job, {}, tmp_path / "trial", tmp_path, lambda *_: None)
    assert not (tmp_path / "trial" / "failure.txt").exists(), "of the attempt before"


def test_a_model_that_was_registered_elsewhere_is_known_to_the_trial(job, tmp_path, monkeypatch):
    before = dict(registry_module._registered)
    monkeypatch.setattr(registry_module, "_registered", dict(before))
    entry = register_model("Scripted", "tests.tune_models:Scripted", type="general")
    registry_module._registered = dict(before)  # as in another process
    with pytest.raises(ConfigError, match="unknown model"):
        find_model("Scripted")
    shared = {**job.shared, "ranks": "best", "fails": "nothing", "tally": str(tmp_path / "tally")}
    run_trial(Job(entry, "toy", shared, job.cwd, 1, 0), {}, tmp_path / "trial", tmp_path, lambda *_: None)
    assert Config.load(tmp_path / "trial")["model"] == "Scripted"
    done = [line.split()[0] for line in (tmp_path / "tally").read_text().splitlines()]
    assert done.count("evaluated") == 4, "one for each epoch's validation, none for a test"


def test_trials_that_change_only_alpha_encode_nothing_again(job, tmp_path):
    molar = Job(find_model("Molar"), "toy", {**job.shared, "epochs": 1, "modalities": ["text"]}, job.cwd, 1, 0)
    counts = []
    for number, alpha in enumerate((0.1, 0.5, 0.0), start=1):
        run_trial(molar, {"alpha": alpha}, trial_dir(tmp_path, number), tmp_path, lambda *_: None)
        log = (trial_dir(tmp_path, number) / "run.log").read_text()
        counts.append([int(found) for found in re.findall(r"(\d+) computed", log)])
    assert sum(counts[0]) > 0
    assert [sum(found) for found in counts[1:]] == [0, 0]
    assert len(list((tmp_path / "artifacts").glob("*.sqlite*"))) > 0


# ---- what is written ----


def test_tables_and_the_picture(plan, tmp_path):
    search = plan(trials=5, out=tmp_path / "out")
    search.out.mkdir()
    records = [
        record(1, [0.1, 0.3, 0.2], seconds=61.0, attempts=1),
        record(2, [0.05], STOPPED, seconds=2.0, attempts=1),
        record(3, [], FAILED, reason="it | broke", attempts=2),
        record(4, [0.25, 0.4], seconds=2.0, attempts=1),
    ]
    write_tables(search, records)
    markdown = (search.out / "trials.md").read_text()
    rows = [line for line in markdown.splitlines() if re.match(r"\| \d", line)]
    assert [int(row.split("|")[1]) for row in rows] == [4, 1, 2, 3], "from the best to the worst"
    assert "**0.4000**" in rows[0]
    assert "stopped early" in rows[2]
    assert r"Trial 3 failed: it \| broke" in markdown
    assert "No trial was tested" in markdown
    lines = list(csv.DictReader((search.out / "trials.csv").open()))
    assert [line["score"] for line in lines] == ["0.3", "0.05", "", "0.4"]
    assert [line["status"] for line in lines] == [DONE, STOPPED, FAILED, DONE]
    assert [line["best_epoch"] for line in lines] == ["2", "1", "", "2"]
    assert [line["attempts"] for line in lines] == ["1", "1", "2", "1"]
    assert lines[0]["learning_rate"] == "0.01"
    assert lines[2]["reason"] == "it | broke"
    image = np.asarray(Image.open(search.out / "trials.png").convert("RGB")).astype(int)
    assert image.shape[1] > image.shape[0] / 2
    yellow = (np.abs(image - (253, 231, 37)).sum(-1) < 60).any(1)
    purple = (np.abs(image - (68, 1, 84)).sum(-1) < 60).any(1)
    assert yellow.any()
    assert purple.any()
    assert np.flatnonzero(yellow).mean() < np.flatnonzero(purple).mean(), "the best ends above the worst"


def test_a_mixture_of_three_parts_is_drawn_as_a_triangle(plan, tmp_path):
    space = {"mirm_weights": {"mixture": {"names": ["IT", "SA", "UB"], "total": 2}}, "alpha": {"choice": [0, 0.1]}}
    search = plan(space, model="Molar", trials=12, out=tmp_path / "out", mirm_tuning="full")
    search.out.mkdir()
    weights = [(2, 0, 0), (2, 0, 0), (0, 1, 1), (0, 0, 2)]
    scores = [0.1, 0.3, 0.4, 0.05]
    records = []
    for number, (found, score) in enumerate(zip(weights, scores, strict=True), start=1):
        settings = {"mirm_weights": dict(zip(("IT", "SA", "UB"), found)), "alpha": 0.1}
        point = {"mirm_weights": 0, "alpha": number % 2}
        records.append(Record(number, point, settings, DONE, [[1, score]], 1.0, 1))
    write_tables(search, records)
    svg = ElementTree.parse(search.out / "mirm_weights.svg").getroot()
    spots = [one for one in svg.iter() if one.tag.endswith("circle")]
    told = {spot[0].text: (float(spot.get("cx")), float(spot.get("cy"))) for spot in spots}
    assert set(told) == {"IT: 0.2000", "SA 50 %, UB 50 %: 0.4000", "UB: 0.0500"}, "the mean of equal mixtures"
    top, between, right = (told[name] for name in ("IT: 0.2000", "SA 50 %, UB 50 %: 0.4000", "UB: 0.0500"))
    assert top[1] < between[1] == right[1]
    assert top[0] == between[0] < right[0]
    dark = {spot[0].text: int(spot.get("fill")[1:3], 16) for spot in spots}
    assert dark["SA 50 %, UB 50 %: 0.4000"] < dark["IT: 0.2000"] < dark["UB: 0.0500"]
    assert "best: SA 50 %, UB 50 %" in "".join(svg.itertext())
    assert "&lt;" in triangle("<b>", [({"a": 1, "b": 0, "c": 0}, 0.1)], "ndcg@10", True)


def test_the_best_setting_is_a_config_file_of_what_was_given_and_drawn(plan, tmp_path):
    search = plan(trials=5, out=tmp_path / "out", weight_decay="0.5", state="WARNING")
    search.out.mkdir()
    best = record(2, [0.1, 0.3])
    path = write_best(search, best)
    text, settings = path.read_text(), yaml.safe_load(path.read_text())
    assert f"--config_files={path}" in text.splitlines()[0]
    assert "0.300000 after 2 epochs (trial 2" in text
    assert settings["model"] == "BPR"
    assert settings["learning_rate"] == 0.02
    assert settings["weight_decay"] == 0.5
    assert not {"gpu_id", "use_gpu", "resume", "seed", "MODEL_TYPE", "artifact_dir", "state"} & set(settings)
    config = Config(config_files=[path])
    assert (config["model"], config["dataset"], config["embedding_size"]) == ("BPR", "toy", 32)
    expected = Config("BPR", "toy", config_dict={**search.shared(), **best.settings})
    assert run_folder.first_run_dir(config) == run_folder.first_run_dir(expected), "the same run, by its settings"


# ---- folders ----


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setattr("recbole_mm.experiments.tune.command.trial_session", lambda _: pytest.fail("Ray was started"))


def test_a_folder_is_of_one_search(no_ray, tmp_path, toy_settings):
    out, settings = tmp_path / "out", write_space(tmp_path, toy_settings, "settings.yaml")
    out.mkdir()

    def attempt(space: dict, resume: bool = False, **command_line) -> str:
        given = {"space": write_space(tmp_path, space), "out": out, "resume": resume, "search": "random"}
        with pytest.raises((CheckpointError, pytest.fail.Exception)) as caught:
            tune_model("BPR", "toy", config_files=[settings], command_line=command_line, **given)
        return str(caught.value)

    assert attempt(SPACE) == "Ray was started"
    assert "holds this search already; go on with --resume" in attempt(SPACE)
    assert attempt(SPACE, resume=True) == "Ray was started"
    other = {**SPACE, "embedding_size": {"choice": [8, 16]}}
    assert "is of another search (space: embedding_size:" in attempt(other, resume=True)
    assert "is of another search (settings: weight_decay: None, not 0.5" in attempt(SPACE, True, weight_decay="0.5")
    assert attempt(SPACE, True, state="ERROR", worker="0") == "Ray was started", "that changes no result"


def test_a_search_of_which_every_trial_fails_ends_with_one_line(monkeypatch, tmp_path, toy_settings):
    def fit(search, job, asked, at_once, records):
        for number in (1, 2):
            write_record(search.out, record(number, status=FAILED, reason=f"reason {number}"))

    monkeypatch.setattr("recbole_mm.experiments.tune.command._fit", fit)
    monkeypatch.setattr("recbole_mm.experiments.tune.command.trial_session", lambda _: nullcontext(1))
    settings = write_space(tmp_path, toy_settings, "settings.yaml")
    given = {"space": write_space(tmp_path, SPACE), "out": tmp_path / "out", "config_files": [settings], "trials": 2}
    for resume in (False, True):  # with nothing left to try, too
        with pytest.raises(ConfigError, match="all 2 trials failed, the first one: reason 1") as caught:
            tune_model("BPR", "toy", resume=resume, **given)
        assert "\n" not in str(caught.value)
    assert "Trial 2 failed: reason 2" in (tmp_path / "out" / "trials.md").read_text()
    assert not (tmp_path / "out" / "best").exists()
