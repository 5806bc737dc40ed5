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
from typing import TYPE_CHECKING

from recbole_mm.artifacts.executor import Executor
from recbole_mm.errors import ConfigError
from recbole_mm.llm.texts.generator import Generator, TemplateGenerator, Writing

if TYPE_CHECKING:  # importing it for real would load transformers, which two of the backends do without
    from recbole_mm.llm.model import MLLM
    from recbole_mm.llm.pretrained import Pretrained

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
        config: of the run.
        load_mllm: loads the run's own multimodal LLM (`mllm`) with its head; called only by `hf` without `text_model`.
        executor: has the texts of `hf` written elsewhere; None has them written here.
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
    if backend == "hf" and executor is not None and outline_mllm is not None:
        from recbole_mm.llm.texts.hf_remote import open_remote_hf

        return open_remote_hf(config, model, outline_mllm, writing, config["text_batch_tokens"], executor)
    if backend == "hf":
        from recbole_mm.llm.texts.hf import open_hf

        ways = {} if find is None else {"find": find}
        return open_hf(config, model, load_mllm, writing, config["text_batch_tokens"], outline_mllm, **ways)
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
