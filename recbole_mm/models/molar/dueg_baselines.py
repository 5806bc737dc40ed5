"""The user models that Molar's section 4.3 and Figure 3 put in the place of the MLLM's decoder.

Like the decoder they read item vectors and score against them, so nothing in them belongs to an item. All have

- `all_prefixes(items)`: item vectors (B, W, h), padded on the right -> E_u after every prefix (B, W, h);
- `whole(items, lengths)`: item vectors and lengths (B,) -> E_u of whole histories (B, h);

and one that reads who the user is, `reads_users`, takes user ids (B,) as a last argument of both.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from recbole.model.layers import TransformerEncoder
from torch import Tensor, nn

from recbole_mm.errors import ConfigError
from recbole_mm.models.hyper import ENCODERS, LORA_DEFAULTS, check_encoder, read_map
from recbole_mm.models.lora import with_lora
from recbole_mm.models.molar.dueg import TextStackDUEG

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

DEFAULTS = {**ENCODERS, "hidden_dropout_prob": 0.2, "attn_dropout_prob": 0.2}
LARGE = 20_000_000
"""Weights of a decoder from which an epoch on a CPU takes long."""


class CausalDUEG(nn.Module, ABC):
    """A user model whose state after a prefix stands at the prefix's last item."""

    reads_users = False

    @abstractmethod
    def all_prefixes(self, items: Tensor) -> Tensor:
        """E_u after every prefix: item vectors (B, W, h), padded on the right -> (B, W, h)."""

    def whole(self, items: Tensor, lengths: Tensor) -> Tensor:
        """E_u of whole histories: item vectors (B, W, h), lengths (B,) -> (B, h)."""
        return self.all_prefixes(items)[torch.arange(len(items), device=items.device), lengths - 1]


