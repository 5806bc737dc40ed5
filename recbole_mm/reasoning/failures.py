"""What could not be written, where a user finds all of it: one CSV file per dataset and stage beside the store."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from recbole_mm.escaping import csv_cell

logger = logging.getLogger(__name__)

FOLDER = "failed_texts"
SHOWN = 3


def failures_file(artifacts: Path, dataset: str, stage: str) -> Path:
    """The file that lists a stage's failures.

    Args:
        artifacts: the artifact folder.
        dataset, stage: names.
    """
    return artifacts / FOLDER / f"{dataset}-{stage}.csv"


def list_failures(path: Path, what: str, failed: Mapping[str, str], wanted: int) -> None:
    """Write the failures of the latest run into `path`, in place of an earlier list, and say so in the log.

    Where nothing failed there is no file.

    Args:
        path: from `failures_file`.
        what: the texts' name in the log, such as `user profiles`.
        failed: item or user id, as in the dataset's files -> reason.
        wanted: how many texts were asked for.
    """
    if not failed:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "reason"])
        writer.writerows(map(csv_cell, pair) for pair in failed.items())
    os.replace(draft, path)
    examples = "; ".join(f"{token}: {reason}" for token, reason in islice(failed.items(), SHOWN))
    logger.warning(
        "%s: %d of %d could not be written; they are left out, and tried again by the next run (%s%s). All of them: %s",
        *(what, len(failed), wanted, examples, "; ..." if len(failed) > SHOWN else "", path),
    )
