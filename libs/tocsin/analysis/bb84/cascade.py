"""Error correction by Cascade (Brassard and Salvail, EUROCRYPT '93): Bob's bits become Alice's.

Each pass permutes the bits at random and cuts them into blocks, in the first of 0.73/Q bits and in each further one of
twice as many. Where a block's parities differ, an odd number of errors is in it, and bisection finds one. An error
that is corrected makes the blocks odd that hold it in other passes: those are bisected again, smaller ones first.

Every parity that Alice tells is heard by everybody: their number is the *leak*, and is taken off the key by
:mod:`tocsin.analysis.bb84.amplification`. Errors may stay (two in the same block of every pass): the keys are compared
by a hash afterwards.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bits: TypeAlias = NDArray[np.uint8]
"""Zeros and ones, one an element."""

FIRST_BLOCK = 0.73
"""Divided by the error rate: size of a block in the first pass (section 4 of the paper)."""
PASSES = 4
LEAST_RATE = 0.001
"""Error rate that is assumed at least: blocks of the first pass have at most 730 bits."""


class Reconciled(NamedTuple):
    """Outcome of error correction."""

    bits: Bits
    """Bob's, corrected."""
    corrected: int
    leaked: int
    """Parities that were told."""


class _Pass:
    """One permutation and its blocks: Alice's parities as she tells them, Bob's as his bits stand."""

    def __init__(self, order: NDArray[np.int64], size: int) -> None:
        self.order = order
        self.size = size
        self.place = np.empty_like(order)
        self.place[order] = np.arange(len(order))
        self.odd: set[int] = set()
        """Blocks whose parities differ."""

    def block(self, index: int) -> NDArray[np.int64]:
        """Return the places of the bits of a block."""
        return self.order[index * self.size : (index + 1) * self.size]

    def toggle(self, bit: int) -> None:
        """Take note that a bit was changed."""
        self.odd ^= {int(self.place[bit]) // self.size}


def reconcile(alice: Bits, bob: Bits, rate: float, rng: np.random.Generator) -> Reconciled:
    """Correct Bob's bits to Alice's. O(n) for each pass, and some log2(block) steps for each error.

    Args:
        alice: her bits; only their parities are looked at, and counted.
        bob: his bits, as many.
        rate: share of bits that differ, as estimated.
        rng: draws the permutations, which are public.
    """
    mine, passes, leaked, corrected = bob.copy(), list[_Pass](), 0, 0
    size = max(2, round(FIRST_BLOCK / max(rate, LEAST_RATE)))
    for _ in range(PASSES):
        this = _Pass(rng.permutation(len(mine)), min(size, len(mine)))
        passes.append(this)
        size *= 2
        starts = np.arange(0, len(mine), this.size)
        differ = np.bitwise_xor.reduceat((alice ^ mine)[this.order], starts)
        leaked += len(starts)
        this.odd = set(np.flatnonzero(differ).tolist())
        while (at := _smallest_odd(passes)) is not None:
            found, told = _bisect(alice, mine, at.block(min(at.odd)))
            leaked += told
            mine[found] ^= 1
            corrected += 1
            for one in passes:
                one.toggle(found)
    return Reconciled(mine, corrected, leaked)


def _smallest_odd(passes: list[_Pass]) -> _Pass | None:
    return next((one for one in passes if one.odd), None)  # later passes have larger blocks


def _bisect(alice: Bits, bob: Bits, block: NDArray[np.int64]) -> tuple[int, int]:
    """Return the place of an error in a block of odd difference, and how many parities that took."""
    told = 0
    while len(block) > 1:
        half = block[: len(block) // 2]
        told += 1
        differs = np.bitwise_xor.reduce(alice[half]) ^ np.bitwise_xor.reduce(bob[half])
        block = half if differs else block[len(block) // 2 :]
    return int(block[0]), told
