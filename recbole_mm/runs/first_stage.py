"""The first stage of a run: a model whose best items another one puts in order, and Pop beside both.

It is a run of its own, of any registered or RecBole model on the same data, split and seed, with a folder of its own
under the same `checkpoint_dir`: found again if it is finished, resumed if it was interrupted. `first_stage` names the
model and `first_stage_config` its settings; or `first_stage_path` names the folder of a run that is there already.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_mm.config.resolved import CONTENT_KEYS, DERIVED_KEYS, Config, opener_settings
from recbole_mm.config.yaml_settings import canonical
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.dot_product import dot_product_of
from recbole_mm.evaluation.scoring import Scorer
from recbole_mm.models.hooks import full_sequence_class, hooks_of, reads_content
from recbole_mm.registry import find_model
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs.pretrained_run import check_same_data, config_of_finished_run
from recbole_mm.runs.profiling import Stages
from recbole_mm.utils.file_lock import locked
from recbole_mm.utils.log import init_logging

logger = logging.getLogger(__name__)

NONE = "none"
"""`first_stage` of a run without one."""

RUN_KEYS = frozenset(
    {"seed", "reproducibility", "use_gpu", "gpu_id", "data_path", "checkpoint_dir", "artifact_dir", "show_progress"}
    | {"state", "log_style", "worker", "mask_history", "candidates", "positives", "eval_memory_mb", "save_per_user"}
    | {"missing_modality", "save_dataset", "save_dataloaders"}
)
"""Settings that a run has in common with those beside it, with RecBole's of the dataset and of the evaluation."""

WRITING_KEYS = ("mllm", "mllm_dtype", "trust_remote_code", "text_")
"""Beginnings of what models of item content share beside what an item looks like."""

COMPARED = ("eval_args", "mask_history", "candidates", "positives", "metrics", "topk")
"""Settings under which two runs' test metrics are of the same cases and candidates, with the seed where it draws."""


class FirstStage:
    """A trained model that scores all items for any user and history.

    Args:
        config: of its run.
        dataset: of its run.
        model: trained, in evaluation mode.
        sees_held_out: how its training saw held-out interactions.
    """

    def __init__(self, config: Any, dataset: Any, model: Any, sees_held_out: list[str]) -> None:
        self.config = config
        self.dataset = dataset
        self.model = model
        self.sees_held_out = [f"first stage {config['model']}: {text}" for text in sees_held_out]
        self.name: str = config["model"]
        self._sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self._halves = dot_product_of(model)
        self._items: Tensor | None = None

    def scores(self, cases: Interaction) -> Tensor:
        """Scores of all items (B, n_items) float64.

        Args:
            cases: users (B,) and, for a sequential model, their histories, under RecBole's names. A model that knows no
                histories scores by the user.
        """
        uid = self.dataset.uid_field
        batch = cases if self._sequential else self.dataset.join(Interaction({uid: cases[uid].cpu()}))
        batch = batch.to(self.config["device"])
        with torch.no_grad():
            if self._halves is None:
                scores = self._full(batch)
            else:  # in double precision, so that another batch does not round two items into another order
                if self._items is None:
                    self._items = self._halves.items().double()
                scores = self._halves.users(batch).double() @ self._items.T
        return scores.to(cases[uid].device)

    def _full(self, batch: Interaction) -> Tensor:
        scorer = Scorer(
            self.model,
            batch,
            self.dataset.item_num,
            device=self.config["device"],
            memory_mb=self.config["eval_memory_mb"] or 256,
            batch_size=self.config["eval_batch_size"],
            item_features=self.dataset.get_item_feature(),
        )
        table = torch.zeros(len(batch), self.dataset.item_num, dtype=torch.float64, device=self.config["device"])
        for blocks in scorer.all_items(scorer.batches(np.arange(len(batch)))):
            for rows, scores in blocks:
                table[torch.from_numpy(rows)] = scores.double()
        return table


def open_first_stage(config: Config, dataset: Any, run_dir: Path) -> FirstStage | None:
    """The first stage that the settings ask for, trained now if it was not before; None for `first_stage: none`.

    Args:
        config: of the run.
        dataset: of the run.
        run_dir: folder of the run, whose log goes on when the first stage is done.

    Raises:
        ConfigError: the settings do not fit together, or the first stage's data or split are others.
    """
    from recbole_mm.runs import run as pipeline  # which opens first stages

    check_first_stage(config)
    folder = _folder(config, run_dir)
    if folder is None:
        return None
    loaded = pipeline.load(folder, changed=opener_settings(config))
    for field in (dataset.uid_field, dataset.iid_field):
        theirs, ours = (part.field2id_token.get(field, ()) for part in (loaded.dataset, dataset))
        if not np.array_equal(theirs, ours):
            raise ConfigError(
                f"first_stage: {folder} knows other {field}s than this run, by other data or settings of it"
            )
    logger.info("first stage: %s of %s", loaded.config["model"], folder)
    return FirstStage(loaded.config, loaded.dataset, loaded.model, loaded.sees_held_out)


