"""One photon as a circuit of one qubit, and one for an eavesdropper. Nothing here runs a circuit.

Alice encodes a bit in one of two bases (0 rectilinear: Z, 1 diagonal: X), the photon passes the link, Bob measures in
a basis of his own. An eavesdropper who intercepts and resends measures in a basis of hers on the way and sends on what
she has read; after her measurement the qubit is in just that state. Her reading goes to a qubit of hers that is
measured at the end (the principle of deferred measurement): the same distribution, from which a simulator can draw all
shots at once.

The link is an identity gate, so that whoever runs the circuit can attach noise to it. Photons are independent, so
those that were prepared and measured alike are shots of one circuit: 8 circuits without an eavesdropper, 16 with.
"""

from __future__ import annotations

from typing import NamedTuple

from qiskit.circuit import QuantumCircuit

LINK_GATE = "id"
"""The gate that stands for the link."""
BOB = 0
"""The classical bit of Bob's reading; the eavesdropper's is bit 1."""


class Preparation(NamedTuple):
    """How one photon is prepared and measured; all of them 0 or 1."""

    bit: int
    alice: int
    """Basis."""
    bob: int
    eve: int | None = None
    """Her basis; None without an eavesdropper."""


def photon(how: Preparation) -> QuantumCircuit:
    """Return the circuit of a photon."""
    watched = how.eve is not None
    width = 2 if watched else 1
    circuit = QuantumCircuit(width, width, name=f"bb84-{how.bit}{how.alice}{how.bob}{how.eve}")
    if how.bit:
        circuit.x(0)
    if how.alice:
        circuit.h(0)
    if watched:
        if how.eve:
            circuit.h(0)
        circuit.cx(0, 1)
        if how.eve:
            circuit.h(0)
    circuit.id(0)
    if how.bob:
        circuit.h(0)
    circuit.measure(0, BOB)
    if watched:
        circuit.measure(1, 1)
    return circuit
