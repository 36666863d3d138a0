"""The harness: what every service is, so that its own code is only its subjects and its core.

    class BalancerService(Service[BalancerSettings]):
        name = ServiceName.BALANCER

        @handles(BALANCER_PLACE)
        async def place(self, operation: Operation, context: Context) -> Placement: ...

        @subscribes(POOL)
        async def on_pool(self, status: PoolStatus, context: Context) -> None: ...

    if __name__ == "__main__":
        run_service(BalancerService, BalancerSettings)

A service is registered as a NATS micro service (``nats micro ls`` finds it), answers ``<service>.ping``,
serves /healthz, /readyz and /metrics, logs JSON, publishes its figures, and drains on SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import nats.errors
import nats.micro
import uvloop
from nats.micro.request import Request as MicroRequest
from nats.micro.service import Service as MicroService
from nats.micro.service import ServiceConfig
from pydantic import ValidationError

from tocsin.bus.client import Bus
from tocsin.bus.connection import translate
from tocsin.bus.credentials import Credentials, read
from tocsin.bus.instances import ANY, take_instance
from tocsin.bus.opener import Context
from tocsin.bus.sending import NO_TOKENS, Tokens
from tocsin.bus.settings import BusSettings
from tocsin.contracts.base import Message
from tocsin.contracts.catalogue import PING
from tocsin.contracts.errors import InvalidInputError, TocsinError, UnavailableError
from tocsin.contracts.identifiers import ServiceName
from tocsin.contracts.operations import PingRequest, Pong
from tocsin.contracts.subjects import Request, Subject
from tocsin.crypto import select_backend
from tocsin.telemetry import HealthServer, Metrics, configure_logging, get_logger, set_aside

S = TypeVar("S", bound=BusSettings)
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

VERSION = version("tocsin")
STATS_INTERVAL_S = 1.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Served:
    request: Request[Message, Message]
    concurrency: int


@dataclass(frozen=True, slots=True)
class _Subscribed:
    subject: Subject
    shared: bool
    concurrency: int
    again: bool = False
    at: Tokens = field(default_factory=lambda: NO_TOKENS)


@dataclass(frozen=True, slots=True)
class _Consumed:
    subject: Subject
    durable: str
    concurrency: int


def handles(request: Request[Any, Any], *, concurrency: int = 16) -> Callable[[F], F]:
    """Mark a method as the answer to a request; the service's instances share the requests."""
    return _mark(_Served(request, concurrency))


def subscribes(
    subject: Subject,
    *,
    shared: bool = False,
    concurrency: int = 1,
    again: bool = False,
    at: Tokens = NO_TOKENS,
) -> Callable[[F], F]:
    """Mark a method as the handler of a subject.

    Args:
        subject: the subject.
        shared: the service's instances share the messages (a queue group); else each gets all.
        concurrency: 1 keeps the order.
        again: a stored message that was handled before is handed over again.
        at: only these tokens.
    """
    return _mark(_Subscribed(subject, shared, concurrency, again, at))


def consumes(subject: Subject, *, durable: str, concurrency: int = 1) -> Callable[[F], F]:
    """Mark a method as the consumer of a subject's stream, at least once, shared by the instances."""
    return _mark(_Consumed(subject, durable, concurrency))


def _mark(mark: _Served | _Subscribed | _Consumed) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        marks = getattr(function, "__tocsin_marks__", ())
        function.__tocsin_marks__ = (*marks, mark)  # type: ignore[attr-defined]  # read by Service below
        return function

    return decorate


class Service(Generic[S]):
    """Base of the services: subclass it, mark methods, and override the hooks."""

    name: ClassVar[ServiceName]

    def __init__(self, bus: Bus, settings: S) -> None:
        self.bus = bus
        self.settings = settings
        self.metrics = bus.metrics
        self._ready = False
        self._micro: MicroService | None = None

    async def prepare(self) -> None:
        """Hook: before the first message, e.g. read state. Heavy work goes into a thread."""

    async def started(self) -> None:
        """Hook: after the subscriptions stand, e.g. start periodic tasks with ``self.bus.spawn``."""

    async def stopping(self) -> None:
        """Hook: before the connection drains."""

    @property
    def ready(self) -> bool:
        """Whether work may be sent here."""
        return self._ready and self.bus.connected and self.bus.certified

    async def start(self) -> None:
        """Subscribe everything that is marked, and register as a micro service."""
        await self.bus.standings.follow()
        await self.prepare()
        self._micro = await self._register()
        await self._serve(_Served(PING[self.name], 4), self.ping)
        for method, mark in self._marked():
            if isinstance(mark, _Served):
                await self._serve(mark, method)
            elif isinstance(mark, _Subscribed):
                await self.bus.subscribe(
                    mark.subject,
                    method,
                    queue=self.name.value if mark.shared else "",
                    concurrency=mark.concurrency,
                    again=mark.again,
                    at=mark.at,
                )
            else:
                await self.bus.consume(mark.subject, method, durable=mark.durable, concurrency=mark.concurrency)
        await self.bus.flush()
        await self.started()
        self._ready = True
        log.info("service_ready", service=self.name.value, instance=self.settings.instance)

    async def stop(self) -> None:
        """Say goodbye; the bus drains afterwards."""
        self._ready = False
        await self.stopping()
        if self._micro is not None:
            with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._micro.stop()

    async def ping(self, _: PingRequest, __: Context) -> Pong:
        """Answer whether this instance is ready.

        Raises:
            UnavailableError: ``starting``.
        """
        if not self._ready:
            raise UnavailableError(f"{self.name.value} is starting", reason="starting")
        return Pong(
            process=self.bus.id.token,
            version=VERSION,
            signature_backend=self.bus.backend.name,
            name=self.settings.instance,
        )

    def _marked(self) -> Iterator[tuple[Callable[..., Awaitable[Any]], _Served | _Subscribed | _Consumed]]:
        for _, function in inspect.getmembers(type(self), inspect.isfunction):
            for mark in getattr(function, "__tocsin_marks__", ()):
                yield function.__get__(self), mark

    async def _register(self) -> MicroService:
        try:
            return await nats.micro.add_service(
                self.bus.connection.client,
                ServiceConfig(
                    name=self.name.value,
                    version=VERSION,
                    description=(inspect.getdoc(type(self)) or "").partition("\n")[0],
                    metadata={"instance": self.settings.instance, "signed": "tocsin envelope 1"},
                    queue_group=self.name.value,
                ),
            )
        except (TimeoutError, nats.errors.Error) as error:
            raise translate(error, "registering the service") from error

    async def _serve(self, mark: _Served, method: Callable[..., Awaitable[Any]]) -> None:
        receive = await self.bus.serve(mark.request, method, concurrency=mark.concurrency)
        assert self._micro is not None  # noqa: S101 - set before the first endpoint

        async def endpoint(request: MicroRequest) -> None:
            receive(request.data, request.subject, request._msg.reply)  # noqa: SLF001 - no public way

        await self._micro.add_endpoint(
            name=mark.request.verb.replace(".", "-"), subject=mark.request.subject.pattern(), handler=endpoint
        )


