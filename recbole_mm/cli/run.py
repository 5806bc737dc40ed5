"""`recbole-mm run`: every argument is a setting."""

from __future__ import annotations

from collections.abc import Sequence

from recbole_mm.cli.arguments import PROGRAM, run_arguments
from recbole_mm.utils.escaping import printable
from recbole_mm.utils.tables import result_table

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

    done = pipeline.run(**given)
    table = result_table(
        done.config["model"], done.config["dataset"], done.test_result, done.run_dir, done.sees_held_out
    )
    print(printable(table))
    return 0
