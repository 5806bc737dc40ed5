"""A step of sampled scores, forward and backward: gathered vectors, ours, and the product with all items.

    python benchmarks/sampled_scores.py
    python benchmarks/sampled_scores.py --items 3707 --width 64

Random vectors, one thread, the least processor time of five steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from common import PeakMemory, markdown_table
from torch import Tensor

from recbole_mm.models.cross_entropy import linear_cross_entropy
from recbole_mm.models.losses import softmax_of_sample
from recbole_mm.models.sampled_scores import sampled_scores

STEPS = 5


def plain(states: Tensor, items: Tensor, ids: Tensor) -> Tensor:
    """Scores (n, k) of vectors gathered at once."""
    return torch.einsum("nd,nkd->nk", states, items[ids])


def sampled(scores: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The sampled softmax of scores that are computed so."""
    return lambda states, items, targets, ids: softmax_of_sample(
        (states * items[targets]).sum(-1), scores(states, items, ids)
    )


def measured(loss: Callable[..., Tensor], given: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds of processor time and added MiB of a step."""
    torch.manual_seed(0)
    scale = given.width**-0.25  # scores of a variance of 1
    states, items = ((scale * torch.randn(n, given.width)).requires_grad_() for n in (given.targets, given.items))
    ids = torch.randint(1, given.items, (given.targets, given.negatives))
    targets = torch.randint(1, given.items, (given.targets,))
    times = []
    with PeakMemory() as memory:
        for _ in range(STEPS):
            states.grad = items.grad = None
            start = time.process_time()
            loss(states, items, targets, ids).backward()
            times.append(time.process_time() - start)
    return 1000 * min(times), memory.added_mib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("targets", 768), ("items", 12102), ("negatives", 256), ("width", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(1)
    sides = {
        "sampled softmax, vectors gathered": sampled(plain),
        "sampled softmax, ours": sampled(sampled_scores),
        "cross-entropy over all items": lambda states, items, targets, ids: linear_cross_entropy(
            states, items, targets
        ),
    }
    found = {name: measured(loss, given) for name, loss in sides.items()}
    base = next(iter(found.values()))[0]
    rows = [[name, f"{ms:.1f}", f"{base / ms:.1f}x", f"{mib:.0f}"] for name, (ms, mib) in found.items()]
    print(markdown_table(["step", "ms", "ratio", "added MiB"], rows))


if __name__ == "__main__":
    main()
