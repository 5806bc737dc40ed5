"""`mirm_training: joint`: the recommendation loss reaches the MLLM that reads items (MIRM); ours, not in the paper.

At the first step the item vectors are those of `two_stage`, to which they are standardised as well: the mean and spread
are constants, taken before training.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from recbole_mm.errors import ConfigError
from recbole_mm.models.hyper import LORA_DEFAULTS, read_map
from recbole_mm.models.layers import centred, moments
from recbole_mm.models.lora import with_lora
from recbole_mm.models.molar.items import MIRM, ContentItems, checked_sources, item_sources, sources_of
from recbole_mm.models.trained_items import CachePolicy, TrainedItems, require_one_process

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset
    from recbole_mm.data.inputs import ModelInputs
    from recbole_mm.llm.model import MLLM
    from recbole_mm.llm.prepared_items import PreparedItems

JOINT = "joint"


def is_joint(config: Config) -> bool:
    """Return whether `mirm_training` is joint.

    Raises:
        ConfigError: settings do not fit together.
    """
    if config["mirm_training"] != JOINT:
        return False
    if MIRM not in item_sources(config):
        raise ConfigError("mirm_training: joint trains the MLLM that reads items; name mllm in item_sources")
    if config["score"] == "id":
        raise ConfigError("mirm_training: joint trains the content score, and score: id does not rank by it")
    if not config["joint_from_epoch"] < max(1, config["epochs"]):
        raise ConfigError(
            f"joint_from_epoch: {config['joint_from_epoch']} leaves no epoch out of {config['epochs']} that trains the "
            "MLLM; give less, or mirm_training: two_stage"
        )
    require_one_process(config, "mirm_training: joint")
    if config["modality_dropout"]:
        raise ConfigError(
            "modality_dropout drops frozen vectors, and mirm_training: joint trains what makes them; give 0"
        )
    return True


def trainable_mllm(mllm: MLLM, tuning: str, lora: dict[str, Any], checkpointing: bool) -> MLLM:
    """Return a copy of an MLLM whose weights are trained; the original stays as it is.

    Args:
        mllm: without a head.
        tuning: `full`: all weights, in float32. `lora`: an adapter in the decoder; other weights are shared with the
            original, and frozen.
        lora: `r`, `alpha`, `dropout` and `targets` of the adapter.
        checkpointing: compute each layer's activations twice instead of keeping them.

    Raises:
        ConfigError: the adapter cannot be made.
    """
    from recbole_mm.llm.model import checkpoint_layers  # imports transformers, which other variants do without

    if tuning == "full":
        model = copy.deepcopy(mllm.model).float().requires_grad_(True)
    else:
        tensors = chain(mllm.model.parameters(), mllm.model.buffers())
        model = copy.deepcopy(mllm.model, {id(tensor): tensor for tensor in tensors}).requires_grad_(False)
        decoder = mllm.family.decoder(model)
        adapted: Any = with_lora(decoder, lora["r"], lora["alpha"], lora["dropout"], lora["targets"])
        model = _replaced(model, decoder, adapted)
    if checkpointing:
        checkpoint_layers(model)
    return replace(mllm, model=model)


def _replaced(model: Any, old: nn.Module, new: nn.Module) -> Any:
    """Put a module in the place of another one inside a model, or of the model itself."""
    if model is old:
        return new
    parent, _, name = next(path for path, module in model.named_modules() if module is old).rpartition(".")
    setattr(model.get_submodule(parent), name, new)
    return model


class PromptedItems(TrainedItems):
    """The MLLM, trained, and the prompts of images and texts that it reads; a vector is that of Eq. (1).

    Args:
        prepared: the prompts, and the encoder of the MLLM as it was.
        tuning, lora, checkpointing: see `trainable_mllm`.
        policy: see `TrainedItems`.
    """

    def __init__(
        self, prepared: PreparedItems, tuning: str, lora: dict[str, Any], checkpointing: bool, policy: CachePolicy
    ) -> None:
        mllm = trainable_mllm(prepared.encoder.mllm, tuning, lora, checkpointing)
        super().__init__(len(prepared), mllm.hidden_size, policy)
        self.llm = mllm.model
        self._prepared, self._encoder = prepared, prepared.encoder.over(mllm)

    def sizes(self, ids: Tensor) -> list[int]:
        """Return the tokens and image patches of items (n,); 0 of items with neither image nor text."""
        prompts = (self._prepared[item] for item in ids.tolist())
        return [0 if prompt is None else len(prompt.ids) + prompt.patches for prompt in prompts]

    def read(self, ids: Tensor) -> Tensor:
        """Return the vectors (n, h) float32 of items (n,) in one pass; zeros for those with neither image nor text."""
        return self.read_prepared(self._prepared, ids.tolist())

    def read_prepared(self, prepared: PreparedItems, items: Sequence[int]) -> Tensor:
        """Return the same of items of other content."""
        prompts = [prepared[item] for item in items]
        present = [prompt for prompt in prompts if prompt is not None]
        vectors = torch.zeros(len(prompts), self.width, device=self.vectors.device)
        if not present:
            return vectors
        rows = torch.tensor([place for place, prompt in enumerate(prompts) if prompt is not None])
        return vectors.index_copy(0, rows.to(vectors.device), self._encoder.states(present))


class JointContentItems(ContentItems):
    """`ContentItems` whose vectors of the MIRM follow its training; those of other sources are frozen.

    Args:
        sources: as for `ContentItems`; that of the MIRM are its vectors before training.
        place: which of them is that of the MIRM.
        llm: the MLLM that is trained.
        width, projection, normalization: as for `ContentItems`.
        from_epoch: the epochs before it leave the MLLM as it is.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self,
        sources: Sequence[Tensor],
        place: int,
        llm: PromptedItems,
        width: int,
        projection: str,
        normalization: str,
        from_epoch: int,
    ) -> None:
        super().__init__(sources, width, projection, normalization)
        self.llm, self.place, self.from_epoch, self.is_frozen = llm, place, from_epoch, False
        llm.set_vectors(sources[place])
        self.start = sum(source.shape[1] for source in sources[:place])
        self.stop = self.start + sources[place].shape[1]
        mean, spread = moments(sources[place])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("spread", spread, persistent=False)

    @classmethod
    def from_dataset(cls, config: Config, dataset: MultimodalDataset, width: int) -> JointContentItems:
        """Build from what `item_sources` names and `dataset.inputs.prepared_items`.

        Raises:
            ConfigError: there is no such feature, or no such adapter.
        """
        sources, place = checked_sources(config, dataset), item_sources(config).index(MIRM)
        lora = read_map(config, "mirm_lora", LORA_DEFAULTS)
        checkpointing = bool(config["mirm_gradient_checkpointing"])
        given = dataset.inputs.prepared_items, config["joint_tuning"], lora, checkpointing
        kinds = config["item_projection"], config["item_normalization"], config["joint_from_epoch"]
        return cls(sources, place, PromptedItems(*given, CachePolicy.of(config)), width, *kinds)

    def forward(self, ids: Tensor | None = None) -> Tensor:
        """Return the vectors of the items `ids` (any shape) -> (..., h), or of all items (n_items, h)."""
        mirm = self.llm.look_up(ids)
        if self.normalization == "standard":
            mirm = centred(mirm, self.mean, self.spread)
        frozen = self.vectors if ids is None else self.vectors[ids]
        return self.projection(torch.cat([frozen[..., : self.start], mirm, frozen[..., self.stop :]], dim=-1))

    def of_new(self, names: Sequence[str], new: ModelInputs, known: ModelInputs) -> Tensor:
        """Return the vectors (m, h) of new items, which the MLLM reads as it is trained."""
        sources = sources_of(names, new)
        with torch.no_grad():
            read = [self.llm.read_prepared(new.prepared_items, [item]) for item in range(len(new.prepared_items))]
        sources[self.place] = torch.cat(read).to(sources[self.place])
        return self.map_new(sources, sources_of(names, known))

    def of_batch(self, ids: Tensor) -> AbstractContextManager[None]:
        """Encode the distinct items of `ids` with gradients within the block, in an epoch that trains the MLLM."""
        return nullcontext() if self.is_frozen else self.llm.batch(ids)

    def start_epoch(self, epoch: int) -> None:
        """Leave the MLLM as it is, or compute the cached vectors anew."""
        self.is_frozen = epoch < self.from_epoch
        if self.is_frozen:
            self.llm.keep()
        else:
            self.llm.start_epoch()
