"""How fast models have worked on this machine, for `recbole-mm plan`: a small JSON file in the artifact folder.

Work is counted in tokens read. A token written costs about as much as ten that are read together, and an image about as
much as a few hundred: rough, but the same for what was measured and for what is planned.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from recbole_mm.llm.texts.generator import Generator, Request
from recbole_mm.utils.files import read_json, write_json

logger = logging.getLogger(__name__)

FILE = "rates.json"
PER_NEW_TOKEN = 10
PER_IMAGE = 500
ASSUMED_UNITS = 1000.0
"""Units a second of a text LLM that has not worked here yet: 1,000 tokens read, or 100 written."""
ASSUMED_SENTENCES = 50.0
"""Texts a second of a sentence encoder that has not worked here yet."""


@dataclass(frozen=True)
class Rate:
    """Work done so far, and the seconds it took.

    Example:
        >>> Rate(units=300, seconds=2).per_second
        150.0
    """

    units: float
    seconds: float

    @property
    def per_second(self) -> float:
        """Units of work in a second."""
        return self.units / self.seconds


@dataclass(frozen=True)
class TextWork:
    """What calls of an LLM come to.

    Attributes:
        calls: how many.
        prompt_tokens: of all prompts' words.
        images: pictures in them.
        new_tokens: most that is written in all.

    Example:
        >>> TextWork(calls=1, prompt_tokens=100, images=1, new_tokens=20).units
        800
    """

    calls: int
    prompt_tokens: int
    images: int
    new_tokens: int

    @property
    def units(self) -> float:
        """The work in tokens read."""
        return self.prompt_tokens + PER_IMAGE * self.images + PER_NEW_TOKEN * self.new_tokens


def text_work(generator: Generator, requests: Iterable[Request], max_new_tokens: int) -> TextWork:
    """What it takes to answer these requests.

    Args:
        generator: counts the tokens of prompts.
        requests: distinct ones, of which none is kept.
        max_new_tokens: most that a call writes.
    """
    calls = tokens = images = 0
    for request in requests:
        calls += 1
        tokens += generator.count_tokens(request.prompt)
        images += request.image is not None
    return TextWork(calls, tokens, images, max_new_tokens * calls)


def rate_name(stage: str, model: str, device: str) -> str:
    """Under what a rate is kept: one model may be fast at one stage and on one machine, and slow at another."""
    return f"{stage} | {model} | {device}"


def read_rates(artifacts: Path) -> dict[str, Rate]:
    """All rates measured for the stages of an artifact folder; none where the file is missing or cannot be read."""
    path = artifacts / FILE
    try:
        return {
            name: Rate(float(entry["units"]), float(entry["seconds"]))
            for name, entry in read_json(path).items()
            if entry["seconds"] > 0 and entry["units"] > 0
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s cannot be read (%s); estimates of time are made without it", path, error)
        return {}


def note_rate(artifacts: Path, name: str, units: float, seconds: float) -> None:
    """Add work that was just done to what is known. Of two runs at the same moment one may go uncounted.

    Args:
        artifacts: the artifact folder.
        name: from `rate_name`.
        units, seconds: of the work.
    """
    if units <= 0 or seconds <= 0:
        return
    rates = read_rates(artifacts)
    known = rates.get(name, Rate(0, 0))
    rates[name] = Rate(known.units + units, known.seconds + seconds)
    write_json(artifacts / FILE, {key: asdict(rate) for key, rate in sorted(rates.items())})
