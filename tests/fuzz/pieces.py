"""Cutting a fuzzer's bytes into numbers, choices and text; what is not there reads as zeros."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Pieces:
    """Bytes that are used up from the front."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def __bool__(self) -> bool:
        return self.position < len(self.content)

    def take(self, length: int) -> bytes:
        piece = self.content[self.position : self.position + length]
        self.position += length
        return piece

    def rest(self) -> bytes:
        return self.take(len(self.content))

    def number(self, length: int) -> int:
        """An unsigned number of `length` bytes."""
        return int.from_bytes(self.take(length), "big")

    def between(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included, of as few bytes as that takes."""
        return low + self.number((max(high - low, 1).bit_length() + 7) // 8) % (high - low + 1)

    def choose(self, options: Sequence[T]) -> T:
        return options[self.number(1) % len(options)]

    def short(self) -> bytes:
        """Bytes that say their own length, up to 255."""
        return self.take(self.number(1))

    def text(self) -> str:
        """As Python shows bytes of a command line or a file name, with what is not UTF-8 as lone surrogates."""
        return os.fsdecode(self.short().replace(b"\0", b""))
