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
from tocsin.cli.job import JobOutcome, Story
from tocsin.cli.livefire import Traffic
from tocsin.contracts.base import Message
from tocsin.contracts.decisions import EpochInstalled
from tocsin.contracts.operations import Figures
from tocsin.evidence.verification import VerifiedDecision

REPORT_VERSION = 1
CERTIFICATE = "certificate.tocsin"
ROOT = "ca.pem"

VERDICTS = {
    JobOutcome.RESPONDED: "An attack was found, the fleet decided on a response, and its delivery is proven.",
    JobOutcome.NO_ANOMALIES: "Nothing suspicious was found in the input; there was nothing to decide.",
    JobOutcome.BENIGN: "What was found was assessed, and no response was called for.",
    JobOutcome.NOT_DECIDED: "The fleet did not decide on a response.",
    JobOutcome.INCOMPLETE: "The fleet decided, but the response was not carried out in full.",
}


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
    verified: VerifiedDecision | None
    timings_s: dict[str, float]
    ended_ns: int


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
        "verdict": VERDICTS[run.outcome],
        "begun": _time(story.begun_ns),
        "ended": _time(run.ended_ns),
        "source": run.source,
        "input": _plain(run.fed.statistics) if run.fed else None,
        "live_fire": _plain(run.traffic),
        "labels": _plain(run.comparison),
        "alerts": [_plain(alert) for alert, _ in story.alerts],
        "allocation": _plain(story.allocation),
        "stages": [_plain(stage) for stage in story.stages],
        "assessment": _plain(story.assessment),
        "failures": [_plain(made.failure) for made in story.assessments if made.failure],
        "epoch": _plain(run.epoch),
        "proposal": _plain(story.proposal),
        "ballots": dict(Counter(story.ballots.values())),
        "decision": _plain(story.decision),
        "certificate_verified": run.verified.view_for_auditors() if run.verified else None,
        "delivery": _plain(story.delivery),
        "actuations": [_plain(record) for record in story.actuations],
        "openc2": _openc2(story),
        "latencies_ms": {name: round(value, 2) for name, value in story.latencies_ms.items()},
        "start_up_s": {name: round(value, 2) for name, value in run.timings_s.items()},
        "totals": totals(run.figures),
        "processes": [_plain(process) for process in run.figures.processes] if run.figures else [],
        "timeline": [{"at": _time(m.at_ns), "stage": m.stage, "text": m.text} for m in story.timeline],
    }


def write(run: Run, folder: Path, certificate: bytes | None, root_pem: bytes) -> list[Path]:
    """Write the files; return their paths."""
    written = [folder / "report.json", folder / "report.md", folder / ROOT]
    report = as_json(run)
    written[0].write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    written[1].write_text(as_markdown(run), encoding="utf-8")
    written[2].write_bytes(root_pem)
    if certificate is not None:
        written.append(folder / CERTIFICATE)
        written[-1].write_bytes(certificate)
    return written


def as_markdown(run: Run) -> str:
    """Return the report that a manager can read."""
    story = run.story
    parts = [
        f"# Security report, {_time(story.begun_ns)[:16].replace('T', ' ')} UTC",
        "",
        f"**{VERDICTS[run.outcome]}**",
        "",
        *_what_was_looked_at(run),
        *_what_was_found(story),
        *_how_sure(run),
        *_what_was_decided(run),
        *_what_was_done(story),
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
    for finding in sorted(story.findings, key=lambda f: -f.score)[:10]:
        technique = f"{finding.technique.id} {finding.technique.name}"
        evidence = "; ".join(finding.evidence[:2])
        lines.append(
            f"| {finding.subject} | {finding.kind.value} | {technique} | {finding.score:.2f} | {_cell(evidence)} |"
        )
    return [*lines, ""]


def _how_sure(run: Run) -> list[str]:
    assessment = run.story.assessment or next(
        (made.assessment for made in run.story.assessments if made.assessment), None
    )
    if assessment is None:
        return []
    lines = [
        "## How sure are we",
        "",
        f"{assessment.subject} is **{assessment.verdict.value}** (confidence {assessment.confidence:.2f}; an agreement "
        f"of detectors, not a probability). Models were fitted on the baseline `{assessment.baseline}`, never on "
        "this input.",
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
    if run.story.allocation:
        lines += [
            f"The quantum part ran on **{run.story.allocation.qpu}** (simulated with the noise of its real "
            "calibration), chosen by the composite score:",
            "",
            "| QPU | composite | performance | availability | coherence | connectivity | estimated fidelity |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {s.qpu} | {s.composite:.3f} | {s.performance:.3f} | {s.availability:.3f} | {s.coherence:.3f} | "
                f"{s.connectivity:.3f} | {s.estimated_fidelity:.3f} |"
                for s in run.story.allocation.scores[:8]
            ),
            "",
        ]
    if run.comparison:
        c = run.comparison.connections
        lines += [
            f"The input is labelled. Connections of the hosts that were found, against the labels: {c.true_positives} "
            f"right, {c.false_positives} too many, {c.false_negatives} missed.",
            "",
        ]
    return lines


def _what_was_decided(run: Run) -> list[str]:
    decision = run.story.decision
    if decision is None:
        return []
    chosen = decision.option.text if decision.option else decision.why
    lines = [
        "## What was decided",
        "",
        f"**{chosen}** ({decision.outcome.value}).",
        "",
        f"{decision.ballots_for} ballots for it of {decision.participants} agents; {decision.quorum} are needed. "
        f"It took {decision.elapsed_ms:.0f} ms. "
        + (
            "A third of the agents could have been hostile."
            if run.epoch.byzantine_tolerant
            else f"Not Byzantine-tolerant: {run.epoch.why_not}."
        ),
        "",
    ]
    if run.verified:
        lines += [
            f"The certificate was verified offline: {run.verified.ballots_verified} ballots by distinct agents. "
            "Anyone can check it again, with no system running:",
            "",
            f"    tocsin decision verify {CERTIFICATE} --root {ROOT}",
            "",
        ]
    return lines


def _what_was_done(story: Story) -> list[str]:
    if story.delivery is None:
        return []
    delivery = story.delivery
    lines = [
        "## What was done",
        "",
        f"The order reached {delivery.delivered} of {delivery.due} agents, proven by signed receipts "
        f"({delivery.by_core} by the first channel, {delivery.by_stream} by the second)"
        + (f"; the last after {delivery.last_ms:.0f} ms." if delivery.last_ms is not None else "."),
    ]
    if delivery.undelivered:
        lines.append(f"Not delivered: {', '.join(delivery.undelivered)}.")
    lines += ["", "| guardian's actuator | outcome | detail |", "|---|---|---|"]
    lines += [f"| {a.actuator} | {a.outcome.value} | {_cell(a.detail)} |" for a in story.actuations]
    return [*lines, ""]


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
    lines += [f"| {name} | {value:.1f} ms |" for name, value in run.story.latencies_ms.items()]
    lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in total.items()]
    return lines


def _openc2(story: Story) -> dict[str, object] | None:
    decided = story.decision.option if story.decision else None
    return decided.command.openc2() if decided and decided.command else None


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
