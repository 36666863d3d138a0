"""The prover: one verification for a batch however many lines have it, in order, emergencies aside."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from envelopes import AT_ALL, AT_HEARTBEAT, GUARDIAN, HOST, NOW, alert, heartbeat, opener, party, seal

from tocsin.bus.opener import Inspected, Opener
from tocsin.bus.proving import GROUP, Prover
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import Priority


class SlowOpener(Opener):
    """Holds every verification of a message that is no emergency until it is let go."""

    gate = threading.Event()

    def prove(self, inspected: Inspected) -> None:
        if inspected.envelope.content.priority != Priority.CRITICAL:
            assert self.gate.wait(5)
        super().prove(inspected)


@asynccontextmanager
async def proving(of: Opener) -> AsyncIterator[Prover]:
    prover = Prover(of, threads=2)
    task = asyncio.create_task(prover.run())
    yield prover
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    prover.close()


async def test_a_batch_is_verified_once_and_its_order_kept() -> None:
    sender = party(HOST)
    of = opener(sender)
    batch = seal(sender.key, [heartbeat() for _ in range(40)])
    handed: list[Inspected] = []
    before = of.backend.counters.verifications
    async with proving(of) as prover:
        given = [of.inspect(data, AT_HEARTBEAT, now_ns=NOW) for data in batch]
        for inspected in given:
            prover.put(inspected, None, lambda one, _, error: handed.append(one) if error is None else None)
        async with asyncio.timeout(5):
            while len(handed) < len(given):
                await asyncio.sleep(0)
    assert handed == given
    assert of.backend.counters.verifications == before + 1


async def test_what_does_not_hold_is_told_and_the_rest_goes_on() -> None:
    sender = party(HOST)
    of = opener(sender)
    good, other = seal(sender.key, [heartbeat()]), seal(sender.key, [heartbeat()])
    stolen = of.inspect(good[0], AT_HEARTBEAT, now_ns=NOW)
    proof = of.inspect(other[0], AT_HEARTBEAT, now_ns=NOW).envelope.proof
    forged = stolen._replace(envelope=stolen.envelope._replace(proof=proof))
    outcomes: list[TocsinError | None] = []
    async with proving(of) as prover:
        for one in (forged, stolen, forged):
            prover.put(one, None, lambda _, __, error: outcomes.append(error))
        async with asyncio.timeout(5):
            while len(outcomes) < 3:
                await asyncio.sleep(0)
    assert [error and error.reason for error in outcomes] == ["bad_signature", None, "bad_signature"]


async def test_an_emergency_overtakes_what_waits() -> None:
    host, guardian = party(HOST), party(GUARDIAN)
    known = opener(host, guardian)
    of = SlowOpener(known.trust, known.backend, started_ns=known.started_ns)
    of.gate.clear()
    order: list[str] = []
    async with proving(of) as prover:
        for data in seal(host.key, [heartbeat()]):
            ordinary = of.inspect(data, AT_HEARTBEAT, now_ns=NOW)
        (data,) = seal(guardian.key, [alert(priority=int(Priority.CRITICAL))])
        urgent = of.inspect(data, AT_ALL, now_ns=NOW)
        prover.put(ordinary, None, lambda *_: order.append("ordinary"))
        await asyncio.sleep(0.05)
        prover.put(urgent, None, lambda *_: order.append("urgent"))
        async with asyncio.timeout(5):
            while not order:
                await asyncio.sleep(0.001)
            of.gate.set()
            while len(order) < 2:
                await asyncio.sleep(0.001)
    assert order == ["urgent", "ordinary"]


async def test_a_bug_in_one_line_does_not_end_the_others() -> None:
    sender = party(HOST)
    of = opener(sender)
    handed: list[Inspected] = []

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with proving(of) as prover:
        for number, data in enumerate(seal(sender.key, [heartbeat(), heartbeat()])):
            then = handed.append if number else broken
            prover.put(of.inspect(data, AT_HEARTBEAT, now_ns=NOW), None, lambda one, *_, then=then: then(one))
        async with asyncio.timeout(5):
            while not handed:
                await asyncio.sleep(0)


async def test_what_is_not_needed_any_more_is_told_and_never_verified() -> None:
    sender = party(HOST)
    of = opener(sender)
    given = [of.inspect(seal(sender.key, [heartbeat()])[0], AT_HEARTBEAT, now_ns=NOW) for _ in range(3 * GROUP)]
    outcomes: list[str | None] = []
    before = of.backend.counters.verifications

    async with proving(of) as prover:
        for inspected in given:
            prover.put(
                inspected,
                None,
                lambda _, __, error: outcomes.append(None if error is None else error.reason),
                needed=lambda _: len(outcomes) < GROUP,
            )
        async with asyncio.timeout(5):
            while len(outcomes) < len(given):
                await asyncio.sleep(0)
    verified = outcomes.count(None)
    assert GROUP <= verified <= 2 * GROUP
    assert outcomes.count("not_needed") == len(given) - verified
    assert of.backend.counters.verifications == before + verified
