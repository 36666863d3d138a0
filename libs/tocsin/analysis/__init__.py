"""The security analyses: from bytes of a log to features, findings, scores and an assessment.

A pure functional core: no clock, no randomness that is not seeded, no I/O but reading a stream that is
passed in. Importing this package imports none of its modules; only ``classical`` needs numpy and
scikit-learn, and only ``kernel`` needs Qiskit.
"""
