"""Training: RecBole's results without RecBole's pickles, and runs that may be interrupted anywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.evaluator.collector import DataStruct
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import Trainer
from recbole.utils import ModelType, init_seed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_mm.data.loaders import TARGET_MASK
from recbole_mm.errors import CheckpointError, ConfigError, RecboleMMError
from recbole_mm.training import saving, tracking
from recbole_mm.training.checkpoint import load_tree, read_metadata, save_tree, swapped, without_pickles
from recbole_mm.training.factory import make_trainer
from recbole_mm.training.loop import DivergedError, LossSum, NanLossError
from recbole_mm.training.state import load_weights
from recbole_mm.training.trainer import TrainerMixin
from tests.conftest import KNOWLEDGE

SMALL = {"hidden_size": 16, "inner_size": 32, "n_layers": 1, "n_heads": 2, "embedding_size": 16}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """Nothing may be written to the working directory."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    assert list(here.iterdir()) == []


class Parts:
    """Everything of a run built afresh from a config, as a new process would."""

    def __init__(self, config, **attributes):
        init_seed(config["seed"], reproducibility=True)
        self.config = config
        self.train, self.valid, self.test = data_preparation(config, create_dataset(config))
        init_seed(config["seed"], reproducibility=True)
        self.model = config.model_class(
            config, self.train.dataset if hasattr(self.train, "dataset") else self.train._dataset
        )
        for name, value in attributes.items():
            setattr(self.model, name, value)

    def trainer(self, run_dir):
        return make_trainer(self.config, self.model, run_dir)

    def scores(self):
        """What the model says of some users: of all items, or of one each where it can only do that."""
        self.model.eval()
        users = Interaction(next(iter(self.test))[0].interaction)
        users.interaction.setdefault("item_id", torch.arange(len(users)) % 40 + 1)
        with torch.no_grad():
            if type(self.model).full_sort_predict is AbstractRecommender.full_sort_predict:
                return self.model.predict(users)
            return self.model.full_sort_predict(users).clone()


def fake_kmeans(embeddings):
    """Stands in for NCL's k-means, which needs faiss on a GPU: some function of the embeddings."""
    centroids = torch.from_numpy(embeddings[:5].copy())
    return torch.nn.functional.normalize(centroids, dim=1), torch.arange(len(embeddings)) % 5


def parts_of(toy_config, model, **settings):
    extra = {"NCL": {"run_kmeans": fake_kmeans}}.get(model, {})
    return Parts(toy_config(model, **{**SMALL, **settings}), **extra)


@pytest.fixture
def model_settings():
    """Settings under which each model trains on the toy data in a moment."""
    knowledge = {**KNOWLEDGE, "kg_embedding_size": 16, "kge_interval": 2}
    return {
        "CKE": knowledge,
        "MKR": knowledge,
        "MultiVAE": {"train_batch_size": 20, "mlp_hidden_size": [16], "latent_dimension": 8, "total_anneal_steps": 20},
        "RecVAE": {
            "train_batch_size": 20,
            "hidden_dimension": 16,
            "latent_dimension": 8,
            "n_enc_epochs": 2,
            "n_dec_epochs": 1,
        },
        "NCL": {"m_step": 2, "warm_up_step": 2, "num_clusters": 5, "hyper_layers": 1, "n_layers": 2},
        "SASRec": {"lr_scheduler": "cosine", "warmup_ratio": 0.2, "gradient_accumulation_steps": 2},
        "BPR": {"clip_grad_norm": 0.5, "weight_decay": 0.01, "learner": "adamw"},
    }


# ---------------------------------------------------------------- RecBole's models

MEMORY_BASED = ("Pop", "ItemKNN", "EASE")
LEARNED = ("BPR", "LightGCN", "SASRec", "MultiVAE", "RecVAE", "NCL", "CKE", "MKR")


@pytest.mark.parametrize("name", [*MEMORY_BASED, *LEARNED])
def test_recbole_models_train_without_pickle_and_reload_to_the_same_scores(
    name, toy_config, model_settings, tmp_path, monkeypatch
):
    for function in ("save", "load"):
        monkeypatch.setattr(torch, function, lambda *_, **__: pytest.fail("pickle"))
    settings = model_settings.get(name, {})
    parts = parts_of(toy_config, name, **settings)
    trainer = parts.trainer(tmp_path / "run")
    score, best = trainer.fit(parts.train, parts.valid)
    assert score == best["ndcg@10"] > 0
    assert set(trainer.evaluate(parts.test)) == set(best)
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written == {"model.safetensors", "checkpoint.safetensors", "tensorboard"}
    assert trainer.timings["epochs"] == (1 if name in MEMORY_BASED else 2)

    expected = parts.scores()
    again = parts_of(toy_config, name, **settings)
    load_weights(again.model, tmp_path / "run" / "model.safetensors")
    assert torch.equal(again.scores(), expected)


