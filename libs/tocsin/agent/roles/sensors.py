"""Names of the sources that deception sensors report for: what sentinels, hunters and sensors agree on."""

from __future__ import annotations

DECEPTION = "deception: "
"""How the sources of deception sensors begin; no capture may be called so."""
HONEYPOTS = f"{DECEPTION}honeypots"
"""The one source that all deception agents of a fleet report for."""
