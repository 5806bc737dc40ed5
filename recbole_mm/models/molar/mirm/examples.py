"""Prompts of shown items, with an answer: what the fine-tuning objectives make."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShownItem:
    """One item of a prompt; it is laid out as for encoding, and ends in `[Cur_Item]`.

    Attributes:
        item: its id, the place in the content.
        image: whether its picture is shown.
        text: its words, or None.
    """

    item: int
    image: bool
    text: str | None


@dataclass(frozen=True)
class Example:
    """One prompt and its answer.

    Attributes:
        objective: `IT`, `SA` or `UB`.
        items: the items shown, in order.
        request: what is asked behind them.
        answer: what is to be said.
    """

    objective: str
    items: tuple[ShownItem, ...]
    request: str
    answer: str
