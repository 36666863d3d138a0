"""What must survive: this instance's steps, and with each what it rests on.

One append-only log (:mod:`tocsin.evidence.journal`). Each entry is a letter and the bytes as they came: ``N`` when
the log was begun, ``E`` an epoch record of the root, ``S`` an epoch that was decided, ``P`` a proposal, ``B`` a
ballot, ``K`` a public key, ``Q`` a VOTE1 that a VOTE2 rests on, ``V`` an own step, ``R`` how a later round began,
``O`` options that a step was cast to go on with, ``D`` the id of a decision that was announced and until when its
proposal is good. A step stands in one append with what it rests on (proposal, round, ballots, QC1, options), so after a
crash either all of it is there, or none, and then nothing was sent.

The log only grows: 120 kB for each decision of 40 agents, 2.1 MB for 847 with a key each, and once 2 kB for each key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import msgpack

from tocsin.bus.envelope import decode_body, encode_body, unpack
from tocsin.bus.folder import claim_folder
from tocsin.consensus.effects import CastVote, Opened, Voted
from tocsin.consensus.tally import Received
from tocsin.contracts.catalogue import BALLOT, CONSENSUS_PROPOSAL, VOTE
from tocsin.contracts.decisions import MAX_OPTIONS, Option, Proposal, RoundOpened, Step, Vote
from tocsin.contracts.errors import InvariantBrokenError, TocsinError
from tocsin.crypto import TrustStore, key_id
from tocsin.evidence.choices import Question
from tocsin.evidence.epochs import InstalledEpoch, open_epoch
from tocsin.evidence.journal import Journal, JournalWriter
from tocsin.evidence.reading import Evidence, read
from tocsin.evidence.rounds import Opening
from tocsin.evidence.succession import pack_epoch, unpack_epoch
from tocsin.evidence.verification import CONSENSUS_AUDIENCE
from tocsin.evidence.votes import KeyOf

LAYOUT = 1
"""Of the folder that the log is in."""
_BEGUN, _EPOCH, _DECIDED, _PROPOSAL, _BALLOT, _KEY, _VOTE1, _VOTE, _DONE, _ROUND, _OPTIONS = (
    letter.encode() for letter in "NESPBKQVDRO"
)


@dataclass(slots=True)
class Unfinished:
    """A decision that was voted on and not announced."""

    proposal: Evidence[Proposal]
    ballots: list[Received] = field(default_factory=list)
    own: list[Voted] = field(default_factory=list)
    """In the order in which they were taken."""
    votes1: list[Voted] = field(default_factory=list)
    opening: Opening | None = None
    """Of the last round that had begun, if it is not the first."""
    following: set[tuple[int, tuple[Option, ...]]] = field(default_factory=set)
    """Rounds, and the options that it has voted there to go on with."""


@dataclass(slots=True)
class Recovered:
    """What the log held."""

    begun_ns: int | None = None
    """When the log was begun; None for a log of a version that did not say."""
    epochs: dict[bytes, InstalledEpoch] = field(default_factory=dict)
    """By digest, in the order of installation."""
    keys: dict[bytes, bytes] = field(default_factory=dict)
    unfinished: dict[bytes, Unfinished] = field(default_factory=dict)
    ended: dict[bytes, int] = field(default_factory=dict)
    """Until when each announced decision's proposal is good."""


