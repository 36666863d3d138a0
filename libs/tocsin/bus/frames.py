"""Open a channel's frame: beside the opener of envelopes, the one other function between bytes and a handler.

A frame is no envelope: it carries no signature, because the channel's keys were agreed on in envelopes that both sides
signed, and the frame is authenticated by them (``docs/adr/0014-frames-of-channels.md``). The same holds for it as for
an envelope: what does not open reaches no handler, is counted and audited with its reason, and costs little before it
is found out. Who holds the keys opens it, by a :data:`FrameOpener`, which raises one of our errors or returns what
the frame holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Generic, TypeAlias, TypeVar

from tocsin.bus.intake import Reject
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.subjects import MessageClass, Subject
from tocsin.telemetry import Metrics, get_logger

T = TypeVar("T")

FrameOpener: TypeAlias = Callable[[bytes, str], T]
"""Opens a frame that came for one recipient, given the sender's name as the subject has it, which proves nothing."""

log = get_logger(__name__)


class FrameIntake(Generic[T]):
    """Opens what one subscription to frames receives, at once, and calls its handler, which does not wait."""

    def __init__(
        self,
        subject: Subject,
        opener: FrameOpener[T],
        handler: Callable[[T], None],
        metrics: Metrics,
        *,
        reject: Reject,
    ) -> None:
        if {kind.message_class for kind in subject.types} != {MessageClass.CHANNEL}:
            raise InvalidInputError(f"{subject.name} carries envelopes", reason="bad_subject")
        self._subject = subject
        self._opener = opener
        self._handler = handler
        self._metrics = metrics
        self._reject = reject

    def receive(self, data: bytes, concrete: str, _: str) -> None:
        """Take one frame."""
        begun = time.perf_counter()
        try:
            if len(data) > self._subject.max_bytes:
                raise InvalidInputError(f"a frame of {len(data)} bytes", reason="too_large")
            opened = self._opener(data, self._subject.parse(concrete)[self._subject.sender_in or "sender"])
        except TocsinError as error:
            self._reject(error, concrete, data)
            return
        self._metrics.count("frames_opened")
        try:
            self._handler(opened)
        except TocsinError as error:
            self._metrics.count(f"handler_refusals.{error.reason}")
        except Exception:  # the line outlives a handler's bug, which is logged
            self._metrics.count("handler_failures")
            log.exception("handler_failed", line=self._subject.name)
        self._metrics.observe_ms("handle.channel_frame", (time.perf_counter() - begun) * 1e3)
