"""`recbole-mm run`: every argument is a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recbole_mm.cli.arguments import PROGRAM, run_arguments
from recbole_mm.utils.escaping import printable
from recbole_mm.utils.tables import SEES_HELD_OUT, result_table

HELP = f"""Train a model, rank every test user's items, and write a run folder under checkpoint_dir.

usage: {PROGRAM} run --model=NAME --dataset=NAME [--config_files="a.yaml b.yaml"] [--resume] [--key=value ...]

examples:
  {PROGRAM} run --model=Molar --dataset=ml-100k
  {PROGRAM} run --model=SASRec --dataset=pixelrec --data_path=/data/recbole --gpu_id=1
  {PROGRAM} run --model=Molar --dataset=pixelrec --mllm=Qwen/Qwen2-VL-2B-Instruct --topk="[10,20]" --learning_rate=1e-4
  {PROGRAM} run --model=LightGCN --dataset=ml-1m --config_files="my.yaml" --seed=7
  {PROGRAM} run --model=Molar --dataset=pixelrec --resume

Any setting of RecBole or recbole_mm is a key: properties/overall.yaml says what the shared ones mean, and
properties/model/<Model>.yaml those of a model. Values are YAML; `--key value` and `--key` alone (True) work too.
The folder of dataset folders is --data_path, else the environment variable RECBOLE_MM_DATA, else dataset/.
Ctrl-C stops a run; the same command with --resume goes on with it.
"""


def main(arguments: Sequence[str]) -> int:
    """Train and test a model, and print its test metrics."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    given = run_arguments(arguments)
    from recbole_mm.runs import run as pipeline  # imports torch, which --help and a wrong argument do without
    from recbole_mm.runs.summary import BASELINE, finished_baseline

    done = pipeline.run(**given)
    results, folders = {done.config["model"]: done.test_result}, []
    if done.beside.keys() <= {"Pop"} and (found := finished_baseline(done.config)) is not None:
        folder, results[BASELINE] = found
        folders.append(f"{BASELINE}: {folder}")
    text = result_text(done.config["dataset"], {**results, **done.beside}, done.sees_held_out)
    print(printable("\n".join([text, *folders, str(done.run_dir)])))
    return 0


def result_text(dataset: str, results: Mapping[str, Mapping[str, float]], sees_held_out: Sequence[str]) -> str:
    """Test metrics of a run and its baselines as a table, and a warning for each way its training saw held-out data.

    Args:
        dataset: its name.
        results: model -> metric -> value, the run's own model first.
        sees_held_out: as in `result.json`.
    """
    warnings = [f"{SEES_HELD_OUT}: {text}" for text in sees_held_out]
    return "\n".join([result_table(f"{dataset}, test", results), *warnings])
