"""Texts of an LLM in batches of like length, against one prompt a call.

    python benchmarks/text_generation.py
    python benchmarks/text_generation.py --prompts 400 --device cuda

Both ways go through `HfGenerator`, so that they differ in `text_batch_tokens` alone; each is the best of several
rounds, in turn. The model is the tiny Qwen2-VL, untrained: it hardly ever ends by itself, so nearly every text has as
many tokens as allowed. Half of the prompts hold a picture.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import markdown_table
from PIL import Image

from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.texts.generator import Request, Writing
from recbole_mm.llm.texts.hf import HfGenerator
from recbole_mm.llm.texts.writers import multimodal_writer
from recbole_mm.llm.tiny import build_tiny

PIXELS = 112 * 112
WORDS = ("film", "war", "love", "drama", "space", "comedy", "road", "city", "night", "family")


def prompts(count: int, longest: int) -> list[Request]:
    """Prompts of 5 to `longest` words, every other one with a picture."""
    rng = np.random.default_rng(0)
    requests = []
    for number in range(count):
        text = " ".join(rng.choice(WORDS, rng.integers(5, longest + 1)))
        colours = rng.integers(0, 255, (96, 64, 3), dtype=np.uint8)
        load = pictured(colours) if number % 2 else None
        requests.append(Request(f"Describe it: {text}", None, load, str(number) if load else ""))
    return requests


def pictured(colours: np.ndarray) -> Callable[[], Image.Image]:
    return lambda: Image.fromarray(colours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("prompts", 96), ("longest", 120), ("new_tokens", 48), ("batch_tokens", 8192), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    logging.getLogger("recbole_mm").setLevel(logging.WARNING)
    requests = prompts(given.prompts, given.longest)
    with tempfile.TemporaryDirectory() as folder:
        path = build_tiny([request.prompt for request in requests], Path(folder) / "tiny")
        writer = multimodal_writer(load_mllm(path, device=given.device, with_head=True), PIXELS)
    ways = {"in batches": given.batch_tokens, "one by one": 1}
    best = dict.fromkeys(ways, float("inf"))
    texts = {}
    for _ in range(given.rounds):
        for name, tokens in ways.items():
            generator = HfGenerator(lambda: writer, Writing(max_new_tokens=given.new_tokens), tokens)
            started = time.perf_counter()
            texts[name] = generator.generate(requests)
            best[name] = min(best[name], time.perf_counter() - started)
    same = sum(one == other for one, other in zip(*texts.values()))
    slowest = max(best.values())
    rows = [[name, f"{len(requests) / seconds:.1f}", f"{slowest / seconds:.1f}x"] for name, seconds in best.items()]
    print(markdown_table([f"{given.new_tokens} tokens a text, {given.device}", "texts/s", "ratio"], rows))
    print(f"\n{same} of {len(requests)} texts are the same both ways", flush=True)


if __name__ == "__main__":
    main()
