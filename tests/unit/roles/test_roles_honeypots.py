"""Dialogues as bytes, and honeypots over real sockets."""

from __future__ import annotations

import asyncio
import base64
import socket
import struct
from collections.abc import AsyncIterator

import pytest
import uvloop

from tocsin.agent.roles.canary import TOUCHED, Silence, finding_of
from tocsin.agent.roles.credentials import fingerprint
from tocsin.agent.roles.dialogues import (
    DIALOGUES,
    MAX_LOGINS,
    Dialogue,
    Ftp,
    Http,
    Login,
    Mysql,
    Redis,
    Smtp,
    Ssh,
    Telnet,
)
from tocsin.agent.roles.honeypot import MAX_BYTES, Ending, Honeypot, Visit, flow_of
from tocsin.analysis.detection import Detection
from tocsin.contracts.errors import UnavailableError
from tocsin.contracts.observations import FindingKind, Flow, FlowState, Observations


def plain(user: bytes, guess: bytes) -> bytes:
    return base64.b64encode(b"\0" + user + b"\0" + guess)


def mysql_login(user: bytes, scramble: bytes) -> bytes:
    body = bytes(32) + user + b"\0" + bytes([len(scramble)]) + scramble
    return len(body).to_bytes(3, "little") + b"\x01" + body


@pytest.mark.parametrize(
    ("dialogue", "said", "login"),
    [
        (Ftp(), b"USER root\r\nPASS toor\r\n", Login(b"root", b"toor")),
        (Telnet(), b"\xff\xfb\x01root\r\ntoor\r\n", Login(b"root", b"toor")),
        (Telnet(), b"root\r\0toor\r\0", Login(b"root", b"toor")),
        (Smtp(), b"EHLO me\r\nAUTH PLAIN " + plain(b"root", b"toor") + b"\r\n", Login(b"root", b"toor")),
        (Smtp(), b"AUTH PLAIN\r\n" + plain(b"root", b"toor") + b"\r\n", Login(b"root", b"toor")),
        (Smtp(), b"AUTH LOGIN\r\ncm9vdA==\r\ndG9vcg==\r\n", Login(b"root", b"toor")),
        (Smtp(), b"AUTH PLAIN no-base64\r\n", Login(b"", b"")),
        (Http(), b"GET / HTTP/1.1\r\nAuthorization: Basic cm9vdDp0b29y\r\n\r\n", Login(b"root", b"toor")),
        (Mysql(), mysql_login(b"root", b"s" * 20), Login(b"root", b"s" * 20)),
        (Redis(), b"*2\r\n$4\r\nAUTH\r\n$4\r\nt\r\nr\r\n", Login(b"default", b"t\r\nr")),
        (Redis(), b"PING\r\nauth root toor\r\n", Login(b"root", b"toor")),
    ],
)
def test_a_login_is_recognised_and_refused(dialogue: Dialogue, said: bytes, login: Login) -> None:
    dialogue.greet()
    logins: list[Login] = []
    reply = b""
    for byte in said:  # in the smallest pieces
        turn = dialogue.feed(bytes([byte]))
        logins += turn.logins
        reply += turn.reply
    assert logins == [login]
    refusals = (
        b"530 Login incorrect",
        b"Login incorrect",
        b"535 ",
        b"401 Unauthorized",
        b"Access denied",
        b"-WRONGPASS ",
    )
    assert any(refusal in reply for refusal in refusals)


def test_guessing_in_one_connection_ends_after_three() -> None:
    dialogue = Ftp()
    turn = dialogue.feed(b"USER a\r\nPASS b\r\n" * 10)
    assert turn.done
    assert len(turn.logins) == MAX_LOGINS


def test_ssh_ends_where_the_key_exchange_would_begin() -> None:
    assert not Ssh().feed(b"SSH-2.0-x\r\n").done
    assert Ssh().feed(b"SSH-2.0-x\r\n\x00\x00\x05").done
    assert b"Invalid SSH" in Ssh().feed(b"GET / HTTP/1.0\r\n").reply


def test_a_login_is_never_printed() -> None:
    assert "toor" not in repr(Login(b"root", b"toor"))
    salt = b"s" * 32
    assert fingerprint(b"toor", salt) == fingerprint(b"toor", salt)
    assert fingerprint(b"toor", salt) != fingerprint(b"toor", b"t" * 32)


def visit(ending: Ending, received: int) -> Visit:
    return Visit(
        at_s=1.0,
        client=("203.0.113.9", 4000),
        server=("10.0.0.1", 22),
        imitates="ssh",
        duration_s=0.1,
        received_bytes=received,
        sent_bytes=30,
        ending=ending,
    )


@pytest.mark.parametrize(
    ("ending", "received", "state"),
    [
        (Ending.CLOSED, 5, FlowState.ESTABLISHED),
        (Ending.TIMED_OUT, 5, FlowState.ESTABLISHED),
        (Ending.RESET, 5, FlowState.RESET),
        (Ending.CLOSED, 0, FlowState.UNANSWERED),
        (Ending.RESET, 0, FlowState.UNANSWERED),
        (Ending.TIMED_OUT, 0, FlowState.UNANSWERED),
        (Ending.TURNED_AWAY, 0, FlowState.REJECTED),
    ],
)
def test_a_visit_becomes_a_flow(ending: Ending, received: int, state: FlowState) -> None:
    flow = flow_of(visit(ending, received))
    assert (flow.state, flow.bytes_sent, flow.bytes_received, flow.service) == (state, received, 30, "ssh")


def test_a_touch_of_a_canary_is_a_finding_that_can_be_scored() -> None:
    found = finding_of(visit(Ending.CLOSED, 0), "canary-01")
    assert (found.subject, found.score, found.internal) == ("203.0.113.9", TOUCHED, False)
    assert found.features is not None
    assert found.features.connections == 1


