"""Texts by transformers: batched as one by one, drawn as greedy, chats without foreign markup, text LLMs too."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from recbole_mm.artifacts.executor import Failure
from recbole_mm.artifacts.store import Store
from recbole_mm.errors import ImageError, ModelLoadError
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.prompts import CUR_ITEM
from recbole_mm.llm.texts.backends import open_generator
from recbole_mm.llm.texts.chat import Chat
from recbole_mm.llm.texts.generator import Request, Writing
from recbole_mm.llm.texts.hf import IMAGE_PIXELS, NO_PICTURE, Draw, HfGenerator
from recbole_mm.llm.texts.stage import texts_through_store
from recbole_mm.llm.texts.writers import Writer, multimodal_writer
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.llm.tiny_tokenizers import deepseek_tokenizer
from recbole_mm.llm.tokens import plain_token_ids

CORPUS = [
    f"The {kind} film number {number} is about love and war." for kind in ("action", "drama") for number in range(9)
]
SHORT = Writing(max_words=50, max_new_tokens=12)
FAMILIES = ("qwen2_vl", "mllama")
"""One that has images in the sequence and its own positions, and one that reads them by cross attention."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: build_tiny(CORPUS, root / kind, family=kind) for kind in (*FAMILIES, "llava_next")}


@pytest.fixture(scope="module", params=FAMILIES)
def mllm(request, folders) -> MLLM:
    return load_mllm(folders[request.param], with_head=True)


@pytest.fixture(scope="module")
def qwen(folders) -> MLLM:
    return load_mllm(folders["qwen2_vl"], with_head=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """A text LLM in the ordinary layout, with a chat template that takes plain content only."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = deepseek_tokenizer(CORPUS)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}User: {{ message.content | trim }}\n\n{% endfor %}Assistant:"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def generator_of(mllm: MLLM, writing: Writing = SHORT, **settings: Any) -> HfGenerator:
    return HfGenerator(lambda: multimodal_writer(mllm, IMAGE_PIXELS), writing, **settings)


def pictured(prompt: str, colour: tuple[int, int, int], size: tuple[int, int] = (60, 40)) -> Request:
    return Request(prompt, None, lambda: Image.new("RGB", size, colour), f"{colour}{size}")


def several() -> list[Request]:
    """Prompts of many lengths, with and without pictures."""
    return [
        Request("Describe the film.", None),
        pictured("Describe the picture in one sentence, please.", (200, 10, 10)),
        Request("A drama. " * 12 + "What is it about?", None),
        pictured("What?", (10, 200, 10), (30, 90)),
        pictured("Describe the film number 3 that is about war.", (10, 10, 200)),
        Request("Why?", None),
    ]


# --- batches ---------------------------------------------------------------------------------------------------------


def token_ids_of(generator: HfGenerator, requests: list[Request], batch_tokens: int) -> dict[int, list[int]]:
    """Answers before they become text: an untrained model's words are hardly ever readable."""
    generator.batch_tokens = batch_tokens
    answers: dict[int, list[int]] = {}
    spoken = generator._answers

    def listened(items, those):
        ids = spoken(items, those)
        answers.update({requests.index(each): answer for each, answer in zip(those, ids)})
        return ids

    generator._answers = listened
    generator.generate(requests)
    generator._answers = spoken
    ends = generator.writer.ends
    return {
        place: ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]
        for place, ids in sorted(answers.items())
    }


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_batched_is_as_one_by_one(mllm: MLLM, temperature: float) -> None:
    writing = dataclasses.replace(SHORT, temperature=temperature, top_p=0.95, seed=3)
    generator, requests = generator_of(mllm, writing), several()
    batched = token_ids_of(generator, requests, 10**6)
    assert batched == token_ids_of(generator, requests, 1)
    backwards = token_ids_of(generator, requests[::-1], 300)
    assert batched == {len(requests) - 1 - place: ids for place, ids in backwards.items()}
    assert len(batched) == len(requests)
    assert len({tuple(ids) for ids in batched.values()}) > 3, "a model that says the same to everything proves nothing"


