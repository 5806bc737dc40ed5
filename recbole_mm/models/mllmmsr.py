"""MLLM-MSR: "Harnessing Multimodal Large Language Models for Multimodal Sequential Recommendation" (2408.09698)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole_mm.config.kinds import FLAG, SEED, SHARE, above_zero, choice, or_null, size
from recbole_mm.config.schema import Setting, read_with, section
from recbole_mm.config.settings import SETTINGS as SHARED
from recbole_mm.errors import ConfigError
from recbole_mm.inputs.answering.lists import LISTED
from recbole_mm.inputs.reasoning.settings import DEFAULT_DOMAIN, REASONING
from recbole_mm.llm.encode import DEFAULT_TEXT_TOKENS
from recbole_mm.llm.model import MLLM
from recbole_mm.models.answering.model import AnsweringRecommender
from recbole_mm.models.answering.prompts import PreferencePrompt
from recbole_mm.models.answering.settings import NEGATIVES_FROM, RANKING
from recbole_mm.models.settings import LORA, TUNING

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset

# fmt: off
SETTINGS = (
    *section("The LLM, and what it is shown of a candidate",
        SHARED["mllm"].but("tiny", "Hugging Face id or folder, or `tiny`: built from the dataset's own text. Paper: "
            "LLaVA-v1.6-Mistral-7B."),
        SHARED["mllm_image_pixels"].but(12544, "Bound on an image's pixels after resizing; families that read tiles "
            "take at least one. Not stated."),
        SHARED["max_text_tokens"].but(256, "Longer item texts are cut. Not stated; theirs cuts the whole prompt at "
            "512 or 1024.")),
    *section("Item texts, written once and kept in the artifact store",
        SHARED["item_text"].but("fused", "fused: metadata and image description; image or text: one of them. text: "
            "without image summaries. Paper: fused."),
        SHARED["description_words"].but(100, "Longest description of an image. Not stated.")),
    *section("Preferences, written once per history that is asked about",
        REASONING["preference"],
        REASONING["preference_blocks"],
        REASONING["preference_block_size"],
        REASONING["preference_gap_hours"],
        REASONING["preference_words"],
        REASONING["preference_history_tokens"]),
    *section("Fine-tuning, before RecBole's loop; kept in the artifact folder and found again. `mllm: tiny` knows "
        "nothing: there, take --sft_tuning=full --sft_learning_rate=1e-3",
        Setting("sft_tuning", or_null(TUNING), "lora", "lora, full, or none: the model as it is, zero-shot. Paper: "
            "lora."),
        *read_with({"sft_tuning": ("lora", "full")},
        Setting("sft_loss", or_null(choice("answer", "full")), "answer", "answer: loss on Yes or No alone. full: on "
            "the prompt's words too, as theirs. Paper: answer."),
        Setting("sft_targets", or_null(size(1)), 1, "Last training items of each user that are answered with Yes; "
            "null: all of them. Not stated."),
        Setting("sft_examples", or_null(size(1)), None, "At most so many of all users' together, drawn; null: all. Not "
            "stated."),
        Setting("sft_negatives", size(1), 1, "Items answered with No for each, drawn from those that the user did not "
            "choose; with answers: listed, rerank_k - 1. Paper: 1."),
        NEGATIVES_FROM,
        Setting("sft_epochs", size(1), 4, "Paper: 10, theirs: 4."),
        Setting("sft_learning_rate", above_zero(), 2e-5, "Of AdamW at its peak. Paper: 2e-5."),
        Setting("sft_warmup_ratio", SHARE, 0.05, "Share of the steps before the peak. Not stated."),
        Setting("sft_lora", LORA, {"r": 8, "alpha": 32, "dropout": 0.1, "targets": None}, "targets: names of linear "
            "layers; null: all of the decoder's. Paper: r 8; theirs: r 16, alpha 32, dropout .1.",
            read_where={"sft_tuning": ("lora",)}),
        Setting("max_tokens_per_batch", size(1), 8192, "Tokens of a batch of fine-tuning, padding and image patches "
            "included; bounds memory. Not stated."),
        Setting("sft_accumulation", size(1), 1, "Batches per optimizer step. Paper and theirs: 8 to 24 prompts per "
            "step."),
        Setting("sft_gradient_checkpointing", FLAG, False, "Compute activations twice: less memory, about a third more "
            "time."),
        Setting("sft_load_in_4bit", FLAG, False, "lora: hold the frozen weights in 4 bits; needs a GPU and "
            "bitsandbytes.", read_where={"sft_tuning": ("lora",)}),
        Setting("sft_checkpoint_steps", size(1), 200, "Optimizer steps between two checkpoints, from which a killed "
            "fine-tuning goes on."),
        Setting("sft_seed", or_null(SEED), None, "Of examples and fine-tuning. Null: seed."))),
    *RANKING,
)
# fmt: on


class MLLMMSR(AnsweringRecommender):
    """Asks an LLM with the preference that it wrote of the user's history, block by block, and the candidate's image,
    title and summary. See `AnsweringRecommender` for how it answers and ranks.

    Needs from the dataset, besides: `item_texts`, unless only images are shown; `preferences`, unless `preference:
    none`; `content`.

    Raises:
        ConfigError: neither images nor texts are among the modalities.

    Example:
        >>> recbole_mm.run("MLLMMSR", "my-data")  # doctest: +SKIP
    """

    settings = SETTINGS
    lists_candidates = True

    @classmethod
    def prompt_inputs(cls, config: Config) -> tuple[str, ...]:
        """Return the names of the texts of items and users that the prompt shows."""
        texts = ("item_texts",) if "text" in config["modalities"] else ()
        return texts if config["preference"] == "none" else (*texts, "user_preferences")

    @classmethod
    def build_prompt(cls, config: Config, dataset: MultimodalDataset, mllm: MLLM) -> PreferencePrompt:
        """Build the prompt of the preference, then the candidate's image and text."""
        if not config["modalities"]:
            raise ConfigError("MLLM-MSR shows images and texts: keep one of them among the modalities")
        return PreferencePrompt(
            mllm,
            dataset.content,
            dataset.inputs.item_texts if "text" in config["modalities"] else None,
            None if config["preference"] == "none" else dataset.inputs.preferences,
            image_pixels=config["mllm_image_pixels"],
            max_text_tokens=config["max_text_tokens"] or DEFAULT_TEXT_TOKENS,
            domain=config["item_domain"] or DEFAULT_DOMAIN,
            lists=config["answers"] == LISTED,
        )
