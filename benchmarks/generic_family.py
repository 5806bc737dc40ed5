"""The same tiny models read by their own family and by the generic one, through transformers' own processor.

    python benchmarks/generic_family.py

Items are encoded with pictures of 182 x 268; processor seconds of one thread, the better of two turns.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import markdown_table
from gpu_steps import CORPUS, Record, records
from transformers import AutoTokenizer
from transformers.models.deepseek_vl.processing_deepseek_vl import DeepseekVLProcessor
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.llm.families import FAMILIES, family_class
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.utils.files import CHECKSUMS

PROCESSORS: dict[str, Callable[[Any, Any], Any]] = {  # of families whose images all cost the same
    "gemma3": lambda images, words: Gemma3Processor(images, words, image_seq_length=4),
    "deepseek_vl": lambda images, words: DeepseekVLProcessor(images, words, num_image_tokens=16),
}


def both(kind: str, folder: Path) -> tuple[MLLM, MLLM]:
    """A tiny model as its own family loads it, and as the generic one does."""
    build_tiny(CORPUS, folder, family=kind)
    images = family_class(kind).image_processor_class.from_pretrained(folder)
    PROCESSORS[kind](images, AutoTokenizer.from_pretrained(folder)).save_pretrained(folder)
    (folder / CHECKSUMS).unlink()
    own = load_mllm(folder)
    entry = FAMILIES.pop(kind)
    try:
        return own, load_mllm(folder)
    finally:
        FAMILIES[kind] = entry


def seconds(mllm: MLLM, items: list[Record]) -> tuple[float, np.ndarray]:
    """Processor seconds of encoding, and the vectors."""
    encoder = ItemEncoder(mllm, image_pixels=112 * 112, threads=1)
    begin = time.process_time()
    vectors = encoder.encode(items)
    return time.process_time() - begin, vectors


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    items = records(48)
    for item in items:
        assert item.image is not None
        item.image = item.image.resize((182, 268))
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for kind in PROCESSORS:
            own, generic = both(kind, Path(place) / kind)
            times: dict[str, float] = {}
            vectors: dict[str, np.ndarray] = {}
            for _ in range(2):
                for name, mllm in (("own", own), ("generic", generic)):
                    taken, vectors[name] = seconds(mllm, items)
                    times[name] = min(taken, times.get(name, taken))
            apart = float(np.abs(vectors["own"] - vectors["generic"]).max())
            speeds = [f"{len(items) / times[name]:,.0f}" for name in ("own", "generic")]
            rows.append([kind, *speeds, f"{times['generic'] / times['own']:.1f}", f"{apart:.0e}"])
    print(
        markdown_table(["model", "own family, items/s", "generic, items/s", "times slower", "vectors differ by"], rows)
    )


if __name__ == "__main__":
    main()
