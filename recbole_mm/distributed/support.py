"""Which models can be trained on several workers, and what is changed in RecBole's for it."""

from __future__ import annotations

from typing import Any

from recbole.model.loss import EmbLoss, EmbMarginLoss
from recbole.trainer import Trainer
from recbole.trainer.trainer import TraditionalTrainer
from recbole.utils import ModelType, get_trainer
from torch import nn

from recbole_mm.distributed.batch import whole_batch
from recbole_mm.errors import ConfigError
from recbole_mm.models.hooks import hooks_of

ONE = "; train it with train_workers: 1"


def check_supported(config: Any, model_class: type) -> None:
    """Make sure that a model's training can be shared by workers.

    A class says so by `supports_ddp = True` (see `models/base.py`); of RecBole's `models/recbole_models.py` says it.

    Raises:
        ConfigError: it cannot, or nothing is known of it.
    """
    name, hooks = config["model"], hooks_of(model_class)
    if not hooks.is_trainable or config["MODEL_TYPE"] == ModelType.TRADITIONAL:
        return
    if config["MODEL_TYPE"] == ModelType.DECISIONTREE:
        raise ConfigError(f"{name} is trained by a library of its own, which takes one process{ONE}")
    base = get_trainer(config["MODEL_TYPE"], name)
    if base not in (Trainer, TraditionalTrainer):
        raise ConfigError(f"{name} is trained in a way of its own ({base.__name__}), which takes one process{ONE}")
    if (config["train_neg_sample_args"] or {}).get("dynamic"):
        raise ConfigError(f"train_neg_sample_args: dynamic draws negatives by the scores of one process{ONE}")
    if not hooks.supports_ddp:
        raise ConfigError(
            f"{name}: nothing says that its loss is a mean over the rows of a batch, of which each worker would take a "
            f"part{ONE}, or set supports_ddp = True in its class if it is"
        )


def adapt(model: nn.Module) -> None:
    """Make the parts of RecBole's losses that are no means over rows look at the whole batch.

    Raises:
        ConfigError: the model normalises over its batch, which would be another one on every worker.
    """
    for name, part in model.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(f"{type(model).__name__} normalises over a batch ({name}), which workers would cut{ONE}")
        for upstream, ours in WHOLE.items():
            if type(part) is upstream:
                part.__class__ = ours


class WholeEmbLoss(EmbLoss):
    """The norm of the embeddings of a batch: a root over all rows, so all rows are needed."""

    def forward(self, *embeddings: Any, require_pow: bool = False) -> Any:
        return super().forward(*_whole(embeddings), require_pow=require_pow)


class WholeEmbMarginLoss(EmbMarginLoss):
    """A sum over all rows."""

    def forward(self, *embeddings: Any) -> Any:
        return super().forward(*_whole(embeddings))


WHOLE: dict[type, type] = {EmbLoss: WholeEmbLoss, EmbMarginLoss: WholeEmbMarginLoss}


def _whole(embeddings: Any) -> list[Any]:
    return [whole_batch(one) for one in embeddings]
