"""Runs a planned table: trials on the first seed, then the other seeds of each row's best trial.

Every run is a process of its own, `recbole-mm run` with a config file, so that one that crashes takes nothing with it.
The run folders alone say what is done: a finished one of the same settings is not run again, an unfinished one is
resumed. A grid can be stopped at any moment and started again.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recbole_mm.config.resolved import Config
from recbole_mm.config.yaml_settings import write_yaml
from recbole_mm.experiments.compare.plan import PlannedRow
from recbole_mm.experiments.processes import alone_in, die_with_parent, failure, terminated_like_ctrl_c
from recbole_mm.runs import folder as run_folder
from recbole_mm.utils.files import disk_errors, make_folder, scratch_folder
from recbole_mm.utils.progress import duration

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
GRACE_SECONDS = 3.0
INTERRUPTS = 10
DONE, FAILED, NOT_APPLICABLE, NOT_RUN = "done", "failed", "not applicable", "not run"


@dataclass
class Outcome:
    """The result of a row's runs.

    Attributes:
        status: done, failed, not applicable or not run.
        reason: why it is not done, or what of it is missing; empty where all is well.
        trial: place of the chosen trial in the row's `trials`.
        runs: seed -> folder of its finished run, of the chosen trial.
    """

    status: str = NOT_RUN
    reason: str = ""
    trial: int = 0
    runs: dict[int, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    """One run that the table needs.

    Attributes:
        place, row: of the row, and its name.
        trial, seed: number of the trial in the row's `trials`, and the run's seed.
        label: both in words.
        config: the run's settings.
        folder: where a first run with these settings lies: two jobs with the same one are the same run.
    """

    place: int
    row: str
    trial: int
    seed: int
    label: str
    config: Config
    folder: Path

    def __str__(self) -> str:
        return f"{self.row}, {self.label}"


@dataclass(frozen=True)
class _Running:
    job: _Job
    process: subprocess.Popen
    slot: int
    log: Path
    started: float


class Grid:
    """Runs the rows of a plan.

    Args:
        planned: the rows.
        seeds: the first one decides between trials.
        jobs: runs at the same time; 0 starts none and takes what is finished.
        log_dir: where the output of failed runs is kept.
        gpus: numbers for CUDA_VISIBLE_DEVICES, one for each of the runs at the same time, in rotation; empty leaves it
            alone.
    """

    def __init__(
        self, planned: Sequence[PlannedRow], seeds: Sequence[int], jobs: int, log_dir: Path, gpus: Sequence[str] = ()
    ) -> None:
        self.planned, self.seeds, self.jobs, self.log_dir, self.gpus = planned, list(seeds), jobs, log_dir, list(gpus)
        self.outcomes = [
            Outcome(NOT_APPLICABLE, entry.not_applicable) if entry.not_applicable else Outcome() for entry in planned
        ]
        self._ended: dict[Path, Path | str] = {}  # by `_Job.folder`: the finished run's folder, or why there is none
        self._queued: list[list[_Job]] = [[] for _ in planned]
        self._waiting: deque[_Job] = deque()
        self._running: list[_Running] = []
        self._settings_dir = Path()
        per_row = [len(entry.row.trials) + len(self.seeds) - 1 for entry in planned if not entry.not_applicable]
        self._numbers, self._most = itertools.count(1), sum(per_row)

    def run(self) -> list[Outcome]:
        """Run what is not done yet.

        Returns:
            The outcome of each row, in their order.

        Raises:
            CheckpointError: another grid is at work in the same checkpoint_dir.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once every run has stopped; all are resumable.
        """
        for place, entry in enumerate(self.planned):
            if not entry.not_applicable:
                self._queue(place, [(trial, self.seeds[0]) for trial in range(len(entry.row.trials))])
        if self.jobs == 0:
            self._take_what_is_finished()
        elif self._waiting:
            with alone_in(Path(self._waiting[0].config["checkpoint_dir"])) as lock, terminated_like_ctrl_c():
                self._work_off(lock)
        return self.outcomes

    def _counted(self) -> str:
        """`[3/12]`: of the runs that the table needs at most; rows that fail or share a run need fewer."""
        return f"[{next(self._numbers)}/{self._most}]"

    # ---- what to run ----

    def _queue(self, place: int, wanted: Sequence[tuple[int, int]]) -> None:
        """Queue these (trial, seed) of a row, unless they are finished."""
        entry = self.planned[place]
        for trial, seed in wanted:
            config = entry.config(trial, seed)
            tried = ", ".join(f"{key}={value}" for key, value in entry.row.trials[trial].items())
            label = f"seed {seed}" + (f", {tried}" if tried else "")
            job = _Job(place, entry.row.name, trial, seed, label, config, run_folder.first_run_dir(config))
            self._queued[place].append(job)
            finished = finished_run(config)
            if finished is None:
                self._waiting.append(job)
            elif job.folder not in self._ended:
                logger.info("%s already done: %s -> %s", self._counted(), job, finished)
                self._ended[job.folder] = finished
        self._settle(place)

    def _settle(self, place: int) -> None:
        """Once every queued run of a row has ended, choose its trial and queue its other seeds, or close it."""
        asked, outcome = self._queued[place], self.outcomes[place]
        if any(job.folder not in self._ended for job in asked):
            return
        trials, others = asked[: len(self.planned[place].row.trials)], self.seeds[1:]
        if len(asked) > len(trials):
            self._close(outcome, [trials[outcome.trial], *asked[len(trials) :]])
            return
        chosen = self._choose(trials, outcome)
        outcome.trial = chosen.trial if chosen else 0
        if chosen and others:
            self._queue(place, [(chosen.trial, seed) for seed in others])
        else:
            self._close(outcome, [chosen] if chosen else [])

    def _choose(self, trials: Sequence[_Job], outcome: Outcome) -> _Job | None:
        """The trial with the best validation on the first seed; the outcome's reason names trials that failed."""
        finished = [job for job in trials if self._finished(job)]
        failed = [f"{job.label}: {self._ended[job.folder]}" for job in trials if job not in finished]
        outcome.reason = "; ".join(failed)
        if not finished or (failed and self.jobs == 0):
            return None
        if len(trials) == 1:
            return trials[0]
        metric, sign = trials[0].config["valid_metric"], 1 if trials[0].config["valid_metric_bigger"] else -1
        found = {job.trial: valid_score(self._ended[job.folder], metric) for job in finished}
        scores = {trial: score for trial, score in found.items() if score is not None}
        if len(scores) < len(finished):
            outcome.reason = f"no validation result {metric} to choose a trial by; run it with --no_tuning"
            return None
        best = max(finished, key=lambda job: sign * scores[job.trial])
        logger.info("best of %d trials by validation %s: %s", len(trials), metric, best)
        return best

    def _close(self, outcome: Outcome, runs: Sequence[_Job]) -> None:
        outcome.runs = {job.seed: folder for job in runs if (folder := self._finished(job)) is not None}
        missing = [f"{job.label}: {self._ended[job.folder]}" for job in runs if job.seed not in outcome.runs]
        outcome.reason = "; ".join(filter(None, [outcome.reason, *missing]))
        outcome.status = DONE if outcome.runs else (FAILED if self.jobs else NOT_RUN)

    def _finished(self, job: _Job) -> Path | None:
        ended = self._ended[job.folder]
        return ended if isinstance(ended, Path) else None

    # ---- running ----

    def _take_what_is_finished(self) -> None:
        while self._waiting:
            job = self._waiting.popleft()
            self._ended[job.folder] = NOT_RUN
            self._settle(job.place)

    def _work_off(self, lock: int) -> None:
        with scratch_folder(Path(tempfile.gettempdir()), "recbole-mm-compare-") as self._settings_dir:
            try:
                while self._waiting or self._running:
                    self._start_what_fits(lock)
                    self._collect()
                    if self._running:
                        time.sleep(POLL_SECONDS)
            except BaseException as error:
                self._stop()
                if isinstance(error, KeyboardInterrupt):
                    raise KeyboardInterrupt("interrupted; the same command goes on from here") from None
                raise

    def _start_what_fits(self, lock: int) -> None:
        """Start waiting runs while there is room; of two with the same settings, the second one waits for the first."""
        for job in list(self._waiting):
            if job.folder in self._ended:
                self._waiting.remove(job)
                self._settle(job.place)
            elif len(self._running) < self.jobs and job.folder not in (other.job.folder for other in self._running):
                self._waiting.remove(job)
                self._running.append(self._start(job, lock))

    def _start(self, job: _Job, lock: int) -> _Running:
        settings = self.planned[job.place].run_settings(job.trial, job.seed)
        resumed = bool(run_folder.earlier_run_dirs(job.config))
        given = {"model": job.config["model"], "dataset": job.config["dataset"], **settings, "resume": resumed}
        slot = min(set(range(self.jobs)) - {running.slot for running in self._running})
        path = self._settings_dir / f"{slot}.yaml"
        with disk_errors(path):
            path.write_text(write_yaml(given), encoding="utf-8")
        log = self._settings_dir / f"{slot}.log"
        logger.info("%s %s: %s", self._counted(), "resuming" if resumed else "running", job)
        with log.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "recbole_mm.cli", "run", f"--config_files={path}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=self._environment(slot),
                pass_fds=(lock,),  # a run that outlives the grid keeps other grids away
                preexec_fn=die_with_parent(os.getpid()),
            )
        return _Running(job, process, slot, log, time.monotonic())

    def _environment(self, slot: int) -> dict[str, str]:
        """Environment of a run: its share of the cores, and of the GPUs where any are named."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads, given = max(1, cores // self.jobs), os.environ.get("OMP_NUM_THREADS", "")
        threads = min(threads, int(given)) if given.isdigit() else threads
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        return {**os.environ, **gpu, "OMP_NUM_THREADS": str(threads)}

    def _collect(self) -> None:
        """Record the runs that have ended."""
        for running in [running for running in self._running if running.process.poll() is not None]:
            self._running.remove(running)
            job, seconds = running.job, time.monotonic() - running.started
            finished = finished_run(job.config)
            if finished is not None:
                self._ended[job.folder] = finished
                logger.info("done after %s: %s -> %s", duration(seconds), job, finished)
            else:
                reason = failure(running.process.returncode, running.log)
                self._ended[job.folder] = reason
                kept = self._keep(running)
                logger.error("failed after %s: %s: %s (all it said: %s)", duration(seconds), job, reason, kept)
            self._settle(job.place)

    def _keep(self, running: _Running) -> Path:
        """Keep what a failed run wrote to standard error, with its traceback."""
        name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", str(running.job))[:100]
        kept = self.log_dir / f"{name}-{running.job.folder.name[-8:]}.log"
        make_folder(self.log_dir)
        with disk_errors(kept):
            shutil.copyfile(running.log, kept)
        return kept

    def _stop(self) -> None:
        """End the runs as Ctrl-C does, which a terminal has already sent them; kill those that do not end.

        The signal is repeated: Python drops the exception where it falls into a callback of C code.
        """
        for number in (*[signal.SIGINT] * INTERRUPTS, signal.SIGKILL):
            deadline = time.monotonic() + GRACE_SECONDS
            while any(running.process.poll() is None for running in self._running) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            for running in self._running:
                if running.process.poll() is None:
                    running.process.send_signal(number)
        for running in self._running:
            running.process.wait()


def finished_run(config: Config) -> Path | None:
    """Returns the folder of the first finished run of exactly these settings."""
    return next((folder for folder in run_folder.earlier_run_dirs(config) if run_folder.is_finished(folder)), None)


def valid_score(run_dir: Any, metric: str) -> float | None:
    """Returns the best validation result of a finished run; None if it had nothing to validate on."""
    return run_folder.read_result(Path(run_dir)).get("best_valid_result", {}).get(metric.lower())
