"""The key server's REST interface: ETSI GS QKD 014 V1.1.1, sections 5 and 6, for keys of 256 bits, one at a time.

    GET  /api/v1/keys/{slave}/status
    GET  /api/v1/keys/{slave}/enc_keys[?number=1&size=256]      POST the same as JSON
    GET  /api/v1/keys/{master}/dec_keys?key_ID=...              POST {"key_IDs": [{"key_ID": ...}]}

Both ends' key servers are this one. Who asks is the subject's common name of the client's certificate, where the
server was started with TLS; without TLS it is whoever the header ``X-SAE-ID`` says, which is why that listens on
loopback addresses only. Refusals have the standard's form, ``{"message": ...}``: 400 a question that it does not
understand, 401 who is not known, 503 no key (also while an eavesdropper is on the link: the message says so).
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tocsin.contracts.errors import (
    DeniedError,
    InvalidInputError,
    TocsinError,
    UnavailableError,
)
from tocsin.qpu_manager.qkd.store import KEY_BYTES, MAX_READY_BYTES, KeyStore
from tocsin.telemetry import get_logger

KEY_BITS = KEY_BYTES * 8
MAX_QUESTION_BYTES = 4096
LOW_KEYS = 16
"""Fewer ready ones, and the link is run again."""
WAIT_S = 30.0
"""How long a question for a key waits for a run of the link that is under way."""
AFTER_FAILURE_S = 1.0
"""Pause between a run that gave no key and the next one."""

log = get_logger(__name__)


class KeyService:
    """Key material from a link that is run when it is needed, in a thread, once at a time.

    Args:
        run: sends the photons of one run, and returns key material or raises one of our errors.
        saes: who may ask.
    """

    def __init__(self, run: Callable[[], bytes], saes: Collection[str]) -> None:
        self._run = run
        self.saes = frozenset(saes)
        self.store = KeyStore()
        self.failure: TocsinError | None = None
        """Why the last run gave no key."""
        self._refilling: asyncio.Task[None] | None = None
        self._failed_s = -AFTER_FAILURE_S

    async def refill(self) -> None:
        """Run the link if few keys are ready, and wait if none is."""
        if self.store.ready >= LOW_KEYS:
            return
        running = self._refilling is not None and not self._refilling.done()
        if not running and time.monotonic() - self._failed_s >= AFTER_FAILURE_S:
            self._refilling = asyncio.create_task(self._refill(), name="bb84")
        if self.store.ready == 0 and self._refilling is not None:
            await asyncio.wait({self._refilling}, timeout=WAIT_S)

    async def stop(self) -> None:
        """Wait for the run that is under way."""
        if self._refilling is not None:
            await asyncio.wait({self._refilling})

    async def _refill(self) -> None:
        try:
            material = await asyncio.to_thread(self._run)
        except TocsinError as error:
            self.failure, self._failed_s = error, time.monotonic()
            log.warning("qkd_run_aborted", reason=error.reason, detail=str(error))
        else:
            self.failure = None
            self.store.add(material)


def make_app(service: KeyService) -> Starlette:
    """Return the application."""
    methods = ["GET", "POST"]

    async def status(request: Request) -> JSONResponse:
        me, peer = _parties(request, service)
        return JSONResponse(
            {
                "source_KME_ID": "tocsin-simulated",
                "target_KME_ID": "tocsin-simulated",
                "master_SAE_ID": me,
                "slave_SAE_ID": peer,
                "key_size": KEY_BITS,
                "stored_key_count": service.store.ready,
                "max_key_count": MAX_READY_BYTES // KEY_BYTES,
                "max_key_per_request": 1,
                "max_key_size": KEY_BITS,
                "min_key_size": KEY_BITS,
                "max_SAE_ID_count": 0,
            }
        )

    async def enc_keys(request: Request) -> JSONResponse:
        me, peer = _parties(request, service)
        question = await _question(request)
        if _number(question, "number", 1) != 1 or _number(question, "size", KEY_BITS) != KEY_BITS:
            raise InvalidInputError(f"one key of {KEY_BITS} bits a question", reason="bad_question")
        await service.refill()
        key_id = str(uuid.uuid4())
        try:
            key = service.store.deliver(me, peer, key_id, time.monotonic())
        except UnavailableError as error:
            if service.failure is not None:
                said = f"{service.failure.reason}: {service.failure}"
                raise UnavailableError(said, reason=service.failure.reason) from error
            raise
        return _container(key_id, key)

    async def dec_keys(request: Request) -> JSONResponse:
        me, peer = _parties(request, service)
        key_id = _key_id(await _question(request))
        return _container(key_id, service.store.collect(peer, me, key_id, time.monotonic()))

    return Starlette(
        routes=[
            Route("/api/v1/keys/{peer}/status", status, methods=["GET"]),
            Route("/api/v1/keys/{peer}/enc_keys", enc_keys, methods=methods),
            Route("/api/v1/keys/{peer}/dec_keys", dec_keys, methods=methods),
        ],
        exception_handlers={TocsinError: _refused},
    )


def _parties(request: Request, service: KeyService) -> tuple[str, str]:
    """Return who asks, and about whom."""
    certified: object = request.scope.get("state", {}).get("sae")
    # Behind TLS the header means nothing.
    me = certified if request.url.scheme == "https" else request.headers.get("x-sae-id")
    if not isinstance(me, str) or me not in service.saes:
        raise DeniedError("who asks is not known here", reason="unknown_sae")
    peer = str(request.path_params["peer"])
    if peer not in service.saes or peer == me:
        raise InvalidInputError(f"{peer[:80]!r} is not at the other end", reason="bad_question")
    return me, peer


async def _question(request: Request) -> Mapping[str, Any]:
    if request.method == "GET":
        return dict(request.query_params)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_QUESTION_BYTES:
            raise InvalidInputError(
                f"a question of more than {MAX_QUESTION_BYTES} bytes", reason="bad_question"
            )
    try:
        question = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("no JSON", reason="bad_question") from error
    if not isinstance(question, dict):
        raise InvalidInputError("no JSON object", reason="bad_question")
    return question


def _number(question: Mapping[str, Any], name: str, default: int) -> int:
    value = question.get(name, default)
    if type(value) is int or (type(value) is str and value.isascii() and value.isdigit() and len(value) < 10):
        return int(value)
    raise InvalidInputError(f"{name} is no number", reason="bad_question")


def _key_id(question: Mapping[str, Any]) -> str:
    try:
        named = question["key_ID"] if "key_ID" in question else _only(question["key_IDs"])["key_ID"]
        return str(uuid.UUID(named))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError("no key_ID, or not one", reason="bad_question") from error


def _only(entries: Any) -> Any:
    (entry,) = entries
    return entry


def _container(key_id: str, key: bytes) -> JSONResponse:
    return JSONResponse({"keys": [{"key_ID": key_id, "key": base64.b64encode(key).decode()}]})


async def _refused(_: Request, error: Exception) -> JSONResponse:
    codes = {DeniedError: 401, UnavailableError: 503}
    code = next((code for family, code in codes.items() if isinstance(error, family)), 400)
    return JSONResponse({"message": str(error)}, status_code=code)
