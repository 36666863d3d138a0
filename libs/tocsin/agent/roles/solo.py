"""What a deception agent makes of its visits where no sentinel is enrolled: its own alerts.

The connections are judged by the detectors that a sentinel has, on this agent's honeypots alone. Beside them counts
what only a honeypot can know: MIN_LOGINS logins of one source within QUIET_S are an alert of their own, since nobody
has an account there. Connections below the detectors' thresholds and fewer logins are no alert: that much, everything
that listens on a network sees every hour.

Pure: no I/O and no clock. MAX_SOURCES sources' logins are counted; the one that was seen longest ago is forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence

from tocsin.agent.roles.alerting import News
from tocsin.agent.roles.honeypot import Visit, flow_of
from tocsin.agent.roles.memory import Memory
from tocsin.agent.roles.sensors import HONEYPOTS
from tocsin.agent.roles.sources import LiveSource
from tocsin.analysis import techniques
from tocsin.analysis.detection import strongest_first
from tocsin.analysis.hosts import is_internal
from tocsin.analysis.windows import WINDOW_S, Window, features_of
from tocsin.contracts.observations import MAX_FLOWS_PER_BATCH, Finding, FindingKind, Observations

MIN_LOGINS = 3
"""As many as login(1) allows in one connection: a person who has the wrong machine has noticed by then."""
TRIED = 0.7
"""Score of MIN_LOGINS logins, on the detectors' scale: as 47 guesses at a service that has users."""
QUIET_S = 600.0
MAX_SOURCES = 4096


class Solo:
    """Judges the visits to one agent's honeypots."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._live = LiveSource(HONEYPOTS)
        self._sequence = 0
        self._logins: Memory[str, tuple[float, int]] = Memory(MAX_SOURCES)
        """When a source first tried, and how many logins it has tried since."""
        self._news = News()

    def judge(self, visits: Sequence[Visit], *, now_s: float) -> list[Finding]:
        """Take visits; return what is news, strongest first. CPU-bound, as :meth:`LiveSource.look`."""
        found: list[Finding] = []
        for start in range(0, len(visits), MAX_FLOWS_PER_BATCH):
            part = visits[start : start + MAX_FLOWS_PER_BATCH]
            flows = tuple(sorted(map(flow_of, part), key=lambda flow: flow.at_s))
            batch = Observations(source=HONEYPOTS, sequence=self._sequence, flows=flows)
            self._sequence += 1
            found += self._live.take(self._name, batch)
        found += [finding for visit in visits if (finding := self._tried(visit)) is not None]
        found += self._live.look(now_s)
        return self._news.among(strongest_first(found))

    def _tried(self, visit: Visit) -> Finding | None:
        if not visit.logins:
            return None
        source = visit.client[0]
        first_s, count = self._logins.get(source) or (visit.at_s, 0)
        if visit.at_s > first_s + QUIET_S:
            first_s, count = visit.at_s, 0
        count += len(visit.logins)
        self._logins.keep(source, (first_s, count))
        if count < MIN_LOGINS:
            return None
        flow = flow_of(visit)
        return Finding(
            kind=FindingKind.BRUTE_FORCE,
            subject=source,
            internal=is_internal(source),
            targets=(flow.destination,),
            score=TRIED,
            technique=techniques.BRUTE_FORCE,
            evidence=(f"{count} logins at honeypots of {self._name}, the last at {visit.imitates}",),
            features=features_of(Window(source, flow.at_s, WINDOW_S, [flow])),
            source=HONEYPOTS,
            first_s=first_s,
            last_s=visit.at_s,
            connections=1,
        )
