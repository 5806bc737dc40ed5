"""The fine-tuned answering model of a run: found again, resumed, refused, and blind to what is held out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.errors import ConfigError, DataError, ModelLoadError
from recbole_mm.inputs.answering import tuning as tuning_module
from recbole_mm.inputs.answering.examples import PromptedQuestions
from recbole_mm.inputs.answering.tuning import SftSettings, training_questions
from recbole_mm.inputs.mllm import tiny_mllm
from recbole_mm.inputs.model_inputs import provide
from recbole_mm.llm.answer import AnswerReader, resolve_yes_no
from recbole_mm.llm.finetuning import examples as sft_module
from recbole_mm.llm.finetuning import finetune as finetune_module
from recbole_mm.llm.finetuning.examples import AnswerLoss, LengthGroupedBatches, words_to_learn
from recbole_mm.llm.finetuning.finetune import Tuning
from recbole_mm.llm.finetuning.trainer import AnswerTrainer
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.questions import ask
from recbole_mm.models.answering.asking import PromptBlocks
from recbole_mm.models.answering.prompts import PreferencePrompt
from recbole_mm.models.base import ModelHooks
from tests.conftest import TOY_SETTINGS, write_toy
from tests.test_mirm import rewrite

PIXELS = 56 * 56
QUICK = {
    "mllm": "tiny",
    "mllm_image_pixels": PIXELS,
    "max_text_tokens": 16,
    "sft_tuning": "full",
    "sft_targets": 1,
    "sft_examples": 6,
    "sft_epochs": 1,
    "sft_learning_rate": 1e-3,
    "max_tokens_per_batch": 2000,
    "sft_checkpoint_steps": 1,
}


class Titled(ModelHooks):
    """A model that is asked by item texts; what is said of users is the genre of their last item."""

    requires = ("answering_mllm",)

    @classmethod
    def build_prompt(cls, config, dataset, mllm):
        content = dataset.content
        texts = [content.text(item) for item in range(len(content))]
        return PreferencePrompt(
            mllm, content, texts, LastTitle(texts), image_pixels=PIXELS, max_text_tokens=config["max_text_tokens"]
        )


class LastTitle:
    def __init__(self, texts):
        self.texts = texts

    def of(self, user, history):
        return f"Things like {self.texts[history[-1]]}" if history else None


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"), users=20, items=20)


def provided(path: Path, folder: Path, model: str = "Molar", **settings):
    """A dataset that was given the tuned model."""
    config = config_of(path, folder, model, **settings)
    dataset = create_dataset(config)
    provide(config, dataset, Titled)
    return dataset


def config_of(path: Path, folder: Path, model: str = "Molar", **settings) -> Config:
    given = {**TOY_SETTINGS, "data_path": str(path), "checkpoint_dir": str(folder), **QUICK, **settings}
    return Config(model, "toy", config_dict=given)


def folders(folder: Path) -> list[Path]:
    return sorted((folder / "artifacts").glob("answering-*"))


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_tunes_once_and_reads_answers_of_the_tuned_model(toy, tmp_path, method, monkeypatch):
    settings = {"sft_tuning": method, "sft_learning_rate": 3e-3, "sft_epochs": 2}
    untuned = provided(toy, tmp_path, sft_tuning="none").inputs.mllm
    assert not folders(tmp_path)
    dataset = provided(toy, tmp_path, **settings)
    (folder,) = folders(tmp_path)
    assert dataset.inputs.mllm.name == str(folder)
    assert (folder / "adapter_config.json").is_file() == (method == "lora")
    notes = yaml.safe_load((folder / "answering.yaml").read_text())
    assert notes["examples_of"] == {"yes": 6, "no": 6}
    monkeypatch.setattr(finetune_module, "finetune", lambda *args: pytest.fail("tuned again"))
    loaded = []
    monkeypatch.setattr("recbole_mm.inputs.mllm.load_mllm", recorded(loaded))
    again = provided(toy, tmp_path, **settings)
    assert [name for name, outline in loaded if not outline] == [str(folder)], "the base model's weights were loaded"
    found = [answers(mllm, dataset) for mllm in (untuned, dataset.inputs.mllm, again.inputs.mllm)]
    assert (found[0] - found[1]).abs().max() > 1e-2
    torch.testing.assert_close(found[1], found[2], atol=0, rtol=0)


def recorded(calls: list):
    def load(name, **settings):
        calls.append((str(name), bool(settings.get("without_weights"))))
        return load_mllm(name, **settings)

    return load


def answers(mllm, dataset) -> torch.Tensor:
    """Of items 1 to 5 behind the history 6, 7."""
    prompt = Titled.build_prompt({"max_text_tokens": 16}, dataset, mllm)
    questions = PromptBlocks(mllm, prompt).questions([1], [[6, 7]], np.zeros(5, dtype=np.int64), [1, 2, 3, 4, 5])
    with torch.inference_mode():
        return ask(AnswerReader.of(mllm, prompt.tail), questions, 2000)


def test_fine_tuning_teaches_the_answers(toy, tmp_path):
    """Yes to what was chosen and No to what was drawn: the examples themselves are told apart afterwards."""
    settings = {"sft_examples": 4, "sft_epochs": 14, "sft_learning_rate": 1e-3, "max_tokens_per_batch": 600}
    dataset = provided(toy, tmp_path, **settings)
    asked = training_questions(dataset, SftSettings.of(config_of(toy, tmp_path, **settings)))
    positive = torch.tensor([one.answer for one in asked])
    margins = []
    for mllm in (load_mllm(next((tmp_path / "artifacts").glob("tiny-*")), with_head=True), dataset.inputs.mllm):
        prompt = Titled.build_prompt({"max_text_tokens": 16}, dataset, mllm)
        questions = PromptBlocks(mllm, prompt).questions(
            [one.user for one in asked],
            [one.history for one in asked],
            np.arange(len(asked)),
            [one.item for one in asked],
        )
        with torch.inference_mode():
            scores = ask(AnswerReader.of(mllm, prompt.tail), questions, 4000)
        margins.append(float(scores[positive].mean() - scores[~positive].mean()))
    assert margins[1] > 1
    assert abs(margins[0]) < 0.5


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_held_out_rows_change_neither_name_nor_weights(tmp_path):
    made = {}
    for name, held_out in (("as it is", None), ("held out", True), ("training", False)):
        path = write_toy(tmp_path / name / "data", users=20, items=20)
        if held_out is not None:
            rewrite(path, held_out)
        provided(path, tmp_path / name)
        (made[name],) = folders(tmp_path / name)
    assert made["as it is"].name == made["held out"].name != made["training"].name
    assert weights(made["as it is"]) == weights(made["held out"]) != weights(made["training"])


def test_the_name_holds_what_the_model_depends_on(toy, tmp_path, monkeypatch):
    names = []

    class Enough(Exception):
        pass

    def record(mllm, examples, tuning, folder, *args):
        names.append(folder.name)
        raise Enough

    monkeypatch.setattr(finetune_module, "finetune", record)
    same = ({}, {"sft_checkpoint_steps": 7}, {"sft_gradient_checkpointing": True})
    other = (
        {"sft_loss": "full"},
        {"sft_negatives": 2},
        {"sft_targets": 2},
        {"sft_examples": 5},
        {"sft_seed": 9},
        {"sft_learning_rate": 2e-3},
        {"max_text_tokens": 3},
        {"max_tokens_per_batch": 900},
        {"modalities": ["text"]},
        {"sft_tuning": "lora"},
        {"sft_tuning": "lora", "sft_lora": {"r": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}},
    )
    for changed in (*same, *other):
        with pytest.raises(Enough):
            provided(toy, tmp_path, **changed)
    assert len(set(names[: len(same)])) == 1
    assert len(set(names)) == 1 + len(other)


class Killed(BaseException):
    """Ends a training as abruptly as Python can end itself."""


def test_killed_and_resumed_equals_uninterrupted(toy, tmp_path, monkeypatch):
    settings = {"max_tokens_per_batch": 300, "sft_epochs": 2}
    provided(toy, tmp_path / "whole", **settings)
    steps: list[int] = []
    original = AnswerTrainer.training_step

    def dies(self, *args, **kwargs):
        if len(steps) == 4:
            raise Killed
        steps.append(self.state.global_step)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(AnswerTrainer, "training_step", dies)
        with pytest.raises(Killed):
            provided(toy, tmp_path / "killed", **settings)
    assert not folders(tmp_path / "killed")
    steps.clear()
    monkeypatch.setattr(
        AnswerTrainer,
        "training_step",
        lambda self, *args, **kwargs: steps.append(self.state.global_step) or original(self, *args, **kwargs),
    )
    provided(toy, tmp_path / "killed", **settings)
    assert steps[0] == 4, "it went on where the checkpoint was"
    (whole,), (resumed,) = folders(tmp_path / "whole"), folders(tmp_path / "killed")
    assert whole.name == resumed.name
    assert weights(whole) == weights(resumed)


# --- what is learnt ---------------------------------------------------------------------------------------------------


def trainer_of(toy: Path, folder: Path, whole: bool) -> tuple[AnswerTrainer, PromptedQuestions]:
    config = config_of(toy, folder)
    dataset = create_dataset(config)
    mllm = load_mllm(tiny_mllm(config, dataset), with_head=True)
    prompt = Titled.build_prompt(config, dataset, mllm)
    asked = training_questions(dataset, SftSettings.of(config))
    examples = PromptedQuestions(asked, prompt, *resolve_yes_no(mllm, prompt.tail), whole)
    tuning = Tuning("full", image_pixels=PIXELS)
    arguments = finetune_module._arguments(tuning, mllm, folder / "scratch")
    batches = LengthGroupedBatches(examples.lengths, 2000, 0)
    model = AnswerLoss(mllm.model.eval(), mllm.family)
    return AnswerTrainer(mllm, model, arguments, examples, batches, PIXELS, 0.1, False), examples


@pytest.mark.parametrize("head_tokens", [1024, 7])
def test_the_full_loss_is_that_of_all_words_and_no_image(toy, tmp_path, monkeypatch, head_tokens):
    """Against transformers' own loss with -100 on images; the head in one go, and a few tokens at a time."""
    monkeypatch.setattr(sft_module, "HEAD_TOKENS", head_tokens)
    trainer, _ = trainer_of(toy, tmp_path, whole=True)
    ready = [trainer.prepare(index) for index in range(3)]
    wanted = []
    for example in ready:
        batch = trainer.mllm.family.collate([example.input], torch.device("cpu"))
        labels = batch["input_ids"].clone()
        for token in trainer.mllm.family.reserved_ids:
            labels[labels == token] = -100
        assert (labels == -100).sum() >= 3
        wanted.append(trainer.mllm.model(**batch, labels=labels).loss)
        assert len(example.places) == int((labels[0, 1:] != -100).sum())
    loss = trainer.loss_of(trainer.model, ready)
    loss.backward()
    found = trainer.mllm.model.get_input_embeddings().weight.grad.clone()
    trainer.mllm.model.zero_grad()
    (torch.stack(wanted).sum() / trainer.per_batch).backward()
    trainer.close()
    torch.testing.assert_close(loss, torch.stack(wanted).sum() / trainer.per_batch, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, trainer.mllm.model.get_input_embeddings().weight.grad, atol=1e-5, rtol=1e-4)


