"""Run a worker: ``python -m tocsin.balancer.worker``."""

import os

from tocsin.balancer.worker.service import WorkerService
from tocsin.balancer.worker.settings import WorkerSettings
from tocsin.bus import run_service

ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Read by OpenMP and the BLAS libraries when numpy loads them, which the service does later: slots are threads
of ours, they need none of theirs."""

if __name__ == "__main__":
    for variable in ONE_THREAD:
        os.environ.setdefault(variable, "1")
    run_service(WorkerService, WorkerSettings)
