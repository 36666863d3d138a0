"""The one summary at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from tocsin.cli import report
from tocsin.cli.story import Case
from tocsin.cli.sweep import outcome_of
from tocsin.contracts.response import ActuationOutcome

OUTCOME_WORDS = {
    ActuationOutcome.WOULD_DO: "would do it (dry run)",
    ActuationOutcome.DONE: "did it",
    ActuationOutcome.REFUSED: "refused",
    ActuationOutcome.FAILED: "failed",
    ActuationOutcome.UNDONE: "undid it",
    ActuationOutcome.STUCK: "could not undo it",
}


def summarise(console: Console, run: report.Run, files: list[Path]) -> None:
    """Print what happened, in a dozen lines."""
    console.print()
    for label, text in _lines(run, files):
        console.print(f"[bold]{label:12}[/bold]{text}", soft_wrap=True, highlight=False)


def response_of(case: Case) -> str:
    """Say in a line what the guardians did."""
    records = list(case.actuations.values())
    outcomes = Counter(record.outcome for record in records)
    command = records[0].command
    did = ", ".join(f"{count} {OUTCOME_WORDS[outcome]}" for outcome, count in outcomes.items())
    return f"{command.action.value} {command.address}: of {len(records)} guardians {did}"


def shown_path(path: Path) -> str:
    """Return a path as short as it can be said from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _lines(run: report.Run, files: list[Path]) -> Iterator[tuple[str, str]]:
    story, total = run.story, report.totals(run.figures)
    yield "outcome", report.verdict(run)
    if story.findings:
        best = story.findings[0]
        yield (
            "alerts",
            f"{len(story.alerts)}; strongest: {best.kind.value} by {best.subject} ({best.score:.2f})",
        )
    if story.main is not None:
        yield from _case_lines(run, story.main)
    others = [case for case in story.cases.values() if case is not story.main]
    for case in others:
        subject = case.assessment.subject if case.assessment else "an incident"
        did = response_of(case) if case.actuations else case.outcome().value.replace("_", " ")
        if story.answer_to(case) is not case:
            did = "what it calls for was decided already"
        yield "also", f"{subject}: {did}"
    if run.swept is not None:
        yield "mission", outcome_of(run.swept.record, run.swept.lost_host)
    measured = [
        f"{name.replace('_', ' ')} {value:.0f} ms" for name, value in report.latencies_ms(story).items()
    ]
    if measured:
        yield "latency", ", ".join(measured)
    rejected = sum(total["envelopes_rejected"].values())
    yield (
        "envelopes",
        f"signed {total['envelopes_signed']:,} in batches of {total['mean_batch']}, verified "
        f"{total['envelopes_verified']:,}, rejected {rejected:,}",
    )
    yield "start-up", ", ".join(f"{name} {value:.1f} s" for name, value in run.timings_s.items())
    yield "files", f"{shown_path(files[0].parent)}/: {', '.join(path.name for path in files)}"


def _case_lines(run: report.Run, case: Case) -> Iterator[tuple[str, str]]:
    said, decision, delivery = case.assessment, case.decision, case.delivery
    if said is not None:
        technique = f"{said.technique.id} {said.technique.name}"
        yield (
            "assessment",
            f"{said.subject} {said.verdict.value}, confidence {said.confidence:.2f}, {technique}",
        )
        classical = ", ".join(f"{score.model} {score.baseline_quantile:.0%}" for score in said.classical)
        quantum = f"{said.quantum.model} {said.quantum.baseline_quantile:.0%}"
        yield "scores", f"share of the baseline below it: quantum {quantum}; classical {classical}"
    if case.allocation is not None:
        best = case.allocation.scores[0]
        yield (
            "QPU",
            f"{best.qpu}, composite {best.composite:.3f} = 0.3 x {best.performance:.2f} + 0.25 x "
            f"{best.availability:.2f} + 0.25 x {best.coherence:.2f} + 0.2 x {best.connectivity:.2f}; "
            f"estimated fidelity {best.estimated_fidelity:.3f}",
        )
    if decision is not None:
        what = decision.option.text if decision.option else decision.why
        counted = f"{decision.ballots_for} ballots, quorum {decision.quorum} of {decision.participants}"
        yield "decision", f"{what}: {counted}"
        held = run.certificates.get(decision.decision)
        if held:
            yield "certificate", f"verified offline, {held[1].ballots_verified} ballots"
    if delivery is not None:
        yield "delivery", f"{delivery.delivered} of {delivery.due} agents, proven by receipts"
    if case.actuations:
        yield "actuation", response_of(case)
