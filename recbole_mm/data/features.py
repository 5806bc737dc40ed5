"""Item features: named matrices of vectors, from files or from pretrained encoders, row = RecBole's item id.

In YAML::

    item_features:
      text:    {encoder: sentence-transformers/all-MiniLM-L6-v2, on: text}
      image:   {encoder: google/vit-base-patch16-224-in21k, on: image}
      told:    {encoder: sentence-transformers/all-MiniLM-L6-v2, on: summary}
      visual:  {file: image_features.npy, ids: image_ids.txt}      # or a .safetensors file that carries its ids
      both:    {encoder: mllm}

`text` is the item's metadata; `summary` is what the reasoning stage says of the item: the same with an LLM's
description of the image, as `item_text` says (docs/reasoning.md).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recbole_mm.data.carried import ItemImage
from recbole_mm.data.content import ItemContent
from recbole_mm.data.content_source import MODALITIES, dataset_path
from recbole_mm.data.encoders import KINDS, Encoder, EncoderRecipe, TimmEncoder, VisionEncoder
from recbole_mm.data.feature_files import align, read_features
from recbole_mm.data.item_table import did_you_mean
from recbole_mm.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MLLM = "mllm"
SUMMARY = "summary"
READABLE = (*MODALITIES, SUMMARY)
BATCH_SIZES = {"text": 128, SUMMARY: 128, "image": 32}
IDS_SHOWN = 5


class ComputeVectors(Protocol):
    """Encodes inputs, or recalls what was encoded before: `artifacts.vectors.vectors_through_store` with its store.

    Its arguments are those of that function without the store: `load` maps a place in `hashes` to an input or None,
    `encode` maps k inputs to (k, d), `recipe`, `carry` and `problems` are for encoding elsewhere, `names` for errors.
    Returns (n, d) float32, and place -> reason where there is no vector.
    """

    def __call__(
        self,
        *,
        stage: str,
        identity: str,
        parameters: Mapping[str, Any],
        hashes: Sequence[str],
        load: Callable[[int], Any],
        encode: Callable[[list[Any]], np.ndarray],
        batch_size: int,
        recipe: EncoderRecipe | None,
        carry: Callable[[int], Any],
        problems: MutableMapping[str, str],
        names: tuple[str, Callable[[int], str]],
    ) -> tuple[np.ndarray, Mapping[int, str]]: ...


@dataclass(frozen=True)
class FeatureSpec:
    """One entry of `item_features`.

    Attributes:
        name: the feature's name.
        file: precomputed vectors, `.npy` or `.safetensors`; relative to the dataset's folder.
        ids: item ids of the file's rows.
        encoder: hub id or folder of a pretrained encoder, or `mllm`.
        on: what the encoder reads: text, image or summary.
        kind: sentence-transformers, huggingface or timm; told from `on` and `encoder` when not given.
        revision: of a hub model.
        pooling: of a huggingface vision model: auto, pooler, cls or mean.
        normalize: scale every vector to length 1.
        batch_size: inputs encoded at once.
    """

    name: str
    file: str | None = None
    ids: str | None = None
    encoder: str | None = None
    on: str | None = None
    kind: str | None = None
    revision: str | None = None
    pooling: str | None = None
    normalize: bool = False
    batch_size: int | None = None

    @classmethod
    def parse(cls, name: str, settings: Any) -> FeatureSpec:
        """Check one entry.

        Raises:
            ConfigError: it is not a mapping, has an unknown key, or its keys do not fit together.
        """
        if not isinstance(settings, Mapping):
            raise ConfigError(
                f"item_features.{name}: {settings!r} is not a mapping such as {{file: x.npy, ids: x.txt}}"
            )
        known = [field.name for field in fields(cls) if field.name != "name"]
        for key in settings:
            if key not in known:
                raise ConfigError(f"item_features.{name}: unknown key {key!r}{did_you_mean(str(key), known)}")
        spec = cls(name, **settings)
        if (spec.file is None) == (spec.encoder is None):
            raise ConfigError(f"item_features.{name}: give either file or encoder")
        if spec.encoder not in (None, MLLM):
            spec.encoder_class()
        elif spec.on == SUMMARY:
            raise ConfigError(f"item_features.{name}: on: summary needs an encoder of texts, no {MLLM} and no file")
        return spec

    def encoder_class(self) -> type:
        """The encoder that reads this feature's modality.

        Raises:
            ConfigError: `on` is missing, or there is no encoder of this `kind` for it.
        """
        if self.on not in READABLE:
            raise ConfigError(
                f"item_features.{self.name}: say what the encoder reads: on: summary, on: text or on: image"
            )
        reads = "image" if self.on == "image" else "text"
        kind = self.kind or ("sentence-transformers" if reads == "text" else "huggingface")
        if self.kind is None and self.on == "image" and str(self.encoder).startswith("timm/"):
            kind = "timm"
        if (kind, reads) not in KINDS:
            choices = ", ".join(name for name, modality in KINDS if modality == reads)
            raise ConfigError(
                f"item_features.{self.name}: kind {kind!r} does not read {self.on}; choose one of {choices}"
            )
        return KINDS[kind, reads]

    def open_encoder(self, device: str | torch.device, trust_remote_code: bool = False) -> Encoder:
        """Load the pretrained model.

        Args:
            device: where it runs.
            trust_remote_code: run Python code that comes with it; models of timm have none.

        Raises:
            ModelLoadError: it cannot be found or loaded.
            ConfigError: its library is not installed.
        """
        kind = self.encoder_class()
        if self.pooling is not None and kind is not VisionEncoder:
            raise ConfigError(f"item_features.{self.name}: pooling is for vision models of kind huggingface")
        options: dict[str, Any] = {"device": device, "revision": self.revision, "normalize": bool(self.normalize)}
        if self.pooling is not None:
            options["pooling"] = self.pooling
        if trust_remote_code and kind is not TimmEncoder:
            options["trust_remote_code"] = True
        return kind(self.encoder, **options)


def reads_summaries(specs: Mapping[str, Any]) -> bool:
    """Whether a feature of `item_features` is made of what the reasoning stage says of items."""
    return any(isinstance(settings, Mapping) and settings.get("on") == SUMMARY for settings in specs.values())


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
        specs: feature name -> its settings, see `FeatureSpec`.
        content: the items, padding first.
        compute: encodes what was not encoded before.
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
    open_encoder = partial(FeatureSpec.open_encoder, device=device, trust_remote_code=trust_remote_code)
    return {spec.name: _load(spec, content, compute, open_encoder, mllm_encoder, summaries) for spec in parsed}


def _load(
    spec: FeatureSpec,
    content: ItemContent,
    compute: ComputeVectors,
    open_encoder: Callable[[FeatureSpec], Encoder],
    mllm_encoder: Callable[[ItemContent], np.ndarray] | None,
    summaries: Sequence[str | None] | None,
) -> np.ndarray:
    if spec.file is not None:
        root = content.source.root or Path()
        ids = None if spec.ids is None else dataset_path(root, spec.ids, f"item_features.{spec.name}.ids")
        file = dataset_path(root, spec.file, f"item_features.{spec.name}.file")
        return align(*read_features(file, ids), content.tokens, spec.name)
    if spec.encoder != MLLM:
        return _encode(spec, content, compute, open_encoder, summaries)
    if mllm_encoder is None:
        raise ConfigError(f"item_features.{spec.name}: encoder: mllm needs a multimodal LLM; set mllm")
    vectors = np.asarray(mllm_encoder(content), dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != len(content):
        raise ValueError(f"the MLLM gave vectors of shape {vectors.shape} for {len(content)} items")
    return vectors


def _encode(
    spec: FeatureSpec,
    content: ItemContent,
    compute: ComputeVectors,
    open_encoder: Callable[[FeatureSpec], Encoder],
    summaries: Sequence[str | None] | None,
) -> np.ndarray:
    assert spec.on is not None
    items, hashes, load, carry = _inputs(spec, content, summaries)
    if not items:
        raise DataError(f"item_features.{spec.name}: no item has a usable {spec.on} for {spec.encoder}")
    encoder = open_encoder(spec)
    vectors, failed = compute(
        stage=f"{spec.on}_vector",
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


def _inputs(
    spec: FeatureSpec, content: ItemContent, summaries: Sequence[str | None] | None
) -> tuple[list[int], list[str], Callable[[int], Any], Callable[[int], Any]]:
    """Items that have what the encoder reads, its hash for each, and what loads it, here and to be sent elsewhere."""
    if spec.on == SUMMARY:
        if summaries is None:
            raise ConfigError(f"item_features.{spec.name}: on: summary needs item texts, and none are given")
        items = _longest_first({item: text for item, text in enumerate(summaries) if text})
        said = summaries.__getitem__
        return items, [summary_hash(summaries[item] or "") for item in items], said, said
    assert spec.on is not None
    view = content.only(spec.on)
    if spec.on == "image":
        items = [item for item in range(1, len(view)) if view.source.has_image(view.tokens[item])]
        source, tokens = view.source, view.tokens
        return (
            *(items, view.fingerprints(items), lambda item: source.image(tokens[item])),
            lambda item: ItemImage(source, tokens[item]).carried(),
        )
    items = _longest_first({item: text for item in range(1, len(view)) if (text := view.text(item)) is not None})
    return items, view.fingerprints(items), view.text, view.text


def summary_hash(text: str) -> str:
    """Content hash of an item's summary."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _longest_first(texts: Mapping[int, str]) -> list[int]:
    """So that a batch holds texts of similar length."""
    return sorted(texts, key=lambda item: len(texts[item]), reverse=True)
