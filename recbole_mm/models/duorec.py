"""DuoRec: "Contrastive Learning for Representation Degeneration Problem in Sequential Recommendation", WSDM 2022."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender.sasrec import SASRec
from torch import Tensor
from torch.nn import functional as F

from recbole_mm.config.kinds import SHARE, above_zero, choice, layers, number, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.data.loaders import TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.models.full_sequence import FullSequenceMixin
from recbole_mm.models.losses import softmax_loss
from recbole_mm.models.settings import WORDS
from recbole_mm.models.whole_batch import Rows, shared_random, whole_batch

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

SIMILARITIES = ("dot", "cos")
PLACE = "place"
"""Field that numbers the states of a batch."""


class FullSequenceDuoRec(FullSequenceMixin):
    """Mixed in front of `DuoRec`: the n states of a batch of whole sequences take the place of n prefixes.

    Every state and its target are one of DuoRec's training cases, and the second dropout mask is a second pass over
    the whole sequences. What differs from training on prefixes:

    - The partner of a state, h'_s, is the state of another user of the batch with the same target, drawn uniformly. It
      is there already, so it costs nothing. Where the batch has none it is drawn from all training cases and its
      sequence read on its own; where training has none either it is the state itself under the first dropout mask.
    - Neither the user's own other states nor the partner's are negatives: neighbouring states have read almost the
      same, and a partner from the batch has a second view there, and a copy for each state that drew it too. Batches of
      prefixes rarely hold two of the same user.
    - A sequence longer than `MAX_ITEM_LIST_LENGTH` is cut into windows, so a state may have read less of it.
    """

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.partners.identity = (self.USER_ID,)

    def loss_of_states(self, states: Tensor, interaction: Interaction) -> tuple[Tensor, ...]:
        """(L_CE, lmd * unsupervised, lmd_sem * supervised), without the terms of weight 0."""
        mask = interaction[TARGET_MASK]
        targets = interaction[TARGETS][mask]
        losses = [softmax_loss(states, targets, self.item_embedding.weight[: self.n_train_items])]
        if self.lmd or self.lmd_sem:
            again = self.prefix_states(interaction)[mask]
            users = interaction[self.USER_ID][:, None].expand_as(mask)[mask]
            rows = Rows(len(states))
            states, again, users, targets = rows.whole(states, again, users, targets)
            if self.lmd:
                owners = torch.cat([users, users])
                losses.append(self.lmd * contrastive_loss(states, again, self.tau, self.sim, owners))
            if self.lmd_sem:
                semantic, whose = self._partner_states(states, users, targets, rows)
                owners = torch.cat([users, whose])
                losses.append(self.lmd_sem * contrastive_loss(again, semantic, self.tau, self.sim, owners))
        return tuple(losses)

    def _partner_states(
        self, states: Tensor, users: Tensor, targets: Tensor, rows: Rows | None = None
    ) -> tuple[Tensor, Tensor]:
        """State of another user with the same target for each of the states (n, d), and whose it is (n,).

        Args:
            states, users, targets: of the whole batch.
            rows: which of them are this process's; None: all.
        """
        rows = rows or Rows(len(states))
        cases = Interaction({self.USER_ID: users, self.POS_ITEM_ID: targets, PLACE: torch.arange(len(users))}).to("cpu")
        here = SameTarget(cases, self.n_items, target=self.POS_ITEM_ID, identity=(self.USER_ID,)).draw(cases)
        alone = here[self.USER_ID] == cases[self.USER_ID]
        in_training = alone & (self.partners.counts[cases[self.POS_ITEM_ID]] > 1)
        semantic, whose = states[here[PLACE].to(states.device)], here[self.USER_ID].to(states.device)
        if in_training.any():
            drawn = self.partners.draw(cases[in_training]).to(states.device)
            places = in_training.nonzero()[:, 0].to(states.device)
            mine = (places >= rows.start) & (places < rows.start + rows.count)
            asked = drawn[mine] if mine.any() else drawn[:1]
            found = whole_batch(self.whole_states(asked)[: int(mine.sum())])
            semantic = semantic.index_put((places,), found.to(semantic.dtype))
            whose = whose.index_put((places,), drawn[self.USER_ID])
        return semantic, whose


# fmt: off
SETTINGS = (
    *section("Loss: L = CE + lmd * InfoNCE(h, h') + lmd_sem * InfoNCE(h', h'_s) h: the sequence; h': the same one "
        "under another dropout mask; h'_s: another training sequence with the same target.",
        Setting("loss_type", WORDS, "CE", "Over all items; nothing else is accepted."),
        Setting("lmd", number(0), 0.0, "Weight of the unsupervised term. Theirs: that term is not in the total."),
        Setting("lmd_sem", number(0), 0.1, "Weight of the supervised term. Theirs: 0.1. 0 with lmd: 0 leaves SASRec."),
        Setting("tau", above_zero(), 1.0, "Temperature. Theirs: 1."),
        Setting("sim", choice("dot", "cos"), "dot", "Similarity: dot or cos. Theirs: dot.")),
    *section("The encoder of sequences, RecBole's SASRec",
        Setting("n_layers", layers(0), 2, "Transformer layers. Theirs: 2."),
        Setting("n_heads", size(1), 2, "Attention heads. Theirs: 2."),
        Setting("hidden_size", size(1), 64, "Width of item and sequence vectors. Theirs: 64."),
        Setting("inner_size", size(1), 256, "Width of the feed-forward layers."),
        Setting("hidden_dropout_prob", SHARE, 0.5, "Dropout on hidden states; it also makes the second view."),
        Setting("attn_dropout_prob", SHARE, 0.5, "Dropout on attention."),
        Setting("hidden_act", WORDS, "gelu", "Activation of the feed-forward layers."),
        Setting("layer_norm_eps", number(0), 1e-12, "Added to the denominator of layer normalization."),
        Setting("initializer_range", number(0), 0.02, "Standard deviation of all weights at the start.")),
    *section("Training, on RecBole's prefixes, or with full_sequence: True on whole sequences, many times faster "
        "(docs/duorec.md says what differs)",
        SHARED["MAX_ITEM_LIST_LENGTH"].but(50, "History length."),
        SHARED["train_batch_size"].but(256, "Sequences per optimizer step; the 2N views of a batch are the negatives "
            "of each other. Theirs: 256. Whole sequences: 2048 halves the time of an epoch."),
        SHARED["learning_rate"].but(1e-3, "Of Adam."),
        SHARED["train_neg_sample_args"].but(None, "No negatives: cross-entropy over all items.")),
)
# fmt: on


class DuoRec(SASRec):
    """SASRec whose sequence vectors are spread out by contrasting two views of what leads to the same next item.

    L = L_CE + lmd * InfoNCE(h, h') + lmd_sem * InfoNCE(h', h'_s), where h is the vector of a training sequence, h' that
    of the same sequence under another dropout mask, and h'_s that of another training sequence with the same target
    (the sequence itself where there is none). The paper's total is lmd = 0, lmd_sem = 0.1.

    Trained on RecBole's prefixes as it stands, and on whole sequences as `FullSequenceDuoRec`. Scores as SASRec does.

    Raises:
        ConfigError: `loss_type` is not CE, `sim` is unknown, or `tau` is not above 0.

    Example:
        >>> recbole_mm.run("DuoRec", "my-data", config_dict={"full_sequence": True})  # doctest: +SKIP
    """

    settings = SETTINGS
    full_sequence_mixin = FullSequenceDuoRec
    supports_ddp = True

    def __init__(self, config: Config, dataset: MultimodalDataset) -> None:
        super().__init__(config, dataset)
        self.n_train_items: int = dataset.train_item_num
        self.lmd: float = config["lmd"]
        self.lmd_sem: float = config["lmd_sem"]
        self.tau: float = config["tau"]
        self.sim: str = config["sim"]
        if self.loss_type != "CE":
            raise ConfigError(f"DuoRec is trained by cross-entropy: loss_type must be CE, not {self.loss_type!r}")
        if self.sim not in SIMILARITIES:
            raise ConfigError(f"sim must be one of {', '.join(SIMILARITIES)}, not {self.sim!r}")
        if not self.tau > 0:
            raise ConfigError(f"tau must be above 0, not {self.tau!r}")
        self.partners = SameTarget(
            dataset.inter_feat, self.n_items, target=self.POS_ITEM_ID, identity=(self.USER_ID, self.ITEM_SEQ)
        )

    def calculate_loss(self, interaction: Interaction) -> tuple[Tensor, ...]:
        """(L_CE, lmd * unsupervised, lmd_sem * supervised), without the terms of weight 0."""
        history, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        states = self.forward(history, lengths)
        items = self.item_embedding.weight[: self.n_train_items]
        losses = [softmax_loss(states, interaction[self.POS_ITEM_ID], items)]
        if self.lmd or self.lmd_sem:
            again = self.forward(history, lengths)
            if self.lmd:
                first, second = whole_batch(states, again)
                losses.append(self.lmd * contrastive_loss(first, second, self.tau, self.sim))
            if self.lmd_sem:
                partner = self.partners.draw(interaction, Rows(len(interaction))).to(history.device)
                semantic = self.forward(partner[self.ITEM_SEQ], partner[self.ITEM_SEQ_LEN])
                first, second = whole_batch(again, semantic)
                losses.append(self.lmd_sem * contrastive_loss(first, second, self.tau, self.sim))
        return tuple(losses)


def contrastive_loss(
    first: Tensor, second: Tensor, tau: float, sim: str = "dot", owners: Tensor | None = None
) -> Tensor:
    """InfoNCE in SimCLR's form: each of the 2N views against the 2N - 1 others, of which its twin is the positive.

    Args:
        first, second: two views of the same N rows, (N, d) each.
        tau: temperature.
        sim: `dot` or `cos`.
        owners: (2N,), whose each view is; negatives of a view are those of other owners than its own and its twin's.

    Returns:
        Mean over the 2N views, a scalar.
    """
    views = torch.cat([first, second])
    if sim == "cos":
        views = F.normalize(views, dim=-1)
    rows = torch.arange(len(views), device=views.device)
    twin = rows.roll(len(first))
    groups = rows if owners is None else owners
    left_out = (groups[:, None] == groups) | (groups[twin][:, None] == groups)
    left_out[rows, twin] = False
    return F.cross_entropy((views @ views.T / tau).masked_fill(left_out, float("-inf")), twin)


class SameTarget:
    """Draws, for training sequences, other training sequences that lead to the same item.

    The rows of each target lie in one flat array, so that nothing is copied per row; what is drawn comes from torch's
    global generator, which checkpoints keep.

    Args:
        samples: training rows only: `samples[rows]` gives an `Interaction`, `samples[field]` one column of all rows.
        n_items: number of item ids, padding included.
        target: field of the target item.
        identity: fields that tell a training sequence from another one with the same target.

    Example:
        >>> samples = Interaction({"user_id": torch.tensor([1, 2, 3]), "item_id": torch.tensor([5, 7, 5])})
        >>> partners = SameTarget(samples, 8, target="item_id", identity=("user_id",))
        >>> partners.draw(samples)["user_id"]
        tensor([3, 2, 1])
    """

    def __init__(self, samples: Any, n_items: int, *, target: str, identity: tuple[str, ...]) -> None:
        targets = samples[target]
        self.samples = samples
        self.target = target
        self.identity = identity
        self.rows = torch.argsort(targets, stable=True)
        self.counts = torch.bincount(targets, minlength=n_items)
        self.starts = self.counts.cumsum(0) - self.counts

    def draw(self, batch: Interaction, rows: Rows | None = None) -> Interaction:
        """One partner for each row of a batch of training rows.

        A row does not know its own place, and need not: if the draw hits the row itself, its place is known by that,
        and a step of random length along the others leads to each of them with the same chance.

        Args:
            batch: B rows of the samples, on any device.
            rows: where they stand in the batch of which they are a part; None: they are all rows.

        Returns:
            B rows of the samples, on the CPU: uniform over the other rows with the same target, or the row itself where
            it is the only one.
        """
        targets = batch[self.target].cpu()
        starts, counts = self.starts[targets], self.counts[targets]
        with shared_random():
            first, second = (torch.randint(2**62, (rows.total if rows else len(batch),)) for _ in range(2))
        if rows is not None:
            first, second = rows.own(first), rows.own(second)
        place = first % counts
        step = 1 + second % (counts - 1).clamp_min(1)
        itself = self._equal(batch, self.samples[self.rows[starts + place]])
        place = torch.where(itself, (place + step) % counts, place)
        return self.samples[self.rows[starts + place]]

    def _equal(self, batch: Interaction, drawn: Interaction) -> Tensor:
        """Which rows are the same training sequence in both: bool (B,)."""
        equal = torch.ones(len(drawn), dtype=torch.bool)
        for field in self.identity:
            equal &= (batch[field].cpu() == drawn[field]).reshape(len(drawn), -1).all(dim=1)
        return equal
