"""recbole_mm: images, text and multimodal LLMs for RecBole, ranked by RecBole's own metrics.

>>> import recbole_mm
>>> outcome = recbole_mm.run(model="Molar", dataset="ml-100k")      # doctest: +SKIP
>>> outcome.test_result["ndcg@10"]                                  # doctest: +SKIP
>>> again = recbole_mm.load(outcome.run_dir)                        # doctest: +SKIP

`run` trains, evaluates and writes a run folder; `load` reads one: config, dataset and model, ready to score;
`recommend` and `similar` give its best items for users, histories and items; `export` writes its vectors; `report`
writes one HTML file about runs.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

THREADS_WAIT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "3000"}
"""How torch's threads wait for each other after every operation, unless the user has set one of the two variables that
OpenMP reads, `OMP_WAIT_POLICY` and `GOMP_SPINCOUNT`.

OpenMP lets them wait in a busy loop. Where another process wants the core, the loop takes it from the very thread that
is waited for, and training is several times slower. Passive threads sleep at once, which halves the speed of a quiet
machine. GNU's OpenMP spins 3,000 times first, which loses least on both (benchmarks/RESULTS.md). OpenMP reads the
variables when torch is loaded: they have no effect on a program that has imported torch before.
"""

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update(THREADS_WAIT)

if find_spec("recbole") is None:
    raise ImportError(
        "recbole_mm is a plugin of RecBole, which is not installed. Install it without its outdated ray pin: "
        "pip install --no-deps recbole==1.2.1"
    )

from recbole_mm import compat  # noqa: E402  (needs RecBole, which the check above names if it is missing)

compat.apply_before_recbole()

if TYPE_CHECKING:
    from recbole_mm.recommending.command import recommend, similar
    from recbole_mm.recommending.export import export
    from recbole_mm.reporting.command import report
    from recbole_mm.runs.run import load, run

__version__ = "0.1.0"
__all__ = ["__version__", "export", "load", "recommend", "report", "run", "similar"]


def __getattr__(name: str) -> Any:
    """Import what the package offers on first use, so that `import recbole_mm` stays light."""
    if name in ("run", "load"):
        from recbole_mm.runs import run as pipeline

        return getattr(pipeline, name)
    if name in ("recommend", "similar"):
        from recbole_mm.recommending import command

        return getattr(command, name)
    if name == "export":
        from recbole_mm.recommending.export import export as write_export

        return write_export
    if name == "report":
        from recbole_mm.reporting.command import report as write_report

        return write_report
    raise AttributeError(f"module 'recbole_mm' has no attribute {name!r}")
