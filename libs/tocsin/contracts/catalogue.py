"""The catalogue: every message type, every subject, who may send what, and where it may arrive.

This is the only place where a subject is spelt. A :class:`MessageType` joins a name on the wire with its
model, its class (how long it is good for) and its senders; a :class:`Subject` says which types may arrive
there, for which audience, and which stream keeps it; a :class:`Request` is a question to a service and
its answer. ``docs/reference/subjects.md`` is generated from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Generic, TypeVar

from tocsin.contracts import (
    analysis,
    decisions,
    fleet,
    observations,
    operations,
    quantum,
    response,
    routing,
    workflows,
)
from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Kind, Role, ServiceName, SpiffeId

# Covariant, so that one table holds messages of every model: what is frozen is only read.
M_co = TypeVar("M_co", bound=Message, covariant=True)
Q_co = TypeVar("Q_co", bound=Message, covariant=True)
R_co = TypeVar("R_co", bound=Message, covariant=True)

PREFIX = "tocsin.v1"
MAX_LIVE_TTL_MS = 30_000
"""Longest time to live of a live message (envelope.md, classes)."""

KIB = 1024

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,128}")


class MessageClass(StrEnum):
    """How long a message is good for; the rules are in tocsin.bus.envelope and tocsin.bus.opener."""

    LIVE = "live"
    STORED = "stored"
    RECORD = "record"
    EVIDENCE = "evidence"
    ENROL = "enrol"


ANY_AUDIENCE = "*"
"""Any audience that the router's policy allows."""
READER_AUDIENCE = "@reader"
"""Any audience that includes the reader: ``all``, its role, its name, a mission of its."""
EVENT_AUDIENCE = "event"
"""Facts for whoever listens."""


@dataclass(frozen=True, slots=True)
class Senders:
    """Who may send a type: agents of some roles, some services, hosts, authorities."""

    roles: frozenset[Role] = frozenset()
    services: frozenset[ServiceName] = frozenset()
    kinds: frozenset[Kind] = frozenset()

    def admit(self, sender: SpiffeId) -> bool:
        """Return whether ``sender`` may send."""
        return (
            sender.kind in self.kinds
            or (sender.kind is Kind.AGENT and sender.role in self.roles)
            or (sender.kind is Kind.SERVICE and sender.service_name in self.services)
        )

    def __str__(self) -> str:
        roles = ["any agent"] if self.roles == frozenset(Role) else sorted(self.roles)
        services = ["any service"] if self.services == frozenset(ServiceName) else sorted(self.services)
        return ", ".join([*roles, *services, *sorted(self.kinds)])


def senders(*who: Role | ServiceName | Kind) -> Senders:
    """Build :class:`Senders` from a mixed list."""
    return Senders(
        frozenset(w for w in who if isinstance(w, Role)),
        frozenset(w for w in who if isinstance(w, ServiceName)),
        frozenset(w for w in who if isinstance(w, Kind)),
    )


@dataclass(frozen=True, eq=False)
class MessageType(Generic[M_co]):
    """One type of message."""

    name: str
    model: type[M_co]
    message_class: MessageClass
    senders: Senders
    max_bytes: int = 64 * KIB
    """Largest envelope of this type."""
    ttl_ms: int = 5_000
    """Default time to live; 0 where the class has no clock."""
    doc: str = ""


