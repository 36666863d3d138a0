"""What is asked next when a round ends without a quorum: v_{r+1}, from v_r and ballots of it.

The rule, for a committee of n participants with f = (n - 1) // 3:

1. Fewer than n - f ballots: v_r goes on unchanged, in its order. So many can be waited for, whatever f hostile ones do.
2. The options that go out, while more than two would remain: an instant run-off. The ones with least support go
   together as long as they have, all of them, less than the next one ("batch elimination": one after the
   other they would go before it in any case); else the one with least goes, of equals the later in v_r. Of the options
   that command nothing the best supported one never goes: whoever wants no action can always say so.
3. Counter-proposals come in that are the same byte for byte, have the name of no option of v_r, and are made by more
   than f participants, hence by an honest one; those of most support first, of equals the lower digest. There are
   three at most; a committee that can command nothing takes none that commands, nor does a question of somebody who
   may propose no command. At most :data:`MAX_OPTIONS` options
   in all, and no two of one name.
4. v_{r+1} is sorted by support, of equals the earlier in v_r first, and new ones after old ones. The order is what
   agents are told of the round before: it is agreed on, as a tally of one instance's would not be.

A participant counts once; who has cast two ballots counts as whoever proposes says, so f hostile ones, and the
choice of who is left out, move a tally by f at most each. Nothing is decided here: every option has to find its quorum.

Pure, and a function of the multiset of choices alone: neither of who cast them nor of the order in which they came.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tocsin.contracts.decisions import MAX_OPTIONS, Option
from tocsin.contracts.proposers import has_effect
from tocsin.evidence.choices import option_digest
from tocsin.evidence.quorum import Quorum

Chosen = int | Option | None
"""An option's index in v_r, a counter-proposal, or None: abstained."""
LEFT = 2
"""So many options always remain."""


def refine(
    options: Sequence[Option], chosen: Iterable[Chosen], quorum: Quorum, *, commands: bool = True
) -> tuple[Option, ...]:
    """Return v_{r+1}.

    Args:
        options: v_r.
        chosen: one choice of each participant that counts.
        quorum: the committee's numbers.
        commands: whether the committee may decide on a command, and the proposer ask for one.
    """
    counts: Counter[Chosen] = Counter(chosen)
    if counts.total() < quorum.participants - quorum.tolerated_faults:
        return tuple(options)
    support = [counts[index] for index in range(len(options))]
    staying = _run_off(options, support)
    new = [
        (-count, option_digest(choice), choice)
        for choice, count in counts.items()
        if isinstance(choice, Option)
        and count > quorum.tolerated_faults
        and (commands or not has_effect(choice))
    ]
    ranked = [(-support[index], options[index]) for index in staying]
    names = {option.name for option in options}
    for rank, _, option in sorted(new, key=lambda one: one[:2]):
        if option.name not in names and len(ranked) < MAX_OPTIONS:
            names.add(option.name)
            ranked.append((rank, option))
    # Sorting is stable: equals keep their order in v_r, and new ones stand behind old ones.
    return tuple(option for _, option in sorted(ranked, key=lambda one: one[0]))


def _run_off(options: Sequence[Option], support: Sequence[int]) -> list[int]:
    """Return the indices of the options that stay, in order."""
    spare = len(options) - LEFT
    if spare <= 0:
        return list(range(len(options)))
    harmless = [index for index, option in enumerate(options) if option.command is None]
    kept = max(harmless, key=lambda index: (support[index], -index), default=None)
    rising = sorted((i for i in range(len(options)) if i != kept), key=lambda i: (support[i], -i))
    together = [
        count
        for count in range(2, spare + 1)
        if sum(support[i] for i in rising[:count]) < support[rising[count]]
    ]
    gone = set(rising[: max(together, default=1)])
    return [index for index in range(len(options)) if index not in gone]
