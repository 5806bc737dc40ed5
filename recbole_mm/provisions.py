"""What a model asks for beside interactions: item vectors of a multimodal LLM, and the LLM itself.

A model class names its needs in `requires`; `provide` computes them once through the artifact store and sets them on
the dataset, so that models see tensors and never a path, a tokenizer or a cache.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as hub_logging

from recbole_mm import __version__
from recbole_mm.artifacts.store import Store
from recbole_mm.artifacts.vectors import vectors_through_store
from recbole_mm.data.content import ItemContent
from recbole_mm.data.features import load_features
from recbole_mm.errors import ConfigError
from recbole_mm.mllm.encode import DEFAULT_TEXT_TOKENS, ItemEncoder, encode_items
from recbole_mm.mllm.loading import load_mllm
from recbole_mm.mllm.model import MLLM
from recbole_mm.mllm.tiny import build_tiny

logger = logging.getLogger(__name__)

ITEM_VECTORS, MLLM_ITSELF = "item_vectors", "mllm"


def artifact_dir(config) -> Path:
    """Folder of everything computed offline: `artifact_dir`, or `<checkpoint_dir>/artifacts`."""
    return Path(config["artifact_dir"] or Path(config["checkpoint_dir"]) / "artifacts")


def open_store(config) -> Store:
    """The artifact store that this run reads and fills."""
    folder = artifact_dir(config)
    folder.mkdir(parents=True, exist_ok=True)
    return Store(folder / "artifacts.sqlite")


def open_mllm(config, dataset) -> MLLM:
    """The multimodal LLM of `mllm`; `tiny` is built from the dataset's item texts if it is not there yet.

    Raises:
        ModelLoadError: the model cannot be found or loaded.
    """
    hub_logging.disable_progress_bar()  # transformers' bars for every file it reads or writes
    name = config["mllm"]
    if name == "tiny":
        name = str(tiny_mllm(config, dataset))
        logger.warning(
            "mllm: tiny is a real Qwen2-VL architecture, but UNTRAINED: its vectors know no more of images and words "
            "than random features do. Pass --mllm=Qwen/Qwen2-VL-2B-Instruct, or a folder, for a trained one."
        )
    return load_mllm(
        name,
        device=config["device"],
        dtype=config["mllm_dtype"] or "auto",
        trust_remote_code=bool(config["trust_remote_code"]),
    )


def tiny_mllm(config, dataset) -> Path:
    """Folder of the tiny MLLM for this dataset's texts and seed; built on first use."""
    corpus = [text for text in (dataset.content.text(i) for i in range(1, len(dataset.content))) if text]
    if not corpus:
        corpus = [str(token) for token in dataset.item_tokens()[1:]]
    digest = hashlib.sha256("\0".join([__version__, str(config["seed"]), *corpus]).encode()).hexdigest()[:16]
    folder = artifact_dir(config) / f"tiny-{digest}"
    return folder if folder.is_dir() else build_tiny(corpus, folder, seed=config["seed"])


def encode_with_mllm(config, content: ItemContent, store: Store, mllm: MLLM) -> np.ndarray:
    """MIRM vectors of all items, float32 (n_items, h), row 0 zeros (Molar, Eq. 1)."""
    encoder = ItemEncoder(
        mllm,
        image_pixels=config["mllm_image_pixels"],
        max_text_tokens=config["max_text_tokens"] or DEFAULT_TEXT_TOKENS,
    )
    return encode_items(content, encoder, store, show_progress=config["show_progress"])


def provide(config, dataset, model_class: type) -> None:
    """Set on `dataset` what `model_class.requires` names, and the features of `item_features`.

    Features that a RecBole feature model selects (`selected_features`) also become fields of its item table.

    Raises:
        ConfigError: the class requires something unknown here.
    """
    needs = set(getattr(model_class, "requires", ()))
    if unknown := needs - {ITEM_VECTORS, MLLM_ITSELF}:
        raise ConfigError(f"model {model_class.__name__} requires {sorted(unknown)}, which nothing provides")
    specs = config["item_features"] or {}
    if not needs and not specs:
        return
    counts = np.bincount(dataset.inter_feat[dataset.iid_field], minlength=dataset.item_num)
    logger.info("%s", dataset.content.coverage(counts))
    if needs:
        dataset.mllm = open_mllm(config, dataset)
    with open_store(config) as store:
        if ITEM_VECTORS in needs:
            dataset.item_vectors = encode_with_mllm(config, dataset.content, store, dataset.mllm)
        dataset.item_features = _features(config, dataset, store, specs)
    for name in set(specs) & set(config["selected_features"] or ()):
        dataset.declare_feature_field(name, torch.from_numpy(dataset.item_features[name]))
    dataset.content.report_problems()


def _features(config, dataset, store: Store, specs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    def with_mllm(content: ItemContent) -> np.ndarray:
        mllm = getattr(dataset, "mllm", None) or open_mllm(config, dataset)
        return encode_with_mllm(config, content, store, mllm)

    compute = partial(vectors_through_store, store, show_progress=config["show_progress"])
    return load_features(specs, dataset.content, compute, config["device"], with_mllm)
