"""Sign what a process sends, in groups: a database's group commit, applied to signatures.

While one signature is being made in a worker thread, whatever else is ready to go queues up, and the next
signature covers all of it. A lone message waits for nothing. An emergency waits for no batch: it has a thread
of its own and is a batch of one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from tocsin.bus.envelope import encode_envelope
from tocsin.contracts.errors import UnavailableError
from tocsin.crypto import Proof, Signer, sign_batch
from tocsin.telemetry import Metrics

MAX_BATCH = 256
"""Below the format's 1,024 leaves: a path of 8 hashes, and the first of the batch does not wait for long."""
MAX_WAITING = 4096
"""Messages that wait for a signature; a sender beyond them waits (back-pressure)."""


class BatchSigner:
    """Makes envelopes for one key. Use as a task: :meth:`run` until cancelled."""

    def __init__(self, signer: Signer, metrics: Metrics, *, max_batch: int = MAX_BATCH) -> None:
        self._signer = signer
        self._metrics = metrics
        self._max_batch = max_batch
        self._waiting: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        self._ready = asyncio.Event()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._batch_thread = ThreadPoolExecutor(1, thread_name_prefix="sign")
        self._urgent_thread = ThreadPoolExecutor(1, thread_name_prefix="sign-urgent")
        self._closed = False

    async def envelope(self, content_bytes: bytes, *, urgent: bool = False) -> bytes:
        """Return the envelope of a content, signed alone if ``urgent``, else with whatever goes along."""
        if self._closed:
            raise UnavailableError("the signer is closed", reason="closing")
        if urgent:
            loop = asyncio.get_running_loop()
            proofs = await loop.run_in_executor(self._urgent_thread, sign_batch, self._signer, [content_bytes])
            self._count(proofs)
            return encode_envelope(content_bytes, self._signer.key_id, proofs[0])
        async with self._room:
            done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            self._waiting.append((content_bytes, done))
            self._ready.set()
            return await done

    async def run(self) -> None:
        """Sign batch after batch."""
        loop = asyncio.get_running_loop()
        while True:
            await self._ready.wait()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
            if not self._waiting:
                self._ready.clear()
            contents = [content for content, _ in batch]
            try:
                proofs = await loop.run_in_executor(self._batch_thread, sign_batch, self._signer, contents)
            except BaseException as error:
                for _, done in batch:
                    if not done.done():
                        done.set_exception(
                            UnavailableError(f"signing failed: {error}", reason="signing_failed")
                        )
                if not isinstance(error, Exception):
                    raise
                # The senders are told; those who come next must not wait for a signer that has ended.
                self._metrics.count("signing_failures")
                continue
            self._count(proofs)
            for (content, done), proof in zip(batch, proofs, strict=True):
                if not done.done():
                    done.set_result(encode_envelope(content, self._signer.key_id, proof))

    def close(self) -> None:
        """Refuse further messages and end the threads; those that still wait are told."""
        self._closed = True
        while self._waiting:
            _, done = self._waiting.popleft()
            if not done.done():
                done.set_exception(UnavailableError("the signer is closed", reason="closing"))
        self._batch_thread.shutdown(wait=False, cancel_futures=True)
        self._urgent_thread.shutdown(wait=False, cancel_futures=True)

    def _count(self, proofs: list[Proof]) -> None:
        self._metrics.count("envelopes_signed", len(proofs))
        self._metrics.count("signatures_made")
