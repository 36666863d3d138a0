"""A state that is replaced as a whole, on the disk: JSON, compressed, with its hash in front.

Written beside the old one, synced, and put in its place in one step: whoever is killed leaves the old state or the new
one. What was damaged by others is refused, never half-read.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from pathlib import Path

from tocsin.contracts.errors import InvalidInputError, UnavailableError

HEADER = b"tocsin state 1\n"
MAX_BYTES = 512 * 1024 * 1024
"""Of the state as JSON; some fifty times what a busy sentinel keeps."""


def encode(state: object) -> bytes:
    """Return the bytes of a state."""
    # Level 1: the state is written every few seconds, and read once.
    data = zlib.compress(json.dumps(state, separators=(",", ":"), allow_nan=False).encode(), 1)
    return HEADER + hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def decode(raw: bytes) -> object:
    """Return the state of some bytes.

    Raises:
        InvalidInputError: ``bad_state``.
    """
    digest, _, data = raw.removeprefix(HEADER).partition(b"\n")
    if not raw.startswith(HEADER) or digest != hashlib.sha256(data).hexdigest().encode():
        raise InvalidInputError("the state is damaged", reason="bad_state")
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(data, MAX_BYTES)
        if unpacker.unconsumed_tail:
            raise InvalidInputError(f"the state has more than {MAX_BYTES} bytes", reason="bad_state")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise InvalidInputError("the state is damaged", reason="bad_state") from error


def save(path: Path, state: object) -> None:
    """Replace the state in ``path``. Blocking.

    Raises:
        UnavailableError: ``state_failed``.
    """
    data = encode(state)
    fresh = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror}", reason="state_failed") from error


def load(path: Path) -> object | None:
    """Return the state in ``path``, or None if there is none. Blocking.

    Raises:
        InvalidInputError: ``bad_state``.
        UnavailableError: ``state_failed``.
    """
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}", reason="state_failed") from error
