"""The MIRM's fine-tuning data and the tuned model in a run: what is shown, what is asked, and what never leaks in."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import recbole_mm
from recbole_mm.config.resolved import Config
from recbole_mm.data.dataset import create_dataset
from recbole_mm.data.item_facts import ItemFacts, in_prose
from recbole_mm.errors import ConfigError, DataError, ModelLoadError
from recbole_mm.inputs.mirm.objectives import OBJECTIVES, Histories, build_mixture, examples_digest
from recbole_mm.inputs.mirm.prompting import PromptedExamples
from recbole_mm.inputs.mirm.tuning import MirmSettings
from recbole_mm.inputs.mllm import tiny_family
from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.llm.finetuning import finetune as finetune_module
from recbole_mm.llm.finetuning.examples import AnswerLoss, LengthGroupedBatches, bottleneck_mask
from recbole_mm.llm.finetuning.finetune import Tuning
from recbole_mm.llm.finetuning.trainer import AnswerTrainer
from recbole_mm.llm.finetuning.tuned_model import tuning_of
from recbole_mm.llm.loading import load_mllm
from recbole_mm.llm.tiny import build_tiny
from recbole_mm.runs.profiling import Stages
from recbole_mm.runs.run import assemble
from tests.conftest import TOY_SETTINGS, write_toy

PIXELS = 84 * 84
QUICK = {
    "mirm_tuning": "full",
    "mirm_examples": 6,
    "mirm_history": 2,
    "mirm_learning_rate": 3e-3,
    "mirm_batch_tokens": 2000,
    "mllm_image_pixels": PIXELS,
}


def described_toy(folder: Path) -> Path:
    """`toy` with a column of written descriptions, which the first two items lack."""
    write_toy(folder, users=20, items=20)
    path = folder / "toy" / "toy.item"
    head, *rows = path.read_text().splitlines()
    rows = [f"{row}\t{'' if i < 2 else f'A long story of item {i}.'}" for i, row in enumerate(rows)]
    path.write_text("\n".join([f"{head}\tstory:token_seq", *rows]) + "\n")
    return folder


@pytest.fixture(scope="module")
def described(tmp_path_factory) -> Path:
    return described_toy(tmp_path_factory.mktemp("described"))


def dataset_of(path: Path, tmp_path: Path, **settings):
    return create_dataset(config_of(path, tmp_path, **settings))


def config_of(path: Path, tmp_path: Path, **settings) -> Config:
    given = {**TOY_SETTINGS, "data_path": str(path), "checkpoint_dir": str(tmp_path), **settings}
    return Config("Molar", "toy", config_dict=given)


def mixture_of(dataset, objectives=OBJECTIVES, count=1000, history=3, seed=5, column=None):
    facts = ItemFacts(dataset.content, column)
    return build_mixture(facts, Histories(*dataset.training_sequences()), objectives, count, history, seed)


def shown(mixture, tokens) -> list:
    """Examples in terms that do not depend on RecBole's numbers."""
    return [(e.objective, [(tokens[i.item], i.image, i.text) for i in e.items], e.request, e.answer) for e in mixture]


# --- what is shown and asked ------------------------------------------------------------------------------------------


def test_image_text_shows_the_image_and_asks_for_the_description(described, tmp_path):
    dataset = dataset_of(described, tmp_path)
    tokens = dataset.item_tokens()
    mixture = mixture_of(dataset, ["IT"], column="story")
    assert {len(example.items) for example in mixture} == {1}
    assert all(example.items[0].image and example.items[0].text is None for example in mixture)
    answers = {tokens[example.items[0].item]: example.answer for example in mixture}
    assert answers["i5"] == "A long story of item 5."
    assert answers["i1"] == "This is The comedy film number 1, with class comedy."
    assert len(answers) == len(mixture)


def test_structured_attributes_never_show_what_they_ask_for(described, tmp_path):
    fields = ["title", "class", "story"]
    dataset = dataset_of(described, tmp_path, text_fields=fields)
    assert "A long story" in dataset.content.text(list(dataset.item_tokens()).index("i5"))
    for example in mixture_of(dataset, ["SA", "IT"], column="story"):
        assert "story" not in (example.items[0].text or "").lower()
        assert example.items[0].image == (example.objective == "IT")
    with_template = dataset_of(described, tmp_path, text_template="{title} ({class}). Story: {story}")
    for example in mixture_of(with_template, ["SA"], column="story"):
        assert "film" in example.items[0].text
        assert "Story:" not in example.items[0].text


