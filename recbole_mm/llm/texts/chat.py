"""A prompt as one turn of a chat, by the checkpoint's own chat template, without letting data spell its markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import TemplateError
from PIL import Image

from recbole_mm.errors import ModelLoadError
from recbole_mm.llm.family import Part

MARK = "recbole-mm-prompt-stands-here"
"""Stands for the prompt while the template is rendered: the prompt itself is never part of a text with markup."""

ANSWER = "recbole-mm-answer-stands-here"
"""Stands for an answer, to see what a template puts before one."""

FIXED = {"enable_thinking": False, "date_string": "1 Jan 2025"}
"""What some templates ask for: no thinking aloud; a date that is the same every day, since the texts are kept."""


@dataclass(frozen=True)
class Frame:
    """A template as it stands around a prompt that is made of several pieces.

    Attributes:
        opening: token ids before the prompt.
        before, after: the template's own words right before and right after the prompt, to be made tokens together
            with its first and its last words.
        closing: token ids of what follows.
        words_last: the words after the last special token; None where no such token is after the prompt.
        blank: what the template puts between the end of the prompt and an answer: `" "` or nothing.
    """

    opening: list[int]
    before: str
    after: str
    closing: list[int]
    words_last: str | None
    blank: str

    @property
    def is_plain(self) -> bool:
        """Whether there is no template."""
        return not (self.opening or self.before or self.after or self.closing)

    def tail(self, ending: str) -> str:
        """The text right before the answer to a prompt that ends so, with the blank that the answer opens with."""
        return (ending + self.after if self.words_last is None else self.words_last) + self.blank


class Chat:
    """Lays out prompts.

    Args:
        tokenizer: of the checkpoint.
        token_ids: plain text -> token ids, none of them special whatever the text spells.
        placeholder: how the template writes a picture; None for a model without pictures.
        name: of the model, for errors.

    Raises:
        ModelLoadError: from `parts`: the template cannot be used.
    """

    def __init__(
        self, tokenizer: Any, token_ids: Callable[[str], list[int]], placeholder: str | None, name: str
    ) -> None:
        self.tokenizer = tokenizer
        self.token_ids = token_ids
        self.placeholder = placeholder
        self.name = name
        special = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")
        self._around = cache(self._render)

    def parts(self, prompt: str, image: Image.Image | None = None) -> list[Part]:
        """The picture and token ids of one turn of the user, ready for the answer. Safe to call from threads.

        Without a chat template: the picture, then the prompt as it is.
        """
        before, between, words_before, words_after, after = self._around(image is not None)
        pictures: list[Part] = [] if image is None else [image]
        return [before, *pictures, [*between, *self.token_ids(f"{words_before}{prompt}{words_after}"), *after]]

    def frame(self) -> Frame:
        """The template around a prompt in pieces, whose images stand where they are put in it.

        Raises:
            ModelLoadError: the template cannot be used.
        """
        _, opening, before, after, closing = self._around(False)
        if not self.tokenizer.chat_template:
            return Frame(opening, before, after, closing, None, "")
        rendered = self._rendered(False)
        marks = list(self._special.finditer(rendered.partition(MARK)[2]))
        last = rendered.partition(MARK)[2][marks[-1].end() :] if marks else None
        answered = self._rendered(False, ANSWER)
        lead = answered.removeprefix(rendered).partition(ANSWER)[0] if answered.startswith(rendered) else ""
        return Frame(opening, before, after, closing, last, " " if lead == " " else "")

    def _render(self, with_image: bool) -> tuple[list[int], list[int], str, str, list[int]]:
        """The template around the prompt.

        Returns:
            Token ids before the picture, and between it and the prompt; the template's own words right before and right
            after the prompt, which become tokens together with it ("User: shoes" holds the token " shoes"); token ids
            of what follows.
        """
        if not self.tokenizer.chat_template:
            return [], [], "", "", []
        between, _, after = self._rendered(with_image).partition(MARK)
        before = ""
        if with_image and self.placeholder and self.placeholder in between:
            before, _, between = between.partition(self.placeholder)
        elif with_image:
            before, between = between, ""  # a template that knows no pictures: right before the prompt
        marks = list(self._special.finditer(between))
        between, words_before = (between[: marks[-1].end()], between[marks[-1].end() :]) if marks else ("", between)
        mark = self._special.search(after)
        words_after, after = (after[: mark.start()], after[mark.start() :]) if mark else (after, "")
        return self._markup(before), self._markup(between), words_before, words_after, self._markup(after)

    def _rendered(self, with_image: bool, answer: str | None = None) -> str:
        """The template around `MARK`; content as parts, as multimodal templates want it, or else as text.

        With an answer the turn that gives it follows, instead of what asks for one.
        """
        parts = [*([{"type": "image"}] if with_image else []), {"type": "text", "text": MARK}]
        contents: list[Any] = [MARK] if self.placeholder is None else [parts, MARK]
        reason = "it loses the prompt"
        for content in contents:
            turns = [{"role": "user", "content": content}]
            if answer is not None:
                given = answer if isinstance(content, str) else [{"type": "text", "text": answer}]
                turns.append({"role": "assistant", "content": given})
            try:
                text = self.tokenizer.apply_chat_template(
                    turns, tokenize=False, add_generation_prompt=answer is None, **FIXED
                )
            except (TemplateError, TypeError, ValueError) as error:
                reason = str(error) or type(error).__name__
                continue
            if text.count(MARK) == 1:
                return text
        raise ModelLoadError(f"{self.name}: its chat template cannot be used: {' '.join(reason.split())[:200]}")

    def _markup(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
