"""Sign what a process sends, in groups: a database's group commit, applied to signatures.

While one signature is being made in a worker thread, whatever else is ready to go queues up, and the next
signature covers all of it. A lone message waits for nothing. An emergency waits for no batch: it has a thread
of its own and is a batch of one.

A key that is busy gathers: between two signatures it leaves a pause that lets signing have no more than
:data:`DUTY` of a core. Every signature also costs each of its readers a full verification, so small batches
under load are paid for many times. The pause is in proportion to what a signature costs here (20 ms for
ML-DSA-65 by OpenSSL, 3 ms by liboqs), and it is left only while it gathers enough (:mod:`tocsin.bus.pace`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias

from tocsin.bus.envelope import encode_envelope
from tocsin.bus.pace import Pace, RunningMean
from tocsin.contracts.errors import ExhaustedError, UnavailableError
from tocsin.crypto import Proof, Signer, sign_batch
from tocsin.telemetry import Metrics

MAX_BATCH = 256
"""Below the format's 1,024 leaves: a path of 8 hashes, and the first of the batch does not wait for long."""
MAX_WAITING = 4096
"""Messages that wait for a signature; a sender beyond them waits (back-pressure)."""
DUTY = 1 / 32
"""Share of a core that a busy key spends on signatures."""
LONGEST_PAUSE_S = 0.02
"""A machine where a signature takes longer than 0.6 ms signs more often than :data:`DUTY` allows."""


Taker: TypeAlias = Callable[[bytes | UnavailableError], None]
"""Takes an envelope, or why there is none. It must not raise."""


class SigningThreads:
    """Where signatures are made: batches in some threads, what is urgent in others, so that it never waits for them."""

    def __init__(self, count: int = 1) -> None:
        self.batch = ThreadPoolExecutor(count, thread_name_prefix="sign")
        self.urgent = ThreadPoolExecutor(count, thread_name_prefix="sign-urgent")

    def close(self) -> None:
        """End the threads; what has not begun is cancelled."""
        self.batch.shutdown(wait=False, cancel_futures=True)
        self.urgent.shutdown(wait=False, cancel_futures=True)


class BatchSigner:
    """Makes envelopes for one key. Use as a task: :meth:`run` until cancelled.

    Args:
        signer: signs with the key.
        metrics: counts what is signed.
        max_batch: most messages of one signature.
        threads: those of several keys of one process; without them the key has its own.
    """

    def __init__(
        self,
        signer: Signer,
        metrics: Metrics,
        *,
        max_batch: int = MAX_BATCH,
        threads: SigningThreads | None = None,
    ) -> None:
        self._signer = signer
        self._metrics = metrics
        self._max_batch = max_batch
        self._waiting: deque[tuple[bytes, Taker]] = deque()
        self._ready = asyncio.Event()
        self._room = asyncio.Semaphore(MAX_WAITING)
        self._threads = SigningThreads() if threads is None else threads
        self._own_threads = threads is None
        self._pace = Pace()
        self._cost_s = RunningMean()
        self._signing = 0
        self._closed = False

    async def envelope(self, content_bytes: bytes, *, urgent: bool = False) -> bytes:
        """Return the envelope of a content, signed alone if ``urgent``, else with whatever goes along."""
        if self._closed:
            raise UnavailableError("the signer is closed", reason="closing")
        loop = asyncio.get_running_loop()
        if urgent:
            proofs = await loop.run_in_executor(self._threads.urgent, sign_batch, self._signer, [content_bytes])
            self._count(proofs)
            return encode_envelope(content_bytes, self._signer.key_id, proofs[0])
        async with self._room:
            done: asyncio.Future[bytes] = loop.create_future()
            self._put(content_bytes, partial(_settle, done))
            return await done

    def put(self, content_bytes: bytes, taker: Taker) -> None:
        """Let ``taker`` have the envelope once it is signed: without a task of its own for each message.

        Raises:
            ExhaustedError: ``signer_full``.
            UnavailableError: the signer is closed.
        """
        if self._closed:
            raise UnavailableError("the signer is closed", reason="closing")
        if len(self._waiting) >= MAX_WAITING:
            raise ExhaustedError(f"{MAX_WAITING} messages wait for a signature", reason="signer_full")
        self._put(content_bytes, taker)

    def _put(self, content_bytes: bytes, taker: Taker) -> None:
        self._waiting.append((content_bytes, taker))
        self._ready.set()

    @property
    def unsigned(self) -> int:
        """How many messages wait for their signature, those that are being signed included."""
        return len(self._waiting) + self._signing

    async def run(self) -> None:
        """Sign batch after batch."""
        loop = asyncio.get_running_loop()
        while True:
            await self._ready.wait()
            gather_s = min(self._cost_s.value / DUTY, LONGEST_PAUSE_S)
            pause_s = self._pace.pause_s(gather_s, now_s=time.monotonic())
            if pause_s > 0 and len(self._waiting) < self._max_batch:
                await asyncio.sleep(pause_s)
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]
            if not self._waiting:
                self._ready.clear()
            self._signing = len(batch)
            self._pace.began(len(batch), now_s=time.monotonic())
            contents = [content for content, _ in batch]
            try:
                proofs, cost_s = await loop.run_in_executor(self._threads.batch, _sign, self._signer, contents)
            except BaseException as error:
                refusal = UnavailableError(f"signing failed: {error}", reason="signing_failed")
                for _, taker in batch:
                    taker(refusal)
                if not isinstance(error, Exception):
                    raise
                self._signing = 0
                # The senders are told; those who come next must not wait for a signer that has ended.
                self._metrics.count("signing_failures")
                continue
            self._cost_s.add(cost_s)
            self._count(proofs)
            for (content, taker), proof in zip(batch, proofs, strict=True):
                taker(encode_envelope(content, self._signer.key_id, proof))
            self._signing = 0

    def close(self) -> None:
        """Refuse further messages and end the threads; those that still wait are told."""
        self._closed = True
        while self._waiting:
            _, taker = self._waiting.popleft()
            taker(UnavailableError("the signer is closed", reason="closing"))
        if self._own_threads:
            self._threads.close()

    def _count(self, proofs: list[Proof]) -> None:
        self._metrics.count("envelopes_signed", len(proofs))
        self._metrics.count("signatures_made")


def _settle(done: asyncio.Future[bytes], outcome: bytes | UnavailableError) -> None:
    if done.done():
        return
    if isinstance(outcome, UnavailableError):
        done.set_exception(outcome)
    else:
        done.set_result(outcome)


def _sign(signer: Signer, contents: Sequence[bytes]) -> tuple[list[Proof], float]:
    """Sign in a worker thread; CPU time, since the clock also runs while another thread has the interpreter."""
    begun_s = time.thread_time()
    return sign_batch(signer, contents), time.thread_time() - begun_s
