"""Models that ask an LLM, built through the pipeline on the toy data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from recbole_mm.config.resolved import Config
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import Run, assemble, open_needed
from tests.conftest import TOY_SETTINGS


def builder(model: str, quick: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the fixture `built`: `built(**settings)` is a model in evaluation mode, with its phases.

    The runs of a test module share `saved`, where the tiny MLLM, texts and the first stage are.
    """

    @pytest.fixture
    def built(toy_path: Path, saved: Path, tmp_path: Path) -> Callable[..., Run]:
        def build(**settings: Any) -> Run:
            base = {**TOY_SETTINGS, "epochs": 1, "data_path": str(toy_path), "checkpoint_dir": str(saved)}
            config = Config(model, "toy", config_dict={**base, **quick, **settings})
            outcome = assemble(config, tmp_path, Stages(), open_needed(config, tmp_path))
            outcome.model.eval()
            return outcome

        return build

    return built
