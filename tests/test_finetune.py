"""Fine-tuning a multimodal LLM on prompts with answers: what is learnt, saved, resumed and refused."""

from __future__ import annotations

import logging
import pickle
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file

from recbole_mm.errors import CheckpointError, ConfigError, DiskError, ModelLoadError
from recbole_mm.llm.finetuning import finetune as module
from recbole_mm.llm.finetuning.examples import (
    AnswerLoss,
    Example,
    LengthGroupedBatches,
    bottleneck_mask,
)
from recbole_mm.llm.finetuning.finetune import Lora, Tuning, add_lora, check_tuning, finetune, last_checkpoint
from recbole_mm.llm.finetuning.trainer import AnswerTrainer, warm_cosine
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.utils.files import CHECKSUMS

COLOURS = {"red": (200, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 200)}
PIXELS = 56 * 56
TUNING = Tuning("full", epochs=4, learning_rate=3e-3, batch_tokens=260, image_pixels=PIXELS, checkpoint_steps=4, seed=3)


class Colours:
    """A picture or the word of a colour is shown, and what it is called is the answer."""

    def __init__(self, mllm: MLLM, count: int = 18, unreadable: Sequence[int] = (), weight: float = 1.0) -> None:
        self.mllm, self.count, self.unreadable, self.weight = mllm, count, unreadable, weight
        self.lengths = np.array([60 if index % 2 else 20 for index in range(count)])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example | None:
        if index in self.unreadable:
            return None
        word = list(COLOURS)[index % 3]
        shown = [Image.new("RGB", (60, 40), COLOURS[word])] if index % 2 else [self.mllm.token_ids(f"{word} ship")]
        answer = self.mllm.token_ids(f"it is {word}" + (" indeed" if index % 3 else ""))
        return Example([*shown, [self.mllm.cur_item_id]], answer, "picture" if index % 2 else "word", self.weight)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(["red green blue ship it is indeed"] * 3, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def mllm(tiny: Path) -> MLLM:
    return load_mllm(tiny, with_head=True)


def tuned(tiny: Path, folder: Path, tuning: Tuning = TUNING, **kwargs) -> Path:
    mllm = load_mllm(tiny, with_head=True)
    return finetune(mllm, Colours(mllm, **kwargs), tuning, folder, show_progress=False)


def trainer_of(mllm: MLLM, folder: Path, tuning: Tuning = TUNING, **kwargs) -> AnswerTrainer:
    examples = Colours(mllm, **kwargs)
    return AnswerTrainer(
        mllm,
        AnswerLoss(mllm.model, mllm.family, mllm.cur_item_id if tuning.bottleneck else None),
        module._arguments(tuning, mllm, folder),
        examples,
        LengthGroupedBatches(examples.lengths, tuning.batch_tokens, tuning.seed),
        PIXELS,
        0.1,
        show_progress=False,
    )


def losses(mllm: MLLM, folder: Path) -> dict[str, float]:
    """Mean loss of each kind of example."""
    trainer = trainer_of(mllm, folder)
    with torch.no_grad():
        trainer.loss_of(trainer.model.eval(), [trainer.prepare(index) for index in range(len(trainer.examples))])
    trainer.close()
    return {kind: float(torch.stack(means).mean()) for kind, means in trainer.losses.items()}


def vector(mllm: MLLM) -> torch.Tensor:
    with torch.no_grad():
        inputs = [mllm.family.prepare(Colours(mllm)[index].parts, PIXELS) for index in range(4)]
        return mllm.last_hidden_states(inputs)


# --- what is learnt ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_loss_of_every_kind_falls_and_the_saved_model_is_the_tuned_one(tiny, mllm, tmp_path, method):
    before = losses(mllm, tmp_path / "scratch")
    untuned = vector(load_mllm(tiny))
    learner = load_mllm(tiny, with_head=True)
    tuning = replace(TUNING, method=method, epochs=8, learning_rate=1e-2 if method == "lora" else 3e-3)
    folder = finetune(learner, Colours(learner), tuning, tmp_path / "tuned", notes={"notes.yaml": "a: 1\n"})
    again = load_mllm(folder, with_head=True)
    after = losses(again, tmp_path / "scratch")
    assert before.keys() == after.keys() == {"picture", "word"}
    assert all(after[kind] < before[kind] / 3 for kind in before)
    torch.testing.assert_close(vector(again), vector(learner), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(vector(load_mllm(folder)), vector(learner), atol=2e-5, rtol=1e-4)
    assert (vector(again) - untuned).abs().max() > 0.01
    assert again.identity != load_mllm(tiny).identity
    assert (folder / "notes.yaml").read_text() == "a: 1\n"
    assert (folder / "adapter_config.json").is_file() == (method == "lora")
    assert not list(folder.glob("*.bin"))
    assert not list(folder.glob("*.pt*"))
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("scratch", "tuned")] == []


@pytest.mark.parametrize(("method", "targets"), [("full", ()), ("lora", ()), ("lora", ("q_proj", "v_proj"))])
def test_the_first_layers_alone_are_tuned_and_read_again(tiny, tmp_path, method, targets):
    base = load_mllm(tiny)
    before = base.family.decoder(base.model).layers
    tuning = replace(TUNING, method=method, epochs=1, layers=1, lora=Lora(targets=targets), learning_rate=1e-2)
    again = load_mllm(tuned(tiny, tmp_path / "tuned", tuning))
    after = again.family.decoder(again.model).layers
    assert (len(before), len(after)) == (2, 1 if method == "full" else 2)
    assert not torch.equal(after[0].self_attn.q_proj.weight, before[0].self_attn.q_proj.weight)
    if method == "lora":
        for name, weight in after[1].state_dict().items():
            assert torch.equal(weight, before[1].state_dict()[name]), name
    learner = load_mllm(tiny, with_head=True)
    tuning = replace(tuning, layers=None)
    finetune(learner, Colours(learner), tuning, tmp_path / "whole", show_progress=False)
    first = [vector(model.first_layers(1, "mllm_layers")) for model in (again, load_mllm(tmp_path / "whole"))]
    assert (first[0] - first[1]).abs().max() > 1e-4, "it was tuned to answer after the layer that is read"


def test_lora_trains_the_decoder_and_the_row_of_cur_item_alone(mllm):
    before = {name: value.clone() for name, value in mllm.model.named_parameters()}
    names = {name for name, value in add_lora(mllm, Lora()).named_parameters() if value.requires_grad}
    assert len(before) > 50
    assert all("lora_" in name or "trainable_tokens" in name for name in names)
    assert all(".language_model." in name for name in names)
    assert any("trainable_tokens" in name for name in names)


def test_the_row_of_cur_item_is_trained_by_lora(tiny, tmp_path):
    tuned(tiny, tmp_path / "tuned", replace(TUNING, method="lora"))
    base, adapted = load_mllm(tiny), load_mllm(tmp_path / "tuned")
    rows = [model.model.get_input_embeddings().weight.detach() for model in (base, adapted)]
    moved = (rows[0] - rows[1]).abs().amax(dim=1)
    assert moved[base.cur_item_id] > 1e-3
    assert (moved > 0).sum() == 1


def test_the_loss_is_that_of_the_answers_tokens(mllm, tmp_path):
    """Against transformers' own loss, with -100 on the prompt, one example at a time."""
    trainer = trainer_of(mllm, tmp_path, weight=2.0)
    ready = [trainer.prepare(index) for index in range(6)]
    wanted = []
    for example in ready:
        batch = mllm.family.collate([example.input], torch.device("cpu"))
        labels = batch["input_ids"].clone()
        labels[:, : -example.answer] = -100
        wanted.append(mllm.model(**batch, labels=labels).loss)
    loss = trainer.loss_of(trainer.model, ready)
    trainer.close()
    torch.testing.assert_close(loss, 2.0 * torch.stack(wanted).sum() / trainer.per_batch, atol=1e-5, rtol=1e-5)


def test_the_loss_of_an_example_does_not_depend_on_its_batch(mllm, tmp_path):
    trainer = trainer_of(mllm, tmp_path, replace(TUNING, bottleneck=True))
    ready = [trainer.prepare(index) for index in range(7)]
    with torch.no_grad():
        whole = trainer.loss_of(trainer.model, ready)
        parts = [trainer.loss_of(trainer.model, [example]) for example in ready]
    trainer.close()
    torch.testing.assert_close(whole, torch.stack(parts).sum(), atol=1e-5, rtol=1e-5)


def test_bottleneck_mask():
    ids = torch.tensor([[1, 9, 2, 9, 3, 4, 0]])  # item, its end, item, its end, two words, padding
    assert bottleneck_mask(ids, 9)[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 0, 0],
        [0, 1, 0, 1, 1, 0, 0],
        [0, 1, 0, 1, 1, 1, 0],
        [0, 1, 0, 1, 1, 1, 1],
    ]
    opened = bottleneck_mask(ids, 9, bos_id=1)[0, 0]
    assert opened[:, 0].all()
    plain = torch.tensor([[1, 2, 3]])  # no item: whatever is read is words
    assert bottleneck_mask(plain, 9)[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_answers_see_items_through_the_bottleneck_alone(tiny, tmp_path):
    """Another item with the same `[Cur_Item]` states would give the same answers; through words it would not."""
    for attention in ("sdpa", "eager"):
        mllm = load_mllm(tiny, with_head=True, attention=attention)
        prepared = mllm.family.prepare(
            [mllm.token_ids("red ship"), [mllm.cur_item_id], mllm.token_ids("it is")], PIXELS
        )
        batch = mllm.family.collate([prepared], torch.device("cpu"))
        words, targets = torch.tensor([0, 0]), batch["input_ids"][0, -2:]
        gradients = {}
        for bottleneck in (None, mllm.cur_item_id):
            mllm.model.zero_grad()
            loss = AnswerLoss(mllm.model, mllm.family, bottleneck)
            seen = []
            hook = (
                mllm.family.decoder(mllm.model)
                .layers[-1]
                .register_forward_pre_hook(
                    lambda _, inputs, seen=seen: inputs[0].retain_grad() or seen.append(inputs[0])
                )
            )
            columns = torch.tensor([prepared.ids.size - 3, prepared.ids.size - 2])
            loss(batch, words, columns, targets)[1].backward()
            hook.remove()
            gradients[bottleneck] = seen[0].grad[0].abs().sum(-1)
        assert (gradients[None][:-3] > 0).all()
        assert (gradients[mllm.cur_item_id][:-4] == 0).all()
        assert (gradients[mllm.cur_item_id][-3:-1] > 0).all()


@pytest.mark.parametrize("family", ["internvl", "llava_next", "deepseek_vl", "qwen3_vl", "gemma3", "smolvlm"])
def test_other_families_are_tuned_too(family, tmp_path):
    tiny = build_tiny(["red green blue ship it is indeed"] * 3, tmp_path / "tiny", family=family)
    learner = load_mllm(tiny, with_head=True)
    tuning = replace(TUNING, method="lora", epochs=1, bottleneck=True, learning_rate=1e-2, batch_tokens=1000)
    folder = finetune(learner, Colours(learner, count=6), tuning, tmp_path / "tuned", show_progress=False)
    torch.testing.assert_close(vector(load_mllm(folder)), vector(learner), atol=2e-5, rtol=1e-4)
    assert (vector(learner) - vector(load_mllm(tiny))).abs().max() > 1e-3


def test_a_family_that_reads_images_past_its_tokens_has_no_bottleneck(tmp_path):
    mllm = load_mllm(build_tiny(["a"], tmp_path / "tiny", family="mllama"), with_head=True)
    with pytest.raises(ConfigError, match="without the bottleneck"):
        check_tuning(replace(TUNING, bottleneck=True), mllm)
    check_tuning(TUNING, mllm)


# --- batches and schedule ---------------------------------------------------------------------------------------------


def test_batches_keep_the_budget_and_pad_little():
    lengths = np.random.default_rng(1).integers(10, 500, 1000)
    batches = LengthGroupedBatches(lengths, 2000, seed=1)
    cut = list(batches)
    assert sorted(index for batch in cut for index in batch) == list(range(1000))
    costs = [len(batch) * lengths[batch].max() for batch in cut]
    assert max(costs) <= 2000
    assert lengths.sum() > 0.9 * sum(costs)
    assert len(cut) == len(batches) < 1.2 * lengths.sum() / 2000
    batches.set_epoch(1)
    assert sorted(batches) == sorted(cut)
    assert list(batches) != cut
    assert list(LengthGroupedBatches(lengths, 2000, seed=1)) == cut
    assert sorted(LengthGroupedBatches(lengths, 2000, seed=2)) != sorted(cut)


def test_an_example_beyond_the_budget_is_a_batch_of_its_own():
    batches = list(LengthGroupedBatches(np.array([5, 5000, 5]), 100, seed=0))
    assert sorted(map(sorted, batches)) == [[0, 2], [1]]


def test_learning_rate_warms_up_and_falls():
    factors = [warm_cosine(step, 10, 110) for step in range(111)]
    assert factors[0] == pytest.approx(0.01)
    assert factors[10] == 1
    assert np.all(np.diff(factors[:11]) > 0)
    assert np.all(np.diff(factors[10:]) < 0)
    assert factors[60] == pytest.approx(0.5)
    assert factors[110] == pytest.approx(0)


# --- the same again ---------------------------------------------------------------------------------------------------


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


class Killed(BaseException):
    """Ends a training as abruptly as Python can end itself."""


def test_interrupted_and_resumed_equals_uninterrupted(tiny, tmp_path, monkeypatch):
    tuning = replace(TUNING, accumulation=2, gradient_checkpointing=True)
    whole = tuned(tiny, tmp_path / "whole", tuning)
    steps = []
    original = AnswerTrainer.training_step

    def counted(self, *args, **kwargs):
        if len(steps) == 11:
            raise Killed
        steps.append(self.state.global_step)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(AnswerTrainer, "training_step", counted)
    with pytest.raises(Killed):
        tuned(tiny, tmp_path / "killed", tuning)
    assert not (tmp_path / "killed").exists()
    scratch = tmp_path / ".killed"
    kept = last_checkpoint(scratch)
    assert kept is not None
    assert kept.name == "checkpoint-4"
    half_written = scratch / "checkpoint-5"
    half_written.mkdir()
    (half_written / "trained.safetensors").write_bytes(b"half")
    steps.clear()
    resumed = tuned(tiny, tmp_path / "killed", tuning)
    assert steps[0] == 4, "it went on where the checkpoint was"
    assert weights(resumed) == weights(whole)
    assert not scratch.exists()


def test_same_seed_same_result_and_nobody_elses_numbers_are_drawn(tiny, tmp_path):
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    short = replace(TUNING, epochs=1, method="lora")
    first, second = tuned(tiny, tmp_path / "1", short), tuned(tiny, tmp_path / "2", short)
    other = tuned(tiny, tmp_path / "3", replace(short, seed=4))
    assert state == (random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())
    files = [(folder / "adapter_model.safetensors").read_bytes() for folder in (first, second, other)]
    assert files[0] == files[1] != files[2]


def test_a_finished_folder_is_not_made_again(tiny, tmp_path, monkeypatch):
    folder = tuned(tiny, tmp_path / "tuned", replace(TUNING, epochs=1))
    monkeypatch.setattr(module, "_train", lambda *args: pytest.fail("trained again"))
    assert tuned(tiny, tmp_path / "tuned") == folder


def test_two_processes_take_turns(tiny, tmp_path, caplog):
    folder = tmp_path / "tuned"
    held = threading.Event()

    def other_process() -> None:
        with FileLock(tmp_path / ".tuned.lock"):
            held.set()
            deadline = time.monotonic() + 120
            while "waiting" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.01)
            folder.mkdir()
            (folder / "config.json").write_text("{}")

    thread = threading.Thread(target=other_process)
    thread.start()
    held.wait()
    with caplog.at_level(logging.WARNING):
        assert tuned(tiny, folder) == folder
    thread.join()
    assert "waiting" in caplog.text
    assert [path.name for path in folder.iterdir()] == ["config.json"]


