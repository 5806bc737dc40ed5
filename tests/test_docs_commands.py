"""Every command and snippet of the guides is run, on a small shop: blocks of `bash` and `python`, in their order.

A command of ours runs in this process; what a shell does by itself (`cat`, `head`) in a shell. What needs another's
program (`NOT_OURS`) is not run. What is at hand here stands for large models, servers and the ids of runs: `stand_ins`.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)

import recbole_mm
from recbole_mm.cli import main
from tests.encoders import write_sentence_encoder
from tests.test_texts_openai import FakeServer, completion

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted(path.stem for path in ROOT.glob("docs/tutorial-*.md"))
REFERENCES = ("recommend", "report", "slices", "cold-start", "evaluation", "compare", "sequence-losses", "data-format")
GUIDES = ("README", "quickstart", "which-model", *TUTORIALS, *REFERENCES)
MAKES_ITS_DATA = ("tutorial-own-data", "data-format")
OURS = ("recbole-mm", "python")
OF_THE_SHELL = ("cat", "head", "mkdir")
NOT_OURS = ("make", "ollama", "OLLAMA_CONTEXT_LENGTH=8192")
PLACEHOLDER = r"saved/(\w+)-([\w-]+?)-[0-9a-f]{8}"
SMALL = {
    "--mirm_examples=10000": "--mirm_examples=8",
    "--mllm_dtype=bfloat16": "--mllm_dtype=float32",
    "Qwen/Qwen2-VL-2B-Instruct": "tiny",
    "molar-smollm2.yaml": "molar-smollm2.yaml --mllm=tiny --mllm_layers=1",
    "--experiment molar-id": "--experiment molar-id --mllm=tiny",
    "--seeds 1,2,3": "--seeds 1 --trials 1",
    "--users 1,2": "--users c1,c2",
    "--slices all": "--slices all --rows Molar,SASRec --seeds 1 --trials 1",
    "cold-start --dataset": "cold-start --rows SASRec,SASRec-content --dataset",
    "ml-100k": "shop",
}
TRAINED = {
    "recommend": ("SASRec", "Molar"),
    "report": ("Molar", "SASRec"),
    "evaluation": ("Molar", "SASRec"),
    "compare": ("Molar", "SASRec"),
    "serve": ("Molar", "SASRec", "SASRec"),
}
"""Models whose runs a page takes for granted; one that is named twice has two runs."""
TRAINING = ("run", "tune", "compare --experiment")


def source(page: str) -> Path:
    """The file of a page."""
    return ROOT / "README.md" if page == "README" else ROOT / "docs" / f"{page}.md"


def blocks(page: str) -> list[tuple[str, str]]:
    """The page's blocks of code: (language, text)."""
    text = source(page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.M | re.S)


def commands(block: str) -> Iterator[str]:
    """The commands of a block, those that go on in further lines as one, without comments."""
    lines = iter(block.splitlines())
    for line in lines:
        command = line
        while command.endswith("\\"):
            command = command[:-1] + next(lines)
        if here := re.search(r"<<'(\w+)'$", command):
            while not command.endswith(f"\n{here[1]}"):
                command += "\n" + next(lines)
        elif command.strip():
            command = re.sub(r"\s+# .*$", "", command)
        if command.strip():
            yield command.removeprefix(".venv/bin/")


def test_every_block_is_of_a_language_that_is_known():
    for page in GUIDES:
        found = blocks(page)
        assert found, page
        assert {language for language, _ in found} <= {"bash", "python", "text"}, page
        for command in (command for language, block in found if language == "bash" for command in commands(block)):
            assert command.split()[0] in (*OURS, *OF_THE_SHELL, *NOT_OURS), command


class Place:
    """An empty folder with the examples, in which a page is followed."""

    def __init__(self, page: str, folder: Path, url: str) -> None:
        self.page, self.folder, self.url = page, folder, url
        self.encoder = write_sentence_encoder(folder / "encoder")
        self.text = source(page).read_text(encoding="utf-8")
        shutil.copytree(ROOT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))

    def stand_ins(self, command: str) -> str:
        """The command with what is at hand here."""
        command = self.with_runs(command)
        for large, small in SMALL.items():
            command = command.replace(large, small)
        command = command.replace("sentence-transformers/all-MiniLM-L6-v2", self.encoder)
        command = command.replace("http://localhost:11434/v1", self.url)
        if "MLLMRec" in command and "--model" in command and "--sentence_encoder" not in command:
            command += f" --sentence_encoder={self.encoder}"
        if command.startswith(tuple(f"recbole-mm {name}" for name in TRAINING)) or "run_recbole_mm.py" in command:
            command = re.sub(r" --epochs=\d+", "", command) + " --epochs=1 --show_progress=False"
        return command

    def with_runs(self, text: str) -> str:
        """The text with the folders of runs that were made here."""
        return re.sub(PLACEHOLDER, lambda found: str(self.run_folder(found[0])), text)

    def run_folder(self, placeholder: str) -> Path:
        """The run that a page means by an id: of the ids of a model, in their order, those of its runs, in time."""
        model, dataset = re.fullmatch(PLACEHOLDER, placeholder).groups()
        meant = sorted({found[0] for found in re.finditer(PLACEHOLDER, self.text) if found[1] == model})
        runs = sorted(Path("saved").glob(f"{model}-{dataset.replace('ml-100k', 'shop')}-*/result.json"), key=created)
        return runs[meant.index(placeholder)].parent

    def follow(self, command: str, capsys) -> None:
        """Run a command; the test fails if it does."""
        words = command.split()
        if words[0] in NOT_OURS:
            return
        if words[0] in OF_THE_SHELL:
            subprocess.run(["bash", "-euc", command], check=True, stdout=subprocess.DEVNULL)
            return
        if words[:2] in (["python", "-"], ["python", "-m"]):
            text = self.with_runs(command).replace("python", shlex.quote(sys.executable), 1)
            subprocess.run(["bash", "-euc", text], check=True, stdout=subprocess.DEVNULL)
            return
        words = shlex.split(self.stand_ins(command))
        if words[:2] == ["python", "run_recbole_mm.py"]:
            words = ["recbole-mm", "run", *words[2:]]
        if words[0] == "python":
            runpy.run_path(words[1], run_name="__main__")
            return
        status = main(words[1:])
        assert status == 0, (words, capsys.readouterr().err)


