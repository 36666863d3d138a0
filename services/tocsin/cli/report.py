"""Turn a story into what stays: ``report.json`` for machines, ``report.md`` for a manager."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tocsin.analysis.labels import Comparison
from tocsin.cli.feed import Fed
from tocsin.cli.livefire import Traffic
from tocsin.cli.story import Case, JobOutcome, Story
from tocsin.cli.sweep import Swept, outcome_of
from tocsin.contracts.analysis import Verdict
from tocsin.contracts.base import Message
from tocsin.contracts.decisions import EpochInstalled
from tocsin.contracts.operations import Figures
from tocsin.evidence.verification import VerifiedDecision

REPORT_VERSION = 1
CERTIFICATE = "certificate.tocsin"
ROOT = "ca.pem"

LATENCIES = {
    "detection": "from the first observation to the first alert",
    "alert_routed": "from that alert's sender through the router to its readers",
    "analysis": "from the request for analysis to the assessment",
    "decision": "from the proposal to the certificate",
    "delivery_last": "from the order to the last agent",
    "actuation_last": "from the order to the last guardian's record",
}
"""Measured latencies in the order of the story, and what each is."""

VERDICTS = {
    JobOutcome.RESPONDED: "An attack was found, the fleet decided on a response, and its delivery is proven.",
    JobOutcome.NO_ANOMALIES: "Nothing suspicious was found in the input; there was nothing to decide.",
    JobOutcome.BENIGN: "What was found was assessed, and no response was called for.",
    JobOutcome.NOT_DECIDED: "The fleet did not decide on a response.",
    JobOutcome.INCOMPLETE: "The fleet decided, but the response was not carried out in full.",
    JobOutcome.NOT_ASSESSED: "What was found could not be assessed.",
}
SUSPICIOUS = "Something suspicious was found, the fleet decided on a response, and its delivery is proven."
UNREADABLE = "No line of the input could be read: that nothing was found says nothing."
FINDINGS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Run:
    """All that is known when the run ends."""

    outcome: JobOutcome
    story: Story
    source: str
    fed: Fed | None
    traffic: Traffic | None
    comparison: Comparison | None
    figures: Figures | None
    epoch: EpochInstalled
    certificates: dict[bytes, tuple[bytes, VerifiedDecision]]
    """By decision: the certificate's bytes, and what they prove."""
    swept: Swept | None
    """The mission that followed the response."""
    timings_s: dict[str, float]
    ended_ns: int


def verdict(run: Run) -> str:
    """Say in a sentence how the run ended, and no more than was found."""
    assessments = [case.assessment for case in run.story.cases.values() if case.assessment]
    if run.fed is not None and run.fed.unreadable:
        return UNREADABLE
    if run.outcome is JobOutcome.RESPONDED and all(a.verdict is not Verdict.MALICIOUS for a in assessments):
        return SUSPICIOUS
    return VERDICTS[run.outcome]


def totals(figures: Figures | None) -> dict[str, Any]:
    """Reduce the monitor's figures to what the summary shows."""
    total = figures.totals if figures else {}
    signed, made = total.get("envelopes_signed", 0), total.get("signatures_made", 0)
    return {
        "envelopes_signed": signed,
        "signatures_made": made,
        "mean_batch": round(signed / made, 2) if made else None,
        "envelopes_verified": total.get("envelopes_verified", 0),
        "full_verifications": total.get("full_verifications", 0),
        "envelopes_rejected": {
            name.removeprefix("rejected."): count
            for name, count in sorted(total.items())
            if name.startswith("rejected.")
        },
        "handler_failures": total.get("handler_failures", 0),
        "processes": len(figures.processes) if figures else 0,
    }


