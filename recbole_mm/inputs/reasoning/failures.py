"""Texts that could not be written: a CSV file for each stage in the artifact folder, and a list in the run's folder."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

from recbole_mm.config.resolved import Config
from recbole_mm.errors import CheckpointError, DiskError
from recbole_mm.inputs.reasoning.settings import PreferenceSettings, ReasoningSettings
from recbole_mm.utils.escaping import csv_cell
from recbole_mm.utils.files import atomic_write, disk_errors, make_folder, read_json, write_json

logger = logging.getLogger(__name__)

FOLDER = "failed_texts"
SHOWN = 3
LEFT_OUT = "texts_left_out.json"

SETTINGS = (
    *(name for name in ReasoningSettings.__dataclass_fields__ if name != "sentence_encoder"),
    *PreferenceSettings.__dataclass_fields__,
    *("text_backend", "text_model", "text_max_words", "text_max_new_tokens", "text_context_tokens"),
    *("text_temperature", "text_top_p", "text_seed", "mllm", "mllm_dtype", "mllm_image_pixels"),
    *("modalities", "text_fields", "text_template", "max_text_chars", "image_dir", "image_field", "image_zip"),
    *("data_files", "eval_args", "candidates", "missing_modality", "MAX_ITEM_LIST_LENGTH"),
    *("user_inter_num_interval", "item_inter_num_interval", "val_interval"),
)
"""What decides which texts are wanted and how they are written: runs with others of these have other failures."""


def failures_file(artifacts: Path, config: Config, stage: str) -> Path:
    """The file that lists a stage's failures; runs that want the same texts share it.

    Args:
        artifacts: the artifact folder.
        config: the run's configuration.
        stage: its name.
    """
    settings = {name: config[name] for name in SETTINGS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    return artifacts / FOLDER / f"{config['dataset']}-{stage}-{digest[:8]}.csv"


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
        if path.exists():
            try:
                with disk_errors(path):
                    path.unlink()
            except DiskError as error:  # a complete folder of artifacts may be read-only
                logger.warning("%s; it lists failures of an earlier run", error)
        return
    make_folder(path.parent)
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "reason"])
        writer.writerows(map(csv_cell, pair) for pair in failed.items())
    examples = "; ".join(f"{token}: {reason}" for token, reason in islice(failed.items(), SHOWN))
    logger.warning(
        "%s: %d of %d could not be written; they are left out, and tried again by the next run (%s%s). All of them: %s",
        *(what, len(failed), wanted, examples, "; ..." if len(failed) > SHOWN else "", path),
    )


class LeftOut:
    """Ids whose text could not be written when the run began, by stage: part of the run, so that loading or resuming it
    asks for none of them again.

    Args:
        run_dir: the run's folder; None where there is no run, and nothing is kept.

    Raises:
        CheckpointError: the folder's list cannot be read.

    Example:
        >>> left_out = LeftOut()
        >>> left_out.note("user_profile", ["u7"])
        >>> left_out.of("user_profile"), left_out.of("item_description")
        (frozenset({'u7'}), None)
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        self.path = None if run_dir is None else run_dir / LEFT_OUT
        self._ids: dict[str, list[str]] = {}
        if self.path is not None and self.path.is_file():
            try:
                self._ids = read_json(self.path)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{self.path} cannot be read ({error}); run the model again") from error

    def of(self, stage: str) -> frozenset[str] | None:
        """Ids, as in the dataset's files, that the run did without; None before the stage was run for it."""
        return frozenset(self._ids[stage]) if stage in self._ids else None

    def note(self, stage: str, ids: Iterable[str]) -> None:
        """Keep the ids that the run does without, in place of an earlier list."""
        self._ids[stage] = sorted(ids)
        if self.path is not None:
            write_json(self.path, self._ids, ensure_ascii=False)
