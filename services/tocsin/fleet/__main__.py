"""Run fleet: ``python -m tocsin.fleet``."""

from __future__ import annotations

from tocsin.bus import run_service
from tocsin.fleet.service import FleetService
from tocsin.fleet.settings import FleetSettings

if __name__ == "__main__":
    run_service(FleetService, FleetSettings)
