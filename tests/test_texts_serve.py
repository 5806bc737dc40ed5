"""Texts by a real server: `transformers serve` on this machine, with tiny models, against the same models run here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, LlavaNextProcessor
from transformers.utils.import_utils import is_serve_available

from recbole_mm.artifacts.executor import Failure
from recbole_mm.artifacts.store import Store
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.texts.backends import open_generator
from recbole_mm.llm.texts.generator import Request
from recbole_mm.llm.texts.openai import TextServerError
from recbole_mm.llm.texts.stage import texts_through_store
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.llm.tiny_tokenizers import deepseek_tokenizer

pytestmark = pytest.mark.skipif(not is_serve_available(), reason="transformers[serving] is not installed")

CORPUS = [f"The drama film number {number} is about love and war." for number in range(9)]
PROMPTS = ("A film about love", "The drama film", "What is number 3 about?", "war", "love and war and love")


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A text LLM that says words: its head prefers tokens of letters."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = deepseek_tokenizer(CORPUS)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for token in range(len(tokenizer)):
            if not tokenizer.decode([token]).strip().isalpha():
                model.lm_head.weight[token] = 0
    model.generation_config.do_sample = True  # as published ones have it; the server draws for no others
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava(tmp_path_factory) -> Path:
    """A multimodal LLM with the processor that a server wants beside it."""
    folder = build_tiny(CORPUS, tmp_path_factory.mktemp("llava") / "model", family="llava_next")
    mllm = load_mllm(folder)
    LlavaNextProcessor(
        mllm.image_processor,
        mllm.tokenizer,
        patch_size=mllm.family.patch,
        vision_feature_select_strategy="default",
        chat_template=mllm.tokenizer.chat_template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    """Address of the server, which loads a model when it is first asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + 240
        while not _is_up(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_up(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def opened(toy_config, backend: str, model: Path | str, **settings: Any):
    given = {"text_max_new_tokens": 10, "text_api_key_env": None, **settings}
    return open_generator(toy_config(text_backend=backend, text_model=str(model), **given), pytest.fail)


def test_a_server_and_this_process_write_the_same(toy_config, url: str, llama: Path, tmp_path) -> None:
    requests = {prompt: Request(prompt, None) for prompt in PROMPTS}
    here = opened(toy_config, "hf", llama)
    there = opened(toy_config, "openai", llama, text_url=url, text_concurrency=2)
    with Store(tmp_path / "artifacts.sqlite") as store:
        local = texts_through_store(store, "stage", here, requests, show_progress=False)
        served = texts_through_store(store, "stage", there, requests, show_progress=False)
        again = texts_through_store(store, "stage", there, requests, show_progress=False)
    assert len(local.texts) == len(requests)
    assert len(set(local.texts.values())) > 2
    assert served.texts == local.texts
    assert (served.computed, again.computed) == (len(requests), 0)


def test_drawn_words_differ_from_the_likeliest(toy_config, url: str, llama: Path) -> None:
    requests = [Request(prompt, None) for prompt in PROMPTS]
    greedy = opened(toy_config, "openai", llama, text_url=url).generate(requests)
    hot = opened(toy_config, "openai", llama, text_url=url, text_temperature=1.5, text_seed=3).generate(requests)
    assert not any(isinstance(text, Failure) for text in greedy)
    assert greedy != hot


def test_a_server_reads_pictures(toy_config, url: str, llava: Path) -> None:
    def pictured(colour: str) -> Request:
        return Request("Describe the picture.", None, lambda: Image.new("RGB", (70, 50), colour), colour)

    generator = opened(toy_config, "openai", llava, text_url=url, text_max_new_tokens=40)
    texts = generator.generate([pictured("red"), pictured("blue"), Request("Describe the picture.", None)])
    assert not any(isinstance(text, Failure) for text in texts)
    assert len(set(texts)) == 3


def test_a_model_the_server_does_not_have(toy_config, url: str) -> None:
    generator = opened(toy_config, "openai", "no/such-model", text_url=url, text_retries=0)
    (outcome,) = generator.generate([Request("?", None)])
    assert isinstance(outcome, Failure)
    assert outcome.reason.startswith("the server answered ")


def test_a_wrong_path_is_said(toy_config, url: str, llama: Path) -> None:
    with pytest.raises(TextServerError, match="check text_model, and that text_url ends in the version"):
        opened(toy_config, "openai", llama, text_url=f"{url}/v2").generate([Request("?", None)])
