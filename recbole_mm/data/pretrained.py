"""A pretrained model's files: where they are (a folder, or the Hugging Face hub and its cache), and opened safely."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_mm.errors import ModelLoadError

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Configuration, tokenizer and weights. Pickled weights (`*.bin`, `*.pt`) are never asked for."""


@dataclass(frozen=True)
class Pretrained:
    """Files of a model on this machine.

    Attributes:
        folder: where they are.
        identity: the hub id and commit, or a hash of the files: the same for the same model on any machine.
    """

    folder: Path
    identity: str


def locate(name: str, revision: str | None = None, with_code: bool = False) -> Pretrained:
    """Find a model folder, or download a hub model (once; later its cache is used when the hub cannot be reached).

    Args:
        name: a folder, or a hub id such as `sentence-transformers/all-MiniLM-L6-v2`.
        revision: branch, tag or commit of a hub model.
        with_code: download the Python code that comes with a hub model, too.

    Raises:
        ModelLoadError: no such folder, no such hub model or revision, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Pretrained(folder, files_identity(folder))
    if not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ModelLoadError(f"{name}: there is no such model folder, and this is not a Hugging Face id")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        patterns = [*MODEL_FILES, *(["*.py"] if with_code else [])]
        snapshot = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise ModelLoadError(f"{name}: the hub asks you to accept its terms and log in (hf auth login)") from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{name}: the hub knows the model, but not its revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(f"{name}: neither a folder here nor a model on the Hugging Face hub") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelLoadError(
            f"{name}: there is no such folder here, it is not in the cache, and the Hugging Face hub is unreachable or "
            "switched off (HF_HUB_OFFLINE); give the path of a downloaded model"
        ) from error
    return Pretrained(snapshot, f"{name}@{snapshot.name}")


def located(name: str, identity: str) -> tuple[str, str | None]:
    """Where other machines find a model, and its commit if it is one of the hub."""
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().resolve()), None
    commit = identity.removeprefix(f"{name}@")
    return name, commit if commit != identity and "+" not in commit else None


def check_identity(name: str, found: str, wanted: str) -> None:
    """Make sure that another machine has the same model.

    Raises:
        ModelLoadError: it has another one, whose values would be kept as those of this one.
    """
    if found != wanted:
        raise ModelLoadError(f"{name}: the model there ({found}) is not the one of the run ({wanted}); copy its files")


def files_identity(folder: Path) -> str:
    """Hash of the files that make a model, by their names inside the folder and their content.

    Raises:
        ModelLoadError: there is no safetensors file.
    """
    files = sorted({path for pattern in MODEL_FILES for path in folder.rglob(pattern) if path.is_file()})
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelLoadError(f"{folder}: no .safetensors weights there (pickled weights are never loaded)")
    return f"files-sha256:{_digest(folder, files)}"


def code_identity(folder: Path) -> str | None:
    """Hash of the Python code that comes with a model; None where there is none."""
    files = sorted(path for path in folder.rglob("*.py") if path.is_file())
    return _digest(folder, files) if files else None


def _digest(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 of files, by their names inside the folder and their content."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").digest()
        total.update(f"{path.relative_to(folder).as_posix()}\0".encode() + inner)
    return total.hexdigest()


# --- opening ---------------------------------------------------------------------------------------------------------


def open_pretrained(
    load: Callable[..., Any], name: str, folder: Path, trust_remote_code: bool = False, **options: Any
) -> Any:
    """Read a model's folder with a `from_pretrained` of transformers, or what works like one.

    All such reading of the package goes through here, so that nothing in a folder decides what is executed: nobody is
    asked on the terminal whether Python code of the model's own may run, and nothing that is pickled is read.

    Args:
        load: called with the folder, `trust_remote_code` and `options`.
        name: the model's, for errors.
        folder: that holds its files.
        trust_remote_code: run Python code that comes with the model.
        options: for `load`.

    Raises:
        ModelLoadError: the model cannot do without code of its own that is not trusted, or has pickled weights.

    Example:
        >>> open_pretrained(AutoTokenizer.from_pretrained, "gpt2", Path("models/gpt2"))   # doctest: +SKIP
    """
    for file, reason in _pickles(folder):
        raise ModelLoadError(f"{name}: {file.relative_to(folder)} {reason}; pickled weights are never loaded")
    try:
        return load(str(folder), trust_remote_code=trust_remote_code, **options)
    except (ValueError, ImportError) as error:
        if trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ModelLoadError(
            f"{name}: it comes with Python code of its own, which is not run; set trust_remote_code: True once you "
            "have read it and trust it"
        ) from error


def _pickles(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files of a folder through which a library would come to unpickle something, and why."""
    modules = (folder / "modules.json").is_file()  # of sentence-transformers, each in a folder of its own
    places = [folder, *(path for path in folder.rglob("*") if modules and path.is_dir())]
    for place in places:
        for index in place.glob("*.safetensors.index.json"):
            if strangers := [shard for shard in _shards(index) if not shard.endswith(".safetensors")]:
                yield index, f"names {strangers[0]!r} as a file of weights"
        adapter = (place / "adapter_config.json").is_file()
        for name, is_read, safe in (("adapter_model", adapter, "adapter_model"), ("pytorch_model", modules, "model*")):
            pickled = place / f"{name}.bin"
            if is_read and pickled.is_file() and not any(place.glob(f"{safe}.safetensors")):
                yield pickled, "has no .safetensors beside it"


def _shards(index: Path) -> list[str]:
    """Files that an index names, sorted; none of one that cannot be read, which whoever loads it will say."""
    try:
        return sorted(set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
