"""No file of a few lines and no argument takes all memory or time, and equal settings are one, however written."""

from __future__ import annotations

import time

import pytest

from recbole_mm.cli.compare import parse_seeds
from recbole_mm.config.resolved import Config
from recbole_mm.config.yaml_settings import canonical, plain, read_yaml
from recbole_mm.errors import CheckpointError, ConfigError
from recbole_mm.experiments.compare.command import compare_experiment
from recbole_mm.experiments.compare.experiment import load_experiment
from recbole_mm.experiments.tune.plan import plan_search
from recbole_mm.experiments.tune.space import parse_space, read_space
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline

NESTED = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 20)
)
MERGED = "a0: &a0 {x0: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}], x{n}: 1}}\n" for n in range(1, 20)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (NESTED, "line 6: with its aliases, this stands for more than 100,000 values"),
        (MERGED, "with its aliases, this stands for more than 100,000 values"),
        ("a: &a [*a]\n", "line 1: an alias stands inside what it is an alias of"),
        ("a: &a {b: {c: *a}}\n", "line 1: an alias stands inside"),
        ("b: 1\na: &a\n  <<: *a\n", "line 2: an alias stands inside"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: 0x" + "f" * 5000, "a whole number of 20000 bits"),
        ("a: " + "9" * 5000, "integer string"),
        ("# " + "x" * 4_000_000, "more than 4,000,000 bytes"),
    ],
    ids=["aliases", "merges", "itself", "itself-below", "itself-merged", "deep", "endless", "hex", "digits", "bytes"],
)
def test_what_a_file_stands_for_is_bounded(tmp_path, text, told):
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        Config("SASRec", "ml-100k", config_files=path)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert time.process_time() - start < 20


def test_an_alias_used_twice_is_read(tmp_path):
    path = tmp_path / "fine.yaml"
    path.write_text("base: &b {x: [1, 2]}\none: *b\ntwo: {<<: *b, y: 3}\n")
    assert read_yaml(path) == {"base": {"x": [1, 2]}, "one": {"x": [1, 2]}, "two": {"x": [1, 2], "y": 3}}


def test_values_given_in_python_are_bounded_alike():
    itself: list = []
    itself.append(itself)
    doubled: list = ["x"]
    for _ in range(40):
        doubled = [doubled, doubled]
    for value in (itself, doubled, {"a": itself}, [0] * 200_000):
        with pytest.raises(ConfigError, match=r"^key: holds more than 100,000 values, or is nested"):
            plain("key", value)
    with pytest.raises(ConfigError, match="20000 bits"):
        plain("key", 2**19999)
    with pytest.raises(ConfigError, match="a tuple is no name"):
        plain("key", {(1, 2): 3})
    with pytest.raises(ConfigError, match="n_layers"):
        Config("SASRec", "ml-100k", config_dict={"n_layers": itself})


# ---------------------------------------------------------------- experiments


def experiment(tmp_path, text):
    path = tmp_path / "table.yaml"
    path.write_text("metrics: [NDCG@10]\n" + text)
    return load_experiment(str(path))


def test_an_experiment_of_a_billion_trials_is_refused_before_they_are_made(tmp_path):
    tuning = ", ".join(f"k{n}: [{', '.join(map(str, range(10)))}]" for n in range(9))
    with pytest.raises(ConfigError, match=r"row 'A': tuning stands for 1000000000 trials.* at most 1000"):
        experiment(tmp_path, f"rows: [{{name: A, model: BPR, tuning: {{{tuning}}}}}]\n")
    trials = ", ".join(f"{{a: {n}}}" for n in range(1001))
    with pytest.raises(ConfigError, match="stands for 1001 trials"):
        experiment(tmp_path, f"rows: [{{name: A, model: BPR, tuning: [{trials}]}}]\n")


def test_variables_do_not_multiply_beyond_a_files_size(tmp_path):
    text = f"variables: {{v: {'x' * 10_000}}}\nsettings: {{k: ['{'${v}' * 50} ', {', '.join(['*a'] * 0)}]}}\n"
    assert len(experiment(tmp_path, text + "rows: [{name: A, model: BPR}]\n").settings["k"][0]) == 500_001
    text = f"variables: {{v: {'x' * 10_000}}}\nsettings: {{k: '{'${v}' * 500} '}}\nrows: [{{name: A, model: BPR}}]\n"
    with pytest.raises(ConfigError, match="with its variables filled in"):
        experiment(tmp_path, text)


def test_trials_that_are_the_same_are_found_however_they_are_written(tmp_path):
    with pytest.raises(ConfigError, match="tries the same settings twice"):
        experiment(tmp_path, "rows: [{name: A, model: BPR, tuning: {reg_weight: [1, 1.0]}}]\n")


def test_a_rows_name_has_an_end(tmp_path):
    with pytest.raises(ConfigError, match="at most 150 letters"):
        experiment(tmp_path, f"rows: [{{name: {'A' * 151}, model: BPR}}]\n")


@pytest.mark.parametrize("text", ["1-1000000000", "1,x", "-1", "9" * 5000, "٣", "4294967296", "1,1", ""])
def test_seeds_are_whole_numbers(text):
    with pytest.raises(ConfigError, match="--seeds=") as caught:
        parse_seeds(text)
    assert len(str(caught.value)) < 250


