"""What the tests of the multimodal general models share: an assembled toy run, and dense references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from scipy.sparse import csr_array
from torch.nn import functional as F

import recbole_mm
from recbole_mm.config.resolved import Config
from recbole_mm.graph import TokenOrder, refined_graph
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import Run, assemble
from tests.conftest import TOY_FEATURES, TOY_SETTINGS, write_toy

MISSING = ("i3", "i17")
"""Items that have no text in `without_some_texts`."""


def assembled(model: str, folder: Path, settings: dict[str, Any], **changed: Any) -> Run:
    """An untrained model on the dataset of `settings`, with its loaders."""
    config = Config(model, "toy", config_dict={**settings, "item_features": TOY_FEATURES, **changed})
    return assemble(config, folder, Stages())


def without_some_texts(folder: Path) -> dict[str, Any]:
    """Settings of a toy of which two items have an image, but no text vector."""
    root = write_toy(folder / "data") / "toy"
    ids = (root / "vector_ids.txt").read_text().split()
    kept = [place for place, item in enumerate(ids) if item not in MISSING]
    np.save(root / "some_text.npy", np.load(root / "text.npy")[kept])
    (root / "some_ids.txt").write_text("".join(f"{ids[place]}\n" for place in kept))
    text = {"file": "some_text.npy", "ids": "some_ids.txt"}
    data = {"data_path": str(folder / "data"), "checkpoint_dir": str(folder / "saved")}
    return {**TOY_SETTINGS, **data, "item_features": {**TOY_FEATURES, "text": text}}


def first_batch(run: Run) -> Any:
    return next(iter(run.splits.train))


def training_matrix(run: Run) -> np.ndarray:
    """(n_users, n_items) of 0 and 1."""
    matrix = np.zeros((run.dataset.user_num, run.dataset.item_num))
    rows = run.splits.train_dataset.inter_feat
    matrix[rows["user_id"].numpy(), rows["item_id"].numpy()] = 1
    return matrix


def normalise(graph: np.ndarray) -> np.ndarray:
    """D^-1/2 A D^-1/2 with D = row sums; rows without edges stay empty."""
    sums = graph.sum(1)
    scale = np.where(sums > 0, np.maximum(sums, 1e-12) ** -0.5, 0)
    return scale[:, None] * graph * scale


def light_gcn(matrix: np.ndarray, users: torch.Tensor, items: torch.Tensor, layers: int) -> tuple[np.ndarray, ...]:
    """Users' and items' vectors, by the whole adjacency as one dense matrix."""
    n_users = len(matrix)
    adjacency = np.zeros((sum(matrix.shape),) * 2)
    adjacency[:n_users, n_users:] = matrix
    adjacency[n_users:, :n_users] = matrix.T
    adjacency = normalise(adjacency)
    vectors = np.concatenate([users.detach().numpy(), items.detach().numpy()]).astype(np.float64)
    mean = sum(np.linalg.matrix_power(adjacency, power) @ vectors for power in range(layers + 1)) / (layers + 1)
    return mean[:n_users], mean[n_users:]


def nearest(vectors: np.ndarray, k: int) -> np.ndarray:
    """Dense (n, n): the cosine of the k nearest of each row, itself included; rows of zeros have none."""
    lengths = np.linalg.norm(vectors, axis=1)
    some = lengths > 0
    unit = vectors / np.maximum(lengths, 1e-12)[:, None]
    cosine = np.where(some[:, None] & some, unit @ unit.T, -np.inf)
    graph = np.zeros_like(cosine)
    for row in np.flatnonzero(some):
        best = np.argsort(-cosine[row], kind="stable")[:k]
        graph[row, best] = cosine[row, best]
    return graph


def scores_of(run: Run) -> torch.Tensor:
    """(n_users - 1, n_items) scores of all users in evaluation."""
    run.model.eval()
    with torch.no_grad():
        users, items = run.model.propagated()
    return users[1:] @ items.T


def refined_graphs(run: Run, similar_k: int, co_k: int, threshold: float) -> list[csr_array]:
    """MLLMRec's graph over each feature of `TOY_FEATURES` as it lies in the dataset: image, then text."""
    users, items = np.nonzero(training_matrix(run))
    order = TokenOrder(run.dataset.item_tokens())

    def build(vectors: np.ndarray, had: np.ndarray) -> csr_array:
        return refined_graph(vectors, users, had, similar_k, co_k, threshold)

    return [order.graph(build, run.dataset.item_feature(name), items) for name in ("image", "text")]


def beats_pop(model: str, settings: dict[str, Any], **changed: Any) -> bool:
    """Whether the model, trained on the toy, finds at least 1.3 times what Pop finds."""
    given = {**settings, "item_features": TOY_FEATURES, "epochs": 40, "train_batch_size": 64, **changed}
    outcome, pop = recbole_mm.run(model, "toy", config_dict=given), recbole_mm.run("Pop", "toy", config_dict=settings)
    return outcome.test_result["recall@10"] > 1.3 * pop.test_result["recall@10"]


def loss_by_hand(
    net: torch.nn.Module, batch: Interaction, vectors: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    """BPR of `vectors`, 0.3 of InfoNCE at 0.5 from `first` to `second`, and 0.7 of the squared embeddings, one row at a
    time; all users' vectors stand before all items'. Rows of the same id are no negatives of each other.
    """
    user, good, bad = (batch[field] for field in ("user_id", "item_id", "neg_item_id"))
    items = net.n_users
    difference = (vectors[user] * (vectors[items + good] - vectors[items + bad])).sum(1)
    expected = -torch.log(torch.sigmoid(difference)).mean()
    for ids, start in ((user, 0), (good, items)):
        total = 0.0
        for one in range(len(ids)):
            cosines = F.cosine_similarity(first[start + ids[one]][None], second[start + ids], dim=1) / 0.5
            others = [place for place in range(len(ids)) if place == one or ids[place] != ids[one]]
            total = total - torch.log_softmax(cosines[others], 0)[others.index(one)]
        expected = expected + 0.3 * total / len(ids)
    tables = [net.user_embedding.weight[user], net.item_embedding.weight[good], net.item_embedding.weight[bad]]
    return expected + 0.7 * sum(table.double().square().sum() for table in tables) / (2 * len(user))
