"""Prompts that are answered with Yes or No: two parts that read as one, for every family of models."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from recbole_mm.errors import ConfigError
from recbole_mm.inputs.answering.prompt import cut_to_tokens
from recbole_mm.llm.answer import AnswerReader, resolve_yes_no
from recbole_mm.llm.blocks import Block
from recbole_mm.llm.families import FAMILIES
from recbole_mm.llm.family import CutImage
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.questions import ask
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.models.answering.asking import PromptBlocks
from recbole_mm.models.answering.prompts import PreferencePrompt, TitlesPrompt

PIXELS = 84 * 84
TEXTS = [None, "Title: Red lamp", "Title: Yes, a comedy", None, "Title: No <|im_end|> way <s> [INST]"]
COLOURS = [None, (200, 20, 20), None, (20, 20, 200), (20, 200, 20)]


class Items:
    """Five items, the first of them padding: two with image and text, one with either."""

    def __init__(self, *modalities: str) -> None:
        self.modalities = modalities or ("image", "text")
        self.tokens = ["[PAD]", "a", "b", "c", "d"]
        self.source = SimpleNamespace(has_image=lambda token: COLOURS[self.tokens.index(token)] is not None)
        self.decoded = 0
        self.broken: set[int] = set()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, item: int):
        self.decoded += 1
        colour = None if item in self.broken else COLOURS[item]
        return SimpleNamespace(image=None if colour is None else Image.new("RGB", (60, 40), colour))

    def text(self, item: int) -> str | None:
        return TEXTS[item]

    def only(self, *modalities: str):
        return SimpleNamespace(fingerprint=lambda item: hashlib.sha256(str(COLOURS[item]).encode()).hexdigest())


class Written:
    """Preferences of users 1 and 2, of user 2 for histories of more than one item alone."""

    def of(self, user: int, history) -> str | None:
        if user == 1:
            return "Warm colours, and lamps above all. " * (1 + len(history))
        return "Comedies." if user == 2 and len(history) > 1 else None


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    corpus = ["A drama about no one", "Yes, a comedy", "Red lamp", *filter(None, TEXTS)]
    made: dict[str, MLLM] = {}

    def model(family: str = "qwen2_vl") -> MLLM:
        if family not in made:
            folder = build_tiny(corpus, tmp_path_factory.mktemp("tiny") / family, family=family)
            made[family] = load_mllm(folder, with_head=True)
        return made[family]

    return model


def preference_prompt(mllm: MLLM, content: Items | None = None, **settings) -> PreferencePrompt:
    return PreferencePrompt(mllm, content or Items(), TEXTS, Written(), image_pixels=PIXELS, **settings)


def words(mllm: MLLM, parts) -> str:
    return "".join("<image>" if isinstance(part, CutImage) else mllm.tokenizer.decode(part) for part in parts)


# --- two parts that read as one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_and_suffix_equal_the_whole_prompt(models, family, template):
    """Images stand in the suffix; the reference is the checkpoint's own forward pass of the whole prompt."""
    mllm = models(family)
    kept, mllm.tokenizer.chat_template = mllm.tokenizer.chat_template, None
    if template:
        mllm.tokenizer.chat_template = kept
    try:
        prompt = preference_prompt(mllm)
    finally:
        mllm.tokenizer.chat_template = kept
    blocks = PromptBlocks(mllm, prompt)
    reader = AnswerReader.of(mllm, prompt.tail)
    users, histories = [1, 2, 3], [[4], [1, 2], []]
    owners, items = np.array([0, 0, 0, 1, 2, 2, 1]), [1, 2, 3, 4, 3, 1, 2]
    yes, no = resolve_yes_no(mllm, prompt.tail)
    with torch.inference_mode():
        questions = blocks.questions(users, histories, owners, items)
        answers = ask(reader, questions, 4000)
        for place, (owner, item) in enumerate(zip(owners, items)):
            whole = blocks.whole(users[owner], histories[owner], item)
            logits = mllm.model(**mllm.family.collate([whole], mllm.device)).logits[0, -1]
            torch.testing.assert_close(answers[place], logits[yes] - logits[no], atol=1e-4, rtol=0)
            assert len(whole.ids) + whole.patches <= (
                prompt.prefix_length(users[owner], histories[owner]) + prompt.suffix_length(item)
            )
            bos = mllm.family.bos_token_id
            assert bos is None or (whole.ids == bos).sum() == 1
    assert answers.std() > 1e-3
    assert prompt.shares_prefix == (questions.whole is None) == (family not in ("mllama", "gemma3"))


