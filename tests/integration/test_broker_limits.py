"""What a broker and its client do under strain, over a real one: docs/explanation/nats.md says which row is which."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from support import World, eventually

from tocsin.bus import Broker, Bus, Context, Sent, consumer
from tocsin.bus.connection import wait_for_socket
from tocsin.bus.envelope import decode_envelope, encode_envelope
from tocsin.contracts.catalogue import ALERT_BACKUP, EVENT, EVENT_REFUSAL, THREAT_ALERT
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity
from tocsin.contracts.routing import Refusal, ThreatAlert
from tocsin.crypto import Algorithm, LocalKey, leaf_hash, sign_batch

ROOT = Path(__file__).resolve().parents[2]
WHERE = EVENT.at(service="router", kind="refusal")


def refusal(number: int) -> Refusal:
    return Refusal(message=bytes(16), agent=f"a{number}", reason="r", detail="")


async def test_what_must_not_be_lost_is_on_the_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    """The setting is the server's own; whether the disk keeps its promise is not ours to test."""
    broker = Broker.start(tmp_path / "broker", sync_always=True)
    try:
        written = json.loads((tmp_path / "broker" / "nats.conf").read_text())
        assert written["jetstream"]["sync_interval"] == "always"
        assert "sync_interval: always" in (ROOT / "deploy" / "nats.conf").read_text()
    finally:
        broker.stop()


