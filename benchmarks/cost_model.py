"""What the three systems would cost on GPUs: arithmetic over named assumptions, printed as the tables of docs/scale.md.

    python benchmarks/cost_model.py                          # estimates; nothing is measured
    python benchmarks/cost_model.py --training_share 0.25    # another assumption

Every number of work is floating-point operations: 2 for each weight and token read, 6 for each weight and token learnt
from. Writing reads all weights for every token of a batch of prompts, which is bound by memory, not by arithmetic. The
script counts neither the download of data nor queueing; what is measured instead of assumed is in docs/scale.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, fields

from common import markdown_table

HOUR = 3600.0
COUNTS = (1, 8, 64)
GB = 1e9
TEXT_BYTES = 915.0
"""Of 100 words in the store, key and index included (benchmarks/store_rate.py)."""

VECTOR_BYTES = {1536: 8_300.0, 3584: 16_500.0}
"""Of a float32 vector there, by its width: SQLite fills whole pages of 4,096."""


@dataclass(frozen=True)
class Backbone:
    """A multimodal LLM: weights of its language model and of its vision tower, width of a vector, and its cache.

    `cache_bytes` are the keys and values of one token, all layers, in 16 bits.
    """

    name: str
    language: float
    vision: float
    hidden: int
    cache_bytes: int


BACKBONES = (
    # 28 layers, 2 key-value heads of 128; 28 layers, 4 of 128: both as their config.json says
    Backbone("Qwen2-VL-2B", language=1.54e9, vision=0.675e9, hidden=1536, cache_bytes=28 * 2 * 2 * 128 * 2),
    Backbone("Qwen2-VL-7B", language=7.62e9, vision=0.675e9, hidden=3584, cache_bytes=28 * 2 * 4 * 128 * 2),
)


@dataclass(frozen=True)
class Data:
    """Size of a dataset."""

    name: str
    users: float
    items: float
    interactions: float


DATASETS = (
    Data("PixelRec-50K", 50_000, 82_864, 989_476),
    Data("Amazon clothing", 993_087, 301_312, 8_813_442),
    Data("100 M items", 3.3e8, 1e8, 2.9e9),  # Amazon clothing, 332 times over
)


@dataclass(frozen=True)
class Assumed:
    """What is not known until a GPU has been measured, and what a user decides."""

    peak_flops: float = 989e12  # bfloat16, dense, of an H100 or H200 as its maker states
    bandwidth: float = 3.35e12  # bytes/s of its memory: H100; an H200 has 4.8e12
    reading_share: float = 0.40  # of the peak, reached while reading prompts
    training_share: float = 0.30  # the same while training
    bandwidth_share: float = 0.60  # of the bandwidth, reached while writing
    written_at_once: float = 256  # answers that are written together
    image_patches: float = 1024  # 448 x 448 pixels in patches of 14
    image_tokens: float = 256  # of which four make a token
    text_tokens: float = 100  # of an item's metadata
    instruction_tokens: float = 60  # of a prompt's own words
    answer_tokens: float = 130  # 100 words
    block: float = 3  # items of a block of preferences
    candidates: float = 21  # per ranked user, 1 + 20
    tuned_examples: float = 30_000  # of the MIRM: 10,000 of each objective
    epochs: float = 20  # of Molar's training
    texts_per_second: float = 10_000  # into the store, by the one process that writes: benchmarks/store_rate.py
    vectors_per_second: float = 3_500
    handed_out_per_second: float = 1_800  # items sent to workers and back, by the process that calls: cluster_rate.py
    efficiency_8: float = 0.95  # of 8 GPUs against one, per GPU
    efficiency_64: float = 0.85

    def efficiency(self, gpus: int) -> float:
        return {1: 1.0, 8: self.efficiency_8, 64: self.efficiency_64}[gpus]


@dataclass(frozen=True)
class Stage:
    """A stage of a system on a dataset: GPU seconds, and what one process writes: so many values of so many bytes."""

    system: str
    name: str
    seconds: float
    values: float = 0.0
    size: float = 0.0

    @property
    def kept(self) -> float:
        return self.values * self.size

    def hours(self, gpus: int, assumed: Assumed) -> float:
        """On so many GPUs: until the last one is done, until all is written, or, with more than one, until all has been
        handed out; whichever takes longest."""
        rate = assumed.texts_per_second if self.size <= TEXT_BYTES else assumed.vectors_per_second
        if gpus > 1:
            rate = min(rate, assumed.handed_out_per_second)
        return max(self.seconds / gpus / assumed.efficiency(gpus), self.values / rate) / HOUR


class Costs:
    """Stages of one backbone on one dataset."""

    def __init__(self, backbone: Backbone, data: Data, assumed: Assumed) -> None:
        self.model, self.data, self.a = backbone, data, assumed

    def reading(self, prompts: float, tokens: float, images: float = 0.0) -> float:
        """Seconds to read prompts of so many tokens, with so many images each."""
        a = self.a
        work = 2 * self.model.language * (tokens + images * a.image_tokens)
        work += 2 * self.model.vision * images * a.image_patches
        return prompts * work / (a.peak_flops * a.reading_share)

    def writing(self, answers: float, prompt_tokens: float) -> float:
        """Seconds to write answers: each step reads the weights once for a batch, and each prompt's cache."""
        a = self.a
        cache = (prompt_tokens + a.answer_tokens / 2) * self.model.cache_bytes
        per_step = (2 * self.model.language / a.written_at_once + cache) / (a.bandwidth * a.bandwidth_share)
        return answers * a.answer_tokens * per_step

    def training(self, tokens: float, patches: float = 0.0) -> float:
        """Seconds to learn from so many tokens, every weight being trained."""
        a = self.a
        return 6 * (self.model.language * tokens + self.model.vision * patches) / (a.peak_flops * a.training_share)

    def stages(self) -> Iterator[Stage]:
        """All stages of the three systems, in order."""
        a, data = self.a, self.data
        item_prompt = a.text_tokens + a.instruction_tokens
        # Molar: tune, encode every item once, then train on histories, one token an item and one a target
        shown = a.image_tokens + item_prompt
        yield Stage("Molar", "tuning", self.training(a.tuned_examples * shown, a.tuned_examples * a.image_patches))
        encoding = self.reading(data.items, item_prompt, images=1)
        yield Stage("Molar", "item vectors", encoding, data.items, VECTOR_BYTES[self.model.hidden])
        yield Stage("Molar", "training", self.training(2 * data.interactions * a.epochs))
        # MLLMRec: a description of every item, a profile of every user; its own training is small
        yield self.texts("MLLMRec", "item descriptions", data.items, item_prompt, images=1)
        history = data.interactions / data.users * (a.text_tokens + a.answer_tokens) + a.instruction_tokens
        yield self.texts("MLLMRec", "profiles", data.users, history)
        # MLLM-MSR: descriptions as above; preferences block by block; answers behind a shared prompt
        yield self.texts("MLLM-MSR", "item descriptions", data.items, item_prompt, images=1)
        block = a.block * (a.text_tokens + a.answer_tokens) + a.answer_tokens + a.instruction_tokens
        yield self.texts("MLLM-MSR", "preferences", data.interactions / a.block, block)
        answered = 2 * data.users * (a.answer_tokens + item_prompt + a.image_tokens)
        yield Stage("MLLM-MSR", "tuning", self.training(answered, 2 * data.users * a.image_patches))
        shared = self.reading(data.users, a.answer_tokens + a.instruction_tokens)
        # An image goes through the vision tower once for all users, so only its tokens count here.
        each = self.reading(data.users * a.candidates, a.text_tokens + a.image_tokens)
        yield Stage("MLLM-MSR", "answers, 1 + 20 a user", shared + each)

    def texts(self, system: str, name: str, count: float, tokens: float, images: float = 0.0) -> Stage:
        spent = self.reading(count, tokens, images) + self.writing(count, tokens + images * self.a.image_tokens)
        return Stage(system, name, spent, count, TEXT_BYTES)


