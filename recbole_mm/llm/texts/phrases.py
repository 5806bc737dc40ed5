"""What LLMs say around a text, or instead of it: introductions, closing remarks, refusals."""
# ruff: noqa: RUF001 (signs of many scripts)

from __future__ import annotations

import re

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

REFUSAL = re.compile(
    rf"(?:(?:i['’]?m|i am) (?:really |very |so |truly )?sorry\b.{{0,80}}\b{_CANNOT}"
    rf"|(?:sorry|apologies|unfortunately)\s*,\s*(?:but )?(?:i|as an ai)\b.{{0,60}}\b{_CANNOT}"
    rf"|i (?:can['’]?t|cannot|can not|won['’]?t) {_TASKS}"
    rf"|i(?:['’]?m| am) (?:unable|not able) to {_TASKS}"
    r"|as an? (?:ai|artificial intelligence|large language|language|text-based)\b.{0,60}"
    rf"\b(?:{_CANNOT}|do not\b|don['’]?t\b)"
    r"|(?:对不起|抱歉|很抱歉).{0,20}(?:无法|不能)|申し訳.{0,30}(?:できません|ません)"
    r"|lo siento.{0,30}no puedo|je suis désolée?.{0,40}ne (?:peux|puis)|es tut mir leid.{0,40}nicht"
    r"|(?:извините|к сожалению).{0,30}не могу)",
    re.IGNORECASE | re.DOTALL,
)
"""Matched at the beginning of what is left of an answer."""
