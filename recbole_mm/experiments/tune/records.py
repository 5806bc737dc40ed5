"""The record of each trial: a JSON file in its folder, rewritten after every validation.

These files are all that a search needs to go on after it was killed, and all that its tables are made of. The weights
of a trial are in the same folder, and are removed once another trial is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from recbole_mm.errors import CheckpointError
from recbole_mm.experiments.tune.space import Point
from recbole_mm.utils.files import make_folder, read_json, write_json

TRIALS, RECORD = "trials", "trial.json"
RUNNING, DONE, STOPPED, FAILED = "running", "done", "stopped early", "failed"
ENDED = (DONE, STOPPED, FAILED)

OUTCOME, FAILURE = "outcome.json", "failure.txt"
"""Files that a trial's own process writes last: its scores, or why it failed."""


@dataclass
class Record:
    """One trial.

    Attributes:
        number: from 1.
        point, settings: what was drawn, as the search sees it and as the run gets it.
        status: running, done, stopped early (by the scheduler) or failed.
        scores: (epochs trained, score of the validation after them), in order.
        seconds: of training and validation.
        attempts: how often it was started in this or an earlier process.
        reason: why it failed.

    Example:
        >>> record = Record(1, {"alpha": 0.5}, {"alpha": 0.5})
        >>> record.add_validation(1, 0.10, seconds=3.0)
        >>> record.add_validation(2, 0.08, seconds=6.0)
        >>> record.best(bigger=True)
        (1, 0.1)
    """

    number: int
    point: Point
    settings: dict[str, Any]
    status: str = RUNNING
    scores: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    attempts: int = 0
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether the trial will not be continued."""
        return self.status in ENDED

    @property
    def epochs(self) -> int:
        """Epochs trained by the last validation."""
        return int(self.scores[-1][0]) if self.scores else 0

    def best(self, bigger: bool) -> tuple[int, float] | None:
        """Return epochs and score of the best validation, the first of several; None before there is any."""
        if not self.scores:
            return None
        epochs, score = max(self.scores, key=lambda pair: pair[1] if bigger else -pair[1])
        return int(epochs), score

    def add_validation(self, epochs: int, score: float, seconds: float) -> None:
        """Add a validation. A trial that went on from a checkpoint reports some epochs again."""
        self.scores = [pair for pair in self.scores if pair[0] < epochs] + [[epochs, score]]
        self.seconds = seconds


def trial_dir(out: Path, number: int) -> Path:
    """Folder of a trial, which is the folder of its run, too."""
    return out / TRIALS / f"{number:04d}"


def write_record(out: Path, record: Record) -> None:
    """Write a trial's file; a kill leaves the file before it or the new one."""
    folder = trial_dir(out, record.number)
    make_folder(folder)
    write_json(folder / RECORD, asdict(record))


def number_in(folder: Path) -> int | None:
    """Number of the trial that a folder is, or is a copy of; None if it is none."""
    path = folder / RECORD
    return int(read_json(path)["number"]) if path.is_file() else None


def read_records(out: Path) -> list[Record]:
    """Every trial so far, by number.

    A trial whose process came to its own end, of which a killed search took no note any more, is done.

    Raises:
        CheckpointError: a file is damaged.
    """
    records = []
    for path in sorted((out / TRIALS).glob(f"*/{RECORD}")):
        try:
            record = Record(**read_json(path))
            if not record.ended and (outcome := path.with_name(OUTCOME)).is_file():
                end(record, read_json(outcome))
                write_record(out, record)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); remove its folder to run it again") from error
        records.append(record)
    return sorted(records, key=lambda record: record.number)


def end(record: Record, outcome: dict[str, Any]) -> None:
    """Close a trial that came to its own end, with what its process wrote."""
    record.status, record.reason = DONE, ""
    record.scores, record.seconds = outcome["scores"], outcome["seconds"]


def best_of(records: Sequence[Record], bigger: bool) -> Record | None:
    """The trial with the best validation, the first of several; None if none was validated."""
    scored = [(found[1], record) for record in records if record.ended and (found := record.best(bigger)) is not None]
    scored = [(score, record) for score, record in scored if record.status != FAILED]
    return max(scored, key=lambda pair: pair[0] if bigger else -pair[0])[1] if scored else None


def drop_weights(out: Path, records: Sequence[Record], bigger: bool) -> None:
    """Remove the weights of trials that are over, all but the best one's, which is tested and may go on training."""
    best = best_of(records, bigger)
    for record in records:
        if record.ended and record is not best:
            for path in trial_dir(out, record.number).glob("*.safetensors"):
                path.unlink(missing_ok=True)
