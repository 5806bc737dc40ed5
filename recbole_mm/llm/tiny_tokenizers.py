"""Tokenizers of the tiny models, trained on a dataset's own texts: each family's kind, with its special tokens.

Any text can be encoded, whatever the corpus. A vocabulary has at most 4,096 entries with its special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from recbole_mm.utils.escaping import encodable

VOCABULARY = 4096
LONGEST = 4096
"""Tokens of the longest text a tiny model can read."""

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
INTERNVL_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
DEEPSEEK_TOKENS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<image_placeholder>")  # noqa: RUF001
LLAMA_TOKENS = (
    "<|begin_of_text|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|python_tag|>",
    "<|image|>",
)
"""The image's token comes last: the head of the model does not know it."""
LLAVA_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
ONEVISION_TOKENS = ("<|endoftext|>", "<|im_end|>", "<|im_start|>", "<image>", "<video>")
GEMMA_TOKENS = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
SMOL_TOKENS = (
    "<|im_start|>",
    "<end_of_utterance>",
    "<|im_end|>",
    "<|endoftext|>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)

QWEN_CHAT = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
INTERNVL_CHAT = QWEN_CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>{{ '\\n' }}")
ONEVISION_CHAT = QWEN_CHAT.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>{{ '\\n' }}")


PLAIN_CHAT = """\
{{ bos_token }}{% for message in messages %}{{ BEFORE.get(message.role, '') }}
{%- if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{% if part.type == 'image' %}{{ IMAGE }}{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}{{ AFTER.get(message.role, '') }}{% endfor %}
{%- if add_generation_prompt %}{{ CUE }}{% endif %}"""


def chat_template(image: str, before: dict[str, str], after: dict[str, str], cue: str) -> str:
    """A chat template of turns without markup of their own.

    Args:
        image: what an image is written as.
        before: what stands before a turn, by role.
        after: what stands after a turn.
        cue: asks for the answer.
    """
    given = {"IMAGE": image, "BEFORE": before, "AFTER": after, "CUE": cue}
    return reduce(lambda text, name: text.replace(name, repr(given[name])), given, PLAIN_CHAT)


def qwen_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """The byte-level BPE of Qwen2-VL and Qwen2.5-VL."""
    return _qwen_kind(texts, QWEN_TOKENS, QWEN_CHAT)


def internvl_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Qwen's, with InternVL's special tokens, which it also knows by their roles."""
    roles = ("start_image_token", "end_image_token", "context_image_token", "video_token")
    named = dict(zip(roles, INTERNVL_TOKENS[3:]))
    return _qwen_kind(texts, INTERNVL_TOKENS, INTERNVL_CHAT, model_specific_special_tokens=named)


def onevision_tokenizer(texts: Iterable[str]) -> Qwen2Tokenizer:
    """Qwen's, with LLaVA-OneVision's special tokens."""
    return _qwen_kind(texts, ONEVISION_TOKENS, ONEVISION_CHAT)


def _qwen_kind(texts: Iterable[str], special: Sequence[str], template: str, **settings: Any) -> Qwen2Tokenizer:
    pipeline = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(BPE())
    bpe.normalizer = pipeline.normalizer
    bpe.pre_tokenizer = pipeline.pre_tokenizer
    vocab, merges = _train(bpe, texts, VOCABULARY - len(special), pre_tokenizers.ByteLevel.alphabet())
    return Qwen2Tokenizer(
        vocab=vocab,
        merges=merges,
        eos_token=special[1],
        pad_token=special[0],
        unk_token=None,
        extra_special_tokens=list(special[2:]),
        model_max_length=LONGEST,
        chat_template=template,
        **settings,
    )


def deepseek_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that splits much as DeepSeek's: line breaks, words, signs, numbers digit by digit."""
    bos, eos, pad, image = DEEPSEEK_TOKENS
    splits = [
        pre_tokenizers.Split(Regex(r"[\r\n]"), "isolated"),
        pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{P}+"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True),
    ]
    template = chat_template(
        image, {"user": "User: ", "assistant": "Assistant: "}, {"user": "\n\n", "assistant": eos}, "Assistant:"
    )
    return _byte_level(texts, splits, DEEPSEEK_TOKENS, (bos, eos, pad), template, image_token=image)


def llama_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that splits much as Llama 3's: words, up to three digits, signs, blanks."""
    pattern = r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
    begin, turn_end, pad, head, head_end, _, image = LLAMA_TOKENS
    roles = ("system", "user", "assistant")
    before = {role: f"{head}{role}{head_end}\n\n" for role in roles}
    template = chat_template(image, before, dict.fromkeys(roles, turn_end), before["assistant"])
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated")]
    return _byte_level(texts, splits, LLAMA_TOKENS, (begin, turn_end, pad), template)


def smol_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """SmolLM2's byte-level BPE, digit by digit, with the special tokens of Idefics3 and SmolVLM; it opens no text."""
    begin, turn_end, pad = SMOL_TOKENS[:3]
    pattern = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    roles = ("system", "user", "assistant")
    before = {role: f"{role.capitalize()}:" for role in roles}
    template = chat_template("<image>", before, dict.fromkeys(roles, f"{turn_end}\n"), before["assistant"])
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Split(Regex(pattern), "isolated")]
    return _byte_level(texts, splits, SMOL_TOKENS, (begin, turn_end, pad), template, opens=False)


