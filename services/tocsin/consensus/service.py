"""The shell of a consensus instance: messages to the protocol, its effects to the disk and the bus.

Handlers only feed the protocol; :mod:`tocsin.consensus.carrying` carries out what it asks for. What the steps of other
instances bring along is verified before the protocol sees it.
"""

from __future__ import annotations

import asyncio
import time

from tocsin.agent.ends import Ends
from tocsin.agent.epochs import SEEK_EVERY_S, EpochReader, age, is_news
from tocsin.bus import Bus, Context, Service, handles, subscribes
from tocsin.consensus.carrying import Carrier
from tocsin.consensus.effects import Effect, Voted
from tocsin.consensus.epochs import check_change, publish_epoch
from tocsin.consensus.notifying import Notifier
from tocsin.consensus.pace import Pace
from tocsin.consensus.passing import OpenPage, as_voted, open_page
from tocsin.consensus.protocol import Limits, Protocol
from tocsin.consensus.settings import ConsensusSettings
from tocsin.consensus.store import Recovered, VoteLog
from tocsin.consensus.tally import Received
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    CONSENSUS_BALLOT,
    CONSENSUS_EPOCH,
    CONSENSUS_EPOCHS,
    CONSENSUS_LACKING,
    CONSENSUS_PROPOSAL,
    CONSENSUS_ROUND,
    CONSENSUS_SHOWN,
    CONSENSUS_VOTE,
    DELIVER_ALL,
)
from tocsin.contracts.decisions import (
    Ballot,
    DecisionAnnounced,
    Epoch,
    EpochInstalled,
    Lacking,
    Proposal,
    RoundOpened,
    Shown,
    Vote,
)
from tocsin.contracts.errors import (
    ConflictError,
    InvalidInputError,
    InvariantBrokenError,
)
from tocsin.contracts.identifiers import ServiceName
from tocsin.crypto import key_id
from tocsin.evidence.epochs import InstalledEpoch, open_epoch
from tocsin.evidence.reading import read
from tocsin.evidence.rounds import verify_opened
from tocsin.evidence.succession import asks_for_epoch
from tocsin.evidence.votes import open_certificate, verify_steps
from tocsin.telemetry import get_logger

RETRY_S = (0.1, 0.5, 2.0, 5.0)
"""Pauses while the broker refuses what must reach it; the last one repeats."""
IDLE_TICK_S = 0.02
"""How often the clock is looked at while no decision is open."""
CROWD = 16
"""Open decisions for each of which the clock is looked at once in ``tick_s``; with twice as many half as often."""
NS_PER_S = 1_000_000_000

log = get_logger(__name__)


