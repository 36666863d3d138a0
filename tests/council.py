"""What tests of evidence and consensus share: a root, agents on hosts, instances, and what they sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from tocsin.bus.envelope import encode_body, encode_content, encode_envelope, make_content
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import BALLOT, CONSENSUS_EPOCH, CONSENSUS_PROPOSAL, VOTE
from tocsin.contracts.decisions import Ballot, Choice, Epoch, Option, Proposal, Step, Vote
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.response import Action, Command
from tocsin.contracts.subjects import MessageType
from tocsin.crypto import Algorithm, Authority, LocalKey, TrustStore, select_backend, sign_batch
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.choices import Question, choice_digest, decide_value
from tocsin.evidence.epochs import InstalledEpoch, make_epoch, open_epoch
from tocsin.evidence.reading import Evidence, read

DOMAIN = "council.tocsin"
NOW_NS = 1_790_000_000_000_000_000
AUDIENCE = "service.consensus"
DENY = Command(action=Action.DENY, address="203.0.113.9", duration_s=3600)
OPTIONS = (Option(name="deny", command=DENY, text="Block it"), Option(name="wait", command=None, text="Wait"))


def proposal_body(
    epoch: bytes,
    *,
    subject: str = "scan",
    deadline_ms: int = 5_000,
    rounds: int = 1,
    options: tuple[Option, ...] = OPTIONS,
) -> Proposal:
    """Return a question, by default with two options."""
    return Proposal(
        epoch=epoch,
        workflow=bytes(16),
        subject=subject,
        evidence=("one",),
        assessment=bytes(32),
        options=options,
        deadline_ms=deadline_ms,
        rounds=rounds,
    )


def ballot_body(epoch: bytes, decision: bytes, option: int | None, *, round_number: int = 1) -> Ballot:
    """Return a ballot whose digest fits its choice."""
    return Ballot(
        epoch=epoch,
        decision=decision,
        round=round_number,
        choice=Choice.ABSTAIN if option is None else Choice.OPTION,
        option=option,
        value=choice_digest(decision, round_number, option),
    )


def ballot_in(epoch: bytes, question: Question, choice: int | Option | None) -> Ballot:
    """Return a ballot for an option of a round, for a counter-proposal, or to abstain."""
    counter = choice if isinstance(choice, Option) else None
    option = choice if isinstance(choice, int) else None
    kind = Choice.COUNTER if counter else Choice.ABSTAIN if option is None else Choice.OPTION
    return Ballot(
        epoch=epoch,
        decision=question.decision,
        round=question.round,
        choice=kind,
        option=option,
        value=question.choice(option) if counter is None else question.counter(counter),
        counter=counter,
    )


@dataclass
class Council:
    """``agents`` agents on hosts of ``per_host`` each, the first one an admin with its own key."""

    agents: int = 7
    per_host: int = 2
    instances: int = 1
    keys: dict[str, LocalKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backend = select_backend("auto")
        self.root = Authority.create_root(
            DOMAIN, now=datetime.now(UTC), backend=self.backend, algorithm=Algorithm.ML_DSA_44
        )
        self.trust = TrustStore(self.root.certificate_pem, self.backend)
        self.admin = SpiffeId.agent(DOMAIN, Role.ADMIN, "a-0")
        others = [SpiffeId.agent(DOMAIN, Role.SENTINEL, f"s-{i}") for i in range(1, self.agents)]
        self.voters = [self.admin, *others]
        self.services = [SpiffeId.service(DOMAIN, ServiceName.CONSENSUS, str(i)) for i in range(self.instances)]
        for alone in (self.admin, *self.services):
            self.keys[str(alone)] = self.new_key()
        for position, agent in enumerate(others):
            if position % self.per_host == 0:
                host_key = self.new_key()
            self.keys[str(agent)] = host_key

    def new_key(self) -> LocalKey:
        return LocalKey.generate(self.backend, Algorithm.ML_DSA_44)

    def seat(self, who: SpiffeId) -> tuple[SpiffeId, bytes, int]:
        key = self.keys[str(who)]
        return who, key.signer.key_id, key.algorithm

    def epoch_record(self, number: int = 0) -> Epoch:
        return make_epoch(
            number=number,
            trust_domain=DOMAIN,
            participants=[self.seat(who) for who in self.voters],
            instances=[self.seat(who) for who in self.services],
            created_ns=NOW_NS,
        )

    def sign_epoch(self, record: Epoch) -> bytes:
        return self.sign([(self.root.id, CONSENSUS_EPOCH.request_type, record)], key=self.root)[0]

    @cached_property
    def epoch(self) -> InstalledEpoch:
        return open_epoch(self.sign_epoch(self.epoch_record()), self.trust)

    def sign(
        self,
        messages: Sequence[tuple[SpiffeId, MessageType[Message], Message]],
        *,
        key: LocalKey | Authority | None = None,
        audience: str = AUDIENCE,
    ) -> list[bytes]:
        """Sign messages of senders that share a key with one signature."""
        key = key or self.keys[str(messages[0][0])]
        contents = [
            encode_content(
                make_content(
                    type_name=kind.name,
                    sender=str(sender),
                    audience=audience,
                    body=encode_body(body),
                    now_ns=NOW_NS,
                    ttl_ms=0,
                )
            )
            for sender, kind, body in messages
        ]
        proofs = sign_batch(key.signer, contents)
        return [
            encode_envelope(content, key.signer.key_id, proof)
            for content, proof in zip(contents, proofs, strict=True)
        ]

    def propose(self, body: Proposal | None = None, sender: SpiffeId | None = None) -> Evidence[Proposal]:
        body = body or proposal_body(self.epoch.digest)
        data = self.sign([(sender or self.admin, CONSENSUS_PROPOSAL, body)], audience="all")[0]
        return read(data, CONSENSUS_PROPOSAL, audience="all")

    def ballots(self, decision: bytes, choices: Sequence[tuple[SpiffeId, int | None]]) -> list[bytes]:
        """Return signed ballots; agents that share a key share a signature."""
        by_key: dict[bytes, list[tuple[SpiffeId, MessageType[Message], Message]]] = {}
        for who, option in choices:
            body = ballot_body(self.epoch.digest, decision, option)
            by_key.setdefault(self.seat(who)[1], []).append((who, BALLOT, body))
        return [data for group in by_key.values() for data in self.sign(group)]

    def vote(
        self,
        decision: bytes,
        value: bytes | None,
        instance: SpiffeId | None = None,
        *,
        view: int = 1,
        step: Step = Step.VOTE2,
        round_number: int = 1,
    ) -> bytes:
        epoch = self.epoch.digest
        body = Vote(step=step, epoch=epoch, decision=decision, round=round_number, view=view, value=value)
        return self.sign([(instance or self.services[0], VOTE, body)])[0]

    def public_keys(self, who: Sequence[SpiffeId]) -> tuple[bytes, ...]:
        keys = {self.seat(one)[1]: self.keys[str(one)].signer.public_key for one in who}
        return tuple(keys[key_id] for key_id in sorted(keys))

    def certificate(
        self, option: int = 0, *, voters: Sequence[SpiffeId] | None = None, body: Proposal | None = None
    ) -> DecisionCertificate:
        """Return a certificate of ``voters``, by default as many as the quorum needs."""
        voters = self.voters[: self.epoch.quorum.needed] if voters is None else voters
        proposal = self.propose(body)
        decision = proposal.leaf
        value = decide_value(decision, 1, choice_digest(decision, 1, option))
        votes = [self.vote(decision, value, one) for one in self.services[: self.epoch.instance_quorum]]
        return DecisionCertificate(
            epoch=self.epoch.data,
            chain=self.epoch.chain,
            proposal=proposal.data,
            ballots=tuple(self.ballots(decision, [(who, option) for who in voters])),
            votes=tuple(votes),
            keys=self.public_keys([self.admin, *voters, *self.services[: self.epoch.instance_quorum]]),
        )