def as_json(run: Run) -> dict[str, Any]:
    """Return the report as plain data."""
    story = run.story
    return {
        "report_version": REPORT_VERSION,
        "outcome": run.outcome.value,
        "verdict": verdict(run),
        "begun": _time(story.begun_ns),
        "ended": _time(run.ended_ns),
        "source": run.source,
        "input": _plain(run.fed.statistics) if run.fed else None,
        "live_fire": _plain(run.traffic),
        "labels": _plain(run.comparison),
        "alerts": [_plain(alert) for alert in story.alerts],
        "epoch": _plain(run.epoch),
        **(_case_json(run, story.main) if story.main else {}),
        "other_cases": [_case_json(run, case) for case in story.cases.values() if case is not story.main],
        "mission": _mission_json(run.swept) if run.swept else None,
        "latencies_ms": {name: round(value, 2) for name, value in latencies_ms(story).items()},
        "start_up_s": {name: round(value, 2) for name, value in run.timings_s.items()},
        "totals": totals(run.figures),
        "processes": [_plain(process) for process in run.figures.processes] if run.figures else [],
        "timeline": [{"at": _time(m.at_ns), "stage": m.stage, "text": m.text} for m in story.timeline],
    }


def write(run: Run, folder: Path, root_pem: bytes) -> list[Path]:
    """Write the files; return their paths."""
    written = [folder / "report.json", folder / "report.md", folder / ROOT]
    written[0].write_text(json.dumps(as_json(run), indent=2) + "\n", encoding="utf-8")
    written[1].write_text(as_markdown(run), encoding="utf-8")
    written[2].write_bytes(root_pem)
    for decision, (data, _) in run.certificates.items():
        written.append(folder / certificate_name(run.story, decision))
        written[-1].write_bytes(data)
    return written


def certificate_name(story: Story, decision: bytes) -> str:
    """Return the file of a decision's certificate; the main case's has the plain name."""
    is_main = story.main is not None and story.main.decision_id == decision
    return CERTIFICATE if is_main else f"certificate-{decision.hex()[:8]}.tocsin"


def latencies_ms(story: Story) -> dict[str, float]:
    """Return what was measured, in the order of the story: of its first alert, and of its main case."""
    measured = story.latencies_ms | (story.main.latencies_ms if story.main else {})
    return {name: measured[name] for name in LATENCIES if name in measured}


def as_markdown(run: Run) -> str:
    """Return the report that a manager can read."""
    story = run.story
    parts = [
        f"# Security report, {_time(story.begun_ns)[:16].replace('T', ' ')} UTC",
        "",
        f"**{verdict(run)}**",
        "",
        *_what_was_looked_at(run),
        *_what_was_found(story),
        *_against_labels(run),
        *(line for case in _cases(story) for line in _about(run, case)),
        *_what_followed(run),
        *_timeline(story),
        *_figures(run),
    ]
    return "\n".join(parts) + "\n"


def _what_was_looked_at(run: Run) -> list[str]:
    lines = ["## What was looked at", ""]
    if run.fed and run.fed.statistics:
        seen = run.fed.statistics
        lines.append(
            f"`{run.source}`: {seen.flows:,} connections and {seen.ids_alerts:,} alerts of an intrusion detection "
            f"system, from {seen.lines:,} lines. {seen.bad:,} lines could not be read and were skipped."
        )
        lines += [f"- line {number}: {reason}" for number, reason in seen.first_bad[:10]]
    if run.traffic:
        traffic = run.traffic
        lines.append(
            f"Live traffic against honeypots on this machine: {traffic.ordinary} ordinary connections, then a port "
            f"scan of {traffic.scan} ports and {traffic.brute_force} attempts to log in."
        )
    return [*lines, ""]


def _what_was_found(story: Story) -> list[str]:
    if not story.findings:
        return ["## What was found", "", "Nothing suspicious.", ""]
    lines = [
        "## What was found",
        "",
        "| host | what | technique | strength | evidence |",
        "|---|---|---|---|---|",
    ]
    for finding in story.findings[:FINDINGS_SHOWN]:
        technique = f"{finding.technique.id} {finding.technique.name}"
        evidence = "; ".join(finding.evidence[:2])
        lines.append(
            f"| {finding.subject} | {finding.kind.value} | {technique} | {finding.score:.2f} | {_cell(evidence)} |"
        )
    if (more := len(story.findings) - FINDINGS_SHOWN) > 0:
        lines += ["", f"{more} weaker ones that were alerted are in `report.json`."]
    return [*lines, ""]


