"""What a ballot and a vote are about, as 32 bytes.

Nothing is re-encoded to compute them: a decision's id is the hash of its proposal's exact bytes, so within
a decision an option's index names the option, byte for byte.

    H(choice)  = SHA-256("tocsin/choice/1"  || 0x00 || decision || round || kind || index)
    DECIDE(h)  = SHA-256("tocsin/outcome/1" || 0x00 || decision || round || 0x01 || h)
    CLOSE      = SHA-256("tocsin/outcome/1" || 0x00 || decision || round || 0x02)

``decision`` and ``h`` are 32 bytes, ``round``, ``kind`` and ``index`` one byte each. ``kind`` is 1 for an
option; for abstain it is 0 and there is no index. Agents ballot for H(choice), instances vote for DECIDE or
CLOSE. Binding decision and round costs nothing, and a value that was moved elsewhere matches nothing there.
"""

from __future__ import annotations

from hashlib import sha256

from tocsin.contracts.decisions import MAX_OPTIONS, Ballot, Choice
from tocsin.contracts.errors import InvalidInputError

CHOICE_DOMAIN = b"tocsin/choice/1\x00"
OUTCOME_DOMAIN = b"tocsin/outcome/1\x00"
MAX_ROUNDS = 10


def choice_bytes(decision: bytes, round_number: int, option: int | None) -> bytes:
    """Return the canonical bytes of a choice: an option's index, or None to abstain."""
    if option is None:
        return _place(decision, round_number) + b"\x00"
    if not 0 <= option < MAX_OPTIONS:
        raise InvalidInputError(f"there is no option {option}", reason="no_such_option")
    return _place(decision, round_number) + bytes((1, option))


def choice_digest(decision: bytes, round_number: int, option: int | None) -> bytes:
    """Return H(choice)."""
    return sha256(CHOICE_DOMAIN + choice_bytes(decision, round_number, option)).digest()


def decide_value(decision: bytes, round_number: int, choice: bytes) -> bytes:
    """Return what instances vote for when H(choice) has its quorum of ballots."""
    return sha256(OUTCOME_DOMAIN + _place(decision, round_number) + b"\x01" + choice).digest()


def close_value(decision: bytes, round_number: int) -> bytes:
    """Return what instances vote for when no choice reached, or can still reach, its quorum."""
    return sha256(OUTCOME_DOMAIN + _place(decision, round_number) + b"\x02").digest()


def check_ballot(ballot: Ballot, options: int) -> int | None:
    """Return the option that a ballot is for, or None for abstain.

    Raises:
        InvalidInputError: ``bad_choice``: kind, index and digest do not say the same, or name no option.
    """
    option = ballot.option
    fits = (ballot.choice is Choice.ABSTAIN) == (option is None)
    if not fits or (option is not None and option >= options):
        raise InvalidInputError("the ballot's choice is none of the proposal's options", reason="bad_choice")
    if ballot.value != choice_digest(ballot.decision, ballot.round, option):
        raise InvalidInputError("the ballot's digest is of another choice", reason="bad_choice")
    return option


def _place(decision: bytes, round_number: int) -> bytes:
    if len(decision) != 32:
        raise InvalidInputError(f"a decision's id is 32 bytes, not {len(decision)}", reason="bad_decision")
    if not 1 <= round_number <= MAX_ROUNDS:
        raise InvalidInputError(f"there is no round {round_number}", reason="bad_round")
    return decision + bytes((round_number,))
