"""An analyst's reports, on the disk: one folder for the host, a line each in ``<name>.reports.jsonl``.

    reports/<incident>.json         the incident, and its assessment once there is one
    reports/<incident>.stix.json    the same as a STIX 2.1 bundle

The first is written when an incident is taken, so that what was in hand when a process died is known to the next one.
Reports are kept until somebody removes them. Blocking.
"""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from tocsin.agent.roles.casebook import incident_of
from tocsin.agent.roles.linefile import Line, LineFile, recent_lines
from tocsin.analysis.stix import stix_bundle
from tocsin.contracts.analysis import Assessment
from tocsin.contracts.base import Message
from tocsin.contracts.errors import InvalidInputError, UnavailableError
from tocsin.contracts.observations import Incident
from tocsin.contracts.reports import ClassicalAssessment
from tocsin.telemetry import get_logger

FOLDER = "reports"
MAX_UNFINISHED = 256
MAX_REPORT_BYTES = 4 * 1024 * 1024

log = get_logger(__name__)


class Report(Message):
    """What one report file holds."""

    incident: Incident
    assessment: Assessment | ClassicalAssessment | None = None


def read_report(path: Path) -> Report:
    """Read a report.

    Raises:
        UnavailableError: ``no_report``: it cannot be read.
        InvalidInputError: ``bad_report``.
    """
    try:
        with path.open("rb") as file:
            return Report.model_validate_json(file.read(MAX_REPORT_BYTES))
    except OSError as error:
        raise UnavailableError(f"cannot read {path}: {error.strerror}", reason="no_report") from error
    except ValidationError as error:
        raise InvalidInputError(f"{path} is no report", reason="bad_report") from error


def report_line(incident: Incident, made: Assessment | ClassicalAssessment, stix: Path | None) -> Line:
    """Return the line of a report."""
    alone = isinstance(made, ClassicalAssessment)
    last_s = max(finding.last_s for finding in (incident.primary, *incident.related))
    how = (
        f"classical alone: {made.why}" if isinstance(made, ClassicalAssessment) else f"workflow, on {made.qpu}"
    )
    return {
        "report": incident.incident.hex(),
        "at": datetime.fromtimestamp(max(0.0, min(last_s, 2.5e11)), UTC).isoformat(timespec="seconds"),
        "verdict": made.verdict.value,
        "confidence": round(made.confidence, 3),
        "subject": made.subject,
        "technique": made.technique.id,
        "alone": alone,
        "how": how,
        "summary": f"{made.subject}: {made.verdict.value}, confidence {made.confidence:.2f} ({how})",
        "stix": str(stix) if stix is not None else None,
    }


class Reports:
    """The reports of one analyst."""

    def __init__(self, state_dir: Path, name: str) -> None:
        """Open the folder.

        Raises:
            UnavailableError: ``lines_failed``.
        """
        self._state_dir = state_dir
        self.folder = state_dir / FOLDER
        self._lines = LineFile(state_dir / f"{name}.reports.jsonl")

    def take(self, incident: Incident) -> bool:
        """Note an incident as taken; return False if it has a report.

        Raises:
            UnavailableError: ``report_failed``.
        """
        if self._is_finished(incident.incident):
            return False
        self._write(self._path(incident.incident), Report(incident=incident).model_dump_json())
        return True

    def unfinished(self) -> list[Incident]:
        """Return incidents without a report, the oldest first: those that were taken, and this host's hunters'."""
        found: dict[bytes, Incident] = {}
        for lines in sorted(filter(_has_lines, self._state_dir.glob("*.incidents.jsonl"))):
            for line in recent_lines(lines)[-MAX_UNFINISHED:]:
                incident = incident_of(line)
                if incident is not None and not self._is_finished(incident.incident):
                    found[incident.incident] = incident
        for path in sorted(self.folder.glob("*.json")):
            if path.name.endswith(".stix.json"):
                continue
            try:
                report = read_report(path)
            except (UnavailableError, InvalidInputError) as error:
                log.warning("report_unreadable", file=path.name, reason=error.reason)
                continue
            if report.assessment is None:
                found[report.incident.incident] = report.incident
        return list(found.values())[-MAX_UNFINISHED:]

    def write(self, incident: Incident, made: Assessment | ClassicalAssessment) -> None:
        """Write a report: the bundle, the line, and last the file that says that it is finished.

        Raises:
            UnavailableError: ``report_failed`` or ``lines_failed``.
        """
        stix: Path | None = self.folder / f"{incident.incident.hex()}.stix.json"
        try:
            self._write(self.folder / f"{incident.incident.hex()}.stix.json", stix_bundle(incident, made))
        except UnavailableError as error:
            if error.reason != "no_stix2":
                raise
            log.warning("no_stix_report", incident=incident.incident.hex(), detail=str(error))
            stix = None
        line = report_line(incident, made, stix)
        if not any(one == json.loads(json.dumps(line)) for one in self._lines.recent()):
            self._lines.append([line])
        self._write(self._path(incident.incident), Report(incident=incident, assessment=made).model_dump_json())

    def _path(self, incident: bytes) -> Path:
        return self.folder / f"{incident.hex()}.json"

    def _is_finished(self, incident: bytes) -> bool:
        path = self._path(incident)
        if not path.exists():
            return False
        try:
            return read_report(path).assessment is not None
        except (UnavailableError, InvalidInputError):
            return False

    @staticmethod
    def _write(path: Path, text: str) -> None:
        fresh = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            raise UnavailableError(f"cannot write {path}: {error.strerror}", reason="report_failed") from error


def _has_lines(path: Path) -> bool:
    """Tell whether a file holds anything: a host with hundreds of hunters and analysts looks at each for each."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
