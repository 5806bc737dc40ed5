"""Stages on a cluster of Ray nodes on this machine: the same values as here, each written once, whatever dies."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from recbole_mm.artifacts.executor import RemoteWork
from recbole_mm.artifacts.fill import FillReport, fill
from recbole_mm.artifacts.store import Store
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.distributed.cluster import Resources, inside_ray, ray_session
from recbole_mm.distributed.stages import NAMES, RayExecutor, open_executor, stage_resources
from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.inputs.context import Context, open_store
from recbole_mm.inputs.model_inputs import provide
from recbole_mm.models.hooks import hooks_of
from recbole_mm.runs import folder as run_folder
from recbole_mm.runs import run as pipeline
from tests.conftest import TOY_SETTINGS, write_toy
from tests.encoders import write_sentence_encoder
from tests.ray_workers import Sines, sine
from tests.reasoning import computed

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
BATCH = 4


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head and a second node, of one CPU each."""
    here = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(here))  # Ray's processes import tests.ray_workers, too
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        torch.set_num_threads(1)  # as many as a worker has CPUs
        made = Cluster(initialize_head=True, head_node_args=NODE)
        try:
            made.add_node(**NODE)
            yield made
        finally:
            made.shutdown()
            torch.set_num_threads(threads)
    assert not ray.is_initialized()


def asked(**changes: Any) -> Resources:
    return Resources(**{"cpus": 1, "gpus": 0, "jobs": 0, "address": None, "store_mb": None, "names": NAMES, **changes})


@pytest.fixture(scope="module")
def executor(cluster: Cluster) -> Iterator[RayExecutor]:
    with RayExecutor(asked(address=cluster.address)) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    """Where workers that serve several tests leave their notes."""
    return tmp_path_factory.mktemp("notes")


class CountingStore(Store):
    """Counts how often a key is written."""

    written: Counter[str]

    def put_many(self, stage: str, values: Mapping[str, Any]) -> None:
        self.written.update(list(values))
        super().put_many(stage, values)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[CountingStore]:
    with CountingStore(tmp_path / "store.sqlite") as made:
        made.written = Counter()
        yield made


