"""Assessments by the classical models alone, and incidents as STIX 2.1, read back by the parser of stix2."""

from __future__ import annotations

import json
from typing import Any

import pytest
import stix2
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.roles.cases import FEATURES, assessment, finding

from tocsin.analysis.alone import assess_alone
from tocsin.analysis.stix import stix_bundle
from tocsin.contracts.analysis import Verdict
from tocsin.contracts.observations import Finding, FindingKind, Incident


def incident(primary: Finding, *related: Finding) -> Incident:
    return Incident(
        incident=b"\x01" * 16, primary=primary, related=related, alerts=(bytes(16),), story=("first", "then")
    )


def by_type(text: str) -> dict[str, list[Any]]:
    objects: dict[str, list[Any]] = {}
    for one in stix2.parse(text, allow_custom=False).objects:
        objects.setdefault(one["type"], []).append(one)
    return objects


CASE = incident(
    finding(score=0.9), finding("10.0.0.1", kind=FindingKind.BEACON, targets=("198.51.100.4", "fe80::1%eth0"))
)
MADE = assess_alone(CASE, "office-v1", why="a test")


def test_a_bundle_has_all_that_the_page_says_and_refers_to_nothing_else() -> None:
    text = stix_bundle(CASE, MADE)
    objects = by_type(text)
    assert {one["value"] for kind in ("ipv4-addr", "ipv6-addr") for one in objects[kind]} == {
        "203.0.113.9",
        "10.0.0.1",
        "198.51.100.4",
        "fe80::1",
    }
    assert sorted(one["pattern"] for one in objects["indicator"]) == [
        "[ipv4-addr:value = '198.51.100.4']",
        "[ipv4-addr:value = '203.0.113.9']",
    ]
    (pattern,) = objects["attack-pattern"]
    assert pattern["external_references"][0]["external_id"] == "T1110"
    assert pattern["kill_chain_phases"][0]["phase_name"] == "credential-access"
    assert len(objects["observed-data"]) == len(objects["sighting"]) == 2
    (report,) = objects["report"]
    assert report["labels"] == ["classical-alone"]
    assert "classical alone: a test" in report["description"]
    ids = {one["id"] for many in objects.values() for one in many}
    assert set(report["object_refs"]) == ids - {report["id"]}
    for one in (*objects["relationship"], *objects["sighting"]):
        assert {value for name, value in one.items() if name.endswith("_ref")} <= ids


def test_the_same_incident_gives_the_same_bytes_and_another_verdict_another_report() -> None:
    assert stix_bundle(CASE, MADE) == stix_bundle(CASE.model_copy(), MADE.model_copy())
    other = MADE.model_copy(update={"verdict": Verdict.BENIGN})
    (first,), (second,) = (
        by_type(stix_bundle(CASE, MADE))["report"],
        by_type(stix_bundle(CASE, other))["report"],
    )
    assert first["id"] != second["id"]
    assert by_type(stix_bundle(CASE, other))["indicator"][0]["indicator_types"] == ["benign"]


def test_workflows_assessment_is_reported_too() -> None:
    (report,) = by_type(stix_bundle(CASE, assessment()))["report"]
    assert "labels" not in report


def test_an_incident_among_our_own_hosts_indicates_the_subject() -> None:
    inside = incident(finding("10.0.0.9"))
    (indicator,) = by_type(stix_bundle(inside, MADE))["indicator"]
    assert indicator["pattern"] == "[ipv4-addr:value = '10.0.0.9']"


@given(
    st.lists(
        st.builds(
            finding,
            st.sampled_from(["203.0.113.9", "10.0.0.1", "2001:db8::1", "fe80::2%en0"]),
            kind=st.sampled_from(FindingKind),
            score=st.floats(0, 1),
            source=st.text(max_size=20),
            connections=st.integers(0, 2**40),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(max_examples=25, deadline=None)
def test_any_incident_is_a_bundle_that_the_parser_takes(findings: list[Finding]) -> None:
    text = stix_bundle(incident(*findings), MADE)
    assert by_type(text)["report"]
    assert json.loads(text)["type"] == "bundle"


def test_alone_the_models_have_a_voice_each_and_without_features_nothing_is_malicious() -> None:
    loud = FEATURES.model_copy(update={"rejected_share": 1.0, "distinct_ports": 900, "connections": 2000})
    made = assess_alone(incident(finding(score=0.9, features=loud)), "office-v1", why="x")
    assert (made.verdict, len(made.classical)) == (Verdict.MALICIOUS, 2)
    assert made.recommended is not None
    by_rule = assess_alone(incident(finding(score=0.9, features=None)), "office-v1", why="x")
    assert (by_rule.verdict, by_rule.classical) == (Verdict.SUSPICIOUS, ())
    weak = assess_alone(incident(finding(score=0.4, features=None)), "office-v1", why="x")
    assert (weak.verdict, weak.recommended) == (Verdict.BENIGN, None)
    assert weak.confidence == pytest.approx(0.6)
