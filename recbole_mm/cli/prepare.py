"""`recbole-mm prepare SOURCE --source DIR --out DIR`: raw downloads to a dataset folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recbole_mm.cli.arguments import PROGRAM
from recbole_mm.datasets import CONVERTERS, HELP
from recbole_mm.utils.escaping import printable
from recbole_mm.utils.paths import given_path

_EXAMPLES = f"""examples:
  {PROGRAM} prepare movielens --source downloads/ml-1m --out dataset/ml-1m
  {PROGRAM} prepare pixelrec --source downloads/PixelRec --out dataset/pixelrec --link

`{PROGRAM} prepare SOURCE --help` lists the options of a source.
"""


def main(arguments: Sequence[str]) -> int:
    """Convert, and print a summary of what was written."""
    name = _parser().parse_args(arguments[:1]).source
    converter = CONVERTERS[name]
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} prepare {name}", description=HELP[name], allow_abbrev=False)
    parser.add_argument("--source", required=True, type=given_path, metavar="DIR", help="folder of the raw files")
    parser.add_argument("--out", required=True, type=given_path, metavar="DIR", help="dataset folder to write")
    converter.add_arguments(parser)
    options = vars(parser.parse_args(arguments[1:]))
    from recbole_mm.utils.log import init_logging

    init_logging(None, None)  # fetching pictures takes hours and reports on the way
    print(printable(str(converter.convert(options.pop("source"), options.pop("out"), **options))))
    return 0


def _parser() -> argparse.ArgumentParser:
    """The sources and `--help`; a source's own options are its converter's."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} prepare",
        description="Turn raw downloads into a dataset folder of RecBole atomic files and images.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sources = parser.add_subparsers(metavar="SOURCE", required=True, dest="source")
    for name, line in HELP.items():
        sources.add_parser(name, help=line, add_help=False)
    return parser
