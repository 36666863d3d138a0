"""`tocsin alert send`: an emergency raised by hand, accepted, delivered, and accounted for agent by agent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from fleet_support import FleetWorld, Recorder, tokens_for
from support import World, eventually

from tocsin.bus import Bus
from tocsin.cli.alert import as_json, as_text, raise_alert
from tocsin.contracts.errors import DeniedError, UnavailableError
from tocsin.contracts.identifiers import Role, ServiceName, Severity
from tocsin.contracts.response import Action, Command, ResponseOrder
from tocsin.contracts.routing import ThreatAlert
from tocsin.router.service import RouterService
from tocsin.router.settings import RouterSettings

HERE = [("hunter-01", Role.HUNTER), ("guardian-01", Role.GUARDIAN)]
AWAY = [("hunter-02", Role.HUNTER)]
BURN = ThreatAlert(severity=Severity.CRITICAL, summary="burn", deadline_s=1.0)


@asynccontextmanager
async def system(world: World, stack: AsyncExitStack) -> AsyncIterator[tuple[FleetWorld, Bus]]:
    """Run fleet, a router, one host that is there and one that has enrolled and left."""
    async with FleetWorld(world, [*tokens_for("h1", HERE), *tokens_for("h2", AWAY)], world.folder) as fleet:
        await fleet.start_fleet()
        quick: dict[str, Any] = {"retry_first_s": 0.05, "retry_max_s": 0.1, "standby_grace_s": 0.3}
        router = RouterService(
            await fleet.router(), RouterSettings(**{**world.settings().model_dump(), **quick})
        )
        await router.start()
        stack.push_async_callback(router.stop)
        await fleet.start_host("h1", HERE)
        async with fleet.make_host("h2", AWAY):
            pass
        await eventually(lambda: len(list(router.roster.agents)) == 3)
        yield fleet, await world.service(ServiceName.CLI)


async def test_an_emergency_is_accounted_for_agent_by_agent(world: World) -> None:
    async with AsyncExitStack() as stack, system(world, stack) as (fleet, cli):
        missed = await raise_alert(cli, BURN, "all", wait=True)
        assert missed.account is not None
        assert missed.account.undelivered == ("hunter-02",)
        shown = json.loads(as_json(missed))
        assert (shown["due"], shown["delivered"], shown["complete"]) == (3, 2, False)
        assert {one["agent"]: one["host"] for one in shown["agents"]} == {
            "guardian-01": "h1",
            "hunter-01": "h1",
        }
        assert {one["channel"] for one in shown["agents"]} <= {"core", "stream"}
        assert shown["agents_per_s"] > 0
        assert "undelivered 1: hunter-02" in as_text(missed)
        back = await fleet.start_host("h2", AWAY)
        hunter = back.agents["hunter-02"]
        assert isinstance(hunter, Recorder)
        await eventually(lambda: [alert.summary for alert, _ in hunter.alerts] == ["burn"])
        whole = await raise_alert(cli, BURN, "role.hunter", wait=True)
        assert whole.account is not None
        assert whole.account.complete
        assert whole.account.due == 2
        nobody = await raise_alert(cli, BURN, "role.canary", wait=True)
        assert "undelivered: nobody was due" in as_text(nobody)


async def test_a_person_cannot_order_and_is_told_so(world: World) -> None:
    async with AsyncExitStack() as stack, system(world, stack) as (_, cli):
        command = Command(action=Action.DENY, address="203.0.113.7", duration_s=60)
        order = ResponseOrder(decision=bytes(32), certificate=bytes(32), command=command)
        with pytest.raises(DeniedError) as caught:
            await raise_alert(cli, BURN.model_copy(update={"order": order}), "all", wait=False)
        assert caught.value.reason == "order_not_allowed"


async def test_without_a_router_the_sender_is_told(world: World) -> None:
    cli = await world.service(ServiceName.CLI)
    with pytest.raises(UnavailableError) as caught:
        await raise_alert(cli, BURN.model_copy(update={"deadline_s": 0.3}), "all", wait=True)
    assert caught.value.reason == "no_answer"


async def test_what_is_less_than_critical_is_sent_and_not_confirmed(world: World) -> None:
    cli = await world.service(ServiceName.CLI)
    raised = await raise_alert(cli, ThreatAlert(severity=Severity.HIGH, summary="smoke"), "all", wait=False)
    assert raised.accepted_ms is None
    assert "only critical alerts are confirmed" in as_text(raised)[0]
