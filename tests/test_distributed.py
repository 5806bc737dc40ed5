"""Two workers compute what one process computes: rows, draws, steps, whole runs, ranks. Joined by gloo, without Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_mm.config.resolved import Config
from recbole_mm.data.loaders import TARGET_MASK
from recbole_mm.distributed.training import cpus_each, take_failure, write_failure
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.models.hooks import full_sequence_class, hooks_of
from recbole_mm.models.recbole_models import RECBOLE
from recbole_mm.models.whole_batch import Rows, shared_random, whole_batch
from recbole_mm.registry import find_model, list_models
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from recbole_mm.runs.profiling import Stages
from recbole_mm.training.checkpoint import load_tree
from recbole_mm.training.ddp import adapt_losses, bounds, check_supported, slice_of
from recbole_mm.training.loop import NanLossError
from tests.conftest import TOY_FEATURES, TOY_SETTINGS
from tests.test_contract import MODELS
from tests.two_workers import everything, steps_compared, together

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
RUNS: dict[str, tuple[str, dict]] = {
    "SASRec full": (
        "SASRec",
        {
            **NO_DROPOUT,
            "full_sequence": True,
            "gradient_accumulation_steps": 2,
            "clip_grad_norm": 1.0,
            "lr_scheduler": "cosine",
            "warmup_ratio": 0.2,
        },
    ),
    "BPR": ("BPR", {}),
    "DuoRec full": ("DuoRec", {**NO_DROPOUT, "full_sequence": True, "lmd": 0.1}),
    "Molar": ("Molar", {"embedding_dropout": 0.0, "id_model_config": NO_DROPOUT, "comparative_instances": 8}),
    "Pop": ("Pop", {}),
    "Molar valid": (
        "Molar",
        {
            **{"dueg": "sasrec", "dueg_config": NO_DROPOUT, "hidden_size": 16, "embedding_dropout": 0.0},
            **{"item_sources": ["text"], "item_features": {"text": TOY_FEATURES["text"]}},
            **{"id_model_config": {**NO_DROPOUT, "initializer_range": 1.0}, "id_loss_weight": 0, "alpha": 0},
            **{"fusion_weight": "valid"},  # the ID model is not trained, and its scores are large
        },
    ),
}
STEPS = (
    *("Molar GRU4Rec", "Molar fpmc DuoRec", "DuoRec both", "DuoRec full", "HLLM", "CoLLM", "FREEDOM", "BM3"),
    *("MGCN", "LGMRec", "SMORE"),
)
SAMPLED = {
    "SASRec gbce": {"full_sequence": True, "full_sequence_loss": "gbce", "n_negatives": 8, "item_dropout_prob": 0.2},
    "SASRec shared": {
        **{"full_sequence": True, "full_sequence_loss": "sampled_softmax", "n_negatives": 8},
        **{"negatives_of": "batch", "negatives_exclude": "sequence"},
    },
}
"""Losses whose negatives are drawn for the whole batch."""
EPOCHS = 4


@pytest.fixture(scope="module")
def base(toy_path, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("runs")
    metrics = {"metrics": ["NDCG", "Recall", "ItemCoverage"]}
    kept = {"data_path": str(toy_path), "checkpoint_dir": str(folder / "saved"), "artifact_dir": str(folder / "store")}
    return {**TOY_SETTINGS, **metrics, **kept, "epochs": EPOCHS, "train_batch_size": 64, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(base, folder) -> list[dict]:
    """What each of two workers found."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runs = {name: (model, {**base, **changed}) for name, (model, changed) in RUNS.items()}
    for name, (model, settings) in runs.items():
        alone(model, settings, folder / "one" / name)
    resumed = {**base, **NO_DROPOUT, "full_sequence": True}
    half = {**resumed, "epochs": 2}
    alone("SASRec", resumed, folder / "one resumed")
    alone("SASRec", half, folder / "one first")
    torch.set_num_threads(threads)
    steps = {**{name: MODELS[name] for name in STEPS}, **SAMPLED, "LightGCN": {"require_pow": False}}
    plan = {
        "folder": str(folder),
        "runs": runs,
        "ranked": {name: str(folder / "one" / name) for name in ("Molar", "BPR")},
        "resumed": ("SASRec", half, resumed),
        "steps": {name: {**base, **settings} for name, settings in steps.items()},
    }
    return together(folder, everything, plan)


def alone(model: str, settings: dict, run_dir: Path) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    config = Config(model, "toy", config_dict=settings)
    config.save(run_dir / run_folder.CONFIG)
    resume = (run_dir / run_folder.CHECKPOINT).exists()
    pipeline.train_and_test(pipeline.assemble(config, run_dir, Stages()), Stages(), resume)


def curve(run_dir: Path) -> list[float]:
    return [epoch["train_loss"] for epoch in load_tree(run_dir / run_folder.CHECKPOINT)["history"]]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_tree(run_dir / run_folder.WEIGHTS)["state_dict"]