def test_by_default_the_answer_alone_is_learnt(toy, tmp_path):
    trainer, examples = trainer_of(toy, tmp_path, whole=False)
    ready = trainer.prepare(0)
    trainer.close()
    assert ready.places.tolist() == [len(ready.input.ids) - 1]
    assert ready.input.ids[-1] == examples.answers[True]
    assert len(ready.input.ids) + ready.input.patches <= examples.lengths[0] + 40


def test_words_to_learn():
    assert words_to_learn(np.array([1, 2, 99, 99, 3]), (99, 7)).tolist() == [1, 4]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sft_tuning": "half"}, ConfigError, "sft_tuning: 'half' is not accepted; give one of none, lora, full"),
        ({"sft_loss": "all"}, ConfigError, "sft_loss: 'all' is not accepted; give one of answer, full"),
        ({"sft_targets": 0}, ConfigError, "sft_targets: .* or null"),
        ({"sft_negatives": 0}, ConfigError, "sft_negatives"),
        ({"sft_negatives": True}, ConfigError, "sft_negatives"),
        ({"max_tokens_per_batch": 0}, ConfigError, "max_tokens_per_batch: 0 is not accepted"),
        ({"sft_learning_rate": 0}, ConfigError, "sft_learning_rate"),
        ({"sft_lora": {"rank": 8}}, ConfigError, "sft_lora: .* such as"),
        ({"sft_load_in_4bit": True}, ConfigError, "use lora"),
        ({"sft_load_in_4bit": True, "sft_tuning": "lora"}, ModelLoadError, "bitsandbytes"),
        ({"mllm": "no/such folder"}, ModelLoadError, "there is no such model folder"),
    ],
)
def test_settings_that_do_not_fit(toy, tmp_path, monkeypatch, settings, error, message):
    monkeypatch.setattr("recbole_mm.llm.loading.find_spec", lambda name: None)
    with pytest.raises(error, match=message) as raised:
        provided(toy, tmp_path, "TALLRec", **settings)
    assert "\n" not in str(raised.value)


