"""Reading a yes or a no out of an LLM's answer, in several languages; None where it says neither, or both."""
# ruff: noqa: RUF001, SIM905 (words of many scripts)

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from recbole_mm.llm.texts.cleaning import without_thoughts

YES = frozenset("yes y yeah yep true oui ja sí si sì sim да так evet 是 是的 对 會 会 はい 예 네 نعم हाँ हां".split())
NO = frozenset("no n nope false non nein não nao нет ні hayır 否 不 不是 不会 不會 いいえ 아니오 아니요 لا नहीं".split())

ANSWER_KEYS = tuple("answer final_answer response result prediction label decision output 回答 答案".split())
_LABELS = "final answer|final_answer|answer|response|result|prediction|decision|回答|答案|ответ|réponse|antwort"
_CONNECTORS = "or|and|but|oder|und|aber|ou|et|mais|o|y|pero|e|mas|или|и|но|或者|或|和|但|または|또는"

_ALL = "|".join(sorted(map(re.escape, YES | NO), key=len, reverse=True))
_WORD = rf"(?<!\w)(?:{_ALL})(?!\w)"
_BOTH = re.compile(rf"(?P<first>{_WORD})\s*(?:[/|]|,?\s*(?:{_CONNECTORS})(?!\w))\s*(?P<second>{_WORD})")
_ANY = re.compile(_WORD)
_LEADING = re.compile(rf"\W*(?P<word>{_WORD})(?P<after>\s*\Z|\s*[^\w\s'’\-]|\s+[-–—]|\s*\n)?")
_LABELLED = re.compile(rf"(?<!\w)(?:{_LABELS})\s*(?:\s(?:is|would be|must be|ist|est|es)\b)?\W{{0,6}}(?P<word>{_WORD})")
_LAST = re.compile(rf"(?P<word>{_WORD})\W*\Z")
_NEGATION = re.compile(r"(?<!\w)(?:not|never|neither|nor|cannot|nicht|pas|нельзя)(?!\w)|n['’]t(?!\w)")
_JSON_VALUE = re.compile(rf'"(?:{"|".join(ANSWER_KEYS)})"\s*:\s*(?P<value>"[^"]*"?|[^\s,}}\]]*)(?P<rest>.*)', re.DOTALL)


def parse_yes_no(text: str) -> bool | None:
    """What a model answered to a yes-or-no question.

    Read, in this order: JSON with an answer (also cut off), `Answer: yes`, a yes or no that opens the text (`Yes.`,
    `No, because ...`), one that ends it (`I would say yes`). Code fences, thoughts and markup are looked through. Other
    languages: Arabic, Chinese, French, German, Hindi, Italian, Japanese, Korean, Portuguese, Russian, Spanish, Turkish,
    Ukrainian.

    Args:
        text: the answer.

    Returns:
        True, False, or None where it is unclear: neither, both, or a `no` that is only part of a sentence.

    Example:
        >>> parse_yes_no("```json\\n{\\"answer\\": \\"Ye"), parse_yes_no("Yes and no.")
        (True, None)
    """
    text = unicodedata.normalize("NFKC", without_thoughts(text)).casefold()
    text = re.sub(r"```[\w+-]*|<\|[^|<>\n]{1,40}\|>|</?s>", " ", text).strip()
    if text[:1] in ("{", "["):
        return _in_json(text)
    embedded = _JSON_VALUE.search(text)
    if embedded and "{" in text[: embedded.start()]:
        return _in_json(text[text.index("{") :])
    return _in_words(re.sub(r"[*_`\"“”«»「」]+", " ", text).strip())


def _in_json(text: str) -> bool | None:
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text)
    except (ValueError, RecursionError):
        match = _JSON_VALUE.search(text)
        if not match:
            return None
        value = match["value"]
        cut = not match["rest"].strip() and (not value.endswith('"') or value == '"')
        return _begun(value.strip('"').strip()) if cut else _of_value(value.strip('"'))
    return _of_value(value)


def _of_value(value: Any) -> bool | None:
    """The answer in a JSON value: under a key that says so, or the only one there is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _in_words(value.strip())
    if isinstance(value, list):
        return _of_value(value[0]) if len(value) == 1 else None
    if not isinstance(value, dict):
        return None
    named = [value[key] for key in ANSWER_KEYS if key in value]
    found = {_of_value(entry) for entry in named or value.values()}
    if not named:
        found -= {None}
    return found.pop() if len(found) == 1 else None


def _begun(word: str) -> bool | None:
    """What a word that was cut off was going to be, if all words that begin like it mean the same."""
    if word in YES or word in NO:
        return word in YES
    meanings = {known in YES for known in YES | NO if word and known.startswith(word)}
    return meanings.pop() if len(meanings) == 1 else None


def _in_words(text: str) -> bool | None:
    """The answer in plain words; the options themselves ("yes or no") are none."""
    both = _BOTH.sub(lambda match: match[0] if _alike(match) else " ", text)
    options = both != text
    text = both.strip()
    labelled = {match["word"] in YES for match in _LABELLED.finditer(text)}
    leading = _LEADING.match(text)
    opens = None
    # A "no" may open a sentence about something else; "yes" does not.
    if leading and (leading["after"] is not None or leading["word"] == "yes"):
        opens = leading["word"] in YES
        after = _LEADING.match(text[leading.end() :])
        if after and (after["word"] in YES) != opens and after["after"] is not None:
            return None  # "Yes. No."
    if options and not labelled and opens is not None and not re.search(r"\w", _ANY.sub("", text, count=1)):
        return opens  # "(yes/no) Yes"
    if options and not labelled:
        return None
    if len(labelled) > 1:
        return None
    if labelled:
        said = labelled.pop()
        return said if opens is None or opens == said else None
    if opens is not None:
        return opens
    meanings = {word in YES for word in _ANY.findall(text)}
    last = _LAST.search(text)
    if not last or len(meanings) > 1 or _NEGATION.search(text):
        return None
    return last["word"] in YES


def _alike(match: re.Match[str]) -> bool:
    return (match["first"] in YES) == (match["second"] in YES)
