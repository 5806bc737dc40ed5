"""A sentence-transformers model small enough for tests, with the words of the dataset `toy`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer

from tests.conftest import GENRES

WORDS = ("the", "film", "number", "title", "class", ":", ".", ",", *GENRES, *map(str, range(40)))


def write_sentence_encoder(folder: Path) -> str:
    """Write a random BERT of 24 dimensions into `folder`; mean-pooled, it gives items of one genre like vectors.

    Returns:
        What `sentence_encoder` takes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    generator_state = torch.get_rng_state()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=5 + len(WORDS),
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    torch.set_rng_state(generator_state)
    return str(folder)
