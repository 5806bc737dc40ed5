"""Models as far as they can be known without their weights: names, hashes and tokenizers, for `recbole-mm plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

from recbole_mm.artifacts.store import artifact_key
from recbole_mm.data.content import ItemContent
from recbole_mm.data.features import MLLM, SUMMARY, FeatureSpec, summary_hash
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.model_inputs import tiny_family, tiny_folder
from recbole_mm.inputs.reasoning.estimate import Estimate, PlannedStage
from recbole_mm.inputs.reasoning.vectors import known_identity
from recbole_mm.llm.encode import DEFAULT_TEXT_TOKENS, runs_in_bfloat16, vector_key, vector_parameters
from recbole_mm.llm.family import plain_token_ids
from recbole_mm.llm.loading import weights_dtype
from recbole_mm.llm.pretrained import Pretrained
from recbole_mm.llm.prompts import ItemPrompt
from recbole_mm.llm.texts.backends import open_generator, writing_of
from recbole_mm.llm.texts.generator import Generator, Request
from recbole_mm.llm.texts.hf import IMAGE_PIXELS, HfGenerator
from recbole_mm.llm.texts.writers import check_writes, read_tokenizer

SMALL_FILES = ("*.json", "*.txt", "*.jinja", "*.model")
"""Configuration and tokenizer of a model on the hub, without its weights."""
CHARACTERS_PER_TOKEN = 4


def _refuse(*_: Any) -> NoReturn:
    raise AssertionError("a plan loads no weights")


class UnknownWriter:
    """Stands for a model of which nothing is known here: it has written nothing, and its tokens are estimated."""

    identity = ""
    makes: Literal["answers"] = "answers"

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}

    def generate(self, requests: list[Request]) -> NoReturn:
        """Never called."""
        _refuse()

    def count_tokens(self, text: str) -> int:
        """Characters / 4."""
        return -(-len(text) // CHARACTERS_PER_TOKEN)

    def close(self) -> None:
        """Nothing is held open."""


def unloaded_generator(config: Any, dataset: Any, notes: list[str]) -> Generator:
    """The generator of a run, to ask for its identity and its count of tokens; it cannot write.

    Args:
        config: of the run.
        dataset: its item texts name the tiny model.
        notes: what cannot be told is added here.

    Raises:
        ConfigError, ModelLoadError: what the run would stop at, too.
    """
    if config["text_backend"] != "hf":
        return open_generator(config, _refuse)
    own = config["text_model"] is None or config["text_model"] == config["mllm"]
    source = run_mllm(config, dataset, notes) if own else small_source(str(config["text_model"]), notes)
    if source is None:
        return UnknownWriter()
    if source.is_adapter:
        notes.append(f"{source.name} is an adapter: what it has written already shows when it is loaded")
        return UnknownWriter()
    check_writes(source.name, source.folder)
    device = torch.device(config["device"])
    token_ids = plain_token_ids(read_tokenizer(source, bool(config["trust_remote_code"])))
    return HfGenerator(
        _refuse,
        writing_of(config),
        config["text_batch_tokens"],
        int(config["mllm_image_pixels"] or IMAGE_PIXELS),
        source.identity,
        str(weights_dtype(config["mllm_dtype"] or "auto", device)).removeprefix("torch."),
        count=lambda text: len(token_ids(text)),
    )


def run_mllm(config: Any, dataset: Any, notes: list[str]) -> Pretrained | None:
    """The files of the run's own multimodal LLM, `mllm`; None, with a note, where they are not there yet."""
    if (config["mirm_tuning"] or "none") != "none":
        notes.append(f"mirm_tuning: {config['mirm_tuning']}: the MLLM is fine-tuned first, which is not estimated here")
        return None
    family = tiny_family(config["mllm"])
    if family is None:
        return small_source(config["mllm"], notes)
    folder, _ = tiny_folder(config, dataset, family)
    if folder.is_dir():
        return Pretrained(str(folder), folder)
    notes.append(f"mllm: {config['mllm']} is not built yet: tokens are estimated from characters")
    return None


