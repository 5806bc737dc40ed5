"""Where an item's vector is read from an LLM's last layer: at `[Cur_Item]`, or as embedding models are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_mm.errors import ConfigError
from recbole_mm.llm.model import MLLM
from recbole_mm.utils.files import parse_json

CUR_ITEM, LAST, MEAN, CHECKPOINT = "cur_item", "last", "mean", "checkpoint"

MODULES, SETTINGS = "modules.json", "config_sentence_transformers.json"
"""Files of sentence-transformers: the parts of a model, and the texts that it wants before its inputs."""

OF_ITEMS = ("document", "passage", "corpus")
"""What it calls the text before what is searched for, not with; the first that a checkpoint has."""

MODES = {
    "lasttoken": LAST,
    "mean": MEAN,
    "pooling_mode_lasttoken": LAST,
    "pooling_mode_mean_tokens": MEAN,
}
"""What `1_Pooling` calls them, in files of now and of before."""


@dataclass(frozen=True)
class Pooling:
    """How an item becomes one vector.

    Attributes:
        kind: `cur_item`: the state at `[Cur_Item]`, after a wording that asks for a word (Molar, Eq. 1). `last` and
            `mean`: the state of the last token, or the mean over all tokens, of the item alone.
        instruction: a text in front of the item.
        counts_instruction: whether the mean is over its tokens, too.
        normalize: whether vectors are scaled to length 1.

    Example:
        >>> Pooling().parameters, Pooling("last").parameters
        ({}, {'pooling': 'last'})
    """

    kind: str = CUR_ITEM
    instruction: str = ""
    counts_instruction: bool = True
    normalize: bool = False

    @property
    def parameters(self) -> dict[str, Any]:
        """What is unlike the default, for artifact keys."""
        found = {
            "pooling": self.kind,
            "instruction": self.instruction,
            "counts_instruction": self.counts_instruction,
            "normalize": self.normalize,
        }
        usual = {"pooling": CUR_ITEM, "instruction": "", "counts_instruction": True, "normalize": False}
        return {name: value for name, value in found.items() if value != usual[name]}


def pooling_of(kind: str | None, instruction: str | None, mllm: MLLM) -> Pooling:
    """Return what `mllm_pooling` and `mllm_instruction` ask for.

    Args:
        kind: `cur_item`, `last`, `mean`, or `checkpoint` for what the model's folder says; None: `cur_item`.
        instruction: in front of every item; None: none, or the checkpoint's own for `checkpoint`.
        mllm: the model.

    Raises:
        ConfigError: the folder says nothing of it, or what is not known here.
    """
    if kind != CHECKPOINT:
        return Pooling(kind or CUR_ITEM, instruction or "")
    if mllm.folder is None or not (mllm.folder / MODULES).is_file():
        raise ConfigError(
            f"mllm_pooling: checkpoint: {mllm.name} has no {MODULES} that tells how it is pooled; give last or mean"
        )
    return read_pooling(mllm.folder, mllm.name, instruction)


def read_pooling(folder: Path, name: str, instruction: str | None = None) -> Pooling:
    """Read how a checkpoint in the layout of sentence-transformers is pooled.

    Args:
        folder: that holds its `modules.json`.
        name: the model's, for errors.
        instruction: in the place of its own.

    Raises:
        ConfigError: a file cannot be read, or the model has parts that are not known here.
    """
    where = f"mllm_pooling: checkpoint: {name}"
    kind, counted, normalize = None, True, False
    for module in _read(folder / MODULES, list, where):
        part = str(module.get("type", "")).rsplit(".", 1)[-1] if isinstance(module, dict) else ""
        if part == "Pooling":
            said = _read(_inside(folder, module, where) / "config.json", dict, where)
            kind, counted = _mode(said, where), bool(said.get("include_prompt", True))
        elif part == "Normalize":
            normalize = True
        elif part != "Transformer":
            raise ConfigError(f"{where}: its part {part or module!r} is not known here; give last or mean")
    if kind is None:
        raise ConfigError(f"{where}: {MODULES} names no Pooling; give last or mean")
    return Pooling(kind, _own_instruction(folder, where) if instruction is None else instruction, counted, normalize)


def _mode(said: dict[str, Any], where: str) -> str:
    """The one pooling that a `1_Pooling/config.json` turns on."""
    named = said.get("pooling_mode")
    asked = [named] if named else [key for key, value in said.items() if key.startswith("pooling_mode") and value]
    if len(asked) != 1 or asked[0] not in MODES:
        raise ConfigError(
            f"{where}: it is pooled by {', '.join(map(str, asked)) or 'nothing'}; known are last and mean"
        )
    return MODES[asked[0]]


def _own_instruction(folder: Path, where: str) -> str:
    """The text that the checkpoint itself puts before what is to be found."""
    if not (folder / SETTINGS).is_file():
        return ""
    said = _read(folder / SETTINGS, dict, where)
    prompts = said.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise ConfigError(f"{where}: the prompts of its {SETTINGS} are not texts by name; give mllm_instruction")
    usual = next((word for word in OF_ITEMS if word in prompts), str(said.get("default_prompt_name")))
    return prompts.get(usual) or ""


def _inside(folder: Path, module: dict[str, Any], where: str) -> Path:
    """A part's folder, which must not lead out of the model's: anybody may have written its files."""
    path = (folder / str(module.get("path", ""))).resolve()
    # Files of the hub's cache are links to elsewhere, folders are not.
    if not path.is_relative_to(folder.resolve()):
        raise ConfigError(f"{where}: {MODULES} names {module.get('path')!r}, outside of its folder")
    return path


def _read(path: Path, kind: type, where: str) -> Any:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: {path.name} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(found, kind):
        raise ConfigError(f"{where}: {path.name} is not a {kind.__name__}")
    return found
