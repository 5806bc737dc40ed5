"""Memory and speed of fine-tuning by the length of prompts: `max_tokens_per_batch` bounds a batch, not their number.

    python benchmarks/sft_memory.py
    python benchmarks/sft_memory.py --loss full --method lora --lengths 50,2000

Each length is a process of its own, in which `finetune` runs for a few steps on prompts with one answer token. Memory
is the most that the process held above what it held with the model loaded; on a GPU, what was allocated there. For
contrast the same with 16 prompts in every batch, as a fixed batch size would have it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import PeakMemory, markdown_table
from transformers.utils import logging as hub_logging

from recbole_mm.llm.finetuning.examples import Example
from recbole_mm.llm.finetuning.finetune import Tuning, _arguments, _private_randomness, _train
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.tiny import build_tiny

FIXED = 16


class Prompts:
    """`recbole_mm.llm.finetuning.examples.Examples` of random words.

    Args:
        count: how many.
        length: tokens of each with its answer.
        whole: the prompt is learnt too.
    """

    def __init__(self, count: int, length: int, whole: bool) -> None:
        self.words = np.random.default_rng(0).integers(10, 200, size=(count, length))
        self.lengths = np.full(count, length)
        self.whole = whole

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> Example:
        *prompt, answer = self.words[index].tolist()
        return Example([prompt], [answer], "answer", learns_prompt=self.whole)


def measure(length: int, budget: int, steps: int, method: str, loss: str, device: str) -> dict[str, float]:
    """Added memory in MiB and examples per second of a training of about so many steps."""
    hub_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        mllm = load_mllm(build_tiny(["a b c"], Path(folder) / "tiny"), device=device, with_head=True)
        tuning = Tuning(method, batch_tokens=budget, checkpoint_steps=10**6)

        def train(batches: int) -> float:
            examples = Prompts(batches * max(1, budget // length), length, loss == "full")
            with tempfile.TemporaryDirectory(dir=folder) as scratch, _private_randomness(0):
                started = time.perf_counter()
                _train(mllm, examples, tuning, _arguments(tuning, mllm, Path(scratch)), False)
            return len(examples) / (time.perf_counter() - started)

        with PeakMemory() as memory:
            speed = train(steps)
        added = memory.added_mib
        if torch.device(device).type == "cuda":
            added = torch.cuda.max_memory_allocated() / 2**20
        return {"added_mib": added, "examples_per_second": speed}


def in_a_process(*arguments: object) -> dict[str, float]:
    """`measure` in a process of its own."""
    found = subprocess.run(
        [sys.executable, __file__, "--measure", json.dumps(arguments)], check=True, capture_output=True, text=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="50,100,200,500,1000,2000", help="tokens of a prompt, by commas")
    parser.add_argument("--max_tokens_per_batch", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--method", choices=("full", "lora"), default="full")
    parser.add_argument("--loss", choices=("answer", "full"), default="answer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(*json.loads(given.measure))), flush=True)
        return
    rows = []
    for length in map(int, given.lengths.split(",")):
        settings = (given.steps, given.method, given.loss, given.device)
        bounded = in_a_process(length, given.max_tokens_per_batch, *settings)
        fixed = in_a_process(length, FIXED * length, *settings)
        rows.append(
            [
                f"{length:,}",
                max(1, given.max_tokens_per_batch // length),
                *(f"{bounded['added_mib']:,.0f}", f"{bounded['examples_per_second']:,.1f}"),
                *(f"{fixed['added_mib']:,.0f}", f"{fixed['examples_per_second']:,.1f}"),
            ]
        )
        print(f"{length} tokens: {rows[-1]}", file=sys.stderr, flush=True)
    head = ["tokens of a prompt", f"prompts in {given.max_tokens_per_batch:,} tokens", "MiB added", "prompts/s"]
    print(markdown_table([*head, f"MiB added, {FIXED} a batch", "prompts/s"], rows), flush=True)


if __name__ == "__main__":
    main()
