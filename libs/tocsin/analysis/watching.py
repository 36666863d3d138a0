"""What a sentinel thinks with when it watches a log for ever: lines' entries in, findings out, state that can be kept.

    watch = Watch("/var/log/suricata/eve.json")
    found = watch.take(entries, now_s=now_s)    # findings of windows that closed
    found = watch.look()                        # of the windows that are open, as they are
    kept = watch.dump(); ...; watch.load(kept)

Its time is the log's: windows close when a record comes that is LATENESS_S behind their end, not when the clock says
so. A log that is read late, or again after a crash, is therefore judged as it was the first time, and a captured one of
years ago as it would have been then.

A dump holds every open window, up to 50,000 connections twice (:mod:`tocsin.analysis.windows`): some 10 MB of JSON at
the bound, of a busy day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tocsin.analysis.detection import Detection, DetectionStatistics, strongest_first
from tocsin.analysis.events import Entry
from tocsin.analysis.logrules import LogRules
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Finding, Flow, IdsAlert, Observations

LATENESS_S = 60.0
"""Logs are written when a connection ends: windows stay open a little longer than the latest beginning says."""


class Watch:
    """All rules over one log."""

    def __init__(self, source: str) -> None:
        self.source = source[:512]
        self._detection = Detection(self.source)
        self._rules = LogRules(self.source)
        self._latest_s = 0.0
        self._events = 0

    def take(self, entries: Sequence[Entry], *, now_s: float) -> list[Finding]:
        """Take entries in their order; return what is new or stronger in windows that closed, strongest first.

        Args:
            entries: Of :class:`tocsin.analysis.logs.LogParser`, which bounds how far ahead they are dated.
            now_s: Seconds since the epoch; the log's time is not ahead of it.
        """
        found: list[Finding] = []
        flows: list[Flow] = []
        alerts: list[IdsAlert] = []
        for entry in entries:
            self._latest_s = max(self._latest_s, min(entry.at_s, now_s))
            if isinstance(entry, Flow):
                flows.append(entry)
            elif isinstance(entry, IdsAlert):
                alerts.append(entry)
            else:
                self._events += 1
                found += self._rules.take(entry)
        closed = self._detection.feed(_observations(self.source, flows, alerts))
        until_s = self._latest_s - LATENESS_S
        found += self._rules.advance(until_s)
        return strongest_first([*closed, *self._detection.advance(until_s), *self._detection.merge(found)])

    def look(self) -> list[Finding]:
        """Judge the open windows as they are; return what is found in them, strongest first. O(n log n)."""
        return strongest_first([*self._detection.peek(), *self._rules.peek()])

    def statistics(self) -> DetectionStatistics:
        """Return the counts of connections and alerts so far."""
        return self._detection.statistics()

    def dump(self) -> dict[str, object]:
        """Return everything that must survive a restart, as JSON has it."""
        return {
            "detection": self._detection.dump(),
            "rules": self._rules.dump(),
            "latest_s": self._latest_s,
            "events": self._events,
        }

    def load(self, dumped: Mapping[str, object]) -> None:
        """Go on with what was dumped.

        Raises:
            InvalidInputError: ``bad_state``.
        """
        detection, rules = dumped.get("detection", {}), dumped.get("rules", {})
        latest_s, events = dumped.get("latest_s", 0.0), dumped.get("events", 0)
        if not (
            isinstance(detection, Mapping)
            and isinstance(rules, Mapping)
            and isinstance(latest_s, int | float)
            and isinstance(events, int)
        ):
            raise InvalidInputError("no state of a watch", reason="bad_state")
        self._detection.load(detection)
        self._rules.load(rules)
        self._latest_s, self._events = float(latest_s), events


def _observations(source: str, flows: list[Flow], alerts: list[IdsAlert]) -> Observations:
    # Not for the wire: the bound of a batch that travels does not hold here.
    return Observations.model_construct(
        kind="observations",
        source=source,
        sequence=0,
        flows=tuple(flows),
        ids_alerts=tuple(alerts),
        final=False,
    )
