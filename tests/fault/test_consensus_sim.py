"""Thousands of schedules of the consensus core under an adversary and a network; and mutants, which must be found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from consensus_world import Credulous, Double, SmallQuorum, Unlocked, ViolationError, World

from tocsin.consensus.slot import Slot

EACH = 700
"""Schedules for each number of hostile instances: 2,100 in all, about 25 ms each."""
MUTANT_SEEDS = 1_000


@pytest.mark.timeout(600)
@pytest.mark.parametrize("hostile", [0, 1])
def test_up_to_g_hostile_instances_bend_nothing(hostile: int) -> None:
    """Agreement, validity, certificates that verify, no honest one framed, an end once the network heals."""
    announced = accused = later_views = later_rounds = 0
    for seed in range(EACH):
        world = World(seed, hostile=hostile).run()
        world.check()
        announced += len(world.announced)
        accused += len(world.accused)
        ends = [end for ends in world.announced.values() for end in ends]
        later_views += any(end.commit.view > 1 for end in ends)
        later_rounds += any(end.opening.question.round > 1 for end in ends)
    # That the schedules are no walk in the park.
    assert announced >= EACH
    assert accused > EACH // 4
    assert later_views > EACH // 20
    assert later_rounds > EACH // 10


@pytest.mark.timeout(600)
def test_beyond_g_a_fork_leaves_evidence_against_more_than_g() -> None:
    forks = 0
    for seed in range(EACH):
        world = World(seed, hostile=2).run()
        world.check()
        forks += world.forked
    assert forks > 0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", [Unlocked, Double, SmallQuorum])
def test_a_mutant_is_found(mutant: type[Slot]) -> None:
    def breaks(seed: int) -> bool:
        try:
            World(seed, hostile=1, make_slot=mutant).run().check()
        except ViolationError:
            return True
        return False

    assert any(breaks(seed) for seed in range(MUTANT_SEEDS))


def test_a_next_round_that_is_not_recomputed_is_found() -> None:
    def breaks(seed: int) -> bool:
        try:
            World(seed, hostile=1, make_round=Credulous).run().check()
        except ViolationError:
            return True
        return False

    assert any(breaks(seed) for seed in range(MUTANT_SEEDS))


def test_a_schedule_can_be_run_again() -> None:
    one, other = (World(11, hostile=1).run() for _ in range(2))
    assert one.now_ns == other.now_ns
    assert one.refusals == other.refusals
    assert [v.data for v in one.known_votes] == [v.data for v in other.known_votes]


def test_the_program_prints_the_seeds_that_fail() -> None:
    program = Path(__file__).with_name("consensus_sim.py")
    done = subprocess.run(
        [sys.executable, program, "--schedules", "3", "--mutant", "small-quorum", "--processes", "1"],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert b"--seed 0 --hostile 0 --mutant small-quorum" in done.stdout
