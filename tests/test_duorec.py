"""DuoRec: its losses written out by hand, and partners that share a target, come from training and are uniform."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch.nn import functional as F

from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.interactions import SequenceSamples
from recbole_mm.data.loaders import TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.evaluation.dot_product import dot_product_of
from recbole_mm.models.duorec import DuoRec, SameTarget, contrastive_loss
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble

SEQUENCES = {1: [1, 2, 3, 9], 2: [4, 9], 3: [5, 6, 9], 4: [7, 8]}
"""User -> items; three users lead to item 9, and one alone to item 8."""


def samples(sequences=SEQUENCES, max_len: int = 3) -> SequenceSamples:
    """The last item of each user as its only training target."""
    users = np.repeat(list(sequences), [len(items) for items in sequences.values()])
    ends = np.cumsum([len(items) for items in sequences.values()])
    targets = ends - 1
    starts = np.maximum(ends - [len(items) for items in sequences.values()], targets - max_len)
    columns = {"user_id": users, "item_id": np.concatenate(list(sequences.values()))}
    return SequenceSamples(
        {name: torch.from_numpy(values) for name, values in columns.items()},
        starts,
        targets,
        user_field="user_id",
        list_suffix="_list",
        length_field="item_length",
        max_len=max_len,
    )


def same_target(rows, n_items: int = 10) -> SameTarget:
    return SameTarget(rows, n_items, target="item_id", identity=("user_id", "item_id_list"))


@pytest.fixture
def built(toy_config):
    """A DuoRec on the toy dataset's training part, and a batch of training rows with a repeated target."""

    def build(**settings):
        config = toy_config("DuoRec", **settings)
        train = create_dataset(config).build()[0]
        torch.manual_seed(3)
        model = DuoRec(config, train)
        return model, train.inter_feat[np.arange(24)]

    return build


# ------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("sim", ["dot", "cos"])
def test_contrastive_loss_is_infonce_over_the_2n_views(sim):
    first, second = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    tau, total = 0.7, 0.0
    views = [*first, *second]
    for a in range(6):
        twin = (a + 3) % 6
        s = {}
        for b in range(6):
            if b != a:
                norm = views[a].norm() * views[b].norm() if sim == "cos" else 1.0
                s[b] = torch.exp(views[a] @ views[b] / norm / tau)
        total -= torch.log(s[twin] / sum(s.values()))
    torch.testing.assert_close(contrastive_loss(first, second, tau, sim), total / 6)


def test_negatives_are_of_other_owners_than_a_view_and_its_twin():
    first, second = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0))
    views, owners = torch.cat([first, second]), torch.tensor([7, 7, 8, 5, 7, 9, 8, 9])
    total = 0.0
    for a in range(8):
        twin = (a + 4) % 8
        shown = [b for b in range(8) if b == twin or owners[b] not in (owners[a], owners[twin])]
        similarity = torch.stack([views[a] @ views[b] for b in shown])
        total -= similarity.log_softmax(0)[shown.index(twin)]
    torch.testing.assert_close(contrastive_loss(first, second, 1.0, owners=owners), total / 8)


def test_one_row_alone_has_no_negative():
    assert contrastive_loss(torch.randn(1, 4), torch.randn(1, 4), 1.0) == 0


def test_total_is_cross_entropy_and_both_contrasts(built):
    model, batch = built(lmd=0.3, lmd_sem=0.2, tau=0.5)
    model.train()
    torch.manual_seed(5)
    losses = model.calculate_loss(batch)
    torch.manual_seed(5)  # the same dropout masks and partners, in the order they are drawn
    h = model(batch["item_id_list"], batch["item_length"])
    again = model(batch["item_id_list"], batch["item_length"])
    partner = model.partners.draw(batch)
    semantic = model(partner["item_id_list"], partner["item_length"])
    scores = h @ model.item_embedding.weight[1:].T
    chosen = scores[torch.arange(len(batch)), batch["item_id"] - 1]
    expected = [
        (torch.logsumexp(scores, 1) - chosen).mean(),
        0.3 * contrastive_loss(h, again, 0.5),
        0.2 * contrastive_loss(again, semantic, 0.5),
    ]
    assert not torch.allclose(h, again)
    torch.testing.assert_close(losses, tuple(expected))


