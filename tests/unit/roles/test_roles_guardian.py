"""The guardian against true, false and forged orders, with certificates that are really signed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from council import DENY, Council
from support import eventually

from tocsin.agent.actuators import Actuator, Carried, VerifiedOrder
from tocsin.agent.agent import HostView
from tocsin.agent.protected import parse_networks
from tocsin.agent.roles import guardian as module
from tocsin.agent.roles.guardian import Guardian, check
from tocsin.agent.roles.ledger import NS_PER_S
from tocsin.bus import Context
from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvariantBrokenError, TocsinError, UnavailableError
from tocsin.contracts.identifiers import Role, Severity, SpiffeId
from tocsin.contracts.response import Actuation, ActuationOutcome, Command, ResponseOrder
from tocsin.contracts.routing import ThreatAlert
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.journal import Journal
from tocsin.evidence.verification import verify
from tocsin.telemetry import Metrics


@pytest.fixture(scope="module")
def council() -> Council:
    return Council()


@dataclass
class Decided:
    """A decision and its certificate."""

    decision: bytes
    data: bytes

    @classmethod
    def by(cls, council: Council, option: int = 0) -> Decided:
        data = council.certificate(option).encode()
        return cls(verify(data, council.root.certificate_pem).decision, data)

    def order(self, **changes: Any) -> ResponseOrder:
        order = ResponseOrder(decision=self.decision, certificate=sha256(self.data).digest(), command=DENY)
        return order.model_copy(update=changes)


@pytest.fixture(scope="module")
def decided(council: Council) -> Decided:
    return Decided.by(council)


@dataclass
class Desk:
    """The part of a host that a guardian uses, with a shelf of certificates in place of the broker's."""

    state_dir: Path
    root_pem: bytes
    certificates: dict[str, bytes]
    metrics: Metrics = field(default_factory=Metrics)
    events: list[Actuation] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    standing: list[asyncio.Task[None]] = field(default_factory=list)
    """The guardian's clock: it runs as long as the host."""
    at_ns: int = 5
    epochs: dict[bytes, InstalledEpoch] = field(default_factory=dict)

    def now_ns(self) -> int:
        return self.at_ns

    async def certificate(self, decision_hex: str) -> bytes:
        try:
            return self.certificates[decision_hex]
        except KeyError:
            raise UnavailableError("not there", reason="no_object") from None

    async def event(self, _agent: object, _kind: object, body: Message) -> None:
        assert isinstance(body, Actuation)
        self.events.append(body)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        tasks = self.standing if name.startswith("guardian ") else self.tasks
        tasks.append(asyncio.create_task(work, name=name))

    async def settled(self) -> list[Actuation]:
        await asyncio.gather(*self.tasks)
        return self.events


def sender(role: Role) -> Context:
    return cast("Context", SimpleNamespace(sender=SpiffeId.agent("council.tocsin", role, "somebody")))


ADMIN = sender(Role.ADMIN)


def alert(order: ResponseOrder, severity: Severity = Severity.CRITICAL) -> ThreatAlert:
    return ThreatAlert(severity=severity, summary="Decided", order=order)


@asynccontextmanager
async def guardian_at(desk: Desk, actuator: Actuator | None = None) -> AsyncIterator[Guardian]:
    guardian = Guardian("guardian-01", actuator=actuator)
    guardian.host = cast("HostView", desk)
    await guardian.started()
    yield guardian
    await guardian.stopping()
    await asyncio.gather(*desk.standing)
    desk.standing.clear()


@pytest.fixture
def desk(tmp_path: Path, council: Council, decided: Decided) -> Desk:
    return Desk(tmp_path, council.root.certificate_pem, {decided.decision.hex(): decided.data})


async def test_a_true_order_is_written_down_once_and_reported(desk: Desk, decided: Decided) -> None:
    async with guardian_at(desk) as guardian:
        await asyncio.gather(*(guardian.on_alert(alert(decided.order()), ADMIN) for _ in range(3)))
        refused = ActuationOutcome.REFUSED
        (done, *others) = sorted(await desk.settled(), key=lambda one: one.outcome is refused)
        await guardian.on_alert(alert(decided.order()), ADMIN)
    assert (done.outcome, done.ballots_verified, done.quorum) == (ActuationOutcome.WOULD_DO, 5, 5)
    assert [(one.outcome, one.detail.split(":")[0]) for one in others] == [
        (ActuationOutcome.REFUSED, "already_acted")
    ] * 2
    (line,) = (desk.state_dir / "actuations.jsonl").read_text().splitlines()
    written = json.loads(line)
    assert written["command"] == DENY.openc2() | {"command_id": decided.decision.hex()[:32]}
    assert (written["decision"], written["guardian"]) == (decided.decision.hex(), "guardian-01")


