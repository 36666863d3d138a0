from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from structlog.testing import capture_logs

from tocsin.contracts.errors import UnavailableError
from tocsin.telemetry import HealthServer, Metrics
from tocsin.telemetry.health import MAX_CLIENTS


class Flag:
    def __init__(self) -> None:
        self.value: bool | Exception = True

    def __call__(self) -> bool:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def ready() -> Flag:
    return Flag()


@pytest.fixture
def server(metrics: Metrics, ready: Flag) -> Iterator[HealthServer]:
    with HealthServer(metrics, ready, timeout_s=0.5) as server:
        yield server


@pytest.fixture
def client(server: HealthServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", trust_env=False) as client:
        yield client


def test_metrics_are_served_in_the_exposition_format(client: httpx.Client, metrics: Metrics) -> None:
    metrics.count("rejected.replay", 2)
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert 'tocsin_rejected_total{reason="replay"} 2.0' in answer.text.splitlines()


def test_open_metrics_are_served_to_who_asks(client: httpx.Client) -> None:
    answer = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


def test_ready_follows_the_flag_and_alive_does_not(client: httpx.Client, ready: Flag) -> None:
    assert (client.get("/readyz").status_code, client.get("/healthz").status_code) == (200, 200)
    ready.value = False
    assert (client.get("/readyz").status_code, client.get("/healthz").status_code) == (503, 200)


def test_alive_may_be_asked_of_the_process(metrics: Metrics) -> None:
    with HealthServer(metrics, lambda: True, alive=lambda: False) as server:
        assert httpx.get(f"http://127.0.0.1:{server.port}/healthz", trust_env=False).status_code == 503


def test_a_failing_check_is_told_and_logged(client: httpx.Client, ready: Flag) -> None:
    ready.value = ValueError("no")
    with capture_logs() as logs:
        assert client.get("/readyz").status_code == 500
    assert [entry["event"] for entry in logs] == ["health_check_failed"]


@pytest.mark.parametrize("path", ["/", "/metrics/", "/favicon.ico", "/metricsx", "/..%2fmetrics", "/readyz/x"])
def test_other_paths_are_not_found(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "FOO"])
@pytest.mark.parametrize("path", ["/metrics", "/nothing"])
def test_other_methods_are_not_allowed(client: httpx.Client, method: str, path: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


def test_nothing_is_printed(
    client: httpx.Client, server: HealthServer, capfd: pytest.CaptureFixture[str]
) -> None:
    client.get("/healthz")
    for raw in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n", b""):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("first", [b"", b"GET /heal", b"GET /healthz HTTP/1.1\r\nX: "])
def test_a_client_that_drips_is_cut_off_and_others_are_served(
    client: httpx.Client, server: HealthServer, first: bytes
) -> None:
    """Each byte comes well within the timeout: only a deadline for the whole request ends it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.1) as slow:
        slow.sendall(first)
        start_s = time.monotonic()
        ended = False
        while not ended and time.monotonic() - start_s < 5:
            try:
                slow.sendall(b"x")
                ended = slow.recv(64) == b""
            except TimeoutError:
                assert client.get("/healthz").status_code == 200
            except ConnectionError:
                ended = True
        assert ended
        assert 0.3 < time.monotonic() - start_s < 3
    assert server.statistics().cut_off == 1


def test_clients_are_limited(metrics: Metrics) -> None:
    with HealthServer(metrics, lambda: True, timeout_s=30) as server:
        address = ("127.0.0.1", server.port)
        before = threading.active_count()
        held = [socket.create_connection(address, timeout=5) for _ in range(MAX_CLIENTS)]
        with socket.create_connection(address, timeout=5) as late:
            assert late.recv(1) == b""
        assert threading.active_count() - before <= MAX_CLIENTS
        assert server.statistics().cut_off == 1
        for connection in held:
            connection.close()
        deadline_s = time.monotonic() + 5
        answered = False
        while not answered and time.monotonic() < deadline_s:
            try:
                answered = httpx.get(f"http://127.0.0.1:{server.port}/healthz", trust_env=False).is_success
            except httpx.TransportError:
                continue
        assert answered


async def test_the_loop_runs_while_a_scrape_waits(metrics: Metrics) -> None:
    """The check waits for the loop: were they one thread, this would never end."""
    from_loop = threading.Event()
    with HealthServer(metrics, lambda: from_loop.wait(5)) as server:
        async with httpx.AsyncClient(trust_env=False) as client:
            asking = asyncio.create_task(client.get(f"http://127.0.0.1:{server.port}/readyz"))
            await asyncio.sleep(0.05)
            from_loop.set()
            assert (await asking).status_code == 200


def test_stopping_is_quick_and_may_be_repeated(metrics: Metrics) -> None:
    server = HealthServer(metrics, lambda: True)
    server.stop()
    server.start()
    port = server.port
    start_s = time.monotonic()
    server.stop()
    server.stop()
    assert time.monotonic() - start_s < 0.4
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    server.start()
    assert httpx.get(f"http://127.0.0.1:{server.port}/healthz", trust_env=False).status_code == 200
    server.stop()


def test_a_taken_port_is_our_error(server: HealthServer, metrics: Metrics) -> None:
    with pytest.raises(UnavailableError) as caught:
        HealthServer(metrics, lambda: True, port=server.port).start()
    assert caught.value.reason == "health_address"


def test_using_it_in_the_wrong_order_is_a_programming_error(server: HealthServer, metrics: Metrics) -> None:
    with pytest.raises(RuntimeError, match="already"):
        server.start()
    with pytest.raises(RuntimeError, match="not started"):
        _ = HealthServer(metrics, lambda: True).port
