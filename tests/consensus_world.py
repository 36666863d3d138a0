"""A simulated world of consensus: the very core under an adversary, a network, crashes and a clock of its own.

What runs is what the service runs: Protocol (with Deciding, Tally, Slot), the log's entries and their recovery, the
envelopes' codec, the checks of nested certificates, of pages and of the finished certificate, the proofs of
misbehaviour, and the agents' rule of one choice. Signatures are HMACs, so thousands of schedules take seconds; nobody
here signs for another. Everything follows from the seed: ``World(seed, hostile=1).run()`` again is the same again.

What a hostile instance may do is one of :data:`DEEDS`, each time drawn anew. Those of :data:`WAYS` run the honest core
and bend what leaves it.
"""

from __future__ import annotations

import hmac
import random
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from heapq import heappop, heappush
from typing import Any
from unittest.mock import patch

from council import DENY, DOMAIN, NOW_NS, OPTIONS, ballot_in, proposal_body

from tocsin.agent.ballots import refuse_other
from tocsin.bus.envelope import encode_body, encode_content, encode_envelope, make_content
from tocsin.consensus import deciding
from tocsin.consensus import round as rounds
from tocsin.consensus.deciding import Deciding
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
from tocsin.consensus.pace import Pace
from tocsin.consensus.passing import as_voted, open_page, pages
from tocsin.consensus.protocol import Protocol
from tocsin.consensus.round import Round
from tocsin.consensus.slot import Cast, Slot
from tocsin.consensus.store import Keeping, end_entry, recover
from tocsin.consensus.tally import Received
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import BALLOT, CONSENSUS_PROPOSAL, VOTE
from tocsin.contracts.decisions import (
    Counted,
    Equivocation,
    Option,
    Outcome,
    Proposal,
    RoundOpened,
    Shown,
    Step,
    Vote,
)
from tocsin.contracts.errors import ConflictError, TocsinError
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.subjects import MessageType
from tocsin.crypto import Algorithm, BatchVerifier, Proof, leaf_hash
from tocsin.crypto.batch import BATCH_CONTEXT, signed_message
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.choices import Question
from tocsin.evidence.epochs import InstalledEpoch, make_epoch
from tocsin.evidence.misbehaviour import contradicts, verify_misbehaviour
from tocsin.evidence.reading import Evidence, read
from tocsin.evidence.rounds import Opening, verify_opened
from tocsin.evidence.verification import _Case, _verifiers
from tocsin.evidence.votes import open_certificate, open_commit, verify_steps

MS = 1_000_000
AGENTS = 7
"""n: f = 2, q = 5."""
PACE = Pace(40 * MS, 640 * MS, 60 * MS, 200 * MS)
CHAOS_NS = 700 * MS
"""Until then messages are lost, doubled, held up by partitions, and instances crash."""
END_NS = 30_000 * MS
TICK_NS = 20 * MS
AUDIENCE = "service.consensus"
WAYS = ("silent", "delayed", "selective", "lock_liar", "omits_hqc", "twin", "puppet")
"""How a hostile instance runs: not at all, bending what leaves an honest core, twice with one key, or by deeds only."""
DEEDS = (
    "split",
    "anything",
    "replay",
    "hidden_qc",
    "forged_qc",
    "wrong_place",
    "bad_signature",
    "commit_liar",
    "wrong_next",
    "false_round",
)
THIRD = Option(name="limit", command=DENY.model_copy(update={"duration_s": 60}), text="Block it for a minute")
BETTER = Option(name="watch", command=None, text="Watch it")
"""What honest agents propose instead."""
EVIL = Option(name="evil", command=DENY.model_copy(update={"address": "192.0.2.1"}), text="Block another one")
"""What only hostile ones propose."""


class ViolationError(AssertionError):
    """A property that always holds did not."""


class HmacVerifier:
    """A public key of this world."""

    algorithm = Algorithm.ML_DSA_44

    def __init__(self, public_key: bytes) -> None:
        self.public_key = public_key
        self.key_id = sha256(public_key).digest()

    def verify(self, signature: bytes, message: bytes, context: bytes) -> bool:
        return hmac.compare_digest(signature, mac(self.public_key, message, context))


class HmacBackend:
    """Signatures that cost a hash."""

    name = "hmac"

    def verifier(self, algorithm: Algorithm, public_key: bytes) -> HmacVerifier:  # noqa: ARG002 - the interface
        return HmacVerifier(public_key)


BACKEND = HmacBackend()


def mac(public_key: bytes, message: bytes, context: bytes) -> bytes:
    return hmac.digest(public_key, context + message, "sha256")


def public_key_of(who: SpiffeId) -> bytes:
    return sha256(str(who).encode()).digest()


@cache
def epoch_of(instances: int, number: int) -> InstalledEpoch:
    """Return an epoch; its digest depends on nothing but its number, so schedules can be run again."""
    agents = [SpiffeId.agent(DOMAIN, Role.ADMIN, "a-0")]
    agents += [SpiffeId.agent(DOMAIN, Role.SENTINEL, f"s-{i}") for i in range(1, AGENTS)]
    services = [SpiffeId.service(DOMAIN, ServiceName.CONSENSUS, str(i)) for i in range(instances)]
    record = make_epoch(
        number=number,
        trust_domain=DOMAIN,
        participants=[(a, sha256(public_key_of(a)).digest(), 1) for a in agents],
        instances=[(s, sha256(public_key_of(s)).digest(), 1) for s in services],
        created_ns=NOW_NS,
    )
    return InstalledEpoch.from_record(record, sha256(f"epoch {instances} {number}".encode()).digest(), b"epoch")


