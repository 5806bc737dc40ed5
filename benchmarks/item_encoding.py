"""Item encoding against one item a call, and against the model alone on inputs that are already prepared.

    python benchmarks/item_encoding.py --data dataset/ml-100k-mm --items 400

DIR is a dataset folder as `recbole-mm prepare` writes it. Three ways over the same items, in turn, the best of several
rounds each:

- ours: `encode_items` into a fresh store: fingerprints, decoding, tokenizing, batches, model, SQLite;
- plain transformers: one item per call: image processor, tokenizer, the model with its language-model head, the hidden
  state of the last token; with one thread or torch's own number, whichever is faster;
- one by one: our encoder, one item per call, no threads; again the faster number;
- model alone: transformers' forward of the same batches, decoded, tokenized and padded beforehand; parts of a batch
  shared out over the cores as ours does, or each operation as torch does, whichever is faster.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import markdown_table
from transformers import AutoTokenizer, PreTrainedModel, Qwen2VLForConditionalGeneration

from recbole_mm.artifacts.store import Store
from recbole_mm.data.content import ContentSource, ItemContent
from recbole_mm.llm.encode import PARTS_PER_CORE, ItemEncoder
from recbole_mm.llm.family import PreparedInput
from recbole_mm.llm.item_vectors import encode_items
from recbole_mm.llm.loading import add_cur_item, load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.prompts import CUR_ITEM
from recbole_mm.llm.tiny import build_tiny


def read_content(folder: Path, items: int) -> Callable[[], ItemContent]:
    """A maker of contents (each fresh, nothing remembered) of the first `items` items that have an image and a text."""
    name = folder.name
    settings = defaultdict(lambda: None, yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")))
    source = ContentSource.from_config(settings | {"data_path": str(folder), "dataset": name, "show_progress": False})
    tokens = [token for token in source.table.column(settings["text_fields"][0]) if source.has_image(token)][:items]
    return lambda: ItemContent(source, ["[PAD]", *tokens])


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def fastest(*ways: Callable[[], object]) -> float:
    return min(seconds(way) for way in ways)


def with_threads(threads: int, work: Callable[[], object]) -> Callable[[], None]:
    """`work` run with torch's thread count set for its duration."""

    def run() -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            work()
        finally:
            torch.set_num_threads(before)

    return run


def ours(content: ItemContent, encoder: ItemEncoder) -> None:
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / "artifacts.sqlite") as store:
        encode_items(content, encoder, store, show_progress=False)


def plain_transformers(
    mllm: MLLM, encoder: ItemEncoder, model: Qwen2VLForConditionalGeneration, tokenizer: Any
) -> Callable[[ItemContent, int], np.ndarray]:
    """A function that encodes the first `count` items as transformers' documentation shows it."""
    size = {"shortest_edge": mllm.family.min_pixels, "longest_edge": encoder.image_pixels}

    @torch.inference_mode()
    def run(content: ItemContent, count: int) -> np.ndarray:
        vectors = []
        for index in range(1, count + 1):
            record = content[index]
            image = mllm.image_processor(record.image, size=size, return_tensors="pt").to(mllm.device)
            pads = int(image["image_grid_thw"].prod()) // mllm.family.merge**2
            text = f"<|vision_start|>{'<|image_pad|>' * pads}<|vision_end|>{record.text}"
            text = f"{text}\n{encoder.prompt.image_and_text}{CUR_ITEM}"
            words = tokenizer(text, return_tensors="pt").to(mllm.device)
            kinds = (words["input_ids"] == model.config.image_token_id).int()
            output = model(**words, **image, mm_token_type_ids=kinds, output_hidden_states=True)
            vectors.append(output.hidden_states[-1][0, -1].float().cpu().numpy())
        return np.stack(vectors)

    return run


def one_by_one(content: ItemContent, encoder: ItemEncoder, count: int) -> None:
    for index in range(1, count + 1):
        encoder.compute([encoder.prepare(content[index])])


