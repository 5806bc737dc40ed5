"""The backends of text generation, chosen by `text_backend`.

| `text_backend` | what writes | reads images |
|---|---|---|
| `template` | no LLM: a fixed text made of metadata | no |
| `hf` | a model that transformers runs here | yes, if it is a multimodal one |
| `openai` | any OpenAI-compatible server: vLLM, SGLang, Ollama, `transformers serve`, ... | if its model does |
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch

from recbole_mm.artifacts.executor import Executor
from recbole_mm.errors import ConfigError
from recbole_mm.llm.texts.generator import Generator, TemplateGenerator, Writing

if TYPE_CHECKING:  # importing it for real would load transformers, which two of the backends do without
    from recbole_mm.llm.model import MLLM
    from recbole_mm.llm.pretrained import Pretrained
    from recbole_mm.llm.texts.hf import HfGenerator, Outline
    from recbole_mm.llm.texts.writers import Writer

logger = logging.getLogger(__name__)


def open_generator(
    config,
    load_mllm: Callable[[], MLLM],
    executor: Executor | None = None,
    outline_mllm: Callable[[], MLLM] | None = None,
    find: Callable[..., Pretrained] | None = None,
) -> Generator:
    """The generator of `text_backend`.

    Nothing costly happens here: models are loaded, and servers asked, when the first text is wanted.

    Args:
        config: the run's configuration.
        load_mllm: loads the run's own multimodal LLM (`mllm`) with its head; called only by `hf` without `text_model`.
        executor: remote workers that write the texts of `hf`; None writes them in this process.
        outline_mllm: as `load_mllm`, without weights; needed with an executor.
        find: finds the files of `text_model` for `hf`; by default a hub model is downloaded.

    Raises:
        ConfigError: a setting that the backend needs and lacks, or an address or a key that cannot be one.
        ModelLoadError: `text_model` names no model that writes.
    """
    backend, model, url = config["text_backend"], config["text_model"], config["text_url"]
    writing = writing_of(config)
    if executor is not None and backend != "hf":
        logger.info("text_backend: %s works in this process; ray_address is for models that write (hf)", backend)
    if backend == "template":
        return TemplateGenerator()
    if backend == "hf":
        return _open_hf(config, load_mllm, executor, outline_mllm, find)
    from recbole_mm.llm.texts.openai import OpenAIGenerator, Server, read_key

    if model is None:
        raise ConfigError("text_backend: openai needs text_model: the name the server knows its model by")
    if url is None:
        raise ConfigError("text_backend: openai needs text_url: its address, e.g. http://localhost:8000/v1")
    return OpenAIGenerator(
        Server(
            url,
            model,
            key=read_key(config["text_api_key_env"]),
            concurrency=config["text_concurrency"],
            timeout=config["text_timeout"],
            retries=config["text_retries"],
        ),
        writing,
    )


def _open_hf(
    config,
    load_run_mllm: Callable[[], MLLM],
    executor: Executor | None,
    outline_run_mllm: Callable[[], MLLM] | None,
    find: Callable[..., Pretrained] | None,
) -> HfGenerator:
    """The generator of `text_backend: hf`: `text_model`, or the run's own multimodal LLM; see `open_generator`."""
    from recbole_mm.llm.loading import load_mllm, weights_dtype
    from recbole_mm.llm.pretrained import find_llm
    from recbole_mm.llm.texts.hf import IMAGE_PIXELS, HfGenerator, Outline
    from recbole_mm.llm.texts.hf_remote import RemoteHfGenerator
    from recbole_mm.llm.texts.writers import check_writes, multimodal_writer, read_context, read_tokenizer, text_writer
    from recbole_mm.llm.tokens import plain_token_ids

    model, trust, device = config["text_model"], bool(config["trust_remote_code"]), torch.device(config["device"])
    pixels = int(config["mllm_image_pixels"] or IMAGE_PIXELS)
    multimodal, read, read_outline = True, load_run_mllm, outline_run_mllm
    outline: Callable[[], Outline] | None = None
    if model is not None and model != config["mllm"]:
        source = (find or find_llm)(model, None, check_writes, trust)
        dtype = str(weights_dtype(config["mllm_dtype"] or "auto", device)).removeprefix("torch.")
        multimodal = source.is_adapter or check_writes(model, source.folder)
        read = partial(load_mllm, model, device, dtype, trust, with_head=True)
        read_outline = partial(read, without_weights=True)
        if not source.is_adapter:  # what an adapter's base model is, is known when it is read
            token_ids = plain_token_ids(read_tokenizer(source, trust))
            known = (source.name, source.identity, dtype, token_ids, multimodal, read_context(source, trust))
            outline = partial(Outline, *known)
    if outline is None and read_outline is not None:
        outline = partial(lambda read: Outline.of(read()), read_outline)

    def load() -> Writer:
        return multimodal_writer(read(), pixels) if multimodal else text_writer(source, device, dtype, trust)

    given = (load, writing_of(config), config["text_batch_tokens"], pixels, outline)
    if executor is None or outline is None:
        return HfGenerator(*given)
    return RemoteHfGenerator(executor, multimodal, trust, *given)


def writing_of(config) -> Writing:
    """How the config wants texts written."""
    seed = config["text_seed"]
    return Writing(
        max_words=config["text_max_words"],
        max_new_tokens=config["text_max_new_tokens"],
        context_tokens=config["text_context_tokens"],
        temperature=float(config["text_temperature"]),
        top_p=float(config["text_top_p"]),
        seed=config["seed"] if seed is None else seed,
    )
