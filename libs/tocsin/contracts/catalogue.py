"""The catalogue: every message type, every subject, who may send what, and where it may arrive.

This is the only place where a subject is spelt. ``docs/reference/subjects.md``, the JSON Schemas and the checks
of every envelope come from here; the shapes of its entries are in :mod:`tocsin.contracts.subjects`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

from tocsin.contracts import (
    analysis,
    channels,
    decisions,
    fleet,
    health,
    missions,
    observations,
    operations,
    quantum,
    response,
    revocations,
    routing,
    workflows,
)
from tocsin.contracts.base import Message
from tocsin.contracts.identifiers import Kind, Priority, Role, ServiceName
from tocsin.contracts.subjects import (
    ANY_AUDIENCE,
    EVENT_AUDIENCE,
    KIB,
    READER_AUDIENCE,
    Bucket,
    MessageClass,
    MessageType,
    Request,
    Senders,
    Stream,
    Subject,
    senders,
)

M = TypeVar("M", bound=Message)

MIB = 1024 * KIB
DISCOVERIES_MAX_AGE_S = 600
"""An admin that was away for longer asks fleet for the roster."""

# --- What agents say through the router ---------------------------------------------------------

DISCOVERY = MessageType(
    "discovery",
    routing.Discovery,
    MessageClass.STORED,
    senders(*Role),
    ttl_ms=DISCOVERIES_MAX_AGE_S * 1000,
    doc="An agent makes itself known.",
)
THREAT_ALERT = MessageType(
    "threat_alert",
    routing.ThreatAlert,
    MessageClass.STORED,
    senders(*Role, ServiceName.CLI),
    ttl_ms=3_600_000,
    doc="Something is wrong; CRITICAL: something must be done.",
    effects_from=Priority.CRITICAL,
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
CLEARED = frozenset({Role.SENTINEL, Role.HUNTER, Role.ANALYST, Role.SPECIALIST, Role.ADMIN})
"""Roles that may read intelligence, and write it."""
INTELLIGENCE = MessageType(
    "intelligence",
    routing.Intelligence,
    MessageClass.LIVE,
    senders(*CLEARED),
    # Of these 75 KiB for the wraps of 64 recipients.
    144 * KIB,
    doc="Need-to-know information for some roles; always sealed.",
    cleared=CLEARED,
)
CONSENSUS_PROPOSAL = MessageType(
    "consensus_proposal",
    decisions.Proposal,
    MessageClass.EVIDENCE,
    senders(*Role),
    ttl_ms=0,
    doc="Shall we do X about Y.",
    effects_from=Priority.LOW,
)
DECISION_RESULT = MessageType(
    "decision_result",
    decisions.DecisionAnnounced,
    MessageClass.STORED,
    senders(ServiceName.CONSENSUS),
    512 * KIB,
    3_600_000,
    "How a decision ended, told to every participant with proof of delivery.",
    effects_from=Priority.LOW,
)
ROUTED: tuple[MessageType[Message], ...] = (
    DISCOVERY,
    THREAT_ALERT,
    COORDINATION,
    INTELLIGENCE,
    CONSENSUS_PROPOSAL,
    DECISION_RESULT,
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
    (THREAT_ALERT, DECISION_RESULT),
    READER_AUDIENCE,
    "Emergencies a second time, for agents that missed the first copy.",
    stream="ALERTS",
)
ALERTS_OF_ALL = replace(ALERT_BACKUP, audience=ANY_AUDIENCE)
"""The same as services read it: for whomever an emergency is."""

DISCOVERY_BACKUP = Subject(
    "DISCOVERY_BACKUP",
    "discovery.backup.{reach}.{name}",
    (DISCOVERY,),
    "{reach}.{name}",
    "Discoveries a second time, for admins and groups that missed the first copy.",
    stream="DISCOVERIES",
)

RECEIPTS = MessageType(
    "receipts",
    routing.Receipts,
    MessageClass.STORED,
    senders(Kind.HOST),
    256 * KIB,
    3_600_000,
    "Proof of delivery.",
)
RECEIPT = Subject(
    "RECEIPT",
    "receipt.{host}",
    (RECEIPTS,),
    "service.router",
    "Agent hosts to the routers: what they have taken.",
    stream="RECEIPTS",
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

# --- Secure channels between agents --------------------------------------------------------------

CHANNEL_OFFER = MessageType(
    "channel_offer",
    channels.ChannelOffer,
    MessageClass.LIVE,
    senders(*Role),
    16 * KIB,
    15_000,
    "A channel is offered: fresh public keys and its parameters.",
)
CHANNEL_ANSWER = MessageType(
    "channel_answer",
    channels.ChannelAnswer,
    MessageClass.LIVE,
    senders(*Role),
    16 * KIB,
    15_000,
    "The offer is taken.",
)
CHANNEL_REFUSAL = MessageType(
    "channel_refusal", channels.ChannelRefusal, MessageClass.LIVE, senders(*Role), 16 * KIB, doc="It is not."
)
CHANNEL_UNKNOWN = MessageType(
    "channel_unknown",
    channels.ChannelUnknown,
    MessageClass.LIVE,
    senders(*Role),
    16 * KIB,
    doc="A frame came of a channel that its recipient has not.",
)
CHANNEL_FRAME_TYPE = MessageType(
    "channel_frame",
    channels.Frame,
    MessageClass.CHANNEL,
    senders(*Role),
    # 256 KiB of data, the type's name of a message, the frame itself.
    256 * KIB + 512,
    0,
    "What two agents say in their channel.",
)
CHANNEL = Subject(
    "CHANNEL",
    "channel.hand.{agent}",
    (CHANNEL_OFFER, CHANNEL_ANSWER, CHANNEL_REFUSAL, CHANNEL_UNKNOWN),
    "agent.{agent}",
    "Agents to one another, not by the routers: handshakes of channels.",
)
CHANNEL_FRAME = Subject(
    "CHANNEL_FRAME",
    "channel.frame.{agent}.{sender}",
    (CHANNEL_FRAME_TYPE,),
    "agent.{agent}",
    "Agents to one another, not by the routers: frames of channels, which are no envelopes.",
    sender_in="sender",
)

# --- Missions -----------------------------------------------------------------------------------

MISSION_ORDER_TYPE = MessageType(
    "mission_order",
    missions.MissionOrder,
    MessageClass.LIVE,
    senders(ServiceName.FLEET),
    900 * KIB,
    30_000,
    "A mission's assignments, for all hosts in one message.",
    effects_from=Priority.CRITICAL,
)
MISSION_REPORT_TYPE = MessageType(
    "mission_report",
    missions.MissionReport,
    MessageClass.STORED,
    senders(Kind.HOST),
    512 * KIB,
    86_400_000,
    "What has become of a host's assignments, many in one.",
)
MISSION_ORDER = Subject(
    "MISSION_ORDER",
    "mission.order.{mission}",
    (MISSION_ORDER_TYPE,),
    "hosts",
    "Fleet to all agent hosts: who does what.",
)
MISSION_REPORT = Subject(
    "MISSION_REPORT",
    "mission.report.{host}",
    (MISSION_REPORT_TYPE,),
    "service.fleet",
    "Agent hosts to fleet: accepted, how far, done.",
    stream="MISSIONS",
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
    # A PROPOSE or TIMEOUT brings the VOTE1 of a quorum: 12 KiB with four instances, more with more.
    decisions.MAX_VOTE_BYTES,
    0,
    "One consensus instance's step.",
)
BALLOTS_WANTED = MessageType(
    "ballots_wanted",
    decisions.BallotsWanted,
    MessageClass.LIVE,
    senders(ServiceName.CONSENSUS),
    96 * KIB,
    doc="Agents are asked to send ballots again that have not come.",
)
LACKING = MessageType(
    "lacking",
    decisions.Lacking,
    MessageClass.LIVE,
    senders(ServiceName.CONSENSUS),
    16 * KIB,
    doc="An instance lacks a proposal or ballots.",
)
SHOWN = MessageType(
    "shown",
    decisions.Shown,
    MessageClass.LIVE,
    senders(ServiceName.CONSENSUS),
    900 * KIB,
    doc="What an instance shows another of a decision, a page.",
)
ROUND_OPENED = MessageType(
    "consensus_round",
    decisions.RoundOpened,
    MessageClass.EVIDENCE,
    senders(ServiceName.CONSENSUS),
    512 * KIB,
    0,
    "A round after the first begins: agents ballot again.",
)
DECISION = MessageType(
    "decision",
    decisions.DecisionAnnounced,
    MessageClass.STORED,
    senders(ServiceName.CONSENSUS),
    512 * KIB,
    86_400_000,
    "A decision ended.",
    effects_from=Priority.LOW,
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
CONSENSUS_ROUND = Subject(
    "CONSENSUS_ROUND",
    "consensus.round.{decision}",
    (ROUND_OPENED,),
    "all",
    "Consensus instances to the agents' hosts and to one another; `decision` is the digest in hex.",
)
CONSENSUS_WANTED = Subject(
    "CONSENSUS_WANTED",
    "consensus.wanted.{decision}",
    (BALLOTS_WANTED,),
    "all",
    "Consensus instances to the agents' hosts: ballots that have not come.",
)
CONSENSUS_LACKING = Subject(
    "CONSENSUS_LACKING",
    "consensus.lacking.{instance}",
    (LACKING,),
    "service.consensus",
    "To one consensus instance: what another lacks.",
)
CONSENSUS_SHOWN = Subject(
    "CONSENSUS_SHOWN",
    "consensus.shown.{instance}",
    (SHOWN,),
    "service.consensus",
    "To one consensus instance: a proposal, the round, ballots, a commit.",
)
CONSENSUS_DECISION = Subject(
    "CONSENSUS_DECISION",
    "consensus.decision.{decision}",
    (DECISION,),
    EVENT_AUDIENCE,
    "Announcements of decisions; the certificates are in the object store CERTIFICATES.",
    stream="DECISIONS",
)

# --- Revoked keys -------------------------------------------------------------------------------

REVOCATIONS = MessageType(
    "revocations",
    revocations.RevocationList,
    MessageClass.EVIDENCE,
    senders(Kind.AUTHORITY),
    900 * KIB,
    0,
    "All keys that count no more; the root's own word.",
)
REVOCATIONS_STATEMENT = MessageType(
    "revocations_statement",
    revocations.RevocationStatement,
    MessageClass.LIVE,
    senders(ServiceName.FLEET),
    16 * KIB,
    30_000,
    "Which list of revocations is the current one.",
)
REVOCATION_LIST = Subject(
    "REVOCATION_LIST",
    "revocations.list",
    (REVOCATIONS,),
    EVENT_AUDIENCE,
    "The root's lists of revoked keys, to every process.",
    stream="REVOCATIONS",
)
REVOCATION_STATEMENT = Subject(
    "REVOCATION_STATEMENT",
    "revocations.statement",
    (REVOCATIONS_STATEMENT,),
    EVENT_AUDIENCE,
    "Fleet to every process, again and again: how a process knows that it knows all revocations.",
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


def _event(name: str, model: type[M], who: Senders, doc: str) -> MessageType[M]:
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
EVENT_AGENT_STATE = _event(
    "fleet.agent_state", health.AgentStates, senders(ServiceName.FLEET), "Agents whose state has changed."
)
EVENT_MISSION = _event(
    "fleet.mission", missions.MissionEvent, senders(ServiceName.FLEET), "What has happened to a mission."
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
        EVENT_AGENT_STATE,
        EVENT_MISSION,
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
    900 * KIB,
    ttl_ms=86_400_000,
    doc="Proof that an agent or a consensus instance broke its word.",
)
AUDIT_ATTESTATION = MessageType(
    "audit.attestation",
    health.AttestationRefused,
    MessageClass.STORED,
    senders(ServiceName.FLEET),
    ttl_ms=86_400_000,
    doc="Agents that did not prove what they run.",
)
AUDIT_STANDING = MessageType(
    "audit.standing",
    health.StandingChanged,
    MessageClass.STORED,
    senders(ServiceName.FLEET),
    256 * KIB,
    86_400_000,
    "Agents that were quarantined, released or approved.",
)
AUDIT = Subject(
    "AUDIT",
    "audit.{kind}",
    (AUDIT_REJECTED, AUDIT_EQUIVOCATION, AUDIT_ATTESTATION, AUDIT_STANDING),
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
FLEET_RENEW = Request(
    "fleet.renew",
    fleet.RenewRequest,
    fleet.Enrolled,
    _S.FLEET,
    senders(*ServiceName),
    doc="A service asks for longer life of the certificate that the root gave it.",
)
FLEET_ROSTER = Request(
    "fleet.roster",
    fleet.RosterRequest,
    fleet.Roster,
    _S.FLEET,
    senders(_S.CLI, _S.GATEWAY, _S.MONITOR, _S.ROUTER, _S.CONSENSUS),
    doc="All agents and how they are.",
)
HOST_PING = Request(
    "agent.ping",
    operations.PingRequest,
    operations.Pong,
    _S.FLEET,
    senders(_S.FLEET),
    doc="Does this host's process live? Asked when the broker says that its connection has ended.",
    server_kind=Kind.HOST,
)
HOST_ATTEST = Request(
    "agent.attest",
    health.Challenge,
    health.Attestation,
    _S.FLEET,
    senders(_S.FLEET),
    doc="Prove what you run: the nonce, and each agent's measurement, signed.",
    server_kind=Kind.HOST,
)
FLEET_AGENT = Request(
    "fleet.agent", health.AgentQuestion, health.AgentDetail, _S.FLEET, OPERATORS, doc="All of one agent."
)
FLEET_STANDING = Request(
    "fleet.standing",
    health.StandingOrder,
    health.StandingDone,
    _S.FLEET,
    senders(_S.CLI),
    doc="Quarantine or release agents.",
)
FLEET_APPROVE = Request(
    "fleet.approve",
    health.Approval,
    health.StandingDone,
    _S.FLEET,
    senders(_S.CLI),
    doc="Allow agents what they run now, after an upgrade.",
)
FLEET_COORDINATE = Request(
    "fleet.coordinate",
    missions.MissionRequest,
    missions.MissionAccepted,
    _S.FLEET,
    senders(Role.ADMIN, _S.GATEWAY, _S.CLI),
    512 * KIB,
    doc="Start a mission.",
)
FLEET_MISSION = Request(
    "fleet.mission",
    missions.MissionQuestion,
    missions.MissionView,
    _S.FLEET,
    senders(Role.ADMIN, _S.GATEWAY, _S.CLI, _S.MONITOR),
    doc="All of one mission.",
)
FLEET_MISSIONS = Request(
    "fleet.missions",
    missions.MissionListRequest,
    missions.MissionList,
    _S.FLEET,
    senders(Role.ADMIN, _S.GATEWAY, _S.CLI, _S.MONITOR),
    doc="Missions, the youngest first.",
)
EMERGENCY = Request(
    "router.emergency",
    routing.ThreatAlert,
    routing.Accepted,
    _S.ROUTER,
    THREAT_ALERT.senders,
    asks=(ROUTE, THREAT_ALERT),
    doc="A CRITICAL alert: answered once stream ALERTS has it.",
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
EPOCH_DECIDED = MessageType(
    "epoch_decided",
    decisions.EpochDecided,
    MessageClass.EVIDENCE,
    senders(ServiceName.CONSENSUS),
    16 * KIB,
    0,
    "An epoch was decided; its certificate is in the object store.",
)
CONSENSUS_EPOCHS = Subject(
    "CONSENSUS_EPOCHS",
    "consensus.epochs.{number}",
    (CONSENSUS_EPOCH.request_type, EPOCH_DECIDED),
    "service.consensus",
    "The root's epoch records as they were installed, and where those that were decided are proven.",
    stream="DECISIONS",
)
MEMBERSHIP_WISH = MessageType(
    "membership_wish",
    decisions.MembershipWish,
    MessageClass.LIVE,
    senders(ServiceName.FLEET),
    ttl_ms=10_000,
    doc="Fleet asks the admins to propose the next epoch.",
)
MEMBERSHIP = Subject(
    "MEMBERSHIP",
    "fleet.membership",
    (MEMBERSHIP_WISH,),
    "role.admin",
    "Fleet to the admins: who should sit in the next epoch.",
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
CHANNEL_OPEN = Request(
    "channel.open",
    channels.OpenChannels,
    channels.ChannelsOpened,
    _S.CLI,
    senders(Role.ADMIN, _S.FLEET, _S.CLI, _S.GATEWAY),
    doc="Have an agent open channels beforehand.",
    server_kind=Kind.AGENT,
)
REQUESTS: tuple[Request[Message, Message], ...] = (
    *PING.values(),
    OBSERVE,
    FLEET_ENROL,
    FLEET_RENEW,
    FLEET_ROSTER,
    HOST_PING,
    HOST_ATTEST,
    FLEET_AGENT,
    FLEET_STANDING,
    FLEET_APPROVE,
    FLEET_COORDINATE,
    FLEET_MISSION,
    FLEET_MISSIONS,
    EMERGENCY,
    CONSENSUS_EPOCH,
    QPU_LIST,
    QPU_ALLOCATE,
    QPU_RUN,
    WORKFLOW_SUBMIT,
    BALANCER_PLACE,
    MONITOR_FIGURES,
    CHANNEL_OPEN,
)
ERROR_REPLY = MessageType(
    "error",
    operations.ErrorReply,
    MessageClass.LIVE,
    senders(*Role, *ServiceName, Kind.HOST),
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
MEASUREMENTS = Bucket(
    "measurements",
    health.MeasurementRecord,
    senders(_S.FLEET),
    "What agents may run, by host: the first measurement after an enrolment, and what operators have approved.",
    # 1,024 agents with names of 63 characters and four measurements each.
    max_bytes=640 * KIB,
)
STANDINGS = Bucket(
    "standings",
    health.Standing,
    senders(_S.FLEET),
    "Agents that something was or is held against, by name: who is quarantined, and why.",
    max_bytes=16 * KIB,
)
SEALING_KEYS = Bucket(
    "sealing_keys",
    fleet.SealingKeyRecord,
    senders(Kind.HOST, *Role),
    "The keys that bodies are sealed to, by token: each signed by the key whose certificate names who it is for.",
    max_bytes=16 * KIB,
    own=True,
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
PROFILES = Bucket(
    "profiles",
    missions.HostProfile,
    senders(Kind.HOST),
    "What the agents of a host can do, and where it is, by the host's token; each written by its host.",
    max_bytes=900 * KIB,
    own=True,
)
MISSIONS = Bucket(
    "missions",
    missions.MissionRecord,
    senders(_S.FLEET),
    "Missions, by name: the plan and how far it is. Forgotten a week after the last change.",
    max_bytes=900 * KIB,
    max_age_s=7 * 86_400,
)
BUCKETS: tuple[Bucket[Message], ...] = (
    AGENTS,
    ENROLMENTS,
    MEASUREMENTS,
    STANDINGS,
    PROFILES,
    MISSIONS,
    SEALING_KEYS,
    RESERVATIONS,
    WORKFLOWS,
)
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
    DISCOVERY_BACKUP,
    RECEIPT,
    HEARTBEAT,
    CHANNEL,
    CHANNEL_FRAME,
    MISSION_ORDER,
    MISSION_REPORT,
    CONSENSUS_BALLOT,
    CONSENSUS_VOTE,
    CONSENSUS_ROUND,
    CONSENSUS_WANTED,
    CONSENSUS_LACKING,
    CONSENSUS_SHOWN,
    CONSENSUS_DECISION,
    CONSENSUS_EPOCHS,
    MEMBERSHIP,
    REVOCATION_LIST,
    REVOCATION_STATEMENT,
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
    Stream("RECEIPTS", ("receipt.>",), "limits", 3_600, 256 * MIB, "Who took which emergency, and when."),
    Stream("MISSIONS", ("mission.report.>",), "limits", 86_400, 256 * MIB, "What hosts say of missions."),
    Stream(
        "DISCOVERIES",
        ("discovery.>",),
        "limits",
        DISCOVERIES_MAX_AGE_S,
        16 * MIB,
        "Discoveries, for admins that missed one.",
    ),
    Stream(
        "DECISIONS",
        ("consensus.decision.>", "consensus.epochs.>"),
        "limits",
        0,
        1024 * MIB,
        "Announcements of decisions, and epochs.",
    ),
    Stream(
        "REVOCATIONS",
        ("revocations.list",),
        "limits",
        0,
        64 * MIB,
        "Lists of revoked keys; the last one has all that those before it had.",
    ),
    Stream("EVENTS", ("event.>",), "limits", 7 * 86_400, 1024 * MIB, "Facts for the outside."),
    Stream("AUDIT", ("audit.>",), "limits", 30 * 86_400, 1024 * MIB, "The audit trail."),
    Stream("WORK", ("work.>",), "workqueue", 3_600, 512 * MIB, "Classical operations."),
    Stream("QPU_JOBS", ("qpu.job.>",), "workqueue", 3_600, 512 * MIB, "Jobs on QPUs."),
    Stream("RESULTS", ("result.>",), "workqueue", 3_600, 512 * MIB, "Results for workflow."),
)


FROM_QUARANTINE = frozenset(
    {HEARTBEAT_TYPE.name, HOST_PING.reply_type.name, HOST_ATTEST.reply_type.name, METRICS_TYPE.name}
)
"""What is taken from an agent or host in quarantine: that it lives, and what it runs."""


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
