"""Make the fields of a log line safe to write: secrets masked, sizes bounded, only plain JSON values left.

Masked are values whose *name* says that they are secret, at any depth, and in any text the password part of
an address and PEM private keys. This is a net below the rule not to log secrets, not a replacement for it.

Does not protect against: a secret under a harmless name, or in the free text of an exception.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from datetime import date
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from pathlib import PurePath
from typing import TypeAlias
from uuid import UUID

from pydantic import BaseModel
from structlog.typing import EventDict, WrappedLogger

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
"""What the renderer is given."""

MASK = "***"
"""Stands for a secret; says nothing of its length."""

MAX_TEXT_BYTES = 2048
"""Longest text in a field, in bytes of UTF-8, and after how much a container is cut.

A line of several fields then stays below the 16 KiB at which container runtimes split it (moby:
daemon/logger/copier.go, defaultBufSize).
"""

MAX_TRACEBACK_BYTES = 8192
"""Longest traceback. Its end is kept, where the error and the failing frame are."""

MAX_ITEMS = 64
"""Most items in one container."""

MAX_DEPTH = 6
"""Most containers within one another."""

_MAX_INTEGER_BITS = 256
_MAX_KEY_CHARS = 128

_SECRET_NAME = re.compile(
    r"secret|token|passw|passphrase|credential|authorization|cookie"
    r"|(?:^|_)(?:api|private)?(?:key|seed)s?(?:_|$)"
)
_HARMLESS_NAME = re.compile(r"public_keys?$|_(?:ids?|count|path|file|fingerprint)$")
_WORD_BREAK = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[^A-Za-z0-9]+")
_ADDRESS_LOGIN = re.compile(r"://[^/\s]{1,512}@")
_PEM_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY-----.*?(?:-----END [^-]{0,64}-----|\Z)", re.DOTALL
)


def make_safe(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    """Processor: return the event with every field safe to write."""
    safe: EventDict = {}
    for key, value in event_dict.items():
        if key == "exception" and isinstance(value, str):
            safe[key] = _bounded_end(_mask_text(value), MAX_TRACEBACK_BYTES)
        else:
            safe[_key(key)] = MASK if is_secret_name(key) and value is not None else _Walk().safe(value, 0)
    return safe


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    words = _WORD_BREAK.sub("_", name).lower()
    return _SECRET_NAME.search(words) is not None and _HARMLESS_NAME.search(words) is None


def is_secret_name(name: str) -> bool:
    """Say whether a field of this name is masked.

    ``signing_key``, ``apiKey``, ``join-token`` and ``seeds`` are; ``key_id``, ``public_key``, ``key_path``,
    ``token_count`` and ``monkey`` are not.
    """
    return len(name) > _MAX_KEY_CHARS or _is_secret(name)


class _Walk:
    """One field's way through its containers; stops when ``MAX_TEXT_BYTES`` characters have been gathered."""

    def __init__(self) -> None:
        self._left = MAX_TEXT_BYTES

    def safe(self, value: object, depth: int) -> Json:
        items = _named_items(value)
        if items is not None:
            return self._mapping(items, depth)
        if isinstance(value, (Sequence, AbstractSet)) and not isinstance(
            value, (str, bytes, bytearray, memoryview)
        ):
            return self._sequence(value, depth)
        plain = _plain(value)
        self._left -= len(plain) + 2 if isinstance(plain, str) else 8
        return plain

    def _sequence(self, value: Collection[object], depth: int) -> Json:
        self._left -= 4
        if depth >= MAX_DEPTH:
            return self._cut(len(value))
        out: list[Json] = []
        for item in islice(value, MAX_ITEMS):
            if self._left <= 0:
                break
            out.append(self.safe(item, depth + 1))
        return [*out, self._cut(len(value) - len(out))] if len(out) < len(value) else out

    def _mapping(self, items: Mapping[object, object], depth: int) -> Json:
        self._left -= 4
        if depth >= MAX_DEPTH:
            return self._cut(len(items))
        out: dict[str, Json] = {}
        taken = 0
        for name, item in islice(items.items(), MAX_ITEMS):
            if self._left <= 0:
                break
            taken += 1
            text = name if isinstance(name, str) else _describe(name, str)
            key = _key(text)
            self._left -= len(key) + 4
            out[key] = MASK if is_secret_name(text) and item is not None else self.safe(item, depth + 1)
        if taken < len(items):
            out["..."] = self._cut(len(items) - taken)
        return out

    def _cut(self, count: int) -> str:
        self._left -= 16
        return f"[cut: {count} more]"


def _plain(value: object) -> str | float | None:
    """Return what is not a container."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _text(_describe(value.value, str))
    if isinstance(value, (str, int, float)):
        return _scalar(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _bounded(bytes(value[:MAX_TEXT_BYTES]).hex())
    if isinstance(value, (PurePath, UUID, date, IPv4Address, IPv6Address, BaseException)):
        return _text(_describe(value, str))
    return _text(_describe(value, repr))


def _named_items(value: object) -> Mapping[object, object] | None:
    """Return the fields of what has named fields: mappings, models and dataclasses."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, BaseModel):
        return dict(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in fields(value)}
    return None


def _scalar(value: str | float) -> str | float:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        # JSON readers and Python's own int-to-text conversion refuse enormous integers.
        return int(value) if value.bit_length() <= _MAX_INTEGER_BITS else f"[cut: {value.bit_length()} bits]"
    return float(value) if math.isfinite(value) else str(value)


def _text(value: str) -> str:
    # Masked first, with room beyond the bound: a secret that lies across the cut is still seen as one.
    head = _mask_text(value[: 4 * MAX_TEXT_BYTES])
    if len(value) <= 4 * MAX_TEXT_BYTES:
        return _bounded(head)
    return f"{_first_bytes(head)}...[cut: {len(value)} characters]"


def _mask_text(text: str) -> str:
    if "://" in text:
        text = _ADDRESS_LOGIN.sub(f"://{MASK}@", text)
    if "PRIVATE KEY" in text:
        text = _PEM_PRIVATE_KEY.sub(f"[{MASK} private key]", text)
    return text


def _bounded(text: str) -> str:
    if 4 * len(text) <= MAX_TEXT_BYTES or len(text.encode("utf-8", "backslashreplace")) <= MAX_TEXT_BYTES:
        return text
    return f"{_first_bytes(text)}...[cut: {len(text)} characters]"


def _first_bytes(text: str) -> str:
    return text.encode("utf-8", "backslashreplace")[:MAX_TEXT_BYTES].decode("utf-8", "ignore")


def _bounded_end(text: str, limit: int) -> str:
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= limit:
        return text
    return f"[cut: {len(raw)} bytes]...{raw[-limit:].decode('utf-8', 'ignore')}"


def _key(name: str) -> str:
    return name if len(name) <= _MAX_KEY_CHARS else f"{name[:_MAX_KEY_CHARS]}...[cut]"


def _describe(value: object, how: Callable[[object], str]) -> str:
    try:
        return how(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not break the caller that logs
        return f"[{type(value).__name__} without a text]"
