"""What a host has accepted of emergencies: the journal's frames, and the state that they add up to.

    frame   = length (4) || SHA-256(payload)[:8] || payload
    payload = msgpack [1, leaf, envelope, channel, taken_ns, [agent ...]]    accepted, for these agents
            | msgpack [2, leaf, [agent ...]]                                 these have handled it
            | msgpack [3, leaf, channel, taken_ns, [agent ...]]              all have: these, or whoever was due
            | msgpack [4, leaf]                                              not all who were due have it yet

Pure: no file and no clock. Applying a frame twice changes nothing, and the order of two agents' marks does not
matter. What all have handled keeps no envelope; and no names either, once no receipt will be asked for again:
its leaf alone tells a copy that comes again, unless some agent still waits for a copy.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import msgpack

from tocsin.bus.envelope import unpack
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.fleet import MAX_AGENTS_PER_HOST
from tocsin.contracts.routing import MAX_DEADLINE_S, Receipt

ACCEPTED = 1
HANDLED = 2
DONE = 3
PARTIAL = 4
HEAD_BYTES = 12
MAX_PAYLOAD = 256 * 1024
"""Longest payload: an alert of 64 KiB for 1,024 agents of the longest names."""
LEAF_BYTES = 32
CHANNELS = ("core", "stream")
KEPT_NS = 2 * 3_600 * 1_000_000_000
"""How long a leaf is remembered: twice as long as an alert is good for."""
CONFIRM_AGAIN_NS = int(2 * MAX_DEADLINE_S) * 1_000_000_000
"""After a restart, receipts of so long ago are sent once more: who was killed may not have sent them."""
MAX_SHARED = 64
"""Sets of agents that the acceptances which are done share: most are for all of the host's agents."""
MAX_KEPT = 65_536
"""Acceptances that all have handled and that are remembered; beyond, the oldest are forgotten."""


@dataclass(slots=True)
class Acceptance:
    """One emergency that this host has accepted."""

    leaf: bytes
    data: bytes
    """The envelope; empty once all have handled it."""
    channel: str
    taken_ns: int
    agents: dict[str, None] = field(default_factory=dict)
    """For whom, in order; nobody in particular, once it is done and old. Never changed: acceptances share it."""
    waiting: dict[str, None] = field(default_factory=dict)
    """Who has not handled it."""
    partial: bool = False
    """Whether some agent had no room for it and waits for another copy."""

    def receipt(self) -> Receipt:
        """Return what the routers are told."""
        return Receipt(leaf=self.leaf, agents=tuple(self.agents), channel=self.channel, taken_ns=self.taken_ns)


Snapshot = list[tuple[bytes, bytes, str, int, dict[str, None], tuple[str, ...], bool]]
"""Of each acceptance: leaf, envelope, channel, time, its agents, those of them who wait, whether it is partial."""


