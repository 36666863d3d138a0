"""Who should sit in the next epoch, by how the agents are."""

from __future__ import annotations

from functools import cache

import pytest
from council import Council

from tocsin.contracts.decisions import EpochChange, Equivocation, Misconduct, RemovalCause
from tocsin.contracts.fleet import AgentState
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.evidence.epochs import InstalledEpoch
from tocsin.evidence.succession import DAY_NS
from tocsin.fleet.membership import MAX_CHANGE_BYTES, Member, wished_change

S = AgentState
PATIENCE_NS = 600_000_000_000
NEW = SpiffeId.agent("council.tocsin", Role.HUNTER, "h-new")


@cache
def council() -> Council:
    return Council(agents=41, per_host=10)


def epoch() -> InstalledEpoch:
    return council().epoch


def members(**states: tuple[AgentState, int]) -> list[Member]:
    """Return all who sit, healthy but for those named: state and seconds of absence."""
    found = []
    for sender, seat in epoch().seats.items():
        who = SpiffeId.parse(sender)
        state, absent_s = states.get(who.name.replace("-", "_"), (S.HEALTHY, 0))
        found.append(Member(who, seat.key_id, seat.algorithm, state, absent_s * 1_000_000_000))
    return found


def wish(
    agents: list[Member],
    *,
    revoked: tuple[bytes, ...] = (),
    proofs: dict[str, Misconduct] | None = None,
) -> EpochChange | None:
    return wished_change(
        epoch(),
        agents,
        is_revoked=revoked.__contains__,
        proofs=proofs or {},
        now_ns=epoch().epoch.created_ns + DAY_NS,
        absent_after_ns=PATIENCE_NS,
    )


def removed(change: EpochChange | None) -> dict[str, RemovalCause]:
    return {} if change is None else {SpiffeId.parse(one.sender).name: one.cause for one in change.removed}


def test_nothing_is_wished_for_where_the_epoch_is_as_it_should_be() -> None:
    assert wish(members()) is None
    assert wish(members(s_1=(S.SUSPECT, 0), s_2=(S.SILENT, 599), s_3=(S.GONE, 10), s_4=(S.ENROLLED, 0))) is None


@pytest.mark.parametrize(
    ("state", "algorithm", "joins"),
    [
        (S.HEALTHY, 2, True),
        (S.HEALTHY, None, False),
        (S.SUSPECT, 2, False),
        (S.ENROLLED, 2, False),
        (S.QUARANTINED, 2, False),
    ],
    ids=["healthy", "certificate_not_here", "suspect", "not_heard", "quarantined"],
)
def test_who_is_new_joins_if_it_is_healthy(state: AgentState, algorithm: int | None, joins: bool) -> None:
    change = wish([*members(), Member(NEW, bytes(32), algorithm, state, 0)])
    assert [seat.sender for seat in change.joined] == [str(NEW)] if joins and change else change is None


@pytest.mark.parametrize("state", [S.SILENT, S.GONE, S.ENROLLED], ids=str)
def test_who_is_absent_for_long_goes(state: AgentState) -> None:
    assert removed(wish(members(s_1=(state, 600)))) == {"s-1": RemovalCause.ABSENT}


def test_an_agent_that_fleet_does_not_know_is_absent() -> None:
    others = [one for one in members() if one.id.name != "s-1"]
    assert removed(wish(others)) == {"s-1": RemovalCause.ABSENT}


def test_of_41_two_a_day_go_without_proof_and_who_is_quarantined_goes_first() -> None:
    gone = {"s_1": (S.GONE, 900), "s_2": (S.GONE, 900), "s_3": (S.QUARANTINED, 0)}
    assert removed(wish(members(**gone))) == {
        "s-1": RemovalCause.ABSENT,
        "s-3": RemovalCause.QUARANTINED,
    }


def test_a_revoked_key_goes_at_once_with_all_that_it_speaks_for_and_the_new_one_comes() -> None:
    key_id = epoch().seats[str(council().voters[1])].key_id
    speaking = [who for who, seat in epoch().seats.items() if seat.key_id == key_id]
    agents = [
        one if str(one.id) not in speaking else Member(one.id, bytes([1]) * 32, one.algorithm, S.HEALTHY, 0)
        for one in members()
    ]
    change = wish(agents, revoked=(key_id,))
    assert len(speaking) == 10
    assert removed(change) == dict.fromkeys(
        (SpiffeId.parse(who).name for who in speaking), RemovalCause.REVOKED
    )
    assert change is not None
    assert [seat.sender for seat in change.joined] == sorted(speaking)


def test_who_has_renewed_its_key_keeps_its_seat_under_the_new_one() -> None:
    agents = [
        one if one.id.name != "s-7" else Member(one.id, bytes([9]) * 32, one.algorithm, S.HEALTHY, 0)
        for one in members()
    ]
    change = wish(agents)
    assert removed(change) == {"s-7": RemovalCause.RENEWED}
    assert change is not None
    assert [seat.key_id for seat in change.joined] == [bytes([9]) * 32]


def test_two_proofs_of_misconduct_travel_at_once() -> None:
    guilty = [str(who) for who in council().voters[1:4]]
    proofs = {
        who: Misconduct(
            proof=Equivocation(
                epoch=epoch().digest, decision=bytes(32), round=1, accused=who, first=b"1", second=b"2"
            ),
            public_key=b"k",
        )
        for who in guilty
    }
    change = wish(members(), proofs=proofs)
    assert change is not None
    assert [one.cause for one in change.removed] == [RemovalCause.MISCONDUCT] * 2
    assert [one.proof.accused for one in change.misconduct] == [one.sender for one in change.removed]


def test_a_change_has_room_in_a_proposal_whatever_the_names() -> None:
    crowd = [
        Member(
            SpiffeId.agent("council.tocsin", Role.SPECIALIST, f"{'x' * 58}-{i:04}"),
            i.to_bytes(32, "big"),
            2,
            S.HEALTHY,
            0,
        )
        for i in range(1, 2_000)
    ]
    change = wish([*members(), *crowd])
    assert change is not None
    assert 100 < len(change.joined) <= 256
    assert len(change.model_dump_json()) < 2 * MAX_CHANGE_BYTES
