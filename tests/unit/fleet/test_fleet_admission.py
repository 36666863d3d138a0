"""Bindings of ids to keys: what the integration tests cannot reach quickly."""

from __future__ import annotations

import pytest

from tocsin.contracts.errors import ConflictError, ExhaustedError
from tocsin.contracts.fleet import Enrolment
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.fleet import admission
from tocsin.fleet.admission import MAX_TOKENS_PER_ID, bind_all

HOST = SpiffeId.host("d", "h1")
HUNTER = SpiffeId.agent("d", Role.HUNTER, "x")
KEY, OTHER = b"k" * 32, b"o" * 32


def enrolment(
    spiffe_id: SpiffeId = HUNTER, *, under: str = "t1", generation: int = 1, used: tuple[str, ...] = ()
) -> Enrolment:
    return Enrolment(
        id=str(spiffe_id),
        token_id=under,
        used_before=used,
        key_id=KEY,
        generation=generation,
        enrolled_ns=5,
    )


def bind(
    spiffe_id: SpiffeId, held: Enrolment | None, token_id: str, key_id: bytes, *, now_ns: int
) -> Enrolment:
    return admission.bind(spiffe_id, held, token_id=token_id, key_id=key_id, now_ns=now_ns)


def test_the_first_key_of_an_id_is_generation_one() -> None:
    assert bind(HUNTER, None, "t1", KEY, now_ns=5) == enrolment()


def test_the_same_request_again_changes_nothing() -> None:
    held = enrolment()
    assert bind(HUNTER, held, "t1", KEY, now_ns=9) is held


@pytest.mark.parametrize("held", [enrolment(), enrolment(under="t2", used=("t1",))])
def test_a_spent_token_never_binds_another_key(held: Enrolment) -> None:
    with pytest.raises(ConflictError) as caught:
        bind(HUNTER, held, "t1", OTHER, now_ns=9)
    assert caught.value.reason == "token_used"


def test_a_spent_token_does_not_bring_an_older_key_back() -> None:
    """The key was replaced under t2: whoever still has it and t1 stays out."""
    held = enrolment(under="t2", used=("t1",)).model_copy(update={"key_id": OTHER})
    with pytest.raises(ConflictError):
        bind(HUNTER, held, "t1", KEY, now_ns=9)


def test_a_name_keeps_its_role() -> None:
    guardian = SpiffeId.agent("d", Role.GUARDIAN, "x")
    with pytest.raises(ConflictError) as caught:
        bind(guardian, enrolment(), "t2", OTHER, now_ns=9)
    assert caught.value.reason == "name_taken"


def test_the_history_of_an_id_is_bounded() -> None:
    held = enrolment(under="t", used=tuple(f"t{n}" for n in range(MAX_TOKENS_PER_ID)))
    with pytest.raises(ExhaustedError):
        bind(HUNTER, held, "fresh", OTHER, now_ns=9)


def test_one_certificate_has_one_generation_above_that_of_each_id() -> None:
    held = {HOST: enrolment(HOST, generation=7), HUNTER: None}
    bound = bind_all([HOST, HUNTER], held, token_id=enrolment(under="t2").token_id, key_id=OTHER, now_ns=9)
    assert {one.generation for one in bound.values()} == {8}
