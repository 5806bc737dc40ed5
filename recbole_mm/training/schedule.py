"""Learning rate by optimizer step: linear warm-up, then constant, cosine or linear decay."""

from __future__ import annotations

import math
from typing import Any

from torch.optim import Optimizer

from recbole_mm.errors import ConfigError

DECAYS = ("constant", "cosine", "linear")


class LearningRateSchedule:
    """Multiplies every parameter group's own learning rate by a factor of the step.

    Over the warm-up the factor grows linearly from `start_factor` to 1 (Molar: from lr / 100). After it, with t running
    from 0 to 1 over the remaining steps, it is 1 (`constant`), (1 + cos(pi t)) / 2 (`cosine`) or 1 - t (`linear`), and
    stays at its last value should training run longer.

    The step counter is the whole state, so a resumed run continues at the very rate where it stopped.

    Args:
        optimizer: its groups' `lr` at this moment are the full rates.
        name: one of `DECAYS`.
        total_steps: optimizer steps of the whole training.
        warmup_steps: optimizer steps of the warm-up; 0 for none.
        start_factor: factor of the first step of a warm-up.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        >>> schedule = LearningRateSchedule(optimizer, "linear", total_steps=4, warmup_steps=0)
        >>> schedule.step()
        >>> schedule.last_rates()
        [0.375]
    """

    def __init__(
        self, optimizer: Optimizer, name: str, total_steps: int, warmup_steps: int, start_factor: float = 0.01
    ) -> None:
        self.optimizer = optimizer
        self.name = name
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.start_factor = start_factor
        self.full_rates = [group["lr"] for group in optimizer.param_groups]
        self.steps_done = 0
        self._apply()

    def factor(self, step: int) -> float:
        """Return the factor of the optimizer step number `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.start_factor + (1 - self.start_factor) * step / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        if self.name == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1 - progress if self.name == "linear" else 1.0

    def step(self) -> None:
        """Set the rate of the next optimizer step; to be called after `optimizer.step()`."""
        self.steps_done += 1
        self._apply()

    def _apply(self) -> None:
        factor = self.factor(self.steps_done)
        for group, rate in zip(self.optimizer.param_groups, self.full_rates, strict=True):
            group["lr"] = rate * factor

    def last_rates(self) -> list[float]:
        """Return the learning rate of each parameter group for the coming step."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the step counter and the groups' full rates."""
        return {"steps_done": self.steps_done, "full_rates": list(self.full_rates)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.steps_done = state["steps_done"]
        self.full_rates = list(state["full_rates"])
        self._apply()


def lr_schedule(
    optimizer: Optimizer,
    name: str | None,
    total_steps: int,
    warmup_ratio: float | None = None,
    warmup_steps: int | None = None,
    start_factor: float = 0.01,
) -> LearningRateSchedule:
    """Build a schedule from settings, and check them.

    Args:
        optimizer: its groups' `lr` are the full rates.
        name: `constant` (also None), `cosine` or `linear`.
        total_steps: optimizer steps of the whole training.
        warmup_ratio: share of `total_steps` to warm up over, 0 to 1; or
        warmup_steps: the same as a number of steps.
        start_factor: learning rate of the very first step as a share of the full one.

    Raises:
        ConfigError: unknown name, both or impossible warm-ups.
    """
    name = name or "constant"
    if name not in DECAYS:
        raise ConfigError(f"lr_scheduler: {name!r} is not one of {', '.join(DECAYS)}")
    if warmup_ratio and warmup_steps:
        raise ConfigError("give either warmup_ratio or warmup_steps, not both")
    if not 0 <= (warmup_ratio or 0) <= 1:
        raise ConfigError(f"warmup_ratio: {warmup_ratio} is not between 0 and 1")
    if (warmup_steps or 0) < 0:
        raise ConfigError(f"warmup_steps: {warmup_steps} is negative")
    if not 0 <= start_factor <= 1:
        raise ConfigError(f"warmup_start_factor: {start_factor} is not between 0 and 1")
    steps = warmup_steps or round((warmup_ratio or 0) * total_steps)
    return LearningRateSchedule(optimizer, name, total_steps, steps, start_factor)
