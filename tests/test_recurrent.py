"""Recurrent preference summaries: chains and prompts, the order of rounds, what is written again and what is not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recbole_mm.artifacts.store import Store
from recbole_mm.inputs.reasoning.prompts import PreferencePrompts, preference_prompt
from recbole_mm.inputs.reasoning.recurrent import Chains, ChainWriter, blocks_of_size, sessions
from tests.reasoning import RuleWriter

TEXTS = [None, *(f"Title: thing {n}\nColour: c{n}" for n in range(1, 200))]
CONTEXT = 4000


class Counting(RuleWriter):
    """Keeps how many requests came with each call."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.calls: list[int] = []

    def generate(self, requests):
        self.calls.append(len(requests))
        return super().generate(requests)


def prompts_of(generator, texts=None, context=CONTEXT, words=30) -> PreferencePrompts:
    return PreferencePrompts(TEXTS if texts is None else texts, "thing", words, generator, context)


def writer_of(store, generator, lengths, size=3, items=None, **options) -> ChainWriter:
    """`lengths`: user -> lengths of the histories asked about; a user's items are 1, 2, 3, ... unless given."""
    chains = Chains()
    for user, wanted in lengths.items():
        chains.add(user, blocks_of_size(max(wanted), size), wanted)
    own = items or {user: list(range(1, max(wanted) + 1)) for user, wanted in lengths.items()}
    prompts = options.pop("prompts", None) or prompts_of(generator)
    return ChainWriter(chains, own.__getitem__, prompts, 30, store, generator, **options)


def answer(prompt: str) -> str:
    from recbole_mm.llm.texts.generator import Request

    return RuleWriter()._answer(Request(prompt, None))


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store.sqlite") as opened:
        yield opened


# --- chains -----------------------------------------------------------------------------------------------------------


def test_blocks_and_sessions():
    assert blocks_of_size(6, 3) == [0, 3]
    assert blocks_of_size(0, 3) == []
    assert sessions(np.array([5.0, 5.0, 9.0, 9.1, 30.0]), 4.0) == [0, 4]
    assert sessions(np.array([5.0, 9.5]), 4.0) == [0, 1]
    assert sessions(np.array([]), 4.0) == []


def test_histories_of_a_user_share_their_whole_blocks():
    chains = Chains()
    chains.add(7, blocks_of_size(8, 3), [2, 6, 7, 8])
    assert chains.starts == {(7, 3): 0, (7, 6): 3, (7, 2): 0, (7, 7): 6, (7, 8): 6}
    assert chains.before((7, 7)) == (7, 6)
    assert chains.before((7, 2)) is None
    assert chains.after() == {(7, 3): [(7, 6)], (7, 6): [(7, 7), (7, 8)]}
    assert chains.remaining() == {(7, 3): 3, (7, 6): 2, (7, 2): 1, (7, 7): 1, (7, 8): 1}


def test_a_session_that_goes_on_after_the_history_is_not_read_to_its_end():
    chains = Chains()
    chains.add(1, sessions(np.array([0.0, 1.0, 100.0, 101.0, 102.0]), 10.0), [1, 2, 4])
    assert chains.starts == {(1, 2): 0, (1, 1): 0, (1, 4): 2}


# --- texts ------------------------------------------------------------------------------------------------------------


def test_each_text_is_made_of_its_block_and_the_text_before(store):
    generator = RuleWriter()
    written = writer_of(store, generator, {1: [8]}).write(show_progress=False)
    first = preference_prompt("thing", TEXTS[1:4], 0, 30)
    second = preference_prompt("thing", TEXTS[4:7], 0, 30, answer(first))
    third = preference_prompt("thing", TEXTS[7:9], 0, 30, answer(second))
    assert [request.prompt for request in generator.asked] == [first, second, third]
    assert written.texts == {(1, 3): answer(first), (1, 6): answer(second), (1, 8): answer(third)}
    assert "1. Title: thing 4; Colour: c4\n2. Title: thing 5" in second
    assert f"\n\n{answer(first)}\n\n" in second
    assert "at most 30 words" in second
    assert "known so far" not in first


def test_texts_are_cut_before_they_are_shown_again(store):
    class Chatty(RuleWriter):
        def _answer(self, request):
            return " ".join(f"w{n}" for n in range(90))

    generator = Chatty()
    written = writer_of(store, generator, {1: [6]}).write(show_progress=False)
    cut = " ".join(f"w{n}" for n in range(30))
    assert set(written.texts.values()) == {cut}
    assert f"\n\n{cut}\n\n" in generator.asked[1].prompt


