"""Signed records in a KV bucket: the body names its bucket, key and revision.

Who can write to the broker can neither invent a record, nor move it to another key, nor roll it back for a
reader that has seen a later one.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import nats.errors
import nats.js.errors
from nats.js.kv import KeyValue

from tocsin.bus.connection import translate
from tocsin.bus.envelope import decode_body, encode_body
from tocsin.bus.opener import Arrival
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import Bucket, RecordBody
from tocsin.contracts.errors import ConflictError, TocsinError, UntrustedError

if TYPE_CHECKING:
    from tocsin.bus.client import Bus

M = TypeVar("M", bound=Message)


class Records(Generic[M]):
    """Reads and writes one bucket."""

    def __init__(self, bus: Bus, bucket: Bucket[M]) -> None:
        self._bus = bus
        self._bucket = bucket
        self._kind = cast("Bucket[Message]", bucket)
        self._seen: dict[str, int] = {}

    async def get(self, key: str) -> M | None:
        """Return the record, or None.

        Raises:
            UntrustedError: what the bucket holds is no record of this key, or ``rolled_back``.
        """
        entry = await self._entry(key)
        if entry is None or not entry.value:
            return None
        return (await self._open(key, entry.value))[1]

    async def all(self) -> dict[str, M]:
        """Return every record that holds; those that do not are rejected and left out."""
        try:
            kv = await self._kv()
            keys = await kv.keys()
        except nats.js.errors.NoKeysError:
            return {}
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, self._bucket.name) from error
        found: dict[str, M] = {}
        for key in keys:
            entry = await self._entry(key)
            if entry is None or not entry.value:
                continue
            try:
                found[key] = (await self._open(key, entry.value))[1]
            except TocsinError as error:
                self._bus.reject(error, f"{self._bucket.name}/{key}", entry.value)
        return found

    async def put(self, key: str, value: M) -> int:
        """Write the next revision by compare-and-set; return it.

        Raises:
            ConflictError: ``stale``: somebody else wrote meanwhile.
        """
        entry = await self._entry(key)
        revision, last = 1, None
        if entry is not None and entry.value:
            last = entry.revision
            try:
                revision = (await self._open(key, entry.value))[0] + 1
            except UntrustedError as error:
                # What stands there is not ours to build on, but a forgery must not block the true record.
                self._bus.reject(error, f"{self._bucket.name}/{key}", entry.value)
        revision = max(revision, self._seen.get(key, 0) + 1)
        body = RecordBody(bucket=self._bucket.name, key=key, revision=revision, value=encode_body(value))
        sent = await self._bus.make(self._kind.message_type, body, audience=f"record.{self._bucket.name}")
        try:
            kv = await self._kv()
            if last is None:
                await kv.create(key, sent.data)
            else:
                await kv.update(key, sent.data, last=last)
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise ConflictError(f"{self._bucket.name}/{key} changed meanwhile", reason="stale") from error
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, self._bucket.name) from error
        self._seen[key] = revision
        return revision

    async def _open(self, key: str, data: bytes) -> tuple[int, M]:
        opener = self._bus.opener
        arrival = Arrival.record(self._kind, key)
        body, _ = await asyncio.get_running_loop().run_in_executor(
            None, lambda: opener.open(data, arrival, now_ns=time.time_ns())
        )
        record = cast("RecordBody", body)
        if (record.bucket, record.key) != (self._bucket.name, key):
            raise UntrustedError(
                f"record of {record.bucket}/{record.key} stands at {key}", reason="moved_record"
            )
        if record.revision < self._seen.get(key, 0):
            raise UntrustedError(f"{self._bucket.name}/{key} was rolled back", reason="rolled_back")
        self._seen[key] = record.revision
        return record.revision, decode_body(self._bucket.model, record.value)

    async def _entry(self, key: str) -> KeyValue.Entry | None:
        try:
            return await (await self._kv()).get(key)
        except (nats.js.errors.KeyNotFoundError, nats.js.errors.KeyDeletedError):
            return None
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, self._bucket.name) from error

    async def _kv(self) -> KeyValue:
        return await self._bus.connection.js.key_value(self._bucket.name)
