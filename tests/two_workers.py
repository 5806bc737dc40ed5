"""Two workers without Ray: processes that are joined by gloo, and what is checked in them."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.model.general_recommender import BPR
from torch import distributed as dist
from torch import multiprocessing

import recbole_mm  # noqa: F401  (applies the compatibility shims before RecBole's models are used)
from recbole_mm.config.resolved import Config
from recbole_mm.evaluation.collector import RANKS
from recbole_mm.models.whole_batch import BatchPart, Rows, part_of_batch, whole_batch
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from recbole_mm.runs.profiling import Stages
from recbole_mm.training.checkpoint import rng_state, set_rng_state
from recbole_mm.training.ddp import OwnStream
from recbole_mm.training.factory import make_trainer
from recbole_mm.utils.process_group import Workers, use_workers

SIZE = 2


class Mortal(BPR):
    """BPR whose second worker is killed once, in the middle of its second epoch; a file says that it was."""

    supports_ddp = True

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.grave = Path(config["grave"])
        self.epoch = self.batches = 0

    def start_epoch(self, epoch):
        self.epoch, self.batches = epoch, 0

    def calculate_loss(self, interaction):
        self.batches += 1
        second = dist.is_initialized() and dist.get_rank() == 1
        if second and (self.epoch, self.batches) == (1, 3) and not self.grave.exists():
            self.grave.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().calculate_loss(interaction)


def together(folder: Path, check: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `check(workers, *arguments)` in two processes at once; gives what each returned."""
    context = multiprocessing.get_context("spawn")
    queue, received = context.SimpleQueue(), context.Event()
    processes = [
        context.Process(target=_worker, args=(rank, queue, received, check, folder, arguments)) for rank in range(SIZE)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(queue.get() for _ in processes)
    finally:
        received.set()
    for process in processes:
        process.join()
    for outcome in found.values():
        if isinstance(outcome, BaseException):
            raise outcome
    return [found[rank] for rank in range(SIZE)]


def _worker(rank: int, queue: Any, received: Any, check: Callable[..., Any], folder: Path, arguments: tuple) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=SIZE)
    try:
        queue.put((rank, check(Workers(), *arguments)))
    except Exception as error:  # told to the test; the other process learns it from its connections
        queue.put((rank, RuntimeError(f"worker {rank}: {type(error).__name__}: {error}")))
        os._exit(1)
    received.wait()  # tensors in a queue are handed over by the process that put them
    dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------------- exchanged rows


def rows_exchanged(workers: Workers, counts: list[int], idle: int | None) -> dict[str, Any]:
    """What `whole_batch` and `Rows` give for rows that are told apart by their number, and what comes back by them."""
    count, start = counts[workers.rank], sum(counts[: workers.rank])
    part = BatchPart(workers.group, SIZE, workers.rank, 0.5, workers.rank == idle, OwnStream(3, workers.rank))
    values = torch.arange(start, start + count, dtype=torch.float32)[:, None].repeat(1, 2).requires_grad_()
    ids, flags = torch.arange(start, start + count), torch.arange(start, start + count) % 2 == 0
    with part_of_batch(part):
        whole, whole_ids, whole_flags = whole_batch(values, ids, flags)
        rows = Rows(count)
        (whole * torch.arange(1, len(whole) + 1)[:, None] * (workers.rank + 1)).sum().backward()
        return {
            "whole": whole.detach(),
            "ids": whole_ids,
            "flags": whole_flags,
            "own": rows.own(whole_ids),
            "gradient": values.grad,
        }


def streams_drawn(workers: Workers) -> list[Any]:
    """Numbers drawn: before, in the own stream, by all alike within it, again in the own one, after."""
    torch.manual_seed(7)
    stream = OwnStream(3, workers.rank)
    stream.begin(0)
    drawn = [torch.rand(2).tolist()]
    with stream.own():
        drawn.append(torch.rand(3 + workers.rank).tolist()[:3])
        with stream.shared():
            drawn.append([*torch.rand(2).tolist(), float(np.random.default_rng().random() >= 0)])
        drawn.append(torch.rand(2).tolist())
    return [*drawn, torch.rand(2).tolist()]


# ------------------------------------------------------------------------------------------------------ single steps


def without_dropout() -> None:
    """Dropout cannot be the same with another number of workers; all other draws must be."""
    torch.nn.functional.dropout = lambda values, *_, **__: values


def steps_compared(workers: Workers, variants: dict[str, dict], folder: str) -> dict[str, list[tuple[float, float]]]:
    """By variant: differences of loss and gradients between one process and two, of a whole batch and of one row."""
    kept = torch.nn.functional.dropout
    without_dropout()
    try:
        return {variant: _compared(workers, variant, variants[variant], Path(folder)) for variant in variants}
    finally:
        torch.nn.functional.dropout = kept