async def test_after_a_restart_a_decision_is_not_acted_on_again(desk: Desk, decided: Decided) -> None:
    for _ in range(2):
        async with guardian_at(desk) as guardian:
            await guardian.on_alert(alert(decided.order()), ADMIN)
            await desk.settled()
    assert len(desk.events) == 1
    assert len((desk.state_dir / "actuations.jsonl").read_text().splitlines()) == 1


async def test_another_certificate_of_the_same_decision_permits_as_much(
    tmp_path: Path, council: Council
) -> None:
    """Two instances may have made one each, of different ballots; the store has the later one."""
    few, everyone = council.voters[:5], council.certificate(voters=council.voters)
    keys = council.public_keys([council.admin, *few, *council.services])
    ordered = replace(everyone, ballots=everyone.ballots[:5], keys=keys).encode()
    stored = everyone.encode()
    decision = verify(ordered, council.root.certificate_pem).decision
    desk = Desk(tmp_path, council.root.certificate_pem, {decision.hex(): stored})
    async with guardian_at(desk) as guardian:
        await guardian.on_alert(alert(Decided(decision, ordered).order()), ADMIN)
        (done,) = await desk.settled()
    assert (done.outcome, done.ballots_verified) == (ActuationOutcome.WOULD_DO, 7)


OTHER = Command(action=DENY.action, address="198.51.100.7", duration_s=60)


@pytest.mark.parametrize(
    ("changes", "who", "reason"),
    [
        ({"command": OTHER}, ADMIN, "wrong_command"),
        ({}, sender(Role.GUARDIAN), "not_an_admin"),
    ],
)
async def test_a_false_order_is_refused_and_the_true_one_still_counts(
    desk: Desk, decided: Decided, changes: dict[str, Any], who: Context, reason: str
) -> None:
    async with guardian_at(desk) as guardian:
        await guardian.on_alert(alert(decided.order(**changes)), who)
        (refused,) = await desk.settled()
        assert not (desk.state_dir / "actuations.jsonl").exists()
        await guardian.on_alert(alert(decided.order()), ADMIN)
        _, done = await desk.settled()
    assert (refused.outcome, refused.ballots_verified) == (ActuationOutcome.REFUSED, 0)
    assert refused.detail.startswith(f"{reason}: ")
    assert done.outcome is ActuationOutcome.WOULD_DO


class Slow:
    """An actuator that is not done yet."""

    name = "slow"
    acts = False
    by_address = False

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def apply(self, order: VerifiedOrder) -> Carried:
        await self.may_end.wait()
        return Carried(ActuationOutcome.WOULD_DO, order.command.address)

    async def undo(self, order: VerifiedOrder) -> Carried:
        return Carried(ActuationOutcome.DONE, order.command.address)

    async def query(self) -> frozenset[str] | None:
        return None


async def test_an_order_is_handled_once_it_is_claimed_while_the_actuator_still_works(
    desk: Desk, decided: Decided
) -> None:
    slow = Slow()
    async with guardian_at(desk, slow) as guardian:
        await asyncio.wait_for(guardian.on_alert(alert(decided.order()), ADMIN), 5)
        record = (desk.state_dir / "guardian-01.acted.log").read_bytes()
        assert decided.decision.hex().encode() in record, "who is killed now has it on record"
        assert not desk.events
        slow.may_end.set()
        (done,) = await desk.settled()
    assert done.outcome is ActuationOutcome.WOULD_DO


