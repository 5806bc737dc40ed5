"""Where a pretrained encoder's files are: a folder, or the Hugging Face hub and its cache."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

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


def locate(name: str, revision: str | None = None) -> Pretrained:
    """Find a model folder, or download a hub model (once; later its cache is used when the hub cannot be reached).

    Args:
        name: a folder, or a hub id such as `sentence-transformers/all-MiniLM-L6-v2`.
        revision: branch, tag or commit of a hub model.

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
        snapshot = Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
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
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256").digest()
        total.update(f"{path.relative_to(folder).as_posix()}\0".encode() + inner)
    return f"files-sha256:{total.hexdigest()}"
