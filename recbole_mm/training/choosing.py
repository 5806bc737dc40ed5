"""Leaves to the validation what a model offers to be chosen, such as a weight of two scores: once, after training."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from recbole_mm.errors import ConfigError
from recbole_mm.training.checkpoint import read_metadata, save_tree
from recbole_mm.training.saving import NEXT_WEIGHTS, SavingLoop
from recbole_mm.training.state import interrupts_held, load_weights, model_tree
from recbole_mm.utils.log import COMPACT, LONG

logger = logging.getLogger(__name__)


class ChoosingLoop(SavingLoop):
    """A training loop after which the model takes the one of its `validation_choices` that validates best.

    It is tried with the weights of the best epoch and saved with them. Test data is not looked at. A training that was
    interrupted before the choice makes it when it goes on.

    Attributes:
        chosen: what was taken, in words; empty where nothing is chosen.
    """

    chosen = ""
    _verbose: bool
    _show_progress: bool

    def _choices(self, valid_data: Any) -> Mapping[str, Any]:
        """Return what the model leaves to the validation.

        Raises:
            ConfigError: nothing is validated.
        """
        choices = self.hooks.validation_choices(self.model)
        if choices and not (valid_data and self.eval_step > 0):
            raise ConfigError(f"{next(iter(choices))} or another is to be chosen on validation, and there is none")
        if choices and not self.hooks.is_trainable:  # so its one epoch does not change what it scores by
            self.hooks.take_choice(self.model, next(iter(choices.values())), last=False)
        return choices

    def _choose(self, choices: Mapping[str, Any], valid_data: Any, saved: bool) -> None:
        """Have the model take what validates best with the best weights, and save it with them.

        Args:
            choices: from `_choices`.
            valid_data: as for `fit`.
            saved: the best weights are in the run's folder; else the model is taken as it is.
        """
        start = time.perf_counter()
        if saved:
            self._load_best_weights()
        found = []
        for value in choices.values():
            self.hooks.take_choice(self.model, value, last=False)
            found.append(self._valid_epoch(valid_data, show_progress=self._show_progress))
        scores = [score if self.valid_metric_bigger else -score for score, _ in found]
        best = scores.index(max(scores))
        self.hooks.take_choice(self.model, list(choices.values())[best], last=True)
        self.best_valid_score, self.best_valid_result = found[best]
        self.chosen = list(choices)[best]
        for record in self.history:
            if record["epoch"] == self.best_epoch:
                record |= {"valid_score": found[best][0], "valid_result": dict(found[best][1])}
        self.timings["eval_seconds"] += time.perf_counter() - start
        if saved:
            with interrupts_held():
                self._save_best_weights_again()
        if self._verbose:
            metric, names = self.config["valid_metric"].lower(), list(choices)
            logger.info("%s, chosen on validation: %s %.6f", self.chosen, metric, self.best_valid_score, extra=COMPACT)
            tried = ", ".join(f"{name} {metric} {score:.6f}" for name, (score, _) in zip(names, found))
            logger.info("tried on validation: %s", tried, extra=LONG)

    def _load_best_weights(self) -> None:
        load_weights(self.model, self.saved_model_file)

    def _save_best_weights_again(self) -> None:
        """Write the model's weights in the place of the best ones, of which they are what was completed."""
        known = read_metadata(self.saved_model_file)
        known |= {"valid_score": str(self.best_valid_score)}
        save_tree(self.run_dir / NEXT_WEIGHTS, model_tree(self.model, self._watch), known)
        os.replace(self.run_dir / NEXT_WEIGHTS, self.saved_model_file)
