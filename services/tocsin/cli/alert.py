"""``tocsin alert send``: raise an alert by hand and, for an emergency, say what became of it, agent by agent."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from types import MappingProxyType

from tocsin.bus import Bus, Sent
from tocsin.contracts.catalogue import EVENT, EVENT_DELIVERY, ROUTE, THREAT_ALERT
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.identifiers import Priority, Severity
from tocsin.contracts.routing import Delivery, ThreatAlert

DEFAULT_DEADLINE_S = 10.0
ACCOUNT_GRACE_S = 15.0
"""After the deadline: for a router that takes over from one that died, and for a broker that starts again."""
LOOK_S = 1.0
"""How often the stream is read for an account that was not heard."""
MAX_SHOWN = 40
"""Agents of one kind that are printed; ``--json`` has all."""

PRIORITIES = MappingProxyType(
    {
        Severity.INFO: Priority.LOW,
        Severity.LOW: Priority.LOW,
        Severity.MEDIUM: Priority.NORMAL,
        Severity.HIGH: Priority.HIGH,
        Severity.CRITICAL: Priority.CRITICAL,
    }
)
_, _SERVICE, _KIND = EVENT_DELIVERY.name.split(".")
ACCOUNTS = MappingProxyType({"service": _SERVICE, "kind": _KIND})


@dataclass(frozen=True, slots=True)
class Raised:
    """What became of an alert, as far as it was waited for."""

    sent: Sent
    accepted_ms: float | None
    """From the sending until a router said that the stream has it; None below CRITICAL: nobody says so."""
    account: Delivery | None = None


async def raise_alert(bus: Bus, alert: ThreatAlert, audience: str, *, wait: bool) -> Raised:
    """Send an alert as this command; one that is CRITICAL returns once it is stored or, to ``wait``, accounted for.

    Raises:
        UnavailableError: ``no_answer``: no router took it; ``no_account``: none has accounted for it.
        TocsinError: a router refuses it.
    """
    priority = PRIORITIES[alert.severity]
    sent = await bus.make(THREAT_ALERT, alert, audience=audience, priority=priority)
    if priority is not Priority.CRITICAL:
        where = ROUTE.at(type=THREAT_ALERT.name, priority=priority.token, agent=bus.id.name)
        await bus.send(where, sent)
        await bus.flush()
        return Raised(sent, None)
    deadline_s = alert.deadline_s or DEFAULT_DEADLINE_S
    accounts = _Accounts(bus, sent)
    if wait:
        await accounts.listen()
    begun = time.perf_counter()
    await bus.emergency(sent, bus.id, timeout_s=deadline_s)
    accepted_ms = (time.perf_counter() - begun) * 1e3
    account = await accounts.one(within_s=deadline_s + ACCOUNT_GRACE_S) if wait else None
    return Raised(sent, accepted_ms, account)


class _Accounts:
    """Waits for the account of one emergency: heard when it is published, or read from its stream."""

    def __init__(self, bus: Bus, sent: Sent) -> None:
        self._bus = bus
        self._leaf = sent.leaf
        self._reader = bus.reader(EVENT, start_ns=sent.issued_at, at=ACCOUNTS)
        self._found: asyncio.Future[Delivery] = asyncio.get_running_loop().create_future()

    async def listen(self) -> None:
        """Begin to listen."""

        async def on_account(body: Delivery, _: object) -> None:
            self._note(body)

        await self._bus.subscribe(EVENT, on_account, at=ACCOUNTS)

    async def one(self, *, within_s: float) -> Delivery:
        """Return the account.

        Raises:
            UnavailableError: ``no_account``.
        """
        until_s = time.monotonic() + within_s
        while time.monotonic() < until_s:
            await asyncio.wait([self._found], timeout=min(LOOK_S, until_s - time.monotonic()))
            if self._found.done():
                return self._found.result()
            try:
                for stored in await self._reader.read():
                    self._note(stored.body)
            except UnavailableError:
                continue  # the broker is away: it may come back in time
        raise UnavailableError(
            f"no router has accounted for the alert within {within_s:g} s",
            reason="no_account",
            advice="it is stored and will be delivered; is a router running?",
        )

    def _note(self, body: object) -> None:
        if isinstance(body, Delivery) and body.leaf == self._leaf and not self._found.done():
            self._found.set_result(body)


def as_json(raised: Raised) -> str:
    """Return what became of it, as one JSON object."""
    shown: dict[str, object] = {
        "message": raised.sent.id.hex(),
        "leaf": raised.sent.leaf.hex(),
        "issued_at_ns": raised.sent.issued_at,
        "accepted_ms": raised.accepted_ms,
    }
    if (account := raised.account) is not None:
        shown |= {
            "due": account.due,
            "delivered": account.delivered,
            "undelivered": list(account.undelivered),
            "complete": account.complete,
            "first_ms": account.first_ms,
            "last_ms": account.last_ms,
            "agents_per_s": rate(account),
            "by_core": account.by_core,
            "by_stream": account.by_stream,
            "unlisted": account.unlisted,
            "agents": [
                {"agent": agent, "host": group.host, "channel": group.channel, "ms": group.ms}
                for group in account.confirmed
                for agent in group.agents
            ],
        }
    return json.dumps(shown, indent=2)


def as_text(raised: Raised) -> list[str]:
    """Return what became of it, in lines for a person."""
    if raised.accepted_ms is None:
        return [f"sent       {raised.sent.id.hex()}; only critical alerts are confirmed"]
    lines = [f"accepted   {raised.sent.id.hex()} after {raised.accepted_ms:.1f} ms: stream ALERTS has it"]
    account = raised.account
    if account is None:
        return lines
    lines.append(f"due        {account.due} agents")
    channels = f"{account.by_core} by core, {account.by_stream} by the stream"
    lines.append(f"delivered  {account.delivered}: {channels}")
    if account.first_ms is not None and account.last_ms is not None:
        speed = f"{rate(account):.0f} agents per second"
        lines.append(f"time       first {account.first_ms:.1f} ms, last {account.last_ms:.1f} ms; {speed}")
    for group in account.confirmed[:MAX_SHOWN]:
        names = _names(group.agents)
        lines.append(f"  {group.ms:9.1f} ms  {group.channel:6}  {group.host}: {names}")
    if len(account.confirmed) > MAX_SHOWN:
        lines.append(f"  ... and {len(account.confirmed) - MAX_SHOWN} more confirmations; --json shows all")
    if account.undelivered:
        lines.append(f"undelivered {account.due - account.delivered}: {_names(account.undelivered)}")
    elif not account.due:
        lines.append("undelivered: nobody was due")
    return lines


def rate(account: Delivery) -> float | None:
    """Return agents per second, from the sender's clock to the last agent's copy; None if nobody had one."""
    if not account.delivered or account.last_ms is None or account.last_ms <= 0:
        return None
    return account.delivered / (account.last_ms / 1e3)


def _names(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(names[:MAX_SHOWN]) + more
