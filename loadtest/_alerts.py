"""What became of a run's alerts: who sent them, who had them when, and what the routers' accounts say of each.

Pure: what the hosts heard and the verified accounts come in, figures come out. Two countings are held against each
other: the routers' (from receipts) and the agents' own (in their handlers).

An alert is *accounted for* when its sender was told that it was not sent, or a router's account says who had it
and lists who had not. An account that counts more agents than had it is a false one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common import latency
from pydantic import BaseModel, ConfigDict

from tocsin.contracts.routing import Delivery

MAX_LISTED = 20
"""Names of agents listed for one alert."""


class SentAlert(BaseModel):
    """One alert as its sender saw it."""

    model_config = ConfigDict(frozen=True)

    number: int
    begun_ns: int
    """When the sending began: before the envelope is made; monotonic."""
    took_ms: float
    leaf_hex: str = ""
    """Leaf hash of what was sent; empty if the sender was told that it was not."""
    failure: str = ""
    """The reason that the sender was told."""

    @property
    def ended_ns(self) -> int:
        """When the sending ended, well or not; monotonic."""
        return self.begun_ns + round(self.took_ms * 1e6)


class Heard(BaseModel):
    """What one host heard, and sent."""

    agents: tuple[str, ...]
    arrivals: list[tuple[int, int, int]]
    """Number of the alert, index of the agent, monotonic nanoseconds; each in its agent's handler."""
    sent: list[SentAlert]
    counters: dict[str, int]


@dataclass(frozen=True, slots=True)
class Told:
    """A router's account, and when the router issued it."""

    account: Delivery
    issued_ns: int
    """By the clock of the arrivals."""


@dataclass(slots=True)
class Alert:
    """One alert, with all that is known of it."""

    sent: SentAlert
    agents: int
    """How many there are: all of them are to have it."""
    first_ns: dict[str, int] = field(default_factory=dict)
    """When each agent had it first."""
    twice: int = 0
    """Times that an agent was handed it again."""
    told: Told | None = None

    @property
    def complete(self) -> bool:
        """Whether every agent had it."""
        return len(self.first_ns) == self.agents

    @property
    def accounted(self) -> bool:
        """Whether its sender was told, or a router has said who had it and who had not."""
        return bool(self.sent.failure) or self.told is not None

    @property
    def overclaimed(self) -> int:
        """How many agents more its account counts than had it."""
        return max(0, self.told.account.delivered - len(self.first_ns)) if self.told else 0

    def after_ms(self, at_ns: int) -> float:
        """Return the time from the beginning of its sending, in milliseconds."""
        return max(0.0, (at_ns - self.sent.begun_ns) / 1e6)

    @property
    def last_ns(self) -> int:
        """When the last of those who had it had it."""
        return max(self.first_ns.values(), default=0)


def join(hosts: Sequence[Heard], accounts: Iterable[Told]) -> list[Alert]:
    """Put together what is known of each alert, in order.

    Of several accounts of one alert (routers that ended, a second router) the one that counts most agents holds.
    """
    agents = sum(len(host.agents) for host in hosts)
    alerts = {one.number: Alert(one, agents) for host in hosts for one in host.sent}
    for host in hosts:
        for number, agent, at_ns in host.arrivals:
            if (alert := alerts.get(number)) is None:
                continue
            name = host.agents[agent]
            alert.twice += name in alert.first_ns
            alert.first_ns[name] = min(at_ns, alert.first_ns.get(name, at_ns))
    by_leaf = {alert.sent.leaf_hex: alert for alert in alerts.values() if alert.sent.leaf_hex}
    for told in accounts:
        found = by_leaf.get(told.account.leaf.hex())
        if found is not None and (found.told is None or told.account.delivered > found.told.account.delivered):
            found.told = told
    return [alerts[number] for number in sorted(alerts)]


def figures(alerts: Sequence[Alert]) -> dict[str, Any]:
    """Return the figures of a run."""
    sent = [alert for alert in alerts if not alert.sent.failure]
    accounts = [alert.told.account for alert in alerts if alert.told is not None]
    complete = [alert for alert in alerts if alert.complete]
    due = sum(account.due for account in accounts)
    delivered = sum(account.delivered for account in accounts)
    return {
        "sent": len(sent),
        "not_sent": len(alerts) - len(sent),
        "send_failures": dict(Counter(alert.sent.failure for alert in alerts if alert.sent.failure)),
        "received": sum(len(alert.first_ns) for alert in alerts),
        "twice": sum(alert.twice for alert in alerts),
        "lost": sum(alert.agents - len(alert.first_ns) for alert in sent),
        "accounts": len(accounts),
        "complete_accounts": sum(account.complete for account in accounts),
        "due": due,
        "delivered": delivered,
        "undelivered": due - delivered,
        "by_core": sum(account.by_core for account in accounts),
        "by_stream": sum(account.by_stream for account in accounts),
        "unaccounted": sum(not alert.accounted for alert in alerts),
        "overclaimed": sum(alert.overclaimed for alert in alerts),
        "first_agent_ms": latency([a.after_ms(min(a.first_ns.values())) for a in alerts if a.first_ns]),
        "last_agent_ms": latency([alert.after_ms(alert.last_ns) for alert in complete]),
        "account_ms": latency(
            [a.after_ms(a.told.issued_ns) for a in alerts if a.told is not None and a.told.account.complete]
        ),
        "send_ms": latency([alert.sent.took_ms for alert in sent]),
    }


def told_of(alert: Alert) -> dict[str, Any]:
    """Return one alert's own account, for the list of those that did not simply arrive."""
    account = alert.told.account if alert.told is not None else None
    figures: dict[str, Any] = {
        "alert": alert.sent.number,
        "had_by": len(alert.first_ns),
        "accounted": alert.accounted,
    }
    if alert.sent.failure:
        figures["not_sent"] = alert.sent.failure
    if account is not None:
        figures |= {
            "due": account.due,
            "delivered": account.delivered,
            "undelivered": list(account.undelivered[:MAX_LISTED]),
        }
    return figures


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that was broken for a while; monotonic nanoseconds."""

    name: str
    begun_ns: int
    healed_ns: int


def during(faults: Sequence[Fault], alerts: Sequence[Alert]) -> list[dict[str, Any]]:
    """Return what became of the alerts that were being sent while each fault lasted.

    One that was under way when it began counts: with a broker gone, its sending may last as long as the fault.

    ``late`` are those that some agent had only after the fault was healed; ``after_healing_ms`` is how long after
    it the last of the agents had them.
    """
    return [_during(fault, alerts) for fault in faults]


def _during(fault: Fault, alerts: Sequence[Alert]) -> dict[str, Any]:
    meanwhile = [
        alert
        for alert in alerts
        if alert.sent.begun_ns < fault.healed_ns and alert.sent.ended_ns >= fault.begun_ns
    ]
    late = [alert for alert in meanwhile if alert.last_ns > fault.healed_ns]
    counted: Mapping[str, int] = {
        "alerts": len(meanwhile),
        "not_sent": sum(bool(alert.sent.failure) for alert in meanwhile),
        "complete": sum(alert.complete for alert in meanwhile),
        "unaccounted": sum(not alert.accounted for alert in meanwhile),
        "late": len(late),
    }
    after_ms = [(alert.last_ns - fault.healed_ns) / 1e6 for alert in late]
    return {
        "fault": fault.name,
        "lasted_s": round((fault.healed_ns - fault.begun_ns) / 1e9, 3),
        **counted,
        **({"after_healing_ms": latency(after_ms)} if after_ms else {}),
    }
