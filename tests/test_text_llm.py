"""Text LLMs as `mllm`: every architecture against transformers' plain forward, and each model of ours over one."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import recbole_mm
from recbole_mm.artifacts.executor import Failure
from recbole_mm.cli import main
from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.llm.answer import AnswerReader, resolve_yes_no
from recbole_mm.llm.blocks import Block
from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.llm.families import is_text_llm
from recbole_mm.llm.family import PreparedInput
from recbole_mm.llm.finetuning.examples import AnswerLoss
from recbole_mm.llm.finetuning.finetune import Lora, add_lora
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.prompts import CUR_ITEM
from recbole_mm.llm.questions import Questions, ask
from recbole_mm.llm.texts.generator import Request, Writing
from recbole_mm.llm.texts.hf import HfGenerator
from recbole_mm.llm.texts.writers import multimodal_writer
from recbole_mm.models.molar.dueg import TextStackDUEG
from tests.encoders import write_sentence_encoder
from tests.test_contract import ANSWERING
from tests.text_llms import KINDS, LOOKING_BACK, SHAPED, write_text_llm

CPU = torch.device("cpu")
TEXTS = ["a red shoe", "the golden lamp of number 2 is a drama film", "ship", "green garden. Answer: Yes"]


@pytest.fixture(scope="session", params=sorted(KINDS))
def folder(request, tmp_path_factory) -> Path:
    return write_text_llm(request.param, tmp_path_factory.mktemp("text") / request.param)


@pytest.fixture(scope="session")
def mllm(folder: Path) -> MLLM:
    return load_mllm(folder)


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    return write_text_llm("llama", tmp_path_factory.mktemp("llama") / "model", tie_word_embeddings=False)


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llama, tmp_path / "model"))


def prepared(mllm: MLLM, text: str) -> PreparedInput:
    return mllm.family.prepare([[*mllm.token_ids(text), mllm.cur_item_id]], mllm.family.max_pixels)


def close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=atol)


# --- inputs and states -----------------------------------------------------------------------------------------------


def plain_state(folder: Path, mllm: MLLM, text: str) -> torch.Tensor:
    """transformers alone: its tokenizer, and its forward with the new word's vector in the last place."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    words = model.get_input_embeddings()
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    mean = words.weight[: len(tokenizer)].double().mean(0).float()
    scale = getattr(words, "embed_scale", torch.tensor(1.0))  # Gemma's
    with torch.inference_mode():
        vectors = torch.cat([words(ids), (mean * scale).view(1, 1, -1)], dim=1)
        return model(inputs_embeds=vectors, use_cache=False).last_hidden_state[0, -1]


@pytest.mark.parametrize("text", TEXTS)
def test_states_are_those_of_transformers_forward(folder: Path, mllm: MLLM, text: str) -> None:
    item = prepared(mllm, text)
    assert item.ids.tolist() == [*AutoTokenizer.from_pretrained(folder)(text)["input_ids"], mllm.cur_item_id]
    with torch.inference_mode():
        close(mllm.last_hidden_states([item])[0], plain_state(folder, mllm, text))


def test_states_do_not_depend_on_batch_mates_or_padding(folder: Path, mllm: MLLM) -> None:
    items = [prepared(mllm, text) for text in TEXTS]
    headed = load_mllm(folder, with_head=True)
    with torch.inference_mode():
        alone = torch.cat([mllm.last_hidden_states([item]) for item in items])
        close(mllm.last_hidden_states(items), alone)
        close(headed.last_hidden_states(items[::-1]).flip(0), alone)
    assert (alone[:, None] - alone[None]).norm(dim=-1)[~torch.eye(len(items), dtype=torch.bool)].min() > 0.05


def test_means_are_those_of_the_states_whatever_shares_the_batch(mllm: MLLM) -> None:
    items = [prepared(mllm, text) for text in TEXTS]
    with torch.inference_mode():
        for skipped in (0, 1):
            for item, mean in zip(items, mllm.mean_hidden_states(items, skipped), strict=True):
                states = mllm.model(input_ids=torch.from_numpy(item.ids)[None], use_cache=False).last_hidden_state[0]
                close(mean, states[skipped:].mean(0))


