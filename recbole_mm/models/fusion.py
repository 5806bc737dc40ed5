"""The weight of one of two scores in their sum: given, or chosen on validation among weights that include 0 and 1."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recbole_mm.errors import ConfigError
from recbole_mm.models.settings import VALID
from recbole_mm.utils.cache import ByteCache

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
"""What is tried on validation. With 0 and 1 among them, the sum validates no worse than the better one of its parts."""

KEPT_BYTES = 1 << 30
"""Bound of what is kept between two weights that are tried."""


class Fusion(nn.Module):
    """A weight w in `w * one + (1 - w) * other`.

    A weight that is chosen on validation is saved with the model's weights; a given one is not.

    Args:
        weight: a number from 0 to 1, or `valid`; None stands for `default`.
        default: the weight until another one is chosen, which also stays if none validates better.

    Example:
        >>> fusion = Fusion("valid", default=0.5)
        >>> fusion.value, list(fusion.choices().values())[:3]
        (0.5, [0.5, 0.0, 0.05])
        >>> fusion.take(0.2, last=True)
        >>> fusion.value
        0.2
    """

    def __init__(self, weight: float | str | None, default: float) -> None:
        super().__init__()
        self.default = default
        self.is_chosen = weight == VALID
        given = default if weight is None or weight == VALID else float(weight)
        self.register_buffer("weight", torch.tensor(given, dtype=torch.float64), persistent=self.is_chosen)
        self._kept: ByteCache[bytes, Tensor] | None = None

    weight: Tensor

    @property
    def value(self) -> float:
        """The weight."""
        return float(self.weight)

    def choices(self) -> dict[str, float]:
        """The weights to try, the default first, by what is said of them; none where the weight is given."""
        tried = (self.default, *(weight for weight in WEIGHTS if weight != self.default))
        return {f"fusion_weight: {weight:g}": weight for weight in tried} if self.is_chosen else {}

    def take(self, weight: float, last: bool) -> None:
        """Set the weight.

        Args:
            weight: one of `choices`.
            last: it stays. Until then the model must not change, since `kept` gives what was computed before.
        """
        self.weight.fill_(weight)
        if last:
            self._kept = None
        elif self._kept is None:
            self._kept = ByteCache(KEPT_BYTES)

    def kept(self, given: Iterable[Tensor], compute: Callable[[], Tensor]) -> Tensor:
        """Return what does not depend on the weight, not to be changed; while weights are tried it is computed once.

        Args:
            given: what it depends on.
            compute: computes it.
        """
        if self._kept is None:
            return compute()
        key = digest(given)
        found = self._kept.get(key)
        if found is None:
            found = compute()
            self._kept.put(key, found, found.nbytes)
        return found


def digest(tensors: Iterable[Tensor]) -> bytes:
    """Return the same bytes for the same values only.

    Example:
        >>> digest([torch.zeros(2)]) == digest([torch.zeros(1), torch.zeros(1)])
        False
    """
    found = hashlib.blake2b(digest_size=16)
    for values in tensors:
        found.update(f"{values.dtype}{tuple(values.shape)}".encode())
        found.update(values.detach().cpu().contiguous().numpy().tobytes())
    return found.digest()


def check_fusion(config: Config) -> None:
    """Refuse a weight that is to be chosen where nothing is validated, or where other weights than the best are tested.

    Raises:
        ConfigError: it is.
    """
    if config["fusion_weight"] != VALID:
        return
    if config["eval_step"] == 0:
        raise ConfigError("fusion_weight: valid is chosen on validation: set eval_step to 1 or more")
    if not config["load_best_model"]:
        raise ConfigError("fusion_weight: valid is chosen for the best epoch's weights: set load_best_model: True")
