"""bfloat16 on a GPU: encoding items, LoRA steps and DUEG steps of models of 2 billion parameters, random weights.

    python benchmarks/gpu_steps.py               # a GPU of 40 GB; about 4 minutes with the making of the weights
    python benchmarks/gpu_steps.py --tiny        # models of a million parameters, on the CPU too: shows that it runs

Qwen2-VL-2B and Qwen3-VL-2B are made from the sizes in their published config.json, so that nothing is downloaded: what
a step costs does not depend on what the weights are. A token is one of the decoder's, padding not counted; memory is
the most that was allocated on the GPU, weights included (on a CPU: that the process held).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common import PeakMemory, markdown_table
from PIL import Image
from torch.nn import functional

from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.llm.families import family_class
from recbole_mm.llm.finetuning.examples import AnswerLoss
from recbole_mm.llm.finetuning.finetune import Lora, add_lora
from recbole_mm.llm.loading import add_cur_item
from recbole_mm.llm.model import MLLM, checkpoint_layers
from recbole_mm.llm.tiny_models import RECIPES
from recbole_mm.models.lora import with_lora
from recbole_mm.models.molar.dueg import TextStackDUEG

WORDS = 151_936
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "qwen2_vl": {
        "text": {
            **{"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
            **{"num_key_value_heads": 2, "vocab_size": WORDS, "max_position_embeddings": 32_768},
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
    },
    "qwen3_vl": {
        "text": {
            **{"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
            **{"num_key_value_heads": 8, "head_dim": 128, "vocab_size": WORDS, "max_position_embeddings": 262_144},
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
                "mrope_interleaved": True,
            },
        },
        "vision": {
            **{"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "out_hidden_size": 2048},
            **{"num_position_embeddings": 2304, "deepstack_visual_indexes": [5, 11, 17]},
        },
    },
}
"""What the published configurations say beside the defaults of transformers."""

CORPUS = [
    f"A {colour} lamp of number {number}, with a shade of linen." for number in range(40) for colour in ("red", "blue")
]


@dataclass
class Record:
    """An item: a text of a few dozen words and a picture of 224 x 224."""

    item_id: str
    text: str | None
    image: Image.Image | None


@dataclass
class Size:
    """How much is done at once.

    Attributes:
        items: encoded.
        prompts: of a LoRA step, an item and its answer each.
        users: of a DUEG step.
        history: items of each user.
        steps: timed; one more comes first.
    """

    items: int = 512
    prompts: int = 32
    users: int = 32
    history: int = 50
    steps: int = 5


def build(kind: str, tiny: bool, device: torch.device) -> MLLM:
    """A model with random weights in bfloat16 around a tokenizer that was trained on a few sentences."""
    recipe, family_type = RECIPES[kind], family_class(kind)
    tokenizer = recipe.tokenizer(CORPUS)
    config = recipe.config(tokenizer)
    if not tiny:
        text, vision = SIZES[kind]["text"], SIZES[kind]["vision"]
        ids = [
            {n: i for n, i in part.to_dict().items() if n.endswith("_token_id")}
            for part in (config, config.text_config)
        ]
        config = type(config)(text_config={**ids[1], **text}, vision_config=vision, tie_word_embeddings=True, **ids[0])
    torch.manual_seed(0)
    with torch.device(device):
        model = family_type.generation_class._from_config(config, dtype=torch.bfloat16)
    cur_item = add_cur_item(model, tokenizer, kind)
    images = family_type.image_processor_class(**recipe.images)
    family = family_type(model.config, images, tokenizer)
    family.speed_up(model)
    return MLLM(kind, f"random-{kind}", model.to(device).eval(), tokenizer, images, family, cur_item)


def records(count: int) -> list[Record]:
    """Items that differ in picture and text."""
    rng = np.random.default_rng(1)
    made = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        text = " ".join(rng.choice(CORPUS, 6))
        made.append(Record(str(number), text, coarse.resize((224, 224), Image.Resampling.BICUBIC)))
    return made


class Watch:
    """Seconds and the most memory of what runs inside, on a GPU or a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.memory = PeakMemory()

    def __enter__(self) -> Watch:
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self.memory.__enter__()
        self.begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.begin
        self.memory.__exit__()
        self.gib = (torch.cuda.max_memory_allocated() if self.on_gpu else self.memory.peak) / 2**30


Row = list[Any]