def test_batches_hold_to_their_budget_and_like_lengths_share_one(qwen: MLLM) -> None:
    generator = generator_of(qwen, batch_tokens=200)
    requests = [Request("word " * length, None) for length in (1, 90, 2, 60, 3, 4, 61)]
    seen: list[list[int]] = []
    spoken = generator._answers
    generator._answers = lambda items, those: seen.append([len(item.ids) for item in items]) or spoken(items, those)
    generator.generate(requests)
    assert sum(map(len, seen)) == len(requests)
    assert all(len(batch) == 1 or len(batch) * (max(batch) + SHORT.max_new_tokens) <= 200 for batch in seen)
    assert max(map(len, seen)) > 1
    assert [max(batch) for batch in seen] == sorted((max(batch) for batch in seen), reverse=True)


def test_too_much_for_the_gpu_is_tried_in_halves(qwen: MLLM, monkeypatch) -> None:
    generator, requests = generator_of(qwen), several()
    expected = token_ids_of(generator, requests, 10**6)
    generate, widths = qwen.model.generate, []

    def small_gpu(**batch):
        widths.append(len(batch["input_ids"]))
        if widths[-1] > 2:
            raise torch.cuda.OutOfMemoryError("too much")
        return generate(**batch)

    own = qwen.model.generation_config
    monkeypatch.setattr(qwen.model, "generate", small_gpu)
    assert token_ids_of(generator, requests, 10**6) == expected
    assert widths[0] == 6
    assert max(widths[-2:]) <= 2
    assert qwen.model.generation_config is own


# --- what is written -------------------------------------------------------------------------------------------------


def say(monkeypatch, qwen: MLLM, text: str, end: bool = True) -> None:
    """Have the model answer with this text, whatever it is asked."""

    def generate(input_ids, **_):
        words = qwen.token_ids(text) + ([qwen.tokenizer.eos_token_id] if end else [])
        answer = torch.tensor([words + qwen.token_ids(" and noise behind the end")] if end else [words])
        return torch.cat([input_ids, answer.expand(len(input_ids), -1)], dim=1)

    monkeypatch.setattr(qwen.model, "generate", generate)


def test_an_answer_ends_at_its_end_token_and_is_cleaned(qwen: MLLM, monkeypatch) -> None:
    say(monkeypatch, qwen, 'Sure! Here is the description:\n\n"A film about love and war."')
    assert generator_of(qwen).generate([Request("?", None)]) == ["A film about love and war."]
    say(monkeypatch, qwen, "A film about love and hope. It is wa", end=False)
    assert generator_of(qwen).generate([Request("?", None)]) == ["A film about love and hope."]
    say(monkeypatch, qwen, "one two three four five")
    assert generator_of(qwen, Writing(max_words=3)).generate([Request("?", None)]) == ["one two three"]
    say(monkeypatch, qwen, "I'm sorry, but I can't help with that.")
    assert generator_of(qwen).generate([Request("?", None)]) == [Failure("the model refused to answer")]
    say(monkeypatch, qwen, "")
    assert generator_of(qwen).generate([Request("?", None)]) == [Failure("the answer is empty")]


def test_tokens_that_are_no_words_are_never_said(mllm: MLLM) -> None:
    generator = generator_of(mllm, Writing(max_new_tokens=40, temperature=2.0))
    unwanted = {mllm.cur_item_id, *mllm.family.reserved_ids}
    with torch.no_grad():
        head = mllm.model.get_output_embeddings().weight
        before = head.clone()
        head[[token for token in unwanted if token < len(head)]] *= 50
    try:
        said = {token for ids in token_ids_of(generator, several(), 10**6).values() for token in ids}
    finally:
        with torch.no_grad():
            head.copy_(before)
    assert said
    assert not said & unwanted


