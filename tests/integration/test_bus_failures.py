"""What goes wrong on the way: a broker that refuses, handlers that fail, hosts that leave with work waiting."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import pytest
from fleet_support import FleetWorld, Recorder, recorder, tokens_for
from support import DOMAIN, World, eventually

from tocsin.agent import Agent, AgentHost
from tocsin.bus import Bus, Context
from tocsin.bus.connection import Connection
from tocsin.contracts.catalogue import (
    ALERT_BACKUP,
    AUDIT,
    EVENT,
    EVENT_REFUSAL,
    HEARTBEAT,
    HEARTBEAT_TYPE,
    METRICS,
    PING,
    THREAT_ALERT,
)
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.fleet import Heartbeat
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.operations import PingRequest, Pong, RejectedEnvelope
from tocsin.contracts.routing import Refusal, ThreatAlert
from tocsin.telemetry import Metrics

ONE = [("hunter-01", Role.HUNTER), ("sentinel-01", Role.SENTINEL)]
ADMINS = [("admin-01", Role.ADMIN)]


async def test_a_wrong_token_is_an_error_within_the_connect_timeout(world: World) -> None:
    """The client would try again for ever, and a process that was given the wrong file say nothing."""
    wrong = world.folder / "wrong-token"
    wrong.write_text("not it")
    settings = world.settings().model_copy(update={"nats_token_file": wrong, "connect_timeout_s": 1.0})
    credentials = world.credentials(SpiffeId.service(DOMAIN, ServiceName.CLI, "9"))
    async with asyncio.timeout(8):
        with pytest.raises(UnavailableError) as caught:
            await Bus(settings, credentials, Metrics()).__aenter__()
    assert caught.value.reason == "broker_refuses"


async def test_connecting_can_be_cancelled_though_an_attempt_swallows_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As wait_for does before Python 3.12 if the attempt fails at that very moment: the client would try for ever."""
    trying = asyncio.Event()

    async def attempt(*_: object, **__: object) -> None:
        trying.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        raise ConnectionRefusedError

    monkeypatch.setattr("nats.aio.transport.TcpTransport.connect", attempt)
    opening = asyncio.create_task(Connection.open(world.settings(), Metrics(), name="test"))
    await trying.wait()
    opening.cancel()
    _, late = await asyncio.wait({opening}, timeout=5)
    assert not late
    assert opening.cancelled()


async def test_a_handler_that_fails_for_a_while_gets_the_message_in_the_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pauses between deliveries grow: all of them at once would be over before a broken neighbour is back."""
    monkeypatch.setattr("tocsin.bus.consumer.RETRY_PAUSE_S", 0.1)
    router, monitor = await world.service(ServiceName.ROUTER), await world.service(ServiceName.MONITOR)
    back_s = time.monotonic() + 1.0
    done: list[Refusal] = []

    async def handler(body: Refusal, _: Context) -> None:
        if time.monotonic() < back_s:
            raise UnavailableError("a neighbour is away", reason="away")
        done.append(body)

    refusal = Refusal(message=bytes(16), agent="a", reason="r", detail="")
    await router.event(EVENT_REFUSAL, refusal)
    await monitor.consume(EVENT, handler, durable="test")
    await eventually(lambda: done == [refusal], within_s=5)


class Slow(Recorder):
    """Takes three seconds for its first alert."""

    role = Role.HUNTER

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        await super().on_alert(alert, context)
        if alert.summary == "hold":
            await asyncio.sleep(3.5)


async def test_what_comes_while_a_host_leaves_is_left_to_its_next_process(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given back again and again to who is leaving, it would have used up its deliveries."""
    monkeypatch.setattr("tocsin.bus.consumer.RETRY_PAUSE_S", 0.05)

    def make(role: Role, name: str) -> Agent:
        return Slow(name) if name == "hunter-01" else recorder(role, name)

    async def emergency(summary: str) -> None:
        alert = ThreatAlert(severity=Severity.CRITICAL, summary=summary)
        sent = await admin._bus.make(
            THREAT_ALERT,
            alert,
            audience="all",
            priority=Priority.CRITICAL,
            sender=admin.agents["admin-01"].id,
        )
        await router.send(ALERT_BACKUP.at(severity="critical"), sent, stream="ALERTS")

    def told(host: AgentHost) -> list[str]:
        found = host.agents["hunter-01"]
        assert isinstance(found, Recorder)
        return [alert.summary for alert, _ in found.alerts]

    async with FleetWorld(world, [*tokens_for("h1", ONE), *tokens_for("h2", ADMINS)], world.folder) as fleet:
        await fleet.start_fleet()
        router = await fleet.router()
        admin = await fleet.start_host("h2", ADMINS)
        host = await fleet.make_host("h1", ONE, make).__aenter__()
        await emergency("hold")
        await eventually(lambda: told(host) == ["hold"])
        leaving = asyncio.create_task(host.__aexit__(None, None, None))
        await asyncio.sleep(0.1)
        await emergency("missed")
        await leaving
        again = await fleet.start_host("h1", ONE)
        await eventually(lambda: told(again) == ["missed"], within_s=5)