def _against_labels(run: Run) -> list[str]:
    if run.comparison is None:
        return []
    hosts, connections = run.comparison.hosts, run.comparison.connections
    return [
        "The input is labelled; no detector saw the labels. Against them, what was found:",
        "",
        "| | right | too many | missed | rightly left alone |",
        "|---|---|---|---|---|",
        *(
            f"| {what} | {c.true_positives} | {c.false_positives} | {c.false_negatives} | {c.true_negatives} |"
            for what, c in (("hosts", hosts), ("connections of these hosts", connections))
        ),
        "",
    ]


def _cases(story: Story) -> list[Case]:
    """Return the cases, the main one first."""
    return sorted(story.cases.values(), key=lambda case: case is not story.main)


def _about(run: Run, case: Case) -> list[str]:
    """Return one case's part of the report."""
    subject = case.assessment.subject if case.assessment else "an incident"
    return [
        f"## Case: {subject}",
        "",
        *_how_sure(case),
        *_what_was_decided(run, case),
        *_what_was_done(case),
    ]


def _how_sure(case: Case) -> list[str]:
    assessment = case.assessment
    if assessment is None:
        failure = case.made.failure if case.made else None
        return [f"It could not be assessed: {failure.detail if failure else 'no assessment came'}.", ""]
    lines = [
        "### How sure are we",
        "",
        f"{assessment.subject} is **{assessment.verdict.value}** (confidence {assessment.confidence:.2f}; an agreement "
        f"of detectors, not a probability): {assessment.technique.id} {assessment.technique.name}. Models were fitted "
        f"on the baseline `{assessment.baseline}`, never on this input.",
        "",
        "| model | kind | score | above this share of the baseline | anomalous |",
        "|---|---|---|---|---|",
    ]
    for kind, score in [("quantum", assessment.quantum), *(("classical", s) for s in assessment.classical)]:
        lines.append(
            f"| {score.model} | {kind} | {score.score:.4f} | {score.baseline_quantile:.0%} | "
            f"{'yes' if score.anomalous else 'no'} |"
        )
    lines += ["", *(f"- {line}" for line in assessment.evidence), ""]
    if case.allocation:
        lines += [
            f"The quantum part ran on **{case.allocation.qpu}** (simulated with the noise of its real "
            "calibration), chosen by the composite score:",
            "",
            "| QPU | composite | performance | availability | coherence | connectivity | estimated fidelity |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {s.qpu} | {s.composite:.3f} | {s.performance:.3f} | {s.availability:.3f} | {s.coherence:.3f} | "
                f"{s.connectivity:.3f} | {s.estimated_fidelity:.3f} |"
                for s in case.allocation.scores[:8]
            ),
            "",
        ]
    return lines


def _what_was_decided(run: Run, case: Case) -> list[str]:
    if run.story.answer_to(case) is not case:
        return ["### What was decided", "", "What it calls for was decided already, in another case.", ""]
    decision = case.decision
    if decision is None:
        return []
    chosen = decision.option.text if decision.option else decision.why
    tolerance = (
        f"Up to {(decision.participants - 1) // 3} of them could have been hostile."
        if run.epoch.byzantine_tolerant
        else f"Not Byzantine-tolerant: {run.epoch.why_not}."
    )
    lines = [
        "### What was decided",
        "",
        f"**{chosen}** ({decision.outcome.value}).",
        "",
        f"{decision.ballots_for} ballots for it of {decision.participants} agents; {decision.quorum} are needed. "
        f"It took {decision.elapsed_ms:.0f} ms. {tolerance}",
        "",
    ]
    held = run.certificates.get(decision.decision)
    if held:
        lines += [
            f"The certificate was verified offline: {held[1].ballots_verified} ballots by distinct agents. "
            "Anyone can check it again, with no system running:",
            "",
            f"    tocsin decision verify {certificate_name(run.story, decision.decision)} --root {ROOT}",
            "",
        ]
    return lines


