"""A stream's messages as they stand, whatever their age: for what is evidence by itself.

Nothing is opened here: a message's class bounds how long it is acted on, not how long it can be shown. Whoever reads
a record this way verifies what it proves (``tocsin.evidence``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext, api

from tocsin.bus.connection import translate
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.subjects import Subject

AT_ONCE = 16
"""Messages that are asked for together."""
MAX_ON_SUBJECT = 256
"""Messages of one subject that are read; anybody who may write there can add more."""


class Raw(NamedTuple):
    """One message."""

    place: int
    """In its stream, counted from 1."""
    tokens: dict[str, str]
    """Of its subject."""
    data: bytes
    stored_ns: int
    """When the stream had it, by the broker's clock."""


class RawStream:
    """Reads one subject's stream; takes no message from anybody."""

    def __init__(self, js: JetStreamContext, subject: Subject) -> None:
        if subject.stream is None:
            raise InvalidInputError(f"{subject.name} has no stream", reason="bad_subject")
        self._js = js
        self._subject = subject
        self._stream: str = subject.stream

    async def newest_first(self, *, before: int | None = None) -> AsyncIterator[Raw]:
        """Yield the subject's messages from the youngest on, or from those before a place; it can be left at any time.

        Raises:
            UnavailableError: the broker is away.
        """
        try:
            state = (await self._js.stream_info(self._stream)).state
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, self._subject.name) from error
        place = state.last_seq if before is None else min(state.last_seq, before - 1)
        while place >= max(1, state.first_seq):
            first = max(1, state.first_seq, place - AT_ONCE + 1)
            found = await asyncio.gather(*(self._get(one) for one in range(place, first - 1, -1)))
            for raw in found:
                if raw is not None and (one := self._raw(raw)) is not None:
                    yield one
            place = first - 1

    async def on(self, **tokens: str) -> list[Raw]:
        """Return what stands on one subject, the oldest first, at most :data:`MAX_ON_SUBJECT`.

        Raises:
            UnavailableError: the broker is away.
        """
        where = self._subject.at(**tokens)
        found: list[Raw] = []
        place = 1
        while len(found) < MAX_ON_SUBJECT and (raw := await self._get(place, where)) is not None:
            if (one := self._raw(raw)) is not None:
                found.append(one)
            place = (raw.seq or place) + 1
        return found

    async def tokens(self) -> list[dict[str, str]]:
        """Return the tokens of every subject of this kind that the stream has messages on.

        Raises:
            UnavailableError: the broker is away.
        """
        pattern = self._subject.pattern()
        try:
            info = await self._js.stream_info(self._stream, subjects_filter=pattern)
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, self._subject.name) from error
        return [self._subject.parse(where) for where in info.state.subjects or {}]

    async def _get(self, place: int, next_on: str | None = None) -> api.RawStreamMsg | None:
        try:
            return await self._js.get_msg(self._stream, place, next_on, next=next_on is not None)
        except nats.js.errors.NotFoundError:
            return None  # it was removed meanwhile, or there is no further one
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, self._subject.name) from error

    def _raw(self, raw: api.RawStreamMsg) -> Raw | None:
        """Return a message of this subject; None for one of another subject of the stream."""
        try:
            tokens = self._subject.parse(raw.subject or "")
        except InvalidInputError:
            return None
        stored_ns = 0 if raw.time is None else int(raw.time.timestamp() * 1e9)
        return Raw(raw.seq or 0, tokens, raw.data or b"", stored_ns)