async def test_what_was_rejected_is_audited_though_a_report_failed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = await world.service(ServiceName.MONITOR)
    told: list[RejectedEnvelope] = []

    async def on_audit(body: RejectedEnvelope, _: Context) -> None:
        told.append(body)

    await monitor.subscribe(AUDIT, on_audit, at={"kind": "rejected"})
    victim = await world.service(ServiceName.ROUTER)
    truly, failures = victim.publish, 0

    async def publish(subject: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal failures
        if subject is AUDIT and failures < 2:
            failures += 1
            raise UnavailableError("the broker is away", reason="broker_unavailable")
        return await truly(subject, *args, **kwargs)

    monkeypatch.setattr(victim, "publish", publish)

    async def ignore(_: object, __: Context) -> None:
        """Take figures."""

    await victim.subscribe(METRICS, ignore)
    for _ in range(3):
        await monitor.connection.publish(METRICS.at(process="x"), b"garbage")
    await eventually(lambda: failures == 2)
    await eventually(lambda: sum(one.count for one in told if one.reason == "malformed") == 3)


async def test_who_ends_handles_what_has_come(world: World) -> None:
    host = await world.bus(SpiffeId.host(DOMAIN, "h1"))
    settings = world.settings()
    handled = 0

    async def on_heartbeat(_: Heartbeat, __: Context) -> None:
        nonlocal handled
        handled += 1

    beat = Heartbeat(host="h1", agents=("a",), handled=0, failed=0)
    for number in range(5):
        handled = 0
        credentials = world.credentials(SpiffeId.service(DOMAIN, ServiceName.MONITOR, str(number)))
        async with Bus(settings, credentials, Metrics()) as monitor:
            line = await monitor.subscribe(HEARTBEAT, on_heartbeat)
            made = [await host.make(HEARTBEAT_TYPE, beat, audience="event") for _ in range(60)]
            for sent in made:
                await host.send(HEARTBEAT.at(host="h1"), sent)
            await eventually(lambda: line.delivered == 60)  # noqa: B023 - called in this very turn
        assert handled == 60


async def test_an_answer_that_overtook_its_senders_certificate_is_taken(world: World) -> None:
    """The question is not asked twice: who has had it drops the second, so this answer is the only one."""
    monitor, router = await world.service(ServiceName.MONITOR), await world.service(ServiceName.ROUTER)
    chain, key_id = router.credentials.chain, router.credentials.key.signer.key_id
    await eventually(lambda: monitor.trust.identity(key_id) is not None)
    answered = asyncio.Event()

    async def ping(_: PingRequest, __: Context) -> Pong:
        answered.set()
        return Pong(process="p", version="1", signature_backend="openssl", name="0")

    await router.serve(PING[ServiceName.ROUTER], ping, queue="router")
    monitor.trust._drop(key_id)
    asking = asyncio.create_task(monitor.request(PING[ServiceName.ROUTER], PingRequest(), timeout_s=1.5))
    await answered.wait()
    await asyncio.sleep(0.2)
    assert not asking.done()
    monitor.trust.add_chain(chain)
    monitor._identities_changed()
    assert (await asking).process == "p"


async def test_a_task_that_misses_its_cancellation_does_not_hold_the_end_up(world: World) -> None:
    """The standard library's own ``wait_for`` loses one that comes together with a result (Python 3.11)."""
    bus = await Bus(
        world.settings(), world.credentials(SpiffeId.service(DOMAIN, ServiceName.CLI, "1")), Metrics()
    ).__aenter__()

    async def deaf_once() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    bus.spawn(deaf_once(), "deaf once")
    await asyncio.sleep(0)
    async with asyncio.timeout(8):
        await bus.__aexit__(None, None, None)


async def test_a_connection_that_breaks_while_it_closes_leaves_nothing_running(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = await Bus(
        world.settings(), world.credentials(SpiffeId.service(DOMAIN, ServiceName.CLI, "1")), Metrics()
    ).__aenter__()

    async def broken() -> None:
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(bus.connection.client, "drain", broken)
    truly = bus.connection.client.close

    async def close() -> None:
        await truly()
        raise ConnectionResetError("Connection lost")

    monkeypatch.setattr(bus.connection.client, "close", close)
    task = bus.spawn(asyncio.sleep(60), "work")
    await bus.__aexit__(None, None, None)
    assert task.cancelled()