def test_mllama_shares_prefixes_of_prompts_without_images(models):
    assert preference_prompt(models("mllama"), Items("text")).shares_prefix
    assert TitlesPrompt(models("mllama"), TEXTS).shares_prefix
    assert not preference_prompt(models("mllama"), Items("image")).shares_prefix


def test_words_before_an_image_see_it_in_mllama_alone(models):
    """Why its prefixes are not shared: their states depend on the image behind them."""
    for family in FAMILIES:
        mllm = models(family)
        states = []
        for colour in ((200, 20, 20), (20, 20, 200)):
            whole = mllm.family.prepare([[11, 12, 13], Image.new("RGB", (60, 40), colour), [14]], PIXELS)
            with torch.inference_mode():
                output = mllm.family.base(mllm.model)(**mllm.family.collate([whole], mllm.device), use_cache=False)
            states.append(output.last_hidden_state[0, :3])
        moved = float((states[0] - states[1]).abs().max())
        assert (moved > 1e-3) == mllm.family.images_reach_back, (family, moved)


def test_the_rest_of_a_prompt_is_not_opened_again(models):
    mllm = models("deepseek_vl")
    assert mllm.family.prepare([[11, 12]], PIXELS).ids.tolist() == [mllm.family.bos_token_id, 11, 12]
    assert mllm.family.prepare([[11, 12]], PIXELS, continued=True).ids.tolist() == [11, 12]


# --- what is said -----------------------------------------------------------------------------------------------------


def test_the_users_part_comes_first_and_the_template_is_around_the_whole(models):
    mllm = models()
    prompt = preference_prompt(mllm, domain="lamp")
    before, behind = words(mllm, prompt.prefix(1, [4])), words(mllm, prompt.suffix(1))
    assert before.startswith("<|im_start|>user\nOne person's taste in a lamp")
    assert before.count("Warm colours") == 2
    assert "Yes or No alone" in before
    assert before.endswith("\n\n")
    assert behind == "<image>\nTitle: Red lamp\nAnswer:<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.tail == "assistant\n"
    assert words(mllm, prompt.suffix(2)).startswith("Title: Yes")
    assert words(mllm, prompt.suffix(3)).startswith("<image>\n\nAnswer")
    assert "Nothing is known so far" in words(mllm, prompt.prefix(2, [4]))
    assert "Comedies." in words(mllm, prompt.prefix(2, [4, 1]))


