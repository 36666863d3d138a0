"""Channels with keys from a QKD link: the embedded server, and servers that lie, stall or are gone."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from channel_support import Pair, fleet_of
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st
from support import World, eventually

from tocsin.agent.channels.qkd import KeyServer as Client
from tocsin.agent.channels.qkd import parse_key, parse_status
from tocsin.contracts.errors import InvalidInputError, TocsinError
from tocsin.qpu_manager.qkd.app import KeyService
from tocsin.qpu_manager.qkd.link import SimulatedLink
from tocsin.qpu_manager.qkd.server import KeyServer, TlsFiles

SAES = ("east", "west")
_LOOPBACK = ipaddress.ip_address("127.0.0.1")


@asynccontextmanager
async def served(run: Callable[[], bytes]) -> AsyncIterator[KeyServer]:
    async with KeyServer(KeyService(run, SAES), host="127.0.0.1", port=0) as server:
        yield server


@asynccontextmanager
async def answering(body: bytes, *, status: int = 200, wait_s: float = 0.0) -> AsyncIterator[str]:
    """A server that says the same whatever it is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(wait_s)
            writer.write(
                b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body))
            )
            writer.write(body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def container(key: bytes, key_id: uuid.UUID | None = None) -> bytes:
    entry = {"key_ID": str(key_id or uuid.uuid4()), "key": base64.b64encode(key).decode()}
    return json.dumps({"keys": [entry]}).encode()


async def talk(pair: Pair) -> bool:
    """Let two agents of two hosts talk both ways; return whether with QKD."""
    one, other = pair.agent("hunter-01"), pair.agent("hunter-02")
    channel = await one.channel("hunter-02")
    await channel.send(b"hello")
    await eventually(lambda: other.heard[-1:] == [(b"hello", "hunter-01")])
    assert (await other.channel("hunter-01")).qkd is channel.qkd
    return channel.qkd


async def test_keys_of_a_bb84_run_are_mixed_in(world: World, tmp_path: Path) -> None:
    link = SimulatedLink()
    async with served(lambda: link.run().key) as server, await fleet_of(world, tmp_path) as fleet:
        pair = Pair(fleet, qkd_url=server.url, qkd_timeout_s=10)
        await pair.start()
        assert await talk(pair)
        network = await pair.agent("admin-01").establish_network(["hunter-01", "hunter-02", "analyst-01"])
        assert network.failed == {}
        # hunter-02 and analyst-01 share a host, which has no link with itself.
        assert network.parameters.qkd_links == 3 - 1
        assert not network.links["analyst-01", "hunter-02"]
        assert pair.hosts["west"].metrics.counter("qkd_failures.qkd_same_host") == 1


async def test_an_eavesdropper_on_the_link_leaves_no_key(world: World, tmp_path: Path) -> None:
    link = SimulatedLink(eavesdropper=True)
    async with served(lambda: link.run().key) as server, await fleet_of(world, tmp_path) as fleet:
        answer = await asyncio.to_thread(
            httpx.get, f"{server.url}/api/v1/keys/west/enc_keys", headers={"X-SAE-ID": "east"}, timeout=20
        )
        assert answer.status_code == 503
        assert "eavesdropper" in answer.json()["message"]
        pair = Pair(fleet, qkd_url=server.url, qkd_timeout_s=10)
        await pair.start()
        assert not await talk(pair)
        assert pair.hosts["east"].metrics.counter("qkd_failures.qkd_no_keys") >= 1


async def test_a_server_that_is_gone_costs_qkd_or_the_channel(world: World, tmp_path: Path) -> None:
    async with await fleet_of(world, tmp_path) as fleet:
        pair = Pair(fleet, qkd_url="http://127.0.0.1:9", qkd_timeout_s=1)
        await pair.start()
        assert not await talk(pair)
        shared = pair.hosts["east"].channels.shared
        assert shared.qkd is not None
        shared.qkd.required = True
        await (await pair.agent("hunter-01").channel("hunter-02")).close()
        with pytest.raises(TocsinError) as refused:
            await pair.agent("hunter-01").channel("hunter-02")
        assert refused.value.reason == "qkd_gone"


async def test_a_responder_without_a_key_refuses_where_it_is_required(world: World, tmp_path: Path) -> None:
    async with served(lambda: os.urandom(4096)) as server, await fleet_of(world, tmp_path) as fleet:
        pair = Pair(fleet, qkd_url=server.url, qkd_required=True)
        await pair.start("east")
        pair.settings["qkd_url"] = None
        await pair.start("west")
        with pytest.raises(TocsinError) as refused:
            await pair.agent("hunter-01").channel("hunter-02")
        assert refused.value.reason == "qkd_not_configured"
        # The other way round: who requires a key answers no offer without one.
        with pytest.raises(TocsinError) as also:
            await pair.agent("hunter-02").channel("hunter-01")
        assert also.value.reason == "qkd_required"


@pytest.mark.parametrize("required", [False, True])
async def test_servers_that_give_different_keys_are_found_out(
    world: World,
    tmp_path: Path,
    required: bool,
) -> None:
    key_id = uuid.uuid4()
    async with (
        answering(container(b"\x01" * 32, key_id)) as east,
        answering(container(b"\x02" * 32, key_id)) as west,
        await fleet_of(world, tmp_path) as fleet,
    ):
        pair = Pair(fleet, qkd_url=east, qkd_required=required)
        await pair.start("east")
        pair.settings["qkd_url"] = west
        await pair.start("west")
        if required:
            with pytest.raises(TocsinError) as refused:
                await pair.agent("hunter-01").channel("hunter-02")
            assert refused.value.reason == "qkd_mismatch"
        else:
            assert not await talk(pair)
        assert pair.hosts["east"].metrics.counter("qkd_failures.qkd_mismatch") == 1


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (container(b"k" * 16, uuid.UUID(int=1)), 200, "qkd_wrong_size"),
        (container(b"k" * 32, uuid.UUID(int=1)), 200, "qkd_wrong_key_id"),
        (b"{", 200, "qkd_malformed"),
        (b"[]", 200, "qkd_malformed"),
        (b'{"keys": []}', 200, "qkd_malformed"),
        (b'{"keys": [{"key_ID": 7, "key": "AA=="}]}', 200, "qkd_malformed"),
        (b"x" * 70_000, 200, "qkd_malformed"),
        (b"{}", 401, "qkd_unauthorized"),
        (b"{}", 503, "qkd_no_keys"),
        (b"{}", 400, "qkd_refused"),
        (b"{}", 302, "qkd_refused"),
    ],
)
async def test_each_lie_has_its_reason(body: bytes, status: int, reason: str) -> None:
    async with answering(body, status=status) as url:
        client = Client(url, sae="east", timeout_s=5)
        with pytest.raises(TocsinError) as refused:
            await client.same("west", uuid.uuid4().bytes)
        assert refused.value.reason == reason
        await client.aclose()