def test_a_block_of_unknown_items_adds_nothing(store):
    texts = [None, "one", "two", "three", None, None, None, "seven"]
    generator = RuleWriter()
    written = writer_of(store, generator, {1: [7], 2: [2]}, items={1: [1, 2, 3, 4, 5, 6, 7], 2: [4, 5]},
                        prompts=prompts_of(generator, texts)).write(show_progress=False)  # fmt: skip
    assert set(written.texts) == {(1, 3), (1, 7)}
    assert written.texts[1, 3] in generator.asked[1].prompt, "the text before the unknown block goes on"


def test_a_prompt_keeps_to_the_context_with_the_newest_items(store):
    generator = RuleWriter()
    long = [None, *(" ".join(f"i{n}w{k}" for k in range(60)) for n in range(1, 7))]
    prompts = prompts_of(generator, long, context=290)
    made = prompts.of([1, 2, 3, 4, 5, 6])
    assert generator.count_tokens(made.request.prompt) + 64 <= 290
    assert made.items == (5, 6)
    assert made.cut == 4
    assert "(4 older ones are left out)" in made.request.prompt
    tight = prompts_of(generator, long, context=200).of([5, 6])
    assert generator.count_tokens(tight.request.prompt) + 64 <= 200
    assert tight.items == (6,)
    assert tight.cut == 2
    shown = next(line for line in tight.request.prompt.splitlines() if line.startswith("1. "))
    assert long[6].startswith(shown[3:])
    assert len(shown) > 40
    assert not shown.endswith("w")
    after = prompts_of(generator, long, context=290).of([1, 2, 3, 4, 5, 6], " ".join(["said"] * 30))
    assert generator.count_tokens(after.request.prompt) + 64 <= 290
    assert len(after.items) < len(made.items), "the text before takes room"


# --- rounds -----------------------------------------------------------------------------------------------------------


