"""Run a router: ``python -m tocsin.router``."""

from __future__ import annotations

from tocsin.bus import run_service
from tocsin.router.service import RouterService
from tocsin.router.settings import RouterSettings

if __name__ == "__main__":
    run_service(RouterService, RouterSettings)
