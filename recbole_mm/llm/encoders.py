"""Pretrained encoders: texts or images to vectors. Frozen, in float32, one vector per input."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from recbole_mm.artifacts.vectors import Encoder
from recbole_mm.data.features import POOLINGS, FeatureSpec
from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.llm.families import FAMILIES
from recbole_mm.llm.pretrained import (
    Pretrained,
    check_identity,
    code_identity,
    find_encoder,
    load_errors,
    open_pretrained,
    published,
)
from recbole_mm.utils.files import parse_json

WEIGHTS_MISSING_SHOWN = 3
TIMM_SETTINGS = (
    *("input_size", "min_input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std"),
    *("num_classes", "pool_size", "first_conv", "classifier", "license", "tag"),
)
"""What a model's folder may say of it to timm. The others name other places of weights, or another way to read them."""


@dataclass(frozen=True)
class EncoderRecipe:
    """How an encoder was made: makes the same on another machine, from its folder under the same path or from the hub.

    Attributes:
        kind: name of its class.
        name: folder or hub id.
        revision: of a hub model.
        identity: that it must have.
        options: others of the class, by name.
    """

    kind: str
    name: str
    revision: str | None
    identity: str
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, kind: type, name: str, identity: str, **options: Any) -> EncoderRecipe:
        """That of an encoder which is being made."""
        return cls(kind.__name__, *published(name, identity), identity, tuple(sorted(options.items())))

    def open(self, device: str) -> Encoder:
        """Load the model.

        Raises:
            ModelLoadError: it is not there, cannot be loaded, or is another one.
            ConfigError: its library is not installed.
        """
        kind = next(kind for kind in (SentenceEncoder, VisionEncoder, TimmEncoder) if kind.__name__ == self.kind)
        encoder = kind(self.name, device=device, revision=self.revision, **dict(self.options))
        check_identity(self.name, encoder.identity, self.identity)
        return encoder


class SentenceEncoder:
    """A text model of sentence-transformers; a plain transformer without pooling settings gets mean pooling.

    Args:
        name: hub id or folder, such as `sentence-transformers/all-MiniLM-L6-v2`.
        device: where it runs.
        revision: of a hub model.
        normalize: scale every vector to length 1, beyond what the model itself does.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ModelLoadError: the model cannot be found or loaded.
    """

    def __init__(
        self,
        name: str,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        normalize: bool = False,
        trust_remote_code: bool = False,
    ):
        found = find_encoder(name, revision, trust_remote_code)
        library = _library("sentence_transformers", "sentence-transformers")
        with load_errors(name):
            self._model = _open_sentence_model(library, name, found, device, trust_remote_code)
        reads = getattr(self._model, "modalities", ["text"])  # older versions read texts alone
        if "text" not in reads:
            raise ModelLoadError(
                f"{name}: it reads {', '.join(map(str, reads))}, and no texts; name an encoder of texts"
            )
        self.identity = found.identity
        self._normalize = normalize
        self.parameters = vector_parameters("sentence-transformers", found, normalize, None, trust_remote_code)
        options = {"normalize": normalize, **_trust(self.parameters)}
        self.recipe = EncoderRecipe.of(type(self), name, found.identity, **options)

    def encode(self, inputs: list[str]) -> np.ndarray:
        vectors = self._model.encode(
            inputs,
            batch_size=max(len(inputs), 1),
            convert_to_numpy=True,
            normalize_embeddings=self._normalize,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)


def _open_sentence_model(
    library: ModuleType, name: str, found: Pretrained, device: str | torch.device, trust_remote_code: bool
) -> Any:
    # A model's sentence_bert_config.json may ask for others; these win.
    weights = {"use_safetensors": True, "weights_only": True}
    return open_pretrained(
        library.SentenceTransformer, name, found.folder, trust_remote_code, device=str(device), model_kwargs=weights
    )


