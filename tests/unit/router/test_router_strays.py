"""What arrives below ``route`` and is heard by no line."""

from __future__ import annotations

import pytest

from tocsin.contracts.catalogue import ROUTE
from tocsin.contracts.identifiers import Priority
from tocsin.router.strays import why_unheard


@pytest.mark.parametrize("priority", list(Priority))
def test_what_a_line_hears_is_no_stray(priority: Priority) -> None:
    assert why_unheard(ROUTE.at(type="threat_alert", priority=priority.token, agent="a")) is None


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("threat_alert.urgent.a", "bad_priority"),
        ("threat_alert.CRITICAL.a", "bad_priority"),
        ("a.threat_alert.high", "bad_priority"),
        ("threat_alert", "bad_subject"),
        ("threat_alert.high", "bad_subject"),
        ("threat_alert.high.a.b", "bad_subject"),
    ],
)
def test_a_stray_has_a_reason(rest: str, reason: str) -> None:
    error = why_unheard(f"{ROUTE.everything().removesuffix('>')}{rest}")
    assert error is not None
    assert error.reason == reason
