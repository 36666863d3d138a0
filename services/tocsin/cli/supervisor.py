"""Child processes that end with their parent, whatever ends it.

Each child logs to a file of its own. On Linux the kernel signals a child when the supervisor dies, even by
SIGKILL; elsewhere an orphan can outlive a killed supervisor (see docs/reference/exit-codes.md).
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tocsin.bus.broker import end_with_parent
from tocsin.contracts.errors import UnavailableError

STOP_TIMEOUT_S = 8.0
RESTARTS_PER_MINUTE = 5
LOG_TAIL_LINES = 5


@dataclass(slots=True)
class Child:
    """One supervised process."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: deque[float] = field(default_factory=lambda: deque(maxlen=RESTARTS_PER_MINUTE + 1))

    def start(self) -> None:
        """Start the process; its output is appended to its log."""
        self.starts.append(time.monotonic())
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own modules
                [sys.executable, *self.arguments],
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Own session: Ctrl-C reaches the supervisor alone, which stops its children in order.
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),  # noqa: PLW1509 - sets a flag of the kernel, takes no lock
            )

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return None if self.process is None else self.process.poll()

    def log_tail(self) -> str:
        """Return the last lines of its log."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return " | ".join(lines[-LOG_TAIL_LINES:])[-800:]


class Supervisor:
    """Starts, watches, restarts and ends children."""

    def __init__(self, logs: Path, environment: Mapping[str, str] | None = None) -> None:
        self.logs = logs
        self.children: dict[str, Child] = {}
        self.restarts = 0
        self._environment = dict(os.environ if environment is None else environment)
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, module: str, **settings: str) -> Child:
        """Start ``python -m module`` with ``TOCSIN_`` settings."""
        environment = {
            key: value for key, value in self._environment.items() if not key.startswith("TOCSIN_")
        } | {f"TOCSIN_{key.upper()}": value for key, value in settings.items()}
        # One thread of linear algebra a process: more only fight for the same cores.
        environment.setdefault("OMP_NUM_THREADS", "1")
        child = Child(name, ("-m", module), environment, self.logs / f"{name}.log")
        self.children[name] = child
        child.start()
        return child

    def check(self) -> None:
        """Raise if a child has ended.

        Raises:
            UnavailableError: ``child_ended``, with the end of its log.
        """
        for child in self.children.values():
            if child.exit_code is not None:
                raise UnavailableError(
                    f"{child.name} ended with code {child.exit_code}: {child.log_tail()}",
                    reason="child_ended",
                    advice=f"see {child.log}",
                )

    def restart_ended(self) -> list[str]:
        """Start again what has ended; return the names.

        Raises:
            UnavailableError: ``restart_loop``: one ended too often.
        """
        restarted = []
        for child in self.children.values():
            if child.exit_code is None:
                continue
            recent = [start for start in child.starts if time.monotonic() - start < 60]
            if len(recent) > RESTARTS_PER_MINUTE:
                raise UnavailableError(
                    f"{child.name} ended {len(recent)} times within a minute: {child.log_tail()}",
                    reason="restart_loop",
                    advice=f"see {child.log}",
                )
            child.start()
            self.restarts += 1
            restarted.append(child.name)
        return restarted

    async def stop(self) -> None:
        """Ask all to end (SIGTERM: they drain), then insist."""
        running = [child.process for child in self.children.values() if child.process is not None]
        for process in running:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(process.poll() is None for process in running) and time.monotonic() < deadline:  # noqa: ASYNC110 - a child's end sets no event of ours
            await asyncio.sleep(0.02)
        self.kill()

    def kill(self) -> None:
        """End at once whatever still runs."""
        for child in self.children.values():
            if child.process is not None and child.process.poll() is None:
                child.process.send_signal(signal.SIGKILL)
            if child.process is not None:
                child.process.wait()
