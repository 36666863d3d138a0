"""Set up streams and buckets on the broker of the settings: ``python -m tocsin.bus``. Once, before the services."""

from __future__ import annotations

import sys

from tocsin.bus import BusSettings, provision, read_settings, run_guarded
from tocsin.telemetry import Metrics, configure_logging, get_logger


async def main() -> None:
    """Set up, and leave."""
    settings = read_settings(BusSettings)
    configure_logging("provision", level=settings.log_level)
    await provision(settings, Metrics())
    get_logger(__name__).info("broker_set_up")


if __name__ == "__main__":
    sys.exit(run_guarded(main))
