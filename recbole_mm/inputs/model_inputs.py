"""What a model asks for beside interactions: vectors of items and users, a multimodal LLM, what an LLM has written.

A model class names its needs in its hooks `requires` or `requirements` (see `models/base.py`); `provide` computes them
once through the artifact store and puts them into `dataset.inputs` (see `data/inputs.py`, which says what each
need brings), so that models see tensors and never a path or a cache.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as hub_logging

from recbole_mm import __version__
from recbole_mm.artifacts.executor import Executor
from recbole_mm.artifacts.store import Store
from recbole_mm.artifacts.vectors import vectors_through_store
from recbole_mm.data.content import ItemContent
from recbole_mm.data.inputs import ModelInputs
from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.inputs.answering.tuning import SftSettings, tuned_answerer
from recbole_mm.inputs.mirm.tuning import MirmSettings, tuned_mirm
from recbole_mm.inputs.needs import Asks, needed
from recbole_mm.inputs.reasoning import stage as reasoning
from recbole_mm.inputs.reasoning.left_out import LeftOut
from recbole_mm.inputs.reasoning.settings import ReasoningSettings
from recbole_mm.llm.encode import DEFAULT_TEXT_TOKENS, ItemEncoder, encode_items
from recbole_mm.llm.encode_remote import carried_encoding
from recbole_mm.llm.features import load_features
from recbole_mm.llm.item_tokens import tokenize_items
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pretrained import find_encoder
from recbole_mm.llm.texts.backends import open_generator
from recbole_mm.llm.texts.generator import Request
from recbole_mm.llm.texts.stage import TextReport, texts_through_store
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.utils.files import make_folder

logger = logging.getLogger(__name__)

OF_THE_MLLM = ("mllm", "mllm_with_head", "item_vectors", "item_text_vectors", "item_tokens")
NEEDS = (*OF_THE_MLLM, "answering_mllm", "answer_writer", "id_model_run", *reasoning.NEEDS)


def artifact_dir(config) -> Path:
    """Folder of everything computed offline: `artifact_dir`, or `<checkpoint_dir>/artifacts`."""
    return Path(config["artifact_dir"] or Path(config["checkpoint_dir"]) / "artifacts")


def open_store(config) -> Store:
    """The artifact store that this run reads and fills."""
    folder = artifact_dir(config)
    make_folder(folder)
    return Store(folder / "artifacts.sqlite")


def open_mllm(config, dataset, with_head: bool = False, without_weights: bool = False) -> MLLM:
    """The multimodal LLM of `mllm`, fine-tuned first where `mirm_tuning` asks for it.

    `tiny`, or `tiny-<family>`, is built from the dataset's item texts if it is not there yet.

    Args:
        config: of the run.
        dataset: loaded; not yet split where the model is to be fine-tuned.
        with_head: load its language-model head too.
        without_weights: read no weights, for prompts and the model's identity.

    Raises:
        ModelLoadError: the model cannot be found or loaded.
        ConfigError: settings of the fine-tuning that are not accepted or do not fit together.
    """
    settings = MirmSettings.of(config)
    name, load = _base_mllm(config, dataset)
    if settings.tuning != "none":
        name = str(tuned_mirm(config, dataset, settings, name, load, artifact_dir(config)))
    return load(name, dtype=config["mllm_dtype"] or "auto", with_head=with_head, without_weights=without_weights)


def open_answering_mllm(config, dataset, hooks: type[Asks]) -> MLLM:
    """The multimodal LLM of `mllm` with its head, fine-tuned first to answer the prompts of a model unless `sft_tuning`
    is none.

    Args:
        config: of the run.
        dataset: loaded and not yet split, with what the prompts tell.
        hooks: of the model; its `build_prompt` makes the prompt.

    Raises:
        ModelLoadError: the model cannot be found or loaded.
        ConfigError, DataError: settings that are not accepted or do not fit together, or nothing to learn from.
    """
    settings = SftSettings.of(config)
    name, load = _base_mllm(config, dataset)
    if settings.tuning != "none":
        prompt_of = partial(hooks.build_prompt, config, dataset)
        name = str(tuned_answerer(config, dataset, settings, name, load, artifact_dir(config), prompt_of))
    return load(name, dtype=config["mllm_dtype"] or "auto", with_head=True)


def text_writer(config, dataset) -> Callable[[str, Mapping[Any, Request]], TextReport[Any]]:
    """`write(stage, requests)`: `text_backend` through the artifact store, whenever it is called; the model is loaded
    with the first text that is not there yet."""
    generator = open_generator(config, partial(open_mllm, config, dataset, with_head=True))

    def write(stage: str, requests: Mapping[Any, Request]) -> TextReport[Any]:
        with open_store(config) as store:
            return texts_through_store(store, stage, generator, requests, show_progress=False)

    return write


def _base_mllm(config, dataset) -> tuple[str, Callable[..., MLLM]]:
    """Folder or hub id of `mllm`, the tiny one built if it is not there yet; and what loads a model for the run."""
    hub_logging.disable_progress_bar()  # transformers' bars for every file it reads or writes
    name, family = config["mllm"], tiny_family(config["mllm"])
    if family is not None:
        name = str(tiny_mllm(config, dataset, family))
        logger.warning(
            "mllm: %s is a real %s architecture, but UNTRAINED: its vectors know no more of images and words than "
            "random features do. Pass --mllm=Qwen/Qwen2-VL-2B-Instruct, or a folder, for a trained one.",
            config["mllm"],
            family,
        )
    return name, partial(load_mllm, device=config["device"], trust_remote_code=bool(config["trust_remote_code"]))


def tiny_family(name: str) -> str | None:
    """`model_type` of the tiny MLLM of this name (`tiny`, `tiny-internvl`); None for a trained model."""
    if name == "tiny":
        return "qwen2_vl"
    if name.startswith("tiny-") and not Path(name).exists():
        return name.removeprefix("tiny-").replace("-", "_")
    return None


def tiny_mllm(config, dataset, family: str = "qwen2_vl") -> Path:
    """Folder of the tiny MLLM for this dataset's texts and seed; built on first use."""
    folder, corpus = tiny_folder(config, dataset, family)
    return folder if folder.is_dir() else build_tiny(corpus, folder, seed=config["seed"], family=family)


