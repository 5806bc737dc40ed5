"""The settings of HLLM (arXiv 2409.12740)."""

from __future__ import annotations

from recbole_mm.config.kinds import FLAG, choice, layers, number, or_null, size
from recbole_mm.config.schema import Setting, read_with, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.models.settings import JOINT_ITEMS, LORA

LARGEST_SCALE = 100.0

_FROZEN = {"item_llm_tuning": ("frozen",)}
_JOINT = {setting.name: setting for setting in read_with({"item_llm_tuning": ("lora", "full")}, *JOINT_ITEMS)}

# fmt: off
SETTINGS = (
    *section("The two LLMs, both started from the text decoder of the same model",
        SHARED["mllm"].but("tiny", "Hugging Face id or folder, or `tiny`: untrained. Theirs: TinyLlama-1.1B or "
            "Baichuan2-7B, twice."),
        SHARED["max_text_tokens"].but(256, "Longer item texts are cut. Theirs: 256."),
        SHARED["mllm_layers"].but(None, "Keep only the first so many layers of the item LLM; null: all. Theirs: all."),
        SHARED["mllm_pooling"].but("cur_item", "frozen: where an item's vector is read; cur_item, last, mean or "
            "checkpoint.", read_where=_FROZEN),
        SHARED["mllm_instruction"].but(None, "frozen: a text before each item, as some embedding models want it.",
            read_where=_FROZEN),
        Setting("item_llm_tuning", choice("frozen", "lora", "full"), "frozen", "frozen: item vectors computed once and "
            "kept. full: trained along, its words and a learnable token at the end of each item included. lora: an "
            "adapter and that token are. Theirs: full."),
        Setting("item_llm_lora", LORA, {"r": 16, "alpha": 32, "dropout": 0.05, "targets": None}, "lora: its sizes. "
            "targets: names of linear layers; null: all. Not stated.", read_where={"item_llm_tuning": ("lora",)}),
        Setting("user_llm_tuning", choice("full", "frozen"), "full", "Train the user LLM: full or frozen. Theirs: "
            "full."),
        Setting("user_llm_layers", or_null(layers(1)), None, "Keep only the first so many layers of the user LLM; "
            "null: all. Theirs: all."),
        Setting("gradient_checkpointing", FLAG, False, "Compute layers twice to save memory: for LLMs of a billion "
            "parameters. Theirs: an option.")),
    *section("A trained item LLM (docs/joint.md)",
        _JOINT["item_llm_learning_rate"].but(1e-4, "Its learning rate; at 1e-3 the tiny one collapses. Theirs: 1e-4."),
        _JOINT["item_llm_negatives"].but("trained", "shared_negatives that are not in the batch's histories and "
            "targets. trained: with gradients. cached: without, from a cache, which costs no passes. Theirs: trained."),
        _JOINT["item_llm_staleness"],
        _JOINT["max_tokens_per_batch"].but(16384, _JOINT["max_tokens_per_batch"].meaning)),
    *section("Of a frozen item LLM's vectors (a trained one learns all of this itself)",
        Setting("item_normalization", choice("standard", "none"), "standard", "standard: zero mean, unit spread over "
            "items; or none. Not stated.", read_where=_FROZEN),
        Setting("item_projection", choice("linear", "mlp", "none"), "linear", "Trainable map of the item vectors: "
            "linear, mlp or none. Not stated.", read_where=_FROZEN),
        Setting("embedding_dropout", number(0, 1, below=True), 0.0, "Dropout on the item vectors of a history, of "
            "either kind. Not stated.")),
    *section("Loss: InfoNCE of scale * cosine, at every position",
        Setting("temperature", number(1 / LARGEST_SCALE, 1), 0.07, "1 / scale at the start; the scale is learned, and "
            "stays below 100. Theirs: 0.07."),
        Setting("shared_negatives", size(1), 512, "Items drawn per batch, negatives of all its targets. Theirs: 512 to "
            "28672."),
        Setting("false_negatives", choice("content", "item", "similar"), "content", "Negatives that do not count for a "
            "target. content: the same item, or one whose text (vector) is identical. item: the same item. similar: "
            "whatever the model finds too similar, too. Theirs: similar, without least_negatives, which can take all "
            "negatives away and end at a loss of 0."),
        Setting("similar_above", number(-1, 1), 0.99, "Two items are too similar above this cosine. Theirs: 0.99."),
        Setting("least_negatives", size(1), 64, "With `similar`, so many negatives are kept for each target, the least "
            "similar ones. Theirs: 0.", read_where={"false_negatives": ("similar",)}),
        Setting("collapse_patience", or_null(size(1)), 500, "Stop with an error after so many batches in a row in "
            "which most items of different content are too similar; a warning comes after 50. null: only warn. Not "
            "stated.")),
    *section("Training",
        SHARED["MAX_ITEM_LIST_LENGTH"].but(50, "History length. Theirs: 10 in their command."),
        SHARED["train_batch_size"].but(128, "Targets per optimizer step. Theirs: 16 users per GPU in their command."),
        SHARED["epochs"].but(20, "Theirs: 5, from pretrained LLMs; an untrained one needs more."),
        SHARED["learning_rate"].but(1e-3, "Theirs: 1e-4, for pretrained LLMs."),
        SHARED["lr_scheduler"].but("cosine", "Per optimizer step."),
        SHARED["warmup_ratio"].but(0.05, "Share of the steps with a linear warm-up."),
        SHARED["clip_grad_norm"].but({"max_norm": 5}, ""),
        SHARED["train_neg_sample_args"].but(None, "Negatives are the batch's, drawn by the model.")),
)
# fmt: on
