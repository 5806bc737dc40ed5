"""Hooks of RecBole's classes, which declare none themselves, by the class's name.

The dot products are the two halves of a class's `full_sort_predict`. Classes that score otherwise (a distance, a
sigmoid, an attention per item) have none. Tests hold every row to what RecBole's code computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_array, issparse
from torch.nn.functional import normalize, relu

from recbole_mm.models.full_sequence import FullSequenceFPMC, FullSequenceLosses

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config

Answers = Mapping[str, Any]
"""Name of a hook -> its value, or the function that stands for the method."""


def _embedding(model: Any) -> torch.Tensor:
    return model.item_embedding.weight


def _of_sequence(model: Any, x: Any) -> torch.Tensor:
    return model.forward(x[model.ITEM_SEQ])


def _of_sequence_and_length(model: Any, x: Any) -> torch.Tensor:
    return model.forward(x[model.ITEM_SEQ], x[model.ITEM_SEQ_LEN])


def _of_sequence_and_user(model: Any, x: Any) -> torch.Tensor:
    return model.forward(x[model.ITEM_SEQ], x[model.USER_ID])


def _bert4rec_users(model: Any, x: Any) -> torch.Tensor:
    lengths = x[model.ITEM_SEQ_LEN]
    masked = model.reconstruct_test_data(x[model.ITEM_SEQ], lengths)
    vectors = model.gather_indexes(model.forward(masked), lengths - 1)
    return torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=1)


def _bert4rec_items(model: Any) -> torch.Tensor:
    # The item's bias becomes one more dimension, against the 1 of every user.
    return torch.cat([model.item_embedding.weight[: model.n_items], model.output_bias.unsqueeze(1)], dim=1)


def _fpmc_users(model: Any, x: Any) -> torch.Tensor:
    last = x[model.ITEM_SEQ].gather(1, (x[model.ITEM_SEQ_LEN] - 1).unsqueeze(1)).squeeze(1)
    return torch.cat([model.UI_emb(x[model.USER_ID]), model.LI_emb(last)], dim=1)


def _s3rec_users(model: Any, x: Any) -> torch.Tensor:
    output = model.forward(x[model.ITEM_SEQ], bidirectional=False)
    return model.gather_indexes(output, x[model.ITEM_SEQ_LEN] - 1)


def _simplex_users(model: Any, x: Any) -> torch.Tensor:
    user = x[model.USER_ID]
    history = model.item_emb(model.history_item_id[user])
    return normalize(model.get_UI_aggregation(model.user_emb(user), history, model.history_item_len[user]), dim=1)


def _propagated(model: Any, *graph: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the vectors of all users and items, computed once until the model resets them in training."""
    if model.restore_user_e is None or model.restore_item_e is None:
        model.restore_user_e, model.restore_item_e = model.forward(*graph)[:2]
    return model.restore_user_e, model.restore_item_e


def _autoencoded(model: Any, chosen: torch.Tensor) -> torch.Tensor:
    """Return the scores of an autoencoder, which reads rows of interactions by the user's id and nothing else of it."""
    model.get_rating_matrix = lambda users: chosen  # stands before the method of the class
    try:
        return model.full_sort_predict({model.USER_ID: chosen.new_zeros(len(chosen), dtype=torch.int64)})
    finally:
        del model.get_rating_matrix


def _by_similarity(model: Any, chosen: torch.Tensor) -> torch.Tensor:
    """Return the scores of a model that adds up the similarities of items to those that were chosen."""
    added = csr_array(chosen.cpu().numpy()) @ model.item_similarity
    return torch.from_numpy(added.toarray() if issparse(added) else np.asarray(added))


def _by_neighbours(model: Any, chosen: torch.Tensor) -> torch.Tensor:
    if model.method != "item":
        raise NotImplementedError
    return torch.from_numpy((csr_array(chosen.cpu().numpy()) @ model.w).toarray())


def _only_pretrains(config: Config) -> bool:
    """Return whether the run of S3Rec or RaCT only pretrains for another one; the last one is `finetune`."""
    return config["train_stage"] != "finetune"


def _dot(users: Callable[[Any, Any], torch.Tensor], items: Callable[[Any], torch.Tensor]) -> Answers:
    return {"user_vectors": users, "item_vectors": items}


def _row(*answers: Answers) -> Answers:
    return {name: value for part in answers for name, value in part.items()}


PADDING: Answers = {"ignores_right_padding": True}
"""Causal models that read the last real position, and those that mask padding wherever they sum over positions."""
DDP: Answers = {"supports_ddp": True}
"""The loss is a mean over the rows of a batch, apart from terms of `training.ddp.WHOLE` and of the weights
alone."""
PAIRS: Answers = {"materializes_pairs": True}
LABELS: Answers = {"reads_labels": True}
PRETRAINS: Answers = {"only_pretrains": staticmethod(_only_pretrains)}
AUTOENCODER: Answers = {"scores_of_histories": _autoencoded}
LINEAR: Answers = {"scores_of_histories": _by_similarity}
_PLAIN = _dot(_of_sequence_and_length, _embedding)
_GRAPH = _dot(lambda model, x: _propagated(model)[0][x[model.USER_ID]], lambda model: _propagated(model)[1])

