"""What a hunter knows of followed logs, on the disk: findings of days, incidents, and who has not got them yet.

A case is looked at when it was quiet for QUIET_S, or LONGEST_S after the first finding that changed it. Its incident is
first a line of ``<name>.incidents.jsonl`` (synced), then part of the state, then handed over. Ids are hashes of what
was found, so that a hunter that was killed in between makes the same incident again, and sees that its line is there.

Methods that block say so; one thread at a time may call those, while the event loop's calls the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tocsin.agent import statefile
from tocsin.agent.roles.alerting import severity_of, summary_of
from tocsin.agent.roles.chains import Chains
from tocsin.agent.roles.linefile import Line, LineFile, recent_lines
from tocsin.agent.roles.logwatch import alert_id, finding_of
from tocsin.agent.roles.memory import Memory
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Finding, Incident
from tocsin.telemetry import get_logger

QUIET_S = 0.5
LONGEST_S = 2.0
MAX_WAITING = 4096
"""Findings that were not looked at yet; beyond, the oldest are forgotten (``casebook_full``)."""
MAX_KNOWN = 4096
MAX_PENDING = 256
"""Incidents that no analyst has taken; beyond, the oldest is in the file alone."""

_INCIDENTS = TypeAdapter(list[Incident])

log = get_logger(__name__)


def is_followed(finding: Finding) -> bool:
    """Tell whether a finding is of a log that a sentinel follows: its source is the log's whole path."""
    return finding.source.startswith("/")


def incident_line(incident: Incident) -> Line:
    """Return the line of an incident."""
    findings = [incident.primary, *incident.related]
    joined = 1.0
    for finding in findings:
        joined *= 1 - finding.score
    hosts = sorted({finding.subject for finding in findings})
    last_s = max(finding.last_s for finding in findings)
    more = f" and {len(findings) - 1} findings more" if len(findings) > 1 else ""
    return {
        "incident": incident.incident.hex(),
        "at": datetime.fromtimestamp(max(0.0, min(last_s, 2.5e11)), UTC).isoformat(timespec="seconds"),
        "severity": severity_of(1 - joined).value,
        "summary": f"{summary_of(incident.primary)}{more}"[:512],
        "subjects": hosts,
        "techniques": sorted({finding.technique.id for finding in findings}),
        "story": list(incident.story),
        "content": incident.model_dump(mode="json"),
    }


def incident_of(line: Line) -> Incident | None:
    """Return the incident of an incident's line; None of any other."""
    try:
        return Incident.model_validate(line.get("content"))
    except ValidationError:
        return None


class Casebook:
    """The casebook of one hunter."""

    def __init__(self, chains: Chains, pending: list[Incident], state: Path, lines: LineFile) -> None:
        self._chains = chains
        self._pending = {incident.incident: incident for incident in pending}
        self._state = state
        self._lines = lines
        self._known: Memory[bytes, None] = Memory(MAX_KNOWN)
        for line in lines.recent():
            if (one := incident_of(line)) is not None:
                self._known.keep(one.incident, None)
        self._inbox: deque[tuple[Finding, bytes]] = deque()
        self._unwritten: list[Incident] = []
        self._begun_s = self._touched_s = 0.0
        self._changed = False

    @classmethod
    def open(cls, folder: Path, name: str) -> Casebook:
        """Open a hunter's casebook, and take in what the sentinels of this host have written meanwhile. Blocking.

        Raises:
            UnavailableError: ``lines_failed`` or ``state_failed``.
        """
        state = folder / name / "casebook.state"
        chains, pending = Chains(), []
        try:
            kept = statefile.load(state)
            if isinstance(kept, Mapping):
                pending = _INCIDENTS.validate_python(kept.get("pending", []))
                chains.load(kept)
        except (InvalidInputError, ValidationError):
            log.error("casebook_damaged", agent=name)  # noqa: TRY400 - the alert files are read again instead
            chains, pending = Chains(), []
        book = cls(chains, pending, state, LineFile(folder / f"{name}.incidents.jsonl"))
        for path in sorted(folder.glob("*.alerts.jsonl")):
            for line in recent_lines(path):
                finding = finding_of(line)
                if finding is not None:
                    book.add(finding, bytes.fromhex(alert_id(finding)), now_s=0.0)
        return book

    def add(self, finding: Finding, alert: bytes, *, now_s: float) -> None:
        """Take a finding, to be looked at when it is due.

        Args:
            finding: Of a followed log, or of any other source as company to those.
            alert: Id of the alert that told of it.
            now_s: Monotonic seconds.
        """
        self._touched_s = now_s
        if not self._inbox:
            self._begun_s = now_s
        self._inbox.append((finding, alert))
        if len(self._inbox) > MAX_WAITING:
            self._inbox.popleft()
            log.warning("casebook_full", waiting=MAX_WAITING)

    def due_s(self) -> float | None:
        """Return when to call :meth:`complete`, in monotonic seconds; None if nothing waits."""
        if not self._inbox and not self._unwritten:
            return None
        return min(self._touched_s + QUIET_S, self._begun_s + LONGEST_S)

    def complete(self, now_s: float | None, owns: Callable[[str], bool]) -> list[Incident]:
        """Look at what waits, if it is due; write and return the incidents that are new. Blocking.

        Args:
            now_s: Monotonic seconds; None: due or not.
            owns: Whether this hunter owns a case, by its name.

        Raises:
            UnavailableError: ``lines_failed`` or ``state_failed``; what was found waits for the next call.
        """
        due_s = self.due_s()
        if due_s is None or (now_s is not None and now_s < due_s):
            return []
        if not self._unwritten:
            self._unwritten = self._look(owns)
        self._lines.append([incident_line(incident) for incident in self._unwritten])
        fresh, self._unwritten = self._unwritten, []
        for incident in fresh:
            self._known.keep(incident.incident, None)
            self._pending[incident.incident] = incident
            if len(self._pending) > MAX_PENDING:
                del self._pending[next(iter(self._pending))]
        self._save()
        return fresh

    def _look(self, owns: Callable[[str], bool]) -> list[Incident]:
        """Take in what waits; return the incidents that its cases have become."""
        news: dict[tuple[str, str, str], Finding] = {}
        for _ in range(len(self._inbox)):
            finding, alert = self._inbox.popleft()
            if self._chains.add(finding, alert):
                self._changed = True
                if is_followed(finding):
                    news[finding.kind.value, finding.subject, finding.source] = finding
        made: dict[bytes, Incident] = {}
        for finding in news.values():
            found = self._chains.incident(finding)
            if found is not None and found[1].incident not in self._known and owns(f"case: {found[0]}"):
                made[found[1].incident] = found[1]
        return list(made.values())

    def pending(self) -> list[Incident]:
        """Return the incidents that nobody has taken yet."""
        return list(self._pending.values())

    def handed(self, incident: bytes) -> None:
        """Note that an incident was handed over. Blocking.

        Raises:
            UnavailableError: ``state_failed``.
        """
        if self._pending.pop(incident, None) is not None:
            self._changed = True
            self._save()

    def _save(self) -> None:
        if self._changed:
            pending = _INCIDENTS.dump_python(list(self._pending.values()), mode="json")
            statefile.save(self._state, {**self._chains.dump(), "pending": pending})
            self._changed = False
