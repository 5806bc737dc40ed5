"""The contract of a model: every hook that it may offer, with the default and its meaning.

A model is one of RecBole's recommenders: `__init__(config, dataset)`, `calculate_loss(interaction)`,
`predict(interaction)` and, where it can rank all items at once, `full_sort_predict(interaction)`. Everything on this
page is optional. A class of ours, or of yours, derives from `SequentialModel`, `GeneralModel` or `RerankingModel` and
overrides what it offers; RecBole's own classes, which know none of this, are answered for by the table in `hooks.py`.

    class Mine(SequentialModel):
        input_type = InputType.POINTWISE
        requires = ("item_vectors",)
        ignores_right_padding = True

Whoever needs an answer asks `hooks_of(model_class)`, never the class itself. A name that is almost one of these, or a
value of another kind, is refused there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender, SequentialRecommender
from torch import Tensor

from recbole_mm.config.schema import Setting

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset
    from recbole_mm.data.inputs import ModelInputs


class ModelHooks:
    """The hooks, with their defaults. Flags are class attributes, True or False, and hold for every instance."""

    settings: ClassVar[tuple[Setting, ...]] = ()
    """The class's own settings, with their defaults, and those of every model that have another default here. Those of
    its bases are its own, too."""

    # ------------------------------------------------------------------------------------------------------- inputs

    requires: ClassVar[tuple[str, ...]] = ()
    """What must be computed before the model is built; the dataset then has it as `inputs` (see `ModelInputs`)."""

    @classmethod
    def requirements(cls, config: Config) -> tuple[str, ...]:
        """The same where settings decide. A good place to refuse settings that do not fit together: nothing costly has
        been computed yet."""
        return tuple(cls.requires)

    has_first_stage: ClassVar[bool] = False
    """The model of `first_stage` comes before this one, as `dataset.inputs.first_stage`, whose `scores(cases)` are
    (B, n_items); the result is printed with those of it and Pop."""

    @classmethod
    def build_prompt(cls, config: Config, dataset: MultimodalDataset, mllm: Any) -> Any:
        """The prompt that an LLM is fine-tuned to answer; for classes that require `answering_mllm`.

        Args:
            config: the run's configuration.
            dataset: not split yet, with all other inputs.
            mllm: its tokenizer and family lay out prompts; it may have no weights.
        """
        raise NotImplementedError(f"{cls.__name__} requires answering_mllm and has no build_prompt")

    # ----------------------------------------------------------------------------------------------------- training

    is_trainable: ClassVar[bool] = True
    """Epochs change the model. False: no batch is read, and one pass validates."""

    trains_on_full_sequences: ClassVar[bool] = False
    """Training batches are whole sequences with a target at every position (`data/loaders.py`), not RecBole's
    prefixes."""

    @classmethod
    def wants_negatives(cls, config: Config) -> bool:
        """Whether those batches hold a sampled negative for each target."""
        return False

    full_sequence_mixin: ClassVar[type | None] = None
    """What makes of this very class, by multiple inheritance, the form that `full_sequence: True` trains:
    `FullSequenceMixin` or a subclass of it. A subclass does not inherit it."""

    def start_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0, in a resumed run as well: for training in phases."""

    def is_pretraining(self) -> bool:
        """Whether the epoch trains a part of the model alone, so that its scores are not yet worth validating."""
        return False

    @classmethod
    def only_pretrains(cls, config: Config) -> bool:
        """Whether the run ends where another one begins: it trains `pretrain_epochs` and never validates."""
        return False

    def validation_choices(self) -> Mapping[str, Any]:
        """What the model leaves to the validation: each value that `take_choice` is given, by what the log says of it.

        They are tried once, after the last epoch, with the best epoch's weights; of equally good ones the first is
        taken. What `take_choice` sets must be one of the model's weights, to be saved with them."""
        return {}

    def take_choice(self, value: Any, last: bool) -> None:
        """Score by one of those values. Unless it is the `last` one, the weights stay as they are until the next, so
        that what does not depend on it need not be computed again."""
        raise NotImplementedError

    def parameter_groups(self, config: Config) -> list[dict[str, Any]]:
        """The optimizer's groups, `{"params": [...], "lr": ...}`; every trainable parameter must be in one."""
        return [{"params": list(self.parameters())}]  # type: ignore[attr-defined]

    supports_ddp: ClassVar[bool] = False
    """`calculate_loss` is a mean over the rows of a batch, or over its targets, or takes `whole_batch` of
    `models/whole_batch.py` where it compares rows; so `train_workers` may be above 1."""

    reads_labels: ClassVar[bool] = False
    """`calculate_loss` reads `LABEL_FIELD`: without sampled negatives, the interactions that are labelled 0 are trained
    on. Other models are given positives alone."""

    # ------------------------------------------------------------------------------------------------------ scoring

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """(B, d), one per row. With `item_vectors` it makes a dot-product model: a score is the product of both, and
        item vectors are computed once for all users."""
        raise NotImplementedError

    def item_vectors(self) -> Tensor:
        """(n_items, d), one per item id, padding item 0 included."""
        raise NotImplementedError

    def new_item_vectors(self, new: ModelInputs, known: ModelInputs) -> Tensor:
        """(m, d) vectors, of the kind of `item_vectors`, of m items that no training knows, from their content alone.
        `new` has the inputs of such items, row 0 for padding, and `known` those of the model's own, by whose mean and
        spread they are standardised."""
        raise NotImplementedError

    def scores_of_histories(self, chosen: Tensor) -> Tensor:
        """(B, n_items) scores for users that no training knows, from what they chose alone: `chosen` is (B, n_items)
        float32 of 0 and 1. For general models whose score does not rest on a vector that was trained for the user;
        models of sequences read histories anyway."""
        raise NotImplementedError

    ignores_right_padding: ClassVar[bool] = False
    """Scores do not depend on the padding after a history's last item, so ranking cuts each batch to its longest
    history."""

    materializes_pairs: ClassVar[bool] = False
    """`full_sort_predict` holds a vector for every (row, item) pair of a batch, so batches are kept that much
    smaller."""


