"""Keys from a QKD link: a client of ETSI GS QKD 014 V1.1.1 (REST key delivery), and which key server is whose.

Each side asks its own key server (KME). The initiator's ``enc_keys`` gives a key and its id; the id travels in the
offer, and the responder's ``dec_keys`` gives the same key for it. An agent speaks to the server as its host: a host is
one secure application entity (SAE), named like the host unless the settings say otherwise.

A server is not trusted to be right: it may stall, lie or send anything. Whatever it does becomes one of our errors
within the time allowed, with a reason of its own:

* ``qkd_gone`` it cannot be reached; ``qkd_stalled`` it does not answer in time;
* ``qkd_unauthorized`` it refuses us; ``qkd_no_keys`` it has none now (503); ``qkd_refused`` any other refusal;
* ``qkd_malformed`` no JSON of the standard's form, or too much of it; ``qkd_wrong_size`` a key that is not 256 bits;
  ``qkd_wrong_key_id`` another key than the one asked for.

* ``qkd_unknown_sae`` nobody knows the peer's host; ``qkd_same_host`` it is our own.

A key that is well formed but wrong is found by the handshake: the confirmation fails (``qkd_mismatch``).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import ssl
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import quote

from tocsin.contracts.errors import DeniedError, InvalidInputError, UnavailableError, UntrustedError

if TYPE_CHECKING:
    import httpx

KEY_BITS = 256
MAX_ANSWER_BYTES = 64 * 1024
"""One key takes 150 bytes."""

Json: TypeAlias = Mapping[str, Any]


class QkdOffer(NamedTuple):
    """A key that the peer can have, too."""

    key_id: bytes
    """16 bytes of a UUID."""
    key: bytes

    def __repr__(self) -> str:
        return f"QkdOffer({uuid.UUID(bytes=self.key_id)})"


class LinkStatus(NamedTuple):
    """What a key server says of its link to another SAE (section 6.1)."""

    key_bits: int
    stored: int
    """Keys that are ready."""
    max_stored: int


class KeyServer:
    """One key management entity, reached by HTTP(S). Safe for concurrent use in one event loop.

    Args:
        url: e.g. ``https://kme.example:8443``.
        sae: our own id, which a server without TLS is told in the header ``X-SAE-ID``.
        timeout_s: for a whole answer.
        ca_file: the authority of the server's certificate; None for the system's.
        cert_file: our certificate for mutual TLS, with ``key_file``.
        key_file: its key.
    """

    def __init__(
        self,
        url: str,
        *,
        sae: str,
        timeout_s: float,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self.sae = sae
        self._timeout_s = timeout_s
        self._files = (ca_file, cert_file, key_file)
        self._client: httpx.AsyncClient | None = None

    async def status(self, peer: str) -> LinkStatus:
        """Ask how the link to ``peer`` is."""
        return parse_status(await self._ask("GET", peer, "status", None))

    async def fresh(self, peer: str) -> QkdOffer:
        """Get a key that ``peer`` can have, too."""
        question = {"number": 1, "size": KEY_BITS}
        return parse_key(await self._ask("POST", peer, "enc_keys", question), None)

    async def same(self, peer: str, key_id: bytes) -> bytes:
        """Get the key that ``peer`` got under an id."""
        question = {"key_IDs": [{"key_ID": str(uuid.UUID(bytes=key_id))}]}
        return parse_key(await self._ask("POST", peer, "dec_keys", question), key_id).key

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, method: str, peer: str, verb: str, question: Json | None) -> bytes:
        import httpx  # noqa: PLC0415 - only hosts with a key server need it

        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=self._tls(),
                timeout=self._timeout_s,
                trust_env=False,
                headers={"X-SAE-ID": self.sae} if self._url.startswith("http://") else {},
            )
        url = f"{self._url}/api/v1/keys/{quote(peer, safe='')}/{verb}"
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream(method, url, json=question) as answer,
            ):
                body = await _bounded(answer)
                code = answer.status_code
        except (TimeoutError, httpx.TimeoutException) as error:
            raise UnavailableError(
                f"the key server did not answer within {self._timeout_s:g} s", reason="qkd_stalled"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise UnavailableError(
                f"the key server cannot be reached: {type(error).__name__} {error}"[:300], reason="qkd_gone"
            ) from error
        _require_success(code, body)
        return body

    def _tls(self) -> ssl.SSLContext | bool:
        ca_file, cert_file, key_file = self._files
        if not self._url.startswith("https://"):
            return True
        try:
            context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if cert_file is not None:
                context.load_cert_chain(str(cert_file), str(key_file) if key_file else None)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInputError(f"the key server's files: {error}", reason="bad_qkd_files") from error
        return context


class QkdLink:
    """A host's key server, and by which names it knows the hosts of peers.

    Args:
        server: asked for keys.
        required: no channel without a key.
        sae_of: returns the SAE of an agent by its name, None if its host is not known.
    """

    def __init__(self, server: KeyServer, *, required: bool, sae_of: Callable[[str], str | None]) -> None:
        self._server = server
        self.required = required
        self._sae_of = sae_of

    async def fresh(self, peer: str) -> QkdOffer:
        """Get a key that an agent's host can have, too."""
        return await self._server.fresh(self._sae(peer))

    async def same(self, peer: str, key_id: bytes) -> bytes:
        """Get the key that an agent's host got under an id."""
        return await self._server.same(self._sae(peer), key_id)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._server.aclose()

    def _sae(self, peer: str) -> str:
        sae = self._sae_of(peer)
        if sae is None:
            raise UnavailableError(f"nobody knows the host of {peer}", reason="qkd_unknown_sae")
        if sae == self._server.sae:
            raise UnavailableError(
                f"{peer} is on this host, which has no link to itself", reason="qkd_same_host"
            )
        return sae


