"""The guardian: carries out what was decided, on a certificate that it verified itself.

It acts on one thing only: a CRITICAL alert of an admin with an order. Before its actuator is asked,

1. the decision was not acted on before, by a record that survives a restart;
2. the certificate's SHA-256 is the one that the order names;
3. the certificate verifies with this host's trust root alone;
4. it is the certificate of this decision, and what was decided is the order's command.

Whatever fails, it does nothing and says so: event ``agent.actuation``, outcome REFUSED, with the reason. A
refusal is not recorded, so that the true order still counts after a false one.

The record is written *before* the actuator is asked: a guardian that dies in between does not act twice, and
may not have acted at all. An order counts as handled, for the host, once it is on record: a guardian that dies
before that gets it again. The actuator's work holds up no further alert. It remembers the last MAX_ACTED
decisions. Does not protect against the order of an old decision that this guardian never saw, nor against a
revoked key (a list of revocations is to come).
"""

from __future__ import annotations

import asyncio
from hashlib import sha256

from tocsin.agent.actuators import Actuator, DryRunActuator, VerifiedOrder
from tocsin.agent.agent import Agent
from tocsin.agent.roles.memory import Memory
from tocsin.agent.roles.patience import patiently
from tocsin.bus import Context
from tocsin.contracts.catalogue import EVENT_ACTUATION
from tocsin.contracts.errors import (
    ConflictError,
    DeniedError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.identifiers import Role, Severity
from tocsin.contracts.response import Actuation, ActuationOutcome, ResponseOrder
from tocsin.contracts.routing import ThreatAlert
from tocsin.evidence.journal import Journal
from tocsin.evidence.verification import VerifiedDecision, verify
from tocsin.telemetry import get_logger

FETCH_WITHIN_S = 5.0
"""How long the certificate is looked for: it is stored before the decision is announced."""
REPORT_WITHIN_S = 30.0
MAX_ACTED = 65_536

log = get_logger(__name__)


class Guardian(Agent):
    """Carries out orders."""

    role = Role.GUARDIAN

    def __init__(self, name: str, *, actuator: Actuator | None = None) -> None:
        super().__init__(name)
        self._chosen = actuator
        self._acted: Memory[bytes, None] = Memory(MAX_ACTED)
        self._record: Journal | None = None
        # One order at a time: what is acted on is decided and recorded without another in between; and so is the work.
        self._claiming = asyncio.Lock()
        self._acting = asyncio.Lock()

    @property
    def actuator(self) -> Actuator:
        """The actuator; by default the dry run, into the host's state folder."""
        return self._chosen or DryRunActuator(self.host.state_dir / "actuations.jsonl")

    async def started(self) -> None:
        """Read what was acted on before.

        Raises:
            InvariantBrokenError: ``damaged_log``: who cannot know what it did must not act.
        """
        self._record = await asyncio.to_thread(Journal, self.host.state_dir / f"{self.name}.acted.log")
        for _, decision in self._record.entries():
            self._acted.keep(decision, None)

    async def stopping(self) -> None:
        """Finish what is being done, and close the record."""
        await asyncio.sleep(0)  # what was claimed a moment ago begins
        async with self._claiming, self._acting:
            if self._record is not None:
                self._record.close()
                self._record = None

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        """Claim an order, and see to it that it is carried out."""
        order = alert.order
        if alert.severity is not Severity.CRITICAL or order is None or order.decision in self._acted:
            return
        try:
            async with self._claiming:
                decided = await self._claimed(order, context)
        except TocsinError as error:
            self.host.spawn(self._refuse(order, error), f"refusal of {self.name}")
        else:
            self.host.spawn(self._obey(order, decided), f"order for {self.name}")

    async def _claimed(self, order: ResponseOrder, context: Context) -> VerifiedDecision:
        if context.sender.role is not Role.ADMIN:
            raise DeniedError(f"{context.sender} orders nothing", reason="not_an_admin")
        decided = await self._verified(order)
        await self._claim(order.decision)
        return decided

    async def _obey(self, order: ResponseOrder, decided: VerifiedDecision) -> None:
        try:
            async with self._acting:
                carried = await self.actuator.carry_out(
                    VerifiedOrder(order.command, order.decision, self.name, self.host.now_ns())
                )
        except TocsinError as error:
            await self._refuse(order, error)
            return
        log.info("order_carried_out", agent=self.name, decision=order.decision.hex(), outcome=carried.outcome)
        await self._report(
            self._actuation(
                order, carried.outcome, carried.detail, ballots=decided.ballots_verified, quorum=decided.quorum
            )
        )

    async def _refuse(self, order: ResponseOrder, error: TocsinError) -> None:
        log.warning("order_refused", agent=self.name, decision=order.decision.hex(), reason=error.reason)
        detail = f"{error.reason}: {error}"
        await self._report(self._actuation(order, ActuationOutcome.REFUSED, detail, ballots=0, quorum=0))

    async def _verified(self, order: ResponseOrder) -> VerifiedDecision:
        """Return what the certificate proves, if it proves this very order."""

        async def attempt() -> bytes:
            return await self.host.certificate(order.decision.hex())

        data = await patiently(attempt, within_s=FETCH_WITHIN_S)
        return await asyncio.to_thread(check, order, data, self.host.root_pem)

    async def _claim(self, decision: bytes) -> None:
        """Record that a decision is acted on, once."""
        if decision in self._acted:
            raise ConflictError("this decision was acted on", reason="already_acted")
        if self._record is None:
            raise UnavailableError("the record of what was done is not open", reason="no_record")
        await asyncio.to_thread(self._record.append, [decision])
        self._acted.keep(decision, None)

    def _actuation(
        self, order: ResponseOrder, outcome: ActuationOutcome, detail: str, *, ballots: int, quorum: int
    ) -> Actuation:
        return Actuation(
            decision=order.decision,
            command=order.command,
            actuator=self.actuator.name[:64],
            outcome=outcome,
            ballots_verified=ballots,
            quorum=quorum,
            detail=detail[:512],
            at_ns=self.host.now_ns(),
        )

    async def _report(self, actuation: Actuation) -> None:
        self.host.metrics.count(f"guardian.{actuation.outcome.value}")

        async def attempt() -> object:
            return await self.host.event(self, EVENT_ACTUATION, actuation)

        try:
            await patiently(attempt, within_s=REPORT_WITHIN_S)
        except TocsinError:
            self.host.metrics.count("guardian.reports_lost")
            log.exception("actuation_unreported", agent=self.name, decision=actuation.decision.hex())


def check(order: ResponseOrder, data: bytes, root_pem: bytes) -> VerifiedDecision:
    """Verify that a certificate permits an order. CPU-bound: a signature for each batch of ballots.

    Args:
        order: What is to be done.
        data: The certificate's bytes.
        root_pem: The trust root's certificate.

    Raises:
        UntrustedError: ``wrong_certificate``, ``wrong_decision``, ``wrong_command``, or the verification's.
        InvalidInputError: the verification's.
    """
    if sha256(data).digest() != order.certificate:
        raise UntrustedError("the certificate is not the one that was ordered on", reason="wrong_certificate")
    decided = verify(data, root_pem)
    if decided.decision != order.decision:
        raise UntrustedError("the certificate is of another decision", reason="wrong_decision")
    if decided.command != order.command:
        raise UntrustedError("what was decided is not what is ordered", reason="wrong_command")
    return decided
