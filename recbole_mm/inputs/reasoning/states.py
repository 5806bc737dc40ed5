"""Users without words: what an LLM has in mind after their history, in place of a text that it would write (ours).

The run's LLM (`mllm`) reads a user's training items and is asked for one word on what the person looks for; the user's
vector is its last-layer hidden state where that word would be written (or as `mllm_pooling` says), as items are encoded
for Molar (Eq. 1). One pass over a prompt, and nothing is generated.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recbole_mm.data.features import text_hash
from recbole_mm.inputs.context import PlannedStage
from recbole_mm.inputs.mllm import RunMLLM
from recbole_mm.inputs.reasoning.items import ItemTexts
from recbole_mm.inputs.reasoning.profiles import Histories
from recbole_mm.inputs.reasoning.prompts import MARKUP_TOKENS, Texts, history_line, newest_within
from recbole_mm.inputs.reasoning.writing import TextNeed
from recbole_mm.llm.encode import ItemEncoder
from recbole_mm.llm.item_vectors import encode_items, item_keys
from recbole_mm.llm.model import MLLM
from recbole_mm.llm.pooling import pooling_of
from recbole_mm.llm.prompts import ItemPrompt

logger = logging.getLogger(__name__)

STAGE = "user states"
READ = "Each line is one {domain} that the same person chose, the oldest first and the most recent last.\n\n{history}\n"
ASKED = "In one word, what this person looks for in a {domain}:"


@dataclass(frozen=True)
class Reader:
    """A user as `ItemEncoder` takes items: an id and a text."""

    item_id: str
    text: str | None
    image: None = None


class Readings:
    """What is read of all users, by RecBole's id; index 0 is padding.

    Args:
        tokens: of the users.
        texts: (n_users,) what is read of each; None where nothing is known.

    Example:
        >>> Readings(["[PAD]", "u7"], [None, "1. Contact"])[1].text
        '1. Contact'
    """

    def __init__(self, tokens: Sequence[str], texts: Texts) -> None:
        self.tokens, self.texts = tokens, texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int, /) -> Reader:
        return Reader(str(self.tokens[index]), self.texts[index])

    def text(self, index: int, /) -> str | None:
        """Returns what is read of a user."""
        return self.texts[index]

    def fingerprint(self, index: int, /) -> str:
        """Returns the hash of what is read."""
        return text_hash(self.texts[index] or "")


class UserStates(TextNeed):
    """`user_states`: hidden states of the run's LLM after every user's training items."""

    def readings(self, texts: Texts, mllm: MLLM) -> Readings:
        """Returns what is read of users.

        Args:
            texts: of the items.
            mllm: counts tokens.
        """
        dataset, settings = self.context.dataset, self.writing.settings
        tokens = dataset.field2id_token[dataset.uid_field]
        found: Texts = [None] * len(tokens)
        histories, most = Histories.of(dataset, settings), self._most_tokens(mllm)
        for place, user in enumerate(histories.users.tolist()):
            found[user] = reading_of(histories[place], texts, settings.item_domain, mllm, most)
        return Readings(tokens, found)

    def _most_tokens(self, mllm: MLLM) -> int:
        """Of a history: `profile_history_tokens`, or what the model's context leaves for it."""
        most, config = self.writing.settings.profile_history_tokens, self.context.config
        if mllm.context is None:
            return most
        around = (config["mllm_instruction"] or "") + ASKED.format(domain=self.writing.settings.item_domain)
        return max(1, min(most, mllm.context - MARKUP_TOKENS - len(mllm.token_ids(around))))

    def encoder(self, mllm: MLLM) -> ItemEncoder:
        """Returns what reads users.

        Raises:
            ConfigError: `mllm_pooling` or `mllm_instruction` does not fit the model.
        """
        config = self.context.config
        asked = ASKED.format(domain=self.writing.settings.item_domain)
        return ItemEncoder(
            mllm,
            ItemPrompt(asked, asked, asked),
            max_text_tokens=self._most_tokens(mllm),
            layers=config["mllm_layers"],
            pooling=pooling_of(config["mllm_pooling"], config["mllm_instruction"], mllm),
        )

    def plan(self) -> list[PlannedStage]:
        """Returns the stages of descriptions and of states."""
        items = self.context.share(ItemTexts)
        rows, known = items.planned
        by, mllm = str(self.context.config["mllm"]), self.context.share(RunMLLM).outline
        if mllm is None:
            users = len(self.context.dataset.field2id_token[self.context.dataset.uid_field]) - 1
            return [*rows, PlannedStage("user states", by, None, users, at_most=True)]
        keys = item_keys(self.readings(known.texts, mllm), self.encoder(mllm))
        return [*rows, PlannedStage("user states", by, *self.context.count(keys), at_most=bool(known.unwritten))]

    def write(self) -> None:
        """Has the item texts written."""
        self.context.share(ItemTexts).write()

    def compute(self) -> dict[str, Any]:
        """Returns `profile_vectors`."""
        context, remembered = self.context, self.context.remembered
        tokens = [str(token) for token in context.dataset.field2id_token[context.dataset.uid_field]]
        if (known := remembered.vectors(STAGE, tokens, context.store)) is not None:
            context.tokens |= remembered.of(STAGE).get("tokens", {})
            return {"profile_vectors": known}
        mllm = context.share(RunMLLM).loaded
        readings = self.readings(context.share(ItemTexts).texts, mllm)
        show = context.config["show_progress"]
        read = [len(mllm.token_ids(text)) for text in readings.texts if text]
        spent = {"user states, read": sum(read) / max(1, len(read))}
        context.tokens |= spent

        def note(keys: list[str | None]) -> None:
            remembered.note(STAGE, keys=dict(zip(tokens[1:], keys[1:], strict=True)), tokens=spent)

        vectors = encode_items(readings, self.encoder(mllm), context.store, show, what="user", on_keys=note)
        return {"profile_vectors": vectors}


def reading_of(items: Sequence[int], texts: Texts, domain: str, mllm: MLLM, most: int) -> str | None:
    """What is read of one user: the newest items within a bound, one at least; None where nothing is known of any.

    Args:
        items: oldest first.
        texts: of the items by RecBole's id.
        domain: what an item is called.
        mllm: counts tokens.
        most: tokens of the whole.
    """
    known = [text for item in items if (text := texts[item])]
    if not known:
        return None
    frame = len(mllm.token_ids(READ.format(domain=domain, history="")))
    costs = [len(mllm.token_ids(history_line(100, text) + "\n")) for text in known]
    shown = known[newest_within(costs, most - frame) :]
    history = "\n".join(history_line(number, text) for number, text in enumerate(shown, start=1))
    return READ.format(domain=domain, history=history)
