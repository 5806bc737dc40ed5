"""`recbole-mm similar`: the items most alike to the model of a finished run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recbole_mm.cli.arguments import PROGRAM
from recbole_mm.cli.recommend import add_limits, print_found, quiet, settings_of

_HELP = """Find the items that are most alike to a finished run's model, by the cosine of the vectors it scores with.

A model without item vectors tells by its scores for some users; one that reranks, by those of its first stage.
"""

_EXAMPLES = f"""examples:
  {PROGRAM} similar saved/SASRec-shop-1a2b3c4d --items i7,i9
  {PROGRAM} similar saved/LightGCN-shop-5e6f7a8b --items all --k 20 --out similar.parquet
"""


def main(arguments: Sequence[str]) -> int:
    """Print similar items, or write them to a file.

    Raises:
        ConfigError: an argument is malformed.
    """
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} similar",
        usage=f"{PROGRAM} similar RUN --items IDS [options] [--key=value ...]",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_limits(parser)
    parser.add_argument("--items", required=True, metavar="IDS", help="i7,i9, a file with one id in each line, or all")
    parsed, others = parser.parse_known_args(arguments)
    changed = settings_of(others)
    quiet()
    from recbole_mm.recommending.command import similar  # imports torch

    found = similar(
        parsed.run,
        parsed.items,
        parsed.k,
        allow=parsed.allow,
        exclude=parsed.exclude,
        out=parsed.out,
        changed=changed,
        show_progress=True,
    )
    print_found(found)
    return 0
