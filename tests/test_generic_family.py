"""Models that transformers reads and we have no family for: equal to its own processor and plain forward."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

import recbole_mm
from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.llm.families import FAMILIES, family_class, is_multimodal
from recbole_mm.llm.families.generic import Generic, generic_family
from recbole_mm.llm.finetuning.finetune import Tuning, check_tuning
from recbole_mm.llm.loading import add_cur_item, load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.prompts import CUR_ITEM
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.llm.tiny_tokenizers import LONGEST
from recbole_mm.utils.files import CHECKSUMS
from tests.test_families import CPU, PROCESSORS, PROMPTS, SMALL, TALL, WIDE, close, corpus, parts_of, picture, prepared

TYPES = ("llava", "gemma3", "llava_next", "deepseek_vl", "idefics3")
"""`llava` has no family of its own; the others are read as if they had none."""


@pytest.fixture(scope="module", params=TYPES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    kind = request.param
    folder = build_tiny(corpus(), tmp_path_factory.mktemp("generic") / kind, seed=5, family=kind)
    if kind in FAMILIES:
        add_processor(folder, kind)
    return folder


def add_processor(folder: Path, kind: str) -> None:
    """Save transformers' processor beside a tiny model, as published checkpoints have it."""
    images = family_class(kind).image_processor_class.from_pretrained(folder)
    made = PROCESSORS[kind](images, AutoTokenizer.from_pretrained(folder))
    made.chat_template = made.tokenizer.chat_template
    made.save_pretrained(folder)
    (folder / CHECKSUMS).unlink()


@pytest.fixture(scope="module")
def mllm(folder: Path) -> MLLM:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(FAMILIES, folder.name, raising=False)
        return load_mllm(folder)


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_states_are_those_of_transformers_forward(mllm: MLLM, folder: Path, prompt: list[Image.Image | str]) -> None:
    assert isinstance(mllm.family, Generic)
    item = mllm.family.prepare(parts_of(mllm, prompt), mllm.family.max_pixels)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    add_cur_item(model, processor.tokenizer, folder.name)
    text = "".join(part if isinstance(part, str) else mllm.family.placeholder for part in prompt) + CUR_ITEM
    images = [part for part in prompt if isinstance(part, Image.Image)] or None
    expected = processor(images=images, text=[text], return_tensors="pt")
    if folder.name in ("llava", "llava_next"):  # their tokenizer puts a blank before each piece of text
        spelled = [mllm.tokenizer.decode(ids[0]).replace(" ", "") for ids in ([item.ids], expected["input_ids"])]
        assert spelled[0] == spelled[1]
        expected["input_ids"] = torch.from_numpy(item.ids)[None]
        expected.pop("attention_mask")
    assert item.ids.tolist() == expected["input_ids"][0].tolist()
    with torch.inference_mode():
        state = model.model(**expected, use_cache=False).last_hidden_state[0, -1]
        close(mllm.last_hidden_states([item])[0], state)


def test_states_do_not_depend_on_batch_mates(mllm: MLLM) -> None:
    items = [prepared(mllm, prompt) for prompt in PROMPTS]
    with torch.inference_mode():
        alone = torch.cat([mllm.last_hidden_states([item]) for item in items])
        close(mllm.last_hidden_states(items), alone, atol=1e-6)
        means = torch.cat([mllm.mean_hidden_states([item], 1) for item in items])
        close(mllm.mean_hidden_states(items, 1), means, atol=1e-6)
    assert (alone[:, None] - alone[None]).norm(dim=-1)[~torch.eye(len(items), dtype=torch.bool)].min() > 0.1


