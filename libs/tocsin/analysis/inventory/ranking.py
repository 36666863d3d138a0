"""The ranked list: endpoints by urgency, then by how much is exposed for how long.

    exposure = vulnerable sessions x max(0, x + y - z)      in session-years

with x, y and z of Mosca's inequality (:mod:`tocsin.analysis.inventory.judging`): for how many years sessions
like the recorded ones will be readable while they must still be secret; without any encryption z is 0. Sessions
are what the log counted; a probe is one. The order is: level, exposure, number of reasons of that level, sessions,
name. No weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from tocsin.analysis.inventory import algorithms, suites
from tocsin.analysis.inventory.algorithms import Algorithm
from tocsin.analysis.inventory.judging import Assumptions, Level, Reason, exchange_of, reasons_of
from tocsin.analysis.inventory.model import Endpoint, Inventory
from tocsin.analysis.inventory.shor import Resources, resources


@dataclass(frozen=True, slots=True)
class Ranked:
    """An endpoint with its place."""

    rank: int
    """From 1."""
    endpoint: Endpoint
    level: Level
    exposure: float
    """Session-years."""
    margin_years: float
    """z - x - y: negative where Mosca's inequality says to worry."""
    reasons: tuple[Reason, ...]
    broken: tuple[tuple[Algorithm, Resources | None], ...]
    """What Shor's algorithm breaks here, easiest first, and what that takes by a cited estimate."""


def rank(inventory: Inventory, given: Assumptions) -> tuple[Ranked, ...]:
    """Rank all endpoints. O(n log n); the same inventory gives the same list."""
    judged = [_judge(endpoint, inventory, given) for endpoint in inventory.endpoints]
    judged.sort(key=_place)
    return tuple(
        Ranked(number, one.endpoint, one.level, one.exposure, one.margin_years, one.reasons, one.broken)
        for number, one in enumerate(judged, start=1)
    )


def _place(one: Ranked) -> tuple[int, float, int, int, str]:
    worst = sum(reason.level == one.level for reason in one.reasons)
    return (-one.level, -one.exposure, -worst, -one.endpoint.sessions, one.endpoint.name)


def _judge(endpoint: Endpoint, inventory: Inventory, given: Assumptions) -> Ranked:
    reasons = reasons_of(endpoint, inventory.certificates, given)
    margin = given.machine_in_years - given.secrecy_of(endpoint) - given.migration_years
    harvested = sum(reason.sessions for reason in reasons if reason.code == "harvest_now")
    plain = sum(reason.sessions for reason in reasons if reason.code == "unencrypted")
    return Ranked(
        0,
        endpoint,
        max((reason.level for reason in reasons), default=Level.INFO),
        harvested * max(0.0, -margin) + plain * (given.machine_in_years - margin),
        margin,
        reasons,
        _broken(endpoint, inventory),
    )


def algorithms_of(endpoint: Endpoint, inventory: Inventory) -> tuple[Algorithm, ...]:
    """Return what an endpoint's sessions and certificates use, sorted."""
    found = set()
    for variant, _ in endpoint.variants:
        suite = suites.suite(variant.suite)
        found |= {suite.cipher, suite.digest}
        exchange = exchange_of(variant)
        if exchange is not None:
            found.add(exchange)
    for one in endpoint.certificates:
        certificate = inventory.certificates[one]
        found.add(algorithms.public_key(certificate.key_kind, certificate.key_bits, certificate.curve))
    return tuple(
        sorted(
            (one for one in found if one.primitive is not algorithms.Primitive.UNKNOWN),
            key=lambda one: (one.name, one.primitive),
        )
    )


def _broken(endpoint: Endpoint, inventory: Inventory) -> tuple[tuple[Algorithm, Resources | None], ...]:
    broken = [(one, resources(one)) for one in algorithms_of(endpoint, inventory) if one.shor]
    return tuple(sorted(broken, key=lambda pair: (pair[1].logical_qubits if pair[1] else 2**62, pair[0].name)))
