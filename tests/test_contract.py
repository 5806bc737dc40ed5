"""The one contract that every model keeps, ours and RecBole's baselines alike, on a matrix small enough to reason
about. The variants of `DEFAULT` are asked every time, all the others under `-m slow`."""

from __future__ import annotations

import hashlib
import itertools
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.model import sequential_recommender  # noqa: F401  (see `without_anomaly_detection`)
from recbole.model.abstract_recommender import AbstractRecommender

import recbole_mm
from recbole_mm.data.splits import TRAIN, Split
from recbole_mm.evaluation.scoring import Scorer
from recbole_mm.models.hooks import hooks_of
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble, open_needed
from recbole_mm.training.checkpoint import load_tree
from recbole_mm.training.factory import make_trainer
from tests.conftest import KNOWLEDGE, TOY_FEATURES, TOY_SETTINGS, write_toy
from tests.encoders import write_sentence_encoder

ANSWERING = {
    "rerank_k": 3,
    "mllm_image_pixels": 28 * 28,
    "max_text_tokens": 12,
    "first_stage_config": {"epochs": 2, "learning_rate": 3e-3, "train_batch_size": 64},
    "answer_batch_tokens": 8192,
    "eval_step": 0,
}
SEEN_FEATURES = {name: {**spec, "on": name} for name, spec in TOY_FEATURES.items()}
MISSING = {"missing_rate": 0.3, "modality_dropout": 0.2}
CODES = {
    "item_features": TOY_FEATURES,
    "codebook_size": 4,
    "code_levels": 2,
    "n_layers": 1,
    "hidden_size": 16,
    "inner_size": 32,
    "dropout_prob": 0.0,
    "learning_rate": 5e-3,
}
MODELS: dict[str, dict] = {
    "Molar": {"learning_rate": 3e-3},
    "Molar content": {"score": "content", "alpha": 0, "id_model": "none", "id_loss_weight": 0, "rec_loss": "ce"},
    "Molar GRU4Rec": {"id_model": "GRU4Rec", "rec_loss": "sampled_softmax", "shared_negatives": 16, "score": "id"},
    "Molar tuned": {
        "mirm_tuning": "lora",
        "mirm_examples": 4,
        "mirm_history": 2,
        "mirm_batch_tokens": 2000,
        "learning_rate": 3e-3,
    },
    "Molar sasrec": {
        "dueg": "sasrec",
        "hidden_size": 32,
        "item_sources": ["mllm", "text"],
        "item_features": TOY_FEATURES,
    },
    "Molar missing": {"learning_rate": 3e-3, **MISSING, "missing_at": "test"},
    "Molar gru4rec FPMC": {"dueg": "gru4rec", "id_model": "FPMC", "loss_on": "fused", "rec_loss": "ce"},
    "Molar fpmc DuoRec": {"dueg": "fpmc", "id_model": "DuoRec", "similarity": "cosine", "learning_rate": 3e-3},
    "Molar joint": {
        "mirm_training": "joint",
        "joint_from_epoch": 1,
        "rec_loss": "ce",
        "item_llm_staleness": 2,
        "item_llm_learning_rate": 1e-3,
        "max_tokens_per_batch": 400,
        "mllm_image_pixels": 28 * 28,
        "max_text_tokens": 12,
        "learning_rate": 3e-3,
    },
    "Molar joint full": {
        "mirm_training": "joint",
        "joint_tuning": "full",
        "item_llm_negatives": "trained",
        "mllm_image_pixels": 28 * 28,
        "max_text_tokens": 12,
        "learning_rate": 3e-3,
    },
    "Molar pretrained": {"id_model_training": "pretrained", "id_epochs": 1, "loss_on": "residual"},
    "SASRec": {"hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1},
    "SASRec full": {"full_sequence": True, "hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1},
    "GRU4Rec full": {"full_sequence": True, "loss_type": "BPR"},
    "SASRec gbce": {"full_sequence": True, "full_sequence_loss": "gbce", "n_negatives": 16, "learning_rate": 3e-3},
    "eSASRec": {"hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.0, "n_negatives": 16, "learning_rate": 3e-3},
    "BPR": {},
    "Pop": {"train_batch_size": 16},
    "LightGCN": {"n_layers": 1, "learning_rate": 1e-2},
    "CKE": {**KNOWLEDGE, "kg_embedding_size": 16, "learning_rate": 1e-2},
    "MultiVAE": {
        "train_batch_size": 20,
        "mlp_hidden_size": [16],
        "latent_dimension": 8,
        "total_anneal_steps": 20,
        "learning_rate": 1e-2,
    },
    "FM": {
        "metrics": ["NDCG"],
        "eval_args": {"mode": "full"},
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
        "learning_rate": 1e-2,
    },
    "CoLLM": {
        "collm_history": 2,
        "collm_title_tokens": 6,
        "rerank_k": 4,
        "prompts_per_epoch": 16,
        "cf_epochs": 1,
        "lora_epochs": 1,
        "learning_rate": 1e-2,
        "lora_learning_rate": 1e-2,
        "mapper_learning_rate": 1e-2,
    },
    "HLLM": {"learning_rate": 3e-3},
    "HLLM trained": {"item_llm_tuning": "full", "learning_rate": 3e-4},
    "HLLM lora": {"item_llm_tuning": "lora", "item_llm_negatives": "cached", "learning_rate": 1e-3},
    "DuoRec": {"hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1},
    "DuoRec full": {"full_sequence": True, "hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1},
    "FPMC full": {"full_sequence": True, "learning_rate": 1e-2},
    "DuoRec both": {"lmd": 0.1, "sim": "cos", "tau": 0.5, "hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1},
    "SASRecContent": {"item_features": TOY_FEATURES, "hidden_dropout_prob": 0.1, "attn_dropout_prob": 0.1},
    "SASRecContent both": {"item_features": TOY_FEATURES, "content_features": ["text", "image"], "loss_type": "BPR"},
    "SASRecContent missing": {"item_features": SEEN_FEATURES, **MISSING, "missing_at": "test", "learning_rate": 3e-3},
    "TIGER": {**CODES, "beam_size": None},
    "TIGER beam": {**CODES, "beam_size": 5, "content_features": ["text", "image"]},
    "VBPR": {"item_features": TOY_FEATURES},
    "VBPR missing": {"item_features": SEEN_FEATURES, **MISSING, "missing_at": "train"},
    "LATTICE": {"item_features": TOY_FEATURES, "knn_k": 4, "learning_rate": 5e-3},
    "LATTICE first batch mf": {
        "item_features": TOY_FEATURES,
        "knn_k": 4,
        "backbone": "mf",
        "graph_gradients": "first_batch",
        "learning_rate": 5e-3,
    },
    "FREEDOM": {"item_features": TOY_FEATURES, "knn_k": 4, "learning_rate": 5e-3},
    "FREEDOM missing": {"item_features": SEEN_FEATURES, "knn_k": 4, "learning_rate": 5e-3, **MISSING},
    "FREEDOM refined": {
        "item_features": TOY_FEATURES,
        "item_graph": "refined",
        "refined_similar_k": 4,
        "refined_co_k": 3,
        "dropout": 0.5,
        "learning_rate": 5e-3,
    },
    "BM3": {"item_features": TOY_FEATURES, "n_layers": 2, "dropout": 0.3},
    "BM3 text": {"item_features": TOY_FEATURES, "content_features": ["text"], "feature_normalization": "standard"},
    "MGCN": {"item_features": TOY_FEATURES, "knn_k": 4, "learning_rate": 5e-3},
    "MGCN refined": {
        "item_features": TOY_FEATURES,
        "item_graph": "refined",
        "refined_similar_k": 4,
        "refined_co_k": 3,
        "learning_rate": 5e-3,
    },
    "LGMRec": {"item_features": TOY_FEATURES, "learning_rate": 5e-3, "cl_weight": 0.01},
    "SMORE": {"item_features": TOY_FEATURES, "knn_k": 4, "learning_rate": 5e-3},
    "MMGCN": {"item_features": TOY_FEATURES},
    "MMGCN concat": {"item_features": TOY_FEATURES, "combination": "concat", "modality_size": 4, "n_layers": 1},
    "MLLMRec": {"learning_rate": 1e-2, "similar_threshold": 0.5, "similar_k": 4, "co_k": 3},
    "MLLMRec mean text": {"reasoning": False, "item_text": "text", "denoise": False, "learning_rate": 1e-2},
    "MLLMRec states": {"profile_form": "states", "item_text": "text", "learning_rate": 1e-2},
    "MLLMRec residual": {"user_residual": "items", "item_residual": True, "profile_decay": "days"},
    "MLLMRec gcn": {"gcn_ui": True, "co_occur": False, "learning_rate": 1e-2},
    "MLLMMSR": {**ANSWERING, "sft_examples": 4, "sft_epochs": 1},
    "MLLMMSR direct": {**ANSWERING, "sft_examples": 2, "sft_epochs": 1, "preference": "direct", "first_stage": "BPR"},
    "MLLMMSR listed": {**ANSWERING, "sft_examples": 4, "sft_epochs": 1, "answers": "listed", "list_orders": 2},
    "MLLMMSR none": {**ANSWERING, "sft_tuning": "none", "preference": "none", "modalities": ["image"]},
    "TALLRec": {**ANSWERING, "sft_examples": 4, "sft_epochs": 1, "tallrec_rating_field": "rating"},
}
"""Name of a model, with a word on the variant -> its settings."""

DEFAULT = (
    *("Molar", "MLLMRec", "MLLMMSR"),
    *(
        "Molar joint",
        "SASRec",
        "SASRec full",
        "GRU4Rec full",
        "BPR",
        "LightGCN",
        "Pop",
        "CKE",
        "MultiVAE",
        "FM",
        "FREEDOM",
    ),
)
"""The three systems, and a model of each kind that the package runs. docs/add-a-model.md brings another one."""

LISTED = ("MLLMMSR listed",)
"""Rerankers whose answer about an item rests on the list that it stands in."""

TUNED_BEFORE = tuple(name for name, settings in MODELS.items() if "answer_batch_tokens" in settings)
"""Models that RecBole's loop has nothing to teach: what is learnt is learnt by their LLM and their first stage."""

COUNTED = ("Pop",)
"""Models without a weight that a gradient or a seed could change."""

STORED = {"item_vectors", "item_text_vectors", "item_text_features", "user_profiles", "user_states"}
"""Needs that fill the artifact store."""

QUICK = {"epochs": 3, "eval_step": 1, "train_batch_size": 64}


@pytest.fixture(scope="session", autouse=True)
def sentence_encoder(tmp_path_factory) -> None:
    """Gives MLLMRec's variants an encoder that is on this machine."""
    folder = write_sentence_encoder(tmp_path_factory.mktemp("sentence-encoder"))
    for name in MODELS:
        if name.startswith("MLLMRec"):
            MODELS[name]["sentence_encoder"] = folder


def variants(names: Iterable[str]) -> list:
    """The names as parameters of a test, slow where they are not in `DEFAULT`."""
    return [name if name in DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module", params=variants(MODELS))
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def settings(toy_path, tmp_path_factory, variant) -> dict:
    saved = str(tmp_path_factory.mktemp("saved"))
    return {**TOY_SETTINGS, "data_path": str(toy_path), "checkpoint_dir": saved, **QUICK, **MODELS[variant]}


@pytest.fixture(scope="module")
def kept() -> dict:
    return {}


@pytest.fixture
def whole(variant, settings, kept):
    """A run of the variant, the same for all tests. An LLM that sees has a new one for each, so that it is asked about
    the same images in the same batches, which round them."""
    if variant not in kept or variant in TUNED_BEFORE:
        kept.clear()
        kept[variant] = run(variant, settings)
    return kept[variant]


def run(variant: str, settings: dict, **changed):
    return recbole_mm.run(variant.split()[0], "toy", config_dict={**settings, **changed})


def scores(outcome) -> torch.Tensor:
    """(users, n_items) of every test case, in order: by `full_sort_predict`, or pair by pair where there is none."""
    users, items = outcome.splits.test.users, outcome.dataset.get_item_feature()
    with torch.no_grad():
        if type(outcome.model).full_sort_predict is AbstractRecommender.full_sort_predict:
            scorer = Scorer(outcome.model, users.interaction, len(items), item_features=items)
            ((_, table),) = next(iter(scorer.all_items([np.arange(len(users))])))
            return table
        return outcome.model.full_sort_predict(users.interaction[np.arange(len(users))]).view(len(users), -1)


TRAINED = [name for name in MODELS if name not in (*TUNED_BEFORE, *COUNTED)]


@pytest.mark.parametrize("variant", variants(TRAINED), scope="module")
def test_loss_falls(variant, settings, tmp_path, toy_config):
    config = toy_config(variant.split()[0], **{k: v for k, v in settings.items() if k in {**QUICK, **MODELS[variant]}})
    assembled = assemble(config, tmp_path, Stages(), open_needed(config, tmp_path))
    trainer = make_trainer(config, assembled.model, tmp_path)
    losses = [trainer._train_epoch(assembled.splits.train, epoch) for epoch in range(15)]
    losses = [sum(loss) if isinstance(loss, tuple) else loss for loss in losses]
    assert np.mean(losses[-3:]) < 0.97 * np.mean(losses[:2])


@pytest.mark.parametrize("variant", variants(TUNED_BEFORE), scope="module")
def test_what_was_tuned_before_is_not_trained(variant, settings, tmp_path, toy_config):
    config = toy_config(variant.split()[0], **{k: v for k, v in settings.items() if k in {**QUICK, **MODELS[variant]}})
    assembled = assemble(config, tmp_path, Stages(), open_needed(config, tmp_path))
    assert not any(weight.requires_grad for weight in assembled.model.parameters())
    trainer = make_trainer(config, assembled.model, tmp_path)

    def refuse():
        raise AssertionError("a batch was read")

    assembled.splits.train.__class__.__iter__, original = refuse, assembled.splits.train.__class__.__iter__
    try:
        trainer.fit(assembled.splits.train, None)
    finally:
        assembled.splits.train.__class__.__iter__ = original
    assert len(trainer.history) == 1
    assert not load_tree(tmp_path / "model.safetensors")["state_dict"], "the LLM's own weights are kept in its folder"


def test_predict_agrees_with_full_sort_predict(variant, whole):
    table = scores(whole)
    assert torch.isfinite(table[:, 1:]).all()
    assert table[:, 1:].std() > 0
    users = whole.splits.test.users
    rows = users.interaction[np.arange(len(users))]
    one = torch.ones(len(users), dtype=torch.int64)
    for items in (one, one * (whole.dataset.item_num - 1), 1 + table[:, 1:].argmax(1)):
        pairs = Interaction({**rows.interaction, **whole.dataset.get_item_feature()[items].interaction})
        with torch.no_grad():
            single = whole.model.predict(pairs)
        ranked = table[torch.arange(len(users)), items]
        if variant in TUNED_BEFORE and variant not in LISTED:  # `predict` answers any pair, not only reranked ones
            assert ((single >= 0) & (single <= 1)).all()
            single, ranked = single[ranked >= 0], ranked[ranked >= 0]
        torch.testing.assert_close(single, ranked, atol=1e-5, rtol=1e-4, check_dtype=False)
    assert len(ranked) == len(users), "the best item of every user is one of those that are reranked"


def test_saved_and_loaded_gives_the_same_scores(variant, whole):
    again = recbole_mm.load(whole.run_dir)
    # Images that were asked about before were in other batches of the vision tower, which rounds them otherwise.
    loose = 1e-6 if variant in TUNED_BEFORE else 0
    torch.testing.assert_close(scores(again), scores(whole), atol=loose, rtol=0)
    assert again.test_result == pytest.approx(whole.test_result)


def test_same_seed_same_result(variant, settings, whole):
    again = run(variant, settings)
    assert again.run_dir != whole.run_dir
    assert again.test_result == whole.test_result
    assert torch.equal(scores(again), scores(whole))
    other = run(variant, settings, seed=settings.get("seed", 2020) + 1)
    assert torch.equal(scores(whole), scores(other)) == (variant in COUNTED)


class Killed(BaseException):
    """Ends a run as abruptly as Python can end itself."""


def test_interrupted_and_resumed_equals_uninterrupted(variant, settings, whole, monkeypatch):
    if variant in TUNED_BEFORE:  # in another folder, or their LLM and first stage would be there already
        settings = {**settings, "checkpoint_dir": f"{settings['checkpoint_dir']}-killed"}
    original, calls = torch.optim.Adam.step, itertools.count()

    def dies(self, *args, **kwargs):
        if next(calls) == 9:
            raise Killed
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.Adam, "step", dies)
        with pytest.raises(Killed):
            run(variant, settings)
    resumed = run(variant, settings, resume=True)
    assert resumed.run_dir != whole.run_dir
    assert resumed.test_result == whole.test_result
    assert torch.equal(scores(resumed), scores(whole))


def artifact_keys(path: Path) -> list:
    if not path.is_file():
        return []
    with sqlite3.connect(path) as store:
        return sorted(store.execute("SELECT key FROM artifacts").fetchall())


def learnt_before(saved: Path) -> dict[str, str]:
    """Weights of fine-tuned LLMs, and of the first stage after its last epoch: file -> what it holds, hashed."""
    files = [*saved.glob("artifacts/answering-*/*.safetensors"), *saved.glob("*-toy-*/checkpoint.safetensors")]
    hashes = {}
    for file in files:
        tree = load_tree(file)
        weights = tree["weights"]["state_dict"] if "weights" in tree else tree
        digest = hashlib.sha256()
        for name in sorted(weights):
            digest.update(f"{name}:".encode() + weights[name].float().numpy().tobytes())
        name = re.sub(r"(-toy)-\w+", r"\1", str(file.relative_to(saved)))  # a run's folder is named by its data, too
        hashes[name] = digest.hexdigest()
    return {name: digest for name, digest in hashes.items() if not name.startswith(("MLLMMSR", "TALLRec"))}


SPLITS: dict[str, Split] = {
    "leave-one-out": Split("LS", "valid_and_test", in_time=True, by_user=True, seed=2020),
    "ratio by user": Split("RS", [0.6, 0.2, 0.2], in_time=True, by_user=True, seed=2020),
    "ratio over all": Split("RS", [0.7, 0.15, 0.15], in_time=True, by_user=False, seed=2020),
    "time": Split("TS", [0.7, 0.15, 0.15], in_time=True, by_user=True, seed=2020),
    "shuffled": Split("RS", [0.6, 0.2, 0.2], in_time=False, by_user=False, seed=2020),
}
SEQUENTIAL = ("Molar", "SASRec", "eSASRec", "TIGER", "GRU4Rec", "HLLM", "CoLLM", "DuoRec", "FPMC", "MLLMMSR", "TALLRec")
SYSTEMS = [name for name in MODELS if name.startswith(("Molar", "MLLMRec", "MLLMMSR"))]
LEAST = {
    *itertools.product([*DEFAULT, *SYSTEMS], ["leave-one-out"]),
    *itertools.product(["BPR", "SASRec", "SASRec full"], SPLITS),
    *(("Molar", "ratio over all"), ("GRU4Rec full", "time"), ("FREEDOM", "shuffled"), ("MLLMRec mean text", "time")),
}
"""Models and splits whose leak test runs every time; all others are slow."""
LEAKS = [
    pytest.param(*case, id="-".join(case), marks=[] if case in LEAST else [pytest.mark.slow])
    for case in itertools.product(MODELS, SPLITS)
    if case[1] != "shuffled" or not case[0].startswith(SEQUENTIAL)
]


def leak_dataset(folder: Path, other_held_out: bool, split: Split = SPLITS["leave-one-out"]) -> Path:
    """`toy` behind two users who have seen half of the items each, so that no item's number depends on held-out rows.
    The other users come one after the other, seven seconds apart, and take half a minute for each step.

    Args:
        folder: to be written to.
        other_held_out: replace the held-out items of every other user by items that the user never had.
        split: tells which rows are held out.
    """
    write_toy(folder)
    path = folder / "toy" / "toy.inter"
    head, *lines = path.read_text().splitlines()
    first = [[f"u_{i % 2}", f"i{i}", "3", str(1_600_000_000 + i)] for i in range(40)]
    first += [[f"u_{user}", f"i{user}", "3", str(1_600_000_100 + i)] for user in range(2) for i in range(2)]
    rows = [line.split("\t") for line in lines]
    users = [list(mine) for _, mine in itertools.groupby(rows, key=lambda row: row[0])]
    for user, mine in enumerate(users):
        for step, row in enumerate(mine):
            row[3] = str(1_700_000_000 + 7 * user + 30 * step)
    table = [*first, *rows]
    numbers = np.unique([row[0] for row in table], return_inverse=True)[1]
    phases = split.phases(numbers, np.array([float(row[3]) for row in table]))
    replaced = {id(row) for row, phase in zip(table, phases) if phase != TRAIN and other_held_out}
    for mine in users:
        unused = [f"i{i}" for i in range(40) if f"i{i}" not in {row[1] for row in mine}]
        for row, item in zip([row for row in mine if id(row) in replaced], unused):
            row[1] = item
    path.write_text("\n".join([head, *("\t".join(row) for row in table)]) + "\n")
    return folder


def eval_args(split: Split) -> dict:
    """What asks for a split."""
    order, group = "TO" if split.in_time else "RO", "user" if split.by_user else "none"
    return {"split": {split.way: split.value}, "order": order, "group_by": group, "mode": "full"}


@pytest.mark.parametrize(("variant", "kind"), LEAKS)
def test_no_held_out_interaction_reaches_training(variant, kind, tmp_path):
    """Every held-out item replaced: artifacts, training batches and trained parameters stay what they were."""
    trained, held_out, keys, learnt = [], [], [], []
    for name, other in (("a", False), ("b", True)):
        data, saved = leak_dataset(tmp_path / name, other, SPLITS[kind]), tmp_path / name / "saved"
        settings = {**TOY_SETTINGS, **QUICK, **MODELS[variant], "data_path": str(data), "eval_step": 0}
        outcome = run(variant, settings, checkpoint_dir=str(saved), eval_args=eval_args(SPLITS[kind]))
        held_out.append(outcome.splits.test.users.positives.items.tolist())
        trained.append(load_tree(outcome.run_dir / "checkpoint.safetensors")["weights"]["state_dict"])
        keys.append(artifact_keys(saved / "artifacts" / "artifacts.sqlite"))
        learnt.append(learnt_before(saved))
    assert held_out[0] != held_out[1], "the replacement must have changed what is held out"
    if variant in TUNED_BEFORE:  # texts of held-out histories are written as well
        assert learnt[0] == learnt[1], "training has read one of them"
        assert any("answering-" in name for name in learnt[0]) == (MODELS[variant].get("sft_tuning") != "none")
        assert any(name.endswith("checkpoint.safetensors") for name in learnt[0])
        return
    assert keys[0] == keys[1]
    needs = hooks_of(outcome.config.model_class).requirements(outcome.config)
    assert bool(keys[0]) == bool(STORED & set(needs))
    assert trained[0].keys() == trained[1].keys()
    for parameter in trained[0]:
        assert torch.equal(trained[0][parameter], trained[1][parameter]), parameter