@dataclass(frozen=True, eq=False)
class Subject:
    """One family of subjects: a template whose ``{tokens}`` are filled in."""

    name: str
    template: str
    types: tuple[MessageType[Message], ...]
    audience: str
    """Template of the one admissible audience, or one of the two wildcards above."""
    doc: str
    stream: str | None = None
    sender_in: str | None = None
    """The token that must equal the sender's name (its last path element)."""

    @cached_property
    def by_name(self) -> dict[str, MessageType[Message]]:
        """Types by their wire name."""
        return {t.name: t for t in self.types}

    @cached_property
    def max_bytes(self) -> int:
        """Largest envelope on these subjects."""
        return max(t.max_bytes for t in self.types)

    def audience_at(self, tokens: Mapping[str, str]) -> str | None:
        """Return the one admissible audience for these tokens; None where a wildcard stands."""
        if self.audience in {ANY_AUDIENCE, READER_AUDIENCE}:
            return None
        return self.audience.format(**tokens)

    @cached_property
    def _tokens(self) -> tuple[str, ...]:
        return tuple(re.findall(r"{(\w+)}", self.template))

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        return re.compile(
            re.escape(PREFIX) + r"\." + re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.*>\\s]+)", re.escape(self.template))
        )

    def at(self, **tokens: str) -> str:
        """Return one concrete subject; every token must be given and be a single legal token."""
        if set(tokens) != set(self._tokens):
            raise InvalidInputError(
                f"{self.name} needs {self._tokens}, got {tuple(tokens)}", reason="bad_subject"
            )
        for key, value in tokens.items():
            if not _TOKEN.fullmatch(value):
                raise InvalidInputError(f"{self.name}: bad token {key}={value[:80]!r}", reason="bad_subject")
        return f"{PREFIX}.{self.template.format(**tokens)}"

    def pattern(self, **tokens: str) -> str:
        """Return a subscription pattern: tokens that are not given become ``*``."""
        return f"{PREFIX}.{self.template.format(**{t: tokens.get(t, '*') for t in self._tokens})}"

    def parse(self, subject: str) -> dict[str, str]:
        """Return the tokens of a concrete subject."""
        match = self._regex.fullmatch(subject)
        if match is None:
            raise InvalidInputError(f"{subject[:120]!r} is no subject of {self.name}", reason="bad_subject")
        return match.groupdict()


@dataclass(frozen=True, eq=False)
class Request(Generic[Q_co, R_co]):
    """A question to a service and its answer; served by a queue group of that service's instances."""

    verb: str
    question: type[Q_co]
    answer: type[R_co]
    service: ServiceName
    callers: Senders
    max_bytes: int = 256 * KIB
    message_class: MessageClass = MessageClass.LIVE
    doc: str = ""
    server_kind: Kind = Kind.SERVICE
    """Who answers: the service's instances or, for ``observe``, an agent."""
    subject: Subject = field(init=False)
    request_type: MessageType[Q_co] = field(init=False)
    reply_type: MessageType[R_co] = field(init=False)

    def __post_init__(self) -> None:
        template = self.verb if self.server_kind is Kind.SERVICE else f"{self.verb}.{{agent}}"
        question: MessageType[Q_co] = MessageType(
            self.verb, self.question, self.message_class, self.callers, self.max_bytes, doc=self.doc
        )
        server = senders(self.service) if self.server_kind is Kind.SERVICE else senders(*Role)
        answer: MessageType[R_co] = MessageType(
            f"{self.verb}.reply", self.answer, MessageClass.LIVE, server, 900 * KIB, doc=self.doc
        )
        audience = f"service.{self.service.value}" if self.server_kind is Kind.SERVICE else "agent.{agent}"
        name = self.verb.upper().replace(".", "_")
        object.__setattr__(self, "subject", Subject(name, template, (question,), audience, self.doc))
        object.__setattr__(self, "request_type", question)
        object.__setattr__(self, "reply_type", answer)


@dataclass(frozen=True, slots=True)
class Stream:
    """A JetStream stream, bounded in bytes and age. When it is full the oldest go (``limits``), or new
    work is refused (``workqueue``).
    """

    name: str
    subjects: tuple[str, ...]
    retention: str
    max_age_s: int
    max_bytes: int
    doc: str


@dataclass(frozen=True, eq=False)
class Bucket(Generic[M_co]):
    """A KV bucket of signed records."""

    name: str
    model: type[M_co]
    writers: Senders
    doc: str
    max_bytes: int = 64 * KIB
    """Largest record."""
    max_age_s: int = 0
    """A record that nobody wrote for so long is forgotten; 0 for never."""

    @cached_property
    def message_type(self) -> MessageType[Message]:
        """The envelope's type of its records."""
        return MessageType(
            f"record.{self.name}", RecordBody, MessageClass.RECORD, self.writers, self.max_bytes, 0, self.doc
        )


class RecordBody(Message):
    """Body of a record: it names where it stands, so that it can be neither moved nor rolled back."""

    bucket: str
    key: str
    revision: int
    value: bytes
    """msgpack of the bucket's model."""


ANY_SERVICE = frozenset(ServiceName)
MIB = 1024 * KIB

# --- What agents say through the router ---------------------------------------------------------

