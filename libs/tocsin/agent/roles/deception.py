"""The deception agent: honeypots, and what was seen at them.

It opens real TCP ports that imitate seven services, announces each (event ``agent.sensor``), and reports every
connection as a flow record, every FLUSH_S, to the sentinel that owns the client's address (rendezvous): so
what one attacker does to many honeypots of many agents meets in one detection state.

Where no sentinel is enrolled it judges what it saw itself, and alerts everyone (:mod:`tocsin.agent.roles.solo`).
What attackers try to log in with goes to a file of this host (:mod:`tocsin.agent.roles.credentials`).

Bounds: connections of a source and of all (:class:`tocsin.agent.roles.honeypot.Admission`); MAX_WAITING records wait
for each sentinel at most; beyond it new ones are counted (``deception.flows_dropped``) and dropped. A report that
cannot be sent is sent again in the same content and under the same number. Reports are live messages: one that is
lost on its way is not repeated.

Does not protect the machine it runs on: a honeypot draws attackers. It listens on loopback unless told
otherwise.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from dataclasses import dataclass, field
from itertools import cycle, islice

from tocsin.agent.agent import Agent, rendezvous
from tocsin.agent.roles.alerting import alerts_of
from tocsin.agent.roles.credentials import CredentialLog, fingerprint
from tocsin.agent.roles.dialogues import DIALOGUES
from tocsin.agent.roles.honeypot import Admission, Honeypot, Visit, flow_of
from tocsin.agent.roles.patience import patiently
from tocsin.agent.roles.sensors import HONEYPOTS
from tocsin.agent.roles.solo import Solo
from tocsin.contracts.catalogue import COORDINATION, EVENT_SENSOR, THREAT_ALERT
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.contracts.identifiers import Priority, Role
from tocsin.contracts.observations import MAX_FLOWS_PER_BATCH, Flow, Observations, SensorReady
from tocsin.contracts.routing import Coordination, ThreatAlert
from tocsin.telemetry import get_logger

PORTS = 7
MAX_PORTS = 64
FLUSH_S = 0.2
MAX_WAITING = 2048
"""Records for one sentinel: eight batches. Visits that wait to be judged here, too."""
MAX_JUDGING_SHARE = 0.1
"""Of the time: judging takes longer the more connections the windows hold."""
ALERT_WITHIN_S = 15.0

log = get_logger(__name__)


@dataclass(slots=True)
class Outbox:
    """What waits for one sentinel. ``number`` is that of the next batch."""

    number: int
    flows: deque[Flow] = field(default_factory=deque)
    unsent: Observations | None = None
    """A batch that could not be sent: it goes again as it is."""

    def put(self, flow: Flow) -> bool:
        """Take a record; return False if there is no room."""
        if len(self.flows) >= MAX_WAITING:
            return False
        self.flows.append(flow)
        return True

    def batch(self) -> Observations | None:
        """Return the batch to send now; :meth:`sent` when it was."""
        if self.unsent is None and self.flows:
            count = min(len(self.flows), MAX_FLOWS_PER_BATCH)
            taken = [self.flows.popleft() for _ in range(count)]
            # By their start: they came in the order of their end, and windows are aligned on the first.
            in_order = tuple(sorted(taken, key=lambda flow: flow.at_s))
            self.unsent = Observations(source=HONEYPOTS, sequence=self.number, flows=in_order)
            self.number += 1
        return self.unsent

    def sent(self) -> None:
        """Forget the batch that was sent."""
        self.unsent = None


class Deception(Agent):
    """Runs honeypots.

    Args:
        ports: How many.
        address: Where they listen.
        credentials: How logins are written down: ``escaped`` or ``hashed``.
    """

    role = Role.DECEPTION

    def __init__(
        self, name: str, *, ports: int = PORTS, address: str = "127.0.0.1", credentials: str = "escaped"
    ) -> None:
        super().__init__(name)
        if credentials not in {"escaped", "hashed"}:
            raise InvalidInputError(f"credentials {credentials!r}, not escaped or hashed", reason="bad_option")
        if not 1 <= ports <= MAX_PORTS:
            raise InvalidInputError(f"{ports} honeypots, must be 1 to {MAX_PORTS}", reason="bad_option")
        self._address = address
        self._outboxes: dict[str, Outbox] = {}
        self._seen = asyncio.Event()
        # New with each start: fingerprints of different runs cannot be compared, nor looked up in a table.
        self._salt = os.urandom(32)
        self._hashed = credentials == "hashed"
        self._credentials: CredentialLog | None = None
        self._solo = Solo(name)
        self._unjudged: deque[Visit] = deque()
        self._judging_s = 0.0
        admission = Admission()
        self._honeypots = [
            Honeypot(
                imitates,
                dialogue,
                self._on_visit,
                now_s=lambda: self.host.now_ns() / 1e9,
                admission=admission,
            )
            for imitates, dialogue in islice(cycle(DIALOGUES), ports)
        ]

    async def started(self) -> None:
        """Open the honeypots and announce them.

        Raises:
            UnavailableError: ``no_port``.
        """
        path = self.host.state_dir / f"{self.name}.credentials.jsonl"
        self._credentials = CredentialLog(path, self._salt, hashed=self._hashed)
        self.host.spawn(self._report(), f"deception {self.name}")
        await asyncio.gather(*(self._open(honeypot) for honeypot in self._honeypots))

    async def stopping(self) -> None:
        """Close the honeypots and report what they have seen."""
        await asyncio.gather(*(honeypot.close() for honeypot in self._honeypots))
        await self._flush()

    async def _open(self, honeypot: Honeypot) -> None:
        port = await honeypot.open(self._address)
        ready = SensorReady(agent=self.name, address=self._address, port=port, imitates=honeypot.imitates)
        await self.host.event(self, EVENT_SENSOR, ready)

    def _on_visit(self, visit: Visit) -> None:
        self.host.metrics.count("deception.visits")
        self._note_logins(visit)
        self._seen.set()
        sentinels = self.host.peers(Role.SENTINEL)
        if not sentinels:
            if len(self._unjudged) < MAX_WAITING:
                self._unjudged.append(visit)
            else:
                self.host.metrics.count("deception.flows_dropped")
            return
        flow = flow_of(visit)
        owner = rendezvous(flow.source, sentinels)
        # The clock in milliseconds begins the numbers: after a restart they go on above the former ones.
        outbox = self._outboxes.setdefault(owner, Outbox(self.host.now_ns() // 1_000_000))
        if not outbox.put(flow):
            self.host.metrics.count("deception.flows_dropped")

    def _note_logins(self, visit: Visit) -> None:
        self.host.metrics.count("deception.logins", len(visit.logins))
        if self._credentials is not None:
            self._credentials.put(visit)
        for login in visit.logins:
            log.info(
                "honeypot_login",
                agent=self.name,
                imitates=visit.imitates,
                source=visit.client[0],
                user_fingerprint=fingerprint(login.user, self._salt),
                guess_fingerprint=fingerprint(login.guess, self._salt),
                guess_bytes=len(login.guess),
            )

    async def _report(self) -> None:
        """Send what was seen, as long as the host runs."""
        while True:
            await self._seen.wait()
            self._seen.clear()
            await asyncio.sleep(max(FLUSH_S, self._judging_s / MAX_JUDGING_SHARE))
            if not await self._flush():
                self._seen.set()

    async def _flush(self) -> bool:
        """Send a batch to each sentinel for whom something waits; return whether nothing is left."""
        await self._write_credentials()
        await self._judge()
        waiting = [
            (owner, outbox, batch) for owner, outbox in self._outboxes.items() if (batch := outbox.batch())
        ]
        for owner, outbox, batch in waiting:
            try:
                await self.send(
                    COORDINATION,
                    Coordination(content=batch),
                    audience=f"agent.{owner}",
                    priority=Priority.HIGH,
                )
            except TocsinError as error:
                self.host.metrics.count("deception.reports_delayed")
                log.warning("report_delayed", agent=self.name, sentinel=owner, reason=error.reason)
            else:
                outbox.sent()
        return not any(outbox.flows or outbox.unsent for outbox in self._outboxes.values())

    async def _write_credentials(self) -> None:
        if self._credentials is None:
            return
        try:
            await asyncio.to_thread(self._credentials.write)
        except TocsinError as error:
            self.host.metrics.count("deception.credentials_lost")
            log.warning("credentials_lost", agent=self.name, reason=error.reason, detail=str(error))
        self.host.metrics.gauge("deception_credentials_dropped", self._credentials.dropped)

    async def _judge(self) -> None:
        """Judge what no sentinel is there to judge, and alert everyone."""
        visits = [self._unjudged.popleft() for _ in range(len(self._unjudged))]
        if not visits:
            return
        clock = asyncio.get_running_loop().time
        begun_s = clock()
        news = await asyncio.to_thread(self._solo.judge, visits, now_s=self.host.now_ns() / 1e9)
        self._judging_s = clock() - begun_s
        await asyncio.gather(*map(self._alert, alerts_of(news)))

    async def _alert(self, alert: ThreatAlert) -> None:
        async def attempt() -> object:
            return await self.send(THREAT_ALERT, alert, audience="all", priority=Priority.HIGH)

        try:
            await patiently(attempt, within_s=ALERT_WITHIN_S)
        except TocsinError:
            self.host.metrics.count("deception.alerts_lost")
            log.exception("alert_lost", agent=self.name, summary=alert.summary)
