"""What a ballot and a vote are about, as 32 bytes.

In the first round nothing is re-encoded to compute them: a decision's id is the hash of its proposal's exact bytes, so
an option's index names the option, byte for byte. A later round's options come from a commit, so what names them
there is the digest of the list, and a counter-proposal is named by its own.

    H(choice)      = SHA-256("tocsin/choice/1"  || 0x00 || decision || round || list || kind || index or H(option))
    DECIDE(h)      = SHA-256("tocsin/outcome/1" || 0x00 || decision || round || 0x01 || h)
    CLOSE          = SHA-256("tocsin/outcome/1" || 0x00 || decision || round || 0x02)
    NEXT(l)        = SHA-256("tocsin/outcome/1" || 0x00 || decision || round || 0x03 || l)
    INSUFFICIENT   = SHA-256("tocsin/outcome/1" || 0x00 || decision || round || 0x04)
    H(option)      = SHA-256("tocsin/option/1"  || 0x00 || msgpack map of the option)
    H(options)     = SHA-256("tocsin/options/1" || 0x00 || H(option) of each)

``decision``, ``h`` and ``l = H(options)`` are 32 bytes, ``round``, ``kind`` and ``index`` one byte each. ``list`` is
H(v_r) for r > 1, and empty in the first round. ``kind`` is 1 for an option, 2 for a counter-proposal; for
abstain it is 0 and nothing follows. Agents ballot for H(choice), instances vote for one of the four outcomes. Binding
decision and round costs nothing, and a value that was moved elsewhere matches nothing there. Binding the list
means that a quorum of ballots is for one and the same option even if every instance lies about what the round asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Self

from tocsin.bus.envelope import encode_body
from tocsin.contracts.decisions import MAX_OPTIONS, Ballot, Choice, Option, Proposal
from tocsin.contracts.errors import InvalidInputError

CHOICE_DOMAIN = b"tocsin/choice/1\x00"
OUTCOME_DOMAIN = b"tocsin/outcome/1\x00"
OPTION_DOMAIN = b"tocsin/option/1\x00"
OPTIONS_DOMAIN = b"tocsin/options/1\x00"
MAX_ROUNDS = 10


def option_digest(option: Option) -> bytes:
    """Return H(option): two options are the same one if every byte of them is."""
    return sha256(OPTION_DOMAIN + encode_body(option)).digest()


def options_digest(options: Sequence[Option]) -> bytes:
    """Return H(options): it names the options and their order."""
    return sha256(OPTIONS_DOMAIN + b"".join(map(option_digest, options))).digest()


@dataclass(frozen=True)
class Question:
    """What a round asks: v_r, and where."""

    decision: bytes
    round: int
    options: tuple[Option, ...]

    @classmethod
    def first(cls, decision: bytes, proposal: Proposal) -> Self:
        """Return what the proposal itself asks."""
        return cls(decision, 1, proposal.options)

    @cached_property
    def digest(self) -> bytes:
        """H(v_r)."""
        return options_digest(self.options)

    @property
    def _list(self) -> bytes:
        return b"" if self.round == 1 else self.digest

    def choice(self, option: int | None) -> bytes:
        """Return H(choice) of an option, by its index, or of abstaining.

        Raises:
            InvalidInputError: ``no_such_option``.
        """
        if option is not None and not 0 <= option < len(self.options):
            raise InvalidInputError(f"there is no option {option}", reason="no_such_option")
        return choice_digest(self.decision, self.round, option, options=self._list)

    def counter(self, option: Option) -> bytes:
        """Return H(choice) of a counter-proposal."""
        place = _place(self.decision, self.round) + self._list
        return sha256(CHOICE_DOMAIN + place + b"\x02" + option_digest(option)).digest()

    def decide(self, option: int) -> bytes:
        """Return DECIDE of an option."""
        return decide_value(self.decision, self.round, self.choice(option))

    def next(self, options: Sequence[Option]) -> bytes:
        """Return NEXT of the next round's options."""
        return next_value(self.decision, self.round, options_digest(options))

    @property
    def close(self) -> bytes:
        """CLOSE."""
        return close_value(self.decision, self.round)

    @property
    def insufficient(self) -> bytes:
        """INSUFFICIENT."""
        return insufficient_value(self.decision, self.round)


def choice_digest(decision: bytes, round_number: int, option: int | None, *, options: bytes = b"") -> bytes:
    """Return H(choice) of an option's index, or of None: abstain. ``options`` is H(v_r), in a round after the first."""
    place = _place(decision, round_number) + options
    if option is None:
        return sha256(CHOICE_DOMAIN + place + b"\x00").digest()
    if not 0 <= option < MAX_OPTIONS:
        raise InvalidInputError(f"there is no option {option}", reason="no_such_option")
    return sha256(CHOICE_DOMAIN + place + bytes((1, option))).digest()


def decide_value(decision: bytes, round_number: int, choice: bytes) -> bytes:
    """Return what instances vote for when H(choice) has its quorum of ballots."""
    return sha256(OUTCOME_DOMAIN + _place(decision, round_number) + b"\x01" + choice).digest()


def close_value(decision: bytes, round_number: int) -> bytes:
    """Return what instances vote for when the last round ends and no choice has its quorum."""
    return sha256(OUTCOME_DOMAIN + _place(decision, round_number) + b"\x02").digest()


def next_value(decision: bytes, round_number: int, options: bytes) -> bytes:
    """Return what instances vote for to go on to the next round, with the options of this digest."""
    return sha256(OUTCOME_DOMAIN + _place(decision, round_number) + b"\x03" + options).digest()


def insufficient_value(decision: bytes, round_number: int) -> bytes:
    """Return what instances vote for when the last round ends and fewer than a quorum have balloted."""
    return sha256(OUTCOME_DOMAIN + _place(decision, round_number) + b"\x04").digest()


def check_ballot(ballot: Ballot, question: Question) -> int | Option | None:
    """Return the option's index, the counter-proposal, or None for abstain.

    Raises:
        InvalidInputError: ``bad_choice``: kind, content and digest do not say the same, or name no option.
    """
    option, counter = ballot.option, ballot.counter
    kinds = (ballot.choice is Choice.OPTION, ballot.choice is Choice.COUNTER)
    if kinds != (option is not None, counter is not None) or (
        option is not None and option >= len(question.options)
    ):
        raise InvalidInputError("the ballot's choice is none of the round's options", reason="bad_choice")
    if ballot.value != (question.choice(option) if counter is None else question.counter(counter)):
        raise InvalidInputError("the ballot's digest is of another choice", reason="bad_choice")
    return option if counter is None else counter


def _place(decision: bytes, round_number: int) -> bytes:
    if len(decision) != 32:
        raise InvalidInputError(f"a decision's id is 32 bytes, not {len(decision)}", reason="bad_decision")
    if not 1 <= round_number <= MAX_ROUNDS:
        raise InvalidInputError(f"there is no round {round_number}", reason="bad_round")
    return decision + bytes((round_number,))
