"""The command line: how arguments are read, what is printed where, and the exit status."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from recbole_mm.cli import main
from recbole_mm.cli.arguments import split_arguments
from recbole_mm.datasets import CONVERTERS
from recbole_mm.errors import ConfigError, DataError


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for `recbole_mm.runs.run` that keeps what `run` was called with, or raises `failure`."""
    seen = types.SimpleNamespace(calls=[], failure=None)

    def run(**arguments):
        seen.calls.append(arguments)
        if seen.failure is not None:
            raise seen.failure
        names = {"model": arguments["model"] or "SASRec", "dataset": arguments["dataset"]}
        result = {
            "test_result": {"ndcg@5": 0.25},
            "sees_held_out": [],
            "beside": {"BPR (first stage)": {"ndcg@5": 0.125}},
        }
        return types.SimpleNamespace(config=names, run_dir=Path("saved/one"), **result)

    module = types.ModuleType("recbole_mm.runs.run")
    module.run = run
    monkeypatch.setitem(sys.modules, "recbole_mm.runs.run", module)
    monkeypatch.setattr("recbole_mm.runs.run", module, raising=False)
    return seen


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ([], {}),
        (["--a=1", "--b", "2"], {"a": "1", "b": "2"}),
        (["--resume", "--a=1"], {"resume": True, "a": "1"}),
        (["--a=1", "--resume"], {"a": "1", "resume": True}),
        (["--a", "-1"], {"a": "-1"}),
        (["--a=b=c"], {"a": "b=c"}),
        (["--a="], {"a": ""}),
        (["--train-batch-size=8"], {"train_batch_size": "8"}),
        (["--topk", "[10, 20]"], {"topk": "[10, 20]"}),
        (["--a=1", "--a=1"], {"a": "1"}),
    ],
)
def test_arguments_are_split(arguments, settings):
    assert split_arguments(arguments) == settings


@pytest.mark.parametrize("argument", ["a=1", "-a=1", "--", "--=1", "--1a=2", "--a b=2", "stray"])
def test_a_malformed_argument_is_named(argument):
    with pytest.raises(ConfigError, match=argument):
        split_arguments(["--seed=1", argument])


def test_a_second_word_after_a_value_is_named():
    with pytest.raises(ConfigError, match=r"'20\]'"):
        split_arguments(["--topk", "[10,", "20]"])


@pytest.mark.parametrize("again", ["--seed=2", "--seed"])
def test_a_key_given_twice_is_refused(again):
    with pytest.raises(ConfigError, match="--seed is given twice"):
        split_arguments(["--seed=1", again])


def test_run_hands_everything_to_the_pipeline(pipeline):
    status = main(
        ["run", "--model=Molar", "--dataset", "ml-100k", "--topk=[5]", "--resume", "--config_files=a.yaml b.yaml"]
    )
    assert status == 0
    assert pipeline.calls == [
        {
            "model": "Molar",
            "dataset": "ml-100k",
            "config_files": ["a.yaml", "b.yaml"],
            "command_line": {"topk": "[5]", "resume": True},
        }
    ]


def test_run_leaves_model_and_dataset_to_the_config_file(pipeline, tmp_path):
    spaced = tmp_path / "my run.yaml"
    spaced.write_text("model: SASRec\n", encoding="utf-8")
    assert main(["run", f"--config_files={spaced}"]) == 0
    assert pipeline.calls[0]["model"] is None
    assert pipeline.calls[0]["dataset"] is None
    assert pipeline.calls[0]["config_files"] == [str(spaced)]


