"""What a setting is: its name, what it accepts, its default, what it means, and what follows for a run.

Each setting is declared once: those of all models in `settings.py`, those of a model in `settings` of its class. What
is checked, what makes two runs the same one, what rows of a table share, the YAML files and `docs/settings.md` follow.

    >>> from recbole_mm.config.kinds import number
    >>> alpha = Setting("alpha", number(0), 0.1, "Weight of the alignment loss.")
    >>> alpha.kind.words, alpha.kind.accepts(-1), alpha.changes_result
    ('a number of at least 0, up to 1e+30', False, True)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from recbole_mm.config.kinds import Kind, kind_like, shown
from recbole_mm.errors import ConfigError


class _Unset:
    def __repr__(self) -> str:
        return "UNSET"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "UNSET"  # a copy is the same object


UNSET: Any = _Unset()
"""No value at all, which null is not."""


GROUPS = ("run", "training", "evaluation", "data", "content", "mllm", "texts", "cluster", "logging", "model")


def is_off(value: Any) -> bool:
    """Whether a value switches something off."""
    return value in (None, "none", False, 0)


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: its key.
        kind: what it accepts; None where nothing tells.
        default: its value where none is given. Of RecBole's settings it is in RecBole's own YAML files; a setting
            without any is null until it is given.
        meaning: what it does, in a sentence or two.
        group: what it is about: one of `GROUPS`.
        section: heading that it stands under in YAML files and on the page of settings.
        parts: of a mapping, what its entries mean.
        changes_result: whether another value can give another result, and so makes another run.
        may_change_on_resume: whether an interrupted run may go on with another value.
        ranks: whether it decides who is ranked against what.
        stops: whether it decides how long is trained.
        scores: whether it decides what a score is.
        alike: whether rows of a table must share it although it does not rank, stop or score.
        inherited: whether a first stage takes it over from the run that it serves, with all of the data and evaluation.
        same_data: whether a run that builds on the model of a finished one must have the value of that one.
        describes_items: whether it says what an item looks like, so that a dataset folder's own YAML may set it.
        derived: whether it follows from others or from the data; it is written to config.yaml, and taken from no layer.
        secret: whether it may hold a secret by mistake, so that no message repeats it.
        finite: whether every number in it must be finite.
        when_opened: its value when a run's folder is opened, unless the caller gives one: the folder may come from a
            stranger, and the setting would run foreign code, or send texts, pictures and keys to other machines.
        before: what runs did that are older than the setting.
        no_effect: why nothing reads it, where RecBole would.
        no_effect_on_sequences: the same where whole sequences are trained on.
        read_where: other settings -> values of theirs with which alone it is read; where there are several, all must
            fit. An empty tuple is every value but those that switch something off (`is_off`).
        given_as: of an experiment, where it is given instead of in a layer of settings.
        not_tuned: why no search may try values of it, where that does not follow from the above.
    """

    name: str
    kind: Kind | None = None
    default: Any = UNSET
    meaning: str = ""
    group: str = "model"
    section: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    changes_result: bool = True
    may_change_on_resume: bool = False
    ranks: bool = False
    stops: bool = False
    scores: bool = False
    alike: bool = False
    inherited: bool = False
    same_data: bool = False
    describes_items: bool = False
    derived: bool = False
    secret: bool = False
    finite: bool = True
    when_opened: Any = UNSET
    before: Any = UNSET
    no_effect: str = ""
    no_effect_on_sequences: str = ""
    read_where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    given_as: str = ""
    not_tuned: str = ""

    def but(self, default: Any, meaning: str, **changes: Any) -> Setting:
        """The same setting as a model has it: with another default, and with what it means there."""
        return replace(self, default=default, meaning=meaning, **changes)

    def check(self, value: Any) -> None:
        """Check a value.

        Args:
            value: normalized.

        Raises:
            ConfigError: it is not of the setting's kind.
        """
        if self.kind is not None and not self.kind.accepts(value):
            given = "what is given" if self.secret else shown(value)
            raise ConfigError(f"{self.name}: {given} is not accepted; give {self.kind.words}")

    def unread(self, values: Mapping[str, Any]) -> str:
        """Why a run does not read it, as far as its other settings tell; empty where it does.

        Args:
            values: of all settings.
        """
        for name, read in self.read_where.items():
            value = values.get(name)
            if value not in read if read else is_off(value):
                said = f"{name} is {'null' if value is None else value}"
                return f"{said}; it is for {' or '.join(map(str, read))}" if read else said
        return ""

    def normal(self, value: Any) -> Any:
        """What a value stands for."""
        return value if self.kind is None else self.kind.normal(value)


def section(title: str, *settings: Setting, **same: Any) -> tuple[Setting, ...]:
    """The settings under a heading, with what else they have in common."""
    return tuple(replace(setting, section=title, **same) for setting in settings)


def of_group(group: str, title: str, *settings: Setting, **same: Any) -> tuple[Setting, ...]:
    """The same of settings that are about one thing, of `GROUPS`."""
    return section(title, *settings, group=group, **same)


def read_with(where: Mapping[str, tuple[Any, ...]], *settings: Setting) -> tuple[Setting, ...]:
    """Settings that are read with these values of others, too (`Setting.read_where`)."""
    return tuple(replace(setting, read_where={**where, **setting.read_where}) for setting in settings)


def like(name: str, default: Any, meaning: str, **more: Any) -> Setting:
    """A setting of the kind of its default."""
    return Setting(name, kind_like(name, default, bounded=False), default, meaning, **more)


def declared_by(model_class: type) -> dict[str, Setting]:
    """Settings that a model's class and its bases declare as `settings`, by name; the nearest declaration counts."""
    found: dict[str, Setting] = {}
    for owner in reversed(model_class.__mro__):
        for setting in vars(owner).get("settings", ()):
            found.pop(setting.name, None)
            found[setting.name] = setting
    return found
