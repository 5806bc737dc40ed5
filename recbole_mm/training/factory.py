"""The trainer of a model: RecBole's own trainer class for it, with our loop, checkpoints and workers.

    >>> trainer = make_trainer(config, model, run_dir)                                   # doctest: +SKIP
    >>> trainer.fit(train_data, valid_data)                                              # doctest: +SKIP
    >>> trainer.evaluate(test_data)  # with the best weights                             # doctest: +SKIP

The run folder receives `model.safetensors`, `checkpoint.safetensors` (see `saving`) and `tensorboard/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole.trainer import NCLTrainer, Trainer
from recbole.utils import ModelType, get_trainer
from torch import nn

from recbole_mm.errors import ConfigError
from recbole_mm.training.checkpoint import PathLike
from recbole_mm.training.ddp import WorkerTrainer
from recbole_mm.training.loop import NCLTrainingLoop, TrainingLoop
from recbole_mm.training.trainer import TrainerMixin
from recbole_mm.utils.process_group import current_workers

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config


def make_trainer(config: Config, model: nn.Module, run_dir: PathLike) -> TrainerMixin:
    """Returns a trainer of `model` that writes into `run_dir`: RecBole's trainer class for it, without its pickles.

    In a process that is one of several workers, the trainer trains together with those of the other workers.

    Args:
        config: settings; `model` and `MODEL_TYPE` choose RecBole's class (KGTrainer, NCLTrainer, RecVAETrainer, ...).
        model: the model to train, on `config["device"]`.
        run_dir: the run's folder, created when something is first written.

    Raises:
        ConfigError: a decision tree model, or training options that do not fit together.
    """
    if config["MODEL_TYPE"] == ModelType.DECISIONTREE:
        raise ConfigError(f"{config['model']} is trained by a library that saves with pickle; choose another model")
    front = TrainerMixin if current_workers() is None else WorkerTrainer
    base = get_trainer(config["MODEL_TYPE"], config["model"])
    if base is Trainer:
        return front(config, model, run_dir)
    # In this order RecBole's class comes before the loop that it calls by `super()`, and after what replaces its own.
    bases = (front, NCLTrainingLoop) if base is NCLTrainer else (front, base, TrainingLoop)
    return type(base.__name__, bases, {})(config, model, run_dir)
