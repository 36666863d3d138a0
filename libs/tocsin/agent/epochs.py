"""The epoch that a process goes by: the latest that it has come to believe.

An epoch is believed if the root signed it, or if the certificate of the decision that made it holds in an epoch that is
believed. Late processes catch up over any number of epochs: a certificate names its chain back to the root's record,
and each link stands in the object store.

Epochs are read from their stream at start and after each reconnection, and followed in between. Later means the higher
number; of two with one number the root's own, and of two of the root's the one made later: so an older one
can only be a replay, and is left.

Does not protect against a broker that shows a fresh host an older epoch and hides the later.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType

from tocsin.agent.roles.patience import patiently
from tocsin.bus import Bus, Context
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import CONSENSUS_EPOCHS
from tocsin.contracts.decisions import Epoch, EpochDecided
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.evidence.bundle import Bundle
from tocsin.evidence.certificate import DecisionCertificate
from tocsin.evidence.epochs import InstalledEpoch, open_epoch
from tocsin.evidence.succession import still_decides
from tocsin.evidence.verification import follow
from tocsin.telemetry import get_logger

FETCH_WITHIN_S = 10.0
"""How long a certificate is asked for while the broker is away."""
MAX_KNOWN = 16
"""Epochs that are remembered: their decisions are verified without the chain."""
SEEK_EVERY_S = 5.0
"""How often the stream is read because of an epoch that somebody speaks of."""
MAX_TRIED = 32
"""Epochs of the stream that are tried, from the highest number down, until one is believed."""

log = get_logger(__name__)


class EpochReader:
    """Comes to believe epochs, and remembers the last ones."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._known: OrderedDict[bytes, InstalledEpoch] = OrderedDict()

    @property
    def known(self) -> Mapping[bytes, InstalledEpoch]:
        """The last epochs that were believed, by digest."""
        return MappingProxyType(self._known)

    def keep(self, epoch: InstalledEpoch) -> None:
        """Remember an epoch that is believed."""
        self._known[epoch.digest] = epoch
        self._known.move_to_end(epoch.digest)
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    async def read(self, body: Message, context: Context) -> InstalledEpoch:
        """Return the epoch that a message of subject ``consensus.epochs`` is about.

        Raises:
            TocsinError: it cannot be believed, or the broker is away.
        """
        if isinstance(body, EpochDecided):
            epoch = await self._decided(body)
        else:
            epoch = await asyncio.to_thread(open_epoch, context.data, self._bus.trust, self._bus.opener.batches)
        self.keep(epoch)
        return epoch

    async def _decided(self, told: EpochDecided) -> InstalledEpoch:
        if (held := self._known.get(told.epoch)) is not None:
            return held
        link = await self._fetch(told.decision)
        before = self._known.get(told.previous) or await self._before(link)
        epoch = await self._follow(before, link)
        if epoch.digest != told.epoch or epoch.epoch.number != told.number:
            raise InvalidInputError("the certificate is of another epoch", reason="wrong_record")
        return epoch

    async def _before(self, link: bytes) -> InstalledEpoch:
        """Return the epoch in which a decision was made, by its chain from the root's record."""
        certificate = DecisionCertificate.decode(link)
        trust, batches = self._bus.trust, self._bus.opener.batches
        epoch = await asyncio.to_thread(open_epoch, certificate.epoch, trust, batches)
        made = {one.chain: one for one in self._known.values() if one.data == epoch.data}
        for count, decision in enumerate(certificate.chain, 1):
            known = made.get(certificate.chain[:count])
            epoch = known or await self._follow(epoch, await self._fetch(decision))
        self.keep(epoch)
        return epoch

    async def _follow(self, epoch: InstalledEpoch, link: bytes) -> InstalledEpoch:
        return await asyncio.to_thread(follow, epoch, link, self._bus.backend, self._bus.opener.batches)

    async def _fetch(self, decision: bytes) -> bytes:
        return await patiently(lambda: self._bus.get_certificate(decision.hex()), within_s=FETCH_WITHIN_S)

    async def find(self, digest: bytes) -> InstalledEpoch | None:
        """Return an epoch by its digest, however old, if it is remembered or stands in the stream and is believed.

        Raises:
            UnavailableError: the broker is away.
        """
        if (known := self._known.get(digest)) is not None:
            return known
        for body, context in await self._bus.since(CONSENSUS_EPOCHS, start_ns=0):
            if digest != (body.epoch if isinstance(body, EpochDecided) else context.leaf):
                continue
            try:
                return await self.read(body, context)
            except TocsinError as error:
                self._bus.metrics.count(f"epoch_failures.{error.reason}")
        return None

    async def latest(self, since_ns: int = 0) -> InstalledEpoch | None:
        """Return the latest epoch in the stream that is believed, of those stored since a moment.

        Raises:
            UnavailableError: the broker is away.
        """
        found = await self._bus.since(CONSENSUS_EPOCHS, start_ns=since_ns)
        if (last := await self._bus.last(CONSENSUS_EPOCHS)) is not None:
            found.append(last)
        told = [(body, context) for body, context in found if isinstance(body, Epoch | EpochDecided)]
        told.sort(key=lambda one: (one[0].number, isinstance(one[0], Epoch), one[1].content.issued_at))
        for body, context in reversed(told[-MAX_TRIED:]):
            try:
                return await self.read(body, context)
            except TocsinError as error:
                # Whoever can write to the broker can put anything there; it hides nothing that holds.
                self._bus.metrics.count(f"epoch_failures.{error.reason}")
                log.warning("epoch_not_believed", number=body.number, reason=error.reason, detail=str(error))
        return None


