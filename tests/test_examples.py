"""Every script and notebook of examples/ does what it says, in a process of its own and an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.encoders import write_sentence_encoder
from tests.test_texts_openai import FakeServer, completion

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
METRIC = r"0\.\d{4}"
SAID = {
    "shop": r"downloads/shop\n",
    "own_dataset": rf"SASRec +NDCG@10 {METRIC} +Recall@10 {METRIC}\nMolar +NDCG.*\nPop +NDCG",
    "new_model": r"\| MeanVector +\|.*\n\| SASRec ",
    "features_from_files": rf"SASRecContent +NDCG@10 {METRIC}\nVBPR +NDCG@10 {METRIC}",
    "search": rf"(?i)ndcg@10 on validation: {METRIC} with \{{.*learning_rate.*\}}\ntest NDCG@10: {METRIC}",
    "cluster": rf"96 item vectors; largest difference 0\.0e\+00\nNDCG@10 {METRIC}",
    "recommend": r"Users of the data:\n[\s\S]*Items alike to p4:[\s\S]*top\.parquet\nexport/items\.npy: ",
    "cold_start": rf"SASRec of ids +NDCG@3 {METRIC}\nSASRec of content +NDCG@3 {METRIC}",
    "slices": rf"item\.kind +shirt +\d+ users +NDCG@10 {METRIC}\n[\s\S]*users of even number: NDCG@10 {METRIC}",
    "llm_server": rf"(?m)^item descriptions: 96 to do[\s\S]*no LLM +Recall@20 {METRIC}[\s\S]*likes shirts",
}
"""What each script prints; `mean_vector.py` is the model of `new_model.py`."""
pytestmark = pytest.mark.slow


def run(folder: Path, *command: str) -> str:
    """Run Python in a folder with the package and the examples at hand; return what it prints.

    The test fails with what was said if it fails.
    """
    environment = {name: value for name, value in os.environ.items() if name != "RECBOLE_MM_DATA"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, EXAMPLES)))
    environment |= {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_script_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SAID, "mean_vector"}


@pytest.mark.parametrize("name", sorted(SAID))
def test_script(name, tmp_path):
    path = EXAMPLES / f"{name}.py"
    assert 20 <= len(path.read_text(encoding="utf-8").splitlines()) <= 60
    arguments: list[str] = []
    server = FakeServer(lambda handler, body, before: (200, {}, completion("Somebody who likes shirts.")))
    if name == "llm_server":
        arguments = [server.url, "a-model", write_sentence_encoder(tmp_path / "encoder")]
    try:
        said = run(tmp_path, str(path), *arguments)
    finally:
        server.close()
    assert re.search(SAID[name], said), said
    assert bool(server.seen) == (name == "llm_server")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook(path, tmp_path):
    """Its cells of code, in order, in one process; none has an output that was kept."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert len(cells) >= 5
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    (tmp_path / "cells.py").write_text("\n\n".join("".join(cell["source"]) for cell in cells), encoding="utf-8")
    run(tmp_path, "cells.py")
    made = {"results": ["ranks.png", "items.png", "vectors/items.npy"], "quickstart": ["dataset/shop/shop.inter"]}
    assert all((tmp_path / name).is_file() for name in made[path.stem])
