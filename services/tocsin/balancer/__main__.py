"""Run the balancer: ``python -m tocsin.balancer``."""

from tocsin.balancer.service import BalancerService
from tocsin.balancer.settings import BalancerSettings
from tocsin.bus import run_service

if __name__ == "__main__":
    run_service(BalancerService, BalancerSettings)
