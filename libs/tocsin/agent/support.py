"""Whether an agent has grounds of its own for a response: who was it warned about, and by whom.

Pure: no I/O and no clock. The default ballot policy rests on it:

* an option that commands something is supported if its address is the subject of an alert, an incident or
  an assessment that the agent received from **another agent than the proposer**, or of an operator's wish: the
  proposer's own word is what is being voted on;
* the first such option is voted for, else the first option that does nothing, else nothing (abstain);
* where no option commands anything it abstains: a warning says nothing about which of some words is better, and to
  vote for whatever stands first would let the proposer decide. An agent of your own that knows better answers in its
  ``on_proposal``.

In a later round the options stand in the order of their support in the round before, which the consensus instances have
agreed on. The same rule then follows the leading one of the options that the agent has grounds for: agents whose
warnings allow several commands come to the same one, and so do those that would do nothing in several ways. What
it never does is to follow others to a command that it has no grounds for, however many they are: f hostile agents would
then decide for the undecided. Nor does it follow them from a command that it has grounds for to doing nothing.

Does not protect against agents that lie in concert with the proposer: that is what the quorum is for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from tocsin.contracts.analysis import Assessment
from tocsin.contracts.base import Message
from tocsin.contracts.decisions import Proposal, QuestionWish
from tocsin.contracts.observations import Incident
from tocsin.contracts.response import Command, ResponseWish
from tocsin.contracts.routing import Coordination, Intelligence, ThreatAlert

MAX_SUBJECTS = 4096
"""Addresses remembered; the one that was named longest ago is forgotten first."""
MAX_WITNESSES = 8
"""Agents remembered for one address. Two would do: at most one of them is the proposer."""


class Support:
    """A bounded memory of the addresses that an agent was warned about."""

    def __init__(self, *, max_subjects: int = MAX_SUBJECTS) -> None:
        self._max = max_subjects
        self._witnesses: OrderedDict[str, set[str]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._witnesses)

    def note(self, body: Message, *, sender: str) -> None:
        """Remember whom a message is about, if it is about anybody."""
        for subject in subjects(body):
            witnesses = self._witnesses.setdefault(subject, set())
            self._witnesses.move_to_end(subject)
            if len(witnesses) < MAX_WITNESSES:
                witnesses.add(sender)
            if len(self._witnesses) > self._max:
                self._witnesses.popitem(last=False)

    def witnesses(self, address: str) -> frozenset[str]:
        """Return the names of the agents that warned about ``address``."""
        return frozenset(self._witnesses.get(address, ()))


def subjects(body: Message) -> Iterator[str]:
    """Yield the addresses that a message accuses."""
    if isinstance(body, Coordination):
        yield from subjects(body.content)
    elif isinstance(body, ThreatAlert | Intelligence):
        if body.finding is not None:
            yield body.finding.subject
        if isinstance(body, ThreatAlert) and body.wish is not None:
            yield from (command.address for command in commands(body.wish))
    elif isinstance(body, Incident):
        yield body.primary.subject
        yield from (finding.subject for finding in body.related)
    elif isinstance(body, Assessment):
        yield body.finding.subject


def commands(wish: ResponseWish | QuestionWish) -> tuple[Command, ...]:
    """Return what an operator's wish would have done."""
    if isinstance(wish, ResponseWish):
        return (wish.command,)
    return tuple(option.command for option in wish.options if option.command is not None)


def choose(proposal: Proposal, support: Support, *, proposer: str) -> tuple[int | None, str]:
    """Return the option to vote for (None: abstain) and the reason."""
    if all(option.command is None for option in proposal.options):
        return None, "no option commands anything, and I have no grounds to choose among words"
    for index, option in enumerate(proposal.options):
        if option.command is None:
            continue
        others = sorted(support.witnesses(option.command.address) - {proposer})
        if others:
            return index, f"warned about {option.command.address} by {', '.join(others)}"[:512]
    for index, option in enumerate(proposal.options):
        if option.command is None:
            return index, "no warning of another agent about the address"
    return None, "no warning of another agent about any address, and doing nothing is no option"
