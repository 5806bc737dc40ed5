"""GRU4RecF and SASRecF on what encoders make of images and item summaries: they train, rank, and read the vectors."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTImageProcessorPil, ViTModel

import recbole_mm
from recbole_mm.errors import ConfigError
from tests.encoders import write_sentence_encoder

SAMPLED = {"eval_args": {"mode": "uni20"}, "metrics": ["GAUC", "Hit", "MRR"], "topk": [5], "valid_metric": "GAUC"}
SMALL = {"hidden_size": 16, "inner_size": 16, "embedding_size": 16, "n_layers": 1, "n_heads": 1, "num_layers": 1}
SIDE = 16


def write_vision_encoder(folder: Path, kind: str) -> str:
    """A random ViT or ResNet of transformers, with its image processor."""
    torch.manual_seed(0)
    vit = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = {
        "vit": lambda: ViTModel(ViTConfig(**vit, image_size=SIDE, patch_size=8)),
        "resnet": lambda: ResNetModel(
            ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        ),
    }[kind]()
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def settings(toy_settings) -> dict:
    return {**toy_settings, **SAMPLED, **SMALL, "epochs": 3, "learning_rate": 0.01}


@pytest.mark.parametrize("model", ["GRU4RecF", "SASRecF"])
@pytest.mark.parametrize("feature", ["vit", "resnet", "summary", "text"])
def test_feature_models_rank_by_what_an_encoder_sees(model, feature, settings, tmp_path):
    reads = feature if feature in ("summary", "text") else "image"
    folder = tmp_path / "encoder"
    encoder = write_vision_encoder(folder, feature) if reads == "image" else write_sentence_encoder(folder)
    spec = {reads: {"encoder": encoder, "on": reads, "normalize": True}}
    run = recbole_mm.run(model, "toy", config_dict={**settings, "item_features": spec, "selected_features": [reads]})
    assert 0 < run.test_result["gauc"] < 1
    assert set(run.test_result) == {"gauc", "hit@5", "mrr@5"}
    vectors = run.dataset.item_feature(reads)
    assert np.linalg.norm(vectors[1:], axis=1) == pytest.approx(1)
    again = recbole_mm.load(run.run_dir)
    users = run.splits.test.users
    batch = users.interaction[np.arange(len(users))]
    with torch.no_grad():
        scores = run.model.full_sort_predict(batch)
        assert torch.equal(again.model.full_sort_predict(batch), scores)
        layer = run.model.feature_embed_layer.float_seq_embedding_table["item"][0]
        layer.weight.zero_()
        assert not torch.allclose(run.model.full_sort_predict(batch), scores), "the model reads the vectors"


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
@pytest.mark.parametrize("where", ["hub", "folder"])
def test_vgg_says_in_one_line_what_it_needs(where, settings, tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "vgg19", "num_classes": 1000}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    encoder = {"hub": "timm/vgg19.tv_in1k", "folder": str(tmp_path)}[where]
    changed = {"item_features": {"image": {"encoder": encoder, "on": "image"}}, "selected_features": ["image"]}
    with pytest.raises(ConfigError, match="needs timm, which is not installed: pip install timm") as caught:
        recbole_mm.run("GRU4RecF", "toy", config_dict={**settings, **changed})
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_vgg_of_timm_gives_features(settings, tmp_path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model("vgg11", num_classes=3)
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, tmp_path / "model.safetensors"
    )
    described = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 3}
    described |= {"interpolation": "bilinear", "crop_pct": 0.9, "classifier": "head.fc", "first_conv": "features.0"}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vgg11", "pretrained_cfg": described}))
    spec = {"image": {"encoder": str(tmp_path), "on": "image", "kind": "timm", "normalize": True}}
    changed = {"item_features": spec, "selected_features": ["image"]}
    run = recbole_mm.run("GRU4RecF", "toy", config_dict={**settings, **changed, "epochs": 1})
    assert run.dataset.item_feature("image").shape == (run.dataset.item_num, 4096)
    assert 0 < run.test_result["gauc"] < 1
