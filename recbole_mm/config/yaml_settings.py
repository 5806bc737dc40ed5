"""Reading settings from YAML and the command line.

YAML is read with a safe loader that knows no Python objects. It differs from plain YAML 1.1 in five ways, all on the
side of least surprise: `1e-4` is a number, `None` is null, `12:30` and `2024-01-01` stay text, `on` as a key stays
text, and a key given twice is an error. How much a file may hold is bounded, with every alias counted as what it stands
for, so that no file of a few lines takes all memory.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from recbole_mm.config.kinds import abridged
from recbole_mm.config.schema import Setting
from recbole_mm.config.settings import SETTINGS
from recbole_mm.errors import ConfigError
from recbole_mm.utils.paths import expanded
from recbole_mm.utils.seal import MARK, UNSEALED, ChecksumError, check_seal

_NULL = re.compile(r"^(?:~|null|Null|NULL|None|)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$")
_FLOAT = re.compile(
    r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_TAG = "tag:yaml.org,2002:"

MOST_BYTES = 4_000_000
MOST_VALUES = 100_000
MOST_DEEP = 50
MOST_BITS = 256
"""Of a file, of what stands in it or is given in Python, and of a whole number."""

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
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{kind} {path} holds more than {MOST_BYTES:,} bytes; this is no file of settings")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
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
    path = Path(expanded(str(path)))
    text = read_text(path, "config file")
    try:
        if text.startswith(f"# {MARK}"):  # not where JSON has it: somebody's settings may look like that
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
        loader = SettingsLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check_extent(node, where)
        return loader.construct_document(node)
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}{line}: {' '.join(problem.split())}") from error


def _check_extent(root: yaml.Node, where: str) -> None:
    """Bound what a document stands for before any of it is made, at the cost of its text.

    Raises:
        ConfigError: it holds too many values, is nested too deeply, or holds itself.
    """
    values: dict[int, int] = {}  # of each node, whose aliases are the node itself
    above: set[int] = set()

    def count(node: yaml.Node) -> int:
        line = f"{where}, line {node.start_mark.line + 1}"
        if id(node) in above:
            raise ConfigError(f"{line}: an alias stands inside what it is an alias of")
        if len(above) > MOST_DEEP:
            raise ConfigError(f"{line}: nested too deeply; at most {MOST_DEEP} levels are read")
        if id(node) not in values:
            above.add(id(node))
            parts = node.value if isinstance(node, yaml.CollectionNode) else []
            pairs = isinstance(node, yaml.MappingNode)
            values[id(node)] = 1 + sum(map(count, itertools.chain.from_iterable(parts) if pairs else parts))
            above.remove(id(node))
        if values[id(node)] > MOST_VALUES:
            raise ConfigError(f"{line}: with its aliases, this stands for more than {MOST_VALUES:,} values")
        return values[id(node)]

    count(root)


def write_yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML that `read_yaml` reads back to equal values."""
    return yaml.dump(
        dict(settings), Dumper=SettingsDumper, default_flow_style=None, sort_keys=False, allow_unicode=True, width=120
    )


def parse_argument(key: str, value: Any, default: Any = None, settings: Mapping[str, Setting] = SETTINGS) -> Any:
    """The value of `--key=value` as a Python value.

    Text is read as YAML, except where the setting is a text by nature or by its `default`: then it is taken as it
    stands, so that `--text_template="Title: {title}"` and `--user_inter_num_interval="[5,inf)"` need no second quotes.

    Args:
        key: of the setting.
        value: as it was typed.
        default: of the setting.
        settings: of the model, by name.

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
        kind = settings[key].kind if key in settings else None
        if kind is not None and kind.is_text:
            return value
        if isinstance(default, str) and stripped[:1] not in ("[", "{"):
            return value
    return _parse(value, f"--{key}={value}")


def plain(key: str, value: Any) -> Any:
    """A deep copy of `value` made of nothing but None, bool, int, float, str, list and dict.

    Raises:
        ConfigError: `value` holds something that could not be written to a run folder's config.yaml, too many values,
            or itself.
    """
    return _Plain(key).copy(value)


class _Plain:
    """One copy on its way, and how many values it has so far."""

    def __init__(self, key: str) -> None:
        self.key, self.values = key, 0

    def copy(self, value: Any, depth: int = 0) -> Any:
        self.values += 1
        if self.values > MOST_VALUES or depth > MOST_DEEP:
            raise ConfigError(
                f"{self.key}: holds more than {MOST_VALUES:,} values, or is nested more than {MOST_DEEP} levels deep"
            )
        if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy scalar, as searches draw
            value = value.item()
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise ConfigError(f"{self.key}: a whole number of {value.bit_length()} bits is not accepted")
        if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
            return value
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, Mapping):
            return {self._name(name): self.copy(entry, depth + 1) for name, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.copy(entry, depth + 1) for entry in value]
        if isinstance(value, (set, frozenset)):
            return sorted((self.copy(entry, depth + 1) for entry in value), key=repr)
        raise ConfigError(f"{self.key}: {_described(value)} is not accepted; give text, numbers, lists or mappings")

    def _name(self, name: Any) -> Any:
        if name is None or isinstance(name, (bool, int, float, str)):
            return name
        raise ConfigError(f"{self.key}: {_described(name)} is no name of an entry; give a text or a number")


def comparable(value: Any) -> Any:
    """A setting such that equal ones are written alike: `0` and `0.0`, a tuple and a list."""
    if isinstance(value, Mapping):
        return {str(key): comparable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [comparable(entry) for entry in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def canonical(value: Any) -> str:
    """The one text of a setting, or of settings, that all equal ones have: what decides whether two runs, trials or
    rows are of the same ones.

    >>> canonical({"b": (1, 2.0), "a": 0.001}) == canonical({"a": 1e-3, "b": [1.0, 2]}), canonical(1) == canonical(True)
    (True, False)
    """
    return json.dumps(comparable(value), sort_keys=True)


def _described(value: Any) -> str:
    return f"a {type(value).__name__}"
