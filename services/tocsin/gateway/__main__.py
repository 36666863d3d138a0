"""Run the gateway: ``python -m tocsin.gateway``."""

from __future__ import annotations

from tocsin.bus import run_service
from tocsin.gateway.service import GatewayService
from tocsin.gateway.settings import GatewaySettings

if __name__ == "__main__":
    run_service(GatewayService, GatewaySettings)