@pytest.mark.parametrize("name", ["BPR", "SASRec"])
def test_results_are_recboles_own_bit_for_bit(name, toy_config, tmp_path, monkeypatch):
    settings = {"epochs": 3, "clip_grad_norm": {"max_norm": 1.0}}
    theirs = parts_of(toy_config, name, **settings)
    monkeypatch.chdir(tmp_path)  # RecBole writes a board where it stands
    reference = Trainer(theirs.config, theirs.model)
    expected = reference.fit(theirs.train, theirs.valid, verbose=False, saved=False)
    ours = parts_of(toy_config, name, **settings)
    trainer = ours.trainer(tmp_path / "run")
    assert trainer.fit(ours.train, ours.valid) == expected
    assert trainer.train_loss_dict == pytest.approx(reference.train_loss_dict, rel=1e-12)
    for key, value in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[key], value), key


def test_same_seed_same_result(toy_config, tmp_path):
    found = []
    for run in ("a", "b"):
        parts = parts_of(toy_config, "SASRec")
        found.append((parts.trainer(tmp_path / run).fit(parts.train, parts.valid), parts.scores()))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_anomaly_detection_stays_off_while_training(toy_config, tmp_path):
    """Importing RecBole's sequential models turns it on, and training would take twice as long."""
    parts = parts_of(toy_config, "SASRec", epochs=1)
    seen = []
    calculate = parts.model.calculate_loss
    parts.model.calculate_loss = lambda batch: seen.append(torch.is_anomaly_enabled()) or calculate(batch)
    with torch.autograd.set_detect_anomaly(True, check_nan=False):
        parts.trainer(tmp_path).fit(parts.train, parts.valid)
        assert torch.is_anomaly_enabled()
    assert set(seen) == {False}


def test_decision_trees_are_refused(toy_config, tmp_path):
    config = toy_config("BPR")
    config.final_config_dict["MODEL_TYPE"] = ModelType.DECISIONTREE
    with pytest.raises(ConfigError, match="saves with pickle"):
        make_trainer(config, torch.nn.Linear(1, 1), tmp_path)


def test_a_pretrained_model_goes_on_from_safetensors(toy_config, tmp_path):
    sizes = {"latent_dimension": 8, "mlp_hidden_size": [16], "critic_layers": [4], "metrics_k": 10}
    settings = {**sizes, "epochs": 1, "pretrain_epochs": 2, "save_step": 1}
    first = Parts(toy_config("RaCT", **settings, train_stage="actor_pretrain"))
    trainer = first.trainer(tmp_path / "actor")
    trainer.fit(first.train, first.valid)
    assert sorted(trainer.train_loss_dict) == [0, 1]
    path = tmp_path / "actor" / "model.safetensors"
    with without_pickles():
        second = Parts(toy_config("RaCT", **settings, train_stage="critic_pretrain", pre_model_path=str(path)))
    assert torch.equal(second.model.encoder[0].weight, first.model.encoder[0].weight)
    frozen = second.model.encoder[0].weight.clone()
    second.trainer(tmp_path / "critic").fit(second.train, second.valid)
    assert torch.equal(second.model.encoder[0].weight, frozen)
    assert torch.load is not load_tree


# ------------------------------------------------------------------- interruption


def interrupt_in(trainer, epoch):
    """A Ctrl-C instead of the second optimizer step of an epoch."""
    step, made = trainer._step, [0]

    def interrupted_step():
        made[0] += trainer.timings["epochs"] == epoch
        if made[0] == 2:
            raise KeyboardInterrupt
        step()

    trainer._step = interrupted_step
    return trainer


def interrupt_at(model, call):
    """Make the model's `call`-th loss a Ctrl-C."""
    original, count = model.calculate_loss, [0]

    def calculate_loss(*arguments, **keywords):
        count[0] += 1
        if count[0] == call:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    model.calculate_loss = calculate_loss


def without_times(tree):
    """A checkpoint without what a clock says."""
    tree = dict(tree)
    tree["timings"] = {key: value for key, value in tree["timings"].items() if not key.endswith("seconds")}
    tree["history"] = [{key: value for key, value in record.items() if key != "seconds"} for record in tree["history"]]
    return tree


