"""The line of a subscription: what waits for a certificate, and handlers that go wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from envelopes import AT_HEARTBEAT, HOST, Party, authority, heartbeat, party, seal

from tocsin.bus.intake import Intake
from tocsin.bus.opener import Arrival, Context, Inspected, Opener
from tocsin.bus.proving import Prover
from tocsin.contracts.base import Message
from tocsin.contracts.errors import TocsinError
from tocsin.crypto import Algorithm, LocalKey, TrustStore, select_backend
from tocsin.telemetry import Metrics


class CountingOpener(Opener):
    """Counts how often an envelope was looked at."""

    inspections = 0

    def inspect(self, data: bytes, arrival: Arrival, *, now_ns: int) -> Inspected:
        self.inspections += 1
        return super().inspect(data, arrival, now_ns=now_ns)


@dataclass
class Line:
    """An intake with what surrounds it."""

    opener: CountingOpener
    metrics: Metrics = field(default_factory=Metrics)
    rejected: list[str] = field(default_factory=list)
    intake: Intake = field(init=False)
    task: asyncio.Task[None] = field(init=False)

    def reject(self, error: TocsinError, _: str, __: bytes) -> None:
        self.rejected.append(error.reason)


@asynccontextmanager
async def line(handler: object) -> AsyncIterator[Line]:
    backend = select_backend("openssl")
    opener = CountingOpener(TrustStore(authority().certificate_pem, backend), backend, started_ns=0)
    made = Line(opener)
    prover = Prover(opener, threads=1)
    made.intake = Intake(
        opener,
        prover,
        made.metrics,
        handler,  # type: ignore[arg-type]  # each test's own
        reject=made.reject,
        name="test",
    )
    made.task = asyncio.create_task(made.intake.run())
    proving = asyncio.create_task(prover.run())
    yield made
    for task in (made.task, proving):
        task.cancel()
    await asyncio.gather(made.task, proving, return_exceptions=True)
    prover.close()


def certified_now() -> Party:
    """Return the host with a certificate that is valid by the real clock, which the intake reads."""
    key = LocalKey.generate(select_backend("openssl"), Algorithm.ML_DSA_44)
    certificate = authority().issue(
        ids=(HOST,),
        public_key=key.signer.public_key,
        algorithm=key.algorithm,
        generation=1,
        now=datetime.now(UTC),
    )
    return Party(HOST, key, certificate.chain_der)


async def ignore(_: Message, __: Context) -> None:
    """Take anything."""


async def test_messages_of_unknown_keys_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for a certificate. Were each one's timer to try all again, a few would fill the event loop."""
    monkeypatch.setattr("tocsin.bus.intake.PARK_S", 0.1)
    (unknown,) = seal(party(HOST).key, [heartbeat()])
    async with line(ignore) as made:
        for _ in range(150):
            made.intake.put(unknown, AT_HEARTBEAT)
            await asyncio.sleep(0.002)
        async with asyncio.timeout(5):
            while len(made.rejected) < 150:
                await asyncio.sleep(0.01)
        assert set(made.rejected) == {"unknown_key"}
        assert made.opener.inspections == 150


async def test_a_message_that_overtook_its_certificate_is_handled() -> None:
    seen: list[Message] = []

    async def keep(body: Message, _: Context) -> None:
        seen.append(body)

    sender = certified_now()
    now = heartbeat(issued_at=time.time_ns())
    async with line(keep) as made:
        made.intake.put(seal(sender.key, [now])[0], AT_HEARTBEAT)
        made.intake.identities_changed()
        await asyncio.sleep(0)
        assert not seen
        made.opener.trust.add_chain(sender.chain)
        made.intake.identities_changed()
        async with asyncio.timeout(0.8):
            while not seen:
                await asyncio.sleep(0.01)
        assert made.rejected == []


async def test_a_handler_whose_inner_work_was_cancelled_ends_nothing_else() -> None:
    seen: list[Message] = []

    async def cancelled_within(body: Message, _: Context) -> None:
        seen.append(body)
        inner = asyncio.ensure_future(asyncio.sleep(9))
        inner.cancel()
        await inner

    sender = certified_now()
    async with line(cancelled_within) as made:
        made.opener.trust.add_chain(sender.chain)
        for _ in range(2):
            again = heartbeat(id=bytes([len(seen)]) * 16, issued_at=time.time_ns())
            made.intake.put(seal(sender.key, [again])[0], AT_HEARTBEAT)
            async with asyncio.timeout(2):
                await made.intake.idle()
        assert len(seen) == 2
        assert made.metrics.counter("handler_failures") == 2
        assert not made.task.done()
