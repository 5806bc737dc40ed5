"""The command line: `recbole-mm run | plan | compare | tune | models | prepare`."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from recbole_mm import __version__
from recbole_mm.datasets import CONVERTERS
from recbole_mm.errors import ConfigError, DiskError, RecboleMMError
from recbole_mm.registry import list_models
from recbole_mm.utils.escaping import printable
from recbole_mm.utils.files import disk_reason
from recbole_mm.utils.paths import expanded, given_path
from recbole_mm.utils.tables import result_table

PROGRAM = "recbole-mm"
DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""Of a disk that is full or may not be written or read: nothing that a traceback would explain."""
EXIT_FAILED_ROWS, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130

_RUN_HELP = f"""Train a model, rank every test user's items, and write a run folder under checkpoint_dir.

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

_PLAN_HELP = f"""Print what a run would compute before it trains - texts of an LLM, vectors - and compute nothing.

usage: {PROGRAM} plan --model=NAME --dataset=NAME [--config_files="a.yaml b.yaml"] [--key=value ...]

examples:
  {PROGRAM} plan --model=MLLMRec --dataset=ml-100k-mm
  {PROGRAM} plan --model=MLLMRec --dataset=hm --text_backend=openai --text_model=gemma3 --text_url=http://localhost:8000/v1
  {PROGRAM} plan --model=MLLMRec --dataset=hm --text_backend=hf --text_model=Qwen/Qwen2-VL-2B-Instruct

The arguments are those of `{PROGRAM} run`. Each stage is a line: what the artifact store has already, what is to do,
its tokens, and a time: from what the model did here before, or else from a rate that is printed. No weights are loaded,
no server is asked, nothing is written.
"""

_COMPARE_HELP = """Run a table of models or variants over several seeds, test its rows against each other, and write it.

What is finished is not run again, what was interrupted is resumed: start the same command as often as you like. Other
arguments, --key=value, are settings for every row, as for `run`.
"""

_COMPARE_EXAMPLES = f"""examples:
  {PROGRAM} compare --experiment molar-table5 --dataset pixelrec --seeds 1,2,3 --jobs 2 --gpus 0,1
  {PROGRAM} compare --experiment molar-table2 --dataset ml-100k --mllm=tiny --rows "Molar,SASRec,GRU4Rec" --no_tuning
  {PROGRAM} compare --experiment molar-table2 --dataset shop --var text_encoder=models/all-MiniLM-L6-v2
  {PROGRAM} compare --experiment my-table.yaml --dataset shop --epochs=20 --config_files="my.yaml"
  {PROGRAM} compare --runs saved/Molar-shop-1a2b3c4d saved/SASRec-shop-5e6f7a8b

docs/compare.md says what an experiment's file may hold and how to read the table.
"""

_TOP_EXAMPLES = f"""examples:
  {PROGRAM} run --model=Molar --dataset=ml-100k
  {PROGRAM} compare --experiment molar-table5 --dataset ml-100k --mllm=tiny --seeds 1,2,3
  {PROGRAM} tune --model SASRec --dataset ml-100k --trials 20
  {PROGRAM} plan --model=MLLMRec --dataset=ml-100k --text_backend=hf
  {PROGRAM} models sequential
  {PROGRAM} prepare hm --source downloads/hm --out dataset/hm

`{PROGRAM} COMMAND --help` says more about a command.
"""

_PREPARE_EXAMPLES = f"""examples:
  {PROGRAM} prepare movielens --source downloads/ml-1m --out dataset/ml-1m
  {PROGRAM} prepare pixelrec --source downloads/PixelRec --out dataset/pixelrec --link

