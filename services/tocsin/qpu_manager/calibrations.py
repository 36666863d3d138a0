"""What is known of a QPU, and which QPUs are not to be used.

A :class:`Calibration` is all that scoring and execution ever learn of a QPU. It is plain data: reading it
needs no quantum library, and where it comes from (snapshots today, a provider tomorrow) is the business of
the module that makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from statistics import median

from tocsin.contracts.errors import InvalidInputError

DEAD_ERROR = 0.5
"""From here on a qubit, link or readout counts as absent. Snapshots mark what could not be calibrated with an
error of 1; a readout at .5 is a coin."""

DEFAULT_POOL = ("manila", "montreal", "kolkata", "sherbrooke", "torino", "fez", "kingston", "boston")
"""Five to 156 qubits, 2021 to 2026, three native two-qubit gates: old ones that a request must avoid, and
modern ones that it may choose among."""

_NO_DURATION = "its snapshot has gates without a duration"
EXCLUDED: Mapping[str, str] = {
    "cairo": "circuits do not transpile to it",
    "kyoto": "every two-qubit error in its snapshot is 1",
    "toronto": "the durations in its snapshot are 16 times too long",
    "nighthawk": "its provider warns that its errors are not typical",
} | dict.fromkeys(
    (
        "almaden",
        "burlington",
        "cambridge",
        "essex",
        "johannesburg",
        "london",
        "poughkeepsie",
        "rochester",
        "singapore",
    ),
    _NO_DURATION,
)
"""Snapshots that must not be used, and why (measured with qiskit-ibm-runtime 0.51)."""


@dataclass(frozen=True, slots=True)
class GateFigures:
    """Error probability and duration of one gate on its qubits, or of one readout."""

    error: float
    duration_s: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """One QPU at the time of its calibration. Qubits are numbered from 0; times are in seconds."""

    qpu: str
    calibrated: str
    """When, ISO 8601."""
    t1_s: tuple[float, ...]
    """Relaxation times; 0 where unknown, which makes the qubit unusable."""
    t2_s: tuple[float, ...]
    """Dephasing times, at most twice T1; 0 where unknown."""
    readout: tuple[GateFigures, ...]
    gates: Mapping[tuple[str, tuple[int, ...]], GateFigures]
    """By name and qubits, both directions of a link where the QPU has both."""

    @property
    def qubits(self) -> int:
        """How many qubits the QPU has."""
        return len(self.t1_s)

    @cached_property
    def usable(self) -> frozenset[int]:
        """Qubits that can be read out and whose coherence times are known."""
        return frozenset(
            q for q in range(self.qubits) if self.coherence_s(q) > 0 and self.readout[q].error < DEAD_ERROR
        )

    @cached_property
    def links(self) -> Mapping[int, Mapping[int, float]]:
        """The coupling map without its dead links: by qubit, its neighbours and the two-qubit error."""
        links: dict[int, dict[int, float]] = {qubit: {} for qubit in self.usable}
        for (_, on), figures in self.gates.items():
            if len(on) == 2 and figures.error < DEAD_ERROR and self.usable.issuperset(on):
                for a, b in (on, on[::-1]):
                    links[a][b] = min(figures.error, links[a].get(b, 1.0))
        return links

    def coherence_s(self, qubit: int) -> float:
        """Return the shorter of a qubit's T1 and T2."""
        return min(self.t1_s[qubit], self.t2_s[qubit])

    def figures(self, gate: str, qubits: tuple[int, ...]) -> GateFigures:
        """Return a gate's figures, or a readout's for the gate ``measure``."""
        if gate == "measure":
            return self.readout[qubits[0]]
        return self.gates[gate, qubits]

    def median_two_qubit_error(self) -> float:
        """Return the median over the gates of two qubits, dead links included."""
        return median(f.error for (_, on), f in self.gates.items() if len(on) == 2)


def require_allowed(qpu: str) -> None:
    """Refuse a QPU on the exclusion list, with the reason.

    Raises:
        InvalidInputError: It is on the list.
    """
    if qpu in EXCLUDED:
        raise InvalidInputError(f"QPU {qpu} is excluded: {EXCLUDED[qpu]}", reason="excluded_qpu")