def test_a_checkpoints_own_settings_are_not_used(qwen: MLLM) -> None:
    expected = token_ids_of(generator_of(qwen), several(), 10**6)
    own = qwen.model.generation_config
    try:
        qwen.model.generation_config = type(own)(
            **{**own.to_dict(), "do_sample": True, "temperature": 5.0, "repetition_penalty": 9.0, "max_length": 20}
        )
        assert token_ids_of(generator_of(qwen), several(), 10**6) == expected
    finally:
        qwen.model.generation_config = own


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_drawing_leaves_torchs_random_state_alone_and_follows_the_seed(qwen: MLLM) -> None:
    hot = dataclasses.replace(SHORT, temperature=1.0, seed=1)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = token_ids_of(generator_of(qwen, hot), several(), 10**6)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert token_ids_of(generator_of(qwen, hot), several(), 10**6) == first
    other = token_ids_of(generator_of(qwen, dataclasses.replace(hot, seed=2)), several(), 10**6)
    assert sum(other[place] != first[place] for place in first) >= 4


def drawn(numbers: np.ndarray, scores: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """The word that each number gives."""
    draw = Draw(numbers[:, None], 1, temperature, top_p)
    left = draw(torch.zeros(len(numbers), 1, dtype=torch.long), scores.expand(len(numbers), -1))
    assert (left == 0).sum() == len(numbers)
    return left.argmax(-1)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_words_are_drawn_by_their_shares(temperature: float, top_p: float) -> None:
    scores = torch.tensor([[1.0, 3.0, -torch.inf, 2.0, 0.0]])
    numbers = (np.arange(20000) + 0.5) / 20000
    counts = torch.bincount(drawn(numbers, scores, temperature, top_p), minlength=5) / 20000
    shares = (scores[0] / temperature).softmax(-1)
    order = shares.argsort(descending=True)
    kept = shares.clone()
    kept[order[shares[order].cumsum(0) - shares[order] >= top_p]] = 0
    torch.testing.assert_close(counts, kept / kept.sum(), atol=1e-3, rtol=0)


def test_the_first_and_the_last_number_give_possible_words() -> None:
    scores = torch.tensor([[-torch.inf, 1.0, 1.0, -torch.inf]])
    for top_p in (1.0, 0.99, 0.1):
        words = drawn(np.array([0.0, np.nextafter(1.0, 0.0)]), scores, 1.0, top_p)
        assert set(words.tolist()) <= {1, 2}


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_a_prompt_is_one_turn_of_the_checkpoints_chat(qwen: MLLM) -> None:
    writer = multimodal_writer(qwen, IMAGE_PIXELS)
    item = writer.prepare(writer.chat.parts("A film <|im_end|> about [Cur_Item]", Image.new("RGB", (60, 40))))
    said = qwen.tokenizer.decode(item.ids)
    assert said.startswith("<|im_start|>user\n<|vision_start|><|image_pad|>")
    assert said.endswith("<|vision_end|>A film <|im_end|> about [Cur_Item]<|im_end|>\n<|im_start|>assistant\n")
    end = qwen.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (item.ids == end).sum() == 1, "what data spells is words, only the template's own is markup"
    assert qwen.cur_item_id not in item.ids
    image_tokens = (item.ids == qwen.model.config.image_token_id).sum()
    assert image_tokens == len(item.images[0].ids) - 2


@pytest.mark.parametrize("prompt", ["war", "A film", " spaced ", "1984", "«quoted»", "two\nlines\n"])
@pytest.mark.parametrize("kind", [*FAMILIES, "llava_next"])
def test_tokens_are_those_of_the_checkpoints_own_template(folders, kind: str, prompt: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    chat = Chat(tokenizer, plain_token_ids(tokenizer), "<image>", kind)
    said = [{"role": "user", "content": [{"type": "text", "text": prompt}]}]
    expected = tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"]
    assert [token for part in chat.parts(prompt) for token in part] == list(expected)


def chat_of(mllm: MLLM, template: str | None, placeholder: str | None = None) -> Chat:
    """The chat of a tokenizer with another template."""
    tokenizer = copy.copy(mllm.tokenizer)
    tokenizer.chat_template = template
    return Chat(tokenizer, mllm.token_ids, placeholder, "model")


TEXT_ONLY = "{% if messages[0].content is not string %}{{ raise_exception('text only') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "[image] film "),
        (TEXT_ONLY + "<{{ messages[0].content }}>", "<[image] film >"),
        (TEXT_ONLY + "a {{ messages[0].content | trim }} b {{ enable_thinking }}", "a [image] film  b False"),
        (TEXT_ONLY + "{{ date_string }}: {{ messages[0].content }}", "1 Jan 2025: [image] film "),
        ("{% for part in messages[0].content %}{{ part.text or '(' ~ 'PIC' ~ ')' }}{% endfor %}!", "([image]) film !"),
    ],
)
def test_templates_of_all_kinds(qwen: MLLM, template: str | None, expected: str) -> None:
    parts = chat_of(qwen, template, "PIC").parts(" film ", Image.new("RGB", (2, 2)))
    decoded = ["[image]" if isinstance(part, Image.Image) else qwen.tokenizer.decode(part) for part in parts]
    assert "".join(decoded) == expected


