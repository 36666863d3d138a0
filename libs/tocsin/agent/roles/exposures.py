"""What a specialist says of its ranked list: which endpoints are news, in which words, to whom. Pure.

An endpoint is news when it is first told, and again when its level or the kinds of its reasons have changed.
Endpoints of level HIGH are alerted once, in all; the rest of the news is intelligence only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tocsin.analysis.inventory.judging import Level, exchange_of
from tocsin.analysis.inventory.ranking import Ranked
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.identifiers import Severity
from tocsin.contracts.inventory import MAX_EXPOSURES, MAX_REASONS, CryptoExposure
from tocsin.contracts.routing import Intelligence, ThreatAlert

MAX_ALERTS = 16
"""Of one inventory; the last one counts the endpoints beyond."""
MAX_MESSAGES = 8
"""Messages of intelligence of one inventory: the worst 128 endpoints that are news; further ones come next time."""
MAX_KEPT = 20_000
"""Endpoints that are remembered as told; what is forgotten, oldest first, may be told again."""

_SEVERITIES = {
    Level.INFO: Severity.INFO,
    Level.LOW: Severity.LOW,
    Level.MEDIUM: Severity.MEDIUM,
    Level.HIGH: Severity.HIGH,
}
"""Never CRITICAL: that belongs to emergencies."""


@dataclass(slots=True)
class Told:
    """What was said before: survives a restart as JSON."""

    endpoints: dict[str, str] = field(default_factory=dict)
    """Digest of what was told, by endpoint; the oldest first."""
    alerted: dict[str, None] = field(default_factory=dict)
    """Endpoints that were alerted; the oldest first."""

    def keep(self, told: Mapping[str, str], alerted: Sequence[str]) -> None:
        """Remember what was said now."""
        for name, digest in told.items():
            self.endpoints.pop(name, None)
            self.endpoints[name] = digest
        self.alerted.update(dict.fromkeys(alerted))
        for kept in (self.endpoints, self.alerted):
            while len(kept) > MAX_KEPT:
                del kept[next(iter(kept))]

    def encode(self) -> bytes:
        """Return it as JSON."""
        return json.dumps({"endpoints": self.endpoints, "alerted": list(self.alerted)}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Told:
        """Read it back.

        Raises:
            InvalidInputError: ``bad_state``.
        """
        try:
            value = json.loads(data)
            endpoints, alerted = dict(value["endpoints"]), list(value["alerted"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InvalidInputError("the record of what was told is damaged", reason="bad_state") from error
        if not all(isinstance(one, str) for one in (*endpoints, *endpoints.values(), *alerted)):
            raise InvalidInputError("the record of what was told holds no names", reason="bad_state")
        told = cls()
        told.keep(endpoints, alerted)
        return told


@dataclass(frozen=True, slots=True)
class News:
    """What is to be said of one inventory."""

    alerts: tuple[tuple[ThreatAlert, tuple[str, ...]], ...]
    """Each with the endpoints that it is about."""
    intelligence: tuple[tuple[Intelligence, dict[str, str]], ...]
    """Each with the endpoints that it tells of, and their digests."""
    waiting: int
    """Endpoints that are news and wait for the next time."""


def news_of(ranked: Sequence[Ranked], told: Told) -> News:
    """Return what is news: intelligence from MEDIUM on, alerts for HIGH."""
    urgent = [one for one in ranked if one.level >= Level.MEDIUM]
    fresh = [one for one in urgent if told.endpoints.get(one.endpoint.name) != _digest(one)]
    first = fresh[: MAX_MESSAGES * MAX_EXPOSURES]
    high = [one for one in ranked if one.level is Level.HIGH and one.endpoint.name not in told.alerted]
    parts = [first[at : at + MAX_EXPOSURES] for at in range(0, len(first), MAX_EXPOSURES)]
    return News(
        alerts=_alerts(high, len(ranked)),
        intelligence=tuple(
            (_intelligence(part, ranked), {one.endpoint.name: _digest(one) for one in part}) for part in parts
        ),
        waiting=len(fresh) - len(first),
    )


def _digest(one: Ranked) -> str:
    kinds = sorted((reason.code, int(reason.level)) for reason in one.reasons)
    return hashlib.sha256(json.dumps([int(one.level), kinds]).encode()).hexdigest()[:16]


def _alerts(high: Sequence[Ranked], of: int) -> tuple[tuple[ThreatAlert, tuple[str, ...]], ...]:
    alerts = []
    for number, one in enumerate(high[:MAX_ALERTS], start=1):
        rest = high[MAX_ALERTS:] if number == MAX_ALERTS else ()
        more = f"; {len(rest)} more endpoints of this level" if rest else ""
        alert = ThreatAlert(severity=_SEVERITIES[one.level], summary=_line(one, of)[:400] + more)
        alerts.append((alert, tuple(about.endpoint.name for about in (one, *rest))))
    return tuple(alerts)


def _line(one: Ranked, of: int) -> str:
    return f"Cryptography of {one.endpoint.name} (rank {one.rank} of {of}): {one.reasons[0].text}"


def _intelligence(part: Sequence[Ranked], ranked: Sequence[Ranked]) -> Intelligence:
    worst = part[0]
    summary = f"{len(part)} endpoints whose cryptography is urgent. {_line(worst, len(ranked))}"
    return Intelligence(summary=summary[:512], exposures=tuple(exposure_of(one, len(ranked)) for one in part))


def exposure_of(one: Ranked, of: int) -> CryptoExposure:
    """Return an endpoint of the list as it travels; long texts are cut."""
    used = [exchange for variant, _ in one.endpoint.variants if (exchange := exchange_of(variant)) is not None]
    return CryptoExposure(
        host=one.endpoint.host[:253],
        port=one.endpoint.port,
        rank=one.rank,
        of=of,
        severity=_SEVERITIES[one.level],
        sessions=one.endpoint.sessions,
        exposure_session_years=one.exposure,
        exchange=tuple(dict.fromkeys(exchange.name[:64] for exchange in used))[:8],
        reasons=tuple(reason.text[:256] for reason in one.reasons[:MAX_REASONS]),
    )
