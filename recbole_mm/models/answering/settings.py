"""The settings that models which answer Yes or No share: how they rank, and that there is nothing left to train."""

from __future__ import annotations

from recbole_mm.config.kinds import MAPPING, PATH, choice, or_null, size
from recbole_mm.config.schema import Setting, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.models.settings import FUSION_WEIGHT, WORDS

# fmt: off
NEGATIVES_FROM = Setting("sft_negatives_from", choice("uniform", "first_stage"), "uniform", "uniform: of all items of "
    "training interactions. first_stage: of the rerank_k that the first stage ranks first behind the same history. "
    "Not stated.")
"""Where the negatives of fine-tuning come from."""

RANKING = (
    *section("Ranking",
        Setting("answers", choice("scored", "listed", "written"), "scored", "scored: p(yes) / (p(yes) + p(no)), a "
            "prompt per item. listed: the rerank_k items, 2 to 26, in one prompt, and the probability of each one's "
            "letter (MLLM-MSR alone; not in the paper). written: what an LLM of text_backend writes, yes 1, no 0, "
            "unreadable 0.5."),
        Setting("list_orders", size(1), 1, "listed: orders in which a list is shown, the first stage's and turned "
            "ones, whose mean counts. Not in the paper.", read_where={"answers": ("listed",)}),
        Setting("answer_batch_tokens", size(1), 8192, "Prompt tokens, padding included, that are read at once while "
            "ranking. Bounds memory."),
        Setting("first_stage", or_null(WORDS), "SASRec", "Full ranking: whose best items are asked about; any model, "
            "trained on the same split. none: nobody's. Not in the paper."),
        Setting("first_stage_path", or_null(PATH), None, "Folder of a finished run of it on the same data; null: it is "
            "run first, or found again under checkpoint_dir."),
        Setting("first_stage_config", or_null(MAPPING), {}, "Its settings, such as {epochs: 20, stopping_step: 5}; a "
            "key left out has that model's own default."),
        Setting("rerank_k", or_null(size(1)), 50, "So many items of each user are asked about in full ranking; null: "
            "every item. Sampled ranking asks about all."),
        Setting("fusion_weight", FUSION_WEIGHT, 1.0, "What ranks the items that are asked about: w * p(yes) + (1 - w) "
            "* their first stage's scores, scaled to 0 to 1. 1: p(yes) alone. valid: w is chosen on validation, 0 and "
            "1 included. Not in the paper.")),
    *section("There is nothing left to train in RecBole's loop: one pass, which validates (eval_step: 0 leaves that "
        "out, half the cost)",
        SHARED["epochs"].but(1, "More change nothing. The epochs of fine-tuning are sft_epochs."),
        SHARED["eval_step"].but(1, "0: no validation."),
        SHARED["MAX_ITEM_LIST_LENGTH"].but(50, "Length of the histories, of the first stage's too."),
        SHARED["train_neg_sample_args"].but(None, "No negatives: no batch is read.")),
)
# fmt: on
