"""What a sentinel thinks with: batches of observations in, findings out.

    detection = Detection("capture.eve.json")
    for batch in batches:
        alerts = detection.feed(batch)      # findings of windows that had to close, new or stronger
    alerts = detection.close()              # those of the windows that were open
    everything = detection.findings()       # merged, strongest first

Two windows run side by side: five minutes for what is quick, and a day (RITA's unit) for scans that go slowly
and beacons that sleep long. What was found of one host by one kind of rule is one finding: the strongest
window's, with the time span of all and a note of their number.

A live sensor calls :meth:`Detection.advance` with its clock, or :meth:`Detection.peek` when it cannot wait.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from tocsin.analysis import detectors, ids
from tocsin.analysis.windows import WINDOW_S, FlowWindows, Window, Windows
from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Finding, FindingKind, Flow, IdsAlert, Observations

LONG_WINDOW_S = 86400.0
"""A day: the span over which RITA looks for beacons."""

MAX_FINDINGS = 4096
"""(kind, subject) pairs that are remembered; beyond it the weakest is forgotten."""

_SLOW_KINDS = (FindingKind.SCAN, FindingKind.BEACON, FindingKind.EXFILTRATION)

FORGOTTEN_S = 86400.0
"""What begins so long after the last window of its case is a case of its own."""

_Key = tuple[FindingKind, str]


@dataclass(frozen=True, slots=True)
class DetectionStatistics:
    """What a detection has taken and found."""

    flows: int
    ambient: int
    """Of the flows: chatter that is in no window."""
    ids_alerts: int
    findings: int


def strongest_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort by score, then more connections, then kind and subject, so that the order is total."""
    return sorted(
        findings, key=lambda finding: (-finding.score, -finding.connections, finding.kind, finding.subject)
    )


class Detection:
    """All rules over one source of observations."""

    def __init__(
        self, source: str, *, window_s: float = WINDOW_S, long_window_s: float = LONG_WINDOW_S
    ) -> None:
        self._source = source[:512]
        self._flows = FlowWindows(window_s=window_s)
        self._long = FlowWindows(window_s=long_window_s)
        self._alerts: Windows[IdsAlert] = Windows(
            lambda alert: (ids.subject_of(alert), alert.at_s), window_s=window_s
        )
        self._found: dict[_Key, _Case] = {}
        self._taken_flows = 0
        self._taken_alerts = 0

    def feed(self, observations: Observations) -> list[Finding]:
        """Take a batch; return what is new or stronger because a window had to close, strongest first.

        A final batch does not close by itself: call :meth:`close`.
        """
        if observations.source != self._source:
            raise InvalidInputError(
                f"observations of {observations.source!r} fed to the detection of {self._source!r}",
                reason="wrong_source",
            )
        found: list[Finding] = []
        for alert in observations.ids_alerts:
            found += self._judge_alerts(self._alerts.add(alert))
        for flow in observations.flows:
            found += self._judge_flows(self._flows.add(flow))
            found += self._judge_long(self._long.add(flow))
        self._taken_flows += len(observations.flows)
        self._taken_alerts += len(observations.ids_alerts)
        return self.merge(found)

    def advance(self, now_s: float) -> list[Finding]:
        """Close the windows that ended by ``now_s``; return what is new or stronger, strongest first."""
        found = self._judge_alerts(self._alerts.advance(now_s))
        found += self._judge_flows(self._flows.advance(now_s))
        found += self._judge_long(self._long.advance(now_s))
        return self.merge(found)

    def close(self) -> list[Finding]:
        """Close every window; return what is new or stronger, strongest first."""
        # Alerts first: their features are taken from the flow windows that are still open.
        found = self._judge_alerts(self._alerts.flush())
        found += self._judge_flows(self._flows.flush())
        found += self._judge_long(self._long.flush())
        return self.merge(found)

    def peek(self) -> list[Finding]:
        """Judge the open windows as they are, without closing or remembering; return what is found in them."""
        found = self._judge_alerts(self._alerts.open_windows())
        found += self._judge_flows(self._flows.open_windows())
        found += self._judge_long(self._long.open_windows())
        cases: dict[_Key, _Case] = {}
        for finding in found:
            _merge_into(cases, finding)
        return strongest_first(case.merged() for case in cases.values())

    def findings(self) -> list[Finding]:
        """Return everything found in closed windows so far, merged, strongest first."""
        return strongest_first(case.merged() for case in self._found.values())

    def statistics(self) -> DetectionStatistics:
        """Return the counts so far."""
        return DetectionStatistics(self._taken_flows, self._flows.ambient, self._taken_alerts, len(self._found))

    def dump(self) -> dict[str, object]:
        """Return everything that must survive a restart, as JSON has it."""
        return {
            "flows": self._flows.dump(_packed),
            "long": self._long.dump(_packed),
            "alerts": self._alerts.dump(_packed),
            "found": _CASES.dump_python(list(self._found.values()), mode="json"),
            "counts": [self._taken_flows, self._taken_alerts, self._flows.ambient],
        }

    def load(self, dumped: Mapping[str, object]) -> None:
        """Go on with what was dumped.

        Raises:
            InvalidInputError: ``bad_state``.
        """
        try:
            self._flows.load(dumped.get("flows", []), _flow)
            self._long.load(dumped.get("long", []), _flow)
            self._alerts.load(dumped.get("alerts", []), _ids_alert)
            cases = _CASES.validate_python(dumped.get("found", []))
            counts = _COUNTS.validate_python(dumped.get("counts", [0, 0, 0]))
        except ValidationError as error:
            raise InvalidInputError(
                f"no detection: {error.error_count()} errors", reason="bad_state"
            ) from error
        self._found = {(case.strongest.kind, case.strongest.subject): case for case in cases}
        self._taken_flows, self._taken_alerts, self._flows.ambient = counts

    def _judge_flows(self, windows: list[Window[Flow]]) -> list[Finding]:
        return [finding for window in windows for finding in detectors.judge(window, self._source)]

    def _judge_long(self, windows: list[Window[Flow]]) -> list[Finding]:
        return [
            finding
            for window in windows
            for finding in detectors.judge(window, self._source, kinds=_SLOW_KINDS)
        ]

    def _judge_alerts(self, windows: list[Window[IdsAlert]]) -> list[Finding]:
        return [
            ids.judge(
                window,
                self._flows.items_of(window.host, window.start_s, window.start_s + window.window_s),
                self._source,
            )
            for window in windows
        ]

    def merge(self, found: list[Finding]) -> list[Finding]:
        """Remember findings of closed windows; return what is new or stronger, merged, strongest first."""
        changed = {key: None for finding in found if (key := _merge_into(self._found, finding)) is not None}
        while len(self._found) > MAX_FINDINGS:
            weakest = min(self._found, key=lambda key: (self._found[key].strongest.score, key))
            del self._found[weakest]
        return strongest_first(self._found[key].merged() for key in changed if key in self._found)


