"""Ask and be answered: one inbox a process, one waiting future a request."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from nats.aio.msg import Msg

from tocsin.bus.connection import Connection
from tocsin.bus.intake import Reject
from tocsin.bus.opener import Arrival, Opener
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import ERROR_REPLY
from tocsin.contracts.errors import (
    FAMILIES,
    ExhaustedError,
    InvariantBrokenError,
    TocsinError,
    UnavailableError,
    family_of,
)
from tocsin.contracts.identifiers import SpiffeId
from tocsin.contracts.operations import ErrorReply
from tocsin.contracts.subjects import PREFIX, MessageType, Request

if TYPE_CHECKING:
    from tocsin.bus.sending import Sent

MAX_WAITING = 4096
RESEND_S = (2.0, 5.0, 10.0)
URGENT_RESEND_S = (0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0)
"""The same for an emergency, which every router may take again: its recipients drop the second copy."""
"""When a request is sent again, after the first time: identical bytes, so it is handled at most once."""
NO_RESPONDERS_PAUSE_S = 0.1


def error_reply(error: Exception) -> tuple[MessageType[Message], ErrorReply]:
    """Make the reply that carries an error; what is not ours shows nothing of itself."""
    kind = cast("MessageType[Message]", ERROR_REPLY)
    if isinstance(error, TocsinError):
        return kind, ErrorReply(family=family_of(error), reason=error.reason, detail=str(error)[:512])
    return kind, ErrorReply(family=InvariantBrokenError.reason, reason="internal", detail="an internal error")


@dataclass(slots=True, eq=False)
class _Waiting:
    arrival: Arrival
    answer: asyncio.Future[Message]
    no_responders: asyncio.Event
    early: Msg | None = None
    """An answer whose signer's certificate is not known yet: it waits for that, one for each request."""


class Replies:
    """The process's inbox ``tocsin.v1.reply.<random>.<request id>``.

    The inbox's name is no secret and proves nothing: an answer counts if it is signed by an instance of the
    service that was asked, for this requester, and names this request.
    """

    def __init__(
        self,
        connection: Connection,
        opener: Opener,
        threads: ThreadPoolExecutor,
        me: SpiffeId,
        *,
        reject: Reject,
    ) -> None:
        self._connection = connection
        self._opener = opener
        self._threads = threads
        self._me = me
        self._reject = reject
        self._prefix = f"{PREFIX}.reply.{os.urandom(8).hex()}"
        self._waiting: dict[str, _Waiting] = {}

    async def start(self) -> None:
        """Listen."""
        await self._connection.subscribe(f"{self._prefix}.*", self._receive)

    async def ask(
        self,
        request: Request[Message, Message],
        subject: str,
        make: Callable[[], Awaitable[Sent]],
        asker: SpiffeId,
        *,
        timeout_s: float,
        resend_s: tuple[float, ...] = RESEND_S,
        patient: bool = True,
    ) -> Message:
        """Send a request until it is answered; see :meth:`tocsin.bus.client.Bus.request`."""
        if len(self._waiting) >= MAX_WAITING:
            raise ExhaustedError(f"{MAX_WAITING} requests wait already", reason="too_many_requests")
        one = request.subject.parse(subject).get(request.server_kind.value)
        deadline = time.monotonic() + timeout_s
        why = "no answer"
        while time.monotonic() < deadline:
            sent = await make()
            token = sent.id.hex()
            reply = f"{self._prefix}.{token}"
            waiting = _Waiting(
                Arrival.reply(reply, request, asker.token, sent.id, server=one),
                asyncio.get_running_loop().create_future(),
                asyncio.Event(),
            )
            self._waiting[token] = waiting
            try:
                answer = await self._attempt(subject, sent, reply, waiting, deadline, resend_s)
            finally:
                del self._waiting[token]
            if answer is not None:
                return _raise_error(answer)
            if waiting.no_responders.is_set():
                if not patient:
                    raise UnavailableError(f"{request.verb}: nobody serves it", reason="no_responders")
                # Nobody had it, so a fresh envelope is as good, and a process that starts just now takes it.
                why = "nobody serves it"
                await asyncio.sleep(min(NO_RESPONDERS_PAUSE_S, max(0.0, deadline - time.monotonic())))
        raise UnavailableError(
            f"{request.verb}: {why} within {timeout_s:g} s",
            reason="no_answer",
            advice=f"is {request.service.value} running? `tocsin up` starts everything",
        )

    async def _attempt(
        self,
        subject: str,
        sent: Sent,
        reply: str,
        waiting: _Waiting,
        deadline: float,
        resend_s: tuple[float, ...],
    ) -> Message | None:
        """Send one envelope and wait; None when the time is over or nobody listens."""
        begun = time.monotonic()
        for again in (*resend_s, float("inf")):
            await self._connection.publish(subject, sent.data, reply=reply)
            until = min(deadline, begun + again)
            gone = asyncio.ensure_future(waiting.no_responders.wait())
            try:
                first: set[asyncio.Future[Any]] = {waiting.answer, gone}
                await asyncio.wait(
                    first,
                    timeout=max(0.0, until - time.monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
            finally:
                gone.cancel()
            if waiting.answer.done():
                return waiting.answer.result()
            if waiting.no_responders.is_set() or time.monotonic() >= deadline:
                return None
        return None

    async def _receive(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is None or waiting.answer.done():
            return
        if message.headers and message.headers.get("Status") == "503":
            waiting.no_responders.set()
            return
        try:
            inspected = self._opener.inspect(message.data, waiting.arrival, now_ns=time.time_ns())
            if not self._opener.is_proven(inspected):
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._threads, self._opener.prove, inspected)
            body, _ = self._opener.accept(inspected, now_ns=time.time_ns())
        except TocsinError as error:
            if error.reason == "unknown_key" and waiting.early is None:
                waiting.early = message
                return
            self._reject(error, message.subject, message.data)
            return
        if not waiting.answer.done():
            waiting.answer.set_result(body)

    async def identities_changed(self) -> None:
        """Try again the answers of those whose certificate was not known."""
        for waiting in list(self._waiting.values()):
            if (message := waiting.early) is not None:
                waiting.early = None
                await self._receive(message)


def _raise_error(answer: Message) -> Message:
    if isinstance(answer, ErrorReply):
        raise FAMILIES.get(answer.family, InvariantBrokenError)(answer.detail, reason=answer.reason)
    return answer
