"""A model's folder does not decide what is executed: no code of its own runs, no pickle is read, nobody is asked."""

from __future__ import annotations

import builtins
import json
import pickle
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTImageProcessorPil, ViTModel

from recbole_mm.data.features import FeatureSpec
from recbole_mm.errors import ModelLoadError
from recbole_mm.llm import pretrained
from recbole_mm.llm.encoders import SentenceEncoder, TimmEncoder, VisionEncoder, open_encoder
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.pretrained import Pretrained, open_pretrained
from recbole_mm.llm.texts.writers import read_tokenizer, text_writer
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.utils.files import CHECKSUMS
from tests.encoders import write_sentence_encoder

PACKAGE = Path(pretrained.__file__).parents[1]
AUTO = {
    name: f"evil.{name}"
    for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoImageProcessor", "AutoFeatureExtractor")
} | {"AutoTokenizer": ["evil.Slow", "evil.Fast"], "AutoModelForImageTextToText": "evil.AutoModel"}
CODE = """
from pathlib import Path
Path({marker!r}).touch()
class Evil:
    @classmethod
    def from_pretrained(cls, *args, **kwargs): return cls()
    register_for_auto_class = classmethod(lambda cls, *args: None)
AutoConfig = AutoModel = AutoModelForCausalLM = AutoImageProcessor = AutoFeatureExtractor = Slow = Fast = Evil
def generate(*args, **kwargs): pass
"""


class Bomb:
    """A pickle that leaves a marker when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*args: Any) -> str:
        raise AssertionError("somebody was asked on the terminal")

    monkeypatch.setattr(builtins, "input", asked)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "code-was-run"


@pytest.fixture
def poison(tmp_path: Path, marker: Path) -> Callable[..., Path]:
    """A copy of a model's folder with Python code that every one of its JSON files asks for."""

    def poisoned(folder: Path | str, **changed: dict[str, Any]) -> Path:
        target = tmp_path / "model"
        shutil.copytree(folder, target)
        (target / "evil.py").write_text(CODE.format(marker=str(marker)))
        (target / "custom_generate").mkdir()
        (target / "custom_generate/generate.py").write_text(CODE.format(marker=str(marker)))
        names = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
        for name in names:
            path = target / name
            settings = json.loads(path.read_text()) if path.exists() else {}
            settings |= {"auto_map": AUTO} | changed.get(name.partition(".")[0], {})
            path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
        return target

    return poisoned


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = build_tiny(["a red shoe"], tmp_path_factory.mktemp("llm") / "tiny", seed=1)
    (folder / CHECKSUMS).unlink()  # a stranger's folder has none
    return folder


