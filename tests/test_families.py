"""Every family of multimodal LLMs against transformers' own processor and forward, on tiny models of each."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.models.deepseek_vl.processing_deepseek_vl import DeepseekVLProcessor
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.mllama.processing_mllama import MllamaProcessor
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.llm.families import FAMILIES, family_class
from recbole_mm.llm.family import Part, PreparedInput
from recbole_mm.llm.loading import add_cur_item, load_mllm, resize_vocabulary
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.prompts import CUR_ITEM
from recbole_mm.llm.tiny import build_tiny

WORDS = [
    "red",
    "green",
    "golden",
    "shoe",
    "ship",
    "garden",
    "lamp",
    "stone",
    "horse",
    "look",
    "then",
    "now",
    "is",
    "it",
]
CPU = torch.device("cpu")


def corpus() -> list[str]:
    rng = np.random.default_rng(4)
    return [" ".join(rng.choice(WORDS, 12)) for _ in range(30)]


def picture(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


WIDE, TALL, SMALL = picture(1, 150, 60), picture(2, 70, 160), picture(3, 30, 33)
PROMPTS: list[list[Image.Image | str]] = [
    [WIDE, "a red shoe"],
    ["a golden lamp is now a stone horse"],
    [TALL],
    [WIDE, "then ", SMALL, "now"],
    ["look then: ", TALL, "what is it"],
    [SMALL, WIDE, TALL, "red"],
    ["look ", WIDE, SMALL, "garden ", TALL, " night"],
]
"""Pictures and texts in reading order; each prompt ends with `[Cur_Item]`."""


def parts_of(mllm: MLLM, prompt: Sequence[Image.Image | str]) -> list[Part]:
    parts: list[Part] = [part if isinstance(part, Image.Image) else mllm.token_ids(part) for part in prompt]
    return [*parts, [mllm.cur_item_id]]


def prepared(mllm: MLLM, prompt: Sequence[Image.Image | str]) -> PreparedInput:
    return mllm.family.prepare(parts_of(mllm, prompt), mllm.family.max_pixels)


def without_video(kind: type) -> type:
    """transformers' processor without the video processor that only torchvision makes possible."""
    own = {
        "get_attributes": classmethod(lambda cls: ["image_processor", "tokenizer"]),
        "check_argument_for_proper_class": lambda self, name, argument: type(argument),
    }
    return type(kind.__name__, (kind,), own)


PROCESSORS: dict[str, Callable[[Any, Any], Any]] = {
    "qwen2_vl": without_video(Qwen2VLProcessor),
    "qwen2_5_vl": without_video(Qwen2_5_VLProcessor),
    "qwen3_vl": without_video(Qwen3VLProcessor),
    "internvl": lambda images, words: without_video(InternVLProcessor)(images, words, image_seq_length=4),
    "deepseek_vl": lambda images, words: DeepseekVLProcessor(images, words, num_image_tokens=16),
    "mllama": MllamaProcessor,
    "llava_next": lambda images, words: LlavaNextProcessor(
        images, words, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ),
    "llava_onevision": lambda images, words: without_video(LlavaOnevisionProcessor)(
        images,
        words,
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    ),
    "gemma3": lambda images, words: Gemma3Processor(images, words, image_seq_length=4),
    "idefics3": lambda images, words: Idefics3Processor(images, words, image_seq_len=4),
    "smolvlm": lambda images, words: Idefics3Processor(images, words, image_seq_len=4),  # its own needs num2words
}
PADDED = ("llava_next", "llava_onevision")
"""Families whose processor pads images to the one with the most tiles."""
TIED = ("qwen2_vl", "qwen3_vl", "gemma3")
"""Tiny models whose head is their word embeddings."""


