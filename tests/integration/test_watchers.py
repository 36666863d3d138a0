"""Sentinel, hunter and analyst on a real host behind a real router, with and without workflow."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from fleet_support import FleetWorld, tokens_for
from support import SHARED, World, eventually
from unit.roles.cases import assessment

from tocsin.agent import Agent, Context
from tocsin.agent.roles import analyst, make
from tocsin.agent.roles.reports import read_report
from tocsin.agent.roles.sentinel import Sentinel
from tocsin.bus.envelope import uuid7
from tocsin.contracts.analysis import AssessmentMade, SecurityRequest, TaskFailed, WorkflowAccepted
from tocsin.contracts.catalogue import EVENT_ASSESSMENT, WORKFLOW_SUBMIT
from tocsin.contracts.identifiers import Role, ServiceName
from tocsin.contracts.reports import ClassicalAssessment
from tocsin.router.service import RouterService
from tocsin.router.settings import RouterSettings

ZEEK = SHARED / "data" / "zeek"
AGENTS = [("sentinel-01", Role.SENTINEL), ("hunter-01", Role.HUNTER), ("analyst-01", Role.ANALYST)]

pytestmark = pytest.mark.skipif(not ZEEK.exists(), reason="needs ../shared")


def written(folder: Path, name: str) -> list[dict[str, object]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def maker(*logs: Path) -> object:
    def made(role: Role, name: str) -> Agent:
        return make(role, name, **({"logs": logs, "grace_s": 0.1} if role is Role.SENTINEL else {}))

    return made


async def fleet_with_router(world: World, fleet: FleetWorld) -> None:
    await fleet.start_fleet()
    settings = RouterSettings(**world.settings().model_dump())
    router = RouterService(await world.service(ServiceName.ROUTER), settings)
    await router.start()
    fleet.stack.push_async_callback(router.stop)


async def test_without_workflow_an_incident_is_assessed_alone_and_a_restart_repeats_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(analyst, "SUBMIT_WITHIN_S", 0.2)
    monkeypatch.setattr(analyst, "SUBMIT_TIMEOUT_S", 0.3)
    log = tmp_path / "conn.log"
    log.write_bytes((ZEEK / "port-scan-vertical.conn.log").read_bytes())
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        await fleet_with_router(world, fleet)
        state = fleet.folder / "hosts" / "h1" / "state"
        async with fleet.make_host("h1", AGENTS, maker(log)):  # type: ignore[arg-type]  # options by role
            await eventually(lambda: bool(written(state, "analyst-01.reports.jsonl")), within_s=60)
        (line,) = written(state, "analyst-01.reports.jsonl")
        assert (line["subject"], line["alone"]) == ("192.168.1.9", True)
        assert "workflow does not take it" in str(line["how"])
        report = read_report(state / "reports" / f"{line['report']}.json")
        assert isinstance(report.assessment, ClassicalAssessment)

        before = {path.name: path.read_bytes() for path in state.glob("*.jsonl")}
        async with fleet.make_host("h1", AGENTS, maker(log)) as again:  # type: ignore[arg-type]  # options by role
            with log.open("ab") as file:
                file.write(b"not a record\n")
            sentinel = again.agents["sentinel-01"]
            assert isinstance(sentinel, Sentinel)
            await eventually(lambda: any(watch.parser.bad for watch, _ in sentinel._watches), within_s=30)
            await asyncio.sleep(1)  # time in which something could be said twice
        assert {path.name: path.read_bytes() for path in state.glob("*.jsonl")} == before


@pytest.mark.parametrize("fails", [False, True])
async def test_workflows_assessment_is_reported_and_its_failure_is_not_the_end(
    world: World, tmp_path: Path, *, fails: bool
) -> None:
    log = tmp_path / "conn.log"
    log.write_bytes((ZEEK / "port-scan-vertical.conn.log").read_bytes())
    async with FleetWorld(world, tokens_for("h1", AGENTS), world.folder) as fleet:
        await fleet_with_router(world, fleet)
        workflow = await world.service(ServiceName.WORKFLOW)
        requests: list[SecurityRequest] = []

        async def accept(request: SecurityRequest, context: Context) -> WorkflowAccepted:
            accepted = WorkflowAccepted(workflow=uuid7())
            requests.append(request)
            made = assessment().model_copy(
                update={"incident": request.incident.incident, "workflow": accepted.workflow}
            )
            failure = TaskFailed(family="unavailable", reason="no_qpu", detail="all are down")
            outcome = AssessmentMade(
                workflow=accepted.workflow,
                incident=request.incident.incident,
                requester=str(context.sender),
                assessment=None if fails else made,
                failure=failure if fails else None,
            )
            await workflow.event(EVENT_ASSESSMENT, outcome)
            return accepted

        await workflow.serve(WORKFLOW_SUBMIT, accept, queue="workflow")
        state = fleet.folder / "hosts" / "h1" / "state"
        await fleet.start_host("h1", AGENTS, maker(log))  # type: ignore[arg-type]  # options by role
        await eventually(lambda: bool(written(state, "analyst-01.reports.jsonl")), within_s=60)
        (line,) = written(state, "analyst-01.reports.jsonl")
        assert line["alone"] is fails
        assert ("no_qpu" if fails else "workflow, on") in str(line["how"])
        assert len(requests) == 1
        assert requests[0].incident.story
