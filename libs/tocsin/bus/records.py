"""Signed records in a KV bucket: the body names its bucket, key and revision.

Who can write to the broker can neither invent a record, nor move it to another key, nor roll it back for a
reader that has seen a later one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import nats.errors
import nats.js.errors
from nats.js.kv import KeyValue

from tocsin.bus.connection import translate
from tocsin.bus.envelope import decode_body, encode_body
from tocsin.bus.opener import Arrival, Context
from tocsin.bus.watch import BucketWatch
from tocsin.contracts.base import Message
from tocsin.contracts.errors import ConflictError, TocsinError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.contracts.subjects import Bucket, RecordBody

if TYPE_CHECKING:
    from tocsin.bus.client import Bus

M = TypeVar("M", bound=Message)

MAX_WAITING = 4096
"""Followed records whose writer's certificate is not known yet; those beyond are refused."""

CHANGE_ATTEMPTS = 8
"""How often a change starts anew because somebody else wrote meanwhile."""
CHANGE_PAUSE_S = 0.05
IDENTITY_WAIT_S = 2.0
"""How long a write waits for the certificate of who wrote what stands there."""


@dataclass(frozen=True, slots=True)
class _Held(Generic[M]):
    """What stands under a key."""

    value: M | None
    last: int | None
    """The broker's revision to compare with; None where nothing stands."""
    revision: int
    """The record's own revision, to go beyond."""


