"""`recbole-mm report`: finished runs, tables of runs and searches as one HTML file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recbole_mm.cli.arguments import PROGRAM, split_names
from recbole_mm.cli.recommend import quiet, settings_of
from recbole_mm.utils.escaping import one_line
from recbole_mm.utils.paths import given_path

_HELP = """Write one HTML file about finished runs, which needs no network and no other file: metrics with intervals,
tests, learning curves, users, slices, popularity, cost, settings, and users' histories and lists as pictures.

A folder may also be that of a table (`compare`) or of a search (`tune`). Other arguments, --key=value, are settings of
the runs with other values here, such as --data_path of data that was moved.
"""

_EXAMPLES = f"""examples:
  {PROGRAM} report saved/Molar-shop-1a2b3c4d
  {PROGRAM} report saved/Molar-shop-1a2b3c4d saved/SASRec-shop-5e6f7a8b --out molar.html --users ann,bob
  {PROGRAM} report saved/compare-molar-table2-shop saved/tune-SASRec-shop --out all.html
"""


def main(arguments: Sequence[str]) -> int:
    """Write the file, and print its name.

    Raises:
        ConfigError: an argument is malformed.
    """
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} report",
        usage=f"{PROGRAM} report RUN [RUN ...] [options] [--key=value ...]",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=given_path, metavar="RUN", help="folder of a finished run, a table or a search")
    add("--out", type=given_path, default="report.html", metavar="FILE", help="file to write (report.html)")
    add(
        "--cases", type=int, default=3, metavar="N", help="users that are shown with their lists (3); 0: no data needed"
    )
    add("--users", metavar="A,B", help="these users, in place of those that are chosen")
    parsed, others = parser.parse_known_args(arguments)
    changed = settings_of(others)
    users = split_names(parsed.users)
    quiet()
    from recbole_mm.reporting.command import report  # imports torch

    path = report(parsed.runs, parsed.out, cases=parsed.cases, users=users, changed=changed)
    print(one_line(str(path)))
    return 0
