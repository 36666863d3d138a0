"""The one-time tokens that fleet honours: the operator's file, read again whenever it changes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tocsin.bus.enrolment import IssuedToken, read_tokens
from tocsin.contracts.errors import TocsinError
from tocsin.telemetry import Metrics, get_logger

log = get_logger(__name__)


class TokenBook:
    """Tokens by their id, as the file has them; bounded by the file's own bound.

    Args:
        path: the tokens file; one that is not there yet has no tokens.
        metrics: counts files that do not hold.
    """

    def __init__(self, path: Path, metrics: Metrics) -> None:
        self._path = path
        self._metrics = metrics
        self._changed_ns = -1
        self.tokens: dict[str, IssuedToken] = {}

    async def load(self) -> None:
        """Read the file if it changed.

        Raises:
            TocsinError: ``bad_tokens_file`` or ``missing_file``: those that are known stay in force.
        """
        changed_ns = await asyncio.to_thread(self._file_changed_ns)
        if changed_ns != self._changed_ns:
            found = await asyncio.to_thread(self._read)
            self.tokens = {token.token_id: token for token in found}
            self._changed_ns = changed_ns

    async def refresh(self) -> None:
        """Read the file if it changed; one that does not hold changes nothing, and is counted and logged."""
        try:
            await self.load()
        except TocsinError as error:
            self._metrics.count(f"tokens_file_failures.{error.reason}")
            log.warning("tokens_file_refused", reason=error.reason, detail=str(error))

    def _read(self) -> tuple[IssuedToken, ...]:
        return read_tokens(self._path, IssuedToken) if self._path.exists() else ()

    def _file_changed_ns(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0
