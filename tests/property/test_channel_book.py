"""A pair of books over a bus that loses, crosses and restarts: they converge, and deliver nothing twice."""

from __future__ import annotations

from collections import deque
from hashlib import sha256

from hypothesis import given, settings
from hypothesis import strategies as st

from tocsin.agent.channels.book import Answered, Book, End, Link, Verdict
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto.channels import Initiation, Keys, Limits, Parties, respond

IDS = [SpiffeId.agent("test.tocsin", Role.HUNTER, name) for name in ("one", "two")]
KEYS = [b"\x01" * 32, b"\x02" * 32]


class Side:
    """An agent without a bus: what it says waits in ``out``, in order."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.me, self.peer = IDS[index], IDS[1 - index]
        self.book = Book(self.me, max_links=4)
        self.out: deque[tuple[str, bytes]] = deque()
        self.heard: list[bytes] = []

    def link(self, now_s: float) -> Link:
        return self.book.link(self.peer, now_s)[0]

    def offer(self, now_s: float) -> None:
        link = self.link(now_s)
        if link.initiation is None and link.answered is None:
            link.initiation = Initiation.begin(Parties(str(self.me), str(self.peer)), Limits(64, 60))
        if link.initiation is not None:
            self.out.append(("offer", link.initiation.offer))

    def say(self, data: bytes, now_s: float) -> None:
        link = self.link(now_s)
        if link.current is not None and link.current.may_send(now_s):
            self.out.append(("frame", self.book.seal(link, data, now_s)))

    def take(self, kind: str, data: bytes, now_s: float) -> None:
        link = self.link(now_s)
        if kind == "offer":
            digest = sha256(data).digest()
            verdict = self.book.judge(link, digest)
            if verdict is Verdict.REPEAT:
                assert link.answered is not None
                self.out.append(("answer", link.answered.answer))
            elif verdict is Verdict.ANSWER:
                keys = Keys(KEYS[1 - self.index], KEYS[self.index])
                answer, session = respond(data, Parties(str(self.peer), str(self.me)), keys)
                self.book.answer(link, Answered(digest, answer, End(session, keys.initiator, now_s)))
                self.out.append(("answer", answer))
        elif kind == "answer":
            if link.initiation is not None and link.initiation.digest == data[3:35]:
                keys = Keys(KEYS[self.index], KEYS[1 - self.index])
                end = End(link.initiation.finish(data, keys), keys.responder, now_s)
                self.book.finish(link, end)
                self._activate(link, end)
        else:
            try:
                opened, end, payload, confirmed = self.book.open(data, self.peer.name, now_s)
            except TocsinError as error:
                assert error.reason in {"unknown_channel", "channel_expired"}  # noqa: PT017 - it may pass
                return
            if confirmed:
                self._activate(opened, end)
            if payload:
                self.heard.append(payload)

    def _activate(self, link: Link, end: End) -> None:
        self.out.append(("frame", end.session.seal(b"")))
        self.book.use(link, end)


STEPS = st.lists(
    st.tuples(st.sampled_from(["offer", "say", "deliver", "lose", "restart", "cut"]), st.integers(0, 1)),
    max_size=60,
)


class Bus:
    """Two sides and what is on its way between them."""

    def __init__(self) -> None:
        self.sides = [Side(0), Side(1)]
        self.heard: list[list[bytes]] = [[], []]
        """Of processes that are no more."""
        self.now_s = 0.0
        self.said = 0

    def step(self, what: str, index: int) -> None:
        self.now_s += 0.1
        getattr(self, what)(index)

    def offer(self, index: int) -> None:
        self.sides[index].offer(self.now_s)

    def say(self, index: int) -> None:
        self.said += 1
        self.sides[index].say(str(self.said).encode(), self.now_s)

    def deliver(self, to: int) -> None:
        if self.sides[1 - to].out:
            self.sides[to].take(*self.sides[1 - to].out.popleft(), self.now_s)

    def lose(self, to: int) -> None:
        if self.sides[1 - to].out:
            self.sides[1 - to].out.popleft()

    def restart(self, index: int) -> None:
        self.heard[index] += self.sides[index].heard
        self.sides[index] = Side(index)

    def cut(self, index: int) -> None:
        self.sides[index].book.cut(lambda _: True, self.now_s)

    def settle(self) -> None:
        """Offers again and again, as the desk does, over a bus that loses nothing."""
        for _ in range(6):
            self.now_s += 20.0  # what was never confirmed is given up
            for index in (0, 1):
                self.cut(index)
                self.offer(index)
            while self.sides[0].out or self.sides[1].out:
                self.deliver(0)
                self.deliver(1)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_happens_two_books_find_together_again(steps: list[tuple[str, int]]) -> None:
    bus = Bus()
    for what, index in steps:
        bus.step(what, index)
    bus.settle()
    currents = [side.link(bus.now_s).current for side in bus.sides]
    assert currents[0] is not None
    assert currents[1] is not None
    assert currents[0].session.channel == currents[1].session.channel
    for index in (0, 1):
        bus.say(index)
        bus.deliver(1 - index)
        assert bus.sides[1 - index].heard[-1] == str(bus.said).encode()
        numbers = list(map(int, bus.heard[index] + bus.sides[index].heard))
        assert len(set(numbers)) == len(numbers)  # nothing twice


@given(st.lists(st.integers(0, 9), max_size=60))
def test_a_full_book_drops_the_link_that_was_used_least_recently(used: list[int]) -> None:
    book = Book(IDS[0], max_links=3)
    recent: list[str] = []
    for now_s, number in enumerate(used):
        peer = SpiffeId.agent("test.tocsin", Role.HUNTER, f"peer-{number}")
        _, evicted = book.link(peer, float(now_s))
        known = peer.name in recent
        if known:
            recent.remove(peer.name)
        if evicted is not None:
            assert evicted.peer.name == recent.pop(0)
        recent.append(peer.name)
        assert [link.peer.name for link in book] == recent
        assert len(recent) <= 3
