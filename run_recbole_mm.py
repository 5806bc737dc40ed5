"""Train and rank a model: `python run_recbole_mm.py --model=Molar --dataset=ml-100k [--key=value ...]`."""

import sys
from importlib.util import find_spec

if find_spec("recbole") is None:
    sys.exit("error: this Python has no RecBole: `. .venv/bin/activate` after `make run`, or see docs/installation.md")

from recbole_mm.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