def test_an_expected_failure_is_one_line_on_stderr_and_status_2(pipeline, capsys):
    pipeline.failure = DataError("items.csv, line 3: no item_id")
    assert main(["run", "--model=SASRec", "--dataset=x"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: items.csv, line 3: no item_id\n"


@pytest.mark.parametrize("arguments", [["--seed=1", "--seed=2"], ["seed=1"], ["--model"], ["--config_files"]])
def test_bad_arguments_end_with_status_2_and_run_nothing(pipeline, capsys, arguments):
    assert main(["run", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert pipeline.calls == []


def test_a_bug_is_not_hidden(pipeline):
    pipeline.failure = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        main(["run", "--model=SASRec", "--dataset=x"])


@pytest.mark.parametrize(
    ("interrupt", "line"),
    [(KeyboardInterrupt(), "interrupted"), (KeyboardInterrupt("go on with --resume"), "--resume")],
)
def test_control_c_is_status_130(pipeline, capsys, interrupt, line):
    pipeline.failure = interrupt
    assert main(["run", "--model=SASRec", "--dataset=x"]) == 130
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_of_run_shows_examples(pipeline, capsys, flag):
    assert main(["run", flag]) == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    assert "recbole-mm run --model=Molar --dataset=ml-100k" in text
    assert pipeline.calls == []


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_the_commands(capsys, arguments):
    assert main(arguments) == 0
    text = capsys.readouterr().out
    for command in ("run", "compare", "models", "prepare"):
        assert f"\n    {command} " in text


def test_version(capsys):
    from recbole_mm import __version__

    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_an_unknown_command_is_status_2(capsys):
    assert main(["fly"]) == 2
    assert "fly" in capsys.readouterr().err


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A stand-in for the comparing itself that keeps what it was called with; its table has `failed` as set here."""
    from recbole_mm.experiments.compare import command
    from recbole_mm.experiments.compare.summary import Table

    seen = types.SimpleNamespace(calls=[], rows=[])

    def compare_experiment(*arguments, **options):
        seen.calls.append((arguments, options))
        return Table("A title", "", "", [], "A", seen.rows, {}, [1]), Path("saved/compare-x")

    def compare_finished(*arguments, **options):
        seen.calls.append((arguments, options))
        return Table("2 runs", "", "", [], "A", seen.rows, {}, [1])

    monkeypatch.setattr(command, "compare_experiment", compare_experiment)
    monkeypatch.setattr(command, "compare_finished", compare_finished)
    return seen


def test_compare_tells_its_own_options_from_settings(compared, capsys):
    own = ["--experiment", "molar-table5", "--dataset=toy", "--seeds", "4,5", "--rows", "Molar, w/o CL", "--jobs", "2"]
    own += ["--gpus=0,1", "--var", "a=b=c", "--var=d=1", "--show", "NDCG@10, Recall@5", "--no-tuning", "--out", "here"]
    settings = ["--config_files=a.yaml b.yaml", "--mllm", "tiny", "--checkpoint_dir=saved", "--topk=[5,10]"]
    assert main(["compare", *settings, *own]) == 0
    ((arguments, options),) = compared.calls
    assert arguments == ("molar-table5", "toy", [4, 5])
    assert options == {
        "rows": ["Molar", "w/o CL"],
        "reference": None,
        "variables": {"a": "b=c", "d": "1"},
        "metrics": ["NDCG@10", "Recall@5"],
        "trials": 0,
        "jobs": 2,
        "gpus": ["0", "1"],
        "out": Path("here"),
        "slices": [],
        "config_files": ["a.yaml", "b.yaml"],
        "command_line": {"mllm": "tiny", "checkpoint_dir": "saved", "topk": "[5,10]"},
    }
    assert capsys.readouterr().out.endswith("saved/compare-x/table.md, table.csv, table.tex\n")


def test_compare_has_three_seeds_by_default_and_fails_with_a_row(compared):
    from recbole_mm.experiments.compare.summary import Line, TableRow

    compared.rows = [Line(TableRow("A", "", "x", "failed", "it broke"), {})]
    assert main(["compare", "--experiment=x", "--dataset=toy"]) == 1
    assert compared.calls[0][0] == ("x", "toy", [1, 2, 3])
    assert compared.calls[0][1]["trials"] is None


def test_compare_takes_finished_runs(compared, tmp_path):
    status = main(["compare", "--runs", "saved/A", "saved/B", "--show=NDCG@10", "--reference=A", f"--out={tmp_path}"])
    assert status == 0
    assert compared.calls == [(([Path("saved/A"), Path("saved/B")],), {"metrics": ["NDCG@10"], "reference": "A"})]
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "table.csv", "table.tex"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--experiment is missing"),
        (["--experiment=x"], "--dataset is missing"),
        (["--experiment=x", "--dataset=toy", "--seeds=1,x"], "'x' is not a whole number"),
        (["--experiment=x", "--dataset=toy", "--var=a"], "--var a: give it as --var name=value"),
        (["--experiment=x", "--dataset=toy", "stray"], "'stray' is not of the form --key=value"),
        (["--runs", "a", "b", "--seeds=1"], "--seeds has no effect on finished runs"),
        (["--runs", "a", "b", "--epochs=1"], "--epochs has no effect on finished runs"),
        (["--experiment=x", "--dataset=toy", "--jobs=many"], "--jobs"),
        (["--experiment=x", "--dataset=toy", "--config_files"], "--config_files needs a value"),
    ],
)
def test_bad_arguments_of_compare_end_with_status_2(compared, capsys, arguments, message):
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert compared.calls == []


def test_compare_refuses_an_unknown_experiment_and_a_negative_number_of_jobs(capsys):
    assert main(["compare", "--experiment=molar-table55", "--dataset=ml-100k"]) == 2
    assert "did you mean 'molar-table5'" in capsys.readouterr().err
    assert main(["compare", "--experiment=molar-table5", "--dataset=ml-100k", "--jobs=-1"]) == 2
    assert capsys.readouterr().err == "error: --jobs=-1: give a number from 0 to 1000\n"


def test_help_of_compare_lists_the_experiments(capsys):
    assert main(["compare", "--help"]) == 0
    text = capsys.readouterr().out
    assert "molar-table2,molar-table3,molar-table4" in "".join(text.split()), "however the lines are broken"
    assert "recbole-mm compare --runs" in text


def test_models_prints_an_aligned_table(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "TYPE", "FROM", "PAPER"]
    column = lines[0].index("FROM")
    assert {line[column:].split()[0] for line in lines[1:]} == {"recbole_mm", "RecBole"}
    assert any(line.startswith("Molar ") for line in lines[1:])
    assert any(line.startswith("SASRec ") and "sequential" in line and "ICDM 2018" in line for line in lines)


def test_models_can_be_filtered(capsys):
    assert main(["models", "KNOWLEDGE"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines
    assert all("knowledge" in line.lower() for line in lines)
    assert main(["models", "no such model"]) == 2
    assert "no such model" in capsys.readouterr().err


def test_prepare_lists_every_source(capsys):
    assert main(["prepare", "--help"]) == 0
    text = capsys.readouterr().out
    for name in CONVERTERS:
        assert f"    {name}" in text


def test_prepare_hands_its_options_to_the_converter(monkeypatch, capsys):
    seen = {}

    def convert(source, out, **options):
        seen.update(source=source, out=out, options=options)
        return "12 users, 3 items"

    monkeypatch.setattr(CONVERTERS["hm"], "convert", convert)
    assert main(["prepare", "hm", "--source", "raw", "--out=made", "--link"]) == 0
    assert capsys.readouterr().out == "12 users, 3 items\n"
    assert (seen["source"], seen["out"]) == (Path("raw"), Path("made"))
    assert seen["options"]["link"] is True
    assert not {"command", "source_name", "source", "out"} & set(seen["options"])


@pytest.mark.parametrize("arguments", [["prepare"], ["prepare", "hm"], ["prepare", "mars", "--source=a", "--out=b"]])
def test_prepare_says_what_is_missing(capsys, arguments):
    assert main(arguments) == 2
    assert "usage: recbole-mm prepare" in capsys.readouterr().err


def test_a_missing_source_is_an_expected_failure(tmp_path, capsys):
    assert main(["prepare", "movielens", "--source", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err


def test_a_reader_that_stops_early_is_no_failure():
    command = f"{sys.executable} -m recbole_mm.cli models | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("NAME")
    assert done.stderr == ""


def test_the_script_is_the_run_command():
    script = Path(__file__).parent.parent / "run_recbole_mm.py"
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=True)
    assert "recbole-mm run --model=Molar" in done.stdout
    failed = subprocess.run([sys.executable, str(script), "oops"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr == "error: argument 'oops' is not of the form --key=value; quote values that hold spaces\n"
