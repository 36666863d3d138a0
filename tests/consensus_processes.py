"""Four consensus instances, each a process of its own, for tests that kill them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consensus_fleet import Fleet, start_process

from tocsin.contracts.catalogue import PING
from tocsin.contracts.decisions import Step
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.operations import PingRequest

INSTANCES = 4


class Processes:
    """The instances' processes by number."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.folders: list[Path] = []
        for number, credentials in enumerate(fleet.credentials):
            folder = fleet.world.folder / f"credentials-{number}"
            credentials.save(folder, f"consensus-{number}")
            self.folders.append(folder)

    def start(self, number: int) -> None:
        self.running[number] = start_process(
            self.fleet.world, self.folders[number], self.fleet.state_dir, str(number)
        )

    def kill(self, number: int) -> None:
        process = self.running.pop(number)
        process.kill()
        process.wait(10)

    def end(self) -> None:
        for number in list(self.running):
            self.kill(number)


@contextmanager
def processes(fleet: Fleet) -> Iterator[Processes]:
    made = Processes(fleet)
    try:
        yield made
    finally:
        made.end()


async def all_ready(fleet: Fleet) -> None:
    names: set[str] = set()

    async def ask() -> None:
        try:
            names.add((await fleet.cli.request(PING[ServiceName.CONSENSUS], PingRequest(), timeout_s=2)).name)
        except TocsinError:
            return

    for _ in range(1_000):
        await ask()
        if len(names) == INSTANCES:
            return
    raise AssertionError(f"only {names} answer")


def assert_each_step_was_signed_once(fleet: Fleet) -> None:
    """Whatever was killed when: one envelope for each instance and step of a view, sent as often as need be."""
    signed: dict[tuple[str, bytes, int, Step, int], set[bytes]] = {}
    for (vote, data), who in zip(fleet.votes, fleet.voters, strict=True):
        signed.setdefault((who, vote.decision, vote.round, vote.step, vote.view), set()).add(data)
    assert signed
    assert all(len(envelopes) == 1 for envelopes in signed.values())
