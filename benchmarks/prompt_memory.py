"""Memory of writing profiles of many users, whose prompts together would be gigabytes.

    python benchmarks/prompt_memory.py
    python benchmarks/prompt_memory.py --users 1000000

Histories are drawn, and the LLM is replaced by an answer that is always the same: what is measured is what holds the
prompts, from the users' histories to the artifact store. Peak memory is that of the process, its start included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from common import PeakMemory, markdown_table, quiet_config

from recbole_mm.artifacts.store import Store
from recbole_mm.inputs.reasoning.profiles import Histories, profile_requests
from recbole_mm.inputs.reasoning.settings import ReasoningSettings
from recbole_mm.llm.texts.generator import Request
from recbole_mm.llm.texts.stage import texts_through_store

ITEMS = 5000


class OneAnswer:
    """A generator that writes the same text for everybody."""

    identity, parameters, makes = "one answer", {}, "answers"
    reads_images, longest_prompt = True, None

    def generate(self, requests: Sequence[Request]) -> list[str]:
        return ["Likes what it has chosen before."] * len(requests)

    def count_tokens(self, text: str) -> int:
        return len(text) // 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=40, help="of each user's history")
    parsed = parser.parse_args()
    rng = np.random.default_rng(0)
    words = "words about a product that somebody bought " * 2
    texts = [None, *(f"Title: item {number} {words}" for number in range(1, ITEMS))]
    rows = parsed.users * parsed.items
    histories = Histories(
        np.arange(1, parsed.users + 1), rng.integers(1, ITEMS, rows), np.arange(0, rows + 1, parsed.items)
    )
    content = SimpleNamespace(tokens=[str(number) for number in range(ITEMS)])
    settings = ReasoningSettings.of(quiet_config("MLLMRec", "ml-100k"))
    started = time.perf_counter()
    with PeakMemory() as memory, tempfile.TemporaryDirectory() as folder:
        made = profile_requests(content, histories, texts, settings, OneAnswer(), 4096)
        length = len(next(iter(made.requests.values())).prompt)
        with Store(Path(folder) / "artifacts.sqlite") as store:
            report = texts_through_store(store, "user_profile", OneAnswer(), made.requests, show_progress=False)
    seconds = time.perf_counter() - started
    head = ("users", "characters of a prompt", "all prompts (MiB)", "before (MiB)", "peak (MiB)", "added (MiB)", "s")
    before, total = memory.before / 2**20, length * len(report.texts) / 2**20
    cells = [before, memory.peak_mib, memory.added_mib, seconds]
    print(markdown_table(head, [[len(report.texts), length, f"{total:.0f}", *(f"{cell:.0f}" for cell in cells)]]))


if __name__ == "__main__":
    main()
