"""MLLM-MSR: its answers against whole prompts, the items of a first stage, written answers, nothing done twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

import recbole_mm
from recbole_mm.artifacts.executor import Failure
from recbole_mm.data import sharing
from recbole_mm.data.content_source import ContentSource
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.answering import tuning
from recbole_mm.inputs.reasoning import writing
from recbole_mm.llm.answer import AnswerReader, resolve_yes_no
from recbole_mm.models.answering.model import FROZEN
from recbole_mm.models.mllmmsr import MLLMMSR
from recbole_mm.registry import find_model
from recbole_mm.training.factory import make_trainer
from tests.asking import builder
from tests.conftest import TOY_SETTINGS

QUICK = {
    "sft_tuning": "none",
    "mllm_image_pixels": 28 * 28 * 2,
    "first_stage_config": {"epochs": 1},
    "rerank_k": 6,
    "preference_words": 20,
}


built = builder("MLLM-MSR", QUICK)


def cases(outcome, count: int = 8) -> Interaction:
    return outcome.splits.test.users.interaction[np.arange(count)]


def asked(outcome, rows, items) -> Interaction:
    fields = outcome.splits.test.users.interaction[rows].interaction
    return Interaction({**fields, "item_id": torch.as_tensor(items)})


def whole_prompts(outcome, rows, items) -> torch.Tensor:
    """p(yes) / (p(yes) + p(no)) by the model with its head, told each prompt as a whole."""
    model, mllm = outcome.model, outcome.dataset.inputs.mllm
    batch = outcome.splits.test.users.interaction[rows]
    yes_no = list(resolve_yes_no(mllm, model.prompt.tail))
    found = []
    for row, item in enumerate(items):
        history = model.histories(batch)[row]
        parts = [*model.prompt.prefix(int(batch["user_id"][row]), history), *model.prompt.suffix(int(item))]
        prepared = mllm.family.prepare(parts, QUICK["mllm_image_pixels"])
        with torch.no_grad():
            logits = mllm.model(**mllm.family.collate([prepared], mllm.device)).logits[0, -1]
        p = logits.double().softmax(-1)[yes_no]
        found.append(p[0] / p.sum())
    return torch.stack(found)


# -------------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("settings", [{}, {"preference": "direct"}, {"preference": "none", "modalities": ["image"]}])
def test_any_pair_is_answered_as_its_whole_prompt(built, settings):
    outcome = built(**settings)
    rows, items = np.repeat(np.arange(3), 4), [1, 7, 20, 40] * 3
    with torch.no_grad():
        found = outcome.model.predict(asked(outcome, rows, items))
    torch.testing.assert_close(found, whole_prompts(outcome, rows, items), atol=1e-4, rtol=0)
    assert found.std() > 1e-3


def test_the_best_of_the_first_stage_are_answered_as_whole_prompts_and_stand_above(built):
    outcome = built()
    with torch.no_grad():
        table = outcome.model.full_sort_predict(cases(outcome))
        plain = outcome.model.first_stage.scores(cases(outcome))
    assert ((table >= 0).sum(1) == 6).all()
    rows, items = (table >= 0).nonzero(as_tuple=True)
    expected = whole_prompts(outcome, rows[:12].numpy(), items[:12].numpy())
    torch.testing.assert_close(table[rows[:12], items[:12]], expected, atol=1e-4, rtol=0)
    for row in range(len(table)):
        rest = (table[row] < 0).nonzero().flatten()
        assert rest[table[row, rest].argsort()].tolist() == rest[plain[row, rest].argsort()].tolist()


def test_the_preference_matters(built):
    """Of the user with this history, and of no other."""
    outcome = built()
    told = [outcome.model.prompt.user_text(user, outcome.model.histories(cases(outcome))[user - 1]) for user in (1, 2)]
    assert "taste" in told[0]
    assert told[0] != told[1]
    rows = cases(outcome, 2)
    swapped = Interaction({**rows.interaction, "user_id": rows["user_id"].flip(0)})
    pairs = [Interaction({**each.interaction, "item_id": torch.tensor([3, 3])}) for each in (rows, swapped)]
    with torch.no_grad():
        assert not torch.equal(*(outcome.model.predict(pair) for pair in pairs))


def test_every_item_is_asked_about_without_a_first_stage(built):
    outcome = built(first_stage="none", rerank_k=None, first_stage_config={}, preference="none")
    assert outcome.model.first_stage is None
    rows = cases(outcome, 2)
    with torch.no_grad():
        table = outcome.model.full_sort_predict(rows)
    for row, history in enumerate(outcome.model.histories(rows)):
        free = sorted(set(range(1, 41)) - set(history.tolist()))
        assert (table[row] >= 0).nonzero().flatten().tolist() == free


def test_a_prefix_is_read_once_and_an_image_decoded_once(built, monkeypatch):
    outcome = built()
    read, decoded = [], []
    prefix, image = AnswerReader.read_prefix, ContentSource.image
    monkeypatch.setattr(AnswerReader, "read_prefix", lambda self, b: read.append(len(b.lengths)) or prefix(self, b))
    monkeypatch.setattr(ContentSource, "image", lambda self, item: decoded.append(item) or image(self, item))
    items = [1, 2, 3, 4, 5] * 8
    with torch.no_grad():
        for _ in range(2):
            outcome.model.predict(asked(outcome, np.repeat(np.arange(8), 5), items))
    assert sum(read) == 2 * 8
    assert len(decoded) == 5


# ------------------------------------------------------------------------------------------------------ fine-tuned


def test_nothing_of_the_llm_is_saved_and_nothing_is_trained(toy_path, saved):
    settings = {**TOY_SETTINGS, **QUICK, "sft_tuning": "lora", "sft_examples": 4, "sft_epochs": 1, "epochs": 3}
    settings |= {"data_path": str(toy_path), "checkpoint_dir": str(saved)}
    outcome = recbole_mm.run("mllm_msr", "toy", config_dict=settings)
    assert (outcome.run_dir / "model.safetensors").stat().st_size < 2000
    assert outcome.model.state_dict() == {}
    assert any(name.startswith(FROZEN) for name, _ in outcome.model.named_parameters())
    assert outcome.test_result["recall@10"] > 0
    again = recbole_mm.load(outcome.run_dir)
    assert again.beside == outcome.beside
    with torch.no_grad():
        tables = [run.model.full_sort_predict(cases(again)) for run in (outcome, again)]
    torch.testing.assert_close(*tables, atol=1e-6, rtol=0)  # images went through the vision tower in other batches


def test_a_first_run_reads_the_data_once(toy_path, tmp_path, monkeypatch):
    """Its first stage, Pop and itself share one dataset."""
    read, original = [], sharing.create_dataset
    monkeypatch.setattr(sharing, "create_dataset", lambda config: read.append(config["model"]) or original(config))
    settings = {**TOY_SETTINGS, "epochs": 1, "data_path": str(toy_path), "checkpoint_dir": str(tmp_path), **QUICK}
    outcome = recbole_mm.run("MLLM-MSR", "toy", config_dict=settings)
    assert set(outcome.beside) == {"SASRec (first stage)", "Pop"}
    assert read == ["SASRec"]


def test_fine_tuning_changes_the_answers(built):
    runs = [built(sft_tuning="lora", sft_examples=8, sft_learning_rate=1e-2), built()]
    with torch.no_grad():
        tuned, plain = (run.model.predict(asked(run, np.arange(4), [1, 2, 3, 4])) for run in runs)
    assert (tuned - plain).abs().max() > 1e-3


def test_epochs_read_no_batch(built, tmp_path, monkeypatch):
    outcome = built()
    trainer = make_trainer(outcome.config, outcome.model, tmp_path / "run")
    monkeypatch.setattr(MLLMMSR, "calculate_loss", None)
    trainer.fit(outcome.splits.train, outcome.splits.valid)
    assert trainer.timings["steps"] == 0
    assert ["valid_score" in record for record in trainer.history] == [True]


# --------------------------------------------------------------------------------------------------------- written


class Writer:
    """Writes an answer by what the prompt asks about; counts what it is asked."""

    identity, makes = "a-writer", "answers"
    reads_images, longest_prompt = True, None

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.parameters: dict = {}

    def generate(self, requests):
        self.prompts += [request.prompt for request in requests]
        return [self._answer(request.prompt) for request in requests]

    def _answer(self, prompt: str):
        number = int(prompt.split("film number ")[-1].split()[0])
        said = ["Yes.", '```json\n{"answer": "No"}\n```', "I cannot tell.", Failure("the server is gone")]
        return said[number % 4]

    def count_tokens(self, text: str) -> int:
        return len(text.split())

    def close(self) -> None:
        pass


def test_written_answers_are_read_and_what_cannot_be_read_is_counted(built, monkeypatch, caplog):
    writer = Writer()
    monkeypatch.setattr(writing, "open_generator", lambda *_: writer)
    outcome = built(answers="written", text_backend="openai", preference="none", item_text="text", text_model="x")
    tokens = [str(token) for token in outcome.dataset.item_tokens()]
    items = [tokens.index(f"i{number}") for number in (4, 5, 6, 7)]
    writer.prompts.clear()
    with torch.no_grad(), caplog.at_level("WARNING"):
        found = outcome.model.predict(asked(outcome, np.zeros(4, dtype=int), items))
    assert found.tolist() == [1, 0, 0.5, 0.5]
    assert "answers: 2 of 4 so far cannot be read as Yes or No and count 0.5, such as 'I cannot tell.'" in caplog.text
    assert len(writer.prompts) == 4
    assert all(prompt.endswith("Answer:\n") and "Reply with Yes or No" in prompt for prompt in writer.prompts)
    with torch.no_grad():
        outcome.model.predict(asked(outcome, np.zeros(4, dtype=int), items))
    assert len(writer.prompts) == 5, "what is kept is not asked again; what failed is"


def test_written_answers_see_the_image(built, monkeypatch):
    monkeypatch.setattr(writing, "open_generator", lambda *_: Writer())
    outcome = built(answers="written", text_backend="openai", preference="none", item_text="text", text_model="x")
    request = outcome.model.question(1, [2, 3], 5)
    assert request.image().size == (32, 40)
    other = outcome.model.question(1, [2, 3], 6)
    assert request.image_hash != other.image_hash


# ------------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answers": "guessed"}, "answers: 'guessed' is not accepted; give one of scored, listed, written"),
        ({"answers": "written"}, "answers: written needs an LLM that writes: set text_backend to hf or openai"),
        ({"mllm_image_pixels": 100}, "mllm_image_pixels: 100 is less"),
        ({"modalities": []}, "modalities is empty; name image, text or both"),
        ({"answer_batch_tokens": 0}, "answer_batch_tokens: 0 is not accepted; give a whole number of at least 1"),
        ({"rerank_k": 0}, "rerank_k: 0 is not accepted; give a whole number of at least 1"),
        (
            {"first_stage": "none", "first_stage_config": {}},
            "first_stage: none leaves nobody to choose the rerank_k: 6",
        ),
    ],
)
def test_settings_that_cannot_be(built, settings, message):
    with pytest.raises(ConfigError, match=message) as raised:
        built(**settings)
    assert "\n" not in str(raised.value)


def test_there_is_no_loss(built):
    with pytest.raises(NotImplementedError, match="fine-tuned before the epochs"):
        built().model.calculate_loss(None)


@pytest.mark.parametrize("name", ["MLLM-MSR", "mllm-msr", "MLLMMSR", "mllm_msr"])
def test_it_is_found_as_the_paper_writes_it(name):
    assert find_model(name).load() is MLLMMSR


# --------------------------------------------------------------------------------- negatives of the first stage's top


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"first_stage": "none"}, "sft_negatives_from: first_stage needs a first_stage, and there is none"),
        ({"first_stage": None}, "sft_negatives_from: first_stage needs a first_stage, and there is none"),
        ({"rerank_k": None}, "sft_negatives_from: first_stage draws from the rerank_k best items: give a number"),
    ],
)
@pytest.mark.parametrize("model", ["MLLM-MSR", "TALLRec"])
def test_hard_negatives_need_a_top_to_come_from(toy_config, model, settings, message):
    given = {"sft_negatives_from": "first_stage", **settings}
    config = toy_config(model, **given)
    with pytest.raises(ConfigError, match=f"^{message}") as raised:
        config.model_class.requirements(config)
    assert "\n" not in str(raised.value)
    untuned = toy_config(model, **given, sft_tuning="none")
    assert "answering_mllm" in untuned.model_class.requirements(untuned), "nothing is drawn"


def test_unknown_sources_of_negatives_are_refused(toy_config):
    with pytest.raises(
        ConfigError, match=r"^sft_negatives_from: 'top' is not accepted; give one of uniform, first_sta"
    ):
        toy_config("MLLM-MSR", sft_negatives_from="top")


@pytest.mark.parametrize("first", ["SASRec", "BPR"])
def test_it_is_tuned_on_what_its_first_stage_ranks_first(built, monkeypatch, first):
    """Of a first stage of histories and of one of users: negatives are of its top, and nothing of the user's."""
    kept = []
    draw = tuning.training_questions
    monkeypatch.setattr(tuning, "training_questions", lambda *args: kept.append(draw(*args)) or kept[-1])
    settings = {"sft_tuning": "full", "sft_examples": 4, "sft_epochs": 1, "sft_negatives": 2, "max_text_tokens": 8}
    outcome = built(**settings, sft_negatives_from="first_stage", first_stage=first, preference="none")
    (asked_of,) = kept
    assert [one.answer for one in asked_of] == [True, False, False] * 4
    width, model = 10, outcome.model
    for one in asked_of:
        fields = {
            "user_id": torch.tensor([one.user]),
            "item_id_list": torch.tensor([[*one.history, *[0] * width][:width]]),
            "item_length": torch.tensor([len(one.history)]),
        }
        assert len(one.history) <= width
        scores = model.first_stage.scores(Interaction(fields))[0]
        own = model.known_items[model.known_offsets[one.user] : model.known_offsets[one.user + 1]]
        scores[own] = scores[0] = float("-inf")
        assert (one.item in own.tolist()) == one.answer
        assert one.answer or int((scores > scores[one.item]).sum()) < QUICK["rerank_k"]
