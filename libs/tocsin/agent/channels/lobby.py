"""A host's part of the channels: a desk for each of its agents, and what they share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from tocsin.agent.channels.channel import Channel
from tocsin.agent.channels.desk import SWEEP_S, ChannelDesk, Shared
from tocsin.agent.channels.network import Network, establish
from tocsin.agent.channels.qkd import KeyServer, QkdLink
from tocsin.agent.peers import Peers
from tocsin.agent.settings import HostSettings
from tocsin.bus import Bus, Context
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import CHANNEL_OPEN
from tocsin.contracts.channels import ChannelsOpened, OpenChannels, OpenedChannel
from tocsin.contracts.errors import DeniedError, TocsinError
from tocsin.contracts.health import Standing
from tocsin.contracts.identifiers import SpiffeId
from tocsin.crypto.channels import Limits

ANSWER_S = 3.0
"""What an agent has to answer in, beyond the time for its channels."""


class Party(NamedTuple):
    """An agent that this host carries."""

    id: SpiffeId
    key_id: bytes
    deliver: Callable[[bytes | Message, SpiffeId], None]
    """Takes what a peer has sent; it does not wait."""


class Lobby:
    """The channels of all agents of one host."""

    def __init__(self, bus: Bus, peers: Peers, settings: HostSettings, parties: Iterable[Party]) -> None:
        self._bus = bus
        self._peers = peers
        self._settings = settings
        self.limits = Limits(settings.channel_messages, settings.channel_age_s).check()
        self._qkd = self._key_server(settings)
        self.shared = Shared(bus, limits=self.limits, max_links=settings.channels_per_agent, qkd=self._qkd)
        by_name = {party.id.name: party for party in parties}
        self._ids = {name: party.id for name, party in by_name.items()}
        self._desks = {
            name: ChannelDesk(self.shared, party.id, party.key_id, party.deliver, self._find)
            for name, party in by_name.items()
        }

    async def start(self) -> None:
        """Listen for all agents."""
        await asyncio.gather(
            *(desk.start() for desk in self._desks.values()),
            *(
                self._bus.serve(
                    CHANNEL_OPEN, partial(self._open_for, name), concurrency=8, sender=who, at={"agent": name}
                )
                for name, who in self._ids.items()
            ),
        )
        self._bus.revocations.on_change(self.sweep)
        self._bus.standings.on_standing(self._judge)
        self._bus.spawn(self._sweep_often(), "channels")

    def _judge(self, standing: Standing) -> None:
        if standing.quarantined:
            self.bar(standing.agent)
        else:
            self.unbar(standing.agent)

    async def stop(self) -> None:
        """Close every channel."""
        await asyncio.gather(*(desk.stop() for desk in self._desks.values()))
        if self._qkd is not None:
            await self._qkd.aclose()

    def bar(self, name: str) -> None:
        """Give an agent no channel and cut those that it has: it is quarantined."""
        self.shared.barred.add(name)
        self.sweep()

    def unbar(self, name: str) -> None:
        """Let an agent have channels again."""
        self.shared.barred.discard(name)

    def desk(self, name: str) -> ChannelDesk:
        """Return the channels of one of the host's agents."""
        return self._desks[name]

    async def channel(self, agent: str, peer: str, *, timeout_s: float) -> Channel:
        """Return a channel from one of the host's agents to a peer: see :meth:`ChannelDesk.channel`."""
        return await self._desks[agent].channel(peer, timeout_s=timeout_s)

    async def establish(
        self, me: SpiffeId, agents: Sequence[str], links: Iterable[tuple[str, str]] | None, *, timeout_s: float
    ) -> Network:
        """Open the channels of a group, asking as ``me``: see :func:`tocsin.agent.channels.network.establish`.

        Raises:
            DeniedError: ``sender_not_allowed``: ``me`` is no admin.
        """
        if not CHANNEL_OPEN.callers.admit(me):
            raise DeniedError(f"{me} may not have channels opened", reason="sender_not_allowed")

        async def ask(agent: str, wanted: OpenChannels) -> ChannelsOpened:
            within_s = wanted.timeout_s + ANSWER_S
            return await self._bus.request(
                CHANNEL_OPEN, wanted, timeout_s=within_s, sender=me, at={"agent": agent}
            )

        return await establish(agents, ask, links=links, limits=self.limits, timeout_s=timeout_s)

    def sweep(self) -> None:
        """Erase old keys, and those of peers that are not trusted any more."""
        for desk in self._desks.values():
            desk.sweep()
        self._bus.metrics.gauge("channels", sum(len(desk.book) for desk in self._desks.values()))

    async def _sweep_often(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    async def _open_for(self, agent: str, wanted: OpenChannels, _: Context) -> ChannelsOpened:
        desk = self._desks[agent]

        async def one(peer: str) -> OpenedChannel:
            try:
                channel = await desk.channel(peer, timeout_s=wanted.timeout_s)
            except TocsinError as error:
                return OpenedChannel(peer=peer, reason=error.reason)
            return OpenedChannel(peer=peer, qkd=channel.qkd)

        return ChannelsOpened(channels=tuple(await asyncio.gather(*map(one, wanted.peers))))

    def _find(self, name: str) -> SpiffeId | None:
        record = self._peers.find(name)
        if record is None:
            return self._ids.get(name)
        return SpiffeId.agent(self._bus.trust.domain, record.role, record.name)

    def _key_server(self, settings: HostSettings) -> QkdLink | None:
        if settings.qkd_url is None:
            return None
        server = KeyServer(
            settings.qkd_url,
            sae=settings.qkd_saes.get(settings.host_name, settings.host_name),
            timeout_s=settings.qkd_timeout_s,
            ca_file=settings.qkd_ca_file,
            cert_file=settings.qkd_cert_file,
            key_file=settings.qkd_key_file,
        )
        return QkdLink(server, required=settings.qkd_required, sae_of=self._sae_of)

    def _sae_of(self, agent: str) -> str | None:
        record = self._peers.find(agent)
        return None if record is None else self._settings.qkd_saes.get(record.host, record.host)