def cut(missing: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    items = iter(missing.items())
    while batch := dict(islice(items, BATCH)):
        yield batch


def run(store: Store, executor: RayExecutor | None, inputs: Mapping[str, Any], recipe: Sines, told=None) -> FillReport:
    """`fill` on the cluster, or here."""
    work = RemoteWork(recipe, cut, (lambda _: None) if told is None else told.append)

    def here(batch: list[Any]) -> list[Any]:
        assert executor is None, "nothing is computed here"
        return [sine(number) for number in batch]

    return fill(store, "sine", inputs, here, cut, show_progress=False, executor=executor, remote_work=work)


def contents(path: Path) -> list[tuple]:
    """Everything a store holds, but for the times."""
    with closing(sqlite3.connect(path)) as connection:
        values = connection.execute("SELECT key, stage, dtype, value FROM artifacts ORDER BY key").fetchall()
        failures = connection.execute("SELECT key, stage, reason FROM failures ORDER BY key").fetchall()
    return [*values, *failures]


def notes(folder: Path, what: str) -> list[str]:
    return sorted(path.name for path in folder.glob(f"{what}-*"))


def test_values_are_those_of_the_local_loop_written_once_and_workers_stay(executor, store, tmp_path, shared):
    inputs = {f"k{number}": number for number in range(30)} | {"b": "bad", "t": "text", "n": "nan"}
    told: list[dict] = []
    report = run(store, executor, inputs, Sines(str(shared)), told)
    with Store(tmp_path / "here.sqlite") as here:
        local = run(here, None, inputs, Sines(""))
    assert contents(tmp_path / "store.sqlite") == contents(tmp_path / "here.sqlite")
    assert (report.done, report.computed, report.reasons) == (local.done, local.computed, local.reasons)
    assert report.reasons == {"b": "not a number", "n": "the vector holds NaN or infinity"}
    assert set(store.written.values()) == {1}
    assert sum(one["count"] for one in told) == len(inputs)
    assert len(notes(shared, "begun")) == 9, "the batches are those of the local loop"
    assert all(one["inside"] for one in told), "a process of Ray's knows that it is one"
    assert not inside_ray(), "this one is connected, and none"

    again = run(store, executor, inputs | {"later": 99}, Sines(str(shared)))
    assert again.computed == 1
    assert set(store.written.values()) == {1}
    with pytest.raises(RuntimeError, match=r"^KeyError on the node [\d.]+: 'bug'\n(?s:.*)tests/ray_workers.py"):
        run(store, executor, {"x": "bug"}, Sines(str(shared)))
    assert 1 <= len(notes(shared, "opened")) <= 2, "all by the same workers, which load their model once"


def test_an_interrupted_stage_goes_on_with_the_rest(executor, store, tmp_path, shared):
    inputs = {f"i{number}": 100 + number for number in range(24)}
    work = RemoteWork(Sines(str(shared)), cut)
    stream = executor.stream(work, inputs)
    kept = dict(next(stream))
    stream.close()
    assert executor._queue is None, "its workers are let go of"
    store.put_many("sine", kept)
    report = run(store, executor, inputs, Sines(str(shared)))
    assert (report.done, report.computed) == (24, 24 - BATCH)
    assert store.written == Counter(list(inputs))


def test_a_model_that_a_node_lacks(executor, store, tmp_path):
    with pytest.raises(ModelLoadError, match=r"^no/such/model: no model there \(on the node [\d.]+\)$"):
        run(store, executor, {"x": 1}, Sines(str(tmp_path), fails="model"))
    assert store.count() == 0
    executor.release()


def test_a_batch_too_large_for_the_object_store(executor, store, tmp_path):
    with pytest.raises(ConfigError, match=r"object store of 80 MB is too small for 2 workers: batches of 20.0 MB need"):
        run(store, executor, {"k": np.zeros(20 * 2**20, dtype=np.uint8)}, Sines(str(tmp_path)))
    assert not notes(tmp_path, "opened"), "told before a worker is there"


@pytest.mark.parametrize("spare", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_node_that_dies_in_the_middle_loses_nothing(cluster, executor, tmp_path, spare):
    """With room elsewhere its worker is started again there; without, the other workers make room at the end."""
    executor.close()  # its workers take up the room
    added = cluster.add_node(**NODE) if spare else None
    inputs = {f"k{number}": number for number in range(40)}
    with RayExecutor(asked(address=cluster.address, jobs=2)) as fresh:
        killed: list[str] = []

        class Killing(CountingStore):
            def put_many(self, stage: str, values: Mapping[str, Any]) -> None:
                super().put_many(stage, values)
                own = ray.get_runtime_context().get_node_id()
                busy = {note.split("-")[2] for note in notes(tmp_path, "begun")} - {own}
                if busy and not killed:
                    victim = next(node for node in cluster.list_all_nodes() if node.node_id in busy)
                    killed.append(victim.node_id)
                    cluster.remove_node(victim, allow_graceful=False)

        with Killing(tmp_path / "killing.sqlite") as counted:
            counted.written = Counter()
            report = run(counted, fresh, inputs, Sines(str(tmp_path), 0.5))
    assert killed
    assert (report.done, report.computed, report.failed) == (40, 40, 0)
    assert counted.written == Counter(list(inputs)), "every key is there, written once"
    begun = Counter(note.split("-")[1] for note in notes(tmp_path, "begun"))
    assert len(begun) == 10
    assert sum(begun.values()) <= 10 + 2, "a lost worker costs its batch"
    with Store(tmp_path / "here.sqlite") as here:
        run(here, None, inputs, Sines(""))
    assert contents(tmp_path / "killing.sqlite") == contents(tmp_path / "here.sqlite")
    if not spare:
        cluster.add_node(**NODE)
    assert (added is not None) == spare
    assert len(cluster.list_all_nodes()) == 2


# --- the stages of a run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A small dataset; one image is broken, one is missing."""
    folder = write_toy(tmp_path_factory.mktemp("small"), users=8, items=12)
    (folder / "toy" / "images" / "i3.png").write_bytes(b"no picture")
    (folder / "toy" / "images" / "i5.png").unlink()
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")
    return {"text": write_sentence_encoder(folder / "bert"), "image": str(folder / "vit")}


def settings_of(small: Path, folder: Path, features: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        **TOY_SETTINGS,
        **{"data_path": str(small), "checkpoint_dir": str(folder), "item_features": dict(features)},
        **{"text_backend": "hf", "text_max_new_tokens": 6, "mllm_image_pixels": 56 * 56},
        **changes,
    }


def provided(settings: Mapping[str, Any]) -> tuple[Any, Path]:
    """A dataset with all that the stages give it, and the file of the store."""
    read = {"content_features": list(settings["item_features"])}
    config = Config("SASRecContent", "toy", config_dict={**settings, **read})
    dataset = create_dataset(config)
    provide(config, dataset, hooks_of(config.model_class), open_executor=partial(open_executor, config))
    return dataset, Path(settings["checkpoint_dir"]) / "artifacts" / "artifacts.sqlite"


def both_ways(cluster: Cluster, settings: dict[str, Any], folder: Path) -> tuple[Any, Any, Path]:
    """A dataset with what is computed here, one with what is computed on the cluster, and the store of both."""
    here, local = provided({**settings, "checkpoint_dir": str(folder / "here")})
    shutil.copytree(folder / "here" / "artifacts", folder / "there" / "artifacts")  # the tiny model, and no values
    for path in (folder / "there" / "artifacts").glob("artifacts.sqlite*"):
        path.unlink()
    there, remote = provided({**settings, "checkpoint_dir": str(folder / "there"), "ray_address": cluster.address})
    assert contents(remote) == contents(local)
    for name in settings["item_features"]:
        assert here.inputs.item_features[name].any()
        assert np.array_equal(here.inputs.item_features[name], there.inputs.item_features[name])
    assert there.content.problems == here.content.problems
    assert list(there.content.problems) == ["i3"]
    return here, there, local


@pytest.mark.parametrize(
    "changes", [{}, {"mllm_layers": 1, "mllm_pooling": "mean", "mllm_instruction": "An item: "}], ids=["usual", "mean"]
)
def test_items_are_encoded_as_by_the_local_loop_bit_for_bit(cluster, executor, small, tmp_path, monkeypatch, changes):
    executor.close()
    settings = settings_of(small, tmp_path, {"both": {"encoder": "mllm"}}, **changes)
    here, _, local = both_ways(cluster, settings, tmp_path)
    assert {stage for _, stage, *_ in contents(local)} == {"item_vector"}
    monkeypatch.setattr("recbole_mm.distributed.stages.ray_session", lambda _: pytest.fail("Ray is not needed"))
    lost = {"checkpoint_dir": str(tmp_path / "there"), "ray_address": "127.0.0.1:1"}
    again, _ = provided({**settings, **lost})
    assert np.array_equal(here.inputs.item_features["both"], again.inputs.item_features["both"]), "all is there already"


@pytest.mark.slow  # two pools of workers, which import sentence-transformers
def test_features_are_those_of_the_local_loop_bit_for_bit(cluster, executor, small, models, tmp_path):
    executor.close()
    seen = {"encoder": models["image"], "on": "image", "batch_size": 5}
    told = {"encoder": models["text"], "on": "text", "batch_size": 5}
    _, _, local = both_ways(cluster, settings_of(small, tmp_path, {"seen": seen, "told": told}), tmp_path)
    assert {stage for _, stage, *_ in contents(local)} == {"image_vector", "text_vector"}


def test_descriptions_and_chains_are_written_as_here_by_workers_that_stay(cluster, small, tmp_path, monkeypatch):
    written = {"item_text": "fused", "sft_tuning": "lora", "sft_targets": 1, "preference_block": 3}
    changes = {**written, "preference": "recurrent", "text_context_tokens": 600}
    opened: list[Any] = []
    told = []
    for place, address in (("here", None), ("there", cluster.address)):
        settings = settings_of(small, tmp_path / place, {}, ray_address=address, **changes)
        config = Config("SASRec", "toy", config_dict=settings)
        dataset = create_dataset(config)
        with open_executor(config) as executor, open_store(config) as store:
            if executor is not None:
                monkeypatch.setattr(executor, "_start_queue", noting(executor._start_queue, opened))
                loaded = property(lambda _: pytest.fail("its weights are loaded here"))
                monkeypatch.setattr("recbole_mm.llm.texts.hf.HfGenerator.writer", loaded)
            needs = ("item_texts", "user_preferences")
            told.append(computed(Context(config, dataset, store, needs=needs, executor=executor)))
    paths = [tmp_path / place / "artifacts" / "artifacts.sqlite" for place in ("here", "there")]
    assert contents(paths[0]) == contents(paths[1])
    stages = Counter(stage for _, stage, *_ in contents(paths[0]))
    assert stages["item_description"] == 11, "one of them failed: its image is broken"
    assert stages["user_preference"] > 8, "some wait for others"
    assert told[0]["item_texts"] == told[1]["item_texts"]
    assert len(opened) == 1, "the model is loaded once, not for every stage and round"


def noting(function: Callable[[Any], Any], told: list[Any]) -> Callable[[Any], Any]:
    """The function, which notes what it is called with."""

    def noted(argument: Any) -> Any:
        told.append(argument)
        return function(argument)

    return noted


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ray_workers": 9}, "ray_workers=9: this machine has room for 4 at the same time, of 1 CPU each;"),
        ({"ray_cpus_per_worker": 5}, "ray_cpus_per_worker=5: this machine has 4 CPUs; give at most as many"),
        ({"ray_gpus_per_worker": 1}, "ray_gpus_per_worker=1: this machine has 0 GPUs; give at most as many"),
        ({"ray_object_store_mb": 10}, "ray_object_store_mb=10 is too small: Ray needs at least 75"),
        ({"ray_address": "nowhere"}, "ray_address=nowhere: give auto, host:port"),
        ({"ray_address": "127.0.0.1:1"}, "ray_address=127.0.0.1:1: no Ray cluster can be reached there"),
        ({"ray_address": "127.0.0.1:1", "ray_object_store_mb": 100}, "ray_object_store_mb is for a Ray"),
        ({"ray_workers": -1}, "ray_workers: -1 is not accepted"),
        ({"ray_gpus_per_worker": -1}, "ray_gpus_per_worker: -1 is not accepted"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_spent(toy_settings, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr("recbole_mm.distributed.cluster.cores", lambda: 4)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    settings = {**toy_settings, "ray_address": "local", "ray_cpus_per_worker": 1, **changes}
    settings |= {"item_features": {"both": {"encoder": "mllm"}}, "content_features": ["both"]}
    with pytest.raises(ConfigError) as caught:
        pipeline.run("SASRecContent", "toy", config_dict=settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "saved").exists()


def test_auto_where_no_ray_runs(monkeypatch):
    def refuse(**_: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance. Set the `--address` flag.")

    for name, function in {"init": refuse, "is_initialized": lambda: False, "shutdown": lambda: None}.items():
        monkeypatch.setattr(f"ray.{name}", function)
    with pytest.raises(ConfigError) as caught, ray_session(asked(address="auto")):
        pass
    assert str(caught.value) == "ray_address=auto: no Ray runs on this machine; start one with `ray start --head`"


def test_more_workers_than_a_cluster_has_room_for(cluster, store, tmp_path):
    told = pytest.raises(ConfigError, match=r"ray_workers=7: the cluster has room for 2 at the same time")
    with RayExecutor(asked(address=cluster.address, jobs=7)) as executor, told:
        run(store, executor, {"k": 1}, Sines(str(tmp_path)))


def test_a_model_without_stages_asks_nothing_of_ray(toy_settings):
    assert pipeline.run("Pop", "toy", config_dict={**toy_settings, "ray_address": "127.0.0.1:1"}).test_result


def test_the_defaults_of_a_worker(toy_config):
    assert stage_resources(toy_config()) is None
    found = stage_resources(toy_config(ray_address="local", ray_workers=3))
    assert found is not None
    assert (found.cpus, found.gpus, found.jobs, found.is_local) == (torch.get_num_threads(), 0, 3, True)
    shared = stage_resources(toy_config(ray_address="auto", ray_gpus_per_worker=0.5))
    assert shared is not None
    assert (shared.cpus, shared.gpus) == (1, 0.5)


def test_where_a_stage_runs_has_no_effect_on_the_result(toy_config):
    plain = toy_config()
    elsewhere = toy_config(ray_address="auto", ray_workers=2, ray_gpus_per_worker=1, ray_cpus_per_worker=2)
    assert run_folder.first_run_dir(plain) == run_folder.first_run_dir(elsewhere)
