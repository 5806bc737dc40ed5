"""`recbole-mm compare`: an experiment's table, or that of finished runs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from recbole_mm.cli.arguments import PROGRAM, split_arguments, split_names, split_paths
from recbole_mm.errors import ConfigError
from recbole_mm.utils.paths import given_path

EXIT_FAILED_ROWS = 1

_HELP = """Run a table of models or variants over several seeds, test its rows against each other, and write it.

What is finished is not run again, what was interrupted is resumed: start the same command as often as you like. Other
arguments, --key=value, are settings for every row, as for `run`.
"""

_EXAMPLES = f"""examples:
  {PROGRAM} compare --experiment molar-table5 --dataset pixelrec --seeds 1,2,3 --jobs 2 --gpus 0,1
  {PROGRAM} compare --experiment molar-table2 --dataset ml-100k --mllm=tiny --rows "Molar,SASRec,GRU4Rec" --no_tuning
  {PROGRAM} compare --experiment molar-table2 --dataset shop --var text_encoder=models/all-MiniLM-L6-v2
  {PROGRAM} compare --experiment my-table.yaml --dataset shop --epochs=20 --config_files="my.yaml"
  {PROGRAM} compare --runs saved/Molar-shop-1a2b3c4d saved/SASRec-shop-5e6f7a8b

docs/compare.md says what an experiment's file may hold and how to read the table.
"""

_OF_EXPERIMENTS = ("experiment", "dataset", "seeds", "rows", "var", "trials", "jobs", "gpus")
"""Options that have no effect on a table of finished runs."""


def main(arguments: Sequence[str]) -> int:
    """Print and write a table.

    Returns:
        1 if a row failed, else 0.

    Raises:
        ConfigError: an argument is malformed or missing, or has no effect.
    """
    parser = _parser()
    parsed, others = parser.parse_known_args(arguments)
    settings = split_arguments(others)
    show = split_names(parsed.show)
    slices = split_names(parsed.slices)
    from recbole_mm.experiments.compare import command  # imports torch
    from recbole_mm.experiments.compare.slices import slice_tables, slices_markdown, write_slices
    from recbole_mm.experiments.compare.table import to_markdown, write_table
    from recbole_mm.utils.log import init_logging

    if parsed.runs:
        given = [name for name in _OF_EXPERIMENTS if getattr(parsed, name) != parser.get_default(name)]
        if given or settings:
            raise ConfigError(f"--{[*given, *settings][0]} has no effect on finished runs; leave it out, or --runs")
        table, out = command.compare_finished(parsed.runs, metrics=show, reference=parsed.reference), parsed.out
        if out is not None:
            write_table(table, out, "runs")
    else:
        for name in ("experiment", "dataset"):
            if getattr(parsed, name) is None:
                raise ConfigError(f"--{name} is missing; give --experiment and --dataset, or --runs with run folders")
        init_logging(None, settings.get("state"))
        table, out = command.compare_experiment(
            parsed.experiment,
            parsed.dataset,
            parse_seeds(parsed.seeds),
            rows=split_names(parsed.rows),
            reference=parsed.reference,
            variables=dict(map(_variable, parsed.var)),
            metrics=show,
            trials=parsed.trials,
            jobs=parsed.jobs,
            gpus=split_names(parsed.gpus) or (),
            out=parsed.out,
            slices=[name for name in slices or () if name != "all"],
            config_files=split_paths(settings.pop("config_files", "")),
            command_line=settings,
        )
    print(to_markdown(table), end="")
    by_slice = slice_tables(table, slices) if slices is not None else []
    if by_slice:
        print(f"\n{slices_markdown(by_slice)}", end="")
    if out is not None:
        if by_slice:
            write_slices(by_slice, out)
        print(f"\n{out}/table.md, table.csv, table.tex{', slices.md, slices.csv' * bool(by_slice)}")
    return EXIT_FAILED_ROWS if table.failed else 0


def parse_seeds(text: str) -> list[int]:
    """`1,2,3` as numbers.

    Raises:
        ConfigError: a part is no whole number from 0 to the largest seed, or is given twice.
    """
    from recbole_mm.config.kinds import LARGEST_SEED, abridged

    seeds: dict[int, None] = {}
    given = f"--seeds={abridged(text, 50)}"
    for part in text.split(","):
        if not re.fullmatch(r"\s*[0-9]{1,10}\s*", part) or int(part) > LARGEST_SEED:
            raise ConfigError(
                f"{given}: {abridged(part.strip(), 50)!r} is not a whole number up to {LARGEST_SEED}; give them as in "
                "--seeds=1,2,3"
            )
        if int(part) in seeds:
            raise ConfigError(f"{given}: {int(part)} is given twice")
        seeds[int(part)] = None
    return list(seeds)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--var {text}: give it as --var name=value")
    return name, value


def _parser() -> argparse.ArgumentParser:
    from recbole_mm.experiments.compare import experiment_names

    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} compare",
        usage=f"{PROGRAM} compare (--experiment NAME --dataset NAME | --runs DIR DIR ...) [options] [--key=value ...]",
        description=_HELP,
        epilog=_EXAMPLES,
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
    add(
        "--slices", metavar="popularity,...", help="tables of these slices as well; all: of every kind (docs/slices.md)"
    )
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
