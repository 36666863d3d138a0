"""The SDK for people who write agents, and the process that carries them.

class Watcher(Agent):
    role = Role.HUNTER

    async def on_alert(self, alert: ThreatAlert, context: Context) -> None:
        print(context.sender, alert.summary)

if __name__ == "__main__":
    run_agents(Watcher)
"""

from tocsin.agent.agent import Agent, BallotChoice, HostView, rendezvous
from tocsin.agent.channels import Channel, ChannelStats, Network
from tocsin.agent.host import AgentHost
from tocsin.agent.objectives import ObjectiveContext
from tocsin.agent.run import run_agents
from tocsin.agent.settings import HostSettings
from tocsin.bus import Context, Sent

__all__ = [
    "Agent",
    "AgentHost",
    "BallotChoice",
    "Channel",
    "ChannelStats",
    "Context",
    "HostSettings",
    "HostView",
    "Network",
    "ObjectiveContext",
    "Sent",
    "rendezvous",
    "run_agents",
]
