"""From readings to a key: sifting, estimation, error correction, comparison, privacy amplification.

    readings = Readings(alice_bits, alice_bases, bob_bits, bob_bases)
    distilled = distill(readings, rng)

All that the two ends tell one another here is public and must be authenticated; who has both ends in one process, as
our simulated link has, need not send it. Half of the sifted bits are compared. If more than 11 % of them differ in
either basis, no key can be had by one-way post-processing (Shor and Preskill, Phys. Rev. Lett. 85, 441 (2000)) and the
run is aborted: an eavesdropper who intercepts and resends every photon causes 25 %. Fewer errors are taken for the
eavesdropper's all the same, and what she may know is taken off by amplification. With the finite samples of one run
that leaves nothing above some 6 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tocsin.analysis.bb84.amplification import EPS_COR_BITS, Block, secret_length, toeplitz
from tocsin.analysis.bb84.cascade import Bits, reconcile
from tocsin.contracts.errors import ExhaustedError, InvalidInputError, UntrustedError

ABORT_ABOVE = 0.11
"""Error rate; see the module's text."""
MIN_SAMPLE = 128
"""Compared bits of each basis, below which a rate means nothing."""


class Readings(NamedTuple):
    """What both ends have after the photons, one element a photon."""

    alice_bits: Bits
    alice_bases: Bits
    bob_bits: Bits
    bob_bases: Bits


@dataclass(frozen=True, slots=True)
class Figures:
    """A run in figures."""

    photons: int
    sifted: int
    sampled: int
    error_rates: tuple[float, float]
    """Of the sample, by basis: Z, X."""
    corrected: int = 0
    leaked_bits: int = 0
    secret_bits: int = 0


class EavesdropperError(UntrustedError):
    """More errors than a key can bear."""

    reason = "eavesdropper"

    def __init__(self, figures: Figures) -> None:
        z, x = figures.error_rates
        super().__init__(f"{z:.1%} and {x:.1%} errors, abort above {ABORT_ABOVE:.0%}")
        self.figures = figures


@dataclass(frozen=True, slots=True)
class Distilled:
    """What a run gave."""

    key: bytes
    figures: Figures

    def __repr__(self) -> str:
        return f"Distilled({len(self.key)} bytes, {self.figures})"


def distill(readings: Readings, rng: np.random.Generator) -> Distilled:
    """Make a key of a run's readings.

    Args:
        readings: of both ends.
        rng: draws what is public: the sample, the permutations, the hashes.

    Raises:
        InvalidInputError: ``bad_readings``: not as many of each.
        EavesdropperError: ``eavesdropper``: too many errors.
        ExhaustedError: ``too_few_photons``: to estimate errors by; ``no_secret_left`` after amplification.
        UntrustedError: ``keys_differ``: error correction has failed; the next run may do.
    """
    if len({len(one) for one in readings}) != 1:
        raise InvalidInputError("not as many readings as photons", reason="bad_readings")
    kept = readings.alice_bases == readings.bob_bases
    alice, bob, bases = readings.alice_bits[kept], readings.bob_bits[kept], readings.alice_bases[kept]
    sample = np.zeros(len(alice), dtype=bool)
    sample[rng.permutation(len(alice))[: len(alice) // 2]] = True
    sampled = tuple(int((sample & (bases == basis)).sum()) for basis in (0, 1))
    if min(sampled) < MIN_SAMPLE:
        raise ExhaustedError(f"{len(kept)} photons leave {sampled} bits to compare", reason="too_few_photons")
    wrong = alice != bob
    rates = tuple(float(wrong[sample & (bases == basis)].mean()) for basis in (0, 1))
    figures = Figures(len(kept), len(alice), sum(sampled), (rates[0], rates[1]))
    if max(rates) > ABORT_ABOVE:
        raise EavesdropperError(figures)
    return _key(alice[~sample], bob[~sample], bases[~sample], sampled, figures, rng)


def _key(
    alice: Bits,
    bob: Bits,
    bases: Bits,
    sampled: tuple[int, ...],
    figures: Figures,
    rng: np.random.Generator,
) -> Distilled:
    reconciled = reconcile(alice, bob, sum(figures.error_rates) / 2, rng)
    blocks = tuple(
        Block(int((bases == basis).sum()), sampled[1 - basis], figures.error_rates[1 - basis])
        for basis in (0, 1)
    )
    if not _same(alice, reconciled.bits, rng):
        raise UntrustedError("errors are left after their correction", reason="keys_differ")
    length = secret_length(blocks, reconciled.leaked) // 8 * 8
    if length == 0:
        raise ExhaustedError(
            f"nothing secret is left of {len(alice)} bits with {max(figures.error_rates):.1%} errors",
            reason="no_secret_left",
        )
    key = toeplitz(reconciled.bits, _random(rng, len(alice) + length - 1), length)
    return Distilled(
        np.packbits(key).tobytes(),
        Figures(
            figures.photons,
            figures.sifted,
            figures.sampled,
            figures.error_rates,
            reconciled.corrected,
            reconciled.leaked,
            length,
        ),
    )


def _same(alice: Bits, bob: Bits, rng: np.random.Generator) -> bool:
    """Compare by a universal hash, whose bits are counted as told."""
    diagonal = _random(rng, len(alice) + EPS_COR_BITS - 1)
    return bool(np.array_equal(toeplitz(alice, diagonal, EPS_COR_BITS), toeplitz(bob, diagonal, EPS_COR_BITS)))


def _random(rng: np.random.Generator, count: int) -> Bits:
    return rng.integers(0, 2, count, dtype=np.uint8)
