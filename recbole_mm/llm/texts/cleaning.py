"""From what an LLM said to the text that was asked for: without thoughts, chatter and markup, and not too long.

What cannot be read is a `Failure` with its reason, never a guess.
"""
# ruff: noqa: RUF001 (signs of many scripts)

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from recbole_mm.artifacts.executor import Failure

NOTHING_LEFT = "the answer is empty"
ONLY_THOUGHTS = "the model was still thinking when its tokens ran out; raise text_max_new_tokens or turn thinking off"
REFUSED = "the model refused to answer"
BROKEN_JSON = "the answer is JSON that was cut or is malformed"
UNCLEAR_JSON = "the answer is JSON with another content than one text"
NO_WORDS = "the answer has no words"

_THOUGHT = r"think|thinking|thought|thoughts|reasoning|scratchpad"
_THOUGHTS = re.compile(rf"<({_THOUGHT})>.*?</\1\s*>|◁think▷.*?◁/think▷", re.DOTALL | re.IGNORECASE)
_THOUGHTS_END = re.compile(rf"\A.*(?:</(?:{_THOUGHT})\s*>|◁/think▷)", re.DOTALL | re.IGNORECASE)
_THOUGHTS_OPEN = re.compile(rf"(?:<(?:{_THOUGHT})>|◁think▷).*", re.DOTALL | re.IGNORECASE)

_MARKUP_TOKENS = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?s>|<(?:end_of_turn|start_of_turn|eos|bos|pad|unk)>")
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n?(.*?)(?:\n?```|\Z)", re.DOTALL)

# Controls, marks that turn the direction of writing, byte order marks, what broken bytes became, and surrogates. Kept:
# line breaks and tabs, and the joiners (U+200C, U+200D) that Persian and emoji are written with.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffd\ud800-\udfff]"
)

_BULLET = re.compile(r"^\s*[-*+•‣▪◦·–]\s+")
_NUMBER = re.compile(r"^\s*\(?\d{1,2}[.)]\s+")
_HEADER = re.compile(r"^\s*#{1,6}\s+|^\s*>\s+")
_RULE = re.compile(r"^\s*(?:[-*_=]\s*){3,}$")
_EMPHASIS = re.compile(r"(\*\*\*|\*\*|`)(?=\S)(.+?)(?<=\S)\1|(?<![\w*])\*(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*(?![\w*])")
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“", "「": "」", "『": "』", "`": "`"}

_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\s{_IDEOGRAPH}]+")
_WIDE_STOPS = "。\uff01\uff1f"
_STOPS = ".!?…" + _WIDE_STOPS
_PAUSES = " ,;:-–—、\uff0c\uff1b\uff1a"
_SENTENCE_END = re.compile(rf"[.!?…]+[\"'”’»)\]]*(?=\s|\Z)|[{_WIDE_STOPS}]+[」』”’\uff09]*")

# --- what LLMs say around a text, or instead of it --------------------------------------------------------------------

_SUBJECT = (
    r"(?:descri\w*|summar\w*|profile|answer|response|text|paragraph|version|overview|analysis|caption|sentence|json"
    r"|rewrit\w*)s?"
)
_SOME = r"[^\n:.!?]{0,160}"

INTRODUCTIONS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:sure|certainly|of course|absolutely|okay|ok|got it)(?: thing)?\s*[!,.:]+\s+",
        rf"here(?:['’]s| is| are)\b{_SOME}\b{_SUBJECT}\b{_SOME}(?::\s*|\n+)",
        rf"(?:below is|the following is|this is)\b{_SOME}\b{_SUBJECT}\b{_SOME}:\s*",
        r"(?:final |short |brief |product |item |movie |film |user |preference |image )*"
        r"(?:description|summary|profile|answer|response|output|caption)\s*:\s+",
        r"(?:好的|当然(?:可以)?)[\uff0c,\uff01!。]\s*",
        r"以下是[^\n\uff1a:。]{0,60}[\uff1a:]\s*",
        rf"(?:voici|aquí (?:está|tienes)|hier ist|ecco|вот)\b{_SOME}:\s*",
    )
)
"""Matched at the beginning, one after the other."""

