"""What both ends of a BB84 link do with their readings; the readings are drawn here, circuits are run elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.analysis.bb84.amplification import Block, binary_entropy, deviation, secret_length, toeplitz
from tocsin.analysis.bb84.cascade import Bits, reconcile
from tocsin.analysis.bb84.protocol import EavesdropperError, Readings, distill
from tocsin.contracts.errors import ExhaustedError, InvalidInputError


def readings(rng: np.random.Generator, photons: int, errors: float) -> Readings:
    bits, alice, bob = (rng.integers(0, 2, photons, dtype=np.uint8) for _ in range(3))
    noise = (rng.random(photons) < errors).astype(np.uint8)
    other = rng.integers(0, 2, photons, dtype=np.uint8)
    return Readings(bits, alice, np.where(alice == bob, bits ^ noise, other).astype(np.uint8), bob)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3000), st.floats(0, 0.11))
def test_cascade_corrects_and_counts_what_it_tells(seed: int, count: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    alice = rng.integers(0, 2, count, dtype=np.uint8)
    bob = alice ^ (rng.random(count) < rate).astype(np.uint8)
    before = int((alice != bob).sum())
    outcome = reconcile(alice, bob, rate, rng)
    left = int((alice != outcome.bits).sum())
    assert left <= before
    assert left % 2 == 0  # the blocks' parities agree, so what is left is even in each
    assert outcome.leaked >= outcome.corrected
    assert (outcome.corrected - (before - left)) % 2 == 0


def test_cascade_leaks_little_more_than_the_least_possible() -> None:
    rng = np.random.default_rng(1)
    alice = rng.integers(0, 2, 20_000, dtype=np.uint8)
    for rate in (0.01, 0.03, 0.05):
        bob = alice ^ (rng.random(20_000) < rate).astype(np.uint8)
        outcome = reconcile(alice, bob, rate, rng)
        assert np.array_equal(outcome.bits, alice)
        assert outcome.leaked < 1.3 * 20_000 * binary_entropy(rate)


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 100))
def test_the_hash_is_the_toeplitz_product(seed: int, count: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    bits: Bits = rng.integers(0, 2, count, dtype=np.uint8)
    diagonal: Bits = rng.integers(0, 2, count + length - 1, dtype=np.uint8)
    matrix = np.array(
        [[diagonal[i + count - 1 - j] for j in range(count)] for i in range(length)], dtype=np.int64
    )
    assert np.array_equal(toeplitz(bits, diagonal, length), matrix @ bits % 2)


def test_the_secret_shrinks_with_errors_leak_and_small_samples() -> None:
    def length(rate: float, leaked: int = 1000, sampled: int = 8192) -> int:
        return secret_length((Block(8192, sampled, rate), Block(8192, sampled, rate)), leaked)

    assert length(0.0) > length(0.01) > length(0.05) > length(0.5) == 0
    assert length(0.01, leaked=2000) == length(0.01) - 1000
    assert length(0.01, sampled=1024) < length(0.01)
    assert length(0.01, sampled=0) == 0
    assert deviation(8192, 8192, 5e-11) == pytest.approx(0.0772, abs=1e-4)


def test_a_quiet_link_gives_a_key_and_the_figures_add_up() -> None:
    rng = np.random.default_rng(2)
    distilled = distill(readings(rng, 65_536, 0.01), rng)
    figures = distilled.figures
    assert len(distilled.key) * 8 == figures.secret_bits > 6_000
    assert figures.sampled == figures.sifted // 2
    assert 0.005 < sum(figures.error_rates) / 2 < 0.015
    assert distilled.key.hex() not in repr(distilled)


@pytest.mark.parametrize("errors", [0.13, 0.25, 0.5])
def test_too_many_errors_are_an_eavesdropper(errors: float) -> None:
    rng = np.random.default_rng(3)
    with pytest.raises(EavesdropperError) as refused:
        distill(readings(rng, 65_536, errors), rng)
    assert refused.value.reason == "eavesdropper"
    assert max(refused.value.figures.error_rates) == pytest.approx(errors, abs=0.02)


def test_an_eavesdropper_in_one_basis_alone_is_found() -> None:
    rng = np.random.default_rng(4)
    clean = readings(rng, 65_536, 0.0)
    guess = rng.integers(0, 2, 65_536, dtype=np.uint8)
    watched = (clean.alice_bases == 1) & (clean.bob_bases == 1)
    seen = clean._replace(bob_bits=np.where(watched, guess, clean.bob_bits))
    with pytest.raises(EavesdropperError):
        distill(seen, rng)


@pytest.mark.parametrize(
    ("photons", "errors", "reason"),
    [(0, 0.0, "too_few_photons"), (400, 0.0, "too_few_photons"), (65_536, 0.085, "no_secret_left")],
)
def test_what_gives_no_key_says_why(photons: int, errors: float, reason: str) -> None:
    rng = np.random.default_rng(5)
    with pytest.raises(ExhaustedError) as refused:
        distill(readings(rng, photons, errors), rng)
    assert refused.value.reason == reason


def test_readings_of_different_lengths_are_refused() -> None:
    rng = np.random.default_rng(6)
    good = readings(rng, 100, 0.0)
    with pytest.raises(InvalidInputError) as refused:
        distill(good._replace(bob_bits=good.bob_bits[:-1]), rng)
    assert refused.value.reason == "bad_readings"