def assert_same(left, right, where="tree"):
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, pair in enumerate(zip(left, right)):
            assert_same(*pair, f"{where}.{index}")
    elif isinstance(left, torch.Tensor):
        left, right = (value.to_dense() if value.is_sparse else value for value in (left, right))
        assert torch.equal(left, right), where
    elif isinstance(left, np.ndarray):
        assert np.array_equal(left, right), where
    else:
        assert left == right, where


def assert_same_run(left: Path, right: Path):
    for name in ("model.safetensors", "checkpoint.safetensors"):
        trees = [load_tree(run / name) for run in (left, right)]
        if name.startswith("checkpoint"):
            trees = [without_times(tree) for tree in trees]
        assert_same(*trees)


@pytest.mark.parametrize("name", LEARNED)
def test_interrupted_and_resumed_equals_uninterrupted(name, toy_config, model_settings, tmp_path):
    settings = {"train_batch_size": 100, **model_settings.get(name, {}), "epochs": 5}
    straight = parts_of(toy_config, name, **settings)
    trainer = straight.trainer(tmp_path / "straight")
    expected = trainer.fit(straight.train, straight.valid)
    expected_test = trainer.evaluate(straight.test)

    cut = parts_of(toy_config, name, **settings)
    with pytest.raises(KeyboardInterrupt):
        interrupt_in(cut.trainer(tmp_path / "cut"), epoch=3).fit(cut.train, cut.valid)
    assert read_metadata(tmp_path / "cut" / "checkpoint.safetensors")["epoch"] == "2"

    resumed = parts_of(toy_config, name, **settings)
    trainer = resumed.trainer(tmp_path / "cut")
    assert trainer.fit(resumed.train, resumed.valid, resume=True) == expected
    assert_same_run(tmp_path / "straight", tmp_path / "cut")
    assert trainer.evaluate(resumed.test) == expected_test


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments_and_resumed_equals_uninterrupted(toy_settings, tmp_path):
    settings = {**toy_settings, **SMALL, "epochs": 20, "train_batch_size": 64, "stopping_step": 100}
    settings |= {"lr_scheduler": "cosine", "warmup_ratio": 0.1, "clip_grad_norm": {"max_norm": 1}}
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, str(here / "kill_and_resume.py"), str(tmp_path), json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) == 4
    assert_same_run(tmp_path / "straight", tmp_path / "killed")
    leftovers = {path.name for path in (tmp_path / "killed").iterdir()}
    assert leftovers == {"model.safetensors", "checkpoint.safetensors", "tensorboard"}


class Death(BaseException):
    """What a kill looks like from inside: nothing runs after it."""


@pytest.mark.parametrize("dies_at", ["weights", "between", "checkpoint"])
@pytest.mark.parametrize("every", [1, 2])
def test_dying_while_an_epoch_is_saved(dies_at, every, toy_config, tmp_path, monkeypatch):
    """Whatever is on disk then, the checkpoint and the best weights belong together again after resuming."""
    settings = {"epochs": 6, "checkpoint_every": every}
    scores = [0.1, 0.2, 0.15, 0.3, 0.4, 0.35]

    def valid_epoch(self, *_, **__):
        score = scores[self.timings["epochs"] - 1]
        return score, {"ndcg@10": score}

    def dying_save(path, tree, metadata=None):
        is_checkpoint, late = Path(path).name == "checkpoint.safetensors", int(metadata["epoch"]) >= 3
        if late and (dies_at, is_checkpoint) in (("weights", False), ("between", True)):
            raise Death
        save_tree(path, tree, metadata)
        if late and is_checkpoint:
            raise Death

    monkeypatch.setattr(TrainerMixin, "_valid_epoch", valid_epoch, raising=False)
    straight = parts_of(toy_config, "BPR", **settings)
    straight.trainer(tmp_path / "straight").fit(straight.train, straight.valid)

    cut = parts_of(toy_config, "BPR", **settings)
    with swapped(saving, "save_tree", dying_save), pytest.raises(Death):
        cut.trainer(tmp_path / "cut").fit(cut.train, cut.valid)

    resumed = parts_of(toy_config, "BPR", **settings)
    trainer = resumed.trainer(tmp_path / "cut")
    trainer.resume_checkpoint(tmp_path / "cut" / "checkpoint.safetensors")
    best = read_metadata(tmp_path / "cut" / "model.safetensors")
    assert best == {"model": "BPR", "epoch": str(trainer.best_epoch), "valid_score": str(trainer.best_valid_score)}
    assert trainer.best_epoch == (3 if dies_at == "checkpoint" else 1)
    trainer.fit(resumed.train, resumed.valid)
    assert_same_run(tmp_path / "straight", tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("model.*.safetensors"))


