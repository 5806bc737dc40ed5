"""What a model needs besides interactions: vectors of items and users, a multimodal LLM, what an LLM has written.

A model class names its needs in its hooks `requires` or `requirements` (see `models/base.py`). Each is a class of the
table `NEEDS`, which plans and computes it by the same keys: `plan_inputs` says what is to be computed, `provide`
computes it once through the artifact store and puts it into `dataset.inputs` (see `data/inputs.py`), so that models see
tensors and never a path or a cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from recbole_mm.artifacts.executor import Executor
from recbole_mm.artifacts.store import Store
from recbole_mm.config.resolved import Config
from recbole_mm.data.inputs import ModelInputs
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.context import Context, Need, NoStore, PlannedStage, artifact_dir, open_store
from recbole_mm.inputs.features import ItemFeatures
from recbole_mm.inputs.item_vectors import ItemPrompts, ItemTextVectors, ItemTokens, ItemVectors
from recbole_mm.inputs.mllm import AnsweringMLLM, LoadedMLLM
from recbole_mm.inputs.needs import Asks, needed, read_features
from recbole_mm.inputs.reasoning.failures import LeftOut
from recbole_mm.inputs.reasoning.items import ItemTexts
from recbole_mm.inputs.reasoning.preferences import UserPreferences
from recbole_mm.inputs.reasoning.profiles import UserProfiles
from recbole_mm.inputs.reasoning.states import UserStates
from recbole_mm.inputs.reasoning.vectors import ItemTextFeatures
from recbole_mm.inputs.reasoning.writing import AnswerWriter, TextNeed, write_texts
from recbole_mm.inputs.remembered import Remembered

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset

logger = logging.getLogger(__name__)


class PretrainedRun(Need):
    """`id_model_run`: the trained model of the run in `id_model_path`, which is handed to `provide`."""

    of_contents = False

    def compute(self) -> dict[str, Any]:
        """Raises ValueError: it is not computed here."""
        raise ValueError("id_model_run is given to provide(..., id_model_run=...)")


NEEDS: Mapping[str, type[Need]] = {
    "id_model_run": PretrainedRun,
    "mllm": LoadedMLLM,
    "mllm_with_head": LoadedMLLM,
    "item_vectors": ItemVectors,
    "item_text_vectors": ItemTextVectors,
    "prepared_items": ItemPrompts,
    "item_tokens": ItemTokens,
    "item_texts": ItemTexts,
    "item_text_features": ItemTextFeatures,
    "user_profiles": UserProfiles,
    "user_states": UserStates,
    "user_preferences": UserPreferences,
    "answering_mllm": AnsweringMLLM,
    "answer_writer": AnswerWriter,
}
"""What a model can require, in the order in which it is computed; `data.inputs.BRINGS` says what each gives."""


class TextFigures(NamedTuple):
    """Figures of the texts about users that a run reads.

    Attributes:
        genericness: what the texts are -> how generic they are.
        tokens: what an LLM reads and writes -> tokens per user.
    """

    genericness: dict[str, dict[str, float]]
    tokens: dict[str, float]


def shared_needs(context: Context) -> list[Need]:
    """Returns the needs of a context and the features of `item_features`, in the order in which they are computed."""
    kinds = dict.fromkeys(kind for name, kind in NEEDS.items() if name in context.needs)
    found: list[Need] = [context.share(kind) for kind in kinds]
    first = [need for need in found if not need.reads_inputs]
    return [*first, context.share(ItemFeatures), *(need for need in found if need.reads_inputs)]


def plan_inputs(config: Config, dataset: MultimodalDataset, hooks: type[Asks]) -> tuple[list[PlannedStage], list[str]]:
    """Plans what `provide` would compute: reads the data and the artifact store, and writes nothing.

    Args:
        config: the run's configuration.
        dataset: loaded and not yet split.
        hooks: of the model, whose needs count.

    Returns:
        The stages in the order in which they are computed, and notes for the reader.

    Raises:
        RecboleMMError: what would stop the run, too.
    """
    path = artifact_dir(config) / "artifacts.sqlite"
    store: Any = Store(path) if path.is_file() else NoStore()
    context = Context(config, dataset, store, hooks, _needs(config, hooks), is_plan=True)
    rows: dict[str, PlannedStage] = {}
    try:
        for need in shared_needs(context):
            for row in need.plan():
                rows.pop(row.name, None)  # a later row of a stage counts what the earlier one does, and more
                rows[row.name] = row
    finally:
        store.close()
    if dataset.missing.changes:
        context.notes.append(f"missing_at: {dataset.missing.at}: what is computed again for the test is not counted")
    return list(rows.values()), context.notes


def provide(
    config: Config,
    dataset: MultimodalDataset,
    hooks: type[Asks],
    run_dir: Path | None = None,
    open_executor: Callable[[], AbstractContextManager[Executor | None]] = nullcontext,
    **given: Any,
) -> TextFigures:
    """Sets `dataset.inputs` to what a model needs, and the features of `item_features` that it reads.

    Features that a RecBole feature model selects (`selected_features`) also become fields of its item table.

    Args:
        config: the run's configuration.
        dataset: loaded and not yet split.
        hooks: of the model, whose needs count.
        run_dir: the run's folder, which remembers what it read of the store, and the texts that it had to do without.
        open_executor: opens what computes stages on other machines; by default they are computed in this process.
        given: inputs that exist already: `first_stage` and `id_model_run`.

    Returns:
        Figures of the texts about users; empty where none are read.

    Raises:
        ConfigError: the model requires something unknown here.
    """
    needs, specs = _needs(config, hooks), read_features(config)
    if unread := [name for name in config["item_features"] or {} if name not in specs]:
        logger.info("item_features: %s is not read by %s, and not computed", ", ".join(unread), config["model"])
    provided: dict[str, Any] = {"model": hooks.__name__, **given}
    if not needs and not specs:
        dataset.inputs = ModelInputs(**provided)
        return TextFigures({}, {})
    counts = np.bincount(dataset.inter_feat[dataset.iid_field], minlength=dataset.item_num)
    logger.info("%s", dataset.content.coverage(counts))
    to_compute = tuple(name for name in needs if name not in given)
    with open_executor() as executor, open_store(config) as store:
        kept: Any = {"left_out": LeftOut(run_dir), "remembered": Remembered(run_dir, config)}
        context = Context(config, dataset, store, hooks, to_compute, executor=executor, **kept)
        provided |= _first_inputs(context)
    context.release()  # what comes now loads models of its own
    dataset.inputs = ModelInputs(**provided)
    for need in shared_needs(Context(config, dataset, None, hooks, to_compute)):
        if need.reads_inputs:
            provided |= need.compute()
            dataset.inputs = ModelInputs(**provided)
    for name in set(specs) & set(config["selected_features"] or ()):
        dataset.declare_feature_field(name, torch.from_numpy(dataset.item_feature(name)))
    dataset.content.report_problems()
    return TextFigures(context.genericness, context.tokens)


def provide_at_test(
    config: Config,
    dataset: MultimodalDataset,
    hooks: type[Asks],
    run_dir: Path | None = None,
    open_executor: Callable[[], AbstractContextManager[Executor | None]] = nullcontext,
) -> ModelInputs:
    """Computes what a model needs in the test where `missing_at` shows it other contents than in training.

    What is made of the items' contents is computed of those of the test; LLMs and whatever was trained are the same.

    Args:
        config, hooks, run_dir, open_executor: as for `provide`.
        dataset: with the inputs of the training.

    Raises:
        RecboleMMError: as for `provide`.
    """
    provided = {name: getattr(dataset.inputs, name) for name in dataset.inputs.given()}
    needs = tuple(name for name in _needs(config, hooks) if NEEDS[name].of_contents)
    with open_executor() as executor, open_store(config) as store:
        kept: Any = {"left_out": LeftOut(run_dir), "remembered": Remembered(run_dir, config, at_test=True)}
        content = dataset.content_at_test
        context = Context(config, dataset, store, hooks, needs, executor=executor, content=content, **kept)
        provided |= _first_inputs(context)
    content.report_problems()
    return ModelInputs(**provided)


def _first_inputs(context: Context) -> dict[str, Any]:
    """Computes what needs no other inputs; settings of all needs are checked first."""
    needs, provided = shared_needs(context), dict[str, Any]()
    for need in needs:
        need.check()
    first = [need for need in needs if not need.reads_inputs]
    of_texts = [need for need in first if isinstance(need, TextNeed)]
    for need in first:
        if of_texts and need is of_texts[0]:
            write_texts(of_texts)
        provided |= need.compute()
    return provided


def _needs(config: Config, hooks: type[Asks]) -> tuple[str, ...]:
    """The needs of a model.

    Raises:
        ConfigError: one of them is unknown.
    """
    needs = needed(config, hooks)
    if unknown := set(needs) - set(NEEDS):
        raise ConfigError(f"model {hooks.__name__} requires {sorted(unknown)}, which nothing provides")
    return needs
