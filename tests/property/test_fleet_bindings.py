"""Whatever the order of requests: generations rise with every new key, and no token serves two keys."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tocsin.contracts.errors import ConflictError
from tocsin.contracts.fleet import Enrolment
from tocsin.contracts.identifiers import SpiffeId
from tocsin.fleet.admission import bind

HOST = SpiffeId.host("d", "h1")
requests = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=40)


@given(requests)
def test_no_token_ever_serves_two_keys_and_generations_rise(asked: list[tuple[int, int]]) -> None:
    held: Enrolment | None = None
    key_of: dict[str, bytes] = {}
    for token, key in asked:
        token_id, key_id = f"t{token}", bytes([key]) * 32
        try:
            bound = bind(HOST, held, token_id=token_id, key_id=key_id, now_ns=1)
        except ConflictError:
            assert token_id in key_of, "a token that was never used was refused"
            continue
        assert key_of.setdefault(token_id, key_id) == key_id
        if held is not None:
            assert bound.generation >= held.generation
            assert bound.key_id == held.key_id or bound.generation == held.generation + 1
        held = bound