class SequentialModel(ModelHooks, SequentialRecommender):
    """Base of models of users' histories: `interaction[self.ITEM_SEQ]` (B, L) item ids, padded with 0 on the right, and
    `interaction[self.ITEM_SEQ_LEN]` (B,)."""


class GeneralModel(ModelHooks, GeneralRecommender):
    """Base of models of users and items without an order: `interaction[self.USER_ID]`, `interaction[self.ITEM_ID]`."""


class RerankingModel(SequentialModel, ABC):
    """Base of models that put the `rerank_k` best items of a cheap model in order; `RerankingRecommender` is built on
    it."""

    answers_any: bool = False
    """`predict` asks about every pair that it is given. False: it gives the numbers of `full_sort_predict`."""

    reads_users: ClassVar[bool] = True
    """What it asks rests on more than the history: on something that was trained or written for the user's id. False:
    it can be asked for users that no training knows, if its first stage can."""

    mask_history: bool = True
    """No item of the history is asked about."""
    _choosable: Tensor | None = None
    """bool (n_items,), the items of which `rerank_k` are chosen; None: all."""
    _knows_training_items: bool = True
    """The history includes what the user chose in training."""

    @contextmanager
    def choosing_from(
        self, items: np.ndarray | None, mask_history: bool | None = None, is_known: bool = True
    ) -> Iterator[None]:
        """Choose the items that are asked about in another way for a while.

        Args:
            items: (m,) ids, where no others are ranked; None: among all.
            mask_history: whether those of the history are left out; None: as the run was evaluated.
            is_known: the histories are those of the data, of which the last items are read; False: they are others, in
                which a user's training items need not be.
        """
        before = self._choosable, self.mask_history, self._knows_training_items
        if items is not None:
            self._choosable = torch.zeros(self.n_items, dtype=torch.bool)
            self._choosable[torch.from_numpy(items)] = True
        self.mask_history = self.mask_history if mask_history is None else mask_history
        self._knows_training_items = is_known
        try:
            yield
        finally:
            self._choosable, self.mask_history, self._knows_training_items = before

    @abstractmethod
    def first_scores(self, cases: Interaction) -> Tensor:
        """(B, n_items) float64 of the cheap model, any numbers. In double precision, so that no two scores change
        places when another batch rounds them differently."""

    @abstractmethod
    def probabilities(self, cases: Interaction, owners: Tensor, items: Tensor) -> Tensor:
        """p(yes) of items (n,) for the cases `owners` (n,), as float64 in [0, 1]."""

    def tokens_per_case(self) -> dict[str, float]:
        """What the expensive model has read to answer about a case, in tokens, on average, by what for; empty where
        that is not counted."""
        return {}

    def asks_now(self) -> bool:
        """Whether any item is asked about at all; False leaves everything to the cheap model."""
        return True

    @staticmethod
    def never_changes(name: str) -> bool:
        """Whether the weight of this name is one that no run changes, so that it is not saved with any."""
        return False
