"""The guardian: carries out what was decided, on a certificate that it verified itself, and ends it in time.

It acts on one thing only: a CRITICAL alert of an admin with an order. Before its actuator is asked,

1. the decision was not acted on before, by a ledger that survives a restart;
2. the certificate's SHA-256 is the one that the order names;
3. the certificate verifies with this host's trust root alone;
4. it is the certificate of this decision, and what was decided is the order's command;
5. the decision is not so old that its time would be over, had it been carried out at once;
6. the address is none that is protected (:mod:`tocsin.agent.protected`), if the actuator acts at all.

Whatever fails, it does nothing and says so: event ``agent.actuation``, outcome REFUSED, with the reason. A
refusal is not recorded, so that the true order still counts after a false one.

The ledger is written *before* the actuator is asked. An order counts as handled, for the host, once it is on record: a
guardian that dies before that gets it again. One that dies later asks its actuator again when it is back: actuators act
once for a decision. Meanwhile the work holds up no further alert.

What an actuator did not finish is undone, and both are reported (FAILED, then UNDONE). When a command's duration is
over it is undone (UNDONE), also by the guardian's next process. What cannot be undone is reported once (STUCK), tried
again with pauses up to a minute, and given up after UNDO_TRIES. After a restart, what the actuator has lost is put in
force again for the rest of its time.

It remembers the last 65,536 decisions. Does not end a command before its time, and does not undo what was done on the
word of a key that was revoked since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

from tocsin.agent.actuators import Actuator, VerifiedOrder
from tocsin.agent.actuators.dry_run import DryRunActuator
from tocsin.agent.agent import Agent
from tocsin.agent.openc2 import command_id_of
from tocsin.agent.protected import Network, protected
from tocsin.agent.roles.ledger import NS_PER_S, Entry, Ledger, Step
from tocsin.agent.roles.memory import Memory
from tocsin.agent.roles.patience import patiently
from tocsin.bus import Context
from tocsin.contracts.catalogue import EVENT_ACTUATION
from tocsin.contracts.errors import DeniedError, TocsinError, UnavailableError, UntrustedError
from tocsin.contracts.identifiers import Role, Severity
from tocsin.contracts.response import Actuation, ActuationOutcome, ResponseOrder
from tocsin.contracts.routing import ThreatAlert
from tocsin.evidence.choices import MAX_ROUNDS
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.verification import NOTHING_BELIEVED, VerifiedDecision, verify
from tocsin.telemetry import get_logger

FETCH_WITHIN_S = 5.0
"""How long the certificate is looked for: it is stored before the decision is announced."""
REPORT_WITHIN_S = 30.0
UNDO_TRIES = 20
"""With pauses that double from 1 s to 60 s: a quarter of an hour."""
LOOK_S = 60.0
"""Longest time without a look at the ledger: clocks are set."""
MAX_TRIED = 4096

log = get_logger(__name__)


class Guardian(Agent):
    """Carries out orders.

    Args:
        actuator: What carries them out; by default the dry run, into the host's state folder.
        never_block: Networks that are protected beside those that always are.
        broker_url: Where the broker is: protected, too.
    """

    role = Role.GUARDIAN

    def __init__(
        self,
        name: str,
        *,
        actuator: Actuator | None = None,
        never_block: Iterable[Network] = (),
        broker_url: str = "",
    ) -> None:
        super().__init__(name)
        self._chosen = actuator
        self._never_block = tuple(never_block)
        self._broker_url = broker_url
        self._ledger: Ledger | None = None
        self._changed = asyncio.Event()
        self._undo_at: Memory[bytes, tuple[int, int]] = Memory(MAX_TRIED)
        """Undoings that failed: how often, and when to try again."""
        # One order at a time: what is acted on is decided and recorded without another in between; and so is the work.
        self._claiming = asyncio.Lock()
        self._acting = asyncio.Lock()

    @property
    def actuator(self) -> Actuator:
        """The actuator."""
        return self._chosen or DryRunActuator(self.host.state_dir / "actuations.jsonl")

    async def started(self) -> None:
        """Read what was acted on before, and go on with it.

        Raises:
            InvariantBrokenError: ``damaged_log``: who cannot know what it did must not act.
        """
        path = self.host.state_dir / f"{self.name}.acted.log"
        self._ledger = await asyncio.to_thread(Ledger, path)
        left = list(self._ledger.book.open.values())
        self.host.spawn(self._keep_time(left), f"guardian {self.name}")

    async def stopping(self) -> None:
        """Finish what is being done, and close the ledger; what is in force stays so."""
        await asyncio.sleep(0)  # what was claimed a moment ago begins
        async with self._claiming, self._acting:
            if self._ledger is not None:
                self._ledger.close()
                self._ledger = None
        self._changed.set()

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        """Claim an order, and see to it that it is carried out."""
        order = alert.order
        if alert.severity is not Severity.CRITICAL or order is None:
            return
        if self._ledger is not None and order.decision in self._ledger.book.acted:
            return
        try:
            async with self._claiming:
                entry = await self._claimed(order, context)
        except TocsinError as error:
            self.host.spawn(self._refuse(order, error), f"refusal of {self.name}")
        else:
            self.host.spawn(self._carry_out(entry), f"order for {self.name}")

    # --- Claiming ---------------------------------------------------------------------------------

    async def _claimed(self, order: ResponseOrder, context: Context) -> Entry:
        if context.sender.role is not Role.ADMIN:
            raise DeniedError(f"{context.sender} orders nothing", reason="not_an_admin")
        decided = await self._verified(order)
        check_time(decided, order, self.host.now_ns())
        await self._check_protected(order.command.address)
        ledger = self._opened()
        ledger.book.check_new(order.decision)
        entry = Entry(
            decision=order.decision,
            step=Step.CLAIMED,
            command=order.command,
            until_ns=self.host.now_ns() + order.command.duration_s * NS_PER_S,
            ballots=decided.ballots_verified,
            quorum=decided.quorum,
        )
        await ledger.write(entry)
        return entry

    async def _verified(self, order: ResponseOrder) -> VerifiedDecision:
        """Return what the certificate proves, if it proves this very order."""

        async def attempt() -> bytes:
            return await self.host.certificate(order.decision.hex())

        data = await patiently(attempt, within_s=FETCH_WITHIN_S)
        return await asyncio.to_thread(check, order, data, self.host.root_pem, self.host.epochs)

    async def _check_protected(self, address: str) -> None:
        if self.actuator.acts:
            now = await asyncio.to_thread(protected, self._never_block, self._broker_url)
            now.check(address)

    def _opened(self) -> Ledger:
        if self._ledger is None:
            raise UnavailableError("the record of what was done is not open", reason="no_record")
        return self._ledger

    # --- Acting -----------------------------------------------------------------------------------

    async def _carry_out(self, entry: Entry, *, duration_s: int | None = None) -> None:
        """Ask the actuator; what it does not finish is undone."""
        async with self._acting:
            ledger = self._opened()
            try:
                outcome, detail = await self._apply(entry, ledger, duration_s)
            except TocsinError as error:
                entry = entry.model_copy(update={"step": Step.FAILED})
                await ledger.write(entry)
                outcome, detail = ActuationOutcome.FAILED, f"{error.reason}: {error}"
                log.warning("order_failed", agent=self.name, decision=entry.decision.hex(), detail=detail)
            else:
                entry = entry.model_copy(update={"step": Step.APPLIED})
                await ledger.write(entry)
                log.info("order_carried_out", agent=self.name, decision=entry.decision.hex(), outcome=outcome)
        await self._report(entry, outcome, detail)
        if entry.step is Step.FAILED:
            await self._undo(entry)
        self._changed.set()

    async def _apply(
        self, entry: Entry, ledger: Ledger, duration_s: int | None
    ) -> tuple[ActuationOutcome, str]:
        other = ledger.book.longest(entry) if self.actuator.by_address else None
        if other is not None and other.until_ns >= entry.until_ns:
            return (
                ActuationOutcome.DONE,
                f"in force already, by decision {other.decision.hex()[:16]}, for longer",
            )
        carried = await self.actuator.apply(self._order(entry, duration_s=duration_s))
        return carried.outcome, carried.detail

    async def _undo(self, entry: Entry) -> None:
        """End what was done for an order; if that fails, say so once and try again later."""
        async with self._acting:
            ledger = self._opened()
            if ledger.book.open.get(entry.decision) != entry:
                return  # undone meanwhile
            tries, _ = self._undo_at.get(entry.decision) or (0, 0)
            try:
                if self.actuator.by_address and (other := ledger.book.longest(entry)) is not None:
                    detail = f"still in force by decision {other.decision.hex()[:16]}"
                else:
                    detail = (await self.actuator.undo(self._order(entry))).detail
            except TocsinError as error:
                outcome, detail = ActuationOutcome.STUCK, f"{error.reason}: {error}"
                await self._put_off(entry, tries + 1, ledger)
            else:
                outcome = ActuationOutcome.UNDONE
                self._undo_at.take(entry.decision)
                await ledger.write(entry.model_copy(update={"step": Step.UNDONE}))
        log.info("order_ended", agent=self.name, decision=entry.decision.hex(), outcome=outcome, detail=detail)
        if outcome is ActuationOutcome.UNDONE or tries == 0:
            await self._report(entry, outcome, detail)

    async def _put_off(self, entry: Entry, tries: int, ledger: Ledger) -> None:
        if tries >= UNDO_TRIES:
            self.host.metrics.count("guardian.abandoned")
            log.error("order_abandoned", agent=self.name, decision=entry.decision.hex())
            await ledger.write(entry.model_copy(update={"step": Step.ABANDONED}))
            return
        pause_s = min(2 ** (tries - 1), 60)
        self._undo_at.keep(entry.decision, (tries, self.host.now_ns() + pause_s * NS_PER_S))

    def _order(self, entry: Entry, *, duration_s: int | None = None) -> VerifiedOrder:
        command = entry.command
        if duration_s is not None:
            command = command.model_copy(update={"duration_s": duration_s})
        return VerifiedOrder(command, entry.decision, self.name, self.host.now_ns())

    # --- Keeping time -------------------------------------------------------------------------------

    async def _keep_time(self, left: list[Entry]) -> None:
        """Go on with what an earlier process left; then undo what is over, as long as the host runs."""
        await self._resume(left)
        while self._ledger is not None:
            self._changed.clear()
            now_ns = self.host.now_ns()
            for entry in self._ledger.book.due(now_ns):
                if (self._undo_at.get(entry.decision) or (0, 0))[1] <= now_ns:
                    await self._undo(entry)
            try:
                async with asyncio.timeout(self._wait_s()):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _wait_s(self) -> float:
        now_ns = self.host.now_ns()
        open_orders = () if self._ledger is None else self._ledger.book.open.values()
        times = [(self._undo_at.get(one.decision) or (0, one.until_ns))[1] for one in open_orders]
        return min([LOOK_S, *(max(0.05, (at_ns - now_ns) / NS_PER_S) for at_ns in times)])

    async def _resume(self, left: list[Entry]) -> None:
        """Ask again for what was interrupted, and for what the actuator has lost; what is over is undone soon."""
        now_ns = self.host.now_ns()
        lasting = [one for one in left if one.until_ns > now_ns and one.step is not Step.FAILED]
        if not lasting:
            return
        known = await self._known()
        # The one that ends last comes last: of two about one address it is the one whose end counts.
        for entry in sorted(lasting, key=lambda one: one.until_ns):
            lost = known is not None and command_id_of(entry.decision) not in known
            if entry.step is Step.CLAIMED or lost:
                log.info("order_resumed", agent=self.name, decision=entry.decision.hex(), step=entry.step)
                left_s = -(-(entry.until_ns - now_ns) // NS_PER_S)
                await self._carry_out(entry, duration_s=min(left_s, entry.command.duration_s))

    async def _known(self) -> frozenset[str] | None:
        try:
            return await self.actuator.query()
        except TocsinError as error:
            log.warning("actuator_unknown", agent=self.name, reason=error.reason, detail=str(error))
            return None

    # --- Saying so ----------------------------------------------------------------------------------

    async def _refuse(self, order: ResponseOrder, error: TocsinError) -> None:
        log.warning("order_refused", agent=self.name, decision=order.decision.hex(), reason=error.reason)
        nothing = Entry(decision=order.decision, step=Step.CLAIMED, command=order.command, until_ns=0)
        await self._report(nothing, ActuationOutcome.REFUSED, f"{error.reason}: {error}")

    async def _report(self, entry: Entry, outcome: ActuationOutcome, detail: str) -> None:
        self.host.metrics.count(f"guardian.{outcome.value}")
        actuation = Actuation(
            decision=entry.decision,
            command=entry.command,
            actuator=self.actuator.name[:64],
            outcome=outcome,
            ballots_verified=entry.ballots,
            quorum=entry.quorum,
            detail=detail[:512],
            at_ns=self.host.now_ns(),
        )

        async def attempt() -> object:
            return await self.host.event(self, EVENT_ACTUATION, actuation)

        try:
            await patiently(attempt, within_s=REPORT_WITHIN_S)
        except TocsinError:
            self.host.metrics.count("guardian.reports_lost")
            log.exception("actuation_unreported", agent=self.name, decision=actuation.decision.hex())


def check(
    order: ResponseOrder,
    data: bytes,
    root_pem: bytes,
    believed: Mapping[bytes, InstalledEpoch] = NOTHING_BELIEVED,
) -> VerifiedDecision:
    """Verify that a certificate permits an order. CPU-bound: a signature for each batch of ballots.

    It need not be the very one that the order names: another quorum of the same ballots proves as much.

    Args:
        order: What is to be done.
        data: The certificate's bytes.
        root_pem: The trust root's certificate.
        believed: Epochs that this process has verified, by digest.

    Raises:
        UntrustedError: ``wrong_decision``, ``wrong_command``, or the verification's.
        InvalidInputError: the verification's.
    """
    decided = verify(data, root_pem, believed=dict(believed))
    if decided.decision != order.decision:
        raise UntrustedError("the certificate is of another decision", reason="wrong_decision")
    if decided.command != order.command:
        raise UntrustedError("what was decided is not what is ordered", reason="wrong_command")
    return decided


def check_time(decided: VerifiedDecision, order: ResponseOrder, now_ns: int) -> None:
    """Refuse a decision whose time is over: it was made at the latest when the last round's deadline passed.

    Raises:
        DeniedError: ``decision_expired``.
    """
    decided_ns = decided.proposed_ns + MAX_ROUNDS * decided.proposal.deadline_ms * 1_000_000
    if now_ns > decided_ns + order.command.duration_s * NS_PER_S:
        raise DeniedError("the time of what was decided is over", reason="decision_expired")
