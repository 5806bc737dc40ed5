"""Items to vectors: independent of the batch, computed once, resumable, honest about what is missing."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recbole_mm.artifacts.store import Store
from recbole_mm.errors import ConfigError, DataError
from recbole_mm.llm.encode import STAGE, ItemEncoder
from recbole_mm.llm.item_vectors import encode_items
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pooling import Pooling
from recbole_mm.llm.prompts import ItemPrompt
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.utils.prefetch import prefetch

WORDS = ["red", "green", "golden", "shoe", "ship", "garden", "lamp", "night", "river", "stone", "horse", "castle"]
PIXELS = 112 * 112


@dataclass(frozen=True)
class Record:
    item_id: str
    text: str | None
    image: Image.Image | None


class FakeContent:
    """Content in memory, with the interface of `recbole_mm.data.content.ItemContent`. Counts what is decoded."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = [Record("[PAD]", None, None), *records]
        self.decoded: list[int] = []
        self.lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        with self.lock:
            self.decoded.append(index)
        return self.records[index]

    def text(self, index: int) -> str | None:
        return self.records[index].text

    def fingerprint(self, index: int) -> str:
        record = self.records[index]
        image = b"" if record.image is None else record.image.tobytes() + str(record.image.size).encode()
        return hashlib.sha256(repr(record.text).encode() + image).hexdigest()