class Records(Generic[M]):
    """Reads and writes one bucket."""

    def __init__(self, bus: Bus, bucket: Bucket[M], *, sender: SpiffeId | None = None) -> None:
        self._bus = bus
        self._sender = sender
        self._bucket = bucket
        self._kind = cast("Bucket[Message]", bucket)
        self._seen: dict[str, int] = {}
        self._store: KeyValue | None = None
        self._waiting: set[str] = set()

    async def get(self, key: str) -> M | None:
        """Return the record, or None.

        Raises:
            UntrustedError: what the bucket holds is no record of this key, or ``rolled_back``, be it to nothing
                (where records are not forgotten by age).
        """
        seen = self._seen.get(key, 0)
        entry = await self._entry(key)
        if entry is None or not entry.value:
            if seen and not self._bucket.max_age_s:
                raise UntrustedError(f"{self._bucket.name}/{key} was deleted", reason="rolled_back")
            return None
        return (await self._open(key, entry.value, seen))[1]

    async def all(self) -> dict[str, M]:
        """Return every record that holds; those that do not are rejected and left out."""
        found: dict[str, M] = {}
        for key in await self.keys():
            seen = self._seen.get(key, 0)
            entry = await self._entry(key)
            if entry is None or not entry.value:
                continue
            try:
                found[key] = (await self._open(key, entry.value, seen))[1]
            except TocsinError as error:
                self._bus.reject(error, f"{self._bucket.name}/{key}", entry.value)
        return found

    async def follow(self, changed: Callable[[str, M], None]) -> None:
        """Call ``changed`` with every record that holds, now and whenever one is written.

        Returns once what the bucket holds now is through. A record may come again. One whose writer is not
        known yet waits for the certificate; any other that does not hold is rejected and left out.

        Raises:
            UnavailableError: the broker has no such bucket.
        """
        await self.follow_signed(lambda key, value, _: changed(key, value))

    async def follow_signed(self, changed: Callable[[str, M, Context], None]) -> None:
        """Do as :meth:`follow`, and say who signed each record."""
        followed: dict[str, int] = {}

        async def learn(key: str, data: bytes) -> None:
            self._waiting.discard(key)
            try:
                # Against what was followed, not against what was seen: an own write may be ahead of the watch.
                revision, value, context = await self._open(key, data, followed.get(key, 0))
            except TocsinError as error:
                if error.reason == "unknown_key" and len(self._waiting) < MAX_WAITING:
                    self._waiting.add(key)
                    return
                self._bus.reject(error, f"{self._bucket.name}/{key}", data)
                return
            if revision >= followed.get(key, 0):  # else a later one overtook this one while it was opened
                followed[key] = revision
                changed(key, value, context)

        async def learn_waiting() -> None:
            # Read anew: what waited is not kept, or whoever can write garbage would fill the memory.
            try:
                for key in list(self._waiting):
                    if (entry := await self._entry(key)) is not None and entry.value:
                        await learn(key, entry.value)
            except TocsinError as error:
                # The broker is away: once it is back, the watch begins anew.
                self._bus.metrics.count(f"watch_failures.{self._bucket.name}.{error.reason}")

        self._bus.on_identities(learn_waiting)
        watch = BucketWatch(self._bus.connection, self._bucket.name, learn, self._bus.metrics)
        await watch.start(self._bus.spawn, timeout_s=self._bus.settings.connect_timeout_s)

    async def put(self, key: str, value: M) -> int:
        """Write the next revision by compare-and-set; return it.

        Raises:
            ConflictError: ``stale``: somebody else wrote meanwhile.
        """
        return await self._write(key, value, await self._read(key))

    async def change(self, key: str, change: Callable[[M | None], M | None]) -> M | None:
        """Read a record, change it and write it by compare-and-set.

        Args:
            key: of the record.
            change: makes the new value of the present one (None: there is none that holds); returns None to
                leave it. Called again, with what stands then, when somebody else wrote meanwhile.

        Returns:
            what was written, or None.

        Raises:
            ConflictError: ``stale``: others wrote, again and again.
        """
        for attempt in range(CHANGE_ATTEMPTS):
            try:
                held = await self._read(key)
                value = change(held.value)
                if value is not None:
                    await self._write(key, value, held)
            except ConflictError:
                if attempt == CHANGE_ATTEMPTS - 1:
                    raise
                # Apart, or two writers would meet again and again.
                await asyncio.sleep(random.uniform(0, CHANGE_PAUSE_S) * (attempt + 1))  # noqa: S311 - jitter
            else:
                return value
        return None

    async def keys(self) -> frozenset[str]:
        """Return the keys that were written and are not forgotten, whether their records hold or not.

        A deleted key is among them until the bucket forgets it.
        """
        # Not the client's `keys()`: its mark for "that was all" can overtake the keys.
        stream, prefix = f"KV_{self._bucket.name}", f"$KV.{self._bucket.name}."
        try:
            info = await self._bus.connection.js.stream_info(stream, subjects_filter=f"{prefix}>")
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, self._bucket.name) from error
        return frozenset(subject.removeprefix(prefix) for subject in info.state.subjects or {})

    def forget(self, key: str) -> None:
        """Drop what is remembered of a key that will not be read again."""
        self._seen.pop(key, None)

    async def _read(self, key: str) -> _Held[M]:
        """Read what a write builds on.

        A record of a key that is not known here may be a true one whose certificate is on its way: it is
        waited for, before it is taken for the forgery that must not block the true record.
        """
        deadline = time.monotonic() + IDENTITY_WAIT_S
        while True:
            seen = self._seen.get(key, 0)
            entry = await self._entry(key)
            if entry is None or not entry.value:
                return _Held(None, None, seen)
            try:
                revision, value, _ = await self._open(key, entry.value, seen)
            except TocsinError as error:
                if error.reason == "unknown_key" and time.monotonic() < deadline:
                    await asyncio.sleep(CHANGE_PAUSE_S)
                    continue
                self._bus.reject(error, f"{self._bucket.name}/{key}", entry.value)
                return _Held(None, entry.revision, seen)
            return _Held(value, entry.revision, max(revision, seen))

    async def _write(self, key: str, value: M, held: _Held[M]) -> int:
        revision = held.revision + 1
        body = RecordBody(bucket=self._bucket.name, key=key, revision=revision, value=encode_body(value))
        sent = await self._bus.make(
            self._kind.message_type, body, audience=f"record.{self._bucket.name}", sender=self._sender
        )
        try:
            kv = await self._kv()
            if held.last is None:
                await kv.create(key, sent.data)
            else:
                await kv.update(key, sent.data, last=held.last)
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise ConflictError(f"{self._bucket.name}/{key} changed meanwhile", reason="stale") from error
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, self._bucket.name) from error
        self._seen[key] = revision
        return revision

    async def _open(self, key: str, data: bytes, seen: int) -> tuple[int, M, Context]:
        """Open a record; ``seen`` is the highest revision that was known *before* it was read."""
        opener = self._bus.opener
        arrival = Arrival.record(self._kind, key)
        body, context = await asyncio.get_running_loop().run_in_executor(
            None, lambda: opener.open(data, arrival, now_ns=time.time_ns())
        )
        record = cast("RecordBody", body)
        if (record.bucket, record.key) != (self._bucket.name, key):
            raise UntrustedError(
                f"record of {record.bucket}/{record.key} stands at {key}", reason="moved_record"
            )
        if self._bucket.own and key != context.sender.token:
            raise UntrustedError(f"{context.sender} signed the record of {key}", reason="not_its_record")
        if record.revision < seen:
            raise UntrustedError(f"{self._bucket.name}/{key} was rolled back", reason="rolled_back")
        self._seen[key] = max(record.revision, self._seen.get(key, 0))
        return record.revision, decode_body(self._bucket.model, record.value), context

    async def _entry(self, key: str) -> KeyValue.Entry | None:
        try:
            return await (await self._kv()).get(key)
        except (
            nats.js.errors.KeyNotFoundError,
            nats.js.errors.KeyDeletedError,
            nats.js.errors.InvalidKeyError,  # the broker takes keys that the client refuses to read
        ):
            return None
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, self._bucket.name) from error

    async def _kv(self) -> KeyValue:
        """Return the bucket, which the broker is asked for once: that is a question as long as the read itself."""
        if self._store is None:
            self._store = await self._bus.connection.js.key_value(self._bucket.name)
        return self._store
