"""The demo's watcher over a real broker: what it is told can come in another order than it happened."""

from __future__ import annotations

from council import OPTIONS, proposal_body
from support import World, eventually

from tocsin.cli.job import Job
from tocsin.cli.story import Case
from tocsin.contracts.catalogue import CONSENSUS_PROPOSAL, DELIVER_ALL, EVENT_DELIVERY, THREAT_ALERT
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity
from tocsin.contracts.response import Action, Command, ResponseOrder
from tocsin.contracts.routing import Delivery, ThreatAlert


async def test_an_account_that_overtakes_its_order_is_kept_for_it(world: World) -> None:
    """Emergencies are verified in a lane of their own, so either can be first."""
    router, admin = await world.service(ServiceName.ROUTER), await world.agent(Role.ADMIN, "admin-01")
    cli = await world.service(ServiceName.CLI)
    job = Job(cli, guardians=0, tell=lambda _: None)
    case = job.story.cases.setdefault(bytes(16), Case(bytes(16)))
    case.decision_id = bytes(32)
    await job.watch()
    command = Command(action=Action.CONTAIN, address="10.0.0.1", duration_s=60)
    order = ResponseOrder(decision=bytes(32), certificate=bytes(32), command=command)
    alert = ThreatAlert(severity=Severity.CRITICAL, summary="now", order=order)
    sent = await admin.make(THREAT_ALERT, alert, audience="all", priority=Priority.CRITICAL)
    account = Delivery(
        message=sent.id,
        leaf=sent.leaf,
        due=1,
        delivered=1,
        by_core=1,
        by_stream=0,
        undelivered=(),
        first_ms=1.0,
        last_ms=1.0,
        complete=True,
    )
    await router.event(EVENT_DELIVERY, account)
    await eventually(lambda: job._early_deliveries == {sent.leaf: account})
    await router.send(DELIVER_ALL.at(), sent)
    await eventually(lambda: case.delivery == account)
    assert job._early_deliveries == {}


async def test_an_order_that_overtakes_its_proposal_is_kept_for_it(world: World) -> None:
    router, admin = await world.service(ServiceName.ROUTER), await world.agent(Role.ADMIN, "admin-01")
    cli = await world.service(ServiceName.CLI)
    job = Job(cli, guardians=0, tell=lambda _: None)
    await job.watch()
    proposal = await admin.make(CONSENSUS_PROPOSAL, proposal_body(bytes(32)), audience="all")
    command = OPTIONS[0].command
    assert command is not None
    order = ResponseOrder(decision=proposal.leaf, certificate=bytes(32), command=command)
    alert = ThreatAlert(severity=Severity.CRITICAL, summary="now", order=order)
    sent = await admin.make(THREAT_ALERT, alert, audience="all", priority=Priority.CRITICAL)
    await router.send(DELIVER_ALL.at(), sent)
    await eventually(lambda: list(job._early) == [proposal.leaf])
    await router.send(DELIVER_ALL.at(), proposal)
    await eventually(lambda: [case.order_leaf for case in job.story.cases.values()] == [sent.leaf])
    assert job._early == {}
