"""Measure decisions: from sending the proposal until its certificate is made, verified, stored and announced.

    python loadtest/consensus.py --agents 847 --mode collector --key-scope agent --decisions 200
    python loadtest/consensus.py --mode live --key-scope agent --sweep 4,16,64,128,256,350,512,847
    python loadtest/consensus.py --agents 847 --instances 4 --byzantine 0.317 --decisions 1247
    python loadtest/consensus.py --agents 40 --instances 4 --kill-leader --decisions 20
    python loadtest/consensus.py --agents 847 --mode live --concurrent 100

One decision at a time (but with ``--concurrent``), over a real broker and instances that are the real service. In mode
``collector`` ballots were signed before the proposal is sent, so that an instance of consensus is measured; in mode
``live`` every agent signs for itself once it has heard the proposal, on the same cores. All honest agents want the same
option, drawn by the decision's id. ``floor_ms`` is what the signatures alone take on these cores.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from _agents import FleetOptions, add_fleet_options
from _ahead import signature_s
from _council import ADMIN, OPTIONS, Council, council
from _embedded import Embedded, embedded
from _processes import until_terminated
from _voting import Conduct, hostile_conduct, wanted
from common import (
    Environment,
    cores,
    emit,
    exit_with,
    latency,
    not_negative,
    positive_float,
    positive_int,
    positive_ints,
    say,
    show_table,
)

from tocsin.contracts.catalogue import THREAT_ALERT
from tocsin.contracts.decisions import DecisionAnnounced, Outcome
from tocsin.contracts.errors import InvalidInputError, InvariantBrokenError
from tocsin.crypto import Algorithm, BatchVerifier, LocalKey, SignatureBackend, leaf_hash, sign_batch
from tocsin.evidence.quorum import Quorum
from tocsin.evidence.verification import verify

WARMUP = 3
CHUNK = 16
"""Decisions whose ballots are signed ahead at a time: some 4 kB a ballot are held."""
END_S = 60.0
CERTIFICATES = 16
"""Certificates that are verified offline, with the root alone, spread over the run."""
TRIAL = 32
IN_TIME_MS = 100.0
"""A decision shall not take longer, at p99."""


@dataclass(frozen=True, slots=True)
class Decided:
    """One decision that ended."""

    id: bytes
    took_ms: float
    announced: DecisionAnnounced

    @property
    def right(self) -> bool:
        """Whether it is what all honest agents wanted."""
        option = self.announced.option
        return option is not None and option.name == OPTIONS[wanted(self.id)].name


def floor_ms(options: FleetOptions, instances: int, *, live: bool) -> float:
    """Return what the signatures of one decision take, if the cores do nothing else and share them perfectly.

    With a key for each agent, n signatures (where they are made after the proposal) and a quorum of verifications at
    each instance; with a key for each host, at least one of each for a host. Medians of :data:`TRIAL` here.
    """
    each = options.agents if options.key_scope == "agent" else options.hosts
    verified = Quorum.of(options.agents).needed if options.key_scope == "agent" else options.hosts
    signing_s = each * signature_s(options.backend, options.algorithm) if live else 0.0
    verifying_s = instances * verified * verification_s(options.backend, options.algorithm)
    return 1000 * (signing_s + verifying_s) / cores()


def verification_s(backend: SignatureBackend, algorithm: Algorithm) -> float:
    """Return what a verification costs here, in seconds: the median of a few."""
    signer = LocalKey.generate(backend, algorithm).signer
    verifier = backend.verifier(algorithm, signer.public_key)
    took = []
    for number in range(TRIAL):
        message = number.to_bytes(8, "big")
        (proof,) = sign_batch(signer, [message])
        begun = time.perf_counter()
        BatchVerifier(1).verify(verifier, leaf_hash(message), proof)
        took.append(time.perf_counter() - begun)
    return median(took)


async def decide(found: Council, first: int, options: argparse.Namespace) -> list[Decided]:
    """Decide ``options.decisions`` questions one after another."""
    done: list[Decided] = []
    for begin in range(0, options.decisions, CHUNK):
        proposals = [await found.make(first + n) for n in range(begin, min(begin + CHUNK, options.decisions))]
        if options.mode == "collector":
            await found.sign_ahead([one.leaf for one in proposals])
        for proposal in proposals:
            await asyncio.sleep(options.pause)
            begun_ns = await found.send(proposal)
            await found.until_announced([proposal.leaf], within_s=END_S)
            done.append(_ended(found, proposal.leaf, begun_ns))
        say(f"{len(done)} of {options.decisions}: the last one took {done[-1].took_ms:.1f} ms")
    return done


async def decide_at_once(found: Council, first: int, options: argparse.Namespace) -> list[Decided]:
    """Open many decisions at the same moment."""
    proposals = [await found.make(first + number) for number in range(options.concurrent)]
    if options.mode == "collector":
        await found.sign_ahead([one.leaf for one in proposals])
    begun = [await found.send(proposal) for proposal in proposals]
    await found.until_announced([one.leaf for one in proposals], within_s=END_S * 2)
    return [_ended(found, one.leaf, begun_ns) for one, begun_ns in zip(proposals, begun, strict=True)]


async def decide_without_leaders(found: Council, first: int, options: argparse.Namespace) -> list[Decided]:
    """Kill who leads each decision's first view just before its proposal is sent, and start it again afterwards."""
    done: list[Decided] = []
    for number in range(options.kills):
        proposal = await found.make(first + number)
        if options.mode == "collector":
            await found.sign_ahead([proposal.leaf])
        leader = found.leader(proposal.leaf)
        found.kill(leader)
        begun_ns = await found.send(proposal)
        await found.until_announced([proposal.leaf], within_s=END_S)
        done.append(_ended(found, proposal.leaf, begun_ns))
        say(f"without {leader.name}: {done[-1].took_ms:.1f} ms")
        await found.restart(leader)
        await asyncio.sleep(options.settle)
    return done