def _compared(workers: Workers, variant: str, settings: dict, folder: Path) -> list[tuple[float, float]]:
    config = Config(variant.split()[0], "toy", config_dict=settings)
    run_dir = folder / f"{variant}-{workers.rank}"
    run_dir.mkdir(parents=True)
    if not workers.is_first:  # what is stored is computed once
        workers.barrier()
    assembled = pipeline.assemble(config, run_dir, Stages())
    if workers.is_first:
        workers.barrier()
    batch = next(iter(assembled.splits.train))
    row = type(batch)({name: values[:1] for name, values in batch.interaction.items()})
    return [_step_compared(workers, config, assembled.model, run_dir, one) for one in (batch, row)]


def _step_compared(workers: Workers, config: Any, model: Any, run_dir: Path, batch: Any) -> tuple[float, float]:
    """Largest differences of the losses' parts and of the gradients, as shares of the largest of them."""
    alone = make_trainer(config, model, run_dir)
    before = rng_state()
    loss, gradients = _step(alone, model, batch)
    set_rng_state(before)
    with use_workers(workers):
        trainer: Any = make_trainer(config, model, run_dir)
        trainer._random.begin(0)
        part, summed = _step(trainer, model, batch)
    part = workers.sum(part)
    assert gradients.keys() == summed.keys(), "weights that no part of the loss reaches stay without a gradient"
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    apart = max(float((gradients[name] - summed[name]).abs().max()) for name in gradients)
    return float(np.abs(loss - part).max() / np.abs(loss).max()), apart / largest


def _step(trainer: Any, model: Any, batch: Any) -> tuple[np.ndarray, dict[str, torch.Tensor]]:
    trainer.hooks.start_epoch(model, 0)
    model.train()
    model.zero_grad()
    losses = trainer._backward(model.calculate_loss, batch, 0, 1, True)
    parts = losses if isinstance(losses, tuple) else (losses,)
    grown = {
        name: weight.grad.to_dense().clone() for name, weight in model.named_parameters() if weight.grad is not None
    }
    return np.array([float(part.detach().sum()) for part in parts]), grown


# ------------------------------------------------------------------------------------------------------- whole runs


def ran(workers: Workers, model: Any, settings: dict, run_dir: Path) -> None:
    """Train and test in `run_dir`, from its checkpoint if it has one, as Ray's workers do."""
    config = Config(model, "toy", config_dict=settings)
    if workers.is_first:
        run_dir.mkdir(parents=True, exist_ok=True)
        config.save(run_dir / run_folder.CONFIG)
    workers.barrier()
    resume = (run_dir / run_folder.CHECKPOINT).exists()
    with use_workers(workers):
        pipeline.train_and_test(pipeline.assemble(config, run_dir, Stages()), Stages(), resume)
    workers.barrier()


def ranked(workers: Workers, run_dir: Path) -> dict[str, Any]:
    """Metrics and ranks of a finished run's test users: of this process alone, and of the two together."""
    loaded = pipeline.load(run_dir)
    found = {}
    for name in ("alone", "together"):
        trainer: Any = make_trainer(loaded.config, loaded.model, run_dir)
        if name == "alone":
            result = trainer.evaluate(loaded.splits.test, load_best_model=False)
        else:
            with use_workers(workers):
                shared: Any = make_trainer(loaded.config, loaded.model, run_dir)
                result = shared.evaluate(loaded.splits.test, load_best_model=False)
            trainer = shared
        struct = trainer.last_struct
        found[name] = (dict(result), struct.get(RANKS).tolist(), struct.get("rec.items").tolist())
    return found


def everything(workers: Workers, plan: dict[str, Any]) -> dict[str, Any]:
    """All checks of `test_distributed.py` in one pair of processes, whose start costs more than the checks."""
    folder = Path(plan["folder"])
    found: dict[str, Any] = {"rows": rows_exchanged(workers, [3, 1], None), "idle": rows_exchanged(workers, [1, 3], 0)}
    found["streams"] = streams_drawn(workers)
    for name, (model, settings) in plan["runs"].items():
        ran(workers, model, settings, folder / "two" / name)
    found["ranked"] = {name: ranked(workers, Path(path)) for name, path in plan["ranked"].items()}
    model, half, whole = plan["resumed"]
    ran(workers, model, half, folder / "two first")
    if workers.is_first:
        shutil.copytree(folder / "one first", folder / "then two")
    workers.barrier()
    ran(workers, model, whole, folder / "then two")
    found["steps"] = steps_compared(workers, plan["steps"], str(folder / "steps"))
    return found
