"""What `recbole-mm tune` does: a search from its space to its best setting, tested once."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_mm.config.layers import merge
from recbole_mm.config.yaml_settings import SEAL_LINE, canonical, parse_argument, read_yaml, write_yaml
from recbole_mm.distributed.cluster import check_resources
from recbole_mm.distributed.trials import TaskError, TrialResources, run_task, run_trials, trial_session
from recbole_mm.errors import CheckpointError, ConfigError
from recbole_mm.experiments.processes import alone_in, terminated_like_ctrl_c
from recbole_mm.experiments.tune.plan import Search, plan_search
from recbole_mm.experiments.tune.records import (
    FAILED,
    Record,
    best_of,
    drop_weights,
    number_in,
    read_records,
    trial_dir,
)
from recbole_mm.experiments.tune.table import write_tables
from recbole_mm.experiments.tune.trial import Job, evaluate_best, read_tested, run_trial
from recbole_mm.registry import find_model
from recbole_mm.utils.files import disk_errors, write_text

logger = logging.getLogger(__name__)

SEARCH, BEST_YAML, BEST = "search.yaml", "best.yaml", "best"


@dataclass
class Found:
    """A finished search.

    Attributes:
        settings: the best trial's own, as they were drawn.
        score: its validation score.
        metric: what was searched for.
        records: all trials.
        out: folder of the search.
        result: `result.json` of the best setting's run.
    """

    settings: dict[str, Any]
    score: float
    metric: str
    records: list[Record]
    out: Path
    result: dict[str, Any]

    @property
    def test_result(self) -> dict[str, float]:
        """Test metrics of the best setting."""
        return self.result["test_result"]


def tune_model(
    model: str | None,
    dataset: str | None,
    *,
    space: Path | None = None,
    trials: int = 20,
    search: str | None = None,
    scheduler: str = "asha",
    grace_epochs: int | None = None,
    cpus_per_trial: float = 1,
    gpus_per_trial: float | None = None,
    jobs: int = 0,
    resume: bool = False,
    out: Path | None = None,
    ray_address: str | None = None,
    object_store_mb: int | None = None,
    config_files: Sequence[str | Path] = (),
    command_line: Mapping[str, Any] | None = None,
) -> Found:
    """Search for the settings with the best validation result, then train and test a model with them.

    Args:
        model, dataset: their names.
        space: its file; None for the one that ships for the model.
        trials: settings to try; fewer where the space has fewer.
        search: optuna or random; None takes Optuna if it is installed.
        scheduler: asha stops trials early; none lets each run to its end.
        grace_epochs: asha stops no trial before; None is a tenth of the epochs.
        cpus_per_trial, gpus_per_trial: resources of each; GPUs may be a share of one. None: one GPU if there are any.
        jobs: trials at the same time; 0 for as many as there is room for.
        resume: go on with the search in `out`.
        out: folder of the search; by default `<checkpoint_dir>/tune-<model>-<dataset>`.
        ray_address: of a Ray cluster; None starts Ray on this machine.
        object_store_mb: of a Ray that is started here.
        config_files, command_line: settings of every trial; `seed` is also the search's.

    Raises:
        RecboleMMError: something the user can mend, mostly found before any trial; or every trial failed.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; the same search goes on with `resume`.
    """
    planned = plan_search(
        model,
        dataset,
        space=space,
        trials=trials,
        search=search,
        scheduler=scheduler,
        grace_epochs=grace_epochs,
        out=out,
        config_files=config_files,
        command_line=command_line,
    )
    if gpus_per_trial is None:
        gpus_per_trial = 1 if planned.config["device"].type == "cuda" else 0
    asked = TrialResources(cpus_per_trial, gpus_per_trial, jobs, ray_address, object_store_mb)
    check_resources(asked)
    entry = find_model(planned.config["model"])
    job = Job(entry, planned.config["dataset"], planned.shared(), os.getcwd(), asked.cpus, asked.gpus)
    if planned.trials < trials:
        logger.info("the space holds %d different settings: each of them is tried", planned.trials)
    with alone_in(planned.out, "search", "--out"), terminated_like_ctrl_c():
        _open(planned, resume)
        records = read_records(planned.out)
        left = planned.trials - sum(record.ended for record in records)
        if left > 0 or _untested(planned, records):
            with trial_session(asked) as at_once:
                records = _search(planned, job, asked, at_once, left)
                _test(planned, job, asked, records)
        return _report(planned, records)


def _open(search: Search, resume: bool) -> None:
    """Write what identifies the search into its folder, or make sure that the folder holds the same one.

    Raises:
        CheckpointError: the folder holds another search, or this one and it is not to be resumed.
    """
    path = search.out / SEARCH
    identity = parse_argument(SEARCH, write_yaml(search.identity()))
    if not path.exists():
        if resume:
            logger.warning("nothing to resume: there is no search in %s", search.out)
        if any(path.parent.glob("trials/*")):
            raise CheckpointError(f"{search.out} holds trials of an unknown search (no {SEARCH}); pass another --out")
        write_text(path, f"{SEAL_LINE}{write_yaml(identity)}")
        return
    earlier = read_yaml(path)
    other = next((key for key in identity if canonical(earlier.get(key)) != canonical(identity[key])), None)
    if other is not None:
        difference = f"{earlier.get(other)!r}, not {identity[other]!r}"
        if isinstance(identity[other], dict) and isinstance(earlier.get(other), dict):
            mine, theirs = identity[other], earlier[other]
            key = next(
                key for key in sorted({*mine, *theirs}) if canonical(mine.get(key)) != canonical(theirs.get(key))
            )
            other, difference = f"{other}: {key}", f"{theirs.get(key)!r}, not {mine.get(key)!r}"
        raise CheckpointError(f"{search.out} is of another search ({other}: {difference}); pass another --out")
    if not resume:
        raise CheckpointError(f"{search.out} holds this search already; go on with --resume, or pass another --out")


def _search(search: Search, job: Job, asked: TrialResources, at_once: int, left: int) -> list[Record]:
    """Run the trials that are left, and return the records of all."""
    records = read_records(search.out)
    if left > 0:
        over = len(records) - sum(not record.ended for record in records)
        again = f" ({over} were done before)" if over else ""
        logger.info(
            "%d trials of %s on %s by %s, %s search%s -> %s",
            left, job.model.name, job.dataset, search.metric, search.search, again, search.out,
        )  # fmt: skip
        _fit(search, job, asked, at_once, records)
        records = read_records(search.out)
        if any(not record.ended for record in records) or len(records) < search.trials:
            write_tables(search, records)
            raise KeyboardInterrupt("interrupted; the same command with --resume goes on from here")
    return records


def _fit(search: Search, job: Job, asked: TrialResources, at_once: int, records: list[Record]) -> None:
    """Run the trials that are left by Ray Tune. The records of the trials are enough to resume the search."""
    from recbole_mm.experiments.tune.draws import EPOCH, SCORE, Draws, Recorder, scheduler

    out = search.out

    def trial(config: dict[str, Any], report: Callable[[Mapping[str, Any]], None]) -> None:
        """Run one trial in a process of Ray's."""

        def report_epoch(epochs: int, score: float, best: float, seconds: float) -> None:
            """Report a validation to Ray Tune."""
            report({EPOCH: epochs, SCORE: best, "epoch_score": score, "seconds": seconds})

        run_trial(job, config["settings"], trial_dir(out, config["number"]), out, report_epoch)

    draws = Draws(search, records)
    run_trials(
        trial,
        asked,
        count=draws.waiting,
        at_once=at_once,
        searcher=draws,
        scheduler=scheduler(search, records),
        callbacks=[Recorder(search, records)],
        scratch=out / "ray",
    )


