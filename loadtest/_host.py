"""A worker that speaks Tocsin: a host process with agents, as the system's own hosts are.

One connection and one bus. With key scope ``host`` one key signs for all its agents, with ``agent`` each has its
own. Each agent has a subscription of its own; what arrives has passed all twelve steps before it is counted.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self

from _traffic import Arrivals, padded
from _worker import TrafficPlan, work
from pydantic import BaseModel, ConfigDict

from tocsin.bus import Bus, BusSettings, Context, Credentials
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import COORDINATION, DELIVER_AGENT, ROUTE, THREAT_ALERT
from tocsin.contracts.identifiers import Priority, Severity, SpiffeId
from tocsin.contracts.observations import Observations
from tocsin.contracts.routing import Coordination, ThreatAlert
from tocsin.contracts.subjects import MessageType
from tocsin.crypto import select_backend
from tocsin.telemetry import Metrics, configure_logging

FIRST = 2**32
"""Message 0's number on the wire: all numbers then take the same nine bytes of msgpack."""
DIGITS = 12
TYPES: dict[str, MessageType[Message]] = {kind.name: kind for kind in (COORDINATION, THREAT_ALERT)}


class KeyPlan(BaseModel):
    """A credentials file and the ids that its key signs for."""

    model_config = ConfigDict(frozen=True)

    name: str
    ids: tuple[str, ...]


class HostPlan(TrafficPlan):
    """What a host is told besides."""

    type_name: str
    signature_backend: str
    credentials_dir: str
    own: KeyPlan
    """The process's own key; the first id is the host's."""
    keys: tuple[KeyPlan, ...]
    """Keys of single agents."""
    ids: dict[str, str]
    """SPIFFE id of each agent that it carries, by name."""


class HostPlane:
    """Sends on ``route.*`` and receives on ``deliver.agent.*``."""

    def __init__(self, plan: HostPlan) -> None:
        self.arrivals = Arrivals(plan.schedule)
        self._plan = plan
        self._kind = TYPES[plan.type_name]
        filler = padded(lambda text: body_of(self._kind, 0, text), plan.body_bytes)
        # Made beforehand: what an agent has to say is its own work, not the bus's.
        share = plan.schedule.share(plan.sender)
        self._bodies = {number: body_of(self._kind, number, filler) for number in share}
        self._ids = {name: SpiffeId.parse(text) for name, text in plan.ids.items()}
        self._folder = Path(plan.credentials_dir)
        backend = select_backend(plan.signature_backend)
        own = SpiffeId.parse(plan.own.ids[0])
        self._bus = Bus(
            BusSettings(
                nats_url=plan.nats_url,
                nats_token_file=Path(plan.nats_token_file),
                credentials_dir=self._folder,
                signature_backend=plan.signature_backend,
            ),
            Credentials.load(self._folder, own, plan.own.name, backend),
            Metrics(),
        )

    async def __aenter__(self) -> Self:
        configure_logging(self._plan.own.name, level="warning")
        chains = []
        for key in self._plan.keys:
            ids = tuple(map(SpiffeId.parse, key.ids))
            credentials = Credentials.load(self._folder, ids[0], key.name, self._bus.backend)
            self._bus.add_key(credentials.key, ids)
            chains.append((ids[0], credentials.chain))
        await self._bus.__aenter__()
        # All at once: the slow part is the broker's confirmation.
        await asyncio.gather(*(self._bus.put_identity(spiffe_id, chain) for spiffe_id, chain in chains))
        await asyncio.gather(
            *(
                self._bus.subscribe(DELIVER_AGENT, self._receive, at={"agent": name})
                for name in self._plan.agents
            )
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._bus.__aexit__(kind, error, trace)

    def send(self, number: int, sender: str, recipient: str) -> None:
        """Send one message through the router."""
        self._bus.publish_nowait(
            ROUTE,
            self._kind,
            self._bodies.pop(number),
            audience=f"agent.{recipient}",
            sender=self._ids[sender],
            at={"type": self._kind.name, "priority": Priority.NORMAL.token, "agent": sender},
        )

    def _receive(self, body: Message, _: Context) -> None:
        self.arrivals.arrived(number_of(body))

    def counters(self) -> dict[str, int]:
        """Return the bus's counters, and what the backend itself has counted."""
        counted = self._bus.backend.counters
        return {
            **self._bus.metrics.statistics().counters,
            "full_signatures": counted.signatures,
            "full_verifications": counted.verifications,
        }


def body_of(kind: MessageType[Message], number: int, filler: str) -> Message:
    """Return the body of message ``number``."""
    if kind is THREAT_ALERT:
        return ThreatAlert(severity=Severity.LOW, summary=f"{number:0{DIGITS}d}{filler[DIGITS:]}")
    return Coordination(content=Observations(source=filler, sequence=FIRST + number))


def number_of(body: Message) -> int:
    """Return which message this is."""
    if isinstance(body, ThreatAlert):
        return int(body.summary[:DIGITS])
    assert isinstance(body, Coordination) and isinstance(body.content, Observations)  # noqa: S101, PT018 - ours
    return body.content.sequence - FIRST


if __name__ == "__main__":
    work(HostPlan, HostPlane)
