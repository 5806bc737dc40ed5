"""`recbole-mm recommend`: the best items of a finished run for users of its data, or for histories."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_mm.cli.arguments import PROGRAM, split_arguments, split_names
from recbole_mm.errors import ConfigError
from recbole_mm.utils.escaping import one_line
from recbole_mm.utils.paths import given_path
from recbole_mm.utils.tables import columns

if TYPE_CHECKING:
    import pandas as pd

_HELP = """Recommend items by a finished run: for users of its data, or for new users given as histories.

The lists are the top of the ranking that the evaluation counts, ties included. By default all interactions of a user
are known, and none of these items is recommended again; --known=test knows what the evaluation knew. Other arguments,
--key=value, are settings with other values here, such as --data_path=/data/recbole of a folder that was moved.
"""

_EXAMPLES = f"""examples:
  {PROGRAM} recommend saved/SASRec-shop-1a2b3c4d --users ann,bob
  {PROGRAM} recommend saved/SASRec-shop-1a2b3c4d --history i7,i9,i4 --exclude sold-out.txt
  {PROGRAM} recommend saved/Molar-shop-5e6f7a8b --users all --k 20 --out top.parquet
  {PROGRAM} recommend saved/Molar-shop-5e6f7a8b --histories sessions.jsonl --out top.jsonl
  {PROGRAM} recommend saved/Molar-shop-5e6f7a8b --users ann --new_items spring/spring.item
  {PROGRAM} recommend saved/MLLMMSR-shop-9b0c1d2e --users ann --reasons

--out takes .csv, .jsonl and .parquet; an interrupted file goes on with the same command. docs/recommend.md says more.
"""

WIDEST = 60
"""Characters of a title in a terminal."""


def main(arguments: Sequence[str]) -> int:
    """Print recommendations, or write them to a file.

    Raises:
        ConfigError: an argument is malformed or missing.
    """
    parsed, others = _parser().parse_known_args(arguments)
    changed = settings_of(others)
    if parsed.users is None and parsed.history is None and parsed.histories is None:
        raise ConfigError("--users, --history or --histories is missing; --users all takes all users of the data")
    if sum(given is not None for given in (parsed.users, parsed.history, parsed.histories)) > 1:
        raise ConfigError("--users, --history and --histories: give one of them")
    if parsed.users == "all" and parsed.out is None:
        raise ConfigError("--users all needs a file: --out=top.csv, .jsonl or .parquet")
    histories: Any = parsed.histories
    if parsed.history is not None:
        histories = [split_names(text) or [] for text in parsed.history]
    quiet()
    from recbole_mm.recommending.command import recommend  # imports torch

    found = recommend(
        parsed.run,
        parsed.k,
        users=parsed.users,
        histories=histories,
        allow=parsed.allow,
        exclude=parsed.exclude,
        mask_history=parsed.mask_history,
        known=parsed.known,
        reasons=parsed.reasons,
        skip_unknown=parsed.skip_unknown,
        new_items=parsed.new_items,
        out=parsed.out,
        changed=changed,
        show_progress=True,
    )
    print_found(found)
    return 0


def settings_of(others: Sequence[str]) -> dict[str, Any]:
    """Return the arguments that are settings of the run, as values.

    Raises:
        ConfigError: one is malformed.
    """
    from recbole_mm.config.yaml_settings import parse_argument

    given = split_arguments(others, ())
    return {key: parse_argument(key, value) for key, value in given.items()}


def quiet() -> None:
    """Have the log say nothing but what went wrong and, where there is no terminal, how far it has come."""
    from recbole_mm.utils import progress
    from recbole_mm.utils.log import init_logging

    init_logging(None, "INFO")
    logging.getLogger().setLevel(logging.WARNING)
    progress.logger.setLevel(logging.INFO)


def print_found(found: pd.DataFrame | Path) -> None:
    """Print a table for a terminal, or the name of the file that was written."""
    if isinstance(found, Path):
        print(one_line(str(found)))
        return
    first = found.columns[0]
    reasons = {} if "reason" not in found else dict(zip(found[first], found["reason"], strict=True))
    shown = [name for name in found.columns if name != "reason"]
    rows = [
        [_cell(name, value) for name, value in zip(shown, record, strict=True)]
        for record in found[shown].itertuples(index=False)
    ]
    print(columns([name.upper() for name in shown], rows))
    for name, reason in reasons.items():
        print(one_line(f"\n{name}: {reason or 'nothing was written'}".strip()))


def _cell(name: str, value: Any) -> Any:
    """Return a value for a terminal; of a long title the beginning, of an id all of it."""
    if isinstance(value, float):
        return value
    text = one_line(str(value))
    return f"{text[: WIDEST - 3]}..." if name == "title" and len(text) > WIDEST else text


def flag(text: str) -> bool:
    """Read True or False, for `argparse`.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text[:50]!r} is neither True nor False")
    return text.lower() == "true"


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options that `recommend` and `similar` share."""
    add = parser.add_argument
    add("run", type=given_path, metavar="RUN", help="folder of a finished run")
    add("--k", type=int, default=10, metavar="N", help="items of each list (10)")
    add("--allow", metavar="IDS", help="these items alone: i7,i9, or a file with one id in each line")
    add("--exclude", metavar="IDS", help="never these items")
    add("--out", type=given_path, metavar="FILE", help=".csv, .jsonl or .parquet; without it a table is printed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} recommend",
        usage=f"{PROGRAM} recommend RUN (--users IDS | --history IDS | --histories FILE) [options] [--key=value ...]",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_limits(parser)
    add = parser.add_argument
    add("--users", metavar="IDS", help="users of the data: ann,bob, a file with one id in each line, or all")
    add("--history", action="append", metavar="IDS", help="a new user's items, the earliest first; may be repeated")
    add("--histories", type=given_path, metavar="FILE", help="new users: .jsonl, .csv, .tsv, .inter or .parquet")
    add("--mask_history", "--mask-history", type=flag, metavar="BOOL", help="leave out the history (as the run did)")
    add("--known", choices=("all", "test"), default="all", help="what is known of users: all, or what the test knew")
    add("--reasons", action="store_true", help="say why, in the words that MLLMMSR or MLLMRec has of users")
    add("--new_items", "--new-items", type=given_path, metavar="FILE", help="an .item file of items to rank, too")
    add("--skip_unknown", "--skip-unknown", action="store_true", help="pass over unknown items of histories")
    return parser
