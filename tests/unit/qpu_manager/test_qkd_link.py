"""The simulated link, on Aer."""

from __future__ import annotations

import numpy as np
import pytest

from tocsin.contracts.errors import InvalidInputError
from tocsin.qpu_manager.qkd.link import SimulatedLink


def sifted_errors(link: SimulatedLink) -> tuple[float, float]:
    sent = link.send()
    alike = sent.alice_bases == sent.bob_bases
    wrong = sent.alice_bits != sent.bob_bits
    return tuple(float(wrong[alike & (sent.alice_bases == basis)].mean()) for basis in (0, 1))  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        (SimulatedLink(errors=0.0), 0.0),
        (SimulatedLink(errors=0.05), 0.05),
        (SimulatedLink(errors=0.0, eavesdropper=True), 0.25),
    ],
)
def test_the_errors_are_those_of_the_theory(link: SimulatedLink, expected: float) -> None:
    for rate in sifted_errors(link):
        assert rate == pytest.approx(expected, abs=0.02)  # 16,384 bits: five deviations at one quarter


def test_in_the_other_basis_nothing_is_learned() -> None:
    sent = SimulatedLink(errors=0.0).send()
    other = sent.alice_bases != sent.bob_bases
    assert float((sent.alice_bits[other] == sent.bob_bits[other]).mean()) == pytest.approx(0.5, abs=0.02)


def test_the_same_entropy_gives_the_same_key() -> None:
    def keys() -> bytes:
        rng = np.random.default_rng(7)
        return SimulatedLink(photons=1 << 15, errors=0.0, entropy=rng.bytes).run().key

    assert keys() == keys()


@pytest.mark.parametrize("wrong", [{"errors": 0.6}, {"errors": -0.1}, {"photons": 0}, {"photons": 1 << 21}])
def test_no_such_link(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        SimulatedLink(**wrong)  # type: ignore[arg-type]
    assert refused.value.reason == "bad_link"
