"""When a resident may ballot, and that it does so once in each round.

A round after the first is believed when its commit verifies: who says that it has begun need not be believed. It can
be told of any number of times, as a proposal can; what was cast is sent again in its own bytes.

A proposal that this host has missed, or what was sent of its ballots and lost, it hears of when an instance misses the
ballots (:mod:`tocsin.consensus.wanting`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from tocsin.agent.ballots import BallotCaster, BallotLog
from tocsin.agent.delivery import Resident
from tocsin.agent.epochs import EpochKeeper
from tocsin.agent.roles.memory import Memory
from tocsin.agent.succession import Electorate
from tocsin.bus import Bus, Context
from tocsin.contracts.catalogue import CONSENSUS_BALLOT
from tocsin.contracts.decisions import BallotsWanted, Proposal, RoundOpened
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.evidence.choices import Question
from tocsin.evidence.committee import committee_of
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.rounds import verify_opened
from tocsin.telemetry import get_logger

MAX_OPEN = 1024
"""Proposals remembered for their later rounds; the oldest is forgotten first."""
WANTED_EVERY_S = 0.2
"""How often ballots of one round are sent again, whoever wants them."""

log = get_logger(__name__)


@dataclass(slots=True)
class _Open:
    """A decision that further rounds may come for."""

    proposal: Proposal
    context: Context
    epoch: InstalledEpoch
    question: Question
    """Of the last round that has begun."""
    verifying: asyncio.Lock = field(default_factory=asyncio.Lock)


class Balloting:
    """Asks a resident for its choice and casts it."""

    def __init__(self, bus: Bus, ballots: BallotLog, epochs: EpochKeeper, electorate: Electorate) -> None:
        self._bus = bus
        self._ballots = ballots
        self._caster = BallotCaster(bus, ballots)
        self._epochs = epochs
        self._electorate = electorate
        self._open: OrderedDict[bytes, _Open] = OrderedDict()
        self._heard: Memory[bytes, None] = Memory(MAX_OPEN)
        self._wanted: Memory[tuple[bytes, int], float] = Memory(MAX_OPEN)
        """Rounds whose ballots were wanted, and from when on that is looked at again."""

    async def ballot(self, resident: Resident, proposal: Proposal, context: Context) -> None:
        """Ask an agent, and cast its ballot; one that has balloted is not asked again.

        A proposal may come any number of times (evidence has no clock): what was cast is sent again in its
        own bytes. An agent without a seat in the epoch installed here is asked, for it may want to know, but
        casts nothing: its ballot could not count.
        """
        self._heard.keep(context.leaf, None)
        # The proposer may have the next epoch sooner than this host.
        await self._epochs.seek(proposal.epoch)
        epoch = self._epochs.deciding(proposal.epoch, context.now_ns) or self._epochs.epoch
        if epoch is not None and proposal.epoch == epoch.digest and proposal.rounds > 1:
            self._remember(proposal, context, epoch)
        known = self._open.get(context.leaf)
        if known is not None:
            epoch = known.epoch
        await self._ask(resident, proposal, context, Question.first(context.leaf, proposal), epoch)

    async def opened(self, opened: RoundOpened) -> _Open | None:
        """Verify that a round has begun; None if it is of no decision that is open here, or of a round before.

        Raises:
            TocsinError: what is wrong with it.
        """
        known = self._open.get(opened.decision)
        if known is None:
            self._bus.metrics.count("rounds_of_unknown_decisions")
            return None
        async with known.verifying:
            if opened.round > known.question.round:
                opening = await asyncio.to_thread(
                    verify_opened,
                    opened,
                    known.proposal,
                    known.context.sender,
                    known.epoch,
                    lambda _: None,  # it brings the keys
                    self._bus.backend,
                    self._bus.opener.batches,
                )
                known.question = opening.question
        return known if opened.round == known.question.round else None

    async def wanted(self, wanted: BallotsWanted, residents: Mapping[str, Resident]) -> bool:
        """Send again what residents have cast that an instance lacks; return whether some have not heard of it.

        Args:
            wanted: a hostile instance can ask, too: each round is looked at once in ``WANTED_EVERY_S``.
            residents: by name.
        """
        now = asyncio.get_running_loop().time()
        where = wanted.decision, wanted.round
        epoch = self._epochs.reader.known.get(wanted.epoch)
        if epoch is None or now < (self._wanted.get(where) or 0.0):
            return False
        self._wanted.keep(where, now + WANTED_EVERY_S)
        mine = {str(resident.agent.id) for resident in residents.values()}
        silent = await self._caster.send_again(wanted, epoch.seats, mine)
        return bool(silent) and wanted.decision not in self._heard

    async def ballot_again(self, known: _Open, resident: Resident) -> None:
        """Ask an agent in a round after the first, and cast its ballot."""
        proposal = known.proposal.model_copy(update={"options": known.question.options})
        await self._ask(resident, proposal, known.context, known.question, known.epoch)

    async def _ask(
        self,
        resident: Resident,
        proposal: Proposal,
        context: Context,
        question: Question,
        epoch: InstalledEpoch | None,
    ) -> None:
        agent = resident.agent
        kept = self._ballots.find(agent.id, question.decision, question.round)
        if kept is not None:
            at = {"decision": question.decision.hex(), "agent": agent.name}
            await self._bus.send(CONSENSUS_BALLOT.at(**at), kept)
            return
        if question.round == 1:
            choice = await agent.on_proposal(proposal, context)
        else:
            choice = await agent.on_round(proposal, question.round, context)
        why_not = _why_not(resident, proposal, epoch)
        if why_not is None and proposal.change is not None and epoch is not None:
            choice = await self._electorate.judge(agent.id, epoch, proposal, context)
        if choice is None:
            self._bus.metrics.count("ballots_withheld.by_choice")
        elif why_not is not None:
            self._bus.metrics.count(f"ballots_withheld.{why_not}")
            log.warning("ballot_withheld", agent=agent.name, decision=context.leaf.hex(), reason=why_not)
        else:
            await self._caster.cast_in(
                agent.id, proposal.epoch, question, choice.option, choice.reason, counter=choice.counter
            )
            self._bus.metrics.count("ballots_cast")

    def _remember(self, proposal: Proposal, context: Context, epoch: InstalledEpoch) -> None:
        if context.leaf not in self._open:
            question = Question.first(context.leaf, proposal)
            self._open[context.leaf] = _Open(proposal, context, epoch, question)
            while len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)


def _why_not(resident: Resident, proposal: Proposal, epoch: InstalledEpoch | None) -> str | None:
    if epoch is None:
        return "no_epoch"
    if proposal.epoch != epoch.digest:
        return "other_epoch"
    try:
        committee_of(proposal, epoch).seat(resident.agent.id, resident.key_id)
    except (InvalidInputError, UntrustedError) as error:
        return error.reason
    return None