RECBOLE: Mapping[str, Answers] = {
    # sequential
    "BERT4Rec": _row(PADDING, _dot(_bert4rec_users, _bert4rec_items)),
    "CORE": _row(
        PADDING,
        DDP,
        _dot(_of_sequence, lambda model: normalize(model.item_embedding.weight, dim=-1) / model.temperature),
    ),
    "Caser": _row(DDP, _dot(lambda model, x: model.forward(x[model.USER_ID], x[model.ITEM_SEQ]), _embedding)),
    "DIEN": _row(LABELS),
    "DIN": _row(LABELS),
    "FDSA": _row(PADDING, DDP, _PLAIN),
    "FEARec": _row(_PLAIN),
    "FOSSIL": _row(
        DDP,
        _dot(lambda model, x: model.forward(x[model.ITEM_SEQ], x[model.ITEM_SEQ_LEN], x[model.USER_ID]), _embedding),
    ),
    "FPMC": _row(
        DDP,
        _dot(_fpmc_users, lambda model: torch.cat([model.IU_emb.weight, model.IL_emb.weight], dim=1)),
        {"full_sequence_mixin": FullSequenceFPMC},
    ),
    "GCSAN": _row(PADDING, DDP, _PLAIN),
    "GRU4Rec": _row(PADDING, DDP, _PLAIN, {"full_sequence_mixin": FullSequenceLosses}),
    "GRU4RecF": _row(PADDING, DDP, _PLAIN),
    "HGN": _row(DDP, _dot(_of_sequence_and_user, lambda model: model.item_embedding_for_prediction.weight)),
    "HRM": _row(
        DDP,
        _dot(lambda model, x: model.forward(x[model.ITEM_SEQ], x[model.USER_ID], x[model.ITEM_SEQ_LEN]), _embedding),
    ),
    "LightSANs": _row(DDP, _PLAIN),
    "NARM": _row(PADDING, DDP, _PLAIN),
    "NPE": _row(DDP, _dot(_of_sequence_and_user, lambda model: relu(model.item_embedding.weight))),
    "NextItNet": _row(DDP, _dot(_of_sequence, _embedding)),
    "RepeatNet": _row(DDP),
    "S3Rec": _row(
        PADDING, _dot(_s3rec_users, lambda model: model.item_embedding.weight[: model.n_items - 1]), PRETRAINS
    ),
    "SASRec": _row(PADDING, DDP, _PLAIN, {"full_sequence_mixin": FullSequenceLosses}),
    "SASRecF": _row(PADDING, DDP, _PLAIN),
    "SHAN": _row(_dot(_of_sequence_and_user, _embedding)),
    "SINE": _row(DDP, _PLAIN),
    "SRGNN": _row(PADDING, DDP, _PLAIN),
    "STAMP": _row(DDP, _PLAIN),
    "TransRec": _row(DDP, PAIRS),
    # general
    "BPR": _row(DDP, _dot(lambda model, x: model.get_user_embedding(x[model.USER_ID]), _embedding)),
    "ConvNCF": _row(LABELS),
    "DGCF": _row(_GRAPH),
    "DMF": _row(DDP, LABELS),
    "EASE": _row(LINEAR),
    "ENMF": _row(_dot(lambda model, x: model.user_embedding(x[model.USER_ID]) * model.H_i.weight, _embedding)),
    "FISM": _row(DDP, LABELS),
    "GCMC": _row(PAIRS),
    "ItemKNN": _row({"scores_of_histories": _by_neighbours}),
    "LINE": _row(_dot(lambda model, x: model.user_embedding(x[model.USER_ID]), _embedding)),
    "LightGCN": _row(DDP, _GRAPH),
    "MacridVAE": _row(AUTOENCODER),
    "MultiDAE": _row(DDP, AUTOENCODER),
    "MultiVAE": _row(AUTOENCODER),
    "NAIS": _row(DDP, LABELS),
    "NCEPLRec": _row(
        _dot(lambda model, x: model.user_embeddings[x[model.USER_ID]], lambda model: model.item_embeddings.T)
    ),
    "NCL": _row(_GRAPH),
    "NGCF": _row(DDP, _GRAPH),
    "NNCF": _row(DDP, LABELS),
    "NeuMF": _row(DDP, LABELS),
    "RaCT": _row(PRETRAINS, AUTOENCODER),
    "RecVAE": _row(AUTOENCODER),
    "SGL": _row(
        _dot(
            lambda model, x: _propagated(model, model.train_graph)[0][x[model.USER_ID]],
            lambda model: _propagated(model, model.train_graph)[1],
        )
    ),
    "SLIMElastic": _row(LINEAR),
    "SimpleX": _row(DDP, _dot(_simplex_users, lambda model: normalize(model.item_emb.weight, dim=1))),
    "SpectralCF": _row(DDP, _GRAPH),
    # with a knowledge graph
    "CKE": _row(
        _dot(
            lambda model, x: model.user_embedding(x[model.USER_ID]),
            lambda model: model.item_embedding.weight + model.entity_embedding.weight[: model.n_items],
        )
    ),
    "KGCN": _row(PAIRS),
    "KGNNLS": _row(PAIRS),
    "MKR": _row(LABELS),
    "RippleNet": _row(PAIRS, LABELS),
    # of fields of users and items
    "ContextRecommender": _row(LABELS),
}