class VisionEncoder:
    """A vision model of transformers (ViT, DINOv2, CLIP, SigLIP, ConvNeXT, ...), with its own image processor.

    Args:
        name: hub id or folder.
        device: where it runs.
        revision: of a hub model.
        normalize: scale every vector to length 1.
        pooling: `pooler`: the model's pooled output; `cls`: its first token; `mean`: the mean over all patch tokens;
            `auto`: the pooled output, or the mean where the model has none or the checkpoint lacks its weights.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        ConfigError: `pooling` is unknown, or it is a model of timm, which is not installed.
        ModelLoadError: the model cannot be found or loaded, is a multimodal LLM, or its checkpoint lacks weights.
    """

    def __init__(
        self,
        name: str,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        normalize: bool = False,
        pooling: str = "auto",
        trust_remote_code: bool = False,
    ):
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling: {pooling!r} is none of {', '.join(POOLINGS)}")
        found = find_encoder(name, revision, trust_remote_code)
        described = _described(found)
        if "architecture" in described and "model_type" not in described:  # of timm, which transformers then wraps
            _library("timm", "timm")
        if described.get("model_type") in FAMILIES:
            raise ModelLoadError(f"{name}: a multimodal LLM; have it encode with {{encoder: mllm}} and --mllm={name}")
        with load_errors(name):
            self._processor, model, lacking = _open_vision_model(name, found, trust_remote_code)
        without_pooler = [weight for weight in lacking if "pooler" not in weight]
        if without_pooler or (lacking and pooling == "pooler"):
            shown = ", ".join((without_pooler or lacking)[:WEIGHTS_MISSING_SHOWN])
            raise ModelLoadError(f"{name}: the checkpoint lacks {len(lacking)} weights of the model, such as {shown}")
        self._device = device
        self._model = model.to(device)
        # A pooler that the checkpoint does not hold is random: its vectors would differ from run to run.
        self._pooling = "mean" if pooling == "auto" and lacking else pooling
        self.identity = found.identity
        self._normalize = normalize
        self.parameters = vector_parameters("huggingface", found, normalize, self._pooling, trust_remote_code)
        options = {"normalize": normalize, "pooling": pooling, **_trust(self.parameters)}
        self.recipe = EncoderRecipe.of(type(self), name, found.identity, **options)

    def encode(self, inputs: list[Image.Image]) -> np.ndarray:
        pixels = self._processor(images=inputs, return_tensors="pt")["pixel_values"].to(self._device)
        with torch.inference_mode():
            vectors = self._pooled(pixels)
        return _finished(vectors, self._normalize)

    def _pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, height, width) -> (n, d)."""
        if hasattr(self._model, "get_image_features") and self._pooling in ("auto", "pooler"):
            features = self._model.get_image_features(pixel_values=pixels)
            return features if not hasattr(features, "pooler_output") else features.pooler_output
        model = getattr(self._model, "vision_model", self._model)
        output = model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        if self._pooling in ("auto", "pooler") and pooled is not None:
            return pooled.flatten(1)
        if self._pooling == "pooler":
            raise ModelLoadError(f"{type(model).__name__} has no pooled output; set pooling to cls or mean")
        return _pool_tokens(output.last_hidden_state, self._pooling, _prefix_tokens(model))


def vector_parameters(
    kind: str,
    found: Pretrained,
    normalize: bool = False,
    pooling: str | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Returns the settings that an encoder's vectors depend on, for artifact keys; no weights are read.

    Args:
        kind: sentence-transformers, huggingface or timm.
        found: the encoder's files.
        normalize: every vector is scaled to length 1.
        pooling: of a vision model of transformers.
        trust_remote_code: Python code that comes with the model is run, so vectors depend on it.
    """
    code = code_identity(found.folder) if trust_remote_code else None
    pooled = {} if pooling is None else {"pooling": pooling}
    return {"kind": kind, **pooled, "normalize": normalize, **({} if code is None else {"code": code})}


def possible_parameters(spec: FeatureSpec, found: Pretrained, trust_remote_code: bool = False) -> list[dict[str, Any]]:
    """Returns what the parameters of a feature's encoder can be, as far as that is known without loading it.

    Two for a vision model that may lack a pooler, else one.

    Args:
        spec: of `item_features`, with an encoder other than `mllm`.
        found: the encoder's files.
        trust_remote_code: as for `open_encoder`.
    """
    kind, normalize = spec.encoder_kind(), bool(spec.normalize)
    if kind == "timm":
        return [vector_parameters(kind, found, normalize)]
    if spec.reads == "text":
        return [vector_parameters("sentence-transformers", found, normalize, None, trust_remote_code)]
    poolings = ("auto", "mean") if spec.pooling in (None, "auto") else (spec.pooling,)
    return [vector_parameters(kind, found, normalize, each, trust_remote_code) for each in poolings]


def _trust(parameters: Mapping[str, Any]) -> dict[str, bool]:
    """An option of a recipe: the same code is run on another machine."""
    return {"trust_remote_code": True} if "code" in parameters else {}