def _untested(search: Search, records: Sequence[Record]) -> bool:
    best, tested = best_of(records, search.bigger), read_tested(search.out / BEST)
    return best is not None and (tested is None or tested[0] != best.number)


def _test(search: Search, job: Job, asked: TrialResources, records: Sequence[Record]) -> None:
    """Write the best setting down, and test it alone, in a process with a trial's resources.

    Raises:
        RecboleMMError: every trial failed, or the best setting's test did.
    """
    best = best_of(records, search.bigger)
    if best is None:
        write_tables(search, records)
        raise _all_failed(search, records)
    write_best(search, best)
    if not _untested(search, records):
        return
    folder = search.out / BEST
    if number_in(folder) != best.number:
        shutil.rmtree(folder, ignore_errors=True)
        draft = search.out / f".{BEST}"
        shutil.rmtree(draft, ignore_errors=True)
        with disk_errors(folder):
            shutil.copytree(trial_dir(search.out, best.number), draft)
            draft.rename(folder)
    logger.info("testing the best of them, trial %d, alone -> %s", best.number, folder)
    try:
        run_task(evaluate_best, job, best.settings, folder, resources=asked)
    except TaskError as error:
        raise CheckpointError(
            f"the best setting could not be tested: {error}; --resume tries again, with the settings of "
            f"{search.out / BEST_YAML}"
        ) from error


def write_best(search: Search, best: Record) -> Path:
    """Write the best setting as a file for `--config_files`: what was given and what was drawn, and nothing else."""
    config, found = search.config, best.best(search.bigger)
    assert found is not None
    given = {key: value for key, value in config.external_config_dict.items() if key not in _NOT_OF_A_RUN}
    for key in set(given) & {"data_path", "checkpoint_dir", "artifact_dir"}:
        given[key] = str(Path(given[key]).absolute()) if given[key] is not None else None
    content = merge({"model": config["model"], "dataset": config["dataset"]}, given, best.settings)
    path = search.out / BEST_YAML
    header = (
        f"# python run_recbole_mm.py --config_files={path}\n"
        f"# Best of {search.trials} trials by validation {search.metric}: {found[1]:.6f} after {found[0]} epochs "
        f"(trial {best.number}, {time.strftime('%Y-%m-%d')}).\n"
    )
    write_text(path, header + write_yaml(content))
    return path


_NOT_OF_A_RUN = {"model", "dataset", "resume", "show_progress", "state", "log_style"}


def _report(search: Search, records: list[Record]) -> Found:
    best = best_of(records, search.bigger)
    if best is None or (found := best.best(search.bigger)) is None:
        raise _all_failed(search, records)
    drop_weights(search.out, records, search.bigger)
    tested = read_tested(search.out / BEST)
    assert tested is not None, "it was tested, or that raised"
    write_tables(search, records)
    return Found(best.settings, found[1], search.metric, records, search.out, tested[1])


def _all_failed(search: Search, records: Sequence[Record]) -> ConfigError:
    reason = next((record.reason for record in records if record.status == FAILED), "none was validated")
    return ConfigError(
        f"all {len(records)} trials failed, the first one: {reason} (each of them: {search.out}/trials.md)"
    )
