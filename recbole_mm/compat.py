"""Lets RecBole 1.2.1 run on today's numpy, scipy and pandas, and write every line of its log.

Each shim names the upstream line it mends; `tests/test_compat.py` holds a test for each that fails without it. Nothing
here changes what RecBole computes.
"""

from __future__ import annotations

import logging
import sys
import warnings
from importlib.abc import MetaPathFinder
from typing import Any


def restore_numpy_aliases() -> None:
    """Bring back `np.float` and its kin, removed in numpy 1.24 and 2.0.

    recbole/evaluator/metrics.py:90 (`np.float`), recbole/data/interaction.py:31 (`np.float`),
    recbole/trainer/hyper_tuning.py:386 (`np.str`), recbole/model/layers.py:1408 (`np.long` before numpy 2).
    """
    import numpy as np

    aliases = {"float": np.float64, "int": np.int64, "object": np.object_, "str": np.str_, "complex": np.complex128}
    aliases |= {"long": np.int64, "bool": np.bool_, "unicode": np.str_}
    for name, target in aliases.items():
        if name not in vars(np):
            setattr(np, name, target)


def restore_dok_update() -> None:
    """Bring back `dok_matrix._update`, removed in scipy 1.13.

    recbole/model/general_recommender/lightgcn.py:111 and its copies in ngcf, ncl, gcmc, spectralcf, kgin, mcclk.
    """
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda self, entries: self._dict.update(entries)


def quiet_upstream_warnings() -> None:
    """Silence warnings that only RecBole's authors could act on.

    recbole/data/dataset/dataset.py:501 and :648 (pandas chained assignment), recbole/trainer/trainer.py:237
    (`torch.cuda.amp.GradScaler`), recbole/model/general_recommender/lightgcn.py:125 (`torch.sparse.FloatTensor`).
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
    warnings.filterwarnings("ignore", "torch.sparse.SparseTensor", UserWarning)


def complete_message(record: logging.LogRecord) -> bool:
    """Put behind a message what it was given without a place for it, for which logging prints a traceback.

    recbole/model/general_recommender/ract.py:76 and :85, recbole/model/general_recommender/dgcf.py:160.

    Returns:
        True: the line is written.
    """
    if record.args:
        try:
            record.getMessage()
        except TypeError:
            record.msg, record.args = f"{record.msg} {' '.join(map(str, record.args))}", ()
    return True


def apply() -> None:
    """Apply every shim. Idempotent."""
    restore_numpy_aliases()
    restore_dok_update()
    quiet_upstream_warnings()
    logging.getLogger().addFilter(complete_message)  # RecBole's models log by the root logger


class _BeforeRecbole(MetaPathFinder):
    """Finds no module: applies the shims when RecBole is looked for, so that a command without it does without numpy
    and scipy."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Apply the shims when RecBole is looked for; find nothing."""
        if fullname == "recbole":
            sys.meta_path.remove(self)
            apply()


def apply_before_recbole() -> None:
    """Apply every shim before RecBole is imported, or now if it is; called once by `import recbole_mm`."""
    if "recbole" in sys.modules:
        apply()
    else:
        sys.meta_path.insert(0, _BeforeRecbole())
