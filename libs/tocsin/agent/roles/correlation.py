"""From alerts to incidents: which findings are one case, when a case is complete, and what it is called.

* **A case.** What one capture or sensor shows is one case: an alert's case is its finding's ``source``. The
  exception are the deception sensors (:mod:`tocsin.agent.roles.sensors`): all the world may call there, so
  that each subject is a case of its own, whichever sensor saw it.
* **Complete** is what was quiet for 0.4 s, or has been gathered for 2 s: an attack that goes on must not put
  off its own response.
* **The primary** is the strongest finding whose features can be scored; without such, the strongest.
* **The id** is a hash of the case and its primary, so that two hunters who both believe that a case is
  theirs name the same incident, and whoever gets both takes them for one.
* **Known cases.** What was in an incident makes another one only if it is a new subject or kind, or clearly
  stronger.

Pure: the clock is passed in (monotonic seconds), nothing is random.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from tocsin.agent.roles.alerting import CLEARLY_STRONGER
from tocsin.agent.roles.memory import Memory
from tocsin.agent.roles.sensors import DECEPTION
from tocsin.contracts.observations import Finding, FindingKind, Incident

QUIET_S = 0.4
"""A burst of one batch's alerts is over after this: it takes some milliseconds, and a busy host's scheduling
tens of them."""
LONGEST_S = 2.0
MAX_CASES = 256
"""Cases gathered at a time; beyond it the oldest is completed early."""
MAX_RELATED = 32
MAX_ALERTS = 64
MAX_RELATED_BYTES = 150_000
"""Of an incident's related findings as JSON: a coordination message holds 256 KiB, its order included."""
MAX_KNOWN = 4096
"""(case, subject, kind) whose strength is remembered."""

_Known = tuple[str, str, FindingKind]


def case_of(finding: Finding) -> str:
    """Return the case that a finding belongs to: what hunters agree by on who takes it."""
    if finding.source.startswith(DECEPTION):
        return f"{DECEPTION}{finding.subject}"
    return finding.source


def incident_id(case: str, primary: Finding) -> bytes:
    """Return the incident's id: 16 bytes of SHA-256 as a UUIDv8 (RFC 9562 section 5.8)."""
    digest = hashlib.sha256(b"tocsin/incident/1")
    for part in (case, primary.kind.value, primary.subject, repr(primary.first_s), repr(primary.score)):
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "big") + raw)
    value = bytearray(digest.digest()[:16])
    value[6] = 0x80 | (value[6] & 0x0F)
    value[8] = 0x80 | (value[8] & 0x3F)
    return bytes(value)


@dataclass(slots=True)
class _Gathering:
    """What was gathered of one case; findings in a mapping, for it keeps the order and drops duplicates."""

    begun_s: float
    touched_s: float
    findings: dict[tuple[FindingKind, str, str], Finding] = field(default_factory=dict)
    alerts: dict[bytes, None] = field(default_factory=dict)

    def add(self, finding: Finding, alert: bytes, now_s: float) -> None:
        self.touched_s = now_s
        if len(self.alerts) < MAX_ALERTS:
            self.alerts[alert] = None
        key = (finding.kind, finding.subject, finding.source)
        known = self.findings.get(key)
        if known is None or _rank(finding) < _rank(known):
            self.findings[key] = finding
        if len(self.findings) > MAX_RELATED + 1:
            del self.findings[max(self.findings, key=lambda one: _rank(self.findings[one]))]

    @property
    def due_s(self) -> float:
        return min(self.touched_s + QUIET_S, self.begun_s + LONGEST_S)


def _rank(finding: Finding) -> tuple[bool, float, int, str, str]:
    """Order of findings in an incident; total but for equal findings, so that arrival decides nothing."""
    return (
        finding.features is None,
        -finding.score,
        -finding.connections,
        finding.subject,
        f"{finding.kind.value} {finding.source}",
    )


class Correlation:
    """The cases of one hunter."""

    def __init__(self) -> None:
        self._gathered: dict[str, _Gathering] = {}
        self._known: Memory[_Known, float] = Memory(MAX_KNOWN)

    def add(self, finding: Finding, alert: bytes, *, now_s: float) -> list[Incident]:
        """Take the finding of an alert; return the incidents that had to be completed to make room."""
        case = case_of(finding)
        early = self._make_room() if case not in self._gathered else []
        self._gathered.setdefault(case, _Gathering(now_s, now_s)).add(finding, alert, now_s)
        return early

    def due_s(self) -> float | None:
        """Return when the next case is complete if nothing comes; None if nothing is gathered."""
        return min((gathering.due_s for gathering in self._gathered.values()), default=None)

    def complete(self, now_s: float) -> list[Incident]:
        """Return the incidents of the cases that are complete at ``now_s``, the longest complete first."""
        due = sorted((g.due_s, case) for case, g in self._gathered.items() if g.due_s <= now_s)
        return self._close(case for _, case in due)

    def _make_room(self) -> list[Incident]:
        if len(self._gathered) < MAX_CASES:
            return []
        oldest = min(self._gathered, key=lambda case: (self._gathered[case].begun_s, case))
        return self._close([oldest])

    def _close(self, cases: Iterable[str]) -> list[Incident]:
        closed = [(case, self._gathered.pop(case)) for case in cases]
        return [self._incident(case, gathered) for case, gathered in closed if self._is_news(case, gathered)]

    def _is_news(self, case: str, gathered: _Gathering) -> bool:
        news = False
        for finding in gathered.findings.values():
            key = (case, finding.subject, finding.kind)
            known = self._known.get(key)
            if known is None or finding.score >= known + CLEARLY_STRONGER:
                self._known.keep(key, finding.score)
                news = True
        return news

    def _incident(self, case: str, gathered: _Gathering) -> Incident:
        primary, *related = sorted(gathered.findings.values(), key=_rank)
        return Incident(
            incident=incident_id(case, primary),
            primary=primary,
            related=tuple(within(related, MAX_RELATED_BYTES)),
            alerts=tuple(gathered.alerts),
        )


def within(findings: Iterable[Finding], limit: int) -> Iterable[Finding]:
    """Yield the first findings that together have at most ``limit`` bytes."""
    for finding in findings:
        limit -= len(finding.model_dump_json())
        if limit < 0:
            return
        yield finding