# Over real sockets ---------------------------------------------------


class Pots:
    """The seven honeypots, and the flows of who came."""

    def __init__(self, **limits: float) -> None:
        self.visits: list[Visit] = []
        self._limits = limits
        self.ports: dict[str, int] = {}
        self._pots: list[Honeypot] = []

    async def open(self) -> None:
        for imitates, dialogue in DIALOGUES:
            pot = Honeypot(imitates, dialogue, self.visits.append, now_s=lambda: 1000.0, **self._limits)  # type: ignore[arg-type]  # one of the two is an int
            self.ports[imitates] = await pot.open("127.0.0.1")
            self._pots.append(pot)

    async def close(self) -> None:
        for pot in self._pots:
            await pot.close()

    @property
    def flows(self) -> tuple[Flow, ...]:
        return tuple(flow_of(one) for one in self.visits)

    async def seen(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.visits) < count:
                await asyncio.sleep(0.005)


@pytest.fixture
async def pots() -> AsyncIterator[Pots]:
    made = Pots()
    await made.open()
    yield made
    await made.close()


async def talk(port: int, *lines: bytes) -> bytes:
    """Say each line after an answer, and return what was answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = b""
    for line in lines:
        heard += await reader.read(4096)
        writer.write(line)
    heard += await reader.read(4096)
    writer.close()
    await writer.wait_closed()
    return heard


async def test_a_port_scan_over_honeypots_is_found(pots: Pots) -> None:
    for port in pots.ports.values():
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
    await pots.seen(7)
    assert {flow.state for flow in pots.flows} == {FlowState.UNANSWERED}
    detection = Detection("s")
    detection.feed(Observations(source="s", sequence=0, flows=pots.flows))
    assert [found.kind for found in detection.peek()] == [FindingKind.SCAN]


async def test_password_guessing_is_found(pots: Pots) -> None:
    for number in range(24):
        heard = await talk(pots.ports["ftp"], b"USER root\r\n", b"PASS %d\r\n" % number)
        assert b"530 Login incorrect" in heard
    await pots.seen(24)
    assert {flow.state for flow in pots.flows} == {FlowState.ESTABLISHED}
    assert sum(len(one.logins) for one in pots.visits) == 24
    detection = Detection("s")
    detection.feed(Observations(source="s", sequence=0, flows=pots.flows))
    (found,) = detection.peek()
    assert (found.kind, found.subject, found.targets) == (FindingKind.BRUTE_FORCE, "127.0.0.1", ("127.0.0.1",))


async def test_ordinary_visits_are_no_finding(pots: Pots) -> None:
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", pots.ports["http"])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"401 Unauthorized" in await reader.read()
        writer.close()
        await writer.wait_closed()
    await pots.seen(3)
    detection = Detection("s")
    detection.feed(Observations(source="s", sequence=0, flows=pots.flows))
    assert detection.peek() == []


async def test_a_reset_after_a_word_is_a_reset(pots: Pots) -> None:
    client = socket.create_connection(("127.0.0.1", pots.ports["ftp"]))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await asyncio.to_thread(client.recv, 100)
    client.sendall(b"USER x\r\n")
    await asyncio.to_thread(client.recv, 100)
    client.close()
    await pots.seen(1)
    assert pots.flows[0].state is FlowState.RESET


def test_who_is_gone_before_being_asked_is_still_named() -> None:
    """On uvloop, which production runs on: a socket that was reset no longer tells its peer's address there."""

    async def knock() -> list[Visit]:
        pots = Pots()
        await pots.open()
        for port in pots.ports.values():
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await pots.seen(7)
        await pots.close()
        return pots.visits

    assert {(one.client[0], one.ending) for one in uvloop.run(knock())} == {("127.0.0.1", Ending.RESET)}


async def test_who_talks_too_much_or_too_long_is_cut_off() -> None:
    pots = Pots(max_seconds=0.3)
    await pots.open()
    _, silent = await asyncio.open_connection("127.0.0.1", pots.ports["ssh"])
    _, loud = await asyncio.open_connection("127.0.0.1", pots.ports["http"])
    loud.write(b"X: y\r\n" * 5000)
    await pots.seen(2)
    by_service = {one.imitates: one for one in pots.visits}
    assert by_service["ssh"].ending is Ending.TIMED_OUT
    assert by_service["http"].received_bytes <= MAX_BYTES
    for writer in (silent, loud):
        writer.close()
    await pots.close()


async def test_beyond_its_connections_a_honeypot_turns_away() -> None:
    pots = Pots(max_connections=2)
    await pots.open()
    clients = [await asyncio.open_connection("127.0.0.1", pots.ports["ftp"]) for _ in range(3)]
    await pots.seen(1)
    assert pots.visits[0].ending is Ending.TURNED_AWAY
    assert pots.flows[0].state is FlowState.REJECTED
    for _, writer in clients:
        writer.close()
    await pots.close()


async def test_a_closed_honeypot_leaves_no_connection_and_no_port() -> None:
    pot = Honeypot("canary", Silence, lambda _: None, now_s=lambda: 0.0)
    port = await pot.open("127.0.0.1")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await pot.close()
    assert await asyncio.wait_for(reader.read(), 2) == b""
    writer.close()
    with pytest.raises(OSError, match=r"Connect call failed"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_an_address_that_is_not_ours_is_said() -> None:
    pot = Honeypot("canary", Silence, lambda _: None, now_s=lambda: 0.0)
    with pytest.raises(UnavailableError) as caught:
        await pot.open("203.0.113.1")
    assert caught.value.reason == "no_port"
