"""An operator's wish: who may have one, whose turn it is, what is proposed, and why agents vote for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import eventually

from tocsin.agent.agent import HostView
from tocsin.agent.roles import admin as module
from tocsin.agent.roles.admin import Admin, text_of, turn_of
from tocsin.agent.support import Support, choose
from tocsin.bus import Context
from tocsin.contracts.base import Message
from tocsin.contracts.decisions import Proposal
from tocsin.contracts.errors import DeniedError
from tocsin.contracts.identifiers import Priority, Role, ServiceName, Severity, SpiffeId
from tocsin.contracts.policy import check
from tocsin.contracts.response import Action, Command, ResponseWish
from tocsin.contracts.routing import ThreatAlert
from tocsin.telemetry import Metrics

COMMAND = Command(action=Action.DENY, address="203.0.113.9", duration_s=90)
WISH = ThreatAlert(
    severity=Severity.HIGH, summary="Asked for", wish=ResponseWish(command=COMMAND, reason="it sends spam")
)
OPERATOR = SpiffeId.service("t.tocsin", ServiceName.CLI, "0")
ADMINS = ("admin-01", "admin-02", "admin-03")


@dataclass
class Office:
    """The part of a host that an admin uses."""

    metrics: Metrics = field(default_factory=Metrics)
    sent: list[Proposal] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    seats: tuple[str, ...] = ADMINS
    """Admins that have one in the epoch."""
    epochs: dict[bytes, object] = field(default_factory=lambda: {b"e" * 32: None})

    @property
    def epoch(self) -> object:
        ids = [str(SpiffeId.agent(OPERATOR.domain, Role.ADMIN, name)) for name in self.seats]
        return SimpleNamespace(digest=b"e" * 32, seats=dict.fromkeys(ids))

    def now_ns(self) -> int:
        return 10**18

    def peers(self, _role: Role) -> tuple[str, ...]:
        return ADMINS

    async def route(self, _agent: object, _kind: object, body: Message, **_: object) -> object:
        assert isinstance(body, Proposal)
        self.sent.append(body)
        return SimpleNamespace(leaf=b"l" * 32)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self.tasks.append(asyncio.create_task(work, name=name))


def context(sender: SpiffeId = OPERATOR) -> Context:
    content = SimpleNamespace(id=b"w" * 16)
    return cast("Context", SimpleNamespace(sender=sender, content=content, leaf=b"l" * 32))


def admin_at(name: str, office: Office) -> Admin:
    made = Admin(name)
    made.host = cast("HostView", office)
    made.id = SpiffeId.agent(OPERATOR.domain, Role.ADMIN, name)
    return made


def by_turn() -> list[str]:
    return sorted(ADMINS, key=lambda name: turn_of(name, b"w" * 16, ADMINS))


@given(st.binary(max_size=16), st.sets(st.sampled_from([f"a{n}" for n in range(9)]), min_size=1))
def test_every_admin_has_a_turn_of_its_own(wish: bytes, names: set[str]) -> None:
    turns = sorted(turn_of(name, wish, sorted(names)) for name in names)
    assert turns == list(range(len(names)))
    assert turn_of("unknown", wish, sorted(names)) == len(names)


async def test_the_first_admin_proposes_at_once_what_was_asked_for() -> None:
    office = Office()
    await admin_at(by_turn()[0], office).on_alert(WISH, context())
    await eventually(lambda: len(office.sent) == 1)
    (proposal,) = office.sent
    assert proposal.workflow == b"w" * 16
    assert [option.command for option in proposal.options] == [COMMAND, None]
    assert proposal.evidence == (f"asked for by {OPERATOR}: it sends spam",)
    assert proposal.subject == text_of(COMMAND) == "deny 203.0.113.9 for 90 s"


async def test_an_admin_without_a_seat_takes_no_turn_and_costs_nobody_one() -> None:
    first, second, third = by_turn()
    office = Office(seats=(second, third))
    await admin_at(first, office).on_alert(WISH, context())
    await asyncio.gather(*office.tasks)
    assert not office.sent
    # Who has the first turn of those that sit does not wait for it.
    await admin_at(second, office).on_alert(WISH, context())
    await eventually(lambda: len(office.sent) == 1)


async def test_the_next_one_takes_over_only_if_nobody_has_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TAKE_OVER_S", 0.05)
    first, second, third = by_turn()
    office, other = Office(), Office()
    await admin_at(second, office).on_alert(WISH, context())
    await eventually(lambda: len(office.sent) == 1)
    late = admin_at(third, other)
    await late.on_alert(WISH, context())
    await late.on_proposal(office.sent[0], context(SpiffeId.agent("t.tocsin", Role.ADMIN, first)))
    await asyncio.gather(*other.tasks)
    assert other.sent == []


@pytest.mark.parametrize("role", [Role.HUNTER, Role.CANARY])
async def test_a_question_that_names_a_wish_keeps_no_admin_from_it(
    monkeypatch: pytest.MonkeyPatch, role: Role
) -> None:
    monkeypatch.setattr(module, "TAKE_OVER_S", 0.05)
    first, second, _ = by_turn()
    office, other = Office(), Office()
    await admin_at(first, office).on_alert(WISH, context())
    await eventually(lambda: len(office.sent) == 1)
    admin = admin_at(second, other)
    await admin.on_alert(WISH, context())
    await admin.on_proposal(office.sent[0], context(SpiffeId.agent("t.tocsin", role, "a")))
    await asyncio.gather(*other.tasks)
    assert len(other.sent) == 1


async def test_the_same_is_not_proposed_twice() -> None:
    office = Office()
    admin = admin_at(by_turn()[0], office)
    for _ in range(2):
        await admin.on_alert(WISH, context())
    await asyncio.gather(*office.tasks)
    assert len(office.sent) == 1


async def test_an_agent_has_no_wishes() -> None:
    rogue = SpiffeId.agent("t.tocsin", Role.SENTINEL, "sentinel-01")
    with pytest.raises(DeniedError) as caught:
        await admin_at("admin-01", Office()).on_alert(WISH, context(rogue))
    assert caught.value.reason == "wish_not_allowed"
    for role in Role:
        sender = SpiffeId.agent("t.tocsin", role, "a")
        with pytest.raises(DeniedError) as caught:
            check("threat_alert", sender, "all", Priority.HIGH, WISH, lambda _: None)
        assert caught.value.reason == "wish_not_allowed"
    check("threat_alert", OPERATOR, "all", Priority.HIGH, WISH, lambda _: None)


async def test_a_wish_is_ground_enough_for_a_vote_and_only_for_its_address() -> None:
    office = Office()
    await admin_at(by_turn()[0], office).on_alert(WISH, context())
    await asyncio.gather(*office.tasks)
    support = Support()
    assert choose(office.sent[0], support, proposer="admin-01")[0] == 1
    support.note(WISH, sender=OPERATOR.token)
    assert choose(office.sent[0], support, proposer="admin-01") == (
        0,
        "warned about 203.0.113.9 by service.cli.0",
    )
