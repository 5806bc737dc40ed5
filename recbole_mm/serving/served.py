"""One run, ready to answer: many questions in one scoring call, ids, titles and pictures.

Ids are looked up when a batch is scored, so that a question is answered by one run alone, also where another takes over
while it waits.
"""

from __future__ import annotations

import io
import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from recbole_mm.data.content import ItemContent
from recbole_mm.errors import ConfigError, DataError, RecboleMMError
from recbole_mm.evaluation.csr import CSR
from recbole_mm.recommending.opening import open_run
from recbole_mm.recommending.reasons import Reasons, reasons_of
from recbole_mm.recommending.recommender import Recommender
from recbole_mm.recommending.top_k import TopK
from recbole_mm.serving.schema import Question, RecommendRequest
from recbole_mm.utils.cache import ByteCache
from recbole_mm.utils.spelling import nearest

logger = logging.getLogger(__name__)

PICTURE_SIDE = 256
"""Pixels of the longer side of a picture."""
PICTURE_QUALITY = 85
PICTURE_BYTES = 64 << 20
"""Bound of the pictures that are kept, in bytes."""

COMPARED, LONGEST_COMPARED = 50, 64
"""An unknown id is compared with so many neighbours in the order of ids, unless it is longer than this."""


class UnknownIdError(DataError):
    """An id is not in the data of the run."""