def _what_was_done(case: Case) -> list[str]:
    delivery = case.delivery
    if delivery is None:
        return []
    late = "." if delivery.last_ms is None else f"; the last after {delivery.last_ms:.0f} ms."
    lines = [
        "### What was done",
        "",
        f"The order reached {delivery.delivered} of {delivery.due} agents, proven by signed receipts "
        f"({delivery.by_core} by the first channel, {delivery.by_stream} by the second){late}",
    ]
    if delivery.undelivered:
        lines.append(f"Not delivered: {', '.join(delivery.undelivered)}.")
    lines += ["", "| guardian | actuator | outcome | detail |", "|---|---|---|---|"]
    lines += [
        f"| {guardian} | {record.actuator} | {record.outcome.value.replace('_', ' ')} | {_cell(record.detail)} |"
        for guardian, record in sorted(case.actuations.items())
    ]
    return [*lines, ""]


def _what_followed(run: Run) -> list[str]:
    if run.swept is None:
        return []
    record = run.swept.record
    lines = [
        "## What followed",
        "",
        f"{record.title}, a mission of its own: {outcome_of(record, run.swept.lost_host)}.",
        "",
        "| objective | agent | before | outcome | result |",
        "|---|---|---|---|---|",
        *(
            f"| {one.objective.name} | {one.agent} | {', '.join(one.tried) or '-'} | {one.state.value} | "
            f"{_cell(one.summary or one.reason)} |"
            for one in record.objectives
        ),
    ]
    return [*lines, ""]


def _mission_json(swept: Swept) -> dict[str, Any]:
    record = swept.record
    return {
        "mission": record.mission,
        "title": record.title,
        "state": record.state.value,
        "coordination_ms": round(max(0, record.coordinated_ns - record.proposed_ns) / 1e6, 2),
        "lost_host": swept.lost_host,
        "taken_over": record.taken_over,
        "fenced": record.fenced,
        "efficiency": record.efficiency,
        "objectives": [_plain(one) for one in record.objectives],
    }


def _timeline(story: Story) -> list[str]:
    lines = ["## Timeline", "", "| seconds | stage | what happened |", "|---|---|---|"]
    lines += [
        f"| {(moment.at_ns - story.begun_ns) / 1e9:.2f} | {moment.stage} | {_cell(moment.text)} |"
        for moment in story.timeline
    ]
    return [*lines, ""]


def _figures(run: Run) -> list[str]:
    total = totals(run.figures)
    lines = ["## Figures", "", "| what | how much |", "|---|---|"]
    lines += [f"| {LATENCIES[name]} | {value:.1f} ms |" for name, value in latencies_ms(run.story).items()]
    rejected = total.pop("envelopes_rejected")
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in total.items()]
    told = ", ".join(f"{count} {reason}" for reason, count in rejected.items()) or "none"
    return [*lines, f"| envelopes rejected | {told} |"]


def _case_json(run: Run, case: Case) -> dict[str, Any]:
    decided = case.decision.option if case.decision else None
    held = run.certificates.get(case.decision_id or b"")
    answer = run.story.answer_to(case)
    return {
        "workflow": case.workflow.hex(),
        "case_outcome": answer.outcome().value,
        "answered_by": None if answer is case else answer.workflow.hex(),
        "allocation": _plain(case.allocation),
        "stages": [_plain(stage) for stage in case.stages],
        "assessment": _plain(case.assessment),
        "failure": _plain(case.made.failure) if case.made else None,
        "proposal": _plain(case.proposal),
        "ballots": dict(Counter(case.ballots.values())),
        "decision": _plain(case.decision),
        "certificate_verified": held[1].view_for_auditors() if held else None,
        "openc2": decided.command.openc2() if decided and decided.command else None,
        "delivery": _plain(case.delivery),
        "actuations": {guardian: _plain(record) for guardian, record in sorted(case.actuations.items())},
        "case_latencies_ms": {name: round(value, 2) for name, value in case.latencies_ms.items()},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        return value.model_dump(mode="json")
    if isinstance(value, bytes):
        return value.hex()
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value


def _time(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns / 1e9, UTC).isoformat(timespec="milliseconds")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