def encode(mllm: MLLM, size: Size) -> Row:
    """Eq. (1) of Molar: pictures are decoded and texts cut into tokens on the way, as in a run."""
    encoder = ItemEncoder(mllm, image_pixels=112 * 112)
    items = records(size.items)
    prepared = [encoder.prepare(item) for item in items]
    tokens = sum(len(item.ids) for item in prepared if item is not None)
    encoder.encode(items[: min(32, len(items))])
    with Watch(mllm.device) as watch:
        vectors = encoder.encode(items)
    assert np.isfinite(vectors).all()
    return ["encode items", f"{size.items} items", tokens, watch, 1]


def train(
    name: str, what: str, tokens: int, steps: int, device: torch.device, loss: Callable[[], Any], weights: Any
) -> Row:
    """Time a few steps of AdamW; one comes first, in which its state is made."""
    learnt = [weight for weight in weights if weight.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=1e-5)

    def step() -> float:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach())

    step()
    with Watch(device) as watch:
        values = [step() for _ in range(steps)]
    assert np.isfinite(values).all()
    counted = sum(weight.numel() for weight in learnt) / 1e6
    return [name, f"{what}; {counted:,.1f} M weights learn", tokens, watch, steps]


def lora(mllm: MLLM, size: Size) -> Row:
    """The MIRM's fine-tuning: prompts of an item, the last 16 words to be learnt, LoRA in all layers of the decoder."""
    family = mllm.family
    encoder = ItemEncoder(mllm, image_pixels=112 * 112)
    items = [item for item in map(encoder.prepare, records(size.prompts)) if item is not None]
    mllm.model = add_lora(mllm, Lora())
    checkpoint_layers(mllm.model)
    batch = family.collate(items, mllm.device)
    places = [(row, place) for row, item in enumerate(items) for place in range(len(item.ids) - 17, len(item.ids) - 1)]
    rows, columns = torch.tensor(places, device=mllm.device).T
    targets = batch["input_ids"][rows, columns + 1]
    answers = AnswerLoss(mllm.model.train(), family)
    tokens, what = sum(len(item.ids) for item in items), f"{len(items)} prompts, activations computed twice"
    parameters = list(answers.parameters())
    return train(
        *("LoRA step", what, tokens, size.steps, mllm.device),
        lambda: answers(batch, rows, columns, targets).mean(),
        parameters,
    )


def dueg(mllm: MLLM, size: Size, tuning: str) -> Row:
    """Eq. (2) and (3) of Molar: E_u after every item of each history, against the items of the batch."""
    stack = mllm.text_stack()
    if tuning == "lora":
        stack.decoder = with_lora(stack.decoder, 16, 32, 0.05)
    model = TextStackDUEG(stack, mllm.hidden_size, tuning).to(mllm.device).train()
    generator = torch.Generator().manual_seed(2)
    items = torch.randn(size.users, size.history + 1, mllm.hidden_size, generator=generator).to(mllm.device)
    targets = torch.arange(size.users * size.history, device=mllm.device)

    def loss() -> torch.Tensor:
        users = model.all_prefixes(items[:, :-1]).flatten(0, 1)
        scores = users.float() @ items[:, 1:].flatten(0, 1).T / mllm.hidden_size**0.5
        return functional.cross_entropy(scores, targets)

    tokens, what = 2 * size.users * size.history, f"{size.users} users x {size.history} items"
    return train(f"DUEG step, {tuning}", what, tokens, size.steps, mllm.device, loss, list(model.parameters()))


def measure(kind: str, tiny: bool, device: torch.device, size: Size) -> Iterator[Row]:
    begin = time.perf_counter()
    mllm = build(kind, tiny, device)
    parameters = sum(weight.numel() for weight in mllm.model.parameters()) / 1e6
    print(f"{kind}: {parameters:,.0f} M random weights in {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    for part in (encode, lambda *_: dueg(mllm, size, "lora"), lambda *_: dueg(mllm, size, "full"), lora):
        yield [kind, *part(mllm, size)]
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tiny", action="store_true", help="models of a million parameters, on the CPU where there is no GPU"
    )
    parser.add_argument("--models", default=",".join(SIZES), help="which of them, with commas between")
    given = parser.parse_args()
    if not torch.cuda.is_available() and not given.tiny:
        print("no CUDA device here: nothing was measured; --tiny shows on the CPU that it runs", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = Size(items=8, prompts=4, users=2, history=5, steps=1) if given.tiny else Size()
    rows = []
    for kind in given.models.split(","):
        for name, step, what, tokens, watch, steps in measure(kind, given.tiny, device, size):
            speed = f"{tokens * steps / watch.seconds:,.0f}"
            rows.append([name, step, what, f"{watch.seconds / steps:.3f}", speed, f"{watch.gib:.1f}"])
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
    where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"\n{where}, torch {torch.__version__}, bfloat16\n")
    print(markdown_table(["model", "what", "of", "seconds", "tokens/s", "GiB at most"], rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