def test_default_is_the_papers_total(built):
    model, batch = built()
    assert (model.lmd, model.lmd_sem, model.tau, model.sim) == (0, 0.1, 1, "dot")
    assert (model.n_layers, model.n_heads, model.hidden_size) == (2, 2, 64)
    assert len(model.calculate_loss(batch)) == 2


def test_without_contrasts_it_is_sasrec(built):
    model, batch = built(lmd=0, lmd_sem=0)
    model.eval()
    (loss,) = model.calculate_loss(batch)
    states = model(batch["item_id_list"], batch["item_length"])
    torch.testing.assert_close(loss, F.cross_entropy(states @ model.item_embedding.weight[1:].T, batch["item_id"] - 1))
    assert dot_product_of(model) is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss_type": "BPR"}, "DuoRec with loss_type: BPR learns from pairs"),
        ({"sim": "l2"}, "sim: 'l2' is not accepted; give one of dot, cos"),
        ({"tau": 0}, "tau: 0 is not accepted; give a number above 0"),
    ],
)
def test_impossible_settings_are_refused(built, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(**settings)


# ----------------------------------------------------------------------------------------------------------- partners


def test_partners_are_uniform_over_the_others_with_the_same_target():
    rows = samples()
    index = same_target(rows)
    torch.manual_seed(0)
    batch = rows[torch.tensor([0, 1, 2]).repeat(2000)]
    drawn = index.draw(batch)
    assert (drawn["item_id"] == 9).all()
    counts = Counter(zip(batch["user_id"].tolist(), drawn["user_id"].tolist()))
    assert set(counts) == {(u, v) for u in (1, 2, 3) for v in (1, 2, 3) if u != v}
    assert all(abs(count - 1000) < 120 for count in counts.values())


def test_a_partner_is_a_whole_training_row():
    rows = samples()
    torch.manual_seed(0)
    drawn = same_target(rows).draw(rows[torch.tensor([1] * 20)])
    for user, history, length in zip(*(drawn[f].tolist() for f in ("user_id", "item_id_list", "item_length"))):
        assert history[:length] == SEQUENCES[user][:-1]
        assert not any(history[length:])


def test_a_row_without_another_is_its_own_partner():
    rows = samples()
    batch = rows[torch.tensor([3, 3])]
    drawn = same_target(rows).draw(batch)
    assert torch.equal(drawn["user_id"], torch.tensor([4, 4]))
    assert torch.equal(drawn["item_id_list"], batch["item_id_list"])


def test_the_same_user_twice_before_one_item_are_two_sequences():
    flat = {"user_id": torch.ones(5, dtype=torch.int64), "item_id": torch.tensor([1, 9, 2, 9, 3])}
    arguments = {"user_field": "user_id", "list_suffix": "_list", "length_field": "item_length", "max_len": 4}
    rows = SequenceSamples(flat, np.array([0, 0]), np.array([1, 3]), **arguments)
    drawn = same_target(rows).draw(rows[torch.tensor([0, 1] * 10)])
    assert drawn["item_length"].tolist() == [3, 1] * 10


def test_rows_of_recboles_own_making_will_do():
    table = samples()
    plain = Interaction(table.interaction)
    torch.manual_seed(1)
    expected = same_target(table).draw(table[torch.arange(4)])
    torch.manual_seed(1)
    drawn = same_target(plain).draw(plain[torch.arange(4)])
    assert torch.equal(drawn["item_id_list"], expected["item_id_list"])


def test_partners_are_training_rows_and_follow_torchs_generator(built):
    model, batch = built()
    assert len(model.partners.rows) == len(model.partners.samples)
    train = model.partners.samples
    known = {(u, t, n) for u, t, n in zip(*(train[f].tolist() for f in ("user_id", "item_id", "item_length")))}
    torch.manual_seed(2)
    first = model.partners.draw(batch)
    torch.manual_seed(2)
    second = model.partners.draw(batch)
    assert torch.equal(first["item_id_list"], second["item_id_list"])
    assert torch.equal(first["item_id"], batch["item_id"])
    assert {(u, t, n) for u, t, n in zip(*(first[f].tolist() for f in ("user_id", "item_id", "item_length")))} <= known
    alone = model.partners.counts[batch["item_id"]] == 1
    itself = (first["item_id_list"] == batch["item_id_list"]).all(1) & (first["user_id"] == batch["user_id"])
    assert torch.equal(itself, alone)
    assert not alone.all()


# ------------------------------------------------------------------------------------------------------ whole sequences


@pytest.fixture
def whole(toy_config, tmp_path):
    """A DuoRec on whole sequences of the toy dataset, and a batch of them."""

    def build(**settings):
        run = assemble(toy_config("DuoRec", full_sequence=True, **settings), tmp_path, Stages())
        return run.model, next(iter(run.splits.train))

    return build


def test_whole_sequences_have_the_same_total(whole):
    model, batch = whole(lmd=0.3, lmd_sem=0.2, tau=0.5)
    model.train()
    torch.manual_seed(5)
    losses = model.calculate_loss(batch)
    mask, table = batch[TARGET_MASK], model.item_embedding.weight
    users, targets = batch["user_id"][:, None].expand_as(mask)[mask], batch[TARGETS][mask]
    torch.manual_seed(5)  # the same dropout masks and partners, in the order they are drawn
    h, again = model.prefix_states(batch)[mask], model.prefix_states(batch)[mask]
    semantic, whose = model._partner_states(h, users, targets)
    expected = [
        F.cross_entropy(h @ table[1:].T, targets - 1),
        0.3 * contrastive_loss(h, again, 0.5, owners=torch.cat([users, users])),
        0.2 * contrastive_loss(again, semantic, 0.5, owners=torch.cat([users, whose])),
    ]
    assert not torch.allclose(h, again)
    torch.testing.assert_close(losses, tuple(expected))


def test_a_partners_own_second_view_does_not_hold_a_state_off():
    """The partner of each of two users is the other's state, in the batch: nothing else is there to tell it from."""
    states = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    again, users = states + 0.1, torch.tensor([1, 2])
    assert contrastive_loss(again, states.flip(0), 1.0, owners=torch.cat([users, users.flip(0)])) == 0


def test_partners_are_other_users_states_before_the_same_item(whole):
    model, batch = whole()
    model.eval()
    mask = batch[TARGET_MASK]
    users, targets = batch["user_id"][:, None].expand_as(mask)[mask], batch[TARGETS][mask]
    states = model.prefix_states(batch)[mask]
    chosen = torch.arange(len(targets)) % 3 == 0  # of this small dataset a batch has all; now some partners lie outside
    users, targets, states = users[chosen], targets[chosen], states[chosen]
    semantic, whose = model._partner_states(states, users, targets)
    counts, inside, outside = model.partners.counts, 0, 0
    rows = model.partners.samples
    for place in range(len(targets)):
        others = (targets == targets[place]) & (users != users[place])
        if others.any():
            inside += 1
            expected = states[others & (users == whose[place])]
        elif counts[targets[place]] > 1:
            outside += 1
            assert whose[place] != users[place]
            case = rows[(rows["user_id"] == whose[place]) & (rows["item_id"] == targets[place])]
            expected = model(case["item_id_list"], case["item_length"])
        else:
            assert whose[place] == users[place]
            expected = states[[place]]
        torch.testing.assert_close(semantic[[place]], expected, atol=1e-5, rtol=1e-5)
    assert inside
    assert outside


def test_whole_sequences_without_contrasts_are_sasrec(whole):
    model, batch = whole(lmd=0, lmd_sem=0)
    assert type(model).__name__ == "DuoRec"
    (loss,) = model.eval().calculate_loss(batch)
    states = model.prefix_states(batch)[batch[TARGET_MASK]]
    expected = F.cross_entropy(states @ model.item_embedding.weight[1:].T, batch[TARGETS][batch[TARGET_MASK]] - 1)
    torch.testing.assert_close(loss, expected)