async def test_who_is_cancelled_before_the_claim_has_not_handled_the_order(
    desk: Desk, decided: Decided, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FETCH_WITHIN_S", 5)
    desk.certificates.clear()
    async with guardian_at(desk) as guardian:
        handling = asyncio.create_task(guardian.on_alert(alert(decided.order()), ADMIN))
        await asyncio.sleep(0.05)
        assert not handling.done(), "the host would mark it handled"
        for task in (handling, *desk.tasks):
            task.cancel()
        await asyncio.gather(handling, *desk.tasks, return_exceptions=True)


async def test_without_a_certificate_nothing_is_done(
    desk: Desk, decided: Decided, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FETCH_WITHIN_S", 0.2)
    desk.certificates.clear()
    async with guardian_at(desk) as guardian:
        await guardian.on_alert(alert(decided.order()), ADMIN)
        (refused,) = await desk.settled()
    assert refused.detail.startswith("no_object: ")


async def test_nothing_but_a_critical_order_is_looked_at(desk: Desk, decided: Decided) -> None:
    async with guardian_at(desk) as guardian:
        await guardian.on_alert(alert(decided.order(), Severity.HIGH), ADMIN)
        await guardian.on_alert(ThreatAlert(severity=Severity.CRITICAL, summary="no order"), ADMIN)
    assert not desk.tasks


class Machine:
    """An actuator that does things, in a set, and fails where it is told to."""

    name = "machine"
    acts = True
    by_address = False

    def __init__(self, *, fails: str = "", undo_fails: int = 0) -> None:
        self.in_force: set[str] = set()
        self.asked: list[str] = []
        self.fails = fails
        self.undo_fails = undo_fails

    async def apply(self, order: VerifiedOrder) -> Carried:
        self.asked.append(f"apply {order.command.duration_s}")
        self.in_force.add(order.command_id)
        if self.fails:
            raise UnavailableError("half of it is done", reason=self.fails)
        return Carried(ActuationOutcome.DONE, "done")

    async def undo(self, order: VerifiedOrder) -> Carried:
        self.asked.append("undo")
        if self.undo_fails:
            self.undo_fails -= 1
            raise UnavailableError("not now", reason="actuator_gone")
        self.in_force.discard(order.command_id)
        return Carried(ActuationOutcome.DONE, "undone")

    async def query(self) -> frozenset[str] | None:
        return frozenset(self.in_force)


def outcomes(desk: Desk) -> list[str]:
    return [one.outcome.value for one in desk.events]


async def test_what_an_actuator_does_half_is_undone_and_both_are_said(desk: Desk, decided: Decided) -> None:
    machine = Machine(fails="actuator_failed")
    async with guardian_at(desk, machine) as guardian:
        await guardian.on_alert(alert(decided.order()), ADMIN)
        await desk.settled()
        await guardian.on_alert(alert(decided.order()), ADMIN)
    assert outcomes(desk) == ["failed", "undone"]
    assert desk.events[0].detail == "actuator_failed: half of it is done"
    assert (machine.asked, machine.in_force) == (["apply 3600", "undo"], set())


async def test_what_cannot_be_undone_is_said_once_and_tried_again(desk: Desk, decided: Decided) -> None:
    machine = Machine(fails="actuator_failed", undo_fails=2)
    async with guardian_at(desk, machine) as guardian:
        await guardian.on_alert(alert(decided.order()), ADMIN)
        await desk.settled()
        assert outcomes(desk) == ["failed", "stuck"]
        for _ in range(2):
            desk.at_ns += 3 * NS_PER_S
            guardian._changed.set()
            await asyncio.sleep(0.05)
        await eventually(lambda: len(desk.events) == 3)
    assert outcomes(desk) == ["failed", "stuck", "undone"]


async def test_what_can_never_be_undone_is_given_up(
    desk: Desk, decided: Decided, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNDO_TRIES", 1)
    async with guardian_at(desk, Machine(fails="actuator_failed", undo_fails=99)) as guardian:
        await guardian.on_alert(alert(decided.order()), ADMIN)
        await desk.settled()
        assert guardian._ledger is not None
        assert not guardian._ledger.book.open
    assert outcomes(desk) == ["failed", "stuck"]


@pytest.mark.parametrize("restarted", [False, True])
async def test_when_its_time_is_over_it_is_undone(desk: Desk, decided: Decided, *, restarted: bool) -> None:
    machine = Machine()
    async with guardian_at(desk, machine) as guardian:
        await guardian.on_alert(alert(decided.order()), ADMIN)
        await desk.settled()
        desk.at_ns += (DENY.duration_s - 1) * NS_PER_S
        guardian._changed.set()
        await asyncio.sleep(0.05)
        assert outcomes(desk) == ["done"]
        if not restarted:
            desk.at_ns += 2 * NS_PER_S
            guardian._changed.set()
            await eventually(lambda: len(desk.events) == 2)
    if restarted:
        desk.at_ns += 2 * NS_PER_S
        async with guardian_at(desk, machine):
            await eventually(lambda: len(desk.events) == 2)
    assert outcomes(desk) == ["done", "undone"]
    assert not machine.in_force


async def test_who_is_killed_between_claim_and_deed_does_it_when_it_is_back(
    desk: Desk, decided: Decided
) -> None:
    slow = Slow()
    async with guardian_at(desk, slow) as guardian:
        await guardian.on_alert(alert(decided.order()), ADMIN)
        for task in desk.tasks:
            task.cancel()
        await asyncio.gather(*desk.tasks, return_exceptions=True)
    desk.tasks.clear()
    desk.at_ns += 600 * NS_PER_S
    machine = Machine()
    async with guardian_at(desk, machine) as guardian:
        await eventually(lambda: len(desk.events) == 1)
        await guardian.on_alert(alert(decided.order()), ADMIN)
        await desk.settled()
    assert machine.asked == ["apply 3000"], "for what is left of its time, and once"
    assert (desk.events[0].ballots_verified, desk.events[0].quorum) == (5, 5)


async def test_what_the_actuator_lost_is_put_in_force_again(desk: Desk, decided: Decided) -> None:
    machine = Machine()
    for _ in range(3):
        async with guardian_at(desk, machine) as guardian:
            await guardian.on_alert(alert(decided.order()), ADMIN)
            await desk.settled()
            await asyncio.sleep(0.05)
    assert machine.asked == ["apply 3600"]
    machine.in_force.clear()
    async with guardian_at(desk, machine):
        await eventually(lambda: bool(machine.in_force))


async def test_a_damaged_ledger_keeps_the_guardian_from_acting(desk: Desk) -> None:
    log = Journal(desk.state_dir / "guardian-01.acted.log")
    log.append([b"{}"])
    log.close()
    guardian = Guardian("guardian-01")
    guardian.host = cast("HostView", desk)
    with pytest.raises(InvariantBrokenError, match="what no guardian wrote"):
        await guardian.started()


async def test_decisions_of_an_earlier_version_are_not_acted_on_again(desk: Desk, decided: Decided) -> None:
    log = Journal(desk.state_dir / "guardian-01.acted.log")
    log.append([decided.decision])
    log.close()
    async with guardian_at(desk) as guardian:
        await guardian.on_alert(alert(decided.order()), ADMIN)
    assert not desk.tasks


async def test_an_old_decision_is_refused(desk: Desk, decided: Decided) -> None:
    desk.at_ns = time.time_ns() + 10 * 86_400 * NS_PER_S
    async with guardian_at(desk, Machine()) as guardian:
        await guardian.on_alert(alert(decided.order()), ADMIN)
        (refused,) = await desk.settled()
    assert refused.detail.startswith("decision_expired: ")


async def test_a_protected_address_is_refused_by_what_acts(desk: Desk, decided: Decided) -> None:
    machine = Machine()
    guardian = Guardian("guardian-01", actuator=machine, never_block=parse_networks(DENY.address))
    guardian.host = cast("HostView", desk)
    await guardian.started()
    await guardian.on_alert(alert(decided.order()), ADMIN)
    (refused,) = await desk.settled()
    await guardian.stopping()
    assert refused.detail.startswith("protected_address: ")
    assert (refused.outcome, machine.asked) == (ActuationOutcome.REFUSED, [])


def reason_of(order: ResponseOrder, data: bytes, root_pem: bytes) -> str:
    with pytest.raises(TocsinError) as caught:
        check(order, data, root_pem)
    return caught.value.reason


def test_a_certificate_proves_only_its_own_decision(council: Council, decided: Decided) -> None:
    root = council.root.certificate_pem
    nothing = Decided.by(council, option=1)
    assert check(decided.order(), decided.data, root).command == DENY
    assert reason_of(nothing.order(), nothing.data, root) == "wrong_command"
    of_another = decided.order(decision=bytes(32))
    assert reason_of(of_another, decided.data, root) == "wrong_decision"


def test_another_root_or_a_changed_byte_is_refused(council: Council, decided: Decided) -> None:
    assert reason_of(decided.order(), decided.data, Council(agents=3).root.certificate_pem) == "wrong_root"
    changed = bytearray(decided.data)
    changed[len(changed) // 2] ^= 1
    forged = Decided(decided.decision, bytes(changed))
    assert reason_of(forged.order(), forged.data, council.root.certificate_pem)
