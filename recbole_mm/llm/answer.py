"""Yes or no: what a multimodal LLM would answer right after a prompt, in one forward pass and without generating.

The score of a prompt is p(yes) / (p(yes) + p(no)) at the first answer position, which is the sigmoid of
logit(yes) - logit(no). Ranking asks about many candidates of one user, and their prompts begin alike: history and
instruction first, the candidate last. `AnswerReader` runs that shared prefix once and reads every candidate's suffix
against its keys and values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from recbole_mm.errors import ConfigError, ModelLoadError
from recbole_mm.llm.blocks import Block, Prefix
from recbole_mm.llm.decoder import layer_masks
from recbole_mm.llm.model import MLLM

YES, NO = "Yes", "No"

CROSS_ATTENTION = "cross_attention_mask"
"""Input of a model that keeps images out of the sequence of tokens."""


def resolve_answers(mllm: MLLM, prompt_tail: str, words: Sequence[str]) -> list[int]:
    """The tokens with which the model would begin to answer each of these words.

    Tokenizers differ in what they make of a word: it may be cut in pieces, or be another token after a space than
    after a line break. So all words are encoded where they will stand, after the end of the prompt.

    Args:
        mllm: whose tokenizer decides.
        prompt_tail: the last words of every prompt, best ended by a line break. A blank at its end is the answer's:
            it is no part of the prompt, and the word takes it into its token.
        words: the answers.

    Returns:
        An id for each word.

    Raises:
        ConfigError: an answer does not begin a token of its own after this tail, or two begin with the same one.
    """
    stem = prompt_tail.removesuffix(" ")
    tail = mllm.token_ids(stem)
    found: dict[int, str] = {}
    for word in words:
        ids = mllm.token_ids(prompt_tail + word)
        if ids[: len(tail)] != tail or len(ids) == len(tail):
            raise ConfigError(
                f"{mllm.name}: after {prompt_tail!r} the answer {word!r} is no token of its own; "
                "let the prompt end in a line break"
            )
        first = ids[len(tail)]
        if first in found:
            raise ConfigError(
                f"{mllm.name}: after {prompt_tail!r} {found[first]!r} and {word!r} begin with the same token {first}; "
                "let the prompt end differently"
            )
        found[first] = word
    return list(found)


def resolve_yes_no(mllm: MLLM, prompt_tail: str) -> tuple[int, int]:
    """The token with which the model would begin to answer "Yes", and the one for "No" (`resolve_answers`).

    Raises:
        ConfigError: an answer does not begin a token of its own after this tail, or both begin with the same one.
    """
    yes, no = resolve_answers(mllm, prompt_tail, (YES, NO))
    return yes, no


def answer_contrast(mllm: MLLM, yes: int, no: int) -> Tensor:
    """What a last hidden state is multiplied with to give logit(yes) - logit(no): (hidden,) float32.

    Raises:
        ModelLoadError: the model was loaded without the head that gives logits.
    """
    head = mllm.model.get_output_embeddings()
    if head is None:
        raise ModelLoadError(f"{mllm.name}: loaded without its language-model head, which answering needs")
    weight = head.weight.detach()
    return weight[yes].float() - weight[no].float()


def multiplies_alone(mllm: MLLM, yes: int, no: int) -> bool:
    """Whether the model's logits of two words are products with rows of its head, without bias, scale or bound."""
    head: Any = mllm.model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        return False
    generator = torch.Generator().manual_seed(0)
    state = 100 * torch.randn(1, head.weight.shape[1], generator=generator)  # far out, where bounds show
    state = state.to(head.weight.device, head.weight.dtype)
    with torch.no_grad():
        given = mllm.family.logits(mllm.model, state)[0, [yes, no]].float()
        expected = head.weight[[yes, no]].float() @ state[0].float()
    return bool((given - expected).abs().max() <= 0.02 * expected.abs().max())


def _judged(mllm: MLLM, yes: int, no: int, states: Tensor) -> Tensor:
    """(B, hidden) -> (B,) float32 logit(yes) - logit(no), as the model itself computes them."""
    logits = mllm.family.logits(mllm.model, states).float()
    return logits[:, yes] - logits[:, no]


def _logits_of(mllm: MLLM, ids: Sequence[int], states: Tensor) -> Tensor:
    """(B, hidden) -> (B, number of ids) float32, as the model itself computes them."""
    return mllm.family.logits(mllm.model, states).float()[:, list(ids)]


