"""Whatever is heard, placed, withdrawn and forgotten: no dead pool is chosen and no sum goes below zero."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.balancer.placement import Board, Bounds
from tocsin.contracts.analysis import ClassicalKind, ClassicalTask, Operation, PoolStatus
from tocsin.contracts.errors import ExhaustedError, UnavailableError

S = 1_000_000_000
SILENT_S = 3.0
TASK = ClassicalTask(kind=ClassicalKind.RBF_SVM, train=((0.0,), (1.0,)), test=((0.5,),))
POOLS = ("a", "b", "c")

numbers = st.integers(0, 12)
costs = st.floats(1e-6, 3600, allow_nan=False)
heard = st.tuples(
    st.just("heard"),
    st.sampled_from(POOLS),
    st.integers(1, 3),
    st.floats(1e-6, 1e6, allow_nan=False),
    st.lists(numbers, max_size=4),
)
acts = st.one_of(
    heard,
    st.tuples(st.just("place"), numbers, costs),
    st.tuples(st.just("withdraw"), numbers),
    st.tuples(st.just("wait"), st.floats(0, 5, allow_nan=False)),
)


def digest(number: int) -> bytes:
    return number.to_bytes(32)


@settings(max_examples=300)
@given(st.lists(acts, max_size=60))
def test_placement_never_picks_a_dead_pool_and_backlog_is_never_negative(
    history: list[tuple[object, ...]],
) -> None:
    bounds = Bounds(
        silent_after_s=SILENT_S, max_workers=4, max_outstanding=5, outstanding_s=8, max_remembered=6
    )
    board, now_ns = Board(bounds), 0
    last_heard: dict[str, int] = {}
    for act in history:
        match act:
            case ("heard", str(pool), int(worker), float(speed), list(recent)):
                status = PoolStatus(
                    pool=pool,
                    worker=f"{pool}{worker}",
                    slots=worker,
                    busy=0,
                    done=0,
                    speed=speed,
                    recent=tuple(map(digest, recent)),
                )
                try:
                    board.heard(status, now_ns=now_ns)
                    last_heard[pool] = now_ns
                except ExhaustedError:
                    pass
            case ("place", int(number), float(cost_s)):
                known = board.placed(digest(number))
                work = Operation(operation=digest(number), workflow=bytes(16), body=TASK, cost_s=cost_s)
                alive = {p for p, at_ns in last_heard.items() if now_ns - at_ns < SILENT_S * S}
                try:
                    placement = board.place(work, now_ns=now_ns)
                except UnavailableError:
                    assert known is None
                    assert not alive
                    continue
                except ExhaustedError:
                    assert known is None
                    continue
                if known is not None:
                    assert placement == known
                else:
                    assert placement.pool in alive
                    assert set(placement.considered) <= alive
                    assert placement.considered[placement.pool] == min(placement.considered.values())
            case ("withdraw", int(number)):
                board.withdraw(digest(number))
            case ("wait", float(seconds)):
                now_ns += round(seconds * S)
        assert all(pool.outstanding_s >= 0 for pool in board.pools(now_ns))
    # When everything is reported done, or too old, exactly nothing is left.
    now_ns += 9 * S
    board.heard(PoolStatus(pool="a", worker="a1", slots=1, busy=0, done=0, speed=1.0, recent=()), now_ns=now_ns)
    assert [pool.outstanding_s for pool in board.pools(now_ns)] == [0.0]


@given(st.permutations([(pool, float(n + 1)) for n, pool in enumerate(POOLS)]))
def test_the_choice_does_not_depend_on_the_order_in_which_pools_were_heard(
    order: list[tuple[str, float]],
) -> None:
    board = Board(Bounds())
    for pool, speed in order:
        board.heard(PoolStatus(pool=pool, worker=pool, slots=1, busy=0, done=0, speed=speed), now_ns=0)
    placed = [
        board.place(Operation(operation=digest(n), workflow=bytes(16), body=TASK, cost_s=1.0), now_ns=0).pool
        for n in range(12)
    ]
    assert placed == ["c", "b", "c", "a", "b", "c", "c", "b", "c", "a", "b", "c"]
