"""``tocsin agent enroll --token``: a new host's side. It makes its keys and has them certified, before it ever runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tocsin.agent.host import open_membership
from tocsin.agent.settings import HostSettings
from tocsin.cli.invite import host_settings, read_ticket, unpack
from tocsin.telemetry import Metrics


async def enroll(
    ticket_path: Path, out: Path, *, remote: str | None, timeout_s: float
) -> tuple[Path, HostSettings]:
    """Redeem a ticket: make the host's folder, its keys, and have fleet certify them while the tokens are good.

    Run again after it was ended, it goes on with the keys that it has made.

    Args:
        ticket_path: what `tocsin agent enroll --issue` wrote.
        out: folder to make.
        remote: where the host reaches the broker, if not where the ticket says.
        timeout_s: how long to wait for the broker and for fleet, in seconds.

    Returns:
        the settings file, and what it says.

    Raises:
        TocsinError: as :func:`read_ticket` and :func:`unpack`; or fleet refuses, e.g. ``token_expired``,
            ``token_used``, ``token_withdrawn`` or ``bad_token``.
    """
    env = unpack(read_ticket(ticket_path), out, remote=remote)
    settings = host_settings(env).model_copy(update={"connect_timeout_s": timeout_s})
    metrics = Metrics()
    membership = await asyncio.to_thread(open_membership, settings)
    async with membership.make_bus(settings, metrics) as bus:
        await membership.join(bus, timeout_s=timeout_s)
    return env, settings
