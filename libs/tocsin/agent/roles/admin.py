"""The admin: from assessments and operators' wishes to decisions, and from decisions to orders.

An assessment that recommends a command becomes a proposal to all agents: do it, or observe. There is one
proposal for an incident and a command, ever; and none for a command that is being decided, or that was
decided and still lasts. When the agents have decided for a command, the one that was proposed or one that more than a
third of them put in its place, the admin sends the order with the certificate's digest to everyone; the certificate,
and not the admin, is what guardians believe.

An operator's wish (an alert with ``wish``, which only services may send) becomes a proposal in the same way. All admins
hear it; the one that owns it (rendezvous on its id) proposes at once, the next if no proposal has come after
TAKE_OVER_S, and so on: a dead admin delays a wish and does not lose it. Fleet's wish for the next epoch goes the
same way; what comes of it needs no order.

Does not survive a restart: a decision whose proposer is gone is not ordered by another admin (the certificate
remains, and can be ordered by hand).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tocsin.agent.agent import Agent, BallotChoice, InstalledEpoch, rendezvous
from tocsin.agent.roles.memory import Memory
from tocsin.agent.roles.patience import patiently
from tocsin.agent.support import commands
from tocsin.bus import Context, Sent
from tocsin.bus.envelope import encode_body
from tocsin.contracts.analysis import Assessment
from tocsin.contracts.catalogue import CONSENSUS_PROPOSAL, THREAT_ALERT
from tocsin.contracts.decisions import (
    DecisionAnnounced,
    EpochChange,
    MembershipWish,
    Option,
    Outcome,
    Proposal,
    QuestionWish,
)
from tocsin.contracts.errors import DeniedError, TocsinError, UnavailableError
from tocsin.contracts.identifiers import Kind, Priority, Role, Severity, SpiffeId
from tocsin.contracts.observations import Incident, Observations
from tocsin.contracts.response import Command, ResponseOrder, ResponseWish
from tocsin.contracts.routing import ThreatAlert
from tocsin.crypto import select_backend
from tocsin.evidence.choices import MAX_ROUNDS
from tocsin.evidence.succession import next_epoch
from tocsin.telemetry import get_logger

DEADLINE_MS = 10_000
"""Of one round of the decision."""
TAKE_OVER_S = 2.0
"""How long the next admin waits for the proposal of the one before it."""
EPOCH_WITHIN_S = 10.0
SEND_WITHIN_S = 30.0
CHANGE_NS = 120_000_000_000
"""How long at most a change of the epoch keeps others from being proposed, whatever its proposer says."""
MAX_PROPOSALS = 1024
NS_PER_S = 1_000_000_000

log = get_logger(__name__)

_Target = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asked for a response."""

    by: str
    alert: bytes
    """Id of the alert with the wish."""
    digest: bytes
    """SHA-256 of the alert's body."""


def proposal_of(
    assessment: Assessment, command: Command, epoch: bytes, *, deadline_ms: int = DEADLINE_MS
) -> Proposal:
    """Return the proposal to carry out ``command``: option 0 does it, option 1 does nothing.

    Args:
        assessment: Its evidence is repeated, and its body's SHA-256 named.
        command: What it recommends.
        epoch: Leaf hash of the epoch record.
        deadline_ms: Of a round.
    """
    return Proposal(
        epoch=epoch,
        workflow=assessment.workflow,
        subject=text_of(command),
        evidence=assessment.evidence,
        assessment=hashlib.sha256(encode_body(assessment)).digest(),
        options=options_of(command),
        deadline_ms=deadline_ms,
    )


def proposal_on_wish(
    wish: ResponseWish, asked: Asked, epoch: bytes, *, deadline_ms: int = DEADLINE_MS
) -> Proposal:
    """Return the proposal that an operator asked for; its workflow is the id of the operator's alert.

    Args:
        wish: What is asked for.
        asked: Who asked, and by which alert.
        epoch: Leaf hash of the epoch record.
        deadline_ms: Of a round.
    """
    return Proposal(
        epoch=epoch,
        workflow=asked.alert,
        subject=text_of(wish.command),
        evidence=(f"asked for by {asked.by}: {wish.reason}"[:512],),
        assessment=asked.digest,
        options=options_of(wish.command),
        deadline_ms=deadline_ms,
    )


