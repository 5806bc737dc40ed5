"""The command line: `recbole-mm run | plan | compare | tune | recommend | similar | serve | export | report | ...`.

Each command is a module with a `main(arguments)` that returns the exit status, imported when it is called; none of
them imports torch before it has to.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from recbole_mm import __version__
from recbole_mm.cli.arguments import PROGRAM
from recbole_mm.errors import DiskError, RecboleMMError
from recbole_mm.utils.escaping import printable
from recbole_mm.utils.files import disk_reason

COMMANDS = {
    "run": "train and rank a model",
    "plan": "tell what a run would compute before it trains, and the cost",
    "compare": "run a table of models over seeds, with paired tests",
    "tune": "search for a model's best settings",
    "recommend": "recommend items by a finished run",
    "similar": "find items that are alike to a finished run's model",
    "serve": "answer recommendations of a finished run over HTTP, with a page",
    "export": "write a finished run's vectors, an index of them, and its model card",
    "report": "write one HTML file about finished runs, tables of runs and searches",
    "models": "list every model that --model accepts",
    "prepare": "turn raw downloads into a dataset folder",
}
"""Command -> its line in `--help`; its module is `recbole_mm.cli.<command>`."""

DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
"""Numbers of errors of a disk that is full or denies access, which a traceback would not explain."""
EXIT_ERROR, EXIT_INTERRUPTED = 2, 130

_EXAMPLES = f"""examples:
  {PROGRAM} run --model=Molar --dataset=ml-100k
  {PROGRAM} compare --experiment molar-table5 --dataset ml-100k --mllm=tiny --seeds 1,2,3
  {PROGRAM} tune --model SASRec --dataset ml-100k --trials 20
  {PROGRAM} recommend saved/Molar-ml-100k-3f9a1c20 --users 1,2
  {PROGRAM} plan --model=MLLMRec --dataset=ml-100k --text_backend=hf
  {PROGRAM} models sequential
  {PROGRAM} prepare hm --source downloads/hm --out dataset/hm

`{PROGRAM} COMMAND --help` says more about a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments behind the program's name; None takes those of the process.

    Returns:
        The exit status: 0, 1 if a row of a table failed, 2 after an error the user can mend, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in COMMANDS:
            return importlib.import_module(f"recbole_mm.cli.{arguments[0]}").main(arguments[1:])
        _parser().parse_args(arguments or ["--help"])
        raise AssertionError("argparse ends the process after --help, --version and an unknown command")
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
        place = error.filename or "a file"
        print(f"error: {DiskError(f'{place}: {disk_reason(error)}')}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as interrupt:
        # A run or a search says itself how to go on; nothing else has anything to resume.
        print(printable(str(interrupt)) or "interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except SystemExit as stop:  # argparse, after --help or a usage error
        return stop.code if isinstance(stop.code, int) else EXIT_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Multimodal recommendation with RecBole: prepare data, train, rank, compare.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        commands.add_parser(name, help=line, add_help=False)
    return parser