`{PROGRAM} prepare SOURCE --help` lists the options of a source.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 2 after an error the user can mend, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except RecboleMMError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        # `recbole-mm models | head`: nobody reads on, and Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        told = DiskError(f"{error.filename or 'a file'}: {disk_reason(error)}")
        print(f"error: {told}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as interrupt:
        # The pipeline has already said how to go on; anything else that was interrupted has nothing to resume.
        print(printable(str(interrupt)) or "interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as stop:  # argparse, after --help or a usage error
        return stop.code if isinstance(stop.code, int) else EXIT_ERROR


def _dispatch(arguments: list[str]) -> int:
    # `run` and `plan` take any setting as a key, which argparse cannot know.
    if arguments[:1] == ["run"]:
        return run(arguments[1:])
    if arguments[:1] == ["plan"]:
        return plan(arguments[1:])
    if arguments[:1] == ["compare"]:
        return compare(arguments[1:])
    if arguments[:1] == ["tune"]:
        return tune(arguments[1:])
    parsed = _parser().parse_args(arguments or ["--help"])
    command: Callable[[argparse.Namespace], int] = parsed.command
    return command(parsed)


def _parser() -> argparse.ArgumentParser:
    raw: Any = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Multimodal recommendation with RecBole: prepare data, train, rank, compare.",
        epilog=_TOP_EXAMPLES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    commands.add_parser("run", help="train and rank a model", add_help=False)
    commands.add_parser("plan", help="tell what a run would compute before it trains, and the cost", add_help=False)
    commands.add_parser("compare", help="run a table of models over seeds, with paired tests", add_help=False)
    commands.add_parser("tune", help="search for a model's best settings", add_help=False)

    models = commands.add_parser("models", help="list every model that --model accepts")
    models.add_argument("filter", nargs="?", default="", help="show only lines that contain this, in any case")
    models.set_defaults(command=show_models)

    prepare = commands.add_parser(
        "prepare",
        help="turn raw downloads into a dataset folder",
        description="Turn raw downloads into a dataset folder of RecBole atomic files and images.",
        epilog=_PREPARE_EXAMPLES,
        formatter_class=raw,
    )
    sources = prepare.add_subparsers(metavar="SOURCE", required=True, dest="source_name")
    for name, converter in CONVERTERS.items():
        source = sources.add_parser(name, help=converter.help, description=converter.help, allow_abbrev=False)
        source.add_argument("--source", required=True, type=given_path, metavar="DIR", help="folder of the raw files")
        source.add_argument("--out", required=True, type=given_path, metavar="DIR", help="dataset folder to write")
        converter.add_arguments(source)
    prepare.set_defaults(command=prepare_dataset)
    return parser


def run(arguments: Sequence[str]) -> int:
    """`recbole-mm run`: everything after it is a setting."""
    if {"-h", "--help"} & set(arguments):
        print(_RUN_HELP, end="")
        return 0
    settings = _run_settings(arguments)
    from recbole_mm.runs import run as pipeline  # imports torch and transformers, which the other commands do without

    finished = pipeline.run(
        model=settings.pop("model", None),
        dataset=settings.pop("dataset", None),
        config_files=_split_paths(settings.pop("config_files", "")),
        config_dict=None,
        command_line=settings,
    )
    told = finished.config["model"], finished.config["dataset"], finished.test_result, finished.run_dir
    print(printable(result_table(*told, finished.sees_held_out)))
    return 0


def plan(arguments: Sequence[str]) -> int:
    """`recbole-mm plan`: what `run` of the same arguments would compute before it trains."""
    if {"-h", "--help"} & set(arguments):
        print(_PLAN_HELP, end="")
        return 0
    settings = _run_settings(arguments)
    from recbole_mm.runs.plan import plan as plan_run
    from recbole_mm.runs.plan import to_text
    from recbole_mm.utils.log import init_logging  # these import torch and transformers

    init_logging(None, settings.get("state", "WARNING"))
    planned = plan_run(
        model=settings.pop("model", None),
        dataset=settings.pop("dataset", None),
        config_files=_split_paths(settings.pop("config_files", "")),
        command_line=settings,
    )
    print(printable(to_text(planned)), end="")
    return 0


def _run_settings(arguments: Sequence[str]) -> dict[str, Any]:
    """The settings of a run.

    Raises:
        ConfigError: an argument is malformed, or one of those that need a value has none.
    """
    settings = split_arguments(arguments)
    for key in ("model", "dataset", "config_files"):
        if settings.get(key) is True:
            raise ConfigError(f"--{key} needs a value, as in --{key}=...")
    return settings


def compare(arguments: Sequence[str]) -> int:
    """`recbole-mm compare`: an experiment's table, or that of finished runs; status 1 if a row failed."""
    parser = _compare_parser()
    parsed, others = parser.parse_known_args(arguments)
    settings = split_arguments(others)
    if settings.get("config_files") is True:
        raise ConfigError("--config_files needs a value, as in --config_files=...")
    show = _names(parsed.show)
    from recbole_mm.experiments.compare.command import (  # imports torch
        compare_experiment,
        compare_finished,
        parse_seeds,
    )
    from recbole_mm.experiments.compare.table import to_markdown, write_table
    from recbole_mm.utils.log import init_logging

    if parsed.runs:
        given = [name for name in _OF_EXPERIMENTS if getattr(parsed, name) != parser.get_default(name)]
        if given or settings:
            raise ConfigError(f"--{[*given, *settings][0]} has no effect on finished runs; leave it out, or --runs")
        table, out = compare_finished(parsed.runs, metrics=show, reference=parsed.reference), parsed.out
        if out is not None:
            write_table(table, out, "runs")
    else:
        for name in ("experiment", "dataset"):
            if getattr(parsed, name) is None:
                raise ConfigError(f"--{name} is missing; give --experiment and --dataset, or --runs with run folders")
        init_logging(None, settings.get("state"))
        table, out = compare_experiment(
            parsed.experiment,
            parsed.dataset,
            parse_seeds(parsed.seeds),
            rows=_names(parsed.rows),
            reference=parsed.reference,
            variables=dict(_variable(text) for text in parsed.var),
            metrics=show,
            trials=parsed.trials,
            jobs=parsed.jobs,
            gpus=_names(parsed.gpus) or (),
            out=parsed.out,
            config_files=_split_paths(settings.pop("config_files", "")),
            command_line=settings,
        )
    print(to_markdown(table), end="")
    if out is not None:
        print(f"\n{out}/table.md, table.csv, table.tex")
    return EXIT_FAILED_ROWS if table.failed else 0


_OF_EXPERIMENTS = ("experiment", "dataset", "seeds", "rows", "var", "trials", "jobs", "gpus")


def _compare_parser() -> argparse.ArgumentParser:
    from recbole_mm.experiments.compare import experiment_names

    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} compare",
        usage=f"{PROGRAM} compare (--experiment NAME --dataset NAME | --runs DIR DIR ...) [options] [--key=value ...]",
        description=_COMPARE_HELP,
        epilog=_COMPARE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--experiment", metavar="NAME", help=f"{', '.join(experiment_names())}, or a YAML file of your own")
    add("--dataset", metavar="NAME", help="name of the dataset")
    add("--seeds", default="1,2,3", metavar="1,2,3", help="seeds; the first one decides between trials (1,2,3)")
    add("--rows", metavar='"A,B"', help="only these rows")
    add("--reference", metavar="ROW", help="row that the others are tested against, in place of the experiment's")
    add("--show", metavar="NDCG@10,...", help="columns, in place of the experiment's")
    add("--var", action="append", default=[], metavar="NAME=VALUE", help="a variable of the experiment's file")
    add("--trials", type=int, metavar="N", help="only the first N of each row's trials (all)")
    add("--no_tuning", "--no-tuning", dest="trials", action="store_const", const=0, help="no trials: --trials=0")
    add("--jobs", type=int, default=1, metavar="N", help="runs at the same time (1); 0: the table of what is finished")
    add("--gpus", metavar="0,1", help="GPUs to share out between the runs at the same time")
    add(
        "--out",
        type=given_path,
        metavar="DIR",
        help="folder of the table (<checkpoint_dir>/compare-<experiment>-<dataset>)",
    )
    add("--runs", nargs="+", type=given_path, metavar="DIR", help="compare these finished runs and run nothing")
    return parser


def tune(arguments: Sequence[str]) -> int:
    """`recbole-mm tune`: a search, its best setting and that one's test."""
    from recbole_mm.experiments.tune.arguments import tune_parser

    parsed, others = tune_parser(f"{PROGRAM} tune").parse_known_args(arguments)
    settings = _run_settings(others)
    from recbole_mm.experiments.tune.command import report, tune_model  # imports torch
    from recbole_mm.utils.log import init_logging

    init_logging(None, settings.get("state"))
    options = vars(parsed)
    found = tune_model(
        options.pop("model"),
        options.pop("dataset"),
        config_files=_split_paths(settings.pop("config_files", "")),
        command_line=settings,
        **options,
    )
    print(printable(report(found)), end="")
    return 0


def _names(text: str | None) -> list[str] | None:
    """`A, B` as a list; None where nothing was given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--var {text}: give it as --var name=value")
    return name, value


def show_models(parsed: argparse.Namespace) -> int:
    """`recbole-mm models [FILTER]`: one line per model, cut to the width of a terminal, whole in a file."""
    header = ("NAME", "TYPE", "FROM", "PAPER")
    rows = [(entry.name, entry.type, entry.origin, entry.paper) for entry in list_models()]
    rows = [row for row in rows if parsed.filter.lower() in " ".join(row).lower()]
    if not rows:
        raise ConfigError(f"no model's line contains {parsed.filter!r}; `{PROGRAM} models` lists them all")
    limit = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in tabulate([header, *rows], tablefmt="plain", disable_numparse=True).splitlines():
        print(line.rstrip()[:limit])
    return 0


def prepare_dataset(parsed: argparse.Namespace) -> int:
    """`recbole-mm prepare SOURCE --source DIR --out DIR`: convert, then print what was written."""
    options = {
        key: value for key, value in vars(parsed).items() if key not in ("command", "source_name", "source", "out")
    }
    from recbole_mm.utils.log import init_logging

    init_logging(None, None)  # pictures are fetched for hours
    print(printable(str(CONVERTERS[parsed.source_name].convert(parsed.source, parsed.out, **options))))
    return 0


def split_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Split `--key=value`, `--key value` and `--key` (True) into a dict of key to text.

    A key may be written with hyphens. Only the first `=` splits, and a value may start with one hyphen (`--x -1`).

    Raises:
        ConfigError: an argument is not of this form, or a key is given twice with different values.
    """
    settings: dict[str, Any] = {}
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        name, equals, value = argument[2:].partition("=")
        key = name.replace("-", "_")
        if not argument.startswith("--") or not re.fullmatch(r"[A-Za-z]\w*", key):
            raise ConfigError(f"argument {argument!r} is not of the form --key=value; quote values that hold spaces")
        given: Any = value
        if not equals:
            given = remaining.pop(0) if remaining and not remaining[0].startswith("--") else True
        if key in settings and settings[key] != given:
            raise ConfigError(f"--{key} is given twice, as {settings[key]} and as {given}; give it once")
        settings[key] = given
    return settings


def _split_paths(text: str) -> list[str]:
    """`a.yaml b.yaml`, as RecBole writes it; the name of an existing file may hold spaces."""
    return [text] if os.path.isfile(expanded(text)) else text.split()


if __name__ == "__main__":
    sys.exit(main())
