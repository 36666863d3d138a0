"""The proof that a decision's result was delivered: its message in stream ALERTS, and the routers' account of that."""

from __future__ import annotations

from tocsin.bus import Bus
from tocsin.contracts.catalogue import ALERTS_OF_ALL, EVENT, EVENT_DELIVERY
from tocsin.contracts.decisions import DecisionAnnounced
from tocsin.contracts.routing import Delivery

_, _SERVICE, _KIND = EVENT_DELIVERY.name.split(".")
ACCOUNTS = {"service": _SERVICE, "kind": _KIND}


async def delivery_of(bus: Bus, ended: DecisionAnnounced, *, since_ns: int) -> Delivery | None:
    """Return who has a decision's result; None: no router has accounted for it yet.

    Args:
        bus: any process's.
        ended: how it ended; a result that says something else is a lie, and confirmed by nobody.
        since_ns: from when on the streams are read; some seconds before the announcement.

    Raises:
        UnavailableError: the broker is away.
    """
    told = await bus.reader(ALERTS_OF_ALL, start_ns=since_ns).read()
    leaves = {
        one.context.leaf
        for one in told
        if isinstance(one.body, DecisionAnnounced) and _said(one.body) == _said(ended)
    }
    if not leaves:
        return None
    accounts = [one.body for one in await bus.reader(EVENT, start_ns=since_ns, at=ACCOUNTS).read()]
    found = [one for one in accounts if isinstance(one, Delivery) and one.leaf in leaves]
    # It may have gone out twice, and been accounted for twice: who has it of any has it.
    return max(found, key=lambda one: one.delivered, default=None)


def _said(ended: DecisionAnnounced) -> tuple[object, ...]:
    return ended.decision, ended.round, ended.outcome, ended.option