def test_nothing_is_known_of_images(folder: Path, mllm: MLLM) -> None:
    assert not mllm.family.reads_images
    assert mllm.image_processor is None
    assert mllm.family.bound(None) == mllm.family.bound(401_408) == 0
    with pytest.raises(ConfigError, match="reads no images: set modalities: \\[text\\]"):
        mllm.family.prepare([Image.new("RGB", (9, 9)), [5]], 0)
    with pytest.raises(ConfigError, match=r"a text LLM.*set modalities: \[text\]") as error:
        load_mllm(folder, must_read_images=True)
    assert "\n" not in str(error.value)


@dataclass
class Record:
    item_id: str
    text: str | None
    image: Image.Image | None = None


def test_items_are_encoded(folder: Path, mllm: MLLM) -> None:
    """Eq. (1) of Molar; the setting for images changes neither vectors nor keys."""
    encoder = ItemEncoder(mllm, tokens_per_batch=60, threads=1)
    records = [Record(str(place), text) for place, text in enumerate([*TEXTS, None])]
    vectors = encoder.encode(records)
    asked = f"\n{encoder.prompt.instruction(False, True)}"
    for vector, text in zip(vectors, TEXTS):
        ids = [*mllm.token_ids(text), *mllm.token_ids(asked), mllm.cur_item_id]
        item = mllm.family.prepare([ids], 0)
        close(torch.from_numpy(vector), mllm.last_hidden_states([item])[0].detach())
    assert not vectors[-1].any()
    assert encoder.key("print") == ItemEncoder(mllm, image_pixels=112 * 112).key("print")


def test_it_is_saved_and_loaded(mllm: MLLM, tmp_path: Path) -> None:
    mllm.save(tmp_path)
    again = load_mllm(tmp_path)
    items = [prepared(mllm, text) for text in TEXTS]
    assert again.cur_item_id == mllm.cur_item_id
    with torch.inference_mode():
        close(again.last_hidden_states(items), mllm.last_hidden_states(items))


# --- the text stack, answers, texts, adapters ------------------------------------------------------------------------


def test_text_stack_computes_what_the_decoder_does(folder: Path, mllm: MLLM) -> None:
    ids = torch.tensor([mllm.token_ids(TEXTS[1])])
    length = ids.shape[1]
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    stack = mllm.text_stack()
    words = mllm.model.get_input_embeddings().num_embeddings
    assert all(words not in weight.shape for weight in stack.parameters())
    with torch.inference_mode():
        expected = mllm.model(input_ids=ids, use_cache=False).last_hidden_state
        vectors = mllm.model.get_input_embeddings()(ids)
        close(stack(vectors, causal, torch.arange(length)[None]).last_hidden_state, expected)
        seen = stack(vectors, torch.ones_like(causal), torch.arange(length)[None]).last_hidden_state
    assert (seen - expected).abs().max() > 1e-3  # the mask is read


def test_every_prefix_of_a_history_in_one_pass(mllm: MLLM) -> None:
    """Eq. (2) of Molar: a `[User]` slot after each item is what the prefix alone gives."""
    torch.manual_seed(1)
    dueg = TextStackDUEG(mllm.text_stack(), mllm.hidden_size).eval()
    items = torch.randn(2, 6, mllm.hidden_size)
    with torch.inference_mode():
        together = dueg.all_prefixes(items)
        for length in range(1, 7):
            alone = dueg.whole(items[:, :length], torch.full((2,), length))
            close(together[:, length - 1], alone, atol=1e-4)


def test_candidates_share_a_prefix(folder: Path) -> None:
    mllm = load_mllm(folder, with_head=True)
    reader = AnswerReader.of(mllm, "Answer:\n")
    prefixes, suffixes = [mllm.token_ids(text) for text in TEXTS[:2]], [mllm.token_ids(text) for text in TEXTS[1:]]
    owners = np.array([0, 1, 1])

    def block(rows: list[list[int]]) -> Block:
        return Block.of_prepared(mllm.family, [PreparedInput(np.array(row)) for row in rows], CPU)

    questions = Questions(
        np.array([len(row) for row in prefixes]),
        np.array([len(row) for row in suffixes]),
        owners,
        lambda rows: block([prefixes[row] for row in rows]),
        lambda rows: block([suffixes[row] for row in rows]),
    )
    with torch.inference_mode():
        whole = reader.read(block([[*prefixes[owner], *suffix] for owner, suffix in zip(owners, suffixes)]))
        close(ask(reader, questions, 1000), whole, atol=1e-4)


