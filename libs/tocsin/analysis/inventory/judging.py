"""What is wrong with one endpoint, and why: a list of reasons. Pure; the present is passed in.

Two questions, kept apart, because they have different deadlines:

* **Key exchange** matters now: who records a session today decrypts it when the machine exists. Mosca's
  inequality (M. Mosca, "Cybersecurity in an Era with Quantum Computers: Will We Be Ready?", IEEE Security &
  Privacy 16(5), 2018): there is cause to worry if x + y > z, with x the years for which the content must stay
  secret, y the years that migration takes, z the years until the machine. Here: HIGH if x > z (what is recorded
  today is already lost), MEDIUM if x <= z < x + y (what is recorded before the migration is done will be), LOW
  otherwise.
* **Signatures** matter only once the machine exists: MEDIUM if a certificate is valid beyond that date, or if
  migration takes longer than the machine (y > z); LOW otherwise.

What is weak without any quantum computer is said beside it. Deadlines are NIST IR 8547 (initial public draft,
November 2024), tables 2 and 4: 112-bit algorithms deprecated after 2030, all that Shor's algorithm breaks
disallowed after 2035.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum

from tocsin.analysis.inventory import algorithms, suites
from tocsin.analysis.inventory.algorithms import Algorithm
from tocsin.analysis.inventory.model import Certificate, Endpoint, Variant
from tocsin.analysis.inventory.suites import Suite
from tocsin.contracts.errors import InvalidInputError

SECRECY_YEARS = 5.0
MIGRATION_YEARS = 5.0
MACHINE_YEAR = 2035
"""Not a prediction: the year by which NIST IR 8547 wants the last of it gone, hence a date to plan for."""
YEAR_S = 365.25 * 86_400
DEPRECATED_AFTER, DISALLOWED_AFTER = 2030, 2035
PLAIN = "plain"
"""The version of a link without encryption."""
ENVELOPE = "envelope"
"""The version of a message that protects itself, whatever carries it: its ``group`` seals it."""


class Level(IntEnum):
    """How urgent something is."""

    INFO = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What the operator knows or decides; the defaults are for nobody in particular."""

    now_s: float
    secrecy_years: float = SECRECY_YEARS
    """x: how long what is transmitted must stay secret."""
    migration_years: float = MIGRATION_YEARS
    """y: how long it takes until all of it is replaced."""
    machine_year: int = MACHINE_YEAR
    """A machine that breaks RSA-2048 and P-256 exists from the first of January of this year."""
    sensitive: Mapping[str, float] = field(default_factory=dict)
    """x of single endpoints: by ``host:port``, host or server name."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            InvalidInputError: ``bad_assumption``.
        """
        years = (self.secrecy_years, self.migration_years, *self.sensitive.values())
        if not all(0 <= one <= 200 for one in years) or not 2000 <= self.machine_year <= 2200:
            raise InvalidInputError(
                "years of secrecy and migration are 0 to 200, the machine's year is 2000 to 2200",
                reason="bad_assumption",
            )

    @property
    def machine_s(self) -> float:
        """When the machine exists, seconds since the epoch."""
        return datetime(self.machine_year, 1, 1, tzinfo=UTC).timestamp()

    @property
    def machine_in_years(self) -> float:
        """z, in years; 0 where it exists already."""
        return max(0.0, (self.machine_s - self.now_s) / YEAR_S)

    def secrecy_of(self, endpoint: Endpoint) -> float:
        """Return x of an endpoint: the longest of what was said for it, else the common one."""
        said = [
            self.sensitive[one]
            for one in (endpoint.name, endpoint.host, *endpoint.names)
            if one in self.sensitive
        ]
        return max(said, default=self.secrecy_years)


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing that is wrong, or worth knowing."""

    code: str
    level: Level
    text: str
    deadline: int | None = None
    """Last year in which NIST allows it (deprecated, then: see the text); None: no quantum deadline."""
    sessions: int = 0
    """Sessions that it concerns; 0: it is not about sessions."""


def reasons_of(
    endpoint: Endpoint, certificates: Mapping[str, Certificate], given: Assumptions
) -> tuple[Reason, ...]:
    """Return all reasons, worst first; of each code only the worst, its sessions added up."""
    found: dict[str, Reason] = {}
    for reason in _all_reasons(endpoint, certificates, given):
        before = found.get(reason.code)
        if before is None:
            found[reason.code] = reason
            continue
        worse = max(before, reason, key=lambda one: (one.level, one.text))
        found[reason.code] = Reason(
            worse.code, worse.level, worse.text, worse.deadline, before.sessions + reason.sessions
        )
    return tuple(sorted(found.values(), key=lambda one: (-one.level, one.code)))


def _all_reasons(
    endpoint: Endpoint, certificates: Mapping[str, Certificate], given: Assumptions
) -> Iterator[Reason]:
    secrecy = given.secrecy_of(endpoint)
    for variant, sessions in endpoint.variants:
        if variant.version == PLAIN:
            text = "nothing is encrypted: who records it reads it today"
            yield Reason("unencrypted", Level.HIGH, text, sessions=sessions)
            continue
        suite = suites.suite(variant.suite)
        yield from _exchange_reasons(variant, suite, sessions, secrecy, given)
        if variant.version != ENVELOPE:
            yield from _protocol_reasons(variant, suite, sessions)
    if not endpoint.certificates and any(v.version not in {PLAIN, ENVELOPE} for v, _ in endpoint.variants):
        text = "no certificate was seen (TLS 1.3 encrypts it, or x509.log is missing): probe the endpoint"
        yield Reason("certificate_not_seen", Level.INFO, text)
    for one in endpoint.certificates:
        yield from certificate_reasons(certificates[one], given, seen_s=endpoint.last_s)


def exchange_of(variant: Variant) -> Algorithm | None:
    """Return what a session's keys come from; None where the log does not say."""
    suite = suites.suite(variant.suite)
    if variant.group and suite.exchange != "RSA":
        return algorithms.group(variant.group)
    if suite.exchange == "RSA":
        return Algorithm("RSA key transport", algorithms.Primitive.ENCRYPTION, category=0, shor=True)
    if suite.exchange in {"DH", "DHE"}:
        return Algorithm("FFDH", algorithms.Primitive.KEY_AGREEMENT, category=0, shor=True)
    if suite.exchange in {"ECDH", "ECDHE"}:
        return Algorithm("ECDH", algorithms.Primitive.KEY_AGREEMENT, category=0, shor=True)
    return None


