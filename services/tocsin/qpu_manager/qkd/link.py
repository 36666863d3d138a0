"""A BB84 link that Aer simulates.

**It gives no physical security**: both ends, the link and the eavesdropper are one process, whose random numbers are
this machine's. It is what a real link's key server is replaced by in tests and demonstrations.

The link's noise depolarises: a share of the photons arrives in no state at all, and half of those read wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import product

import numpy as np
from qiskit.exceptions import QiskitError
from qiskit_aer import AerSimulator
from qiskit_aer.noise import NoiseModel, depolarizing_error

from tocsin.analysis.bb84.cascade import Bits
from tocsin.analysis.bb84.circuits import LINK_GATE, Preparation, photon
from tocsin.analysis.bb84.protocol import Distilled, Readings, distill
from tocsin.contracts.errors import InvalidInputError, InvariantBrokenError

PHOTONS = 1 << 16
"""Of one run: enough for the finite samples to leave a key (30 keys of 256 bits at 1 % errors)."""
MAX_PHOTONS = 1 << 20
DEFAULT_ERRORS = 0.01


class SimulatedLink:
    """A link between two ends. Not for several threads at once.

    Args:
        errors: error rate of the link itself, 0 to 0.5.
        eavesdropper: whether somebody intercepts and resends every photon.
        photons: of one run.
        entropy: gives random bytes; tests pass a seeded one.
    """

    def __init__(
        self,
        *,
        errors: float = DEFAULT_ERRORS,
        eavesdropper: bool = False,
        photons: int = PHOTONS,
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        if not 0.0 <= errors <= 0.5 or not 1 <= photons <= MAX_PHOTONS:
            raise InvalidInputError(f"a link with {errors} errors and {photons} photons", reason="bad_link")
        self.eavesdropper = eavesdropper
        self._photons = photons
        self._entropy = entropy
        noise = NoiseModel()
        noise.add_all_qubit_quantum_error(depolarizing_error(2 * errors, 1), LINK_GATE)
        # Noise becomes part of the state, so that all shots of a circuit are drawn at once: a hundred times faster.
        self._simulator = AerSimulator(
            method="density_matrix", noise_model=noise if errors else None, max_parallel_threads=1
        )

    def run(self) -> Distilled:
        """Send the photons of one run and distil a key. Some 0.1 s.

        Raises:
            EavesdropperError: ``eavesdropper``.
            TocsinError: see :func:`tocsin.analysis.bb84.protocol.distill`.
        """
        return distill(self.send(), np.random.default_rng(list(self._entropy(32))))

    def send(self) -> Readings:
        """Send the photons of one run and return what both ends have."""
        bits, alice, bob, eve = (self._bits() for _ in range(4))
        read = np.zeros(self._photons, dtype=np.uint8)
        for how in _preparations(eavesdropper=self.eavesdropper):
            alike = (bits == how.bit) & (alice == how.alice) & (bob == how.bob)
            if how.eve is not None:
                alike &= eve == how.eve
            if count := int(alike.sum()):
                read[alike] = self._shots(how, count)
        return Readings(bits, alice, read, bob)

    def _shots(self, how: Preparation, count: int) -> Bits:
        seed = int.from_bytes(self._entropy(4), "big") >> 1
        try:
            outcome = self._simulator.run(photon(how), shots=count, memory=True, seed_simulator=seed).result()
            memory = outcome.get_memory()
        except QiskitError as error:
            raise InvariantBrokenError(f"the simulator failed: {error}", reason="simulation_failed") from error
        # Bits are written with the last classical bit first: Bob's is the rightmost.
        return np.fromiter((shot[-1] == "1" for shot in memory), dtype=np.uint8, count=count)

    def _bits(self) -> Bits:
        raw = np.frombuffer(self._entropy((self._photons + 7) // 8), dtype=np.uint8)
        return np.unpackbits(raw)[: self._photons]


def _preparations(*, eavesdropper: bool) -> list[Preparation]:
    if eavesdropper:
        return [Preparation(*how) for how in product((0, 1), repeat=4)]
    return [Preparation(*how) for how in product((0, 1), repeat=3)]