def picture(seed: int, width: int = 60, height: int = 90) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def sentence(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def make_records(count: int) -> list[Record]:
    """Texts of 3 to 60 words, images of several shapes; a quarter lacks a text, another an image."""
    rng = np.random.default_rng(8)
    sizes = [(60, 90), (200, 80), (40, 40), (90, 260)]
    records = []
    for i in range(count):
        text = None if i % 4 == 3 else sentence(i, int(rng.integers(3, 60)))
        image = None if i % 4 == 1 else picture(i, *sizes[i % len(sizes)])
        records.append(Record(f"i{i}", text, image))
    return records


@pytest.fixture(scope="session")
def mllm(tmp_path_factory: pytest.TempPathFactory) -> MLLM:
    corpus = [sentence(i, 30) for i in range(50)]
    return load_mllm(build_tiny(corpus, tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """How a CPU's batches are cut depends on its cores; the tests should not."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def encoder(mllm: MLLM) -> ItemEncoder:
    return ItemEncoder(mllm, image_pixels=PIXELS, tokens_per_batch=1000, threads=3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "artifacts.sqlite")


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_a_vector_does_not_depend_on_its_batch(encoder: ItemEncoder) -> None:
    records = make_records(30)
    together = encoder.encode(records)
    assert together.shape == (30, encoder.mllm.hidden_size)
    assert together.dtype == np.float32
    assert np.isfinite(together).all()
    close(together, np.concatenate([encoder.encode([record]) for record in records]))
    close(together[::-1], encoder.encode(records[::-1]))
    encoder.tokens_per_batch = 10**6
    close(together, encoder.encode(records))
    torch.set_num_threads(2)
    close(together, encoder.encode(records))


def test_vectors_are_the_hidden_state_at_cur_item(encoder: ItemEncoder) -> None:
    """Eq. (1), spelled out for one item with transformers alone."""
    record = make_records(1)[0]
    mllm, prompt = encoder.mllm, encoder.prompt
    tokenizer, config = mllm.tokenizer, mllm.model.config
    seen = mllm.image_processor(
        record.image, size={"shortest_edge": 56 * 56, "longest_edge": PIXELS}, return_tensors="pt"
    )
    pads = int(seen["image_grid_thw"].prod()) // config.vision_config.spatial_merge_size**2
    parts = ["<|vision_start|>" + "<|image_pad|>" * pads + "<|vision_end|>", record.text]
    parts += [f"\n{prompt.image_and_text}", "[Cur_Item]"]
    ids = torch.tensor([[token for part in parts for token in tokenizer(part)["input_ids"]]])
    with torch.inference_mode():
        states = mllm.model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == config.image_token_id).int(),
            **seen,
        ).last_hidden_state
    assert tokenizer.decode(ids[0, -1]) == "[Cur_Item]"
    close(encoder.encode([record])[0], states[0, -1].numpy())


def test_image_text_and_prompt_all_matter(encoder: ItemEncoder, mllm: MLLM) -> None:
    text, image = "a golden castle", picture(1)
    records = [Record("a", text, image), Record("b", text, None), Record("c", None, image)]
    records += [Record("d", "a silver horse", image), Record("e", text, picture(2))]
    vectors = encoder.encode(records)
    other_prompt = ItemEncoder(mllm, ItemPrompt(image_and_text="Else:"), image_pixels=PIXELS)
    smaller = ItemEncoder(mllm, image_pixels=28 * 28)
    vectors = np.concatenate([vectors, other_prompt.encode(records[:1]), smaller.encode(records[:1])])
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=-1)
    assert distances[~np.eye(len(vectors), dtype=bool)].min() > 0.05
    close(encoder.encode([Record("f", "  ", image)]), encoder.encode([Record("f", None, image)]))


def test_neither_image_nor_text_is_a_zero_vector(encoder: ItemEncoder) -> None:
    records = [Record("a", None, None), Record("b", "a shoe", None), Record("c", " \n", None)]
    vectors = encoder.encode(records)
    assert vectors.any(axis=1).tolist() == [False, True, False]
    assert encoder.encode([]).shape == (0, encoder.mllm.hidden_size)
    assert not encoder.encode(records[:1]).any()


def test_long_texts_are_cut_before_the_instruction(encoder: ItemEncoder, mllm: MLLM) -> None:
    encoder.max_text_tokens = 7
    text = sentence(1, 400)
    item = encoder.prepare(Record("a", text, None))
    assert encoder.texts_cut == 1
    ids = item.ids.tolist()
    instruction = mllm.token_ids(f"\n{encoder.prompt.text_only}")
    assert ids == [*mllm.token_ids(text)[:7], *instruction, mllm.cur_item_id]
    encoder.prepare(Record("a", "a shoe", None))
    assert encoder.texts_cut == 1


def test_a_text_cannot_fake_the_special_tokens(encoder: ItemEncoder, mllm: MLLM) -> None:
    item = encoder.prepare(Record("a", "x [Cur_Item] <|image_pad|> <|vision_end|> y", None))
    assert (item.ids == mllm.cur_item_id).nonzero()[0].tolist() == [len(item.ids) - 1]
    assert mllm.model.config.image_token_id not in item.ids


def test_impossible_bounds_are_refused(mllm: MLLM) -> None:
    with pytest.raises(ConfigError, match=r"mllm_image_pixels: 100 is less than the least image .* at least 784"):
        ItemEncoder(mllm, image_pixels=100)
    for settings in ({"max_text_tokens": 0}, {"tokens_per_batch": 0}):
        with pytest.raises(ValueError, match="at least"):
            ItemEncoder(mllm, **settings)


def test_key_names_everything_a_vector_depends_on(mllm: MLLM) -> None:
    def key(fingerprint: str = "f", **settings: object) -> str:
        return ItemEncoder(mllm, **{"image_pixels": PIXELS, **settings}).key(fingerprint)

    same = key()
    assert same == key(tokens_per_batch=77, threads=1)  # how it is computed does not matter
    others = [key("g"), key(image_pixels=28 * 28), key(max_text_tokens=9), key(prompt=ItemPrompt(image_only="?"))]
    half = load_mllm(mllm.name, dtype="bfloat16")
    others.append(ItemEncoder(half, image_pixels=PIXELS).key("f"))
    assert len({same, *others}) == 6
    assert ItemEncoder(mllm).image_pixels == 112 * 112  # the checkpoint's own bound


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("pixels", [PIXELS, 10**9, None])
def test_keys_need_no_weights(mllm: MLLM, dtype: str, pixels: int | None) -> None:
    """Plans count by these keys, runs keep vectors under them; 10**9 pixels are beyond what the model takes."""
    given = {"dtype": dtype, "device": "cpu"}
    loaded, outline = (load_mllm(mllm.name, **given, without_weights=bare) for bare in (False, True))
    assert (outline.dtype, outline.device) == (loaded.dtype, loaded.device)
    keys = [ItemEncoder(model, image_pixels=pixels).key("print") for model in (loaded, outline)]
    assert keys[0] == keys[1]


def test_half_precision_weights_give_float32_vectors(mllm: MLLM, encoder: ItemEncoder) -> None:
    record = make_records(1)
    half = ItemEncoder(load_mllm(mllm.name, dtype="bfloat16"), image_pixels=PIXELS).encode(record)
    assert half.dtype == np.float32
    full = encoder.encode(record)
    assert 0 < np.abs(half - full).max() < 0.2 * np.abs(full).max()


@pytest.mark.parametrize("instruction", ["", "A product: "])
def test_vectors_of_the_last_token_and_of_the_mean_are_those_of_a_plain_pass(mllm: MLLM, instruction: str) -> None:
    records = [Record(f"i{row}", sentence(row, 3 + 9 * row), None) for row in range(4)]
    ids = [torch.tensor([mllm.token_ids(instruction + record.text)]) for record in records]
    with torch.inference_mode():
        states = [mllm.model(input_ids=each).last_hidden_state[0] for each in ids]
    skipped = len(mllm.token_ids(instruction)) if instruction else 0
    expected = {
        Pooling("last", instruction): [each[-1] for each in states],
        Pooling("mean", instruction): [each.mean(0) for each in states],
        Pooling("mean", instruction, counts_instruction=False): [each[skipped:].mean(0) for each in states],
        Pooling("last", instruction, normalize=True): [each[-1] / each[-1].norm() for each in states],
    }
    for pooling, vectors in expected.items():
        encoder = ItemEncoder(mllm, image_pixels=PIXELS, pooling=pooling)
        close(encoder.encode(records), torch.stack(vectors).numpy())


@pytest.mark.parametrize("pooling", [Pooling("last"), Pooling("mean"), Pooling("cur_item", "A product: ")])
def test_pooled_vectors_do_not_depend_on_their_batch_and_read_images(mllm: MLLM, pooling: Pooling) -> None:
    encoder = ItemEncoder(mllm, image_pixels=PIXELS, tokens_per_batch=1000, pooling=pooling)
    records = make_records(12)
    together = encoder.encode(records)
    close(together, np.concatenate([encoder.encode([record]) for record in records]))
    text = "a golden castle"
    pictures = encoder.encode([Record("a", text, picture(1)), Record("b", text, picture(2)), Record("c", text, None)])
    assert np.linalg.norm(pictures[:, None] - pictures[None], axis=-1)[~np.eye(3, dtype=bool)].min() > 1e-3


def test_an_image_that_leaves_no_room_is_named(mllm: MLLM, monkeypatch) -> None:
    encoder = ItemEncoder(mllm, image_pixels=PIXELS, max_text_tokens=20)
    text = sentence(1, 30)
    lengths = {bool(image): len(encoder.prepare(Record("a", text, image)).ids) for image in (None, picture(1))}
    assert lengths[True] > lengths[False]
    monkeypatch.setattr(type(mllm), "context", property(lambda self: lengths[True] - 1))
    encoder = ItemEncoder(mllm, image_pixels=PIXELS, max_text_tokens=20)
    assert encoder.encode([Record("a", text, None)]).any()
    with pytest.raises(ConfigError, match=rf"item i7: its image and text are {lengths[True]} tokens, and .* can read"):
        encoder.encode([Record("i7", text, picture(1))])


def test_the_first_layers_alone_are_those_of_the_whole_model(mllm: MLLM) -> None:
    """The state after one layer and the final norm, by transformers' own `output_hidden_states`."""
    record = Record("a", sentence(1, 12), None)
    whole, first = (ItemEncoder(mllm, image_pixels=PIXELS, layers=layers) for layers in (None, 1))
    ids = torch.from_numpy(whole.prepare(record).ids)[None]
    with torch.inference_mode():
        inner = mllm.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0, -1]
        expected = mllm.family.decoder(mllm.model).norm(inner)
    close(first.encode([record])[0], expected.numpy())
    assert len(mllm.family.decoder(mllm.model).layers) == 2, "the model that it was cut from is left as it is"
    counts = (mllm.model.config.get_text_config(), first.mllm.model.config.get_text_config())
    assert [config.num_hidden_layers for config in counts] == [2, 1]
    close(ItemEncoder(mllm, image_pixels=PIXELS, layers=2).encode([record]), whole.encode([record]))
    weights = {weight.data_ptr() for weight in mllm.model.parameters()}
    assert all(weight.data_ptr() in weights for weight in first.mllm.model.parameters()), "nothing is copied"
    for layers in (0, 3):
        with pytest.raises(ConfigError, match="mllm_layers: the LLM has 2 layers; give 1 to 2, or null for all"):
            ItemEncoder(mllm, layers=layers)


def test_keys_tell_layers_and_pooling_and_stay_as_they_were_without(mllm: MLLM) -> None:
    usual = ItemEncoder(mllm, image_pixels=PIXELS)
    assert usual.parameters.keys() == {"recipe", "image_pixels", "max_text_tokens", "precision"}
    assert usual.key("f") == ItemEncoder(mllm, image_pixels=PIXELS, pooling=Pooling()).key("f")
    poolings = [Pooling("last"), Pooling("mean"), Pooling("mean", "x"), Pooling("mean", "x", False)]
    poolings += [Pooling("last", normalize=True), Pooling("cur_item", "x")]
    others = [ItemEncoder(mllm, image_pixels=PIXELS, pooling=pooling).key("f") for pooling in poolings]
    others += [ItemEncoder(mllm, image_pixels=PIXELS, layers=layers).key("f") for layers in (1, 2)]
    assert len({usual.key("f"), *others}) == 9
    outline = load_mllm(mllm.name, without_weights=True)
    cut = {"image_pixels": PIXELS, "layers": 1, "pooling": Pooling("mean")}
    assert ItemEncoder(outline, **cut).key("f") == ItemEncoder(mllm, **cut).key("f")


# --- batches and threads ---------------------------------------------------------------------------------------------


def test_gpu_batches_hold_similar_lengths_within_the_budget(encoder: ItemEncoder) -> None:
    records = make_records(60)
    order = sorted(range(60), key=lambda row: -len(records[row].text or ""))
    batches = list(encoder._prepared_batches(records.__getitem__, order))
    assert [row for batch in batches for row in batch] == order
    costs = [
        len(batch) * max(len(item.ids) for item in batch.values()) + sum(item.patches for item in batch.values())
        for batch in batches
    ]
    assert max(costs) <= encoder.tokens_per_batch
    assert len(batches) <= 1.5 * sum(costs) / encoder.tokens_per_batch + 1
    together = np.concatenate([encoder.compute(list(batch.values())) for batch in batches])
    close(together[np.argsort(order)], encoder.encode(records))
    encoder.tokens_per_batch = 10  # less than any item
    assert [len(batch) for batch in encoder._prepared_batches(records.__getitem__, order)] == [1] * 60


def test_gpu_items_are_prepared_in_threads_ahead_of_the_model(encoder: ItemEncoder) -> None:
    records = make_records(40)
    threads: set[str] = set()
    loaded: list[int] = []

    def load(row: int) -> Record:
        threads.add(threading.current_thread().name)
        loaded.append(row)
        return records[row]

    batches = encoder._prepared_batches(load, range(40))
    first = next(batches)
    deadline = time.monotonic() + 30
    while len(loaded) <= len(first) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(first) < len(loaded) < 40  # some of the next are ready, but not all of them in memory
    batches.close()
    assert threading.current_thread().name not in threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_cpu_batches_are_prepared_by_the_cores_that_run_them(encoder: ItemEncoder) -> None:
    records = make_records(60)
    lengths = {row: len(record.text or "") for row, record in enumerate(records)}
    loaded: list[int] = []
    batches = list(encoder.batches(lambda row: loaded.append(row) or records[row], lengths))
    assert loaded == []
    order = [row for batch in batches for row in batch]
    assert order == sorted(range(60), key=lambda row: -lengths[row])
    items = [item() for item in batches[0].values()]
    assert loaded == list(batches[0])
    per_core = encoder._items_per_part
    assert per_core * max(len(item.ids) + item.patches for item in items) <= encoder.tokens_per_batch
    assert len(items) == per_core * 4 * torch.get_num_threads()
    encoder.tokens_per_batch = 10  # less than any item
    assert encoder._items_per_part == 1


def test_ahead_keeps_order_bounds_and_errors() -> None:
    running: list[int] = []

    def work(value: int) -> int:
        running.append(value)
        time.sleep(0.001 * (value % 3))
        if value == 50:
            raise ValueError("broken 50")
        return value * 2

    stream = prefetch(work, range(50), threads=4, depth=8)
    assert next(stream) == 0
    time.sleep(0.1)
    assert max(running) < 12
    assert list(stream) == [value * 2 for value in range(1, 50)]
    with pytest.raises(ValueError, match="broken 50"):
        list(prefetch(work, range(1000), threads=4, depth=8))
    assert max(running) < 100
    assert list(prefetch(work, [], threads=4, depth=8)) == []


def test_cpu_work_is_shared_out_and_torchs_thread_count_stays(
    encoder: ItemEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = make_records(24)
    expected = encoder.encode(records)
    seen: list[tuple[str, int, int]] = []
    run = MLLM.last_hidden_states

    def watched(mllm: MLLM, items: Sequence) -> torch.Tensor:
        seen.append((threading.current_thread().name, torch.get_num_threads(), len(items)))
        return run(mllm, items)

    monkeypatch.setattr(MLLM, "last_hidden_states", watched)
    items = [encoder.prepare(record) for record in records]
    newborn: list[int] = []
    torch.set_num_threads(3)
    close(np.stack(encoder.compute(items)), expected)
    assert torch.get_num_threads() == 3
    thread = threading.Thread(target=lambda: newborn.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert newborn == [3]
    assert [size for *_, size in seen] == [2] * 12
    assert all(name.startswith("encode") and threads == 1 for name, threads, _ in seen)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_an_encoder_works_on_in_a_forked_child(encoder: ItemEncoder) -> None:
    items = [encoder.prepare(record) for record in make_records(4)]
    encoder._workers(2)
    parents = encoder._pool
    child = os.fork()
    if child == 0:
        os._exit(0 if encoder._workers(2) is not parents else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert encoder._workers(2) is parents
    assert len(encoder.compute(items)) == 4


def test_a_batch_too_big_for_the_gpu_is_halved(encoder: ItemEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_records(7)
    expected = encoder.encode(records)
    run = MLLM.last_hidden_states
    sizes: list[int] = []

    def small_memory(mllm: MLLM, items: Sequence) -> torch.Tensor:
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return run(mllm, items)

    monkeypatch.setattr(MLLM, "last_hidden_states", small_memory)
    items = [encoder.prepare(record) for record in records]
    close(encoder._forward(items), expected)
    assert max(sizes) == 7

    def no_memory(mllm: MLLM, items: Sequence) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(MLLM, "last_hidden_states", no_memory)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        encoder._forward(items)


# --- through the store -----------------------------------------------------------------------------------------------


def test_every_distinct_item_is_computed_once(
    encoder: ItemEncoder, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    records = make_records(20)
    twins = [Record("twin of 2", records[2].text, records[2].image), Record("twin of 5", records[5].text, None)]
    content = FakeContent([*records, *twins, Record("empty", None, None), Record("blank", " ", None)])
    encoder.max_text_tokens = 20
    with caplog.at_level(logging.INFO):
        vectors = encode_items(content, encoder, store, show_progress=False)
    assert vectors.shape == (25, encoder.mllm.hidden_size)
    assert vectors.dtype == np.float32
    assert not vectors[0].any()
    close(vectors[1:], encoder.encode(content.records[1:]))
    np.testing.assert_array_equal(vectors[[21, 22]], vectors[[3, 6]])
    assert not vectors[[23, 24]].any()
    assert "24 items, 22 distinct, 22 computed" in caplog.text
    cut = sum(len(encoder.mllm.token_ids(record.text or "")) > 20 for record in records)
    assert cut > 0
    assert f"{cut} texts cut to 20 tokens" in caplog.text
    assert "2 items have neither image nor text: their vectors are zeros (empty, blank)" in caplog.text
    assert store.count(STAGE) == 22

    content.decoded.clear()
    again = encode_items(content, encoder, store, show_progress=False)
    np.testing.assert_array_equal(again, vectors)
    assert set(content.decoded) == {23, 24}  # only to name them in the log


def test_only_what_changed_is_computed_again(encoder: ItemEncoder, store: Store) -> None:
    records = make_records(10)
    before = encode_items(FakeContent(records), encoder, store, show_progress=False)
    records[6] = Record("i6", "a new text", records[6].image)
    content = FakeContent([*records[::-1]])
    after = encode_items(content, encoder, store, show_progress=False)
    assert content.decoded == [4]  # i6, counted from the end
    kept = [row for row in range(1, 11) if row != 7]
    np.testing.assert_array_equal(after[::-1][:-1][[row - 1 for row in kept]], before[kept])
    assert store.count() == 11


def test_an_interrupted_run_goes_on(encoder: ItemEncoder, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    content = FakeContent(make_records(30))
    compute, calls = ItemEncoder.compute, []

    def interrupted(self: ItemEncoder, items: Sequence) -> list[np.ndarray]:
        calls.append(len(items))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, items)

    monkeypatch.setattr(ItemEncoder, "compute", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_items(content, encoder, store, show_progress=False)
    assert store.count() == sum(calls[:2]) > 0
    monkeypatch.undo()
    kept = store.count()
    content.decoded.clear()
    vectors = encode_items(content, encoder, store, show_progress=False)
    assert len(content.decoded) == 30 - kept
    close(vectors[1:], encoder.encode(content.records[1:]))


def test_trouble_with_an_item_reaches_the_caller(encoder: ItemEncoder, store: Store) -> None:
    class Broken(FakeContent):
        def __getitem__(self, index: int) -> Record:
            if index == 5:
                raise RuntimeError("item 5 cannot be read")
            return super().__getitem__(index)

    with pytest.raises(RuntimeError, match="item 5"):
        encode_items(Broken(make_records(30)), encoder, store, show_progress=False)
    encode_items(FakeContent(make_records(30)), encoder, store, show_progress=False)


def test_a_vector_that_is_not_finite_is_an_error_with_its_item_and_encoder(
    encoder: ItemEncoder, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = FakeContent([Record("fine", "a shoe", None), Record("bad", "a much longer text of a lamp", None)])
    compute = ItemEncoder.compute

    def overflowing(self: ItemEncoder, items: Sequence) -> list[np.ndarray]:
        vectors = compute(self, items)
        vectors[0] = np.full_like(vectors[0], np.inf)  # the longest comes first
        return vectors

    monkeypatch.setattr(ItemEncoder, "compute", overflowing)
    with pytest.raises(
        DataError, match=r"^the multimodal LLM .* gave NaN or infinity for 1 inputs, such as item 'bad';"
    ):
        encode_items(content, encoder, store, show_progress=False)
    assert store.count(STAGE) == 1, "what could be computed is kept"
    assert list(store.failures(STAGE).values()) == ["the vector holds NaN or infinity"]


def test_content_without_items(encoder: ItemEncoder, store: Store) -> None:
    assert encode_items(FakeContent([]), encoder, store).shape == (1, encoder.mllm.hidden_size)
    lonely = encode_items(FakeContent([Record("a", None, None)]), encoder, store)
    assert lonely.shape == (2, encoder.mllm.hidden_size)
    assert not lonely.any()


def test_rooms_content_fits(encoder: ItemEncoder, store: Store, toy_path: Path) -> None:
    """The data room's own content, with its images on disk, goes through as the fake does."""
    from recbole_mm.data.content import ContentSource, ItemContent
    from recbole_mm.data.images import FolderImages

    source = ContentSource(images=FolderImages(toy_path / "toy" / "images"), modalities=["image"])
    content = ItemContent(source, ["[PAD]", *(f"i{i}" for i in range(12)), "none"])
    vectors = encode_items(content, encoder, store, show_progress=False)
    assert vectors.any(axis=1).tolist() == [False, *[True] * 12, False]
    np.testing.assert_array_equal(vectors[1], vectors[5])  # the same picture under another name


@pytest.mark.realdata
def test_real_posters_and_plots(encoder: ItemEncoder, store: Store, real_data: Path) -> None:
    from recbole_mm.data.decode import decode_image
    from recbole_mm.data.images import FolderImages

    folder = real_data / "ml-100k-mm"
    posters = FolderImages(folder / "posters")
    with (folder / "items_mm.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:120]
    records = []
    for row in rows:
        name = row["item_id"]
        image = decode_image(posters.read(name), name) if posters.has(name) else None
        records.append(Record(name, f"{row['title']}\n{row['genres']}\n{row['omdb_plot']}", image))
    assert sum(record.image is not None for record in records) > 100
    vectors = encode_items(FakeContent(records), encoder, store, show_progress=False)[1:]
    close(vectors, np.concatenate([encoder.encode([record]) for record in records]))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (unit @ unit.T)[~np.eye(len(unit), dtype=bool)].max() < 0.999  # every film has a vector of its own