# ---- pieces ----


def test_parts_of_a_batch_cover_it_once_and_shares_add_up():
    assert bounds(1, 2) == [0, 0, 1]
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
    for batch in (
        Interaction({"item_id": torch.arange(7)}),
        Interaction({"item_id": torch.arange(3), TARGET_MASK: mask}),
    ):
        parts = [slice_of(batch, rank, 2) for rank in range(2)]
        assert torch.cat([rows["item_id"] for rows, _, _ in parts]).tolist() == batch["item_id"].tolist()
        assert sum(share for _, share, _ in parts) == pytest.approx(1, abs=1e-12)
    assert [share for _, share, _ in parts] == [3 / 6, 3 / 6], "by targets, not by rows"
    lonely = [slice_of(Interaction({"item_id": torch.tensor([5])}), rank, 2) for rank in range(2)]
    assert [(rows["item_id"].tolist(), share, idle) for rows, share, idle in lonely] == [
        ([5], 0.0, True),
        ([5], 1.0, False),
    ]


def test_in_one_process_nothing_is_exchanged_and_nothing_changes():
    values, ids = torch.rand(3, 2), torch.arange(3)
    assert whole_batch(values) is values
    assert all(whole is mine for whole, mine in zip(whole_batch(values, ids), (values, ids)))
    assert Rows(3).own(values).tolist() == values.tolist()
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with shared_random():
        assert torch.equal(torch.rand(2), expected)


def test_rows_of_all_workers_in_order_and_gradients_that_return_to_their_owner(two):
    for rank, found in enumerate(two):
        rows = found["rows"]
        assert rows["whole"].tolist() == [[float(i)] * 2 for i in range(4)]
        assert rows["ids"].tolist() == [0, 1, 2, 3]
        assert rows["flags"].tolist() == [True, False, True, False]
        mine = [0, 1, 2] if rank == 0 else [3]
        assert rows["own"].tolist() == mine
        assert rows["gradient"].tolist() == [[3.0 * (i + 1)] * 2 for i in mine], "1 + 2 times of what each computed"


def test_a_worker_without_a_row_takes_part_and_counts_for_nothing(two):
    for rank, found in enumerate(two):
        idle = found["idle"]
        assert idle["ids"].tolist() == [1, 2, 3]
        assert idle["whole"][:, 0].tolist() == [1.0, 2.0, 3.0]
        assert len(idle["own"]) == (1 if rank == 0 else 3), "it draws as many as it computes on"
        assert idle["gradient"].abs().sum() == (0 if rank == 0 else 2 * 3 * (1 + 2 + 3))


def test_workers_draw_alike_but_for_what_is_their_own(two):
    first, second = (found["streams"] for found in two)
    assert [a == b for a, b in zip(first, second)] == [True, False, True, False, True]
    torch.manual_seed(7)
    drawn = [torch.rand(2).tolist() for _ in range(3)]
    assert [first[0], first[2][:2], first[4]] == drawn, "as a process that draws nothing else"


def test_cpus_are_shared_out_as_far_as_nodes_have_them():
    assert cpus_each([{"CPU": 2}], 2, 0) == 1
    assert cpus_each([{"CPU": 8}], 3, 0) == 2
    assert cpus_each([{"CPU": 2}, {"CPU": 8}], 2, 0) == 4, "both on the large one"
    assert cpus_each([{"CPU": 16, "GPU": 1}, {"CPU": 4, "GPU": 1}], 2, 1) == 4, "one on each"
    assert cpus_each([{"CPU": 1}], 1, 0) == 1