def test_means_are_those_of_the_states_whatever_shares_the_batch(mllm: MLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [prepared(mllm, prompt) for prompt in PROMPTS]
    sizes, base = [], mllm.family.collate
    monkeypatch.setattr(mllm.family, "collate", lambda some, *rest: sizes.append(len(some)) or base(some, *rest))
    with torch.inference_mode():
        for skipped in (0, 1):
            means = mllm.mean_hidden_states(items, skipped)
            for item, mean in zip(items, means, strict=True):
                states = mllm.model(**base([item], CPU), use_cache=False).last_hidden_state[0]
                close(mean, states[skipped:].mean(0), atol=1e-6)
    assert sizes == [1] * 2 * len(items), "how a model treats padding is its own"


def test_batches_are_trained_on_as_single_prompts(mllm: MLLM) -> None:
    """One forward pass of several prompts, as in training and generating."""
    items = [prepared(mllm, [part, "then now"]) for part in (WIDE, TALL, SMALL)]
    rows = torch.arange(len(items))
    last = torch.tensor([len(item.ids) - 1 for item in items])
    with torch.inference_mode():
        alone = mllm.last_hidden_states(items)
        states = mllm.model(**mllm.family.collate(items, CPU), use_cache=False).last_hidden_state[rows, last]
    close(states, alone, atol=1e-5)


def test_a_bound_shrinks_an_image_only_where_that_saves_something(mllm: MLLM) -> None:
    family, large = mllm.family, picture(7, 400, 300)
    whole, bounded = family.cut(large, family.max_pixels), family.cut(large, 56 * 56)
    cost = len(bounded.ids) + bounded.patches
    assert cost <= len(whole.ids) + whole.patches
    assert family.image_cost(56 * 56) >= cost
    if mllm.model.config.model_type in ("llava", "gemma3", "deepseek_vl"):
        assert all(torch.equal(whole.tensors[name], bounded.tensors[name]) for name in whole.tensors)


def test_texts_spell_no_image(mllm: MLLM) -> None:
    marks = set(mllm.family.reserved_ids)
    assert mllm.model.config.image_token_id in marks
    assert not marks & set(mllm.token_ids(f"buy {mllm.family.placeholder} now"))


def test_the_log_says_that_it_is_slower(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = build_tiny(corpus(), tmp_path / "llava", family="llava")
    with caplog.at_level(logging.INFO):
        load_mllm(folder)
    assert "type llava are read through transformers' own processor, prompt by prompt: slower" in caplog.text


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    mllm = load_mllm(build_tiny(corpus(), tmp_path / "llava", family="llava"), with_head=True)
    item = prepared(mllm, PROMPTS[0])
    mllm.save(tmp_path / "saved")
    loaded = load_mllm(tmp_path / "saved", with_head=True)
    assert loaded.cur_item_id == mllm.cur_item_id
    with torch.inference_mode():
        close(loaded.last_hidden_states([item]), mllm.last_hidden_states([item]), atol=0)
    assert loaded.tokenizer.model_max_length == LONGEST


def test_a_checkpoint_without_a_processor_is_refused(tmp_path: Path) -> None:
    folder = build_tiny(corpus(), tmp_path / "llava", family="llava")
    for name in ("processor_config.json", "preprocessor_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / CHECKSUMS).unlink()
    with pytest.raises(ModelLoadError) as error:
        load_mllm(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_types_that_are_read() -> None:
    assert is_multimodal("aya_vision")
    assert not any(map(is_multimodal, ("gpt2", "blip-2", "vision-encoder-decoder", "bert")))
    with pytest.raises(KeyError):
        generic_family("gpt2")
    assert issubclass(family_class("llava"), Generic)


def test_molar_runs_with_it(toy_settings) -> None:
    settings = {**toy_settings, "mllm": "tiny-llava", "epochs": 1, "mirm_tuning": "none"}
    outcome = recbole_mm.run("Molar", "toy", config_dict=settings)
    assert isinstance(outcome.dataset.inputs.mllm.family, Generic)
    assert 0 < outcome.test_result["recall@10"] <= 1
    assert json.loads((Path(outcome.run_dir) / "result.json").read_text())


def test_it_has_no_bottleneck(tmp_path: Path) -> None:
    mllm = load_mllm(build_tiny(corpus(), tmp_path / "llava", family="llava"), with_head=True)
    with pytest.raises(ConfigError, match="without the bottleneck"):
        check_tuning(Tuning(bottleneck=True), mllm)
    check_tuning(Tuning(), mllm)
