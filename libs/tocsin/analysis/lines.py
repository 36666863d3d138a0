"""Read lines of bounded length from a stream that nobody vouches for.

Invariant: never more than ``max_line_bytes`` (and one buffer of the stream) is held, however long a line is.

    for line in bounded_lines(stream):
        if not line.too_long:
            use(line.data)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tocsin.contracts.errors import InvalidInputError

MAX_LINE_BYTES = 1024 * 1024
"""Far above any record that Suricata or Zeek writes (Suricata caps an EVE payload at 64 KiB by default)."""

_DISCARD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its line end. ``data`` is empty where the line was too long to keep."""

    number: int
    """Counted from 1."""
    data: bytes
    too_long: bool = False


def bounded_lines(stream: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    r"""Yield the lines of ``stream``, split at ``\n``; the rest of an over-long line is read and thrown away.

    Args:
        stream: A binary stream; its own I/O errors pass through.
        max_line_bytes: Longest line that is kept, in bytes without the line end, at least 1.
    """
    if max_line_bytes < 1:
        raise InvalidInputError(f"max_line_bytes is {max_line_bytes}, must be at least 1", reason="bad_bound")
    number = 0
    while chunk := stream.readline(max_line_bytes + 1):
        number += 1
        if len(chunk) > max_line_bytes and not chunk.endswith(b"\n"):
            _discard_rest(stream)
            yield Line(number, b"", too_long=True)
        else:
            yield Line(number, chunk.rstrip(b"\r\n"))


def _discard_rest(stream: BinaryIO) -> None:
    while chunk := stream.readline(_DISCARD_BYTES):
        if chunk.endswith(b"\n"):
            return