def tiny_folder(config, dataset, family: str = "qwen2_vl") -> tuple[Path, list[str]]:
    """Where that folder is, built or not, and the texts that make its vocabulary."""
    corpus = [text for text in (dataset.content.text(i) for i in range(1, len(dataset.content))) if text]
    if not corpus:
        corpus = [str(token) for token in dataset.item_tokens()[1:]]
    corpus.sort()  # RecBole's numbers follow the order of all rows, those held out too
    digest = hashlib.sha256("\0".join([__version__, str(config["seed"]), *corpus]).encode()).hexdigest()[:16]
    name = "tiny" if family == "qwen2_vl" else f"tiny-{family}"
    return artifact_dir(config) / f"{name}-{digest}", corpus


def encode_with_mllm(
    config, content: ItemContent, store: Store, mllm: MLLM, executor: Executor | None = None
) -> np.ndarray:
    """MIRM vectors of all items, float32 (n_items, h), row 0 zeros (Molar, Eq. 1)."""
    encoder = ItemEncoder(
        mllm,
        image_pixels=config["mllm_image_pixels"],
        max_text_tokens=config["max_text_tokens"] or DEFAULT_TEXT_TOKENS,
    )
    carry = None
    if executor is not None:
        carry = partial(carried_encoding, trust_remote_code=bool(config["trust_remote_code"]))
    return encode_items(content, encoder, store, config["show_progress"], executor, carry)


