"""Carry out what the protocol asks for: sign, persist in one fsync, send, and only then end the decision.

Each list of effects is a task of its own, so the line of ballots never waits for a disk. What the broker refuses for
now is tried until it is taken.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import chain, repeat

from tocsin.bus import Bus, Sent
from tocsin.consensus.announcing import announcement, certificate_of, check_announced, check_certificate
from tocsin.consensus.effects import (
    Accuse,
    Ask,
    CastVote,
    Effect,
    End,
    Forget,
    LookUp,
    Opened,
    SendAgain,
    Show,
    Voted,
    Want,
)
from tocsin.consensus.epochs import made_by, made_by_other, publish_epoch
from tocsin.consensus.notifying import Notifier
from tocsin.consensus.passing import pages
from tocsin.consensus.protocol import Protocol, good_until_ns
from tocsin.consensus.store import Keeping, VoteLog
from tocsin.consensus.wanting import bitmap
from tocsin.contracts.catalogue import (
    AUDIT,
    AUDIT_EQUIVOCATION,
    BALLOTS_WANTED,
    CONSENSUS_DECISION,
    CONSENSUS_LACKING,
    CONSENSUS_ROUND,
    CONSENSUS_SHOWN,
    CONSENSUS_VOTE,
    CONSENSUS_WANTED,
    DECISION,
    LACKING,
    ROUND_OPENED,
    SHOWN,
    VOTE,
)
from tocsin.contracts.decisions import BallotsWanted, DecisionAnnounced, Lacking, Outcome
from tocsin.contracts.errors import (
    ExhaustedError,
    InvalidInputError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.identifiers import SpiffeId
from tocsin.evidence.ends import verify_end
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.reading import read
from tocsin.evidence.succession import asks_for_epoch
from tocsin.evidence.verification import CONSENSUS_AUDIENCE
from tocsin.evidence.votes import KeyOf
from tocsin.telemetry import Metrics, get_logger

RETRY_S = (0.1, 0.5, 2.0, 5.0)
"""Pauses while the broker refuses what must reach it; the last one repeats."""

log = get_logger(__name__)


class Carrier:
    """Carries out the effects of one instance's protocol."""

    def __init__(
        self,
        bus: Bus,
        protocol: Protocol,
        votes: VoteLog,
        key_of: KeyOf,
        metrics: Metrics,
        adopt: Callable[[InstalledEpoch], Awaitable[None]],
        notifier: Notifier,
        *,
        kept: Iterable[bytes],
    ) -> None:
        """Take what to carry out effects with; ``kept`` are the ids of the keys that the log has."""
        self.log = votes
        self._notifier = notifier
        self.keeping = Keeping(kept)
        self.log_failed = False
        """The disk has refused a write: nothing more is voted."""
        self.bus = bus
        self.protocol = protocol
        self.metrics = metrics
        self._key_of = key_of
        self._adopt = adopt
        self._own_key_id = bus.credentials.key.signer.key_id
        self._writing: set[asyncio.Future[None]] = set()

    def do(self, effects: list[Effect]) -> None:
        """Begin to carry out effects."""
        if effects:
            self.bus.spawn(self._carry_out(effects), "decision")

    async def _carry_out(self, effects: list[Effect]) -> None:
        """Sign what is to be cast and what follows from that, persist all of it, then let it out."""
        cast: list[tuple[CastVote, Sent]] = []
        opened: list[Opened] = []
        others: list[Effect] = []
        while effects:
            casts = [effect for effect in effects if isinstance(effect, CastVote)]
            opened += [effect for effect in effects if isinstance(effect, Opened)]
            others += [effect for effect in effects if not isinstance(effect, CastVote)]
            signed = await asyncio.gather(*(self._sign(effect) for effect in casts))
            cast += zip(casts, signed, strict=True)
            effects = []
            for effect, sent in zip(casts, signed, strict=True):
                voted = Voted(effect.vote, self.bus.id, self._own_key_id, sent.data)
                effects += self.protocol.signed(voted, time.time_ns())
        # What follows from own steps that are not on the disk yet is prepared meanwhile, and let out afterwards.
        prepared = {end.decision: self._prepare(end) for end in others if isinstance(end, End)}
        kept = [entry for effect in opened for entry in self.keeping.opened(effect, self._key_of)]
        kept += self.keeping.entries([(effect, sent.data) for effect, sent in cast], self._key_of)
        if kept:
            await self.persist(self.log.keep_steps(kept))
        for effect, sent in cast:
            await self._send_step(effect.vote.decision, sent)
        for other in others:
            if isinstance(other, End):
                await self._finish(other, *prepared[other.decision])
            else:
                await self._let_out(other)

    async def _let_out(self, effect: Effect) -> None:
        if isinstance(effect, Accuse):
            await self._accuse(effect)
        elif isinstance(effect, Opened):
            await self._tell(effect)
        elif isinstance(effect, SendAgain):
            self.metrics.count("steps_sent_again")
            await self._send_step(effect.decision, _as_sent(effect.data))
        elif isinstance(effect, Ask):
            await self._ask(effect)
        elif isinstance(effect, Want):
            await self._want(effect)
        elif isinstance(effect, Show):
            await self._show(effect)
        elif isinstance(effect, LookUp):
            self.bus.spawn(self._look_up(effect.decision), "look up")
        elif isinstance(effect, Forget):
            self.keeping.forget(effect.decision)
            await self.persist(self.log.keep_end(effect.decision, effect.until_ns))

    async def _sign(self, effect: CastVote) -> Sent:
        return await self.bus.make(VOTE, effect.vote, audience=CONSENSUS_AUDIENCE)

    async def _send_step(self, decision: bytes, sent: Sent) -> None:
        subject = CONSENSUS_VOTE.at(decision=decision.hex())
        await self._until_taken(partial(self.bus.send, subject, sent))

    async def _tell(self, opened: Opened) -> None:
        """Tell agents and instances that a round has begun."""
        opening, question = opened.opening, opened.opening.question
        self.metrics.count("rounds_begun" if opened.begins else "rounds_told_again")
        if not opened.tell:
            return
        log.info("round_told", decision=question.decision.hex(), round=question.round)
        at = {"decision": question.decision.hex()}
        body = opening.body(opened.epoch, self._key_of)

        async def publish() -> None:
            await self.bus.publish(CONSENSUS_ROUND, ROUND_OPENED, body, audience="all", at=at)

        await self._until_taken(publish)

    async def _ask(self, ask: Ask) -> None:
        log.info("asking", decision=ask.decision.hex(), whom=ask.instance, proposal=ask.proposal)
        self.metrics.count("asked")
        lacking = Lacking(decision=ask.decision, proposal=ask.proposal)
        at = {"instance": SpiffeId.parse(ask.instance).name}
        await self.bus.publish(CONSENSUS_LACKING, LACKING, lacking, at=at)

    async def _want(self, want: Want) -> None:
        """Ask for ballots; what is lost of this is asked for again."""
        self.metrics.count("ballots_wanted", len(want.missing))
        body = BallotsWanted(
            decision=want.decision,
            epoch=want.epoch.digest,
            round=want.round,
            seats=bitmap(want.epoch.seats, want.missing),
            proposal=want.proposal.data,
        )
        at = {"decision": want.decision.hex()}
        await self.bus.publish(CONSENSUS_WANTED, BALLOTS_WANTED, body, audience="all", at=at)

    async def _show(self, show: Show) -> None:
        self.metrics.count("shown")
        at = {"instance": SpiffeId.parse(show.instance).name}
        for page in await asyncio.to_thread(lambda: list(pages(show, self._key_of))):
            await self.bus.publish(CONSENSUS_SHOWN, SHOWN, page, at=at)

    async def _look_up(self, decision: bytes) -> None:
        """See whether the decision is announced; an announcement that does not hold is none."""
        epoch = self.protocol.epoch_of(decision)
        stands = False
        made: InstalledEpoch | None = None

        async def look() -> None:
            nonlocal stands, made
            last = await self.bus.last(CONSENSUS_DECISION, at={"decision": decision.hex()})
            if last is None or not isinstance(last[0], DecisionAnnounced) or epoch is None:
                return
            announced, certificate = last[0], b""
            if announced.decision != decision:
                raise InvalidInputError("an announcement of another decision", reason="wrong_decision")
            backend, batches = self.bus.backend, self.bus.opener.batches
            await asyncio.to_thread(verify_end, announced, epoch, self._key_of, backend, batches)
            if announced.outcome is Outcome.DECIDED:
                certificate = await self._certificate(decision)
                await asyncio.to_thread(check_announced, announced, certificate, decision, epoch, self.bus)
            made = await asyncio.to_thread(made_by_other, announced, certificate, epoch, self.bus.backend)
            stands = True
            self._notifier.notify(announced, own=False)

        try:
            await self._until_taken(look)
        except TocsinError as error:
            log.warning("announcement_refused", decision=decision.hex(), reason=error.reason, detail=str(error))
            self.metrics.count(f"announcements_refused.{error.reason}")
        if made is not None:
            await self._adopt(made)
        elif stands:
            self.protocol.changes.closed(decision)
        if stands:
            self.do(self.protocol.announced(decision))
        else:
            self.do(self.protocol.step_in(decision, time.time_ns()))

    async def _certificate(self, decision: bytes) -> bytes:
        """Fetch what another instance says it has stored.

        Raises:
            UntrustedError: ``no_certificate``: nothing is there, or it does not come; not tried again, for who has
                announced it may never have stored it, and to announce it a second time does no harm.
        """
        try:
            return await self.bus.get_certificate(decision.hex())
        except UnavailableError as error:
            raise UntrustedError(
                f"no certificate where one is announced: {error}", reason="no_certificate"
            ) from error

    async def _accuse(self, accused: Accuse) -> None:
        proof = accused.proof
        log.warning("equivocation", accused=proof.accused, decision=proof.decision.hex())
        self.metrics.count("equivocations")

        async def publish() -> None:
            await self.bus.publish(AUDIT, AUDIT_EQUIVOCATION, proof, durable=True, at={"kind": "equivocation"})

        await self._until_taken(publish)

    def _prepare(self, end: End) -> tuple[bytes, asyncio.Future[bytes]]:
        """Make the certificate of what was decided, and begin to check it as anyone would."""
        certificate = certificate_of(end, self._key_of)
        return certificate, asyncio.ensure_future(self._verify(end, certificate))

    async def _finish(self, end: End, certificate: bytes, verified: asyncio.Future[bytes]) -> None:
        """Keep the certificate, and announce the decision once it has turned out to hold."""
        _, digest = await asyncio.gather(self._store(end, certificate), verified)
        await self._go_on_from(end)
        announced = announcement(end, certificate, digest, time.time_ns(), str(self.bus.id), self._key_of)

        async def announce() -> None:
            at = {"decision": end.decision.hex()}
            await self.bus.publish(CONSENSUS_DECISION, DECISION, announced, durable=True, at=at)

        await self._until_taken(announce)
        self._notifier.notify(announced, own=True)
        self.keeping.forget(end.decision)
        await self.persist(self.log.keep_end(end.decision, good_until_ns(end.proposal)))
        self.metrics.count(f"decisions.{end.outcome.value}")
        self.metrics.observe_ms("decision", announced.elapsed_ms)
        log.info(
            "decision_ended",
            decision=end.decision.hex(),
            outcome=end.outcome.value,
            ballots=end.ballots_received,
            view=end.commit.view,
            elapsed_ms=round(announced.elapsed_ms, 1),
        )

    async def _store(self, end: End, certificate: bytes) -> None:
        # The commit may count an own step that another task is still writing: it must not be known before it is kept.
        await asyncio.gather(*self._writing)
        if certificate:
            await self._until_taken(lambda: self.bus.put_certificate(end.decision.hex(), certificate))

    async def _verify(self, end: End, certificate: bytes) -> bytes:
        return await asyncio.to_thread(check_certificate, end, certificate, self.bus) if certificate else b""

    async def _go_on_from(self, end: End) -> None:
        """Install and publish the epoch that was decided, if one was.

        Before the end is kept: who has forgotten this decision must go by what it has made.
        """
        made = None
        if asks_for_epoch(end.proposal.body):
            made = await asyncio.to_thread(made_by, end, self.bus.backend)
        if made is None:
            self.protocol.changes.closed(end.decision)
            return
        await self._adopt(made)
        await self._until_taken(partial(publish_epoch, self.bus, made))

    async def persist(self, write: Awaitable[None]) -> None:
        """Write to the log; once that fails this instance decides nothing more, and says so in its readiness."""
        writing = asyncio.ensure_future(write)
        self._writing.add(writing)
        try:
            await writing
        except TocsinError:
            self.log_failed = True
            raise
        finally:
            self._writing.discard(writing)

    async def _until_taken(self, act: Callable[[], Awaitable[None]]) -> None:
        """Repeat what the broker refuses for now, with pauses. A restart takes it up from the log."""
        for pause_s in chain(RETRY_S, repeat(RETRY_S[-1])):
            try:
                await act()
            except (UnavailableError, ExhaustedError) as error:
                self.metrics.count(f"broker_refusals.{error.reason}")
                await asyncio.sleep(pause_s)
            else:
                return


def _as_sent(data: bytes) -> Sent:
    vote = read(data, VOTE, audience=CONSENSUS_AUDIENCE)
    return Sent(vote.envelope.content.id, vote.leaf, data, vote.envelope.content.issued_at)
