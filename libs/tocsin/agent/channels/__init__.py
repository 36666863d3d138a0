"""Secure channels between agents: see ``docs/explanation/channels.md``."""

from tocsin.agent.channels.channel import Channel, ChannelStats
from tocsin.agent.channels.network import Network, SecurityParameters

__all__ = ["Channel", "ChannelStats", "Network", "SecurityParameters"]