def test_it_writes(folder: Path) -> None:
    mllm = load_mllm(folder, with_head=True)
    generator = HfGenerator(lambda: multimodal_writer(mllm, 1000), Writing(max_new_tokens=5))
    items = [generator.writer.prepare(generator.writer.chat.parts(text)) for text in TEXTS]
    together = generator._answers(items, [Request(text, None) for text in TEXTS])
    for text, item, words in zip(TEXTS, items, together):
        (alone,) = generator._answers([item], [Request(text, None)])
        assert words[: len(alone)] == alone
        assert mllm.cur_item_id not in words
    pictured = Request("?", None, lambda: Image.new("RGB", (9, 9)), "hash")
    assert generator.generate([pictured]) == [Failure(f"{folder} reads no pictures")]


@pytest.mark.parametrize("kind", [*sorted(SHAPED), "qwen3"])
def test_answers_and_losses_are_of_the_logits_that_the_model_itself_gives(kind: str, tmp_path: Path) -> None:
    mllm = load_mllm(write_text_llm(kind, tmp_path / "model", **SHAPED.get(kind, {})), with_head=True)
    items = [prepared(mllm, text) for text in TEXTS]
    reader = AnswerReader.of(mllm, "Answer:\n")
    yes, no = resolve_yes_no(mllm, "Answer:\n")
    place = (torch.tensor([0, 0, 1]), torch.tensor([1, 3, 4]))
    learnt = torch.tensor([items[row].ids[column + 1] for row, column in zip(*map(torch.Tensor.tolist, place))])
    with torch.inference_mode():
        logits = [mllm.model(input_ids=torch.from_numpy(item.ids)[None], use_cache=False).logits[0] for item in items]
        close(
            reader.read(Block.of_prepared(mllm.family, items, CPU)),
            torch.stack([e[-1, yes] - e[-1, no] for e in logits]),
        )
        loss = AnswerLoss(mllm.model, mllm.family)(mllm.family.collate(items, CPU), *place, learnt)
        close(
            loss,
            functional.cross_entropy(torch.stack([logits[r][c] for r, c in zip(*place)]), learnt, reduction="none"),
        )
    assert (reader._judge is None) == (kind in ("qwen3", "opt"))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_first_layers_are_a_model_of_fewer(kind: str, tmp_path: Path) -> None:
    folder = write_text_llm(kind, tmp_path / "model")
    cut = load_mllm(folder).first_layers(1, "mllm_layers")
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    plain = AutoModel.from_pretrained(folder, config=config).eval()
    rows = [np.array(cut.token_ids(text)) for text in TEXTS]
    with torch.inference_mode():
        expected = [
            plain(input_ids=torch.from_numpy(row)[None], use_cache=False).last_hidden_state[0, -1] for row in rows
        ]
        close(cut.last_hidden_states([PreparedInput(row) for row in rows]), torch.stack(expected))
        stack = load_mllm(folder).text_stack(1)
        dueg, items = TextStackDUEG(stack, 32).eval(), torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2))
        history = torch.cat([items, dueg.user_token.expand(1, 1, -1)], dim=1)
        read = plain(inputs_embeds=history, use_cache=False).last_hidden_state[:, -1]
        close(dueg.whole(items, torch.tensor([5])), read, atol=1e-4)


def test_layers_that_are_in_no_list_of_the_decoders_own(tmp_path: Path) -> None:
    mllm = load_mllm(write_text_llm("opt", tmp_path / "model", **SHAPED["opt"]))
    for use in (mllm.first_layers, mllm.text_stack):
        with pytest.raises(ModelLoadError, match="OPTModel: its layers cannot be told apart") as error:
            use(1, "dueg_layers")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["gpt_neox_japanese", "biogpt", "llama", "gpt2"])
def test_an_adapter_is_known_by_what_its_model_calls_its_parts(kind: str, tmp_path: Path) -> None:
    mllm = load_mllm(write_text_llm(kind, tmp_path / "model"), with_head=True)
    mllm.model = add_lora(mllm, Lora(r=2))
    mllm.model.eval().save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    items = [prepared(mllm, text) for text in TEXTS]
    with torch.inference_mode():
        close(load_mllm(tmp_path / "adapter").last_hidden_states(items), mllm.last_hidden_states(items))


