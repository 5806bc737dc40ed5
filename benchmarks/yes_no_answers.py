"""Yes or no for a user's candidates behind one shared prefix, against every prompt on its own.

    python benchmarks/yes_no_answers.py
    python benchmarks/yes_no_answers.py --width 512 --layers 4 --users 3

Prompts of 1 + 20 candidates share 300 tokens and have 45 of their own each, of which the prefix is read once: 21 * 345
tokens against 300 + 21 * 45, so that 5.8 is the most to be had. Both ways read batches of up to as many tokens; each is
the best of several rounds, in turn. The model is a Qwen2-VL decoder with random weights: time does not depend on them.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from common import markdown_table
from transformers import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from recbole_mm.mllm.answer import AnswerReader, Block, Questions, ask, batches_of_like_length, padded

VOCABULARY = 1000
HEAD = 64


def build_reader(width: int, layers: int) -> AnswerReader:
    """A decoder of this size; its shape is Qwen2-VL-2B's in small."""
    torch.manual_seed(0)
    config = Qwen2VLTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=int(width * 2.75),
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=max(1, width // HEAD // 6),
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    )
    return AnswerReader(Qwen2VLTextModel(config).eval(), torch.randn(width))


class Prompts:
    """Random prompts of several users with `candidates` each.

    Args:
        reader: that answers them.
        users, candidates: how many.
        shared, own: tokens of a prefix and of a suffix.
    """

    def __init__(self, reader: AnswerReader, users: int, candidates: int, shared: int, own: int) -> None:
        rng = np.random.default_rng(0)
        self.reader = reader
        self.prefixes = rng.integers(VOCABULARY, size=(users, shared))
        self.suffixes = rng.integers(VOCABULARY, size=(users * candidates, own))
        self.owners = np.repeat(np.arange(users), candidates)

    def block(self, rows: np.ndarray) -> Block:
        ids, lengths = padded(list(rows), 0, "cpu")
        return Block.of_vectors(self.reader.model.get_input_embeddings()(ids), lengths)

    def behind_prefixes(self, tokens: int) -> torch.Tensor:
        lengths = [np.full(len(rows), rows.shape[1]) for rows in (self.prefixes, self.suffixes)]
        questions = Questions(
            *lengths,
            self.owners,
            lambda rows: self.block(self.prefixes[rows]),
            lambda rows: self.block(self.suffixes[rows]),
        )
        return ask(self.reader, questions, tokens)

    def whole(self, tokens: int) -> torch.Tensor:
        prompts = np.concatenate([self.prefixes[self.owners], self.suffixes], axis=1)
        answers = torch.zeros(len(prompts))
        for rows in batches_of_like_length(np.full(len(prompts), prompts.shape[1]), tokens):
            answers[rows] = self.reader.read(self.block(prompts[rows]))
        return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("width", 128),
        ("layers", 2),
        ("users", 8),
        ("candidates", 21),
        ("shared", 300),
        ("own", 45),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--tokens_per_batch", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    prompts = Prompts(build_reader(given.width, given.layers), given.users, given.candidates, given.shared, given.own)
    ways = {"behind shared prefixes": prompts.behind_prefixes, "whole prompts": prompts.whole}
    best = dict.fromkeys(ways, float("inf"))
    answers = {}
    with torch.inference_mode():
        for _ in range(given.rounds):
            for name, way in ways.items():
                started = time.perf_counter()
                answers[name] = way(given.tokens_per_batch)
                best[name] = min(best[name], time.perf_counter() - started)
    first, second = answers.values()
    if not torch.allclose(first, second, atol=1e-3):
        raise SystemExit(f"the two ways differ by {float((first - second).abs().max()):.1e}")
    most = given.candidates * (given.shared + given.own) / (given.shared + given.candidates * given.own)
    slowest = max(best.values())
    rows = [[name, f"{len(first) / seconds:,.0f}", f"{slowest / seconds:.1f}x"] for name, seconds in best.items()]
    print(markdown_table([f"{given.layers} layers, {given.width} wide", "candidates/s", "ratio"], rows))
    print(f"\nBy tokens alone: {most:.1f}x", flush=True)


if __name__ == "__main__":
    main()