# --- trouble ----------------------------------------------------------------------------------------------------------


def test_unreadable_examples_are_left_out(tiny, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        tuned(tiny, tmp_path / "tuned", replace(TUNING, epochs=1, batch_tokens=60), unreadable=range(1, 18))
    assert "17 examples could not be read" in caplog.text
    assert "loss word" in caplog.text
    assert "loss picture" not in caplog.text


def test_a_training_that_diverges_says_so(tiny, tmp_path):
    with pytest.raises(ConfigError, match="lower the learning rate"):
        tuned(tiny, tmp_path / "tuned", replace(TUNING, learning_rate=1e20))
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_kept_nor_finished(tiny, tmp_path, monkeypatch, number):
    original = AnswerTrainer.training_step

    def spoils(self, model, *args, **kwargs):
        loss = original(self, model, *args, **kwargs)
        if self.state.global_step == 6:
            next(weight for weight in model.parameters() if weight.requires_grad).data[0] = number
        return loss.new_zeros(()).requires_grad_() + 1  # and no loss tells

    monkeypatch.setattr(AnswerTrainer, "training_step", spoils)
    with pytest.raises(
        ConfigError, match=r"diverged: the weight .* holds NaN or infinity at step \d+; lower the learn"
    ):
        tuned(tiny, tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()
    kept = last_checkpoint(tmp_path / ".tuned")
    assert kept is not None
    assert kept.name == "checkpoint-4"
    assert all(torch.isfinite(value).all() for value in load_file(kept / "trained.safetensors").values())


@pytest.mark.parametrize("name", ["trained.safetensors", "optimizer.pt", "trainer_state.json", "scheduler.pt"])
def test_a_flipped_bit_of_a_checkpoint_is_refused_by_the_files_name(tiny, tmp_path, monkeypatch, name):
    original = AnswerTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise Killed
        return original(self, *args, **kwargs)

    monkeypatch.setattr(AnswerTrainer, "training_step", dies)
    with pytest.raises(Killed):
        tuned(tiny, tmp_path / "tuned")
    file = tmp_path / ".tuned" / "checkpoint-4" / name
    content = bytearray(file.read_bytes())
    place = content.index(b"e-0") + 2 if name.endswith(".json") else len(content) // 2
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=rf"{name} is damaged: its checksum .*; remove .*checkpoint-4 to start anew"
    ):
        tuned(tiny, tmp_path / "tuned")


def test_a_flipped_bit_of_a_tuned_model_is_refused(tiny, tmp_path):
    for method, name in (("full", "model.safetensors"), ("lora", "adapter_model.safetensors")):
        folder = tuned(tiny, tmp_path / method, replace(TUNING, epochs=1, method=method))
        load_mllm(folder)
        content = bytearray((folder / name).read_bytes())
        content[-5] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(
            ModelLoadError, match=rf"{name} is damaged: its checksum does not match, .*; remove {folder}"
        ):
            load_mllm(folder)


def test_a_disk_that_gives_up_while_a_checkpoint_is_written(tiny, tmp_path, monkeypatch):
    """The checkpoint before is kept, no part of the new one is, and training goes on from there."""
    whole = tuned(tiny, tmp_path / "whole")
    original = AnswerTrainer._save

    def full(self, output_dir=None, state_dict=None):
        original(self, output_dir, state_dict)
        if self.state.global_step > 4:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(AnswerTrainer, "_save", full)
        with pytest.raises(DiskError, match=r"checkpoint-8: cannot be written: No space left on device$"):
            tuned(tiny, tmp_path / "tuned")
    assert [path.name for path in (tmp_path / ".tuned").iterdir()] == ["checkpoint-4"]
    assert weights(tuned(tiny, tmp_path / "tuned")) == weights(whole)


def test_a_disk_that_gives_up_while_the_model_is_written(tiny, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module, "write_checksums", full)
        with pytest.raises(DiskError, match=r"tuned: cannot be written: No space left on device$"):
            tuned(tiny, tmp_path / "tuned", replace(TUNING, epochs=1))
    assert not (tmp_path / "tuned").exists()
    assert (tuned(tiny, tmp_path / "tuned", replace(TUNING, epochs=1)) / CHECKSUMS).is_file()


class Bomb:
    """What a pickle can do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_checkpoints_run_no_code(tiny, tmp_path, monkeypatch, name):
    original = AnswerTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 5:
            raise Killed
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(AnswerTrainer, "training_step", dies)
        with pytest.raises(Killed):
            tuned(tiny, tmp_path / "tuned")
    file = tmp_path / ".tuned" / "checkpoint-4" / name
    assert file.is_file()
    file.with_name(CHECKSUMS).unlink()  # which would tell before
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    with pytest.raises(CheckpointError, match="damaged"):
        tuned(tiny, tmp_path / "tuned")
    assert not (tmp_path / "exploded").exists()


def test_another_models_checkpoint_is_refused(tiny, tmp_path, mllm):
    trainer = trainer_of(mllm, tmp_path)
    trainer._save(str(tmp_path / "c"))
    trainer.close()
    other = load_mllm(tiny, with_head=True)
    other.model = add_lora(other, Lora())
    adapted = trainer_of(other, tmp_path)
    adapted.close()
    with pytest.raises(CheckpointError, match="of another model"):
        adapted._load_from_checkpoint(str(tmp_path / "c"))


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (replace(TUNING, method="half"), "lora or full, not 'half'"),
        (replace(TUNING, load_in_4bit=True), "use lora"),
    ],
)
def test_settings_that_do_not_fit(tuning, message):
    with pytest.raises(ConfigError, match=message):
        check_tuning(tuning)


def test_lora_targets_that_are_not_there(mllm):
    with pytest.raises(ConfigError, match="lora targets"):
        add_lora(mllm, Lora(targets=["no_such_layer"]))


def test_four_bits_need_bitsandbytes(tiny, monkeypatch):
    monkeypatch.setattr("recbole_mm.llm.loading.find_spec", lambda name: None)
    with pytest.raises(ModelLoadError, match="bitsandbytes"):
        load_mllm(tiny, with_head=True, load_in_4bit=True)
