"""Fine-tuning the MIRM against a bare training loop over batches that were built beforehand.

    python benchmarks/mirm_finetuning.py                                        # on a dataset made here
    python benchmarks/mirm_finetuning.py --data_path DIR --dataset ml-100k-mm   # DIR as `recbole-mm prepare` writes it

Two ways over the same examples in the same batches, in turn, the best of several rounds each:

- ours: tokenizing the texts, then `finetune` without the saving: decoding and cutting images, transformers' Trainer
  with its schedule, clipping and logging;
- bare: forward, backward and optimizer step, nothing else; images, tokens and tensors are ready in memory.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import markdown_table, quiet_config
from PIL import Image

from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.item_facts import ItemFacts
from recbole_mm.inputs.mirm.objectives import OBJECTIVES, Histories, build_mixture
from recbole_mm.inputs.mirm.prompting import PromptedExamples
from recbole_mm.llm.finetuning.examples import AnswerLoss, LengthGroupedBatches
from recbole_mm.llm.finetuning.finetune import Tuning, _arguments, _private_randomness, _train, add_lora
from recbole_mm.llm.finetuning.trainer import AnswerTrainer
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.tiny import build_tiny

PIXELS, TEXT_TOKENS, ANSWER_TOKENS = 112 * 112, 256, 128


class Batch(NamedTuple):
    """Everything one step needs."""

    inputs: dict[str, torch.Tensor]
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor
    shares: torch.Tensor


def made_dataset(folder: Path, items: int = 120, users: int = 60) -> Path:
    """`made/` below `folder`: items of a few dozen words with posters of 300 x 440 pixels, and users of ten items."""
    rng = np.random.default_rng(0)
    root = folder / "made"
    (root / "images").mkdir(parents=True)
    words = [f"{a}{b}" for a in ("lo", "mi", "ra", "tu", "ve") for b in ("den", "gar", "ket", "pol", "sin", "tor")]
    rows = ["item_id:token\ttitle:token_seq\tmaker:token_seq\tstory:token_seq"]
    for item in range(items):
        title, maker, story = (" ".join(rng.choice(words, count)) for count in (4, 2, 40))
        rows.append(f"{item}\t{title}\t{maker}\t{story}")
        coarse = Image.fromarray(rng.integers(0, 256, (11, 8, 3), dtype=np.uint8))
        coarse.resize((300, 440), Image.Resampling.BICUBIC).save(root / "images" / f"{item}.jpg", quality=85)
    (root / "made.item").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(users):
        lines += [f"{user}\t{item}\t{step}" for step, item in enumerate(rng.permutation(items)[:12])]
    (root / "made.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "made.yaml").write_text(
        "load_col: {inter: [user_id, item_id, timestamp]}\ntext_fields: [title, maker, story]\nimage_dir: images\n"
    )
    return folder


def prompted(mixture: Sequence[Any], content: Any, mllm: MLLM) -> PromptedExamples:
    return PromptedExamples(
        mixture, content, mllm, image_pixels=PIXELS, max_text_tokens=TEXT_TOKENS, max_answer_tokens=ANSWER_TOKENS
    )


def ours(folder: Path, base: Path, mixture: Sequence[Any], content: Any, tuning: Tuning, device: str) -> float:
    """Seconds of a whole fine-tuning, but for loading and saving the model."""
    mllm = load_mllm(base, device=device, with_head=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, _private_randomness(tuning.seed):
        started = time.perf_counter()
        examples = prompted(mixture, content, mllm)
        _train(mllm, examples, tuning, _arguments(tuning, mllm, Path(scratch)), False)
        _wait(device)
        return time.perf_counter() - started


def built(folder: Path, base: Path, mixture: Sequence[Any], content: Any, tuning: Tuning, device: str) -> list[Batch]:
    """All batches of the training, ready on the device."""
    mllm = load_mllm(base, device=device, with_head=True)
    examples = prompted(mixture, content, mllm)
    batches = LengthGroupedBatches(examples.lengths, tuning.batch_tokens, tuning.seed)
    model = AnswerLoss(mllm.model, mllm.family)
    trainer = AnswerTrainer(
        mllm, model, _arguments(tuning, mllm, folder), examples, batches, PIXELS, tuning.warmup_ratio, False
    )
    ready = []
    for indices in batches:
        parts = [trainer.prepare(index) for index in indices]
        lengths = np.array([part.answer for part in parts])
        rows = np.repeat(np.arange(len(parts)), lengths)
        columns = np.concatenate([np.arange(len(part.input.ids) - part.answer, len(part.input.ids)) for part in parts])
        inputs = mllm.family.collate([part.input for part in parts], torch.device(device))
        at = torch.from_numpy(np.stack([rows, columns])).to(device)
        shares = torch.from_numpy((1 / lengths / trainer.per_batch)[rows]).float().to(device)
        ready.append(Batch(inputs, at[0], at[1] - 1, inputs["input_ids"][at[0], at[1]], shares))
    trainer.close()
    return ready


def bare(batches: Sequence[Batch], base: Path, tuning: Tuning, device: str) -> float:
    """Seconds of forward, backward and step over batches that are there."""
    mllm = load_mllm(base, device=device, with_head=True)
    if tuning.method == "lora":
        mllm.model = add_lora(mllm, tuning.lora)
    model = AnswerLoss(mllm.model, mllm.family, mllm.cur_item_id if tuning.bottleneck else None).train()
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=tuning.learning_rate, weight_decay=0.0, fused=True)
    with torch.autograd.set_detect_anomaly(False):  # one of RecBole's models turns it on
        started = time.perf_counter()
        for batch in batches:
            losses = model(batch.inputs, batch.rows, batch.columns, batch.targets)
            (losses * batch.shares).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        _wait(device)
        return time.perf_counter() - started


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", help="folder that holds the dataset's folder (default: a dataset made here)")
    parser.add_argument("--dataset", default="made")
    parser.add_argument("--mllm", help="a model's folder or hub id (default: the tiny model)")
    parser.add_argument("--method", choices=["full", "lora"], default="full")
    parser.add_argument("--bottleneck", action="store_true")
    parser.add_argument("--examples", type=int, default=40, help="of each objective")
    parser.add_argument("--batch_tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    logging.getLogger("recbole_mm").setLevel(logging.WARNING)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data_path = arguments.data_path or str(made_dataset(folder))
        dataset = create_dataset(quiet_config("Molar", arguments.dataset, data_path=data_path))
        content = dataset.content
        texts = [content.text(index) or "" for index in range(1, len(content))]
        base = arguments.mllm or build_tiny(texts, folder / "tiny")
        histories = Histories(*dataset.training_sequences())
        mixture = build_mixture(ItemFacts(content), histories, OBJECTIVES, arguments.examples, 10, 0)
        tuning = Tuning(arguments.method, batch_tokens=arguments.batch_tokens, bottleneck=arguments.bottleneck)
        device = arguments.device
        batches = built(folder / "scratch", base, mixture, content, tuning, device)
        times: dict[str, list[float]] = {"ours": [], "bare loop": []}
        for _ in range(arguments.rounds):
            times["ours"].append(ours(folder, base, mixture, content, tuning, device))
            times["bare loop"].append(bare(batches, base, tuning, device))
    rows = [
        (way, f"{min(values):.2f}", f"{len(mixture) / min(values):.1f}", ", ".join(f"{value:.1f}" for value in values))
        for way, values in times.items()
    ]
    print(f"{len(mixture)} examples in {len(batches)} batches, {arguments.method}, {device}, ", end="")
    print(f"{torch.get_num_threads()} threads\n")
    print(markdown_table(["way", "seconds, best", "examples per second", "all rounds"], rows))
    ratios = [alone / whole for alone, whole in zip(times["bare loop"], times["ours"])]
    print(
        f"\nours against the bare loop, best against best: {min(times['bare loop']) / min(times['ours']):.0%}, ", end=""
    )
    print(f"in the median round: {np.median(ratios):.0%}")


if __name__ == "__main__":
    main()