@dataclasses.dataclass
class Reference:
    """transformers alone: its model, its tokenizer, its processor."""

    kind: str
    model: Any
    processor: Any

    def inputs(self, prompt: Sequence[Image.Image | str]) -> Any:
        """Model inputs, from a text with the chat template's mark in place of each picture."""
        mark = family_class(self.kind).placeholder.removeprefix("<|vision_start|>").removesuffix("<|vision_end|>")
        mark = f"<|vision_start|>{mark}<|vision_end|>" if self.kind.startswith("qwen") else mark
        text = "".join(part if isinstance(part, str) else mark for part in prompt) + CUR_ITEM
        images = [part for part in prompt if isinstance(part, Image.Image)] or None
        nested = [images] if images and self.kind == "mllama" else images
        # Mllama's processor writes BOS into the text itself
        return self.processor(images=nested, text=[text], return_tensors="pt", add_special_tokens=self.kind != "mllama")

    @torch.inference_mode()
    def state(self, prompt: Sequence[Image.Image | str]) -> torch.Tensor:
        """(hidden,) at the last token, by the model's plain forward."""
        return self.model.model(**self.inputs(prompt), use_cache=False).last_hidden_state[0, -1]


@pytest.fixture(scope="session", params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(corpus(), tmp_path_factory.mktemp("families") / request.param, seed=5, family=request.param)


@pytest.fixture(scope="session")
def mllm(folder: Path) -> MLLM:
    return load_mllm(folder)


@pytest.fixture(scope="session")
def headed(folder: Path) -> MLLM:
    return load_mllm(folder, with_head=True)


@pytest.fixture(scope="session")
def reference(folder: Path, mllm: MLLM) -> Reference:
    kind = folder.name
    model = family_class(kind).generation_class.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    add_cur_item(model, tokenizer, kind)
    images = family_class(kind).image_processor_class.from_pretrained(folder)
    return Reference(kind, model, PROCESSORS[kind](images, tokenizer))


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# --- inputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_tokens_and_pixels_are_those_of_transformers_processor(
    mllm: MLLM, reference: Reference, prompt: list[Image.Image | str]
) -> None:
    expected = reference.inputs(prompt)
    item = prepared(mllm, prompt)
    assert item.ids.tolist() == expected["input_ids"][0].tolist()
    batch = mllm.family.collate([item], CPU)
    if reference.kind in PADDED and "pixel_values" in batch:
        counts = [len(image.pixels) for image in item.images]  # theirs is padded to the image with the most tiles
        batch["pixel_values"] = torch.nn.utils.rnn.pad_sequence(batch["pixel_values"].split(counts), batch_first=True)
    shared = expected.keys() & batch.keys() - {"input_ids"}
    assert {"pixel_values"} & expected.keys() <= shared
    for name in shared:
        close(batch[name].double(), expected[name].double(), atol=1e-6)


