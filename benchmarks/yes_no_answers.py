"""Yes or no for a user's candidates behind one shared prompt, against every prompt on its own.

    python benchmarks/yes_no_answers.py
    python benchmarks/yes_no_answers.py --width 512 --layers 4 --users 3

Prompts of 1 + 20 candidates share 300 tokens, a preference, and have 45 of their own each: an image of 112 x 112 pixels
(18 tokens) and words. The prefix is read once, so that by tokens alone 21 * 345 / (300 + 21 * 45) = 5.8 is the most to
be had. Both ways read batches of up to as many tokens, and each is the best of several rounds, in turn:

- images seen: the vision tower has read every item's image for somebody else before; the decoder's work alone;
- images new: decoding, cutting and the vision tower are part of either way.

The model is Qwen2-VL with random weights: time does not depend on them.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import markdown_table
from PIL import Image
from transformers import Qwen2VLForConditionalGeneration
from transformers.utils import logging as hub_logging

from recbole_mm.llm.answer import AnswerReader
from recbole_mm.llm.blocks import Block
from recbole_mm.llm.families.qwen2_vl import Qwen2VL
from recbole_mm.llm.family import Part
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.questions import ask, batches_of_like_length
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.models.answering.asking import PromptBlocks

HEAD = 32
SIDE = 112
IMAGE_TOKENS = 18
"""Of an image of that side, with the two around it."""


def build_model(width: int, layers: int) -> MLLM:
    """Qwen2-VL of this size; its vision tower is half as wide."""
    with tempfile.TemporaryDirectory() as folder:
        tiny = load_mllm(build_tiny(["a b c"], Path(folder) / "tiny"), with_head=True)
    config = tiny.model.config
    for name, value in {
        "hidden_size": width,
        "intermediate_size": int(width * 2.75),
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD,
        "num_key_value_heads": max(1, width // HEAD // 6),
        "layer_types": ["full_attention"] * layers,
    }.items():
        setattr(config.text_config, name, value)
    for name, value in {
        "depth": layers,
        "embed_dim": width // 2,
        "hidden_size": width,
        "num_heads": width // 2 // HEAD,
    }.items():
        setattr(config.vision_config, name, value)
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    family = Qwen2VL(config, tiny.image_processor, tiny.tokenizer)
    family.speed_up(model)
    return replace(tiny, model=model, family=family)


class RandomPrompt:
    """`recbole_mm.inputs.answering.prompt.WordedPrompt` of random words and images.

    Args:
        users, items: how many.
        shared, own: tokens of a prefix and of a suffix, image included.
    """

    tail, identity, shares_prefix, image_pixels = "", "random", True, SIDE * SIDE

    def __init__(self, users: int, items: int, shared: int, own: int) -> None:
        rng = np.random.default_rng(0)
        self.shared, self.own = shared, own
        self.prefixes = rng.integers(10, 200, size=(users, shared))
        self.suffixes = rng.integers(10, 200, size=(items, own - IMAGE_TOKENS))
        self.files = [_file(rng) for _ in range(items)]

    def prefix(self, user: int, history: object) -> list[Part]:
        return [self.prefixes[user].tolist()]

    def suffix(self, item: int) -> list[Part]:
        return [Image.open(io.BytesIO(self.files[item])).convert("RGB"), self.suffixes[item].tolist()]

    def prefix_length(self, user: int, history: object) -> int:
        return self.shared

    def suffix_length(self, item: int) -> int:
        return self.own


def _file(rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


class Ways:
    """Both ways of asking, every candidate of every user being another item.

    Args:
        mllm: that is asked.
        prompt: the wording.
        users, candidates: how many.
        tokens: of a batch.
    """

    def __init__(self, mllm: MLLM, prompt: RandomPrompt, users: int, candidates: int, tokens: int) -> None:
        self.mllm, self.prompt, self.users, self.tokens = mllm, prompt, users, tokens
        self.reader = AnswerReader(mllm.family.base(mllm.model), torch.randn(mllm.hidden_size))
        self.owners = np.repeat(np.arange(users), candidates)
        self.items = list(range(users * candidates))
        self.seen = self.blocks()
        self.seen.item_parts(self.items)
        self.laid = np.empty(len(self.items), dtype=object)  # whole prompts without pixels
        for row, owner in enumerate(self.owners.tolist()):
            self.laid[row] = replace(self.seen.whole(owner, [], row), images=())

    def blocks(self) -> PromptBlocks:
        return PromptBlocks(self.mllm, self.prompt)

    def shared(self, blocks: PromptBlocks) -> torch.Tensor:
        users = list(range(self.users))
        return ask(self.reader, blocks.questions(users, [[]] * len(users), self.owners, self.items), self.tokens)

    def whole(self, images_seen: bool) -> torch.Tensor:
        family, answers = self.mllm.family, torch.zeros(len(self.items))
        lengths = np.full(len(self.items), self.prompt.shared + self.prompt.own)
        for rows in batches_of_like_length(lengths, self.tokens):
            if images_seen:
                seen = [part.seen for part in self.seen.item_parts(rows.tolist()) if part.seen is not None]
                block = Block.of_seen(family, self.mllm.model, list(self.laid[rows]), seen)
            else:
                asked = [self.seen.whole(int(self.owners[row]), [], int(row)) for row in rows]
                block = Block.of_prepared(family, asked, self.mllm.device)
            answers[rows] = self.reader.read(block)
        return answers


def best_of(rounds: int, ways: dict[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """Seconds of each way's best round; the ways take turns.

    Raises:
        SystemExit: they give different answers.
    """
    best, answers = dict.fromkeys(ways, float("inf")), {}
    with torch.inference_mode():
        for _ in range(rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                answers[name] = way()
                best[name] = min(best[name], time.perf_counter() - started)
    first, *others = answers.values()
    for other in others:
        if not torch.allclose(first, other, atol=1e-3):
            raise SystemExit(f"the ways differ by {float((first - other).abs().max()):.1e}")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("width", 128),
        ("layers", 2),
        ("users", 8),
        ("candidates", 21),
        ("shared", 300),
        ("own", 45),
        ("tokens_per_batch", 8192),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    hub_logging.disable_progress_bar()
    prompt = RandomPrompt(given.users, given.users * given.candidates, given.shared, given.own)
    ways = Ways(build_model(given.width, given.layers), prompt, given.users, given.candidates, given.tokens_per_batch)
    best = best_of(
        given.rounds,
        {
            "shared seen": lambda: ways.shared(ways.seen),
            "whole seen": lambda: ways.whole(True),
            "shared new": lambda: ways.shared(ways.blocks()),
            "whole new": lambda: ways.whole(False),
        },
    )
    count = len(ways.items)
    rows = []
    for label, kind in (("images seen", "seen"), ("images new", "new")):
        shared, whole = best[f"shared {kind}"], best[f"whole {kind}"]
        rows.append([label, f"{count / shared:,.0f}", f"{count / whole:,.0f}", f"{whole / shared:.1f}x"])
    head = [
        f"candidates/s, {given.layers} layers, {given.width} wide",
        "behind shared prompts",
        "whole prompts",
        "ratio",
    ]
    print(markdown_table(head, rows))
    most = given.candidates * (given.shared + given.own) / (given.shared + given.candidates * given.own)
    print(f"\nBy tokens alone: {most:.1f}x", flush=True)


if __name__ == "__main__":
    main()