def proposal_of_epoch(
    change: EpochChange, epoch: InstalledEpoch, *, deadline_ms: int = DEADLINE_MS
) -> Proposal:
    """Return the proposal to make the next epoch: option 0 installs it, option 1 keeps this one.

    Args:
        change: What fleet wishes for.
        epoch: The one that it changes.
        deadline_ms: Of a round.

    Raises:
        TocsinError: the change breaks a rule of :mod:`tocsin.evidence.succession`.
    """
    # The record does not depend on the decision's id, which is known only once the proposal is signed.
    after = next_epoch(epoch, change, bytes(32), select_backend())
    what = f"epoch {change.number}: {len(change.joined)} seats come, {len(change.removed)} go"
    return Proposal(
        epoch=epoch.digest,
        workflow=after.digest[:16],
        subject=what,
        evidence=(),
        assessment=after.digest,
        options=(
            Option(name="install", command=None, text=what, epoch=after.digest),
            Option(name="keep", command=None, text=f"go on in epoch {epoch.epoch.number}"),
        ),
        deadline_ms=deadline_ms,
        change=change,
    )


def proposal_on_question(wish: QuestionWish, asked: Asked, epoch: bytes) -> Proposal:
    """Return the proposal of an operator's question; its workflow is the id of the operator's alert.

    Args:
        wish: What is asked.
        asked: Who asked, and by which alert.
        epoch: Leaf hash of the epoch record.
    """
    return Proposal(
        epoch=epoch,
        workflow=asked.alert,
        subject=wish.subject,
        evidence=(f"asked for by {asked.by}", *wish.evidence),
        assessment=asked.digest,
        options=wish.options,
        deadline_ms=wish.deadline_ms,
        rounds=wish.rounds,
        scope=wish.scope,
    )


def text_of(command: Command) -> str:
    """Return a command in words."""
    seconds = command.duration_s
    lasts = f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"
    return f"{command.action.value} {command.address} for {lasts}"


def options_of(command: Command) -> tuple[Option, Option]:
    """Return what is voted on: option 0 carries the command out, option 1 does nothing."""
    return (
        Option(name=command.action.value, command=command, text=text_of(command)),
        Option(name="observe", command=None, text=f"do nothing about {command.address}, and watch it"),
    )


def turn_of(name: str, wish: bytes, admins: Sequence[str]) -> int:
    """Return how many admins come before this one for a wish; all who know the same names agree."""
    left = list(admins)
    for turn in range(len(left)):
        first = rendezvous(wish, left)
        if first == name:
            return turn
        left.remove(first)
    return len(admins)


class Docket:
    """Which commands were proposed, are being decided, or are in force. Pure: the time is passed in."""

    def __init__(self) -> None:
        self._proposed: Memory[tuple[bytes, _Target], None] = Memory(MAX_PROPOSALS)
        self._until_ns: Memory[_Target, int] = Memory(MAX_PROPOSALS)

    def open(self, incident: bytes, command: Command, *, now_ns: int, deadline_ms: int) -> str | None:
        """Enter a proposal; return None, or why there must be none."""
        target = _target(command)
        if (incident, target) in self._proposed:
            return "already_proposed"
        if now_ns < (self._until_ns.get(target) or 0):
            return "pending_or_in_force"
        self._proposed.keep((incident, target), None)
        self._until_ns.keep(target, now_ns + MAX_ROUNDS * deadline_ms * 1_000_000)
        return None

    def withdraw(self, incident: bytes, command: Command) -> None:
        """Forget a proposal that was never sent."""
        self._proposed.take((incident, _target(command)))
        self._until_ns.take(_target(command))

    def ended(self, proposed: Command, decided: Command | None, *, now_ns: int) -> None:
        """Note the end: what was decided is in force for its duration; what was not may be proposed again."""
        self._until_ns.take(_target(proposed))
        if decided is not None:
            self._until_ns.keep(_target(decided), now_ns + decided.duration_s * NS_PER_S)


def _sits(admin: SpiffeId, name: str, epoch: InstalledEpoch) -> bool:
    """Tell whether another admin has a seat."""
    return str(SpiffeId.agent(admin.domain, Role.ADMIN, name)) in epoch.seats


def _target(command: Command) -> _Target:
    return (command.action.value, command.address)


