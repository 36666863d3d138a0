"""Measure secure channels: handshakes, sealed messages, memory, and a mesh of 100 agents.

    python loadtest/channels.py --seconds 5

First the protocol alone, on one core: handshakes with both ends, frames sealed and opened. Then over the bus: hosts
with a key each, which share this process (one core does both ends' work) and a broker that has another: handshakes,
each of them two envelopes that are signed and fully verified; messages on channels that stand; and a mesh of all
pairs, established by one call. Rates of the protocol alone are per second of CPU time; those over the bus of the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
import uvloop
from _channels import ADMIN, Fleet, fleet_of
from common import Environment, emit, exit_with, latency, positive_float, positive_int, say

from tocsin.agent.channels.book import Book, End
from tocsin.contracts.identifiers import Role, SpiffeId
from tocsin.crypto import Algorithm, SignatureBackend, available_backends, select_backend
from tocsin.crypto.channels import LIMITS, Initiation, Keys, Parties, Session, respond

ME = SpiffeId.agent("load.tocsin", Role.HUNTER, "one")
PEER = SpiffeId.agent("load.tocsin", Role.HUNTER, "other")
PARTIES = Parties(str(ME), str(PEER))
KEYS = Keys(bytes(32), bytes(range(32)))
PAUSE_EVERY = 64
"""Messages between two turns of the event loop, in which the other end takes them."""
DRAIN_S = 10.0


def open_channel() -> tuple[Session, Session]:
    """Make both ends of a channel."""
    initiation = Initiation.begin(PARTIES, LIMITS)
    answer, theirs = respond(initiation.offer, PARTIES, KEYS)
    return initiation.finish(answer, KEYS), theirs


def measure_protocol(seconds: float, message_bytes: int) -> dict[str, Any]:
    """Measure handshakes and frames without a bus."""
    done, begun = 0, time.thread_time()
    while (spent := time.thread_time() - begun) < seconds:
        open_channel()
        done += 1
    handshakes_per_s = done / spent
    message, (one, other) = bytes(message_bytes), open_channel()
    sealed = opened = 0.0
    count, batch = 0, 1000
    while sealed + opened < seconds and not one.spent:
        begun = time.thread_time()
        frames = [one.seal(message) for _ in range(min(batch, LIMITS.messages - one.sent))]
        between = time.thread_time()
        for frame in frames:
            other.open(frame)
        opened += time.thread_time() - between
        sealed += between - begun
        count += len(frames)
    return {
        "handshakes_per_s": round(handshakes_per_s, 1),
        "sealed_per_s": round(count / sealed, 1),
        "opened_per_s": round(count / opened, 1),
    }


def measure_memory(channels: int) -> dict[str, Any]:
    """Measure what a process needs for one end of each of so many channels."""
    book = Book(ME, max_links=channels)
    ends = [open_channel() for _ in range(8)]  # what is lazily built is built
    del ends
    gc.collect()
    before = psutil.Process().memory_info().rss
    for number in range(channels):
        peer = SpiffeId.agent("load.tocsin", Role.HUNTER, f"peer-{number}")
        link, _ = book.link(peer, 0.0)
        end = End(open_channel()[0], KEYS.responder, 0.0)
        book.finish(link, end)
        book.use(link, end)
    gc.collect()
    used = psutil.Process().memory_info().rss - before
    return {"channels": channels, "bytes_per_1000_channels": round(used * 1000 / channels)}


async def measure_handshakes(fleet: Fleet, seconds: float, at_once: int) -> dict[str, Any]:
    """Open channels between agents of two hosts and close them, so many at once."""
    near, far = fleet.hosts[0], fleet.hosts[1]
    pairs = list(zip(near.agents, far.agents, strict=False))[:at_once]
    samples: list[float] = []
    verified, signed = fleet.verifications(), fleet.counted("signatures_made")
    until = time.perf_counter() + seconds
    begun = time.perf_counter()

    async def again(one: SpiffeId, other: SpiffeId) -> None:
        # Its own peers in turn, so that no peer is offered more channels than it answers.
        for peer in cycle([other, *(p for p in far.agents if p != other)]):
            if time.perf_counter() >= until:
                return
            start = time.perf_counter()
            channel = await near.lobby.channel(one.name, peer.name, timeout_s=30)
            samples.append((time.perf_counter() - start) * 1e3)
            await channel.close()

    await asyncio.gather(*(again(*pair) for pair in pairs))
    spent = time.perf_counter() - begun
    return {
        "at_once": len(pairs),
        "handshakes": len(samples),
        "handshakes_per_s": round(len(samples) / spent, 1),
        "handshake_ms": latency(samples),
        "signatures_per_handshake": round((fleet.counted("signatures_made") - signed) / len(samples), 4),
        "full_verifications_per_handshake": round((fleet.verifications() - verified) / len(samples), 4),
    }


async def measure_messages(fleet: Fleet, seconds: float, message_bytes: int) -> dict[str, Any]:
    """Send from one host's agents to another's on channels that stand, as fast as it goes."""
    near, far = fleet.hosts[0], fleet.hosts[1]
    channels = [
        await near.lobby.channel(one.name, other.name, timeout_s=30)
        for one, other in zip(near.agents, far.agents, strict=False)
    ]
    message, before, signed = bytes(message_bytes), far.heard, fleet.counted("signatures_made")
    sent, begun = 0, time.perf_counter()
    for channel in cycle(channels):
        await channel.send(message)
        sent += 1
        if sent % PAUSE_EVERY == 0:
            await asyncio.sleep(0)
            if time.perf_counter() - begun >= seconds:
                break
    deadline = time.perf_counter() + DRAIN_S
    while far.heard - before < sent and time.perf_counter() < deadline:  # noqa: ASYNC110 - it is only counted
        await asyncio.sleep(0.001)
    spent = time.perf_counter() - begun
    received = far.heard - before
    return {
        "channels": len(channels),
        "sent": sent,
        "received": received,
        "lost": sent - received,
        "messages_per_s": round(received / spent, 1),
        "signatures": fleet.counted("signatures_made") - signed,
    }


async def measure_mesh(folder: Path, options: argparse.Namespace, backend: SignatureBackend) -> dict[str, Any]:
    """Establish all pairs of a group."""
    algorithm = _algorithm(options.algorithm)
    async with fleet_of(
        folder, agents=options.mesh, hosts=options.hosts, backend=backend, algorithm=algorithm
    ) as fleet:
        gc.collect()
        before, signed = psutil.Process().memory_info().rss, fleet.counted("signatures_made")
        verified, cpu, begun = fleet.verifications(), time.process_time(), time.perf_counter()
        network = await fleet.hosts[0].lobby.establish(ADMIN, fleet.names, None, timeout_s=25)
        spent, cpu = time.perf_counter() - begun, time.process_time() - cpu
        gc.collect()
        count = len(network.links)
        return {
            "agents": options.mesh,
            "hosts": options.hosts,
            "channels": count,
            "failed": len(network.failed),
            "seconds": round(spent, 3),
            "cpu_seconds": round(cpu, 3),
            "handshakes_per_s": round(count / spent, 1),
            "bytes": psutil.Process().memory_info().rss - before,
            "signatures_per_channel": round((fleet.counted("signatures_made") - signed) / max(1, count), 4),
            "full_verifications_per_channel": round((fleet.verifications() - verified) / max(1, count), 4),
        }


async def measure_bus(folder: Path, options: argparse.Namespace, backend: SignatureBackend) -> dict[str, Any]:
    """Measure handshakes and messages between two hosts."""
    async with fleet_of(
        folder,
        agents=2 * options.at_once,
        hosts=2,
        backend=backend,
        algorithm=_algorithm(options.algorithm),
    ) as fleet:
        handshakes = await measure_handshakes(fleet, options.seconds, options.at_once)
        messages = await measure_messages(fleet, options.seconds, options.message_bytes)
        return {"handshakes": handshakes, "messages": messages}


def main() -> None:
    """Measure everything and print the report."""
    options = _arguments()
    backend = select_backend(options.backend)
    say("the protocol alone")
    protocol = measure_protocol(options.seconds, options.message_bytes)
    memory = measure_memory(options.channels)
    with tempfile.TemporaryDirectory(prefix="tocsin-channels-") as folder:
        say("over the bus: handshakes and messages")
        bus = uvloop.run(measure_bus(Path(folder) / "bus", options, backend))
        say(f"a mesh of {options.mesh} agents")
        mesh = uvloop.run(measure_mesh(Path(folder) / "mesh", options, backend))
    emit(
        "loadtest/channels.py",
        vars(options),
        Environment.here(backends=[backend.name], algorithms=[options.algorithm], key_scope="host"),
        {"protocol": protocol, "memory": memory, "bus": bus, "mesh": mesh},
    )


def _algorithm(label: str) -> Algorithm:
    return next(one for one in Algorithm if one.label == label)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=positive_float, default=5.0, help="for each figure")
    parser.add_argument("--message-bytes", type=positive_int, default=400, help="size of a message")
    parser.add_argument("--channels", type=positive_int, default=2000, help="of which memory is measured")
    parser.add_argument("--at-once", type=positive_int, default=32, help="handshakes at once over the bus")
    parser.add_argument("--mesh", type=positive_int, default=100, help="agents of the mesh")
    parser.add_argument("--hosts", type=positive_int, default=4, help="hosts of the mesh")
    parser.add_argument("--backend", choices=[b.name for b in available_backends()], default="openssl")
    parser.add_argument("--algorithm", choices=[a.label for a in Algorithm], default=Algorithm.ML_DSA_65.label)
    return parser.parse_args()


if __name__ == "__main__":
    exit_with(main)
