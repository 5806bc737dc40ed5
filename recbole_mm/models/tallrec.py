"""TALLRec: "An Effective and Efficient Tuning Framework to Align Large Language Model with Recommendation"
(2305.00447), a baseline of MLLM-MSR."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from recbole_mm.config.kinds import FLAG, LARGEST_NUMBER, SEED, SHARE, TEXT, above_zero, choice, number, or_null, size
from recbole_mm.config.schema import Setting, read_with, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.data.interactions import SequenceSamples
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.reasoning.settings import DEFAULT_DOMAIN
from recbole_mm.llm.model import MLLM
from recbole_mm.models.answering.model import AnsweringRecommender
from recbole_mm.models.answering.prompts import TitlesPrompt
from recbole_mm.models.answering.settings import NEGATIVES_FROM, RANKING
from recbole_mm.models.settings import LORA, TUNING
from recbole_mm.models.titles import read_titles

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

# fmt: off
SETTINGS = (
    *section("The LLM, and what its prompts tell",
        SHARED["mllm"].but("tiny", "Hugging Face id or folder, or `tiny`: built from the dataset's own text. Paper: "
            "LLaMA-7B."),
        SHARED["mllm_image_pixels"].but(12544, "Not used: no image is shown."),
        Setting("tallrec_history", size(1), 10, "So many of the last titles of a history are told. Theirs: 10."),
        Setting("tallrec_title_field", or_null(TEXT), None, "Column of .item with the titles. Null: the first of "
            "text_fields, or else the whole text."),
        Setting("tallrec_title_tokens", size(1), 24, "Longer titles are cut. Not stated."),
        Setting("tallrec_rating_field", or_null(TEXT), None, "Column of .inter with ratings, to tell liked from "
            "disliked; null: whatever was chosen is liked. Paper: ratings."),
        Setting("tallrec_liked_from", number(-LARGEST_NUMBER), 4, "From this rating on an item is liked. Paper: above "
            "3 (movies), above 5 of 10 (books).", read_where={"tallrec_rating_field": ()})),
    *section("Fine-tuning, before RecBole's loop; kept in the artifact folder and found again",
        Setting("sft_tuning", or_null(TUNING), "lora", "lora, full, or none: the model as it is, zero-shot. Paper: "
            "lora."),
        *read_with({"sft_tuning": ("lora", "full")},
        Setting("sft_loss", or_null(choice("answer", "full")), "answer", "answer: loss on Yes or No alone. full: on "
            "the prompt's words too. Theirs: answer."),
        Setting("sft_targets", or_null(size(1)), 1, "Last training items of each user that are answered with Yes; "
            "null: all of them. Not stated."),
        Setting("sft_examples", or_null(size(1)), None, "At most so many of all users' together, drawn; null: all. "
            "Paper: few, 16 to 256 prompts."),
        Setting("sft_negatives", size(1), 1, "Items answered with No for each. Theirs: low ratings are the No."),
        NEGATIVES_FROM,
        Setting("sft_epochs", size(1), 4, "Theirs: up to 200 over few prompts, the best one kept."),
        Setting("sft_learning_rate", above_zero(), 1e-4, "Of AdamW at its peak. Theirs: 1e-4."),
        Setting("sft_warmup_ratio", SHARE, 0.05, "Share of the steps before the peak. Theirs: 20 steps."),
        Setting("sft_lora", LORA, {"r": 8, "alpha": 16, "dropout": 0.05, "targets": ["q_proj", "v_proj"]}, "targets: "
            "names of linear layers; null: all. Theirs: these.", read_where={"sft_tuning": ("lora",)}),
        Setting("max_tokens_per_batch", size(1), 8192, "Tokens of a batch of fine-tuning, padding included; bounds "
            "memory. Not stated."),
        Setting("sft_accumulation", size(1), 1, "Batches per optimizer step. Theirs: 128 prompts per step."),
        Setting("sft_gradient_checkpointing", FLAG, False, "Compute activations twice: less memory, about a third more "
            "time."),
        Setting("sft_load_in_4bit", FLAG, False, "lora: hold the frozen weights in 4 bits; needs a GPU and "
            "bitsandbytes. Theirs: 8 bits.", read_where={"sft_tuning": ("lora",)}),
        Setting("sft_checkpoint_steps", size(1), 200, "Optimizer steps between two checkpoints, from which a killed "
            "fine-tuning goes on."),
        Setting("sft_seed", or_null(SEED), None, "Of examples and fine-tuning. Null: seed."))),
    *RANKING,
)
# fmt: on


class TALLRec(AnsweringRecommender):
    """Told: titles of the history, liked ones and, where ratings tell, disliked ones; the candidate's title. Words
    alone. See `AnsweringRecommender` for how it answers and ranks.

    Needs from the dataset, besides: `content`, which gives titles; the column `tallrec_rating_field` of `.inter`.

    Raises:
        ConfigError: no titles, or no such column of ratings.

    Example:
        >>> recbole_mm.run("TALLRec", "my-data")  # doctest: +SKIP
    """

    settings = SETTINGS
    reads_users = False

    @classmethod
    def build_prompt(cls, config: Config, dataset: MultimodalDataset, mllm: MLLM) -> TitlesPrompt:
        """Titles of the history, then the candidate's."""
        if "text" not in config["modalities"]:
            raise ConfigError("TALLRec reads titles: keep text among the modalities")
        fields, rating = config["text_fields"], config["tallrec_rating_field"]
        field = config["tallrec_title_field"] or (fields[0] if fields else None)
        return TitlesPrompt(
            mllm,
            read_titles(dataset.content, field, "tallrec_title_field"),
            history=config["tallrec_history"],
            max_title_tokens=config["tallrec_title_tokens"],
            likes=None if rating is None else likes_of(dataset, rating, config["tallrec_liked_from"]),
            domain=config["item_domain"] or DEFAULT_DOMAIN,
        )


def likes_of(dataset: MultimodalDataset, field: str, least: float) -> Callable[[int, int], bool]:
    """Return a function that tells by a column of ratings whether a user likes an item.

    Of several ratings of a pair the first one counts, since a later one may be held out.

    Args:
        dataset: a sequential dataset, before or after it is split.
        field: float column of `.inter`.
        least: lowest rating of a liked item.

    Returns:
        (RecBole's user id, item id) -> whether the user likes it; a pair without a rating is liked.

    Raises:
        ConfigError: there is no such column, or it is not loaded.
    """
    rows = dataset.inter_feat
    columns = rows.flat if isinstance(rows, SequenceSamples) else rows  # after the split, all rows in the order of time
    if field not in columns:
        raise ConfigError(f"tallrec_rating_field: the interactions have no column {field!r}; see load_col")
    order = slice(None) if columns is not rows else dataset._rows_in_order()
    users, items, ratings = (np.asarray(columns[name])[order] for name in (dataset.uid_field, dataset.iid_field, field))
    keys, first = np.unique(users.astype(np.int64) * dataset.item_num + items, return_index=True)
    liked = ratings[first] >= least

    def likes(user: int, item: int) -> bool:
        """Return whether the user likes the item."""
        key = user * dataset.item_num + item
        place = int(np.searchsorted(keys, key))
        return bool(liked[place]) if place < len(keys) and keys[place] == key else True

    return likes
