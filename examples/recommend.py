"""A finished run put to use: lists for its users and for new ones, similar items, vectors: python examples/recommend.py

The same on the command line: recbole-mm recommend, similar and export.
"""

from __future__ import annotations

import shop

import recbole_mm


def main() -> None:
    """Train SASRec, recommend, and write every user's list and all vectors to files."""
    outcome = recbole_mm.run("SASRec", shop.dataset(), config_dict={"full_sequence": True, "epochs": 30})
    print("Users of the data:")
    print(recbole_mm.recommend(outcome, 3, users=["c1", "c2"]).to_string(index=False))
    print("\nA new user, given as a history, the earliest item first:")
    print(recbole_mm.recommend(outcome, 3, histories={"new": ["p4", "p8"]}, exclude=["p0"]).to_string(index=False))
    print("\nItems alike to p4:")
    print(recbole_mm.similar(outcome, "p4", 3).to_string(index=False))
    print(recbole_mm.recommend(outcome, 10, users="all", out="top.parquet"))
    for name, said in recbole_mm.export(outcome, "export", kind="npy").files.items():
        print(f"export/{name}: {said}")
    folder = outcome.run_dir  # a run is opened from its folder at any time later
    assert len(recbole_mm.recommend(folder, 3, users=["c1"])) == 3


if __name__ == "__main__":
    main()
