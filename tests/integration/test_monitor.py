"""The monitor over a real broker: it gathers what processes send, and believes each about itself alone."""

from __future__ import annotations

import httpx
from support import DOMAIN, World, eventually

from tocsin.contracts.catalogue import EVENT_DELIVERY, METRICS, METRICS_TYPE, MONITOR_FIGURES, PING
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.contracts.operations import FiguresRequest, MetricsSnapshot, PingRequest
from tocsin.contracts.routing import Delivery
from tocsin.monitor.service import MonitorService
from tocsin.monitor.settings import MonitorSettings
from tocsin.telemetry import HealthServer


async def monitor(world: World) -> MonitorService:
    base = world.settings().model_dump()
    service = MonitorService(
        await world.service(ServiceName.MONITOR), MonitorSettings(**base, monitor_refresh_s=0.1)
    )
    await service.start()
    return service


def delivery(due: int, delivered: int) -> Delivery:
    return Delivery(
        message=bytes(16),
        leaf=bytes(32),
        due=due,
        delivered=delivered,
        by_core=delivered,
        by_stream=0,
        undelivered=(),
        first_ms=1.0,
        last_ms=2.0,
        complete=due == delivered,
    )


async def test_figures_of_all_processes_and_their_sums_are_served(world: World) -> None:
    service = await monitor(world)
    host = await world.bus(SpiffeId.host(DOMAIN, "h1"))
    cli = await world.service(ServiceName.CLI)
    host.metrics.count("things_done", 5)
    cli.metrics.count("things_done", 7)
    await eventually(lambda: service.book.totals().get("things_done") == 12)
    found = await cli.request(MONITOR_FIGURES, FiguresRequest(), timeout_s=5)
    assert {one.process for one in found.processes} >= {"host.h1", "service.cli.0", "service.monitor.0"}
    assert found.totals["things_done"] == 12
    await eventually(lambda: service.book.totals().get("envelopes_signed", 0) >= 2)
    await service.stop()


async def test_the_routers_account_becomes_due_and_made_and_is_on_metrics(world: World) -> None:
    service = await monitor(world)
    router = await world.service(ServiceName.ROUTER)
    await router.event(EVENT_DELIVERY, delivery(40, 12))
    await router.event(EVENT_DELIVERY, delivery(40, 39))
    await eventually(lambda: service.book.totals()["deliveries_made"] == 39)
    assert service.book.totals()["deliveries_due"] == 40
    with HealthServer(service.metrics, ready=lambda: True) as health:
        url = f"http://127.0.0.1:{health.port}/metrics"
        async with httpx.AsyncClient() as client:
            await eventually(lambda: service.metrics.statistics().gauges.get("totals.deliveries_made") == 39)
            assert 'tocsin_totals{kind="deliveries_made"} 39.0' in (await client.get(url)).text
    await service.stop()


async def test_figures_of_another_process_are_refused(world: World) -> None:
    service = await monitor(world)
    host = await world.bus(SpiffeId.host(DOMAIN, "h1"))
    refused = "handler_refusals.wrong_process"

    def lie(process: str) -> MetricsSnapshot:
        return MetricsSnapshot(
            process=process, uptime_s=1, counters={"lies": 1}, latencies={}, cpu_s=0, memory_bytes=0
        )

    await host.publish(METRICS, METRICS_TYPE, lie("service.router.0"), at={"process": "host-h1"})
    await eventually(lambda: service.metrics.counter(refused) == 1)
    await host.publish(METRICS, METRICS_TYPE, lie("host.h1"), at={"process": "service-router-0"})
    await eventually(lambda: service.metrics.counter(refused) == 2)
    await eventually(lambda: any(one.process == "host.h1" for one in service.book.figures(0).processes))
    assert "lies" not in service.book.totals()
    await service.stop()


async def test_an_account_that_was_written_while_the_monitor_was_away_is_read_afterwards(world: World) -> None:
    first = await monitor(world)
    router = await world.service(ServiceName.ROUTER)
    await first.stop()
    await first.bus.__aexit__(None, None, None)
    await router.event(EVENT_DELIVERY, delivery(7, 7))
    settings = MonitorSettings(**world.settings().model_dump())
    credentials = world.credentials(SpiffeId.service(DOMAIN, ServiceName.MONITOR, "0"), generation=2)
    second = MonitorService(await world.bus(credentials=credentials), settings)
    await second.start()
    await eventually(lambda: second.book.totals()["deliveries_made"] == 7)
    await second.stop()


async def test_it_answers_its_ping(world: World) -> None:
    service = await monitor(world)
    cli = await world.service(ServiceName.CLI)
    pong = await cli.request(PING[ServiceName.MONITOR], PingRequest(), timeout_s=5)
    assert pong.process == "service.monitor.0"
    await service.stop()