class ConsensusService(Service[ConsensusSettings]):
    """Commits the outcomes of the agents' ballots and makes their certificates."""

    name = ServiceName.CONSENSUS

    def __init__(self, bus: Bus, settings: ConsensusSettings) -> None:
        super().__init__(bus, settings)
        self.protocol = Protocol(
            str(bus.id),
            Limits(
                settings.max_open_decisions,
                settings.max_open_per_proposer,
                settings.max_open_per_asker,
                settings.max_held_per_agent,
            ),
            Pace(
                first_view_ns=int(settings.view_timeout_s * NS_PER_S),
                longest_view_ns=int(settings.view_timeout_max_s * NS_PER_S),
                step_in_ns=int(settings.step_in_s * NS_PER_S),
            ),
        )
        self._own_key = bus.credentials.key.signer
        self._keys = {self._own_key.key_id: self._own_key.public_key}
        self._carrier: Carrier | None = None
        self._to_go_on: list[Effect] = []
        self._epochs = EpochReader(bus)
        self._notifier = Notifier(bus, Ends(bus, self._epochs, self._key_of), self.metrics)
        self._seek_from = 0.0

    @property
    def ready(self) -> bool:
        """Whether it can decide: not without its log."""
        return super().ready and not (self._carrier is not None and self._carrier.log_failed)

    # --- Life ---------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Read the log, and take up what a former process had begun."""
        path = self.settings.state_dir / f"consensus-{self.settings.instance}.votes"
        votes, recovered = await VoteLog.open(path, self.bus.trust, time.time_ns())
        self._carrier = Carrier(
            self.bus,
            self.protocol,
            votes,
            self._key_of,
            self.metrics,
            self._adopt,
            self._notifier,
            kept=recovered.keys,
        )
        self._keys |= recovered.keys
        for decision, until_ns in recovered.ended.items():
            self.protocol.remember_ended(decision, until_ns)
        for epoch in sorted(recovered.epochs.values(), key=age):
            self._epochs.keep(epoch)
            if self._speaks_in(epoch):
                self.protocol.install(epoch)
            else:
                self.protocol.abstain_until_after(epoch.epoch.number)
        await self._compare_epochs(recovered)
        for decision, rest in recovered.unfinished.items():
            epoch = recovered.epochs[rest.proposal.body.epoch]
            log.info("decision_resumed", decision=decision.hex(), possible=self._speaks_in(epoch))
            if self._speaks_in(epoch):
                self._carry.keeping.resume(decision, rest)
                self._to_go_on += self.protocol.restore(
                    epoch,
                    rest.proposal,
                    rest.ballots,
                    rest.own,
                    time.time_ns(),
                    opening=rest.opening,
                    following=rest.following,
                )

    async def started(self) -> None:
        """Listen to the other instances, carry out what the log left to do, and watch the clock."""
        own = {"instance": self.bus.id.name}
        await self.bus.subscribe(CONSENSUS_BALLOT, self.on_ballot, needed=self._is_ballot_needed)
        await self.bus.subscribe(CONSENSUS_LACKING, self.on_lacking, at=own)
        await self.bus.subscribe(CONSENSUS_SHOWN, self.on_shown, at=own)
        self.bus.connection.on_reconnect(self._reconnected)
        self._carry.do(self._to_go_on)
        self.bus.spawn(self._tick(), "deadlines")
        self.bus.spawn(self._notifier.recall(), "results")

    async def stopping(self) -> None:
        """Close the log: a vote that is not in it is not sent."""
        if self._carrier is not None:
            await self._carrier.log.close()

    def _speaks_in(self, epoch: InstalledEpoch) -> bool:
        """Tell whether the epoch binds this process's key: it may have been given a new one since."""
        seat = epoch.instances.get(str(self.bus.id))
        return seat is not None and seat.key_id == self._own_key.key_id

    async def _compare_epochs(self, recovered: Recovered) -> None:
        """Publish the epoch if the stream lacks it; abstain in one in which this log cannot have its votes.

        An epoch that is made after the log was begun was missed, and is taken: whatever this instance has cast
        in it would be in the log. In one that is older than the log it may have voted, into a log that is lost.
        """
        latest = await self._epochs.latest()
        if latest is not None and latest.digest not in recovered.epochs:
            begun_ns = recovered.begun_ns
            if begun_ns is not None and begun_ns < latest.epoch.created_ns:
                await self._adopt(latest)
            else:
                log.error("vote_log_lost", epoch=latest.epoch.number, advice="install a new epoch")
                self.protocol.abstain_until_after(latest.epoch.number)
        elif self.protocol.epoch is not None:
            await publish_epoch(self.bus, self.protocol.epoch)

    async def _tick(self) -> None:
        while True:
            # Each open decision is looked at: of many at once less often, for ballots need the time more.
            crowd = 1 + self.protocol.open_decisions // CROWD
            await asyncio.sleep(self.settings.tick_s * crowd if self.protocol.busy else IDLE_TICK_S)
            self._carry.do(self.protocol.tick(time.time_ns()))

    # --- In -----------------------------------------------------------------------------------

    @handles(CONSENSUS_EPOCH, concurrency=1)
    async def install_epoch(self, _: Epoch, context: Context) -> EpochInstalled:
        """Install an epoch that the root signed, and publish the same bytes.

        Raises:
            ConflictError: ``stale_epoch``.
            InvalidInputError: a rule that the record breaks.
            UntrustedError: ``not_an_instance`` or ``wrong_key``: it binds another key to this instance.
        """
        epoch = await asyncio.to_thread(open_epoch, context.data, self.bus.trust, self.bus.opener.batches)
        epoch.instance(self.bus.id, self._own_key.key_id)
        await self._install(epoch)
        await publish_epoch(self.bus, epoch)
        return epoch.installed()

    @subscribes(CONSENSUS_EPOCHS)
    async def on_epoch(self, told: Message, context: Context) -> None:
        """Take an epoch that was given to another instance, or decided."""
        if is_news(told, self.protocol.epoch):
            await self._adopt(await self._epochs.read(told, context))

    def _reconnected(self) -> None:
        self.bus.spawn(self._catch_up(), "epochs")

    async def _seek_epoch(self) -> None:
        """Look for an epoch that somebody speaks of: it may have been lost on the way here."""
        now = asyncio.get_running_loop().time()
        if now >= self._seek_from:
            self._seek_from = now + SEEK_EVERY_S
            await self._catch_up()

    async def _catch_up(self) -> None:
        """Take an epoch that came while the broker was away."""
        current = self.protocol.epoch
        latest = await self._epochs.latest(0 if current is None else current.epoch.created_ns)
        if latest is not None:
            await self._adopt(latest)

    async def _adopt(self, epoch: InstalledEpoch) -> None:
        """Install an epoch that is believed, if this instance has a seat in it and it is later than its own.

        Raises:
            UntrustedError: ``wrong_key``.
        """
        if str(self.bus.id) not in epoch.instances:
            self.metrics.count("epochs_of_others")
            return
        epoch.instance(self.bus.id, self._own_key.key_id)
        try:
            await self._install(epoch)
        except ConflictError as error:
            # An older record, or one that came back to where it was published.
            self.metrics.count(f"epochs_not_taken.{error.reason}")

    async def _install(self, epoch: InstalledEpoch) -> None:
        if not self.protocol.install(epoch):
            return
        self._epochs.keep(epoch)
        await self._carry.persist(self._carry.log.keep_epoch(epoch))
        log.info(
            "epoch_installed",
            epoch=epoch.epoch.number,
            participants=epoch.quorum.participants,
            quorum=epoch.quorum.needed,
            byzantine_tolerant=epoch.byzantine_tolerant,
            instances=len(epoch.instances),
            instance_faults=epoch.instance_faults,
        )

    @subscribes(DELIVER_ALL)
    async def on_delivery(self, body: Message, context: Context) -> None:
        """Open a decision for a proposal, and note a result; whatever else is for all is not for this service."""
        if isinstance(body, DecisionAnnounced):
            self._notifier.heard(body, context)
        if not isinstance(body, Proposal):
            return
        if self.protocol.known_epoch(body.epoch) is None:
            await self._seek_epoch()
        self._learn_key(context, self.protocol.epoch)
        proposal = read(context.data, CONSENSUS_PROPOSAL, audience="all")
        if asks_for_epoch(body):
            await asyncio.to_thread(check_change, proposal, self.protocol.epoch, self.bus.backend)
        self._carry.do(self.protocol.open(proposal, context.now_ns))

    def on_ballot(self, ballot: Ballot, context: Context) -> None:
        """Count a ballot."""
        self._learn_key(context, self.protocol.epoch_of(ballot.decision))
        received = Received(ballot, context.sender, context.key_id, context.data, context.envelope)
        self._carry.do(self.protocol.ballot(received, context.now_ns))
        self.metrics.count("ballots_taken")

    def _is_ballot_needed(self, subject: str) -> bool:
        """Tell by its subject whether a ballot is worth a verification: these are what a decision costs."""
        try:
            decision = bytes.fromhex(subject.rsplit(".", 2)[-2])  # it has been parsed: this is hot
        except (IndexError, ValueError):
            return True  # it is refused for what it is
        return self.protocol.needs_ballots(decision)

    @subscribes(CONSENSUS_VOTE, concurrency=8, again=True)
    async def on_vote(self, vote: Vote, context: Context) -> None:
        """Take another instance's step, once the certificate that it brings is verified.

        Raises:
            TocsinError: ``unknown_epoch``, or what is wrong with the step.
        """
        if context.sender == self.bus.id:
            return
        epoch = self._known(vote.epoch)
        epoch.instance(context.sender, context.key_id)
        votes = open_certificate(vote, epoch)
        if votes:
            await asyncio.to_thread(
                verify_steps, votes, epoch, self._key_of, self.bus.backend, self.bus.opener.batches
            )
        voted = Voted(vote, context.sender, context.key_id, context.data, as_voted(votes))
        self.metrics.count(f"steps_taken.{vote.step.value}")
        self._carry.do(self.protocol.signed(voted, time.time_ns()))

    @subscribes(CONSENSUS_ROUND)
    async def on_round(self, opened: RoundOpened, context: Context) -> None:
        """Go on to a round that another instance tells the agents of, if this one is in an earlier round.

        Raises:
            TocsinError: what is wrong with it.
        """
        proposal = self.protocol.proposal_of(opened.decision)
        epoch = self._known(opened.epoch)
        epoch.instance(context.sender, context.key_id)
        if proposal is None or not self.protocol.lacks_round(opened.decision, opened.round):
            return
        opening = await asyncio.to_thread(
            verify_opened,
            opened,
            proposal.body,
            proposal.sender,
            epoch,
            self._key_of,
            self.bus.backend,
            self.bus.opener.batches,
        )
        self._keys |= {one: key for key in opened.keys if (one := key_id(key)) in opening.signers}
        self._carry.do(self.protocol.opened(opening, context.now_ns))

    async def on_lacking(self, lacking: Lacking, context: Context) -> None:
        """Show another instance what it lacks."""
        epoch = self.protocol.epoch_of(lacking.decision)
        if epoch is not None:
            epoch.instance(context.sender, context.key_id)
            self._carry.do(self.protocol.asked(lacking.decision, str(context.sender), context.now_ns))

    async def on_shown(self, page: Shown, context: Context) -> None:
        """Take what another instance shows; it was verified by no one but who signed it.

        Raises:
            TocsinError: what is wrong with the page.
        """
        if not self.protocol.awaits(page.decision):
            self.metrics.count("pages_not_awaited")
            return
        shown = await asyncio.to_thread(self._open_page, page)
        shown.epoch.instance(context.sender, context.key_id)
        self._keys |= {one: key for one, key in shown.keys.items() if one not in self._keys}
        effects: list[Effect] = []
        if shown.proposal is not None:
            await asyncio.to_thread(check_change, shown.proposal, shown.epoch, self.bus.backend)
            effects += self.protocol.open(shown.proposal, context.now_ns, shown=True)
        if shown.opening is not None:
            effects += self.protocol.opened(shown.opening, context.now_ns)
        for received in shown.ballots:
            try:
                effects += self.protocol.ballot(received, context.now_ns)
            except InvalidInputError as error:
                self.metrics.count(f"shown_refused.{error.reason}")
        if shown.commit:
            effects += self.protocol.settle(shown.commit, context.now_ns)
        if shown.following:
            effects += self.protocol.learn(page.decision, shown.following, context.now_ns)
        self._carry.do(effects)

    def _open_page(self, page: Shown) -> OpenPage:
        def epoch_of(digest: bytes | None) -> InstalledEpoch | None:
            return (
                self.protocol.epoch_of(page.decision) if digest is None else self.protocol.known_epoch(digest)
            )

        return open_page(page, epoch_of, self._key_of, self.bus.backend, self.bus.opener.batches)

    def _known(self, digest: bytes) -> InstalledEpoch:
        epoch = self.protocol.known_epoch(digest)
        if epoch is None:
            raise InvalidInputError("of an epoch that is not installed here", reason="unknown_epoch")
        return epoch

    def _key_of(self, key_id: bytes) -> bytes | None:
        """Return a public key by its id. It is what it says: an id is the key's digest."""
        if (key := self._keys.get(key_id)) is not None:
            return key
        identity = self.bus.trust.identity(key_id)
        return None if identity is None else identity.public_key

    def _learn_key(self, context: Context, epoch: InstalledEpoch | None) -> None:
        """Remember the public key of who has a seat there: a certificate may be renewed while we decide."""
        seat = None if epoch is None else epoch.seats.get(str(context.sender))
        if seat is None or seat.key_id != context.key_id or context.key_id in self._keys:
            return
        if (key := self._key_of(context.key_id)) is not None:
            self._keys[context.key_id] = key

    @property
    def _carry(self) -> Carrier:
        if self._carrier is None:
            raise InvariantBrokenError("the log is opened before the first message")
        return self._carrier
