"""`item_features`: named matrices of item vectors, from files or from pretrained encoders.

In YAML::

    item_features:
      text:    {encoder: sentence-transformers/all-MiniLM-L6-v2, on: text}
      image:   {encoder: google/vit-base-patch16-224-in21k, on: image}
      summary: {encoder: sentence-transformers/all-MiniLM-L6-v2, on: summary}
      visual:  {file: image_features.npy, ids: image_ids.txt}      # or a .safetensors file that carries its ids
      both:    {encoder: mllm}

`text` is the item's metadata; `summary` is the reasoning stage's text of the item: the metadata with an LLM's
description of the image, as the setting `item_text` asks (docs/reasoning.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from recbole_mm.config.kinds import FLAG, TEXT, choice, or_null, size
from recbole_mm.config.schema import Setting
from recbole_mm.data.content_source import MODALITIES
from recbole_mm.errors import ConfigError
from recbole_mm.utils.spelling import did_you_mean

MLLM = "mllm"
SUMMARY = "summary"
READABLE = (*MODALITIES, SUMMARY)
KINDS = {"sentence-transformers": ("text",), "huggingface": ("text", "image"), "timm": ("image",)}
"""Libraries of encoders -> what their models read."""
READ_KEYS = {
    "file": ("file", "ids", "on"),
    MLLM: ("encoder", "on"),
    "encoder": ("encoder", "on", "kind", "revision", "pooling", "normalize", "batch_size"),
}
"""What an entry is made of -> the keys that are read of it."""
NO_EFFECT = {"file": "on a file of vectors", MLLM: f"on encoder: {MLLM}", "encoder": "without a file"}
POOLINGS = ("auto", "pooler", "cls", "mean")
VALUES = {"normalize": FLAG, "batch_size": size(1), "pooling": choice(*POOLINGS)}
"""Kinds of the values that are no texts."""


@dataclass(frozen=True)
class FeatureSpec:
    """One entry of `item_features`.

    Attributes:
        name: the feature's name.
        file: precomputed vectors, `.npy` or `.safetensors`; relative to the dataset's folder.
        ids: item ids of the file's rows.
        encoder: hub id or folder of a pretrained encoder, or `mllm`.
        on: what the encoder reads: text, image or summary; of a file, what its vectors are of: text or image, by which
            `missing_rate` hides them.
        kind: sentence-transformers, huggingface or timm; None: the usual one for `on` and `encoder`.
        revision: of a hub model.
        pooling: of a huggingface vision model: auto, pooler, cls or mean.
        normalize: scale every vector to length 1.
        batch_size: inputs encoded at once.

    Example:
        >>> FeatureSpec.parse("looks", {"encoder": "google/vit-base-patch16-224-in21k", "on": "image"}).encoder_kind()
        'huggingface'
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
            Setting(f"item_features.{name}.{key}", or_null(VALUES.get(key, TEXT))).check(settings[key])
        spec = cls(name, **settings)
        if (spec.file is None) == (spec.encoder is None):
            raise ConfigError(f"item_features.{name}: give either file or encoder")
        of = "file" if spec.file is not None else MLLM if spec.encoder == MLLM else "encoder"
        for key in known:
            if getattr(spec, key) not in (None, False) and key not in READ_KEYS[of]:
                raise ConfigError(f"item_features.{name}: {key} has no effect {NO_EFFECT[of]}; leave it out")
        if spec.encoder not in (None, MLLM):
            spec.encoder_kind()
        elif spec.on == SUMMARY:
            raise ConfigError(f"item_features.{name}: on: summary needs an encoder of texts, no {MLLM} and no file")
        elif spec.file is not None and spec.on not in (None, *MODALITIES):
            raise ConfigError(f"item_features.{name}: on: {spec.on!r} is not accepted for a file; give image or text")
        return spec

    @property
    def stage(self) -> str:
        """Name of the stage in the artifact store."""
        return f"{self.on}_vector"

    @property
    def reads(self) -> str:
        """What its encoder is made for: text (summaries too) or image."""
        return "image" if self.on == "image" else "text"

    def encoder_kind(self) -> str:
        """The library of its encoder: `kind`, or the usual one for what it reads.

        Raises:
            ConfigError: `on` is missing, or there is no encoder of this `kind` for it.
        """
        if self.on not in READABLE:
            raise ConfigError(
                f"item_features.{self.name}: say what the encoder reads: on: summary, on: text or on: image"
            )
        kind = self.kind or ("sentence-transformers" if self.reads == "text" else "huggingface")
        if self.kind is None and self.on == "image" and str(self.encoder).startswith("timm/"):
            kind = "timm"
        if self.reads not in KINDS.get(kind, ()):
            choices = ", ".join(name for name, readable in KINDS.items() if self.reads in readable)
            raise ConfigError(
                f"item_features.{self.name}: kind {kind!r} does not read {self.on}; choose one of {choices}"
            )
        return kind


def reads_summaries(specs: Mapping[str, Any]) -> bool:
    """Whether a feature of `item_features` encodes the texts of the reasoning stage."""
    return any(isinstance(settings, Mapping) and settings.get("on") == SUMMARY for settings in specs.values())


def text_hash(text: str) -> str:
    """Returns the content hash of a text: SHA-256 in hex."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
