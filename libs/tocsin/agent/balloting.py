"""When a resident may ballot, and that it does so once."""

from __future__ import annotations

from tocsin.agent.agent import BallotChoice
from tocsin.agent.ballots import FIRST_ROUND, BallotCaster, BallotLog
from tocsin.agent.delivery import Resident
from tocsin.agent.epochs import EpochKeeper
from tocsin.agent.succession import Electorate
from tocsin.bus import Bus, Context
from tocsin.contracts.catalogue import CONSENSUS_BALLOT
from tocsin.contracts.decisions import Proposal
from tocsin.contracts.errors import InvalidInputError, UntrustedError
from tocsin.evidence.committee import committee_of
from tocsin.telemetry import get_logger

log = get_logger(__name__)


class Balloting:
    """Asks a resident for its choice and casts it."""

    def __init__(self, bus: Bus, ballots: BallotLog, epochs: EpochKeeper, electorate: Electorate) -> None:
        self._bus = bus
        self._ballots = ballots
        self._caster = BallotCaster(bus, ballots)
        self._epochs = epochs
        self._electorate = electorate

    async def ballot(self, resident: Resident, proposal: Proposal, context: Context) -> None:
        """Ask an agent, and cast its ballot; one that has balloted is not asked again.

        A proposal may come any number of times (evidence has no clock): what was cast is sent again in its
        own bytes. An agent without a seat in the epoch installed here is asked, for it may want to know, but
        casts nothing: its ballot could not count.
        """
        agent = resident.agent
        kept = self._ballots.find(agent.id, context.leaf, FIRST_ROUND)
        if kept is not None:
            await self._bus.send(CONSENSUS_BALLOT.at(decision=context.leaf.hex(), agent=agent.name), kept)
            return
        # The proposer may have the next epoch sooner than this host.
        await self._epochs.seek(proposal.epoch)
        choice = await agent.on_proposal(proposal, context)
        if (
            why_not := self._why_not(resident, proposal, context.now_ns)
        ) is None and proposal.change is not None:
            choice = await self._judge(resident, proposal, context)
        if choice is None:
            self._bus.metrics.count("ballots_withheld.by_choice")
        elif why_not is not None:
            self._bus.metrics.count(f"ballots_withheld.{why_not}")
            log.warning("ballot_withheld", agent=agent.name, decision=context.leaf.hex(), reason=why_not)
        else:
            await self._caster.cast(agent.id, proposal, context, choice.option, choice.reason)
            self._bus.metrics.count("ballots_cast")

    async def _judge(self, resident: Resident, proposal: Proposal, context: Context) -> BallotChoice | None:
        """Choose on the next epoch, by the one rule for all roles."""
        if (epoch := self._epochs.epoch) is None:
            return None
        return await self._electorate.judge(resident.agent.id, epoch, proposal, context)

    def _why_not(self, resident: Resident, proposal: Proposal, now_ns: int) -> str | None:
        if self._epochs.epoch is None:
            return "no_epoch"
        if (epoch := self._epochs.deciding(proposal.epoch, now_ns)) is None:
            return "other_epoch"
        try:
            committee_of(proposal, epoch).seat(resident.agent.id, resident.key_id)
        except (InvalidInputError, UntrustedError) as error:
            return error.reason
        return None
