"""Decisions' certificates in the broker's object store: bounded in size and in time, and believed by nobody.

Whoever acts on one verifies it (tocsin.evidence); here it is only fetched without letting what stands in the
store do harm. It is read piece by piece and not by the client's own reader, which waits for ever for the pieces of an
object that another one has replaced meanwhile: two instances may store their certificates of one decision.
"""

from __future__ import annotations

import asyncio
import base64
from hashlib import sha256

import nats.errors
import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import ObjectInfo, ObjectMeta, ObjectMetaOptions

from tocsin.bus.connection import translate
from tocsin.contracts.catalogue import CERTIFICATES
from tocsin.contracts.errors import InvalidInputError, UnavailableError

MAX_CERTIFICATE_BYTES = 64 * 1024 * 1024
"""Three times that of 4,096 ballots with ML-DSA-65, of 5 KB each."""
CERTIFICATE_TIMEOUT_S = 20.0
CHUNK_BYTES = 512 * 1024
"""Half of what the broker takes at once: the client waits for each chunk, and has 128 KiB by default."""


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
    """Fetch a certificate; of one that is replaced meanwhile, the one that takes its place.

    Raises:
        UnavailableError: it is not there, or not all of it.
        InvalidInputError: ``bad_certificate``: the store holds something else under that name.
    """
    try:
        async with asyncio.timeout(CERTIFICATE_TIMEOUT_S):
            store = await js.object_store(CERTIFICATES)
            info = await store.get_info(name)
            while (data := await _pieces(js, info)) is None:
                before, info = info, await store.get_info(name)
                if info.nuid == before.nuid:
                    raise UnavailableError(f"certificate {name}: pieces are missing", reason="no_certificate")
    except (TimeoutError, nats.errors.Error) as error:
        raise translate(error, f"certificate {name}") from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InvalidInputError(
            f"the store holds no certificate under {name}", reason="bad_certificate"
        ) from error
    digest = base64.urlsafe_b64encode(sha256(data).digest()).decode()
    if len(data) != info.size or info.digest != f"SHA-256={digest}":
        raise InvalidInputError(f"the store holds a broken object under {name}", reason="bad_certificate")
    return data


async def _pieces(js: JetStreamContext, info: ObjectInfo) -> bytes | None:
    """Return an object's bytes; None if pieces of it are not there (any more)."""
    size, where = info.size or 0, f"$O.{CERTIFICATES}.C.{info.nuid}"
    if size > MAX_CERTIFICATE_BYTES:
        raise InvalidInputError(f"{size} bytes are no certificate's", reason="bad_certificate")
    data, place = bytearray(), 1
    while len(data) < size:
        try:
            piece = await js.get_msg(f"OBJ_{CERTIFICATES}", place, where, direct=True, next=True)
        except nats.js.errors.NotFoundError:
            return None
        data += piece.data or b""
        place = (piece.seq or place) + 1
    return bytes(data)
