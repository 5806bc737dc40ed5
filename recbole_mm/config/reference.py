"""The YAML files of settings and the page about them, made of the declarations by
`python -m recbole_mm.config.reference`.

What opens a YAML file, up to its first empty line, is written by hand and kept.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from recbole_mm.config import properties_dir
from recbole_mm.config.layers import RECBOLE_PROPERTIES, model_yaml, optional_yaml, sample_settings
from recbole_mm.config.recbole_keys import ADDED, LOSSES
from recbole_mm.config.schema import UNSET, Setting, declared_by
from recbole_mm.config.settings import SETTINGS
from recbole_mm.config.yaml_settings import read_yaml, write_yaml
from recbole_mm.registry import ModelEntry, list_models
from recbole_mm.utils.files import write_text

COMMENTS = 32
"""Column at which comments begin."""

WIDTH = 136
"""Of a line of a YAML file."""


# --- values ----------------------------------------------------------------------------------------------------------


def written(value: Any) -> str:
    """A value as it stands in a YAML file.

    >>> written({"rate": 1e-3, "layers": [1, 2], "name": None}), written("~"), written("10")
    ('{rate: 1e-3, layers: [1, 2], name: ~}', "'~'", "'10'")
    """
    if value is None:
        return "~"
    if isinstance(value, float) and 0 < abs(value) <= 1e-3:
        digits, exponent = f"{value:e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        return write_yaml({"x": value}).removeprefix("{x: ").removesuffix("}\n")
    return str(value)


# --- YAML ------------------------------------------------------------------------------------------------------------


def overall_yaml(header: str) -> str:
    """`properties/overall.yaml`: the settings of every model that RecBole does not have, or has with other defaults."""
    return header + _body((one for one in SETTINGS.values() if one.default is not UNSET), "# ---- {} ----")


def model_file(header: str, model_class: type) -> str:
    """`properties/model/<Model>.yaml`: what a model's class declares."""
    return header + _body(declared_by(model_class).values(), "# {}")


def _body(settings: Iterable[Setting], heading: str) -> str:
    lines = []
    for title, members in itertools.groupby(settings, key=lambda setting: setting.section):
        lines += ["", *_wrapped(heading.format(title), "# ")] if title else [""]
        for setting in members:
            lines += _lines(setting)
    return "\n".join(lines) + "\n"


def _lines(setting: Setting) -> Iterator[str]:
    """A setting with its comment; a mapping whose parts have comments or parts of their own, part by part."""
    assert setting.kind is not None
    comment = f"({setting.kind.type}) {setting.meaning}".rstrip()
    default = setting.default
    if not isinstance(default, dict) or not (setting.parts or any(isinstance(part, dict) for part in default.values())):
        yield from _commented(f"{setting.name}: {written(default)}", comment)
        return
    yield from _commented(f"{setting.name}:", comment)
    for name, part in default.items():
        yield from _commented(f"  {name}: {written(part)}", setting.parts.get(name, ""))


def _commented(line: str, comment: str) -> Iterator[str]:
    if not comment:
        yield line
        return
    first = f"{line:<{COMMENTS if len(line) < COMMENTS else len(line) + 2}}# "
    rest = " " * COMMENTS + "#       "
    texts = textwrap.wrap(
        comment, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )
    yield from texts


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def header_of(path: Path) -> str:
    """What opens a file, up to its first empty line."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(itertools.takewhile(str.strip, lines))


# --- the page --------------------------------------------------------------------------------------------------------

_INTRODUCTION = """# Settings

<!-- Made by `python -m recbole_mm.config.reference`; do not edit. -->

Every setting of every model. Give them as `--name=value`, in a YAML file of `--config_files`, or in Python as
`config_dict`; what comes later wins: RecBole's defaults, `properties/overall.yaml`, RecBole's files of the model and
the dataset, `properties/model/<Model>.yaml`, `properties/dataset/<dataset>.yaml`, the dataset folder's own YAML,
config files, `config_dict`, the command line.

Where names or numbers are listed, a single one is the list of it alone; a path may start with `~`, the home folder.
Equal values are one run however they are written (`0`, `0.0`, `0e0`). A setting that is marked *same run* does not
change a result, so it is no part of what names a run's folder; an interrupted run may be resumed with other values of
one that is marked *resume*, too. A model's own settings are declared with its class
([docs](add-a-model.md)).
"""


def page() -> str:
    """`docs/settings.md`: every setting of every model."""
    recbole = {**optional_yaml(RECBOLE_PROPERTIES, "overall"), **sample_settings()}
    parts = [_INTRODUCTION, "## Every model\n"]
    shared = [setting for setting in SETTINGS.values() if not setting.derived]
    for group, title in _TITLES.items():
        parts.append(f"### {title}\n\n{_table((one for one in shared if one.group == group), recbole)}")
    parts.append("## Models of recbole_mm\n")
    for entry in _models("recbole_mm"):
        declared = declared_by(entry.load())
        if declared:
            parts.append(f"### {entry.name}\n\n{_table(declared.values(), {})}")
    parts.append("## Models of RecBole\n\nEach with the settings of its own that RecBole's property file gives.\n")
    for entry in _models("RecBole"):
        path = model_yaml(RECBOLE_PROPERTIES / "model", entry.name)
        given = {} if path is None else read_yaml(path)
        own = ", ".join(f"`{key}: {written(value)}`" for key, value in given.items())
        parts.append(f"- **{entry.name}**: {own or 'none'}")
    names = " and ".join(ADDED)
    parts.append(f"\n### {names}: the loss of whole sequences\n\n{_table(LOSSES, {})}")
    text = "\n".join(part if part.startswith("- ") else f"{part}\n" for part in parts)
    return text.replace("\n\n\n", "\n\n").rstrip("\n") + "\n"


_TITLES = {
    "run": "The run",
    "training": "Training",
    "evaluation": "Evaluation",
    "data": "Data",
    "content": "What an item looks like",
    "mllm": "The multimodal LLM",
    "texts": "Texts written by an LLM",
    "model": "What an LLM reads of an item",
    "cluster": "Ray",
    "logging": "Logging",
}


def _models(origin: str) -> list[ModelEntry]:
    return [entry for entry in list_models() if entry.origin == origin]


def _table(settings: Iterable[Setting], defaults: Mapping[str, Any]) -> str:
    rows = ["| setting | default | accepts | meaning |", "|---|---|---|---|"]
    for setting in settings:
        default = defaults.get(setting.name) if setting.default is UNSET else setting.default
        parts = "; ".join(f"`{name}`: {text.rstrip('.')}" for name, text in setting.parts.items())
        marks = "*same run*" * (not setting.changes_result) or "*resume*" * setting.may_change_on_resume
        meaning = " ".join(filter(None, (setting.meaning, f"{parts}." if parts else "", marks)))
        accepts = "" if setting.kind is None else setting.kind.words
        rows.append(
            "| " + " | ".join(map(_cell, (f"`{setting.name}`", f"`{written(default)}`", accepts, meaning))) + " |"
        )
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")


# --- all of them -----------------------------------------------------------------------------------------------------


def files() -> dict[Path, str]:
    """Every file that is made of the declarations: path -> text."""
    properties = properties_dir()
    overall = properties / "overall.yaml"
    found = {overall: overall_yaml(header_of(overall)), properties.parent / "docs" / "settings.md": page()}
    for entry in _models("recbole_mm"):
        path = properties / "model" / f"{entry.name}.yaml"
        if path.is_file():
            found[path] = model_file(header_of(path), entry.load())
    return found


if __name__ == "__main__":
    for path, text in files().items():
        write_text(path, text)
