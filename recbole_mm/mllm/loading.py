"""Loading a multimodal LLM from the Hugging Face hub or from a folder. Never sets an environment variable."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
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
from transformers import AutoTokenizer, PreTrainedModel

from recbole_mm.errors import ModelLoadError
from recbole_mm.mllm.model import MLLM
from recbole_mm.mllm.prompts import CUR_ITEM
from recbole_mm.mllm.qwen2_vl import Qwen2VLInputs

logger = logging.getLogger(__name__)

FAMILIES = {"qwen2_vl": Qwen2VLInputs}
"""`model_type` of a checkpoint's config.json -> how its inputs are built."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "*.model")
OFFLINE_HINT = "--mllm=tiny works offline"

_identities: dict[tuple, str] = {}
"""Hashing gigabytes takes seconds: remembered per process by path, sizes and modification times of all files."""


def load_mllm(
    name_or_path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str = "float32",
    trust_remote_code: bool = False,
    revision: str | None = None,
    attention: str = "sdpa",
) -> MLLM:
    """Load a multimodal LLM of a supported family (Qwen2-VL).

    Args:
        name_or_path: a hub id such as `Qwen/Qwen2-VL-2B-Instruct`, or a folder in the Hugging Face layout.
        device: where the model goes.
        dtype: of the weights: float32, bfloat16, float16, or auto (bfloat16 on a GPU that has it, else float32).
        trust_remote_code: allow a tokenizer that ships its own Python code.
        revision: branch, tag or commit of a hub model.
        attention: transformers' attention implementation, such as sdpa or eager.

    Raises:
        ModelLoadError: no such folder or hub model, an unreachable hub, another family, or damaged or missing files.
    """
    name = str(name_or_path)
    target = torch.device(device)
    weights_dtype = _dtype(dtype, target)
    folder, commit = _locate(name, revision)
    family = _family(name, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        image_processor = family.image_processor_class.from_pretrained(folder)
        # Its random starts, where it makes any, must not advance the caller's generator.
        with torch.random.fork_rng(devices=[]):
            model, report = family.model_class.from_pretrained(
                folder,
                dtype=weights_dtype,
                attn_implementation=attention,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelLoadError(f"{name}: the model cannot be loaded: {_first_line(error)}") from error
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise ModelLoadError(f"{name}: the weights lack {len(lacking)} tensors that the model needs, e.g. {lacking[0]}")
    cur_item_id = add_cur_item(model, tokenizer, name)
    family.speed_up(model)
    pad = tokenizer.pad_token_id
    return MLLM(
        name=name,
        identity=f"{name}@{commit}" if commit else files_identity(folder),
        model=model.to(target).eval(),
        tokenizer=tokenizer,
        image_processor=image_processor,
        inputs=family(model.config, image_processor, 0 if pad is None else pad),
        cur_item_id=cur_item_id,
    )


def add_cur_item(model: PreTrainedModel, tokenizer: Any, name: str) -> int:
    """Make `[Cur_Item]` a special token of a loaded model, in memory only.

    A checkpoint that knows the token already (one that was fine-tuned with it) is left alone. Otherwise the token's
    embedding is the mean of all words' embeddings: the same on every machine, and no direction preferred.

    Returns:
        The token's id.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ModelLoadError(f"{name}: its tokenizer has no fast version (tokenizer.json), which recbole_mm needs")
    words = len(tokenizer)
    if tokenizer.add_special_tokens({"extra_special_tokens": [CUR_ITEM]}, replace_extra_special_tokens=False) == 0:
        return int(tokenizer.convert_tokens_to_ids(CUR_ITEM))
    token = int(tokenizer.convert_tokens_to_ids(CUR_ITEM))
    embedding = model.get_input_embeddings()
    mean = embedding.weight.detach()[:words].double().mean(dim=0)
    if token >= embedding.num_embeddings:
        with torch.random.fork_rng(devices=[]):
            embedding = model.resize_token_embeddings(token + 1, mean_resizing=False)
    with torch.no_grad():
        embedding.weight[token] = mean.to(embedding.weight.dtype)
    return token


def files_identity(folder: Path) -> str:
    """Hash the files that make a model (configuration, tokenizer, weights): a changed checkpoint is another model."""
    files = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern) if path.is_file()})
    states = [(path, path.stat()) for path in files]
    memory = (str(folder.resolve()), *((path.name, state.st_size, state.st_mtime_ns) for path, state in states))
    if memory not in _identities:
        total = hashlib.sha256()
        for path in files:
            with path.open("rb") as file:
                total.update(f"{path.name}\0".encode() + hashlib.file_digest(file, "sha256").digest())
        _identities[memory] = f"files-sha256:{total.hexdigest()}"
    return _identities[memory]


def _locate(name: str, revision: str | None) -> tuple[Path, str | None]:
    """Return the model's local folder and, for a hub model, its commit. Downloads what the hub has and we do not."""
    folder = Path(name).expanduser()
    if name.strip() and folder.is_dir():
        return folder, None
    if folder.exists() or re.match(r"[./~\\]|[A-Za-z]:", name) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ModelLoadError(f"{name}: there is no such model folder; {OFFLINE_HINT}")
    try:
        small = Path(snapshot_download(name, revision=revision, allow_patterns=["config.json"]))
        _family(name, small)  # before gigabytes of an unsupported model are downloaded
        snapshot = Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
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
        raise ModelLoadError(f"{name}: {reason} ({_first_line(error)}); {OFFLINE_HINT}") from error
    return snapshot, snapshot.name


def _family(name: str, folder: Path) -> type[Qwen2VLInputs]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelLoadError(f"{name}: no model there, its folder holds no config.json; {OFFLINE_HINT}") from error
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{name}: its config.json cannot be read: {_first_line(error)}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in FAMILIES:
        supported = ", ".join(sorted(FAMILIES))
        raise ModelLoadError(f"{name}: a model of type {kind!r}; supported multimodal LLMs are of type {supported}")
    return FAMILIES[kind]


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise ModelLoadError(f"dtype {name!r}: choose one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device is a GPU that computes in bfloat16. CPUs do too, but most of them slowly."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