def test_the_first_error_of_a_worker_is_told_as_what_it_was_and_once(tmp_path):
    write_failure(tmp_path, NanLossError("the loss is no number"))
    write_failure(tmp_path, DataError("what came of it"))
    told = take_failure(tmp_path)
    assert (type(told), str(told)) == (NanLossError, "the loss is no number")
    assert take_failure(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


# ---- steps ----


@pytest.mark.parametrize("variant", [*STEPS, *SAMPLED, "LightGCN"])
def test_a_step_has_the_loss_and_the_gradients_of_one_process(two, variant):
    for found in two:
        (loss, gradients), (loss_of_one, gradients_of_one) = found["steps"][variant]
        assert loss < 1e-6
        assert gradients < 5e-6
        assert max(loss_of_one, gradients_of_one) < 5e-6, "a batch of one row, which leaves a worker without any"


@pytest.mark.slow
def test_steps_of_every_model_that_is_said_to_be_supported(base, tmp_path):
    left_out = ("MLLMMSR", "TALLRec", "MLLMRec")  # two that learn nothing here; one whose encoder is not on this disk
    variants = {name: {**base, **settings} for name, settings in MODELS.items() if not name.startswith(left_out)}
    variants |= {name: dict(base) for name, answers in RECBOLE.items() if "supports_ddp" in answers}
    for found in together(tmp_path, steps_compared, variants, str(tmp_path / "steps")):
        apart = {name: max(max(pair) for pair in pairs) for name, pairs in found.items()}
        assert {name: value for name, value in apart.items() if value > 1e-5} == {}


# ---- whole runs ----


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_the_loss_curve_of_one_process(two, folder, name):
    one, both = folder / "one" / name, folder / "two" / name
    assert curve(both) == pytest.approx(curve(one), rel=2e-5)
    assert len(curve(one)) == (1 if name == "Pop" else EPOCHS)
    results = [run_folder.read_result(run_dir) for run_dir in (one, both)]
    for key in ("steps", "train_targets", "epochs"):
        assert results[0]["timings"][key] == results[1]["timings"][key]
    files = [sorted(path.name for path in run_dir.iterdir()) for run_dir in (one, both)]
    assert files[0] == files[1]
    boards = [len(list((run_dir / "tensorboard").iterdir())) for run_dir in (one, both)]
    assert boards[0] == boards[1], "one worker writes"
    assert pipeline.load(both).test_result == results[1]["test_result"]


@pytest.mark.parametrize("name", ["Molar", "BPR"])
def test_ranks_and_metrics_of_the_same_weights_are_the_same_to_the_last_digit(two, name):
    for found in two:
        assert found["ranked"][name]["alone"] == found["ranked"][name]["together"]
    assert len(found["ranked"][name]["alone"][1]) == 60


def test_a_weight_is_chosen_on_validation_by_all_workers_alike_and_saved_once(two, folder):
    results = [run_folder.read_result(folder / side / "Molar valid") for side in ("one", "two")]
    saved = [weights(folder / side / "Molar valid")["fusion.weight"].item() for side in ("one", "two")]
    assert saved[0] == saved[1] != 0.5, "0.5 is what a run begins with"
    assert [result["chosen_on_validation"] for result in results] == [f"fusion_weight: {saved[0]:g}"] * 2
    for name in ("best_valid_result", "test_result"):
        assert results[1][name] == pytest.approx(results[0][name], abs=1e-6)


def test_checkpoints_resume_with_another_number_of_workers(two, base, folder):
    expected = folder / "one resumed"
    assert curve(folder / "then two") == pytest.approx(curve(expected), rel=2e-5)
    assert curve(folder / "then two")[:2] == curve(expected)[:2], "one process's own"
    alone("SASRec", {**base, **NO_DROPOUT, "full_sequence": True}, folder / "two first")
    assert curve(folder / "two first") == pytest.approx(curve(expected), rel=2e-5)
    for run_dir in ("then two", "two first"):
        for key, value in weights(folder / run_dir).items():
            assert torch.allclose(value, weights(expected)[key], atol=1e-4), key


# ---- support ----


def test_the_folder_of_a_run_does_not_depend_on_the_number_of_workers(base):
    folders = {run_folder.first_run_dir(Config("BPR", "toy", config_dict={**base, "train_workers": n})) for n in (1, 4)}
    assert len(folders) == 1


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("KGAT", "KGAT is trained in a way of its own"),
        ("CKE", "CKE is trained in a way of its own"),
        ("NCL", "NCL is trained in a way of its own"),
        ("RecVAE", "RecVAE is trained in a way of its own"),
        ("LightGBM", "LightGBM is trained by a library of its own"),
        ("SGL", "SGL: nothing says that its loss is a mean over the rows"),
    ],
)
def test_models_that_take_one_process_are_named(model, told):
    config = {"model": model, "MODEL_TYPE": find_type(model), "train_neg_sample_args": None, "max_train_seconds": None}
    with pytest.raises(ConfigError, match=told) as raised:
        check_supported(config, type(model, (), {}) if model == "LightGBM" else find_model(model).load())
    assert "train_workers: 1" in str(raised.value)


def find_type(model: str) -> ModelType:
    return ModelType.DECISIONTREE if model == "LightGBM" else find_model(model).load().type


def test_all_models_of_ours_can_be_trained_so():
    for entry in list_models():
        model_class = entry.load() if entry.origin == "recbole_mm" else None
        if model_class is not None and hooks_of(model_class).is_trainable and entry.name != "Pop":
            assert hooks_of(model_class).supports_ddp, entry.name


def test_a_loss_of_its_own_must_be_vouched_for():
    known = find_model("SASRec").load()
    same = type("Same", (known,), {})
    other = type("Other", (known,), {"calculate_loss": lambda self, interaction: None})
    vouched = type("Vouched", (other,), {"supports_ddp": True})
    assert [hooks_of(one).supports_ddp for one in (same, other, vouched)] == [True, False, True]
    assert hooks_of(full_sequence_class(known)).supports_ddp


def test_a_model_that_normalises_over_its_batch_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with pytest.raises(ConfigError, match=r"normalises over a batch \(1\)"):
        adapt_losses(model)