def test_answers_that_collide_are_refused_before_anything_is_trained(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune_module, "finetune", lambda *args: pytest.fail("trained"))
    monkeypatch.setattr("recbole_mm.llm.answer.NO", "Yesterday")
    with pytest.raises(ConfigError, match="begin with the same token"):
        provided(toy, tmp_path)


def test_data_without_a_second_interaction(tmp_path):
    write_toy(tmp_path, users=20, items=20)
    path = tmp_path / "toy" / "toy.inter"
    head, *rows = path.read_text().splitlines()
    kept = [row for user in range(20) for row in [r for r in rows if r.startswith(f"u{user}\t")][:3]]
    path.write_text("\n".join([head, *kept]) + "\n")  # leave-one-out leaves one of three to train on
    with pytest.raises(DataError, match="a user with two training interactions"):
        provided(tmp_path, tmp_path)


def test_null_keys_keep_defaults_and_the_seed_is_the_runs(toy, tmp_path):
    blank = {tuning_module.sft_key(name): None for name in SftSettings.__dataclass_fields__}
    assert SftSettings.of({**blank, "seed": 5}) == replace(SftSettings(), seed=5)


def test_an_adapter_is_not_given_another(toy, tmp_path):
    provided(toy, tmp_path, sft_tuning="lora")
    (folder,) = folders(tmp_path)
    with pytest.raises(ConfigError, match=r"sft_tuning: .* an adapter itself"):
        provided(toy, tmp_path, sft_tuning="lora", mllm=str(folder))


@pytest.mark.parametrize("family", ["internvl", "mllama", "deepseek_vl"])
def test_an_outline_lays_out_prompts_as_the_loaded_model(toy, tmp_path, family):
    config = config_of(toy, tmp_path)
    dataset = create_dataset(config)
    folder = tiny_mllm(config, dataset, family)
    state = torch.random.get_rng_state()
    outline = load_mllm(folder, with_head=True, without_weights=True)
    assert torch.equal(state, torch.random.get_rng_state())
    loaded = load_mllm(folder, with_head=True)
    assert all(weight.is_meta for weight in outline.model.parameters())
    assert outline.identity == loaded.identity
    prompts = [Titled.build_prompt(config, dataset, mllm) for mllm in (outline, loaded)]
    assert prompts[0].identity == prompts[1].identity
    assert resolve_yes_no(outline, prompts[0].tail) == resolve_yes_no(loaded, prompts[1].tail)
    laid = [
        mllm.family.prepare([*prompt.prefix(1, [6]), *prompt.suffix(2)], PIXELS)
        for mllm, prompt in zip((outline, loaded), prompts)
    ]
    np.testing.assert_array_equal(laid[0].ids, laid[1].ids)