def test_an_adapter_is_merged(folder: Path, tmp_path: Path) -> None:
    mllm = load_mllm(folder, with_head=True)
    mllm.model = add_lora(mllm, Lora(r=2))
    with torch.no_grad():
        for name, weight in mllm.model.named_parameters():
            if weight.requires_grad:
                weight.add_(0.05 * torch.ones_like(weight) if "lora_B" in name else 0)
    mllm.model.eval().save_pretrained(tmp_path, save_embedding_layers=False)
    mllm.tokenizer.save_pretrained(tmp_path)
    items = [prepared(mllm, text) for text in TEXTS]
    with torch.inference_mode():
        tuned = mllm.last_hidden_states(items)
        close(load_mllm(tmp_path).last_hidden_states(items), tuned, atol=1e-4)
        assert (load_mllm(folder).last_hidden_states(items) - tuned).abs().max() > 1e-3


# --- what an architecture does not do --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(LOOKING_BACK))
def test_histories_longer_than_what_layers_look_back_over(kind: str, tmp_path: Path) -> None:
    """Eq. (2) of Molar, after every prefix: what transformers' decoder makes of the items and `[User]`."""
    mllm = load_mllm(write_text_llm(kind, tmp_path / "model", **LOOKING_BACK[kind]))
    decoder, dueg = mllm.family.decoder(mllm.model), TextStackDUEG(mllm.text_stack(), mllm.hidden_size).eval()
    items = torch.randn(2, 12, mllm.hidden_size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        together = dueg.all_prefixes(items)
        for length in (1, 6, 7, 8, 12):
            history = torch.cat([items[:, :length], dueg.user_token.expand(2, 1, -1)], dim=1)
            plain = decoder(inputs_embeds=history, use_cache=False).last_hidden_state[:, -1]
            close(together[:, length - 1], plain, atol=1e-4)
            close(dueg.whole(items[:, :length], torch.full((2,), length)), plain, atol=1e-4)
    assert dueg.text_stack.window == 8


@pytest.mark.parametrize("kind", sorted(LOOKING_BACK))
def test_prompts_longer_than_what_layers_look_back_over(kind: str, tmp_path: Path) -> None:
    """Read in two pieces, they have the answers of the whole."""
    mllm = load_mllm(write_text_llm(kind, tmp_path / "model", **LOOKING_BACK[kind]), with_head=True)
    reader = AnswerReader.of(mllm, "Answer:\n")
    row = mllm.token_ids("the golden lamp of number 2 is a drama film, and so is the silver lamp of number 3")
    assert len(row) > 16

    def block(tokens: list[int]) -> Block:
        return Block.of_prepared(mllm.family, [PreparedInput(np.array(tokens))], CPU)

    with torch.inference_mode():
        whole = reader.read(block(row))
        for cut in (3, 10, 15):
            owners = torch.zeros(1, dtype=torch.long)
            close(reader.read_after(reader.read_prefix(block(row[:cut])), owners, block(row[cut:])), whole, atol=1e-4)


def test_recurrent_models_encode_and_nothing_more(tmp_path: Path) -> None:
    changes = {"state_size": 4, "time_step_rank": 2, "expand": 1}
    mllm = load_mllm(write_text_llm("mamba", tmp_path / "model", **changes), with_head=True)
    items = [prepared(mllm, text) for text in TEXTS]
    with torch.inference_mode():
        alone = torch.cat([mllm.last_hidden_states([item]) for item in items])
        close(mllm.last_hidden_states(items), alone)
    for use in (mllm.text_stack, lambda: AnswerReader.of(mllm, "Answer:\n")):
        with pytest.raises(ModelLoadError, match="models of type mamba are recurrent"):
            use()


@pytest.mark.parametrize(("kind", "changes"), [("bloom", {}), ("falcon", {"alibi": True}), ("mpt", {})])
def test_models_that_count_their_tokens_themselves_encode_and_nothing_more(
    kind: str, changes: dict, tmp_path: Path
) -> None:
    folder = write_text_llm(kind, tmp_path / "model", **changes)
    mllm = load_mllm(folder, with_head=True)
    items = [prepared(mllm, text) for text in TEXTS]
    with torch.inference_mode():
        close(mllm.last_hidden_states(items)[1], plain_state(folder, mllm, TEXTS[1]))
    for use in (mllm.text_stack, lambda: AnswerReader.of(mllm, "Answer:\n")):
        with pytest.raises(ModelLoadError, match=f"models of type {kind} count their tokens themselves") as error:
            use()
        assert "\n" not in str(error.value)


def test_a_run_that_needs_attention_is_refused_before_anything_is_encoded(tmp_path, toy_settings, monkeypatch) -> None:
    folder = write_text_llm("bloom", tmp_path / "model")
    monkeypatch.setattr(ItemEncoder, "compute", lambda *_: pytest.fail("encoded"))
    with pytest.raises(ModelLoadError, match="models of type bloom count their tokens themselves"):
        recbole_mm.run("Molar", "toy", config_dict={**toy_settings, "mllm": str(folder), "modalities": ["text"]})


def test_what_is_a_text_llm() -> None:
    assert all(map(is_text_llm, KINDS))
    assert not any(map(is_text_llm, ("bert", "roberta", "bart", "xlnet", "whisper", "qwen2_vl", "gemma3", "vit", "")))


# --- bad checkpoints: one line each ----------------------------------------------------------------------------------


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(ModelLoadError) as error:
        load_mllm(folder, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_checkpoint_without_a_tokenizer(copied: Path) -> None:
    for file in copied.glob("tokenizer*"):
        file.unlink()
    assert (
        refused(copied) == f"{copied}: there is no tokenizer in its folder; copy the model's tokenizer.json there, too"
    )


def test_an_encoder_in_the_clothes_of_an_llm(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "use_bidirectional_attention": True}))
    assert "no causal LM" in refused(copied)


