"""A third of the agents hostile, over a real broker: hosts and the four instances are processes of their own.

38 of 120 agents, 31.7 %, on hosts of their own: they oppose, equivocate, stay silent, forge others' ballots, replay old
ones and flood with wrong signatures, in turn. What they may not do is bend a decision, or have an honest agent accused.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "loadtest" / "consensus.py"
FLEET = ("--agents", "120", "--hosts", "12", "--instances", "4", "--byzantine", "0.317")


def measured(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *FLEET, *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results: dict[str, Any] = json.loads(done.stdout)["results"]
    return results


@pytest.mark.timeout(240)
def test_decisions_are_what_the_honest_want_though_a_third_is_hostile_and_leaders_are_killed() -> None:
    results = measured("--decisions", "24", "--kill-leader", "--kills", "3")
    assert results["hostile"] == 38
    assert (results["agreement_violations"], results["instances_that_contradict"]) == (0, 0)
    assert (results["decided"], results["closed"], results["accuracy"]) == (24, 0, 1.0)
    assert results["framed"] == 0
    assert 0 < results["accused"] <= results["equivocators"] == 7
    assert results["certificates_verified"] == 24
    assert results["failover"]["kills"] == 3


@pytest.mark.timeout(240)
def test_many_decisions_at_once_are_no_opening_for_them() -> None:
    results = measured("--mode", "collector", "--concurrent", "30")
    assert (results["agreement_violations"], results["framed"]) == (0, 0)
    assert (results["decided"], results["accuracy"]) == (30, 1.0)