def _exchange_reasons(
    variant: Variant, suite: Suite, sessions: int, secrecy: float, given: Assumptions
) -> Iterator[Reason]:
    exchange = exchange_of(variant)
    if suite.exchange == "PSK":
        text = "keys come from a shared secret: nothing for Shor's algorithm"
        yield Reason("shared_secret", Level.INFO, text, sessions=sessions)
    elif exchange is None or exchange.primitive is algorithms.Primitive.UNKNOWN:
        text = f"how {variant.suite} {variant.group} agrees on keys is not known here".replace("  ", " ")
        yield Reason("unknown_exchange", Level.LOW, text, sessions=sessions)
    elif not exchange.shor:
        text = f"{exchange.name}: what is recorded today stays closed to Shor's algorithm"
        yield Reason("post_quantum_exchange", Level.INFO, text, sessions=sessions)
    else:
        yield _harvest(exchange, sessions, secrecy, given)
    if suite.exchange in {"RSA", "DH", "ECDH"}:
        text = f"{variant.suite}: no forward secrecy, one broken key opens every recorded session"
        yield Reason("no_forward_secrecy", Level.MEDIUM, text, sessions=sessions)
    if exchange is not None and exchange.strength is not None and exchange.strength < 112:
        text = f"{exchange.name} has fewer than 112 bits of strength, quantum computer or not"
        yield Reason("weak_exchange", Level.HIGH, text, sessions=sessions)


def _harvest(exchange: Algorithm, sessions: int, secrecy: float, given: Assumptions) -> Reason:
    years = given.machine_in_years
    deadline = _deadline(exchange)
    must = f"must stay secret for {secrecy:g} years"
    if secrecy > years:
        text = f"{exchange.name}: what is recorded today {must}, the machine is assumed in {years:.1f}"
        return Reason("harvest_now", Level.HIGH, text, deadline, sessions)
    if secrecy + given.migration_years > years:
        text = (
            f"{exchange.name}: what is recorded in the {given.migration_years:g} years of migration {must}, "
            f"the machine is assumed in {years:.1f}"
        )
        return Reason("harvest_now", Level.MEDIUM, text, deadline, sessions)
    text = (
        f"{exchange.name}: broken by Shor's algorithm, but only after the {secrecy:g} + {given.migration_years:g} "
        f"years of secrecy and migration"
    )
    return Reason("harvest_now", Level.LOW, text, deadline, sessions)


