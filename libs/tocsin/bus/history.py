"""Read back what a stream holds of a subject: opened like anything else that arrives."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext, api

from tocsin.bus.connection import translate
from tocsin.bus.intake import Reject
from tocsin.bus.opener import Arrival, Context, Opener
from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.subjects import Subject

MAX_LOOKED_THROUGH = 10_000
"""Messages of a stream that are read, at most, to find one that holds: three seconds."""
BATCH = 256
FETCH_TIMEOUT_S = 5.0
KEPT_S = 10.0
"""How long the broker keeps a consumer that nobody reads by any more."""


class History:
    """Looks into streams for one process, once: reading takes no message from anybody."""

    def __init__(
        self, js: JetStreamContext, opener: Opener, audiences: frozenset[str], *, reject: Reject
    ) -> None:
        self._js = js
        self._opener = opener
        self._audiences = audiences
        self._reject = reject

    async def last(self, subject: Subject, pattern: str) -> tuple[Message, Context] | None:
        """Return the last message on ``pattern`` that holds; None if none does.

        What does not hold is rejected, and hides nothing of the first ``MAX_LOOKED_THROUGH`` messages.

        Raises:
            UnavailableError: the broker is away.
        """
        if (held := await self._in_stream(subject, pattern)) is None:
            return None
        if (found := await self._opened(subject, held)) is not None:
            return found
        from_seq = 1
        for _ in range(MAX_LOOKED_THROUGH):
            if (held := await self._in_stream(subject, pattern, from_seq=from_seq)) is None:
                break
            found = await self._opened(subject, held) or found
            from_seq = (held.seq or from_seq) + 1
        return found

    async def since(self, subject: Subject, pattern: str, *, start_ns: int) -> list[tuple[Message, Context]]:
        """Return what was stored on ``pattern`` since a moment and holds, the oldest first.

        At most the first ``MAX_LOOKED_THROUGH`` messages.

        Raises:
            UnavailableError: the broker is away.
        """
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_TIME,
            opt_start_time=datetime.fromtimestamp(start_ns / 1e9, UTC),
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=KEPT_S,
        )
        try:
            reading = await self._js.pull_subscribe(pattern, stream=subject.stream, config=config)
            held = await self._read(reading, (await reading.consumer_info()).num_pending or 0)
            await reading.unsubscribe()
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, subject.name) from error
        opened = [await self._opened(subject, message) for message in held]
        return [found for found in opened if found is not None]

    async def _read(self, reading: JetStreamContext.PullSubscription, pending: int) -> list[api.RawStreamMsg]:
        held: list[api.RawStreamMsg] = []
        while len(held) < min(pending, MAX_LOOKED_THROUGH):
            batch = await reading.fetch(min(BATCH, pending - len(held)), timeout=FETCH_TIMEOUT_S)
            held += [api.RawStreamMsg(subject=message.subject, data=message.data) for message in batch]
        return held

    async def _in_stream(
        self, subject: Subject, pattern: str, *, from_seq: int | None = None
    ) -> api.RawStreamMsg | None:
        """Return a subject's last message in its stream, or its first from a sequence on."""
        if subject.stream is None:
            raise InvalidInputError(f"{subject.name} has no stream", reason="bad_subject")
        try:
            return await self._js.get_msg(subject.stream, from_seq, pattern, next=from_seq is not None)
        except nats.js.errors.NotFoundError:
            return None
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, subject.name) from error

    async def _opened(self, subject: Subject, held: api.RawStreamMsg) -> tuple[Message, Context] | None:
        data, where = held.data or b"", held.subject or ""
        try:
            arrival = Arrival.on(subject, where, self._audiences)
            return await asyncio.to_thread(lambda: self._opener.open(data, arrival, now_ns=time.time_ns()))
        except TocsinError as error:
            self._reject(error, where, data)
            return None
