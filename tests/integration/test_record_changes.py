"""Records are changed by compare-and-set: what two writers add at once is all there."""

from __future__ import annotations

import asyncio

from support import World
from unit.workflow.workflow_cases import ANALYST, request

from tocsin.bus import Bus
from tocsin.contracts.catalogue import WORKFLOWS
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.workflows import WorkflowRecord
from tocsin.workflow import dag


async def test_no_change_of_two_concurrent_writers_is_lost(world: World) -> None:
    begun = dag.begin(ANALYST, request(), dag.Limits(), now_ns=0).record
    key = begun.workflow.hex()

    def one_more(present: WorkflowRecord | None) -> WorkflowRecord:
        base = present or begun
        return base.model_copy(update={"begun_ns": base.begun_ns + 1})

    async def write(bus: Bus) -> None:
        records = bus.records(WORKFLOWS)
        for _ in range(10):
            await records.change(key, one_more)

    buses = [await world.service(ServiceName.WORKFLOW, instance) for instance in ("a", "b")]
    await asyncio.gather(*map(write, buses))
    records = buses[0].records(WORKFLOWS)
    final = await records.get(key)
    assert final is not None
    assert final.begun_ns == 20
    assert await records.keys() == {key}


async def test_a_change_that_returns_none_writes_nothing(world: World) -> None:
    records = (await world.service(ServiceName.WORKFLOW)).records(WORKFLOWS)
    assert await records.change("0" * 32, lambda _: None) is None
    assert await records.keys() == frozenset()
