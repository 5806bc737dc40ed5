"""Reading settings from YAML and the command line.

YAML is read with a safe loader that knows no Python objects. It differs from plain YAML 1.1 in five ways, all on the
side of least surprise: `1e-4` is a number, `None` is null, `12:30` and `2024-01-01` stay text, `on` as a key stays
text, and a key given twice is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from recbole_mm.errors import ConfigError
from recbole_mm.files import UNSEALED, ChecksumError, check_seal
from recbole_mm.kinds import TEXT_KEYS, abridged
from recbole_mm.paths import expanded

_NULL = re.compile(r"^(?:~|null|Null|NULL|None|)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_TAG = "tag:yaml.org,2002:"

NOBODY = "http://nobody.invalid/v1"
"""`text_url` where texts may be taken from the store, and nobody may be asked for more: no such address can exist."""

SEAL_LINE = f"# {UNSEALED}\n"
"""First line of a YAML file that is read back: `read_yaml` then knows whether the rest has changed."""


class SettingsLoader(yaml.SafeLoader):
    """SafeLoader with the scalars described in the module's docstring."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != f"{_TAG}merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
                if key.tag == f"{_TAG}bool":
                    key.tag = f"{_TAG}str"  # `on:` is a key, not True
        return super().construct_mapping(node, deep)


class SettingsDumper(yaml.SafeDumper):
    """SafeDumper that puts quotes around every text that `SettingsLoader` would read as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _share_scalars() -> None:
    """Give both classes their own scalar rules; PyYAML keeps them in a table shared by all loaders otherwise."""
    dropped = {f"{_TAG}{kind}" for kind in ("int", "float", "null", "timestamp")}
    kept = yaml.SafeLoader.yaml_implicit_resolvers.items()
    SettingsLoader.yaml_implicit_resolvers = {
        first: [rule for rule in rules if rule[0] not in dropped] for first, rules in kept
    }
    SettingsDumper.yaml_implicit_resolvers = {first: list(rules) for first, rules in kept}
    for owner in (SettingsLoader, SettingsDumper):
        owner.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
        owner.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))
        owner.add_implicit_resolver(f"{_TAG}null", _NULL, ["~", "n", "N", ""])


_share_scalars()


def read_text(path: Path, kind: str) -> str:
    """A file's text, without a byte-order mark.

    Raises:
        ConfigError: it cannot be read or is not UTF-8; the message says what `kind` of file it is.
    """
    path = Path(expanded(str(path)))
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {kind} {abridged(str(path))}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{kind} {path} is not UTF-8 text (byte {error.start})") from error
    except ValueError as error:  # a NUL in its name
        raise ConfigError(f"cannot read {kind} {str(path)!r}: {error}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Raises:
        ConfigError: the file is missing, unreadable, not UTF-8, not YAML, holds a Python object, or is not a mapping
            from names to values, or damaged. The message names the file and, where there is one, the line.
    """
    text = read_text(path, "config file")
    try:
        check_seal(path)
    except ChecksumError as error:
        raise ConfigError(
            f"config file {path} is damaged: {error}; restore it, or remove its first line if you changed it yourself"
        ) from error
    settings = _parse(text, str(path))
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"config file {path}, line 1: expected `key: value` lines, found {_described(settings)}")
    for key in settings:
        if not isinstance(key, str):
            raise ConfigError(f"config file {path}: the key {key!r} is not a name")
    return settings


def _parse(text: str, where: str) -> Any:
    """YAML text to plain Python values; `where` opens the message of a failure."""
    try:
        return yaml.load(text, Loader=SettingsLoader)  # noqa: S506 - a SafeLoader with other scalar rules
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}{line}: {' '.join(problem.split())}") from error


def write_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML that `read_yaml` reads back to equal values."""
    return yaml.dump(
        dict(settings), Dumper=SettingsDumper, default_flow_style=None, sort_keys=False, allow_unicode=True, width=120
    )


def parse_argument(key: str, value: Any, default: Any = None) -> Any:
    """The value of `--key=value` as a Python value.

    Text is read as YAML, except where the setting is a text by nature or by its `default`: then it is taken as it
    stands, so that `--text_template="Title: {title}"` and `--user_inter_num_interval="[5,inf)"` need no second quotes.

    Raises:
        ConfigError: the text is not YAML.
    """
    if not isinstance(value, str):
        return plain(key, value)
    if _NULL.match(value):
        return None
    stripped = value.strip()
    quoted = len(stripped) > 1 and stripped[0] == stripped[-1] and stripped[0] in "'\""
    if not quoted:
        if key in TEXT_KEYS:
            return value
        if isinstance(default, str) and stripped[:1] not in ("[", "{"):
            return value
    return _parse(value, f"--{key}={value}")


def plain(key: str, value: Any) -> Any:
    """A deep copy of `value` made of nothing but None, bool, int, float, str, list and dict.

    Raises:
        ConfigError: `value` holds something that could not be written to a run folder's config.yaml.
    """
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy scalar, as hyper-parameter searches draw
        value = value.item()
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {name: plain(key, entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(key, entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(key, entry) for entry in value), key=repr)
    raise ConfigError(f"{key}: {_described(value)} is not accepted; give text, numbers, lists or mappings")


def _described(value: Any) -> str:
    return f"a {type(value).__name__}"
