"""The packet filter's transactions as JSON everywhere, and for real in a network namespace where that is allowed."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tocsin.agent.actuators import VerifiedOrder
from tocsin.agent.actuators.nftables import HOOKS, NftablesActuator, adding, removing, set_of
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.response import Action, Command


def order(address: str = "10.77.0.2", *, decision: bytes = b"d" * 32, duration_s: int = 60) -> VerifiedOrder:
    command = Command(action=Action.DENY, address=address, duration_s=duration_s)
    return VerifiedOrder(command, decision, "guardian-01", 7)


def test_a_transaction_touches_our_table_only_and_carries_the_timeout() -> None:
    for made in (adding(order()), removing(order())):
        commands = made["nftables"]
        assert isinstance(commands, list)
        for command in commands[1:]:
            ((verb, objects),) = command.items()
            ((kind, what),) = objects.items()
            assert (what["family"], what.get("table", what.get("name"))) == ("inet", "tocsin")
            assert (verb, kind) in {
                *(("add", one) for one in ("table", "set", "chain", "rule", "element")),
                ("flush", "chain"),
                ("delete", "element"),
            }
    last = adding(order())["nftables"][-1]  # type: ignore[index]  # JSON
    timed = {"val": "10.77.0.2", "timeout": 60, "comment": f"tocsin {(b'd' * 16).hex()}"}
    assert last["add"]["element"]["elem"] == [{"elem": timed}]


def test_addresses_go_to_the_set_of_their_family_as_what_they_are() -> None:
    assert set_of(Command(action=Action.DENY, address="::ffff:198.51.100.7", duration_s=1)) == (
        "deny4",
        "198.51.100.7",
    )
    contain = Command(action=Action.CONTAIN, address="2001:DB8::7", duration_s=1)
    assert set_of(contain) == ("contain6", "2001:db8::7")


async def test_a_filter_that_is_not_there_stalls_or_talks_is_said() -> None:
    cases = (
        (("no-such-nft",), "no_nft"),
        ((sys.executable, "-c", "import sys; sys.exit('no permission')"), "nft_failed"),
        ((sys.executable, "-c", "import time; time.sleep(60)"), "nft_timed_out"),
    )
    for nft, reason in cases:
        with pytest.raises(TocsinError) as caught:
            await NftablesActuator(nft, timeout_s=1.5).apply(order())
        assert caught.value.reason == reason
    with pytest.raises(TocsinError) as caught:
        await NftablesActuator((sys.executable, "-c", "print('garbage')")).query()
    assert caught.value.reason == "bad_listing"


# For real --------------------------------------------------------------

SERVER = """
import socket
s = socket.socket(); s.bind(("10.77.0.1", 7777)); s.listen(64); print("up", flush=True)
while True: s.accept()[0].close()
"""
CLIENT = """
import socket, sys
s = socket.socket(); s.settimeout(0.7); s.bind((sys.argv[1], 0)); s.connect(("10.77.0.1", 7777))
"""


class Namespace:
    """A network of its own, held by a process: a server at 10.77.0.1, clients at .2 and .3."""

    def __init__(self) -> None:
        # `unshare` execs cat, which holds the namespace until its input ends.
        self.holder = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
        self.inside = ("nsenter", f"--net=/proc/{self.holder.pid}/ns/net")
        host = Path("/proc/self/ns/net").readlink()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{self.holder.pid}/ns/net").readlink() == host and time.monotonic() < deadline:
            time.sleep(0.01)
        for command in ("ip link set lo up", *(f"ip addr add 10.77.0.{n}/32 dev lo" for n in (1, 2, 3))):
            subprocess.run([*self.inside, *command.split()], check=True)
        self.server = subprocess.Popen([*self.inside, sys.executable, "-c", SERVER], stdout=subprocess.PIPE)
        assert self.server.stdout is not None
        self.server.stdout.readline()

    def reaches(self, source: str) -> bool:
        command = [*self.inside, sys.executable, "-c", CLIENT, source]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def nft(self, *arguments: str) -> str:
        return subprocess.run(
            [*self.inside, "nft", *arguments], capture_output=True, text=True, check=True
        ).stdout

    def close(self) -> None:
        for process in (self.server, self.holder):
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def why_not() -> str:
    """Say why the packet filter cannot be tried here; empty if it can."""
    for program in ("nft", "unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    tried = subprocess.run(
        ["unshare", "--net", "nft", "add", "table", "inet", "t"], capture_output=True, check=False
    )
    return "" if tried.returncode == 0 else f"no network namespace: {tried.stderr.decode()[:200]}"


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if reason := why_not():
        pytest.skip(reason)
    made = Namespace()
    yield made
    made.close()


async def test_packets_are_dropped_until_it_is_undone(namespace: Namespace) -> None:
    nft = NftablesActuator((*namespace.inside, "nft"))
    namespace.nft("add", "table", "inet", "theirs")
    assert namespace.reaches("10.77.0.2")
    assert await nft.query() == frozenset()
    await nft.apply(order())
    await nft.apply(order(duration_s=600))
    assert await nft.query() == frozenset({order().command_id})
    assert not namespace.reaches("10.77.0.2")
    assert namespace.reaches("10.77.0.3")
    listed = namespace.nft("list", "table", "inet", "tocsin")
    assert all(listed.count(f"hook {hook}") == 1 for hook in HOOKS)
    assert listed.count("@deny4 drop") == 6, "rules are not repeated"
    assert "timeout 10m" in listed
    await nft.undo(order())
    await nft.undo(order())
    assert await nft.query() == frozenset()
    assert namespace.reaches("10.77.0.2")
    assert "theirs" in namespace.nft("list", "tables")


async def test_the_kernel_ends_what_nobody_ends(namespace: Namespace) -> None:
    nft = NftablesActuator((*namespace.inside, "nft"))
    await nft.apply(order(duration_s=1))
    async with asyncio.timeout(15):
        while await nft.query():
            await asyncio.sleep(0.1)
    assert namespace.reaches("10.77.0.2")


async def test_a_transaction_that_fails_leaves_nothing(namespace: Namespace) -> None:
    nft = NftablesActuator((*namespace.inside, "nft"))
    await nft.apply(order())
    namespace.nft("flush", "ruleset")
    namespace.nft("add", "table", "inet", "tocsin")
    namespace.nft("add", "set", "inet", "tocsin", "deny6", "{ type ipv4_addr; }")  # another's, in our way
    with pytest.raises(TocsinError) as caught:
        await nft.apply(order())
    assert caught.value.reason == "nft_failed"
    assert "10.77.0.2" not in namespace.nft("list", "ruleset")
    with pytest.raises(TocsinError):
        await nft.undo(order())
