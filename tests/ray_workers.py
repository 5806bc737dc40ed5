"""Workers for stages on Ray, in a module that Ray's processes can import."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from recbole_mm.artifacts.executor import Failure
from recbole_mm.distributed.cluster import inside_ray
from recbole_mm.errors import ModelLoadError


@dataclass(frozen=True)
class Sines:
    """Makes vectors of numbers, and notes in a folder what it does: `opened-<pid>`, and of each batch that it begins
    `begun-<first input>-<node>-<pid>`.

    Attributes:
        folder: of the notes.
        seconds: that a batch takes.
        fails: what opening does: `nothing`, `model`.
    """

    folder: str
    seconds: float = 0.0
    fails: str = "nothing"

    def open(self, device: str) -> SineWorker:
        if self.fails == "model":
            raise ModelLoadError("no/such/model: no model there")
        (Path(self.folder) / f"opened-{os.getpid()}").touch()
        return SineWorker(self)


class SineWorker:
    def __init__(self, recipe: Sines) -> None:
        self.recipe = recipe
        self.count = 0

    def compute(self, inputs: list[Any]) -> list[Any]:
        node = ray.get_runtime_context().get_node_id()
        (Path(self.recipe.folder) / f"begun-{inputs[0]}-{node}-{os.getpid()}").touch()
        time.sleep(self.recipe.seconds)
        if "bug" in inputs:
            raise KeyError("bug")
        self.count = len(inputs)
        return [sine(number) for number in inputs]

    def report(self) -> dict[str, Any]:
        return {"count": self.count, "inside": inside_ray()}


def sine(number: Any) -> Any:
    """What the local loop makes of an input."""
    if number == "bad":
        return Failure("not a number")
    if number == "text":
        return "a text é"
    if number == "nan":
        return np.array([np.nan], dtype=np.float32)
    return np.sin(np.arange(4, dtype=np.float32) + np.float32(number))