def test_a_column_that_repeats_the_description_is_not_shown(described, tmp_path):
    path = described / "toy" / "toy.item"
    dataset = dataset_of(described, tmp_path)
    facts = ItemFacts(dataset.content, "title")
    assert path.is_file()
    for example in build_mixture(facts, Histories(*dataset.training_sequences()), ["SA"], 100, 1, 0):
        assert example.answer not in example.items[0].text


def test_without_a_description_column_the_metadata_are_told_in_prose(described, tmp_path, caplog):
    dataset = dataset_of(described, tmp_path)
    with caplog.at_level(logging.INFO):
        mixture = mixture_of(dataset, ["IT", "SA"])
    assert all(example.answer.startswith("This is The ") for example in mixture)
    assert caplog.text.count("by a template") == 1


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"title": "Lamp"}, None),
        ({"title": "Lamp", "colour": "red"}, "This is Lamp, with colour red."),
        ({"title": "", "colour": "red"}, "This is an item, with colour red."),
        (
            {"title": "Lamp", "colour": "red", "item_size": "big", "plot": "It glows."},
            "This is Lamp, with colour red and size big. Its plot reads: It glows.",
        ),
        ({"title": "Lamp", "plot": "It glows."}, "This is Lamp. Its plot reads: It glows."),
    ],
)
def test_in_prose(values, told):
    assert in_prose(values, "title") == told


def test_user_behavior_shows_a_history_and_asks_for_the_next_training_item(described, tmp_path):
    dataset = dataset_of(described, tmp_path)
    content, tokens = dataset.content, dataset.item_tokens()
    items, offsets = dataset.training_sequences()
    mixture = mixture_of(dataset, ["UB"], history=3)
    found = [([i.item for i in example.items], example.answer) for example in mixture]
    wanted = [
        (items[max(start, place - 3) : place].tolist(), content.text(items[place]))
        for start, end in itertools.pairwise(offsets)
        for place in range(start + 1, end)
    ]
    assert sorted(found) == sorted(wanted)
    assert all(item.image and item.text == content.text(item.item) for e in mixture for item in e.items)
    assert tokens[0] not in {tokens[item] for items_shown, _ in found for item in items_shown}


def test_training_sequences_are_the_rows_that_training_sees(described, tmp_path):
    dataset = dataset_of(described, tmp_path)
    tokens, users = dataset.item_tokens(), dataset.field2id_token["user_id"]
    items, offsets = dataset.training_sequences()
    train = dataset.build()[0]
    samples = train.inter_feat
    by_user = {}
    for target in samples.targets.tolist():
        first = train.rows.starts[target]
        by_user[users[samples.flat["user_id"][target]]] = samples.flat["item_id"][first : target + 1].tolist()
    found = [items[start:end].tolist() for start, end in itertools.pairwise(offsets) if end - start > 1]
    assert found == [by_user[user] for user in sorted(by_user)]
    assert tokens[0] == "[PAD]"


def test_items_without_image_and_text_are_left_out(described, tmp_path):
    dataset = dataset_of(described, tmp_path)
    blank = int(dataset.training_sequences()[0][1])
    facts = ItemFacts(dataset.content)
    facts.has_image = lambda item: item != blank  # type: ignore[method-assign]
    facts._texts[blank] = None
    mixture = build_mixture(facts, Histories(*dataset.training_sequences()), ["UB", "IT"], 1000, 3, 0)
    assert blank not in {item.item for example in mixture for item in example.items}
    assert all(example.answer for example in mixture)


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_as_many_as_there_are_and_no_more(described, tmp_path, caplog):
    dataset = dataset_of(described, tmp_path)
    with caplog.at_level(logging.INFO):
        mixture = mixture_of(dataset, count=15)
    counts = {name: sum(example.objective == name for example in mixture) for name in OBJECTIVES}
    assert counts == {"IT": 15, "SA": 15, "UB": 15}
    with caplog.at_level(logging.INFO):
        assert len(mixture_of(dataset, ["IT"], count=500)) < 500
    assert "examples of IT instead of 500" in caplog.text
    tokens = dataset.item_tokens()
    again = mixture_of(dataset_of(described, tmp_path), count=15)
    assert shown(again, tokens) == shown(mixture, tokens)
    assert shown(mixture_of(dataset, count=15, seed=6), tokens) != shown(mixture, tokens)
    without = mixture_of(dataset, ["UB"], count=15)
    assert without == [example for example in mixture if example.objective == "UB"]