def model_alone(model: PreTrainedModel, batches: Sequence[Sequence[dict]], pool: Executor | None = None) -> None:
    """Run collated batches; with a pool, the parts of each side by side."""

    @torch.inference_mode()
    def run(inputs: dict) -> None:
        model(**inputs, use_cache=False)

    for parts in batches:
        list(map(run, parts) if pool is None else pool.map(run, parts))


def collated(mllm: MLLM, batches: Sequence[Sequence[PreparedInput]], parts: int) -> list[list[dict]]:
    """Model inputs of every batch, cut into `parts` each."""
    cut = [[batch[i * len(batch) // parts : (i + 1) * len(batch) // parts] for i in range(parts)] for batch in batches]
    return [[mllm.family.collate(part, mllm.device) for part in batch if part] for batch in cut]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder with images")
    parser.add_argument("--items", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mllm", help="a model's folder or hub id (default: the tiny model)")
    parser.add_argument("--image_pixels", type=int, default=112 * 112)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()

    new_content = read_content(arguments.data, arguments.items)
    content = new_content()
    items = len(content) - 1
    with tempfile.TemporaryDirectory() as folder:
        texts = [content.text(index) or "" for index in range(1, items + 1)]
        mllm = load_mllm(arguments.mllm or build_tiny(texts, Path(folder) / "tiny"), device=arguments.device)
        encoder = ItemEncoder(mllm, image_pixels=arguments.image_pixels)
        # transformers' own model, without anything of ours
        reference = Qwen2VLForConditionalGeneration.from_pretrained(mllm.name, dtype=mllm.dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(mllm.name)
        add_cur_item(reference, tokenizer, mllm.name)
        plain = plain_transformers(mllm, encoder, reference.to(mllm.device), tokenizer)
    lengths = {index: len(content.text(index) or "") for index in range(1, items + 1)}
    batches = [
        [item() if callable(item) else item for item in batch.values()]
        for batch in encoder.batches(content.__getitem__, lengths)
    ]
    cores = torch.get_num_threads() if mllm.device.type == "cpu" else 1
    parts, whole = collated(mllm, batches, PARTS_PER_CORE * cores), collated(mllm, batches, 1)
    pool = ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,))
    model_alone(reference.model, parts, pool)
    torch.set_num_threads(cores)  # the pool's threads have set their own number; this is everybody else's
    few = max(1, min(items, 50))

    ways: dict[str, list[float]] = {"ours": [], "plain transformers": [], "one by one": [], "model alone": []}
    for _ in range(arguments.rounds + 1):
        fresh = new_content()
        ways["ours"].append(seconds(lambda fresh=fresh: ours(fresh, encoder)) / items)
        plains = [with_threads(threads, lambda: plain(content, few)) for threads in {1, cores}]
        ways["plain transformers"].append(fastest(*plains) / few)
        singles = [with_threads(threads, lambda: one_by_one(content, encoder, few)) for threads in {1, cores}]
        ways["one by one"].append(fastest(*singles) / few)
        ways["model alone"].append(
            fastest(lambda: model_alone(reference.model, parts, pool), lambda: model_alone(reference.model, whole))
            / items
        )
    best = {name: min(times[1:]) for name, times in ways.items()}  # the first round warms up
    rows = [(name, f"{time * 1e3:.2f}", f"{1 / time:.0f}") for name, time in best.items()]
    parameters = sum(weight.numel() for weight in mllm.model.parameters()) / 1e6
    tokens = sum(len(item.ids) for batch in batches for item in batch) / items
    print(f"{items} items, {tokens:.0f} tokens each, {parameters:.1f} M parameters, {mllm.device}, {cores} threads\n")
    print(markdown_table(["way", "ms per item", "items per second"], rows))
    print(f"\nours against plain transformers: {best['plain transformers'] / best['ours']:.1f}x")
    print(f"ours against one by one: {best['one by one'] / best['ours']:.1f}x")
    print(f"ours against the model alone: {best['model alone'] / best['ours']:.0%}")


if __name__ == "__main__":
    main()