@dataclass
class Node:
    """A process of an instance: its protocol, and the log from which the next process begins."""

    name: str
    protocol: Protocol
    log: list[bytes]
    keeping: Keeping = field(default_factory=Keeping)
    generation: int = 0
    """Of the process: what an earlier one had in hand is lost."""
    way: str = "honest"


@dataclass(order=True)
class Event:
    at_ns: int
    number: int
    act: Callable[[], None] = field(compare=False)


class World:
    """One schedule."""

    def __init__(  # noqa: PLR0915 - all that a schedule is
        self,
        seed: int,
        *,
        hostile: int = 1,
        hostile_agents: int | None = None,
        instances: int = 4,
        make_slot: type[Slot] = Slot,
        make_round: type[Round] = Round,
        quiet: bool = False,
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self.epoch = epoch_of(instances, 1)
        self.old_epoch = epoch_of(instances, 0)
        self.names = list(self.epoch.instances)
        self.ids = {name: SpiffeId.parse(name) for name in self.names}
        self.hostile = self.random.sample(self.names, hostile)
        self.agents = [SpiffeId.parse(seat.sender) for seat in self.epoch.epoch.participants]
        # The admin proposes, and is honest: who proposes two things proposes two decisions.
        many = hostile_agents if hostile_agents is not None else 2 if self.tolerable else 3
        self.bad_agents = self.random.sample(self.agents[1:], many)
        self.keys = {sha256(k).digest(): k for k in map(public_key_of, [*self.agents, *self.ids.values()])}
        self.batches = BatchVerifier(1_000_000)
        self.now_ns = NOW_NS
        self.chaos_until_ns = NOW_NS + (0 if quiet else CHAOS_NS)
        self.deadline_ms = self.random.choice((100, 100, 500))
        self.loss = self.random.choice((0.0, 0.05, 0.3))
        self.crash_rate = self.random.choice((0.0, 0.02, 0.06))
        self.cut: set[str] = set()
        self.events: list[Event] = []
        self.counter = 0
        self.make_slot = make_slot
        self.make_round = make_round
        self.opened: dict[bytes, Voted] = {}
        self.released: set[bytes] = set()
        self.known_votes: list[Voted] = []
        """What has left whoever signed it; what was signed and then lost in a crash is no one's word."""
        self.commits: dict[tuple[bytes, int], dict[bytes, set[str]]] = {}
        """By decision and round, the values that were committed, and by whom that is honest."""
        self.questions: dict[tuple[bytes, int], Question] = {}
        """What honest instances take rounds to ask."""
        self.nexts: dict[bytes, tuple[Option, ...]] = {}
        """What honest instances have computed for the next round, by NEXT."""
        self.announced: dict[bytes, list[End]] = {}
        self.accused: set[str] = set()
        self.refusals: Counter[str] = Counter()
        self.cast: dict[tuple[SpiffeId, bytes, int], dict[bytes, bytes]] = {}
        """By agent, decision and round: its ballots by H(choice)."""
        self.asked: dict[tuple[SpiffeId, bytes], Question] = {}
        self.told: set[bytes] = set()
        """Proposals that agents were sent."""
        """The last round of which an agent knows that it has begun."""
        self.countered: set[Option] = set()
        """By an honest agent."""
        self.could_close: set[tuple[bytes, int]] = set()
        self.rounds = self.random.choice((1, 1, 2, 3))
        self.options = (*OPTIONS, THIRD)[: self.random.choice((2, 2, 3))]
        self.proposals = [self._proposal(number) for number in range(self.random.choice((1, 1, 2)))]
        self.decisions = [proposal.leaf for proposal in self.proposals]
        self.favourite = self.random.choice((0, 0, 1, None, None))
        """What honest agents choose; None: each as it likes."""
        self.nodes: list[Node] = []
        for name in self.names:
            for way in self._ways(name):
                self.nodes.append(Node(name, self._protocol(name), [], way=way))

    def _ways(self, name: str) -> tuple[str, ...]:
        if name not in self.hostile:
            return ("honest",)
        way = self.random.choice(WAYS)
        return {"silent": (), "puppet": (), "twin": ("twin", "twin")}.get(way, (way,))

    # --- Running ------------------------------------------------------------------------------

    def run(self) -> World:
        """Run the schedule to its end.

        Raises:
            ViolationError: agreement, validity, or an honest one framed.
        """
        with patch.object(rounds, "Slot", self.make_slot), patch.object(deciding, "Round", self.make_round):
            self._run()
        return self

    def _run(self) -> None:
        for proposal in self.proposals:
            self._propose(proposal)
        for node in self.nodes:
            self._after(self.random.randrange(TICK_NS), lambda node=node: self._tick(node))  # type: ignore[misc]
        if self.hostile:
            self._after(5 * MS, self._misbehave)
        self._after(20 * MS, self._weather)
        while self.events and self.now_ns < NOW_NS + END_NS and not self.done:
            event = heappop(self.events)
            self.now_ns = event.at_ns
            event.act()

    @property
    def honest(self) -> list[Node]:
        return [node for node in self.nodes if node.way == "honest"]

    @property
    def done(self) -> bool:
        """Every decision is announced, and no honest instance has one open."""
        return set(self.announced) >= set(self.decisions) and not any(
            node.protocol.busy for node in self.honest
        )

    def _after(self, delay_ns: int, act: Callable[[], None]) -> None:
        self.counter += 1
        heappush(self.events, Event(self.now_ns + delay_ns, self.counter, act))

    def _protocol(self, name: str) -> Protocol:
        protocol = Protocol(name, pace=PACE)
        protocol.install(self.old_epoch)
        protocol.install(self.epoch)
        return protocol

    def _weather(self) -> None:
        """Crash, cut and heal."""
        if self.now_ns >= self.chaos_until_ns:
            self.cut = set()
            return
        if self.random.random() < 0.1:
            self.cut = set(self.random.sample(self.names, self.random.randint(0, 2)))
        for node in self.nodes:
            if self.random.random() < self.crash_rate:
                self._crash(node)
        self._after(20 * MS, self._weather)

    def _tick(self, node: Node) -> None:
        self._feed(node, lambda: node.protocol.tick(self.now_ns))
        self._after(TICK_NS, lambda: self._tick(node))

    # --- The network --------------------------------------------------------------------------

    def _deliver(self, sender: str, to: Node, act: Callable[[], None]) -> None:
        """Bring something to a node: late, twice or never while there is chaos."""
        chaos = self.now_ns < self.chaos_until_ns
        apart = (sender in self.cut) != (to.name in self.cut) and sender not in self.hostile
        if chaos and (self.random.random() < self.loss or apart):
            return
        for _ in range(2 if chaos and self.random.random() < 0.1 else 1):
            delay_ns = self.random.randrange(100_000, 30 * MS if chaos else 3 * MS)
            self._after(delay_ns, act)

    def _broadcast(self, sender: str, data: bytes, to: Iterable[Node] | None = None) -> None:
        if data not in self.released:
            self.released.add(data)
            with suppress(TocsinError):  # a forged one is nobody's
                self.known_votes.append(self._open(data))
        for node in self.nodes if to is None else to:
            if node.name != sender or node.way == "twin":
                self._deliver(sender, node, lambda node=node: self._take_vote(node, data))  # type: ignore[misc]

    # --- Agents -------------------------------------------------------------------------------

    def _proposal(self, number: int) -> Evidence[Proposal]:
        body = proposal_body(
            self.epoch.digest,
            subject=f"{self.seed}/{number}",
            deadline_ms=self.deadline_ms,
            rounds=self.rounds,
            options=self.options,
        )
        data = self._sign(self.agents[0], CONSENSUS_PROPOSAL, body, audience="all")
        return read(data, CONSENSUS_PROPOSAL, audience="all")

    def _propose(self, proposal: Evidence[Proposal]) -> None:
        """Send a proposal to everyone, once to agents, and to instances as long as nobody announces its end."""
        if proposal.leaf in self.announced:
            return
        for node in self.nodes:
            self._deliver(
                "admin",
                node,
                lambda node=node: self._feed(node, lambda: node.protocol.open(proposal, self.now_ns)),  # type: ignore[misc]
            )
        if proposal.leaf not in self.told:
            self.told.add(proposal.leaf)
            for agent in self.agents:
                if self.random.random() >= self.loss:
                    self._later(lambda agent=agent: self._hear(agent, proposal))  # type: ignore[misc]
        self._after(400 * MS, lambda: self._propose(proposal))

    def _hear(self, agent: SpiffeId, proposal: Evidence[Proposal]) -> None:
        first = Question.first(proposal.leaf, proposal.body)
        if self.asked.setdefault((agent, proposal.leaf), first).round == 1:
            self._ballot(agent, first)

    def _later(self, act: Callable[[], None]) -> None:
        self._after(self.random.randrange(20 * MS), act)

    def _ballot(self, agent: SpiffeId, question: Question) -> None:
        """Ballot by the rule of one choice, kept before it is sent; hostile agents say this here and that there."""
        kept = self.cast.setdefault((agent, question.decision, question.round), {})
        choices = [*range(len(question.options)), None]
        if agent in self.bad_agents:
            flood = Option(name="flood", command=None, text=str(self.random.randrange(1_000)))
            for node in self.nodes:
                choice = self.random.choice([*choices, *choices, EVIL, BETTER, flood])
                value, data = self._ballot_data(agent, question, choice)
                data = kept.setdefault(value, data)
                if self.random.random() < 0.8:
                    self._send_ballot(agent, data, [node])
            return
        choice = self._choose(question, choices)
        value, data = self._ballot_data(agent, question, choice)
        for cast in list(kept):
            try:
                refuse_other(cast, value, agent)
            except ConflictError:
                value = cast
        if not kept and self.random.random() < self.crash_rate:
            self.asked.pop((agent, question.decision), None)
            return  # crashed before it was kept: nothing was sent, and what it was asked is forgotten
        if not kept and isinstance(choice, Option):
            self.countered.add(choice)
        data = kept.setdefault(value, data)
        if self.random.random() >= self.crash_rate:
            self._send_ballot(agent, data, self.nodes)

    def _choose(self, question: Question, choices: list[int | None]) -> int | Option | None:
        if self.favourite is not None and question.round == 1:
            return self.favourite
        if question.round > 1 and self.random.random() < 0.6:
            return 0
        return self.random.choice([*choices, BETTER, BETTER])

    def _ballot_data(
        self, agent: SpiffeId, question: Question, choice: int | Option | None
    ) -> tuple[bytes, bytes]:
        body = ballot_in(self.epoch.digest, question, choice)
        return body.value, self._sign(agent, BALLOT, body)

    def _send_ballot(self, agent: SpiffeId, data: bytes, to: Iterable[Node]) -> None:
        ballot = read(data, BALLOT, audience=AUDIENCE)
        received = Received(ballot.body, agent, ballot.key_id, data)
        for node in to:
            self._deliver(
                str(agent),
                node,
                lambda node=node: self._feed(node, lambda: node.protocol.ballot(received, self.now_ns)),  # type: ignore[misc]
            )

    def _tell(self, sender: str, opened: RoundOpened) -> None:
        """Tell agents and instances that a round has begun."""
        for node in self.nodes:
            self._deliver(sender, node, lambda node=node: self._take_round(node, opened))  # type: ignore[misc]
        for agent in self.agents:
            if self.now_ns >= self.chaos_until_ns or self.random.random() >= self.loss:
                self._later(lambda agent=agent: self._ballot_again(agent, opened))  # type: ignore[misc]

    def _ballot_again(self, agent: SpiffeId, opened: RoundOpened) -> None:
        """Ballot in a further round, if it has indeed begun; tell again what was cast there."""
        known = self.asked.get((agent, opened.decision))
        proposal = next(p for p in self.proposals if p.leaf == opened.decision)
        if known is None or opened.round < known.round:
            return
        if opened.round > known.round:
            try:
                known = self._verify_opened(opened, proposal).question
            except TocsinError as error:
                self.refusals[error.reason] += 1
                return
            self.asked[agent, opened.decision] = known
            if self.tolerable and agent not in self.bad_agents and self._is_evil(known.options):
                self._violate("an honest agent is asked what no honest one has proposed")
        self._ballot(agent, known)

    def _is_evil(self, options: tuple[Option, ...]) -> bool:
        return any(option not in self.options and option not in self.countered for option in options)

    # --- Instances ----------------------------------------------------------------------------

    def _take_vote(self, node: Node, data: bytes) -> None:
        try:
            voted = self._open(data)
        except TocsinError as error:
            self.refusals[error.reason] += 1
            return
        self._feed(node, lambda: node.protocol.signed(voted, self.now_ns))

    def _open(self, data: bytes) -> Voted:
        """Verify a step and what it brings, as the bus and the service do; once for all nodes."""
        if (known := self.opened.get(data)) is not None:
            return known
        vote = read(data, VOTE, audience=AUDIENCE)
        epoch = self.old_epoch if vote.body.epoch == self.old_epoch.digest else self.epoch
        verify_steps([vote], epoch, self.keys.get, BACKEND, self.batches)  # type: ignore[arg-type]
        votes = open_certificate(vote.body, epoch)
        verify_steps(votes, epoch, self.keys.get, BACKEND, self.batches)  # type: ignore[arg-type]
        voted = Voted(vote.body, vote.sender, vote.key_id, data, as_voted(votes))
        self.opened[data] = voted
        return voted

    def _feed(self, node: Node, act: Callable[[], list[Effect]]) -> None:
        try:
            effects = act()
        except TocsinError as error:
            self.refusals[error.reason] += 1
            return
        if effects:
            self._carry_out(node, effects)
        self._observe(node)

    def _carry_out(self, node: Node, effects: list[Effect]) -> None:
        """Sign and give back at once; persist and let out a moment later, if the process lives so long."""
        cast: list[tuple[CastVote, bytes]] = []
        others: list[Effect] = []
        while effects:
            effect, *effects = effects
            if not isinstance(effect, CastVote):
                others.append(effect)
                continue
            data = self._sign(self.ids[node.name], VOTE, effect.vote)
            cast.append((effect, data))
            try:
                voted = self._open(data)
            except TocsinError as error:
                self._violate(f"an own step would be refused: {error}")
                return
            effects += node.protocol.signed(voted, self.now_ns)
        generation = node.generation
        opened = [other for other in others if isinstance(other, Opened)]

        def persist() -> None:
            if node.generation != generation:
                return  # crashed before it was kept: nothing leaves
            for effect in opened:
                node.log += node.keeping.opened(effect, self.keys.get)
            node.log += node.keeping.entries(cast, self.keys.get)
            if self.now_ns < self.chaos_until_ns and self.random.random() < self.crash_rate:
                self._crash(node)
                return
            for _, data in cast:
                self._send(node, data)
            for other in others:
                self._let_out(node, other)

        # One writer: entries are in the order in which they were cast, whatever each takes.
        self._after(2 * MS if cast or opened else 2 * MS + 1, persist)

    def _send(self, node: Node, data: bytes) -> None:
        if node.way == "selective":
            self._broadcast(node.name, data, [n for n in self.nodes if self.random.random() < 0.5])
        elif node.way == "delayed":
            self._after(self.random.randrange(400 * MS), lambda: self._broadcast(node.name, data))
        elif node.way in {"lock_liar", "omits_hqc"}:
            vote = self._open(data).vote
            step = Step.TIMEOUT if node.way == "lock_liar" else Step.PROPOSE
            if vote.step is step and vote.certificate:
                bare = {"high_view": None, "high_value": None, "certificate": ()}
                data = self._sign(self.ids[node.name], VOTE, vote.model_copy(update=bare))
            self._broadcast(node.name, data)
        else:
            self._broadcast(node.name, data)

    def _let_out(self, node: Node, effect: Effect) -> None:
        acts: dict[type, Callable[[Node, Any], None]] = {
            Opened: self._let_know,
            SendAgain: lambda node, effect: self._send(node, effect.data),
            Accuse: lambda _, effect: self._accuse(effect.proof),
            Ask: self._ask,
            Want: self._want,
            Show: self._show,
            LookUp: self._look_up,
            Forget: self._forget,
            End: self._end,
        }
        acts[type(effect)](node, effect)

    def _want(self, _: Node, want: Want) -> None:
        """Have agents send again what they have cast, or hear of the question; each is asked on its own way."""
        for agent in map(SpiffeId.parse, sorted(want.missing)):
            if agent in self.agents:
                self._later(lambda agent=agent: self._wanted(agent, want))  # type: ignore[misc]

    def _wanted(self, agent: SpiffeId, want: Want) -> None:
        if self.now_ns < self.chaos_until_ns and self.random.random() < self.loss:
            return
        cast = self.cast.get((agent, want.decision, want.round))
        if cast:
            for data in cast.values():
                self._send_ballot(agent, data, self.nodes)
        elif (agent, want.decision) not in self.asked:
            self._hear(agent, want.proposal)

    def _let_know(self, node: Node, effect: Opened) -> None:
        if effect.tell:
            self._tell(node.name, effect.opening.body(effect.epoch, self.keys.get))

    def _verify_opened(self, opened: RoundOpened, proposal: Evidence[Proposal]) -> Opening:
        body, sender = proposal.body, proposal.sender
        return verify_opened(opened, body, sender, self.epoch, self.keys.get, BACKEND, self.batches)  # type: ignore[arg-type]

    def _take_round(self, node: Node, opened: RoundOpened) -> None:
        proposal = node.protocol.proposal_of(opened.decision)
        if proposal is None or not node.protocol.lacks_round(opened.decision, opened.round):
            return
        try:
            opening = self._verify_opened(opened, proposal)
        except TocsinError as error:
            self.refusals[error.reason] += 1
            return
        self._feed(node, lambda: node.protocol.opened(opening, self.now_ns))

    def _ask(self, node: Node, ask: Ask) -> None:
        for other in self._named(ask.instance):

            def answer(other: Node = other) -> None:
                self._feed(other, lambda: other.protocol.asked(ask.decision, node.name, self.now_ns))

            self._deliver(node.name, other, answer)

    def _show(self, node: Node, show: Show) -> None:
        for page in pages(show, self.keys.get):
            for other in self._named(show.instance):

                def take(other: Node = other, page: Shown = page) -> None:
                    self._take_page(other, page)

                self._deliver(node.name, other, take)

    def _look_up(self, node: Node, effect: LookUp) -> None:
        if effect.decision in self.announced:
            self._feed(node, lambda: node.protocol.announced(effect.decision))
        else:
            self._feed(node, lambda: node.protocol.step_in(effect.decision, self.now_ns))

    def _forget(self, node: Node, effect: Forget) -> None:
        node.keeping.forget(effect.decision)
        node.log.append(end_entry(effect.decision, effect.until_ns))

    def _named(self, name: str) -> list[Node]:
        return [node for node in self.nodes if node.name == name]

    def _take_page(self, node: Node, page: Shown) -> None:
        if not node.protocol.awaits(page.decision):
            return

        def epoch_of_page(digest: bytes | None) -> InstalledEpoch | None:
            protocol = node.protocol
            return protocol.epoch_of(page.decision) if digest is None else protocol.known_epoch(digest)

        try:
            shown = open_page(page, epoch_of_page, self.keys.get, BACKEND, self.batches)  # type: ignore[arg-type]
        except TocsinError as error:
            self.refusals[error.reason] += 1
            return
        if shown.proposal is not None:
            proposal = shown.proposal
            self._feed(node, lambda: node.protocol.open(proposal, self.now_ns, shown=True))
        if (opening := shown.opening) is not None:
            self._feed(node, lambda: node.protocol.opened(opening, self.now_ns))
        for received in shown.ballots:
            self._feed(node, lambda received=received: node.protocol.ballot(received, self.now_ns))  # type: ignore[misc]
        if shown.commit:
            self._feed(node, lambda: node.protocol.settle(shown.commit, self.now_ns))
        if shown.following:
            self._feed(node, lambda: node.protocol.learn(page.decision, shown.following, self.now_ns))

    def _crash(self, node: Node) -> None:
        """End the process, and start the next one from the log, as the service does."""
        node.generation += 1
        node.protocol = self._protocol(node.name)
        recovered = recover(node.log, None)  # type: ignore[arg-type]  # only epochs need the root
        node.keeping = Keeping(recovered.keys)
        for decision, until_ns in recovered.ended.items():
            node.protocol.remember_ended(decision, until_ns)
        for decision, rest in recovered.unfinished.items():
            node.keeping.resume(decision, rest)
            self._feed(
                node,
                lambda rest=rest: node.protocol.restore(  # type: ignore[misc]
                    self.epoch,
                    rest.proposal,
                    rest.ballots,
                    rest.own,
                    self.now_ns,
                    opening=rest.opening,
                    following=rest.following,
                ),
            )

    # --- What always holds --------------------------------------------------------------------

    def _violate(self, what: str) -> None:
        raise ViolationError(f"seed {self.seed}: {what}")

    def _observe(self, node: Node) -> None:
        """Agreement and validity: of whatever an honest instance takes as committed."""
        if node.way != "honest":
            return
        for decision, going in node.protocol._deciding.items():
            question = going.round.question
            place = decision, question.round
            if going.round.late or going.tally.impossible:
                self.could_close.add(place)
            if self.questions.setdefault(place, question).options != question.options and self.tolerable:
                self._violate("two honest instances ask two things in one round")
            self.nexts |= going.round.following
            if going.round.opening.before:
                before = read(going.round.opening.before[0], VOTE, audience=AUDIENCE).body
                self.nexts[before.value or b""] = question.options
                self._committed(node, (decision, before.round), before.value or b"")
            if going.slot.commit is not None:
                self._committed(node, place, going.slot.commit.value)

    def _committed(self, node: Node, place: tuple[bytes, int], value: bytes) -> None:
        values = self.commits.setdefault(place, {})
        if value in values:
            values[value].add(node.name)
            return
        values[value] = {node.name}
        if self.tolerable and len(values) > 1:
            self._violate("two honest instances committed two outcomes")
        question = self.questions.get(place)
        if question is None:
            return  # a round that no honest instance is in any more: it was shown how the next one began
        decides = {question.decide(option): question.choice(option) for option in range(len(question.options))}
        if (chosen := decides.get(value)) is not None:
            voters = sum(chosen in cast for (_, *where), cast in self.cast.items() if tuple(where) == place)
            if voters < self.epoch.quorum.needed:
                self._violate(f"decided with {voters} ballots")
        elif self.tolerable:
            if place not in self.could_close:
                self._violate("not decided though no honest instance had a reason")
            self._check_undecided(question, value)

    def _check_undecided(self, question: Question, value: bytes) -> None:
        last = question.round == self.rounds
        if value in {question.close, question.insufficient}:
            if not last:
                self._violate("closed before the last round")
            return
        options = self.nexts.get(value)
        if last or options is None or question.next(options) != value:
            self._violate("committed what is no outcome")
        elif self._is_evil(options):
            self._violate("what no honest one has proposed came in")

    @property
    def tolerable(self) -> bool:
        """Whether no more are hostile than are tolerated."""
        return len(self.hostile) <= self.epoch.instance_faults

    def _end(self, node: Node, end: End) -> None:
        if node.way == "honest":
            self._committed(node, (end.decision, end.opening.question.round), end.commit.value)
            self._check_end(end)
            self.announced.setdefault(end.decision, []).append(end)
        node.keeping.forget(end.decision)
        node.log.append(end_entry(end.decision, self.now_ns + 10**12))

    def _check_end(self, end: End) -> None:
        """The certificate verifies as it does offline, but for the root."""
        votes = tuple(data for _, data in sorted(end.commit.votes.items()))
        try:
            verify_steps(
                open_commit(votes, self.epoch, end.decision, end.opening.question.round),
                self.epoch,
                self.keys.get,
                BACKEND,  # type: ignore[arg-type]
                self.batches,
            )
            if end.outcome is not Outcome.DECIDED:
                return
            assert end.ballots is not None
            ballots = end.ballots.ballots
            needed = {r.key_id for r in ballots} | {end.proposal.key_id}
            needed |= {self.epoch.instances[who].key_id for who in end.commit.votes} | end.opening.signers
            certificate = DecisionCertificate(
                epoch=self.epoch.data,
                proposal=end.proposal.data,
                options=end.opening.encoded_options,
                before=end.opening.before,
                ballots=tuple(r.data for r in ballots),
                votes=votes,
                keys=tuple(self.keys[one] for one in sorted(needed)),
            )
            case = _Case(DecisionCertificate.decode(certificate.encode()), self.epoch)
            verifiers = _verifiers(certificate, case, BACKEND)  # type: ignore[arg-type]
            for seat, evidence in case.signed():
                evidence.verify(verifiers[seat.key_id], self.batches)
        except TocsinError as error:
            self._violate(f"the certificate does not verify: {error}")

    def _accuse(self, proof: Equivocation) -> None:
        """Check a proof as anyone would; the honest are never proven guilty."""
        who = SpiffeId.parse(proof.accused)
        try:
            verify_misbehaviour(proof, self.epoch, public_key_of(who), BACKEND)  # type: ignore[arg-type]
        except TocsinError as error:
            self._violate(f"a proof that does not hold: {error.reason}")
        self.accused.add(proof.accused)
        if proof.accused not in {*self.hostile, *map(str, self.bad_agents)}:
            self._violate(f"{proof.accused} is honest and was framed")

    def provable(self) -> set[str]:
        """Return those against whom all that was ever signed makes a proof; nobody needs to have collected it."""
        guilty: set[str] = set()
        said: dict[tuple[str, bytes, int], list[Vote]] = {}
        for voted in self.known_votes:
            for one in (voted, *voted.votes):
                place = (str(one.sender), one.vote.decision, one.vote.round)
                if any(contradicts(vote, one.vote) for vote in said.get(place, [])):
                    guilty.add(place[0])
                said.setdefault(place, []).append(one.vote)
        return guilty

    def check(self) -> None:
        """Check what holds in the end."""
        if self.provable() - set(self.hostile):
            self._violate("what an honest instance signed contradicts itself")
        forked = any(len(values) > 1 for values in self.commits.values())
        if forked and len(self.provable()) <= self.epoch.instance_faults:
            self._violate("a fork left no evidence against more than g")
        if self.tolerable and not self.done:
            self._violate("it did not end though the network healed")

    @property
    def forked(self) -> bool:
        """Whether two outcomes of one decision were committed."""
        return any(len(values) > 1 for values in self.commits.values())

    # --- Signing, and who abuses it -----------------------------------------------------------

    def _sign(
        self,
        who: SpiffeId,
        kind: MessageType[Message],
        body: Message,
        *,
        audience: str = AUDIENCE,
        forge: bool = False,
    ) -> bytes:
        content = make_content(
            type_name=kind.name,
            sender=str(who),
            audience=audience,
            body=encode_body(body),
            now_ns=self.now_ns,
            ttl_ms=0,
        )._replace(id=self.random.randbytes(16))
        data = encode_content(content)
        public_key = public_key_of(who)
        signature = mac(b"" if forge else public_key, signed_message(leaf_hash(data), 1), BATCH_CONTEXT)
        proof = Proof(Algorithm.ML_DSA_44, signature, 0, 1, ())
        return encode_envelope(data, sha256(public_key).digest(), proof)

    def _misbehave(self) -> None:
        """Let a hostile instance do something, every few milliseconds, while there is something to gain."""
        who = self.random.choice(self.hostile)
        deed = self.random.choice(DEEDS if self.tolerable else (*DEEDS, *("split",) * len(DEEDS)))
        getattr(self, f"_{deed}")(who, self.random.choice(self.decisions))
        calm = self.now_ns > self.chaos_until_ns
        self._after(self.random.randrange(2 * MS, (120 if calm else 25) * MS), self._misbehave)

    def _question(self, decision: bytes) -> Question:
        """Return what a round asks that some instance is in, or about to be."""
        rounds = [going.round.question for going in self._going(decision)]
        first = next(Question.first(p.leaf, p.body) for p in self.proposals if p.leaf == decision)
        return self.random.choice([*rounds, first]) if rounds else first

    def _going(self, decision: bytes) -> list[Deciding]:
        return [n.protocol._deciding[decision] for n in self.nodes if decision in n.protocol._deciding]

    def _values(self, question: Question) -> list[bytes]:
        decided = [question.decide(option) for option in range(len(question.options))]
        nexts = [question.next(question.options), question.next((*question.options[:2], EVIL))]
        return [*decided, question.close, question.insufficient, *nexts]

    def _view_near(self, decision: bytes) -> int:
        views = [going.slot.view for going in self._going(decision)]
        return min(max(1, self.random.choice(views or [1]) + self.random.choice((0, 0, 0, 1, -1))), 999_999)

    def _vote(
        self,
        who: str,
        question: Question,
        step: Step,
        view: int,
        value: bytes | None,
        votes: list[Voted] | None = None,
        counted: Counted | None = None,
    ) -> bytes:
        brings = bool(votes) and step in {Step.PROPOSE, Step.TIMEOUT}
        high = votes[0].vote if votes and brings else None
        vote = Vote(
            step=step,
            epoch=self.epoch.digest,
            decision=question.decision,
            round=question.round,
            view=view,
            value=None if step is Step.TIMEOUT else value,
            high_view=None if high is None else high.view,
            high_value=None if high is None else high.value,
            certificate=tuple(v.data for v in votes or ()) if brings else (),
            counted=counted if step is Step.PROPOSE and not brings else None,
        )
        return self._sign(self.ids[who], VOTE, vote)

    def _split(self, who: str, decision: bytes) -> None:  # noqa: ARG002 - all hostile ones act as one
        """All hostile ones back one value towards one honest instance, another towards the next."""
        if not self.honest:
            return
        to = self.random.choice(self.honest)
        going = to.protocol._deciding.get(decision)
        question = self._question(decision) if going is None else going.round.question
        view = 1 if going is None else going.slot.view
        value = self.random.choice(self._values(question))
        counted = None
        if going is not None and (outcome := going.round.outcome) is not None and self.random.random() < 0.7:
            value = outcome
            counted = going.round._counted.get(value)
        certificate = self._some_qc(question, view) if self.random.random() < 0.5 else None
        for one in self.hostile:
            self._broadcast(
                one, self._vote(one, question, Step.PROPOSE, view, value, certificate, counted), [to]
            )
            for step in (Step.VOTE1, Step.VOTE2):
                self._broadcast(one, self._vote(one, question, step, view, value), [to])

    def _wrong_next(self, who: str, decision: bytes) -> None:
        """Propose a next round that does not follow from the ballots, or not from those that are named."""
        question, view = self._question(decision), self._view_near(decision)
        seats = list(self.epoch.seats)
        votes: dict[str, bytes] = {}
        for (agent, *place), cast in self.cast.items():
            if tuple(place) == (decision, question.round) and cast:
                votes[str(agent)] = self.random.choice(sorted(cast))
        for seat in self.random.sample(seats, self.random.choice((0, 0, 2, 7))):
            votes.pop(seat, None)
        if self.random.random() < 0.3:
            votes[self.random.choice(seats)] = question.counter(EVIL)
        values = sorted(set(votes.values()))
        counted = Counted(
            values=tuple(values),
            seats=bytes(values.index(votes[seat]) + 1 if seat in votes else 0 for seat in seats),
        )
        wrong = [
            (*question.options[:2], EVIL),
            question.options[:2][::-1],
            question.options,
            (*question.options[:2], BETTER),
        ]
        value = question.next(self.random.choice(wrong))
        self._broadcast(who, self._vote(who, question, Step.PROPOSE, view, value, None, counted))
        for one in self.hostile:
            for step in (Step.VOTE1, Step.VOTE2):
                self._broadcast(one, self._vote(one, question, step, view, value))

    def _false_round(self, who: str, decision: bytes) -> None:
        """Tell of a round that has not begun, or of other options than were committed; or of a true one, late."""
        votes: dict[tuple[int, int, bytes], dict[str, bytes]] = {}
        for voted in self.known_votes:
            vote = voted.vote
            if vote.decision == decision and vote.step is Step.VOTE2 and vote.value is not None:
                votes.setdefault((vote.round, vote.view, vote.value), {})[str(voted.sender)] = voted.data
        if not votes:
            return
        place = self.random.choice(sorted(votes))
        if place[0] >= 10:
            return
        question = self._question(decision)
        true = self.nexts.get(place[2], question.options)
        options = self.random.choice((true, (*question.options[:2], EVIL), question.options[::-1]))
        opened = RoundOpened(
            epoch=self.epoch.digest,
            decision=decision,
            round=place[0] + 1,
            options=options,
            commit=tuple(votes[place].values()),
            keys=(),
        )
        self._tell(who, opened)

    def _anything(self, who: str, decision: bytes) -> None:
        question = self._question(decision)
        step, view = self.random.choice(list(Step)), self._view_near(decision)
        value = self.random.choice(self._values(question))
        if self.random.random() < 0.1:
            view = self.random.choice((999_999, min(view + 9, 999_999)))
        to = self.random.sample(self.nodes, self.random.randint(0, len(self.nodes)))
        self._broadcast(who, self._vote(who, question, step, view, value, self._some_qc(question, view)), to)

    def _replay(self, who: str, decision: bytes) -> None:  # noqa: ARG002
        if self.known_votes:
            self._broadcast("", self.random.choice(self.known_votes).data)

    def _certs(self, question: Question) -> dict[tuple[int, bytes], list[Voted]]:
        """Return every QC1 that can be put together from what was signed, with the hostile ones' help."""
        by_place: dict[tuple[int, bytes], dict[str, Voted]] = {}
        where = question.decision, question.round
        for voted in self.known_votes:
            vote = voted.vote
            if vote.step is Step.VOTE1 and (vote.decision, vote.round) == where and vote.value is not None:
                by_place.setdefault((vote.view, vote.value), {})[str(voted.sender)] = voted
        found = {}
        for (view, value), votes in by_place.items():
            for one in self.hostile:
                if one not in votes:
                    votes[one] = self._open(self._vote(one, question, Step.VOTE1, view, value))
            if len(votes) >= self.epoch.instance_quorum:
                found[view, value] = list(votes.values())[: self.epoch.instance_quorum]
        return found

    def _some_qc(self, question: Question, below: int) -> list[Voted] | None:
        certs = [votes for (view, _), votes in self._certs(question).items() if view < below]
        return self.random.choice([None, *certs])

    def _hidden_qc(self, who: str, decision: bytes) -> None:
        """Show a certificate late, and to one."""
        question, view = self._question(decision), self._view_near(decision)
        certificate = self._some_qc(question, view)
        if certificate:
            step = self.random.choice((Step.PROPOSE, Step.TIMEOUT))
            data = self._vote(who, question, step, view, certificate[0].vote.value, certificate)
            self._broadcast(who, data, [self.random.choice(self.nodes)])

    def _forged_qc(self, who: str, decision: bytes) -> None:
        """A certificate with too few votes, one vote twice, or votes of elsewhere."""
        votes = [v for v in self.known_votes if v.vote.step in {Step.VOTE1, Step.VOTE2}]
        if votes:
            some = self.random.choices(votes, k=self.random.choice((1, 2, 3, 3, 4)))
            question = self._question(decision)
            value = self.random.choice(self._values(question))
            self._broadcast(who, self._vote(who, question, Step.PROPOSE, 9, value, some))

    def _wrong_place(self, who: str, decision: bytes) -> None:
        """What another decision's, round's or epoch's place would make good."""
        places: list[dict[str, object]] = [
            {"epoch": self.old_epoch.digest},
            {"round": self.random.randint(1, 10)},
            {"decision": bytes(32)},
        ]
        place = self.random.choice(places)
        question = self._question(decision)
        vote = self._open(self._vote(who, question, Step.VOTE2, 1, question.close)).vote
        self._broadcast(who, self._sign(self.ids[who], VOTE, vote.model_copy(update=place)))

    def _bad_signature(self, who: str, decision: bytes) -> None:  # noqa: ARG002
        """Speak in an honest one's name."""
        victim = self.ids[self.random.choice(self.names)]
        question = self._question(decision)
        vote = Vote(
            step=Step.VOTE2,
            epoch=self.epoch.digest,
            decision=decision,
            round=question.round,
            view=1,
            value=self.random.choice(self._values(question)),
        )
        self._broadcast("", self._sign(victim, VOTE, vote, forge=True))

    def _commit_liar(self, who: str, decision: bytes) -> None:
        """Show a commit that was put together from other votes."""
        votes = [v.data for v in self.known_votes if v.vote.step in {Step.VOTE1, Step.VOTE2}]
        if len(votes) < 3:
            return
        page = Shown(
            decision=decision, proposal=None, ballots=(), commit=tuple(self.random.sample(votes, 3)), keys=()
        )
        node = self.random.choice(self.nodes)
        self._deliver(who, node, lambda: self._take_page(node, page))


class Credulous(Round):
    """A mutant: it votes for a next round without having recomputed it."""

    def _recomputes(self, value: bytes) -> bool:  # noqa: ARG002
        return True


class Unlocked(Slot):
    """A mutant: it forgets its lock."""

    def _open(self, value: bytes, high: object) -> bool:
        self.lock = None
        return super()._open(value, high)  # type: ignore[arg-type]


class Double(Slot):
    """A mutant: it votes for whatever is proposed, however often."""

    def _once(self, step: Step, value: bytes | None, high: object) -> list[Cast]:
        if step is Step.VOTE1 and value is not None:
            seen = self.__dict__.setdefault("seen", set())
            if (self.view, value) in seen:
                return []
            seen.add((self.view, value))
            self._cast.discard((step, self.view))
        return super()._once(step, value, high)  # type: ignore[arg-type]

    def _take(self, message: object) -> None:
        if getattr(message, "step", None) is Step.PROPOSE:
            self._proposals.pop(message.view, None)  # type: ignore[attr-defined]
        super()._take(message)  # type: ignore[arg-type]


class SmallQuorum(Slot):
    """A mutant: two of four are enough for it."""

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self._quorum -= 1
