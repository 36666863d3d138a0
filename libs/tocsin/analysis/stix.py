"""An incident and its assessment as a STIX 2.1 bundle, for whatever reads threat intelligence.

    bundle = stix_bundle(incident, assessment)      # JSON text; needs the package stix2 (extra ``agents``)

In it: the identity of Tocsin; an observed-data for each finding, with its addresses; the ATT&CK techniques as
attack-patterns; an indicator for each address outside that took part, or for the subject where there is none; a
sighting of each indicator; the relationships ``indicates`` and ``based-on``; and a report over all of it, whose
description is the evidence.

The same incident with the same assessment gives the same bytes: ids are UUIDv5 of the content (of addresses, by the
rule of the specification, section 2.9), times are those of the findings and not of the writing. STIX's confidence (0 to
100) is the assessment's, which is an agreement of detectors and not a probability.

Specification: https://docs.oasis-open.org/cti/stix/v2.1/stix-v2.1.html
"""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tocsin.analysis.hosts import is_internal
from tocsin.analysis.tactics import tactic_of
from tocsin.contracts.analysis import Assessment, Verdict
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.observations import Finding, Incident, Technique
from tocsin.contracts.reports import ClassicalAssessment

if TYPE_CHECKING:
    from stix2.v21 import Bundle

NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://stix.tocsin/incident/1")
"""Of all ids but those of addresses."""
MAX_INDICATORS = 32
MAX_COUNT = 999_999_999
"""Largest count of a sighting and of observed data (sections 4.14 and 5.2)."""
_LATEST_S = 2.5e11

_REPORT_TYPES = {
    Verdict.MALICIOUS: ["threat-report", "attack-pattern"],
    Verdict.SUSPICIOUS: ["threat-report"],
    Verdict.BENIGN: ["observed-data"],
}


def stix_bundle(incident: Incident, assessment: Assessment | ClassicalAssessment) -> str:
    """Return the bundle as JSON text, keys sorted.

    Raises:
        UnavailableError: ``no_stix2``: the package is not installed.
    """
    try:
        from stix2 import v21  # noqa: PLC0415 - an extra, and half a second to import
    except ImportError as error:
        raise UnavailableError(
            "the package stix2 is not installed", reason="no_stix2", advice="pip install 'tocsin[agents]'"
        ) from error
    made = _Maker(v21, incident, assessment).bundle()
    return json.dumps(json.loads(made.serialize()), sort_keys=True, indent=1) + "\n"


