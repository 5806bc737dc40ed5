"""`recbole-mm export`: vectors, an index and a model card of a finished run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from recbole_mm.cli.arguments import PROGRAM
from recbole_mm.cli.recommend import quiet, settings_of
from recbole_mm.utils.escaping import one_line
from recbole_mm.utils.paths import given_path

_HELP = """Write the vectors of a finished run with their ids, perhaps a FAISS index over its items, and its model card.

A score is the dot product of a user's and an item's vector. Models that score otherwise have no vectors to export.
"""

_EXAMPLES = f"""examples:
  {PROGRAM} export saved/SASRec-shop-1a2b3c4d --out export
  {PROGRAM} export saved/Molar-shop-5e6f7a8b --out export --format parquet --index hnsw
"""


def main(arguments: Sequence[str]) -> int:
    """Write the files, and print a line for each.

    Raises:
        ConfigError: an argument is malformed, or the model has no vectors.
    """
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} export",
        usage=f"{PROGRAM} export RUN --out DIR [options] [--key=value ...]",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("run", type=given_path, metavar="RUN", help="folder of a finished run")
    add("--out", type=given_path, required=True, metavar="DIR", help="folder to write to")
    add("--format", default="safetensors", choices=("safetensors", "parquet", "npy"), help="of vectors (safetensors)")
    add("--no_users", "--no-users", dest="users", action="store_false", help="vectors of items alone")
    add("--known", choices=("all", "test"), default="all", help="what is known of users: all, or what the test knew")
    add("--index", choices=("hnsw", "flat"), help="a FAISS index of items, with its recall against exact search")
    parsed, others = parser.parse_known_args(arguments)
    changed = settings_of(others)
    quiet()
    from recbole_mm.recommending.export import export  # imports torch

    done = export(
        parsed.run,
        parsed.out,
        kind=parsed.format,
        users=parsed.users,
        known=parsed.known,
        index=parsed.index,
        changed=changed,
    )
    for name, said in done.files.items():
        print(one_line(f"{done.folder / name}: {said}"))
    return 0
