"""A throw-away stack of deploy/compose.yaml: a project, ports and volumes of its own, and nothing left of it.

Only what is asked for is started, from images that are there. Commands of the engine are waited for without the
event loop, so that a signal never cuts one in two: it is heeded when the command has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tocsin.contracts.errors import InvariantBrokenError, UnavailableError

FILE = Path(__file__).resolve().parents[1] / "deploy" / "compose.yaml"
IMAGES = ("tocsin-broker", "tocsin-core")
PROJECT = "tocsin-scale"
HEALTHY_WITHIN_S = 90.0
COMMAND_TIMEOUT_S = 120.0
STOP_S = 5
"""Grace of the last stop: nothing that these containers hold is wanted afterwards."""
BROKER_PORT = 4222


@dataclass(frozen=True, slots=True)
class Container:
    """A container that runs, or ran."""

    id: str
    name: str
    """Its service and number: router-1."""
    pid: int
    """Of its first process, on this machine; 0 when it does not run."""
    healthy: bool


@dataclass(frozen=True, slots=True)
class Identity:
    """As which process a container's service started last."""

    instance: str
    signature_backend: str


class Stack:
    """One project of Compose. Make it with :func:`throw_away_stack`."""

    def __init__(self, compose: Sequence[str], folder: Path, project: str) -> None:
        """Take an installation's folder; nothing is started yet."""
        self.project = project
        self._compose = (*compose, "--file", str(FILE), "--project-name", project)
        mine = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
        self._environment = mine | {
            "TOCSIN_DIR": str(folder),
            "TOCSIN_VERSION": _version(),
            # 0: the engine takes a free one.
            "TOCSIN_NATS_PORT": "0",
        }

    def up(self, service: str, *, copies: int = 1) -> None:
        """Start so many copies of a service and what it needs; end those beyond."""
        self._run("up", "--detach", "--no-build", "--scale", f"{service}={copies}", service)

    def containers(self, service: str) -> tuple[Container, ...]:
        """Return a service's containers, by number."""
        ids = self._run("ps", "--quiet", service).split()
        return containers_of(_run("docker", "inspect", *ids)) if ids else ()

    async def healthy(self, service: str, *, copies: int = 1) -> tuple[Container, ...]:
        """Wait until so many copies are healthy and no other is there.

        Raises:
            UnavailableError: ``not_ready``, with the end of the log of one that is not.
        """
        deadline = time.monotonic() + HEALTHY_WITHIN_S
        while True:
            found = self.containers(service)
            sick = [one for one in found if not one.healthy]
            if len(found) == copies and not sick:
                return found
            if time.monotonic() > deadline:
                tail = " | ".join(_log(sick[0]).splitlines()[-4:])[-600:] if sick else ""
                raise UnavailableError(
                    f"{copies - len(sick)} of {copies} {service} are healthy: {tail}", reason="not_ready"
                )
            await asyncio.sleep(0.25)

    def broker_url(self) -> str:
        """Return where this machine reaches the broker."""
        (broker,) = self.containers("broker")
        place = _run("docker", "port", broker.id, str(BROKER_PORT)).splitlines()[0]
        return f"nats://{place}"

    def down(self) -> None:
        """End everything; remove containers, networks and volumes."""
        self._run("down", "--volumes", "--timeout", str(STOP_S))

    def _run(self, *arguments: str) -> str:
        return _run(*self._compose, *arguments, environment=self._environment)


@contextmanager
def throw_away_stack(folder: Path) -> Iterator[Stack]:
    """Make a stack on an installation's folder; take it down afterwards, whatever happens.

    Raises:
        UnavailableError: ``no_compose``, ``no_image``, or ``engine_failed``.
    """
    compose = compose_command()
    images = [f"{image}:{_version()}" for image in IMAGES]
    try:
        _run("docker", "image", "inspect", *images)
    except UnavailableError as error:
        raise UnavailableError(
            f"no images to start: {error}",
            reason="no_image",
            advice=f"does the engine run? `{' '.join(compose)} --file deploy/compose.yaml build` makes them",
        ) from error
    stack = Stack(compose, folder, f"{PROJECT}-{os.getpid()}")
    try:
        yield stack
    finally:
        stack.down()


def compose_command() -> tuple[str, ...]:
    """Return the Compose that this machine has: version 2, else 1.29.

    Raises:
        UnavailableError: ``no_compose``.
    """
    with contextlib.suppress(UnavailableError):
        _run("docker", "compose", "version")
        return ("docker", "compose")
    if shutil.which("docker-compose"):
        return ("docker-compose",)
    raise UnavailableError(
        "neither `docker compose` nor `docker-compose` works here", reason="no_compose", advice="install one"
    )


def containers_of(inspected: str) -> tuple[Container, ...]:
    """Read what ``docker inspect`` says of containers of a project, and put them in order."""
    found = []
    for one in json.loads(inspected):
        labels, state = one["Config"]["Labels"], one["State"]
        service, number = (labels[f"com.docker.compose.{name}"] for name in ("service", "container-number"))
        health = state.get("Health", {}).get("Status")
        container = Container(one["Id"], f"{service}-{number}", state["Pid"], health == "healthy")
        found.append((service, int(number), container))
    return tuple(container for *_, container in sorted(found, key=lambda entry: entry[:2]))


def cap(containers: Sequence[Container], cpus: float) -> None:
    """Let each container use no more than so many cores."""
    _run("docker", "update", "--cpus", f"{cpus:g}", *(one.id for one in containers))


def identity_of(container: Container) -> Identity:
    """Return as whom a container's service runs: copies take whichever identity is free."""
    return identity_in(_log(container))


def identity_in(log: str) -> Identity:
    """Find in a service's log as whom it started last.

    Raises:
        InvariantBrokenError: ``bad_log``.
    """
    for line in reversed(log.splitlines()):
        with contextlib.suppress(ValueError):  # what is no JSON is no line of ours
            event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "process_starting":
                return Identity(event["process"].partition("-")[2], event["signature_backend"])
    raise InvariantBrokenError("the log does not say who started", reason="bad_log")


def require_here(container: Container) -> None:
    """Check that a container's process is one of this machine's, so that its CPU time can be read here.

    Raises:
        UnavailableError: ``engine_elsewhere``: it runs in a virtual machine, or on another machine.
    """
    try:
        here = container.id in Path(f"/proc/{container.pid}/cgroup").read_text()
    except OSError:
        here = False
    if not here:
        raise UnavailableError(
            f"{container.name} is no process of this machine", reason="engine_elsewhere", advice="needs Linux"
        )


def _log(container: Container) -> str:
    """Return what a container's processes wrote, to either stream."""
    return _run("docker", "logs", container.id, stderr=subprocess.STDOUT)


def _version() -> str:
    return os.environ.get("TOCSIN_VERSION", "latest")


def _run(*command: str, environment: dict[str, str] | None = None, stderr: int = subprocess.PIPE) -> str:
    """Run a command of the engine and return its standard output.

    Raises:
        UnavailableError: ``engine_failed``, with the end of what it said.
    """
    try:
        done = subprocess.run(  # noqa: S603 - the engine's own commands
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            check=False,
            timeout=COMMAND_TIMEOUT_S,
            start_new_session=True,  # Ctrl-C reaches the program alone
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{command[0]}: {error}", reason="engine_failed") from error
    if done.returncode:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])[-600:]
        raise UnavailableError(f"{' '.join(command[:2])}: {said}", reason="engine_failed")
    return done.stdout