def _byte_level(
    texts: Iterable[str],
    splits: Sequence[Any],
    special: Sequence[str],
    roles: tuple[str, str, str],
    template: str,
    opens: bool = True,
    **named: str,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE that `opens` texts with BOS; `roles` are BOS, EOS and padding."""
    bos, eos, pad = roles
    pipeline = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pipeline
    vocab, merges = _train(bpe, texts, VOCABULARY - len(special), pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer(BPE(vocab, merges))
    trained.pre_tokenizer = pipeline
    trained.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        add_bos_token=opens,
        extra_special_tokens=[token for token in special if token not in roles],
        model_max_length=LONGEST,
        chat_template=template,
        model_specific_special_tokens=named,
    )


def llava_tokenizer(texts: Iterable[str]) -> LlamaTokenizer:
    """Llama 2's and Mistral's: a BPE of characters, blanks written as signs, unknown characters byte by byte."""
    unknown, bos, eos, pad, image = LLAVA_TOKENS
    fixed = [unknown, bos, eos, *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = Tokenizer(BPE(unk_token=unknown, byte_fallback=True, fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    vocab, merges = _train(bpe, texts, VOCABULARY - 2, special_tokens=fixed, limit_alphabet=1000)
    template = chat_template(f"{image}\n", {"user": "[INST] "}, {"user": " [/INST]", "assistant": eos}, "")
    return LlamaTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=unknown,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        add_bos_token=True,
        extra_special_tokens=[image],
        legacy=True,  # as published: a blank before every piece of text, not only before the first
        model_max_length=LONGEST,
        chat_template=template,
    )


def gemma_tokenizer(texts: Iterable[str]) -> GemmaTokenizer:
    """Gemma's: a BPE of characters, blanks written as signs and none put in front, unknown characters byte by byte."""
    fixed = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    bpe = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    size = VOCABULARY - len(GEMMA_TOKENS)
    vocab, merges = _train(bpe, texts, size, special_tokens=fixed, limit_alphabet=1000)
    turn, turn_end, *picture = GEMMA_TOKENS
    roles = ("system", "user", "assistant")
    before = {role: f"{turn}{role}\n" for role in roles} | {"assistant": f"{turn}model\n"}
    template = chat_template(picture[0], before, dict.fromkeys(roles, f"{turn_end}\n"), before["assistant"])
    return GemmaTokenizer(
        vocab=vocab,
        merges=merges,
        add_bos_token=True,
        extra_special_tokens=list(GEMMA_TOKENS),
        model_specific_special_tokens=dict(zip(("boi_token", "eoi_token", "image_token"), picture)),
        model_max_length=LONGEST,
        chat_template=template,
    )


def _train(
    bpe: Tokenizer, texts: Iterable[str], size: int, alphabet: Sequence[str] = (), **settings: Any
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn a vocabulary of at most `size` entries; return it with its merges."""
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=list(alphabet), show_progress=False, **settings)
    bpe.train_from_iterator((encodable(text) for text in texts), trainer)
    learned = json.loads(bpe.to_str())["model"]
    return learned["vocab"], [tuple(pair) for pair in learned["merges"]]
