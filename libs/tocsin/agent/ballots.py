"""Cast ballots: one choice per agent, decision and round, on the disk before it is on the wire.

    caster = BallotCaster(bus, BallotLog(folder / "ballots.log"))
    await caster.cast(agent, proposal, context, 0, "the evidence is clear")

A ballot that was cast is sent again in its own bytes, however often it is asked for and whatever happened
since; another choice is refused. Agents of one host that ballot at once share a signature (the bus signs in
batches) and an fsync (:class:`~tocsin.evidence.journal.JournalWriter`).

A host that has lost its log must abstain until the next epoch, under a new key: nothing here can know that a
log was deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterable
from pathlib import Path
from typing import NamedTuple

from tocsin.bus import Bus, Context, Sent
from tocsin.contracts.catalogue import BALLOT, CONSENSUS_BALLOT
from tocsin.contracts.decisions import Ballot, BallotsWanted, Choice, Option, Proposal
from tocsin.contracts.errors import ConflictError, ExhaustedError, InvalidInputError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.evidence.choices import Question
from tocsin.evidence.journal import Journal, JournalWriter, Place
from tocsin.evidence.reading import Evidence, read

BALLOT_AUDIENCE = "service.consensus"
MAX_CASTING = 4096
"""Ballots that one process casts at once; a further one is refused."""


class _Key(NamedTuple):
    """What an agent may do once."""

    agent: str
    decision: bytes
    round: int


class _Cast(NamedTuple):
    value: bytes
    place: Place


class BallotLog:
    """The ballots that this process's agents have cast: the envelopes' own bytes, fsynced.

    The constructor reads the file: open it before the event loop is busy, or in a thread.
    """

    def __init__(self, path: Path) -> None:
        self._writer = JournalWriter(Journal(path))
        self._cast: dict[_Key, _Cast] = {}
        self._being_written: set[_Key] = set()
        for place, data in self._writer.journal.entries():
            ballot = read(data, BALLOT, audience=BALLOT_AUDIENCE)
            self._cast[_key(ballot)] = _Cast(ballot.body.value, place)

    def __len__(self) -> int:
        return len(self._cast)

    def find(self, agent: SpiffeId, decision: bytes, round_number: int) -> Sent | None:
        """Return the ballot that the agent has cast there, in the bytes in which it was sent."""
        found = self._cast.get(_Key(str(agent), decision, round_number))
        if found is None:
            return None
        data = self._writer.journal.read(found.place)
        envelope = read(data, BALLOT, audience=BALLOT_AUDIENCE).envelope
        return Sent(envelope.content.id, envelope.leaf, data, envelope.content.issued_at)

    def value(self, agent: SpiffeId, decision: bytes, round_number: int) -> bytes | None:
        """Return H(choice) of the ballot that the agent has cast there."""
        found = self._cast.get(_Key(str(agent), decision, round_number))
        return None if found is None else found.value

    async def append(self, data: bytes) -> None:
        """Keep a ballot; when this returns it is on the disk.

        Raises:
            ConflictError: ``already_balloted``.
            UnavailableError: ``log_failed``: the disk refuses; the ballot must not be sent.
        """
        ballot = read(data, BALLOT, audience=BALLOT_AUDIENCE)
        key = _key(ballot)
        if key in self._cast or key in self._being_written:
            raise ConflictError(f"{key.agent} has balloted in this round", reason="already_balloted")
        self._being_written.add(key)
        try:
            (place,) = await self._writer.append([data])
        finally:
            self._being_written.discard(key)
        self._cast[key] = _Cast(ballot.body.value, place)

    def close(self) -> None:
        """Close the file; call it when nothing is being cast."""
        self._writer.close()


class BallotCaster:
    """Casts the ballots of one process's agents."""

    def __init__(self, bus: Bus, log: BallotLog) -> None:
        self._bus = bus
        self._log = log
        self._casting: dict[_Key, tuple[bytes, asyncio.Task[Sent]]] = {}

    async def cast(
        self, agent: SpiffeId, proposal: Proposal, context: Context, option: int | None, reason: str = ""
    ) -> Sent:
        """Cast an agent's ballot in the first round, or send again the one that it has cast; see :meth:`cast_in`.

        Args:
            agent: one of this process's agents.
            proposal: what is being decided.
            context: the proposal's own; its leaf is the decision's id.
            option: index of the option; None abstains.
            reason: a line for people, cut at 512 characters.
        """
        question = Question.first(context.leaf, proposal)
        return await self.cast_in(agent, proposal.epoch, question, option, reason)

    async def cast_in(
        self,
        agent: SpiffeId,
        epoch: bytes,
        question: Question,
        option: int | None,
        reason: str = "",
        *,
        counter: Option | None = None,
    ) -> Sent:
        """Cast an agent's ballot in a round, or send again the one that it has cast.

        Args:
            agent: one of this process's agents.
            epoch: its digest.
            question: what the round asks; that it does was verified.
            option: index of the option; None abstains, unless there is a counter-proposal.
            reason: a line for people, cut at 512 characters.
            counter: what should be an option of the next round.

        Raises:
            InvalidInputError: ``no_such_option``; ``bad_choice``: an option and a counter-proposal.
            ConflictError: ``already_balloted``: for another choice.
            UnavailableError: the disk or the broker refuses; cast again later, the ballot stays the same.
        """
        if option is not None and counter is not None:
            raise InvalidInputError("an option or a counter-proposal, not both", reason="bad_choice")
        value = question.choice(option) if counter is None else question.counter(counter)
        decision, number = question.decision, question.round
        key = _Key(str(agent), decision, number)
        if (cast := self._log.value(agent, decision, number)) is not None:
            refuse_other(cast, value, agent)
        elif key in self._casting:
            going, task = self._casting[key]
            refuse_other(going, value, agent)
            await asyncio.shield(task)
        else:
            if len(self._casting) >= MAX_CASTING:
                raise ExhaustedError(f"{MAX_CASTING} ballots are being cast", reason="too_many_ballots")
            choice = Choice.ABSTAIN if option is None else Choice.OPTION
            ballot = Ballot(
                epoch=epoch,
                decision=decision,
                round=number,
                choice=choice if counter is None else Choice.COUNTER,
                option=option,
                value=value,
                reason=reason[:512],
                counter=counter,
            )
            # A task of its own: a caller that is cancelled leaves no ballot half cast.
            task = asyncio.create_task(self._keep(agent, ballot), name="ballot")
            self._casting[key] = (value, task)
            task.add_done_callback(lambda task: self._ended(key, task))
            return await self._send(agent, decision, await asyncio.shield(task))
        kept = self._log.find(agent, decision, number)
        assert kept is not None  # noqa: S101 - it is in the log, or its task has failed above
        return await self._send(agent, decision, kept)

    async def send_again(
        self, wanted: BallotsWanted, seats: Iterable[str], mine: Container[str]
    ) -> list[SpiffeId]:
        """Send again what agents have cast in a round, if it is wanted; return those that have cast nothing there.

        Args:
            wanted: what an instance lacks.
            seats: ids of the epoch's participants, in order.
            mine: ids of this process's agents.

        Raises:
            UnavailableError: the broker refuses.
        """
        silent = []
        for index, who in enumerate(seats):
            if who not in mine or not wanted.wants(index):
                continue
            agent = SpiffeId.parse(who)
            kept = self._log.find(agent, wanted.decision, wanted.round)
            if kept is None:
                silent.append(agent)
            else:
                await self._send(agent, wanted.decision, kept)
                self._bus.metrics.count("ballots_sent_again")
        return silent

    def _ended(self, key: _Key, task: asyncio.Task[Sent]) -> None:
        self._casting.pop(key, None)
        if not task.cancelled():
            task.exception()  # every caller may have been cancelled; those that wait are told by the shield

    async def _keep(self, agent: SpiffeId, ballot: Ballot) -> Sent:
        sent = await self._bus.make(BALLOT, ballot, audience=BALLOT_AUDIENCE, sender=agent)
        await self._log.append(sent.data)
        return sent

    async def _send(self, agent: SpiffeId, decision: bytes, sent: Sent) -> Sent:
        await self._bus.send(CONSENSUS_BALLOT.at(decision=decision.hex(), agent=agent.name), sent)
        return sent


def _key(ballot: Evidence[Ballot]) -> _Key:
    return _Key(str(ballot.sender), ballot.body.decision, ballot.body.round)


def refuse_other(cast: bytes, value: bytes, agent: SpiffeId) -> None:
    """Hold the rule of one choice: what was cast is sent again, and nothing else is ever cast in its place.

    Raises:
        ConflictError: ``already_balloted``.
    """
    if cast != value:
        raise ConflictError(f"{agent} has balloted for another choice", reason="already_balloted")
