"""A worker of the baseline: the same traffic by the NATS client alone, without envelopes, keys or models.

A body is the message's number in eight bytes and filler up to the size. Nothing is checked: this is as little as
a relay can do, so that what is over it is Tocsin's whole cost.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import nats
from _traffic import Arrivals
from _worker import TrafficPlan, work
from nats.aio.client import Client
from nats.aio.msg import Msg

from tocsin.bus.accounts import SERVICE_USER

INTO = "load.in"
OUT = "load.out"
NUMBER_BYTES = 8
PENDING_MESSAGES = 65_536
PENDING_BYTES = 64 * 1024 * 1024
"""As tocsin.bus.connection has them."""


async def connect(url: str, token_file: str) -> Client:
    """Connect as the bus does."""
    return await nats.connect(url, user=SERVICE_USER, password=_token(token_file))


def _token(token_file: str) -> str:
    return Path(token_file).read_text().strip()


class PlainPlane:
    """Sends on ``load.in.<agent>`` and receives on ``load.out.<agent>``."""

    def __init__(self, plan: TrafficPlan) -> None:
        self.arrivals = Arrivals(plan.schedule)
        self._plan = plan
        self._filler = bytes(max(0, plan.body_bytes - NUMBER_BYTES))
        self._client: Client | None = None

    async def __aenter__(self) -> Self:
        self._client = await connect(self._plan.nats_url, self._plan.nats_token_file)
        for name in self._plan.agents:
            await self._client.subscribe(
                f"{OUT}.{name}",
                cb=self._receive,
                pending_msgs_limit=PENDING_MESSAGES,
                pending_bytes_limit=PENDING_BYTES,
            )
        await self._client.flush()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()

    async def send(self, number: int, sender: str, recipient: str) -> None:
        """Send one message to the relay."""
        del sender  # a plain message does not say who sent it
        assert self._client is not None  # noqa: S101 - set on entering
        await self._client.publish(f"{INTO}.{recipient}", number.to_bytes(NUMBER_BYTES, "big") + self._filler)

    async def _receive(self, message: Msg) -> None:
        self.arrivals.arrived(int.from_bytes(message.data[:NUMBER_BYTES], "big"))

    def counters(self) -> dict[str, int]:
        """Return nothing: nothing is counted."""
        return {}


if __name__ == "__main__":
    work(TrafficPlan, PlainPlane)
