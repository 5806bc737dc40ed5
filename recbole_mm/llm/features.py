"""Item features as matrices: read from files, or encoded by pretrained models through the artifact store."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from recbole_mm.artifacts.vectors import Encoder
from recbole_mm.data.content import ItemContent, ItemImage
from recbole_mm.data.content_source import dataset_path
from recbole_mm.data.feature_files import align, read_features
from recbole_mm.data.features import MLLM, SUMMARY, FeatureSpec, text_hash
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.llm.encoders import open_encoder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

BATCH_SIZES = {"text": 128, SUMMARY: 128, "image": 32}
IDS_SHOWN = 5

ComputeVectors = Callable[..., tuple[np.ndarray, Mapping[int, str]]]
"""`artifacts.vectors.vectors_through_store` with its store."""


def load_features(
    specs: Mapping[str, Any],
    content: ItemContent,
    compute: ComputeVectors,
    device: str | torch.device = "cpu",
    mllm_encoder: Callable[[ItemContent], np.ndarray] | None = None,
    summaries: Sequence[str | None] | None = None,
    trust_remote_code: bool = False,
) -> dict[str, np.ndarray]:
    """Load or compute every feature of `item_features`.

    Args:
        specs: feature name -> its settings (`data.features.FeatureSpec`).
        content: the items, padding first.
        compute: encodes inputs, or reads what was encoded before from the store.
        device: where encoders run.
        mllm_encoder: encodes all items for `encoder: mllm`: items -> (len(items), d).
        summaries: of the items by RecBole's id, None where there is none; for `on: summary`.
        trust_remote_code: run Python code that comes with an encoder.

    Returns:
        Name -> (len(content), d) float32. Row 0 (padding) and the rows of items without the modality are zeros, counted
        in the log.

    Raises:
        ConfigError: a malformed entry, or `encoder: mllm` without an MLLM.
        DataError: a feature file does not fit the dataset, or no item has what an encoder reads.
        ModelLoadError: an encoder cannot be found or loaded.

    Example:
        >>> compute = functools.partial(vectors_through_store, store)            # doctest: +SKIP
        >>> load_features({"text": {"encoder": path, "on": "text"}}, content, compute)["text"].shape  # doctest: +SKIP
        (1683, 384)
    """
    parsed = [FeatureSpec.parse(name, settings) for name, settings in specs.items()]
    opened = partial(open_encoder, device=device, trust_remote_code=trust_remote_code)
    return {spec.name: _load(spec, content, compute, opened, mllm_encoder, summaries) for spec in parsed}


def _load(
    spec: FeatureSpec,
    content: ItemContent,
    compute: ComputeVectors,
    opened: Callable[[FeatureSpec], Encoder],
    mllm_encoder: Callable[[ItemContent], np.ndarray] | None,
    summaries: Sequence[str | None] | None,
) -> np.ndarray:
    if spec.file is not None:
        root = content.source.root or Path()
        ids = None if spec.ids is None else dataset_path(root, spec.ids, f"item_features.{spec.name}.ids")
        file = dataset_path(root, spec.file, f"item_features.{spec.name}.file")
        return _without_hidden(align(*read_features(file, ids), content.tokens, spec.name), spec, content)
    if spec.encoder != MLLM:
        return _encode(spec, content, compute, opened, summaries)
    if mllm_encoder is None:
        raise ConfigError(f"item_features.{spec.name}: encoder: mllm needs a multimodal LLM; set mllm")
    vectors = np.asarray(mllm_encoder(content), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(content):
        raise ValueError(f"the MLLM gave vectors of shape {vectors.shape} for {len(content)} items")
    return vectors


def _without_hidden(vectors: np.ndarray, spec: FeatureSpec, content: ItemContent) -> np.ndarray:
    """Vectors of a file with zeros for the items whose content of that kind is hidden."""
    hidden = content.source.hidden
    if hidden and spec.on is None:
        raise ConfigError(
            f"item_features.{spec.name}: missing_rate cannot hide vectors of a file without on: image or on: text; say "
            "what they are of"
        )
    gone = hidden.get(str(spec.on), frozenset())
    vectors[[token in gone for token in content.tokens]] = 0
    return vectors


def _encode(
    spec: FeatureSpec,
    content: ItemContent,
    compute: ComputeVectors,
    opened: Callable[[FeatureSpec], Encoder],
    summaries: Sequence[str | None] | None,
) -> np.ndarray:
    assert spec.on is not None
    items, hashes, load, carry = feature_inputs(spec, content, summaries)
    if not items:
        raise DataError(f"item_features.{spec.name}: no item has a usable {spec.on} for {spec.encoder}")
    encoder = opened(spec)
    vectors, failed = compute(
        stage=spec.stage,
        identity=encoder.identity,
        parameters=encoder.parameters,
        hashes=hashes,
        load=lambda place: load(items[place]),
        encode=encoder.encode,
        batch_size=spec.batch_size or BATCH_SIZES[spec.on],
        recipe=getattr(encoder, "recipe", None),
        carry=lambda place: carry(items[place]),
        problems=content.source.problems,
        names=(f"item_features.{spec.name}: {spec.encoder}", lambda place: f"item {content.tokens[items[place]]!r}"),
    )
    if len(failed) == len(items):
        raise DataError(f"item_features.{spec.name}: no item has a usable {spec.on} for {spec.encoder}")
    matrix = np.zeros((len(content), vectors.shape[1]), dtype=np.float32)
    matrix[items] = vectors
    have = set(items) - {items[place] for place in failed}
    without = [content.tokens[item] for item in range(1, len(content)) if item not in have]
    if without:
        shown = ", ".join(without[:IDS_SHOWN]) + (", ..." if len(without) > IDS_SHOWN else "")
        logger.warning(
            "feature %s: %d of %d items have no %s; their vectors are zeros (%s)",
            *(spec.name, len(without), len(content) - 1, spec.on, shown),
        )
    logger.info("feature %s: %d items, %d dimensions", spec.name, len(content) - 1, matrix.shape[1])
    return matrix


class FeatureInputs(NamedTuple):
    """What an encoder reads.

    Attributes:
        items: ids of the items that have it.
        hashes: content hash of each.
        load: item id -> the input, None where it cannot be loaded.
        carry: item id -> the input as it is sent to another machine.
    """

    items: list[int]
    hashes: list[str]
    load: Callable[[int], Any]
    carry: Callable[[int], Any]


def feature_inputs(spec: FeatureSpec, content: ItemContent, summaries: Sequence[str | None] | None) -> FeatureInputs:
    """Returns what the encoder of a feature reads; nothing is decoded.

    Args:
        spec: with an encoder other than the MLLM.
        content: the items, padding first.
        summaries: of the items by RecBole's id; for `on: summary`.

    Raises:
        ConfigError: `on: summary` without summaries.
    """
    if spec.on == SUMMARY:
        if summaries is None:
            raise ConfigError(f"item_features.{spec.name}: on: summary needs item texts, and none are given")
        items = _longest_first({item: text for item, text in enumerate(summaries) if text})
        said = summaries.__getitem__
        return FeatureInputs(items, [text_hash(summaries[item] or "") for item in items], said, said)
    assert spec.on is not None
    view = content.only(spec.on)
    if spec.on == "image":
        items = [item for item in range(1, len(view)) if view.source.has_image(view.tokens[item])]
        source, tokens = view.source, view.tokens
        return FeatureInputs(
            items,
            view.fingerprints(items),
            lambda item: source.image(tokens[item]),
            lambda item: ItemImage(source, tokens[item]).carried(),
        )
    items = _longest_first({item: text for item in range(1, len(view)) if (text := view.text(item)) is not None})
    return FeatureInputs(items, view.fingerprints(items), view.text, view.text)


def _longest_first(texts: Mapping[int, str]) -> list[int]:
    """So that a batch holds texts of similar length."""
    return sorted(texts, key=lambda item: len(texts[item]), reverse=True)
