"""The steps of a run: what is checked before it starts, what is assembled, and what is trained and tested."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole.utils import dict2str, init_seed

from recbole_mm.config.resolved import Config
from recbole_mm.data.loading import check_dataset
from recbole_mm.data.sharing import Datasets
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.per_user import FILE as PER_USER
from recbole_mm.evaluation.per_user import per_user_table, write_per_user
from recbole_mm.evaluation.ranking import RankingData
from recbole_mm.evaluation.slice_kinds import slice_kinds
from recbole_mm.evaluation.slices import slice_results
from recbole_mm.evaluation.splits import check_split, split
from recbole_mm.evaluation.trec import write_trec
from recbole_mm.inputs.needs import asks_for_inputs, reads_mllm
from recbole_mm.models.base import ModelHooks, RerankingModel
from recbole_mm.models.hooks import full_sequence_class, hooks_of
from recbole_mm.runs.folder import WEIGHTS, Run, write_result
from recbole_mm.runs.leakage import held_out_seen
from recbole_mm.runs.needed import OpenedRuns
from recbole_mm.runs.on_workers import check_workers
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.recbole_errors import one_line_errors
from recbole_mm.runs.summary import data_line, model_line
from recbole_mm.training.checkpoint import without_pickles
from recbole_mm.training.factory import make_trainer
from recbole_mm.training.state import load_model_tree, load_weights
from recbole_mm.utils.log import COMPACT, LONG
from recbole_mm.utils.process_group import current_workers
from recbole_mm.utils.tables import result_table

if TYPE_CHECKING:
    from recbole_mm.data.dataset import MultimodalDataset
    from recbole_mm.data.inputs import ModelInputs
    from recbole_mm.inputs.model_inputs import TextFigures

logger = logging.getLogger(__name__)


def check(config: Config) -> None:
    """Find what keeps a run from starting, before anything is computed.

    Raises:
        RecboleMMError: settings do not fit together, there is no such dataset, or a cluster has too little room.
    """
    check_dataset(config)
    hooks = hooks_of(config.model_class)
    if reads_mllm(config, hooks):
        from recbole_mm.inputs.mllm import check_mllm  # imports transformers

        check_mllm(config)
    if config["ray_address"] and asks_for_inputs(config, hooks):
        from recbole_mm.distributed.stages import check_stages

        check_stages(config)
    if config["train_workers"] > 1:
        check_workers(config)


def assemble(
    config: Config,
    run_dir: Path,
    stages: Stages,
    opened: OpenedRuns | None = None,
    datasets: Datasets | None = None,
) -> Run:
    """Dataset, inputs, split and an untrained model: everything that `run` and `load` share.

    Args:
        config: the run's settings.
        run_dir: its folder, which keeps sampled candidates.
        stages: measures each part.
        opened: what it needs from other runs (see `open_needed`).
        datasets: shared with other runs.

    Raises:
        RecboleMMError: the data, the settings or both do not fit the model.
    """
    opened = opened or OpenedRuns()
    with one_line_errors(config["model"]):
        init_seed(config["seed"], config["reproducibility"])
        with stages("dataset"):
            dataset = (datasets or Datasets(config)).of(config)
            logger.info("%s", dataset, extra=LONG)
        model_class = full_sequence_class(config.model_class) if config["full_sequence"] else config.model_class
        rows = check_split(config, dataset, model_class)
        logger.info("%s", data_line(dataset, rows), extra=COMPACT)
        if dataset.missing.modalities:
            logger.info("%s", dataset.missing.line(dataset.item_tokens()[1:]), extra=COMPACT)
        hooks = hooks_of(model_class)
        with stages("artifacts"):
            opened.check_ids(dataset)
            genericness: dict[str, dict[str, float]] = {}
            tokens: dict[str, float] = {}
            if hooks.has_first_stage or asks_for_inputs(config, hooks):
                genericness, tokens = _provide_inputs(config, dataset, hooks, run_dir, opened)
            at_test = _inputs_at_test(config, dataset, hooks, run_dir) if dataset.missing.changes else None
        with stages("split"):
            splits = split(config, dataset, model_class, run_dir)
        init_seed(config["seed"], config["reproducibility"])
        with without_pickles():
            model = model_class(config, splits.train_dataset).to(config["device"])
        if at_test is not None and any(getattr(module, "keeps_contents", False) for module in model.modules()):
            raise ConfigError(
                f"missing_at: {config['missing_at']}: {config['model']} keeps what training has read of the items "
                "among its weights; give both"
            )
        logger.info("%s", model, extra=LONG)
        logger.info("%s", model_line(model, config), extra=COMPACT)
    seen = [*held_out_seen(config, config.model_class), *opened.sees_held_out]
    beside = dict(opened.beside)
    assembled = Run(config, dataset, model, splits, run_dir, sees_held_out=seen, beside=beside)
    assembled.genericness, assembled.tokens_per_user, assembled.inputs_at_test = genericness, tokens, at_test
    return assembled


def _provide_inputs(
    config: Config, dataset: MultimodalDataset, hooks: type[ModelHooks], run_dir: Path, opened: OpenedRuns
) -> TextFigures:
    """Compute what the model asks for, by modules of LLMs and Ray, which a run on interactions alone never imports."""
    from recbole_mm.distributed.stages import open_executor
    from recbole_mm.inputs.model_inputs import provide

    return provide(config, dataset, hooks, run_dir, partial(open_executor, config), **opened.inputs)


def _inputs_at_test(config: Config, dataset: MultimodalDataset, hooks: type[ModelHooks], run_dir: Path) -> ModelInputs:
    """What the model receives in the test, by the same modules."""
    if not asks_for_inputs(config, hooks):
        return dataset.inputs
    from recbole_mm.distributed.stages import open_executor
    from recbole_mm.inputs.model_inputs import provide_at_test

    return provide_at_test(config, dataset, hooks, run_dir, partial(open_executor, config))


def show_as_tested(assembled: Run, trained: Mapping[str, Any] | None = None) -> None:
    """Show the items to the model as the test does, where `missing_at` makes that another thing than in training.

    The model is built anew, so that whatever is made of contents follows: frozen vectors, graphs, prompts. It then
    takes over what was trained.

    Args:
        assembled: the run, whose model is replaced.
        trained: the `model_tree` of that model; None leaves the new one untrained.
    """
    if assembled.inputs_at_test is None:
        return
    config, splits = assembled.config, assembled.splits
    test = splits.test.dataset if isinstance(splits.test, RankingData) else getattr(splits.test, "_dataset", None)
    for part in (assembled.dataset, splits.train_dataset, *([] if test is None else [test])):
        part.show_as_tested(assembled.inputs_at_test)
    with one_line_errors(config["model"]), without_pickles():
        model = type(assembled.model)(config, splits.train_dataset).to(config["device"])
    if trained is not None:
        load_model_tree(model, trained, assembled.run_dir)
    assembled.model, assembled.inputs_at_test = model, None


def train_and_test(assembled: Run, stages: Stages, resume: bool | None = None) -> Run:
    """Train a run that is assembled, test it and write its folder. Of several workers the first one writes.

    Args:
        assembled: the run; its results are set.
        stages: measures training and test.
        resume: see `TrainerMixin.fit`.
    """
    config, run_dir, workers = assembled.config, assembled.run_dir, current_workers()
    test = assembled.splits.test
    kinds = slice_kinds(config, assembled.dataset, test) if isinstance(test, RankingData) else []
    trainer = make_trainer(config, assembled.model, run_dir)
    splits, show_progress = assembled.splits, config["show_progress"]
    with trainer.mlflow, one_line_errors(config["model"]):
        with stages("training"):
            _, best_valid_result = trainer.fit(splits.train, splits.valid, show_progress=show_progress, resume=resume)
        trainer.mlflow.log_choice(trainer.chosen)
        show_as_tested(assembled, trainer.trained_tree())
        trainer.model = assembled.model
        with stages("test"):
            test_result = trainer.evaluate(splits.test, config["load_best_model"], show_progress=show_progress)
        trainer.mlflow.log_metrics(test_result or {}, "eval", max(trainer.best_epoch, 0))
    assembled.test_result = dict(test_result or {})
    assembled.best_valid_result = dict(best_valid_result or {})
    assembled.chosen = trainer.chosen
    if isinstance(assembled.model, RerankingModel):
        assembled.tokens_per_user = {**assembled.tokens_per_user, **assembled.model.tokens_per_case()}
    if isinstance(splits.test, RankingData) and config["model"] != "Pop" and not trainer.hooks.has_first_stage:
        assembled.beside["Pop"] = trainer.evaluate_pop(splits.test)
    if workers is not None and not workers.is_first:
        return assembled
    if isinstance(test, RankingData):
        table = per_user_table(config, test.users, trainer.last_struct, assembled.dataset.item_tokens(), kinds)
        assembled.slices = slice_results(table, kinds, test.users, config["metric_decimal_place"])
        if config["save_per_user"]:
            write_per_user(run_dir / PER_USER, table)
        if config["save_rankings"]:
            tokens = assembled.dataset.item_tokens()
            write_trec(run_dir, test.users, trainer.last_struct, tokens, max(config["topk"]), config["model"])
    write_result(assembled, stages.as_dict(), trainer.timings)
    logger.info("best valid: %s", dict2str(assembled.best_valid_result), extra=LONG)
    logger.info("test:       %s", dict2str(assembled.test_result), extra=LONG)
    if assembled.beside:
        results = {config["model"]: assembled.test_result, **assembled.beside}
        logger.info("beside:\n%s", result_table("test", results), extra=LONG)
    return assembled


def with_best_weights(finished: Run) -> Run:
    """Have the model score by the weights that the folder keeps."""
    load_weights(finished.model, finished.run_dir / WEIGHTS)
    finished.model.eval()
    return finished
