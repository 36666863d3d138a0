"""Read a subject's stream from a moment on, and go on where the last reading stopped.

For whoever accounts for messages of others: nothing is taken from anybody, nothing is acknowledged, and two
readers of the same stream read the same; copies of one message are read as often as they stand there. What does
not hold is rejected; what was signed by a key that is not known yet is tried again at the next reading.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import NamedTuple

import nats.errors
import nats.js.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext, api

from tocsin.bus.connection import Connection, translate
from tocsin.bus.intake import Reject
from tocsin.bus.opener import Arrival, Context, Opener
from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.subjects import MessageClass, Subject

BATCH = 256
READ_TIMEOUT_S = 1.5
"""For one answer of the broker: one that dies meanwhile never gives it."""
OPENED_AT_ONCE = 32
"""Messages that are opened in one turn of a thread."""
KEPT_S = 10.0
"""How long the broker keeps a consumer that nobody reads by any more."""
MAX_UNKNOWN = 256
"""Messages of keys not known yet that are kept for the next reading; the oldest goes, and is rejected."""


class Stored(NamedTuple):
    """One message of a stream that holds."""

    body: Message
    context: Context
    stored_ns: int
    """When the stream had it, by the broker's clock."""


class _Held(NamedTuple):
    subject: str
    data: bytes
    stored_ns: int


class StreamReader:
    """Reads one pattern of one stream for one process; not for several tasks at once."""

    def __init__(
        self,
        connection: Connection,
        opener: Opener,
        subject: Subject,
        pattern: str,
        *,
        start_ns: int,
        reject: Reject,
    ) -> None:
        if subject.stream is None:
            raise InvalidInputError(f"{subject.name} has no stream", reason="bad_subject")
        self._connection = connection
        self._opener = opener
        self._subject = subject
        self._stream: str = subject.stream
        self._pattern = pattern
        self._start_ns = start_ns
        self._next_seq = 0
        self._reject = reject
        self._unknown: deque[_Held] = deque()

    async def read(self) -> list[Stored]:
        """Return what the stream has got since the last reading, the oldest first.

        Raises:
            UnavailableError: the broker is away; the next reading begins where this one did.
        """
        try:
            held, next_seq = await self._fetch()
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, self._subject.name) from error
        unknown = deque[_Held]()
        opened: list[Stored] = []
        every = [*self._unknown, *held]
        for start in range(0, len(every), OPENED_AT_ONCE):
            group = every[start : start + OPENED_AT_ONCE]
            for one, outcome in zip(group, await asyncio.to_thread(self._open, group), strict=True):
                if isinstance(outcome, Stored):
                    opened.append(outcome)
                else:
                    self._refuse(one, outcome, unknown)
        # Last, so that a reading that was cancelled is done again.
        self._unknown, self._next_seq = unknown, next_seq
        return opened

    async def _fetch(self) -> tuple[list[_Held], int]:
        """Fetch everything from the position on, and return the position after it."""
        js = self._connection.client.jetstream(timeout=READ_TIMEOUT_S)
        last_seq = (await js.stream_info(self._stream)).state.last_seq
        if self._next_seq > last_seq + 1:
            self._next_seq = 0  # it is another stream of that name, begun anew
        if self._next_seq == last_seq + 1:
            return [], self._next_seq
        config = api.ConsumerConfig(ack_policy=api.AckPolicy.NONE, inactive_threshold=KEPT_S)
        if self._next_seq:
            config.deliver_policy, config.opt_start_seq = api.DeliverPolicy.BY_START_SEQUENCE, self._next_seq
        else:
            config.deliver_policy = api.DeliverPolicy.BY_START_TIME
            config.opt_start_time = datetime.fromtimestamp(self._start_ns / 1e9, UTC)
        reading = await js.pull_subscribe(self._pattern, stream=self._stream, config=config)
        try:
            held = await self._drain(reading)
        finally:
            await reading.unsubscribe()
        return [one for one, _ in held], max(last_seq, max((seq for _, seq in held), default=0)) + 1

    async def _drain(self, reading: JetStreamContext.PullSubscription) -> list[tuple[_Held, int]]:
        pending = (await reading.consumer_info()).num_pending or 0
        held: list[tuple[_Held, int]] = []
        while len(held) < pending:
            try:
                batch = await reading.fetch(min(BATCH, pending - len(held)), timeout=READ_TIMEOUT_S)
            except nats.errors.TimeoutError:
                if await _has_ended(reading, taken=len(held)):
                    break
                raise
            held += map(_held, batch)
        return held

    def _open(self, group: list[_Held]) -> list[Stored | TocsinError]:
        """Open some messages; for a thread."""
        outcomes: list[Stored | TocsinError] = []
        for one in group:
            try:
                arrival = Arrival.on(self._subject, one.subject)
                body, context = self._opener.open(one.data, arrival, now_ns=time.time_ns())
            except TocsinError as error:
                outcomes.append(error)
                continue
            if context.kind.message_class is MessageClass.STORED:
                self._opener.ledger.done(context.leaf)
            outcomes.append(Stored(body, context, one.stored_ns))
        return outcomes

    def _refuse(self, one: _Held, error: TocsinError, unknown: deque[_Held]) -> None:
        """Keep for the next reading what may hold then, and reject the rest."""
        if error.reason != "unknown_key":
            self._reject(error, one.subject, one.data)
            return
        unknown.append(one)
        if len(unknown) > MAX_UNKNOWN:
            oldest = unknown.popleft()
            self._reject(error, oldest.subject, oldest.data)


async def _has_ended(reading: JetStreamContext.PullSubscription, *, taken: int) -> bool:
    """Tell whether there is no more to come: what was counted before has been removed, and none of it was lost."""
    info = await reading.consumer_info()
    handed_out = info.delivered.consumer_seq if info.delivered is not None else 0
    return not info.num_pending and handed_out == taken


def _held(message: Msg) -> tuple[_Held, int]:
    metadata = message.metadata
    stored_ns = int(metadata.timestamp.timestamp() * 1e9)
    return _Held(message.subject, message.data, stored_ns), metadata.sequence.stream
