"""A host process is killed, and what its agents had in hand is accepted on the other host."""

from __future__ import annotations

import time
from pathlib import Path

from fleet_support import FleetWorld, tokens_for
from missions_support import look, of, start, until_ended, until_fit
from processes import environment_of, process
from support import World, eventually

from tocsin.bus import Context
from tocsin.contracts.catalogue import EVENT
from tocsin.contracts.identifiers import Role, ServiceName
from tocsin.contracts.missions import MissionEvent, MissionNews, MissionState, Objective, ObjectiveState

HOSTS = {
    "h1": [("hunter-01", Role.HUNTER), ("guardian-01", Role.GUARDIAN)],
    "h2": [("hunter-02", Role.HUNTER), ("guardian-02", Role.GUARDIAN)],
}


async def test_a_killed_hosts_work_is_accepted_elsewhere_and_done(world: World, tmp_path: Path) -> None:
    tokens = [one for host, agents in HOSTS.items() for one in tokens_for(host, agents)]
    async with FleetWorld(world, tokens, world.folder) as fleet:
        service = await fleet.start_fleet(silent_after_s=600)
        news: list[MissionEvent] = []

        async def on_news(event: MissionEvent, _: Context) -> None:
            news.append(event)

        cli = await world.service(ServiceName.CLI)
        await cli.subscribe(EVENT, on_news, at={"service": "fleet", "kind": "mission"})
        one, two = (environment_of(fleet.host_settings(host, agents)) for host, agents in HOSTS.items())
        async with (
            process("-m", "tocsin.agent", log=tmp_path / "h1.log", **one) as first,
            process("-m", "tocsin.agent", log=tmp_path / "h2.log", **two) as second,
        ):
            await until_fit(service, 4, within_s=40)
            await eventually(lambda: service.liveness.listening)
            dig, guard = (
                Objective(name=role.value, role=role, work=3.0) for role in (Role.HUNTER, Role.GUARDIAN)
            )
            mission = await start(cli, dig, guard)
            await eventually(lambda: any(event.news is MissionNews.COORDINATED for event in news))
            record = await look(cli, mission)
            had = [entry for entry in record.objectives if entry.agent.endswith("01")]
            victim, ending = (first, "01") if had else (second, "02")
            killed = time.perf_counter()
            victim.kill()
            await eventually(lambda: any(event.news is MissionNews.RECOVERED for event in news), within_s=20)
            print(f"recovered after {(time.perf_counter() - killed) * 1e3:.1f} ms")  # noqa: T201 - with pytest -s
            record = await look(cli, mission)
            assert not any(entry.agent.endswith(ending) for entry in record.objectives)
            moved = [entry for entry in record.objectives if entry.epoch == 2]
            assert moved
            assert {entry.reason for entry in moved} == {"agent_lost"}
            record = await until_ended(cli, mission)
        assert record.state is MissionState.COMPLETE
        assert of(record, "hunter").state is ObjectiveState.DONE
