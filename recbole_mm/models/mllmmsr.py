"""MLLM-MSR: "Harnessing Multimodal Large Language Models for Multimodal Sequential Recommendation" (2408.09698)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole_mm.errors import ConfigError
from recbole_mm.inputs.reasoning.settings import DEFAULT_DOMAIN
from recbole_mm.llm.encode import DEFAULT_TEXT_TOKENS
from recbole_mm.llm.model import MLLM
from recbole_mm.models.answering.model import AnsweringRecommender
from recbole_mm.models.answering.prompts import PreferencePrompt

if TYPE_CHECKING:
    from recbole_mm.config.resolved import Config
    from recbole_mm.data.dataset import MultimodalDataset


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
        )
