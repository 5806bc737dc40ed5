"""Wordings of the prompts that descriptions and profiles are asked for with: the package's own, or others.

`text_wording` names a file of `properties/wordings/`, or is a mapping of the same keys. A prompt that it leaves out is
the package's own. How far results depend on a wording is measured by `mllmrec-wordings` (docs/mllmrec.md).
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from recbole_mm.config import properties_dir
from recbole_mm.config.kinds import shown
from recbole_mm.config.yaml_settings import read_yaml
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.reasoning.prompts import DESCRIPTION, DESCRIPTION_OF_FACTS, PROFILE
from recbole_mm.utils.spelling import did_you_mean

PLACES = {
    "description": ({"domain", "named", "words"}, {"domain"}),
    "facts": ({"domain", "facts", "words"}, {"facts"}),
    "profile": ({"domain", "cut", "history", "weights", "words"}, {"history"}),
}
"""Prompt -> the names that may stand in it in braces, and those that must."""


@dataclass(frozen=True)
class Wording:
    """The prompts of one wording.

    Attributes:
        description: asks for the description of an image.
        facts: asks an LLM that sees no images for a description of metadata.
        profile: asks for a user's profile.

    Example:
        >>> Wording.of({"profile": "Liked: {history}. What next?"}).facts == DESCRIPTION_OF_FACTS
        True
    """

    description: str = DESCRIPTION
    facts: str = DESCRIPTION_OF_FACTS
    profile: str = PROFILE

    @classmethod
    def of(cls, given: str | Mapping[str, Any] | None) -> Wording:
        """The wording of a name or a mapping; null is the package's own.

        Raises:
            ConfigError: there is no such wording, or a prompt lacks what it is about, or names what there is not.
        """
        if given is None:
            return cls()
        prompts = _of_file(given) if isinstance(given, str) else given
        names = [one.name for one in fields(cls)]
        for name, text in prompts.items():
            if name not in names:
                raise ConfigError(
                    f"text_wording: there is no prompt {name!r}{did_you_mean(str(name), names)}; there are "
                    + ", ".join(names)
                )
            _check(name, text)
        return cls(**{name: text.strip() for name, text in prompts.items()})


def wording_names() -> list[str]:
    """Names of the wordings that come with the package."""
    return sorted(path.stem for path in (properties_dir() / "wordings").glob("*.yaml"))


def _of_file(name: str) -> Mapping[str, Any]:
    known = wording_names()
    if name not in known:
        raise ConfigError(
            f"text_wording: {shown(name)} is none of {', '.join(known)}{did_you_mean(name, known)}; or give a mapping "
            f"of the prompts {', '.join(PLACES)}"
        )
    return read_yaml(properties_dir() / "wordings" / f"{name}.yaml")


def _check(name: str, text: Any) -> None:
    """Refuse a prompt that cannot be filled in, or does not show what it asks about.

    Names in braces are filled in by `str.format`: anything but a plain name could read attributes of what is put there.
    """
    may, must = PLACES[name]
    if not isinstance(text, str):
        raise ConfigError(f"text_wording: {name}: {shown(text)} is no text")
    try:
        parts = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
    except ValueError as error:
        raise ConfigError(f"text_wording: {name}: {error}; write {{{{ and }}}} for braces") from error
    named = {str(place) for place, _, _ in parts}
    if unknown := sorted(named - may) or any(form or turned for _, form, turned in parts):
        what = f"{{{unknown[0]}}}" if isinstance(unknown, list) else "a format"
        raise ConfigError(f"text_wording: {name}: {what} is not filled in; there are {', '.join(sorted(may))}")
    if lacking := sorted(must - named):
        raise ConfigError(f"text_wording: {name}: {{{lacking[0]}}} is missing, so that it would ask about nothing")