def test_seeds_and_jobs_are_counted():
    with pytest.raises(ConfigError, match="1001 of them; give at most 1000"):
        compare_experiment("molar-table5", "ml-100k", list(range(1001)))
    with pytest.raises(ConfigError, match=r"--jobs=1000000000: give a number from 0 to 1000"):
        compare_experiment("molar-table5", "ml-100k", jobs=10**9)
    with pytest.raises(ConfigError, match=r"--trials=1000000000: give a number from 1 to 10000"):
        plan_search("BPR", "ml-100k", trials=10**9)


# ---------------------------------------------------------------- search spaces


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("k choice 5", "choice: 5 is not accepted; give a list"),
        ("k choice None", "choice: None is not accepted; give a list"),
        ("k choice -1", "choice: -1 is not accepted; give a list"),
        ("k choice 'abc'", "choice: 'abc' is not accepted; give a list"),
        ("k choice {1, 2}", "is not accepted; give a list"),
        ("k choice []", "give a list of at least one value"),
        ("k choice [1, 1.0]", "holds a value twice"),
        ("k choice [nan]", "cannot be read"),
        (f"k choice {list(range(1001))}", "of 1001 values; give at most 1000"),
        ("k uniform 1", "give two numbers"),
        ("k uniform -1e308,1e308", "too far apart"),
        ("k uniform 0,1e999", "give two numbers"),
        ("k randint 0,100000000000000000000", "too large"),
        ("k randint 0,0x" + "f" * 5000, "give two numbers"),
        ("k loguniform 1,900", "natural logarithms; these are too large"),
        ("k normal 0,1", "'normal' is not known"),
        ("k choice", "is not of the form"),
        ("# nothing", "the search space is empty"),
    ],
)
def test_a_line_that_is_no_range_is_refused(tmp_path, line, told):
    path = tmp_path / "hyper.test"
    path.write_text(line + "\n")
    with pytest.raises(ConfigError, match=told) as caught:
        read_space(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("given", ["abc", 5, None, -1, {}, [], {"a": 1}])
def test_so_is_a_choice_of_what_is_no_list(given):
    with pytest.raises(ConfigError, match="is not accepted; give a list"):
        parse_space({"k": {"choice": given}}, "here")


def test_the_size_of_a_space_of_many_settings_is_a_number():
    space = parse_space({f"k{n}": {"randint": [0, 2**52]} for n in range(40)} | {"u": {"uniform": [0, 1]}}, "here")
    assert space.size == float("inf")
    assert len(space.points(1, 3)) == 3


# ---------------------------------------------------------------- one normal form


def test_equal_settings_have_one_text():
    same = [
        ({"a": 1, "b": [0.001, (1, 2)]}, {"b": (1e-3, [1.0, 2]), "a": 1.0}),
        (0.0, -0.0),
        ({"a": {1: "x"}}, {"a": {"1": "x"}}),
        (1e22, 10**22),
    ]
    for one, other in same:
        assert canonical(one) == canonical(other)
    for one, other in ((1, True), (0, False), ("5", 5), (None, "None"), ([1, 2], [2, 1]), (0, None)):
        assert canonical(one) != canonical(other)


def test_one_run_however_its_settings_are_written(toy_settings):
    def folder(**typed):
        return run_folder.first_run_dir(Config("SASRec", "toy", config_dict=toy_settings, command_line=typed)).name

    for one, other in (
        ({"warmup_ratio": "0"}, {"warmup_ratio": "0.0"}),
        ({"learning_rate": "1e-3"}, {"learning_rate": ".001"}),
        ({"weight_decay": "0"}, {"weight_decay": "0.0"}),
        ({"topk": "10"}, {"topk": "[10]"}),
        ({"gpu_id": "0"}, {"gpu_id": "[0]"}),
        ({"text_fields": "title"}, {"text_fields": "[title]"}),
        ({"eval_args": "{mode: full}"}, {"eval_args": "{mode: {valid: full, test: full}}"}),
        ({"train_neg_sample_args": "~"}, {"train_neg_sample_args": "{distribution: none}"}),
    ):
        assert folder(**one) == folder(**other), one
    assert folder(topk="[5,10]") != folder(topk="[10,5]")  # tables print in this order


def test_a_run_is_resumed_with_its_settings_written_otherwise(toy_settings, tmp_path):
    settings = {**toy_settings, "epochs": 1, "weight_decay": 0}
    first = pipeline.run("BPR", "toy", config_dict=settings)
    (first.run_dir / run_folder.RESULT).unlink()
    resumed = {**settings, "weight_decay": 0.0, "resume": str(first.run_dir)}
    assert pipeline.run("BPR", "toy", config_dict=resumed).run_dir == first.run_dir
    (first.run_dir / run_folder.RESULT).unlink()
    with pytest.raises(CheckpointError, match=r"with weight_decay: 0\.0, not 0\.1"):
        pipeline.run("BPR", "toy", config_dict={**resumed, "weight_decay": 0.1})
