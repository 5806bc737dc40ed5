"""Building, finding and loading a multimodal LLM, its inputs, and its decoder on its own."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2VLModel

from recbole_mm.errors import DiskError, ModelLoadError
from recbole_mm.llm import loading, pretrained, tiny
from recbole_mm.llm.families import FAMILIES
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM, TextStack
from recbole_mm.llm.pretrained import files_identity
from recbole_mm.llm.prompts import CUR_ITEM, ItemPrompt
from recbole_mm.llm.tiny import SPECIAL_TOKENS, build_tiny
from recbole_mm.utils.files import CHECKSUMS

CORPUS = [
    f"Title: The {color} {thing} of number {i}\nPlot: {thing}s meet a {color} stranger."
    for i, (color, thing) in enumerate(
        [(c, t) for c in ("red", "green", "golden") for t in ("shoe", "ship", "garden", "lamp")]
    )
]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(CORPUS, tmp_path_factory.mktemp("models") / "tiny", seed=3)


@pytest.fixture(scope="session")
def mllm(tiny_folder: Path) -> MLLM:
    return load_mllm(tiny_folder)


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage, without the list of checksums that would tell at once."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copied", ignore=shutil.ignore_patterns(CHECKSUMS)))


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def message(error: pytest.ExceptionInfo[ModelLoadError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# --- the tiny model --------------------------------------------------------------------------------------------------


def test_tiny_is_a_small_qwen2_vl_in_the_hugging_face_layout(tiny_folder: Path, mllm: MLLM) -> None:
    files = {path.name for path in tiny_folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert {"preprocessor_config.json", "generation_config.json", "chat_template.jinja"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    config = json.loads((tiny_folder / "config.json").read_text())
    assert config["model_type"] == "qwen2_vl"
    assert config["architectures"] == ["Qwen2VLForConditionalGeneration"]
    weights = load_file(tiny_folder / "model.safetensors")
    assert {name.split(".")[0] for name in weights} == {"model", "visual"}  # the names of the published checkpoints
    letters = np.random.default_rng(0).choice(list("abcdefghij"), (30_000, 6))
    full = build_tiny([" ".join(map("".join, letters))], tiny_folder.parent / "full")
    parameters = sum(weight.numel() for weight in load_file(full / "model.safetensors").values())
    assert 1_000_000 <= parameters <= 3_000_000
    assert len(load_mllm(full).tokenizer) == 4096 + 1


def test_another_seed_or_corpus_gives_another_model(tiny_folder: Path, tmp_path: Path) -> None:
    first = contents(tiny_folder)
    reseeded = contents(build_tiny(CORPUS, tmp_path / "seed", seed=4))
    assert {name for name in first if first[name] != reseeded[name]} == {"model.safetensors", CHECKSUMS}
    assert contents(build_tiny(CORPUS[:3], tmp_path / "corpus", seed=3))["tokenizer.json"] != first["tokenizer.json"]


def test_runs_may_build_it_at_once_and_same_corpus_and_seed_give_the_same_bytes(
    tiny_folder: Path, tmp_path: Path
) -> None:
    target = tmp_path / "models" / "tiny"
    code = f"from recbole_mm.llm.tiny import build_tiny; build_tiny({CORPUS!r}, {str(target)!r}, seed=3)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environments = [{**environment, "PYTHONHASHSEED": number} for number in ("77", "78")]
    runs = [
        subprocess.Popen([sys.executable, "-c", code], env=one, stderr=subprocess.PIPE, text=True)
        for one in environments
    ]
    errors = [run.communicate(timeout=300)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]  # and no scratch folder
    assert contents(target) == contents(tiny_folder)
    load_mllm(target)


def test_losing_the_race_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole_mm.llm import tiny

    write = tiny._write_model

    def slow(texts: object, folder: Path, seed: int, recipe: Any) -> None:
        write(CORPUS, folder, seed, recipe)
        shutil.copytree(folder, tmp_path / "tiny", dirs_exist_ok=True)  # the other run finishes now

    monkeypatch.setattr(tiny, "_write_model", slow)
    assert build_tiny(CORPUS, tmp_path / "tiny") == tmp_path / "tiny"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_an_existing_model_is_kept_and_anything_else_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    before = contents(tiny_folder)
    assert build_tiny(["something else"], tiny_folder, seed=9) == tiny_folder
    assert contents(tiny_folder) == before
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("precious")
    with pytest.raises(DiskError, match=r"taken: cannot be written: Directory not empty$"):
        build_tiny(CORPUS, taken)
    assert contents(taken).keys() == {"thesis.txt"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"])
def test_a_flipped_bit_of_a_tiny_model_is_refused_by_the_files_name(
    tiny_folder: Path, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "copied"))
    assert load_mllm(folder).identity == load_mllm(tiny_folder).identity
    content = bytearray((folder / name).read_bytes())
    place = content.rindex(b"1") if name.endswith(".json") else len(content) // 2
    content[place] ^= 2  # of a 1 it makes a 3
    (folder / name).write_bytes(content)
    for options in ({}, {"without_weights": True}):
        with pytest.raises(
            ModelLoadError, match=rf"{name} is damaged: its checksum .*remove {folder} to have"
        ) as error:
            load_mllm(folder, **options)
        message(error)
    (folder / name).unlink()
    with pytest.raises(ModelLoadError, match=rf"{name} is gone; remove {folder}"):
        load_mllm(folder, without_weights=True) if name != "config.json" else files_identity(folder)


def test_a_list_of_checksums_makes_no_other_model(tiny_folder: Path, copied: Path) -> None:
    assert files_identity(copied) == files_identity(tiny_folder)


@pytest.mark.parametrize("place", ["save_pretrained", "list", "folder"])
def test_a_disk_that_gives_up_leaves_no_part_of_a_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if place == "save_pretrained":
        monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    elif place == "list":
        monkeypatch.setattr(tiny, "write_checksums", full)
    else:
        monkeypatch.setattr(tempfile, "mkdtemp", full)
    with pytest.raises(DiskError, match=r"cannot be written: No space left on device$"):
        build_tiny(CORPUS, tmp_path / "artifacts" / "tiny")
    assert os.listdir(tmp_path / "artifacts") == []


def test_building_and_loading_leave_torchs_generator_and_the_environment_alone(tmp_path: Path) -> None:
    environment = dict(os.environ)
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    load_mllm(build_tiny(CORPUS, tmp_path / "tiny"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert dict(os.environ) == environment


def test_tokenizer_reads_any_text(tmp_path: Path, mllm: MLLM) -> None:
    strange = "Größe 42 · 漢字 👟\tend\r\n  x"
    assert mllm.tokenizer.decode(mllm.tokenizer(strange)["input_ids"]) == strange
    empty = load_mllm(build_tiny([], tmp_path / "empty"))
    assert empty.tokenizer.decode(empty.tokenizer(strange)["input_ids"]) == strange
    build_tiny(["a broken \udce4 byte", "", "\0"], tmp_path / "broken")
    assert [len(mllm.tokenizer(token)["input_ids"]) for token in SPECIAL_TOKENS] == [1] * len(SPECIAL_TOKENS)


def test_chat_template(mllm: MLLM) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A shoe."},
    ]
    shown = mllm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|>\n"
        "<|im_start|>assistant\nA shoe.<|im_end|>\n<|im_start|>assistant\n"
    )


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["no/such/folder/here", "./nothing", "/nothing/at/all", "~/nothing-here", "bad id!", ""]
)
def test_no_such_folder(name: str) -> None:
    with pytest.raises(ModelLoadError, match="no such model folder; --mllm=tiny works offline") as error:
        load_mllm(name)
    assert name in message(error)


def test_a_file_or_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelLoadError, match="no such model folder"):
        load_mllm(tmp_path / "file")
    with pytest.raises(ModelLoadError, match=r"holds no config\.json") as error:
        load_mllm(tmp_path)
    assert str(tmp_path) in message(error)


RESPONSE: Any = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (LocalEntryNotFoundError("Got: ConnectError\nAn error happened\nat length"), "hub cannot be reached"),
        (ConnectionError("no route"), "hub cannot be reached"),
        (RepositoryNotFoundError("404", response=RESPONSE), "neither a folder here nor a model"),
        (GatedRepoError("403", response=RESPONSE), "accept its terms"),
        (RevisionNotFoundError("404", response=RESPONSE), "not its revision 'v9'"),
        (HFValidationError("bad"), "nor a valid hub id"),
        (HTTPError("read timed out"), "hub cannot be reached"),
    ],
)
def test_hub_problems_are_one_line(monkeypatch: pytest.MonkeyPatch, problem: Exception, words: str) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise problem

    monkeypatch.setattr(pretrained, "snapshot_download", fail)
    with pytest.raises(ModelLoadError, match=words) as error:
        load_mllm("Qwen/Qwen2-VL-2B-Instruct", revision="v9")
    assert message(error).startswith("Qwen/Qwen2-VL-2B-Instruct: ")


def test_a_hub_model_is_known_by_its_commit(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path) -> None:
    snapshot = shutil.copytree(tiny_folder, tmp_path / "snapshots" / "0123abcd")
    calls: list[tuple] = []

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        calls.append((name, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    loaded = load_mllm("someone/tiny", revision="main")
    assert (loaded.name, loaded.identity) == ("someone/tiny", "someone/tiny@0123abcd")
    assert [call[2][0] for call in calls] == ["config.json", "*.json"]
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for call in calls for pattern in call[2])
    calls.clear()
    load_mllm("someone/tiny", trust_remote_code=True)
    assert calls[-1][2][-1] == "*.py", "the code that is trusted comes along"
    edit_json(Path(snapshot) / "config.json", model_type="blip-2")
    calls.clear()
    with pytest.raises(ModelLoadError, match="type 'blip-2'"):
        load_mllm("someone/tiny")
    assert len(calls) == 1  # refused before the weights were downloaded


@pytest.mark.parametrize("kind", ["bert", "bart", "blip-2", "t5gemma2", None, ["qwen2_vl"]])
def test_another_family_is_refused(copied: Path, kind: object) -> None:
    """Encoders among them; the message names what would do."""
    edit_json(copied / "config.json", model_type=kind)
    supported = f"type {', '.join(sorted(FAMILIES))}"
    with pytest.raises(ModelLoadError, match=f"supported multimodal LLMs are of {supported}") as error:
        load_mllm(copied)
    assert repr(kind) in message(error)


@pytest.mark.parametrize(
    ("kind", "other"), [("internvl_chat", "InternVL3-2B-hf"), ("multi_modality", "deepseek-community")]
)
def test_checkpoints_with_code_of_their_own_have_a_counterpart(copied: Path, kind: str, other: str) -> None:
    edit_json(copied / "config.json", model_type=kind)
    with pytest.raises(ModelLoadError, match=f"{kind}.* take .*{other}") as error:
        load_mllm(copied)
    message(error)


def remove(name: str):
    return lambda folder: (folder / name).unlink()


def truncate(name: str):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1000])


def only_pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_a_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def of_another_size(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(5)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate("config.json"), "config.json cannot be read"),
        (remove("model.safetensors"), "cannot be loaded"),
        (truncate("model.safetensors"), "cannot be loaded"),
        (only_pickled_weights, "cannot be loaded"),
        (without_a_tensor, "weights lack 1 tensors"),
        (of_another_size, "cannot be loaded"),
        (remove("preprocessor_config.json"), "cannot be loaded"),
        (truncate("tokenizer.json"), "cannot be loaded"),
        (remove("tokenizer.json"), "no words in its tokenizer; copy the model's tokenizer.json"),
    ],
)
def test_damaged_checkpoints_are_one_line(copied: Path, damage, words: str) -> None:
    damage(copied)
    with pytest.raises(ModelLoadError, match=words) as error:
        load_mllm(copied)
    assert message(error).startswith(str(copied))


def test_dtypes(tiny_folder: Path, mllm: MLLM) -> None:
    assert (mllm.dtype, mllm.device.type) == (torch.float32, "cpu")
    assert load_mllm(tiny_folder, dtype="bfloat16").dtype == torch.bfloat16
    assert load_mllm(tiny_folder, dtype="auto").dtype == torch.float32  # on a CPU
    with pytest.raises(ModelLoadError, match="'int8'"):
        load_mllm(tiny_folder, dtype="int8")


def test_published_flat_configuration(copied: Path, mllm: MLLM) -> None:
    """Qwen2-VL's hub files say the text settings at the top level and name rope `mrope`; spare embedding rows exist."""
    config = json.loads((copied / "config.json").read_text())
    text, vision = config.pop("text_config"), config.pop("vision_config")
    sections = text.pop("rope_parameters")
    weights = load_file(copied / "model.safetensors")
    words = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = torch.cat([words, torch.full((50, words.shape[1]), 7.0)])
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    vision = {**vision, "model_type": "qwen2_vl", "in_chans": 3, "spatial_patch_size": 14}
    del vision["rope_parameters"]
    flat = {**text, **config, "vision_config": vision, "model_type": "qwen2_vl", "rope_theta": sections["rope_theta"]}
    flat |= {"rope_scaling": {"type": "mrope", "mrope_section": sections["mrope_section"]}}
    flat["vocab_size"] = len(weights["model.embed_tokens.weight"])
    (copied / "config.json").write_text(json.dumps(flat))
    loaded = load_mllm(copied)
    item = loaded.family.prepare([picture(120, 90), [*loaded.token_ids("a red shoe"), loaded.cur_item_id]], 112 * 112)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.last_hidden_states([item]), mllm.last_hidden_states([item]))
    assert loaded.model.get_input_embeddings().num_embeddings == len(words) + 50  # no row was added


