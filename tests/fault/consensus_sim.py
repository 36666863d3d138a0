"""Run seeded schedules of consensus under an adversary and a network; see tests/consensus_world.py for what it does.

    python tests/fault/consensus_sim.py --schedules 100000            all cores but one
    python tests/fault/consensus_sim.py --seed 4711 --hostile 1       one schedule again
    python tests/fault/consensus_sim.py --schedules 2000 --mutant unlocked

Prints each failing seed with the command that runs it again, and one JSON object at the end. Exit code 1 if any failed
(with a mutant: if none did).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # run as a program, it finds the tests' own modules

from consensus_world import Credulous, Double, SmallQuorum, Unlocked, ViolationError, World

from tocsin.consensus.round import Round
from tocsin.consensus.slot import Slot
from tocsin.contracts.decisions import Outcome

MUTANTS: dict[str, type[Slot | Round]] = {
    "none": Slot,
    "credulous": Credulous,
    "unlocked": Unlocked,
    "double": Double,
    "small-quorum": SmallQuorum,
}
CHUNK = 25
TOLD_EACH = 5_000


def make_world(seed: int, hostile: int, mutant: type[Slot | Round]) -> World:
    """Return a schedule in which a rule of the slot or of the round is broken."""
    if issubclass(mutant, Round):
        return World(seed, hostile=hostile, make_round=mutant)
    return World(seed, hostile=hostile, make_slot=mutant)


def run_one(seed: int, hostile: int, mutant: str) -> tuple[str | None, Counter[str]]:
    """Run a schedule; return what was violated, and what happened."""
    happened: Counter[str] = Counter(schedules=1)
    try:
        world = make_world(seed, hostile, MUTANTS[mutant]).run()
        world.check()
    except ViolationError as error:
        return str(error), happened
    except Exception as error:  # noqa: BLE001 - whatever an adversary can raise in the core is a failing seed
        return f"crashed: {error!r}", happened
    happened["forked"] += world.forked
    happened["accused"] += len(world.accused)
    happened["refused"] += world.refusals.total()
    for ends in world.announced.values():
        happened[ends[0].outcome.value] += 1
        happened["later_views"] += ends[0].commit.view > 1
        happened["later_rounds"] += ends[0].opening.question.round > 1
        happened["decided_in_later_rounds"] += (
            ends[0].outcome is Outcome.DECIDED and ends[0].opening.question.round > 1
        )
    return None, happened


def run_many(
    seeds: Iterable[int], hostile: int | None, mutant: str
) -> tuple[list[tuple[int, int, str]], Counter[str]]:
    """Run schedules with 0, g and g + 1 hostile instances in turn, or with ``hostile`` of four."""
    failed: list[tuple[int, int, str]] = []
    happened: Counter[str] = Counter()
    for seed in seeds:
        count = seed % 3 if hostile is None else hostile
        violated, what = run_one(seed, count, mutant)
        happened += what
        if violated is not None:
            failed.append((seed, count, violated))
    return failed, happened


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="run this one schedule")
    parser.add_argument(
        "--hostile", type=int, choices=(0, 1, 2, 3), help="of four; by default 0, 1 and 2 in turn"
    )
    parser.add_argument("--mutant", choices=MUTANTS, default="none", help="break a rule, and see it found")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    given = parser.parse_args()
    first, count = (given.seed, 1) if given.seed is not None else (given.first, given.schedules)
    begun = time.monotonic()
    failures: list[tuple[int, int, str]] = []
    happened: Counter[str] = Counter()
    with ProcessPoolExecutor(given.processes) as pool:
        chunks = [range(at, min(at + CHUNK, first + count)) for at in range(first, first + count, CHUNK)]
        for failed, what in pool.map(
            run_many, chunks, [given.hostile] * len(chunks), [given.mutant] * len(chunks)
        ):
            happened += what
            failures += failed
            for seed, hostile, violated in failed:
                again = f"--seed {seed} --hostile {hostile} --mutant {given.mutant}"
                sys.stdout.write(f"{violated}\n    again: python tests/fault/consensus_sim.py {again}\n")
                sys.stdout.flush()
            if happened["schedules"] % TOLD_EACH == 0:
                sys.stderr.write(f"{happened['schedules']} of {count}, {len(failures)} failed\n")
    result = dict(happened) | {"failed": len(failures), "seconds": round(time.monotonic() - begun, 1)}
    sys.stdout.write(json.dumps(result) + "\n")
    return int(bool(failures) == (given.mutant == "none"))


if __name__ == "__main__":
    sys.exit(main())
