"""The webhook against servers that do, refuse, stall, redirect and talk garbage."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import pytest

from tocsin.agent.actuators import VerifiedOrder, choose
from tocsin.agent.actuators.webhook import ATTEMPTS, WebhookActuator, check_url, read_secret
from tocsin.agent.openc2 import MAX_BYTES, parse_command
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.response import Action, ActuationOutcome, Command

SECRET = b"s" * 32
ORDER = VerifiedOrder(
    Command(action=Action.DENY, address="203.0.113.9", duration_s=60), b"d" * 32, "guardian-01", 7
)
Say = Callable[[asyncio.StreamWriter], Awaitable[None]]


class Receiver:
    """An HTTP server that says what it is told to say, byte by byte."""

    def __init__(self, *answers: bytes | Say) -> None:
        self.answers = list(answers)
        self.heard: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
        }
        self.heard.append((headers, await reader.readexactly(int(headers["content-length"]))))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except ConnectionError:
            pass  # the client has had enough
        finally:
            writer.close()


@asynccontextmanager
async def receiver(
    *answers: bytes | Say, timeout_s: float = 5
) -> AsyncIterator[tuple[Receiver, WebhookActuator]]:
    made = Receiver(*answers)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/openc2"
    try:
        yield made, WebhookActuator(url, SECRET, timeout_s=timeout_s, first_pause_s=0.01)
    finally:
        server.close()
        await server.wait_closed()


def http(code: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code} x", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


DONE = http(200, b'{"status":200}')


async def test_a_command_is_sent_signed_and_under_the_decisions_key() -> None:
    async with receiver(DONE) as (heard, webhook):
        carried = await webhook.apply(ORDER)
        await webhook.undo(ORDER)
        assert await webhook.query() is None
    assert carried.outcome is ActuationOutcome.DONE
    (headers, body), (undo_headers, undo) = heard.heard
    assert json.loads(body) == ORDER.command.openc2() | {"command_id": ORDER.decision.hex()[:32]}
    assert headers["content-type"] == "application/openc2-cmd+json;version=1.0"
    at, _, mac = headers["x-tocsin-signature"].removeprefix("t=").partition(",v1=")
    assert hmac.compare_digest(mac, hmac.new(SECRET, at.encode() + b"." + body, sha256).hexdigest())
    assert headers["idempotency-key"] == ORDER.decision.hex()
    assert undo_headers["idempotency-key"] == f"{ORDER.decision.hex()}.cancel"
    assert parse_command(undo).value == ORDER.command_id


async def test_what_may_yet_be_done_is_sent_again_under_the_same_key() -> None:
    async with receiver(http(503), http(200, b'{"status":503}'), DONE) as (heard, webhook):
        await webhook.apply(ORDER)
    assert {headers["idempotency-key"] for headers, _ in heard.heard} == {ORDER.decision.hex()}
    assert len(heard.heard) == 3


async def stall(_: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def drip(writer: asyncio.StreamWriter) -> None:
    """Stay below any time-out between two bytes."""
    writer.write(b"HTTP/1.1 200 x\r\ncontent-length: 9999\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.01)


async def flood(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 x\r\n\r\n")
    for _ in range(4 * MAX_BYTES // 1024):
        writer.write(b" " * 1024)
        await writer.drain()


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("answer", "reason", "requests"),
    [
        (stall, "webhook_timed_out", ATTEMPTS),
        (drip, "webhook_timed_out", ATTEMPTS),
        (hang_up, "webhook_unreachable", ATTEMPTS),
        (http(500), "webhook_failed", ATTEMPTS),
        (http(200, b'{"status":102}'), "webhook_failed", ATTEMPTS),
        (flood, "webhook_garbage", 1),
        (http(200, b"<html>welcome</html>"), "webhook_garbage", 1),
        (http(200, b"\xff\x00\xfe", "content-encoding: gzip"), "webhook_garbage", 1),
        (http(200, b'{"status":200,"status":500}'), "webhook_garbage", 1),
        (http(302, b"", "location: http://127.0.0.1:1/"), "webhook_redirected", 1),
        (http(307, b"", "location: https://example.org/"), "webhook_redirected", 1),
        (http(404), "webhook_refused", 1),
        (http(200, b'{"status":403,"status_text":"no"}'), "webhook_refused", 1),
    ],
)
async def test_whatever_is_not_done_is_said(answer: bytes | Say, reason: str, requests: int) -> None:
    async with receiver(answer, timeout_s=0.3) as (heard, webhook):
        with pytest.raises(TocsinError) as caught:
            await webhook.apply(ORDER)
    assert caught.value.reason == reason
    assert len(heard.heard) == requests


async def test_nobody_there_is_said() -> None:
    webhook = WebhookActuator("http://127.0.0.1:1/", SECRET, first_pause_s=0.01)
    with pytest.raises(TocsinError) as caught:
        await webhook.apply(ORDER)
    assert caught.value.reason == "webhook_unreachable"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://example.org/",
        "http://localhost/",
        "http://127.0.0.1.example.org/",
        "ftp://127.0.0.1/",
        "https://user:pass@example.org/",
        "http://[::1/",
        "https:///path",
        "https://example.org:99999/",
    ],
)
def test_an_address_that_would_give_it_away_is_refused(url: str) -> None:
    with pytest.raises(TocsinError) as caught:
        check_url(url)
    assert caught.value.reason == "bad_webhook"


def test_https_anywhere_and_http_on_this_machine() -> None:
    for url in ("https://soar.example.org/openc2", "http://127.0.0.1:8080/", "http://[::1]:8080/x"):
        assert check_url(url) == url


def test_a_secret_is_long_and_nobody_elses(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"k" * 32 + b"\n")
    file.chmod(0o600)
    assert read_secret(file) == b"k" * 32
    file.chmod(0o644)
    reasons = []
    short = tmp_path / "short"
    short.write_bytes(b"k")
    short.chmod(0o600)
    for path in (file, short, None, tmp_path / "missing"):
        with pytest.raises(TocsinError) as caught:
            read_secret(path)
        reasons.append(caught.value.reason)
    assert reasons == ["bad_secret", "bad_secret", "bad_secret", "no_secret"]


def test_actuators_are_chosen_by_name(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    secret.chmod(0o600)
    names = [
        choose(name, folder=tmp_path, webhook_url="https://example.org/", webhook_secret_file=secret).name
        for name in ("dry-run", "webhook", "nftables")
    ]
    assert names == ["dry-run", "webhook", "nftables"]
    with pytest.raises(TocsinError, match="no actuator 'rm'"):
        choose("rm", folder=tmp_path)