def test_a_run_may_be_continued_in_another_folder(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR")
    trainer = parts.trainer(tmp_path / "first")
    trainer.fit(parts.train, parts.valid)
    again = parts_of(toy_config, "BPR")
    moved = again.trainer(tmp_path / "second")
    moved.resume_checkpoint(tmp_path / "first" / "checkpoint.safetensors")
    assert moved.fit(again.train, again.valid) == (trainer.best_valid_score, trainer.best_valid_result)
    assert moved.evaluate(again.test) == trainer.evaluate(parts.test)


def test_best_weights_that_are_gone_are_missed(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR")
    trainer = parts.trainer(tmp_path)
    trainer.fit(parts.train, parts.valid)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"the weights of epoch {trainer.best_epoch}, the best so far, are gone"):
        parts_of(toy_config, "BPR").trainer(tmp_path).fit(parts.train, parts.valid, resume=True)


def test_control_c_waits_until_the_epoch_is_saved(toy_config, tmp_path, monkeypatch):
    def interrupted_save(path, tree, metadata=None):
        os.kill(os.getpid(), signal.SIGINT)
        save_tree(path, tree, metadata)

    parts = parts_of(toy_config, "BPR")
    monkeypatch.setattr(saving, "save_tree", interrupted_save)
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore Ctrl-C
    try:
        with pytest.raises(KeyboardInterrupt):
            parts.trainer(tmp_path / "run").fit(parts.train, parts.valid)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, outside)
    assert read_metadata(tmp_path / "run" / "checkpoint.safetensors")["epoch"] == "0"
    assert read_metadata(tmp_path / "run" / "model.safetensors")["epoch"] == "0"