class TransformerDUEG(CausalDUEG):
    """SASRec: RecBole's transformer over item vectors and learned positions, each item seeing those before it.

    Args:
        hidden_size: h.
        max_length: longest history.
        settings: as `ENCODERS`.

    Example:
        >>> dueg = TransformerDUEG(hidden_size=8, max_length=5, settings={**DEFAULTS, "inner_size": 16})
        >>> dueg.all_prefixes(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, hidden_size: int, max_length: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        check_encoder("dueg_config", hidden_size, settings)
        self.positions = nn.Embedding(max_length, hidden_size)
        self.norm = nn.LayerNorm(hidden_size, eps=settings["layer_norm_eps"])
        self.dropout = nn.Dropout(settings["hidden_dropout_prob"])
        self.encoder = TransformerEncoder(
            n_layers=settings["n_layers"],
            n_heads=settings["n_heads"],
            hidden_size=hidden_size,
            inner_size=settings["inner_size"] or 4 * hidden_size,
            hidden_dropout_prob=settings["hidden_dropout_prob"],
            attn_dropout_prob=settings["attn_dropout_prob"],
            hidden_act=settings["hidden_act"],
            layer_norm_eps=settings["layer_norm_eps"],
        )
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=settings["initializer_range"])
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def all_prefixes(self, items: Tensor) -> Tensor:
        """Return the state after every prefix: (B, W, h) -> (B, W, h)."""
        width = items.shape[1]
        later = torch.ones(width, width, dtype=torch.bool, device=items.device).triu(1)
        mask = torch.zeros(1, 1, width, width, dtype=items.dtype, device=items.device).masked_fill(later, -10000.0)
        embedded = self.dropout(self.norm(items + self.positions.weight[:width]))
        return self.encoder(embedded, mask, output_all_encoded_layers=False)[-1]


class RecurrentDUEG(CausalDUEG):
    """GRU4Rec: gated recurrent units over item vectors, then a linear map.

    Args:
        hidden_size: h, of item vectors and states alike.
        settings: as `ENCODERS`.

    Example:
        >>> RecurrentDUEG(hidden_size=8, settings=DEFAULTS).whole(torch.zeros(2, 5, 8), torch.tensor([5, 2])).shape
        torch.Size([2, 8])
    """

    def __init__(self, hidden_size: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.dropout = nn.Dropout(settings["dropout_prob"])
        self.gru = nn.GRU(hidden_size, hidden_size, settings["num_layers"], bias=False, batch_first=True)
        self.dense = nn.Linear(hidden_size, hidden_size)

    def all_prefixes(self, items: Tensor) -> Tensor:
        """Return the state after every prefix: (B, W, h) -> (B, W, h)."""
        return self.dense(self.gru(self.dropout(items))[0])


class MarkovDUEG(nn.Module):
    """FPMC, its item factors tied to the item vectors: E_u = p_u + M x, x the vector of the last item.

    A candidate with vector y then scores p_u . y + (M x) . y: the user's taste, and the step from the last item to it.
    The user factor p_u is the one thing here that is learned per user; a user without training targets keeps the
    random start of it.

    Args:
        n_users: number of user ids, padding included.
        hidden_size: h.
        settings: as `ENCODERS`.

    Example:
        >>> dueg = MarkovDUEG(n_users=4, hidden_size=8, settings=DEFAULTS)
        >>> dueg.all_prefixes(torch.zeros(2, 5, 8), torch.tensor([1, 3])).shape
        torch.Size([2, 5, 8])
    """

    reads_users = True

    def __init__(self, n_users: int, hidden_size: int, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.users = nn.Embedding(n_users, hidden_size)
        nn.init.normal_(self.users.weight, std=settings["initializer_range"])
        self.step = nn.Linear(hidden_size, hidden_size, bias=False)

    def all_prefixes(self, items: Tensor, users: Tensor) -> Tensor:
        """E_u after every prefix: item vectors (B, W, h), user ids (B,) -> (B, W, h)."""
        return self.users(users)[:, None] + self.step(items)

    def whole(self, items: Tensor, lengths: Tensor, users: Tensor) -> Tensor:
        """E_u of whole histories: item vectors (B, W, h), lengths (B,), user ids (B,) -> (B, h)."""
        return self.users(users) + self.step(items[torch.arange(len(items), device=items.device), lengths - 1])


def decoder_dueg(config: Config, mllm: Any, hidden_size: int) -> TextStackDUEG:
    """The MLLM's decoder as user model, `dueg_tuning` deciding what of it is trained.

    Raises:
        ConfigError: `dueg_lora` names something unknown or impossible, or the decoder has no `dueg_layers` layers.
    """
    tuning, lora = config["dueg_tuning"], read_map(config, "dueg_lora", LORA_DEFAULTS)
    stack = mllm.text_stack(config["dueg_layers"], "dueg_layers")
    if tuning == "lora":
        stack.decoder = with_lora(stack.decoder, lora["r"], lora["alpha"], lora["dropout"], lora["targets"])
    dueg = TextStackDUEG(stack, hidden_size, tuning)
    _warn_of_size(dueg, config)
    return dueg


def _warn_of_size(dueg: nn.Module, config: Config) -> None:
    """Say what a user model of hundreds of millions of weights means where there is no GPU."""
    size = sum(value.numel() for value in dueg.parameters())
    if size < LARGE or config["device"].type != "cpu":
        return
    trained = sum(value.numel() for value in dueg.parameters() if value.requires_grad)
    logger.warning(
        "dueg: mllm: the decoder that reads histories has %.0f M weights, of which %.0f M are trained, and there is no "
        "GPU: an epoch may take hours; --dueg=sasrec reads them with a small transformer, --dueg_layers=2 with the "
        "first layers of the decoder",
        *(size / 1e6, trained / 1e6),
    )


def build_dueg(config: Config, dataset: MultimodalDataset, hidden_size: int) -> nn.Module:
    """The user model that `dueg` names: the MLLM's decoder, or one of section 4.3 with the sizes of `dueg_config`.

    Raises:
        ConfigError: `dueg_config` names something unknown or impossible, or a model that starts from random weights is
            to be frozen.
    """
    settings = read_map(config, "dueg_config", DEFAULTS)
    kind = config["dueg"]
    if kind == "mllm":
        return decoder_dueg(config, dataset.inputs.mllm, hidden_size)
    if config["dueg_tuning"] != "full":
        raise ConfigError(f"dueg: {kind} starts from random weights and has to be trained; set dueg_tuning: full")
    if kind == "sasrec":
        return TransformerDUEG(hidden_size, config["MAX_ITEM_LIST_LENGTH"], settings)
    if kind == "gru4rec":
        return RecurrentDUEG(hidden_size, settings)
    return MarkovDUEG(dataset.user_num, hidden_size, settings)
