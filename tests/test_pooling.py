"""What a checkpoint says of its pooling, in files of sentence-transformers of now and of before, and its arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

import recbole_mm
from recbole_mm.errors import ConfigError
from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.pooling import Pooling, pooling_of, read_pooling
from recbole_mm.llm.tiny_tokenizers import deepseek_tokenizer
from tests.text_llms import write_text_llm

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


def write(folder: Path, modules=(TRANSFORMER, POOLING, NORMALIZE), pooling=None, settings=None) -> Path:
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    (folder / "modules.json").write_text(json.dumps(list(modules)))
    said = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False} if pooling is None else pooling
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(said))
    if settings is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, Pooling("last", normalize=True)),
        ({"modules": (TRANSFORMER, POOLING)}, Pooling("last")),
        ({"pooling": {"pooling_mode_mean_tokens": True}}, Pooling("mean", normalize=True)),
        ({"pooling": {"pooling_mode": "mean", "include_prompt": False}}, Pooling("mean", "", False, True)),
        ({"settings": {"prompts": {"query": "Q: ", "document": ""}}}, Pooling("last", normalize=True)),
        ({"settings": {"prompts": {"query": "Q: ", "passage": "P: "}}}, Pooling("last", "P: ", normalize=True)),
        (
            {"settings": {"prompts": {"query": "Q: "}, "default_prompt_name": "query"}},
            Pooling("last", "Q: ", normalize=True),
        ),
    ],
)
def test_what_a_checkpoint_says(tmp_path, files, found):
    assert read_pooling(write(tmp_path, **files), "a model") == found


def test_settings_come_before_what_the_checkpoint_says(tmp_path):
    mllm = SimpleNamespace(name="a model", folder=write(tmp_path, settings={"prompts": {"document": "D: "}}))
    assert pooling_of("checkpoint", None, mllm) == Pooling("last", "D: ", normalize=True)
    assert pooling_of("checkpoint", "Mine: ", mllm) == Pooling("last", "Mine: ", normalize=True)
    assert pooling_of("mean", None, mllm) == Pooling("mean")
    assert pooling_of(None, None, mllm) == Pooling()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"pooling": {"pooling_mode_cls_token": True}},
            "it is pooled by pooling_mode_cls_token; known are last and mean",
        ),
        ({"pooling": {"pooling_mode": "max"}}, "it is pooled by max; known are last and mean"),
        ({"pooling": {}}, "it is pooled by nothing"),
        (
            {"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True}},
            "it is pooled by pooling_mode_mean_tokens, pooling_mode_lasttoken",
        ),
        ({"modules": (TRANSFORMER, POOLING, {"type": "sentence_transformers.models.Dense"})}, "part 'Dense' is not"),
        ({"modules": (TRANSFORMER,)}, "modules.json names no Pooling"),
        ({"modules": (TRANSFORMER, {**POOLING, "path": "../x"})}, r"modules.json names '../x', outside of its folder"),
        ({"modules": (3,)}, "its part 3 is not known"),
        ({"pooling": [1]}, "config.json is not a dict"),
        ({"settings": {"prompts": 5}}, "the prompts of its config_sentence_transformers.json are not texts by name"),
        ({"settings": {"prompts": {"passage": ["P"]}}}, "are not texts by name; give mllm_instruction"),
        ({"settings": 5}, "config_sentence_transformers.json is not a dict"),
    ],
)
def test_what_is_not_known_is_one_line(tmp_path, files, said):
    with pytest.raises(ConfigError, match=said) as error:
        read_pooling(write(tmp_path / "model", **files), "a model")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("mllm_pooling: checkpoint: a model: ")


def test_files_that_cannot_be_read_are_named(tmp_path):
    write(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_pooling(tmp_path, "a model")
    (tmp_path / "1_Pooling" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match=r"config\.json cannot be read: it is nested too deep"):
        read_pooling(tmp_path, "a model")
    (tmp_path / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_pooling(tmp_path, "a model")


def test_a_checkpoint_that_says_nothing_is_refused(toy_settings):
    with pytest.raises(
        ConfigError, match=r"mllm_pooling: checkpoint: .* has no modules\.json that tells how it is pooled"
    ):
        recbole_mm.run("Molar", "toy", config_dict={**toy_settings, "mllm_pooling": "checkpoint"})


# --- the vectors of a checkpoint -------------------------------------------------------------------------------------

DOCUMENT = {"prompts": {"query": "Find: ", "document": "The red thing: "}, "default_prompt_name": None}
TEXTS = ["The red shoe of number 0.", "golden garden", "The green lamp. Answer: Yes, or No? The red ship, a drama film"]


def closed(corpus):
    """A tokenizer that opens texts with BOS and closes them with EOS, as those of many embedding models do."""
    tokenizer = deepseek_tokenizer(corpus)
    opening, closing = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{opening} $A {closing}",
        special_tokens=[(opening, tokenizer.bos_token_id), (closing, tokenizer.eos_token_id)],
    )
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "tokenizer", "files"),
    [
        ("qwen3", closed, {"settings": DOCUMENT}),
        ("llama", deepseek_tokenizer, {"modules": (TRANSFORMER, POOLING)}),
        ("llama", closed, {"pooling": {"pooling_mode_mean_tokens": True}, "settings": DOCUMENT}),
        (
            "llama",
            deepseek_tokenizer,
            {"pooling": {"pooling_mode_mean_tokens": True, "include_prompt": False}, "settings": DOCUMENT},
        ),
    ],
    ids=["last, closed, normalized", "last, plain", "mean with its prompt", "mean without its prompt"],
)
def test_vectors_are_those_of_sentence_transformers(tmp_path, kind, tokenizer, files):
    """A causal LM in its layout, loaded and run by sentence-transformers itself."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = write(write_text_llm(kind, tmp_path / kind, tokenizer), **files)
    config = folder / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"word_embedding_dimension": 32, **json.loads(config.read_text())}))
    (folder / "2_Normalize").mkdir()
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    expected = theirs.encode(TEXTS, prompt_name="document" if "settings" in files else None)
    mllm = load_mllm(folder)
    encoder = ItemEncoder(mllm, pooling=pooling_of("checkpoint", None, mllm))
    records = [SimpleNamespace(item_id=str(place), text=text, image=None) for place, text in enumerate(TEXTS)]
    np.testing.assert_allclose(encoder.encode(records), expected, atol=1e-5, rtol=1e-4)
    apart = np.linalg.norm(expected[:, None] - expected[None], axis=-1)
    assert apart[~np.eye(len(TEXTS), dtype=bool)].min() > 0.05


