"""Texts by llama.cpp's own server, which the package xllamacpp brings: a quantised model's file is served and asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from recbole_mm.artifacts.executor import Failure
from recbole_mm.artifacts.store import Store
from recbole_mm.errors import ModelLoadError
from recbole_mm.llm.gguf import convert_gguf, smollm2_file
from recbole_mm.llm.texts.backends import open_generator
from recbole_mm.llm.texts.generator import Request
from recbole_mm.llm.texts.stage import texts_through_store
from recbole_mm.llm.tiny_tokenizers import llama_tokenizer
from tests.gguf_files import write_gguf
from tests.text_llms import write_text_llm

pytestmark = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed")

TEMPLATE = (
    "{% for turn in messages %}{{ turn['content'] }}{% endfor %}{% if add_generation_prompt %} Answer:{% endif %}"
)
PROMPTS = ("A red shoe", "The golden lamp of number 12", "What is number 3 about?", "comedy film", "Yes, or No?")
SLOTS, SLOT_TOKENS = 2, 256

SERVE = """
import sys
import xllamacpp

settings = xllamacpp.CommonParams()
settings.model.path, settings.port = sys.argv[1], 0
settings.n_parallel, settings.n_ctx = int(sys.argv[2]), int(sys.argv[3])
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.warmup = False
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def served(file: Path, log: Path) -> Iterator[str]:
    """Address of a server of a file, with `SLOTS` places of `SLOT_TOKENS` tokens each."""
    command = [sys.executable, "-c", SERVE, str(file), str(SLOTS), str(SLOTS * SLOT_TOKENS)]
    with log.open("w") as said:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=dict(os.environ)
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = next((line for line in iter(process.stdout.readline, "") if line.startswith("http")), None)
        assert address is not None, log.read_text()
        yield f"{address.strip()}/v1"
    finally:
        process.stdin.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llamacpp") / "llama"
    write_text_llm("llama", folder, llama_tokenizer, tie_word_embeddings=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return write_gguf(folder, folder.parent / "model.gguf")


@pytest.fixture(scope="module")
def url(file: Path) -> Iterator[str]:
    with served(file, file.with_name("log")) as address:
        yield address


def opened(toy_config, backend: str, model: str, **settings: Any):
    given = {"text_max_new_tokens": 10, "text_api_key_env": None, "text_context_tokens": SLOT_TOKENS, **settings}
    return open_generator(toy_config(text_backend=backend, text_model=model, **given), pytest.fail)


def test_it_writes_what_this_process_writes_of_the_same_file(toy_config, url: str, file: Path, tmp_path) -> None:
    requests = {prompt: Request(prompt, None) for prompt in PROMPTS}
    here = opened(toy_config, "hf", str(convert_gguf(str(file), tmp_path, show_progress=False)))
    there = opened(toy_config, "openai", "any", text_url=url, text_concurrency=2 * SLOTS)
    with Store(tmp_path / "artifacts.sqlite") as store:
        written = texts_through_store(store, "stage", there, requests, show_progress=False)
        again = texts_through_store(store, "stage", there, requests, show_progress=False)
        local = texts_through_store(store, "stage", here, requests, show_progress=False)
    assert set(written.texts) == set(PROMPTS), written
    assert len(set(written.texts.values())) > 2
    assert (written.computed, again.computed) == (len(PROMPTS), 0)
    assert again.texts == written.texts == local.texts


def test_a_prompt_that_has_no_room_is_one_failure(toy_config, url: str) -> None:
    there = opened(toy_config, "openai", "any", text_url=url, text_context_tokens=8 * SLOT_TOKENS, text_retries=0)
    long, short = there.generate([Request("red shoe " * SLOT_TOKENS, None), Request("red shoe", None)])
    assert isinstance(short, str)
    assert isinstance(long, Failure)
    assert re.search(r"refused|context", long.reason), long.reason
    assert "\n" not in long.reason


@pytest.mark.slow
def test_smollm2_describes(toy_config, tmp_path: Path) -> None:
    try:
        file = smollm2_file()
    except ModelLoadError as error:
        pytest.skip(str(error))
    with served(file, tmp_path / "log") as url:
        there = opened(toy_config, "openai", "any", text_url=url, text_max_new_tokens=40)
        asked = ["Describe a black cotton dress in one sentence.", "Describe a red wooden toy train in one sentence."]
        dress, train = there.generate([Request(prompt, None) for prompt in asked])
    assert "dress" in dress.lower()
    assert "train" in train.lower()
