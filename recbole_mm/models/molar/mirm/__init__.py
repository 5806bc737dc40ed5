"""Fine-tuning data of Molar's MIRM (section 3.3): three objectives, each in its file, and their mixture."""

from recbole_mm.data.item_facts import ItemFacts
from recbole_mm.models.molar.mirm.mixture import OBJECTIVES, build_mixture, examples_digest
from recbole_mm.models.molar.mirm.prompting import PromptedExamples
from recbole_mm.models.molar.mirm.user_behavior import Histories

__all__ = ["OBJECTIVES", "Histories", "ItemFacts", "PromptedExamples", "build_mixture", "examples_digest"]