def read_settings(settings_class: type[S]) -> S:
    """Read settings from the environment; with ``--print-config`` print them and leave.

    What the environment does not say is taken from the file that ``TOCSIN_SETTINGS_FILE`` names, lines of
    ``TOCSIN_NAME=value``.

    Raises:
        InvalidInputError: naming each variable that is wrong.
        UnavailableError: ``missing_file``: the file cannot be read.
    """
    file = os.environ.get("TOCSIN_SETTINGS_FILE")
    if file is not None:
        read(Path(file))
    try:
        settings = settings_class(_env_file=file)
    except ValidationError as error:
        prefix = settings_class.model_config.get("env_prefix", "")
        wrong = [
            f"{prefix}{'_'.join(map(str, e['loc']))}".upper() + f": {e['msg']}"
            for e in error.errors(include_input=False)
        ]
        raise InvalidInputError(
            "; ".join(wrong), reason="bad_settings", advice="see docs/reference/settings.md"
        ) from error
    if "--print-config" in sys.argv[1:]:
        sys.stdout.write(settings.model_dump_json(indent=2) + "\n")
        raise SystemExit(0)
    return settings


def run_service(service_class: type[Service[S]], settings_class: type[S]) -> None:
    """Run a service until SIGTERM or SIGINT; the process's exit code is the error's."""
    sys.exit(run_guarded(lambda: _serve_until_signal(service_class, read_settings(settings_class))))


def run_guarded(main: Callable[[], Awaitable[None]]) -> int:
    """Run an asynchronous main; one of our errors becomes one line and its exit code."""
    set_aside()
    try:
        uvloop.run(_await(main()))
    except TocsinError as error:
        advice = error.advice()
        sys.stderr.write(f"{error}{f' ({advice})' if advice else ''}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


async def _await(work: Awaitable[None]) -> None:
    await work


async def _serve_until_signal(service_class: type[Service[S]], settings: S) -> None:
    if settings.instance == ANY:
        instance = take_instance(settings.credentials_dir, service_class.name)
        settings = settings.model_copy(update={"instance": instance})
    name = f"{service_class.name.value}-{settings.instance}"
    metrics = Metrics()
    backend = select_backend(settings.signature_backend)
    credentials = Credentials.load(settings.credentials_dir, None, name, backend)
    if credentials.id.service_name is not service_class.name:
        raise InvalidInputError(f"the credentials are for {credentials.id}", reason="wrong_credentials")
    stop = stop_on_signal()
    holder: list[Service[S]] = []
    with serve_health(name, settings, metrics, ready=lambda: bool(holder) and holder[0].ready):
        async with contextlib.AsyncExitStack() as stack:
            try:
                opening = stack.enter_async_context(Bus(settings, credentials, metrics))
                bus = await unless_stopped(stop, opening)
                # After it has looked for a renewal that could not be written down.
                bus.credentials.require_valid(now_ns=time.time_ns())
                service = service_class(bus, settings)
                holder.append(service)
                await unless_stopped(stop, service.start())
            except StoppedError:
                log.info("service_stopped_while_starting", service=name)
                return
            await stop.wait()
            log.info("service_stopping", service=name)
            await service.stop()


@contextlib.contextmanager
def serve_health(
    name: str, settings: BusSettings, metrics: Metrics, *, ready: Callable[[], bool]
) -> Iterator[HealthServer]:
    """Do what every process does around its work: logs as JSON, /healthz, /readyz and /metrics."""
    configure_logging(name, level=settings.log_level)
    health = HealthServer(metrics, ready=ready, host=settings.health_host, port=settings.health_port)
    with health:
        log.info(
            "process_starting",
            process=name,
            signature_backend=select_backend(settings.signature_backend).name,
            health_port=health.port,
            version=VERSION,
        )
        yield health


class StoppedError(TocsinError):
    """A signal came before the work was done."""

    reason = "stopped"


async def unless_stopped(stop: asyncio.Event, work: Awaitable[T]) -> T:
    """Do ``work`` unless ``stop`` is set first: a start that waits for something can be ended at any moment.

    Raises:
        StoppedError: it was; the work has been cancelled and has cleaned up.
    """
    doing = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
        raise StoppedError("stopped before it was done")
    finally:
        doing.cancel()
        stopped.cancel()


def stop_on_signal() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop
