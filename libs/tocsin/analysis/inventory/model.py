"""What was seen: endpoints, what their sessions agreed upon, their certificates. Everything is bounded.

builder = InventoryBuilder()
builder.add_certificate(certificate, also_known_as=("F1v6sJ",))
builder.add_session("192.0.2.7", 443, Variant("TLSv1.3", "TLS_AES_128_GCM_SHA256", "x25519"), at_s=0.0)
inventory = builder.build()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MAX_ENDPOINTS = 20_000
MAX_CERTIFICATES = 50_000
MAX_ALIASES = 500_000
"""Zeek's file ids, one for each certificate of each session."""
MAX_VARIANTS = 32
"""Of one endpoint; the sessions of further ones are counted under the last."""
MAX_NAMES = 8
MAX_CERTIFICATES_PER_ENDPOINT = 16
MAX_TEXT = 256
"""Characters of a name or a subject that are kept."""


@dataclass(frozen=True, slots=True, order=True)
class Variant:
    """What a session agreed upon, in the names of :mod:`tocsin.analysis.inventory.codes`."""

    version: str
    suite: str
    group: str = ""
    """Empty where there is none (RSA key transport, resumption) or the log does not say."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate, as far as a log or its bytes tell."""

    id: str
    """SHA-256 of the DER in hex, or ``log-`` and a digest of what a log says where that names no fingerprint."""
    subject: str
    issuer: str
    not_before_s: float
    not_after_s: float
    key_kind: str
    """``rsa``, ``ecdsa``, ``ed25519``, ``ml-dsa-65`` ..."""
    key_bits: int | None
    curve: str
    signature: str
    """Name of the signature's algorithm, e.g. ``sha256WithRSAEncryption``."""

    @property
    def self_issued(self) -> bool:
        """Whether it names itself as its issuer: nobody relies on its signature then."""
        return self.subject == self.issuer


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and port that answers, and what was seen of it."""

    host: str
    port: int
    names: tuple[str, ...]
    """Server names that clients asked for, sorted."""
    sessions: int
    variants: tuple[tuple[Variant, int], ...]
    """With their sessions, sorted."""
    certificates: tuple[str, ...]
    """Ids, sorted; those that the logs did not describe are left out."""
    sources: tuple[str, ...]
    """``zeek``, ``probe`` or ``declared``."""
    last_s: float
    """When it was last seen, seconds since the epoch."""

    @property
    def name(self) -> str:
        """``host:port``, with an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Inventory:
    """All endpoints, sorted by host and port, and their certificates by id."""

    endpoints: tuple[Endpoint, ...]
    certificates: Mapping[str, Certificate]
    dropped: Mapping[str, int]
    """What found no room, by kind: ``endpoints``, ``certificates``, ``aliases``. Empty: everything is here."""


@dataclass(slots=True)
class _Seen:
    names: set[str] = field(default_factory=set)
    variants: dict[Variant, int] = field(default_factory=dict)
    certificates: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)
    sessions: int = 0
    last_s: float = 0.0


class InventoryBuilder:
    """Collects what is seen; what finds no room is counted."""

    def __init__(self, max_endpoints: int = MAX_ENDPOINTS, max_certificates: int = MAX_CERTIFICATES) -> None:
        self._max_endpoints = max_endpoints
        self._max_certificates = max_certificates
        self._seen: dict[tuple[str, int], _Seen] = {}
        self._certificates: dict[str, Certificate] = {}
        self._aliases: dict[str, str] = {}
        self._dropped: dict[str, int] = {}

    def add_certificate(self, certificate: Certificate, also_known_as: Iterable[str] = ()) -> None:
        """Keep a certificate, and the ids by which sessions name it."""
        known = certificate.id in self._certificates
        if not known and len(self._certificates) >= self._max_certificates:
            self._drop("certificates")
            return
        self._certificates[certificate.id] = certificate
        for alias in (certificate.id, *also_known_as):
            if alias in self._aliases or len(self._aliases) < MAX_ALIASES:
                self._aliases[alias] = certificate.id
            else:
                self._drop("aliases")

    def add_session(
        self,
        host: str,
        port: int,
        variant: Variant,
        *,
        at_s: float,
        source: str = "zeek",
        server_name: str = "",
        certificates: Iterable[str] = (),
    ) -> None:
        """Count a session of an endpoint. Certificates that were not added before are left out."""
        seen = self._seen.get((host, port))
        if seen is None:
            if len(self._seen) >= self._max_endpoints:
                self._drop("endpoints")
                return
            seen = self._seen[host, port] = _Seen()
        seen.sessions += 1
        seen.sources.add(source)
        seen.last_s = max(seen.last_s, at_s)
        if server_name and (len(seen.names) < MAX_NAMES):
            seen.names.add(server_name[:MAX_TEXT])
        if variant not in seen.variants and len(seen.variants) >= MAX_VARIANTS:
            variant = max(seen.variants)
        seen.variants[variant] = seen.variants.get(variant, 0) + 1
        for one in certificates:
            known = self._aliases.get(one)
            if known is not None and len(seen.certificates) < MAX_CERTIFICATES_PER_ENDPOINT:
                seen.certificates.add(known)

    def _drop(self, kind: str) -> None:
        self._dropped[kind] = self._dropped.get(kind, 0) + 1

    def build(self) -> Inventory:
        """Return what was collected so far."""
        endpoints = tuple(
            Endpoint(
                host=host,
                port=port,
                names=tuple(sorted(seen.names)),
                sessions=seen.sessions,
                variants=tuple(sorted(seen.variants.items())),
                certificates=tuple(sorted(seen.certificates)),
                sources=tuple(sorted(seen.sources)),
                last_s=seen.last_s,
            )
            for (host, port), seen in sorted(self._seen.items())
        )
        used = {one for endpoint in endpoints for one in endpoint.certificates}
        kept = {one: self._certificates[one] for one in sorted(used)}
        return Inventory(endpoints, kept, dict(sorted(self._dropped.items())))
