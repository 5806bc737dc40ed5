"""Token ids: of plain text, of what opens and closes a text, and of several rows as one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Sequence
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer

Side = Literal["right", "left"]


def pad_ids(
    rows: Sequence[np.ndarray], fill: int, device: torch.device | str, side: Side = "right"
) -> dict[str, torch.Tensor]:
    """Token ids of B rows as one table, L = the longest row.

    Args:
        rows: ids of each.
        fill: stands in the columns that a row does not fill.
        device: where the tensors go.
        side: of the padding.

    Returns:
        input_ids and attention_mask (1 at a row's own tokens), int64 (B, L).

    Example:
        >>> pad_ids([np.array([5, 6]), np.array([7])], 0, "cpu", "left")["input_ids"].tolist()
        [[5, 6], [0, 7]]
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))[:, None]
    columns = np.arange(lengths.max())
    real = columns < lengths if side == "right" else columns >= lengths.max() - lengths
    ids = np.full(real.shape, fill, dtype=np.int64)
    ids[real] = np.concatenate(rows)
    batch = {"input_ids": ids, "attention_mask": real.astype(np.int64)}
    return {name: torch.from_numpy(values).to(device, non_blocking=True) for name, values in batch.items()}


def plain_token_ids(tokenizer: Any, reserved: Container[int] | None = None) -> Callable[[str], list[int]]:
    """Returns what turns plain text into token ids, none of them special whatever the text spells. Safe for threads.

    It works on a copy, which neither depends on nor changes the settings of the tokenizer: nothing is cut or padded.

    Args:
        tokenizer: a fast one.
        reserved: ids of added tokens that count as special though the tokenizer does not call them so, as some do not
            the token of an image; None: all added tokens.
    """
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in settings["added_tokens"]:
        token["special"] = token["special"] or reserved is None or token["id"] in reserved
    plain = Tokenizer.from_str(json.dumps(settings))
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()

    def token_ids(text: str) -> list[int]:
        # A lone surrogate (a broken file's bytes read as text) has no UTF-8 form, which the tokenizer needs.
        return plain.encode(text.encode("utf-8", "replace").decode("utf-8"), add_special_tokens=False).ids

    return token_ids


def closing_tokens(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer closes a text with, as those of embedding models do."""
    ids, special = tokenizer("a")["input_ids"], set(tokenizer.all_special_ids)
    words = [place for place, token in enumerate(ids) if token not in special]
    return [int(token) for token in ids[words[-1] + 1 :]] if words else []


def opening_token(tokenizer: Any) -> int | None:
    """The BOS token, if the tokenizer opens a text with it."""
    bos = tokenizer.bos_token_id
    opened = tokenizer("a")["input_ids"]
    return int(bos) if bos is not None and opened[:1] == [bos] else None
