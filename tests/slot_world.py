"""A world of slots: a seeded network that loses, doubles, delays and reorders, crashes, and hostile instances.

Everything follows from the seed, so a schedule that fails can be run again: ``Schedule(seed, hostile=1).run()``.
Signatures are left out: a hostile instance cannot speak for another, and a QC1 is only as good as the VOTE1 that
were really cast (:meth:`Schedule.genuine`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tocsin.consensus.slot import Cast, QuorumCert, Received, Slot
from tocsin.contracts.decisions import Step
from tocsin.contracts.errors import UntrustedError
from tocsin.evidence.quorum import instance_quorum

VALUES = (b"decide" * 5 + b"xx", b"closed" * 5 + b"xx")


@dataclass
class Node:
    """An honest instance: its slot, and the log from which a restart begins."""

    name: str
    slot: Slot
    admissible: set[bytes]
    log: list[Received] = field(default_factory=list)
    last_timeout: Received | None = None


class Schedule:
    """One run: chaos until ``chaos`` events have passed, then a network that delivers."""

    def __init__(
        self, seed: int, *, instances: int = 4, hostile: int = 1, make_slot: Callable[..., Slot] = Slot
    ) -> None:
        self.seed = seed
        self.random = random.Random(seed)  # noqa: S311 - a schedule, not a secret
        self.names = tuple(f"i{number}" for number in range(instances))
        self.hostile = self.names[:hostile]
        self.rotation = self.random.randrange(instances)
        self._make_slot = make_slot
        self.nodes = {name: self._fresh(name, set()) for name in self.names[hostile:]}
        self.queue: list[tuple[str, Received]] = []
        self.sent: dict[tuple[Step, int, str], set[bytes | None]] = {}
        self.certs: list[QuorumCert] = []
        self.committed: dict[str, bytes] = {}

    def run(self, *, chaos: int = 250, calm: int = 60) -> None:
        """Run; afterwards :attr:`committed` says who committed what."""
        for _ in range(chaos):
            self._step()
        for node in self.nodes.values():
            # In the end every honest instance knows a value that may be voted for, as ballots are passed on.
            node.admissible |= {VALUES[0]}
        for _ in range(calm):
            if len(self.committed) == len(self.nodes):
                return
            self._calm_round()

    # --- The network ---------------------------------------------------------------------------

    def _step(self) -> None:
        roll = self.random.random()
        names = list(self.nodes)
        if self.queue and roll < 0.6:
            to, message = self.queue.pop(self.random.randrange(len(self.queue)))
            if self.random.random() < 0.15:
                return  # lost
            if self.random.random() < 0.1:
                self.queue.append((to, message))
            self._deliver(to, message)
        elif roll < 0.7:
            node = self.nodes[self.random.choice(names)]
            node.admissible.add(self.random.choice(VALUES))
            self._act(node, node.slot.advance())
            self._lead(node)
        elif roll < 0.8:
            node = self.nodes[self.random.choice(names)]
            self._act(node, node.slot.expire())
        elif roll < 0.83:
            self._crash(self.random.choice(names))
        elif self.hostile:
            self._attack(self.random.choice(self.hostile))

    def _calm_round(self) -> None:
        """Deliver all, let timers run out, and send timeouts again: what a healed network does in one timeout."""
        for node in self.nodes.values():
            self._act(node, node.slot.advance())
            self._lead(node)
        while self.queue:
            to, message = self.queue.pop(0)
            self._deliver(to, message)
        for node in self.nodes.values():
            if node.slot.commit is None:
                self._act(node, node.slot.expire())
                if node.last_timeout is not None:
                    self._broadcast(node.last_timeout)
            elif len(self.committed) < len(self.nodes):
                self._help(node)
        while self.queue:
            to, message = self.queue.pop(0)
            self._deliver(to, message)

    def _help(self, node: Node) -> None:
        """Who has committed shows the others why."""
        assert node.slot.commit is not None
        for other in self.nodes.values():
            other.slot.settle(node.slot.commit)
            self.committed.setdefault(other.name, node.slot.commit.value)

    def _deliver(self, to: str, message: Received) -> None:
        node = self.nodes.get(to)
        if node is None or (message.high is not None and not self.genuine(message.high)):
            return
        try:
            self._act(node, node.slot.receive(message))
        except UntrustedError:
            return
        self._lead(node)

    def _broadcast(self, message: Received) -> None:
        self.queue += [(name, message) for name in self.nodes if name != message.sender]

    # --- Honest instances ----------------------------------------------------------------------

    def _fresh(self, name: str, admissible: set[bytes]) -> Node:
        slot = self._make_slot(
            self.names, name, rotation=self.rotation, admissible=lambda value: value in admissible
        )
        return Node(name, slot, admissible)

    def _lead(self, node: Node) -> None:
        outcome = self.random.choice(sorted(node.admissible)) if node.admissible else None
        self._act(node, node.slot.propose(outcome))

    def _act(self, node: Node, casts: list[Cast]) -> None:
        """Sign, persist, give back, send: a crash may come before the persist, or before the sending."""
        while casts:
            cast, *casts = casts
            data = f"{node.name}/{cast.step}/{cast.view}/{cast.value!r}".encode()
            message = Received(cast.step, node.name, cast.view, cast.value, cast.high, data)
            fate = self.random.random()
            if fate < 0.01:
                self._crash(node.name)
                return
            node.log.append(message)
            self.sent.setdefault((cast.step, cast.view, node.name), set()).add(cast.value)
            if fate < 0.02:
                self._crash(node.name)
                return
            if cast.step is Step.TIMEOUT:
                node.last_timeout = message
            self._broadcast(message)
            casts += node.slot.receive(message)
        if node.slot.high is not None and node.slot.high not in self.certs:
            self.certs.append(node.slot.high)
        if node.slot.commit is not None:
            self.committed.setdefault(node.name, node.slot.commit.value)

    def _crash(self, name: str) -> None:
        """Start again from the log: own steps first, before anything else can be cast."""
        old = self.nodes[name]
        new = self._fresh(name, old.admissible)
        new.log, new.last_timeout = old.log, old.last_timeout
        self.nodes[name] = new
        for message in new.log:
            new.slot.restore(message)
        self._act(new, new.slot.advance())

    # --- Hostile instances ---------------------------------------------------------------------

    def genuine(self, cert: QuorumCert) -> bool:
        """Tell whether the VOTE1 of a certificate were cast: nobody can sign for the honest."""
        honest = {
            who for (step, view, who), values in self.sent.items()
            if (step, view) == (Step.VOTE1, cert.view) and cert.value in values
        }  # fmt: skip
        return set(cert.votes) <= honest | set(self.hostile) and len(cert.votes) >= instance_quorum(
            len(self.names)
        )

    def _forge(self) -> QuorumCert | None:
        """Any certificate that can be put together: one that is known, or hidden VOTE1 with the hostile ones."""
        options: list[QuorumCert | None] = [None, *self.certs[-6:]]
        for view in range(1, 8):
            for value in VALUES:
                votes = {
                    who: b"" for (step, w, who), values in self.sent.items()
                    if (step, w) == (Step.VOTE1, view) and value in values
                } | dict.fromkeys(self.hostile, b"")  # fmt: skip
                if len(votes) >= instance_quorum(len(self.names)):
                    options.append(QuorumCert(view, value, votes))
        return self.random.choice(options)

    def _attack(self, who: str) -> None:
        """Say anything to anyone: equivocate, lie about locks, hide or omit certificates, invent views.

        Half of the time it splits: all hostile ones back one value towards one honest instance, in its view.
        """
        if self.random.random() < 0.5:
            to = self.random.choice(sorted(self.nodes))
            view, value = self.nodes[to].slot.view, self.random.choice(VALUES)
            for one in self.hostile:
                for step in (Step.PROPOSE, Step.VOTE1, Step.VOTE2):
                    high = self._forge() if step is Step.PROPOSE else None
                    self.queue.append((to, Received(step, one, view, value, high, b"hostile")))
            return
        views = [node.slot.view for node in self.nodes.values()]
        for to in self.random.sample(sorted(self.nodes), self.random.randint(1, len(self.nodes))):
            step = self.random.choice(list(Step))
            view = self.random.choice([*views, max(views) + 1, min(views) - 1, 999_999])
            said = None if step is Step.TIMEOUT else self.random.choice(VALUES)
            if view >= 1:
                self.queue.append((to, Received(step, who, view, said, self._forge(), b"hostile")))
