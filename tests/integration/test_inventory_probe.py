"""The probe against real TLS servers, and against some that are none."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tls_servers import post_quantum_server, raw_server, rsa_key, server_context, tls_server

from tocsin.agent.roles.probe import Probed, Target, parse_target, probe
from tocsin.analysis.inventory.model import Variant
from tocsin.bus.broker import find_nats_server
from tocsin.contracts.errors import InvalidInputError

TIMEOUT_S = 5.0


async def ask(*ports: int, timeout_s: float = TIMEOUT_S) -> tuple[Probed, ...]:
    targets = [Target("127.0.0.1", port) for port in ports]
    return await probe(targets, now_s=time.time, timeout_s=timeout_s)


async def test_tls_1_3_with_an_elliptic_curve_shows_group_and_certificate(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    async with tls_server(server_context(tmp_path, key)) as port:
        (probed,) = await ask(port)
    assert probed.problem == ""
    (variant,) = probed.variants
    assert variant.version == "TLSv1.3"
    assert variant.group in {"x25519", "secp256r1", "X25519MLKEM768"}, "OpenSSL takes the client's first"
    assert (probed.certificates[0].key_kind, probed.certificates[0].curve) == ("ecdsa", "secp384r1")
    assert probed.certificates[0].subject == "CN=server.example"


async def test_tls_1_2_only_with_rsa_shows_the_curve_of_its_exchange(tmp_path: Path) -> None:
    context = server_context(tmp_path, rsa_key(), highest=ssl.TLSVersion.TLSv1_2)
    async with tls_server(context) as port:
        (probed,) = await ask(port)
    (variant,) = probed.variants
    assert (variant.version, variant.group) == ("TLSv1.2", "x25519")
    assert variant.suite.startswith("TLS_ECDHE_RSA_WITH_")
    assert (probed.certificates[0].key_kind, probed.certificates[0].key_bits) == ("rsa", 2048)
    assert probed.certificates[0].signature == "sha256WithRSAEncryption"


async def test_rsa_key_transport_has_no_group(tmp_path: Path) -> None:
    context = server_context(tmp_path, rsa_key(), highest=ssl.TLSVersion.TLSv1_2, ciphers="AES128-SHA256")
    async with tls_server(context) as port:
        (probed,) = await ask(port)
    assert probed.variants == (Variant("TLSv1.2", "TLS_RSA_WITH_AES_128_CBC_SHA256", ""),)


async def test_a_server_that_still_takes_old_clients_is_found_out(tmp_path: Path) -> None:
    context = server_context(tmp_path, rsa_key(), lowest=ssl.TLSVersion.TLSv1, ciphers="ALL:@SECLEVEL=0")
    async with tls_server(context) as port:
        (probed,) = await ask(port)
    assert [one.version for one in probed.variants] == ["TLSv1.3", "TLSv1.1"]


async def test_post_quantum_key_exchange_of_another_implementation_is_recognised(tmp_path: Path) -> None:
    with post_quantum_server(tmp_path, Path(find_nats_server())) as port:
        (probed,) = await ask(port)
    assert [(one.version, one.group) for one in probed.variants] == [("TLSv1.3", "X25519MLKEM768")]
    assert probed.certificates[0].subject == "CN=broker.example"


@pytest.mark.skipif(
    ssl.OPENSSL_VERSION_INFO < (3, 5), reason=f"{ssl.OPENSSL_VERSION} knows no ML-KEM: 3.5 does"
)
async def test_post_quantum_key_exchange_of_openssl_is_recognised(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    async with tls_server(server_context(tmp_path, key)) as port:
        (probed,) = await ask(port)
    assert probed.variants[0].group == "X25519MLKEM768"


async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(range(256)) * 16)
    await writer.drain()
    await reader.read()


async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    await reader.read()


async def stall(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()
    await asyncio.sleep(60)


async def close(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
    return


async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Warnings without end: each a sound record."""
    while True:
        writer.write(b"\x15\x03\x03\x00\x02\x01\x70" * 500)
        await writer.drain()


async def alert(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(5)
    writer.write(b"\x15\x03\x03\x00\x02\x02\x28")
    await writer.drain()
    await reader.read()


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (garbage, "not_tls"),
        (ssh, "not_tls"),
        (stall, "timeout"),
        (close, "closed"),
        (endless, "answer_too_long"),
        (alert, "refused"),
    ],
)
async def test_a_hostile_server_is_one_reason_and_nothing_else(handler: object, reason: str) -> None:
    async with raw_server(handler) as port:  # type: ignore[arg-type]
        async with asyncio.timeout(30):
            (probed,) = await ask(port, timeout_s=0.5 if reason == "timeout" else TIMEOUT_S)
    # A server that closes at once may reset the connection while the hello is written.
    assert probed.problem in ({"closed", "unreachable"} if reason == "closed" else {reason})
    assert probed.variants == ()
    assert probed.detail


async def test_a_server_of_tls_1_3_that_fails_after_its_first_answer_keeps_its_group(tmp_path: Path) -> None:
    """A HelloRetryRequest and then nothing: the group is known, the certificate is not."""
    key = ec.generate_private_key(ec.SECP256R1())
    async with tls_server(server_context(tmp_path, key)) as real:

        async def first_answer_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hello = await reader.read(4096)
            behind, forward = await asyncio.open_connection("127.0.0.1", real)
            forward.write(hello)
            writer.write(await behind.read(4096) if b"\x00\x33\x00\x02\x00\x00" in hello else b"\x15\x03\x03")
            await writer.drain()
            forward.transport.abort()

        async with raw_server(first_answer_only) as port:
            (probed,) = await ask(port)
    assert probed.variants[0].version == "TLSv1.3"
    assert probed.variants[0].group
    assert probed.certificates == ()
    assert probed.problem in {"unreachable", "no_handshake", "timeout"}


async def test_many_endpoints_at_once_are_asked_at_the_rate_that_was_set() -> None:
    begun: list[float] = []

    async def note(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        begun.append(time.monotonic())

    async with raw_server(note) as port:
        targets = [Target(f"127.0.0.{number}", port) for number in range(1, 2)]
        targets += [Target("127.0.0.1", port)] * 50
        probed = await probe(targets, now_s=time.time, connections_per_s=1000)
        assert len(probed) == 1, "a repeated endpoint is asked once"
        assert len(begun) == 1
    away = [Target("127.0.0.1", number) for number in range(1, 6)]
    started_s = time.monotonic()
    probed = await probe(away, now_s=time.time, connections_per_s=10)
    assert time.monotonic() - started_s >= 0.39, "five connections at ten a second"
    assert {one.problem for one in probed} == {"unreachable"}


async def test_too_many_endpoints_are_refused_before_any_is_asked() -> None:
    with pytest.raises(InvalidInputError) as refused:
        await probe([Target("127.0.0.1", port) for port in range(1, 1100)], now_s=time.time)
    assert refused.value.reason == "too_many_endpoints"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("mail.example.org:443", Target("mail.example.org", 443)),
        ("192.0.2.7:8443", Target("192.0.2.7", 8443)),
        ("[2001:db8::1]:443", Target("2001:db8::1", 443)),
    ],
)
def test_an_endpoint_is_read_and_written_the_same(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert str(target) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "x", "x:", "x:0", "x:65536", ":443", "2001:db8::1:443", "[x]:1", "[::1]", "a b:1", "-x:1", "x:٣"],
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_target(text)
    assert refused.value.reason == "bad_endpoint"
