"""Decisions' certificates in the broker's object store: bounded in size and in time, and believed by nobody.

Whoever acts on one verifies it (tocsin.evidence); here it is only fetched without letting what stands in the
store do harm.
"""

from __future__ import annotations

import asyncio
import io

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import ObjectMeta, ObjectMetaOptions

from tocsin.bus.connection import translate
from tocsin.contracts.catalogue import CERTIFICATES
from tocsin.contracts.errors import InvalidInputError

MAX_CERTIFICATE_BYTES = 64 * 1024 * 1024
"""Three times that of 4,096 ballots with ML-DSA-65, of 5 KB each."""
CERTIFICATE_TIMEOUT_S = 20.0
CHUNK_BYTES = 512 * 1024
"""Half of what the broker takes at once: the client waits for each chunk, and has 128 KiB by default."""


class BoundedBytes(io.BytesIO):
    """Takes so many bytes and no more."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: bytes) -> int:  # type: ignore[override]  # the store's client writes bytes only
        """Take more, within the bound."""
        if self.tell() + len(data) > self._most:
            raise InvalidInputError(f"more than {self._most} bytes", reason="bad_certificate")
        return super().write(data)


async def put(js: JetStreamContext, name: str, data: bytes) -> None:
    """Keep a certificate.

    Raises:
        UnavailableError: the broker is away.
    """
    try:
        store = await js.object_store(CERTIFICATES)
        options = ObjectMetaOptions(max_chunk_size=CHUNK_BYTES)
        await store.put(name, data, ObjectMeta(name=name, options=options))
    except (TimeoutError, nats.errors.Error) as error:
        raise translate(error, f"certificate {name}") from error


async def get(js: JetStreamContext, name: str) -> bytes:
    """Fetch a certificate.

    Raises:
        UnavailableError: it is not there, or not all of it.
        InvalidInputError: ``bad_certificate``: the store holds something else under that name.
    """
    data = BoundedBytes(MAX_CERTIFICATE_BYTES)
    try:
        # The client would wait for ever for pieces that the object only claims to have.
        async with asyncio.timeout(CERTIFICATE_TIMEOUT_S):
            store = await js.object_store(CERTIFICATES)
            if ((await store.get_info(name)).size or 0) > MAX_CERTIFICATE_BYTES:
                raise InvalidInputError(f"{name} is too large", reason="bad_certificate")
            await store.get(name, writeinto=data)
    except (TimeoutError, nats.errors.Error) as error:
        raise translate(error, f"certificate {name}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InvalidInputError(
            f"the store holds no certificate under {name}", reason="bad_certificate"
        ) from error
    return data.getvalue()