# --- identity --------------------------------------------------------------------------------------------------------


def test_identity_follows_the_files(copied: Path, mllm: MLLM) -> None:
    assert load_mllm(copied).identity == mllm.identity  # wherever the folder lies
    (copied / "README.md").write_text("about")
    assert load_mllm(copied).identity == mllm.identity
    known = {mllm.identity}
    for change in (
        lambda: edit_json(copied / "preprocessor_config.json", resample=2),
        lambda: edit_json(copied / "tokenizer_config.json", model_max_length=77),
        lambda: save_file(
            {name: weight + 0.001 for name, weight in load_file(copied / "model.safetensors").items()},
            copied / "model.safetensors",
            metadata={"format": "pt"},
        ),
    ):
        change()
        identity = load_mllm(copied).identity
        assert identity not in known
        known.add(identity)


def test_identity_is_hashed_once_per_process(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pretrained.files_identity(copied)

    def refuse(*args: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(pretrained.hashlib, "file_digest", refuse)
    assert pretrained.files_identity(copied) == first
    os.utime(copied / "model.safetensors", ns=(1, 1))
    with pytest.raises(AssertionError, match="hashed again"):
        pretrained.files_identity(copied)


# --- [Cur_Item] ------------------------------------------------------------------------------------------------------


def test_cur_item_is_one_token_with_the_mean_embedding(tiny_folder: Path, mllm: MLLM) -> None:
    before = contents(tiny_folder)
    loaded = load_mllm(tiny_folder)
    assert contents(tiny_folder) == before
    assert loaded.tokenizer(f"a shoe{CUR_ITEM}")["input_ids"][-1] == loaded.cur_item_id
    assert CUR_ITEM in loaded.tokenizer.all_special_tokens
    assert set(SPECIAL_TOKENS) <= set(loaded.tokenizer.all_special_tokens)
    embeddings = loaded.model.get_input_embeddings().weight
    mean = load_file(tiny_folder / "model.safetensors")["model.embed_tokens.weight"].double().mean(0).float()
    torch.testing.assert_close(embeddings[loaded.cur_item_id].detach(), mean, rtol=0, atol=0)
    assert loaded.cur_item_id == mllm.cur_item_id


def test_a_checkpoint_that_knows_cur_item_keeps_its_embedding(mllm: MLLM, tmp_path: Path) -> None:
    mllm.tokenizer.save_pretrained(tmp_path)
    mllm.image_processor.save_pretrained(tmp_path)
    tuned = load_mllm(mllm.name).model
    with torch.no_grad():
        tuned.get_input_embeddings().weight[mllm.cur_item_id] = 0.5
    tuned.save_pretrained(tmp_path)
    loaded = load_mllm(tmp_path)
    assert loaded.cur_item_id == mllm.cur_item_id
    embeddings = loaded.model.get_input_embeddings()
    assert embeddings.num_embeddings == mllm.model.get_input_embeddings().num_embeddings
    assert (embeddings.weight[loaded.cur_item_id] == 0.5).all()


def test_special_tokens_in_a_text_are_only_characters(mllm: MLLM) -> None:
    special = {*mllm.tokenizer.all_special_ids, mllm.cur_item_id}
    text = "buy <|image_pad|><|vision_start|> now<|im_end|>[Cur_Item]<|endoftext|>"
    ids = mllm.token_ids(text)
    assert not special & set(ids)
    assert mllm.tokenizer.decode(ids) == text
    assert mllm.token_ids("a \ud800 surrogate") == mllm.token_ids("a ? surrogate")
    assert mllm.tokenizer("<|image_pad|>")["input_ids"] == [
        mllm.model.config.image_token_id
    ]  # the shared one is as it was


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompt_speaks_of_what_is_there() -> None:
    prompt = ItemPrompt()
    assert len({prompt.instruction(True, True), prompt.instruction(True, False), prompt.instruction(False, True)}) == 3
    assert "pictured" not in prompt.instruction(False, True)
    assert "described" not in prompt.instruction(True, False)
    with pytest.raises(ValueError, match="neither"):
        prompt.instruction(False, False)
    assert ItemPrompt(text_only="Else:").identity != prompt.identity


# --- inputs, against transformers' own -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(182, 268), (28, 28), (500, 40), (1000, 1000), (7, 9), (112, 112)])
@pytest.mark.parametrize("max_pixels", [112 * 112, 28 * 28 * 30])
def test_patches_are_those_of_transformers(mllm: MLLM, size: tuple[int, int], max_pixels: int) -> None:
    image = picture(*size)
    item = mllm.family.prepare([image, [5, 6, 7]], max_pixels)
    inputs = mllm.family.collate([item], torch.device("cpu"))
    expected = mllm.image_processor(
        image, size={"shortest_edge": 56 * 56, "longest_edge": max_pixels}, return_tensors="pt"
    )
    assert inputs["image_grid_thw"].tolist() == expected["image_grid_thw"].tolist()
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"], rtol=0, atol=1e-6)


def test_patch_projection_is_the_convolution_it_stands_for(mllm: MLLM, tmp_path: Path) -> None:
    faster = mllm.model.visual.patch_embed.proj
    patches = torch.randn(9, 3, 2, 14, 14, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        torch.testing.assert_close(faster(patches), torch.nn.Conv3d.forward(faster, patches), rtol=0, atol=1e-5)
    mllm.model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved["visual.patch_embed.proj.weight"].shape == (64, 3, 2, 14, 14)


@pytest.mark.parametrize("size", [(3000, 2), (1, 4000), (1, 150), (1, 1), (2000, 100)])
def test_extreme_images_are_squeezed_not_refused(mllm: MLLM, size: tuple[int, int]) -> None:
    pixels, grid = mllm.family.patchify(picture(*size), 112 * 112)
    assert len(pixels) == grid[1] * grid[2]
    assert len(pixels) * 14 * 14 <= 112 * 112


def test_a_bound_below_the_checkpoints_minimum_holds(mllm: MLLM) -> None:
    assert len(mllm.family.patchify(picture(300, 300), 28 * 28)[0]) == 4


def test_batch_equals_transformers_with_mask_and_its_own_positions(mllm: MLLM) -> None:
    """The model itself, given an attention mask and asked to work out its positions, is the reference."""
    seen = [
        (picture(182, 268), "a red shoe of number one"),
        (None, "a golden lamp"),
        (picture(90, 300), ""),
        (None, ""),
        (picture(300, 90), " ".join(CORPUS)),
    ]
    prompts = [[*([image] if image else []), [*mllm.token_ids(text), mllm.cur_item_id]] for image, text in seen]
    items = [mllm.family.prepare(parts, 112 * 112) for parts in prompts]
    inputs = mllm.family.collate(items, torch.device("cpu"))
    ids = inputs["input_ids"]
    mask = torch.stack([(torch.arange(ids.shape[1]) < len(item.ids)).long() for item in items])
    kinds = (ids == mllm.model.config.image_token_id).int()
    model = Qwen2VLModel.from_pretrained(mllm.name).eval()
    loading.add_cur_item(model, AutoTokenizer.from_pretrained(mllm.name), "reference")
    positions, _ = model.get_rope_index(ids, kinds, inputs["image_grid_thw"], attention_mask=mask)
    torch.testing.assert_close(inputs["position_ids"] * mask, positions * mask)
    with torch.inference_mode():
        reference = model(
            input_ids=ids,
            attention_mask=mask,
            mm_token_type_ids=kinds,
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
        ).last_hidden_state
        vectors = mllm.last_hidden_states(items)
    for row, item in enumerate(items):
        torch.testing.assert_close(vectors[row], reference[row, len(item.ids) - 1], rtol=0, atol=1e-5)


# --- the text stack --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["sdpa", "eager"])
def stack(request: pytest.FixtureRequest, tiny_folder: Path) -> TextStack:
    return load_mllm(tiny_folder, attention=request.param).text_stack()


def additive(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)


def test_text_stack_holds_no_word_embeddings_and_is_a_copy(mllm: MLLM, stack: TextStack) -> None:
    words = mllm.model.get_input_embeddings().num_embeddings
    assert not [name for name in stack.state_dict() if "embed" in name]
    assert all(words not in weight.shape for weight in stack.parameters())
    own = {name: weight.data_ptr() for name, weight in mllm.text_stack().named_parameters()}
    theirs = {weight.data_ptr() for weight in mllm.model.parameters()}
    assert own
    assert not theirs & set(own.values())
    assert mllm.model.language_model.embed_tokens.num_embeddings == words  # the original still has its own


def test_text_stack_computes_what_the_decoder_does(mllm: MLLM, stack: TextStack) -> None:
    ids = torch.tensor([mllm.token_ids("a red shoe meets a golden stranger")])
    length = ids.shape[1]
    with torch.inference_mode():
        expected = mllm.model.language_model(input_ids=ids, use_cache=False).last_hidden_state
        vectors = mllm.model.get_input_embeddings()(ids)
        mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        for form in (mask, additive(mask)):
            output = stack(vectors, form, torch.arange(length)[None]).last_hidden_state
            torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


def test_mask_is_used_as_it_is(stack: TextStack) -> None:
    """Nothing causal is added: a position may look ahead where the mask says so, and only there."""
    vectors = torch.randn(1, 6, stack.hidden_size, generator=torch.Generator().manual_seed(1))
    changed = vectors.clone()
    changed[0, 5] += 1
    positions = torch.arange(6)[None]
    ahead = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    blind = ahead.clone()
    blind[..., :5, 5] = False
    with torch.inference_mode():
        for mask, sees in ((ahead, True), (blind, False)):
            for form in (mask, additive(mask)):
                before = stack(vectors, form, positions).last_hidden_state[0, 0]
                after = stack(changed, form, positions).last_hidden_state[0, 0]
                assert bool((before - after).abs().max() > 1e-3) == sees


def test_all_prefixes_in_one_pass_equal_a_pass_per_prefix(stack: TextStack) -> None:
    """A slot at position n that sees items 1..n and itself, behind all items = that slot right behind those n items."""
    generator = torch.Generator().manual_seed(5)
    batch, length, hidden = 2, 7, stack.hidden_size
    items = torch.randn(batch, length, hidden, generator=generator)
    user = torch.randn(hidden, generator=generator)
    order = torch.arange(length)
    mask = torch.zeros(2 * length, 2 * length, dtype=torch.bool)
    mask[:length, :length] = order[None, :] <= order[:, None]
    mask[length:, :length] = order[None, :] <= order[:, None]
    mask[length:, length:] = torch.eye(length, dtype=torch.bool)
    positions = torch.cat([order, order + 1]).expand(batch, -1)
    together = torch.cat([items, user.expand(batch, length, hidden)], dim=1)
    with torch.inference_mode():
        for form in (mask, additive(mask)):
            output = stack(together, form.expand(batch, 1, -1, -1), positions).last_hidden_state
            for n in range(1, length + 1):
                prefix = torch.cat([items[:, :n], user.expand(batch, 1, hidden)], dim=1)
                causal = torch.ones(batch, 1, n + 1, n + 1, dtype=torch.bool).tril()
                alone = stack(prefix, causal, torch.arange(n + 1).expand(batch, -1)).last_hidden_state
                torch.testing.assert_close(output[:, length + n - 1], alone[:, -1], rtol=0, atol=1e-5)
                torch.testing.assert_close(output[:, n - 1], alone[:, n - 1], rtol=0, atol=1e-5)


def test_text_stack_can_be_trained_without_touching_the_encoder(mllm: MLLM) -> None:
    stack = mllm.text_stack()
    before = {name: weight.clone() for name, weight in mllm.model.named_parameters()}
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1)
    vectors = torch.randn(2, 4, stack.hidden_size, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    stack.train()
    stack(vectors, mask, torch.arange(4).expand(2, -1)).last_hidden_state.pow(3).mean().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in stack.parameters())
    optimizer.step()
    assert all(torch.equal(weight, before[name]) for name, weight in mllm.model.named_parameters())


def test_text_stack_wants_a_mask_with_four_dimensions(stack: TextStack) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, L, L\)"):
        stack(torch.zeros(1, 3, stack.hidden_size), torch.ones(1, 3), torch.arange(3)[None])


def test_tokenizers_without_a_fast_version_are_refused(mllm: MLLM) -> None:
    with pytest.raises(ModelLoadError, match="fast version"):
        loading.add_cur_item(mllm.model, SimpleNamespace(), "slow")
