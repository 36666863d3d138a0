from __future__ import annotations

import pytest

from tocsin.balancer.placement import MAX_CONSIDERED, Board, Bounds
from tocsin.contracts.analysis import ClassicalKind, ClassicalTask, Operation, PoolStatus
from tocsin.contracts.errors import ExhaustedError, UnavailableError

S = 1_000_000_000
TASK = ClassicalTask(kind=ClassicalKind.RBF_SVM, train=((0.0,), (1.0,)), test=((0.5,),))


def operation(number: int, cost_s: float = 1.0) -> Operation:
    return Operation(operation=number.to_bytes(32), workflow=bytes(16), body=TASK, cost_s=cost_s)


def status(
    pool: str, worker: str = "w", *, slots: int = 1, speed: float = 1.0, recent: tuple[bytes, ...] = ()
) -> PoolStatus:
    return PoolStatus(pool=pool, worker=worker, slots=slots, busy=0, done=0, speed=speed, recent=recent)


def board(*statuses: PoolStatus, **bounds: float) -> Board:
    made = Board(Bounds(**bounds))  # type: ignore[arg-type]  # a number is right for each bound used here
    for one in statuses:
        made.heard(one, now_ns=0)
    return made


def outstanding(made: Board, now_ns: int = 0) -> dict[str, float]:
    return {pool.name: pool.outstanding_s for pool in made.pools(now_ns)}


def test_the_pool_that_completes_first_is_chosen_and_all_are_named() -> None:
    made = board(status("slow", "a", speed=0.5), status("fast", "b", speed=2.0))
    placement = made.place(operation(1), now_ns=0)
    assert placement.pool == "fast"
    assert placement.considered == {"fast": 0.5, "slow": 2.0}
    assert placement.expected_wait_s == 0


def test_what_was_placed_counts_and_moves_the_next_choice() -> None:
    made = board(status("slow", "a", speed=0.5), status("fast", "b", speed=2.0))
    pools = [made.place(operation(n), now_ns=0).pool for n in range(6)]
    # fast: 0.5, 1.0, 1.5, then 2.0, tied with slow's 2.0 (fast is first by name), then slow, then fast
    assert pools == ["fast"] * 4 + ["slow", "fast"]
    assert outstanding(made) == {"fast": 5.0, "slow": 1.0}


def test_ties_go_to_the_first_by_name() -> None:
    made = board(status("b", "1"), status("c", "2"), status("a", "3"))
    assert made.place(operation(1), now_ns=0).pool == "a"


def test_slots_share_the_line_but_not_one_operation() -> None:
    made = board(status("wide", "a", slots=4))
    for number in range(4):
        made.place(operation(number), now_ns=0)
    placement = made.place(operation(9), now_ns=0)
    assert placement.expected_wait_s == 1.0
    assert placement.considered == {"wide": 2.0}


def test_workers_of_a_pool_add_up() -> None:
    made = board(status("p", "a", slots=2, speed=0.5), status("p", "b", slots=1, speed=2.0))
    (pool,) = made.pools(0)
    assert (pool.slots, pool.capacity) == (3, 3.0)


def test_an_operation_that_is_reported_done_counts_no_longer_and_only_once() -> None:
    made = board(status("p"))
    made.place(operation(1, 2.0), now_ns=0)
    made.place(operation(2, 3.0), now_ns=0)
    done = operation(1).operation
    for _ in range(2):
        made.heard(status("p", recent=(done, bytes(32))), now_ns=S)
        assert outstanding(made, S) == {"p": 3.0}


def test_a_pool_that_was_silent_is_gone() -> None:
    made = board(status("gone", "a", speed=100.0), silent_after_s=3)
    made.heard(status("here", "b"), now_ns=2 * S)
    assert made.place(operation(1), now_ns=3 * S).pool == "here"
    with pytest.raises(UnavailableError) as caught:
        made.place(operation(2), now_ns=5 * S)
    assert caught.value.reason == "no_pool"


def test_no_worker_at_all_is_said_with_what_to_do() -> None:
    with pytest.raises(UnavailableError) as caught:
        board().place(operation(1), now_ns=0)
    assert caught.value.reason == "no_pool"
    assert "worker" in (caught.value.advice() or "")


def test_the_same_operation_is_placed_once() -> None:
    made = board(status("a", "1"), status("b", "2"))
    first = made.place(operation(1), now_ns=0)
    assert made.place(operation(1), now_ns=S) == first
    assert sum(outstanding(made).values()) == 1.0
    # Even when everyone is gone: what was promised stands.
    assert made.place(operation(1), now_ns=100 * S) == first


def test_placements_are_forgotten_oldest_first() -> None:
    made = board(status("p"), max_remembered=2)
    for number in range(3):
        made.place(operation(number), now_ns=0)
    assert made.placed(operation(0).operation) is None
    assert made.placed(operation(2).operation) is not None
    made.place(operation(0), now_ns=0)
    assert outstanding(made) == {"p": 3.0}


def test_a_withdrawn_placement_counts_for_nothing() -> None:
    made = board(status("p"))
    made.place(operation(1), now_ns=0)
    made.withdraw(operation(1).operation)
    made.withdraw(operation(7).operation)
    assert outstanding(made) == {"p": 0.0}
    assert made.placed(operation(1).operation) is None


def test_an_operation_of_which_nothing_is_heard_counts_for_a_while_only() -> None:
    made = board(status("p"), outstanding_s=60, silent_after_s=300)
    made.place(operation(1), now_ns=0)
    made.place(operation(2), now_ns=30 * S)
    assert outstanding(made, 60 * S) == {"p": 2.0}
    assert outstanding(made, 61 * S) == {"p": 1.0}


def test_a_full_pool_gets_nothing_and_all_full_is_said() -> None:
    made = board(status("a", "1"), status("b", "2"), max_outstanding=1)
    assert {made.place(operation(n), now_ns=0).pool for n in range(2)} == {"a", "b"}
    with pytest.raises(ExhaustedError) as caught:
        made.place(operation(3), now_ns=0)
    assert caught.value.reason == "pools_full"


def test_workers_beyond_the_bound_are_refused_until_one_has_gone() -> None:
    made = board(status("p", "a"), max_workers=1)
    with pytest.raises(ExhaustedError) as caught:
        made.heard(status("p", "b"), now_ns=S)
    assert caught.value.reason == "too_many_workers"
    made.heard(status("p", "a"), now_ns=S)
    made.heard(status("p", "b"), now_ns=5 * S)
    assert made.pools(5 * S)[0].slots == 1


def test_a_placement_names_the_best_of_very_many_pools() -> None:
    count = MAX_CONSIDERED + 36
    made = board(*(status(f"p{n:03}", f"w{n}", speed=1 + n) for n in range(count)))
    placement = made.place(operation(1), now_ns=0)
    assert placement.pool == f"p{count - 1:03}"
    assert list(placement.considered) == [f"p{n:03}" for n in range(count - 1, count - 1 - MAX_CONSIDERED, -1)]
