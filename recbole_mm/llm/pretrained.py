"""Pretrained models: found by name (a folder, the hub or its cache), identified, and opened safely.

Never sets an environment variable.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from recbole_mm.errors import ModelLoadError
from recbole_mm.utils.files import CHECKSUMS, file_digest, listed_checksums, parse_json
from recbole_mm.utils.seal import CHANGED, ChecksumError

ADAPTER_CONFIG = "adapter_config.json"
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
"""Configuration, tokenizer and weights. Pickled weights (`*.bin`, `*.pt`) are never asked for."""
LLM_HINT = "--mllm=tiny works offline"
ENCODER_HINT = "give the path of a downloaded model"
LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError, SafetensorError)
"""What transformers raises on damaged or unfitting files."""

_identities: dict[tuple, str] = {}
"""Hashing gigabytes takes seconds: remembered per process by path, sizes and modification times of all files."""


@dataclass(frozen=True)
class Pretrained:
    """The files of a model on this machine.

    Attributes:
        name: folder or hub id that it was asked for by.
        folder: where its files are.
        commit: of a hub model, else None.
        is_encoder: an encoder of texts or images; else an LLM.
    """

    name: str
    folder: Path
    commit: str | None = None
    is_encoder: bool = False

    @property
    def identity(self) -> str:
        """The hub id and commit, or a hash of the files: the same for the same model on any machine.

        Raises:
            ModelLoadError: see `files_identity` and `tree_identity`.
        """
        if self.commit:
            return f"{self.name}@{self.commit}"
        # Two recipes, since artifact keys hold what they give. An LLM is the top level of its folder, and an adapter's
        # file does not count where its base lies; sentence-transformers keeps modules in folders of their own.
        return tree_identity(self.folder) if self.is_encoder else files_identity(self.folder)

    @property
    def is_adapter(self) -> bool:
        """Whether the files are a PEFT adapter, which needs its base model too."""
        return (self.folder / ADAPTER_CONFIG).is_file()


# --- finding ---------------------------------------------------------------------------------------------------------


def find_llm(
    name: str,
    revision: str | None,
    accept: Callable[[str, Path], object],
    with_code: bool = False,
    weights: bool = True,
) -> Pretrained:
    """Find the files of an LLM. Downloads what the hub has and this machine lacks.

    Args:
        name: a folder, or a hub id.
        revision: branch, tag or commit of a hub model.
        accept: called with the name and a folder that holds the model's config.json, before gigabytes of a model are
            downloaded that cannot be used; raises to refuse it. Not called for an adapter.
        with_code: download the Python code that comes with a hub model, too.
        weights: download its weights, too; else its configuration and tokenizer alone.

    Raises:
        ModelLoadError: no such folder, hub model or revision, or the hub cannot be reached.
    """
    patterns = [pattern for pattern in _patterns(with_code) if weights or "safetensors" not in pattern]

    def download() -> str:
        small = Path(snapshot_download(name, revision=revision, allow_patterns=["config.json", ADAPTER_CONFIG]))
        if not (small / ADAPTER_CONFIG).is_file():
            accept(name, small)
        return snapshot_download(name, revision=revision, allow_patterns=patterns)

    return _find(name, revision, download, LLM_HINT)


def find_encoder(name: str, revision: str | None = None, with_code: bool = False, download: bool = True) -> Pretrained:
    """Find the files of an encoder of texts or images, and make sure that they have an identity.

    Args:
        name: a folder, or a hub id such as `sentence-transformers/all-MiniLM-L6-v2`.
        revision: branch, tag or commit of a hub model.
        with_code: download the Python code that comes with a hub model, too.
        download: ask the hub; else only folders and the hub's cache are looked at.

    Raises:
        ModelLoadError: no such folder, hub model or revision, the hub cannot be reached, or a folder without weights.
    """
    patterns = _patterns(with_code)
    ask = partial(snapshot_download, name, revision=revision, allow_patterns=patterns, local_files_only=not download)
    found = _find(name, revision, ask, ENCODER_HINT, is_encoder=True)
    _ = found.identity
    return found


def _patterns(with_code: bool) -> list[str]:
    return [*MODEL_FILES, *(["*.py"] if with_code else [])]


def _find(
    name: str, revision: str | None, download: Callable[[], str], hint: str, is_encoder: bool = False
) -> Pretrained:
    """The folder of this name, or else the one that `download` gives; what goes wrong becomes one line."""
    folder = Path(name).expanduser()
    if name.strip() and folder.is_dir():
        return Pretrained(name, folder, None, is_encoder)
    if folder.exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name):
        raise ModelLoadError(f"{name}: there is no such model folder; {hint}")
    try:
        snapshot = Path(download())
    except GatedRepoError as error:
        reason = "the hub asks you to accept its terms and log in (hf auth login) first"
        raise ModelLoadError(f"{name}: {reason}") from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{name}: the hub knows the model but not its revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(f"{name}: neither a folder here nor a model on the Hugging Face hub; {hint}") from error
    except HFValidationError as error:
        raise ModelLoadError(f"{name}: neither a folder here nor a valid hub id; {hint}") from error
    except (LocalEntryNotFoundError, HTTPError, OSError) as error:
        reason = "there is no such folder here, it is not in the cache, and the Hugging Face hub cannot be reached"
        raise ModelLoadError(f"{name}: {reason} or is switched off ({first_line(error)}); {hint}") from error
    return Pretrained(name, snapshot, snapshot.name, is_encoder)


def published(name: str, identity: str) -> tuple[str, str | None]:
    """Where any machine finds a model that was found here: its absolute folder and None, or its hub id and commit.

    Args:
        name: that it was asked for by.
        identity: of the model; that of an adapter is `base+adapter`, of 4-bit weights `base+nf4`.

    Example:
        >>> published("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-2B-Instruct@895c3a4")
        ('Qwen/Qwen2-VL-2B-Instruct', '895c3a4')
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().resolve()), None
    base = identity.partition("+")[0]
    commit = base.removeprefix(f"{name}@")
    return name, commit if commit != base else None