@pytest.mark.parametrize("kind", ["last", "mean", "cur_item"])
def test_an_instruction_counts_where_the_model_reads_little(tmp_path, kind):
    mllm = load_mllm(write_text_llm("llama", tmp_path / "llama", closed, max_position_embeddings=256))
    alone, pooling = Pooling(kind), Pooling(kind, "The red thing of number 0: ")
    most = [most_text_tokens(mllm, each) for each in (alone, pooling)]
    assert most[0] - most[1] == len(mllm.token_ids(pooling.instruction)) > 3
    encoder = ItemEncoder(mllm, max_text_tokens=most[1], pooling=pooling)
    long = encoder.prepare(SimpleNamespace(item_id="1", text="red shoe of number 0 " * 99, image=None))
    assert 240 <= len(long.ids) <= 256
    assert encoder.texts_cut == 1


def test_an_instruction_that_leaves_no_room_is_one_line(tmp_path):
    mllm = load_mllm(write_text_llm("llama", tmp_path / "llama", max_position_embeddings=16))
    with pytest.raises(
        ConfigError, match=r"can read 16 tokens, and the \d+ around a text leave none for it; give a sho"
    ):
        ItemEncoder(mllm, max_text_tokens=4, pooling=Pooling("mean", "The red shoe of number 0, " * 9))


def most_text_tokens(mllm, pooling) -> int:
    """What a longer text is told to be cut to."""
    told = r"max_text_tokens: 256 and the \d+ tokens around a text are more than the 256 that .* can read; give at most"
    with pytest.raises(ConfigError, match=told) as error:
        ItemEncoder(mllm, max_text_tokens=256, pooling=pooling)
    return int(str(error.value).rsplit(" ", 1)[1])