async def fetch_proof(bus: Bus, decision: bytes) -> bytes:
    """Return what proves a decision to whoever has the root: its certificate, in a bundle with its chain if it has one.

    Raises:
        TocsinError: the store does not hold all of it, or it is too large.
    """
    certificate = await bus.get_certificate(decision.hex())
    chain = DecisionCertificate.decode(certificate).chain
    if not chain:
        return certificate
    return Bundle(certificate, tuple([await bus.get_certificate(link.hex()) for link in chain])).encode()


class EpochKeeper:
    """Follows the epochs that consensus has installed."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._taking = asyncio.Lock()
        self._seek_from = 0.0
        self.reader = EpochReader(bus)
        self.epoch: InstalledEpoch | None = None

    async def start(self) -> None:
        """Read the last epoch, if there is one, and follow."""
        await self._bus.subscribe(CONSENSUS_EPOCHS, self.on_epoch)
        self._bus.connection.on_reconnect(self._reconnected)
        await self._read_last()

    def deciding(self, digest: bytes, now_ns: int) -> InstalledEpoch | None:
        """Return an epoch if agents here may ballot in it: the one that is held, or for a moment the one before."""
        held = self.epoch
        if held is None or not still_decides(digest, held, now_ns):
            return None
        return held if digest == held.digest else self.reader.known.get(digest)

    async def on_epoch(self, body: Message, context: Context) -> None:
        """Take an epoch if it is later than the one held.

        Raises:
            TocsinError: it cannot be believed.
        """
        if not is_news(body, self.epoch):
            return
        async with self._taking:
            self._take(await self.reader.read(body, context))

    async def seek(self, digest: bytes) -> None:
        """Look into the stream for an epoch that somebody speaks of and that is not known here, once in a while."""
        now = asyncio.get_running_loop().time()
        if digest in self.reader.known or now < self._seek_from:
            return
        self._seek_from = now + SEEK_EVERY_S
        await self._read_last()

    def _take(self, offered: InstalledEpoch) -> None:
        if self.epoch is not None and age(offered) <= age(self.epoch):
            return
        self.epoch = offered
        log.info(
            "epoch_taken",
            number=offered.epoch.number,
            participants=len(offered.epoch.participants),
            decided=not offered.is_checkpoint,
        )

    def _reconnected(self) -> None:
        self._bus.spawn(self._read_last(), "read epoch")

    async def _read_last(self) -> None:
        try:
            async with self._taking:
                latest = await self.reader.latest(0 if self.epoch is None else self.epoch.epoch.created_ns)
                if latest is not None:
                    self._take(latest)
        except TocsinError as error:
            self._bus.metrics.count(f"epoch_failures.{error.reason}")
            log.warning("epoch_not_read", reason=error.reason, detail=str(error))


def is_news(body: Message, held: InstalledEpoch | None) -> bool:
    """Tell whether a message may be about a later epoch, before anything is fetched and verified for it."""
    if held is None or not isinstance(body, Epoch | EpochDecided):
        return True
    return body.number > held.epoch.number or (isinstance(body, Epoch) and body.number == held.epoch.number)


def age(epoch: InstalledEpoch) -> tuple[int, bool, int]:
    """Return what later epochs have more of."""
    return epoch.epoch.number, epoch.is_checkpoint, epoch.epoch.created_ns
