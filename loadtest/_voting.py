"""A worker that ballots for many agents: signed ahead of the proposal, or after it as every agent for itself.

Ballots that are signed ahead are held by the worker and sent when the proposal is heard, so that an instance of
consensus, and not the signing, is what is measured. Ballots that are signed after it go the way that a host's go:
signed by the agent's key, kept on the disk, then sent (:class:`~tocsin.agent.ballots.BallotCaster`).

Hostile agents break their word in one of the ways of :class:`Conduct`. They are this program's own: nothing of
the system is changed for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import uvloop
from _host import KeyPlan
from _worker import Said, hear, say
from pydantic import BaseModel, ConfigDict

from tocsin.agent.ballots import BallotCaster, BallotLog
from tocsin.agent.epochs import EpochReader
from tocsin.bus import Bus, BusSettings, Context, Credentials, Sent
from tocsin.bus.envelope import decode_envelope, encode_envelope
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import BALLOT, CONSENSUS_BALLOT, CONSENSUS_WANTED, DELIVER_ALL
from tocsin.contracts.decisions import Ballot, BallotsWanted, Choice, Proposal
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto import select_backend
from tocsin.evidence.choices import choice_digest
from tocsin.evidence.verification import CONSENSUS_AUDIENCE
from tocsin.telemetry import Metrics, configure_logging, set_aside

OPTIONS = 2
FLOOD = 20


class Conduct(StrEnum):
    """What a hostile agent does."""

    OPPOSE = "oppose"
    """It votes for what the honest do not want."""
    EQUIVOCATE = "equivocate"
    """It votes for both, one after the other."""
    SILENT = "silent"
    FORGE = "forge"
    """It votes in an honest agent's name, under its own key, and its own ballot has a wrong signature."""
    REPLAY = "replay"
    """It sends its ballot of the decision before in place of one, and its own three times."""
    FLOOD = "flood"
    """It sends its ballot with so many wrong signatures, each another one, before the right one."""


class VotingPlan(BaseModel):
    """What a worker is told."""

    model_config = ConfigDict(frozen=True)

    nats_url: str
    nats_token_file: str
    signature_backend: str
    credentials_dir: str
    state_dir: str
    own: KeyPlan
    """The process's own key; with a key for each host, its agents' too. The first id is the host's."""
    keys: tuple[KeyPlan, ...]
    """Keys of single agents."""
    agents: tuple[str, ...]
    """SPIFFE ids of those that ballot."""
    hostile: dict[str, Conduct]
    """By SPIFFE id."""
    victim: str
    """An honest agent of another worker, in whose name is forged."""
    live: bool
    """Ballots are signed after the proposal was heard."""


class Ahead(BaseModel):
    """From the program: decisions to sign ballots for, before their proposals are sent."""

    epoch: bytes
    decisions: tuple[bytes, ...]

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


def wanted(decision: bytes) -> int:
    """Return the option that all honest agents vote for."""
    return decision[-1] % OPTIONS


def hostile_conduct(hostile: Iterable[SpiffeId]) -> dict[str, Conduct]:
    """Share the ways to be hostile among agents, in turn."""
    ways = tuple(Conduct)
    return {str(who): ways[number % len(ways)] for number, who in enumerate(hostile)}