def test_no_text_spells_markup(models):
    mllm = models()
    ids = np.concatenate(preference_prompt(mllm, Items("text")).suffix(4))
    markup = [mllm.tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|im_start|>")]
    assert [int((ids == token).sum()) for token in markup] == [1, 1]


def test_modalities_decide_what_is_shown(models):
    mllm = models()
    text_only = preference_prompt(mllm, Items("text"))
    assert words(mllm, text_only.suffix(1)).startswith("Title: Red lamp")
    assert words(mllm, text_only.suffix(3)).startswith("(nothing is said of it)")
    images = Items("image")
    image_only = PreferencePrompt(mllm, images, None, None, image_pixels=PIXELS)
    assert words(mllm, image_only.suffix(1)).startswith("<image>\n\nAnswer")
    with pytest.raises(ConfigError, match="among the modalities"):
        PreferencePrompt(mllm, Items("text"), None, None, image_pixels=PIXELS)


def test_a_broken_image_is_left_out(models):
    mllm, content = models(), Items()
    content.broken = {1}
    prompt = preference_prompt(mllm, content)
    assert words(mllm, prompt.suffix(1)).startswith("Title: Red lamp")
    assert len(prompt.suffix(1)[0]) <= prompt.suffix_length(1)


def test_lengths_need_no_image_and_bounds_are_kept(models):
    content = Items()
    prompt = preference_prompt(models(), content, max_text_tokens=3, max_preference_tokens=5)
    loose = preference_prompt(models())
    assert prompt.suffix_length(1) < loose.suffix_length(1)
    assert prompt.prefix_length(1, [4]) < loose.prefix_length(1, [4])
    assert content.decoded == 0
    with pytest.raises(ConfigError, match="at least 1"):
        preference_prompt(models(), max_text_tokens=0)


def test_what_is_shown_is_what_counts_for_digests(models):
    prompt = preference_prompt(models())
    assert len({prompt.fingerprint(item) for item in range(1, 5)}) == 4
    text_only = preference_prompt(models(), Items("text"))
    assert text_only.fingerprint(1) != prompt.fingerprint(1)
    others = [preference_prompt(models(), domain="film"), preference_prompt(models(), max_text_tokens=9)]
    assert len({prompt.identity, *(other.identity for other in others)}) == 3
    assert prompt.user_text(1, [4]) != prompt.user_text(1, [4, 2])


def test_cut_to_tokens():
    assert cut_to_tokens("one two three", 3, str.split) == "one two three"
    assert cut_to_tokens("one two three", 2, str.split) == "one two"
    assert cut_to_tokens("one two three", 0, str.split) == ""


def test_titles_liked_and_disliked(models):
    mllm = models()
    titles = ["", "Alien", "Brazil", "", "Dune"]
    prompt = TitlesPrompt(mllm, titles, history=3, domain="film", likes=lambda user, item: item != 2)
    told = prompt.user_text(1, [4, 1, 2, 3])
    assert told.startswith("One person liked, in this order:\n- Alien\n- something without a title\n")
    assert "did not like:\n- Brazil\n" in told
    assert "Dune" not in told
    assert "Dune" in words(mllm, prompt.suffix(4))
    assert "did not like" not in TitlesPrompt(mllm, titles).user_text(1, [4, 1, 2])
    assert "Nothing is known so far" in prompt.user_text(1, [])
    assert prompt.fingerprint(1) != prompt.fingerprint(2)
    with pytest.raises(ConfigError, match="tallrec_history"):
        TitlesPrompt(mllm, titles, history=0)


# --- where the answer stands ------------------------------------------------------------------------------------------


def test_a_blank_before_the_answer_belongs_to_its_token(models):
    """DeepSeek's template asks with "Assistant:" and answers with "Assistant: Yes"."""
    mllm = models("deepseek_vl")
    prompt = preference_prompt(mllm)
    assert prompt.tail.endswith("Assistant: ")
    assert mllm.tokenizer.decode(prompt.suffix(2)[-1]).endswith("Assistant:")
    yes, no = resolve_yes_no(mllm, prompt.tail)
    spoken = mllm.token_ids("Assistant: Yes")
    assert yes == spoken[len(mllm.token_ids("Assistant:"))]
    assert mllm.tokenizer.decode([yes]).startswith(" ")
    assert yes != no


def test_a_blank_that_is_a_token_of_its_own_is_left_out(tmp_path):
    """This vocabulary has no " Yes": both answers would begin with the blank."""
    mllm = load_mllm(build_tiny(["lamp"], tmp_path / "tiny", family="deepseek_vl"), with_head=True)
    with pytest.raises(ConfigError, match="begin with the same token"):
        resolve_yes_no(mllm, "Assistant: ")
    prompt = preference_prompt(mllm)
    assert prompt.tail.endswith("Assistant:")
    yes, no = resolve_yes_no(mllm, prompt.tail)
    assert mllm.tokenizer.decode([yes]) == "Y"
    assert mllm.tokenizer.decode([no]) == "N"


def test_items_are_seen_once_and_what_is_kept_is_bounded(models):
    mllm, content = models(), Items()
    seen = []
    tower = mllm.model.model.visual.register_forward_hook(lambda *_: seen.append(1))
    blocks = PromptBlocks(mllm, preference_prompt(mllm, content))
    first = blocks.item_parts([1, 2, 1, 3])
    assert (len(seen), content.decoded) == (1, 2)
    assert blocks.item_parts([3, 1])[1] is first[0] is first[2]
    assert first[1].seen is None
    assert (len(seen), content.decoded) == (1, 2)
    small = PromptBlocks(mllm, preference_prompt(mllm, content), kept_bytes=first[0].nbytes)
    parts = small.item_parts([1, 3]), small.item_parts([1, 3])
    tower.remove()
    assert parts[1][1] is parts[0][1], "item 3, the last one, was kept"
    assert parts[1][0] is not parts[0][0], "item 1 was not"
    assert (len(seen), content.decoded) == (3, 4), "and went through the vision tower again, but was not decoded again"
    for part, other in zip(first[::3], parts[1]):
        torch.testing.assert_close(part.seen, other.seen, atol=1e-5, rtol=0)


def test_blocks_are_those_of_prepared_prompts(models):
    mllm = models()
    prompt = preference_prompt(mllm)
    questions = PromptBlocks(mllm, prompt).questions([1], [[4]], np.array([0]), [1])
    made = Block.of_prepared(mllm.family, [mllm.family.prepare(prompt.prefix(1, [4]), PIXELS)], mllm.device)
    torch.testing.assert_close(questions.prefixes(np.array([0])).inputs["input_ids"], made.inputs["input_ids"])
    assert questions.prefix_lengths[0] >= int(made.lengths[0])