def provide(
    config,
    dataset,
    hooks: type[Asks],
    run_dir: Path | None = None,
    open_executor: Callable[[], AbstractContextManager[Executor | None]] = nullcontext,
    **given: Any,
) -> None:
    """Set `dataset.inputs` to what a model needs, and the features of `item_features`.

    Features that a RecBole feature model selects (`selected_features`) also become fields of its item table.

    Args:
        config: of the run.
        dataset: loaded and not yet split.
        hooks: of the model, whose needs count.
        run_dir: the run's folder, which remembers the texts that it had to do without.
        open_executor: opens what computes stages on other machines; by default they are computed in this process.
        given: inputs that are there already: `first_stage` and `id_model_run`.

    Raises:
        ConfigError: the model requires something unknown here.
    """
    needs = needed(config, hooks)
    if unknown := set(needs) - set(NEEDS):
        raise ConfigError(f"model {hooks.__name__} requires {sorted(unknown)}, which nothing provides")
    specs = config["item_features"] or {}
    provided: dict[str, Any] = {"model": hooks.__name__, **given}
    if not needs and not specs:
        dataset.inputs = ModelInputs(**provided)
        return
    counts = np.bincount(dataset.inter_feat[dataset.iid_field], minlength=dataset.item_num)
    logger.info("%s", dataset.content.coverage(counts))
    if "answering_mllm" in needs:
        SftSettings.of(config)
    if set(needs) & set(reasoning.ENCODED):
        _find_sentence_encoder(ReasoningSettings.of(config).sentence_encoder)
    mllm = None
    if set(needs) & set(OF_THE_MLLM):
        mllm = open_mllm(config, dataset, with_head="mllm_with_head" in needs)
    with open_executor() as executor, open_store(config) as store:
        if mllm is not None:
            provided |= _from_mllm(config, dataset.content, store, mllm, needs, executor)
        if set(needs) & set(reasoning.NEEDS):
            provided |= _from_texts(config, dataset, store, needs, LeftOut(run_dir), executor)
        summaries = provided.get("item_texts")
        provided["item_features"] = _features(config, dataset, store, specs, mllm, summaries, executor)
    if "answering_mllm" in needs:
        dataset.inputs = ModelInputs(**provided)  # what prompts tell
        provided["mllm"] = open_answering_mllm(config, dataset, hooks)
    if "answer_writer" in needs:
        name, load = _base_mllm(config, dataset)
        provided["mllm"] = load(name, with_head=True, without_weights=True)
        provided["write_texts"] = text_writer(config, dataset)
    dataset.inputs = ModelInputs(**provided)
    for name in set(specs) & set(config["selected_features"] or ()):
        dataset.declare_feature_field(name, torch.from_numpy(dataset.item_feature(name)))
    dataset.content.report_problems()


def _from_mllm(
    config, content: ItemContent, store: Store, mllm: MLLM, needs: Sequence[str], executor: Executor | None
) -> dict[str, Any]:
    """The MLLM and what it or its tokenizer makes of the items, by its name in `ModelInputs`."""
    provided: dict[str, Any] = {"mllm": mllm} if {"mllm", "mllm_with_head"} & set(needs) else {}
    if "item_vectors" in needs:
        provided["item_vectors"] = encode_with_mllm(config, content, store, mllm, executor)
    if "item_text_vectors" in needs:
        provided["item_text_vectors"] = encode_with_mllm(config, content.only("text"), store, mllm, executor)
    if "item_tokens" in needs:
        tokens = tokenize_items(content, mllm, config["max_text_tokens"] or DEFAULT_TEXT_TOKENS)
        provided["item_token_ids"], provided["item_token_lengths"] = tokens
    return provided


def _find_sentence_encoder(name: str) -> None:
    """Stop before anything is written where the encoder of it cannot be had."""
    try:
        find_encoder(name)
    except ModelLoadError as error:
        raise ModelLoadError(f"sentence_encoder: {error}") from error


def _from_texts(
    config, dataset, store: Store, needs: Sequence[str], left_out: LeftOut, executor: Executor | None
) -> dict[str, Any]:
    """What is written of items and users, or its vectors, by its name in `ModelInputs`."""
    load = partial(open_mllm, config, dataset, with_head=True)
    generator = open_generator(config, load, executor, partial(load, without_weights=True))
    stage = reasoning.Reasoning(config, dataset, store, artifact_dir(config), generator, left_out, executor)
    return stage.provide(needs)


def _features(
    config,
    dataset,
    store: Store,
    specs: Mapping[str, Any],
    mllm: MLLM | None,
    summaries: Sequence[str | None] | None,
    executor: Executor | None,
) -> dict[str, np.ndarray]:
    def with_mllm(content: ItemContent) -> np.ndarray:
        return encode_with_mllm(config, content, store, mllm or open_mllm(config, dataset), executor)

    compute = partial(vectors_through_store, store, show_progress=config["show_progress"], executor=executor)
    trust = bool(config["trust_remote_code"])
    return load_features(specs, dataset.content, compute, config["device"], with_mllm, summaries, trust)