class Voters:
    """One process's agents."""

    def __init__(self, plan: VotingPlan) -> None:
        self._plan = plan
        self._agents = [SpiffeId.parse(text) for text in plan.agents]
        self._folder = Path(plan.credentials_dir)
        backend = select_backend(plan.signature_backend)
        own = SpiffeId.parse(plan.own.ids[0])
        self._bus = Bus(
            BusSettings(
                nats_url=plan.nats_url,
                nats_token_file=Path(plan.nats_token_file),
                credentials_dir=self._folder,
                signature_backend=plan.signature_backend,
            ),
            Credentials.load(self._folder, own, plan.own.name, backend),
            Metrics(),
        )
        self._log = BallotLog(Path(plan.state_dir) / f"{own.name}.ballots")
        self._caster = BallotCaster(self._bus, self._log)
        self._epochs = EpochReader(self._bus)
        self._ahead: dict[bytes, list[tuple[str, Sent]]] = {}
        self._last: dict[str, Sent] = {}
        """Each agent's ballot of the decision before."""

    async def run(self) -> None:
        """Ballot until the program says that it is over."""
        chains = []
        for key in self._plan.keys:
            ids = tuple(map(SpiffeId.parse, key.ids))
            credentials = Credentials.load(self._folder, ids[0], key.name, self._bus.backend)
            self._bus.add_key(credentials.key, ids)
            chains.append((ids[0], credentials.chain))
        async with self._bus:
            await asyncio.gather(*(self._bus.put_identity(who, chain) for who, chain in chains))
            await self._bus.subscribe(DELIVER_ALL, self._on_delivery)
            await self._bus.subscribe(CONSENSUS_WANTED, self._on_wanted)
            say(Said(state="ready"))
            while (line := await hear()).strip() != "finish":
                ahead = Ahead.model_validate_json(line)
                for decision in ahead.decisions:
                    self._ahead[decision] = [one async for one in self._make(ahead.epoch, decision)]
                say(Said(state="signed"))
        self._log.close()
        say(Said(state="done"))

    async def _on_wanted(self, wanted: BallotsWanted, _: Context) -> None:
        if (epoch := await self._epochs.find(wanted.epoch)) is not None:
            await self._caster.send_again(
                wanted, epoch.seats, set(self._plan.agents) - self._plan.hostile.keys()
            )

    async def _on_delivery(self, body: Message, context: Context) -> None:
        if not isinstance(body, Proposal):
            return
        if self._plan.live:
            option = wanted(context.leaf)
            await asyncio.gather(*(self._caster.cast(who, body, context, option) for who in self._agents))
            return
        for subject, sent in self._ahead.pop(context.leaf, ()):
            await self._bus.send(subject, sent)

    async def _make(self, epoch: bytes, decision: bytes) -> AsyncIterator[tuple[str, Sent]]:
        """Yield what all agents send for one decision, with its subjects."""
        honest = wanted(decision)
        other = (honest + 1) % OPTIONS
        for many in await asyncio.gather(
            *(self._of(who, epoch, decision, honest, other) for who in self._agents)
        ):
            for subject, sent in many:
                yield subject, sent

    async def _of(
        self, who: SpiffeId, epoch: bytes, decision: bytes, honest: int, other: int
    ) -> list[tuple[str, Sent]]:
        conduct = self._plan.hostile.get(str(who))
        if conduct is Conduct.SILENT:
            return []
        subject = CONSENSUS_BALLOT.at(decision=decision.hex(), agent=who.name)
        mine = await self._sign(who, epoch, decision, honest if conduct is None else other)
        sent = [(subject, mine)]
        if conduct is Conduct.EQUIVOCATE:
            sent.append((subject, await self._sign(who, epoch, decision, honest)))
        elif conduct is Conduct.FORGE:
            # No key here speaks for the victim, so the process's own signs.
            victim = SpiffeId.parse(self._plan.victim)
            at = CONSENSUS_BALLOT.at(decision=decision.hex(), agent=victim.name)
            sent = [(at, await self._sign(victim, epoch, decision, other)), (subject, _broken(mine, 1))]
        elif conduct is Conduct.REPLAY:
            before, self._last[str(who)] = self._last.get(str(who), mine), mine
            sent = [(subject, before), *sent, *sent, *sent]
        elif conduct is Conduct.FLOOD:
            sent = [*((subject, _broken(mine, number)) for number in range(1, FLOOD + 1)), *sent]
        return sent

    async def _sign(self, who: SpiffeId, epoch: bytes, decision: bytes, option: int) -> Sent:
        ballot = Ballot(
            epoch=epoch,
            decision=decision,
            round=1,
            choice=Choice.OPTION,
            option=option,
            value=choice_digest(decision, 1, option),
        )
        return await self._bus.make(BALLOT, ballot, audience=CONSENSUS_AUDIENCE, sender=who)


def _broken(sent: Sent, change: int) -> Sent:
    """Return an envelope with one byte of its signature changed: it decodes, and does not hold."""
    envelope = decode_envelope(sent.data, max_bytes=len(sent.data))
    signature = envelope.proof.signature
    proof = replace(envelope.proof, signature=bytes([signature[0] ^ change]) + signature[1:])
    return sent._replace(data=encode_envelope(envelope.content_bytes, envelope.key_id, proof))


async def main() -> None:
    """Read the plan, and ballot."""
    configure_logging("voting", level="error")
    plan = VotingPlan.model_validate_json(await hear())
    set_aside()
    await Voters(plan).run()


if __name__ == "__main__":
    uvloop.run(main())
