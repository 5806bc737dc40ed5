"""Who writes texts: one interface, three backends, chosen by `text_backend`.

| `text_backend` | who writes | reads images |
|---|---|---|
| `template` | nobody: a fixed text made of metadata | no |
| `hf` | a model that transformers runs here | yes, if it is a multimodal one |
| `openai` | any OpenAI-compatible server: vLLM, SGLang, Ollama, `transformers serve`, ... | if its model does |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from recbole_mm.artifacts.executor import Executor, Failure
from recbole_mm.errors import ConfigError
from recbole_mm.llm.texts.request import Request

if TYPE_CHECKING:  # importing it for real would load transformers, which two of the backends do without
    from recbole_mm.llm.model import MLLM


logger = logging.getLogger(__name__)


class Generator(Protocol):
    """Writes texts.

    Attributes:
        identity: the model and its revision, or a hash of its files; `template-1` for the template.
        parameters: plain settings that the texts depend on.
        makes: what of a request the texts depend on: `answers` on its prompt and picture, `templates` on its fallback.
    """

    @property
    def identity(self) -> str: ...
    @property
    def parameters(self) -> dict[str, Any]: ...
    @property
    def makes(self) -> Literal["answers", "templates"]: ...

    def generate(self, requests: list[Request]) -> list[str | Failure]:
        """As many texts, in the same order; a `Failure` with its reason where there is none."""

    def count_tokens(self, text: str) -> int:
        """Tokens of a prompt's words: exact (`hf`), characters / 4 (`openai`), words (`template`)."""

    def close(self) -> None:
        """Let go of the model or of connections."""


@runtime_checkable
class StreamingGenerator(Protocol):
    """A generator that cuts its own batches, as suits its machine, and hands each over as soon as it is done."""

    def stream(self, requests: Mapping[str, Request]) -> Iterator[Mapping[str, str | Failure]]:
        """Yield every key of `requests` exactly once, in any order, with its text."""


def collected(batches: Iterator[Mapping[str, str | Failure]], count: int) -> list[str | Failure]:
    """What a stream over the keys "0", "1", ... gives, in order: `generate` of a streaming generator."""
    found: dict[str, str | Failure] = {}
    for batch in batches:
        found.update(batch)
    return [found[str(place)] for place in range(count)]


@dataclass(frozen=True)
class Writing:
    """How a text is written, whatever the backend.

    Attributes:
        max_words: longer texts are cut at a sentence's or a word's end.
        max_new_tokens: at most so many tokens are generated.
        context_tokens: longer prompts, images included, are refused.
        temperature: 0 takes the likeliest word; above, words are drawn.
        top_p: words are drawn among the likeliest that make up this share.
        seed: of the drawing.
    """

    max_words: int = 100
    max_new_tokens: int = 256
    context_tokens: int = 4096
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    @property
    def parameters(self) -> dict[str, Any]:
        """What a text depends on, for artifact keys. A seed and a share say nothing where nothing is drawn."""
        plain = {"max_words": self.max_words, "max_new_tokens": self.max_new_tokens, "temperature": self.temperature}
        return plain | ({"top_p": self.top_p, "seed": self.seed} if self.temperature > 0 else {})


def open_generator(
    config,
    load_mllm: Callable[[], MLLM],
    executor: Executor | None = None,
    outline_mllm: Callable[[], MLLM] | None = None,
) -> Generator:
    """The generator of `text_backend`.

    Nothing costly happens here: models are loaded, and servers asked, when the first text is wanted.

    Args:
        config: of the run.
        load_mllm: loads the run's own multimodal LLM (`mllm`) with its head; called only by `hf` without `text_model`.
        executor: has the texts of `hf` written elsewhere; None has them written here.
        outline_mllm: as `load_mllm`, without weights; for an executor.

    Raises:
        ConfigError: a setting that the backend needs and lacks, or an address or a key that cannot be one.
        ModelLoadError: `text_model` names no model that writes.
    """
    backend, model, url = config["text_backend"], config["text_model"], config["text_url"]
    writing = writing_of(config)
    if executor is not None and backend != "hf":
        logger.info("text_backend: %s works in this process; ray_address is for models that write (hf)", backend)
    if backend == "template":
        from recbole_mm.llm.texts.template import TemplateGenerator

        return TemplateGenerator()
    if backend == "hf" and executor is not None and outline_mllm is not None:
        from recbole_mm.llm.texts.hf_elsewhere import open_elsewhere

        return open_elsewhere(config, model, outline_mllm, writing, config["text_batch_tokens"], executor)
    if backend == "hf":
        from recbole_mm.llm.texts.hf import open_hf

        return open_hf(config, model, load_mllm, writing, config["text_batch_tokens"])
    from recbole_mm.llm.texts.openai import OpenAIGenerator
    from recbole_mm.llm.texts.server import Server, read_key

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