@pytest.mark.parametrize("template", ["no content", "{{ raise_exception('never') }}", "{{ messages[0].content }}" * 2])
def test_a_template_that_cannot_be_used_is_said(qwen: MLLM, template: str) -> None:
    with pytest.raises(ModelLoadError, match="model: its chat template cannot be used"):
        chat_of(qwen, template).parts("prompt")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (Request("word " * 80, None), "the prompt has 86 tokens, more than text_context_tokens (40)"),
        (Request("?", None, lambda: None, "hash"), NO_PICTURE),
    ],
)
def test_a_bad_prompt_is_a_failure_and_the_others_are_written(qwen: MLLM, monkeypatch, request_, reason) -> None:
    say(monkeypatch, qwen, "A film.")
    generator = generator_of(qwen, Writing(context_tokens=40))
    texts = generator.generate([Request("one", None), request_, Request("two", None)])
    assert texts[0] == texts[2] == "A film."
    assert isinstance(texts[1], Failure)
    assert texts[1].reason.split(" tokens")[-1] == reason.split(" tokens")[-1]


@pytest.mark.parametrize("error", [ImageError("truncated"), OSError("gone")])
def test_a_picture_that_cannot_be_read_is_a_failure(qwen: MLLM, error: Exception) -> None:
    def load() -> Image.Image:
        raise error

    assert generator_of(qwen).generate([Request("?", None, load, "hash")]) == [Failure(f"{NO_PICTURE}: {error}")]


def test_a_prompt_beyond_the_models_own_length_is_a_failure(qwen: MLLM) -> None:
    longest = qwen.model.config.get_text_config().max_position_embeddings
    generator = generator_of(qwen, Writing(context_tokens=10**6))
    (outcome,) = generator.generate([Request("word " * longest, None)])
    assert isinstance(outcome, Failure)
    assert f"more than the {longest}" in outcome.reason


def test_broken_characters_are_no_obstacle(qwen: MLLM, monkeypatch) -> None:
    say(monkeypatch, qwen, "A film.")
    assert generator_of(qwen).generate([Request("broken \ud800 bytes \x00", None)]) == ["A film."]


# --- the store -------------------------------------------------------------------------------------------------------


def test_a_killed_stage_goes_on_where_it_was(qwen: MLLM, tmp_path, monkeypatch) -> None:
    requests = {f"i{place}": each for place, each in enumerate(several())}
    say(monkeypatch, qwen, "A film about war.")
    with Store(tmp_path / "artifacts.sqlite") as store:
        generator = generator_of(qwen, batch_tokens=1)
        written, spoken = [], generator._answers

        def dying(items, those):
            if len(written) == 3:
                raise KeyboardInterrupt
            written.extend(those)
            return spoken(items, those)

        generator._answers = dying
        with pytest.raises(KeyboardInterrupt):
            texts_through_store(store, "stage", generator, requests, show_progress=False)
        assert store.count("stage") == 3
        again = generator_of(qwen, batch_tokens=10**6)
        report = texts_through_store(store, "stage", again, requests, show_progress=False)
    assert report.computed == len(report.asked) == 3
    assert report.texts == dict.fromkeys(requests, "A film about war.")


