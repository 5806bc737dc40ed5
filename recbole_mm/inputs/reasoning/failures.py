"""What could not be written, where a user finds all of it: a CSV file of a stage, beside the store."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from recbole_mm.errors import DiskError
from recbole_mm.inputs.reasoning.settings import PreferenceSettings, ReasoningSettings
from recbole_mm.utils.escaping import csv_cell
from recbole_mm.utils.files import atomic_write, disk_errors, make_folder

logger = logging.getLogger(__name__)

FOLDER = "failed_texts"
SHOWN = 3


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


def failures_file(artifacts: Path, config: Any, stage: str) -> Path:
    """The file that lists a stage's failures; runs that want the same texts share it.

    Args:
        artifacts: the artifact folder.
        config: of the run.
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
