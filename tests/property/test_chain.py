"""Chains of epochs: any bytes end in a value or in one of our errors, and no change escapes the rule."""

from __future__ import annotations

from functools import cache

import msgpack
import pytest
from chains import Line
from council import Council
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tocsin.contracts.decisions import EpochChange, Participant, Removal, RemovalCause
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.fleet import AgentState
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import Algorithm, BatchVerifier
from tocsin.evidence.bundle import Bundle
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.succession import DAY_NS, SHARE_PERCENT, UNPROVEN, next_epoch, unpack_epoch
from tocsin.evidence.verification import verify
from tocsin.fleet.membership import Member, wished_change

HOUR_NS = DAY_NS // 24
DOMAIN = "council.tocsin"


@cache
def made() -> tuple[Line, bytes, BatchVerifier]:
    """Return a line of two decided epochs, a bundle of it, and a memory in which its signatures are verified."""
    line = Line(Council(agents=4))
    for _ in range(2):
        line.go_on()
    data, batches = line.bundle().encode(), BatchVerifier()
    verify(data, line.council.root.certificate_pem, backend=line.council.backend, batches=batches)
    return line, data, batches


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 7))
def test_a_flipped_bit_in_a_bundle_is_refused(place: int, bit: int) -> None:
    line, data, batches = made()
    flipped = bytearray(data)
    flipped[place % len(data)] ^= 1 << bit
    with pytest.raises(TocsinError):
        verify(
            bytes(flipped),
            line.council.root.certificate_pem,
            backend=line.council.backend,
            batches=batches,
        )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2), max_size=4))
def test_links_in_any_other_order_or_number_are_refused(order: list[int]) -> None:
    line, data, batches = made()
    true = Bundle.decode(data)
    parts = (*true.links, true.certificate)
    forged = Bundle(true.certificate, tuple(parts[i] for i in order)).encode()
    try:
        verify(forged, line.council.root.certificate_pem, backend=line.council.backend, batches=batches)
    except TocsinError:
        return
    assert order == [0, 1]


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.binary(), st.text()),
            lambda inner: st.lists(inner, max_size=5),
            max_leaves=20,
        ).map(msgpack.packb),
        st.tuples(
            st.just("tocsin-bundle"), st.integers(0, 3), st.binary(), st.lists(st.binary(), max_size=3)
        ).map(msgpack.packb),
    )
)
@example(b"\x94\x00\x00\x00\x90")
def test_other_bytes_are_no_bundle_and_no_epoch_that_was_kept(data: bytes) -> None:
    line, _, _ = made()
    for act in (
        lambda: verify(data, line.council.root.certificate_pem, backend=line.council.backend),
        lambda: unpack_epoch(data, line.council.trust),
    ):
        with pytest.raises(TocsinError):
            act()


# --- The rule -----------------------------------------------------------------------------------


def agent(number: int) -> SpiffeId:
    return SpiffeId.agent(DOMAIN, Role.SENTINEL, f"x-{number:03}")


def key(number: int, generation: int = 0) -> bytes:
    return bytes([generation]) + number.to_bytes(31, "big")


@cache
def council_of_60() -> InstalledEpoch:
    return Council(agents=60, per_host=10).epoch


Steps = list[tuple[int, int, set[int], RemovalCause]]
STEPS = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.integers(0, 6),
        st.sets(st.integers(0, 59), max_size=6),
        st.sampled_from([RemovalCause.ABSENT, RemovalCause.QUARANTINED, RemovalCause.REVOKED]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_no_line_of_changes_removes_more_than_the_share_of_any_day(steps: Steps) -> None:
    """Against a count of its own: over every day that ends with a removal, and the fewest seats of that day."""
    epoch, newcomers = council_of_60(), 0
    history = [(epoch.epoch.created_ns, len(epoch.seats), 0)]
    for hours, joining, leaving, cause in steps:
        seats = sorted(epoch.seats)
        gone = sorted({seats[i % len(seats)] for i in leaving})
        change = EpochChange(
            number=epoch.epoch.number + 1,
            created_ns=epoch.epoch.created_ns + hours * HOUR_NS,
            joined=tuple(
                Participant(sender=str(agent(i)), key_id=key(i), algorithm=1)
                for i in range(newcomers, newcomers + joining)
            ),
            removed=tuple(Removal(sender=sender, cause=cause) for sender in gone),
        )
        try:
            after = next_epoch(epoch, change, bytes(32), made()[0].council.backend)
        except TocsinError:
            continue
        newcomers += joining
        epoch = after
        assert epoch.epoch.quorum == epoch.quorum.needed
        assert set(epoch.instances) == set(council_of_60().instances)
        unproven = len(gone) if cause in UNPROVEN else 0
        history.append((epoch.epoch.created_ns, len(epoch.seats), unproven))
        if not unproven:
            continue
        begins_ns = epoch.epoch.created_ns - DAY_NS
        inside = [i for i, (at_ns, _, _) in enumerate(history) if at_ns > begins_ns]
        least = min(seats for _, seats, _ in history[max(0, inside[0] - 1) : -1])
        removed = sum(count for at_ns, _, count in history if at_ns > begins_ns)
        assert removed * 100 <= least * SHARE_PERCENT


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, 80),
        st.tuples(st.sampled_from(AgentState), st.integers(0, 1), st.integers(0, 100), st.booleans()),
        max_size=70,
    ),
    st.sets(st.integers(0, 59), max_size=3),
    st.integers(0, 48),
)
def test_what_fleet_wishes_for_keeps_the_rule(
    known: dict[int, tuple[AgentState, int, int, bool]], revoked: set[int], hours: int
) -> None:
    epoch = council_of_60()
    seats = sorted(epoch.seats.values(), key=lambda seat: seat.sender)
    members = []
    for number, (state, generation, absent_s, certified) in known.items():
        seat = seats[number] if number < len(seats) else None
        sitting = seat is not None and generation == 0
        members.append(
            Member(
                SpiffeId.parse(seat.sender) if seat else agent(number),
                seat.key_id if seat and sitting else key(number, generation),
                int(Algorithm.ML_DSA_44) if certified else None,
                state,
                absent_s * 1_000_000_000,
            )
        )
    revoked_keys = {seats[i].key_id for i in revoked}
    change = wished_change(
        epoch,
        members,
        is_revoked=revoked_keys.__contains__,
        proofs={},
        now_ns=epoch.epoch.created_ns + hours * HOUR_NS,
        absent_after_ns=50_000_000_000,
    )
    if change is None:
        return
    after = next_epoch(epoch, change, bytes(32), made()[0].council.backend)
    assert not any(seat.key_id in revoked_keys for seat in change.joined)
    by_id = {str(one.id): one for one in members}
    assert all(by_id[seat.sender].state is AgentState.HEALTHY for seat in change.joined)
    assert len(after.seats) == len(epoch.seats) + len(change.joined) - len(change.removed)
