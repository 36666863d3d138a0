"""What logs say beside connections and IDS alerts: names asked for, certificates shown, log-ins, notices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from tocsin.contracts.observations import Flow, IdsAlert


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """A name that a client asked for, and what came back."""

    at_s: float
    client: str
    name: str
    """In small letters, without the last dot."""
    missing: bool
    """Whether the answer was NXDOMAIN: no such name."""


@dataclass(frozen=True, slots=True)
class TlsSession:
    """A TLS session whose server's certificate was seen."""

    at_s: float
    client: str
    server: str
    port: int
    server_name: str
    """What the client asked for; may be empty."""
    subject: str
    problem: str
    """Why nobody vouches for the certificate, e.g. ``self signed certificate``; empty if somebody does."""


@dataclass(frozen=True, slots=True)
class Login:
    """A log-in that a server wrote down."""

    at_s: float
    service: str
    server: str
    """As the log names it: a host name."""
    client: str
    port: int
    """Of the client, 0 if it is not said: one connection's attempts have one."""
    user: str
    succeeded: bool
    closing: bool = False
    """Whether it is the end of a connection, which says nothing new if the same connection has failed before."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What Zeek's own scripts found worth a notice."""

    at_s: float
    note: str
    """Zeek's name of it, e.g. ``Scan::Port_Scan``."""
    message: str
    source: str
    destination: str
    """Empty where the notice has none."""


Entry: TypeAlias = Flow | IdsAlert | DnsAnswer | TlsSession | Login | Notice
"""What one line of a log can say."""
