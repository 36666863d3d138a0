"""Run an agent host: ``python -m tocsin.agent``."""

from __future__ import annotations

from tocsin.agent.run import run_agents

if __name__ == "__main__":
    run_agents()
