"""The gateway over real sockets and a real broker."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import httpx
import pytest
from support import DOMAIN, World, eventually

from tocsin.bus.service import VERSION
from tocsin.contracts.errors import TocsinError
from tocsin.contracts.identifiers import ServiceName, SpiffeId
from tocsin.gateway.service import GatewayService
from tocsin.gateway.settings import GatewaySettings
from tocsin.monitor.service import MonitorService
from tocsin.monitor.settings import MonitorSettings

SECRET = "a-token-of-thirty-two-characters"  # noqa: S105 - made up for this test
LOGIN = {"Authorization": f"Bearer {SECRET}"}


def settings(world: World, *, token: bool = True, **own: object) -> GatewaySettings:
    """Return settings whose times are short."""
    given = world.settings().model_dump() | {
        "api_bus_timeout_s": 0.5,
        "api_receive_timeout_s": 0.5,
        "url_file": world.folder / "gateway" / "url",
    }
    if token:
        path = world.folder / "api-token"
        path.write_text(SECRET)
        path.chmod(0o600)
        given["api_token_file"] = path
    return GatewaySettings(**(given | own))


async def gateway(world: World, *, token: bool = True, **own: object) -> GatewayService:
    service = GatewayService(await world.service(ServiceName.GATEWAY), settings(world, token=token, **own))
    await service.start()
    world.buses.push_async_callback(service.stop)
    return service


async def monitor(world: World) -> MonitorService:
    service = MonitorService(
        await world.service(ServiceName.MONITOR), MonitorSettings(**world.settings().model_dump())
    )
    await service.start()
    return service


def client(service: GatewayService, *, login: bool = True) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=service.http.url, headers=LOGIN if login else {}, timeout=10)


async def raw(service: GatewayService, data: bytes, *, then_close: bool = False) -> bytes:
    """Send bytes and return everything until the server closes."""
    host, _, port = service.http.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await writer.drain()
    if then_close:
        writer.write_eof()
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    return answer


async def test_health_needs_no_token(world: World) -> None:
    service = await gateway(world)
    async with client(service, login=False) as http:
        answer = await http.get("/api/v1/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "version": VERSION}
    assert answer.headers["content-type"] == "application/json"


async def test_the_url_file_tells_where_it_listens_and_goes_with_it(world: World) -> None:
    service = await gateway(world)
    path = service.settings.url_file
    assert path is not None
    assert path.read_text() == f"{service.http.url}\n"
    await service.stop()
    assert not path.exists()
    async with client(service) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("/api/v1/health")


async def test_figures_come_from_the_monitor(world: World) -> None:
    collected = await monitor(world)
    service = await gateway(world)
    await eventually(lambda: len(collected.book) >= 2)
    async with client(service) as http:
        answer = await http.get("/api/v1/figures")
    assert answer.status_code == 200
    found = answer.json()
    assert {one["process"] for one in found["processes"]} >= {"service.monitor.0", "service.gateway.0"}
    assert found["totals"]["deliveries_due"] == 0


async def test_status_names_who_answers_and_who_does_not(world: World) -> None:
    await monitor(world)
    service = await gateway(world)
    async with client(service) as http:
        found = (await http.get("/api/v1/status")).json()
    ready = {one["service"] for one in found["services"] if one["ready"]}
    assert ready == {"monitor", "gateway"}
    assert found["status"] == "degraded"
    assert {one["reason"] for one in found["services"] if not one["ready"]} == {"no_answer"}


@pytest.mark.parametrize("path", ["agents", "qpus", "figures"])
async def test_who_is_not_running_is_a_problem_within_the_timeout(world: World, path: str) -> None:
    service = await gateway(world)
    async with client(service) as http:
        answer = await http.get(f"/api/v1/{path}")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["retry-after"] == "1"
    problem = answer.json()
    assert (problem["family"], problem["reason"]) == ("unavailable", "no_answer")
    assert problem["instance"] == f"/api/v1/{path}"
    assert "tocsin up" in problem["advice"]


async def test_who_has_no_token_or_a_wrong_one_is_refused(world: World) -> None:
    service = await gateway(world)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {SECRET}"}):
        async with httpx.AsyncClient(base_url=service.http.url, headers=headers) as http:
            answer = await http.get("/api/v1/agents")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["reason"] == "unauthenticated"


async def test_without_a_token_file_only_health_is_served(world: World) -> None:
    service = await gateway(world, token=False)
    async with client(service) as http:
        assert (await http.get("/api/v1/health")).status_code == 200
        for path in ("status", "agents", "qpus", "figures"):
            answer = await http.get(f"/api/v1/{path}")
            assert answer.status_code == 503
            assert "TOCSIN_API_TOKEN_FILE" in answer.json()["advice"]


async def test_a_token_that_others_can_read_stops_the_start(world: World) -> None:
    given = settings(world)
    assert given.api_token_file is not None
    given.api_token_file.chmod(0o644)
    bus = await world.service(ServiceName.GATEWAY)
    with pytest.raises(TocsinError, match="others may read"):
        GatewayService(bus, given)


async def test_an_unknown_path_and_a_wrong_method_are_problems(world: World) -> None:
    service = await gateway(world)
    async with client(service) as http:
        for path in ("/", "/api/v1", "/api/v1/health/", "/api/v2/health", "/api/v1/agents/x", "/%ff%00"):
            answer = await http.get(path)
            assert (answer.status_code, answer.json()["reason"]) == (404, "not_found")
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"):
            answer = await http.request(method, "/api/v1/agents")
            assert (answer.status_code, answer.json()["reason"]) == (405, "method_not_allowed")
            assert "GET" in answer.headers["allow"]


async def test_a_body_beyond_the_limit_is_refused_unread(world: World) -> None:
    service = await gateway(world, api_max_body_bytes=100)
    head = b"POST /api/v1/agents HTTP/1.1\r\nHost: x\r\n"
    answer = await raw(service, head + b"Content-Length: 101\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer
    answer = await raw(service, head + b"Transfer-Encoding: chunked\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 411 ")


async def test_what_is_no_http_is_refused(world: World) -> None:
    service = await gateway(world)
    for junk in (b"\x16\x03\x01\x02\x00\xff" * 50 + b"\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"A" * 100_000):
        assert (await raw(service, junk)).startswith(b"HTTP/1.1 400 ")
    async with client(service) as http:
        assert (await http.get("/api/v1/health")).status_code == 200


async def test_a_client_that_is_too_slow_is_cut_off(world: World) -> None:
    service = await gateway(world)
    assert await raw(service, b"") == b""
    assert await raw(service, b"GET /api/v1/health HT") == b""
    whole = b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n\r\n"
    answer = await raw(service, whole + b"GET /api/v1/hea")
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_client_too_many_is_told_so(world: World) -> None:
    service = await gateway(world, api_max_connections=2, api_receive_timeout_s=5)
    host, _, port = service.http.url.removeprefix("http://").partition(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
    await eventually(lambda: len(service.http._server.server_state.connections) == 2)
    answer = await raw(service, b"")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert json.loads(body)["reason"] == "too_many_clients"
    for _, writer in held:
        writer.close()
    await eventually(lambda: not service.http._server.server_state.connections)
    async with client(service) as http:
        assert (await http.get("/api/v1/health")).status_code == 200


async def test_an_answer_that_takes_too_long_is_a_problem(world: World) -> None:
    service = await gateway(world, api_request_timeout_s=0.1, api_bus_timeout_s=5)
    async with client(service) as http:
        answer = await http.get("/api/v1/agents")
    assert (answer.status_code, answer.json()["reason"]) == (503, "request_timeout")


async def test_as_a_process_it_serves_until_it_is_told_to_stop(world: World) -> None:
    """The signals are the harness's, not the HTTP server's."""
    credentials = world.folder / "credentials"
    world.credentials(SpiffeId.service(DOMAIN, ServiceName.GATEWAY, "0")).save(credentials, "gateway-0")
    url_file = world.folder / "url"
    environment = {
        "TOCSIN_NATS_URL": world.broker.url,
        "TOCSIN_NATS_TOKEN_FILE": str(world.broker.token_file),
        "TOCSIN_CREDENTIALS_DIR": str(credentials),
        "TOCSIN_URL_FILE": str(url_file),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tocsin.gateway", env=os.environ | environment, stderr=asyncio.subprocess.PIPE
    )
    try:
        await eventually(url_file.exists, within_s=20)
        async with httpx.AsyncClient(base_url=url_file.read_text().strip()) as http:
            assert (await http.get("/api/v1/health")).json()["status"] == "ok"
            process.terminate()
            _, logged = await asyncio.wait_for(process.communicate(), 15)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0
    assert not url_file.exists()
    events = {json.loads(line)["event"] for line in logged.decode().splitlines()}
    assert {"api_listening", "service_ready"} <= events


async def test_an_address_that_is_taken_is_said(world: World, tmp_path: Path) -> None:
    first = await gateway(world)
    port = int(first.http.url.rpartition(":")[2])
    second = GatewayService(
        await world.service(ServiceName.GATEWAY, "1"),
        settings(world, instance="1", api_port=port, url_file=tmp_path / "url"),
    )
    with pytest.raises(TocsinError) as caught:
        await second.start()
    assert caught.value.reason == "api_address"
