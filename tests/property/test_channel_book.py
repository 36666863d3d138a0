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


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_whatever_happens_two_books_find_together_again(steps: list[tuple[str, int]]) -> None:
    sides, now_s, said = [Side(0), Side(1)], 0.0, 0
    total: list[list[bytes]] = [[], []]

    def deliver(to: int) -> None:
        if sides[1 - to].out:
            sides[to].take(*sides[1 - to].out.popleft(), now_s)

    for step, index in steps:
        now_s += 0.1
        if step == "offer":
            sides[index].offer(now_s)
        elif step == "say":
            said += 1
            sides[index].say(str(said).encode(), now_s)
        elif step == "deliver":
            deliver(index)
        elif step == "lose" and sides[1 - index].out:
            sides[1 - index].out.popleft()
        elif step == "restart":
            total[index] += sides[index].heard
            sides[index] = Side(index)
        elif step == "cut":
            sides[index].book.cut(lambda _: True, now_s)
    # Then the bus is good again: an offer repeated, as the desk does, brings both to the same channel.
    for _ in range(6):
        now_s += 20.0  # what was never confirmed is given up
        for side in sides:
            side.book.cut(lambda _: True, now_s)
            side.offer(now_s)
        while sides[0].out or sides[1].out:
            deliver(0)
            deliver(1)
    currents = [side.link(now_s).current for side in sides]
    assert currents[0] is not None
    assert currents[1] is not None
    assert currents[0].session.channel == currents[1].session.channel
    for index, side in enumerate(sides):
        side.say(b"after", now_s)
        deliver(1 - index)
        assert sides[1 - index].heard[-1] == b"after"
    for index, side in enumerate(sides):
        everything = [one for one in total[index] + side.heard if one != b"after"]
        numbers = list(map(int, everything))
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