def rewrite(folder: Path, held_out: bool, seed: int = 0) -> Path:
    """Other items in every user's last two rows, or in the first row of some."""
    path = folder / "toy" / "toy.inter"
    head, *lines = path.read_text().splitlines()
    rows = [line.split("\t") for line in lines]
    rng = np.random.default_rng(seed)
    by_user: dict[str, list[list[str]]] = {}
    for row in rows:
        by_user.setdefault(row[0], []).append(row)
    for mine in by_user.values():
        for row in mine[-2:] if held_out else mine[:1]:
            row[1] = f"i{rng.integers(20)}"
    order = rng.permutation(len(rows)) if held_out else range(len(rows))  # numbers follow the order in the file
    path.write_text("\n".join([head, *("\t".join(rows[place]) for place in order)]) + "\n")
    return folder


def test_held_out_interactions_change_nothing_and_training_ones_do(tmp_path):
    digests, examples, held_out = [], [], []
    for name, other in (("a", None), ("b", "held out"), ("c", "training")):
        path = described_toy(tmp_path / name)
        if other:
            rewrite(path, held_out=other == "held out")
        dataset = dataset_of(path, tmp_path)
        mixture = mixture_of(dataset, count=30, column="story")
        tokens = dataset.item_tokens()
        examples.append(shown(mixture, tokens))
        digests.append(examples_digest(mixture, dataset.content.fingerprint))
        test = dataset.build()[2].inter_feat
        held_out.append(sorted(tokens[item] for item in test["item_id"].tolist()))
    assert held_out[0] != held_out[1], "the replacement must have changed what is held out"
    assert examples[0] == examples[1]
    assert digests[0] == digests[1]
    assert digests[2] != digests[0]


def test_the_tuned_model_is_found_again_whatever_is_held_out(tmp_path, monkeypatch):
    """The folder's name, which is made of the base model, the settings and the examples."""
    names = []

    class Enough(Exception):
        pass

    def record(mllm, examples, tuning, folder, *args):
        names.append(folder.name)
        raise Enough

    monkeypatch.setattr(finetune_module, "finetune", record)
    changes = ({}, {}, {}, {"mirm_learning_rate": 1e-3}, {"mirm_checkpoint_steps": 7}, {"mirm_bottleneck": True})
    changes += ({"mirm_weights": {"UB": 2}}, {"mirm_seed": 5})
    for place, changed in enumerate(changes):
        path = described_toy(tmp_path / str(place))
        if place in (1, 2):
            rewrite(path, held_out=place == 1)
        with pytest.raises(Enough):
            assemble(config_of(path, tmp_path / str(place), **{**QUICK, **changed}), tmp_path, Stages())
    assert names[1] == names[0] == names[4]
    assert len({names[place] for place in (0, 2, 3, 5, 6, 7)}) == 6


def test_the_digest_covers_images_and_texts(described, tmp_path):
    dataset = dataset_of(described, tmp_path)
    mixture = mixture_of(dataset, ["UB"], count=5)
    digest = examples_digest(mixture, dataset.content.fingerprint)
    assert examples_digest(mixture, lambda item: f"other {item}") != digest
    assert examples_digest(mixture[:-1], dataset.content.fingerprint) != digest
    assert examples_digest(mixture, dataset.content.fingerprint) == digest


def test_objectives_without_data(described, tmp_path, caplog):
    dataset = dataset_of(described, tmp_path, modalities=["text"])
    with caplog.at_level(logging.WARNING):
        mixture = mixture_of(dataset, count=5)
    assert {example.objective for example in mixture} == {"SA", "UB"}
    assert "IT is skipped: no item has both an image" in caplog.text
    with pytest.raises(ConfigError, match="IT has no examples"):
        mixture_of(dataset, ["IT"])
    images = dataset_of(described, tmp_path, modalities=["image"])
    shown = [item for example in mixture_of(images, count=5) for item in example.items]
    assert shown
    assert all(item.image and item.text is None for item in shown), "texts are answers there, never shown"
    with pytest.raises(ConfigError, match="none of SA, UB"):
        mixture_of(images, ["SA", "UB"])


def test_a_split_over_all_time_gives_training_rows_alone(described, tmp_path):
    eval_args = {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "none"}
    dataset = dataset_of(described, tmp_path, eval_args=eval_args)
    items, _ = dataset.training_sequences()
    train = dataset.build()[0]
    trained = train.rows.items[train.rows.phases == 0]
    assert sorted(items.tolist()) == sorted(trained.tolist())
    assert len(items) < len(train.rows.items)


