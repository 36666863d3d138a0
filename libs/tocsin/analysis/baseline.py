"""Baselines: windows of ordinary hosts, and the scales that are fitted on them and on nothing else.

The input under test never moves a scale: what it is measured with was fixed before.

    office = baseline("office-v1")
    row = office.scale(features)             # for the classical models
    angles = office.angles(features, 4)      # for the quantum feature map

Counts are heavy-tailed, so the three counts go through log10 first (bytes are logarithms already); then every
feature is measured in interquartile ranges from the median and clipped to +-CLIP. A feature whose
interquartile range is nearly nothing is measured by MIN_RANGE instead, or a hair's breadth would be an outlier.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import atan, log10, pi
from random import Random
from statistics import median, quantiles
from typing import Self

from tocsin.analysis.office import office_windows
from tocsin.contracts.errors import InvalidInputError
from tocsin.contracts.observations import FEATURES, WindowFeatures

OFFICE = "office-v1"

CLIP = 10.0
"""Interquartile ranges from the median beyond which further is the same; under a normal distribution ten are
13 standard deviations."""

MIN_RANGE = 0.1
"""Smallest interquartile range that a feature is measured by: 0.1 of a share, a quarter more of a count."""

MIN_WINDOWS = 20
"""Fewest windows of a baseline: the kernel trains on twenty."""

MAX_WINDOWS = 200
"""Most windows that are kept; a kernel matrix on the bus has at most 256 rows."""

ANGLE_ORDER = (
    "rejected_share",
    "interval_regularity",
    "distinct_ports",
    "connections",
    "distinct_peers",
    "port_concentration",
)
"""The features of the quantum feature map: the first ``qubits`` of these. First what tells a scan and a failed
beacon from work (failures), then what tells beacons (regularity), vertical scans (ports), volume, horizontal
scans (peers), and one target. Bytes are not among them: IDS alerts and unanswered probes have none."""

_COUNTS = frozenset({"connections", "distinct_ports", "distinct_peers"})


def _row(features: WindowFeatures) -> tuple[float, ...]:
    values = zip(FEATURES, features.vector, strict=True)
    return tuple(log10(value) if name in _COUNTS else value for name, value in values)


@dataclass(frozen=True, slots=True)
class Baseline:
    """Windows of ordinary hosts, and the median and range of each feature over them."""

    name: str
    windows: tuple[WindowFeatures, ...]
    medians: tuple[float, ...]
    ranges: tuple[float, ...]

    @classmethod
    def fit_from(cls, windows: Iterable[WindowFeatures], name: str, *, seed: int = 0) -> Self:
        """Fit a baseline on windows that are held to be quiet, e.g. of a capture of one's own.

        Whoever poisons that capture teaches the models that their doings are ordinary.

        Args:
            windows: At least MIN_WINDOWS; of more than MAX_WINDOWS a random choice by ``seed`` is kept.
            name: A DNS label; ``file-<something>`` for one from a file.
            seed: Of that choice.
        """
        every = tuple(windows)
        if len(every) < MIN_WINDOWS:
            raise InvalidInputError(
                f"baseline {name!r} has {len(every)} windows",
                reason="baseline_too_small",
                advice=f"Give a capture with at least {MIN_WINDOWS} windows of five minutes and a host each.",
            )
        kept = every if len(every) <= MAX_WINDOWS else _choose(every, MAX_WINDOWS, seed)
        columns = list(zip(*(_row(window) for window in kept), strict=True))
        quartiles = [quantiles(column, n=4, method="inclusive") for column in columns]
        return cls(
            name=name,
            windows=kept,
            medians=tuple(median(column) for column in columns),
            ranges=tuple(max(MIN_RANGE, high - low) for low, _, high in quartiles),
        )

    def scale(self, features: WindowFeatures) -> tuple[float, ...]:
        """Return the features in the order of FEATURES, in interquartile ranges from the median, clipped."""
        scaled = zip(_row(features), self.medians, self.ranges, strict=True)
        return tuple(max(-CLIP, min(CLIP, (value - middle) / width)) for value, middle, width in scaled)

    def rows(self) -> tuple[tuple[float, ...], ...]:
        """Return all windows, scaled: what the classical models train on."""
        return tuple(self.scale(window) for window in self.windows)

    def angles(self, features: WindowFeatures, qubits: int) -> tuple[float, ...]:
        """Return the first ``qubits`` features of ANGLE_ORDER as angles in (0, pi): pi/2 + atan(scaled).

        The median is at pi/2, one interquartile range is 45 degrees, and however far out a value is, it stays
        below pi, so that it cannot wrap around and look ordinary again.
        """
        if not 2 <= qubits <= len(ANGLE_ORDER):
            raise InvalidInputError(f"{qubits} qubits, must be 2 to {len(ANGLE_ORDER)}", reason="bad_qubits")
        scaled = dict(zip(FEATURES, self.scale(features), strict=True))
        return tuple(pi / 2 + atan(scaled[name]) for name in ANGLE_ORDER[:qubits])

    def samples(self, count: int, seed: int) -> tuple[WindowFeatures, ...]:
        """Choose ``count`` windows without replacement, in the baseline's order; the same for the same seed."""
        if not 1 <= count <= len(self.windows):
            raise InvalidInputError(
                f"{count} samples of a baseline with {len(self.windows)} windows", reason="bad_sample"
            )
        return _choose(self.windows, count, seed)


def _choose(windows: tuple[WindowFeatures, ...], count: int, seed: int) -> tuple[WindowFeatures, ...]:
    random = Random(seed)  # noqa: S311  (a choice that can be repeated, not a secret)
    return tuple(windows[i] for i in sorted(random.sample(range(len(windows)), count)))


@lru_cache(maxsize=1)
def _office() -> Baseline:
    return Baseline.fit_from(office_windows(), OFFICE)


def baseline(name: str) -> Baseline:
    """Return a baseline by its name; the first call of a process generates it (about 0.1 s)."""
    if name == OFFICE:
        return _office()
    raise InvalidInputError(
        f"no baseline is named {name!r}",
        reason="unknown_baseline",
        advice=f"Use {OFFICE!r}, or fit one on a quiet capture of yours.",
    )
