"""Challenges hosts to prove what they run: when one is heard anew, and then every so often.

Each challenge is a fresh nonce; the answer is signed by the host. What an answer is worth is
:mod:`tocsin.fleet.attestation`. A host that does not answer twice in a row, though it beats, makes its agents suspect.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from tocsin.bus import Bus
from tocsin.contracts.catalogue import AUDIT, AUDIT_ATTESTATION, HOST_ATTEST, MEASUREMENTS
from tocsin.contracts.errors import ConflictError, InvalidInputError, TocsinError
from tocsin.contracts.fleet import AgentState
from tocsin.contracts.health import (
    MAX_CHANGES,
    Attestation,
    AttestationRefused,
    Challenge,
    MeasuredAgent,
    Measurement,
    MeasurementRecord,
    StateChange,
)
from tocsin.fleet.attestation import FORGED, judge, with_approved, with_first
from tocsin.fleet.health import HealthBook
from tocsin.fleet.settings import FleetSettings
from tocsin.telemetry import get_logger

ATTESTATION = "attestation"
"""Who doubts, in the health book."""
AT_ONCE = 64
"""Hosts that are challenged at once."""
RETRY_S = 1.0
NEEDED_SILENCES = 2
"""Challenges in a row without an answer before that counts: one can be lost to a busy host."""
UNHEARD = frozenset({AgentState.ENROLLED, AgentState.SILENT, AgentState.GONE})

log = get_logger(__name__)


class Challenger:
    """Challenges for one fleet instance.

    Args:
        bus: fleet's.
        settings: how often, how long.
        book: who is enrolled, and how they are.
        changed: is told of changes of state, and why.
        condemn: quarantines agents, for a reason.
    """

    def __init__(
        self,
        bus: Bus,
        settings: FleetSettings,
        book: HealthBook,
        *,
        changed: Callable[[list[StateChange], str], None],
        condemn: Callable[[Iterable[str], str], Awaitable[object]],
    ) -> None:
        self._bus = bus
        self._settings = settings
        self._book = book
        self._changed = changed
        self._condemn = condemn
        self._records = bus.records(MEASUREMENTS)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._pending: set[str] = set()
        self._owner_of: dict[Measurement, str] = {}
        self.presented: dict[str, Measurement] = {}
        """What each agent's last answer said."""
        self.attested_ns: dict[str, int] = {}
        """When each agent has proven what it runs last."""

    def start(self) -> None:
        """Begin to challenge."""
        self._bus.spawn(self._again_and_again(), "challenges")

    def on_change(self, changes: list[StateChange]) -> None:
        """Challenge the hosts of agents that are heard anew."""
        for host in {one.host for one in changes if one.before in UNHEARD and one.after not in UNHEARD}:
            self.soon(host)

    def soon(self, host: str) -> None:
        """Challenge a host, unless that is under way."""
        if host not in self._pending:
            self._pending.add(host)
            self._bus.spawn(self._challenge(host), f"challenge {host}")

    async def allowed(self, host: str) -> MeasurementRecord | None:
        """Return what a host's agents may run.

        Raises:
            UntrustedError: the record does not hold.
        """
        return await self._records.get(host)

    async def approve(self, wanted: Iterable[MeasuredAgent]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Allow agents a measurement each; return for whom that is new, and for whom it is not.

        Raises:
            InvalidInputError: ``no_such_agent``.
        """
        by_host: dict[str, dict[str, tuple[bytes, Measurement]]] = {}
        for one in wanted:
            record = self._book.record(one.agent)
            if record is None:
                raise InvalidInputError(f"no agent {one.agent} is enrolled", reason="no_such_agent")
            by_host.setdefault(record.host, {})[one.agent] = (record.key_id, one.measurement)
        changed: list[str] = []
        unchanged: list[str] = []
        for host, approved in by_host.items():
            written = await self._records.change(
                host,
                lambda held, host=host, approved=approved: with_approved(host, held, approved),  # type: ignore[misc]
            )
            (changed if written is not None else unchanged).extend(sorted(approved))
            self.soon(host)
        return tuple(changed), tuple(unchanged)

    # --- Inside -------------------------------------------------------------------------------

    async def _again_and_again(self) -> None:
        while True:
            hosts = self._book.living_hosts(now_ns=time.time_ns())
            pause_s = self._settings.challenge_interval_s / max(1, len(hosts))
            for host in hosts:
                self.soon(host)
                await asyncio.sleep(pause_s)
            if not hosts:
                await asyncio.sleep(pause_s)

    async def _challenge(self, host: str) -> None:
        try:
            async with self._slots:
                for attempt in range(NEEDED_SILENCES):
                    nonce = os.urandom(32)
                    try:
                        answer = await self._ask(host, nonce)
                    except TocsinError as error:
                        self._bus.metrics.count(f"challenges_unanswered.{error.reason}")
                        if attempt + 1 < NEEDED_SILENCES:
                            await asyncio.sleep(RETRY_S)
                        continue
                    await self._judge(host, nonce, answer)
                    return
            await self._refuse(host, dict.fromkeys(self._lives(host), "no_answer"))
        except TocsinError as error:
            # The broker is away, or a record does not hold: nothing is concluded, and the next round asks again.
            self._bus.metrics.count(f"challenges_failed.{error.reason}")
            log.warning("challenge_failed", host=host, reason=error.reason, detail=str(error))
        finally:
            self._pending.discard(host)

    async def _ask(self, host: str, nonce: bytes) -> Attestation:
        return await self._bus.request(
            HOST_ATTEST,
            Challenge(nonce=nonce),
            timeout_s=self._settings.challenge_timeout_s,
            patient=False,
            at={"host": host},
        )

    async def _judge(self, host: str, nonce: bytes, answer: Attestation) -> None:
        record = await self._records.get(host)
        agents = [one for name in self._book.carried_by(host) if (one := self._book.record(name))]
        self._note_owners(record)
        judgement = judge(agents, record, nonce, answer, self._owner_of)
        if judgement.first:
            try:
                await self._records.change(host, lambda held: with_first(host, held, judgement.first))
            except ConflictError:
                return  # another fleet writes: the next round compares with what it wrote
            for believed in judgement.first:
                self._owner_of.update(dict.fromkeys(believed.allowed, believed.agent))
        if answer.nonce == nonce:
            here = {one.name for one in agents}
            self.presented.update({one.agent: one.measurement for one in answer.agents if one.agent in here})
        self.attested_ns.update(dict.fromkeys(judgement.held, time.time_ns()))
        self._bus.metrics.count("attestations", len(judgement.held))
        self._changed(self._book.clear(ATTESTATION, judgement.held), "the attestation holds")
        await self._refuse(host, judgement.refused)

    async def _refuse(self, host: str, refused: Mapping[str, str]) -> None:
        """Doubt or condemn; each agent's reason is audited once, until it changes."""
        fresh = {
            name: reason
            for name, reason in refused.items()
            if self._book.doubts(name).get(ATTESTATION) != reason
        }
        self._changed(self._book.doubt(ATTESTATION, fresh), "the attestation does not hold")
        for reason in sorted(set(fresh.values())):
            names = tuple(sorted(name for name, why in fresh.items() if why == reason))
            self._bus.metrics.count(f"attestations_refused.{reason}", len(names))
            log.warning("attestation_refused", host=host, reason=reason, agents=names[:20])
            for start in range(0, len(names), MAX_CHANGES):
                some = names[start : start + MAX_CHANGES]
                body = AttestationRefused(host=host, agents=some, reason=reason)
                await self._bus.publish(
                    AUDIT, AUDIT_ATTESTATION, body, durable=True, at={"kind": "attestation"}
                )
            if reason in FORGED:
                await self._condemn(names, f"attestation: {reason}")

    def _lives(self, host: str) -> list[str]:
        now_ns = time.time_ns()
        names = self._book.carried_by(host)
        return [name for name in names if self._book.state(name, now_ns=now_ns) not in UNHEARD]

    def _note_owners(self, record: MeasurementRecord | None) -> None:
        for one in record.agents if record is not None else ():
            self._owner_of.update(dict.fromkeys(one.allowed, one.agent))
