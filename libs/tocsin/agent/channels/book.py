"""One agent's channels: which keys it has with whom, which of them count, and what becomes of old ones.

Pure: no I/O, no clock. Each peer has one :class:`Link`, with up to three ends of channels: *current*, under which we
send; *previous*, under which the peer may still have sent before it changed over; *answered*, whose initiator has not
proven yet that it has the keys. The rules:

* An end that answered an offer counts once a frame was opened with it (:meth:`Book.open` says so).
* Once a frame of a newer end was opened, the older ones are gone: the bus keeps the order of one sender's frames.
* Two offers that cross: the offer of the lesser id counts, the other is dropped by both (:meth:`Book.judge`).
* Keys are due at 15/16 of a limit, and seal nothing beyond it; they open frames for :data:`GRACE_S` more.
* A book that is full drops the link that was used least recently; the next message to that peer makes it anew.

What was sent lately is kept, so that what a peer that has lost its keys could not open goes out again under new ones:
at most :data:`KEPT_FRAMES` and :data:`KEPT_BYTES` a link, for :data:`KEPT_S` seconds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from tocsin.contracts.errors import ExhaustedError, UntrustedError
from tocsin.contracts.identifiers import SpiffeId
from tocsin.contracts.subjects import KIB
from tocsin.crypto.channels import Initiation, Session, channel_of

GRACE_S = 10.0
"""Between two ends' clocks: a handshake takes no longer."""
ANSWERED_S = 15.0
"""How long an answer waits for the first frame: the offer's time to live."""
CONFIRMED_S = 1.0
"""How long we wait for it before we offer ourselves: the peer may have given its offer up."""
KEPT_FRAMES = 256
KEPT_BYTES = 256 * KIB
KEPT_S = 10.0
DUE = 15 / 16
"""Share of a limit after which new keys are made while the old ones still serve."""


class Verdict(Enum):
    """What to do with an offer."""

    ANSWER = "answer"
    REPEAT = "repeat"
    """It was answered: the same answer goes out again."""
    OURS_COUNTS = "ours"
    """We have offered, too, and have the lesser id: the peer answers ours."""
    BEING_ANSWERED = "busy"
    DONE = "done"
    """Its channel stands: a copy that was under way."""


@dataclass(frozen=True, slots=True, eq=False)
class End:
    """Our end of a channel."""

    session: Session
    peer_key: bytes
    """Id of the signing key that authenticated the peer."""
    made_s: float

    def age_s(self, now_s: float) -> float:
        """Return the age of its keys."""
        return now_s - self.made_s

    def is_due(self, now_s: float) -> bool:
        """Tell whether new keys should be made."""
        limits = self.session.limits
        return self.session.sent >= DUE * limits.messages or self.age_s(now_s) >= DUE * limits.age_s

    def may_send(self, now_s: float) -> bool:
        """Tell whether it may seal a frame."""
        return not self.session.spent and self.age_s(now_s) < self.session.limits.age_s


@dataclass(slots=True)
class Answered:
    """An offer that was answered here."""

    offer: bytes
    """Its digest."""
    answer: bytes
    end: End


@dataclass(slots=True, eq=False)
class Link:
    """What we have with one peer."""

    peer: SpiffeId
    used_s: float
    current: End | None = None
    previous: End | None = None
    answered: Answered | None = None
    initiation: Initiation | None = None
    answering: bytes | None = None
    """Digest of an offer whose answer waits for a key server."""
    changing: bool = False
    """Whether new keys are there, and are about to be used."""
    done: bytes | None = None
    """Digest of the last offer of the peer's whose channel it has confirmed."""
    again: list[bytes] = field(default_factory=list)
    """Payloads that reached nobody, to be sent under new keys."""
    sent: int = 0
    received: int = 0
    lost: int = 0
    resent: int = 0
    handshakes: int = 0
    _kept: deque[tuple[int, bytes]] = field(default_factory=deque)
    _kept_bytes: int = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is under way here."""
        return self.initiation is None and self.answering is None and not self.changing and not self.again

    @property
    def empty(self) -> bool:
        """Whether there are no keys and none are being made."""
        return self.current is None and self.previous is None and self.answered is None and self.idle

    def awaits_peer(self, now_s: float) -> bool:
        """Tell whether keys come without an offer of ours: one of the peer's was or is being answered."""
        if self.answering is not None or self.changing:
            return True
        return self.answered is not None and self.answered.end.age_s(now_s) < CONFIRMED_S

    def ends(self) -> Iterator[End]:
        """Yield every end that frames are opened with."""
        if self.current is not None:
            yield self.current
        if self.previous is not None:
            yield self.previous
        if self.answered is not None:
            yield self.answered.end

    def keep(self, counter: int, payload: bytes) -> None:
        """Remember what was sent."""
        self._kept.append((counter, payload))
        self._kept_bytes += len(payload)
        while len(self._kept) > KEPT_FRAMES or self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def forget_kept(self) -> None:
        """Drop what was remembered."""
        self._kept.clear()
        self._kept_bytes = 0

    def unheard(self, counter: int) -> list[bytes]:
        """Return what was sent from a counter on, as far as it is remembered."""
        return [payload for at, payload in self._kept if at >= counter]


