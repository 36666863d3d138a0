"""Group connections by originating host in tumbling windows, and compute a window's features.

A host's windows are aligned on its first connection that is seen, so that what a host begins with is not cut
in two by a boundary of the clock; a window is ``[start, start + window_s)``. Logs are written when a
connection *ends*, so starts arrive out of order: a window stays open until it is flushed, until
:meth:`Windows.advance` passes its end, or until a bound is reached. A connection that comes after its window
was closed opens it again, and that part is judged by itself.

Bounds (:class:`Bounds`): when there are too many windows or too many items, the window that was not touched
for longest is closed, which means judged and not lost; when one window is full, further items are counted
(``connections``) and not kept, so distinct ports, peers and bytes are then of those kept. Who sends from many
forged sources can thereby close other hosts' windows early and weaken what their windows show.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import floor
from statistics import fmean, pstdev
from typing import Annotated, Generic, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from tocsin.analysis.hosts import is_ambient
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import Flow, FlowState, WindowFeatures

WINDOW_S = 300.0
"""Five minutes, the interval of Zeek's scan detection (policy/misc/scan.zeek, addr_scan_interval)."""

RETRY_S = 3.0
"""Connections with one five-tuple this close together are one attempt and its retries: a client whose SYN is
refused or lost sends it again from the same port, after 0.5 s on Windows and 1 s elsewhere (RFC 6298 section
2.1), and a log has a record of each."""

FAILED = frozenset({FlowState.REJECTED, FlowState.UNANSWERED, FlowState.RESET})

T = TypeVar("T")

_Finite = Annotated[float, Field(ge=-1e12, le=1e12)]
_Index = Annotated[int, Field(ge=-(2**53), le=2**53)]
_ROWS = TypeAdapter(list[tuple[str, _Finite, _Index, Annotated[int, Field(ge=0)], list[object]]])


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the windows may hold; 50,000 flows are about 60 MB."""

    windows: int = 4096
    items: int = 50_000
    items_per_window: int = 2048


@dataclass(slots=True)
class Window(Generic[T]):
    """The items of one host in one window."""

    host: str
    start_s: float
    window_s: float
    items: list[T] = field(default_factory=list)
    not_kept: int = 0
    """Items beyond the bound, counted only."""


@dataclass(slots=True)
class _Host(Generic[T]):
    origin_s: float
    open: dict[int, Window[T]] = field(default_factory=dict)


class Windows(Generic[T]):
    """Windows over items of any kind; ``place`` tells an item's host and time in seconds."""

    def __init__(
        self,
        place: Callable[[T], tuple[str, float]],
        *,
        window_s: float = WINDOW_S,
        bounds: Bounds | None = None,
    ) -> None:
        if not 0 < window_s <= 86400:
            raise InvalidInputError(f"window of {window_s} s, must be in (0, 86400]", reason="bad_window")
        self._place = place
        self._window_s = window_s
        self._bounds = bounds or Bounds()
        self._hosts: dict[str, _Host[T]] = {}
        self._touched: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._items = 0

    def add(self, item: T) -> list[Window[T]]:
        """Take one item; return the windows that had to be closed to make room."""
        name, at_s = self._place(item)
        host = self._hosts.setdefault(name, _Host(at_s))
        index = floor((at_s - host.origin_s) / self._window_s)
        window = host.open.get(index)
        if window is None:
            window = Window(name, host.origin_s + index * self._window_s, self._window_s)
            host.open[index] = window
        self._touched[name, index] = None
        self._touched.move_to_end((name, index))
        if len(window.items) < self._bounds.items_per_window:
            window.items.append(item)
            self._items += 1
        else:
            window.not_kept += 1
        return list(self._make_room())

    def _make_room(self) -> Iterator[Window[T]]:
        while len(self._touched) > self._bounds.windows or self._items > self._bounds.items:
            yield self._close(next(iter(self._touched)))

    def advance(self, now_s: float) -> list[Window[T]]:
        """Close the windows that ended at or before ``now_s``."""
        ended = [
            (name, index)
            for name, index in self._touched
            if self._hosts[name].origin_s + (index + 1) * self._window_s <= now_s
        ]
        return [self._close(key) for key in ended]

    def flush(self) -> list[Window[T]]:
        """Close every window, the one that was not touched for longest first."""
        return [self._close(key) for key in list(self._touched)]

    def open_windows(self) -> list[Window[T]]:
        """Return the windows that are open, without closing them."""
        return [self._hosts[name].open[index] for name, index in self._touched]

    def items_of(self, name: str, from_s: float, until_s: float) -> list[T]:
        """Return the kept items of one host whose time is in ``[from_s, until_s)``."""
        host = self._hosts.get(name)
        windows = host.open.values() if host else ()
        return [item for window in windows for item in window.items if from_s <= self._place(item)[1] < until_s]

    def dump(self, pack: Callable[[T], object]) -> list[object]:
        """Return the open windows as JSON has it, the one that was not touched for longest first."""
        dumped: list[object] = []
        for name, index in self._touched:
            host = self._hosts[name]
            window = host.open[index]
            items = [pack(item) for item in window.items]
            dumped.append([name, host.origin_s, index, window.not_kept, items])
        return dumped

    def load(self, dumped: object, unpack: Callable[[object], T]) -> None:
        """Go on with windows that were dumped, in place of those that are open.

        Raises:
            InvalidInputError: ``bad_state``.
        """
        self._hosts, self._touched, self._items = {}, OrderedDict(), 0
        try:
            for name, origin_s, index, not_kept, items in _ROWS.validate_python(dumped):
                window: Window[T] = Window(name, origin_s + index * self._window_s, self._window_s)
                window.items = [unpack(item) for item in items]
                window.not_kept = not_kept
                self._hosts.setdefault(name, _Host(origin_s)).open[index] = window
                self._touched[name, index] = None
                self._items += len(window.items)
        except ValidationError as error:
            raise InvalidInputError(f"no windows: {error.error_count()} errors", reason="bad_state") from error

    def _close(self, key: tuple[str, int]) -> Window[T]:
        name, index = key
        del self._touched[key]
        host = self._hosts[name]
        window = host.open.pop(index)
        self._items -= len(window.items)
        if not host.open:
            del self._hosts[name]
        return window


