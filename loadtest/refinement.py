"""Measure what refinement between rounds is worth: how many split votes end in a decision, with it and without.

    python loadtest/refinement.py --agents 100 --votes 500

Pure and seeded: no broker and no signatures, but the rule itself (:mod:`tocsin.consensus.refinement`). Agents rank the
options by chance (Plackett and Luce: the options have popularities, drawn anew for each vote), and accept the upper
half of their ranking. Each votes for what it likes best of what is asked; one that is *flexible*, in later rounds, for
the first option in the order asked that it accepts. Only votes that the first round leaves split are counted.

With refinement the options of the next round are those that :func:`refine` returns, in its order. Without, they are
asked again as they were.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import Any

from common import Environment, emit, exit_with, positive_int, positive_ints, say, show_table

from tocsin.consensus.refinement import refine
from tocsin.contracts.decisions import Option
from tocsin.evidence.choices import MAX_ROUNDS
from tocsin.evidence.quorum import Quorum

FLEXIBLE = (0.0, 0.25, 0.5, 0.75, 1.0)
MAX_DRAWS = 50
"""Votes drawn for each that is counted, at most: with few options most are not split."""

Ranking = tuple[Option, ...]


def rankings(chance: random.Random, options: Sequence[Option], agents: int) -> list[Ranking]:
    """Draw each agent's ranking: an option comes next with a probability in proportion to its popularity."""
    popularity = [chance.expovariate(1.0) for _ in options]
    # Sorted by exponential times over popularity, a ranking is Plackett and Luce's.
    return [
        tuple(
            option
            for _, option in sorted(
                (
                    (chance.expovariate(1.0) / share, option)
                    for share, option in zip(popularity, options, strict=True)
                ),
                key=lambda drawn: drawn[0],
            )
        )
        for _ in range(agents)
    ]


def vote(asked: Sequence[Option], ranking: Ranking, *, follows: bool) -> int:
    """Return the index of what an agent votes for."""
    accepted = ranking[: max(1, len(ranking) // 2)]
    if follows and (led := next((option for option in asked if option in accepted), None)) is not None:
        return asked.index(led)
    return asked.index(next(option for option in ranking if option in asked))


def rounds_needed(
    people: Sequence[Ranking], flexible: int, options: Sequence[Option], quorum: Quorum, *, refined: bool
) -> int | None:
    """Return in which round a vote is decided; None: in none."""
    asked = tuple(options)
    for number in range(1, MAX_ROUNDS + 1):
        chosen = [
            vote(asked, ranking, follows=number > 1 and index < flexible)
            for index, ranking in enumerate(people)
        ]
        if max(chosen.count(index) for index in range(len(asked))) >= quorum.needed:
            return number
        if refined:
            asked = refine(asked, chosen, quorum)
    return None


def measure(options: argparse.Namespace, count: int, share: float) -> dict[str, Any]:
    """Measure one point: so many options, and such a share of flexible agents."""
    chance = random.Random(f"{options.seed}/{count}/{share}")
    asked = [Option(name=f"option-{number}", command=None, text=f"option {number}") for number in range(count)]
    quorum = Quorum.of(options.agents)
    flexible = round(share * options.agents)
    needed: dict[bool, list[int]] = {True: [], False: []}
    split = 0
    for _ in range(options.votes * MAX_DRAWS):
        if split == options.votes:
            break
        people = rankings(chance, asked, options.agents)
        chance.shuffle(asked)
        if rounds_needed(people, 0, asked, quorum, refined=False) == 1:
            continue
        split += 1
        for refined, found in needed.items():
            if (number := rounds_needed(people, flexible, asked, quorum, refined=refined)) is not None:
                found.append(number)
    return {
        "options": count,
        "flexible": share,
        "split": split,
        "decided_share": round(len(needed[True]) / split, 4) if split else 0.0,
        "decided_share_without": round(len(needed[False]) / split, 4) if split else 0.0,
        "mean_round": round(sum(needed[True]) / len(needed[True]), 2) if needed[True] else 0.0,
    }


def main() -> None:
    """Measure every point and print the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--agents", type=positive_int, default=100, help="agents that vote")
    parser.add_argument("--votes", type=positive_int, default=300, help="split votes for each point")
    parser.add_argument(
        "--options", type=positive_ints, default=[2, 3, 4, 8], help="numbers of options, as in 2,3,8"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    points = []
    for count in options.options:
        points += [measure(options, count, share) for share in FLEXIBLE]
        say(f"{count} options measured")
    show_table(
        f"split votes of {options.agents} agents",
        ["options", "flexible", "decided", "without", "mean round"],
        [
            [p["options"], p["flexible"], p["decided_share"], p["decided_share_without"], p["mean_round"]]
            for p in points
        ],
    )
    environment = Environment.here(backends=[], algorithms=[], key_scope=None)
    emit("loadtest/refinement.py", vars(options), environment, {"points": points})


if __name__ == "__main__":
    exit_with(main)