def check_first_stage(config: Config) -> None:
    """Make sure that `first_stage`, `first_stage_path`, `first_stage_config` and `rerank_k` fit together.

    Raises:
        ConfigError: they do not.
    """
    name, path, given = (config[key] for key in ("first_stage", "first_stage_path", "first_stage_config"))
    if not isinstance(given or {}, Mapping):
        raise ConfigError(f"first_stage_config: {given!r} is not a mapping such as {{epochs: 20}}")
    if path is not None and given:
        raise ConfigError("first_stage_config is for a first stage that is trained here, not for first_stage_path")
    if path is None and _is_none(name):
        modes = config["eval_args"]["mode"]
        if config["rerank_k"] is not None and "full" in modes.values():
            raise ConfigError(
                f"first_stage: none leaves nobody to choose the rerank_k: {config['rerank_k']} items; name a model as "
                "first_stage, or ask about every item with rerank_k: ~"
            )


def results_beside(config: Config, run_dir: Path, stages: Stages) -> dict[str, dict[str, float]]:
    """Test metrics of the first stage and of Pop, from their own runs; trained now where they were not before.

    A run in `first_stage_path` with other cases or candidates than this one is left out, and the log says so.

    Args:
        config: of the run.
        run_dir: its folder.
        stages: measures how long those runs take.

    Returns:
        Name, for people -> metric -> value.

    Raises:
        ConfigError: the settings do not fit together, or the first stage's data or split are others.
    """

    check_first_stage(config)
    found = {}
    with stages("first stage"):
        folder = _folder(config, run_dir)
        popular = companion(config, "Pop", {}, run_dir)
    if folder is not None:
        theirs = Config.load(folder)
        keys = COMPARED if set(config["eval_args"]["mode"].values()) == {"full"} else (*COMPARED, "seed")
        if other := [key for key in keys if canonical(theirs[key]) != canonical(config[key])]:
            logger.warning("%s was tested with another %s: its metrics are not shown beside", folder, other[0])
        else:
            found[f"{theirs['model']} (first stage)"] = run_folder.read_result(folder)["test_result"]
    if folder != popular:
        found["Pop"] = run_folder.read_result(popular)["test_result"]
    return found


def _folder(config: Config, run_dir: Path) -> Path | None:
    """Folder of the first stage's run."""
    if config["first_stage_path"] is not None:
        config_of_finished_run(config["first_stage_path"], config, "first_stage_path")
        return Path(config["first_stage_path"])
    if _is_none(config["first_stage"]):
        return None
    return companion(config, config["first_stage"], config["first_stage_config"] or {}, run_dir)


def _is_none(name: Any) -> bool:
    return name is None or str(name).lower() == NONE


def companion(config: Config, model: str, changed: Mapping[str, Any], run_dir: Path) -> Path:
    """Folder of a finished run of another model on this run's data, split, seed and candidates.

    The newest finished run of the same settings, wherever it came from, or one that is made now: an interrupted one is
    resumed. Sequential models that can are trained on full sequences.

    Args:
        config: of this run.
        model: the other's name.
        changed: settings of the other.
        run_dir: folder of this run, whose log goes on afterwards.

    Raises:
        ConfigError: unknown model, or `changed` changes the data or the split.
    """
    from recbole_mm.runs import run as pipeline

    entry = find_model(str(model))
    settings = {**_shared(config, entry.load()), **changed}
    theirs = Config(entry.name, config["dataset"], config_dict=settings)
    theirs["data_files"] = config["data_files"]  # of the day of this run, where it is loaded again
    check_same_data(theirs, config, f"first_stage_config: {entry.name}")
    folder = run_folder.first_run_dir(theirs)
    with locked(folder.with_name(f"{folder.name}-beside"), "making"):  # the run itself locks its own folder
        earlier = run_folder.earlier_run_dirs(theirs)
        if finished := [path for path in earlier if run_folder.is_finished(path)]:
            return finished[-1]
        logger.info("%s on the same data and split comes first", entry.name)
        try:
            done = pipeline.run(entry.name, config["dataset"], config_dict={**settings, "resume": bool(earlier)})
        finally:
            init_logging(run_dir, config["state"], config["log_style"])
        return done.run_dir


def _shared(config: Config, model_class: type) -> dict[str, Any]:
    """What a run beside this one takes over. What an item looks like is none of it where it changes nothing, so that
    runs on other texts and images share the companion."""
    kept = {*RUN_KEYS, *config.parameters["Dataset"], *config.parameters["Evaluation"]} - DERIVED_KEYS
    asks = reads_content(hooks_of(model_class))
    if asks or config["item_features"] or config["missing_modality"] != "mask":
        kept |= CONTENT_KEYS | {"max_image_pixels"}
    settings = config.as_dict()
    if asks:
        kept |= {key for key in settings if key.startswith(WRITING_KEYS)}
    found = {key: settings[key] for key in settings if key in kept}
    if _can_train_on_full_sequences(model_class):
        found["full_sequence"] = True
    return found


def _can_train_on_full_sequences(model_class: type) -> bool:
    """Whether `full_sequence: True` makes another class of it."""
    try:
        return full_sequence_class(model_class) is not model_class
    except ConfigError:
        return False
