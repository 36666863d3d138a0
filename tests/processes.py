"""What tests of whole processes share: start one with its settings, wait for a line of it, kill it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tocsin.bus import BusSettings


@asynccontextmanager
async def process(
    *arguments: str, log: Path | None = None, **settings: Any
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run Python with settings in its environment; killed at the end if it still runs.

    What it logs goes into a pipe that somebody must read, or into ``log``.
    """
    environment = {f"TOCSIN_{name.upper()}": str(value) for name, value in settings.items()}
    with ExitStack() as files:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=files.enter_context(log.open("ab")) if log else asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], **environment},
        )
        try:
            yield child
        finally:
            if child.returncode is None:
                child.kill()
            await child.communicate()


async def line_with(child: asyncio.subprocess.Process, word: str) -> str:
    """Return the next line of its output that holds a word."""
    assert child.stdout is not None
    async with asyncio.timeout(20):
        while line := (await child.stdout.readline()).decode():
            if word in line:
                return line
    raise AssertionError(f"it ended without {word!r}")


async def logged(child: asyncio.subprocess.Process, log: Path, word: str, *, times: int = 1) -> None:
    """Wait until a word stands in a process's log."""
    async with asyncio.timeout(20):
        while (text := await asyncio.to_thread(log.read_text)).count(word) < times:
            assert child.returncode is None, text
            await asyncio.sleep(0.02)


def environment_of(settings: BusSettings) -> dict[str, Any]:
    """Return settings as a process is told them."""
    return {name: value for name, value in settings.model_dump().items() if value is not None}