def _described(found: Pretrained) -> dict[str, Any]:
    """A model's config.json; {} where it cannot be read, which is an error when the model is loaded."""
    try:
        described = parse_json((found.folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return described if isinstance(described, dict) else {}


def _open_vision_model(name: str, found: Pretrained, trust_remote_code: bool) -> tuple[Any, Any, list[str]]:
    """Image processor, model in evaluation mode, and the names of the weights that the checkpoint lacks."""
    processor = open_pretrained(
        AutoImageProcessor.from_pretrained, name, found.folder, trust_remote_code, backend="pil"
    )
    # Weights that are lacking start at random; that must not advance the caller's generator.
    with torch.random.fork_rng(devices=[]):
        options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        model, report = open_pretrained(AutoModel.from_pretrained, name, found.folder, trust_remote_code, **options)
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    return processor, model.eval(), lacking


def _prefix_tokens(model: Any) -> int:
    """How many tokens stand before the patches: the class token and any register tokens."""
    embeddings = getattr(model, "embeddings", None)
    names = ("cls_token", "class_embedding")
    classes = sum(1 for name in names if getattr(embeddings, name, None) is not None)
    return classes + int(getattr(model.config, "num_register_tokens", 0) or 0)


def _pool_tokens(states: torch.Tensor, pooling: str, prefix: int) -> torch.Tensor:
    """(n, tokens, d), or (n, d, rows, columns) of a convolutional model, -> (n, d)."""
    if states.ndim == 4:
        return states.flatten(2).mean(2)
    return states[:, 0] if pooling == "cls" else states[:, prefix:].mean(1)


class TimmEncoder:
    """A vision model of timm, without its classifier: the pooled features and the model's own transform.

    Args:
        name: a hub id such as `timm/vit_small_patch14_dinov2.lvd142m`, or a folder with `config.json` and
            `model.safetensors`.
        device: where it runs.
        revision: of a hub model.
        normalize: scale every vector to length 1.

    Raises:
        ConfigError: timm is not installed.
        ModelLoadError: the model cannot be found or loaded.
    """

    def __init__(
        self, name: str, device: str | torch.device = "cpu", revision: str | None = None, normalize: bool = False
    ):
        timm = _library("timm", "timm")
        found = find_encoder(name, revision)
        with load_errors(name):
            self._model, self._transform = _open_timm_model(timm, found)
        self._device = device
        self._model = self._model.to(device)
        self.identity = found.identity
        self._normalize = normalize
        self.parameters = vector_parameters("timm", found, normalize)
        self.recipe = EncoderRecipe.of(type(self), name, found.identity, normalize=normalize)

    def encode(self, inputs: list[Image.Image]) -> np.ndarray:
        pixels = torch.stack([self._transform(image) for image in inputs]).to(self._device)
        with torch.inference_mode():
            vectors = self._model(pixels)
        return _finished(vectors, self._normalize)


def _open_timm_model(timm: ModuleType, found: Pretrained) -> tuple[Any, Any]:
    """Model in evaluation mode and its transform from an RGB image to a (3, height, width) tensor."""
    described = parse_json((found.folder / "config.json").read_text(encoding="utf-8"))
    architecture, given = described["architecture"], described.get("pretrained_cfg", {})
    if not re.fullmatch(r"[\w.]+", architecture):  # timm would take hf-hub:... and local-dir:... for other places
        raise ValueError(f"its config.json names no architecture of timm: {architecture!r}")
    settings = {key: given[key] for key in TIMM_SETTINGS if key in given}
    settings["file"] = str(found.folder / "model.safetensors")
    with torch.random.fork_rng(devices=[]):
        model = timm.create_model(architecture, pretrained=True, pretrained_cfg=settings, num_classes=0)
    model = model.eval()
    data = import_module("timm.data")
    return model, data.create_transform(**data.resolve_model_data_config(model), is_training=False)


def _finished(vectors: torch.Tensor, normalize: bool) -> np.ndarray:
    vectors = vectors.float()
    if normalize:
        vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return vectors.cpu().numpy()


def _library(module: str, package: str) -> ModuleType:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"this encoder needs {package}, which is not installed: pip install {package}") from error


def open_encoder(spec: FeatureSpec, device: str | torch.device = "cpu", trust_remote_code: bool = False) -> Encoder:
    """Load the pretrained model of a feature.

    Args:
        spec: of `item_features`, with an encoder other than `mllm`.
        device: where it runs.
        trust_remote_code: run Python code that comes with it; models of timm have none.

    Raises:
        ModelLoadError: it cannot be found or loaded.
        ConfigError: its library is not installed, or the settings do not fit it.
    """
    kind = spec.encoder_kind()
    if spec.pooling is not None and (kind, spec.reads) != ("huggingface", "image"):
        raise ConfigError(f"item_features.{spec.name}: pooling is for vision models of kind huggingface")
    name, revision, normalize = str(spec.encoder), spec.revision, bool(spec.normalize)
    if kind == "timm":
        return TimmEncoder(name, device, revision, normalize)
    if spec.reads == "text":
        return SentenceEncoder(name, device, revision, normalize, trust_remote_code)
    return VisionEncoder(name, device, revision, normalize, spec.pooling or "auto", trust_remote_code)