def test_every_row_of_the_page_names_a_test_that_is_there() -> None:
    page = (ROOT / "docs" / "explanation" / "nats.md").read_text()
    rows = [line.rsplit("|", 2)[1] for line in page.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        (file,) = re.findall(r"in `(test_\w+\.py)`", row) or ["test_broker_limits.py"]
        text = (ROOT / "tests" / "integration" / file).read_text()
        names = re.findall(r"`(test_\w+)`", row)
        assert names
        assert all(f"def {name}(" in text for name in names), row


async def test_a_callback_that_raises_ends_no_reconnecting(world: World) -> None:
    bus, after = await world.service(ServiceName.MONITOR), 0

    def broken() -> None:
        raise RuntimeError("a bug")

    def next_one() -> None:
        nonlocal after
        after += 1

    bus.connection.on_reconnect(broken)
    bus.connection.on_reconnect(next_one)
    for times in (1, 2):
        world.restart_broker()
        await eventually(lambda times=times: after == times and bus.connected)  # type: ignore[misc]  # bound now
    assert bus.metrics.counter("broker_errors.RuntimeError") == 2


async def test_an_acknowledgement_that_never_comes_is_an_error_within_a_deadline(world: World) -> None:
    router = await world.service(ServiceName.ROUTER)
    router.connection.js._timeout = 0.5
    sent = await router.make(EVENT_REFUSAL, refusal(0), audience="event")
    world.broker.kill()
    async with asyncio.timeout(5):
        with pytest.raises(UnavailableError) as caught:
            await router.send(WHERE, sent, stream="EVENTS")
    assert caught.value.reason == "broker_unavailable"
    world.restart_broker()
    await eventually(lambda: router.connected)
    await router.send(WHERE, sent, stream="EVENTS")


async def test_a_broker_that_is_silent_counts_as_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket stays open: only a probe of one's own finds out."""
    monkeypatch.setattr("tocsin.bus.connection.PING_INTERVAL_S", 0.2)
    bus = await world.service(ServiceName.MONITOR)
    os.kill(world.broker.process.pid, signal.SIGSTOP)
    try:
        await eventually(lambda: not bus.connected)
    finally:
        os.kill(world.broker.process.pid, signal.SIGCONT)
    await eventually(lambda: bus.connected, within_s=20)


async def test_a_slow_consumer_is_counted_and_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client drops what its queue does not hold; what bypasses the queue is bounded by the bus's own line."""
    monkeypatch.setattr("tocsin.bus.connection.SUBSCRIPTION_MESSAGES", 10)
    router, monitor = await world.service(ServiceName.ROUTER), await world.service(ServiceName.MONITOR)
    go, seen = asyncio.Event(), 0

    async def slow(_: object) -> None:
        nonlocal seen
        seen += 1
        await go.wait()

    await monitor.connection.subscribe("tocsin.v1.test", slow)
    await monitor.flush()
    for _ in range(100):
        await router.connection.publish("tocsin.v1.test", b"x")
    await eventually(lambda: monitor.metrics.counter("broker_errors.SlowConsumerError") > 0)
    go.set()
    await eventually(lambda: seen > 1)
    assert monitor.connected


async def test_a_line_that_is_full_refuses_counts_and_audits(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tocsin.bus.intake.LINE_LENGTH", 8)
    router, monitor = await world.service(ServiceName.ROUTER), await world.service(ServiceName.MONITOR)
    go, seen = asyncio.Event(), 0

    async def slow(_: Refusal, __: Context) -> None:
        nonlocal seen
        seen += 1
        await go.wait()

    await monitor.subscribe(EVENT, slow)
    for number in range(30):
        await router.event(EVENT_REFUSAL, refusal(number), durable=False)
    await eventually(lambda: monitor.metrics.counter("rejected.line_full") == 22)
    go.set()
    await eventually(lambda: seen == 8)


async def test_who_reads_too_slowly_is_cut_off_by_the_broker_and_comes_back(world: World) -> None:
    """64 MB wait for it at most; the broker then closes its connection."""
    router, monitor = await world.service(ServiceName.ROUTER), await world.service(ServiceName.MONITOR)
    heard = 0

    async def count(_: object) -> None:
        nonlocal heard
        heard += 1

    await monitor.connection.subscribe("tocsin.v1.test", count)
    await monitor.flush()
    transport = monitor.connection.client._transport._bare_io_reader._transport  # type: ignore[union-attr]  # to stop reading
    transport.pause_reading()
    monitor.connection.client._reading_task.cancel()  # type: ignore[union-attr]  # and nobody resumes
    block = bytes(1_000_000)
    for _ in range(140):
        await router.connection.publish("tocsin.v1.test", block)
        await router.flush()
    transport.resume_reading()
    monitor.connection.client._reading_task = asyncio.create_task(monitor.connection.client._read_loop())
    await eventually(lambda: monitor.metrics.counter("broker_reconnects") == 1 and monitor.connected)
    before = heard
    await router.connection.publish("tocsin.v1.test", b"again")
    await eventually(lambda: heard > before)


async def ack_pending(bus: Bus, durable: str) -> int:
    info = await bus.connection.js.consumer_info("EVENTS", durable)
    return info.num_ack_pending or 0


async def test_no_more_is_fetched_than_there_are_free_hands(world: World) -> None:
    router, monitor = await world.service(ServiceName.ROUTER), await world.service(ServiceName.MONITOR)
    go, running = asyncio.Event(), 0

    async def slow(_: Refusal, __: Context) -> None:
        nonlocal running
        running += 1
        await go.wait()

    for number in range(10):
        await router.event(EVENT_REFUSAL, refusal(number))
    await monitor.consume(EVENT, slow, durable="hands", concurrency=2)
    await eventually(lambda: running == 2)
    assert await ack_pending(router, "hands") == 2
    go.set()
    await eventually(lambda: running == 10)


async def test_work_that_takes_longer_than_its_ack_wait_is_done_once(world: World) -> None:
    router, monitor = await world.service(ServiceName.ROUTER), await world.service(ServiceName.MONITOR)
    begun, ended = 0, 0

    async def slow(_: Refusal, __: Context) -> None:
        nonlocal begun, ended
        begun += 1
        await asyncio.sleep(2.0)
        ended += 1

    await router.event(EVENT_REFUSAL, refusal(0))
    await monitor.consume(EVENT, slow, durable="long", ack_wait_s=0.6)
    await eventually(lambda: ended == 1)
    async with asyncio.timeout(10):  # the acknowledgement follows the handler's end
        while await ack_pending(router, "long"):
            await asyncio.sleep(0.01)
    info = await router.connection.js.consumer_info("EVENTS", "long")
    assert (begun, info.num_redelivered) == (1, 0)


async def test_what_a_killed_consumer_held_comes_again_after_its_ack_wait(world: World) -> None:
    router = await world.service(ServiceName.ROUTER)
    first, second = await world.service(ServiceName.MONITOR, "1"), await world.service(ServiceName.MONITOR, "2")
    held, done = asyncio.Event(), asyncio.Event()

    async def hold(_: Refusal, __: Context) -> None:
        held.set()
        await asyncio.sleep(60)

    async def take(_: Refusal, __: Context) -> None:
        done.set()

    await router.event(EVENT_REFUSAL, refusal(0))
    await first.consume(EVENT, hold, durable="killed", ack_wait_s=1.0)
    await held.wait()
    await (
        first.connection.client.close()
    )  # as kill -9 does: nothing is given back, and it is no longer kept alive
    begun_s = time.monotonic()
    await second.consume(EVENT, take, durable="killed", ack_wait_s=1.0)
    async with asyncio.timeout(10):
        await done.wait()
    assert time.monotonic() - begun_s > 0.3


async def test_more_publications_than_a_stream_takes_at_once_all_arrive(world: World) -> None:
    router = await world.service(ServiceName.ROUTER)
    made = [Sent(bytes(16), leaf_hash(data), data, 0) for data in (b"%d" % n for n in range(12_000))]
    await asyncio.gather(*(router.send(WHERE, one, stream="EVENTS") for one in made))
    state = (await router.connection.js.stream_info("EVENTS")).state
    assert state.messages == 12_000


@pytest.mark.parametrize("copied", [False, True], ids=["other bytes", "the same bytes elsewhere"])
async def test_a_guessed_id_swallows_no_message(world: World, copied: bool) -> None:
    """Whoever can publish on one subject of a stream could otherwise make the broker drop another's message."""
    router, enemy = await world.service(ServiceName.ROUTER), await world.service(ServiceName.CLI)
    reader = await world.agent(Role.ANALYST, "late")
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    alert = ThreatAlert(severity=Severity.CRITICAL, summary="burn")
    sent = await sentinel.make(THREAT_ALERT, alert, audience="all", priority=Priority.CRITICAL)
    data = sent.data if copied else b"garbage"
    await enemy.connection.js.publish(
        ALERT_BACKUP.at(severity="low"), data, headers={"Nats-Msg-Id": sent.leaf.hex()}
    )
    seen: list[bytes] = []

    async def take(_: ThreatAlert, context: Context) -> None:
        seen.append(context.data)

    await reader.consume(ALERT_BACKUP, take, durable="late")
    await router.send(ALERT_BACKUP.at(severity="critical"), sent, stream="ALERTS")
    await eventually(lambda: seen == [sent.data])
    assert router.metrics.counter("poisoned_ids") == 1


async def test_a_made_up_key_holds_up_what_is_read_in_order_only_for_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody with the broker's password can put such a message into a stream, and it would stay for a day."""
    monkeypatch.setattr(consumer, "UNKNOWN_KEY_S", 1.0)
    stranger = LocalKey.generate(world.backend, Algorithm.ML_DSA_44)
    router = await world.service(ServiceName.ROUTER)
    reader = await world.agent(Role.ANALYST, "late")
    sentinel = await world.agent(Role.SENTINEL, "sentinel-01")
    alert = ThreatAlert(severity=Severity.CRITICAL, summary="burn")
    sent = await sentinel.make(THREAT_ALERT, alert, audience="all", priority=Priority.CRITICAL)
    content = decode_envelope(sent.data, max_bytes=len(sent.data)).content_bytes
    (proof,) = sign_batch(stranger.signer, [content])
    where = ALERT_BACKUP.at(severity="critical")
    await router.connection.js.publish(where, encode_envelope(content, stranger.signer.key_id, proof))
    await router.connection.js.publish(where, sent.data)
    seen: list[bytes] = []

    async def take(_: ThreatAlert, context: Context) -> None:
        seen.append(context.data)

    await reader.consume(ALERT_BACKUP, take, durable="late", in_order=True, max_deliver=-1, ack_wait_s=2.0)
    await eventually(lambda: seen == [sent.data])
    assert reader.metrics.counter("rejected.unknown_key") >= 1


def test_no_configuration_sets_what_breaks_ordered_consumers() -> None:
    """``js_ack_fc_v2: true`` breaks the client's read loop, and buckets are followed by ordered consumers."""
    files = [*(ROOT / "deploy").glob("*"), *(ROOT / "libs" / "tocsin" / "bus").glob("*.py")]
    texts = [file.read_text() for file in files if file.is_file()]
    assert texts
    assert not any("js_ack_fc_v2" in text for text in texts)


async def test_a_first_connection_waits_for_the_socket_and_not_longer(world: World) -> None:
    """A refused first connection would cost the client two seconds."""
    port = world.broker.port
    world.broker.kill()
    waiting = asyncio.create_task(wait_for_socket(f"nats://127.0.0.1:{port}", timeout_s=10))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    world.broker = Broker.start(world.folder / "broker", port=port)
    begun_s = time.monotonic()
    await waiting
    assert time.monotonic() - begun_s < 1
