"""Reading a stream of others' messages over a real broker."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from support import World, eventually

from tocsin.bus import reader as reading
from tocsin.contracts.catalogue import ALERT_BACKUP, THREAT_ALERT
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity
from tocsin.contracts.routing import ThreatAlert
from tocsin.contracts.subjects import ANY_AUDIENCE

BURN = ThreatAlert(severity=Severity.CRITICAL, summary="burn")
ALERTS = replace(ALERT_BACKUP, audience=ANY_AUDIENCE)


class _PurgedMeanwhile:
    """A subscription whose stream somebody purges right after it was said how much there is."""

    def __init__(self, subscription: Any, purge: Any) -> None:
        self._subscription = subscription
        self._purge = purge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._subscription, name)

    async def consumer_info(self) -> Any:
        info = await self._subscription.consumer_info()
        await self._purge()
        return info


async def test_a_reading_ends_where_messages_were_removed_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentinel, router = await world.agent(Role.SENTINEL, "sentinel-01"), await world.service(ServiceName.ROUTER)
    began_ns = time.time_ns() - 10**9
    known = sentinel.credentials.key.signer.key_id
    await eventually(lambda: router.trust.identity(known) is not None)
    js = router.connection.client.jetstream()
    original = reading.StreamReader._drain

    async def drain(self: Any, subscription: Any) -> Any:
        purged: Any = _PurgedMeanwhile(subscription, lambda: js.purge_stream("ALERTS"))
        return await original(self, purged)

    where = ALERT_BACKUP.at(severity="critical")
    alerts = [
        await sentinel.make(THREAT_ALERT, BURN, audience="all", priority=Priority.CRITICAL) for _ in range(80)
    ]
    one = router.reader(ALERTS, start_ns=began_ns)
    await router.send(where, alerts[0], stream="ALERTS")
    with monkeypatch.context() as patched:
        patched.setattr(reading, "READ_TIMEOUT_S", 0.3)
        patched.setattr(reading.StreamReader, "_drain", drain)
        assert await asyncio.wait_for(one.read(), 3) == []
    for alert in alerts[1:]:
        await router.send(where, alert, stream="ALERTS")
    read = await one.read()
    assert [stored.context.data for stored in read] == [alert.data for alert in alerts[1:]]
