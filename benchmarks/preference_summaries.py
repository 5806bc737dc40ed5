"""Recurrent preference summaries of many users, in batches across users, against one prompt a call.

    python benchmarks/preference_summaries.py
    python benchmarks/preference_summaries.py --users 200 --device cuda

Both ways go through `ChainWriter`, `HfGenerator` and an artifact store of their own, so that they differ in
`text_batch_tokens` alone: one prompt a call is what a loop over users does. Histories are drawn, three items to a
block, with a few users of very many blocks, whom nobody should have to wait for. The model is the tiny Qwen2-VL,
untrained: it hardly ever ends by itself, so nearly every text has as many tokens as allowed. Some of what it writes has
no words at all; such a text counts as asked for and its user goes on without it, both ways alike.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from common import markdown_table

from recbole_mm.artifacts.store import Store
from recbole_mm.inputs.reasoning.prompts import PreferencePrompts, preference_prompt
from recbole_mm.inputs.reasoning.recurrent import Chains, ChainWriter, Written, blocks_of_size
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.texts.generator import Writing
from recbole_mm.llm.texts.hf import HfGenerator
from recbole_mm.llm.texts.writers import Writer, multimodal_writer
from recbole_mm.llm.tiny import build_tiny

PIXELS = 112 * 112
ITEMS = 400
BLOCK = 3
LONG = 0.02
"""Share of users with ten times the usual number of items."""
WORDS = ("film", "war", "love", "drama", "space", "comedy", "road", "city", "night", "family")


def histories(users: int, items: int) -> dict[int, list[int]]:
    """User -> item ids; `items` each on average, ten times as many for a few."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(max(1, items // 2), items * 3 // 2 + 1, users)
    lengths[: int(LONG * users)] *= 10
    return {user: rng.integers(1, ITEMS + 1, length).tolist() for user, length in enumerate(lengths, start=1)}


def item_texts() -> list[str | None]:
    """A title and 5 to 25 words for each item."""
    rng = np.random.default_rng(1)
    said = (" ".join(rng.choice(WORDS, rng.integers(5, 26))) for _ in range(ITEMS))
    return [None, *(f"Title: number {number}\nPlot: {words}" for number, words in enumerate(said, start=1))]


def written(
    folder: Path,
    writer: Writer,
    chosen: Mapping[int, list[int]],
    texts: list[str | None],
    batch_tokens: int,
    new_tokens: int,
) -> tuple[Written, float]:
    """What was written, beginning with an empty store, and the seconds it took."""
    generator = HfGenerator(lambda: writer, Writing(max_new_tokens=new_tokens), batch_tokens)
    chains = Chains()
    for user, items in chosen.items():
        chains.add(user, blocks_of_size(len(items), BLOCK), [len(items)])
    prompts = PreferencePrompts(texts, "film", 100, generator, generator.writing.context_tokens)
    with Store(folder / f"{batch_tokens}.sqlite") as store:
        started = time.perf_counter()
        made = ChainWriter(chains, chosen.__getitem__, prompts, 100, store, generator).write(show_progress=False)
        return made, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("users", 1000), ("items", 9), ("new_tokens", 48), ("batch_tokens", 8192)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    logging.getLogger("recbole_mm").setLevel(logging.ERROR)
    texts, chosen = item_texts(), histories(given.users, given.items)
    ways = {"across users, in batches": given.batch_tokens, "one by one": 1}
    found, seconds = {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wording = preference_prompt("film", [], 0, 100, "")  # a real model's tokenizer knows these words, too
        path = build_tiny([*(text for text in texts if text), *[wording] * 20], folder / "tiny")
        writer = multimodal_writer(load_mllm(path, device=given.device, with_head=True), PIXELS)
        warm = {user: items[:BLOCK] for user, items in list(chosen.items())[:8]}
        (folder / "warm").mkdir()
        written(folder / "warm", writer, warm, texts, given.batch_tokens, given.new_tokens)
        for way, tokens in ways.items():
            found[way], seconds[way] = written(folder, writer, chosen, texts, tokens, given.new_tokens)
    batched, alone = found.values()
    longest = max(-(-len(items) // BLOCK) for items in chosen.values())
    slowest = max(seconds.values())
    head = f"{given.users} users, {batched.asked} texts of {given.new_tokens} tokens, {given.device}"
    rows = [
        [way, f"{took:.1f}", f"{found[way].asked / took:.1f}", f"{slowest / took:.1f}x"]
        for way, took in seconds.items()
    ]
    print(markdown_table([head, "seconds", "texts/s", "ratio"], rows))
    same = sum(alone.texts.get(node) == text for node, text in batched.texts.items())
    print(
        f"\nlongest chain: {longest} blocks; {same} of {len(batched.texts)} texts are the same both ways, "
        f"{len(batched.failed)} have no words",
        flush=True,
    )


if __name__ == "__main__":
    main()