CLOSING = re.compile(
    r"(?:\n\s*|(?<=[.!?])\s+)"
    r"(?:let me know (?:if|what|whether)\b|i hope this\b|hope this helps\b|feel free to\b|would you like me to\b"
    r"|\(?\s*(?:total )?word count\s*:|\(\s*\d+ words\s*\)"
    r"|note: (?:this|the) (?:description|summary|profile|response|answer)\b"
    r").*\Z",
    re.DOTALL | re.IGNORECASE,
)

_CANNOT = r"(?:can['’]?t|cannot|can not|unable|not able|won['’]?t)\b"
_TASKS = (
    r"(?:help|assist|provide|comply|fulfil|describe|create|generate|see|view|access|do that|answer|write|fulfill)\b"
)

_PRAISE = r"(?:(?:helpful|friendly|knowledgeable|intelligent|smart|virtual|digital|advanced|large|text-based) )*"

REFUSAL = re.compile(
    rf"(?:(?:i['’]?m|i am) (?:really |very |so |truly )?sorry\b.{{0,80}}\b{_CANNOT}"
    rf"|(?:sorry|apologies|unfortunately)\s*,\s*(?:but )?(?:i|as an ai)\b.{{0,60}}\b{_CANNOT}"
    rf"|i (?:can['’]?t|cannot|can not|won['’]?t) {_TASKS}"
    rf"|i(?:['’]?m| am) (?:unable|not able) to {_TASKS}"
    r"|as an? (?:ai|artificial intelligence|large language|language|text-based)\b.{0,60}"
    rf"\b(?:{_CANNOT}|do not\b|don['’]?t\b)"
    rf"|(?:i['’]?m|i am|you are|(?:the|this) (?:user|customer|person|assistant) is) an? {_PRAISE}"
    r"(?:ai|artificial intelligence|language model|chatbot)(?: (?:language )?(?:model|assistant|chatbot))?"
    r"(?=\s*(?:[.,!?;\n]|(?:named|called|trained|created|developed|designed|that|who|which)\b|\Z))"
    r"|(?:对不起|抱歉|很抱歉).{0,20}(?:无法|不能)|申し訳.{0,30}(?:できません|ません)"
    r"|lo siento.{0,30}no puedo|je suis désolée?.{0,40}ne (?:peux|puis)|es tut mir leid.{0,40}nicht"
    r"|(?:извините|к сожалению).{0,30}не могу)",
    re.IGNORECASE | re.DOTALL,
)
"""Matched at the beginning of what is left of an answer."""

LAYERS = 4
"""How often wrapping is looked for inside wrapping."""

LEAST_KEPT = 0.5
"""A text is cut at a sentence's end if that leaves at least this share of the words; else at a word's end."""


def clean_answer(answer: str, max_words: int | None = None, ended: bool = True) -> str | Failure:
    """The text inside an LLM's answer.

    Taken away: thoughts (`<think>`, also unclosed), special tokens spelled out, code fences, a JSON object around one
    text, introductions and closing remarks, markup of headers, lists and emphasis, quotes around the whole, characters
    that cannot be printed. Lines become one; list entries are set apart by semicolons.

    Args:
        answer: what the model said.
        max_words: a longer text is cut (see `cut_words`).
        ended: False where the model had not come to an end: a last sentence or word that is not complete is left out.

    Returns:
        One line of text, or why there is none: nothing left, a refusal, broken JSON, no words.

    Example:
        >>> clean_answer("Sure! Here is the description:\\n\\n**A red shoe.**")
        'A red shoe.'
    """
    text = _UNPRINTABLE.sub("", answer.replace("\r\n", "\n").replace("\r", "\n"))
    spoken = without_thoughts(text)
    if not spoken.strip():
        return Failure(ONLY_THOUGHTS if text.strip() else NOTHING_LEFT)
    text = _unfenced(_MARKUP_TOKENS.sub(" ", spoken))
    for _ in range(LAYERS):  # JSON, quotes and chatter stand around each other in any order
        unpacked = _unpacked(_unquoted(_without_chatter(text)))
        if isinstance(unpacked, Failure):
            return unpacked
        if unpacked == text:
            break
        text = unpacked
    if REFUSAL.match(text):
        return Failure(REFUSED)
    text = _one_line(text)
    if not text:
        return Failure(NOTHING_LEFT)
    if not any(unicodedata.category(char)[0] in "LN" for char in text):
        return Failure(NO_WORDS)
    if not ended:
        text = _complete(text)
    return text if max_words is None else cut_words(text, max_words)


