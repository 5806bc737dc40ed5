"""What a run would compute before it trains: calls, tokens and time, known before anything is spent.

`recbole-mm plan --model=MLLMRec --dataset=D` reads the data and the artifact store. It loads no weights, asks no
server, downloads nothing larger than a tokenizer, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.evaluation.splits import check_split
from recbole_mm.inputs.context import PlannedStage
from recbole_mm.inputs.model_inputs import plan_inputs
from recbole_mm.inputs.needs import asks_for_inputs, warn_without_effect
from recbole_mm.models.hooks import hooks_of


@dataclass
class Plan:
    """What is to be computed.

    Attributes:
        config: the run's configuration.
        stages: in the order in which the run computes them; empty where the model asks for nothing.
        notes: what a reader must know beside the numbers.
    """

    config: Config
    stages: list[PlannedStage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def to_do(self) -> int:
        """Texts and vectors that are not in the store."""
        return sum(stage.to_do for stage in self.stages)


def plan(
    model: str | type | None = None,
    dataset: str | None = None,
    config_files: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    command_line: Mapping[str, str] | None = None,
) -> Plan:
    """Plans the run that `recbole_mm.run` of the same arguments would be.

    Raises:
        RecboleMMError: what would stop the run, too: settings, the data, a model of another kind.
    """
    config = Config(model, dataset, config_files, config_dict, command_line)
    hooks = hooks_of(config.model_class)
    warn_without_effect(config, hooks)
    if not asks_for_inputs(config, hooks):
        return Plan(config)
    data = create_dataset(config)
    check_split(config, data, config.model_class)
    return Plan(config, *plan_inputs(config, data, hooks))
