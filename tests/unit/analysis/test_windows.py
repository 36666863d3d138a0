from __future__ import annotations

import pytest
from unit.analysis.traffic import flow, window

from tocsin.analysis.hosts import is_ambient, is_internal
from tocsin.analysis.windows import Bounds, FlowWindows, attempt_times, densest, features_of, regularity
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Flow, FlowState


def starts(windows: FlowWindows) -> list[tuple[str, float, int]]:
    return [(closed.host, closed.start_s, len(closed.items)) for closed in windows.flush()]


def test_windows_are_aligned_on_a_hosts_first_flow_and_take_late_ones() -> None:
    windows = FlowWindows(window_s=10)
    for at_s in (7.0, 16.9, 17.0, 30.0, 6.9, 8.0):
        assert windows.add(flow(at_s)) == []
    assert sorted(starts(windows)) == [
        ("10.0.0.5", -3.0, 1),
        ("10.0.0.5", 7.0, 3),
        ("10.0.0.5", 17.0, 1),
        ("10.0.0.5", 27.0, 1),
    ]


def test_each_source_has_its_own_windows() -> None:
    windows = FlowWindows(window_s=10)
    windows.add(flow(5, source="127.0.0.2"))
    windows.add(flow(9, source="127.0.0.3"))
    assert starts(windows) == [("127.0.0.2", 5.0, 1), ("127.0.0.3", 9.0, 1)]


def test_advance_closes_what_has_ended_and_no_more() -> None:
    windows = FlowWindows(window_s=10)
    windows.add(flow(0))
    windows.add(flow(10))
    assert [closed.start_s for closed in windows.advance(19.9)] == [0.0]
    assert windows.advance(19.9) == []
    assert [closed.start_s for closed in windows.advance(20.0)] == [10.0]
    assert windows.flush() == []


def test_a_flow_after_its_window_closed_is_judged_by_itself() -> None:
    windows = FlowWindows(window_s=10)
    windows.add(flow(0))
    windows.flush()
    windows.add(flow(1))
    assert starts(windows) == [("10.0.0.5", 1.0, 1)]


def test_a_full_window_counts_and_does_not_keep() -> None:
    windows = FlowWindows(bounds=Bounds(items_per_window=3))
    for i in range(5):
        windows.add(flow(i))
    (closed,) = windows.flush()
    assert (len(closed.items), closed.not_kept) == (3, 2)
    assert features_of(closed).connections == 5


@pytest.mark.parametrize("bounds", [Bounds(windows=2), Bounds(items=2)])
def test_beyond_a_bound_the_window_untouched_for_longest_is_closed_not_lost(bounds: Bounds) -> None:
    windows = FlowWindows(bounds=bounds)
    windows.add(flow(0, source="10.0.0.1"))
    windows.add(flow(0, source="10.0.0.2"))
    closed = windows.add(flow(0, source="10.0.0.3"))
    assert [window.host for window in closed] == ["10.0.0.1"]
    assert [host for host, _, _ in starts(windows)] == ["10.0.0.2", "10.0.0.3"]


def test_window_length_is_bounded() -> None:
    for bad in (0.0, -1.0, 86401.0, float("nan")):
        with pytest.raises(InvalidInputError):
            FlowWindows(window_s=bad)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([], 0.0),
        ([0, 1, 2], 0.0),
        ([0, 1, 2, 3], 1.0),
        ([5, 5, 5, 5], 0.0),
        # Intervals 1, 3, 1, 3: mean 2, deviation 1, CV 0.5.
        ([0, 1, 4, 5, 8], 1 / 1.5),
    ],
)
def test_regularity(times: list[float], expected: float) -> None:
    assert regularity(times) == pytest.approx(expected)


def test_retries_of_one_five_tuple_are_one_attempt() -> None:
    flows = [flow(0, source_port=5), flow(0.5, source_port=5), flow(2, source_port=6), flow(9, source_port=5)]
    assert attempt_times(flows) == [0, 2, 9]


def test_flows_without_ports_are_no_retries() -> None:
    assert attempt_times([flow(0), flow(0.5)]) == [0, 0.5]


def test_features_of_a_window() -> None:
    flows = [flow(i * 10.0, sent=10, received=1) for i in range(4)]
    flows += [flow(5, peer="10.0.0.8", port=22, state=FlowState.REJECTED)]
    features = features_of(window(flows))
    assert (features.connections, features.distinct_ports, features.distinct_peers) == (5, 2, 2)
    assert features.rejected_share == pytest.approx(0.2)
    assert features.port_concentration == pytest.approx(0.8)
    assert features.interval_regularity == pytest.approx(1.0)
    assert (features.bytes_sent, features.bytes_received) == (140, 104)
    assert features.vector[:3] == (5.0, 2.0, 2.0)


def test_an_empty_window_has_no_features() -> None:
    empty = window([flow()])
    empty.items.clear()
    with pytest.raises(InvalidInputError):
        features_of(empty)


def test_densest_part_of_a_long_window() -> None:
    flows = [flow(0), *(flow(700 + i) for i in range(5)), flow(3000)]
    part = densest(window(flows, 3600))
    assert (part.start_s, part.window_s, len(part.items)) == (600, 300, 5)


@pytest.mark.parametrize(
    ("item", "ambient"),
    [
        (flow(peer="ff02::1:3", protocol="udp", port=5355), True),
        (flow(peer="224.0.0.251", protocol="udp", port=5353), True),
        (flow(peer="255.255.255.255", protocol="udp", port=67), True),
        (flow(peer="10.0.2.255", protocol="udp", port=138), True),
        (flow(peer="10.0.2.2", protocol="udp", port=67), True),
        (flow(peer="10.0.2.2", protocol="udp", port=51000, source_port=1900), True),
        (flow(peer="10.0.2.255", protocol="tcp", port=80), False),
        (flow(peer="8.8.8.255", protocol="udp", port=53), False),
        (flow(source="203.0.113.5", peer="10.0.2.2", protocol="udp", port=1900), False),
        (flow(peer="10.0.2.2", protocol="udp", port=161), False),
    ],
)
def test_ambient_chatter(item: Flow, ambient: bool) -> None:
    assert is_ambient(item) is ambient
    windows = FlowWindows()
    windows.add(item)
    assert windows.ambient == ambient
    assert len(windows.flush()) == (not ambient)


@pytest.mark.parametrize(
    ("address", "internal"),
    [
        ("10.1.2.3", True),
        ("172.31.0.1", True),
        ("172.32.0.1", False),
        ("192.168.0.5", True),
        ("169.254.1.1", True),
        ("127.0.0.7", True),
        ("::1", True),
        ("fe80::1", True),
        ("fd00::1", True),
        ("2001:db8::1", False),
        ("203.0.113.9", False),
        ("8.8.8.8", False),
    ],
)
def test_internal(address: str, internal: bool) -> None:
    assert is_internal(address) is internal


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        is_internal("::g")
