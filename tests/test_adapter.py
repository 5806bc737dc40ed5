"""PEFT adapters merged into the models they belong to, and bases in 4 bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file

from recbole_mm.errors import ModelLoadError
from recbole_mm.llm import loading
from recbole_mm.llm.families import FAMILIES
from recbole_mm.llm.family import PreparedInput
from recbole_mm.llm.loading import load_mllm, resize_vocabulary
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.utils.files import CHECKSUMS

CORPUS = ["a red shoe in a garden", "a golden ship and a green lamp", "the stone horse looks at a red ship"]
DECODER = r".*(language|text)_model\.layers\.\d+\.(self|cross)_attn\.(q|v)_proj"


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for family in FAMILIES:
        build_tiny(CORPUS, root / family, seed=6, family=family)
    return root


def prompts(mllm: MLLM) -> list[PreparedInput]:
    pixels = np.random.default_rng(3).integers(0, 256, (80, 60, 3), dtype=np.uint8)
    words = [*mllm.token_ids("a red lamp"), mllm.cur_item_id]
    return [mllm.family.prepare(parts, 10**6) for parts in ([Image.fromarray(pixels), words], [words])]


def states(mllm: MLLM) -> torch.Tensor:
    with torch.inference_mode():
        return mllm.last_hidden_states(prompts(mllm))


def trained(model: Any, **settings: Any) -> PeftModel:
    """A model with an adapter that does something."""
    config = LoraConfig(r=4, lora_alpha=8, **{"target_modules": DECODER, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        wrapped = get_peft_model(model, config)
        with torch.no_grad():
            for name, weight in wrapped.named_parameters():
                if "lora_" in name or "trainable_tokens" in name:
                    weight.add_(torch.randn_like(weight) * 0.05)
    return wrapped


def with_adapter(folder: Path, target: Path, with_head: bool = True, **settings: Any) -> MLLM:
    """Train an adapter, save it, and return the model that it was trained in."""
    mllm = load_mllm(folder, with_head=with_head)
    mllm.model = trained(mllm.model, **settings)
    mllm.model.save_pretrained(target)
    return mllm


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


def message(error: pytest.ExceptionInfo[ModelLoadError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_adapter_is_merged_into_its_base(folders: Path, tmp_path: Path, family: str) -> None:
    mllm = with_adapter(folders / family, tmp_path / "adapter")
    expected = states(mllm)
    generator = torch.random.get_rng_state()
    for with_head in (True, False):
        loaded = load_mllm(tmp_path / "adapter", with_head=with_head)
        kind = loaded.family.generation_class if with_head else loaded.family.model_class
        assert type(loaded.model) is kind
        close(states(loaded), expected)
    assert torch.equal(torch.random.get_rng_state(), generator)
    base = load_mllm(folders / family)
    assert (states(base) - expected).abs().max() > 1e-2
    assert loaded.identity.startswith(base.identity + "+")
    assert not loaded.model.training


def test_an_adapter_of_the_base_model_alone(folders: Path, tmp_path: Path) -> None:
    mllm = with_adapter(folders / "internvl", tmp_path / "adapter", with_head=False)
    for with_head in (True, False):
        loaded = load_mllm(tmp_path / "adapter", with_head=with_head)
        close(states(loaded), states(mllm))
        assert (loaded.model.get_output_embeddings() is not None) == with_head


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next"])  # with tied and with untied words
@pytest.mark.parametrize("saves_tokenizer", [True, False])
def test_a_trained_cur_item_comes_along(folders: Path, tmp_path: Path, family: str, saves_tokenizer: bool) -> None:
    cur_item = load_mllm(folders / family).cur_item_id
    mllm = with_adapter(folders / family, tmp_path / "adapter", trainable_token_indices=[cur_item])
    if saves_tokenizer:
        mllm.tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = load_mllm(tmp_path / "adapter", with_head=True)
    assert loaded.cur_item_id == cur_item
    close(states(loaded), states(mllm))
    row = loaded.model.get_input_embeddings().weight[cur_item]
    untrained = load_mllm(folders / family).model.get_input_embeddings().weight[cur_item]
    assert (row - untrained).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "mllama"])
def test_an_adapter_with_more_words_than_its_base(folders: Path, tmp_path: Path, family: str) -> None:
    """Its tokenizer wins, and its embeddings, which PEFT saves whole, fit."""
    mllm = load_mllm(folders / family, with_head=True)
    mllm.tokenizer.add_tokens([f"[word {index}]" for index in range(15)])
    resize_vocabulary(mllm.model, len(mllm.tokenizer) + 3)
    mllm.model = trained(mllm.model, modules_to_save=["embed_tokens"])
    with torch.no_grad():
        mllm.model.get_input_embeddings().weight.mul_(1.5)
    mllm.model.save_pretrained(tmp_path / "adapter")
    mllm.tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = load_mllm(tmp_path / "adapter")
    assert len(loaded.tokenizer) == len(mllm.tokenizer)
    assert loaded.tokenizer("[word 7]")["input_ids"][-1] == loaded.cur_item_id + 8
    assert loaded.model.get_input_embeddings().num_embeddings == len(mllm.tokenizer) + 3
    close(states(loaded), states(mllm))


def test_new_words_without_saved_embeddings_start_from_the_mean(folders: Path, tmp_path: Path) -> None:
    mllm = with_adapter(folders / "internvl", tmp_path / "adapter")
    mllm.tokenizer.add_tokens(["[one]", "[two]"])
    mllm.tokenizer.save_pretrained(tmp_path / "adapter")
    loaded = load_mllm(tmp_path / "adapter")
    rows = loaded.model.get_input_embeddings().weight
    assert len(rows) == loaded.cur_item_id + 3
    close(rows[-1], rows[loaded.cur_item_id], atol=0)
    close(states(loaded), states(mllm))


def test_identity_follows_adapter_and_base(folders: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(folders / "qwen2_vl", tmp_path / "base", ignore=shutil.ignore_patterns(CHECKSUMS)))
    with_adapter(base, tmp_path / "adapter")
    first = load_mllm(tmp_path / "adapter").identity
    assert load_mllm(tmp_path / "adapter").identity == first
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file({name: weight * 2 for name, weight in weights.items()}, tmp_path / "adapter/adapter_model.safetensors")
    second = load_mllm(tmp_path / "adapter").identity
    edit_json(base / "preprocessor_config.json", resample=2)
    assert len({first, second, load_mllm(tmp_path / "adapter").identity}) == 3


# --- what cannot be loaded -------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(folders: Path, tmp_path: Path) -> Path:
    """An adapter that a test may damage."""
    with_adapter(folders / "qwen2_vl", tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_missing_base_is_one_line(adapter: Path) -> None:
    for base in ("/no/such/base", None, "", 7):
        edit_json(adapter / "adapter_config.json", base_model_name_or_path=base)
        with pytest.raises(ModelLoadError, match=r"base model") as error:
            load_mllm(adapter)
        assert message(error).startswith(str(adapter))


def test_an_adapter_on_an_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(adapter, tmp_path / "second"))
    edit_json(second / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(ModelLoadError, match="is an adapter itself") as error:
        load_mllm(second)
    message(error)


@pytest.mark.parametrize("base", ["mllama", "deepseek_vl"])  # with other layers, with layers of another size
def test_an_adapter_of_another_model_is_refused(adapter: Path, folders: Path, base: str) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(folders / base))
    with pytest.raises(ModelLoadError) as error:
        load_mllm(adapter)
    assert message(error).startswith(f"{adapter}: the adapter does not fit its base model {folders / base}: ")


def damage_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def forget_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def lose_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def target_nothing(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", target_modules=["no_such_layer"])


def of_unknown_kind(folder: Path) -> None:
    edit_json(folder / "adapter_config.json", peft_type="NO_SUCH_KIND")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_config, "cannot be read or names no base model"),
        (forget_weights, r"without adapter_model\.safetensors"),
        (pickle_weights, r"without adapter_model\.safetensors"),
        (cut_weights, "cannot be read"),
        (lose_a_tensor, "1 tensors have no counterpart"),
        (target_nothing, "does not fit"),
        (of_unknown_kind, "does not fit"),
    ],
)
def test_damaged_adapters_are_one_line(adapter: Path, damage: Any, words: str) -> None:
    damage(adapter)
    with pytest.raises(ModelLoadError, match=words) as error:
        load_mllm(adapter)
    assert message(error).startswith(str(adapter))


def test_an_adapter_that_cannot_be_merged_is_refused(adapter: Path, folders: Path) -> None:
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    config["base_model_name_or_path"] = str(folders / "qwen2_vl")
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="PROMPT_TUNING adapter, which cannot be merged") as error:
        load_mllm(adapter)
    message(error)


def test_a_hub_adapter_brings_its_base(adapter: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_mllm(adapter)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="someone/base", revision="v2")
    places = {"someone/adapter": adapter, "someone/base": folders / "qwen2_vl"}
    asked: list[tuple] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns[0]))
        return str(places[name])

    monkeypatch.setattr("recbole_mm.llm.pretrained.snapshot_download", download)
    loaded = load_mllm("someone/adapter", revision="main")
    close(states(loaded), states(expected))
    assert loaded.identity == "someone/base@qwen2_vl+someone/adapter@adapter"
    assert {(name, revision) for name, revision, _ in asked} == {("someone/adapter", "main"), ("someone/base", "v2")}


# --- 4 bits ----------------------------------------------------------------------------------------------------------


def test_four_bits_need_bitsandbytes(folders: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match="pip install bitsandbytes") as error:
        load_mllm(folders / "qwen2_vl", load_in_4bit=True)
    message(error)
    with pytest.raises(ModelLoadError, match="merged into full weights") as error:
        load_mllm(adapter, load_in_4bit=True)
    message(error)


def test_four_bits_are_asked_of_transformers(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: object())
    monkeypatch.setattr(loading, "BitsAndBytesConfig", dict)
    family = loading.family_class("qwen2_vl")
    real = family.generation_class.from_pretrained
    seen: dict[str, Any] = {}

    def from_pretrained(folder: Path, quantization_config: Any, device_map: Any, **settings: Any) -> Any:
        seen.update(quantization_config, device_map=device_map)
        return real(folder, **settings)

    monkeypatch.setattr(family.generation_class, "from_pretrained", from_pretrained)
    loaded = load_mllm(folders / "qwen2_vl", with_head=True, dtype="bfloat16", load_in_4bit=True)
    assert seen["load_in_4bit"] is True
    assert seen["bnb_4bit_quant_type"] == "nf4"
    assert seen["bnb_4bit_compute_dtype"] == torch.bfloat16
    assert seen["device_map"] == {"": torch.device("cpu")}
    assert loaded.identity == load_mllm(folders / "qwen2_vl").identity + "+nf4"
