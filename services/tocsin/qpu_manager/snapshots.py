"""Calibrations from the snapshots of IBM QPUs that come with qiskit-ibm-runtime.

Importing this module costs about two seconds, so the service does it in a thread once it answers. Each
snapshot is imported by its own module; asking the provider for them all would load the 68.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from statistics import median

from qiskit.transpiler import InstructionProperties, Target
from qiskit_ibm_runtime.fake_provider import backends as snapshot_package

from tocsin.contracts.errors import InvalidInputError, InvariantBrokenError
from tocsin.qpu_manager.calibrations import EXCLUDED, Calibration, GateFigures, require_allowed

BASIS = ("sx", "x", "rz", "cx", "ecr", "cz")
"""The gates that are taken over. Others (delays, resets, control flow, second kinds of readout) no kernel
circuit needs."""


def available() -> tuple[str, ...]:
    """Return the names of all snapshots that are not excluded."""
    folders = {module.name for module in pkgutil.iter_modules(snapshot_package.__path__)}
    return tuple(sorted(folders - EXCLUDED.keys()))


def load(qpu: str) -> Calibration:
    """Read one QPU's calibration; 10 to 250 ms.

    Raises:
        InvalidInputError: There is no such snapshot, it is excluded, or it lacks what is needed of it.
    """
    require_allowed(qpu)
    if qpu not in available():
        raise InvalidInputError(f"no QPU {qpu!r}; there are {', '.join(available())}", reason="unknown_qpu")
    module = import_module(f"{snapshot_package.__name__}.{qpu}")
    for found in vars(module).values():
        if isinstance(found, type) and getattr(found, "backend_name", None) == f"fake_{qpu}":
            snapshot = found()
            return _calibration(qpu, snapshot.target, snapshot.properties().last_update_date.isoformat())
    raise InvalidInputError(f"snapshot {qpu} has no QPU of that name", reason="unknown_qpu")


def _calibration(qpu: str, target: Target, calibrated: str) -> Calibration:
    """Take over what we use of a target; what it does not know becomes unusable, never free of error."""
    t1_s = tuple((p.t1 or 0.0) if p else 0.0 for p in target.qubit_properties)
    # Fits of T2 above the physical limit of twice T1 occur; the limit stands in for them.
    t2_s = tuple(
        min((p.t2 or 0.0) if p else 0.0, 2 * t1) for p, t1 in zip(target.qubit_properties, t1_s, strict=True)
    )
    gates = {
        (name, qubits): _figures(properties)
        for name in BASIS
        if name in target.operation_names
        for qubits, properties in target[name].items()
    }
    if not any(len(on) == 2 for _, on in gates):
        raise InvalidInputError(f"QPU {qpu} has no two-qubit gate that we know", reason="unknown_qpu")
    readout = tuple(_figures(target["measure"].get((q,))) for q in range(target.num_qubits))
    if median(figures.duration_s for figures in readout) <= 0:
        raise InvariantBrokenError(f"QPU {qpu} belongs on the exclusion list: no readout durations")
    return Calibration(qpu, calibrated, t1_s, t2_s, readout, gates)


def _figures(properties: InstructionProperties | None) -> GateFigures:
    if properties is None or properties.error is None or properties.duration is None:
        return GateFigures(1.0, 0.0)
    return GateFigures(min(1.0, properties.error), properties.duration)