@dataclass(slots=True)
class _Case:  # a dataclass that pydantic reads and writes, see _CASES
    """The findings of one kind about one host."""

    strongest: Finding
    windows: int
    first_s: float
    last_s: float
    most_connections: int
    targets: tuple[str, ...]

    def merged(self) -> Finding:
        note = (f"found in {self.windows} windows, short and long",) if self.windows > 1 else ()
        return self.strongest.model_copy(
            update={
                "first_s": self.first_s,
                "last_s": self.last_s,
                "connections": self.most_connections,
                "targets": self.targets,
                "evidence": (*self.strongest.evidence[:15], *note),
            }
        )


_Count = Annotated[int, Field(ge=0)]
_CASES = TypeAdapter(list[_Case])
_COUNTS = TypeAdapter(tuple[_Count, _Count, _Count])


def _packed(item: Flow | IdsAlert) -> list[object]:
    """Return an item's values in the order of its fields: half of the size that their names would make it."""
    return list(item.model_dump(mode="json").values())


def _flow(values: object) -> Flow:
    return Flow.model_validate(_named(Flow, values))


def _ids_alert(values: object) -> IdsAlert:
    return IdsAlert.model_validate(_named(IdsAlert, values))


def _named(model: type[Message], values: object) -> dict[str, object]:
    if not isinstance(values, list) or len(values) != len(model.model_fields):
        raise InvalidInputError(f"no {model.__name__}", reason="bad_state")
    return dict(zip(model.model_fields, values, strict=True))


def _merge_into(cases: dict[_Key, _Case], finding: Finding) -> _Key | None:
    """Merge one finding; return its key if it is new or stronger than what was known."""
    key = (finding.kind, finding.subject)
    case = cases.get(key)
    if case is None or finding.first_s > case.last_s + FORGOTTEN_S:
        cases[key] = _Case(finding, 1, finding.first_s, finding.last_s, finding.connections, finding.targets)
        return key
    case.windows += 1
    case.first_s = min(case.first_s, finding.first_s)
    case.last_s = max(case.last_s, finding.last_s)
    # Not their sum: the day's window holds the connections of the short ones again.
    case.most_connections = max(case.most_connections, finding.connections)
    strongest = case.strongest
    stronger = finding.score > strongest.score
    if finding.score == strongest.score and finding.connections > strongest.connections:
        case.strongest = finding  # shows more of the same, and is no news
    ordered = (finding.targets, case.targets) if stronger else (case.targets, finding.targets)
    case.targets = tuple(dict.fromkeys(ordered[0] + ordered[1]))[: detectors.MAX_TARGETS]
    if stronger:
        case.strongest = finding
    return key if stronger else None
