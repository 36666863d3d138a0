"""A host's emergencies reach its agents once, and after a restart, even if they cannot be opened at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tocsin.agent import emergencies as module
from tocsin.agent import journal as journal_module
from tocsin.agent.agent import Agent
from tocsin.agent.delivery import Delivery, Resident
from tocsin.agent.emergencies import Emergencies
from tocsin.agent.inbox import Inbox, Job
from tocsin.agent.journal import AlertJournal
from tocsin.agent.receipts import ReceiptSender
from tocsin.bus import Bus, Context
from tocsin.contracts.catalogue import THREAT_ALERT
from tocsin.contracts.errors import ExhaustedError, TocsinError, UnavailableError, UntrustedError
from tocsin.contracts.identifiers import Priority, Role, Severity, SpiffeId
from tocsin.contracts.routing import ThreatAlert
from tocsin.telemetry import Metrics

NOW_NS = 1_800_000_000_000_000_000


class Desk:
    """The part of a bus that emergencies use: it opens what was kept once its troubles are over."""

    def __init__(self, *troubles: TocsinError) -> None:
        self.metrics = Metrics()
        self.troubles = list(troubles)
        self.revoked = False
        self.rejected: list[TocsinError] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.opener = self

    async def reopen(self, _subject: object, _where: str, data: bytes) -> tuple[ThreatAlert, Context]:
        if self.troubles:
            raise self.troubles.pop(0)
        return ThreatAlert(severity=Severity.CRITICAL, summary=data.decode()), context(int(data))

    def require_trusted(self, _kind: object, _key: bytes) -> None:
        if self.revoked:
            raise UntrustedError("a key", reason="revoked")

    def reject(self, error: TocsinError, _subject: str, _data: bytes) -> None:
        self.rejected.append(error)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.append(asyncio.create_task(work, name=name))


class Scribe(Agent):
    """Notes what it is told."""

    role = Role.HUNTER

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.told: list[str] = []

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:  # noqa: ARG002
        self.told.append(alert.summary)


def context(number: int) -> Context:
    sender = SpiffeId.agent("tocsin", Role.ADMIN, "admin-01")
    return cast(
        "Context",
        SimpleNamespace(
            leaf=leaf(number),
            sender=sender,
            kind=THREAT_ALERT,
            priority=Priority.HIGH,
            key_id=b"",
            subject="alert",
            data=b"",
        ),
    )


def leaf(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def told_after_restart(folder: Path, desk: Desk, *, alerts: int, length: int = 100) -> list[str]:
    journal = AlertJournal(folder / "alerts.journal", now_ns=NOW_NS)
    for number in range(alerts):
        await journal.accept(leaf(number), str(number).encode(), "core", NOW_NS, ["a"])
    await journal.close()
    journal = AlertJournal(folder / "alerts.journal", now_ns=NOW_NS)
    scribe, box = Scribe("a"), Inbox("a", desk.metrics, length=length)
    box.put(Job("started", scribe.started, urgent=True))
    bus = cast("Bus", desk)
    await Emergencies(bus, journal, ReceiptSender(bus, "h1"), [(scribe, box)]).restore()
    await asyncio.gather(*desk.tasks)
    box.close()
    await box.run()
    await journal.close()
    return scribe.told


async def test_more_than_an_inbox_holds_is_restored(tmp_path: Path) -> None:
    assert await told_after_restart(tmp_path, Desk(), alerts=5, length=2) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("reason", ["revocations_stale", "unknown_key"])
async def test_what_cannot_be_opened_yet_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(module, "RESTORE_PAUSE_S", 0.01)
    desk = Desk(*(UnavailableError("not yet", reason=reason) for _ in range(4)))
    assert await told_after_restart(tmp_path, desk, alerts=2) == ["0", "1"]


async def test_that_ends_and_what_does_not_hold_is_given_up_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTORE_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "RESTORE_WITHIN_S", 0.05)
    stale = [UnavailableError("not yet", reason="revocations_stale") for _ in range(1000)]
    desk = Desk(UntrustedError("no", reason="bad_signature"), *stale)
    assert await told_after_restart(tmp_path, desk, alerts=2) == []
    assert desk.metrics.counter("alerts_not_restored.bad_signature") == 1
    assert desk.metrics.counter("alerts_not_restored.revocations_stale") == 1


async def test_who_was_revoked_while_an_alert_waited_is_not_obeyed(tmp_path: Path) -> None:
    desk = Desk()
    desk.revoked = True
    assert await told_after_restart(tmp_path, desk, alerts=1) == []
    assert [error.reason for error in desk.rejected] == ["revoked"]
    journal = AlertJournal(tmp_path / "alerts.journal", now_ns=NOW_NS)
    assert not journal.unhandled()
    await journal.close()


async def test_who_was_revoked_while_a_message_waited_is_not_heard() -> None:
    desk = Desk()
    scribe, box = Scribe("a"), Inbox("a", desk.metrics, length=10)
    none = cast("Any", None)
    delivery = Delivery(
        [Resident(scribe, box, b"")], none, none, desk.metrics, none, desk.reject, desk.require_trusted
    )
    await delivery.fact(ThreatAlert(severity=Severity.HIGH, summary="high"), context(1))
    desk.revoked = True
    box.close()
    await box.run()
    assert scribe.told == []
    assert [error.reason for error in desk.rejected] == ["revoked"]


async def test_a_copy_is_not_handed_over_again_where_the_journal_took_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk, scribe = Desk(), Scribe("a")
    box = Inbox("a", desk.metrics, length=10)
    journal = AlertJournal(tmp_path / "alerts.journal", now_ns=NOW_NS)
    monkeypatch.setattr(journal_module, "MAX_WAITING", 0)
    bus = cast("Bus", desk)
    emergencies = Emergencies(bus, journal, ReceiptSender(bus, "h1"), [(scribe, box)])
    alert = ThreatAlert(severity=Severity.CRITICAL, summary="once")
    assert emergencies.take(alert, context(1), ["a"], "core")
    assert not emergencies.take(alert, context(1), ["a"], "stream")
    with pytest.raises(ExhaustedError):
        await emergencies.durable(leaf(1))
    box.close()
    await box.run()
    await journal.close()
    assert scribe.told == ["once"]
    assert desk.metrics.counter("alerts_unconfirmed") == 1
