"""Rankings of the test as TREC run and qrels files, which ir-measures, ranx, pytrec_eval and trec_eval read.

`rankings.trec` has a line `query Q0 item rank score model` for each listed item, `qrels.trec` a line `query 0 item 1`
for each held-out item. A query is a ranked case: the user's id, with `#2`, `#3`, ... where a user has several.

Those tools order by the score and break ties as they like, so the score column holds `k + 1 - rank` with k the longest
of `topk`: every tool has the order of this evaluation, in which an equal score counts as ahead of a held-out item.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from recbole.evaluator.collector import DataStruct

from recbole_mm.evaluation.collector import RANKINGS, RANKS
from recbole_mm.evaluation.csr import CSR
from recbole_mm.evaluation.ranking import EvalUsers
from recbole_mm.utils.files import atomic_write

RUN, QRELS = "rankings.trec", "qrels.trec"

_UNSAFE = re.compile(r"[\s%#\x00-\x1f\x7f]")


def trec_id(token: str) -> str:
    """An id as one word: spaces, control characters, `%` and `#` as `%20`, ...; `urllib.parse.unquote` gives it back.

    Example:
        >>> trec_id("red lamp #7"), trec_id("ü")
        ('red%20lamp%20%237', 'ü')
    """
    return _UNSAFE.sub(lambda found: quote(found[0], safe=""), token)


def ranked_lists(users: EvalUsers, struct: DataStruct, k: int) -> CSR:
    """The items of each case in the order of its ranks, at most k: held-out items at their ranks, the others between.

    Args:
        users: the cases.
        struct: the result of `rank_users` by a collector of rankings.
        k: length of a list.
    """
    best = struct.get(RANKINGS)
    positives, ranks = users.positives, struct.get(RANKS).numpy()
    lists = []
    for row in range(len(users)):
        mine = slice(positives.offsets[row], positives.offsets[row + 1])
        held_out, places = positives.items[mine], ranks[mine]
        ranked = best.items[best.offsets[row] : best.offsets[row + 1]]
        others = ranked[(ranked > 0) & ~np.isin(ranked, held_out)]
        listed = places <= k
        length = min(k, len(others) + int(listed.sum()))
        items = np.zeros(max(length, int(places[listed].max(initial=0))), dtype=np.int64)
        items[places[listed] - 1] = held_out[listed]
        free = np.flatnonzero(items == 0)
        items[free] = others[: len(free)]
        lists.append(items)
    return CSR.from_lists(lists)


def queries(names: Iterable[str]) -> Iterator[str]:
    """The query of each case, of which a user may have several.

    Example:
        >>> list(queries(["a", "b c", "a"]))
        ['a', 'b%20c', 'a#2']
    """
    seen: dict[str, int] = {}
    for name in names:
        number = seen[name] = seen.get(name, 0) + 1
        yield trec_id(name) + (f"#{number}" if number > 1 else "")


def write_trec(
    folder: Path, users: EvalUsers, struct: DataStruct, item_tokens: Sequence[str], k: int, model: str
) -> None:
    """Write both files; a reader never sees half of one.

    Args:
        folder: of the run.
        users, struct, k: see `ranked_lists`.
        item_tokens: (item_num,) ids of the data files by RecBole's ids.
        model: last column.

    Raises:
        DiskError: a file cannot be written.
    """
    lists, tokens = ranked_lists(users, struct, k), [trec_id(str(token)) for token in item_tokens]
    names = list(queries(map(str, users.names)))
    tag = trec_id(model)

    def run_lines(row: int, items: list[int]) -> Iterator[str]:
        for rank, item in enumerate(items, start=1):
            yield f"{names[row]} Q0 {tokens[item]} {rank} {k + 1 - rank} {tag}\n"

    def qrels_lines(row: int, items: list[int]) -> Iterator[str]:
        return (f"{names[row]} 0 {tokens[item]} 1\n" for item in items)

    for name, of_cases, lines in ((RUN, lists, run_lines), (QRELS, users.positives, qrels_lines)):
        with atomic_write(folder / name) as draft, open(draft, "w", encoding="utf-8", newline="\n") as file:
            for row in range(len(users)):
                items = of_cases.items[of_cases.offsets[row] : of_cases.offsets[row + 1]].tolist()
                file.writelines(lines(row, items))