class Book:
    """All channels of one agent.

    Args:
        me: the agent.
        max_links: peers at once.
    """

    def __init__(self, me: SpiffeId, *, max_links: int) -> None:
        self.me = me
        self._max_links = max_links
        self._links: OrderedDict[str, Link] = OrderedDict()
        self._by_channel: dict[bytes, tuple[Link, End]] = {}

    def __len__(self) -> int:
        return len(self._links)

    def __iter__(self) -> Iterator[Link]:
        return iter(list(self._links.values()))

    def find(self, name: str) -> Link | None:
        """Return what there is with an agent."""
        return self._links.get(name)

    def link(self, peer: SpiffeId, now_s: float) -> tuple[Link, Link | None]:
        """Return the link with a peer, made if there is none, and the link that went for it.

        Raises:
            ExhaustedError: ``too_many_channels``: all are being made just now.
        """
        held = self._links.get(peer.name)
        if held is not None and held.peer == peer:
            self._use(held, now_s)
            return held, None
        if held is not None:
            self.drop(held)  # the name has another role now
        evicted = None
        if len(self._links) >= self._max_links:
            evicted = next((one for one in self._links.values() if one.idle), None)
            if evicted is None:
                raise ExhaustedError(f"{self._max_links} channels are being made", reason="too_many_channels")
            self._forget(evicted)
        fresh = self._links[peer.name] = Link(peer, now_s)
        return fresh, evicted

    def drop(self, link: Link) -> None:
        """Erase all keys with a peer."""
        self._forget(link)
        link.current = link.previous = link.answered = link.initiation = None
        link.changing = False
        link.forget_kept()

    def judge(self, link: Link, digest: bytes) -> Verdict:
        """Decide what to do with a peer's offer; if it counts and ours does not, ours is dropped."""
        if link.answered is not None and link.answered.offer == digest:
            return Verdict.REPEAT
        if link.answering == digest:
            return Verdict.BEING_ANSWERED
        if link.done == digest:
            return Verdict.DONE
        if link.initiation is not None:
            if str(self.me) < str(link.peer):
                return Verdict.OURS_COUNTS
            link.initiation = None
        return Verdict.ANSWER

    def answer(self, link: Link, answered: Answered) -> None:
        """Take our end of a channel that the peer has yet to confirm."""
        if link.answered is not None:
            self._by_channel.pop(link.answered.end.session.channel, None)
        link.answered, link.answering = answered, None
        self._by_channel[answered.end.session.channel] = (link, answered.end)

    def finish(self, link: Link, end: End) -> None:
        """Take our end of a channel that we have opened: frames are opened with it, and with the one before."""
        link.initiation, link.changing = None, True
        self._by_channel[end.session.channel] = (link, end)

    def use(self, link: Link, end: End) -> None:
        """Send under an end from now on. What was sent under the one before counts as heard."""
        old, link.changing = link.current, False
        if old is end or self._by_channel.get(end.session.channel, (None, None))[1] is not end:
            return
        if link.previous is not None and link.previous is not end:
            self._by_channel.pop(link.previous.session.channel, None)
        link.previous = old if old is not None and old.session.channel in self._by_channel else None
        link.current = end
        link.handshakes += 1
        link.forget_kept()

    def open(self, frame: bytes, sender: str, now_s: float) -> tuple[Link, End, bytes, bool]:
        """Open a frame.

        Args:
            frame: as it came.
            sender: whose it claims to be.
            now_s: the present.

        Returns:
            the link, the end that opened it, the payload, and whether this frame confirmed an answer of ours.

        Raises:
            InvalidInputError: ``bad_frame``.
            UntrustedError: ``unknown_channel``; ``wrong_subject``: it is another peer's; ``channel_expired``;
                and what :meth:`Session.open` raises.
        """
        link, end = self._by_channel.get(channel_of(frame), (None, None))
        if link is None or end is None:
            raise UntrustedError("a frame of a channel that is not known here", reason="unknown_channel")
        if link.peer.name != sender:
            raise UntrustedError("the subject names another sender", reason="wrong_subject")
        if end.age_s(now_s) >= end.session.limits.age_s + GRACE_S:
            raise UntrustedError("the keys are too old", reason="channel_expired")
        lost = end.session.lost
        payload = end.session.open(frame)
        link.lost += end.session.lost - lost
        self._use(link, now_s)
        confirmed = link.answered is not None and link.answered.end is end
        if link.answered is not None and confirmed:
            link.done, link.changing = link.answered.offer, True
            # The peer sends under the new keys only, so nothing comes under older ones any more.
            link.answered = None
            for old in (link.current, link.previous):
                if old is not None:
                    self._by_channel.pop(old.session.channel, None)
            link.previous = None
        elif end is link.current and link.previous is not None:
            self._by_channel.pop(link.previous.session.channel, None)
            link.previous = None
        return link, end, payload, confirmed

    def seal(self, link: Link, payload: bytes, now_s: float) -> bytes:
        """Return the next frame to a peer.

        Raises:
            ExhaustedError: ``channel_spent``: there are no keys that seal.
        """
        end = link.current
        if end is None or not end.may_send(now_s):
            raise ExhaustedError("the channel's keys are used up", reason="channel_spent")
        frame = end.session.seal(payload)
        link.keep(end.session.sent - 1, payload)
        link.sent += 1
        self._use(link, now_s)
        return frame

    def unknown_to_peer(self, link: Link, channel: bytes, counter: int) -> bool:
        """Take the peer's word that it has not the keys that we use: what it could not open is to be sent again.

        False if it does not concern the keys that we use.
        """
        if link.current is None or link.current.session.channel != channel:
            return False
        unheard = link.unheard(counter)
        self._by_channel.pop(channel, None)
        link.current = None
        link.forget_kept()
        link.again = [*link.again, *unheard][-KEPT_FRAMES:]
        return True

    def cut(self, holds: Callable[[End], bool], now_s: float) -> int:
        """Erase keys of peers that are not trusted any more, and whatever is too old; return how many of the first."""
        distrusted = 0
        for link in self:
            for end in list(link.ends()):
                trusted = holds(end)
                distrusted += not trusted
                late = link.current is None or link.current.age_s(now_s) >= GRACE_S
                over = end.age_s(now_s) >= end.session.limits.age_s + GRACE_S
                unconfirmed = link.answered is not None and link.answered.end is end
                unconfirmed = unconfirmed and end.age_s(now_s) >= ANSWERED_S
                if not trusted or over or unconfirmed or (end is link.previous and late):
                    self._erase(link, end)
            if now_s - link.used_s >= KEPT_S:
                link.forget_kept()
            if link.empty:
                self._links.pop(link.peer.name, None)
        return distrusted

    def _erase(self, link: Link, end: End) -> None:
        self._by_channel.pop(end.session.channel, None)
        if end is link.current:
            link.current = None
            link.forget_kept()
        elif end is link.previous:
            link.previous = None
        else:
            link.answered = None

    def _forget(self, link: Link) -> None:
        for end in link.ends():
            self._by_channel.pop(end.session.channel, None)
        if self._links.get(link.peer.name) is link:
            del self._links[link.peer.name]

    def _use(self, link: Link, now_s: float) -> None:
        link.used_s = now_s
        if link.peer.name in self._links:
            self._links.move_to_end(link.peer.name)
