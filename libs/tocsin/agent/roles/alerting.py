"""What a sentinel says of its findings: which are news, how severe they are, in which words.

Pure: no I/O and no clock. CRITICAL is not a severity that a finding can have: it belongs to orders.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tocsin.agent.roles.memory import Memory
from tocsin.contracts.identifiers import Severity
from tocsin.contracts.observations import Finding, FindingKind
from tocsin.contracts.routing import ThreatAlert

MAX_ALERTS = 16
"""Alerts about one batch of a source; the other findings are counted in the last one's summary."""

CLEARLY_STRONGER = 0.1
"""By so much must a finding's score grow to be news again: fewer than six alerts for one host and kind."""

MAX_REMEMBERED = 4096
"""(kind, subject) pairs whose score is remembered for one source; what is forgotten may be alerted again."""

REMIND_S = 86400.0
"""What begins so long after it was said last is news again, in the sources' own time."""

_LEVELS = ((0.7, Severity.HIGH), (0.5, Severity.MEDIUM), (0.3, Severity.LOW))
"""Least score by severity. 0.5 is where a detector's rule just holds. 0.7 is a scan that a benign host would
show with 10^-3, or 47 password guesses. One IDS alert of priority 2 or lower is 0.2, hence INFO; of
priority 1 it is 0.35 (tocsin.analysis.detectors and .ids)."""

_WORDS = {
    FindingKind.SCAN: "scans",
    FindingKind.BRUTE_FORCE: "guesses passwords at",
    FindingKind.BEACON: "keeps calling",
    FindingKind.IDS: "raised IDS alerts with",
    FindingKind.EXFILTRATION: "sends much to",
    FindingKind.DNS_TUNNEL: "moves data in names asked of",
    FindingKind.NXDOMAIN: "asks for names that do not exist, of",
    FindingKind.TLS: "trusts certificates that nobody vouches for, of",
    FindingKind.NOTICE: "was noticed by Zeek, with",
}


def severity_of(score: float) -> Severity:
    """Return the severity of a finding's score: HIGH from 0.7, MEDIUM from 0.5, LOW from 0.3, else INFO."""
    return next((severity for least, severity in _LEVELS if score >= least), Severity.INFO)


def summary_of(finding: Finding) -> str:
    """Return one line for people, at most 400 characters."""
    whom = ", ".join(finding.targets[:3]) or "nobody known"
    more = f" and {len(finding.targets) - 3} more" if len(finding.targets) > 3 else ""
    where = "Host" if finding.internal else "Outside address"
    text = (
        f"{where} {finding.subject} {_WORDS[finding.kind]} {whom}{more}: {finding.connections} connections, "
        f"score {finding.score:.2f} ({finding.technique.id})"
    )
    return text[:400]


def alerts_of(findings: Sequence[Finding]) -> tuple[ThreatAlert, ...]:
    """Return an alert for each of the first MAX_ALERTS findings; the last one says how many more there are."""
    told, untold = findings[:MAX_ALERTS], len(findings) - MAX_ALERTS
    alerts = [
        ThreatAlert(severity=severity_of(finding.score), summary=summary_of(finding), finding=finding)
        for finding in told
    ]
    if untold > 0:
        summary = f"{alerts[-1].summary}; {untold} weaker findings of this batch are not alerted"
        alerts[-1] = alerts[-1].model_copy(update={"summary": summary})
    return tuple(alerts)


class News:
    """Tells what was not said before: a (kind, subject) pair is news once, when clearly stronger, and a day later.

    Args:
        said: Findings that were said before, the oldest first.
    """

    def __init__(self, said: Iterable[Finding] = ()) -> None:
        self._said: Memory[tuple[FindingKind, str], Finding] = Memory(MAX_REMEMBERED)
        for finding in said:
            self._keep(finding)

    def among(self, findings: Sequence[Finding]) -> list[Finding]:
        """Return the findings that are news, in their order, and remember them as said."""
        news = []
        for finding in findings:
            said = self._said.get((finding.kind, finding.subject))
            if said is None or _is_news(finding, said):
                self._keep(finding)
                news.append(finding)
        return news

    def said(self) -> list[Finding]:
        """Return what is remembered as said, the oldest first."""
        return self._said.values()

    def _keep(self, finding: Finding) -> None:
        self._said.keep((finding.kind, finding.subject), finding)


def _is_news(finding: Finding, said: Finding) -> bool:
    return finding.score >= said.score + CLEARLY_STRONGER or finding.first_s > said.last_s + REMIND_S