class Admin(Agent):
    """Proposes responses, and orders what was decided."""

    role = Role.ADMIN

    def __init__(self, name: str, *, deadline_ms: int = DEADLINE_MS) -> None:
        super().__init__(name)
        self._deadline_ms = deadline_ms
        self._docket = Docket()
        self._sent: Memory[bytes, Command] = Memory(MAX_PROPOSALS)
        """What was proposed, by decision."""
        self._early: Memory[bytes, DecisionAnnounced] = Memory(MAX_PROPOSALS)
        """Outcomes of others' proposals, and of ours that were decided before we knew their id."""
        self._proposed: Memory[bytes, None] = Memory(MAX_PROPOSALS)
        """Workflows and wishes that somebody has proposed on."""
        self._changes: Memory[bytes, int] = Memory(MAX_PROPOSALS)
        """Changes of the epoch that are being decided, and when that ends at the latest."""

    async def on_task(self, content: Observations | Incident | Assessment, context: Context) -> None:
        """Propose what an analyst's assessment recommends."""
        if not isinstance(content, Assessment):
            return
        if context.sender.role is not Role.ANALYST:
            raise DeniedError(f"{context.sender} hands over no assessments", reason="not_an_analyst")
        about = {"agent": self.name, "incident": content.incident.hex(), "subject": content.subject}
        command = content.recommended
        if command is None:
            log.info("nothing_recommended", verdict=content.verdict.value, **about)
            return
        if self._enter(content.incident, command, about):
            make = partial(proposal_of, content, command, deadline_ms=self._deadline_ms)
            self.host.spawn(self._propose(content.incident, command, make, about), f"proposal of {self.name}")

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        """Propose what an operator asks for, when it is this admin's turn."""
        if alert.wish is None:
            return
        if context.sender.kind is not Kind.SERVICE:
            raise DeniedError(f"{context.sender} asks for nothing", reason="wish_not_allowed")
        digest = hashlib.sha256(encode_body(alert)).digest()
        asked = Asked(str(context.sender), context.content.id, digest)
        self.host.spawn(self._grant(alert.wish, asked), f"wish to {self.name}")

    async def on_membership(self, wish: MembershipWish, context: Context) -> None:  # noqa: ARG002 - the hook's signature
        """Propose the next epoch, when it is this admin's turn."""
        self.host.spawn(self._succeed(wish), f"membership to {self.name}")

    async def on_proposal(self, proposal: Proposal, context: Context) -> BallotChoice | None:
        """Note that an admin has proposed, and choose.

        Others name what workflow they like in their questions: that keeps nobody from proposing.
        """
        by_admin = context.sender.role is Role.ADMIN
        if by_admin:
            self._proposed.keep(proposal.workflow, None)
        if by_admin and proposal.change is not None:
            lasts_ns = min(MAX_ROUNDS * proposal.deadline_ms * 1_000_000, CHANGE_NS)
            self._changes.keep(context.leaf, context.content.issued_at + lasts_ns)
        return await super().on_proposal(proposal, context)

    async def on_decision(self, announced: DecisionAnnounced, context: Context) -> None:  # noqa: ARG002 - the hook's signature
        """Order what was decided on a proposal of ours."""
        self._changes.take(announced.decision)
        proposed = self._sent.take(announced.decision)
        if proposed is None:
            self._early.keep(announced.decision, announced)
            return
        self.host.spawn(self._conclude(proposed, announced), f"order of {self.name}")

    async def _grant(self, wish: ResponseWish | QuestionWish, asked: Asked) -> None:
        """Propose what was asked for, unless an admin before this one has by then."""
        about = {"agent": self.name, "wish": asked.alert.hex(), "by": asked.by}
        try:
            sitting = self._sitting(await self._epoch())
        except UnavailableError as error:
            log.info("not_proposed", reason=error.reason, **about)
            return
        if self.name not in sitting:
            # Its proposal would open nothing; nor does it hold up who has a seat.
            log.info("not_proposed", reason="no_seat", **about)
            return
        await asyncio.sleep(TAKE_OVER_S * turn_of(self.name, asked.alert, sitting))
        if asked.alert in self._proposed:
            return
        command = next(iter(commands(wish)), None)
        if command is not None and not self._enter(asked.alert, command, about):
            return
        if isinstance(wish, ResponseWish):
            make = partial(proposal_on_wish, wish, asked, deadline_ms=self._deadline_ms)
        else:
            make = partial(proposal_on_question, wish, asked)
        await self._propose(asked.alert, command, make, about)

    async def _succeed(self, wish: MembershipWish) -> None:
        """Propose what fleet wishes for, unless an admin before this one has by then."""
        epoch = self.host.epoch
        if epoch is None or epoch.digest != wish.previous:
            log.info("epoch_not_proposed", agent=self.name, reason="other_epoch")
            return
        try:
            proposal = await asyncio.to_thread(
                proposal_of_epoch, wish.change, epoch, deadline_ms=self._deadline_ms
            )
            sitting = self._sitting(epoch)
            if self.name not in sitting:
                return
            turn = turn_of(self.name, proposal.workflow, sitting)
            await asyncio.sleep(TAKE_OVER_S * turn)
            if proposal.workflow in self._proposed or self._is_changing():
                return
            sent = await self._send_proposal(lambda _: proposal)
        except TocsinError as error:
            self.host.metrics.count(f"admin.epochs_not_proposed.{error.reason}")
            log.warning("epoch_not_proposed", agent=self.name, reason=error.reason, detail=str(error))
            return
        self.host.metrics.count("admin.epochs_proposed")
        log.info("epoch_proposed", agent=self.name, decision=sent.leaf.hex(), number=wish.change.number)

    def _sitting(self, epoch: InstalledEpoch) -> list[str]:
        """Return the admins whose proposals count: those with a seat."""
        return [name for name in self.host.peers(Role.ADMIN) if _sits(self.id, name, epoch)]

    def _is_changing(self) -> bool:
        """Tell whether a change of the epoch is being decided: two at once would hinder one another."""
        now_ns = self.host.now_ns()
        return any(ends_ns > now_ns for ends_ns in self._changes.values())

    def _enter(self, case: bytes, command: Command, about: dict[str, str]) -> bool:
        """Enter a proposal into the docket; False, and said, if there must be none."""
        now_ns = self.host.now_ns()
        why_not = self._docket.open(case, command, now_ns=now_ns, deadline_ms=self._deadline_ms)
        if why_not is not None:
            log.info("not_proposed", reason=why_not, **about)
        return why_not is None

    async def _propose(
        self, case: bytes, command: Command | None, make: Callable[[bytes], Proposal], about: dict[str, str]
    ) -> None:
        try:
            sent = await self._send_proposal(make)
        except TocsinError as error:
            if command is not None:
                self._docket.withdraw(case, command)
            self.host.metrics.count("admin.proposals_lost")
            log.exception("proposal_lost", reason=error.reason, detail=str(error), **about)
            return
        self.host.metrics.count("admin.proposals")
        action = "none" if command is None else command.action.value
        log.info("proposed", decision=sent.leaf.hex(), action=action, **about)
        if command is None:
            return
        self._sent.keep(sent.leaf, command)
        if (early := self._early.take(sent.leaf)) is not None and self._sent.take(sent.leaf) is not None:
            await self._conclude(command, early)

    async def _send_proposal(self, make: Callable[[bytes], Proposal]) -> Sent:
        epoch = await self._epoch()
        proposal = make(epoch.digest)

        async def attempt() -> Sent:
            return await self.send(CONSENSUS_PROPOSAL, proposal, audience="all", priority=Priority.HIGH)

        return await patiently(attempt, within_s=SEND_WITHIN_S)

    async def _epoch(self) -> InstalledEpoch:
        async def attempt() -> InstalledEpoch:
            if self.host.epoch is None:
                raise UnavailableError("no epoch is installed: nobody can decide", reason="no_epoch")
            return self.host.epoch

        return await patiently(attempt, within_s=EPOCH_WITHIN_S)

    async def _conclude(self, proposed: Command, announced: DecisionAnnounced) -> None:
        """Order what was decided: the announcement's option is proven by the commit that it brings."""
        option = announced.option if announced.outcome is Outcome.DECIDED else None
        command = None if option is None else option.command
        self._docket.ended(proposed, command, now_ns=self.host.now_ns())
        if command is None or announced.certificate is None:
            about = {
                "agent": self.name,
                "decision": announced.decision.hex(),
                "outcome": announced.outcome.value,
            }
            log.info("nothing_to_order", option=option.name if option else "", why=announced.why, **about)
            return
        await self._order(announced.decision, announced.certificate, command)

    async def _order(self, decision: bytes, certificate: bytes, command: Command) -> None:
        order = ResponseOrder(decision=decision, certificate=certificate, command=command)
        what = text_of(command)
        alert = ThreatAlert(
            severity=Severity.CRITICAL,
            summary=f"Decided: {what} (decision {decision.hex()[:16]})",
            order=order,
        )

        async def attempt() -> Sent:
            return await self.send(THREAT_ALERT, alert, audience="all", priority=Priority.CRITICAL)

        try:
            await patiently(attempt, within_s=SEND_WITHIN_S)
        except TocsinError as error:
            self.host.metrics.count("admin.orders_lost")
            log.exception("order_lost", agent=self.name, decision=decision.hex(), reason=error.reason)
            return
        self.host.metrics.count("admin.orders")
        log.info("ordered", agent=self.name, decision=decision.hex(), command=what)