def _deadline(algorithm: Algorithm) -> int:
    short = algorithm.strength is not None and algorithm.strength <= 112
    return DEPRECATED_AFTER if short else DISALLOWED_AFTER


_OLD = {
    "SSLv2": (Level.HIGH, "prohibited by RFC 6176"),
    "SSLv3": (Level.HIGH, "prohibited by RFC 7568"),
    "TLSv1.0": (Level.MEDIUM, "deprecated by RFC 8996"),
    "TLSv1.1": (Level.MEDIUM, "deprecated by RFC 8996"),
    "DTLSv1.0": (Level.MEDIUM, "deprecated by RFC 8996"),
}


def _protocol_reasons(variant: Variant, suite: Suite, sessions: int) -> Iterator[Reason]:
    if variant.version in _OLD:
        level, why = _OLD[variant.version]
        yield Reason("old_protocol", level, f"{variant.version} is {why}", sessions=sessions)
    cipher = suite.cipher.name
    if suite.authentication == "anon" or suite.export or cipher in {"NULL", "DES", "DES40", "RC2"}:
        text = f"{variant.suite} protects nothing (anonymous, export-grade, DES or no encryption)"
        yield Reason("no_protection", Level.HIGH, text, sessions=sessions)
    elif cipher == "RC4":
        yield Reason("weak_cipher", Level.HIGH, "RC4 is prohibited by RFC 7465", sessions=sessions)
    elif cipher == "3DES-CBC":
        text = "3DES is disallowed by NIST SP 800-131A rev. 2 since 2024"
        yield Reason("weak_cipher", Level.MEDIUM, text, sessions=sessions)


def certificate_reasons(certificate: Certificate, given: Assumptions, *, seen_s: float) -> Iterator[Reason]:
    """Yield what is wrong with a certificate. It counts as expired if it was when it was last seen."""
    key = algorithms.public_key(certificate.key_kind, certificate.key_bits, certificate.curve)
    whose = f"{key.name} of {_common_name(certificate.subject)}"
    if key.primitive is algorithms.Primitive.UNKNOWN:
        yield Reason("unknown_key", Level.LOW, f"a key of a kind not known here: {certificate.key_kind}")
    elif not key.shor:
        yield Reason("post_quantum_signature", Level.INFO, f"{whose}: resists Shor's algorithm")
    else:
        yield _forgery(certificate, key, whose, given)
    if key.strength is not None and key.strength < 112:
        yield Reason(
            "weak_key", Level.HIGH, f"{whose}: fewer than 112 bits of strength, quantum computer or not"
        )
    digest = algorithms.signature_hash(certificate.signature)
    if digest in {"MD5", "SHA"} and not certificate.self_issued:
        level = Level.HIGH if digest == "MD5" else Level.MEDIUM
        name = "MD5" if digest == "MD5" else "SHA-1"
        text = f"{whose}: signed with {name}, for which colliding certificates can be made"
        yield Reason("weak_signature", level, text)
    if certificate.not_after_s < seen_s:
        text = f"{whose}: expired {_date(certificate.not_after_s)}, used {_date(seen_s)}"
        yield Reason("expired", Level.MEDIUM, text)


def _forgery(certificate: Certificate, key: Algorithm, whose: str, given: Assumptions) -> Reason:
    deadline = _deadline(key)
    if certificate.not_after_s > given.machine_s:
        ends = _date(certificate.not_after_s)
        text = f"{whose}: valid until {ends}, can be impersonated from {given.machine_year} on"
        return Reason("forgeable", Level.MEDIUM, text, deadline)
    if given.migration_years > given.machine_in_years:
        text = f"{whose}: migration takes {given.migration_years:g} years, the machine {given.machine_in_years:.1f}"
        return Reason("forgeable", Level.MEDIUM, text, deadline)
    ends = _date(certificate.not_after_s)
    text = f"{whose}: to be replaced; it ends {ends}, before the machine of {given.machine_year}"
    return Reason("forgeable", Level.LOW, text, deadline)


def _common_name(subject: str) -> str:
    """Return the common name of a subject, or what there is of it."""
    for part in subject.split(","):
        kind, _, value = part.strip().partition("=")
        if kind.upper() == "CN" and value:
            return value[:64]
    return subject[:64] or "nobody named"


def _date(at_s: float) -> str:
    try:
        return datetime.fromtimestamp(at_s, UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):  # a log may say any number of seconds
        return f"{at_s:.0f} s"