# --- as the model reads them ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prompted(described, tmp_path_factory):
    """Examples of all objectives, the model's prompts for them, and the encoder of the same items."""
    folder = tmp_path_factory.mktemp("prompted")
    dataset = dataset_of(described, folder)
    texts = [dataset.content.text(i) or "" for i in range(1, len(dataset.content))]
    mllm = load_mllm(build_tiny(texts, folder / "tiny"), with_head=True)
    mixture = mixture_of(dataset, count=8, column="story")
    settings = {"image_pixels": PIXELS, "max_text_tokens": 12, "max_answer_tokens": 20}
    examples = PromptedExamples(mixture, dataset.content, mllm, weights={"UB": 3.0}, **settings)
    return SimpleNamespace(
        dataset=dataset,
        mllm=mllm,
        mixture=mixture,
        examples=examples,
        encoder=ItemEncoder(mllm, image_pixels=PIXELS, max_text_tokens=12),
    )


def test_every_item_is_laid_out_as_for_encoding(prompted):
    mllm, content = prompted.mllm, prompted.dataset.content
    for index, example in enumerate(prompted.mixture):
        prompt = prompted.examples[index]
        ids = mllm.family.prepare(prompt.parts, PIXELS).ids.tolist()
        start = 0
        for item in example.items:
            record = SimpleNamespace(text=item.text, image=content[item.item].image if item.image else None)
            encoded = prompted.encoder.prepare(record).ids.tolist()
            assert ids[start : start + len(encoded)] == encoded
            assert encoded[-1] == mllm.cur_item_id
            start += len(encoded)
        asked = mllm.tokenizer.decode(ids[start:])
        assert asked == f"\n{example.request}\n"
        assert prompt.kind == example.objective
        assert prompt.weight == (3.0 if example.objective == "UB" else 1.0)


def test_answers_end_and_are_cut(prompted):
    tokenizer = prompted.mllm.tokenizer
    for index, example in enumerate(prompted.mixture):
        answer = prompted.examples[index].answer
        assert len(answer) <= 20
        if len(prompted.mllm.token_ids(example.answer)) < 20:
            assert answer[-1] == tokenizer.eos_token_id
            assert tokenizer.decode(answer[:-1]) == example.answer


def test_lengths_bound_tokens_and_patches(prompted):
    for index in range(len(prompted.examples)):
        prompt = prompted.examples[index]
        whole = prompted.mllm.family.prepare([*prompt.parts, prompt.answer], PIXELS)
        assert len(whole.ids) + whole.patches <= prompted.examples.lengths[index]
        assert prompted.examples.lengths[index] < 2 * (len(whole.ids) + whole.patches) + 100


def test_with_the_bottleneck_cur_item_states_are_the_item_vectors(prompted):
    """What answers are predicted from is, to rounding, what is read as the items' vectors."""
    mllm, content = prompted.mllm, prompted.dataset.content
    index = next(i for i, e in enumerate(prompted.mixture) if e.objective == "UB" and len(e.items) == 3)
    whole = mllm.family.prepare(prompted.examples[index].parts, PIXELS)
    batch = mllm.family.collate([whole], torch.device("cpu"))
    ends = batch["input_ids"][0] == mllm.cur_item_id
    base = mllm.family.base(mllm.model)
    with torch.no_grad():
        plain = base(**batch, use_cache=False).last_hidden_state[0, ends]
        mask = bottleneck_mask(batch["input_ids"], mllm.cur_item_id)
        states = base(**batch, attention_mask=mask, use_cache=False).last_hidden_state[0, ends]
    vectors = prompted.encoder.encode([content[item.item] for item in prompted.mixture[index].items])
    np.testing.assert_allclose(states.numpy(), vectors, atol=2e-5)
    assert np.abs(plain[1:].numpy() - vectors[1:]).max() > 1e-3, "without it, items see those before them"


def test_an_item_whose_only_image_is_broken_is_no_example(prompted):
    broken = PromptedExamples(
        [example for example in prompted.mixture if example.objective == "IT"][:1],
        {example.items[0].item: SimpleNamespace(image=None) for example in prompted.mixture},
        prompted.mllm,
        image_pixels=PIXELS,
        max_text_tokens=12,
        max_answer_tokens=20,
    )
    assert broken[0] is None