DISCOVERY = MessageType(
    "discovery", routing.Discovery, MessageClass.LIVE, senders(*Role), doc="An agent makes itself known."
)
THREAT_ALERT = MessageType(
    "threat_alert",
    routing.ThreatAlert,
    MessageClass.STORED,
    senders(*Role),
    ttl_ms=3_600_000,
    doc="Something is wrong; CRITICAL: something must be done.",
)
COORDINATION = MessageType(
    "coordination",
    routing.Coordination,
    MessageClass.LIVE,
    senders(*Role),
    256 * KIB,
    30_000,
    doc="Work handed from agent to agent.",
)
INTELLIGENCE = MessageType(
    "intelligence",
    routing.Intelligence,
    MessageClass.LIVE,
    senders(Role.SENTINEL, Role.HUNTER, Role.ANALYST, Role.SPECIALIST, Role.ADMIN),
    doc="Need-to-know information for some roles.",
)
CONSENSUS_PROPOSAL = MessageType(
    "consensus_proposal",
    decisions.Proposal,
    MessageClass.EVIDENCE,
    senders(Role.ADMIN),
    ttl_ms=0,
    doc="Shall we do X about Y.",
)
ROUTED: tuple[MessageType[Message], ...] = (
    DISCOVERY,
    THREAT_ALERT,
    COORDINATION,
    INTELLIGENCE,
    CONSENSUS_PROPOSAL,
)

ROUTE = Subject(
    "ROUTE",
    "route.{type}.{priority}.{agent}",
    ROUTED,
    ANY_AUDIENCE,
    "Agents to the routers (queue group).",
    sender_in="agent",
)
DELIVER_AGENT = Subject("DELIVER_AGENT", "deliver.agent.{agent}", ROUTED, "agent.{agent}", "To one agent.")
DELIVER_ROLE = Subject("DELIVER_ROLE", "deliver.role.{role}", ROUTED, "role.{role}", "To all agents of a role.")
DELIVER_MISSION = Subject(
    "DELIVER_MISSION", "deliver.mission.{mission}", ROUTED, "mission.{mission}", "To the members of a mission."
)
DELIVER_GROUP = Subject(
    "DELIVER_GROUP", "deliver.group.{group}", ROUTED, "group.{group}", "To a group of the topology."
)
DELIVER_ALL = Subject("DELIVER_ALL", "deliver.all", ROUTED, "all", "To every agent.")
ALERT_BACKUP = Subject(
    "ALERT_BACKUP",
    "alert.backup.{severity}",
    (THREAT_ALERT,),
    READER_AUDIENCE,
    "Emergencies a second time, for agents that missed the first copy.",
    stream="ALERTS",
)

RECEIPTS = MessageType(
    "receipts",
    routing.Receipts,
    MessageClass.LIVE,
    senders(Kind.HOST),
    256 * KIB,
    30_000,
    "Proof of delivery.",
)
RECEIPT = Subject(
    "RECEIPT",
    "receipt.{host}",
    (RECEIPTS,),
    "service.router",
    "Agent hosts to the routers: what they have taken.",
    sender_in="host",
)
HEARTBEAT_TYPE = MessageType(
    "heartbeat", fleet.Heartbeat, MessageClass.LIVE, senders(Kind.HOST), 128 * KIB, 10_000, "A host lives."
)
HEARTBEAT = Subject(
    "HEARTBEAT",
    "heartbeat.{host}",
    (HEARTBEAT_TYPE,),
    EVENT_AUDIENCE,
    "Agent hosts to everyone interested.",
    sender_in="host",
)

# --- Decisions ----------------------------------------------------------------------------------

BALLOT = MessageType(
    "ballot", decisions.Ballot, MessageClass.EVIDENCE, senders(*Role), 16 * KIB, 0, "One agent's choice."
)
VOTE = MessageType(
    "vote",
    decisions.Vote,
    MessageClass.EVIDENCE,
    senders(ServiceName.CONSENSUS),
    16 * KIB,
    0,
    "One consensus instance's step.",
)
DECISION = MessageType(
    "decision",
    decisions.DecisionAnnounced,
    MessageClass.STORED,
    senders(ServiceName.CONSENSUS),
    256 * KIB,
    86_400_000,
    "A decision ended.",
)
CONSENSUS_BALLOT = Subject(
    "CONSENSUS_BALLOT",
    "consensus.ballot.{decision}.{agent}",
    (BALLOT,),
    "service.consensus",
    "Agents to every consensus instance; `decision` is the digest in hex.",
    sender_in="agent",
)
CONSENSUS_VOTE = Subject(
    "CONSENSUS_VOTE",
    "consensus.vote.{decision}",
    (VOTE,),
    "service.consensus",
    "Consensus instances to one another.",
)
CONSENSUS_DECISION = Subject(
    "CONSENSUS_DECISION",
    "consensus.decision.{decision}",
    (DECISION,),
    EVENT_AUDIENCE,
    "Announcements of decisions; the certificates are in the object store CERTIFICATES.",
    stream="DECISIONS",
)

