"""Items encoded by workers of a Ray cluster: python examples/cluster.py [ADDRESS]

ADDRESS is auto, host:port or ray://host:port; without it, a Ray is started on this machine for as long as it takes. The
vectors, and their keys in the artifact store, are those of one process.
"""

from __future__ import annotations

import sys

import numpy as np
import shop

import recbole_mm


def main(address: str = "local") -> None:
    """Encode on the cluster, and again in this process with a store of its own, and compare the vectors."""
    name = shop.dataset()
    settings = {"mllm": "tiny", "epochs": 3, "mllm_dtype": "float32"}
    cluster = {"ray_address": address, "ray_workers": 2, "ray_cpus_per_worker": 0.5}
    folders = ("artifacts-of-a-cluster", "artifacts-of-one-process")  # each computes the vectors itself
    there = recbole_mm.run("Molar", name, config_dict={**settings, **cluster, "artifact_dir": folders[0]})
    here = recbole_mm.run("Molar", name, config_dict={**settings, "artifact_dir": folders[1]})
    vectors = (there.dataset.inputs.item_vectors, here.dataset.inputs.item_vectors)  # row 0 is padding
    print(f"{len(vectors[0]) - 1} item vectors; largest difference {np.abs(vectors[0] - vectors[1]).max():.1e}")
    print(f"NDCG@10 {there.test_result['ndcg@10']:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