async def test_a_server_that_stalls_is_given_up() -> None:
    async with answering(container(b"k" * 32), wait_s=30) as url:
        client = Client(url, sae="east", timeout_s=0.3)
        with pytest.raises(TocsinError) as refused:
            await client.fresh("west")
        assert refused.value.reason == "qkd_stalled"
        await client.aclose()


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr).map(str.encode)
)
def test_any_bytes_are_an_answer_or_one_of_our_errors(body: bytes) -> None:
    for read in (lambda raw: parse_key(raw, None), parse_status):
        try:
            read(body)
        except TocsinError as error:
            assert error.reason == "qkd_malformed"  # noqa: PT017 - it may pass


async def test_the_embedded_server_speaks_the_standard() -> None:
    async with served(lambda: os.urandom(64 * 32)) as server:
        east, west = (Client(server.url, sae=sae, timeout_s=5) for sae in SAES)
        offered = await east.fresh("west")
        assert await west.same("east", offered.key_id) == offered.key
        assert (await east.status("west")).key_bits == 256
        thief = Client(server.url, sae="thief", timeout_s=5)
        for client, peer, key_id, reason in (
            (west, "east", offered.key_id, "qkd_refused"),  # once only
            (east, "east", offered.key_id, "qkd_refused"),
            (thief, "east", offered.key_id, "qkd_unauthorized"),
        ):
            with pytest.raises(TocsinError) as refused:
                await client.same(peer, key_id)
            assert refused.value.reason == reason
        base = f"{server.url}/api/v1/keys/west"
        async with httpx.AsyncClient(headers={"X-SAE-ID": "east"}) as raw:
            assert (await raw.get(f"{base}/enc_keys?number=1&size=256")).status_code == 200
            for bad in (
                "enc_keys?number=2",
                "enc_keys?size=128",
                "enc_keys?size=x",
                "dec_keys",
                "dec_keys?key_ID=x",
            ):
                assert (await raw.get(f"{base}/{bad}")).status_code == 400
            for body in (b"{", b"[]", b"x" * 5000, b'{"key_IDs": 7}', b'{"key_IDs": [1]}', b"[" * 4000):
                assert (await raw.post(f"{base}/dec_keys", content=body)).status_code == 400
        for client in (east, west, thief):
            await client.aclose()


async def test_without_tls_it_listens_on_loopback_only() -> None:
    with pytest.raises(InvalidInputError) as refused:
        KeyServer(KeyService(bytes, SAES), host="0.0.0.0", port=0)  # noqa: S104 - it is refused
    assert refused.value.reason == "not_loopback"


async def test_with_tls_the_certificate_says_who_asks(tmp_path: Path) -> None:
    authority = _Authority(tmp_path)
    tls = TlsFiles(*authority.issue("kme"), authority.path)
    async with KeyServer(
        KeyService(lambda: os.urandom(512), SAES), host="127.0.0.1", port=0, tls=tls
    ) as server:
        url = server.url

        def client(sae: str, **files: Any) -> Client:
            return Client(url, sae=sae, timeout_s=5, ca_file=authority.path, **files)

        east, west, thief = (
            client(sae, **dict(zip(("cert_file", "key_file"), authority.issue(sae), strict=True)))
            for sae in ("east", "west", "thief")
        )
        offered = await east.fresh("west")
        assert await west.same("east", offered.key_id) == offered.key
        nobody = client("east")
        for asker, reason in ((thief, "qkd_unauthorized"), (nobody, "qkd_gone")):
            with pytest.raises(TocsinError) as refused:
                await asker.fresh("west")
            assert refused.value.reason == reason
        for one in (east, west, thief, nobody):
            await one.aclose()


class _Authority:
    """An ordinary authority for TLS, as a key server's operator has it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("qkd test authority")
        self.path = folder / "qkd-ca.pem"
        certificate = self._sign(self._name, self._key.public_key(), is_authority=True)
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name(name), key.public_key(), is_authority=False)
        files = (self._folder / f"{name}.pem", self._folder / f"{name}.key")
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        files[1].write_bytes(key.private_bytes(*pem))
        return files

    def _sign(self, name: x509.Name, key: ec.EllipticCurvePublicKey, *, is_authority: bool) -> x509.Certificate:
        now = datetime.now(UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(_LOOPBACK)])
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
