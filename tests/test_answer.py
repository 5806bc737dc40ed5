"""Yes and no of a multimodal LLM: the tokens, the score, and candidates that share a prefix, against the plain way."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.llm.answer import AnswerReader, answer_contrast, resolve_yes_no
from recbole_mm.llm.blocks import Block, fill_placeholders, padded
from recbole_mm.llm.families import FAMILIES
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.questions import Questions, ask, batches_of_like_length
from recbole_mm.llm.tiny import build_tiny

TAIL = "Answer:\n"
PIXELS = 56 * 56


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return build_tiny(["A drama about no one", "Yes, a comedy"], tmp_path_factory.mktemp("tiny") / "model", seed=1)


@pytest.fixture(scope="module")
def mllm(folder):
    return load_mllm(folder, with_head=True)


@pytest.fixture(scope="module")
def reader(mllm):
    return AnswerReader.of(mllm, TAIL, mllm.family.decoder(mllm.model))


def random_ids(count: int, seed: int, least: int = 3, most: int = 30) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(10, 250, size=rng.integers(least, most)) for _ in range(count)]


def block(mllm, rows) -> Block:
    ids, lengths = padded(rows, 0, "cpu")
    return Block.of_vectors(mllm.model.get_input_embeddings()(ids), lengths)


def questions(mllm, prefixes, suffixes, owners) -> Questions:
    return Questions(
        np.array([len(row) for row in prefixes]),
        np.array([len(row) for row in suffixes]),
        np.asarray(owners),
        lambda rows: block(mllm, [prefixes[row] for row in rows]),
        lambda rows: block(mllm, [suffixes[row] for row in rows]),
    )


# ---------------------------------------------------------------------------------------------------------- the tokens


def test_answers_are_resolved_where_they_stand(mllm):
    yes, no = resolve_yes_no(mllm, TAIL)
    tail = mllm.token_ids(TAIL)
    assert mllm.token_ids(f"{TAIL}Yes")[: len(tail) + 1] == [*tail, yes]
    assert mllm.token_ids(f"{TAIL}No")[: len(tail) + 1] == [*tail, no]
    assert yes != no


def tokenizer(**encoded):
    """An MLLM whose tokenizer gives `encoded[word]` behind the tail [1, 2]."""
    ids = {"tail\n": [1, 2], **{f"tail\n{word}": value for word, value in encoded.items()}}
    return SimpleNamespace(name="some model", token_ids=ids.__getitem__)


def test_the_first_token_behind_the_tail_counts():
    assert resolve_yes_no(tokenizer(Yes=[1, 2, 7, 8], No=[1, 2, 9]), "tail\n") == (7, 9)


@pytest.mark.parametrize(
    ("encoded", "message"),
    [
        ({"Yes": [1, 2, 5, 7], "No": [1, 2, 5, 8]}, "begin with the same token 5"),
        ({"Yes": [1, 3], "No": [1, 2, 8]}, "'Yes' is no token of its own"),  # merged with the tail's last token
        ({"Yes": [1, 2, 7], "No": [1, 2]}, "'No' is no token of its own"),
    ],
)
def test_answers_that_cannot_be_told_apart_are_refused(encoded, message):
    with pytest.raises(ConfigError, match=message) as raised:
        resolve_yes_no(tokenizer(**encoded), "tail\n")
    assert "\n" not in str(raised.value).replace("\\n", "")


def test_contrast_needs_a_head(folder):
    headless = load_mllm(folder)
    with pytest.raises(ModelLoadError, match="without its language-model head"):
        answer_contrast(headless, *resolve_yes_no(headless, TAIL))


# ----------------------------------------------------------------------------------------------------------- one prompt


def test_score_is_the_share_of_yes_among_both(mllm, reader):
    prompts = random_ids(4, seed=0)
    yes, no = resolve_yes_no(mllm, TAIL)
    with torch.no_grad():
        score = reader.read(block(mllm, prompts)).sigmoid()
        for row, ids in enumerate(prompts):
            logits = mllm.model(input_ids=torch.from_numpy(ids)[None]).logits[0, -1]
            p = logits.softmax(-1)
            torch.testing.assert_close(score[row], p[yes] / (p[yes] + p[no]), atol=1e-5, rtol=1e-4)
    assert score.std() > 0


# -------------------------------------------------------------------------------------------------------- shared prefix


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_candidates_behind_a_prefix_equal_whole_prompts(folder, attention):
    mllm = load_mllm(folder, with_head=True, attention=attention)
    reader = AnswerReader.of(mllm, TAIL, mllm.family.decoder(mllm.model))
    prefixes, suffixes = random_ids(3, seed=1), random_ids(11, seed=2, most=9)
    owners = np.array([2, 0, 1, 1, 0, 2, 2, 2, 0, 1, 0])
    with torch.inference_mode():
        prefix = reader.read_prefix(block(mllm, prefixes))
        read = reader.read_after(prefix, torch.from_numpy(owners), block(mllm, suffixes))
        whole = reader.read(block(mllm, [np.concatenate([prefixes[u], s]) for u, s in zip(owners, suffixes)]))
    torch.testing.assert_close(read, whole, atol=1e-4, rtol=0)
    assert whole.std() > 0.1


def test_vectors_at_placeholders_equal_whole_prompts(mllm, reader):
    """Prompts of words and of vectors that are no words, in prefix and suffix."""
    place, hidden = mllm.cur_item_id, mllm.hidden_size
    vectors = torch.randn(6, hidden, generator=torch.Generator().manual_seed(3))
    prefix, suffixes = [20, 21, place, 22, place], [[30, place, 31], [place], [32, 33, 34, place, 35, 36], [37, place]]

    def mixed(rows, given):
        ids, lengths = padded([np.array(row) for row in rows], 0, "cpu")
        words = mllm.model.get_input_embeddings()(ids)
        return Block.of_vectors(fill_placeholders(words, ids == place, given), lengths)

    with torch.inference_mode():
        shared = reader.read_prefix(mixed([prefix], vectors[:2]))
        read = reader.read_after(shared, torch.zeros(4, dtype=torch.int64), mixed(suffixes, vectors[2:]))
        both = torch.cat([torch.stack([vectors[0], vectors[1], row]) for row in vectors[2:]])
        whole = reader.read(mixed([[*prefix, *suffix] for suffix in suffixes], both))
        other = reader.read(mixed([[*prefix, *suffix] for suffix in suffixes], both + 1))
    torch.testing.assert_close(read, whole, atol=1e-4, rtol=0)
    assert (whole - other).abs().min() > 1e-3, "the vectors must matter"


def test_images_in_prefix_and_suffix_equal_whole_prompts(mllm):
    reader = AnswerReader.of(mllm, TAIL)
    wide, high = Image.new("RGB", (112, 56), (200, 30, 30)), Image.new("RGB", (28, 84), (10, 60, 200))
    before = [[wide, [11, 12, 13]], [[14, 15], high, [16]]]
    behind = [[[17], high, [18, 19]], [[20, 21, 22]], [wide, [23]]]
    owners = [1, 0, 1]

    def prepared(prompts):
        inputs = [mllm.family.prepare(parts, PIXELS) for parts in prompts]
        return Block.of_prepared(mllm.family, inputs, mllm.device)

    with torch.inference_mode():
        prefix = reader.read_prefix(prepared(before))
        read = reader.read_after(prefix, torch.tensor(owners), prepared(behind))
        prompts = [before[owner] + parts for owner, parts in zip(owners, behind)]
        states = mllm.last_hidden_states([mllm.family.prepare(parts, PIXELS) for parts in prompts])
    torch.testing.assert_close(read, states @ reader.contrast, atol=1e-4, rtol=0)
    torch.testing.assert_close(reader.read(prepared(prompts)), read, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen2_vl"])
def test_other_families_share_prefixes_too(family, tmp_path):
    mllm = load_mllm(build_tiny(["A drama", "Yes, a comedy"], tmp_path / "model", family=family), with_head=True)
    reader = AnswerReader.of(mllm, TAIL, mllm.family.decoder(mllm.model))
    prefixes, suffixes, owners = random_ids(2, seed=1), random_ids(3, seed=2, most=9), [1, 0, 1]
    with torch.inference_mode():
        prefix = reader.read_prefix(block(mllm, prefixes))
        read = reader.read_after(prefix, torch.tensor(owners), block(mllm, suffixes))
        whole = reader.read(block(mllm, [np.concatenate([prefixes[u], s]) for u, s in zip(owners, suffixes)]))
    torch.testing.assert_close(read, whole, atol=1e-4, rtol=0)
    assert whole.std() > 0.01


def test_images_behind_cross_attention_are_not_gone_on_from(tmp_path):
    mllm = load_mllm(build_tiny(["A drama"], tmp_path / "model", family="mllama"), with_head=True)
    reader = AnswerReader.of(mllm, TAIL)
    prompt = mllm.family.prepare([Image.new("RGB", (56, 56)), [11, 12]], PIXELS)
    pictured = Block.of_prepared(mllm.family, [prompt], mllm.device)
    with torch.inference_mode():
        torch.testing.assert_close(
            reader.read(pictured), mllm.last_hidden_states([prompt]) @ reader.contrast, atol=1e-4, rtol=0
        )
    with pytest.raises(ValueError, match="read them whole"):
        reader.read_prefix(pictured)


def test_gradients_through_a_shared_prefix_are_those_of_whole_prompts(mllm, reader):
    rows = [np.arange(10, 16), np.arange(40, 43), np.arange(50, 54)]
    words = [block(mllm, [row]).inputs["inputs_embeds"].detach().requires_grad_() for row in rows]

    def at(parts):
        return Block.of_vectors(torch.cat(parts, 1), torch.tensor([sum(part.shape[1] for part in parts)]))

    prefix = reader.read_prefix(at(words[:1]))
    zero = torch.zeros(1, dtype=torch.int64)
    shared = [reader.read_after(prefix, zero, at([suffix])) for suffix in words[1:]]
    found = torch.autograd.grad(shared[0].sum() - 2 * shared[1].sum(), words)
    whole = [reader.read(at([words[0], suffix])) for suffix in words[1:]]
    expected = torch.autograd.grad(whole[0].sum() - 2 * whole[1].sum(), words)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert expected[0].abs().max() > 1e-3


# ------------------------------------------------------------------------------------------------------- many questions


def test_every_prefix_runs_once_and_batches_stay_within_the_budget(mllm, reader, monkeypatch):
    prefixes, suffixes = random_ids(7, seed=4), random_ids(60, seed=5, most=12)
    owners = np.random.default_rng(6).choice([0, 1, 3, 4, 6], size=60)
    ran: list[tuple[str, int, int]] = []
    original = AnswerReader._run

    def watched(self, block, positions, cache, mask):
        batch, width = positions.shape
        held = width if mask is None else mask.shape[-1]
        ran.append(("prefix" if mask is None else "suffix", batch, batch * held))
        return original(self, block, positions, cache, mask)

    monkeypatch.setattr(AnswerReader, "_run", watched)
    with torch.inference_mode():
        answers = ask(reader, questions(mllm, prefixes, suffixes, owners), tokens_per_batch=200)
    assert sum(batch for kind, batch, _ in ran if kind == "prefix") == len(set(owners)) == 5
    assert sum(batch for kind, batch, _ in ran if kind == "suffix") == 60
    assert len(ran) > 6
    assert max(held for *_, held in ran) <= 200
    monkeypatch.undo()
    with torch.inference_mode():
        whole = reader.read(block(mllm, [np.concatenate([prefixes[u], s]) for u, s in zip(owners, suffixes)]))
    torch.testing.assert_close(answers, whole, atol=1e-4, rtol=0)


def test_a_budget_below_one_prompt_still_answers(mllm, reader):
    prefixes, suffixes, owners = random_ids(2, seed=7), random_ids(4, seed=8), [1, 0, 1, 1]
    with torch.inference_mode():
        small, large = (ask(reader, questions(mllm, prefixes, suffixes, owners), budget) for budget in (1, 10_000))
    torch.testing.assert_close(small, large, atol=1e-4, rtol=0)


def test_no_question_no_answer(mllm, reader):
    assert ask(reader, questions(mllm, random_ids(2, seed=9), [], np.zeros(0, dtype=np.int64)), 100).shape == (0,)


def test_batches_cover_all_rows_longest_first():
    lengths = np.array([3, 9, 1, 4, 4, 20])
    batches = list(batches_of_like_length(lengths, tokens=12, extra=2))
    assert [lengths[batch].tolist() for batch in batches] == [[20], [9], [4, 4], [3, 1]]
    assert sorted(np.concatenate(batches)) == list(range(6))


def test_padded_rows():
    table, lengths = padded([np.array([5, 6]), np.array([7])], 9, "cpu")
    assert table.tolist() == [[5, 6], [7, 9]]
    assert lengths.tolist() == [2, 1]


@pytest.mark.parametrize("given", [1, 3])
def test_vectors_must_match_placeholders(given):
    with pytest.raises(ValueError, match=f"{given} vectors for 2 placeholders"):
        fill_placeholders(torch.zeros(1, 4, 8), torch.tensor([[True, False, False, True]]), torch.zeros(given, 8))