LARGE_GRIDS = [[384 * rows, 384 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "internvl": (
        {"size": {"height": 448, "width": 448}},
        {"vision_config.image_size": [448, 448]},
        {"crop_to_patches": True},
    ),
    "deepseek_vl": ({}, {"vision_config.image_size": 384, "vision_config.patch_size": 16}, {}),
    "mllama": ({"size": {"height": 560, "width": 560}}, {"vision_config.image_size": 560}, {}),
    "llava_next": (
        {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
        {
            "vision_config.image_size": 336,
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
        {},
    ),
    "llava_onevision": (
        {"image_grid_pinpoints": LARGE_GRIDS},
        {
            "vision_config.image_size": 384,
            "image_grid_pinpoints": LARGE_GRIDS,
            "vision_aspect_ratio": "anyres_max_9",
        },
        {},
    ),
    "gemma3": (
        {"size": {"height": 896, "width": 896}},
        {"vision_config.image_size": 896, "mm_tokens_per_image": 256},
        {},
    ),
    "idefics3": ({}, {"vision_config.image_size": 364}, {}),
    "smolvlm": (
        {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
        {"vision_config.image_size": 512, "vision_config.patch_size": 16, "scale_factor": 4},
        {},
    ),
}
"""Image settings, configuration and call of published checkpoints, whose tiles are larger than the tiny ones'."""


@pytest.mark.parametrize("kind", sorted(PUBLISHED))
def test_pixels_at_published_sizes(kind: str, tmp_path: Path) -> None:
    settings, changes, arguments = PUBLISHED[kind]
    mllm = load_mllm(build_tiny(corpus(), tmp_path / kind, family=kind))
    config, processor = mllm.model.config, mllm.family.image_processor_class(**settings)
    for name, value in changes.items():
        holder, _, field = name.rpartition(".")
        setattr(getattr(config, holder) if holder else config, field, value)
    family = family_class(kind)(config, processor, mllm.tokenizer)
    for size in ((640, 480), (333, 1777), (200, 90), (1000, 7)):
        image = picture(size[0], *size)
        item = family.prepare([image, [5]], family.max_pixels)
        pixels = processor([[image]] if kind == "mllama" else image, return_tensors="pt", **arguments)["pixel_values"]
        close(family.collate([item], CPU)["pixel_values"], pixels[0] if kind in PADDED else pixels, atol=1e-6)
        if kind == "llava_next":
            words = PROCESSORS[kind](processor, mllm.tokenizer)(images=image, text="<image>", return_tensors="pt")
            assert len(item.ids) - 1 == words["input_ids"].shape[1]
        assert len(item.ids) + item.patches <= family.image_cost(family.max_pixels) + 2


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_positions_of_several_images_are_those_of_get_rope_index(kind: str, tmp_path: Path) -> None:
    mllm = load_mllm(build_tiny(corpus(), tmp_path / kind, family=kind))
    items = [prepared(mllm, prompt) for prompt in PROMPTS]
    for side in ("right", "left"):
        batch = mllm.family.collate(items, CPU, side=side)
        real = torch.stack([torch.arange(batch["input_ids"].shape[1]) < len(item.ids) for item in items])
        real = real.flip(1) if side == "left" else real
        kinds = (batch["input_ids"] == mllm.model.config.image_token_id).int()
        expected, _ = mllm.model.get_rope_index(
            batch["input_ids"], kinds, batch["image_grid_thw"], attention_mask=real.long()
        )
        assert torch.equal(batch["position_ids"] * real, expected * real)
        assert int(batch["position_ids"].max()) > 10


def test_a_prompt_that_brings_bos_gets_no_second(mllm: MLLM) -> None:
    bos = mllm.family.bos_token_id
    unopened = ("qwen", "internvl", "llava_onevision", "idefics3", "smolvlm")
    assert (bos is None) == mllm.model.config.model_type.startswith(unopened)
    for parts in ([[5, 6]], [[], [bos], [5, 6]] if bos is not None else [[5], [], [6]]):
        expected = [5, 6] if bos is None else [bos, 5, 6]
        assert mllm.family.prepare(parts, 10**6).ids.tolist() == expected


@pytest.mark.parametrize("size", [(3000, 2), (1, 4000), (1, 1), (500, 40), (40, 500), (300, 300), (57, 55)])
def test_any_image_under_any_bound_is_within_its_cost(mllm: MLLM, size: tuple[int, int]) -> None:
    family, image = mllm.family, picture(9, *size)
    for bound in (family.least_pixels, 56 * 56, 3 * 56 * 56, family.max_pixels):
        item = family.prepare([image, [5]], bound)
        assert item.patches > 0
        assert len(item.ids) - 1 - (family.bos_token_id is not None) + item.patches <= family.image_cost(bound)
        with torch.inference_mode():
            assert torch.isfinite(mllm.last_hidden_states([item])).all()


SMALL_SIZES = [(76, 19), (19, 304), (93, 32), (120, 11), (383, 4), (999, 4), (29, 449), (5000, 1), (1, 1), (27, 57)]


@pytest.mark.parametrize("least", [1, 4, 16])
@pytest.mark.parametrize("bound", [1, 2, 4, 9, 16, 50])
def test_a_small_image_that_is_enlarged_is_within_its_cost(mllm: MLLM, monkeypatch, least: int, bound: int) -> None:
    """Both sides are rounded up, so that one of 4 tokens may have 10: (76, 19) comes out a little above 4 x 1."""
    family = mllm.family
    token = family.least_pixels if hasattr(family, "min_pixels") else 28 * 28
    monkeypatch.setattr(family, "min_pixels", least * token, raising=False)
    cut = [family.cut(picture(3, *size), max(bound * token, family.least_pixels)) for size in SMALL_SIZES]
    worst = max(len(image.ids) + image.patches for image in cut)
    assert worst <= family.image_cost(max(bound * token, family.least_pixels))


@pytest.mark.parametrize(("tokens", "size", "most"), [(4, (76, 19), 10), (16, (304, 19), 34)])
def test_the_cost_of_enlarged_images_is_reached(tmp_path: Path, tokens: int, size: tuple[int, int], most: int) -> None:
    family = load_mllm(build_tiny(corpus(), tmp_path / "qwen", family="qwen2_vl")).family
    family.min_pixels = bound = tokens * family.least_pixels
    image = family.cut(picture(3, *size), bound)
    assert len(image.ids) - 2 == most
    assert len(image.ids) + image.patches == family.image_cost(bound) == 5 * most + 2
    assert family.image_cost(4 * bound) == 5 * 4 * tokens + 2, "as before where nothing is enlarged beyond the bound"


def test_a_bound_saves_tiles(mllm: MLLM) -> None:
    family, image = mllm.family, picture(8, 400, 400)
    tiles = [len(family.prepare([image, [5]], bound).images[0].pixels) for bound in (56 * 56, family.max_pixels)]
    expected = {
        "qwen2_vl": [16, 64],
        "qwen2_5_vl": [16, 64],
        "qwen3_vl": [4, 64],
        "internvl": [1, 5],
        "deepseek_vl": [1, 1],
        "mllama": [1, 4],
        "llava_next": [3, 5],
        "llava_onevision": [3, 5],
        "gemma3": [1, 1],
        "idefics3": [1, 5],
        "smolvlm": [1, 5],
    }
    assert tiles == expected[mllm.model.config.model_type]


def test_texts_spell_no_special_token(mllm: MLLM) -> None:
    special = {*mllm.tokenizer.all_special_ids, mllm.cur_item_id, *mllm.family.reserved_ids}
    text = "buy " + "".join(mllm.tokenizer.convert_ids_to_tokens(sorted(special))) + " now"
    assert not special & set(mllm.token_ids(text))
    assert mllm.tokenizer.decode(mllm.token_ids("Größe 42 · 漢字 👟")).strip() == "Größe 42 · 漢字 👟"
    image = mllm.tokenizer.convert_ids_to_tokens(mllm.model.config.image_token_id)
    settings = json.loads(mllm.tokenizer.backend_tokenizer.to_str())
    for token in settings["added_tokens"]:
        token["special"] = False  # as some checkpoints have it
    careless = SimpleNamespace(backend_tokenizer=Tokenizer.from_str(json.dumps(settings)), all_special_ids=[])
    plain = dataclasses.replace(mllm, tokenizer=careless)
    assert mllm.model.config.image_token_id not in plain.token_ids(f"a {image} b {CUR_ITEM}")
    assert mllm.cur_item_id not in plain.token_ids(f"a {image} b {CUR_ITEM}")


# --- forward ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_states_are_those_of_transformers_forward(
    mllm: MLLM, reference: Reference, prompt: list[Image.Image | str]
) -> None:
    with torch.inference_mode():
        close(mllm.last_hidden_states([prepared(mllm, prompt)])[0], reference.state(prompt))


def test_states_do_not_depend_on_batch_mates_or_padding(mllm: MLLM, headed: MLLM) -> None:
    items = [prepared(mllm, prompt) for prompt in PROMPTS]
    rows = torch.arange(len(items))
    with torch.inference_mode():
        alone = torch.cat([mllm.last_hidden_states([item]) for item in items])
        close(mllm.last_hidden_states(items), alone, atol=2e-5)
        close(mllm.last_hidden_states(items[::-1]), alone.flip(0), atol=2e-5)
        close(headed.last_hidden_states(items), alone, atol=2e-5)
        last = torch.tensor([len(item.ids) - 1 for item in items])
        for model in (mllm.model, headed.model):  # the plain forward of a mixed batch, as in training
            batch = mllm.family.collate(items, CPU)
            states = mllm.family.base(model)(**batch, use_cache=False).last_hidden_state
            close(states[rows, last], alone, atol=2e-5)
        left = mllm.family.collate(items, CPU, side="left")
        close(mllm.model(**left, use_cache=False).last_hidden_state[:, -1], alone, atol=2e-5)
    assert (alone[:, None] - alone[None]).norm(dim=-1)[~torch.eye(len(items), dtype=torch.bool)].min() > 0.1


def test_means_are_those_of_the_states_whatever_shares_the_batch(mllm: MLLM) -> None:
    items = [prepared(mllm, prompt) for prompt in PROMPTS]
    with torch.inference_mode():
        for skipped in (0, 1):
            together = mllm.mean_hidden_states(items, skipped)
            for item, mean in zip(items, together):
                batch = mllm.family.collate([item], CPU)
                states = mllm.family.base(mllm.model)(**batch, use_cache=False).last_hidden_state[0]
                close(mean, states[skipped:].mean(0), atol=2e-5)


def test_logits_are_those_of_the_whole_model(headed: MLLM) -> None:
    batch = headed.family.collate([prepared(headed, PROMPTS[3])], CPU)
    with torch.inference_mode():
        states = headed.family.base(headed.model)(**batch, use_cache=False).last_hidden_state[0]
        close(headed.family.logits(headed.model, states), headed.model(**batch, use_cache=False).logits[0], atol=1e-5)


def test_first_layers_read_items_and_histories_alike(mllm: MLLM) -> None:
    cut, stack, present = mllm.first_layers(1, "x"), mllm.text_stack(1), len(mllm.family.decoder(mllm.model).layers)
    assert [len(each.layers) for each in (cut.family.decoder(cut.model), stack.decoder)] == [1, 1]
    items = [prepared(mllm, prompt) for prompt in PROMPTS]
    text = prepared(mllm, ["a red shoe"])
    ids = torch.from_numpy(text.ids)[None]
    length = ids.shape[1]
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    with torch.inference_mode():
        words = mllm.model.get_input_embeddings()(ids)
        read = stack(words, causal, torch.arange(length)[None]).last_hidden_state[0, -1]
        close(read, cut.last_hidden_states([text])[0], atol=1e-5)
        close(cut.last_hidden_states(items), torch.cat([cut.last_hidden_states([item]) for item in items]), atol=1e-5)
        whole = mllm.last_hidden_states(items)
        close(mllm.first_layers(present, "x").last_hidden_states(items), whole, atol=1e-6)
        assert (cut.last_hidden_states(items) - whole).abs().max() > 1e-3
    for asked in (0, present + 1):
        with pytest.raises(ConfigError, match=f"x: the LLM has {present} layers; give 1 to {present}, or null"):
            mllm.text_stack(asked, "x")


def test_half_precision_is_near(folder: Path, mllm: MLLM) -> None:
    items = [prepared(mllm, prompt) for prompt in PROMPTS]
    half = load_mllm(folder, dtype="bfloat16")
    with torch.inference_mode():
        exact = mllm.last_hidden_states(items)
        distance = (half.last_hidden_states(items).float() - exact).abs().max()
    assert 0 < distance < 0.1 * exact.abs().max()


def test_generating_goes_on_as_a_longer_prompt_would(headed: MLLM) -> None:
    """Left-padded batches go straight into `generate`; every word is the one that the whole prompt asks for."""
    prompts = [PROMPTS[index] for index in (0, 1, 3, 6)]
    parts = [parts_of(headed, prompt) for prompt in prompts]
    family, model = headed.family, headed.model
    batch = family.collate([family.prepare(each, family.max_pixels) for each in parts], CPU, side="left")
    with torch.inference_mode():
        model.generation_config.eos_token_id = None
        written = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, batch["input_ids"].shape[1] :]
        for row, each in enumerate(parts):
            said: list[int] = []
            for word in written[row].tolist():
                longer = family.prepare([*each, said], family.max_pixels)
                logits = model.get_output_embeddings()(headed.last_hidden_states([longer]))[0]
                assert float(logits.max() - logits[word]) < 1e-4
                said.append(word)


@pytest.mark.parametrize(("image", "text"), [(WIDE, "a red shoe"), (TALL, None), (None, "a golden lamp")])
def test_items_are_encoded(mllm: MLLM, reference: Reference, image: Image.Image | None, text: str | None) -> None:
    """Eq. (1) of Molar through the encoder, against the processor and the plain forward."""

    @dataclasses.dataclass
    class Record:
        item_id: str
        text: str | None
        image: Image.Image | None

    encoder = ItemEncoder(mllm, tokens_per_batch=600, threads=1)
    asked = f"\n{encoder.prompt.instruction(image is not None, text is not None)}"
    if reference.kind == "llava_next" and text:  # its tokenizer puts a blank before each piece of text
        words = [*mllm.token_ids(text), *mllm.token_ids(asked)]
        item = encoder.prepare(Record("a", text, image))
        assert item is not None
        assert item.ids[-len(words) - 1 : -1].tolist() == words
    else:
        vector = encoder.encode([Record("a", text, image)])[0]
        close(torch.from_numpy(vector), reference.state([*([image] if image else []), f"{text or ''}{asked}"]))
    records = [Record("a", text, image), Record("b", "now", SMALL), Record("c", None, WIDE), Record("d", "then", None)]
    together = encoder.encode(records)
    singly = np.concatenate([encoder.encode([record]) for record in records])
    np.testing.assert_allclose(together, singly, rtol=0, atol=1e-5)


# --- the text stack --------------------------------------------------------------------------------------------------


def test_text_stack_computes_what_the_decoder_does_of_text(folder: Path, mllm: MLLM) -> None:
    ids = torch.tensor([mllm.token_ids("a red shoe is now a golden lamp")])
    length = ids.shape[1]
    with torch.inference_mode():
        expected = mllm.model(input_ids=ids, use_cache=False).last_hidden_state
        vectors = mllm.model.get_input_embeddings()(ids)
        causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        for loaded in (mllm, load_mllm(folder, attention="eager"), load_mllm(folder, with_head=True)):
            stack = loaded.text_stack()
            close(stack(vectors, causal, torch.arange(length)[None]).last_hidden_state, expected, atol=1e-5)
            shifted = stack(vectors, causal, 2 * torch.arange(length)[None]).last_hidden_state
            assert (shifted - expected).abs().max() > 1e-2  # positions are read
            seen = stack(vectors, torch.ones_like(causal), torch.arange(length)[None]).last_hidden_state
            assert (seen - expected).abs().max() > 1e-2  # and so is the mask


def test_text_stack_is_a_lean_copy_that_can_be_trained(mllm: MLLM) -> None:
    stack = mllm.text_stack()
    words = mllm.model.get_input_embeddings().num_embeddings
    assert all(words not in weight.shape for weight in stack.parameters())
    assert not [name for name in stack.state_dict() if "embed" in name or "cross" in name]
    before = {name: weight.clone() for name, weight in mllm.model.named_parameters()}
    vectors = torch.randn(2, 4, stack.hidden_size, generator=torch.Generator().manual_seed(2), requires_grad=True)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    stack.train()(vectors, mask, torch.arange(4).expand(2, -1)).last_hidden_state.pow(3).mean().backward()
    assert vectors.grad is not None
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in stack.parameters())
    torch.optim.SGD(stack.parameters(), lr=0.1).step()
    assert all(torch.equal(weight, before[name]) for name, weight in mllm.model.named_parameters())


# --- the tiny models -------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_tiny_models_are_small_and_in_the_hugging_face_layout(folder: Path, mllm: MLLM, tmp_path: Path) -> None:
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= files
    assert {"preprocessor_config.json", "generation_config.json", "chat_template.jinja"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    assert mllm.model.config.model_type == folder.name
    assert mllm.model.config.architectures == [family_class(folder.name).generation_class.__name__]
    again = build_tiny(corpus(), tmp_path / "again", seed=5, family=folder.name)
    assert contents(again) == contents(folder)
    letters = np.random.default_rng(0).choice(list("abcdefghij"), (15_000, 6))
    full = build_tiny([" ".join(map("".join, letters))], tmp_path / "full", family=folder.name)
    assert 1_000_000 <= sum(weight.numel() for weight in load_file(full / "model.safetensors").values()) <= 3_000_000
    assert len(load_mllm(full).tokenizer) == 4096 + 1


def test_chat_template_shows_images_as_the_family_says(mllm: MLLM) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A shoe."},
    ]
    shown = mllm.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    before, behind = shown.split(mllm.family.placeholder)
    assert "What is it?" in behind
    assert behind.index("What is it?") < behind.index("A shoe.")
    bos = mllm.tokenizer.bos_token
    written = mllm.family.bos_token_id is not None or bos == "<|im_start|>"  # this one, the template alone writes
    assert before.count(bos or "no such token") == written


def test_there_is_no_tiny_model_of_an_unknown_family(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no tiny model of type 'gpt2'; choose one of deepseek_vl, gemma3"):
        build_tiny(["a"], tmp_path / "tiny", family="gpt2")
    assert not list(tmp_path.iterdir())


# --- [Cur_Item], saving ----------------------------------------------------------------------------------------------


def test_cur_item_has_the_mean_rows(headed: MLLM, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    before = len(AutoTokenizer.from_pretrained(folder))
    assert len(headed.tokenizer) == before + 1
    assert CUR_ITEM in headed.tokenizer.all_special_tokens
    [words] = [weight for name, weight in weights.items() if "embed_tokens" in name]
    row = headed.model.get_input_embeddings().weight[headed.cur_item_id]
    close(row.detach(), words[:before].double().mean(0).float(), atol=0)
    heads = [weight for name, weight in weights.items() if "lm_head" in name]
    known = headed.model.get_output_embeddings().weight
    if heads and headed.cur_item_id < len(known):
        close(known[headed.cur_item_id].detach(), heads[0][:before].double().mean(0).float(), atol=0)
    assert bool(heads) == (headed.model.config.model_type not in TIED)  # both kinds are among the tiny models


def test_saved_models_load_by_path_with_what_they_learnt(mllm: MLLM, headed: MLLM, tmp_path: Path) -> None:
    items = [prepared(mllm, prompt) for prompt in PROMPTS[:4]]
    for name, model in (("base", mllm), ("head", headed)):
        model.save(tmp_path / name)
        loaded = load_mllm(tmp_path / name, with_head=name == "head")
        assert loaded.cur_item_id == model.cur_item_id
        assert len(loaded.tokenizer) == len(model.tokenizer)
        with torch.inference_mode():
            close(loaded.last_hidden_states(items), model.last_hidden_states(items), atol=0)
        moved = shutil.copytree(tmp_path / name, tmp_path / f"{name} moved")
        assert load_mllm(moved).identity == loaded.identity != model.identity
    tied = headed.model.config.model_type in TIED
    if not tied:
        with pytest.raises(ModelLoadError, match=r"weights lack 1 tensors that the model needs, e\.g\. lm_head"):
            load_mllm(tmp_path / "base", with_head=True)


def test_a_larger_vocabulary_is_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    mllm = load_mllm(folder, with_head=True)
    mllm.tokenizer.add_tokens([f"[new {index}]" for index in range(20)])
    resize_vocabulary(mllm.model, len(mllm.tokenizer))
    item = prepared(mllm, PROMPTS[0])
    mllm.save(tmp_path / "larger")
    loaded = load_mllm(tmp_path / "larger", with_head=True)
    assert loaded.model.get_input_embeddings().num_embeddings == len(mllm.tokenizer)
    with torch.inference_mode():
        close(loaded.last_hidden_states([item]), mllm.last_hidden_states([item]), atol=0)
        expected = mllm.model(**mllm.family.collate([item], CPU)).logits
        close(loaded.model(**loaded.family.collate([item], CPU)).logits, expected, atol=0)
