"""Compare findings with the ground truth that a data set carries: for the final report, and nothing before it.

A connection is held to be found if its source is a finding's subject and it started in the finding's span of
time; a host, if it is a finding's subject. So a rule that finds the right host is charged with that host's
ordinary connections too: precision is by host and time, not by connection.

What counts as malicious is a label that begins with "malicious" in any case, as benign one that begins with
"benign" or "normal"; everything else (Unknown, Background, none) is left out and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tocsin.analysis.records import Label
from tocsin.contracts.observations import Finding, Flow


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts, positive being what was found."""

    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int

    @property
    def precision(self) -> float | None:
        """Share of what was found that is malicious; None if nothing was found."""
        found = self.true_positives + self.false_positives
        return self.true_positives / found if found else None

    @property
    def recall(self) -> float | None:
        """Share of what is malicious that was found; None if nothing is malicious."""
        malicious = self.true_positives + self.false_negatives
        return self.true_positives / malicious if malicious else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Findings against labels."""

    connections: Confusion
    hosts: Confusion
    """Sources of labelled connections; one malicious connection makes a host malicious."""
    unlabelled: int
    """Connections whose label is neither malicious nor benign."""


def is_malicious(label: Label | None) -> bool | None:
    """Return what a label says, or None where it says neither."""
    word = label.label.casefold() if label else ""
    if word.startswith("malicious"):
        return True
    return False if word.startswith(("benign", "normal")) else None


def compare(findings: Sequence[Finding], labelled: Iterable[tuple[Flow, Label | None]]) -> Comparison:
    """Compare findings with labelled connections."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for finding in findings:
        spans.setdefault(finding.subject, []).append((finding.first_s, finding.last_s))
    connections: list[tuple[bool, bool]] = []
    hosts: dict[str, bool] = {}
    unlabelled = 0
    for flow, label in labelled:
        malicious = is_malicious(label)
        if malicious is None:
            unlabelled += 1
            continue
        found = any(first <= flow.at_s <= last for first, last in spans.get(flow.source, ()))
        connections.append((found, malicious))
        hosts[flow.source] = hosts.get(flow.source, False) or malicious
    return Comparison(
        connections=_confusion(connections),
        hosts=_confusion([(host in spans, malicious) for host, malicious in hosts.items()]),
        unlabelled=unlabelled,
    )


def _confusion(outcomes: Sequence[tuple[bool, bool]]) -> Confusion:
    return Confusion(
        true_positives=outcomes.count((True, True)),
        false_positives=outcomes.count((True, False)),
        true_negatives=outcomes.count((False, False)),
        false_negatives=outcomes.count((False, True)),
    )
