"""Exit codes of the ``tocsin`` command; ``docs/reference/exit-codes.md`` is generated from here.

Where BSD's sysexits.h has a code with the meaning, it is that one. Errors of the bus and the services
carry their family's code (tocsin.contracts.errors).
"""

from __future__ import annotations

from enum import IntEnum

from tocsin.contracts.errors import TocsinError


class Exit(IntEnum):
    """Why the command ended."""

    doc: str

    def __new__(cls, code: int, doc: str) -> Exit:  # noqa: PYI034 - an Enum member is of the class itself
        """Make a member of a code and its meaning."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.doc = doc
        return member

    OK = (
        0,
        "Everything was done. For `demo` this includes an input in which nothing was found: the summary says so.",
    )
    FAILED = 1, "Something failed that has no code of its own; the message says what."
    USAGE = 2, "The command line is wrong; `--help` shows what is possible."
    NOT_DECIDED = (
        3,
        "`demo`, `respond`, `decision propose`: the agents did not decide (closed, or no quorum in time), or decided "
        "otherwise, or nobody could act on it.",
    )
    INCOMPLETE = (
        4,
        "`demo`, `respond`: decided, but a delivery that was due could not be proven, or a guardian refused, failed or "
        "said nothing. `alert send --wait`: "
        "somebody to whom the alert was due has not confirmed it, or nobody was due. `inventory`: an endpoint that was "
        "to be probed did not show its key exchange or its certificate; the rest was taken. "
        "`mission watch`: the mission has ended and not every objective was reached.",
    )
    BAD_INPUT = (
        65,
        "Malformed or out of bounds: an input in no known format or without a line that can be read, a bad name, "
        "fewer than three agents.",
    )
    NO_INPUT = 66, "The input file does not exist or cannot be read."
    UNAVAILABLE = 69, "The broker or a service did not come up, is gone or does not answer; a port is in use."
    BUG = 70, "A defect of Tocsin itself. Please report it with the log."
    CONFLICT = 73, "Something exists already, or changed meanwhile: it is never overwritten."
    EXHAUSTED = 75, "A quota, queue or budget is used up; try again later."
    UNTRUSTED = 76, "A signature, certificate, record or decision does not hold."
    DENIED = 77, "Authenticated, but not allowed."
    INTERRUPTED = (
        130,
        "Ctrl-C, or SIGTERM; everything that was started has been ended. `up`, `ingest` and `tail`, which run "
        "until then, end with 0.",
    )


class NoInputError(TocsinError):
    """The input file is missing or cannot be read."""

    reason = "no_input"
    exit_code = Exit.NO_INPUT
