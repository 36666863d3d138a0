"""The program's side: starts workers, listens to them, and ends them whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil
from _worker import Said, Start
from pydantic import BaseModel, ValidationError

from tocsin.bus.broker import end_with_parent
from tocsin.contracts.errors import InvariantBrokenError, UnavailableError

MAX_LINE_BYTES = 256 * 1024 * 1024
"""An outcome is one line: some 60 bytes a message."""
READY_TIMEOUT_S = 60.0
OUTCOME_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")
"""What a core does when it is neither idle nor waiting, as psutil names it."""
HERE = Path(__file__).parent

T = TypeVar("T")


def cpu_s(pids: list[int]) -> float:
    """Return the CPU time that processes have used so far, user and system, in seconds.

    Raises:
        UnavailableError: ``process_ended``.
    """
    try:
        times = [psutil.Process(pid).cpu_times() for pid in pids]
    except psutil.NoSuchProcess as error:
        raise UnavailableError(f"process {error.pid} has ended", reason="process_ended") from error
    return float(sum(one.user + one.system for one in times))


def machine_cpu_s() -> float:
    """Return the CPU time that was not idle so far, of all cores and whoever used it, in seconds."""
    times = psutil.cpu_times()._asdict()
    return float(sum(spent for name, spent in times.items() if name in BUSY))


async def until_terminated(work: Coroutine[Any, Any, T]) -> T:
    """Do the work; a signal ends it, with everything that was started.

    Set for both: where a shell starts it in the background, SIGINT would be ignored otherwise.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - we are in one
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await work
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


class Worker:
    """One worker process. Use with ``async with``; leaving ends it."""

    def __init__(self, name: str, script: str, plan: BaseModel, log: Path) -> None:
        self.name = name
        self.said = Said(state="running")
        self._script = script
        self._plan = plan
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._listener: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}
        with self._log.open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(HERE / self._script),
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=MAX_LINE_BYTES,
                # Own session: Ctrl-C reaches the program alone, which ends its workers.
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
        self._listener = asyncio.create_task(self._listen())
        self.tell(self._plan)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        process = self._running
        if self._listener is not None:
            self._listener.cancel()
        if process.stdin is not None:
            process.stdin.close()
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._running.pid

    async def ready(self) -> None:
        """Wait until it is ready."""
        await self._until(lambda: self.said.state == "ready", READY_TIMEOUT_S)

    async def signed(self, timeout_s: float) -> None:
        """Wait until it has signed ahead what it will send."""
        await self._until(lambda: self.said.state == "signed", timeout_s)

    def start(self, start_ns: int) -> None:
        """Tell it when the first message is due; one that signs ahead is told twice, the plan first."""
        self.tell(Start(start_ns=start_ns))

    async def finish(self) -> Said:
        """Tell it to end, and return what it says last."""
        self._running.stdin.write(b"finish\n")  # type: ignore[union-attr]  # it was made with a pipe
        await self._until(lambda: self.said.state == "done", OUTCOME_TIMEOUT_S)
        return self.said

    def check(self) -> None:
        """Raise if it has ended.

        Raises:
            UnavailableError: ``worker_ended``, with the end of its log.
        """
        if self._running.returncode is not None or (self._listener is not None and self._listener.done()):
            tail = " | ".join(self._log.read_text(errors="replace").splitlines()[-4:])[-600:]
            raise UnavailableError(f"{self.name} has ended: {tail}", reason="worker_ended")

    @property
    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise InvariantBrokenError("the worker was not started", reason="not_started")
        return self._process

    def tell(self, message: BaseModel) -> None:
        """Send it a line of JSON."""
        self._running.stdin.write(message.model_dump_json().encode() + b"\n")  # type: ignore[union-attr]  # a pipe

    async def _listen(self) -> None:
        output = self._running.stdout
        while output is not None and (line := await output.readline()):
            try:
                self.said = Said.model_validate_json(line)
            except ValidationError:
                continue  # not one of ours: a library that prints
            self._news.set()
        self._news.set()

    async def _until(self, holds: Callable[[], bool], timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not holds():
                    self.check()
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as error:
            raise UnavailableError(f"{self.name} is not there", reason="worker_late") from error
