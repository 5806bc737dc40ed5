"""Molar: "Multimodal LLMs with Collaborative Filtering Alignment for Enhanced Sequential Recommendation"
(2412.18176)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.models.base import SequentialModel
from recbole_mm.models.fusion import Fusion, check_fusion
from recbole_mm.models.losses import alignment_loss, pointwise_loss, sampled_softmax_loss, softmax_loss
from recbole_mm.models.molar import id_model as id_models
from recbole_mm.models.molar.dueg_baselines import build_dueg
from recbole_mm.models.molar.items import MIRM, ContentItems, item_sources
from recbole_mm.models.molar.joint import JointContentItems, is_joint
from recbole_mm.models.molar.settings import SETTINGS
from recbole_mm.models.trained_items import with_rate_of
from recbole_mm.models.whole_batch import shared_random, whole_batch

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset
    from recbole_mm.data.inputs import ModelInputs

FIRST_TEMPERATURE, LARGEST_SCALE = 0.07, 100.0

SUM = 0.5
"""`fusion_weight` of the plain sum."""


class Molar(SequentialModel):
    """Item vectors of the MLLM (MIRM), read by its decoder (DUEG), aligned with an ID model after both have read them.

    L = L_rec + alpha * L_align + id_loss_weight * L_id (Eq. 5; the last term is ours: an ID model that is trained along
    needs a loss of its own before it is worth aligning with, and the paper does not say how its one was trained). With
    `id_model_training: pretrained` the first `id_epochs` epochs train the ID model alone, L = L_id, and the others
    leave it as it is; an ID model that comes from `id_model_path` is left as it is from the start.

    Needs from the dataset what `requirements` says: `item_vectors`, float32 (n_items, h), the MIRM vectors of Eq. (1);
    `mllm`, whose `text_stack()` and `hidden_size` h become the DUEG; `id_model_run`, see `id_model.FinishedRun`; and
    where the MIRM is trained along (`mirm_training: joint`) `prepared_items`, the prompts that it reads.

    Raises:
        ConfigError: settings do not fit together.

    Example:
        >>> recbole_mm.run("Molar", "my-data", config_dict={"mllm": "tiny"})  # doctest: +SKIP
    """

    settings = SETTINGS
    input_type = InputType.POINTWISE
    trains_on_full_sequences = True
    supports_ddp = True
    ignores_right_padding = True
    dueg: Any
    id_model: Any

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        check_together(config)
        self.n_train_items: int = dataset.train_item_num
        self.rec_loss: str = config["rec_loss"]
        self.loss_on: str = config["loss_on"]
        self.score: str = config["score"]
        self.fusion = Fusion(config["fusion_weight"], default=SUM)
        self.similarity: str = config["similarity"]
        self.alpha: float = config["alpha"]
        self.tau: float = config["tau"]
        self.comparative_instances: int | None = config["comparative_instances"]
        self.id_loss_weight: float = config["id_loss_weight"]
        self.shared_negatives: int = config["shared_negatives"]

        hidden = content_width(config, dataset)
        kind = JointContentItems if is_joint(config) else ContentItems
        self.items: ContentItems = kind.from_dataset(config, dataset, hidden)
        self.sources: tuple[str, ...] = tuple(item_sources(config))
        self.dropout = nn.Dropout(config["embedding_dropout"])
        self.dueg = build_dueg(config, dataset, hidden)
        self.scale = hidden**-0.5
        if self.similarity == "cosine":
            self.log_scale = nn.Parameter(torch.tensor(-math.log(FIRST_TEMPERATURE)))

        trained = config["id_model_path"] is not None
        self.id_epochs: int = config["id_epochs"] if config["id_model_training"] == "pretrained" and not trained else 0
        self.id_is_frozen = trained
        self.pretraining = False
        if trained:
            self.id_model = id_models.build_trained_id_model(config, dataset, dataset.inputs.id_model_run)
            self.id_model.requires_grad_(False)
        else:
            self.id_model = id_models.build_id_model(config, dataset, hidden)
        self.id_to_content: nn.Module = nn.Identity()
        if self.id_model is not None and self.alpha and (width := self.id_model.output_items().shape[1]) != hidden:
            self.id_to_content = nn.Linear(width, hidden, bias=False)

    @classmethod
    def requirements(cls, config: Config) -> tuple[str, ...]:
        """Return the inputs that these settings need; the MLLM is not loaded where nothing reads it.

        Raises:
            ConfigError: keys do not fit together; nothing costly has been computed yet.
        """
        check_together(config)
        needs = {
            "item_vectors": MIRM in item_sources(config),
            "prepared_items": is_joint(config),
            "mllm": config["dueg"] == "mllm",
            "id_model_run": config["id_model_path"] is not None,
        }
        return tuple(name for name, needed in needs.items() if needed)

    @classmethod
    def wants_negatives(cls, config: Config) -> bool:
        """Whether training batches must hold a negative for each target (Appendix B: 1:1)."""
        return config["rec_loss"] == "bce" or id_models.wants_negatives(config)

    def parameter_groups(self, config: Config) -> list[dict[str, Any]]:
        """Return the MLLM of `mirm_training: joint` at `item_llm_learning_rate`, the rest at `learning_rate`."""
        if not isinstance(self.items, JointContentItems):
            return super().parameter_groups(config)
        return with_rate_of(self.items.llm, config["item_llm_learning_rate"], self)

    # ------------------------------------------------------------- training

    def start_epoch(self, epoch: int) -> None:
        """Decide what the epoch (counted from 0) trains: the ID model alone, everything, or all but the ID model."""
        self.pretraining = epoch < self.id_epochs
        if self.id_epochs:
            self.id_is_frozen = not self.pretraining
        self.items.start_epoch(-1 if self.pretraining else epoch)

    def is_pretraining(self) -> bool:
        """Whether the epoch trains the ID model alone."""
        return self.pretraining

    def train(self, mode: bool = True) -> Molar:
        """Set the mode; an ID model that is frozen stays in evaluation mode, without dropout."""
        super().train(mode)
        if self.id_is_frozen:
            self.id_model.eval()
        return self

    def calculate_loss(self, interaction: Interaction) -> tuple[Tensor, ...]:
        """Return (L_rec, alpha * L_align, id_loss_weight * L_id), each averaged over the targets of the batch (Eq. 5).

        Terms of weight 0 are left out; while the ID model is pretrained there is L_id alone.
        """
        mask = interaction[TARGET_MASK]
        id_states = self._id_states(interaction)
        if self.pretraining:
            return (self._id_loss(id_states, interaction),)
        history = interaction[self.ITEM_SEQ]
        with self.items.of_batch(torch.cat([history.flatten(), interaction[TARGETS][mask]])):
            return self._losses(interaction, id_states)

    def _losses(self, interaction: Interaction, id_states: Tensor | None) -> tuple[Tensor, ...]:
        mask, history = interaction[TARGET_MASK], interaction[self.ITEM_SEQ]
        states = self.dueg.all_prefixes(self.dropout(self.items(history)), *self._readers(interaction))[mask]
        losses = [self._recommendation_loss(self._scaled(states), id_states, interaction)]
        if id_states is not None:
            if self.alpha:
                owners = interaction[self.USER_ID][:, None].expand_as(mask)[mask]
                content, aligned, owners = whole_batch(states, self.id_to_content(id_states), owners)
                losses.append(
                    self.alpha * alignment_loss(content, aligned, owners, self.tau, self.comparative_instances)
                )
            if self.id_loss_weight and not self.id_is_frozen:
                losses.append(self.id_loss_weight * self._id_loss(id_states, interaction))
        return tuple(losses)

    def _id_states(self, interaction: Interaction) -> Tensor | None:
        """Return the ID model's state at each target of the batch (n, d)."""
        if self.id_model is None:
            return None
        with torch.set_grad_enabled(not self.id_is_frozen):
            return self.id_model.prefix_states(interaction)[interaction[TARGET_MASK]]

    def _id_loss(self, id_states: Tensor | None, interaction: Interaction) -> Tensor:
        loss = self.id_model.loss_of_states(id_states, interaction)
        return torch.stack(loss).sum() if isinstance(loss, tuple) else loss

    def _recommendation_loss(self, states: Tensor, id_states: Tensor | None, interaction: Interaction) -> Tensor:
        mask = interaction[TARGET_MASK]
        targets = interaction[TARGETS][mask]
        id_items = None
        if self.loss_on != "content":
            id_items = self.id_model.output_items()
            assert id_states is not None
            if self.loss_on == "residual" or self.id_is_frozen:
                id_states, id_items = id_states.detach(), id_items.detach()
            states = torch.cat([states, id_states], dim=1)
        if self.rec_loss == "ce":
            return softmax_loss(states, targets, self._scored_items(None, id_items)[: self.n_train_items])
        positives = self._scored_items(targets, id_items)
        if self.rec_loss == "sampled_softmax":
            with shared_random():
                drawn = torch.randint(1, self.n_train_items, (self.shared_negatives,), device=states.device)
            return sampled_softmax_loss(
                states, positives, self._scored_items(drawn, id_items), drawn[None, :] == targets[:, None]
            )
        negatives = self._scored_items(interaction[NEGATIVES][mask], id_items)
        return pointwise_loss((states * positives).sum(-1), (states * negatives).sum(-1))

    # -------------------------------------------------------------- scoring

    def content_items(self, ids: Tensor | None = None) -> Tensor:
        """Return the vectors that E_u is scored against, of length 1 where the similarity is the cosine.

        Args:
            ids: items of any shape, giving (..., h); None for all items, giving (n_items, h).
        """
        vectors = self.items(ids)
        return F.normalize(vectors, dim=-1) if self.similarity == "cosine" else vectors

    def _scored_items(self, ids: Tensor | None, id_items: Tensor | None) -> Tensor:
        """Return the content model's item vectors, concatenated with `id_items` where these are given."""
        content = self.content_items(ids)
        if id_items is None:
            return content
        return torch.cat([content, id_items if ids is None else id_items[ids]], dim=-1)

    def _scaled(self, states: Tensor) -> Tensor:
        """Scale E_u so that its dot product with `content_items` is the score."""
        if self.similarity == "dot":
            return states * self.scale
        return F.normalize(states, dim=-1) * self.log_scale.exp().clamp(max=LARGEST_SCALE)

    def _readers(self, interaction: Interaction) -> tuple[Tensor, ...]:
        """Return the user ids, for a DUEG that reads them."""
        return (interaction[self.USER_ID],) if self.dueg.reads_users else ()

    def item_vectors(self) -> Tensor:
        """Return the item vectors: content (n_items, h), ID model (n_items, d), or both concatenated, of lengths such
        that scores are 2 w * content + 2 (1 - w) * id, w being `fusion_weight`."""
        content = None if self.score == "id" else self.content_items()
        return self._weighed(content, None if self.score == "content" else self.id_model.output_items())

    def new_item_vectors(self, new: ModelInputs, known: ModelInputs) -> Tensor:
        """Return the vectors of new items, of the width of `item_vectors`: their content, and for the ID model, which
        knows nothing of them, the mean of its items."""
        if self.score == "id":
            raise NotImplementedError
        mapped = self.items.of_new(self.sources, new, known)[1:]
        content = F.normalize(mapped, dim=-1) if self.similarity == "cosine" else mapped
        if self.score == "content":
            return self._weighed(content, None)
        return self._weighed(content, self.id_model.output_items()[1:].mean(0).expand(len(content), -1))

    def _weighed(self, content: Tensor | None, id_items: Tensor | None) -> Tensor:
        """Return item vectors of the content model, of the ID model, or both concatenated, times their weights."""
        if content is None or id_items is None:
            return torch.cat([part for part in (content, id_items) if part is not None], dim=1)
        if (weight := self.fusion.value) != SUM:
            content, id_items = 2 * weight * content, 2 * (1 - weight) * id_items
        return torch.cat([content, id_items], dim=1)

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Return E_u of each history (B, h), the ID model's state (B, d), or both concatenated, whose scores add up."""
        given = (interaction[name] for name in (self.USER_ID, self.ITEM_SEQ, self.ITEM_SEQ_LEN))
        return self.fusion.kept(given, lambda: self._user_vectors(interaction))

    def _user_vectors(self, interaction: Interaction) -> Tensor:
        parts = []
        if self.score != "id":
            items = self.items(interaction[self.ITEM_SEQ])
            whole = self.dueg.whole(items, interaction[self.ITEM_SEQ_LEN], *self._readers(interaction))
            parts.append(self._scaled(whole))
        if self.score != "content":
            parts.append(self.id_model.whole_states(interaction))
        return torch.cat(parts, dim=1)

    def validation_choices(self) -> Mapping[str, Any]:
        """Return the values of `fusion_weight` to try, if it is `valid`."""
        return self.fusion.choices()

    def take_choice(self, value: Any, last: bool) -> None:
        """Take one of them."""
        self.fusion.take(value, last)

    def predict(self, interaction: Interaction) -> Tensor:
        """Return the score of each row's own item (B,)."""
        return (self.user_vectors(interaction) * self.item_vectors()[interaction[self.ITEM_ID]]).sum(-1)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Return the scores of all items (B, n_items)."""
        return self.user_vectors(interaction) @ self.item_vectors().T


def check_together(config: Config) -> None:
    """Check that the settings about the ID model and its weight fit together.

    Raises:
        ConfigError: one does not.
    """
    without = config["id_model"] in (None, "none")
    if without and (config["score"] != "content" or config["alpha"]):
        raise ConfigError("id_model: none leaves nothing to align or fuse with: set alpha: 0 and score: content")
    if config["loss_on"] != "content" and (without or config["score"] == "content"):
        raise ConfigError(
            f"loss_on: {config['loss_on']} trains the content model to add to the ID model's score: it needs an "
            "id_model, and score: fused"
        )
    if config["score"] != "fused" and config["fusion_weight"] not in (None, SUM):
        raise ConfigError(
            f"fusion_weight: {config['fusion_weight']} weighs the two scores of score: fused, not one of score: "
            f"{config['score']}"
        )
    check_fusion(config)
    if config["dueg_layers"] is not None and config["dueg"] != "mllm":
        raise ConfigError(f"dueg_layers cuts the decoder of dueg: mllm, and this is dueg: {config['dueg']}")
    is_joint(config)
    pretrained = config["id_model_training"] == "pretrained"
    if pretrained and without:
        raise ConfigError("id_model_training: pretrained needs an id_model")
    if config["id_model_path"] is not None and not pretrained:
        raise ConfigError("id_model_path is for an ID model that stays as it is: set id_model_training: pretrained")
    if pretrained and config["id_model_path"] is None:
        epochs, id_epochs = config["epochs"], config["id_epochs"]
        most = epochs if config["score"] == "id" else epochs - 1  # else nothing would train the content model
        if not 1 <= id_epochs <= most:
            raise ConfigError(
                f"id_epochs: {id_epochs!r} of {epochs} epochs is not accepted: give the ID model at least 1 and, but "
                "for score: id, leave the content model at least 1"
            )


def content_width(config: Config, dataset: MultimodalDataset) -> int:
    """Return h, the width of E_u and of the item vectors: that of the MLLM unless `hidden_size` says otherwise.

    Raises:
        ConfigError: the MLLM's decoder has another width than `hidden_size`, or no setting determines the width.
    """
    asked = config["hidden_size"]
    if config["dueg"] == "mllm":
        width = dataset.inputs.mllm.hidden_size
        if asked not in (None, width):
            raise ConfigError(f"hidden_size: the MLLM's decoder is {width} wide, not {asked}; leave it null")
        return width
    if asked is not None:
        return asked
    if MIRM not in item_sources(config):
        raise ConfigError(f"hidden_size: give a number; dueg: {config['dueg']} reads no MLLM to take the width from")
    return dataset.inputs.item_vectors.shape[1]