def _ended(found: Council, decision: bytes, begun_ns: int) -> Decided:
    heard_ns, announced = found.announced[decision][0]
    return Decided(decision, (heard_ns - begun_ns) / 1e6, announced)


def results(
    found: Council, done: Sequence[Decided], hostile: Mapping[str, Conduct], wall_s: float
) -> dict[str, Any]:
    """Return what became of some decisions."""
    return {
        "decision_ms": latency([one.took_ms for one in done]),
        "decided": sum(one.announced.outcome is Outcome.DECIDED for one in done),
        "closed": sum(one.announced.outcome is not Outcome.DECIDED for one in done),
        "agreement_violations": found.violations(),
        "instances_that_contradict": found.instances_that_contradict,
        "accuracy": round(sum(one.right for one in done) / len(done), 6),
        "hostile": len(hostile),
        "equivocators": sum(conduct is Conduct.EQUIVOCATE for conduct in hostile.values()),
        "accused": len(found.accused),
        "framed": sum(who not in hostile for who in found.accused),
        "decisions_per_s": round(len(done) / wall_s, 2),
    }


async def verify_some(found: Council, done: Sequence[Decided]) -> int:
    """Verify some of the certificates as an auditor does, with the root alone; return how many.

    Raises:
        TocsinError: one does not hold.
        InvariantBrokenError: ``wrong_certificate``: it is of something else.
    """
    root = found.system.fleet.root.certificate_pem
    chosen = [one for one in done if one.announced.outcome is Outcome.DECIDED]
    chosen = chosen[:: max(1, len(chosen) // CERTIFICATES)]
    for one in chosen:
        data = await found.system.fleet.bus.get_certificate(one.id.hex())
        proven = await asyncio.to_thread(verify, data, root)
        if proven.decision != one.id or proven.option != one.announced.option:
            raise InvariantBrokenError("a certificate is of another decision", reason="wrong_certificate")
    return len(chosen)


async def run(system: Embedded, options: argparse.Namespace) -> dict[str, Any]:
    """Set everything up, and decide."""
    fleet, live = system.fleet, options.mode == "live"
    voters = [agent for agent in fleet.agents if agent.id.role is not None and agent.id.role.value != ADMIN]
    count = int(options.byzantine * options.agents)
    # Whole hosts, as far as it goes: who shares a key with a hostile agent is at its mercy.
    by_host = [agent.id for agent in sorted(voters, key=lambda agent: agent.host)]
    hostile = hostile_conduct(by_host[-count:] if count else [])
    if count > fleet.options.agents - Quorum.of(fleet.options.agents).needed:
        raise InvalidInputError("with so many hostile agents nothing is decided", reason="too_many_hostile")
    begun = time.monotonic()
    async with council(
        system, instances=options.instances, live=live, hostile=hostile, concurrent=options.concurrent
    ) as found:
        setup_s = {"council": round(time.monotonic() - begun, 2)}
        say(f"{options.agents} agents ({count} hostile), {options.instances} instances, {fleet.keys} keys")
        warm = await decide(found, 0, _with(options, decisions=WARMUP))
        before, begun = found.cpu_s(), time.monotonic()
        if options.concurrent > 1:
            done = await decide_at_once(found, 1_000, options)
        else:
            done = await decide(found, 1_000, options)
        wall_s, after = time.monotonic() - begun, found.cpu_s()
        report = {
            "agents": options.agents,
            "instances": options.instances,
            "keys": fleet.keys,
            "quorum": done[0].announced.quorum,
            **results(found, done, hostile, wall_s),
            "floor_ms": latency([floor_ms(fleet.options, options.instances, live=live)]),
            "cpu_ms_of_a_decision": cpu_of(before, after, len(done)),
            "certificate_bytes": done[-1].announced.certificate_bytes,
            "first_decision_ms": latency([warm[0].took_ms]),
        }
        report["over_floor"] = round(report["decision_ms"]["p50"] / report["floor_ms"]["p50"], 3)
        if options.kill_leader:
            failed = await decide_without_leaders(found, 2_000_000, options)
            taken = latency([one.took_ms for one in failed])
            report["failover"] = {
                "kills": len(failed),
                "decision_ms": taken,
                "added": {
                    part: round(taken[part] - report["decision_ms"]["p50"], 3) for part in ("p50", "p99", "max")
                },
            }
            report["agreement_violations"] = found.violations()
        report["certificates_verified"] = await verify_some(found, done)
    return {**report, "setup_s": setup_s}


def cpu_of(before: Mapping[str, float], after: Mapping[str, float], decisions: int) -> dict[str, float]:
    """Return the CPU time that a decision takes of each group of processes, in milliseconds."""
    return {group: round(1000 * (after[group] - before[group]) / decisions, 3) for group in before}


def _with(options: argparse.Namespace, **changed: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), **changed})