def parse_key(body: bytes, key_id: bytes | None) -> QkdOffer:
    """Read a key container (section 6.3) of exactly one key.

    Raises:
        InvalidInputError: ``qkd_malformed``, ``qkd_wrong_size``.
        UntrustedError: ``qkd_wrong_key_id``.
    """
    keys = _json(body).get("keys")
    if not isinstance(keys, list) or len(keys) != 1 or not isinstance(keys[0], dict):
        raise _malformed("not one key")
    entry = keys[0]
    try:
        found = uuid.UUID(entry["key_ID"]).bytes
        key = base64.b64decode(entry["key"], validate=True)
    except (KeyError, ValueError, TypeError, AttributeError, binascii.Error) as error:
        raise _malformed("no key_ID, or no key in base64") from error
    if len(key) * 8 != KEY_BITS:
        raise InvalidInputError(f"a key of {len(key) * 8} bits, not {KEY_BITS}", reason="qkd_wrong_size")
    if found == bytes(16) or (key_id is not None and found != key_id):
        raise UntrustedError(
            "the key server gave another key than the one asked for", reason="qkd_wrong_key_id"
        )
    return QkdOffer(found, key)


def parse_status(body: bytes) -> LinkStatus:
    """Read a link's status (section 6.1).

    Raises:
        InvalidInputError: ``qkd_malformed``.
    """
    status = _json(body)
    return LinkStatus(*(_count(status, name) for name in ("key_size", "stored_key_count", "max_key_count")))


def _count(status: Json, name: str) -> int:
    value = status.get(name)
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise _malformed(f"no {name}")
    return value


def _json(body: bytes) -> Json:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _malformed("no JSON") from error
    if not isinstance(value, dict):
        raise _malformed("no JSON object")
    return value


async def _bounded(answer: httpx.Response) -> bytes:
    body = b""
    async for part in answer.aiter_bytes():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise _malformed(f"more than {MAX_ANSWER_BYTES} bytes")
    return body


def _require_success(code: int, body: bytes) -> None:
    if code == 200:
        return
    said = body[:160].decode("utf-8", "replace")
    if code in {401, 403}:
        raise DeniedError(f"the key server refuses us ({code}): {said}", reason="qkd_unauthorized")
    if code == 503:
        raise UnavailableError(f"the key server has no key now: {said}", reason="qkd_no_keys")
    raise InvalidInputError(f"the key server says {code}: {said}", reason="qkd_refused")


def _malformed(detail: str) -> InvalidInputError:
    return InvalidInputError(f"the key server's answer: {detail}", reason="qkd_malformed")
