"""Where a model's files are: a folder, or the Hugging Face hub. Never sets an environment variable."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from recbole_mm.errors import ModelLoadError
from recbole_mm.utils.files import CHANGED, CHECKSUMS, ChecksumError, file_digest, listed_checksums

ADAPTER_CONFIG = "adapter_config.json"
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
OFFLINE_HINT = "--mllm=tiny works offline"

_identities: dict[tuple, str] = {}
"""Hashing gigabytes takes seconds: remembered per process by path, sizes and modification times of all files."""


@dataclass(frozen=True)
class Source:
    """A model's files.

    Attributes:
        name: what it was asked for by.
        folder: where they are.
        commit: of a hub model, else None.
    """

    name: str
    folder: Path
    commit: str | None = None

    @property
    def identity(self) -> str:
        """The hub's commit, or a hash of the files."""
        return f"{self.name}@{self.commit}" if self.commit else files_identity(self.folder)

    @property
    def is_adapter(self) -> bool:
        """Whether the files are a PEFT adapter, which needs its base model beside it."""
        return (self.folder / ADAPTER_CONFIG).is_file()


def files_identity(folder: Path) -> str:
    """Hash the files that make a model (configuration, tokenizer, weights): a changed checkpoint is another model.

    Raises:
        ModelLoadError: a file of a folder that was made here (a tiny or a fine-tuned model) has changed since.
    """
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    states = [(path, path.stat()) for path in files]
    memory = (str(folder.resolve()), *((path.name, state.st_size, state.st_mtime_ns) for path, state in states))
    if memory not in _identities:
        digests = {path: file_digest(path) for path in files}
        _require_as_made(folder, digests)
        total = hashlib.sha256()
        for path, digest in digests.items():
            total.update(f"{path.name}\0".encode() + (_settings_digest(path) or digest))
        _identities[memory] = f"files-sha256:{total.hexdigest()}"
    return _identities[memory]


def _require_as_made(folder: Path, digests: Mapping[Path, bytes]) -> None:
    """Compare a folder with the list of checksums that was made with it, if there is one."""
    try:
        for name, wanted in listed_checksums(folder).items():
            path = folder / name
            if not path.is_file():
                raise ChecksumError(f"{path} is gone")
            if (digests.get(path) or file_digest(path)).hex() != wanted:
                raise ChecksumError(f"{path} is damaged: {CHANGED}")
    except ChecksumError as error:
        raise ModelLoadError(
            f"{error}; remove {folder} to have the model made anew, or only its {CHECKSUMS} if you changed it yourself"
        ) from error


def _settings_digest(path: Path) -> bytes | None:
    """SHA-256 of an adapter's settings without the place of its base, which has an identity of its own."""
    if path.name != ADAPTER_CONFIG:
        return None
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("base_model_name_or_path", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()


def locate(name: str, revision: str | None, accept: Callable[[str, Path], object], with_code: bool = False) -> Source:
    """Find a model's files. Downloads what the hub has and we do not.

    Args:
        name: a folder, or a hub id.
        revision: branch, tag or commit of a hub model.
        accept: called with the name and a folder that holds the model's config.json, before gigabytes of a model are
            downloaded that cannot be used; raises to refuse it. Not called for an adapter.
        with_code: download the Python code that comes with a hub model, too.

    Raises:
        ModelLoadError: no such folder or hub model, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    if name.strip() and folder.is_dir():
        return Source(name, folder)
    if folder.exists() or re.match(r"[./~\\]|[A-Za-z]:", name) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelLoadError(f"{name}: there is no such model folder; {OFFLINE_HINT}")
    try:
        small = Path(snapshot_download(name, revision=revision, allow_patterns=["config.json", ADAPTER_CONFIG]))
        if not (small / ADAPTER_CONFIG).is_file():
            accept(name, small)
        patterns = [*MODEL_FILES, *(["*.py"] if with_code else [])]
        snapshot = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{name}: the hub asks you to accept its terms and log in (hf auth login) first"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{name}: the hub knows the model but not its revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"{name}: neither a folder here nor a model on the Hugging Face hub; {OFFLINE_HINT}"
        ) from error
    except HFValidationError as error:
        raise ModelLoadError(f"{name}: neither a folder here nor a valid hub id; {OFFLINE_HINT}") from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        reason = "there is no such folder here, and the Hugging Face hub cannot be reached"
        raise ModelLoadError(f"{name}: {reason} ({first_line(error)}); {OFFLINE_HINT}") from error
    return Source(name, snapshot, snapshot.name)


def first_line(error: BaseException) -> str:
    """What an error says, without the paragraphs that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
