"""Findings from the input's own intrusion detection: its alerts, aggregated by host in windows.

The subject is the source of the alerts, but for alerts about malware and coin mining that go from outside to
a host of ours (the reply of a command server): there it is the host of ours, which is the infected one.

Score: each signature contributes w (1 - 2^-n), with n its alerts in the window and w its severity's weight;
contributions c join as 1 - prod(1 - c). One alert of severity 2 is 0.2, of severity 1 is 0.35; many of
severity 2 of one signature approach 0.4; independent signatures add up. The signatures of a reputation list
say something of the source, and little of what it did here.

Technique: by the category of Suricata's classification.config, see :data:`TECHNIQUES`; by default a source
outside is scanning (T1595), and a host of ours speaks to something that it should not (T1071).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tocsin.analysis import techniques
from tocsin.analysis.detectors import MAX_TARGETS
from tocsin.analysis.hosts import is_internal
from tocsin.analysis.windows import Window, features_of
from tocsin.contracts.observations import Finding, FindingKind, Flow, IdsAlert, Technique

SEVERITY_WEIGHTS: Mapping[int, float] = {1: 0.7, 2: 0.4, 3: 0.2}
"""By Suricata's priority: 1 is an attack or malware, 2 suspicious, 3 informational (classification.config). The
weights say that one signature alone, however often, is at most this much."""

_WEIGHT_ELSE = 0.1

INFECTED = frozenset(
    {
        "A Network Trojan was detected",
        "Malware Command and Control Activity Detected",
        "Domain Observed Used for C2 Detected",
        "Crypto Currency Mining Activity Detected",
    }
)
"""Categories that are about the host of ours, whichever way the packet went."""

TECHNIQUES: Mapping[str, tuple[Technique, Technique]] = {
    "Detection of a Network Scan": (techniques.NETWORK_SERVICE_DISCOVERY, techniques.ACTIVE_SCANNING),
    "Attempted Information Leak": (techniques.NETWORK_SERVICE_DISCOVERY, techniques.ACTIVE_SCANNING),
    "Attempted User Privilege Gain": (
        techniques.EXPLOITATION_OF_REMOTE_SERVICES,
        techniques.EXPLOIT_PUBLIC_FACING_APPLICATION,
    ),
    "Attempted Administrator Privilege Gain": (
        techniques.EXPLOITATION_OF_REMOTE_SERVICES,
        techniques.EXPLOIT_PUBLIC_FACING_APPLICATION,
    ),
    "Web Application Attack": (
        techniques.EXPLOITATION_OF_REMOTE_SERVICES,
        techniques.EXPLOIT_PUBLIC_FACING_APPLICATION,
    ),
    "Executable code was detected": (
        techniques.EXPLOITATION_OF_REMOTE_SERVICES,
        techniques.EXPLOIT_PUBLIC_FACING_APPLICATION,
    ),
    "Attempted Denial of Service": (
        techniques.NETWORK_DENIAL_OF_SERVICE,
        techniques.NETWORK_DENIAL_OF_SERVICE,
    ),
    "Detection of a Denial of Service Attack": (
        techniques.NETWORK_DENIAL_OF_SERVICE,
        techniques.NETWORK_DENIAL_OF_SERVICE,
    ),
    "Attempt to login by a default username and password": (techniques.BRUTE_FORCE, techniques.BRUTE_FORCE),
    "An attempted login using a suspicious username was detected": (
        techniques.BRUTE_FORCE,
        techniques.BRUTE_FORCE,
    ),
    "Crypto Currency Mining Activity Detected": (
        techniques.RESOURCE_HIJACKING,
        techniques.RESOURCE_HIJACKING,
    ),
}
"""Technique by category: for a subject of ours, and for one outside."""

_DEFAULT = (techniques.APPLICATION_LAYER_PROTOCOL, techniques.ACTIVE_SCANNING)
_SIGNATURES_IN_EVIDENCE = 8


def subject_of(alert: IdsAlert) -> str:
    """Return the host that an alert is about."""
    inwards = is_internal(alert.destination) and not is_internal(alert.source)
    return alert.destination if alert.category in INFECTED and inwards else alert.source


def as_flow(alert: IdsAlert) -> Flow:
    """Return the connection that an alert describes, seen from its subject; sizes and outcome are unknown."""
    subject = subject_of(alert)
    return Flow(
        at_s=alert.at_s,
        source=subject,
        source_port=0,
        destination=alert.source if subject == alert.destination else alert.destination,
        destination_port=alert.destination_port,
        protocol="unknown",
    )


def score(signatures: Mapping[tuple[int, int], int]) -> float:
    """Return the score of alerts, counted by (signature id, severity)."""
    missing = 1.0
    for (_, severity), count in sorted(signatures.items()):
        missing *= 1 - SEVERITY_WEIGHTS.get(severity, _WEIGHT_ELSE) * (1 - 0.5**count)
    return 1 - missing


def judge(window: Window[IdsAlert], flows: list[Flow], source: str) -> Finding:
    """Make one finding of a host's alerts in a window.

    Args:
        window: At least one alert.
        flows: The connections of the same host in the same window; where there are none, the alerts stand
            for them in the features.
        source: Name of the sensor or file, for the finding.
    """
    alerts = window.items
    counts = Counter((alert.signature_id, alert.severity, alert.signature, alert.category) for alert in alerts)
    worst = min(counts, key=lambda key: (key[1], -counts[key], key))
    internal = is_internal(window.host)
    stand_ins = flows or [as_flow(alert) for alert in alerts]
    by_signature: Counter[tuple[int, int]] = Counter()
    for (signature_id, severity, _, _), count in counts.items():
        by_signature[signature_id, severity] += count
    lines = [
        f"{count} x {signature[:300]} (severity {severity}, {category[:100] or 'no category'})"
        for (_, severity, signature, category), count in sorted(
            counts.items(), key=lambda item: (item[0][1], -item[1], item[0])
        )
    ]
    times = [alert.at_s for alert in alerts]
    return Finding(
        kind=FindingKind.IDS,
        subject=window.host,
        internal=internal,
        targets=tuple(sorted({as_flow(alert).destination for alert in alerts}))[:MAX_TARGETS],
        score=score(by_signature),
        technique=TECHNIQUES.get(worst[3], _DEFAULT)[0 if internal else 1],
        evidence=tuple(lines[:_SIGNATURES_IN_EVIDENCE]),
        features=features_of(Window(window.host, window.start_s, window.window_s, stand_ins)),
        source=source,
        first_s=min(times),
        last_s=max(times),
        connections=len(alerts) + window.not_kept,
    )
