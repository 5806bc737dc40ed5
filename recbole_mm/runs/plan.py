"""What a run would compute before it trains: calls, tokens and time, told before anything is spent.

`recbole-mm plan --model=MLLMRec --dataset=D` reads the data and the artifact store. It loads no weights, asks no
server, downloads nothing larger than a tokenizer, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_mm.artifacts.store import Store
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.evaluation.splits import check_split
from recbole_mm.inputs.model_inputs import OF_THE_MLLM, artifact_dir, needed
from recbole_mm.inputs.reasoning.estimate import Estimate, PlannedStage
from recbole_mm.inputs.reasoning.stage import NEEDS as OF_REASONING
from recbole_mm.llm.dry_run import feature_stages, mllm_stages, unloaded_generator
from recbole_mm.models.hooks import hooks_of


@dataclass
class Plan:
    """What is to be computed.

    Attributes:
        config: of the run.
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


class NoStore:
    """Stands for an artifact store that is not there yet, without making it."""

    def contains(self, keys) -> set[str]:
        return set()

    def get_many(self, keys) -> dict[str, Any]:
        return {}

    def failures(self, stage: str | None = None) -> dict[str, str]:
        return {}

    def close(self) -> None:
        """Nothing is open."""


def plan(
    model: str | type | None = None,
    dataset: str | None = None,
    config_files: Sequence[str | Path] = (),
    config_dict: Mapping[str, Any] | None = None,
    command_line: Mapping[str, str] | None = None,
) -> Plan:
    """Plan the run that `recbole_mm.run` of the same arguments would be.

    Raises:
        RecboleMMError: what would stop the run, too: settings, the data, a model of another kind.
    """
    config = Config(model, dataset, config_files, config_dict, command_line)
    needs = needed(config, hooks_of(config.model_class))
    planned = Plan(config)
    specs = config["item_features"] or {}
    if not needs and not specs:
        return planned
    data = create_dataset(config)
    check_split(config, data, config.model_class)
    path = artifact_dir(config) / "artifacts.sqlite"
    store: Any = Store(path) if path.is_file() else NoStore()
    try:
        if set(needs) & set(OF_THE_MLLM):
            planned.stages += mllm_stages(config, data, store, needs, planned.notes)
        estimate = None
        if set(needs) & set(OF_REASONING):
            generator = unloaded_generator(config, data, planned.notes)
            estimate = Estimate(config, data, store, artifact_dir(config), generator, planned.notes)
            planned.stages += estimate.stages(needs)
        if "answering_mllm" in needs and config["sft_tuning"] != "none":
            planned.notes.append("the MLLM is fine-tuned after that (sft_tuning), which is not estimated here")
        planned.stages += feature_stages(config, data, store, specs, planned.notes, estimate)
    finally:
        store.close()
    return planned
