"""A host's receipts leave it in envelopes that are not too large, however many agents they name."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from tocsin.agent.receipts import ReceiptSender
from tocsin.bus import Bus
from tocsin.contracts.catalogue import RECEIPTS
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.routing import Receipt, Receipts
from tocsin.telemetry import Metrics


class Wire:
    """Where envelopes go: it refuses what the bus refuses, and keeps the rest."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.sent: list[Receipts] = []

    async def publish(self, _subject: object, kind: object, body: Receipts, **_: Any) -> None:
        assert kind is RECEIPTS
        size = sum(len(name) + 2 for receipt in body.receipts for name in receipt.agents)
        if size > RECEIPTS.max_bytes:
            raise InvalidInputError("too large", reason="too_large")
        self.sent.append(body)


def receipt(number: int, agents: int, *, name_bytes: int = 11) -> Receipt:
    names = tuple(f"{agent:0{name_bytes}d}" for agent in range(agents))
    return Receipt(leaf=number.to_bytes(32, "big"), agents=names, channel="core", taken_ns=1)


async def send(*receipts: Receipt) -> Wire:
    wire = Wire()
    sender = ReceiptSender(cast("Bus", wire), "h1")
    for one in receipts:
        sender.add(one)
    running = asyncio.create_task(sender.run())
    await sender.flush(timeout_s=2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return wire


async def test_many_receipts_of_a_host_with_many_agents_all_leave_it() -> None:
    wire = await send(*(receipt(number, 847) for number in range(64)))
    leaves = [one.leaf for body in wire.sent for one in body.receipts]
    assert leaves == [number.to_bytes(32, "big") for number in range(64)]
    assert max(sum(len(one.agents) for one in body.receipts) for body in wire.sent) <= 8_000
    assert wire.metrics.counter("receipt_failures.too_large") == 0


async def test_what_is_too_large_all_the_same_goes_in_halves() -> None:
    wire = await send(*(receipt(number, 1_000, name_bytes=60) for number in range(8)))
    assert sum(len(body.receipts) for body in wire.sent) == 8


async def test_one_receipt_that_never_fits_holds_up_no_other() -> None:
    wire = await send(receipt(0, 4_096, name_bytes=63), receipt(1, 1))
    assert [one.leaf for body in wire.sent for one in body.receipts] == [(1).to_bytes(32, "big")]
    assert wire.metrics.counter("receipts_dropped") == 1