def without_thoughts(text: str) -> str:
    """A text without what a reasoning model thinks aloud: closed, opened by the prompt already, or never closed."""
    if "</" in text or "◁/" in text:
        text = _THOUGHTS_END.sub("", _THOUGHTS.sub("", text), count=1)
    return _THOUGHTS_OPEN.sub("", text)


def count_words(text: str) -> int:
    """Words by blanks; in Chinese and Japanese, which write none, each character counts.

    Example:
        >>> count_words("blue suede shoes")
        3
    """
    return len(_WORD.findall(text))


def cut_words(text: str, most: int) -> str:
    """At most `most` words of a text: up to the last sentence's end, if that is at least half of it, or a word's."""
    words = list(_WORD.finditer(text))
    if len(words) <= most:
        return text
    kept = text[: words[most - 1].end()]
    if text[len(kept) :][:1] in _WIDE_STOPS:
        kept = text[: len(kept) + 1]
    return _to_sentence_end(kept) or kept.rstrip(_PAUSES)


def _complete(text: str) -> str:
    """A text whose end is missing, up to its last complete sentence, or else to its last complete word."""
    whole = _to_sentence_end(text)
    if whole:
        return whole
    words = list(_WORD.finditer(text))
    return text[: words[-2].end()].rstrip(_PAUSES) if len(words) > 1 else text


def _to_sentence_end(text: str) -> str | None:
    """Up to the last end of a sentence; None if there is none or more than half of the words would go."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    if not ends or count_words(text[: ends[-1]]) < LEAST_KEPT * count_words(text):
        return None
    return text[: ends[-1]]


def _unfenced(text: str) -> str:
    """The content of the one code fence, if it says more than what stands around it; else all without the fences."""
    text = text.strip()
    fences = list(_FENCE.finditer(text))
    if len(fences) == 1:
        inside = fences[0][1]
        outside = text[: fences[0].start()] + " " + text[fences[0].end() :]
        if inside.strip() and (count_words(inside) >= count_words(outside) or _is_json(inside)):
            return inside.strip()
    return _FENCE.sub(lambda match: match[1], text).strip()


def _is_json(text: str) -> bool:
    return text.strip()[:1] in ("{", "[")


def _unpacked(text: str) -> str | Failure:
    """The text that a JSON answer holds; any other answer as it is."""
    if not re.match(r"[{\[]\s*[\"'{\[}\]]|[{\[]\s*\Z", text):
        return text
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return Failure(BROKEN_JSON)
    held = _only_text(value)
    return Failure(UNCLEAR_JSON) if held is None else held.strip()


def _only_text(value: Any) -> str | None:
    while isinstance(value, (dict, list)) and len(value) == 1:
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value if isinstance(value, str) else None


def _without_chatter(text: str) -> str:
    """Without introductions and closing remarks. An answer that is nothing else is left for the next checks."""
    text = text.strip()
    plain = _EMPHASIS.sub(lambda match: match[2] or match[3], _HEADER.sub("", text))
    for pattern in INTRODUCTIONS:
        match = pattern.match(plain)
        if match:
            plain = text = plain[match.end() :].strip()
    return CLOSING.sub("", text).strip()


def _unquoted(text: str) -> str:
    """Without the pair of quotes around the whole, if it is one pair and not the first of several."""
    close = _QUOTES.get(text[:1])
    if close is None or len(text) < 2 or text[-1] != close:
        return text
    inside = text[1:-1]
    return text if text[0] in inside or close in inside else inside.strip()


def _one_line(text: str) -> str:
    """Lines as one, without the markup of headers, rules, lists and emphasis."""
    lines = [line for line in text.split("\n") if line.strip() and not _RULE.match(line)]
    numbered = sum(bool(_NUMBER.match(line)) for line in lines) > 1
    pieces = []
    for line in lines:
        entry = bool(_BULLET.match(line)) or (numbered and bool(_NUMBER.match(line)))
        line = _BULLET.sub("", _HEADER.sub("", line))
        line = _NUMBER.sub("", line) if numbered else line
        line = " ".join(_EMPHASIS.sub(lambda match: match[2] or match[3], line).split())
        if line:
            pieces.append((line, entry))
    joined = ""
    for place, (line, entry) in enumerate(pieces):
        listed = place > 0 and entry and pieces[place - 1][1] and joined[-1] not in _PAUSES + _STOPS
        joined += (";" if listed else "") + (" " if joined else "") + line
    return joined.strip()
