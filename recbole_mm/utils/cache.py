"""A cache of costly values, bounded by memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept")


class ByteCache(Generic[Key, Kept]):
    """A thread-safe cache that drops the least recently used values above a number of bytes.

    Args:
        most_bytes: bound of all values together, in bytes; a larger value is not kept.

    Example:
        >>> cache: ByteCache[str, str] = ByteCache(most_bytes=5)
        >>> for word in ("one", "two"):
        ...     cache.put(word, word.upper(), len(word))
        >>> cache.get("one"), cache.get("two")
        (None, 'TWO')
    """

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.nbytes = 0
        self._kept: OrderedDict[Key, tuple[Kept, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key) -> Kept | None:
        """Return the value and count it as just used; None if it is not kept."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def put(self, key: Key, value: Kept, nbytes: int) -> None:
        """Keep a value of `nbytes` bytes, in place of the former one of its key."""
        with self._lock:
            self.nbytes += nbytes - self._kept.pop(key, (None, 0))[1]
            self._kept[key] = value, nbytes
            while self.nbytes > self.most_bytes:
                self.nbytes -= self._kept.popitem(last=False)[1][1]