def check_identity(name: str, found: str, wanted: str) -> None:
    """Make sure that another machine has the same model.

    Raises:
        ModelLoadError: it has another one, whose values would be kept as those of this one.
    """
    if found != wanted:
        raise ModelLoadError(f"{name}: the model there ({found}) is not the one of the run ({wanted}); copy its files")


def first_line(error: BaseException) -> str:
    """What an error says, without the paragraphs that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- identity --------------------------------------------------------------------------------------------------------


def files_identity(folder: Path) -> str:
    """Hash the files that make an LLM (configuration, tokenizer, weights): a changed checkpoint is another model.

    Raises:
        ModelLoadError: a file of a folder that was made here (a tiny or a fine-tuned model) has changed since.
    """

    def digest(files: list[Path]) -> str:
        digests = {path: file_digest(path) for path in files}
        _require_as_made(folder, digests)
        total = hashlib.sha256()
        for path, found in digests.items():
            total.update(f"{path.name}\0".encode() + (_settings_digest(path) or found))
        return total.hexdigest()

    return _remembered("llm", folder, {path for pattern in MODEL_FILES for path in folder.glob(pattern)}, digest)


def tree_identity(folder: Path) -> str:
    """Hash the files that make an encoder, by their names inside the folder and their content.

    Raises:
        ModelLoadError: there is no safetensors file.
    """
    files = {path for pattern in MODEL_FILES for path in folder.rglob(pattern)}
    if not any(path.suffix == ".safetensors" and path.is_file() for path in files):
        raise ModelLoadError(f"{folder}: no .safetensors weights there (pickled weights are never loaded)")
    return _remembered("encoder", folder, files, lambda found: _tree_digest(folder, found))


def code_identity(folder: Path) -> str | None:
    """Hash of the Python code that comes with a model; None where there is none."""
    files = sorted(path for path in folder.rglob("*.py") if path.is_file())
    return _tree_digest(folder, files) if files else None


def _remembered(recipe: str, folder: Path, files: Iterable[Path], digest: Callable[[list[Path]], str]) -> str:
    """The identity of files by a recipe, hashed once as long as none of them changes."""
    found = sorted(path for path in files if path.is_file())
    states = [(path, path.stat()) for path in found]
    memory = (recipe, str(folder.resolve()), *((str(path), state.st_size, state.st_mtime_ns) for path, state in states))
    if memory not in _identities:
        _identities[memory] = f"files-sha256:{digest(found)}"
    return _identities[memory]


def _tree_digest(folder: Path, files: Iterable[Path]) -> str:
    """SHA-256 of files, by their names inside the folder and their content."""
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.relative_to(folder).as_posix()}\0".encode() + file_digest(path))
    return total.hexdigest()


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
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # an error when the adapter is loaded
        return None
    if not isinstance(settings, dict):
        return None
    settings.pop("base_model_name_or_path", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()


# --- opening ---------------------------------------------------------------------------------------------------------


@contextmanager
def load_errors(name: str, part: str = "the model") -> Iterator[None]:
    """Inside, what libraries raise on damaged or unsuitable files becomes one line.

    Args:
        name: of the model.
        part: that is loaded.

    Raises:
        ModelLoadError: that line.
    """
    try:
        yield
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        ImportError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise ModelLoadError(f"{name}: {part} cannot be loaded: {first_line(error)}") from error


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
    from transformers.utils import logging as hub_logging  # loaded by whoever brings `load`

    hub_logging.disable_progress_bar()  # transformers' bars for every file it reads
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
    """Files that an index names, sorted; none of one that cannot be read, which fails when it is loaded."""
    try:
        return sorted(set(map(str, parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
