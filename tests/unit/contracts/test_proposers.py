"""Who may put what to the vote: the whole table, and that nothing falls between its rows."""

from __future__ import annotations

import pytest
from council import DENY, OPTIONS, proposal_body
from hypothesis import given
from hypothesis import strategies as st
from support import DOMAIN

from tocsin.contracts.decisions import Option, Proposal, Scope
from tocsin.contracts.errors import DeniedError
from tocsin.contracts.identifiers import Role, ServiceName, SpiffeId
from tocsin.contracts.proposers import Matter, check_proposer, matter_of, may_command

WORDS = (Option(name="yes", command=None, text="Yes"), Option(name="no", command=None, text="No"))
EPOCH = (Option(name="install", command=None, text="", epoch=bytes(32)), WORDS[1])
MISSION = Scope(mission="m-1", members=("a-1", "a-2", "a-3"))
PROPOSALS = {
    Matter.COMMAND: proposal_body(bytes(32), options=OPTIONS),
    Matter.EPOCH: proposal_body(bytes(32), options=EPOCH),
    Matter.QUESTION: proposal_body(bytes(32), options=WORDS),
    Matter.MISSION: proposal_body(bytes(32), options=WORDS).model_copy(update={"scope": MISSION}),
}
ASKERS = {Role.ADMIN, Role.ANALYST, Role.HUNTER}
MAY = {
    Matter.COMMAND: {Role.ADMIN},
    Matter.EPOCH: {Role.ADMIN},
    Matter.QUESTION: ASKERS,
    Matter.MISSION: ASKERS,
}


def agent(role: Role, name: str = "stranger") -> SpiffeId:
    return SpiffeId.agent(DOMAIN, role, name)


def allowed(who: SpiffeId, proposal: Proposal) -> bool:
    try:
        check_proposer(who, proposal)
    except DeniedError as error:
        return error.reason != "proposer_not_allowed"
    return True


@pytest.mark.parametrize("matter", Matter)
def test_the_table(matter: Matter) -> None:
    assert matter_of(PROPOSALS[matter]) is matter
    assert {role for role in Role if allowed(agent(role), PROPOSALS[matter])} == MAY[matter]


@pytest.mark.parametrize("role", Role)
def test_any_member_of_a_mission_may_ask_the_others_and_command_nothing(role: Role) -> None:
    member = agent(role, "a-2")
    assert allowed(member, PROPOSALS[Matter.MISSION])
    command = PROPOSALS[Matter.MISSION].model_copy(update={"options": OPTIONS})
    assert allowed(member, command) is (role is Role.ADMIN)


def test_no_service_proposes_anything_whatever_its_name() -> None:
    service = SpiffeId.service(DOMAIN, ServiceName.CONSENSUS, "a-2")
    assert not any(allowed(service, proposal) for proposal in PROPOSALS.values())


COMMANDS = st.sampled_from([None, DENY])
CHOICES = st.tuples(COMMANDS, st.sampled_from([None, bytes(32)]))


@given(
    role=st.sampled_from(Role),
    choices=st.lists(CHOICES, min_size=2, max_size=8),
    scope=st.sampled_from([Scope(), Scope(role=Role.HUNTER), MISSION]),
)
def test_whatever_has_an_effect_is_for_who_may_command(
    role: Role, choices: list[tuple[object, bytes | None]], scope: Scope
) -> None:
    options = tuple(
        WORDS[0].model_copy(update={"name": f"o-{i}", "command": command, "epoch": epoch})
        for i, (command, epoch) in enumerate(choices)
    )
    proposal = PROPOSALS[Matter.QUESTION].model_copy(update={"options": options, "scope": scope})
    who = agent(role, "a-2")
    if allowed(who, proposal) and not may_command(who):
        assert all(option.command is None and option.epoch is None for option in options)