class FlowWindows(Windows[Flow]):
    """Windows of connections by their source; ambient chatter is left out and counted."""

    def __init__(self, *, window_s: float = WINDOW_S, bounds: Bounds | None = None) -> None:
        super().__init__(lambda flow: (flow.source, flow.at_s), window_s=window_s, bounds=bounds)
        self.ambient = 0

    def add(self, item: Flow) -> list[Window[Flow]]:
        """Take one connection; return the windows that had to be closed to make room."""
        if is_ambient(item):
            self.ambient += 1
            return []
        return super().add(item)


def densest(window: Window[Flow], window_s: float = WINDOW_S) -> Window[Flow]:
    """Return the busiest part of a long window, so that its features compare with those of short ones.

    The parts are tumbling and aligned on the long window's start; the earliest wins a tie.
    """
    parts: dict[int, list[Flow]] = {}
    for flow in window.items:
        parts.setdefault(floor((flow.at_s - window.start_s) / window_s), []).append(flow)
    index = max(parts, key=lambda part: (len(parts[part]), -part))
    return Window(window.host, window.start_s + index * window_s, window_s, parts[index])


def attempt_times(flows: Iterable[Flow]) -> list[float]:
    """Return the sorted start times of the attempts among flows to one peer and port; retries count once."""
    times: list[float] = []
    last: dict[int, float] = {}
    for flow in sorted(flows, key=lambda flow: flow.at_s):
        retried = flow.source_port in last and flow.at_s - last[flow.source_port] <= RETRY_S
        if flow.source_port:
            last[flow.source_port] = flow.at_s
        if not retried:
            times.append(flow.at_s)
    return times


def regularity(times: Sequence[float]) -> float:
    """Return 1 / (1 + CV) of the intervals between sorted times; 0 with fewer than four or all at once."""
    if len(times) < 4:
        return 0.0
    intervals = [later - earlier for earlier, later in pairwise(times)]
    mean = fmean(intervals)
    return 1 / (1 + pstdev(intervals) / mean) if mean > 0 else 0.0


def features_of(window: Window[Flow]) -> WindowFeatures:
    """Compute the features of a window; it must hold at least one flow. O(n log n)."""
    flows = window.items
    if not flows:
        raise InvalidInputError(f"window of {window.host} has no flows", reason="empty_window")
    pairs = Counter((flow.destination, flow.destination_port) for flow in flows)
    # The address and port break ties, so that the order of arrival decides nothing.
    busiest = max(pairs, key=lambda pair: (pairs[pair], pair))
    to_busiest = [flow for flow in flows if (flow.destination, flow.destination_port) == busiest]
    return WindowFeatures(
        host=window.host,
        window_start_s=window.start_s,
        window_s=window.window_s,
        connections=len(flows) + window.not_kept,
        distinct_ports=len({flow.destination_port for flow in flows}),
        distinct_peers=len({flow.destination for flow in flows}),
        rejected_share=sum(flow.state in FAILED for flow in flows) / len(flows),
        interval_regularity=regularity(attempt_times(to_busiest)),
        port_concentration=pairs[busiest] / len(flows),
        bytes_sent=sum(flow.bytes_sent for flow in flows),
        bytes_received=sum(flow.bytes_received for flow in flows),
    )
