"""What the tests of balancer, worker and workflow share: services in this process, and processes to kill."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from support import DOMAIN, World

from tocsin.balancer.service import BalancerService
from tocsin.balancer.settings import BalancerSettings
from tocsin.balancer.worker.service import WorkerService
from tocsin.balancer.worker.settings import WorkerSettings
from tocsin.contracts.identifiers import ServiceName, SpiffeId


async def balancer(world: World) -> BalancerService:
    bus = await world.service(ServiceName.BALANCER)
    service = BalancerService(bus, BalancerSettings(**world.settings().model_dump()))
    await service.start()
    return service


async def worker(world: World, instance: str = "0") -> WorkerService:
    base = world.settings().model_dump() | {"instance": instance}
    bus = await world.service(ServiceName.WORKER, instance)
    service = WorkerService(bus, WorkerSettings(**base, redeliver_after_s=1, status_interval_s=0.1))
    await service.start()
    return service


@asynccontextmanager
async def process_of(
    world: World, service: ServiceName, instance: str, **environment: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a service as an operating system process of its own, killed at the end if it was not before."""
    folder = world.folder / "credentials"
    spiffe_id = SpiffeId.service(DOMAIN, service, instance)
    world.credentials(spiffe_id).save(folder, f"{service.value}-{instance}")
    module = (
        "tocsin.balancer.worker"
        if service is ServiceName.WORKER
        else f"tocsin.{service.value.replace('-', '_')}"
    )
    told = {
        "TOCSIN_NATS_URL": world.broker.url,
        "TOCSIN_NATS_TOKEN_FILE": str(world.broker.token_file),
        "TOCSIN_CREDENTIALS_DIR": str(folder),
        "TOCSIN_INSTANCE": instance,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        env=os.environ | told | environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