def test_a_head_that_is_missing(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    save_file({name: weight for name, weight in weights.items() if "lm_head" not in name}, copied / "model.safetensors")
    assert "lack 1 tensors that the model needs, e.g. lm_head.weight" in refused(copied, with_head=True)
    assert load_mllm(copied).hidden_size == 32  # nobody misses it in a model of vectors


def test_a_tied_head_grows_with_the_words(tmp_path: Path) -> None:
    mllm = load_mllm(write_text_llm("llama", tmp_path / "model"), with_head=True)
    words, head = mllm.model.get_input_embeddings(), mllm.model.get_output_embeddings()
    assert words.weight is head.weight
    assert len(words.weight) == mllm.cur_item_id + 1


def test_a_vocabulary_that_knows_cur_item_keeps_its_vector(copied: Path) -> None:
    settings = json.loads((copied / "tokenizer.json").read_text(encoding="utf-8"))
    place = settings["model"]["vocab"].pop(next(iter(sorted(settings["model"]["vocab"], key=len, reverse=True))))
    settings["model"]["vocab"][CUR_ITEM] = place
    known = set(settings["model"]["vocab"])
    settings["model"]["merges"] = [pair for pair in settings["model"]["merges"] if "".join(pair) in known]
    Tokenizer.from_str(json.dumps(settings)).save(str(copied / "tokenizer.json"))
    mllm, plain = load_mllm(copied), AutoModelForCausalLM.from_pretrained(copied)
    assert mllm.cur_item_id == place
    assert torch.equal(mllm.model.get_input_embeddings().weight[place], plain.get_input_embeddings().weight[place])
    assert place not in mllm.token_ids(f"a {CUR_ITEM} b")


def test_a_context_that_is_shorter_than_the_prompt(tmp_path: Path) -> None:
    mllm = load_mllm(write_text_llm("gpt2", tmp_path / "model", max_position_embeddings=96))
    with pytest.raises(ConfigError, match=r"max_text_tokens: 256 and the .* tokens around a text are more than the 96"):
        ItemEncoder(mllm)
    assert ItemEncoder(mllm, max_text_tokens=16).encode([Record("a", "lamp " * 99)]).any()


@pytest.mark.parametrize(
    ("change", "settings", "line"),
    [
        ({}, {"modalities": ["image"]}, r"a text LLM, which reads no images: set modalities: \[text\]"),
        ({}, {"dueg_layers": 3}, r"dueg_layers: the LLM has 2 layers; give 1 to 2, or null for all"),
        ({}, {"mllm_layers": 3}, r"mllm_layers: the LLM has 2 layers; give 1 to 2, or null for all"),
        ({"max_position_embeddings": 60}, {}, r"more than the 60 that .* can read; (give at most|take a model)"),
        ({"remove": "tokenizer.json"}, {}, r"there is no tokenizer in its folder"),
        ({"rename": "model.gguf"}, {}, r"cannot be read as a GGUF file|truncated"),
    ],
    ids=["images", "dueg_layers", "mllm_layers", "context", "tokenizer", "gguf"],
)
def test_the_command_says_what_is_wrong_in_one_line(
    change: dict, settings: dict, line: str, toy_settings: dict, copied: Path, tmp_path: Path, capsys: Any
) -> None:
    mllm = copied
    if "remove" in change:
        for file in copied.glob("tokenizer*"):
            file.unlink()
    elif "rename" in change:
        mllm = (copied / "model.safetensors").rename(tmp_path / "model.gguf")
    elif change:
        config = json.loads((copied / "config.json").read_text())
        (copied / "config.json").write_text(json.dumps(config | change))
    given = {**toy_settings, "epochs": 1, "mllm": str(mllm), "modalities": ["text"], "mirm_tuning": "none", **settings}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(given))
    assert main(["run", "--model=Molar", "--dataset=toy", f"--config_files={tmp_path / 'run.yaml'}"]) == 2
    errors = [each for each in capsys.readouterr().err.splitlines() if each.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(line, errors[0]), errors


# --- models ----------------------------------------------------------------------------------------------------------

MODELS: dict[str, dict[str, Any]] = {
    "Molar": {"mirm_tuning": "lora", "mirm_examples": 4, "mirm_history": 2, "mirm_batch_tokens": 2000},
    "HLLM": {"item_llm_tuning": "full"},
    "CoLLM": {
        **{"collm_history": 2, "collm_title_tokens": 6, "rerank_k": 4, "prompts_per_epoch": 8, "epochs": 3},
        **{"cf_epochs": 1, "lora_epochs": 1},
    },
    "TALLRec": {**ANSWERING, "sft_examples": 4, "sft_epochs": 1, "tallrec_rating_field": "rating"},
    "MLLMMSR": {**ANSWERING, "sft_examples": 4, "sft_epochs": 1},
    "MLLMRec": {"text_backend": "hf", "text_max_new_tokens": 4},
}


@pytest.mark.parametrize("model", sorted(MODELS))
def test_each_model_takes_a_text_llm(model: str, toy_settings: dict, llama: Path) -> None:
    settings = {**toy_settings, "epochs": 1, "mllm": str(llama), "modalities": ["text"], **MODELS[model]}
    if model == "MLLMRec":
        encoder = Path(toy_settings["checkpoint_dir"]).parent / "encoder"
        settings |= {"sentence_encoder": str(write_sentence_encoder(encoder))}
    outcome = recbole_mm.run(model, "toy", config_dict=settings)
    assert 0 <= outcome.test_result["ndcg@10"] <= 1


@pytest.mark.parametrize("modalities", [["image"], ["image", "text"]])
def test_pictures_are_not_shown_to_it(toy_settings: dict, llama: Path, modalities: list[str]) -> None:
    settings = {**toy_settings, "mllm": str(llama), "modalities": modalities}
    with pytest.raises(ConfigError, match=r"a text LLM, which reads no images: set modalities: \[text\]") as error:
        recbole_mm.run("Molar", "toy", config_dict=settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("CoLLM", {}),
        ("TALLRec", {}),
        ("TALLRec", {"sft_tuning": "none"}),
        ("MLLMMSR", {}),
    ],
)
def test_prompts_of_answers_that_the_context_has_no_room_for(
    model: str, settings: dict, toy_settings: dict, tmp_path: Path
) -> None:
    short = write_text_llm("llama", tmp_path / "model", max_position_embeddings=16)
    given = {**toy_settings, "epochs": 1, "mllm": str(short), "modalities": ["text"], **MODELS[model], **settings}
    with pytest.raises(ConfigError, match="tokens, more than the 16 that the LLM can read") as error:
        recbole_mm.run(model, "toy", config_dict=given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["CoLLM", "TALLRec", "MLLMMSR"])
def test_answers_of_what_cannot_answer_are_one_line(model: str, toy_settings: dict, copied: Path) -> None:
    given = {**toy_settings, "epochs": 1, "mllm": str(copied), "modalities": ["image"], **MODELS[model]}
    with pytest.raises(ConfigError, match=r"a text LLM, which reads no images: set modalities: \[text\]") as error:
        recbole_mm.run(model, "toy", config_dict=given)
    assert "\n" not in str(error.value)
    weights = load_file(copied / "model.safetensors")
    save_file({name: weight for name, weight in weights.items() if "lm_head" not in name}, copied / "model.safetensors")
    with pytest.raises(ModelLoadError, match="lack 1 tensors") as lacking:
        recbole_mm.run(model, "toy", config_dict={**given, "modalities": ["text"]})
    assert "\n" not in str(lacking.value)
