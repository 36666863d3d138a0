"""What tests of the stack in containers share: the very files that users get, built and started here."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import docker
import docker.errors
import httpx
from docker.models.containers import Container
from testcontainers.compose import DockerCompose

from tocsin.bus import Bus
from tocsin.cli.installation import Installation
from tocsin.telemetry import Metrics

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "deploy" / "compose.yaml"
TOCSIN = [sys.executable, "-m", "tocsin.cli"]
BASE_IMAGE = "python:3.13-slim-trixie"
VERSION = "test"
"""Tag of the images that are built here, so that those of this machine's user stay as they are."""
ONCE = "provision"
"""Ends when it has done its work; all others run."""
PATIENCE_S = 30.0
"""How long a stack on few, busy cores may leave a question unanswered."""
BUILD_TIMEOUT_S = 1200
HEALTHY_WITHIN_S = 120.0


def why_not() -> str | None:
    """Return why no stack can be started on this machine, or None."""
    if compose_command() is None:
        return "no Docker engine: neither `docker compose` nor `docker-compose` is installed"
    try:
        docker.from_env().ping()
    except docker.errors.DockerException as error:
        return f"no Docker engine answers: {error}"
    return None


def compose_command() -> list[str] | None:
    """Return the Compose that this machine has: version 2, else 1.29."""
    if (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    ):
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


class AnyCompose(DockerCompose):
    """Testcontainers' Compose, which knows version 2 only, by whichever version is here."""

    @cached_property
    def compose_command_property(self) -> list[str]:
        return [*(compose_command() or []), "--file", str(COMPOSE)]

    def run(self, *arguments: str) -> str:
        """Run a command of Compose; return what it printed."""
        done = self._run_command([*self.compose_command_property, *arguments])
        return str(done.stdout, "utf-8")


@dataclass
class ComposeStack:
    """A stack in containers, with the command line's view of it."""

    folder: Path
    nats_port: int
    api_port: int
    project: str = field(default_factory=lambda: f"tocsin-test-{secrets.token_hex(4)}")
    compose: AnyCompose = field(default_factory=lambda: AnyCompose(ROOT, wait=False))
    engine: docker.DockerClient = field(default_factory=docker.from_env)

    @property
    def nats_url(self) -> str:
        return f"nats://127.0.0.1:{self.nats_port}"

    @property
    def installation(self) -> Installation:
        return Installation.find(self.folder)

    def environment(self) -> dict[str, str]:
        """Return what compose.yaml is told."""
        return {
            "COMPOSE_PROJECT_NAME": self.project,
            "TOCSIN_DIR": str(self.folder),
            "TOCSIN_VERSION": VERSION,
            "TOCSIN_NATS_PORT": str(self.nats_port),
            "TOCSIN_API_PORT": str(self.api_port),
        }

    def containers(self, service: str | None = None) -> list[Container]:
        """Return the containers that are or were, of one service or all, by name."""
        labels = [f"com.docker.compose.project={self.project}"]
        labels += [f"com.docker.compose.service={service}"] if service else []
        found = self.engine.containers.list(all=True, filters={"label": labels})
        return sorted(found, key=lambda container: str(container.name))

    def wait_healthy(self, within_s: float = HEALTHY_WITHIN_S) -> None:
        """Wait until every container is healthy, and what runs once has ended well."""
        deadline = time.monotonic() + within_s
        while sick := {c.name: state for c in self.containers() if (state := trouble(c)) is not None}:
            assert time.monotonic() < deadline, (sick, self.logs(next(iter(sick)) or "")[-2000:])
            time.sleep(0.5)

    def wait_until(self, holds: Callable[[], bool], *, within_s: float, what: str) -> None:
        deadline = time.monotonic() + within_s
        while not holds():
            assert time.monotonic() < deadline, what
            time.sleep(0.25)

    def logs(self, container: str) -> str:
        return str(self.engine.containers.get(container).logs(), "utf-8", "replace")

    def rest(self, what: str) -> dict[str, Any]:
        """Ask the gateway, as its README says; again, while it says that a service behind it does not answer yet."""
        token = self.installation.api_token.read_text().strip()
        until_s = time.monotonic() + PATIENCE_S
        while True:
            answer = httpx.get(
                f"http://127.0.0.1:{self.api_port}/api/v1/{what}",
                headers={"Authorization": f"Bearer {token}"},
                timeout=10,
            )
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > until_s:
                break
            time.sleep(0.5)
        assert answer.status_code == 200, answer.text
        asked: dict[str, Any] = answer.json()
        return asked

    def ask(self, question: Callable[[Bus], Awaitable[T]]) -> T:
        """Do something on the stack's bus as the `tocsin` command."""
        installation = self.installation

        async def run() -> T:
            settings = installation.bus_settings(self.nats_url)
            async with Bus(settings, installation.cli_credentials(), Metrics()) as bus:
                return await question(bus)

        return asyncio.run(run())

    def demo(self, runs: Path, *arguments: str) -> dict[str, Any]:
        """Run the main job against the stack; return its report."""
        before = set(runs.iterdir()) if runs.exists() else set()
        command = [*TOCSIN, "demo", "--remote", self.nats_url, "--runs", str(runs), *arguments]
        done = subprocess.run(
            command,
            env=os.environ | self.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        (folder,) = set(runs.iterdir()) - before
        report: dict[str, Any] = json.loads((folder / "report.json").read_text())
        return report


def trouble(container: Container) -> str | None:
    """Return what keeps a container from being as it should, or None."""
    container.reload()
    state = container.attrs["State"]
    if container.labels["com.docker.compose.service"] == ONCE:
        return None if state["Status"] == "exited" and state["ExitCode"] == 0 else str(state["Status"])
    health = state.get("Health", {}).get("Status")
    return None if state["Status"] == "running" and health == "healthy" else f"{state['Status']}, {health}"


def crash(container: Container) -> None:
    """Kill a container's process as a crash would, so that the engine starts it again by its policy.

    `docker kill` would count as a person's wish. Without the right to signal the engine's processes (or where it
    runs in a virtual machine) the restart is done by hand.
    """
    try:
        os.kill(container.attrs["State"]["Pid"], signal.SIGKILL)
    except (PermissionError, ProcessLookupError):
        container.kill()
        container.start()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def make_base_image() -> None:
    """Have the image that the Dockerfile starts FROM: pulled, or made from Debian's packages."""
    engine = docker.from_env()
    if engine.images.list(BASE_IMAGE):
        return
    try:
        engine.images.pull(BASE_IMAGE)
    except docker.errors.APIError:
        subprocess.run([str(ROOT / "tools" / "make-base-image"), BASE_IMAGE], check=True, timeout=600)


@contextmanager
def compose_stack(folder: Path) -> Iterator[ComposeStack]:
    """Build the images and start the stack as the README says; take it down afterwards, volumes and all."""
    stack = ComposeStack(folder / "stack", free_port(), free_port())
    make_base_image()
    subprocess.run([*TOCSIN, "init", str(stack.folder)], check=True, capture_output=True, timeout=60)
    before = dict(os.environ)
    os.environ.update(stack.environment())
    try:
        stack.compose.run("build")
        stack.compose.start()
        stack.wait_healthy()
        yield stack
    finally:
        stack.compose.stop()
        for name in stack.environment():
            os.environ.pop(name, None)
        os.environ.update(before)
