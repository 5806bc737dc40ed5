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

ONE = "; train it with train_workers: 1"

ROW_WISE = frozenset(
    {"BPR", "DMF", "FISM", "LightGCN", "MultiDAE", "NAIS", "NGCF", "NNCF", "NeuMF", "SimpleX", "SpectralCF"}
    | {
        "CORE",
        "Caser",
        "FDSA",
        "FOSSIL",
        "FPMC",
        "GCSAN",
        "GRU4Rec",
        "GRU4RecF",
        "HGN",
        "HRM",
        "LightSANs",
        "NARM",
        "NPE",
        "NextItNet",
        "RepeatNet",
        "SASRec",
        "SASRecF",
        "SINE",
        "SRGNN",
        "STAMP",
        "TransRec",
    }
)
"""RecBole's models whose loss is a mean over the rows of a batch, apart from terms of `WHOLE` and of the weights alone;
a test holds their gradients equal to those of one process."""


def check_supported(config: Any, model_class: type) -> None:
    """Make sure that a model's training can be shared by workers.

    A class of ours says so by `splits_batches = True`: `calculate_loss` is a mean over the targets of a batch, or calls
    `distributed.batch.whole_batch` where it is not. Of RecBole's there is the list above.

    Raises:
        ConfigError: it cannot, or nothing is known of it.
    """
    name = config["model"]
    if not getattr(model_class, "learns", True) or config["MODEL_TYPE"] == ModelType.TRADITIONAL:
        return
    if config["MODEL_TYPE"] == ModelType.DECISIONTREE:
        raise ConfigError(f"{name} is trained by a library of its own, which takes one process{ONE}")
    base = get_trainer(config["MODEL_TYPE"], name)
    if base not in (Trainer, TraditionalTrainer):
        raise ConfigError(f"{name} is trained in a way of its own ({base.__name__}), which takes one process{ONE}")
    if (config["train_neg_sample_args"] or {}).get("dynamic"):
        raise ConfigError(f"train_neg_sample_args: dynamic draws negatives by the scores of one process{ONE}")
    if not splits_batches(model_class):
        raise ConfigError(
            f"{name}: nothing says that its loss is a mean over the rows of a batch, of which each worker would take a "
            f"part{ONE}, or set splits_batches = True in its class if it is"
        )


def splits_batches(model_class: type) -> bool:
    """Whether the loss of a class may be computed in parts: who wrote it says so, or it is one of RecBole's `ROW_WISE`.

    A class derived from one that may counts as that one unless it has a `calculate_loss` of its own.
    """
    for base in model_class.__mro__:
        if "splits_batches" in vars(base):
            return bool(vars(base)["splits_batches"])
        if "calculate_loss" in vars(base):
            return base.__module__.startswith("recbole.model.") and base.__name__ in ROW_WISE
    return False


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
