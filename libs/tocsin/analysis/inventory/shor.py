"""How large a quantum computer Shor's algorithm needs, by published estimates. Logical qubits and Toffoli gates.

* RSA, n-bit modulus: C. Gidney and M. Ekerå, "How to factor 2048 bit RSA integers in 8 hours using 20 million
  noisy qubits", Quantum 5, 433 (2021), abstract: 3n + 0.002 n lg n logical qubits, 0.3 n^3 + 0.0005 n^3 lg n
  Toffoli gates.
* RSA-2048 on noisy qubits: C. Gidney, "How to factor 2048 bit RSA integers with less than a million noisy qubits",
  arXiv:2505.15917 (2025), abstract: fewer than a million noisy qubits, less than a week; gate errors of 0.1%,
  surface code cycle 1 microsecond, reaction time 10 microseconds, nearest-neighbour grid.
* Elliptic curves over an n-bit prime field: M. Roetteler, M. Naehrig, K. M. Svore and K. Lauter, "Quantum resource
  estimates for computing elliptic curve discrete logarithms", ASIACRYPT 2017, arXiv:1706.06752, abstract: at most
  9n + 2 ceil(lg n) + 10 logical qubits and 448 n^3 lg n + 4090 n^3 Toffoli gates. Derived for curves in short
  Weierstrass form; for Curve25519 and Curve448 it is the figure of a curve of that size.

The gates of the last formula are within 3% of those that the paper counts for NIST's curves (its table 2).
These are estimates of their time: later work needs less. They say what is easier to break, not when.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from tocsin.analysis.inventory.algorithms import Algorithm

GIDNEY_EKERA_2021 = "Gidney and Ekera, Quantum 5, 433 (2021)"
GIDNEY_2025 = "Gidney, arXiv:2505.15917 (2025)"
ROETTELER_2017 = "Roetteler, Naehrig, Svore and Lauter, ASIACRYPT 2017, arXiv:1706.06752"

RSA_2048_NOISY = "fewer than a million noisy qubits for less than a week"
"""Gidney 2025, abstract."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What breaking one key takes."""

    logical_qubits: int
    toffoli_gates: float
    source: str
    noisy: str = ""
    """What that is in noisy qubits, where a source says so for this very size."""


def resources(algorithm: Algorithm) -> Resources | None:
    """Return what breaking one key of ``algorithm`` takes; None where it is not broken or no estimate is cited.

    Finite-field Diffie-Hellman is broken too, and gets no figure: its cost depends on the group's exponents.
    """
    if not algorithm.shor or not algorithm.parameters.isdecimal():
        return None
    n = int(algorithm.parameters)
    if n < 2:
        return None
    if algorithm.curve:
        qubits = 9 * n + 2 * ceil(log2(n)) + 10
        return Resources(qubits, 448 * n**3 * log2(n) + 4090 * n**3, ROETTELER_2017)
    if algorithm.name.startswith("RSA"):
        qubits = ceil(3 * n + 0.002 * n * log2(n))
        gates = 0.3 * n**3 + 0.0005 * n**3 * log2(n)
        noisy = f"{RSA_2048_NOISY} ({GIDNEY_2025})" if n == 2048 else ""
        return Resources(qubits, gates, GIDNEY_EKERA_2021, noisy)
    return None