def test_a_finished_run_resumes_to_its_result(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR", epochs=2)
    trainer = parts.trainer(tmp_path)
    expected = trainer.fit(parts.train, parts.valid), trainer.evaluate(parts.test)
    again = parts_of(toy_config, "BPR", epochs=2)
    interrupt_at(again.model, 1)
    trainer = again.trainer(tmp_path)
    assert (trainer.fit(again.train, again.valid, resume=True), trainer.evaluate(again.test)) == expected


def test_more_epochs_continue_a_finished_run(toy_config, tmp_path):
    for run, epochs in (("long", [4]), ("short", [2, 4])):
        for count in epochs:
            parts = parts_of(toy_config, "BPR", epochs=count)
            parts.trainer(tmp_path / run).fit(parts.train, parts.valid, resume=True)
    assert_same_run(tmp_path / "long", tmp_path / "short")


def test_resume_follows_the_configuration_and_may_find_nothing(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR", resume=True)
    first = parts.trainer(tmp_path)
    first.fit(parts.train, parts.valid)
    again = parts_of(toy_config, "BPR", resume=True)
    interrupt_at(again.model, 1)  # one training step would end it
    second = again.trainer(tmp_path)
    second.fit(again.train, again.valid)
    assert second.history == first.history


def test_an_earlier_run_is_not_overwritten(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR")
    trainer = parts.trainer(tmp_path)
    trainer.fit(parts.train, parts.valid)
    with pytest.raises(CheckpointError, match="continue it with --resume, or choose another run folder"):
        parts_of(toy_config, "BPR").trainer(tmp_path).fit(parts.train, parts.valid)
    trainer.fit(parts.train, parts.valid)


def test_checkpoints_that_do_not_fit_are_refused(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR")
    parts.trainer(tmp_path).fit(parts.train, parts.valid)
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(CheckpointError, match="is of BPR, not of LightGCN"):
        parts_of(toy_config, "LightGCN").trainer(tmp_path).resume_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match=r"do not fit this BPR: .*size mismatch"):
        parts_of(toy_config, "BPR", embedding_size=8).trainer(tmp_path).resume_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="holds no training state"):
        parts.trainer(tmp_path).resume_checkpoint(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="No such file"):
        parts.trainer(tmp_path).evaluate(parts.test, model_file=tmp_path / "other.safetensors")


# ------------------------------------------------------- steps, with a model of one weight


class OneWeight(torch.nn.Module):
    """loss = mean of weight * x; its gradient is the mean of x."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
        self.seen = []

    def calculate_loss(self, interaction):
        product = self.weight * interaction["x"]
        self.seen.append((product @ torch.ones(len(product))).dtype)
        return product.mean()

    def other_parameter(self):
        return {}

    def load_other_parameter(self, _):
        pass


class Batches(list):
    """A loader of ready-made batches; the model never sees a dataset."""

    dataset = None


def batches(*values, mask=None):
    extra = {} if mask is None else {TARGET_MASK: torch.tensor(mask)}
    return Batches(Interaction({"x": torch.tensor(value, dtype=torch.float32), **extra}) for value in values)


@pytest.fixture
def one_weight(toy_config, tmp_path):
    def build(model=None, **settings):
        config = toy_config("BPR", **{"learner": "sgd", "learning_rate": 1.0, "epochs": 1, **settings})
        return make_trainer(config, model or OneWeight(), tmp_path / "run")

    return build


def test_accumulated_gradients_are_the_mean_of_their_batches(one_weight):
    trainer = one_weight(gradient_accumulation_steps=2)
    trainer.fit(batches([1.0], [3.0], [10.0]))
    assert float(trainer.model.weight.detach()) == -(2 + 10)
    assert trainer.timings["steps"] == 2


@pytest.mark.parametrize("limit", [0.5, {"max_norm": 0.5, "norm_type": 2}])
def test_gradients_are_clipped_by_a_number_or_recboles_dict(one_weight, limit):
    trainer = one_weight()
    trainer.clip_grad_norm = limit
    trainer.fit(batches([100.0], [-100.0], [0.25]))
    assert float(trainer.model.weight.detach()) == pytest.approx(-0.25, abs=1e-5)


def test_frozen_parameters_are_left_out(one_weight):
    trainer = one_weight()
    assert [p is trainer.model.weight for group in trainer.optimizer.param_groups for p in group["params"]] == [True]
    model = OneWeight()
    model.weight.requires_grad = False
    with pytest.raises(ConfigError, match="no trainable parameter"):
        one_weight(model)


def test_a_model_may_choose_its_parameter_groups(one_weight):
    class Slow(OneWeight):
        def __init__(self):
            super().__init__()
            self.slow = torch.nn.Parameter(torch.zeros(1))

        def parameter_groups(self, config):
            return [
                {"params": [self.weight, self.frozen]},
                {"params": [self.slow], "lr": config["learning_rate"] / 10},
                {"params": [self.frozen], "lr": 5.0},
            ]

    class Forgetful(Slow):
        def parameter_groups(self, config):
            return [{"params": [self.weight]}]

    rates = [(len(group["params"]), group["lr"]) for group in one_weight(Slow()).optimizer.param_groups]
    assert rates == [(1, 1.0), (1, 0.1)]
    with pytest.raises(ConfigError, match="leaves out the trainable parameter slow"):
        one_weight(Forgetful())


def test_the_rate_follows_the_schedule_step_by_step(one_weight):
    trainer = one_weight(lr_scheduler="linear", epochs=2)
    trainer.fit(batches([1.0], [1.0]))
    assert float(trainer.model.weight.detach()) == -(1 + 0.75 + 0.5 + 0.25)


def test_mixed_precision_computes_in_bfloat16_and_keeps_weights_in_float32(one_weight):
    for enabled, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        trainer = one_weight(enable_amp=enabled)
        trainer.fit(batches([1.0]), saved=False)
        assert trainer.model.seen == [dtype]
        assert trainer.model.weight.dtype == torch.float32


def test_training_stops_after_so_many_steps(one_weight):
    trainer = one_weight(epochs=10, max_train_steps=3)
    trainer.fit(batches([1.0], [1.0]))
    assert float(trainer.model.weight.detach()) == -3
    assert trainer.timings["steps"] == 3
    assert trainer.timings["epochs"] == 2
    assert trainer.best_epoch == 1


def test_training_stops_after_so_many_seconds_of_the_processor(one_weight, monkeypatch):
    ticks = iter(range(100_000))
    monkeypatch.setattr("recbole_mm.training.loop.time.process_time", lambda: 0.25 * next(ticks))
    trainer = one_weight(epochs=50, max_train_seconds=2.6)
    trainer.fit(batches([1.0, 1.0, 1.0]))
    assert 1 < trainer.timings["epochs"] < 10
    assert 2.6 <= trainer.timings["train_cpu_seconds"] < 4
    assert trainer.timings["steps"] < 3 * trainer.timings["epochs"], "it ends within an epoch, too"


def test_an_epoch_that_has_begun_when_the_seconds_are_over_makes_a_step(one_weight, monkeypatch):
    ticks = iter(range(100_000))
    monkeypatch.setattr("recbole_mm.training.loop.time.process_time", lambda: 10.0 * next(ticks))
    trainer = one_weight(epochs=50, max_train_seconds=0.1)
    trainer.fit(batches([1.0], [1.0]))
    assert trainer.timings["steps"] == trainer.timings["epochs"] == 1
    assert float(trainer.model.weight.detach()) == -1
    assert trainer.timings["train_targets"] == 1


def test_targets_are_counted_by_mask_or_rows(one_weight):
    trainer = one_weight(epochs=2)
    trainer.fit(batches([1.0, 1.0, 1.0]))
    assert trainer.timings["train_targets"] == 6
    trainer = one_weight()
    trainer.fit(batches([1.0, 1.0], mask=[[True, False, True], [True, False, False]]), saved=False)
    assert trainer.timings["train_targets"] == 3
    assert trainer.timings["train_seconds"] > 0


def test_a_loss_that_is_not_a_number_is_named_and_leaves_the_last_epoch_safe(one_weight, tmp_path):
    trainer = one_weight(epochs=3)
    data = batches([1.0], [2.0], [3.0])
    trainer.fit(data)
    trainer.start_epoch, trainer.epochs = 3, 4
    data[1]["x"][:] = float("nan")
    told = (
        r"NaN or infinite in epoch 3 at batch 1; .*model\.safetensors has the weights of epoch 2, the best until then$"
    )
    with pytest.raises(NanLossError, match=told) as caught:
        trainer.fit(data)
    assert isinstance(caught.value, RecboleMMError)
    assert isinstance(caught.value, ValueError)
    assert load_tree(tmp_path / "run" / "checkpoint.safetensors")["weights"]["state_dict"]["weight"].item() == -18


def test_an_infinite_loss_is_one_too(one_weight):
    trainer = one_weight(epochs=1)
    data = batches([1.0], [float("inf")])
    with pytest.raises(NanLossError, match=r"NaN or infinite in epoch 0 at batch 1; .*; no epoch was saved before$"):
        trainer.fit(data)


def test_a_gradient_scaler_takes_care_of_infinite_losses_itself():
    scaled = LossSum(torch.device("cpu"), 0, scaled=True)
    scaled.add(torch.tensor(float("inf")))
    with pytest.raises(NanLossError):
        scaled.add(torch.tensor(float("nan")))


class Fixed:
    """Validation data of which every score is a given number."""

    def __init__(self, *scores):
        self.scores = list(scores)

    def __len__(self):
        return 1


@pytest.fixture
def scored(one_weight, monkeypatch):
    """`scored(trainer, 0.1, nan)`: validations with these scores."""

    def fit(trainer, *scores):
        left = list(scores)
        monkeypatch.setattr(trainer, "_valid_epoch", lambda *_, **__: (score := left.pop(0), {"x": score}))
        return trainer.fit(batches([1.0]), Fixed())

    return fit


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_validation_without_a_score_ends_the_training_in_a_line(one_weight, scored, tmp_path, number):
    trainer = one_weight(epochs=5)
    told = (
        rf"^valid_metric \S+ is {number} after epoch 1, of finite weights: .*weights of epoch 0, the best until then$"
    )
    with pytest.raises(DivergedError, match=told):
        scored(trainer, 0.5, number)
    assert read_metadata(tmp_path / "run" / "model.safetensors")["epoch"] == "0"
    assert load_tree(tmp_path / "run" / "checkpoint.safetensors")["epoch"] == 0


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named_and_never_saved(one_weight, scored, tmp_path, number, validated):
    trainer = one_weight(epochs=5)
    original = trainer._step

    def spoil():
        original()
        if trainer.timings["steps"] == 2:
            trainer.model.weight.data.fill_(number)

    trainer._step = spoil
    told = (
        r"^the weight weight holds NaN or infinity after epoch 1; lower learning_rate, .*weights of epoch 0, the best"
    )
    with pytest.raises(DivergedError, match=told):
        scored(trainer, 0.5, 0.6) if validated else trainer.fit(batches([1.0]))
    for name in ("model.safetensors", "checkpoint.safetensors"):
        tree = load_tree(tmp_path / "run" / name)
        assert float(tree.get("weights", tree)["state_dict"]["weight"]) == -1


def test_a_loader_with_a_state_of_its_own_keeps_its_place(one_weight):
    class Counting(Batches):
        epoch = 0

        def __iter__(self):
            self.epoch += 1
            return super().__iter__()

        def state_dict(self):
            return {"epoch": self.epoch}

        def load_state_dict(self, state):
            self.epoch = state["epoch"]

    one_weight(epochs=2).fit(Counting(batches([1.0])))
    fresh = Counting(batches([1.0]))
    one_weight(epochs=3).fit(fresh, resume=True)
    assert fresh.epoch == 3
    with pytest.raises(CheckpointError, match="another kind of training loader"):
        one_weight(epochs=4).fit(batches([1.0]), resume=True)


def test_nothing_is_written_unless_asked(one_weight, tmp_path):
    one_weight()
    assert not (tmp_path / "run").exists()
    one_weight().fit(batches([1.0]), saved=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tensorboard"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learner": "adamm"}, "learner: 'adamm' is not accepted; give one of adam"),
        ({"max_train_steps": 0}, "at least 1"),
        ({"max_train_seconds": 0}, "max_train_seconds: 0 is not accepted; give a number above 0"),
        ({"warmup_ratio": 0.5, "warmup_steps": 3}, "not both"),
    ],
)
def test_impossible_settings_are_named(one_weight, settings, message):
    with pytest.raises(ConfigError, match=message):
        one_weight(**settings).fit(batches([1.0]))


def test_a_schedule_needs_one_pass_per_epoch(toy_config, model_settings, tmp_path):
    parts = parts_of(toy_config, "MKR", **model_settings["MKR"], lr_scheduler="cosine")
    with pytest.raises(ConfigError, match="one pass over the training data per epoch, which MKR does not make"):
        parts.trainer(tmp_path).fit(parts.train, parts.valid)


# ------------------------------------------------------------- validation and evaluation


class FakeRanking:
    """Evaluation data of ours: knows how to rank, and is asked nothing else."""

    def __init__(self, ranks):
        self.ranks = iter(ranks)
        self.asked = []

    def rank(self, model, config, device, show_progress):
        self.asked.append((model.training, torch.is_grad_enabled(), device.type, show_progress))
        topk = torch.zeros(1, max(config["topk"]) + 1, dtype=torch.int64)
        topk[0, next(self.ranks)] = topk[0, -1] = 1
        struct = DataStruct()
        struct.set("rec.topk", topk)
        struct.set("rec.items", torch.arange(1, max(config["topk"]) + 1)[None])
        return struct


def test_ranking_data_is_asked_to_rank(toy_config, tmp_path):
    """RecBole's metrics get its ranking beside what the training data told the collector."""
    parts = parts_of(toy_config, "BPR", epochs=1, metrics=["MRR", "ItemCoverage"], topk=[10], valid_metric="MRR@10")
    trainer = parts.trainer(tmp_path)
    valid, test = FakeRanking([1]), FakeRanking([4])
    score, result = trainer.fit(parts.train, valid)
    assert score == 0.5
    assert result["itemcoverage@10"] == 10 / 40
    assert trainer.evaluate(test, show_progress=True)["mrr@10"] == 0.2
    assert trainer.last_struct["rec.topk"][0, 4] == 1
    assert valid.asked == [(False, False, "cpu", False)]
    assert test.asked == [(False, False, "cpu", True)]
    assert trainer.evaluate(None) is None


def test_recboles_loaders_and_coverage_metrics_work(toy_config, tmp_path):
    """RecBole's collector calls .cpu() on numbers when coverage metrics are asked for."""
    metrics = ["NDCG", "ItemCoverage", "AveragePopularity", "GiniIndex", "TailPercentage", "ShannonEntropy"]
    parts = parts_of(toy_config, "BPR", metrics=metrics, topk=[10], tail_ratio=0.1)
    trainer = parts.trainer(tmp_path)
    trainer.fit(parts.train, parts.valid)
    result = trainer.evaluate(parts.test)
    assert 0 < result["itemcoverage@10"] <= 1
    assert trainer.last_struct["rec.items"].shape == (60, 10)
    assert trainer.evaluate(parts.test) == result


def test_value_metrics_on_labels(toy_config, tmp_path):
    settings = {
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "none", "mode": "labeled"},
        "metrics": ["AUC", "LogLoss"],
        "valid_metric": "AUC",
        "threshold": {"rating": 3},
        "train_neg_sample_args": None,
    }
    parts = Parts(toy_config("FM", **settings))
    trainer = parts.trainer(tmp_path)
    score, _ = trainer.fit(parts.train, parts.valid)
    assert 0 < score < 1
    assert set(trainer.evaluate(parts.test)) == {"auc", "logloss"}


def test_early_stopping_history_and_callback(toy_config, tmp_path):
    settings = {"epochs": 20, "eval_step": 2, "stopping_step": 1, "topk": [10], "metrics": ["MRR"]}
    parts = parts_of(toy_config, "BPR", **settings, valid_metric="MRR@10")
    trainer = parts.trainer(tmp_path)
    calls = []
    score, _ = trainer.fit(
        parts.train, FakeRanking([4, 1, 3, 9]), callback_fn=lambda epoch, value: calls.append((epoch, value))
    )
    assert score == 0.5
    assert calls == [(1, 0.2), (3, 0.5), (5, 0.25), (7, 0.1)]
    assert [record["epoch"] for record in trainer.history] == list(range(8))
    assert [record.get("valid_score") for record in trainer.history] == [None, 0.2, None, 0.5, None, 0.25, None, 0.1]
    assert trainer.best_epoch == 3
    assert read_metadata(tmp_path / "model.safetensors") == {"model": "BPR", "epoch": "3", "valid_score": "0.5"}


def test_an_equal_score_is_taken_as_better_as_in_recbole(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR", epochs=2, topk=[10], metrics=["MRR"], valid_metric="MRR@10")
    trainer = parts.trainer(tmp_path)
    trainer.fit(parts.train, FakeRanking([2, 2]))
    assert trainer.best_epoch == 1


def test_the_callback_comes_after_its_epoch_is_safe(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR")
    epochs = []
    parts.trainer(tmp_path).fit(
        parts.train,
        parts.valid,
        callback_fn=lambda epoch, _: epochs.append(
            (epoch, read_metadata(tmp_path / "checkpoint.safetensors")["epoch"])
        ),
    )
    assert epochs == [(0, "0"), (1, "1")]


def test_without_validation_the_last_epoch_is_kept(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR")
    trainer = parts.trainer(tmp_path)
    assert trainer.fit(parts.train) == (-np.inf, None)
    assert read_metadata(tmp_path / "model.safetensors")["epoch"] == "1"
    assert torch.equal(
        load_tree(tmp_path / "model.safetensors")["state_dict"]["user_embedding.weight"],
        parts.model.user_embedding.weight.detach(),
    )


def test_the_best_epoch_is_tested_not_the_last(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR", epochs=3, topk=[10], metrics=["MRR"], valid_metric="MRR@10", learning_rate=0.1)
    trainer = parts.trainer(tmp_path)
    weights = []
    trainer.fit(
        parts.train,
        FakeRanking([1, 0, 5]),
        callback_fn=lambda *_: weights.append(parts.model.user_embedding.weight.clone()),
    )
    trainer.evaluate(FakeRanking([0]), load_best_model=False)
    assert torch.equal(parts.model.user_embedding.weight, weights[2])
    trainer.evaluate(FakeRanking([0]))
    assert torch.equal(parts.model.user_embedding.weight, weights[1])


def test_checkpoints_may_be_rarer_than_epochs(toy_config, tmp_path, monkeypatch):
    written = []

    def counted(path, tree, metadata=None):
        written.append((Path(path).name.split(".")[0], metadata["epoch"]))
        save_tree(path, tree, metadata)

    monkeypatch.setattr(saving, "save_tree", counted)
    parts = parts_of(toy_config, "BPR", epochs=5, checkpoint_every=2)
    parts.trainer(tmp_path).fit(parts.train, parts.valid)
    assert [epoch for name, epoch in written if name == "checkpoint"] == ["1", "3", "4"]


# ----------------------------------------------------------------------------- tracking


def board(folder):
    events = EventAccumulator(str(folder), purge_orphaned_data=True)
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_recboles_names_and_no_step_twice(toy_config, tmp_path):
    parts = parts_of(toy_config, "BPR", epochs=4)
    interrupt_at(parts.model, 2 * len(parts.train) + 1)
    with pytest.raises(KeyboardInterrupt):
        parts.trainer(tmp_path).fit(parts.train, parts.valid)
    again = parts_of(toy_config, "BPR", epochs=4)
    trainer = again.trainer(tmp_path)
    trainer.fit(again.train, again.valid, resume=True)
    scalars = board(tmp_path / "tensorboard")
    assert [step for step, _ in scalars["Loss/Train"]] == [0, 1, 2, 3]
    assert [value for _, value in scalars["Loss/Train"]] == pytest.approx(list(trainer.train_loss_dict.values()))
    assert [step for step, _ in scalars["Vaild_score"]] == [0, 1, 2, 3]


def test_log_wandb_without_wandb_is_refused_at_once(one_weight, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        one_weight(log_wandb=True)
