"""What sensors see: connections, the IDS's own alerts, and what a sentinel makes of them."""

from __future__ import annotations

from enum import StrEnum
from math import log10
from typing import Annotated, Literal

from pydantic import Field

from tocsin.contracts.base import Address, Message, MessageId, Name, Port, Probability, Text

MAX_FLOWS_PER_BATCH = 256
"""Keeps a batch of observations below 128 KB on the wire."""


class FlowState(StrEnum):
    """How a connection ended, reduced from Zeek's conn_state and Suricata's flow.state."""

    ESTABLISHED = "established"
    REJECTED = "rejected"
    UNANSWERED = "unanswered"
    RESET = "reset"
    OTHER = "other"


class Flow(Message):
    """One connection, seen from its originator."""

    at_s: Annotated[float, Field(ge=0, le=1e11)]
    """Start, in seconds since the epoch (some captures start at zero)."""
    source: Address
    source_port: Port
    destination: Address
    destination_port: Port
    protocol: Annotated[str, Field(max_length=16)]
    service: Annotated[str, Field(max_length=64)] | None = None
    duration_s: Annotated[float, Field(ge=0, le=1e9)] | None = None
    bytes_sent: Annotated[int, Field(ge=0, le=2**53)] = 0
    bytes_received: Annotated[int, Field(ge=0, le=2**53)] = 0
    state: FlowState = FlowState.OTHER


class IdsAlert(Message):
    """An alert that the input's own intrusion detection raised (Suricata ``alert`` events)."""

    at_s: Annotated[float, Field(ge=0, le=1e11)]
    source: Address
    destination: Address
    destination_port: Port
    signature_id: Annotated[int, Field(ge=0, le=2**53)]
    signature: Text
    category: Text
    severity: Annotated[int, Field(ge=1, le=255)]
    """1 is the most severe, as Suricata counts."""


class Observations(Message):
    """A batch of what one sensor saw, in the order in which it was read."""

    kind: Literal["observations"] = "observations"
    source: Text
    """Names the sensor or the file; findings repeat it."""
    sequence: Annotated[int, Field(ge=0, le=2**53)]
    flows: Annotated[tuple[Flow, ...], Field(max_length=MAX_FLOWS_PER_BATCH)] = ()
    ids_alerts: Annotated[tuple[IdsAlert, ...], Field(max_length=MAX_FLOWS_PER_BATCH)] = ()
    final: bool = False
    """The source has ended: close the windows that are open."""


class ObservationsTaken(Message):
    """A sentinel's answer to a batch: what it has taken so far from this source."""

    sequence: Annotated[int, Field(ge=0, le=2**53)]
    flows: Annotated[int, Field(ge=0)]
    findings: Annotated[int, Field(ge=0)]
    """Findings of this source so far; complete once the final batch is answered."""


FEATURES = (
    "connections",
    "distinct_ports",
    "distinct_peers",
    "rejected_share",
    "interval_regularity",
    "port_concentration",
    "bytes_sent_log",
    "bytes_received_log",
)
"""Names of a window's features, in the order of :attr:`WindowFeatures.vector`."""


class WindowFeatures(Message):
    """Features of one host's outgoing connections in one time window."""

    host: Address
    window_start_s: float
    window_s: Annotated[float, Field(gt=0)]
    connections: Annotated[int, Field(ge=1)]
    distinct_ports: Annotated[int, Field(ge=1)]
    distinct_peers: Annotated[int, Field(ge=1)]
    rejected_share: Probability
    """Share of the connections that were rejected, unanswered or reset."""
    interval_regularity: Probability
    """1 / (1 + coefficient of variation) of the intervals between connections to the busiest (peer, port);
    0 with fewer than four of them. Retries of one five-tuple count as one connection here."""
    port_concentration: Probability
    """Share of the connections that go to the busiest (peer, port)."""
    bytes_sent: Annotated[int, Field(ge=0)]
    bytes_received: Annotated[int, Field(ge=0)]

    @property
    def vector(self) -> tuple[float, ...]:
        """The values in the order of :data:`FEATURES`; bytes as log10(1 + bytes)."""
        return (
            float(self.connections),
            float(self.distinct_ports),
            float(self.distinct_peers),
            self.rejected_share,
            self.interval_regularity,
            self.port_concentration,
            log10(1 + self.bytes_sent),
            log10(1 + self.bytes_received),
        )


class Technique(Message):
    """An ATT&CK technique."""

    id: Annotated[str, Field(pattern=r"^T\d{4}(\.\d{3})?$")]
    name: Text


class FindingKind(StrEnum):
    """What a sentinel recognises."""

    SCAN = "scan"
    BRUTE_FORCE = "brute_force"
    BEACON = "beacon"
    IDS = "ids"
    EXFILTRATION = "exfiltration"
    DNS_TUNNEL = "dns_tunnel"
    NXDOMAIN = "nxdomain"
    TLS = "tls"
    NOTICE = "notice"


class Finding(Message):
    """One suspicious host in one window, with its evidence."""

    kind: FindingKind
    subject: Address
    """The host that the finding is about: the attacker, or the infected host."""
    internal: bool
    """True if ``subject`` is an address of ours (private, link-local or loopback)."""
    targets: Annotated[tuple[Address, ...], Field(max_length=16)]
    score: Probability
    """Strength of the finding by its detector's own documented scale; not a probability of malice."""
    technique: Technique
    evidence: Annotated[tuple[Text, ...], Field(max_length=16)]
    features: WindowFeatures | None = None
    source: Text
    first_s: float
    last_s: float
    connections: Annotated[int, Field(ge=0)]


class Incident(Message):
    """Findings that a hunter holds to be one case, strongest first."""

    kind: Literal["incident"] = "incident"
    incident: MessageId
    primary: Finding
    related: Annotated[tuple[Finding, ...], Field(max_length=32)] = ()
    alerts: Annotated[tuple[MessageId, ...], Field(max_length=64)]
    """Ids of the threat alerts that led here."""
    story: Annotated[tuple[Text, ...], Field(max_length=16)] = ()
    """Where findings of several times or hosts were joined: one line each, in the order of time, and why."""


class SensorReady(Message):
    """A deception agent's honeypot, or a canary's socket, listens: event ``agent.sensor``."""

    agent: Name
    address: Address
    port: Port
    imitates: Annotated[str, Field(max_length=32)]
    """The service that it pretends to be, e.g. ``ssh``."""