def test_a_long_chain_waits_for_nobody_and_rounds_stay_full(store):
    generator = Counting()
    lengths = {1: [30], **{user: [3] for user in range(2, 42)}}
    items = {user: [(user * 7 + n) % 190 + 1 for n in range(30)] for user in lengths}
    writer = writer_of(store, generator, lengths, items=items, least=5, most=5)
    written = writer.write(show_progress=False)
    assert len(written.texts) == 50
    assert generator.calls == [5] * 10, "ten blocks of one user, beside forty of others: not one call more than 50 / 5"
    chain = [place for place, request in enumerate(generator.asked) if request.prompt in chain_of(items[1])]
    assert [place // 5 for place in chain] == list(range(10)), "the long chain has a text in every round"


def chain_of(items: list[int]) -> list[str]:
    prompts: list[str] = []
    for start in range(0, len(items), 3):
        block = [TEXTS[item] for item in items[start : start + 3]]
        prompts.append(preference_prompt("thing", block, 0, 30, answer(prompts[-1]) if prompts else None))
    return prompts


def test_rounds_are_as_large_as_the_longest_chain_allows(store):
    generator = Counting()
    lengths = {user: [6] for user in range(1, 41)}
    items = {user: [user + n for n in range(6)] for user in lengths}
    writer_of(store, generator, lengths, items=items, least=4, most=1000).write(show_progress=False)
    assert generator.calls == [40, 40], "chains of two: everybody's first block, then everybody's second"
    again = Counting()
    writer_of(store, again, lengths, items=items, least=4, most=16).write(show_progress=False)
    assert again.calls == [], "and all of it is kept"


def test_users_with_the_same_history_share_their_texts(store):
    generator = Counting()
    written = writer_of(store, generator, {1: [6], 2: [6], 3: [6]}).write(show_progress=False)
    assert generator.calls == [1, 1]
    assert len({written.texts[user, 6] for user in (1, 2, 3)}) == 1
    assert (written.asked, written.computed) == (2, 2)


def test_an_empty_round_is_refused(store):
    with pytest.raises(ValueError, match="rounds of 0 to 3"):
        writer_of(store, RuleWriter(), {1: [3]}, least=0, most=3)


# --- what is written again --------------------------------------------------------------------------------------------


def test_a_new_interaction_writes_the_last_block_alone(store):
    items = {1: list(range(1, 20)), 2: list(range(101, 120))}
    writer_of(store, RuleWriter(), {1: [8], 2: [9]}, items=items).write(show_progress=False)
    generator = RuleWriter()
    written = writer_of(store, generator, {1: [9], 2: [10]}, items=items).write(show_progress=False)
    assert len(generator.asked) == 2
    assert {(1, 3), (1, 6), (1, 9), (2, 10)} <= set(written.texts)
    prompts = sorted(request.prompt for request in generator.asked)
    assert any("3. Title: thing 9;" in prompt for prompt in prompts), "one block grew"
    assert any("1. Title: thing 110;" in prompt for prompt in prompts), "one began"


def test_what_fails_has_its_reason_and_the_chain_goes_on_from_the_text_before(store):
    broken = RuleWriter(lambda prompt: "out of reach" if "thing 4;" in prompt else None)
    written = writer_of(store, broken, {1: [9]}).write(show_progress=False)
    assert written.failed == {(1, 6): "out of reach"}
    assert set(written.texts) == {(1, 3), (1, 9)}
    assert broken.asked[2].prompt == preference_prompt("thing", TEXTS[7:10], 0, 30, written.texts[1, 3])
    mended = RuleWriter()
    again = writer_of(store, mended, {1: [9]}).write(show_progress=False)
    assert len(mended.asked) == 2, "the block that failed, and the one that is made of it"
    assert not again.failed
    assert again.texts[1, 6] in mended.asked[1].prompt


def test_the_first_text_may_fail_too(store):
    broken = RuleWriter(lambda prompt: "no" if "thing 1;" in prompt else None)
    written = writer_of(store, broken, {1: [6]}).write(show_progress=False)
    assert written.texts == {(1, 6): answer(preference_prompt("thing", TEXTS[4:7], 0, 30))}


def test_what_was_left_out_is_not_asked_for(store):
    generator = RuleWriter()
    written = writer_of(store, generator, {1: [9]}, skipped={(1, 6)}).write(show_progress=False)
    assert not written.failed
    assert len(generator.asked) == 2
    assert generator.asked[1].prompt == preference_prompt("thing", TEXTS[7:10], 0, 30, written.texts[1, 3])


PROGRAM = """
import json, sys, time
from pathlib import Path
from recbole_mm.artifacts.store import Store
from tests.test_recurrent import LENGTHS, ITEMS, writer_of
from tests.reasoning import RuleWriter

class Logging(RuleWriter):
    def generate(self, requests):
        with open(sys.argv[2], "a") as log:
            for request in requests:
                log.write(json.dumps(request.prompt) + "\\n")
        if len(Path(sys.argv[2]).read_text().splitlines()) >= int(sys.argv[3]):
            print("PAUSED", flush=True)
            time.sleep(120)
        return super().generate(requests)

with Store(sys.argv[1]) as store:
    generator = Logging()
    written = writer_of(store, generator, LENGTHS, items=ITEMS, least=8, most=8).write(False)
    print(json.dumps(sorted([*node, text] for node, text in written.texts.items())), flush=True)
"""
LENGTHS = {user: [int(length)] for user, length in enumerate(np.random.default_rng(3).integers(1, 40, 20), start=1)}
ITEMS = {user: np.random.default_rng(user).integers(1, 199, 40).tolist() for user in LENGTHS}


def test_killed_and_resumed_nothing_is_written_again_but_the_batch_in_flight(tmp_path, store):
    straight = writer_of(store, RuleWriter(), LENGTHS, items=ITEMS).write(show_progress=False)
    log = tmp_path / "log"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "killed.sqlite"), str(log)]
    where = Path(__file__).parents[1]
    process = subprocess.Popen([*command, "60"], stdout=subprocess.PIPE, text=True, cwd=where)
    assert process.stdout.readline() == "PAUSED\n"
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    process.stdout.close()
    before = [json.loads(line) for line in log.read_text().splitlines()]
    assert 60 <= len(before) < len(straight.texts)
    resumed = subprocess.run([*command, "100000"], stdout=subprocess.PIPE, text=True, cwd=where, check=True)
    after = [json.loads(line) for line in log.read_text().splitlines()][len(before) :]
    assert set(before) & set(after) == set(before[-8:]), "the eight that were with the generator"
    assert len(set(before) | set(after)) == len(set(before)) + len(set(after)) - 8
    assert len(after) == len(set(after))
    assert json.loads(resumed.stdout) == sorted([*node, text] for node, text in straight.texts.items())