def created(path: Path) -> int:
    """When a file was written, in nanoseconds."""
    return path.stat().st_mtime_ns


def write_mmrec(folder: Path) -> None:
    """What MMRec's users have: 40 users, 60 items, features of both kinds, and a split."""
    rng, lines = np.random.default_rng(3), ["userID\titemID\trating\ttimestamp\tx_label"]
    folder.mkdir(parents=True)
    for user in range(40):
        chosen = rng.permutation(60)[:8]
        for place, item in enumerate(chosen):
            lines.append(f"{user}\t{item}\t5\t{1000 * user + place}\t{max(0, place - len(chosen) + 3)}")
    (folder / "baby.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for kind in ("image", "text"):
        np.save(folder / f"{kind}_feat.npy", rng.normal(size=(60, 6)).astype(np.float32))


def write_new_items(shop: Path, folder: Path) -> None:
    """Two items that came after training, with pictures, described as the shop's own are."""
    header, first = (shop / "shop.item").read_text(encoding="utf-8").splitlines()[:2]
    (folder / "images").mkdir(parents=True)
    lines = [header]
    for name in ("new1", "new2"):
        lines.append("\t".join([name, *first.split("\t")[1:]]))
        shutil.copy(shop / "images" / "p0.png", folder / "images" / f"{name}.png")
    (folder / "spring.item").write_text("\n".join(lines) + "\n", encoding="utf-8")


def prepare(page: str) -> None:
    """Make what a page takes for granted."""
    for count, model in enumerate(TRAINED.get(page, ())):
        recbole_mm.run(model, "shop", config_dict={"full_sequence": True, "learning_rate": 1e-3 * (1 + count)})
    if page == "recommend":
        write_new_items(Path("dataset/shop"), Path("spring"))
        Path("sold-out.txt").write_text("p0\np3\n")
    if page == "report":
        Path("space.yaml").write_text("learning_rate: {choice: [1e-3, 1e-2]}\n")
        runs = map(str, sorted(path.parent for path in Path("saved").glob("*/result.json")))
        assert main(["compare", "--runs", *runs, "--out", "saved/compare-molar-id-shop"]) == 0
        search = [
            "tune",
            "--model",
            "SASRec",
            "--dataset",
            "shop",
            "--space",
            "space.yaml",
            "--trials",
            "1",
            "--jobs",
            "1",
        ]
        assert main([*search, "--epochs=1", "--show_progress=False"]) == 0


@pytest.fixture
def place(request, tmp_path, monkeypatch) -> Iterator[Place]:
    """Where the page of the test is followed: a dataset `shop`, unless the page makes it, and a server of texts."""
    server = FakeServer(lambda handler, body, before: (200, {}, completion("Somebody who likes shirts and lamps.")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RECBOLE_MM_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(tmp_path / "examples")
    page = request.node.callspec.params["page"]
    if page not in MAKES_ITS_DATA:
        runpy.run_path(str(ROOT / "examples" / "shop.py"))["dataset"]()
    if page == "tutorial-from-mmrec":
        write_mmrec(tmp_path / "downloads" / "baby")
    whole = recbole_mm.run

    def short(*arguments, config_dict=None, **given):
        return whole(*arguments, config_dict={**(config_dict or {}), "epochs": 1, "show_progress": False}, **given)

    monkeypatch.setattr(recbole_mm, "run", short)
    prepare(page)
    yield Place(page, tmp_path, server.url)
    server.close()
    for name in ("shop", "features_from_files"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES)
def test_the_page_can_be_followed(page, place, capsys):
    names: dict = {"__name__": "__main__"}
    for language, block in blocks(page):
        if language == "python":
            snippet = place.with_runs(block).replace('"ml-100k"', '"shop"').replace('users=["1"]', 'users=["c1"]')
            exec(compile(snippet, f"docs/{page}.md", "exec"), names)
        elif language == "bash":
            for command in commands(block):
                place.follow(command, capsys)
    assert page == "which-model" or list(Path("saved").glob("*/result.json"))
