"""How near users' profile vectors are to what they chose next, beside the mean of their items' vectors.

    python benchmarks/profile_agreement.py --dataset ml-100k-mm --data_path DIR --users 600 --sentence_encoder=DIR
    python benchmarks/profile_agreement.py --dataset hm --data_path DIR --text_backend=hf --sentence_encoder=DIR

Texts and vectors are those of MLLMRec under the settings given as --key=value. For a sample of users, by cosine and
without any training, the share of pairs in which

- "items": the user's profile is nearer to the held-out item than to a random item that the user never chose;
- "chosen items": the same against items drawn by how often they are chosen;
- "users": the held-out item is nearer to the user's profile than to that of another user.

One half is chance. The held-out item is the validation item: settings and wordings may be chosen by these figures.
"""

from __future__ import annotations

import argparse

import numpy as np
from common import markdown_table, quiet_config

from recbole_mm.cli.arguments import split_arguments
from recbole_mm.data.dataset import create_dataset
from recbole_mm.inputs.model_inputs import provide
from recbole_mm.models.hooks import hooks_of
from recbole_mm.models.mllmrec.inputs import mean_of_items

NEGATIVES = 100


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def agreement(profiles: np.ndarray, items: np.ndarray, held_out: np.ndarray, drawn: list[np.ndarray]) -> list[float]:
    """Shares of pairs in the right order; ties count half.

    Args:
        profiles: (n, d) of the users.
        items: (n_items, d).
        held_out: (n,) item of each user.
        drawn: item ids (n, NEGATIVES), one array for each kind of negatives.
    """
    profiles, items = unit(profiles), unit(items)
    own = np.einsum("nd,nd->n", profiles, items[held_out])
    found = []
    for negatives in drawn:
        others = np.einsum("nd,nkd->nk", profiles, items[negatives])
        found.append(((own[:, None] > others) + 0.5 * (own[:, None] == others)).mean())
    crossed = profiles @ items[held_out].T  # [other user, item]
    apart = ~np.eye(len(own), dtype=bool)
    found.append(((own > crossed) + 0.5 * (own == crossed))[apart].mean())
    return [float(share) for share in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="Other --key=value are settings.")
    parser.add_argument("--dataset", default="ml-100k-mm")
    parser.add_argument("--users", type=int, default=600, help="users sampled (600)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    given, others = parser.parse_known_args()
    config = quiet_config("MLLMRec", given.dataset, **split_arguments(others))
    dataset = create_dataset(config)
    provide(config, dataset, hooks_of(config.model_class))
    users, items, offsets = dataset.user_histories()
    owners = np.repeat(users, np.diff(offsets))
    means = mean_of_items(dataset.inputs.fused_vectors, owners, items, dataset.user_num)
    histories = dict(zip(users.tolist(), np.split(items, offsets[1:-1]), strict=True))
    valid = dataset.build()[1].inter_feat
    last = dict(zip(valid["user_id"].tolist(), valid["item_id"].tolist(), strict=True))
    rng = np.random.default_rng(given.seed)
    known = sorted(set(last) & set(histories))
    sample = np.sort(rng.choice(known, min(given.users, len(known)), replace=False))
    held_out = np.array([last[user] for user in sample.tolist()])
    drawn = [rng.integers(1, dataset.item_num, (len(sample), NEGATIVES)), rng.choice(items, (len(sample), NEGATIVES))]
    for place, user in enumerate(sample.tolist()):
        chosen = np.append(histories[user], last[user])
        for negatives, pool in zip(drawn, (np.arange(1, dataset.item_num), items), strict=True):
            while (again := np.isin(negatives[place], chosen)).any():
                negatives[place, again] = rng.choice(pool, again.sum())
    rows = [
        [name, *(f"{share:.3f}" for share in agreement(vectors[sample], dataset.inputs.fused_vectors, held_out, drawn))]
        for name, vectors in (("mean of item vectors", means), ("profile", dataset.inputs.profile_vectors))
    ]
    print(f"{given.dataset}, {len(sample)} users, texts by {config['text_backend']}\n")
    print(markdown_table(["user is", "items", "chosen items", "users"], rows))


if __name__ == "__main__":
    main()
