"""Channels of one agent on the bus: handshakes in signed envelopes, data in frames.

What may be is decided in :mod:`tocsin.agent.channels.book`; here it meets the bus, the clock and the key servers.

Refused, counted and audited, each by its reason: an offer of a peer that is barred (``barred``), that offers too many
(``handshake_flood``) or that is ourselves (``channel_to_itself``); answers and frames that do not hold. A peer whose
key is revoked is cut off at the next frame, and within a second in any case. A frame of a channel that is not known
is answered with a signed word that it is not, at most twice a second for each sender that the subject
names: who has really sent it makes new keys and sends again what was not opened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from hashlib import sha256
from typing import NamedTuple, cast

from tocsin.agent.channels import payload as payloads
from tocsin.agent.channels.book import Answered, Book, End, Link, Verdict
from tocsin.agent.channels.channel import Channel, ChannelStats
from tocsin.agent.channels.limits import NOTICE, Allowance, Buckets
from tocsin.agent.channels.qkd import QkdLink, QkdOffer
from tocsin.bus import Bus, Context
from tocsin.contracts import channels as messages
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import (
    CHANNEL,
    CHANNEL_ANSWER,
    CHANNEL_FRAME,
    CHANNEL_OFFER,
    CHANNEL_REFUSAL,
    CHANNEL_UNKNOWN,
)
from tocsin.contracts.errors import (
    DeniedError,
    ExhaustedError,
    InvalidInputError,
    InvariantBrokenError,
    TocsinError,
    UnavailableError,
    UntrustedError,
)
from tocsin.contracts.identifiers import Priority, Role, SpiffeId
from tocsin.contracts.policy import check
from tocsin.contracts.subjects import MessageType
from tocsin.crypto.channels import Initiation, Keys, Limits, Offer, Parties, respond
from tocsin.telemetry import get_logger

HANDSHAKE_S = 20.0
"""How long keys are tried to be made; who waits for them may give up earlier."""
REPEAT_S = (1.0, 2.0, 4.0)
"""Pauses before the same offer goes out again, in a fresh envelope; the last one repeats."""
CONNECTING = 128
"""Handshakes that one host has begun and not ended; those beyond wait."""
ANSWERING = 64
"""Offers whose answer waits for a key server; those beyond are refused."""
SWEEP_S = 1.0
"""How often keys are looked through for those that are too old or not trusted any more: some 2 microseconds each."""

log = get_logger(__name__)


class Received(NamedTuple):
    """What a frame held."""

    link: Link
    end: End
    payload: payloads.Payload
    confirmed: bool


class Shared:
    """What the channels of all agents of one host have in common."""

    def __init__(self, bus: Bus, *, limits: Limits, max_links: int, qkd: QkdLink | None) -> None:
        self.bus = bus
        self.limits = limits
        self.max_links = max_links
        self.qkd = qkd
        self.connecting = asyncio.Semaphore(CONNECTING)
        self.offers = Allowance()
        self.notices = Buckets(NOTICE)
        self.barred: set[str] = set()
        """Names of agents that get no channel: quarantined ones."""
        self.answering = 0

    def holds(self, end: End) -> bool:
        """Tell whether the key that authenticated a peer still speaks for it."""
        identity = self.bus.trust.identity(end.peer_key)
        return identity is not None and identity.valid_at(time.time_ns())


class ChannelDesk:
    """The channels of one agent.

    Args:
        shared: with the other agents of the host.
        me: the agent.
        my_key: id of its signing key.
        deliver: takes what a peer has sent; it does not wait.
        find: returns an agent's id by its name, None for one that is not enrolled.
    """

    def __init__(
        self,
        shared: Shared,
        me: SpiffeId,
        my_key: bytes,
        deliver: Callable[[bytes | Message, SpiffeId], None],
        find: Callable[[str], SpiffeId | None],
    ) -> None:
        self._shared = shared
        self._bus = shared.bus
        self._me = me
        self._my_key = my_key
        self._deliver = deliver
        self._find = find
        self.book = Book(me, max_links=shared.max_links)
        self._opening: dict[str, asyncio.Future[None]] = {}

    async def start(self) -> None:
        """Listen for this agent's handshakes and frames."""
        at = {"agent": self._me.name}
        await asyncio.gather(
            self._bus.subscribe(CHANNEL, self._on_handshake, at=at),
            self._bus.subscribe_frames(CHANNEL_FRAME, self._open, self._take, at=at),
        )

    async def stop(self) -> None:
        """Tell the peers that the keys go."""
        for link in self.book:
            await self._say_closed(link)
            self.book.drop(link)

    # --- What the agent asks ------------------------------------------------------------------

    async def channel(self, name: str, *, timeout_s: float) -> Channel:
        """Return a channel to an agent, with keys; made if there are none.

        Raises:
            InvalidInputError: ``unknown_peer``; ``channel_to_itself``.
            DeniedError: ``barred``.
            TocsinError: see :meth:`Channel.send`.
        """
        peer = self._find(name)
        if peer is None:
            raise InvalidInputError(f"no agent {name[:64]!r} is enrolled", reason="unknown_peer")
        await self._ready(peer, timeout_s=timeout_s)
        return Channel(self, peer)

    async def send(self, peer: SpiffeId, data: bytes | Message, *, timeout_s: float) -> None:
        """Seal and send; see :meth:`Channel.send`."""
        payload = payloads.encode(data)
        if isinstance(data, Message):
            _check_policy(payloads.BY_MODEL[type(data)], data, self._me, peer)
        now_s = time.monotonic()
        link = self.book.find(peer.name)
        if link is None or not self._usable(link, now_s):
            link = await self._ready(peer, timeout_s=timeout_s)
        elif link.current is not None and link.current.is_due(now_s) and peer.name not in self._opening:
            self._begin(link)
        # From here to the client's buffer nothing waits: counters go out in their order.
        frame = self.book.seal(link, payload, time.monotonic())
        await self._bus.send_frame(_frames_to(link.peer, self._me), frame)

    async def close(self, peer: SpiffeId) -> None:
        """Erase the keys with a peer and tell it."""
        link = self.book.find(peer.name)
        if link is not None:
            await self._say_closed(link)
            self.book.drop(link)

    def stats(self, peer: SpiffeId) -> ChannelStats:
        """Return what is known of a channel."""
        link = self.book.find(peer.name)
        if link is None:
            return ChannelStats(
                established=False, qkd=False, age_s=0.0, handshakes=0, sent=0, received=0, lost=0, resent=0
            )
        end = link.current
        return ChannelStats(
            established=end is not None,
            qkd=end is not None and end.session.qkd,
            age_s=end.age_s(time.monotonic()) if end is not None else 0.0,
            handshakes=link.handshakes,
            sent=link.sent,
            received=link.received,
            lost=link.lost,
            resent=link.resent,
        )

    def sweep(self) -> None:
        """Erase keys of peers that are not trusted any more or barred, and old ones."""
        for link in self.book:
            if link.peer.name in self._shared.barred:
                self.book.drop(link)
                self._bus.metrics.count("channels_cut.barred")
        if cut := self.book.cut(self._shared.holds, time.monotonic()):
            self._bus.metrics.count("channels_cut.untrusted", cut)

    # --- Making keys --------------------------------------------------------------------------

    def _usable(self, link: Link, now_s: float) -> bool:
        """Tell whether a link's keys may seal; those of a peer that is not trusted are erased."""
        end = link.current
        if end is None or not end.may_send(now_s):
            return False
        if link.peer.name in self._shared.barred or self._bus.trust.is_revoked(end.peer_key):
            self.book.drop(link)
            self._bus.metrics.count("channels_cut.untrusted")
            return False
        return True

    async def _ready(self, peer: SpiffeId, *, timeout_s: float) -> Link:
        """Return the link with a peer once it has keys that seal."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    self._require_admissible(peer)
                    link, evicted = self.book.link(peer, time.monotonic())
                    if evicted is not None:
                        await self._evicted(evicted)
                    if self._usable(link, time.monotonic()):
                        return link
                    opening = self._opening.get(peer.name)
                    if opening is None or opening.done():
                        opening = self._begin(link)
                    await asyncio.shield(opening)
        except TimeoutError as error:
            raise _no_answer(peer, timeout_s) from error

    def _begin(self, link: Link) -> asyncio.Future[None]:
        opening: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        opening.add_done_callback(_retrieve)
        self._opening[link.peer.name] = opening
        self._bus.spawn(self._connect(link.peer, opening), f"channel {self._me.name} {link.peer.name}")
        return opening

    async def _connect(self, peer: SpiffeId, opening: asyncio.Future[None]) -> None:
        begun = time.perf_counter()
        try:
            async with self._shared.connecting:
                await self._offer(peer, opening)
        except TocsinError as error:
            self._bus.metrics.count(f"channel_failures.{error.reason}")
            self._fail(opening, error)
        except BaseException:
            self._fail(opening, InvariantBrokenError("the handshake failed", reason="internal"))
            raise
        else:
            self._bus.metrics.observe_ms("channel_opened", (time.perf_counter() - begun) * 1e3)
        finally:
            if self._opening.get(peer.name) is opening:
                del self._opening[peer.name]
                if (link := self.book.find(peer.name)) is not None:
                    link.initiation = None

    async def _offer(self, peer: SpiffeId, opening: asyncio.Future[None]) -> None:
        """Offer until there are keys, by our offer or by the peer's."""
        deadline_s = time.monotonic() + HANDSHAKE_S
        for pause_s in (*REPEAT_S, *(REPEAT_S[-1],) * int(HANDSHAKE_S)):
            # Looked up each time: the link may have been dropped, for a peer that has said that it closes.
            link, evicted = self.book.link(peer, time.monotonic())
            if evicted is not None:
                await self._evicted(evicted)
            if link.initiation is None and not link.awaits_peer(time.monotonic()):
                # None of theirs is on its way: begin with ours, or again.
                await self._begin_offer(link, opening)
            if link.initiation is not None:
                self._say(CHANNEL_OFFER, messages.ChannelOffer(offer=link.initiation.offer), peer)
            await asyncio.wait({opening}, timeout=min(pause_s, max(0.0, deadline_s - time.monotonic())))
            if opening.done():
                opening.result()
                return
            if time.monotonic() >= deadline_s:
                break
        raise _no_answer(peer, HANDSHAKE_S)

    async def _begin_offer(self, link: Link, opening: asyncio.Future[None]) -> None:
        qkd = await self._qkd_key(link.peer)
        if opening.done() or link.awaits_peer(time.monotonic()):
            return  # theirs came while the key server was asked
        link.initiation = Initiation.begin(
            Parties(str(self._me), str(link.peer)),
            self._shared.limits,
            qkd=(qkd.key_id, qkd.key) if qkd is not None else None,
            qkd_required=self._shared.qkd is not None and self._shared.qkd.required,
        )

    async def _qkd_key(self, peer: SpiffeId) -> QkdOffer | None:
        """Fetch a key for a peer; None where there is no server, or it fails and is not required."""
        server = self._shared.qkd
        if server is None:
            return None
        try:
            return await server.fresh(peer.name)
        except TocsinError as error:
            self._bus.metrics.count(f"qkd_failures.{error.reason}")
            if server.required:
                raise
            log.warning("channel_without_qkd", peer=peer.name, reason=error.reason, detail=str(error)[:300])
            return None

    async def _activate(self, link: Link, end: End) -> None:
        """Say that we use the keys, send again what was lost with the old ones, then let others send."""
        again, link.again = link.again, []
        try:
            for payload in (payloads.READY, *again):
                frame = end.session.seal(payload)
                await self._bus.send_frame(_frames_to(link.peer, self._me), frame)
        except TocsinError as error:
            self._bus.metrics.count(f"channel_failures.{error.reason}")
        else:
            link.resent += len(again)
        self.book.use(link, end)
        self._bus.metrics.count("channels_opened")
        opening = self._opening.get(link.peer.name)
        if opening is not None and not opening.done():
            opening.set_result(None)

    # --- Handshakes that come -----------------------------------------------------------------

    def _on_handshake(self, body: Message, context: Context) -> None:
        """Take an offer, an answer or a word about one; the bus has verified who says so."""
        try:
            if isinstance(body, messages.ChannelOffer):
                self._on_offer(body, context)
            elif isinstance(body, messages.ChannelAnswer):
                self._on_answer(body, context)
            elif isinstance(body, messages.ChannelRefusal):
                self._on_refusal(body, context)
            else:
                self._on_unknown(cast("messages.ChannelUnknown", body), context)
        except TocsinError as error:
            self._bus.reject(error, context.subject, context.data)

    def _on_offer(self, body: messages.ChannelOffer, context: Context) -> None:
        peer = context.sender
        self._shared.offers.require(str(peer), self._me.name, time.monotonic())
        try:
            self._require_admissible(peer)
            offer = Offer.parse(body.offer)
            digest = sha256(body.offer).digest()
            link, evicted = self.book.link(peer, time.monotonic())
        except TocsinError as error:
            self._refuse(peer, sha256(body.offer).digest(), error.reason)
            raise
        if evicted is not None:
            self._bus.spawn(self._evicted(evicted), "channel evicted")
        verdict = self.book.judge(link, digest)
        if verdict is Verdict.REPEAT and link.answered is not None:
            self._say(CHANNEL_ANSWER, messages.ChannelAnswer(answer=link.answered.answer), peer)
        elif verdict is Verdict.OURS_COUNTS:
            self._bus.metrics.count("channel_offers_crossed")
        elif verdict is Verdict.DONE:
            self._bus.metrics.count("channel_offers_late")
        elif verdict is Verdict.ANSWER:
            self._take_offer(link, body.offer, offer, context.key_id)

    def _take_offer(self, link: Link, raw: bytes, offer: Offer, peer_key: bytes) -> None:
        """Answer an offer that counts: at once, or when the key server has said which key it names."""
        server, digest = self._shared.qkd, sha256(raw).digest()
        if offer.qkd_key_id is None and server is not None and server.required:
            self._refuse(link.peer, digest, "qkd_required")
        elif offer.qkd_key_id is None or (server is None and not offer.qkd_required):
            self._answer(link, raw, peer_key, None)
        elif server is None:
            self._refuse(link.peer, digest, "qkd_not_configured")
        elif self._shared.answering >= ANSWERING:
            raise ExhaustedError("too many offers wait for the key server", reason="handshake_flood")
        else:
            link.answering = digest
            self._shared.answering += 1
            self._bus.spawn(self._answer_with_qkd(link, raw, offer, peer_key), "channel qkd")

    def _answer(self, link: Link, offer: bytes, peer_key: bytes, qkd: bytes | None) -> None:
        parties = Parties(str(link.peer), str(self._me))
        answer, session = respond(offer, parties, Keys(peer_key, self._my_key), qkd=qkd)
        end = End(session, peer_key, time.monotonic())
        self.book.answer(link, Answered(sha256(offer).digest(), answer, end))
        self._say(CHANNEL_ANSWER, messages.ChannelAnswer(answer=answer), link.peer)

    async def _answer_with_qkd(self, link: Link, raw: bytes, offer: Offer, peer_key: bytes) -> None:
        server, digest = self._shared.qkd, sha256(raw).digest()
        try:
            key: bytes | None = None
            try:
                if server is not None and offer.qkd_key_id is not None:
                    key = await server.same(link.peer.name, offer.qkd_key_id)
            except TocsinError as error:
                self._bus.metrics.count(f"qkd_failures.{error.reason}")
                log.warning("channel_without_qkd", peer=link.peer.name, reason=error.reason)
                if offer.qkd_required or (server is not None and server.required):
                    self._refuse(link.peer, digest, error.reason)
                    return
            # Anything may have happened meanwhile: another offer, a bar, the link's end.
            self._require_admissible(link.peer)
            if link.answering == digest and self.book.find(link.peer.name) is link:
                self._answer(link, raw, peer_key, key)
        except TocsinError as error:
            self._bus.metrics.count(f"channel_failures.{error.reason}")
        finally:
            self._shared.answering -= 1
            if link.answering == digest:
                link.answering = None

    def _on_answer(self, body: messages.ChannelAnswer, context: Context) -> None:
        link = self.book.find(context.sender.name)
        if link is None or link.initiation is None or link.peer != context.sender:
            self._bus.metrics.count("channel_answers_late")
            return
        initiation = link.initiation
        if body.answer[3:35] != initiation.digest:
            self._bus.metrics.count("channel_answers_late")
            return
        try:
            session = initiation.finish(body.answer, Keys(self._my_key, context.key_id))
        except TocsinError as error:
            self._not_finished(link, error)
            raise
        end = End(session, context.key_id, time.monotonic())
        self.book.finish(link, end)
        self._bus.spawn(self._activate(link, end), "channel opened")

    def _not_finished(self, link: Link, error: TocsinError) -> None:
        """Give up what the peer has answered wrongly; without the QKD key, if that may be the cause, try again."""
        initiation, link.initiation = link.initiation, None
        server = self._shared.qkd
        mixed = initiation is not None and initiation.offers_qkd and error.reason == "bad_confirmation"
        if mixed and server is not None:
            self._bus.metrics.count("qkd_failures.qkd_mismatch")
            log.warning("qkd_mismatch", peer=link.peer.name)
            if not server.required:
                link.initiation = Initiation.begin(Parties(str(self._me), str(link.peer)), self._shared.limits)
                self._say(CHANNEL_OFFER, messages.ChannelOffer(offer=link.initiation.offer), link.peer)
                return
            error = UntrustedError("the two key servers gave different keys", reason="qkd_mismatch")
        opening = self._opening.get(link.peer.name)
        if opening is not None:
            self._fail(opening, error)

    def _on_refusal(self, body: messages.ChannelRefusal, context: Context) -> None:
        link = self.book.find(context.sender.name)
        if link is None or link.initiation is None or link.initiation.digest != body.offer:
            return
        link.initiation = None
        opening = self._opening.get(link.peer.name)
        if opening is not None:
            why = f"{link.peer.name} refuses the channel: {body.reason}"
            self._fail(opening, DeniedError(why, reason=body.reason))

    def _on_unknown(self, body: messages.ChannelUnknown, context: Context) -> None:
        link = self.book.find(context.sender.name)
        if link is None or link.peer != context.sender:
            return
        if self.book.unknown_to_peer(link, body.channel, body.counter):
            self._bus.metrics.count("channels_lost_by_peer")
            if link.peer.name not in self._opening:
                self._begin(link)

    # --- Frames that come ---------------------------------------------------------------------

    def _open(self, frame: bytes, sender: str) -> Received:
        """Open a frame: the bus calls this, and hands what it returns to :meth:`_take`."""
        now_s = time.monotonic()
        try:
            link, end, data, confirmed = self.book.open(frame, sender, now_s)
        except UntrustedError as error:
            if error.reason == "unknown_channel":
                self._say_unknown(frame, sender, now_s)
            raise
        if link.peer.name in self._shared.barred or self._bus.trust.is_revoked(end.peer_key):
            self.book.drop(link)
            self._bus.metrics.count("channels_cut.untrusted")
            raise UntrustedError(f"{link.peer.name} is not trusted any more", reason="revoked")
        payload = payloads.decode(data)
        if payload.message_type is not None:
            _check_policy(payload.message_type, cast("Message", payload.data), link.peer, self._me)
        return Received(link, end, payload, confirmed)

    def _take(self, received: Received) -> None:
        link, end, payload, confirmed = received
        if payload.kind is payloads.Kind.CLOSED:
            self.book.drop(link)
            self._bus.metrics.count("channels_closed_by_peer")
            return
        if confirmed:
            self._bus.spawn(self._activate(link, end), "channel confirmed")
        if payload.kind is not payloads.Kind.READY:
            link.received += 1
            self._deliver(payload.data, link.peer)

    def _say_unknown(self, frame: bytes, sender: str, now_s: float) -> None:
        peer = self._find(sender)
        if peer is None or peer == self._me or sender in self._shared.barred:
            return
        if not self._shared.notices.take(f"{sender} {self._me.name}", now_s):
            self._bus.metrics.count("channel_notices_withheld")
            return
        unknown = messages.ChannelUnknown(channel=frame[1:17], counter=int.from_bytes(frame[17:25], "big"))
        try:
            self._say(CHANNEL_UNKNOWN, unknown, peer)
        except TocsinError as error:
            self._bus.metrics.count(f"channel_failures.{error.reason}")

    # --- Small things -------------------------------------------------------------------------

    def _say(self, kind: MessageType[Message], body: Message, peer: SpiffeId) -> None:
        self._bus.publish_nowait(CHANNEL, kind, body, sender=self._me, at={"agent": peer.name})

    def _refuse(self, peer: SpiffeId, digest: bytes, reason: str) -> None:
        self._say(CHANNEL_REFUSAL, messages.ChannelRefusal(offer=digest, reason=reason), peer)

    async def _say_closed(self, link: Link) -> None:
        end = link.current
        if end is None or not end.may_send(time.monotonic()):
            return
        try:
            frame = end.session.seal(payloads.CLOSED)
            await self._bus.send_frame(_frames_to(link.peer, self._me), frame)
        except TocsinError as error:
            self._bus.metrics.count(f"channel_failures.{error.reason}")

    async def _evicted(self, link: Link) -> None:
        self._bus.metrics.count("channels_evicted")
        await self._say_closed(link)
        self.book.drop(link)

    def _require_admissible(self, peer: SpiffeId) -> None:
        if peer == self._me:
            raise InvalidInputError("an agent has no channel to itself", reason="channel_to_itself")
        if peer.name in self._shared.barred:
            raise DeniedError(f"{peer.name} gets no channel now", reason="barred")

    @staticmethod
    def _fail(opening: asyncio.Future[None], error: TocsinError) -> None:
        if not opening.done():
            opening.set_exception(error)


def _check_policy(kind: MessageType[Message], body: Message, sender: SpiffeId, recipient: SpiffeId) -> None:
    """Apply the policy of what is routed: a channel carries nothing that a router would not."""
    role: Role | None = recipient.role
    audience = f"agent.{recipient.name}"
    check(kind.name, sender, audience, Priority.NORMAL, body, lambda _: role)


def _frames_to(peer: SpiffeId, me: SpiffeId) -> str:
    return CHANNEL_FRAME.at(agent=peer.name, sender=me.name)


def _no_answer(peer: SpiffeId, timeout_s: float) -> UnavailableError:
    return UnavailableError(
        f"{peer.name} did not answer within {timeout_s:g} s",
        reason="no_answer",
        advice="is its host running? `tocsin` shows who lives",
    )


def _retrieve(opening: asyncio.Future[None]) -> None:
    """Who asked may have gone: what became of it was counted."""
    if not opening.cancelled():
        opening.exception()
