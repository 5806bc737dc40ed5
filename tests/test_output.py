"""What a run prints: a line for its data, its model and each epoch, and a table with baselines; `run.log` has more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import recbole_mm
from recbole_mm.cli import main
from recbole_mm.evaluation.ranking import RankingData
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.summary import finished_baseline
from recbole_mm.training.factory import make_trainer
from recbole_mm.utils.log import close_logging

LONG_FORMS = ("The sparsity of the dataset", "Trainable parameters", "epoch 0 training [", "valid result: ", "test:   ")
COMPACT = r"""
\S+ BPR on toy -> \S+/BPR-toy-\w{8}
\S+ toy: 60 users, 40 items, \d+ interactions \(\d+\.\d\d% sparse\); \d+ train, 60 valid, 60 test
\S+ BPR: 6,528 trainable parameters; inputs: interactions; device: cpu
\S+ epoch   0  train loss +\d+\.\d{4}  ndcg@10 0\.\d{6} best  train +\S+s  valid +\S+s  [\d,]+ targets/s
\S+ epoch   1  train loss +\d+\.\d{4}  ndcg@10 0\.\d{6} (best|    )  train +\S+s  valid +\S+s  [\d,]+ targets/s
\S+ trained until epoch 1; best ndcg@10 0\.\d{6} in epoch [01]
"""


@pytest.fixture
def command(toy_settings, tmp_path):
    """`command(model, "--key=value", ...)`: arguments of a run on `toy` that logs."""
    import yaml

    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump({**toy_settings, "state": "INFO", "use_gpu": False}))
    yield lambda model, *more: ["run", f"--model={model}", "--dataset=toy", f"--config_files={path}", *more]
    close_logging()


def test_a_run_prints_lines_and_a_table_and_logs_the_long_forms(command, capsys):
    assert main(command("BPR")) == 0
    printed = capsys.readouterr()
    assert re.fullmatch(COMPACT.strip(), printed.err.strip()), printed.err
    assert max(map(len, printed.err.splitlines()[1:])) <= 120, "all but the path"
    *table, folder = printed.out.splitlines()
    assert [line.split()[0] for line in table] == ["toy,", "BPR", "Pop"]
    log = (Path(folder) / "run.log").read_text()
    assert all(form in log for form in LONG_FORMS)
    assert "BPR: 6,528 trainable parameters" in log


def test_recboles_habits_stay(command, capsys):
    assert main(command("BPR", "--log_style=recbole")) == 0
    printed = capsys.readouterr()
    assert all(form in printed.err for form in LONG_FORMS)
    assert "targets/s" not in printed.err
    log = (Path(printed.out.splitlines()[-1]) / "run.log").read_text()
    assert all(form in log for form in LONG_FORMS)
    assert "targets/s" not in log


def test_the_style_is_not_part_of_the_run(command, capsys):
    folders = []
    for style in ("recbole", "compact"):
        assert main(command("BPR", "--resume", f"--log_style={style}")) == 0
        printed = capsys.readouterr()
        folders.append(printed.out.splitlines()[-1])
    assert folders[0] == folders[1]
    assert "is a finished run of these settings; it is loaded" in printed.err
    assert main(command("BPR", "--log_style=loud")) == 2
    assert "log_style: 'loud' is not accepted; give one of compact, recbole" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eval_args": {"mode": {"valid": "full", "test": "uni10"}}},
        {"eval_args": {"mode": "uni10"}, "metrics": ["GAUC"], "valid_metric": "GAUC"},
        {"mask_history": False, "metrics": ["NDCG", "ItemCoverage", "AveragePopularity"]},
        {"candidates": "catalogue", "metric_decimal_place": 12},
    ],
)
def test_pop_beside_a_model_has_the_metrics_of_a_run_of_pop(toy_settings, settings):
    settings = {**toy_settings, "epochs": 1, **settings}
    own = recbole_mm.run("Pop", "toy", config_dict=settings)
    assert own.beside == {}
    for model in ("BPR", "SASRec"):
        outcome = recbole_mm.run(model, "toy", config_dict=settings)
        assert outcome.beside == {"Pop": own.test_result}
        assert run_folder.read_result(outcome.run_dir)["beside"] == outcome.beside
        assert recbole_mm.load(outcome.run_dir).beside == outcome.beside


def test_pop_leaves_the_model_and_the_random_state_alone(toy_config, tmp_path):
    config = toy_config("SASRec", epochs=1)
    assembled = pipeline.assemble(config, tmp_path, Stages())
    trainer = make_trainer(config, assembled.model, tmp_path)
    trainer.fit(assembled.splits.train, assembled.splits.valid)
    assert isinstance(assembled.splits.test, RankingData)
    result, struct = trainer.evaluate(assembled.splits.test), trainer.last_struct
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in assembled.model.state_dict().items()}
    assert trainer.evaluate_pop(assembled.splits.test) != result
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.last_struct is struct
    assert all(torch.equal(weights[name], value) for name, value in assembled.model.state_dict().items())
    assert trainer.evaluate(assembled.splits.test) == result


def test_metrics_of_values_have_no_pop(toy_settings):
    labels = {"threshold": {"rating": 3}, "eval_args": {"mode": "labeled"}, "metrics": ["AUC"], "valid_metric": "AUC"}
    outcome = recbole_mm.run("DeepFM", "toy", config_dict={**toy_settings, **labels, "epochs": 1})
    assert outcome.beside == {}


def test_sasrecs_row_is_of_the_best_finished_run_of_the_same_protocol(command, capsys, toy_config):
    assert main(command("SASRec", "--seed=1")) == 0
    *table, folder = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["SASRec", "Pop"], "no second row of itself"
    assert main(command("SASRec", "--epochs=1", "--learning_rate=1e-6")) == 0
    assert main(command("SASRec", "--topk=[5]", "--valid_metric=NDCG@5")) == 0
    assert main(command("SASRec", "--mask_history=False")) == 0
    capsys.readouterr()
    assert main(command("BPR")) == 0
    *table, told, _ = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["BPR", "SASRec", "Pop"]
    assert told == f"SASRec: {folder}"
    result = json.loads((Path(folder) / "result.json").read_text())["test_result"]
    assert [float(cell) for cell in table[2].split()[1:]] == [round(value, 4) for value in result.values()]
    assert finished_baseline(toy_config("BPR", eval_args={"mode": "uni10"})) is None
    (Path(folder) / "result.json").write_text("{")
    found = finished_baseline(toy_config("BPR"))
    assert found is not None
    assert found[0] != Path(folder), "a damaged folder is passed over"