# --- Work ---------------------------------------------------------------------------------------

WORK_TYPE = MessageType(
    "work",
    analysis.Work,
    MessageClass.STORED,
    senders(ServiceName.BALANCER),
    512 * KIB,
    3_600_000,
    "An operation for a worker.",
)
QPU_JOB_TYPE = MessageType(
    "qpu_job",
    quantum.QpuJob,
    MessageClass.STORED,
    senders(ServiceName.QPU_MANAGER),
    512 * KIB,
    3_600_000,
    "A job for a QPU's executor.",
)
WORK_DONE = MessageType(
    "work_done",
    analysis.WorkDone,
    MessageClass.STORED,
    senders(ServiceName.WORKER, ServiceName.QPU_MANAGER),
    512 * KIB,
    3_600_000,
    "Result of a task.",
)
POOL_STATUS = MessageType(
    "pool_status",
    analysis.PoolStatus,
    MessageClass.LIVE,
    senders(ServiceName.WORKER),
    doc="How a worker fares.",
)
WORK = Subject(
    "WORK",
    "work.{pool}",
    (WORK_TYPE,),
    "service.worker",
    "Balancer to classical workers, one consumer group a pool.",
    stream="WORK",
)
QPU_JOB = Subject(
    "QPU_JOB",
    "qpu.job.{qpu}",
    (QPU_JOB_TYPE,),
    "service.qpu-manager",
    "qpu-manager to the executor of that QPU.",
    stream="QPU_JOBS",
)
RESULT = Subject(
    "RESULT",
    "result.{workflow}",
    (WORK_DONE,),
    "service.workflow",
    "Results on their way to workflow; `workflow` is the id in hex.",
    stream="RESULTS",
)
POOL = Subject(
    "POOL",
    "pool.{pool}.{worker}",
    (POOL_STATUS,),
    "service.balancer",
    "Workers to the balancer: how they fare.",
    sender_in="worker",
)

# --- Facts for the outside ----------------------------------------------------------------------


def _event(name: str, model: type[M_co], who: Senders, doc: str) -> MessageType[M_co]:
    return MessageType(f"event.{name}", model, MessageClass.STORED, who, 256 * KIB, 86_400_000, doc)


EVENT_DELIVERY = _event(
    "router.delivery", routing.Delivery, senders(ServiceName.ROUTER), "The account of one emergency."
)
EVENT_REFUSAL = _event(
    "router.refusal", routing.Refusal, senders(ServiceName.ROUTER), "A message that was not forwarded."
)
EVENT_STAGE = _event(
    "workflow.stage", analysis.WorkflowStage, senders(ServiceName.WORKFLOW), "Progress of a workflow."
)
EVENT_ALLOCATION = _event(
    "workflow.allocation",
    workflows.AllocationMade,
    senders(ServiceName.WORKFLOW),
    "A workflow was given a QPU, and why that one.",
)
EVENT_ASSESSMENT = _event(
    "workflow.assessment", analysis.AssessmentMade, senders(ServiceName.WORKFLOW), "A workflow ended."
)
EVENT_ACTUATION = _event(
    "agent.actuation", response.Actuation, senders(Role.GUARDIAN), "What a guardian's actuator did."
)
EVENT_SENSOR = _event(
    "agent.sensor",
    observations.SensorReady,
    senders(Role.DECEPTION, Role.CANARY),
    "A honeypot or canary listens.",
)
EVENT = Subject(
    "EVENT",
    "event.{service}.{kind}",
    (
        EVENT_DELIVERY,
        EVENT_REFUSAL,
        EVENT_STAGE,
        EVENT_ALLOCATION,
        EVENT_ASSESSMENT,
        EVENT_ACTUATION,
        EVENT_SENSOR,
    ),
    EVENT_AUDIENCE,
    "Facts: what a SIEM, a dashboard or a script subscribes to.",
    stream="EVENTS",
)
METRICS_TYPE = MessageType(
    "metrics",
    operations.MetricsSnapshot,
    MessageClass.LIVE,
    senders(*ServiceName, Kind.HOST),
    256 * KIB,
    doc="One process's figures.",
)
METRICS = Subject(
    "METRICS",
    "metrics.{process}",
    (METRICS_TYPE,),
    EVENT_AUDIENCE,
    "Every process's figures, every second; `process` is its token with dashes for dots.",
)
AUDIT_REJECTED = MessageType(
    "audit.rejected",
    operations.RejectedEnvelope,
    MessageClass.STORED,
    senders(*ServiceName, Kind.HOST),
    ttl_ms=86_400_000,
    doc="Envelopes that a process refused.",
)
AUDIT_EQUIVOCATION = MessageType(
    "audit.equivocation",
    decisions.Equivocation,
    MessageClass.STORED,
    senders(ServiceName.CONSENSUS),
    ttl_ms=86_400_000,
    doc="Two different ballots of one participant for one round.",
)
AUDIT = Subject(
    "AUDIT",
    "audit.{kind}",
    (AUDIT_REJECTED, AUDIT_EQUIVOCATION),
    EVENT_AUDIENCE,
    "Who did what, and every rejected envelope: its reason, never its body.",
    stream="AUDIT",
)