class VoteLog:
    """The log of one instance."""

    def __init__(self, writer: JournalWriter) -> None:
        self._writer = writer

    @classmethod
    async def open(cls, path: Path, trust: TrustStore, now_ns: int) -> tuple[Self, Recovered]:
        """Open the log and read what it holds, in a thread; begin it, if it is new.

        Raises:
            UnavailableError: the disk refuses.
            ConflictError: ``log_in_use``, or ``state_version``: the folder has another layout.
            InvariantBrokenError: ``damaged_log``.
        """
        await asyncio.to_thread(claim_folder, path.parent, layout=LAYOUT)
        journal, recovered = await asyncio.to_thread(_recover, path, trust)
        log = cls(JournalWriter(journal))
        if recovered == Recovered():
            recovered.begun_ns = now_ns
            await log._writer.append([_BEGUN + now_ns.to_bytes(8, "big")])
        return log, recovered

    async def keep_epoch(self, epoch: InstalledEpoch) -> None:
        """Keep an epoch record."""
        entry = _EPOCH + epoch.data if epoch.is_checkpoint else _DECIDED + pack_epoch(epoch)
        await self._writer.append([entry])

    async def keep_steps(self, entries: Sequence[bytes]) -> None:
        """Keep rounds, and steps with what they rest on, as :class:`Keeping` has put them; then they may be sent."""
        await self._writer.append(entries)

    async def keep_end(self, decision: bytes, until_ns: int) -> None:
        """Keep that a decision was announced."""
        await self._writer.append([end_entry(decision, until_ns)])

    async def close(self) -> None:
        """Close the log."""
        await asyncio.to_thread(self._writer.close)


@dataclass(slots=True)
class _Kept:
    """What the log holds of a decision; its proposal in any case."""

    round: int = 1
    ballots: int = 0
    """Of that round."""
    following: set[tuple[int, tuple[Option, ...]]] = field(default_factory=set)


class Keeping:
    """Which entries a step needs: the first of a decision its proposal, the first of a round how that began.

    A key is kept once, with the first that needs it.
    """

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        """Begin with a log that has the keys of these ids."""
        self._kept: dict[bytes, _Kept] = {}
        self._keys = set(keys)

    def resume(self, decision: bytes, rest: Unfinished) -> None:
        """Know what the log holds of a decision already."""
        number = 1 if rest.opening is None else rest.opening.question.round
        ballots = sum(received.ballot.round == number for received in rest.ballots)
        self._kept[decision] = _Kept(number, ballots, set(rest.following))

    def forget(self, decision: bytes) -> None:
        """Know that nothing more will be kept of a decision."""
        self._kept.pop(decision, None)

    def opened(self, opened: Opened, key_of: KeyOf) -> list[bytes]:
        """Return the entries that say that a round has begun."""
        return self._begun(opened.epoch, opened.proposal, opened.opening, key_of)

    def entries(self, cast: Iterable[tuple[CastVote, bytes]], key_of: KeyOf) -> list[bytes]:
        """Return the entries for steps, each with the envelope that it was signed as."""
        entries: list[bytes] = []
        keys: set[bytes] = set()
        for effect, data in cast:
            entries += self._begun(effect.epoch, effect.proposal, effect.opening, key_of)
            kept = self._kept[effect.vote.decision]
            if kept.round == effect.vote.round and len(effect.ballots) > kept.ballots:
                entries += [_BALLOT + received.data for received in effect.ballots]
                keys |= {received.key_id for received in effect.ballots}
                kept.ballots = len(effect.ballots)
            following = (effect.vote.round, effect.following)
            if effect.following and following not in kept.following:
                kept.following.add(following)
                entries.append(_OPTIONS + effect.vote.decision + _pack_options(*following))
            if effect.vote.step is Step.VOTE2 and effect.high is not None:
                entries += [_VOTE1 + vote1 for vote1 in effect.high.votes.values()]
            entries.append(_VOTE + data)
        return self._new_keys(keys, key_of) + entries

    def _begun(
        self, epoch: InstalledEpoch, proposal: Evidence[Proposal], opening: Opening, key_of: KeyOf
    ) -> list[bytes]:
        entries: list[bytes] = []
        kept = self._kept.get(proposal.leaf)
        if kept is None:
            kept = self._kept[proposal.leaf] = _Kept()
            entries += [*self._new_keys({proposal.key_id}, key_of), _PROPOSAL + proposal.data]
        if opening.question.round > kept.round:
            kept.round, kept.ballots = opening.question.round, 0
            entries.append(_ROUND + encode_body(opening.body(epoch, key_of)))
        return entries

    def _new_keys(self, key_ids: set[bytes], key_of: KeyOf) -> list[bytes]:
        found = {one: key for one in sorted(key_ids - self._keys) if (key := key_of(one)) is not None}
        self._keys |= found.keys()
        return [_KEY + key for key in found.values()]


