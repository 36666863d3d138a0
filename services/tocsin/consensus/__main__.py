"""Run one consensus instance: ``python -m tocsin.consensus``."""

from __future__ import annotations

from tocsin.bus import run_service
from tocsin.consensus.service import ConsensusService
from tocsin.consensus.settings import ConsensusSettings

if __name__ == "__main__":
    run_service(ConsensusService, ConsensusSettings)