class AnswerReader(nn.Module):
    """Reads logit(yes) - logit(no) after prompts. Its sigmoid is p(yes) / (p(yes) + p(no)).

    Gradients flow through both ways of reading, so that it serves training too.

    Args:
        model: the decoder, for prompts given as vectors, or the whole base model, for images. It is held, not copied.
        contrast: (hidden,), from `answer_contrast`.
        judge: (B, hidden) states -> (B,) answers, for a head that does more than multiply; None: it does not.

    Example:
        >>> reader = AnswerReader.of(mllm, prompt_tail="Answer:\\n")         # doctest: +SKIP
        >>> prefix = reader.read_prefix(history)                            # doctest: +SKIP
        >>> reader.read_after(prefix, owners, candidates).sigmoid().shape  # doctest: +SKIP
        torch.Size([12])
    """

    contrast: Tensor

    def __init__(self, model: nn.Module, contrast: Tensor, judge: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self._judge = judge
        self.register_buffer("contrast", contrast, persistent=False)

    @classmethod
    def of(cls, mllm: MLLM, prompt_tail: str, model: nn.Module | None = None) -> AnswerReader:
        """A reader of an MLLM whose prompts end in `prompt_tail`.

        Args:
            mllm: loaded with its head.
            prompt_tail: see `resolve_yes_no`.
            model: what runs the prompts; None takes the MLLM's base model.

        Raises:
            ConfigError, ModelLoadError: see `resolve_yes_no`, `answer_contrast` and `MLLM.require_attention`.
        """
        mllm.require_attention()
        yes, no = resolve_yes_no(mllm, prompt_tail)
        contrast = answer_contrast(mllm, yes, no)
        judge = None if multiplies_alone(mllm, yes, no) else partial(_judged, mllm, yes, no)
        return cls(mllm.family.base(mllm.model) if model is None else model, contrast, judge)

    @classmethod
    def of_words(cls, mllm: MLLM, prompt_tail: str, words: Sequence[str]) -> AnswerReader:
        """A reader of the logits of these words in place of Yes against No: its answers are (B, number of words).

        Args:
            mllm: loaded with its head.
            prompt_tail: see `resolve_answers`.
            words: the answers, in the order of the columns.

        Raises:
            ConfigError, ModelLoadError: see `resolve_answers`, `answer_contrast` and `MLLM.require_attention`.
        """
        mllm.require_attention()
        ids = resolve_answers(mllm, prompt_tail, words)
        columns = torch.stack([answer_contrast(mllm, one, one) for one in ids], dim=1)  # of their shape and device
        return cls(mllm.family.base(mllm.model), columns, partial(_logits_of, mllm, ids))

    def read(self, prompts: Block) -> Tensor:
        """Answers of B whole prompts: (B,) float32."""
        return self._answers(self._run(prompts, prompts.whole_positions(), None, None), prompts.lengths)

    def read_prefix(self, prefixes: Block) -> Prefix:
        """Run the beginnings of U prompts.

        Raises:
            ValueError: they hold images that the model reads through cross-attention (Mllama): what goes on from them
                would have to say again where those are. `read` such prompts whole.
        """
        if CROSS_ATTENTION in prefixes.inputs:
            raise ValueError(
                "prompts whose images are read through cross-attention cannot be gone on from; read them whole"
            )
        cache = DynamicCache()
        positions = prefixes.all_positions()
        self._run(prefixes, positions, cache, None)
        inside = torch.arange(positions.shape[-1], device=positions.device) < prefixes.lengths[:, None]
        last = positions.masked_fill(~inside, -1).amax(-1)
        following = (last if last.ndim == 1 else last.amax(0)) + 1
        layers = [(layer.keys, layer.values) for layer in cache.layers]
        return Prefix(layers, prefixes.lengths, following)

    def read_after(self, prefix: Prefix, owners: Tensor, suffixes: Block) -> Tensor:
        """Answers of R prompts that go on from a prefix; the same numbers as `read` gives of the whole prompts.

        Args:
            prefix: the beginnings.
            owners: (R,) which beginning each prompt has.
            suffixes: the rest of each prompt.

        Returns:
            (R,) float32.
        """
        positions = suffixes.all_positions()
        states = self._run(
            suffixes,
            positions + prefix.following[owners, None],
            prefix.rows(owners),
            self._masks(prefix, owners, positions.shape[-1]),
        )
        return self._answers(states, suffixes.lengths)

    def _masks(self, prefix: Prefix, owners: Tensor, width: int) -> Tensor | dict[str, Tensor]:
        """What suffixes see, as the model takes it: one mask, or one for each kind of layer."""
        config, dtype = self.model.config.get_text_config(), next(self.model.parameters()).dtype
        return layer_masks(config, prefix.seen(owners, width), prefix.apart(owners, width), dtype)

    def _run(
        self,
        block: Block,
        positions: Tensor | None,
        cache: DynamicCache | None,
        mask: Tensor | dict[str, Tensor] | None,
    ) -> Tensor:
        """(B, L, hidden) last-layer states. Without a mask the model's own causal one holds; padding comes last."""
        output = self.model(
            **block.inputs,
            position_ids=positions,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def _answers(self, states: Tensor, lengths: Tensor) -> Tensor:
        last = states[torch.arange(len(states), device=states.device), lengths - 1]
        return last.float() @ self.contrast if self._judge is None else self._judge(last)
