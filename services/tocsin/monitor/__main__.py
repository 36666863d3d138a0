"""Run the monitor: ``python -m tocsin.monitor``."""

from __future__ import annotations

from tocsin.bus import run_service
from tocsin.monitor.service import MonitorService
from tocsin.monitor.settings import MonitorSettings

if __name__ == "__main__":
    run_service(MonitorService, MonitorSettings)
