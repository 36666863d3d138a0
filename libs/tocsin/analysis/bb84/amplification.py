"""Privacy amplification: how many secret bits there are, and the hash that keeps just those.

Length (Tomamichel, Lim, Gisin, Renner, "Tight finite-key analysis for quantum cryptography", Nature Communications 3,
634 (2012), equation 2, for ideal preparation, q = 1): of *n* raw bits in one basis, with *Q* the error rate of *k*
sampled bits in the **other** basis (what the eavesdropper learns of one basis shows as errors in the other),

    l = sum over both bases of n (1 - h(Q + mu)) - leak - log2(2 / (eps_sec^2 eps_cor))
    mu = sqrt((n + k)/(n k) (k + 1)/k ln(2/eps_sec))

where *h* is the binary entropy and *mu* covers that a sample is a sample. Each basis gets half of ``EPS_SEC``. The
bits are then hashed by a random Toeplitz matrix, a family of universal hashes (Krawczyk, CRYPTO '94).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tocsin.analysis.bb84.cascade import Bits

EPS_SEC = 1e-10
"""Distance of the key from a perfect one, at most."""
EPS_COR_BITS = 64
"""Bits of the hash by which the corrected keys are compared: they differ unnoticed once in 2^64."""


class Block(NamedTuple):
    """The raw bits of one basis."""

    bits: int
    sampled: int
    """Bits of the other basis that were compared."""
    rate: float
    """Share of those that differed."""


def binary_entropy(p: float) -> float:
    """Return h(p) in bits; 1 from one half on, where nothing is left to know."""
    if p <= 0.0:
        return 0.0
    if p >= 0.5:
        return 1.0
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def deviation(bits: int, sampled: int, eps: float) -> float:
    """Return mu: how far the rate of ``bits`` may lie above that of a sample, but for a chance of ``eps``."""
    if bits < 1 or sampled < 1:
        return 1.0
    return math.sqrt((bits + sampled) / (bits * sampled) * (sampled + 1) / sampled * math.log(2 / eps))


def secret_length(blocks: tuple[Block, ...], leaked: int) -> int:
    """Return how many secret bits are left, 0 if none."""
    eps = EPS_SEC / len(blocks)
    secret = sum(
        one.bits * (1 - binary_entropy(one.rate + deviation(one.bits, one.sampled, eps))) for one in blocks
    )
    return max(0, math.floor(secret - leaked - EPS_COR_BITS - math.log2(2 / EPS_SEC**2)))


def toeplitz(bits: Bits, diagonal: Bits, length: int) -> Bits:
    """Return the product of a Toeplitz matrix and bits, modulo 2; row i is ``diagonal[i + n - 1 - j]``. O(n log n).

    Args:
        bits: what is hashed, *n* of them.
        diagonal: random and public, *n + length - 1* of them.
        length: bits that come out.
    """
    size = 1 << (len(bits) + len(diagonal) - 1).bit_length()
    spectrum = np.fft.rfft(bits.astype(np.float64), size) * np.fft.rfft(diagonal.astype(np.float64), size)
    # Sums of at most n ones: far below where rounding a double's would be in doubt.
    sums = np.rint(np.fft.irfft(spectrum, size)).astype(np.int64)
    first = len(bits) - 1
    return (sums[first : first + length] & 1).astype(np.uint8)
