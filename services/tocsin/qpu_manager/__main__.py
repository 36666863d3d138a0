"""Run the qpu-manager: ``python -m tocsin.qpu_manager``."""

from tocsin.bus import run_service
from tocsin.qpu_manager.service import QpuManagerService
from tocsin.qpu_manager.settings import QpuManagerSettings

if __name__ == "__main__":
    run_service(QpuManagerService, QpuManagerSettings)
