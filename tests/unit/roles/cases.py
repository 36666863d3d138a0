"""Findings, assessments and decisions that the tests of the roles write by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from tocsin.analysis.techniques import BRUTE_FORCE
from tocsin.bus.envelope import decode_envelope, encode_body, encode_content, encode_envelope, make_content
from tocsin.contracts.analysis import AnomalyScore, Assessment, Verdict
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import BALLOT, CONSENSUS_EPOCH, CONSENSUS_PROPOSAL, VOTE, MessageType
from tocsin.contracts.decisions import Ballot, Choice, Step, Vote
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.observations import Finding, FindingKind, Flow, FlowState, WindowFeatures
from tocsin.contracts.response import Action, Command
from tocsin.crypto import Algorithm, Authority, LocalKey, SignatureBackend, Signer, sign_batch
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.choices import choice_digest, decide_value
from tocsin.evidence.epochs import make_epoch
from tocsin.agent.roles.admin import proposal_of

FEATURES = WindowFeatures(
    host="203.0.113.9",
    window_start_s=0.0,
    window_s=300.0,
    connections=30,
    distinct_ports=1,
    distinct_peers=1,
    rejected_share=0.0,
    interval_regularity=0.5,
    port_concentration=1.0,
    bytes_sent=900,
    bytes_received=900,
)
COMMAND = Command(action=Action.DENY, address="203.0.113.9", duration_s=3600)
DOMAIN = "test.tocsin"


def finding(
    subject: str = "203.0.113.9",
    *,
    kind: FindingKind = FindingKind.BRUTE_FORCE,
    score: float = 0.6,
    source: str = "capture.eve.json",
    features: WindowFeatures | None = FEATURES,
    targets: tuple[str, ...] = ("10.0.0.1",),
    connections: int = 30,
) -> Finding:
    return Finding(
        kind=kind,
        subject=subject,
        internal=False,
        targets=targets,
        score=score,
        technique=BRUTE_FORCE,
        evidence=("30 connections to SSH",),
        features=features,
        source=source,
        first_s=1.0,
        last_s=9.0,
        connections=connections,
    )


def probe(number: int, *, source: str = "203.0.113.9", at_s: float = 100.0) -> Flow:
    """A connection to the port ``number`` that nobody answers."""
    return Flow(
        at_s=at_s + number / 100,
        source=source,
        source_port=40_000 + number,
        destination="10.0.0.1",
        destination_port=1000 + number,
        protocol="tcp",
        state=FlowState.UNANSWERED,
    )


def assessment(*, recommended: Command | None = COMMAND, incident: bytes = bytes(16)) -> Assessment:
    score = AnomalyScore(model="m", score=1.0, baseline_quantile=0.99, anomalous=True, train_samples=20)
    return Assessment(
        workflow=b"w" * 16,
        incident=incident,
        subject="203.0.113.9",
        verdict=Verdict.MALICIOUS if recommended else Verdict.BENIGN,
        confidence=0.9,
        technique=BRUTE_FORCE,
        quantum=score,
        classical=(score,),
        qpu="fake-qpu",
        estimated_fidelity=0.9,
        evidence=("30 guesses",),
        finding=finding(),
        recommended=recommended,
        baseline="office-v1",
    )


@dataclass
class Swarm:
    """Three agents, one of them an admin, and one consensus instance: who decide with real signatures."""

    backend: SignatureBackend
    authority: Authority
    keys: dict[SpiffeId, LocalKey] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for role in (Role.ADMIN, Role.HUNTER, Role.GUARDIAN):
            self._add(SpiffeId.agent(DOMAIN, role, f"{role.value}-01"))
        self.admin, *_ = self.agents = tuple(self.keys)
        self.instance = self._add(SpiffeId.service(DOMAIN, ServiceName.CONSENSUS, "0"))

    def _add(self, who: SpiffeId) -> SpiffeId:
        self.keys[who] = LocalKey.generate(self.backend, Algorithm.ML_DSA_44)
        return who

    def _envelope(
        self, kind: MessageType[Message], body: Message, sender: SpiffeId, signer: Signer, audience: str
    ) -> bytes:
        content = encode_content(
            make_content(
                type_name=kind.name,
                sender=str(sender),
                audience=audience,
                body=encode_body(body),
                now_ns=1,
                ttl_ms=0,
            )
        )
        (proof,) = sign_batch(signer, [content])
        return encode_envelope(content, signer.key_id, proof)

    def decide(self, command: Command = COMMAND, *, option: int = 0) -> tuple[bytes, bytes]:
        """Return the id and the certificate of a decision: a quorum for an option of its proposal."""

        def seat(who: SpiffeId) -> tuple[SpiffeId, bytes, int]:
            return who, self.keys[who].signer.key_id, int(self.keys[who].algorithm)

        def sign(kind: MessageType[Message], body: Message, who: SpiffeId, audience: str) -> bytes:
            return self._envelope(kind, body, who, self.keys[who].signer, audience)

        epoch = make_epoch(
            number=0,
            trust_domain=DOMAIN,
            participants=[seat(who) for who in self.agents],
            instances=[seat(self.instance)],
            created_ns=1,
        )
        record = self._envelope(
            CONSENSUS_EPOCH.request_type, epoch, self.authority.id, self.authority.signer, "service.consensus"
        )
        digest = decode_envelope(record, max_bytes=len(record)).leaf
        proposal = sign(
            CONSENSUS_PROPOSAL, proposal_of(assessment(recommended=command), command, digest), self.admin, "all"
        )
        decision = decode_envelope(proposal, max_bytes=len(proposal)).leaf
        choice = choice_digest(decision, 1, option)
        ballot = Ballot(
            epoch=digest, decision=decision, round=1, choice=Choice.OPTION, option=option, value=choice
        )
        vote = Vote(
            step=Step.VOTE2,
            epoch=digest,
            decision=decision,
            round=1,
            view=1,
            value=decide_value(decision, 1, choice),
        )
        certificate = DecisionCertificate(
            record,
            proposal,
            tuple(sign(BALLOT, ballot, who, "service.consensus") for who in self.agents),
            (sign(VOTE, vote, self.instance, "service.consensus"),),
            tuple(key.signer.public_key for key in self.keys.values()),
        )
        return decision, certificate.encode()