class _Maker:
    """Makes one bundle."""

    def __init__(self, v21: Any, incident: Incident, assessment: Assessment | ClassicalAssessment) -> None:
        self._v21 = v21
        self._incident = incident
        self._assessment = assessment
        self._findings = [incident.primary, *incident.related]
        self._first = _time(min(finding.first_s for finding in self._findings))
        self._last = _time(max(finding.last_s for finding in self._findings))
        self._objects: dict[str, Any] = {}
        self._identity = self._keep(
            v21.Identity(
                id=_id("identity", "tocsin"),
                created=datetime(2024, 1, 1, tzinfo=UTC),
                modified=datetime(2024, 1, 1, tzinfo=UTC),
                name="Tocsin",
                identity_class="system",
            )
        )

    def bundle(self) -> Bundle:
        """Return the bundle."""
        seen = {self._observed(finding): finding for finding in self._findings}
        patterns = {finding.technique.id: self._pattern(finding) for finding in self._findings}
        for address in self._indicated():
            self._indicator(address, seen, patterns)
        report = self._report()
        return self._v21.Bundle(
            [*self._objects.values(), report],
            id=_id("bundle", self._incident.incident.hex(), report.id),
            allow_custom=False,
        )

    def _keep(self, made: Any) -> str:
        self._objects[made.id] = made
        return str(made.id)

    def _common(self, kind: str, *parts: str) -> dict[str, Any]:
        """Return what every object of this incident has."""
        return {
            "id": _id(kind, self._incident.incident.hex(), *parts),
            "created": self._last,
            "modified": self._last,
            "created_by_ref": self._identity,
        }

    def _address(self, address: str) -> str:
        bare = address.partition("%")[0]
        made = self._v21.IPv6Address if ":" in bare else self._v21.IPv4Address
        return self._keep(made(value=bare))

    def _observed(self, finding: Finding) -> str:
        names = dict.fromkeys([finding.subject, *finding.targets])
        return self._keep(
            self._v21.ObservedData(
                **self._common(
                    "observed-data", finding.kind.value, finding.subject, finding.source, repr(finding.first_s)
                ),
                first_observed=_time(finding.first_s),
                last_observed=_time(finding.last_s),
                number_observed=max(1, min(finding.connections, MAX_COUNT)),
                object_refs=list(dict.fromkeys(self._address(name) for name in names)),
            )
        )

    def _pattern(self, finding: Finding) -> str:
        technique, tactic = finding.technique, tactic_of(finding)
        phases = []
        if tactic is not None:
            phases = [self._v21.KillChainPhase(kill_chain_name="mitre-attack", phase_name=tactic.phase)]
        return self._keep(
            self._v21.AttackPattern(
                **self._common("attack-pattern", technique.id),
                name=technique.name,
                kill_chain_phases=phases or None,
                external_references=[
                    {"source_name": "mitre-attack", "external_id": technique.id, "url": _url(technique)}
                ],
            )
        )

    def _indicated(self) -> list[str]:
        """Return the addresses that others should look for."""
        every = [name for finding in self._findings for name in (finding.subject, *finding.targets)]
        outside = [name for name in dict.fromkeys(every) if not is_internal(name)]
        return (outside or [self._incident.primary.subject])[:MAX_INDICATORS]

    def _indicator(self, address: str, seen: dict[str, Finding], patterns: dict[str, str]) -> None:
        concerned = {key: one for key, one in seen.items() if address in (one.subject, *one.targets)}
        bare = address.partition("%")[0]
        kind = "ipv6-addr" if ":" in bare else "ipv4-addr"
        benign = self._assessment.verdict is Verdict.BENIGN
        indicator = self._keep(
            self._v21.Indicator(
                **self._common("indicator", bare, self._assessment.verdict.value),
                name=f"{bare}: {', '.join(sorted({one.technique.id for one in concerned.values()}))}",
                indicator_types=["benign" if benign else "malicious-activity"],
                pattern=f"[{kind}:value = '{bare}']",
                pattern_type="stix",
                valid_from=self._first,
                confidence=round(100 * self._assessment.confidence),
            )
        )
        self._keep(
            self._v21.Sighting(
                **self._common("sighting", indicator),
                sighting_of_ref=indicator,
                observed_data_refs=sorted(concerned),
                where_sighted_refs=[self._identity],
                first_seen=min(_time(one.first_s) for one in concerned.values()),
                last_seen=max(_time(one.last_s) for one in concerned.values()),
                count=max(1, min(sum(one.connections for one in concerned.values()), MAX_COUNT)),
            )
        )
        for technique in sorted({one.technique.id for one in concerned.values()}):
            self._relate(indicator, "indicates", patterns[technique])
        for observed in sorted(concerned):
            self._relate(indicator, "based-on", observed)

    def _relate(self, source: str, how: str, target: str) -> None:
        self._keep(
            self._v21.Relationship(
                **self._common("relationship", source, how, target),
                relationship_type=how,
                source_ref=source,
                target_ref=target,
            )
        )

    def _report(self) -> Any:
        assessment, primary = self._assessment, self._incident.primary
        alone = isinstance(assessment, ClassicalAssessment)
        lines = [*self._incident.story, *assessment.evidence]
        text = "\n".join(lines)
        return self._v21.Report(
            **self._common("report", assessment.verdict.value, repr(assessment.confidence), text),
            name=f"{assessment.verdict.value}: {primary.subject}, {primary.technique.name}",
            description=text,
            report_types=_REPORT_TYPES[assessment.verdict],
            published=self._last,
            confidence=round(100 * assessment.confidence),
            labels=["classical-alone"] if alone else None,
            object_refs=list(self._objects),
        )


def _id(kind: str, *parts: str) -> str:
    return f"{kind}--{uuid.uuid5(NAMESPACE, json.dumps([kind, *parts]))}"


def _time(at_s: float) -> datetime:
    return datetime.fromtimestamp(max(0.0, min(at_s, _LATEST_S)), UTC)


def _url(technique: Technique) -> str:
    return f"https://attack.mitre.org/techniques/{technique.id.replace('.', '/')}/"
