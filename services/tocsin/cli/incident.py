"""``tocsin incident``: what analysts on this machine have reported; read from their folder, with nothing running."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tocsin.agent.roles.reports import FOLDER, Report, read_report
from tocsin.analysis.stix import stix_bundle
from tocsin.cli.ingest import DEFAULT_STATE
from tocsin.contracts.errors import InvalidInputError, UnavailableError

StateOption = Annotated[
    Path,
    typer.Option(
        help="State folder of `tocsin ingest` or `tocsin up`, or of one host; all reports in it are looked at."
    ),
]

app = typer.Typer(help="Incidents, their assessments and reports.", no_args_is_help=True)


def report_files(state: Path) -> list[Path]:
    """Return the report files of a state folder and of the hosts in it."""
    folders = [state / FOLDER, state / "state" / FOLDER, *state.glob(f"hosts/*/state/{FOLDER}")]
    files = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    return [path for path in files if not path.name.endswith(".stix.json")]


def find_report(state: Path, incident: str) -> Report:
    """Return the report of an incident by the beginning of its id.

    Raises:
        InvalidInputError: ``ambiguous``.
        UnavailableError: ``no_report``.
    """
    found = [path for path in report_files(state) if incident and path.name.startswith(incident.lower())]
    if len({path.name for path in found}) > 1:
        raise InvalidInputError(f"{len(found)} incidents begin with {incident!r}", reason="ambiguous")
    if not found:
        raise UnavailableError(
            f"no report of an incident {incident[:40]!r} in {state}",
            reason="no_report",
            advice="`tocsin incident list` shows what is there; --state says where",
        )
    return read_report(found[0])


@app.command("list")
def incident_list(
    state: StateOption = DEFAULT_STATE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print the incidents that were assessed, or are about to be, the latest first."""
    reports = [read_report(path) for path in report_files(state)]
    reports.sort(key=lambda one: (-one.incident.primary.last_s, one.incident.incident))
    for report in reports:
        _print(json.dumps(_summary(report)) if as_json else _line(report))


@app.command("show")
def incident_show(
    incident: Annotated[str, typer.Argument(help="The incident's id, or its beginning.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Print what was found, what belongs to it, and how it was assessed."""
    report = find_report(state, incident)
    _print(_line(report))
    for title, lines in (
        ("story", report.incident.story),
        ("evidence", report.assessment.evidence if report.assessment else report.incident.primary.evidence),
    ):
        for line in lines:
            _print(f"  {title:8} {line}")
    if report.assessment is not None and report.assessment.recommended is not None:
        command = report.assessment.recommended
        _print(f"  advised  {command.action.value} {command.address} for {command.duration_s // 60} min")


@app.command("export")
def incident_export(
    incident: Annotated[str, typer.Argument(help="The incident's id, or its beginning.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Print an incident as a STIX 2.1 bundle; the same incident gives the same bundle."""
    report = find_report(state, incident)
    if report.assessment is None:
        raise UnavailableError(
            "the incident is not assessed yet", reason="not_assessed", advice="wait until its report is there"
        )
    sys.stdout.write(stix_bundle(report.incident, report.assessment))


def _summary(report: Report) -> dict[str, object]:
    made, primary = report.assessment, report.incident.primary
    return {
        "incident": report.incident.incident.hex(),
        "subject": primary.subject,
        "kind": primary.kind.value,
        "technique": primary.technique.id,
        "findings": 1 + len(report.incident.related),
        "verdict": made.verdict.value if made else None,
        "confidence": made.confidence if made else None,
    }


def _line(report: Report) -> str:
    made, primary = report.assessment, report.incident.primary
    verdict = f"{made.verdict.value} {made.confidence:.2f}" if made else "not assessed yet"
    return (
        f"{report.incident.incident.hex()}  {verdict:16}  {primary.subject:15}  {primary.kind.value} "
        f"({primary.technique.id}), {1 + len(report.incident.related)} findings"
    )


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