def table(assumed: Assumed, details: bool) -> str:
    """GPU hours, hours on 1, 8 and 64 GPUs, and what is kept; of every stage or of every system."""
    rows = []
    for data in DATASETS:
        for backbone in BACKBONES:
            stages = list(Costs(backbone, data, assumed).stages())
            groups = [[stage] for stage in stages] if details else []
            for system in () if details else dict.fromkeys(stage.system for stage in stages):
                groups.append([stage for stage in stages if stage.system == system])
            for group in groups:
                kept = sum(stage.kept for stage in group) / GB
                name = f"{group[0].system}: {group[0].name}" if details else group[0].system
                walls = [number(sum(stage.hours(count, assumed) for stage in group)) for count in COUNTS]
                rows.append([data.name, backbone.name, name, *walls, number(kept)])
    return markdown_table(["", "backbone", "", *(f"h on {count}" for count in COUNTS), "kept, GB"], rows)


def number(value: float) -> str:
    """Two digits that count."""
    if not value:
        return ""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--details", action="store_true", help="a row for every stage")
    for field in fields(Assumed):
        parser.add_argument(f"--{field.name}", type=float, default=field.default)
    arguments = vars(parser.parse_args())
    details = arguments.pop("details")
    print(table(Assumed(**arguments), details))


if __name__ == "__main__":
    main()