def _pack_options(round_number: int, options: Sequence[Option]) -> bytes:
    return bytes((round_number,)) + bytes(msgpack.packb([encode_body(option) for option in options]))


def _unpack_options(data: bytes) -> tuple[int, tuple[Option, ...]]:
    packed = unpack(data[1:], max_array=MAX_OPTIONS)
    return data[0], tuple(decode_body(Option, one) for one in packed)


def end_entry(decision: bytes, until_ns: int) -> bytes:
    """Return the entry that says that a decision was announced."""
    return _DONE + decision + until_ns.to_bytes(8, "big")


def recover(entries: Iterable[bytes], trust: TrustStore) -> Recovered:
    """Read entries in their order.

    Raises:
        TocsinError: they are no log's.
    """
    recovered = Recovered()
    for entry in entries:
        _take(recovered, entry[:1], entry[1:], trust)
    return recovered


def _recover(path: Path, trust: TrustStore) -> tuple[Journal, Recovered]:
    journal = Journal(path)
    try:
        recovered = recover((entry for _, entry in journal.entries()), trust)
    except TocsinError as error:
        journal.close()
        raise InvariantBrokenError(f"{path.name}: {error}", reason="damaged_log") from error
    return journal, recovered


def _take(recovered: Recovered, letter: bytes, data: bytes, trust: TrustStore) -> None:
    if letter == _EPOCH:
        epoch = open_epoch(data, trust)
        recovered.epochs[epoch.digest] = epoch
    elif letter == _DECIDED:
        epoch = unpack_epoch(data, trust)
        recovered.epochs[epoch.digest] = epoch
    elif letter == _KEY:
        recovered.keys[key_id(data)] = data
    elif letter == _BEGUN:
        recovered.begun_ns = int.from_bytes(data[:8], "big")
    elif letter == _DONE:
        recovered.unfinished.pop(data[:32], None)
        recovered.ended[data[:32]] = int.from_bytes(data[32:40], "big")
    else:
        _take_up(recovered, letter, data)


def _take_up(recovered: Recovered, letter: bytes, data: bytes) -> None:
    """Take an entry of a decision."""
    unfinished = recovered.unfinished
    if letter == _PROPOSAL:
        proposal = read(data, CONSENSUS_PROPOSAL, audience="all")
        unfinished.setdefault(proposal.leaf, Unfinished(proposal))
    elif letter == _BALLOT:
        ballot = read(data, BALLOT, audience=CONSENSUS_AUDIENCE)
        received = Received(ballot.body, ballot.sender, ballot.key_id, data, ballot.envelope)
        unfinished[ballot.body.decision].ballots.append(received)
    elif letter == _VOTE:
        own = _voted(data)
        rest = unfinished[own.vote.decision]
        rest.own.append(replace(own, votes=_rests_on(own.vote, rest)))
    elif letter == _VOTE1:
        vote1 = _voted(data)
        unfinished[vote1.vote.decision].votes1.append(vote1)
    elif letter == _ROUND:
        opened = decode_body(RoundOpened, data)
        recovered.keys |= {key_id(key): key for key in opened.keys}
        question = Question(opened.decision, opened.round, opened.options)
        unfinished[opened.decision].opening = Opening(question, opened.commit)
    elif letter == _OPTIONS:
        unfinished[data[:32]].following.add(_unpack_options(data[32:]))
    else:
        raise InvariantBrokenError(f"an entry {letter!r}", reason="damaged_log")


def _voted(data: bytes) -> Voted:
    vote = read(data, VOTE, audience=CONSENSUS_AUDIENCE)
    return Voted(vote.body, vote.sender, vote.key_id, data)


def _rests_on(vote: Vote, rest: Unfinished) -> tuple[Voted, ...]:
    """Return the VOTE1 of the QC1 that an own step rests on: of those kept for a VOTE2, else within the step."""
    if vote.step is Step.VOTE2:
        here = (vote.round, vote.view, vote.value)
        votes1 = (v for v in rest.votes1 if (v.vote.round, v.vote.view, v.vote.value) == here)
        return tuple({v.sender: v for v in votes1}.values())
    return tuple(_voted(data) for data in vote.certificate)