@pytest.mark.parametrize("bottleneck", [True, False])
def test_the_loss_of_every_objective_falls(prompted, tmp_path, bottleneck):
    def losses(name: str) -> dict[str, float]:
        mllm = load_mllm(name, with_head=True)
        model = AnswerLoss(mllm.model, mllm.family, mllm.cur_item_id if bottleneck else None).eval()
        batches = LengthGroupedBatches(prompted.examples.lengths, 10_000, 0)
        arguments = finetune_module._arguments(tuning, mllm, tmp_path / "scratch")
        trainer = AnswerTrainer(mllm, model, arguments, prompted.examples, batches, PIXELS, 0.1, False)
        with torch.no_grad():
            trainer.loss_of(model, [trainer.prepare(index) for index in range(len(prompted.examples))])
        trainer.close()
        return {name: float(torch.stack(means).mean()) for name, means in trainer.losses.items()}

    tuning = Tuning("full", epochs=5, learning_rate=5e-3, batch_tokens=1500, image_pixels=PIXELS, bottleneck=bottleneck)
    learner = load_mllm(prompted.mllm.name, with_head=True)
    folder = finetune_module.finetune(learner, prompted.examples, tuning, tmp_path / "tuned", show_progress=False)
    before, after = losses(prompted.mllm.name), losses(str(folder))
    assert before.keys() == after.keys() == set(OBJECTIVES)
    assert all(after[name] < 0.7 * before[name] for name in OBJECTIVES), (before, after)


# --- in a run ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_encodes_with_the_tuned_model_and_tunes_once(described, tmp_path, method, monkeypatch, caplog):
    def vectors(**settings):
        config = config_of(described, tmp_path, **settings)
        dataset = assemble(config, tmp_path, Stages()).dataset
        return dataset.inputs.item_vectors, dataset.inputs.mllm

    settings = {**QUICK, "mirm_tuning": method, "mirm_description_field": "story"}
    plain, untuned = vectors(mllm_image_pixels=PIXELS)
    tuned, mllm = vectors(**settings)
    (folder,) = (tmp_path / "artifacts").glob("mirm-*")
    assert tuned.shape == plain.shape
    assert np.abs(tuned[1:] - plain[1:]).max() > 1e-3
    assert mllm.identity != untuned.identity, "keys of item vectors hold the identity"
    assert mllm.name == str(folder)
    notes = yaml.safe_load((folder / "mirm.yaml").read_text())
    assert notes["examples_of"] == {"IT": 6, "SA": 6, "UB": 6}
    assert not list(folder.glob("*.pt*"))
    monkeypatch.setattr(finetune_module, "finetune", lambda *args: pytest.fail("tuned again"))
    again, _ = vectors(**settings)
    by_path, _ = vectors(mllm=str(folder), mllm_image_pixels=PIXELS)
    np.testing.assert_array_equal(again, tuned)
    np.testing.assert_array_equal(by_path, tuned)


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"mllm_layers": 1, "dueg": "sasrec"}, 1),
        ({"mllm_layers": 1}, None),
        ({"mllm_layers": 1, "dueg_layers": 2}, 2),
        ({"mllm_layers": 2, "dueg_layers": 1}, 2),
        ({"dueg_layers": 1}, None),
    ],
)
def test_the_layers_that_are_read_are_tuned(described, tmp_path, settings, layers):
    config = config_of(described, tmp_path, **settings)
    assert MirmSettings.of(config).layers == layers
    assert tuning_of(MirmSettings.of(config), PIXELS).layers == layers


def test_the_layers_that_encode_are_tuned_alone(described, tmp_path):
    settings = {**QUICK, "mirm_tuning": "lora", "mllm_layers": 1, "dueg": "sasrec", "hidden_size": 16}
    assembled = assemble(config_of(described, tmp_path, **settings), tmp_path, Stages())
    assert assembled.dataset.inputs.item_vectors[1:].any()
    (folder,) = (tmp_path / "artifacts").glob("mirm-*")
    adapter = load_file(folder / "adapter_model.safetensors")
    assert not any(".layers.1." in name for name in adapter)
    assert any(".layers.0." in name for name in adapter)


def test_a_tiny_model_of_another_family(described, tmp_path):
    config = config_of(
        described, tmp_path, **{**QUICK, "mllm": "tiny-internvl", "mirm_tuning": "lora", "mirm_bottleneck": True}
    )
    dataset = assemble(config, tmp_path, Stages()).dataset
    assert dataset.inputs.mllm.model.config.model_type == "internvl"
    assert np.isfinite(dataset.inputs.item_vectors).all()
    assert len(list((tmp_path / "artifacts").glob("tiny-internvl-*"))) == 1
    with pytest.raises(ModelLoadError, match="no tiny model of type 'parrot'"):
        assemble(config_of(described, tmp_path, mllm="tiny-parrot"), tmp_path, Stages())
    assert tiny_family("tiny") == "qwen2_vl"
    assert tiny_family("tiny-deepseek-vl") == "deepseek_vl"
    assert tiny_family("Qwen/Qwen2-VL-2B-Instruct") is None