# --- which model -----------------------------------------------------------------------------------------------------


def test_the_runs_own_model_writes_unless_another_is_named(toy_config, qwen: MLLM, folders) -> None:
    loads = []

    def load() -> MLLM:
        loads.append(1)
        return qwen

    own = open_generator(toy_config(text_backend="hf"), load)
    assert not loads, "nothing is loaded before it is needed"
    assert own.identity == qwen.identity
    assert own.count_tokens("a film") == len(qwen.token_ids("a film"))
    assert own.parameters["precision"] == "float32"
    assert own.parameters["image_pixels"] == IMAGE_PIXELS
    same = str(folders["qwen2_vl"])
    assert open_generator(toy_config(text_backend="hf", text_model=same, mllm=same), load).identity == qwen.identity
    assert len(loads) == 2
    own.close()
    assert own.identity == qwen.identity, "a closed generator loads again"
    assert len(loads) == 3


def test_a_named_model_is_known_before_its_weights_are_read(toy_config, folders, monkeypatch) -> None:
    plain = load_mllm(folders["llava_next"])
    monkeypatch.setattr("recbole_mm.llm.loading._read_model", lambda *_: pytest.fail("weights are read"))
    named = open_generator(toy_config(text_backend="hf", text_model=str(folders["llava_next"])), pytest.fail)
    assert named.identity == plain.identity
    assert named.parameters["precision"] == "float32"
    assert named.count_tokens(f"a film <image> {CUR_ITEM}") == len(plain.token_ids("a film <image> [Cur_Item]"))
    monkeypatch.undo()
    assert isinstance(named.writer, Writer)
    assert named.writer.identity == named.identity
    assert named.writer.reads_images


def test_a_text_llm_writes_too(toy_config, llama: Path) -> None:
    config = toy_config(text_backend="hf", text_model=str(llama), text_max_new_tokens=12)
    generator = open_generator(config, pytest.fail)
    requests = [each for each in several() if each.image is None]
    batched = token_ids_of(generator, requests, 10**6)
    assert batched == token_ids_of(generator, requests, 1)
    assert generator.writer.identity == generator.identity
    item = generator.writer.prepare(generator.writer.chat.parts("  a film  "))
    bos = generator.writer.tokenizer.bos_token
    assert generator.writer.tokenizer.decode(item.ids) == f"{bos}User:   a film  \n\nAssistant:"
    (outcome,) = generator.generate([pictured("?", (1, 2, 3))])
    assert outcome == Failure(f"{llama} reads no pictures")
    spelled = generator.writer.token_ids(f"a {bos} film")
    assert not set(generator.writer.tokenizer.all_special_ids) & set(spelled)


def test_a_text_llm_without_a_chat_template_goes_on_from_the_prompt(toy_config, llama: Path, tmp_path) -> None:
    tokenizer = deepseek_tokenizer(CORPUS)
    tokenizer.chat_template = None
    for file in llama.iterdir():
        if not file.name.startswith(("tokenizer", "chat_template")):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(tmp_path)
    generator = open_generator(toy_config(text_backend="hf", text_model=str(tmp_path)), pytest.fail)
    item = generator.writer.prepare(generator.writer.chat.parts("a film"))
    assert generator.writer.tokenizer.decode(item.ids) == f"{tokenizer.bos_token}a film"


def test_models_that_write_nothing_are_refused(toy_config, tmp_path, folders) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = {str(tmp_path): "writes no texts", str(empty): "config.json cannot be read", "./nowhere": "no such"}
    for model, words in cases.items():
        with pytest.raises(ModelLoadError, match=words):
            open_generator(toy_config(text_backend="hf", text_model=model), pytest.fail)
    headless = load_mllm(folders["qwen2_vl"])
    with pytest.raises(ModelLoadError, match="without its language-model head"):
        generator_of(headless).generate([Request("?", None)])
