"""The baseline's relay: takes what comes in and sends it on to the agent that the subject names. Nothing else."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from _plain import INTO, OUT, PENDING_BYTES, PENDING_MESSAGES, connect
from nats.aio.msg import Msg
from pydantic import BaseModel

from tocsin.telemetry import set_aside


class RelayPlan(BaseModel):
    """Where the broker is."""

    nats_url: str
    nats_token_file: str


async def relay(plan: RelayPlan) -> None:
    """Relay until standard input ends."""
    client = await connect(plan.nats_url, plan.nats_token_file)

    async def forward(message: Msg) -> None:
        await client.publish(OUT + message.subject[len(INTO) :], message.data)

    await client.subscribe(
        f"{INTO}.*",
        queue="relay",
        cb=forward,
        pending_msgs_limit=PENDING_MESSAGES,
        pending_bytes_limit=PENDING_BYTES,
    )
    await client.flush()
    print('{"state": "ready"}', flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await client.close()


if __name__ == "__main__":
    set_aside()
    uvloop.run(relay(RelayPlan.model_validate_json(sys.stdin.readline())))
