"""The batch signer outlives a signature that could not be made."""

from __future__ import annotations

import asyncio

import pytest
from envelopes import HOST, party

from tocsin.bus.signing import MAX_WAITING, BatchSigner
from tocsin.contracts.errors import ExhaustedError, UnavailableError
from tocsin.crypto import Algorithm, Signer
from tocsin.telemetry import Metrics


class FailingOnce:
    """A key whose first signature fails."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer
        self._failed = False
        self.algorithm: Algorithm = signer.algorithm
        self.public_key = signer.public_key
        self.key_id = signer.key_id

    def sign(self, message: bytes, context: bytes) -> bytes:
        if not self._failed:
            self._failed = True
            raise RuntimeError("the library says no")
        return self._signer.sign(message, context)


async def test_a_signature_that_fails_is_told_and_the_next_one_is_made() -> None:
    metrics = Metrics()
    signer = BatchSigner(FailingOnce(party(HOST).key.signer), metrics)
    task = asyncio.create_task(signer.run())
    with pytest.raises(UnavailableError) as caught:
        await signer.envelope(b"one")
    assert caught.value.reason == "signing_failed"
    async with asyncio.timeout(5):
        assert await signer.envelope(b"two")
    assert metrics.counter("signing_failures") == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    signer.close()


async def test_a_full_signer_refuses_and_a_closed_one_tells_who_waits() -> None:
    signer = BatchSigner(party(HOST).key.signer, Metrics())
    told: list[bytes | UnavailableError] = []
    for _ in range(MAX_WAITING):
        signer.put(b"content", told.append)
    with pytest.raises(ExhaustedError) as caught:
        signer.put(b"content", told.append)
    assert caught.value.reason == "signer_full"
    signer.close()
    assert len(told) == MAX_WAITING
    assert {error.reason for error in told if isinstance(error, UnavailableError)} == {"closing"}
