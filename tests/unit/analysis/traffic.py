"""Flows that tests write by hand."""

from __future__ import annotations

from tocsin.analysis.windows import WINDOW_S, Window
from tocsin.contracts.observations import Flow, FlowState


def flow(
    at_s: float = 0.0,
    *,
    source: str = "10.0.0.5",
    peer: str = "10.0.0.9",
    port: int = 443,
    state: FlowState = FlowState.ESTABLISHED,
    protocol: str = "tcp",
    source_port: int = 0,
    duration_s: float | None = 1.0,
    sent: int = 100,
    received: int = 100,
    service: str | None = None,
) -> Flow:
    return Flow(
        at_s=at_s,
        source=source,
        source_port=source_port,
        destination=peer,
        destination_port=port,
        protocol=protocol,
        service=service,
        duration_s=duration_s,
        bytes_sent=sent,
        bytes_received=received,
        state=state,
    )


def window(flows: list[Flow], window_s: float = WINDOW_S) -> Window[Flow]:
    return Window(flows[0].source, min(item.at_s for item in flows), window_s, flows)