def test_a_whole_run_is_loaded_again(described, tmp_path):
    given = {**TOY_SETTINGS, **QUICK, "data_path": str(described), "checkpoint_dir": str(tmp_path), "epochs": 1}
    outcome = recbole_mm.run("Molar", "toy", config_dict={**given, "mirm_objectives": ["SA"]})
    again = recbole_mm.load(outcome.run_dir)
    np.testing.assert_array_equal(again.dataset.inputs.item_vectors, outcome.dataset.inputs.item_vectors)
    assert again.dataset.inputs.mllm.identity == outcome.dataset.inputs.mllm.identity


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"mirm_tuning": "half"}, ConfigError, "mirm_tuning: 'half' is not accepted; give one of none, lora, full"),
        ({"mirm_objectives": ["IT", "XY"]}, ConfigError, "mirm_objectives: .* a list out of IT, SA, UB"),
        ({"mirm_objectives": ["IT", "IT"]}, ConfigError, "mirm_objectives"),
        ({"mirm_objectives": []}, ConfigError, "mirm_objectives is empty"),
        ({"mirm_weights": {"XY": 1}}, ConfigError, "mirm_weights: .* names out of IT, SA, UB"),
        ({"mirm_weights": {"IT": -1}}, ConfigError, "mirm_weights: .* at least 0"),
        ({"mirm_weights": {"IT": 0, "SA": 0, "UB": 0}}, ConfigError, "mirm_weights: .* not all of them 0"),
        ({"mirm_weights": {"IT": 0}, "mirm_objectives": ["IT"]}, ConfigError, "mirm_weights: 0 for IT leaves no obj"),
        ({"mirm_examples": 0}, ConfigError, "mirm_examples: 0 is not accepted; give a whole number of at least 1"),
        ({"mirm_history": 0}, ConfigError, "mirm_history"),
        ({"mirm_learning_rate": 0}, ConfigError, "mirm_learning_rate"),
        ({"mirm_warmup_ratio": 2}, ConfigError, "mirm_warmup_ratio"),
        ({"mirm_lora": {"rank": 8}}, ConfigError, "mirm_lora: .* such as"),
        ({"mirm_description_field": "stori"}, DataError, "mirm_description_field names .*did you mean 'story'"),
        ({"mirm_load_in_4bit": True}, ConfigError, "use lora"),
        ({"mirm_load_in_4bit": True, "mirm_tuning": "lora"}, ModelLoadError, "bitsandbytes"),
        ({"modalities": ["text"], "mirm_objectives": ["IT"]}, ConfigError, "IT has no examples"),
    ],
)
def test_settings_that_do_not_fit(described, tmp_path, monkeypatch, settings, error, message):
    monkeypatch.setattr("recbole_mm.llm.loading.find_spec", lambda name: None)
    with pytest.raises(error, match=message) as raised:
        assemble(config_of(described, tmp_path, **{**QUICK, **settings}), tmp_path, Stages())
    assert "\n" not in str(raised.value)


def test_defaults_are_those_of_the_yaml(described, tmp_path):
    given = config_of(described, tmp_path)
    settings = MirmSettings.of(given)
    assert settings.seed == given["seed"]
    assert settings.tuning == "none"
    blank = {f"mirm_{name}": None for name in MirmSettings.__dataclass_fields__}
    plain = MirmSettings.of({**blank, "mllm_layers": None, "dueg": "sasrec", "seed": given["seed"]})
    for name in MirmSettings.__dataclass_fields__:
        if name not in ("weights", "lora", "objectives"):
            assert getattr(plain, name) == getattr(settings, name), name
    assert list(settings.objectives) == list(plain.objectives)


def test_an_adapter_is_not_given_another(described, tmp_path):
    assemble(config_of(described, tmp_path, **{**QUICK, "mirm_tuning": "lora"}), tmp_path, Stages())
    (folder,) = (tmp_path / "artifacts").glob("mirm-*")
    config = config_of(described, tmp_path, **{**QUICK, "mirm_tuning": "lora", "mllm": str(folder)})
    with pytest.raises(ConfigError, match="an adapter itself"):
        assemble(config, tmp_path, Stages())