# --- Questions and answers ----------------------------------------------------------------------

_S = ServiceName
OPERATORS = senders(_S.CLI, _S.GATEWAY, _S.MONITOR)

PING: dict[ServiceName, Request[operations.PingRequest, operations.Pong]] = {
    service: Request(
        f"{service.value}.ping",
        operations.PingRequest,
        operations.Pong,
        service,
        senders(_S.CLI, _S.GATEWAY, _S.MONITOR),
        doc="Is it ready?",
    )
    for service in ServiceName
    if service is not ServiceName.CLI
}
OBSERVE = Request(
    "observe",
    observations.Observations,
    observations.ObservationsTaken,
    _S.CLI,
    senders(_S.CLI, _S.GATEWAY),
    doc="Hand observations to a sentinel.",
    server_kind=Kind.AGENT,
)
FLEET_ENROL = Request(
    "fleet.enrol",
    fleet.EnrolRequest,
    fleet.Enrolled,
    _S.FLEET,
    senders(Kind.HOST, Kind.AGENT),
    message_class=MessageClass.ENROL,
    doc="A host asks for its certificate.",
)
FLEET_ROSTER = Request(
    "fleet.roster",
    fleet.RosterRequest,
    fleet.Roster,
    _S.FLEET,
    senders(_S.CLI, _S.GATEWAY, _S.MONITOR, _S.ROUTER, _S.CONSENSUS),
    doc="All agents and how they are.",
)
CONSENSUS_EPOCH = Request(
    "consensus.epoch",
    decisions.Epoch,
    decisions.EpochInstalled,
    _S.CONSENSUS,
    senders(Kind.AUTHORITY),
    900 * KIB,
    message_class=MessageClass.EVIDENCE,
    doc="Install an epoch that the root signed.",
)
CONSENSUS_EPOCHS = Subject(
    "CONSENSUS_EPOCHS",
    "consensus.epochs.{number}",
    (CONSENSUS_EPOCH.request_type,),
    "service.consensus",
    "The root's epoch records as they were installed, for whoever ballots or verifies.",
    stream="DECISIONS",
)
QPU_LIST = Request(
    "qpu.list", quantum.QpuListRequest, quantum.QpuList, _S.QPU_MANAGER, OPERATORS, doc="All QPUs."
)
QPU_ALLOCATE = Request(
    "qpu.allocate",
    quantum.AllocationRequest,
    quantum.Allocation,
    _S.QPU_MANAGER,
    senders(_S.WORKFLOW),
    doc="Reserve the QPU that suits best.",
)
QPU_RUN = Request(
    "qpu.run",
    quantum.QpuRun,
    quantum.QpuQueued,
    _S.QPU_MANAGER,
    senders(_S.WORKFLOW),
    doc="Run under a reservation.",
)
WORKFLOW_SUBMIT = Request(
    "workflow.submit",
    analysis.SecurityRequest,
    analysis.WorkflowAccepted,
    _S.WORKFLOW,
    senders(Role.ANALYST, _S.GATEWAY, _S.CLI),
    doc="Assess an incident.",
)
BALANCER_PLACE = Request(
    "balancer.place",
    analysis.Operation,
    analysis.Placement,
    _S.BALANCER,
    senders(_S.WORKFLOW, _S.GATEWAY),
    doc="Place an operation on a pool.",
)
MONITOR_FIGURES = Request(
    "monitor.figures",
    operations.FiguresRequest,
    operations.Figures,
    _S.MONITOR,
    senders(_S.CLI, _S.GATEWAY),
    doc="All processes' figures.",
)
REQUESTS: tuple[Request[Message, Message], ...] = (
    *PING.values(),
    OBSERVE,
    FLEET_ENROL,
    FLEET_ROSTER,
    CONSENSUS_EPOCH,
    QPU_LIST,
    QPU_ALLOCATE,
    QPU_RUN,
    WORKFLOW_SUBMIT,
    BALANCER_PLACE,
    MONITOR_FIGURES,
)
ERROR_REPLY = MessageType(
    "error",
    operations.ErrorReply,
    MessageClass.LIVE,
    senders(*Role, *ServiceName),
    doc="Why a request failed.",
)