class Catalogue:
    """The ids of users or items: RecBole's ids by the data's own, and ids that begin alike.

    Args:
        what: a word for them, for messages.
        numbers: id -> RecBole's id; 0 is padding.

    Example:
        >>> items = Catalogue("item", {"[PAD]": 0, "i7": 1, "i71": 2, "k2": 3})
        >>> items.number("i71"), items.beginning_with("i", 5)
        (2, ['i7', 'i71'])
    """

    def __init__(self, what: str, numbers: Mapping[str, int]) -> None:
        self.what = what
        self._numbers = numbers
        self._sorted = sorted(str(token) for token, number in numbers.items() if number)

    def __len__(self) -> int:
        return len(self._sorted)

    def __contains__(self, token: str) -> bool:
        return self._numbers.get(token, 0) > 0

    def number(self, token: str) -> int:
        """Return RecBole's id.

        Raises:
            UnknownIdError: there is none; names ids that are spelt alike.
        """
        if token in self:
            return self._numbers[token]
        near = self._near(token)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UnknownIdError(f"{self.what} {token!r} is not in the data of the run{hint}")

    def beginning_with(self, text: str, count: int) -> list[str]:
        """Return the first ids, in their order, that begin with a text."""
        place = bisect_left(self._sorted, text)
        return [token for token in self._sorted[place : place + count] if token.startswith(text)]

    def _near(self, token: str) -> list[str]:
        """Return ids that are spelt alike, of the neighbours alone: a server is asked about any number of wrong ids."""
        if len(token) > LONGEST_COMPARED:
            return []
        place = bisect_left(self._sorted, token)
        neighbours = self._sorted[max(0, place - COMPARED // 2) : place + COMPARED // 2]
        return nearest(token, [other for other in neighbours if len(other) <= LONGEST_COMPARED])


@dataclass(frozen=True)
class _Resolved:
    """A question in RecBole's ids."""

    question: Question
    ids: int | None
    history: list[int] | None
    allow: np.ndarray | None
    exclude: np.ndarray | None

    @property
    def group(self) -> Hashable:
        """What questions that are scored together have in common."""
        asked = self.question
        own: tuple[Hashable, ...] = ()
        if isinstance(asked, RecommendRequest):
            own = (self.ids is None, self.history is None, asked.mask_history, asked.known)
        return (type(asked), *own, asked.allow, asked.exclude)


class Served:
    """Answers questions by a run; `answer` is for one thread at a time, all else for many.

    Args:
        recommender: of the run. A first list is made here, so that no question waits for what is computed once.

    Attributes:
        name: of the run's folder.
        reads_histories: whether new users can be recommended to.
        has_reasons: whether there are words that say why.
    """

    def __init__(self, recommender: Recommender) -> None:
        dataset = recommender.dataset
        self.recommender = recommender
        self.name = recommender.run.run_dir.name
        self.users = Catalogue("user", dataset.field2token_id[dataset.uid_field])
        self.items = Catalogue("item", dataset.field2token_id[dataset.iid_field])
        self._reasons_for = _reasons(recommender)
        self._content = _content(recommender)
        self._pictures: ByteCache[int, bytes] = ByteCache(PICTURE_BYTES)
        self.has_reasons = self._reasons_for is not None
        self.reads_histories = self._warm_up()

    def _warm_up(self) -> bool:
        """Compute what is computed once; return whether histories are read."""
        known = self.recommender.users_with_history()[:1]
        if len(known):
            self.recommender.top_k(1, users=known)
        self.recommender.similar(np.ones(1, dtype=np.int64), 1)
        self.recommender.title(1)
        try:
            self.recommender.top_k(1, histories=[[1]])
        except ConfigError:
            return False
        return True

    def facts(self) -> dict[str, Any]:
        """Return what `RunFacts` holds."""
        config = self.recommender.config
        return {
            "run": self.name,
            "model": config["model"],
            "dataset": config["dataset"],
            "users": len(self.users),
            "items": len(self.items),
            "histories": self.reads_histories,
            "reasons": self.has_reasons,
        }

    # ---------------------------------------------------------------------------------------------------- questions

    def answer(self, questions: Sequence[Question]) -> list[dict[str, Any] | Exception]:
        """Return what `Recommendations` or `SimilarItems` hold, or an error, for each question."""
        answers: dict[int, dict[str, Any] | Exception] = {}
        groups: dict[Hashable, list[tuple[int, _Resolved]]] = defaultdict(list)
        for place, question in enumerate(questions):
            try:
                resolved = self._resolved(question)
                groups[resolved.group].append((place, resolved))
            except RecboleMMError as error:
                answers[place] = error
        for group in groups.values():
            found = self._answered([resolved for _, resolved in group])
            answers.update(zip([place for place, _ in group], found, strict=True))
        return [answers[place] for place in range(len(questions))]

    def _resolved(self, question: Question) -> _Resolved:
        self.recommender.check_k(question.k)
        limits = {name: self._limit(getattr(question, name)) for name in ("allow", "exclude")}
        if not isinstance(question, RecommendRequest):
            return _Resolved(question, self.items.number(question.item), None, **limits)
        if question.reason and self._reasons_for is None:
            raise ConfigError(f"{self.recommender.config['model']} has no texts of its users to give as reasons")
        user = None if question.user is None else self.users.number(question.user)
        return _Resolved(question, user, self._history(question), **limits)

    def _limit(self, tokens: Sequence[str] | None) -> np.ndarray | None:
        return None if tokens is None else np.array([self.items.number(token) for token in tokens], dtype=np.int64)

    def _history(self, question: RecommendRequest) -> list[int] | None:
        if question.history is None:
            return None
        tokens = [token for token in question.history if not question.skip_unknown or token in self.items]
        if not tokens:
            raise DataError("the history is empty of known items; give one item at least")
        return [self.items.number(token) for token in tokens]

    def _answered(self, group: Sequence[_Resolved]) -> list[dict[str, Any] | Exception]:
        """Answer questions that are scored together; where one of them is an error, each alone."""
        try:
            return list(self._scored(group))
        except RecboleMMError as error:
            if len(group) == 1:
                return [error]
            return [self._answered([one])[0] for one in group]

    def _scored(self, group: Sequence[_Resolved]) -> list[dict[str, Any]]:
        first, k = group[0], max(one.question.k for one in group)
        limits = {"allow": first.allow, "exclude": first.exclude}
        ids = None if first.ids is None else np.array([one.ids for one in group], dtype=np.int64)
        if not isinstance(first.question, RecommendRequest):
            assert ids is not None
            return self._rows(group, self.recommender.similar(ids, k, **limits))
        histories = None if first.history is None else CSR.from_lists([one.history or [] for one in group])
        known = first.question.known
        top = self.recommender.top_k(
            k, users=ids, histories=histories, mask_history=first.question.mask_history, known=known, **limits
        )
        rows = self._rows(group, top)
        for row, reason in zip(rows, self._reasons_of(group, ids, histories, known), strict=True):
            row["reason"] = reason
        return rows

    def _reasons_of(
        self, group: Sequence[_Resolved], users: np.ndarray | None, histories: CSR | None, known: str
    ) -> list[str | None]:
        wanted = [isinstance(one.question, RecommendRequest) and one.question.reason for one in group]
        if self._reasons_for is None or not any(wanted):
            return [None] * len(group)
        if histories is None:
            assert users is not None
            histories = self.recommender.histories_of(users, known)
        texts = self._reasons_for(users, histories)
        return [text if asked else None for text, asked in zip(texts, wanted, strict=True)]

    def _rows(self, group: Sequence[_Resolved], top: TopK) -> list[dict[str, Any]]:
        return [
            {
                "run": self.name,
                "items": [
                    {**self.listed(item), "score": score if np.isfinite(score) else None}
                    for item, score in top.row(place)[: one.question.k]
                ],
            }
            for place, one in enumerate(group)
        ]

    # -------------------------------------------------------------------------------------------------------- items

    def listed(self, item: int) -> dict[str, Any]:
        """Return what `Listed` holds of an item, by RecBole's id."""
        return {
            "item": str(self.recommender.item_tokens[item]),
            "title": self.recommender.title(item),
            "image": self._content is not None and self._content.source.has_image(self._content.tokens[item]),
        }

    def item(self, token: str) -> dict[str, Any]:
        """Return what `Item` holds.

        Raises:
            UnknownIdError: there is no such item.
        """
        item = self.items.number(token)
        return {**self.listed(item), "columns": {} if self._content is None else self._content.fields(item)}

    def picture(self, token: str) -> bytes | None:
        """Return the picture of an item as a small JPEG, decoded and encoded anew; None where it has none.

        Raises:
            UnknownIdError: there is no such item.
        """
        item = self.items.number(token)
        if self._content is None:
            return None
        if (kept := self._pictures.get(item)) is not None:
            return kept
        try:
            image = self._content.source.image(token, max_side=PICTURE_SIDE)
        except DataError:  # it is broken, and `missing_modality: error`
            return None
        if image is None:
            return None
        written = io.BytesIO()
        image.save(written, "JPEG", quality=PICTURE_QUALITY)
        self._pictures.put(item, written.getvalue(), written.tell())
        return written.getvalue()

    def found_items(self, text: str, count: int) -> list[dict[str, Any]]:
        """Return what `Listed` holds of items whose id and title have all words of a text, the most popular first."""
        words = text.casefold().split()
        found = (item for line, item in self._searchable if all(word in line for word in words))
        return [self.listed(item) for item in islice(found, count)]

    @cached_property
    def _searchable(self) -> list[tuple[str, int]]:
        tokens, count = self.recommender.item_tokens, self.recommender.dataset.item_num
        popularity = np.bincount(self.recommender.dataset.rows.items, minlength=count)[1:]
        order = (np.argsort(-popularity, kind="stable") + 1).tolist()
        return [(f"{tokens[item]} {self.recommender.title(item)}".casefold(), item) for item in order]


def _reasons(recommender: Recommender) -> Reasons | None:
    try:
        return reasons_of(recommender)
    except ConfigError:
        return None


def _content(recommender: Recommender) -> ItemContent | None:
    """Return the items' texts and pictures; None, with a warning, where they have gone."""
    try:
        return recommender.content
    except RecboleMMError as error:
        logger.warning("%s: no pictures and columns of items: %s", recommender.run.run_dir, error)
        return None


def opened_at(folder: Path, changed: Mapping[str, Any]) -> Served:
    """Open the folder of a finished run to be served.

    Raises:
        RecboleMMError: one line that says why it cannot be.
    """
    return Served(Recommender(open_run(folder, changed=changed)))