async def measure(options: argparse.Namespace) -> tuple[Environment, dict[str, Any]]:
    """Run everything and return the report's parts."""
    fleet_options = FleetOptions.of(options, type_name=THREAT_ALERT.name, admin=True)
    environment = Environment.here(
        backends=[fleet_options.backend.name],
        algorithms=[fleet_options.algorithm.label],
        key_scope=options.key_scope,
    )
    points = []
    for agents in options.sweep or [options.agents]:
        sized = replace(fleet_options, agents=agents, hosts=min(options.hosts, agents))
        with tempfile.TemporaryDirectory(prefix="tocsin-consensus-") as folder:
            async with embedded(sized, Path(folder)) as system:
                points.append(await run(system, _with(options, agents=agents)))
    if not options.sweep:
        return environment, points[0]
    quick = [point["agents"] for point in points if point["decision_ms"]["p99"] < IN_TIME_MS]
    return environment, {"points": points, "most_agents_in_time": max(quick, default=0)}


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(
        description="Measure decisions of consensus, from proposal to certificate."
    )
    add_fleet_options(parser)
    add = parser.add_argument
    add("--mode", choices=["collector", "live"], default="collector", help="when ballots are signed")
    add("--instances", type=positive_int, default=1, help="instances of consensus")
    add("--decisions", type=positive_int, default=200, help="how many, one after another")
    add("--concurrent", type=positive_int, default=1, help="so many at once in place of one after another")
    add("--byzantine", type=not_negative, default=0.0, help="share of the agents that is hostile")
    add("--kill-leader", action="store_true", help="then kill the leader of decisions")
    add("--kills", type=positive_int, default=10, help="with --kill-leader: how many")
    add("--settle", type=positive_float, default=0.5, help="seconds after a killed instance answers again")
    add("--sweep", type=positive_ints, default=[], help="numbers of agents to measure in turn, as in 4,16,64")
    add("--pause", type=not_negative, default=0.05, help="seconds before each decision")
    options = parser.parse_args()
    environment, found = asyncio.run(until_terminated(measure(options)))
    emit("loadtest/consensus.py", vars(options), environment, found)
    points = found.get("points", [found])
    show_table(
        f"{options.mode}, {options.key_scope} keys, {options.instances} instances",
        ["agents", "decided", "p50 ms", "p99 ms", "floor ms", "decisions/s", "violations", "accuracy"],
        [
            [
                point["agents"],
                point["decided"],
                point["decision_ms"]["p50"],
                point["decision_ms"]["p99"],
                point["floor_ms"]["p50"],
                point["decisions_per_s"],
                point["agreement_violations"],
                point["accuracy"],
            ]
            for point in points
        ],
    )
    if any(point["agreement_violations"] for point in points):
        raise InvariantBrokenError("decisions were made in two ways", reason="agreement_violated")


if __name__ == "__main__":
    exit_with(main)