def small_source(name: str, notes: list[str]) -> Pretrained | None:
    """A model's folder, or the configuration and tokenizer of one on the hub; None, with a note, without either."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Pretrained(name, folder)
    try:
        snapshot = Path(snapshot_download(name, allow_patterns=list(SMALL_FILES)))
    except (LocalEntryNotFoundError, HFValidationError, HTTPError, OSError):
        notes.append(f"{name} is neither here nor can it be asked about: everything of it counts as to do")
        return None
    return Pretrained(name, snapshot, snapshot.name)


def mllm_stages(config: Any, dataset: Any, store: Any, needs: Sequence[str], notes: list[str]) -> list[PlannedStage]:
    """Item vectors of the run's multimodal LLM, for the needs `item_vectors` and `item_text_vectors`."""
    wanted = [need for need in ("item_vectors", "item_text_vectors") if need in needs]
    if not wanted:
        return []
    source = run_mllm(config, dataset, notes)
    planned = []
    for need in wanted:
        view = dataset.content.only("text") if need == "item_text_vectors" else dataset.content
        planned.append(_item_vectors(config, view, store, source, need.replace("_", " ")))
    return planned


def _item_vectors(config: Any, content: ItemContent, store: Any, source: Pretrained | None, name: str) -> PlannedStage:
    prints = set(content.fingerprints(range(1, len(content))))
    pixels = config["mllm_image_pixels"]
    if source is None or source.is_adapter or pixels is None:
        return PlannedStage(name, str(config["mllm"]), None, len(prints), at_most=True)
    device = torch.device(config["device"])
    dtype = weights_dtype(config["mllm_dtype"] or "auto", device)
    text_tokens = int(config["max_text_tokens"] or DEFAULT_TEXT_TOKENS)
    parameters = vector_parameters(int(pixels), text_tokens, dtype, runs_in_bfloat16(dtype, device))
    keys = [vector_key(source.identity, ItemPrompt(), parameters, each) for each in prints]
    done = len(store.contains(keys))
    return PlannedStage(name, str(config["mllm"]), done, len(prints) - done)


def feature_stages(
    config: Any,
    dataset: Any,
    store: Any,
    specs: Mapping[str, Any],
    notes: list[str],
    estimate: Estimate | None = None,
) -> list[PlannedStage]:
    """Vectors of `item_features` that an encoder makes; those of a file are there.

    Args:
        config: of the run.
        dataset: loaded.
        store: of artifacts, read only.
        specs: `item_features`.
        notes: what cannot be told is added here.
        estimate: of the reasoning stage, for features `on: summary`.
    """
    planned = []
    for name, settings in specs.items():
        spec = FeatureSpec.parse(name, settings)
        label = f"feature {name}"
        if spec.file is not None:
            continue
        if spec.encoder == MLLM:
            planned.append(_item_vectors(config, dataset.content, store, run_mllm(config, dataset, notes), label))
            continue
        if spec.on is None:
            raise ConfigError(f"item_features.{name}: on is missing: image, text or summary")
        prints, unknown = _feature_inputs(dataset, spec, estimate)
        identity = None if spec.on == "image" else known_identity(str(spec.encoder), spec.revision)
        if identity is None:
            planned.append(PlannedStage(label, str(spec.encoder), None, len(prints) + unknown, at_most=True))
            continue
        parameters = {"kind": "sentence-transformers", "normalize": bool(spec.normalize)}
        keys = [artifact_key(f"{spec.on}_vector", identity, "", parameters, each) for each in prints]
        done = len(store.contains(keys))
        to_do = len(prints) - done + unknown
        planned.append(PlannedStage(label, str(spec.encoder), done, to_do, at_most=bool(unknown)))
    return planned


def _feature_inputs(dataset: Any, spec: FeatureSpec, estimate: Estimate | None) -> tuple[set[str], int]:
    """Hashes of what an encoder reads, as far as they are known, and how many are not."""
    if spec.on == SUMMARY:
        assert estimate is not None, "a feature of summaries is what item texts are needed for"
        return {summary_hash(text) for text in estimate.summaries if text}, len(estimate.unwritten)
    view = dataset.content.only(spec.on)
    has = {"image": lambda item: view.source.has_image(view.tokens[item]), "text": view.text}[str(spec.on)]
    return set(view.fingerprints([item for item in range(1, len(view)) if has(item)])), 0
