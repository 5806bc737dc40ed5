"""Full-sequence forms of other models: every state and the loss are what the model's own prefixes give."""

from __future__ import annotations

import pytest
import torch

from recbole_mm.data.loaders import NEGATIVES, TARGET_MASK, TARGETS
from recbole_mm.errors import ConfigError
from recbole_mm.models.hooks import full_sequence_class
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble


@pytest.fixture
def assembled(toy_config, tmp_path):
    def build(model, **settings):
        return assemble(toy_config(model, full_sequence=True, **settings), tmp_path, Stages())

    return build


@pytest.mark.parametrize("model", ["SASRec", "GRU4Rec", "FPMC", "DuoRec"])
def test_states_of_all_prefixes_are_those_of_each_prefix_and_give_the_models_scores(assembled, model):
    run = assembled(model)
    run.model.eval()
    batch = next(iter(run.splits.train))
    states = run.model.prefix_states(batch)
    row = int(batch["item_length"].argmax())
    for place in range(int(batch["item_length"][row])):
        alone = {
            "user_id": batch["user_id"][[row]],
            "item_id_list": batch["item_id_list"][[row], : place + 1],
            "item_length": torch.tensor([place + 1]),
        }
        state = run.model.whole_states(alone)
        torch.testing.assert_close(states[[row], place], state, atol=1e-5, rtol=1e-5)
        scores = run.model.full_sort_predict(alone)
        torch.testing.assert_close(state @ run.model.output_items().T, scores.view(1, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("loss_type", ["BPR", "CE"])
def test_fpmc_learns_from_every_pair_of_neighbours(assembled, loss_type):
    run = assembled("FPMC", loss_type=loss_type)
    model, batch = run.model, next(iter(run.splits.train))
    assert (NEGATIVES in batch) == (loss_type == "BPR")
    kept = batch[TARGET_MASK].nonzero()[:12]
    batch[TARGET_MASK] = torch.zeros_like(batch[TARGET_MASK]).index_put(tuple(kept.T), torch.tensor(True))
    losses = []
    for row, place in kept.tolist():
        items = torch.arange(model.n_items)
        last = batch["item_id_list"][row, place].repeat(len(items))
        scores = model.forward(batch["user_id"][row].repeat(len(items)), last[:, None], torch.ones_like(items), items)
        target = batch[TARGETS][row, place]
        if loss_type == "BPR":
            losses.append(-torch.sigmoid(scores[target] - scores[batch[NEGATIVES][row, place]]).log())
        else:
            losses.append(scores.logsumexp(0) - scores[target])
    torch.testing.assert_close(model.calculate_loss(batch), torch.stack(losses).mean(), atol=1e-5, rtol=1e-5)


def test_models_that_cannot_are_refused_and_those_that_are_so_already_stay(assembled):
    with pytest.raises(ConfigError, match="full_sequence: True is for SASRec, GRU4Rec, FPMC, DuoRec and models"):
        assembled("BERT4Rec")
    with pytest.raises(ConfigError, match="loss_type must be BPR or CE"):
        assembled("FPMC", loss_type="MSE")
    sasrec = full_sequence_class(type(assembled("SASRec").model))
    assert full_sequence_class(sasrec) is sasrec