class Accepted:
    """All that a host has accepted, in order."""

    def __init__(self) -> None:
        self._all: OrderedDict[bytes, Acceptance] = OrderedDict()
        self._shared: dict[tuple[str, ...], dict[str, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Acceptance]:
        return iter(self._all.values())

    def has(self, leaf: bytes, agent: str) -> bool:
        """Tell whether it was accepted for an agent."""
        found = self._all.get(leaf)
        return found is not None and (agent in found.agents or not found.agents)

    def accept(self, leaf: bytes, data: bytes, channel: str, taken_ns: int, agents: Iterable[str]) -> bytes:
        """Accept an emergency for agents; return its frame."""
        fresh = self._accept(leaf, data, channel, taken_ns, agents)
        return _frame((ACCEPTED, leaf, data, channel, taken_ns, fresh))

    def handled(self, leaf: bytes, agents: Iterable[str]) -> bytes:
        """Note that agents have handled it; return the frame."""
        names = list(agents)
        self._handle(leaf, names)
        return _frame((HANDLED, leaf, names))

    def missed(self, leaf: bytes) -> bytes:
        """Note that some agent had no room for it; return the frame."""
        self._miss(leaf)
        return _frame((PARTIAL, leaf))

    def load(self, data: bytes) -> int:
        """Apply a journal's frames as far as they hold; return where that ends."""
        end = 0
        for payload, after in _payloads(data):
            try:
                self._apply(unpack(payload, max_array=MAX_AGENTS_PER_HOST))
            except InvalidInputError:
                break
            end = after
        return end

    def forget(self, *, now_ns: int) -> None:
        """Drop what all have handled and that cannot come again, and the names of what is not so old."""
        done = [one for one in self if not one.waiting]
        beyond = len(done) - MAX_KEPT
        for number, one in enumerate(done):
            if number < beyond or one.taken_ns < now_ns - KEPT_NS:
                del self._all[one.leaf]
            elif one.taken_ns < now_ns - CONFIRM_AGAIN_NS and not one.partial:
                one.agents = {}
        self._shared.clear()

    def snapshot(self) -> Snapshot:
        """Return the present state, for :func:`frames_of` in another thread."""
        return [
            (one.leaf, one.data, one.channel, one.taken_ns, one.agents, tuple(one.waiting), one.partial)
            for one in self
        ]

    def _accept(
        self, leaf: bytes, data: bytes, channel: str, taken_ns: int, agents: Iterable[str]
    ) -> list[str]:
        one = self._all.get(leaf)
        if one is None:
            one = self._all[leaf] = Acceptance(leaf, data, channel, taken_ns)
        elif not one.agents:
            return []
        fresh = [agent for agent in agents if agent not in one.agents]
        if fresh:
            one.data = one.data or data
            one.agents = {**one.agents, **dict.fromkeys(fresh)}
            one.waiting.update(dict.fromkeys(fresh))
        return fresh

    def _handle(self, leaf: bytes, agents: Iterable[str]) -> None:
        one = self._all.get(leaf)
        if one is None or not one.waiting:
            return
        for agent in agents:
            one.waiting.pop(agent, None)
        if not one.waiting:
            self._compact(one)

    def _finish(self, leaf: bytes, channel: str, taken_ns: int, agents: Iterable[str]) -> None:
        if leaf not in self._all:
            self._all[leaf] = one = Acceptance(leaf, b"", channel, taken_ns, dict.fromkeys(agents))
            self._compact(one)

    def _compact(self, one: Acceptance) -> None:
        one.data = b""
        one.waiting = {}  # a dictionary keeps the room of what it has held
        if len(self._shared) >= MAX_SHARED:
            self._shared.clear()
        one.agents = self._shared.setdefault(tuple(one.agents), one.agents)

    def _miss(self, leaf: bytes) -> None:
        if one := self._all.get(leaf):
            one.partial = True

    def _apply(self, fields: Any) -> None:
        """Apply one payload.

        Raises:
            InvalidInputError: ``malformed``.
        """
        match fields:
            case (1, bytes(leaf), bytes(data), str(channel), int(taken_ns), tuple(agents)) if (
                len(leaf) == LEAF_BYTES and channel in CHANNELS and 0 <= taken_ns < 2**63 and _are_names(agents)
            ):
                self._accept(leaf, data, channel, taken_ns, agents)
            case (2, bytes(leaf), tuple(agents)) if len(leaf) == LEAF_BYTES and _are_names(agents):
                self._handle(leaf, agents)
            case (3, bytes(leaf), str(channel), int(taken_ns), tuple(agents)) if (
                len(leaf) == LEAF_BYTES and channel in CHANNELS and 0 <= taken_ns < 2**63 and _are_names(agents)
            ):
                self._finish(leaf, channel, taken_ns, agents)
            case (4, bytes(leaf)) if len(leaf) == LEAF_BYTES:
                self._miss(leaf)
            case _:
                raise InvalidInputError("no frame of an alert journal", reason="malformed")


def frames_of(state: Snapshot) -> bytes:
    """Return the frames that make up a state and no more."""
    parts: list[bytes] = []
    for leaf, data, channel, taken_ns, agents, waiting, partial in state:
        if waiting:
            parts.append(_frame((ACCEPTED, leaf, data, channel, taken_ns, list(agents))))
            left = set(waiting)
            if len(left) < len(agents):
                parts.append(_frame((HANDLED, leaf, [agent for agent in agents if agent not in left])))
        else:
            parts.append(_frame((DONE, leaf, channel, taken_ns, list(agents))))
        if partial:
            parts.append(_frame((PARTIAL, leaf)))
    return b"".join(parts)


def _are_names(agents: Sequence[Any]) -> bool:
    return all(type(agent) is str for agent in agents)


def _frame(fields: tuple[Any, ...]) -> bytes:
    payload = bytes(msgpack.packb(fields))
    return len(payload).to_bytes(4, "big") + sha256(payload).digest()[:8] + payload


def _payloads(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield the payloads that are whole, and where each ends."""
    at = 0
    while at + HEAD_BYTES <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        start, end = at + HEAD_BYTES, at + HEAD_BYTES + length
        payload = data[start:end]
        if length > MAX_PAYLOAD or len(payload) < length:
            return
        if sha256(payload).digest()[:8] != data[at + 4 : start]:
            return
        yield payload, end
        at = end