# --- State --------------------------------------------------------------------------------------

AGENTS = Bucket("agents", fleet.AgentRecord, senders(_S.FLEET), "Enrolled agents, by name.")
ENROLMENTS = Bucket(
    "enrolments",
    fleet.Enrolment,
    senders(_S.FLEET),
    "Which key speaks for an id, by the id's token, and the one-time tokens that were used for it.",
)
RESERVATIONS = Bucket(
    "reservations", quantum.QpuReservations, senders(_S.QPU_MANAGER), "Who was promised which QPU, by QPU."
)
WORKFLOWS = Bucket(
    "workflows",
    workflows.WorkflowRecord,
    senders(_S.WORKFLOW),
    "Workflows, by id in hex: how far each is. Forgotten an hour after the last change, as their work is.",
    # A request of up to 256 KiB, the scores of at most 256 QPUs, and the kernel of one plan.
    max_bytes=512 * KIB,
    max_age_s=3_600,
)
BUCKETS: tuple[Bucket[Message], ...] = (AGENTS, ENROLMENTS, RESERVATIONS, WORKFLOWS)
"""All buckets of signed records."""
IDENTITIES = "identities"
"""Bucket of certificate chains by token: checked against the root, so not signed again."""
CERTIFICATES = "CERTIFICATES"
"""Object store of decision certificates, by decision in hex."""

SUBJECTS: tuple[Subject, ...] = (
    ROUTE,
    DELIVER_AGENT,
    DELIVER_ROLE,
    DELIVER_MISSION,
    DELIVER_GROUP,
    DELIVER_ALL,
    ALERT_BACKUP,
    RECEIPT,
    HEARTBEAT,
    CONSENSUS_BALLOT,
    CONSENSUS_VOTE,
    CONSENSUS_DECISION,
    CONSENSUS_EPOCHS,
    WORK,
    QPU_JOB,
    RESULT,
    POOL,
    EVENT,
    METRICS,
    AUDIT,
)

STREAMS = (
    Stream("ALERTS", ("alert.>",), "limits", 86_400, 256 * MIB, "Emergencies, for agents that missed one."),
    Stream(
        "DECISIONS",
        ("consensus.decision.>", "consensus.epochs.>"),
        "limits",
        0,
        1024 * MIB,
        "Announcements of decisions, and epochs.",
    ),
    Stream("EVENTS", ("event.>",), "limits", 7 * 86_400, 1024 * MIB, "Facts for the outside."),
    Stream("AUDIT", ("audit.>",), "limits", 30 * 86_400, 1024 * MIB, "The audit trail."),
    Stream("WORK", ("work.>",), "workqueue", 3_600, 512 * MIB, "Classical operations."),
    Stream("QPU_JOBS", ("qpu.job.>",), "workqueue", 3_600, 512 * MIB, "Jobs on QPUs."),
    Stream("RESULTS", ("result.>",), "workqueue", 3_600, 512 * MIB, "Results for workflow."),
)


def message_types() -> Iterable[MessageType[Message]]:
    """Return every message type, once, by name."""
    found: dict[str, MessageType[Message]] = {}
    for subject in (*SUBJECTS, *(r.subject for r in REQUESTS)):
        found.update(subject.by_name)
    found.update({r.reply_type.name: r.reply_type for r in REQUESTS})
    found[ERROR_REPLY.name] = ERROR_REPLY
    for bucket in BUCKETS:
        found[bucket.message_type.name] = bucket.message_type
    return tuple(found[name] for name in sorted(found))