@pytest.fixture(scope="module")
def text_llm(llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(llm / name, folder / name)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=8192, num_key_value_heads=2, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of sentence-transformers in modules: a transformer, a mean, a dense layer."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Pooling, Transformer

    plain, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("modules")
    transformer = Transformer(write_sentence_encoder(plain))
    model = SentenceTransformer(modules=[transformer, Pooling(24), Dense(24, 8)])
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def refused(load: Callable[[], Any], marker: Path) -> str:
    """The one line that a load ends in."""
    with pytest.raises(ModelLoadError) as error:
        load()
    assert not marker.exists()
    assert "\n" not in str(error.value)
    return str(error.value)


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without_weights", [False, True])
def test_a_multimodal_llm(llm, poison, marker, without_weights):
    load_mllm(poison(llm), without_weights=without_weights)
    assert not marker.exists()


def test_a_tokenizer_that_needs_code_names_the_setting(text_llm, poison, marker):
    folder = poison(text_llm, config={"model_type": "unheard-of"}, tokenizer_config={"tokenizer_class": "Slow"})
    told = refused(lambda: read_tokenizer(Pretrained("some/llm", folder)), marker)
    assert told.startswith("some/llm: it comes with Python code of its own, which is not run; ")
    assert "trust_remote_code: True" in told


def test_a_tuned_llm_with_its_adapter(llm, poison, marker, tmp_path):
    base = poison(llm)
    mllm = load_mllm(llm, with_head=True)
    adapter = tmp_path / "adapter"
    get_peft_model(mllm.model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj")).save_pretrained(adapter)
    mllm.tokenizer.save_pretrained(adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    evil = {"base_model_name_or_path": str(base), "auto_mapping": {"base_model_class": "E", "parent_library": "evil"}}
    (adapter / "adapter_config.json").write_text(json.dumps(settings | evil))
    shutil.copy(base / "evil.py", adapter / "evil.py")
    words = json.loads((adapter / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps(words | {"auto_map": AUTO}))
    load_mllm(adapter)
    assert not marker.exists()


def test_a_text_llm(text_llm, poison, marker):
    text_writer(Pretrained("some/llm", poison(text_llm)), torch.device("cpu"), "float32")
    assert not marker.exists()


@pytest.mark.parametrize(
    "changed",
    [
        {"preprocessor_config": {"image_processor_type": None, "feature_extractor_type": None}},
        {"config": {"model_type": "unheard-of"}},
        {"preprocessor_config": {"image_processor_type": "Unknown"}, "config": {"model_type": "unheard-of"}},
    ],
)
def test_a_vision_encoder_that_needs_code(vit, poison, marker, changed):
    load = poison(vit, **changed)
    if "config" not in changed:
        VisionEncoder(str(load))
        assert not marker.exists()
        return
    told = refused(lambda: VisionEncoder(str(load)), marker)
    assert "it comes with Python code of its own, which is not run; set trust_remote_code: True" in told


def test_a_sentence_encoder(sentences, poison, marker):
    SentenceEncoder(str(poison(sentences)))
    assert not marker.exists()


@pytest.mark.parametrize("module", ["evil.Evil", "os.Evil", "transformers.evil.Evil"])
def test_a_sentence_encoder_with_modules_of_its_own(sentences, poison, marker, module):
    folder = poison(sentences)
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = module
    (folder / "modules.json").write_text(json.dumps(modules))
    told = refused(lambda: SentenceEncoder(str(folder)), marker)
    assert "it comes with Python code of its own, which is not run; set trust_remote_code: True" in told


OWN_CODE = """
from pathlib import Path
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
Path({marker!r}).touch()
class OwnConfig(PretrainedConfig):
    model_type = "own"
class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.scale = torch.nn.Parameter(torch.zeros(3))
        self.post_init()
    def _init_weights(self, module): pass
    def forward(self, pixel_values):
        return BaseModelOutputWithPooling(pooler_output=pixel_values.mean((2, 3)) * self.scale)
"""


def test_a_vision_encoder_whose_code_is_trusted(vit, tmp_path, marker, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.py").write_text(OWN_CODE.format(marker=str(marker)))
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(own))
    save_file({"scale": torch.full((3,), 2.0)}, folder / "model.safetensors", {"format": "pt"})
    shutil.copy(vit / "preprocessor_config.json", folder / "preprocessor_config.json")
    assert "set trust_remote_code: True" in refused(lambda: VisionEncoder(str(folder)), marker)
    encoder = open_encoder(FeatureSpec("x", encoder=str(folder), on="image"), "cpu", trust_remote_code=True)
    assert marker.exists()
    assert np.allclose(encoder.encode([Image.new("RGB", (20, 30), "red")]), [[2.0, -2.0, -2.0]], atol=1e-6)
    assert encoder.parameters["code"] == encoder.recipe.open("cpu").parameters["code"]
    assert "code" not in VisionEncoder(str(vit), trust_remote_code=True).parameters, "it comes with none"
    (folder / "own.py").write_text(OWN_CODE.format(marker=str(marker)) + "# another\n")
    again = VisionEncoder(str(folder), trust_remote_code=True)
    assert again.parameters["code"] != encoder.parameters["code"], "other code, other vectors"


def test_timm_is_told_of_no_other_place(tmp_path, monkeypatch):
    timm, asked = ModuleType("timm"), {}
    monkeypatch.setitem(sys.modules, "timm", timm)
    timm.create_model = lambda name, **options: asked.update(options) or 1 / 0
    (tmp_path / "model.safetensors").write_bytes(b"")
    evil = {"source": "hf-hub", "hf_hub_id": "evil/model", "url": "http://evil", "custom_load": "hf", "file": "x.pth"}
    described = {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5], **evil}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ZeroDivisionError):
        TimmEncoder(str(tmp_path))
    assert asked["pretrained_cfg"] == {"mean": [0.5], "file": str(tmp_path / "model.safetensors")}
    for name in ("hf-hub:evil/model", "local-dir:/tmp/evil"):
        (tmp_path / "config.json").write_text(json.dumps({**described, "architecture": name}))
        with pytest.raises(ModelLoadError, match="names no architecture of timm"):
            TimmEncoder(str(tmp_path))


# --- pickles ---------------------------------------------------------------------------------------------------------


def index_of_pickles(folder: Path, marker: Path, weights: str = "model.safetensors") -> None:
    """Leave an index of safetensors in the folder that names a pickle as its only file."""
    (folder / weights).unlink()
    (folder / "evil.bin").write_bytes(pickle.dumps(Bomb(marker)))
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": "evil.bin"}}
    (folder / f"{weights}.index.json").write_text(json.dumps(index))
    (folder / "other.safetensors").write_bytes(b"")  # a folder of encoders must hold one


@pytest.mark.parametrize(
    ("kind", "load"),
    [
        ("llm", lambda folder: load_mllm(folder)),
        ("text_llm", lambda folder: text_writer(Pretrained("x", folder), torch.device("cpu"), "float32")),
        ("vit", lambda folder: VisionEncoder(str(folder))),
        ("sentences", lambda folder: SentenceEncoder(str(folder))),
    ],
)
def test_weights_that_an_index_calls_safe(kind, load, tmp_path, marker, request):
    folder = tmp_path / "model"
    shutil.copytree(request.getfixturevalue(kind), folder)
    index_of_pickles(folder, marker)
    (folder / "sentence_bert_config.json").write_text('{"model_args": {"weights_only": false}}')
    told = refused(lambda: load(folder), marker)
    assert "model.safetensors.index.json names 'evil.bin' as a file of weights; pickled weights are never" in told


def test_a_dense_layer_in_a_pickle(sentences, tmp_path, marker):
    folder = tmp_path / "model"
    shutil.copytree(sentences, folder)
    (dense,) = (path.parent for path in folder.glob("*/model.safetensors"))
    (dense / "model.safetensors").unlink()
    (dense / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    told = refused(lambda: SentenceEncoder(str(folder)), marker)
    assert "pytorch_model.bin has no .safetensors beside it; pickled weights are never loaded" in told


def test_pickles_beside_safe_weights_are_no_hindrance(sentences, tmp_path, marker):
    folder = tmp_path / "model"
    shutil.copytree(sentences, folder)
    for place in (folder, *(path.parent for path in folder.glob("*/model.safetensors"))):
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
            (place / name).write_bytes(pickle.dumps(Bomb(marker)))
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    assert SentenceEncoder(str(folder)).encode(["red"]).shape == (1, 8)
    assert not marker.exists()


def test_an_adapter_in_a_pickle_beside_a_model(vit, tmp_path, marker):
    """transformers puts an adapter that it finds in a model's folder on the model."""
    folder = tmp_path / "model"
    shutil.copytree(vit, folder)
    VisionEncoder(str(folder))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": ["query"]}')
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    assert "adapter_model.bin has no .safetensors beside it" in refused(lambda: VisionEncoder(str(folder)), marker)


# --- one way in ------------------------------------------------------------------------------------------------------


def test_every_folder_is_opened_in_one_place():
    """`from_pretrained` is handed to `open_pretrained`, and called nowhere else but for PEFT's settings, plain JSON."""
    calls = {
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for line in path.read_text().splitlines()
        if re.search(r"from_pretrained\(|SentenceTransformer\(|torch\.load\(|\bpipeline\(", line)
    }
    assert {call for call in calls if "PeftConfig.from_pretrained(" not in call} == set()


def test_what_is_trusted_is_run(tmp_path):
    seen = {}
    made = open_pretrained(lambda folder, **options: seen.update(options), "x", tmp_path, True, backend="pil")
    assert made is None
    assert seen == {"trust_remote_code": True, "backend": "pil"}
