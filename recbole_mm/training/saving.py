"""Writes a trainer's weights and checkpoints into its run folder, and resumes from them."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer

from recbole_mm.errors import CheckpointError
from recbole_mm.training.checkpoint import (
    PathLike,
    load_tree,
    read_metadata,
    rng_state,
    save_tree,
    set_rng_state,
)
from recbole_mm.training.loop import TrainingLoop
from recbole_mm.training.state import (
    AttributeWatch,
    load_loader_state,
    load_model_tree,
    loader_state,
    model_tree,
)
from recbole_mm.utils.files import atomic_write, make_folder

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

logger = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"
"""The best weights so far; those of the last epoch where nothing is validated. See `state.load_weights`."""

CHECKPOINT = "checkpoint.safetensors"
"""All that the next epoch depends on."""

NEXT_WEIGHTS = "model.next.safetensors"
"""Best weights that are being written."""

PREVIOUS_WEIGHTS = "model.previous.safetensors"
"""The best weights as of the last checkpoint, kept until the next checkpoint is written."""


class SavingLoop(TrainingLoop):
    """A training loop that saves after an epoch and resumes from there.

    Attributes:
        history: one dict per epoch: `epoch`, `train_loss`, `seconds`, and after a validation `valid_score` and
            `valid_result`.
        best_epoch: the epoch whose weights `model.safetensors` holds; -1 before there is any.
    """

    def __init__(self, config: Config, model: nn.Module) -> None:
        super().__init__(config, model)
        self.saved_model_file = self.run_dir / WEIGHTS
        self.checkpoint_file = self.run_dir / CHECKPOINT
        self.history: list[dict[str, Any]] = []
        self.best_epoch = -1
        self._watch = AttributeWatch(model)
        self._owns_checkpoint = False
        self._resumed: Mapping[str, Any] | None = None

    # ------------------------------------------------------------------- save

    def _save(self, epoch_idx: int, train_data: Any, improved: bool, due: bool) -> None:
        """Write the weights if they are the best (`improved`), and the checkpoint if it is `due`.

        A kill between the two must not leave weights as the best ones that are newer than the checkpoint, so the
        best weights as of the last checkpoint are kept until the new checkpoint is written.
        """
        tree = model_tree(self.model, self._watch)
        name = str(self.config["model"])
        previous = self.run_dir / PREVIOUS_WEIGHTS
        if improved:
            score = str(self.history[-1].get("valid_score"))
            save_tree(self.run_dir / NEXT_WEIGHTS, tree, {"model": name, "epoch": str(epoch_idx), "valid_score": score})
            if self.checkpoint_file.exists() and self.saved_model_file.exists() and not previous.exists():
                os.replace(self.saved_model_file, previous)
            os.replace(self.run_dir / NEXT_WEIGHTS, self.saved_model_file)
        if due:
            state = {**self._progress_tree(epoch_idx, train_data), "weights": tree}
            save_tree(self.checkpoint_file, state, {"model": name, "epoch": str(epoch_idx)})
            previous.unlink(missing_ok=True)

    def trained_tree(self) -> dict[str, Any]:
        """Return everything that the scores of the model as it is now depend on."""
        return model_tree(self.model, self._watch)

    def _progress_tree(self, epoch_idx: int, train_data: Any) -> dict[str, Any]:
        return {
            "model": str(self.config["model"]),
            "epoch": epoch_idx,
            "cur_step": self.cur_step,
            "best_valid_score": self.best_valid_score,
            "best_valid_result": self.best_valid_result,
            "best_epoch": self.best_epoch,
            "train_loss_dict": self.train_loss_dict,
            "history": self.history,
            "timings": self.timings,
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self._optimizers().items()},
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "loader": loader_state(train_data),
            "rng": rng_state(),
        }

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Write the current weights as a safetensors file; RecBole's name for it."""
        path = Path(kwargs.pop("saved_model_file", self.saved_model_file))
        save_tree(path, model_tree(self.model, self._watch), {"model": str(self.config["model"]), "epoch": str(epoch)})
        if verbose:
            logger.info("Saving current: %s", path)

    def save_pretrained_model(self, epoch: int, saved_model_file: PathLike) -> None:
        """Write a pretrained model as a safetensors file; RecBole's name for it."""
        self._save_checkpoint(epoch, verbose=False, saved_model_file=saved_model_file)

    def _optimizers(self) -> dict[str, Optimizer]:
        """Return every optimizer of the trainer by attribute name; RecVAE has three and switches between them."""
        found = {name: value for name, value in vars(self).items() if isinstance(value, Optimizer)}
        main = found.pop("optimizer")
        return found if any(main is other for other in found.values()) else {**found, "optimizer": main}

    # ----------------------------------------------------------------- resume

    def _start(self, train_data: Any, resume: bool, saved: bool) -> None:
        """Load the run folder's checkpoint if `resume`, or make sure that none is overwritten.

        Raises:
            CheckpointError: the folder holds a checkpoint of an earlier run, or one that does not fit.
        """
        found = self.checkpoint_file.exists()
        if resume and found and self._resumed is None:
            self.resume_checkpoint(self.checkpoint_file)
        elif resume and not found:
            logger.info("%s: no checkpoint yet, so training starts from the beginning", self.run_dir)
        elif saved and found and not self._owns_checkpoint:
            raise CheckpointError(
                f"{self.checkpoint_file} is of an earlier run: continue it with --resume, or choose another run folder"
            )
        if saved:
            make_folder(self.run_dir)
            self._owns_checkpoint = True
        if self._resumed is not None:
            self._restore_last(train_data, self._resumed)
            self._resumed = None

    def resume_checkpoint(self, resume_file: PathLike) -> None:
        """Load model, optimizer and progress from a checkpoint; the next `fit` continues after its epoch.

        Raises:
            CheckpointError: the file is missing, damaged, a pickle, or of another model or optimizer.
        """
        state = load_tree(resume_file)
        if not isinstance(state, dict) or "optimizers" not in state:
            raise CheckpointError(f"{resume_file}: holds no training state; resume needs a {CHECKPOINT}")
        if state["model"] != str(self.config["model"]):
            raise CheckpointError(f"{resume_file}: is of {state['model']}, not of {self.config['model']}")
        load_model_tree(self.model, state["weights"], resume_file)
        self._load_optimizers(state["optimizers"], resume_file)
        self.scaler.load_state_dict(state["scaler"])
        self.start_epoch = state["epoch"] + 1
        names = ("cur_step", "best_valid_score", "best_valid_result", "best_epoch")
        for name in (*names, "train_loss_dict", "history"):
            setattr(self, name, state[name])
        self.timings |= state["timings"]  # of an older run, without those that are newer
        self._settle_best_weights(Path(resume_file).parent)
        self.tensorboard.resume_at(self.start_epoch)
        self._resumed = state
        self._owns_checkpoint |= Path(resume_file) == self.checkpoint_file
        logger.info("Checkpoint loaded. Resume training from epoch %d", self.start_epoch)

    def _load_optimizers(self, saved: Mapping[str, Any], resume_file: PathLike) -> None:
        optimizers = {"optimizer": self.optimizer, **self._optimizers()}
        try:
            for name, state in saved.items():
                optimizers[name].load_state_dict(state)
        except (KeyError, ValueError) as error:
            raise CheckpointError(
                f"{resume_file}: the optimizer's state does not fit these settings: {error}"
            ) from error

    def _restore_last(self, train_data: Any, state: Mapping[str, Any]) -> None:
        """Restore schedule, loader and generators, after everything is built: only epochs may draw from them now."""
        if self.schedule is not None and state["schedule"] is not None:
            self.schedule.load_state_dict(state["schedule"])
        load_loader_state(train_data, state["loader"])
        set_rng_state(state["rng"])

    def _settle_best_weights(self, folder: Path) -> None:
        """Restore the best weights as of the checkpoint in `folder`, whatever a later, lost epoch wrote there."""
        candidates = [folder / name for name in (WEIGHTS, PREVIOUS_WEIGHTS)]
        wanted = str(self.best_epoch)
        best = next((file for file in candidates if file.exists() and read_metadata(file).get("epoch") == wanted), None)
        if best is None and self.best_epoch >= 0:
            raise CheckpointError(
                f"{folder}: the weights of epoch {wanted}, the best so far, are gone; start a new run"
            )
        if best is not None and best != self.saved_model_file:
            make_folder(self.run_dir)
            with atomic_write(self.saved_model_file) as draft:
                shutil.copyfile(best, draft)
        for name in (PREVIOUS_WEIGHTS, NEXT_WEIGHTS):
            (self.run_dir / name).unlink(missing_ok=True)
