"""Where on a QPU a chain of qubits is best placed.

Kernel circuits interact along a line, so a layout is a simple path in the coupling map. As mapomatic does, we
look at many such paths and rank them by an estimate of the circuit's success; unlike it we need no subgraph
search, for a path grows qubit by qubit.
"""

from __future__ import annotations

from heapq import nsmallest
from math import log1p

from tocsin.qpu_manager.calibrations import Calibration

BEAM = 512
"""Partial paths that are kept at every length. A 156-qubit QPU has about 350 links, so paths of two
and three qubits are all kept; longer ones lose only what was already worse than 512 others."""

TWO_QUBIT_GATES_PER_LINK = 2
"""A ZZ rotation is two CX gates and a rotation between them."""


def best_chains(calibration: Calibration, width: int, count: int) -> tuple[tuple[int, ...], ...]:
    """Return up to ``count`` paths of ``width`` usable qubits, best first, each in one direction only.

    The estimate multiplies the success of every link's gates and of every readout. It knows neither
    single-qubit gates nor idling, so the caller compares the transpiled circuits of the first few.
    """
    beam: list[tuple[float, tuple[int, ...]]] = [
        (_loss(calibration.readout[qubit].error), (qubit,)) for qubit in sorted(calibration.usable)
    ]
    for _ in range(width - 1):
        longer = (
            (
                loss + TWO_QUBIT_GATES_PER_LINK * _loss(error) + _loss(calibration.readout[neighbour].error),
                (*path, neighbour),
            )
            for loss, path in beam
            for neighbour, error in calibration.links[path[-1]].items()
            if neighbour not in path
        )
        beam = nsmallest(BEAM, longer)
    one_way = (entry for entry in beam if entry[1][0] <= entry[1][-1])
    return tuple(path for _, path in nsmallest(count, one_way))


def _loss(error: float) -> float:
    """Return -ln(1 - error), which adds where success multiplies."""
    return -log1p(-min(error, 1 - 1e-12))
